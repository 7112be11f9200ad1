"""Training: batch, code, terms, loss, step, record, save."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from trimesh import Trimesh

from shapespace import picture
from shapespace.data.loader import StepDataset, batches
from shapespace.machine import machine
from shapespace.models.base import ShapeModel
from shapespace.models.code import Code
from shapespace.objective import Execution, Objective, Products, choose, settle_products
from shapespace.optim import Optimisers
from shapespace.run import MACHINE, Run

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
    are functions of (seed, step), and the checkpoint holds all the rest.
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
    began = time.monotonic() - spent

    model.train()
    step = start
    for batch in batches(dataset, start, plan.steps, workers=plan.workers):
        passed = _passed(step, time.monotonic() - began, plan, device)
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

        if writer and step % plan.log_every == 0:
            _record(writer, bar, step, loss, terms, optimiser)
        if writer and plan.mesh_every and step % plan.mesh_every == 0:
            _record_meshes(writer, step, model, dataset, device)
        if writer and step % plan.save_every == 0:
            _save(model, optimiser, run, step, time.monotonic() - began, publish, dataset, device, writer)
        bar.update()

    if writer:
        _save(model, optimiser, run, step, time.monotonic() - began, publish, dataset, device, writer)
        _record_meshes(writer, step, model, dataset, device)
        if plan.pictured:
            _record_codes(writer, step, model, dataset, device, plan.pictured)
        writer.close()
    bar.close()


def _passed(step: int, seconds: float, plan: Plan, device: torch.device) -> float:
    """Share of the training that is behind us: by steps or by the clock, whichever is further; the same everywhere."""
    share = step / plan.steps
    if plan.minutes is not None:
        clock = torch.tensor(seconds / 60 / plan.minutes, device=device)
        if dist.is_initialized():
            dist.broadcast(clock, src=0)
        share = max(share, clock.item())
    return share


def _record(
    writer: Any,
    bar: Any,
    step: int,
    loss: Tensor,
    terms: Mapping[str, Tensor],
    optimiser: Optimisers,
) -> None:
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss.item()} at step {step} (terms: {', '.join(f'{k} {v:.3g}' for k, v in terms.items())}): "
            "lower --optim.lr, or set --optim.clip 1."
        )
    if _collapsed(terms):
        raise FloatingPointError(
            f"the field is zero everywhere at step {step} (eikonal {terms['eikonal']:.3g}, surface "
            f"{terms['surface']:.3g}), and training on would not bring it back. Start from the last checkpoint with "
            "smaller steps: --start RUN, and lower --optim.lr and --optim.lr_hidden, or --optim.clip 1."
        )
    writer.add_scalar("loss", loss.item(), step)
    writer.add_scalar("lr", optimiser.param_groups[0]["lr"], step)
    for name, term in terms.items():
        writer.add_scalar(f"terms/{name}", term.item(), step)
    shown = {name: f"{terms[name].item():.4f}" for name in ("surface", "occupancy", "chamfer") if name in terms}
    bar.set_postfix(loss=f"{loss.item():.4f}", **shown, refresh=False)


def _collapsed(terms: Mapping[str, Tensor]) -> bool:
    """No surface is off zero, and no slope is near 1: a field that has died, as too large a step may leave it."""
    known = "eikonal" in terms and "surface" in terms
    return known and abs(float(terms["eikonal"]) - 1) < 0.05 and float(terms["surface"]) < 5e-3


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
) -> None:
    if model.prior is not None:
        codes = training_codes(model, dataset, device)
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
