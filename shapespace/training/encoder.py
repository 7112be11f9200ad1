"""Train the encoder of a model with parts, after its decoder: on scans whose parts are carried into other poses."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from shapespace.data.loader import derive_seed
from shapespace.data.store import ScanSource
from shapespace.geometry.articulation import PartPoses, RelativePoses, compose, relative, rotation_matrices
from shapespace.models.articulated import ArticulatedSDF
from shapespace.nn.hypernetwork import ROTATION_WEIGHT
from shapespace.nn.part_mlp import BLEND_SHARPNESS, NEAREST, PartStates
from shapespace.training.optimizers import cosine, make_optimizers

CARRIED = 0.25  # share of a batch whose limbs are exchanged
EXCHANGES = 4  # limbs of a carried body that have the pose of another scan
TURN_STD = 0.1  # of a further turn of every joint of a carried body (radians)
HEADING, SHIFT_STD = 0.35, 0.03  # largest heading (radians) and deviation of the center (model units) of every scan
CUT = 0.25  # share of a batch of which a random half is cut away, so that partial scans are known
LOCAL_WEIGHT = 0.02  # of the local codes, in units of their deviations, beside distances in model units
POINTNET = 32, 1e-3, 1e-2  # scans of a step, learning rate, and that of Muon
CORRECTIONS = 16, 3e-3, None
CORRECTIONS_SHARE = 0.7  # of the budget
WARMUP = 50
_STREAM = 7  # of the random numbers of this module, beside those of the batches


@dataclass(frozen=True)
class EncoderBudget:
    """Length of the training: steps, or minutes, whichever is over first."""

    steps: int
    minutes: float | None

    def part(self, share: float) -> "EncoderBudget":
        """A share of both."""
        return EncoderBudget(round(share * self.steps), None if self.minutes is None else share * self.minutes)

    def fraction(self, step: int, seconds: float) -> float:
        """What is over of it after some steps and seconds."""
        return max(step / self.steps, 0.0 if self.minutes is None else seconds / 60 / self.minutes)


class _Stage(NamedTuple):
    """A module that is trained: for how long, scans of a step, and learning rates (Adam's, and Muon's or None)."""

    name: str
    module: nn.Module
    budget: EncoderBudget
    batch: int
    rate: float
    muon_rate: float | None


def train_encoder(
    model: ArticulatedSDF, store: ScanSource, names: Sequence[str], budget: EncoderBudget, *, seed: int
) -> None:
    """Train the encoder alone; its codes shall put the parts where they are, and give them their local codes.

    First the PointNet is trained, then what corrects its code. The loss is on the parts and not on the codes, most of
    whose numbers hardly move anything. A few scans teach many poses: a part of a batch are bodies whose limbs have the
    joint angles of other scans, with the points carried by the parts.
    """
    if not budget.steps:
        return
    encoder = model.encoder
    corrected = len(encoder.corrections) > 0
    stages = [_Stage("PointNet", encoder.pointnet, budget.part(1 - CORRECTIONS_SHARE if corrected else 1.0), *POINTNET)]
    if corrected:
        encoder.corrections.set_projection(model.hypernetwork.weights(), model.prior.precision())
        stages.append(_Stage("corrections", encoder.corrections, budget.part(CORRECTIONS_SHARE), *CORRECTIONS))
    learned = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    model.train()
    try:
        bodies = _Bodies(model)
        for number, stage in enumerate(stages):
            _train_stage(model, stage, bodies, store, names, (seed, number))
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(learned[name])
        encoder.train_network(True)
        model.eval()


def _distance(a: PartStates, b: PartStates, local_std: Float[Tensor, "k l"]) -> Float[Tensor, ""]:
    """Mean distance of the centers of the parts (model units), plus that of rotations and local codes."""
    center = (a.center - b.center).norm(dim=-1).mean()
    rotation = (a.rotation - b.rotation).flatten(2).norm(dim=-1).mean()
    local = ((a.local_code - b.local_code) / local_std.clamp(min=1e-4)).square().mean(dim=-1).sqrt().mean()
    return center + ROTATION_WEIGHT * rotation + LOCAL_WEIGHT * local


class _Bodies:
    """Training bodies, whose limbs can be exchanged."""

    def __init__(self, model: ArticulatedSDF) -> None:
        self.radius = model.decoder.radius
        self.states = model.training_states()
        self.tree = model.part_tree()
        self.poses = relative(self.tree, PartPoses(self.states.center.cpu(), self.states.rotation.cpu()))
        count = len(self.radius)
        self.below: Bool[Tensor, "k k"] = torch.stack([self.tree.descendants(part) for part in range(count)])
        """Whether a part (column) moves with another one (row)."""

    def draw(
        self, points: Float[Tensor, "b n 3"], rows: Int[Tensor, "b"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "b n 3"], PartStates]:
        """Points as the encoder shall see them, and the states of their parts."""
        states = self.states.select(rows.to(points.device))
        count = round(CARRIED * len(rows))
        carried = self._exchange(rows[:count], generator)
        moved = carry(points[:count], states.select(slice(0, count)), carried, self.radius)
        points = torch.cat([moved, points[count:]])
        center = torch.cat([carried.center, states.center[count:]])
        rotation = torch.cat([carried.rotation, states.rotation[count:]])
        turn, shift = _headings(len(rows), generator)
        turn, shift = turn.to(points), shift.to(points)
        points, center = points @ turn.mT + shift, center @ turn.mT + shift
        return _cut(points, generator), PartStates(center, turn[:, None] @ rotation, states.local_code)

    def _exchange(self, rows: Int[Tensor, "b"], generator: torch.Generator) -> PartPoses:
        """Bodies of these rows, whose limbs turn relative to their parents as those of other rows, and a little more.

        Limbs are subtrees of the parts; large ones are more likely.
        """
        count, size = len(rows), self.below.sum(dim=1).float()
        donors = rows[:, None].repeat(1, len(size))
        size[self.tree.root] = 0
        for _ in range(EXCHANGES if size.any() else 0):  # a single part has no limbs
            limb = torch.multinomial(size, count, replacement=True, generator=generator)
            donor = torch.randint(len(self.states.center), (count, 1), generator=generator)
            donors = torch.where(self.below[limb], donor, donors)
        rotation = self.poses.rotation[donors, torch.arange(len(size))]
        noise = TURN_STD * torch.randn(count, len(size), 3, generator=generator)
        rotation = rotation @ rotation_matrices(noise)
        root = self.tree.root
        rotation[:, root] = self.poses.rotation[rows, root]
        poses = compose(self.tree, RelativePoses(rotation, self.poses.joint[rows]))
        # Scans are centered on the mean of their points, which moves with the limbs.
        before = self.states.center[rows.to(self.states.center.device)].cpu()
        area = self.radius.cpu().square()[:, None] / self.radius.cpu().square().sum()
        shift = ((poses.center - before) * area).sum(dim=1, keepdim=True)
        device = self.states.center.device
        return PartPoses((poses.center - shift).to(device), poses.rotation.to(device))


def _train_stage(
    model: ArticulatedSDF,
    stage: _Stage,
    bodies: _Bodies,
    store: ScanSource,
    names: Sequence[str],
    seeds: tuple[int, int],
) -> None:
    encoder, device = model.encoder, model.decoder.radius.device
    stage.module.requires_grad_(True)
    optimizers = make_optimizers(model, lr=stage.rate, lr_codes=0.0, lr_muon=stage.muon_rate)
    rates = [group["lr"] for group in optimizers.param_groups]
    schedule, began = cosine(warmup_steps=WARMUP), time.monotonic()
    for step in tqdm(range(stage.budget.steps), desc=f"train {stage.name}", unit="step"):
        fraction = stage.budget.fraction(step, time.monotonic() - began)
        if fraction >= 1:
            break
        for group, rate in zip(optimizers.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step, fraction)
        generator = torch.Generator().manual_seed(derive_seed(*seeds, step, _STREAM))
        rows = torch.randint(len(names), (stage.batch,), generator=generator)
        rng = np.random.default_rng((*seeds, step, _STREAM))
        drawn = np.stack([store.sample(names[row], encoder.count, rng).points for row in rows.tolist()])
        points, states = bodies.draw(torch.from_numpy(drawn).float().to(device), rows, generator)
        code, _ = encoder.pointnet(points)
        codes = [code]
        if stage.module is encoder.corrections:
            codes = encoder.corrections(points, code, model.hypernetwork, model.decoder.radius)
        loss = torch.stack([_distance(model.hypernetwork(one), states, model.local_std) for one in codes]).sum()
        optimizers.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(stage.module.parameters(), 10.0)
        optimizers.step()
    stage.module.requires_grad_(False)


def carry(
    points: Float[Tensor, "b n 3"], states: PartStates, moved: PartPoses, radius: Float[Tensor, "k"]
) -> Float[Tensor, "b n 3"]:
    """Points after the motion of their nearest parts, blended as the field is."""
    squared = torch.cdist(points, states.center).square() / radius.square()
    nearest = squared.topk(min(NEAREST, len(radius)), largest=False)
    weight = (-BLEND_SHARPNESS * nearest.values).softmax(dim=-1)
    turn = moved.rotation @ states.rotation.mT
    offset = moved.center - (turn @ states.center[..., None])[..., 0]
    result = torch.zeros_like(points)
    body = torch.arange(len(points), device=points.device)[:, None]
    for place in range(nearest.indices.shape[-1]):
        part = nearest.indices[..., place]
        at = (turn[body, part] @ points[..., None])[..., 0] + offset[body, part]
        result += weight[..., place, None] * at
    return result


def _headings(count: int, generator: torch.Generator) -> tuple[Float[Tensor, "b 3 3"], Float[Tensor, "b 1 3"]]:
    """Random headings about y, and shifts."""
    angle = HEADING * (2 * torch.rand(count, generator=generator) - 1)
    vector = torch.stack([torch.zeros(count), angle, torch.zeros(count)], dim=1)
    return rotation_matrices(vector), SHIFT_STD * torch.randn(count, 1, 3, generator=generator)


def _cut(points: Float[Tensor, "b n 3"], generator: torch.Generator) -> Float[Tensor, "b n 3"]:
    """Of the last scans, only the points on one side of a random plane through the middle; they are repeated."""
    count = round(CUT * len(points))
    if not count:
        return points
    cut = points[-count:]
    direction = nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1).to(points)
    height = ((cut - cut.mean(dim=1, keepdim=True)) * direction[:, None]).sum(dim=-1)
    order = height.argsort(dim=1, descending=True)
    kept = math.ceil(cut.shape[1] / 2)
    order = order[:, torch.arange(cut.shape[1], device=points.device) % kept]
    return torch.cat([points[:-count], cut.gather(1, order[..., None].expand(-1, -1, 3))])
