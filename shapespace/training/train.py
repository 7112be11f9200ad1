"""Training: batch, code, terms, loss, step, record, save."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from shapespace.data.loader import Batch, StepDataset, batches
from shapespace.models.base import ShapeModel
from shapespace.training.monitor import DivergenceMonitor
from shapespace.training.objective import Execution, MatmulPrecision, Objective, choose_execution, set_matmul_precision
from shapespace.training.optimizers import OptimizerGroup, Schedule
from shapespace.training.run import MACHINE, Run, describe_hardware
from shapespace.training.tensorboard import record_codes, record_meshes, record_scalars


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs to know."""

    max_steps: int
    max_minutes: float | None
    schedule: Schedule
    max_grad_norm: float | None
    seed: int
    log_every: int
    save_every: int
    mesh_every: int
    projector_codes: int
    num_workers: int
    execution: Execution | None
    matmul_precision: MatmulPrecision


def train(
    model: ShapeModel,
    dataset: StepDataset,
    optimizers: OptimizerGroup,
    weights: Mapping[str, float],
    plan: LoopSettings,
    run: Run,
    *,
    device: torch.device,
    on_checkpoint: Callable[[], None],
    resume: bool = False,
) -> None:
    """Train until the plan's steps or minutes are spent; `publish` writes the model beside each checkpoint.

    Resumed on a CPU within its minutes, it ends with the same bits as an uninterrupted run: batches and random draws
    are functions of (seed, step), and the checkpoint holds all the rest. Ctrl-C and SIGTERM end it after the step, with
    a checkpoint.

    Raises:
        FloatingPointError: It goes wrong (see `watch`).
        KeyboardInterrupt: It was asked to end.

    """
    from torch.utils.tensorboard import SummaryWriter  # a second or two: only where it is wanted

    chief = dataset.rank == 0
    base_lr = [group["lr"] for group in optimizers.param_groups]
    start, spent = _restore(model, optimizers, run) if resume else (0, 0.0)
    first = dataset[start].to(device)
    set_matmul_precision(model, weights, first, plan.matmul_precision)
    execution = plan.execution or choose_execution(model, first, plan.max_steps, plan.max_minutes)
    objective: nn.Module = Objective(model, weights, execution)
    if dataset.world_size > 1:
        objective = DistributedDataParallel(objective)
    writer = SummaryWriter(str(run.tensorboard), purge_step=start) if chief else None
    if writer:
        writer.add_text(MACHINE, describe_hardware(), start)
    bar = tqdm(total=plan.max_steps, initial=start, desc="train", unit="step", disable=not chief, smoothing=0.05)
    watch, due = DivergenceMonitor(run, dataset), False
    began = time.monotonic() - spent

    model.train()
    step, passed = start, 0.0
    with stop_on_signal() as asked:
        waited = DataTimer(batches(dataset, start, plan.max_steps, num_workers=plan.num_workers))
        for batch in waited:
            passed = progress(step, time.monotonic() - began, plan, asked, device)
            if passed >= 1:
                break
            torch.manual_seed(hash((plan.seed, step, dataset.rank)))
            for group, lr in zip(optimizers.param_groups, base_lr, strict=True):
                group["lr"] = lr * plan.schedule(step, passed)
            loss, terms = objective(batch.to(device))
            optimizers.zero_grad()
            loss.backward()
            if plan.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), plan.max_grad_norm)
            optimizers.step()
            step += 1

            if writer:
                watch.update(step, loss, terms)
            due = due or step % plan.save_every == 0
            if writer and (due or step % plan.log_every == 0):
                watch.check_losses()
            if writer and step % plan.log_every == 0:
                record_scalars(writer, bar, step, loss, terms, optimizers)
                writer.add_scalar("wait", waited.share(), step)
            if writer and plan.mesh_every and step % plan.mesh_every == 0:
                record_meshes(writer, step, model, dataset, device)
            if writer and due and watch.is_stable:
                _save(
                    model,
                    optimizers,
                    run,
                    step,
                    time.monotonic() - began,
                    on_checkpoint,
                    dataset,
                    device,
                    writer,
                    watch,
                )
                due = False
            bar.update()

    if writer:
        watch.check_losses(last=True)
        _save(model, optimizers, run, step, time.monotonic() - began, on_checkpoint, dataset, device, writer, watch)
        if passed != math.inf:
            record_meshes(writer, step, model, dataset, device)
        if passed != math.inf and plan.projector_codes:
            record_codes(writer, step, model, dataset, device, plan.projector_codes)
        writer.close()
    bar.close()
    if passed == math.inf:
        raise KeyboardInterrupt(f"stopped at step {step}; go on: shapespace train --resume {run.folder}")


class DataTimer:
    """Batches, and which share of the time went by until they were there."""

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
        """Of the time since it was asked last."""
        now = time.perf_counter()
        share = self._seconds / max(now - self._since, 1e-9)
        self._seconds, self._since = 0.0, now
        return share


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Collect the signals that ask for an end while the block runs; a second one of a kind does what it always did."""
    asked = list[int]()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def hear(number: int, _: object) -> None:
        asked.append(number)
        signal.signal(number, before[signal.Signals(number)])

    alone = threading.current_thread() is threading.main_thread()  # others may not listen to signals
    for number in before if alone else ():
        signal.signal(number, hear)
    try:
        yield asked
    finally:
        for number, handler in before.items() if alone else ():
            signal.signal(number, handler)


def progress(step: int, seconds: float, plan: LoopSettings, asked: Sequence[int], device: torch.device) -> float:
    """Share of the training that is behind us, by steps or by the clock, whichever is further; the same everywhere.

    Infinite if a process was asked to end.
    """
    share = max(step / plan.max_steps, 0.0 if plan.max_minutes is None else seconds / 60 / plan.max_minutes)
    if asked:
        share = math.inf
    if dist.is_initialized():
        furthest = torch.tensor(share, device=device)
        dist.all_reduce(furthest, dist.ReduceOp.MAX)
        share = furthest.item()
    return share


@torch.no_grad()
def encode_training_scans(model: ShapeModel, dataset: StepDataset, device: torch.device) -> Tensor:
    """Flat codes of all training scans, in the order of their rows."""
    model.eval()
    rows = range(len(dataset.names))
    codes = [model.encode(dataset.single_scan(row).to(device)).flat for row in rows]
    model.train()
    return torch.cat(codes)


def _save(
    model: ShapeModel,
    optimiser: OptimizerGroup,
    run: Run,
    step: int,
    seconds: float,
    publish: Callable[[], None],
    dataset: StepDataset,
    device: torch.device,
    writer: Any,
    watch: DivergenceMonitor,
) -> None:
    codes = None if model.prior is None else encode_training_scans(model, dataset, device)
    watch.check_weights(step, model, codes)
    if model.prior is not None and codes is not None:
        model.prior.fit(codes)
        if codes.numel():  # of one scan alone they have no numbers
            writer.add_histogram("codes/numbers", codes, step)
            writer.add_histogram("codes/lengths", codes.norm(dim=1), step)
    run.save_checkpoint(
        {"step": step, "seconds": seconds, "model": model.state_dict(), "optimizer": optimiser.state_dict()}
    )
    publish()


def _restore(model: ShapeModel, optimiser: OptimizerGroup, run: Run) -> tuple[int, float]:
    state = run.load_checkpoint()
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state["seconds"])
