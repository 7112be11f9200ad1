"""Train a model: batch, code, terms, loss, step, record, save."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from shapespace.data.loader import Batch, StepDataset, batches, derive_seed
from shapespace.data.registration import PartTargets
from shapespace.data.store import ScanSource
from shapespace.models import registry
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.base import ShapeModel
from shapespace.training.config import OptimConfig, TrainConfig
from shapespace.training.encoder import EncoderBudget, train_encoder
from shapespace.training.monitor import DivergenceMonitor
from shapespace.training.objective import (
    Objective,
    choose_execution,
    restore_matmul_precision,
    set_matmul_precision,
)
from shapespace.training.optimizers import OptimizerGroup, make_optimizers, make_schedule
from shapespace.training.run import MACHINE, Run, describe_hardware
from shapespace.training.tensorboard import record_codes, record_meshes, record_scalars
from shapespace.training.trained import TrainedModel
from shapespace.training.warm_start import (
    init_codes_from_encoder,
    load_pretrained,
    pretrained_config,
    replace_codes,
)

MIN_STEPS = 2000  # steps below which `max_epochs` does not end a training


def train_model(
    config: TrainConfig[Any],
    store: ScanSource,
    names: Sequence[str],
    run: Run,
    *,
    rank: int = 0,
    world_size: int = 1,
    resume: bool = False,
    targets: PartTargets | None = None,
) -> TrainedModel:
    """Train on the scans `names` of a store; checkpoint, model and records are written to `run`.

    With several processes, this is process `rank` of `world_size`. `targets` are poses of the parts of the articulated
    family, by fits of the model `config.init_from`; by default they come from registrations. Raises as `train` does.
    """
    device = training_device(config.device)
    if config.trainable == "encoder":
        config = pretrained_config(config)
    torch.manual_seed(config.seed)
    model = registry.build_model(config.model, num_scans=len(names)).to(device)
    metadata: dict[str, Any] = {"weights": asdict(config.weights), "data": store.metadata, "scans": len(names)}
    loaded: set[str] = set()
    if config.init_from is not None:
        loaded, weights = load_pretrained(config.init_from, model, config.model, trainable=config.trainable)
        if config.trainable == "encoder":  # the decoder is that of the other training, and so is its loss
            metadata["weights"] = weights
    if config.trainable == "all":
        _set_targets(model, store, names, targets)
    encoder = model.encoder_parameters()
    if config.trainable == "encoder":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in encoder)
    batch = asdict(config.batch)
    del batch["num_workers"]
    dataset = StepDataset(store, names, **batch, seed=config.seed, rank=rank, world_size=world_size)
    codes, is_encoder_loaded = model.codes_parameter, bool(encoder) and encoder.keys() <= loaded
    if codes is not None and is_encoder_loaded and not resume and targets is None:
        name = next(name for name, parameter in model.named_parameters() if parameter is codes)
        if name not in loaded:  # other scans than those of the initial model
            init_codes_from_encoder(model, codes, dataset, device)
    encoder_budget = None
    if isinstance(model, ArticulatedSDF) and config.trainable == "encoder":
        steps = num_steps(config.optim, len(names), config.batch.scans)
        encoder_budget = EncoderBudget(steps, config.optim.max_minutes)
    elif isinstance(model, ArticulatedSDF):
        config, encoder_budget = split_budget(config, len(names))
        model.encoder.train_network(False)  # below
    optimizers = make_optimizers(
        model, lr=config.optim.lr, lr_codes=config.optim.lr_codes, lr_muon=config.optim.lr_muon
    )

    def save() -> None:
        registry.save_model(run.weights, model, config.model, scale=store.scale, metadata=metadata)

    if config.trainable == "all" or encoder_budget is None:
        train(TrainingJob(config, model, dataset, optimizers, device, on_checkpoint=save), run, resume=resume)
    if isinstance(model, ArticulatedSDF) and encoder_budget is not None and rank == 0:
        train_encoder(model, store, names, encoder_budget, seed=config.seed)
    if rank == 0 and targets is None and config.trainable == "all":
        model.finish(store, names)
    if rank == 0 and (config.trainable == "all" or encoder_budget is not None):
        save()
    return TrainedModel(model.eval(), config.model, store.scale, metadata)


def split_budget(config: TrainConfig[Any], num_scans: int) -> tuple[TrainConfig[Any], EncoderBudget]:
    """The config with the steps and minutes of the decoder, and those of the encoder after it."""
    optim, share = config.optim, config.optim.encoder_share
    if not 0 <= share < 1:
        raise ValueError(f"--optim.encoder-share {share:g}: must be at least 0 and below 1.")
    steps, minutes = num_steps(optim, num_scans, config.batch.scans), optim.max_minutes
    later = round(share * steps)
    decoder = replace(
        optim,
        max_steps=max(1, steps - later),
        max_epochs=None,
        max_minutes=None if minutes is None else (1 - share) * minutes,
    )
    return replace(config, optim=decoder), EncoderBudget(later, None if minutes is None else share * minutes)


def _set_targets(model: ShapeModel, store: ScanSource, names: Sequence[str], targets: PartTargets | None) -> None:
    """Set what is computed from the training scans: from their registrations, or by fits of the loaded model."""
    if targets is None:
        model.initialize(store, names)
    else:
        assert isinstance(model, ArticulatedSDF)  # no other family has targets
        model.set_targets(targets)
        if targets.code is not None:
            replace_codes(model, targets.code)


def training_device(name: str) -> torch.device:
    """Device by its setting."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def num_steps(optim: OptimConfig, num_scans: int, batch_scans: int) -> int:
    """Number of steps of a training on `num_scans` scans, with `batch_scans` of them in each step."""
    if optim.max_epochs is None:
        return optim.max_steps
    return min(optim.max_steps, max(MIN_STEPS, round(optim.max_epochs * num_scans / batch_scans)))


@dataclass(frozen=True)
class TrainingJob:
    """What is trained, on which scans, and how; `on_checkpoint` saves the model beside each checkpoint."""

    config: TrainConfig[Any]
    model: ShapeModel
    dataset: StepDataset
    optimizers: OptimizerGroup
    device: torch.device
    on_checkpoint: Callable[[], None]

    @property
    def max_steps(self) -> int:
        """Number of steps, unless the minutes end the training before."""
        return num_steps(self.config.optim, len(self.dataset.names), self.config.batch.scans)


def train(job: TrainingJob, run: Run, *, resume: bool = False) -> None:
    """Train until the steps or the minutes of the config are over.

    A training that is resumed on a CPU, and is not ended by its minutes, ends with the same bits as an uninterrupted
    one: batches and random numbers are functions of (seed, step), and the checkpoint has everything else. Ctrl-C and
    SIGTERM end it after the present step, with a checkpoint.

    Raises:
        FloatingPointError: It diverges (see `monitor`).
        KeyboardInterrupt: It was ended by a signal.

    """
    config, model, dataset, optimizers, device = job.config, job.model, job.dataset, job.optimizers, job.device
    base_lr = [group["lr"] for group in optimizers.param_groups]
    schedule = make_schedule(config.optim)
    start, seconds = _restore(job, run) if resume else (0, 0.0)
    step, fraction = start, 0.0
    with restore_matmul_precision():
        objective = _make_objective(job, start)
        with TrainingRecorder(job, run, start, seconds) if dataset.rank == 0 else nullcontext() as recorder:
            began = time.monotonic() - seconds
            model.train()
            with stop_on_signal() as signals:
                timed = DataTimer(batches(dataset, start, job.max_steps, num_workers=config.batch.num_workers))
                for batch in timed:
                    fraction = progress(step, time.monotonic() - began, job, signals)
                    if fraction >= 1:
                        break
                    torch.manual_seed(derive_seed(config.seed, step, dataset.rank))
                    for group, lr in zip(optimizers.param_groups, base_lr, strict=True):
                        group["lr"] = lr * schedule(step, fraction)
                    loss, terms = objective(batch.to(device))
                    optimizers.zero_grad()
                    loss.backward()
                    if config.optim.max_grad_norm is not None:
                        nn.utils.clip_grad_norm_(model.parameters(), config.optim.max_grad_norm)
                    optimizers.step()
                    step += 1
                    if recorder:
                        recorder.on_step(step, loss, terms, timed)
            if recorder:
                recorder.on_end(step, interrupted=fraction == math.inf)
    if fraction == math.inf:
        raise KeyboardInterrupt(f"stopped at step {step}; resume with: shapespace train --resume {run.folder}")


def _make_objective(job: TrainingJob, start: int) -> nn.Module:
    """Objective with precision and execution by the settings, or chosen by the first batch."""
    config, model, weights = job.config, job.model, asdict(job.config.weights)
    first = job.dataset[start].to(job.device)
    set_matmul_precision(model, weights, first, config.matmul_precision)
    execution = config.execution
    if execution == "auto":
        execution = choose_execution(model, first, job.max_steps, config.optim.max_minutes)
    objective: nn.Module = Objective(model, weights, execution)
    return DistributedDataParallel(objective) if job.dataset.world_size > 1 else objective


class TrainingRecorder:
    """Records, divergence checks and checkpoints of a training, by the process of rank 0."""

    def __init__(self, job: TrainingJob, run: Run, start: int, seconds: float) -> None:
        """`start` and `seconds` are the steps and the duration before this process resumed the training."""
        from torch.utils.tensorboard import SummaryWriter  # takes a second or two

        self.job, self.run, self.monitor = job, run, DivergenceMonitor(run, job.dataset)
        self.writer = SummaryWriter(str(run.tensorboard), purge_step=start)
        self.writer.add_text(MACHINE, describe_hardware(), start)
        self.bar = tqdm(total=job.max_steps, initial=start, desc="train", unit="step", smoothing=0.05)
        self._began = time.monotonic() - seconds
        self._is_due = False  # a checkpoint waits until the loss is stable

    def __enter__(self) -> "TrainingRecorder":
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        """Close the records; after a failure, that of the records themselves (such as a full disk) is not told too."""
        self.bar.close()
        with suppress(OSError) if failure else nullcontext():
            self.writer.close()

    def on_step(self, step: int, loss: Tensor, terms: Mapping[str, Tensor], timer: "DataTimer") -> None:
        """Record a step, and save every `save_every` steps, or as soon as the loss is stable after that."""
        config, is_logged = self.job.config, step % self.job.config.log_every == 0
        self.monitor.update(step, loss, terms)
        self._is_due = self._is_due or step % config.save_every == 0
        if self._is_due or is_logged:
            self.monitor.check_losses()
        if is_logged:
            record_scalars(self.writer, self.bar, step, loss, terms, self.job.optimizers)
            self.writer.add_scalar("time/data_wait", timer.share(), step)
        if config.mesh_every and step % config.mesh_every == 0:
            record_meshes(self.writer, step, self.job.model, self.job.dataset, self.job.device)
        if self._is_due and self.monitor.is_stable:
            self.on_save(step)
            self._is_due = False
        self.bar.update()

    def on_save(self, step: int) -> None:
        """Check the weights, fit the prior to the codes, and write checkpoint and model."""
        model = self.job.model
        codes = None if model.prior is None else encode_training_scans(model, self.job.dataset, self.job.device)
        self.monitor.check_weights(step, model, codes)
        if model.prior is not None and codes is not None:
            model.summarize(codes)
            if codes.numel():  # the code of a single scan has dimension 0
                self.writer.add_histogram("codes/values", codes, step)
                self.writer.add_histogram("codes/norms", codes.norm(dim=1), step)
        state = {"model": model.state_dict(), "optimizer": self.job.optimizers.state_dict()}
        self.run.save_checkpoint({"step": step, "seconds": time.monotonic() - self._began, **state})
        self.job.on_checkpoint()

    def on_end(self, step: int, *, interrupted: bool) -> None:
        """Save, and unless the training was interrupted record meshes and codes."""
        job = self.job
        self.monitor.check_losses(last=True)
        self.on_save(step)
        if not interrupted:
            record_meshes(self.writer, step, job.model, job.dataset, job.device)
        if not interrupted and job.config.projector_codes:
            record_codes(self.writer, step, job.model, job.dataset, job.device, job.config.projector_codes)


class DataTimer:
    """Iterator over batches that measures the time spent waiting for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self._seconds, self._since = batches, 0.0, time.perf_counter()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            began = time.perf_counter()
            batch = next(self._batches, None)
            self._seconds += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def share(self) -> float:
        """Fraction of the time since the last call that was spent waiting."""
        now = time.perf_counter()
        share = self._seconds / max(now - self._since, 1e-9)
        self._seconds, self._since = 0.0, now
        return share


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT during the block; a second signal of a kind has its former effect."""
    received = list[int]()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    is_main = threading.current_thread() is threading.main_thread()  # Python allows handlers in the main thread only
    for number in before if is_main else ():
        signal.signal(number, handle)
    try:
        yield received
    finally:
        for number, handler in before.items() if is_main else ():
            signal.signal(number, handler)


def progress(step: int, seconds: float, job: TrainingJob, signals: Sequence[int]) -> float:
    """Completed fraction of the training by steps or minutes, whichever are further; infinite after a signal.

    All processes get the maximum over them.
    """
    max_minutes = job.config.optim.max_minutes
    fraction = max(step / job.max_steps, 0.0 if max_minutes is None else seconds / 60 / max_minutes)
    if signals:
        fraction = math.inf
    if dist.is_initialized():
        furthest = torch.tensor(fraction, device=job.device)
        dist.all_reduce(furthest, dist.ReduceOp.MAX)
        fraction = furthest.item()
    return fraction


@torch.no_grad()
def encode_training_scans(model: ShapeModel, dataset: StepDataset, device: torch.device) -> Tensor:
    """Flat codes (n, k) of all training scans, in the order of the dataset."""
    model.eval()
    rows = range(len(dataset.names))
    codes = [model.encode(dataset.single_scan(row).to(device)).flat for row in rows]
    model.train()
    return torch.cat(codes)


def _restore(job: TrainingJob, run: Run) -> tuple[int, float]:
    """Load the checkpoint; return its step and the seconds of training before it."""
    state = run.load_checkpoint()
    job.model.load_state_dict(state["model"])
    job.optimizers.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state["seconds"])
