"""Training: batch, code, terms, loss, step, record, save."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from trimesh import Trimesh

from shapespace.data.loader import Batch, StepDataset, batches
from shapespace.machine import machine
from shapespace.models.base import ShapeModel
from shapespace.models.code import Code
from shapespace.rendering import renderer as picture
from shapespace.training.monitor import Watch
from shapespace.training.objective import Execution, Objective, Products, choose, settle_products
from shapespace.training.optimizers import Optimisers
from shapespace.training.run import MACHINE, Run

THUMBNAIL = 64  # pixels of a picture in TensorBoard's projector
PICTURED_CELLS = 48  # along the cube's edge, of the meshes in these pictures

# Factor on the learning rate at a step, and at a share of the training that has passed.
Schedule = Callable[[int, float], float]


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know."""

    steps: int
    minutes: float | None
    schedule: Schedule
    clip: float | None
    seed: int
    log_every: int
    save_every: int
    mesh_every: int
    pictured: int
    workers: int
    execution: Execution | None
    products: Products


def train(
    model: ShapeModel,
    dataset: StepDataset,
    optimiser: Optimisers,
    weights: Mapping[str, float],
    plan: Plan,
    run: Run,
    *,
    device: torch.device,
    publish: Callable[[], None],
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
    base_lr = [group["lr"] for group in optimiser.param_groups]
    start, spent = _restore(model, optimiser, run) if resume else (0, 0.0)
    first = dataset[start].to(device)
    settle_products(model, weights, first, plan.products)
    execution = plan.execution or choose(model, first, plan.steps, plan.minutes)
    objective: nn.Module = Objective(model, weights, execution)
    if dataset.world > 1:
        objective = DistributedDataParallel(objective)
    writer = SummaryWriter(str(run.events), purge_step=start) if chief else None
    if writer:
        writer.add_text(MACHINE, machine(), start)
    bar = tqdm(total=plan.steps, initial=start, desc="train", unit="step", disable=not chief, smoothing=0.05)
    watch, due = Watch(run, dataset), False
    began = time.monotonic() - spent

    model.train()
    step, passed = start, 0.0
    with _asked() as asked:
        waited = _Waited(batches(dataset, start, plan.steps, workers=plan.workers))
        for batch in waited:
            passed = _passed(step, time.monotonic() - began, plan, asked, device)
            if passed >= 1:
                break
            torch.manual_seed(hash((plan.seed, step, dataset.rank)))
            for group, lr in zip(optimiser.param_groups, base_lr, strict=True):
                group["lr"] = lr * plan.schedule(step, passed)
            loss, terms = objective(batch.to(device))
            optimiser.zero_grad()
            loss.backward()
            if plan.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
            optimiser.step()
            step += 1

            if writer:
                watch.see(step, loss, terms)
            due = due or step % plan.save_every == 0
            if writer and (due or step % plan.log_every == 0):
                watch.look()
            if writer and step % plan.log_every == 0:
                _record(writer, bar, step, loss, terms, optimiser)
                writer.add_scalar("wait", waited.share(), step)
            if writer and plan.mesh_every and step % plan.mesh_every == 0:
                _record_meshes(writer, step, model, dataset, device)
            if writer and due and watch.calm:
                _save(model, optimiser, run, step, time.monotonic() - began, publish, dataset, device, writer, watch)
                due = False
            bar.update()

    if writer:
        watch.look(last=True)
        _save(model, optimiser, run, step, time.monotonic() - began, publish, dataset, device, writer, watch)
        if passed != math.inf:
            _record_meshes(writer, step, model, dataset, device)
        if passed != math.inf and plan.pictured:
            _record_codes(writer, step, model, dataset, device, plan.pictured)
        writer.close()
    bar.close()
    if passed == math.inf:
        raise KeyboardInterrupt(f"stopped at step {step}; go on: shapespace train --resume {run.folder}")


class _Waited:
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
def _asked() -> Iterator[list[int]]:
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


def _passed(step: int, seconds: float, plan: Plan, asked: Sequence[int], device: torch.device) -> float:
    """Share of the training that is behind us, by steps or by the clock, whichever is further; the same everywhere.

    Infinite if a process was asked to end.
    """
    share = max(step / plan.steps, 0.0 if plan.minutes is None else seconds / 60 / plan.minutes)
    if asked:
        share = math.inf
    if dist.is_initialized():
        furthest = torch.tensor(share, device=device)
        dist.all_reduce(furthest, dist.ReduceOp.MAX)
        share = furthest.item()
    return share


def _record(
    writer: Any,
    bar: Any,
    step: int,
    loss: Tensor,
    terms: Mapping[str, Tensor],
    optimiser: Optimisers,
) -> None:
    writer.add_scalar("loss", loss.item(), step)
    writer.add_scalar("lr", optimiser.param_groups[0]["lr"], step)
    for name, term in terms.items():
        writer.add_scalar(f"terms/{name}", term.item(), step)
    shown = {name: f"{terms[name].item():.4f}" for name in ("surface", "occupancy", "chamfer") if name in terms}
    bar.set_postfix(loss=f"{loss.item():.4f}", **shown, refresh=False)


@torch.no_grad()
def _record_meshes(writer: Any, step: int, model: ShapeModel, dataset: StepDataset, device: torch.device) -> None:
    """The surfaces of one batch's first scan, coarse, for TensorBoard's mesh page."""
    model.eval()
    mesh = _shape(model, model.encode(dataset[0].to(device))[0], 64)
    model.train()
    if not len(mesh.faces):  # no surface yet: early in a training that is ordinary
        return
    vertices, faces = torch.from_numpy(mesh.vertices.copy()), torch.from_numpy(mesh.faces.copy())
    writer.add_mesh("surface", vertices=vertices[None].float(), faces=faces[None].int(), global_step=step)


@torch.no_grad()
def _record_codes(
    writer: Any, step: int, model: ShapeModel, dataset: StepDataset, device: torch.device, most: int
) -> None:
    """Codes of training scans, evenly spread over them, for TensorBoard's projector: each with a picture of its shape.

    Codes that are longer than there are of them are turned onto the axes that they span: distances stay the same.
    """
    model.eval()
    rows = np.unique(np.linspace(0, len(dataset.names) - 1, most).round().astype(int)).tolist()
    names = [dataset.names[row].replace("\t", " ") for row in rows]
    codes = [model.encode(dataset.visit(row).to(device)) for row in rows]
    pictures = [picture.thumbnail(_shape(model, code, PICTURED_CELLS), THUMBNAIL) for code in codes]
    flat = torch.cat([code.flat for code in codes]).cpu()
    if flat.shape[1] > len(flat):
        left, length, _ = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False)
        flat = left * length
    model.train()
    writer.add_embedding(
        flat,
        metadata=[[name, name.partition("/")[0]] for name in names],
        metadata_header=["scan", "subject"],
        label_img=torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255,
        global_step=step,
        tag="codes",
    )


def _shape(model: ShapeModel, code: Code, resolution: int) -> Trimesh:
    """The surface of a code; a mesh without faces where there is none."""
    try:
        (mesh,) = model.surface(code, resolution=resolution)
    except ValueError:
        return Trimesh()
    return mesh


@torch.no_grad()
def training_codes(model: ShapeModel, dataset: StepDataset, device: torch.device) -> Tensor:
    """Flat codes of all training scans, in the order of their rows."""
    model.eval()
    rows = range(len(dataset.names))
    codes = [model.encode(dataset.visit(row).to(device)).flat for row in rows]
    model.train()
    return torch.cat(codes)


def _save(
    model: ShapeModel,
    optimiser: Optimisers,
    run: Run,
    step: int,
    seconds: float,
    publish: Callable[[], None],
    dataset: StepDataset,
    device: torch.device,
    writer: Any,
    watch: Watch,
) -> None:
    codes = None if model.prior is None else training_codes(model, dataset, device)
    watch.check(step, model, codes)
    if model.prior is not None and codes is not None:
        model.prior.fit(codes)
        if codes.numel():  # of one scan alone they have no numbers
            writer.add_histogram("codes/numbers", codes, step)
            writer.add_histogram("codes/lengths", codes.norm(dim=1), step)
    run.save_checkpoint(
        {"step": step, "seconds": seconds, "model": model.state_dict(), "optimiser": optimiser.state_dict()}
    )
    publish()


def _restore(model: ShapeModel, optimiser: Optimisers, run: Run) -> tuple[int, float]:
    state = run.load_checkpoint()
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"]), float(state["seconds"])


def cosine(*, warmup: int, floor: float = 0.01) -> Schedule:
    """Up over `warmup` steps, then down to `floor` along half a cosine."""

    def factor(step: int, passed: float) -> float:
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return rise * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(passed, 1.0))))

    return factor


def halving(*, every: int, warmup: int = 0) -> Schedule:
    """Halved every `every` steps (IGR halves every 500 epochs)."""

    def factor(step: int, passed: float) -> float:
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return float(rise * 0.5 ** (step // every))

    return factor
