"""Adapt the decoder to one scan after its code was fitted.

The field is trained to the points of the scan, to their signed distance nearby, and to the fitted field elsewhere, so
the completion of unseen surface is retained. Detail that the network cannot represent is added from the points
themselves. A part of the points is used for validation only: it selects the training step and the width of the detail.

For a scan without holes (`trust_distance` inf) the points give the signed distance everywhere. Then half of the targets
are drawn where the field is wrong, and the last layer, in which the field is linear, is solved for at the end.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shapespace.data.loader import collate
from shapespace.fitting.detail import add_detail
from shapespace.fitting.residuals import orient_normals, resample
from shapespace.geometry import proximity
from shapespace.geometry.scan import Scan
from shapespace.models.base import SDFModel
from shapespace.models.code import Code
from shapespace.models.igr import IGR
from shapespace.training.objective import Objective, chunked_gradients
from shapespace.training.optimizers import cosine, make_optimizers

# Arbitrary values; lengths are in model units.
TARGET_STDS = 0.03, 0.09  # standard deviations of the target points around the scan and the fitted surface
NUM_TARGETS = 40_000  # target points for each of these and each surface, and as many in the box
ERROR_POINTS = 8192  # target points at which the error of the field is measured, at every evaluation
ERROR_FLOOR = 0.01  # errors are relative to the distance, or to this where the distance is less
NUM_PLANES = 24  # tangent planes of the nearest points, whose intersection is an edge
HILDRETH_ROUNDS = 4  # rounds over these planes
NUM_SOLVES = 6  # least-squares solutions, after which the sum of absolute errors is within 1 % of its minimum
VALIDATION_POINTS = 4096  # maximum number of points used for validation


@dataclass(frozen=True)
class RefineOptions:
    """Settings of the adaptation of the decoder to one scan. Lengths are in model units."""

    max_points: int = 50_000
    """Maximum number of points that are used of the scan."""
    points: int = 512
    """Number of surface points at every step, and of points near them."""
    field_points: int = 512
    """Number of target points off the surface at every step."""
    steps: int = 300
    """Number of steps."""
    lr: float = 1e-3
    """Learning rate of Adam; both rates fall along half a cosine."""
    lr_muon: float = 6e-3
    """Learning rate of Muon, for hidden matrices."""
    near_std: float = 0.01
    """Standard deviation of the near-surface samples from the scan."""
    trust_distance: float = 0.03
    """Distance from the points up to which their signed distance is the target; beyond, it is the fitted field. `inf`
    for scans without holes, whose points give the distance everywhere."""
    signed_distance_weight: float = 1.0
    """Weight of the mean absolute difference of the field from its targets off the surface."""
    validation_fraction: float = 0.1
    """Fraction of the points that is used for validation only."""
    eval_every: int = 20
    """Number of steps between two evaluations on the validation points."""


def refine(
    model: SDFModel,
    scan: Scan,
    code: Code,
    weights: Mapping[str, float],
    options: RefineOptions | None = None,
    *,
    seed: int = 0,
) -> SDFModel:
    """Adapt a copy of the model to a scan (model frame) with a fitted code (a batch of one), and add detail.

    `weights` are those of the training's loss terms; terms of the code are not used. Scans without normals get
    estimated ones; if the points do not show which side is outside, it is the side on which the fitted field rises.
    """
    options = options or RefineOptions()
    rng = np.random.default_rng(seed)
    scan = orient_normals(model, scan.sample(options.max_points, rng).estimate_normals(), code)
    order = rng.permutation(len(scan))
    num_validation = max(1, round(options.validation_fraction * len(scan)))
    training, validation = np.split(order, [len(scan) - num_validation])
    check = torch.from_numpy(scan.points[validation[:VALIDATION_POINTS]]).float()[None].to(code.flat.device)
    scan = scan.select(training)
    targets = field_targets(model, scan, code, options.trust_distance, rng)
    weights = {
        **weights,
        "unsigned_distance": 0.0,
        "signed_distance": options.signed_distance_weight,
        "code_reg": 0.0,
        "distillation": 0.0,
    }
    refined = _adapt(model, scan, code, weights, targets, check, options, rng)
    targets.finish(refined, code)
    return add_detail(refined, scan, code, check)


def _adapt(
    model: SDFModel,
    scan: Scan,
    code: Code,
    weights: Mapping[str, float],
    targets: "FieldTargets",
    check: Float[Tensor, "1 n 3"],
    options: RefineOptions,
    rng: np.random.Generator,
) -> SDFModel:
    """Train a copy of the model; return it with the weights of the least mean |f| at the points `check`."""
    refined = copy.deepcopy(model).eval()
    learned = [p for name, p in refined.named_parameters() if not name.startswith("encoder.")]
    optimizer = make_optimizers(refined, lr=options.lr, lr_codes=0.0, lr_muon=options.lr_muon)
    rates, schedule = [group["lr"] for group in optimizer.param_groups], cosine(warmup_steps=10)
    loss = Objective(refined, weights).loss
    lowest, best = float("inf"), refined.state_dict()
    for step in range(options.steps + 1):
        if step % options.eval_every == 0:
            with torch.no_grad():
                error = float(refined.field(check, code).abs().mean())
            if error < lowest:
                lowest, best = error, copy.deepcopy(refined.state_dict())
            targets.update(refined, code, rng)
        if step == options.steps:
            break
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step, step / options.steps)
        sample = resample(scan, options.points, int(rng.integers(2**32)))
        batch = collate([sample], near_std=options.near_std, gradient_stride=4, seed=step).to(code.flat.device)
        rows = targets.draw(options.field_points, rng)
        batch = replace(batch, uniform_points=targets.points[rows][None], target_sdf=targets.values[rows][None])
        gradients = chunked_gradients(loss, batch, code, learned).gradients[len(code.tensors) :]
        for parameter, gradient in zip(learned, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    refined.load_state_dict(best)
    return refined


# ------------------------------------------------------------------------------------------------------------- targets


class FieldTargets(ABC):
    """Points off the surface, and the values that the field should have there (model units, negative inside)."""

    points: Float[Tensor, "n 3"]
    values: Float[Tensor, "n"]

    def draw(self, count: int, rng: np.random.Generator) -> Int[Tensor, "c"]:
        """Rows of the targets of one step."""
        return torch.from_numpy(rng.integers(len(self.points), size=count))

    @abstractmethod
    def update(self, model: SDFModel, code: Code, rng: np.random.Generator) -> None:
        """Adapt the draws to the present field; called at every evaluation."""

    @abstractmethod
    def finish(self, model: SDFModel, code: Code) -> None:
        """Improve the trained model in place."""


def field_targets(
    model: SDFModel, scan: Scan, code: Code, trust_distance: float, rng: np.random.Generator
) -> FieldTargets:
    """The targets of a scan with normals (model frame): of a complete scan if the trust distance is infinite."""
    if np.isfinite(trust_distance):
        return PartialScanTargets(model, scan, code, trust_distance, rng)
    return CompleteScanTargets(scan, code.flat.device, rng)


class PartialScanTargets(FieldTargets):
    """Targets for a scan with holes: signed distance to its points nearby, the fitted field elsewhere.

    The points are around the scan, around the fitted surface and in the box. The distance within which the scan counts
    grows where the fit is bad, so that a wrong surface is not retained. Points beside the rim of a hole are left out:
    their side is not reliable.
    """

    def __init__(
        self, model: SDFModel, scan: Scan, code: Code, trust_distance: float, rng: np.random.Generator
    ) -> None:
        surfaces = [np.asarray(mesh.vertices) for mesh in model.extract_surface(code, resolution=64)]
        points = _sample_around([scan.points.astype(np.float64), *surfaces], NUM_TARGETS, rng)
        distance, index, height = _signed_distance(points, scan, is_complete=False)
        device = code.flat.device
        with torch.no_grad():
            at_scan = model.field(torch.from_numpy(scan.points[index]).float()[None].to(device), code)[0]
            fitted = model.field(torch.from_numpy(points).float()[None].to(device), code)[0].cpu().numpy()
        is_near = distance < trust_distance + 3 * at_scan.abs().cpu().numpy()
        values = np.where(is_near, distance, fitted)
        is_reliable = ~is_near | (np.abs(height) > 0.8 * np.abs(distance))
        self.points = torch.from_numpy(points[is_reliable]).float().to(device)
        self.values = torch.from_numpy(values[is_reliable]).float().to(device)

    def update(self, model: SDFModel, code: Code, rng: np.random.Generator) -> None:
        """All targets are drawn equally often."""

    def finish(self, model: SDFModel, code: Code) -> None:
        """The values of the fitted field are no ground truth: nothing is solved for."""


class CompleteScanTargets(FieldTargets):
    """Targets for a scan without holes: the signed distance to its points everywhere.

    Half of the draws are at random, half in proportion to the relative error of the field.
    """

    def __init__(self, scan: Scan, device: torch.device, rng: np.random.Generator) -> None:
        points = _sample_around([scan.points.astype(np.float64)], 3 * NUM_TARGETS, rng)
        distance, _, _ = _signed_distance(points, scan, is_complete=True)
        self.points = torch.from_numpy(points).float().to(device)
        self.values = torch.from_numpy(distance).float().to(device)
        self._errors: ErrorWeights | None = None

    def draw(self, count: int, rng: np.random.Generator) -> Int[Tensor, "c"]:
        """Rows of the targets of one step; every second one by its error."""
        rows = super().draw(count, rng)
        if self._errors is not None:
            rows[::2] = torch.from_numpy(rng.choice(self._errors.rows, size=len(rows[::2]), p=self._errors.probability))
        return rows

    def update(self, model: SDFModel, code: Code, rng: np.random.Generator) -> None:
        """Measure the errors of the present field."""
        self._errors = error_weights(model, code, self.points, self.values, rng)

    def finish(self, model: SDFModel, code: Code) -> None:
        """Solve for the last layer, if the model has a linear one."""
        if isinstance(model, IGR):
            solve_last_layer(model, code, self.points, self.values)


def _sample_around(
    surfaces: Sequence[Float[np.ndarray, "_ 3"]], num_uniform: int, rng: np.random.Generator
) -> Float[np.ndarray, "n 3"]:
    """Points at two Gaussian distances around points of each surface, then uniform ones in the box [-1, 1]^3."""

    def around(points: Float[np.ndarray, "m 3"], std: float) -> Float[np.ndarray, "c 3"]:
        return points[rng.integers(len(points), size=NUM_TARGETS)] + rng.normal(scale=std, size=(NUM_TARGETS, 3))

    near = [around(points, std) for points in surfaces for std in TARGET_STDS]
    return np.concatenate([*near, rng.uniform(-1, 1, (num_uniform, 3))])


def _signed_distance(
    points: Float[np.ndarray, "q 3"], scan: Scan, *, is_complete: bool
) -> tuple[Float[np.ndarray, "q"], Int[np.ndarray, "q"], Float[np.ndarray, "q"]]:
    assert scan.normals is not None  # estimated and oriented by `refine` if the scan had none
    return signed_distance_to_points(points, scan.points.astype(np.float64), scan.normals, is_complete=is_complete)


def signed_distance_to_points(
    queries: Float[np.ndarray, "q 3"],
    points: Float[np.ndarray, "n 3"],
    normals: Float[np.ndarray, "n 3"],
    *,
    is_complete: bool,
) -> tuple[Float[np.ndarray, "q"], Int[np.ndarray, "q"], Float[np.ndarray, "q"]]:
    """Signed distance to a surface given by points, the index of the nearest point, and the height above its plane.

    Within the spacing of the points, the surface is the tangent plane of the nearest point, since the distance to the
    point itself is too long between points. Beyond, it is the point itself on a partial surface (the rim of a hole). On
    a complete surface there is an edge: the distance is that to the intersection of the halfspaces below the planes of
    the points around, and the side is that of their weighted mean, since the nearest point alone can be on the face
    that points away.
    """
    nearest, index = proximity.nearest_point(queries, points)
    height = ((queries - points[index]) * normals[index]).sum(axis=1)
    spacing = proximity.median_spacing(points, neighbor=6)
    is_above = np.square(nearest) - np.square(height) < spacing**2
    sign, distance = np.where(height < 0, -1.0, 1.0), np.where(is_above, np.abs(height), nearest)
    if is_complete:
        beyond = np.flatnonzero(~is_above)
        around = proximity.k_nearest(queries[beyond], points, NUM_PLANES)
        offset = queries[beyond, None] - points[around]
        extra = np.linalg.norm(offset, axis=2) - nearest[beyond, None]
        heights = (offset * normals[around]).sum(axis=2) * np.maximum(1 - extra / spacing, 0)
        sign[beyond] = np.where(heights.sum(axis=1) < 0, -1.0, 1.0)
        to_edge = distance_to_halfspaces(queries[beyond], points[around], normals[around] * sign[beyond, None, None])
        distance[beyond] = np.clip(to_edge, nearest[beyond] - spacing, nearest[beyond])
    return sign * distance, index, height


def distance_to_halfspaces(
    queries: Float[np.ndarray, "q 3"], points: Float[np.ndarray, "q k 3"], normals: Float[np.ndarray, "q k 3"]
) -> Float[np.ndarray, "q"]:
    """Distance of each query to the intersection of the halfspaces below its k planes, by Hildreth's method (1957)."""
    offsets = (normals * points).sum(axis=2)
    foot, multipliers = queries.copy(), np.zeros(offsets.shape)
    for _ in range(HILDRETH_ROUNDS):
        for plane in range(offsets.shape[1]):
            step = np.minimum(multipliers[:, plane], offsets[:, plane] - (normals[:, plane] * foot).sum(axis=1))
            multipliers[:, plane] -= step
            foot += step[:, None] * normals[:, plane]
    return np.linalg.norm(queries - foot, axis=1)


class ErrorWeights(NamedTuple):
    """Rows of some targets, and the probability of each in proportion to its relative error."""

    rows: Int[np.ndarray, "n"]
    probability: Float[np.ndarray, "n"]


@torch.no_grad()
def error_weights(
    model: SDFModel,
    code: Code,
    points: Float[Tensor, "n 3"],
    values: Float[Tensor, "n"],
    rng: np.random.Generator,
) -> ErrorWeights:
    """Relative errors of the field at some random targets."""
    rows = rng.integers(len(points), size=ERROR_POINTS)
    error = (model.field(points[rows][None], code)[0] - values[rows]).abs() / (values[rows].abs() + ERROR_FLOOR)
    probability = error.double().cpu().numpy() + 1e-12
    return ErrorWeights(rows, probability / probability.sum())


@torch.no_grad()
def solve_last_layer(model: IGR, code: Code, points: Float[Tensor, "n 3"], values: Float[Tensor, "n"]) -> None:
    """Set the last layer to the minimum of the mean relative error; the other layers are unchanged.

    The error is |f - d| / (|d| + floor). Iteratively reweighted least squares; the best of its iterates, including the
    present weights, is used.
    """
    out, vector = model.decoder.out, code.parts[0]
    features = [model.decoder.features(chunk[None], vector)[0] for chunk in points.split(4096)]
    ones = torch.ones(len(points), 1, device=points.device)
    design = torch.cat([torch.cat(features), ones], dim=1).double()
    scale = 1 / (values.abs() + ERROR_FLOOR)
    weights = torch.cat([out.weight[0], out.bias]).double()
    best, lowest = weights, float("inf")
    for _ in range(NUM_SOLVES + 1):
        residual = (design @ weights - values).abs()
        if (error := float((residual * scale).mean())) < lowest:
            best, lowest = weights, error
        weighted = design * (scale / (residual + 1e-5))[:, None]
        normal = weighted.T @ design
        normal += 1e-9 * normal.diagonal().mean() * torch.eye(len(normal), dtype=torch.float64, device=points.device)
        weights = torch.linalg.solve(normal, weighted.T @ values.double())
    out.weight[0], out.bias[0] = best[:-1].float(), best[-1].float()
