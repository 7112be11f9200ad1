"""Residuals of a fit: surface, normals, free space and code prior."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from shapespace.fitting.joints import JointPrior
from shapespace.fitting.levenberg_marquardt import LMOptions, LMState, Objective
from shapespace.geometry import proximity, similarity
from shapespace.geometry.scan import Scan
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.base import SDFModel
from shapespace.models.code import Code
from shapespace.nn import losses
from shapespace.nn.mlp import Linearization
from shapespace.nn.parallel import parallel_map

PADDING_TARGET = -1e9  # lower bound of padding points, which every field satisfies
MAX_NORMAL_POINTS = 50_000  # points of a scan for which normals are estimated: two seconds on one core
ROWS_ON_GPU = 16  # codes that are linearized at once: about 6 GB at 7,168 points each

Linearizer = Callable[[Float[Tensor, "r q 3"], slice], Linearization]
"""`linearize(x, rows)`: the field of some rows of a batch of codes at points of each."""


class FitProblem:
    """Maker of the objectives of a batch of scans: cost, gradient and Gauss-Newton matrix of a code for its scan.

    A row of unknowns is a flat code, or, unless the alignment is fixed, a flat code and the 7 numbers of a small
    similarity transform of the scan (`geometry.similarity`). Scans are padded to the same number of points by
    free-space points whose bound every field satisfies.
    """

    def __init__(self, model: SDFModel, scans: Sequence[Scan], codes: Code, options: LMOptions, seed: int) -> None:
        """`scans` are in the model frame; `codes` give the shape of a code and the device."""
        self.model, self.codes, self.options = model, codes, options
        x, target, is_free = (
            list(parts) for parts in zip(*(constraints(scan, options, seed) for scan in scans), strict=True)
        )
        self.counts = [len(points) for points in x]
        device = codes.flat.device
        self.x = pad_sequence(x, batch_first=True).to(device)
        self.target = pad_sequence(target, batch_first=True, padding_value=PADDING_TARGET).to(device)
        self.is_free = pad_sequence(is_free, batch_first=True, padding_value=True).to(device)
        self.joints = JointPrior(model) if isinstance(model, ArticulatedSDF) else None
        self.has_alignment = options.alignment != "fixed"
        stds = [options.rotation_std] * 3 + [options.translation_std] * 3 + [options.scale_std]
        self.mean = torch.cat(
            [model.prior.mean, torch.zeros(similarity.NUM_PARAMETERS * self.has_alignment, device=device)]
        )
        precision = (
            torch.tensor(stds[: similarity.NUM_PARAMETERS * self.has_alignment], device=device).square().reciprocal()
        )
        self.precision = (
            torch.block_diag(model.prior.precision(), torch.diag(precision))
            if self.has_alignment
            else model.prior.precision()
        )

    def with_identity(self, codes: Float[Tensor, "r c"]) -> Float[Tensor, "r k"]:
        """Unknowns of these flat codes with the identity as the alignment."""
        return pad(codes, (0, similarity.NUM_PARAMETERS * self.has_alignment))

    def split(self, flat: Float[Tensor, "r k"]) -> tuple[Float[Tensor, "r c"], Float[Tensor, "r a"]]:
        """Flat codes and alignments (no columns if the alignment is fixed) of rows of unknowns."""
        size = similarity.NUM_PARAMETERS * self.has_alignment
        codes, alignments = flat.split([flat.shape[1] - size, size], dim=1)
        return codes, alignments

    def objective(self, scans: Int[Tensor, "r"]) -> Objective:
        """The objective of a batch of problems; `scans` are the indices of their scans."""
        return lambda rows, flat: self(scans[rows], flat)

    def __call__(self, scans: Int[Tensor, "r"], flat: Float[Tensor, "r k"]) -> LMState:
        """The state of each row of unknowns for its scan: sum over the points, and the prior."""
        offset = flat - self.mean
        gradient = offset @ self.precision
        total = LMState(flat, 0.5 * (offset * gradient).sum(dim=1), gradient, self.precision.repeat(len(flat), 1, 1))
        codes, _ = self.split(flat)
        linearize = self._linearizer(self.codes.unflatten(codes), total)
        if flat.device.type == "cpu":
            size = self.model.fit_chunk_points
            chunks = [
                (slice(row, row + 1), slice(first, min(first + size, self.counts[scan])))
                for row, scan in enumerate(scans.tolist())
                for first in range(0, self.counts[scan], size)
            ]
        else:
            chunks = [(slice(row, row + ROWS_ON_GPU), slice(None)) for row in range(0, len(flat), ROWS_ON_GPU)]
        parts = parallel_map(lambda chunk: self._data_terms(linearize, scans, flat, *chunk), chunks)
        for (rows, _), part in zip(chunks, parts, strict=True):
            for whole, more in zip(total[1:], part, strict=True):
                whole[rows] += more
        return total

    def _linearizer(self, code: Code, total: LMState) -> Linearizer:
        """How the field of these codes is linearized; add the cost of the joints of models that have parts."""
        if self.joints is None:
            return lambda x, rows: self.model.linearize(x, code[rows])
        model = self.joints.model
        parts = model.expand_parts(code)
        cost, gradient, matrix = self.joints(parts)
        weight, inner = self.options.joint_weight, slice(0, gradient.shape[1])
        total.cost.add_(cost, alpha=weight)
        total.gradient[:, inner].add_(gradient, alpha=weight)
        total.hessian[:, inner, inner].add_(matrix, alpha=weight)
        return lambda x, rows: model.linearize_expanded(x, parts.select(rows))

    def _data_terms(
        self, linearize: Linearizer, scans: Int[Tensor, "r"], flat: Float[Tensor, "r k"], rows: slice, points: slice
    ) -> tuple[Float[Tensor, "s"], Float[Tensor, "s k"], Float[Tensor, "s k k"]]:
        """Cost, gradient and matrix of some points: Huber's loss by reweighting (IRLS), a hinge in free space."""
        options, scans, (_, alignments) = self.options, scans[rows], self.split(flat[rows])
        x = self.x[scans, points]
        if self.has_alignment:
            x, left = similarity.apply(x, alignments)
        field = linearize(x, rows)
        jacobian = field.jacobian
        if self.has_alignment:
            by_alignment = similarity.jacobian(field.gradient, x, alignments, left)
            jacobian = torch.cat([jacobian, by_alignment], dim=2)
        residual = field.value - self.target[scans, points]
        is_satisfied = self.is_free[scans, points] & (residual > 0)  # free space requires f >= target only
        loss, weight = robust_loss(residual, is_satisfied, options)
        weighted = jacobian * weight[..., None]
        return loss.sum(dim=1), (weighted.mT @ residual[..., None])[..., 0], weighted.mT @ jacobian


def robust_loss(
    residual: Float[Tensor, "*b q"], is_satisfied: Bool[Tensor, "*b q"], options: LMOptions
) -> tuple[Float[Tensor, "*b q"], Float[Tensor, "*b q"]]:
    """Huber's loss of residuals, and the weights of their squares by which it is minimized (IRLS); 0 where satisfied.

    Both in units of the variance of the noise, for the effective number of independent residuals.
    """
    size, delta = residual.abs(), options.huber_delta
    scale = options.effective_samples / options.num_points / options.noise_std**2
    weight = scale * (delta / size.clamp(min=delta)).masked_fill(is_satisfied, 0.0)
    loss = torch.where(size < delta, 0.5 * size.square(), delta * (size - 0.5 * delta))
    return scale * loss.masked_fill(is_satisfied, 0.0), weight


def constraints(
    scan: Scan, options: LMOptions, seed: int
) -> tuple[Float[Tensor, "q 3"], Float[Tensor, "q"], Bool[Tensor, "q"]]:
    """Points, targets of f at them, and whether a point is in free space, where the target is a lower bound.

    The points are those of the scan (target 0), two off-surface points for each normal, and points on the rays to the
    sensors. The order is this one.
    """
    x, target = [scan.points], [np.zeros(len(scan))]
    if scan.normals is not None:
        for offset in (options.normal_offset, -options.normal_offset):
            x.append(scan.points + offset * scan.normals)
            target.append(np.full(len(scan), offset))
    num_equalities = sum(len(part) for part in x)
    if scan.sensors is not None and options.free_space_points:
        rng = np.random.default_rng(seed)
        chosen = rng.integers(len(scan), size=options.free_space_points)
        ray = scan.sensors[chosen] - scan.points[chosen]
        length = np.linalg.norm(ray, axis=1, keepdims=True).clip(1e-9)
        depth = np.minimum(rng.uniform(options.normal_offset, 0.5, (len(chosen), 1)), length)
        free = scan.points[chosen] + depth * ray / length
        distance, _ = proximity.nearest_point(free, scan.points)
        x.append(free)
        target.append(options.free_space_ratio * distance)
    points = torch.from_numpy(np.concatenate(x)).float()
    is_free = torch.arange(len(points)) >= num_equalities
    return points, torch.from_numpy(np.concatenate(target)).float(), is_free


def estimate_normals(scan: Scan, seed: int) -> Scan:
    """The scan with the normals that it has, or at most 50,000 of its points with estimated ones.

    A scan of a single view without sensors also gets the inferred position of its camera as the sensor: free space is
    between the camera and the surface.
    """
    if scan.normals is not None or scan.unoriented_normals is not None or scan.faces is not None:
        return scan
    return scan.sample(MAX_NORMAL_POINTS, np.random.default_rng(seed)).infer_sensor().estimate_normals()


def orient_normals(model: SDFModel, scan: Scan, code: Code) -> Scan:
    """The scan (model frame) with its unoriented normals turned to the side on which the field of the code rises.

    Where even their line is unknown (zeros), they are the direction in which it rises.
    """
    if scan.normals is not None or scan.unoriented_normals is None:
        return scan
    points, normals = (
        torch.from_numpy(array).float()[None].to(code.flat.device) for array in (scan.points, scan.unoriented_normals)
    )
    gradient = model.linearize(points, code).gradient
    oriented = losses.orient_normals(normals, gradient)
    is_unknown = (normals == 0).all(dim=-1, keepdim=True)
    oriented = torch.where(is_unknown, torch.nn.functional.normalize(gradient, dim=-1), oriented)
    return replace(scan, normals=oriented[0].cpu().numpy())


def residuals(model: SDFModel, scans: Sequence[Scan], code: Code, seed: int, count: int = 2048) -> Float[Tensor, "b n"]:
    """|f| in model units at `count` points of each scan, drawn by another seed than those of the fit."""
    device = code.flat.device
    batch = torch.from_numpy(np.stack([resample(scan, count, seed + 1).points for scan in scans])).float().to(device)
    with torch.no_grad():
        return model.field(batch, code).abs()


def resample(scan: Scan, count: int, seed: int) -> Scan:
    """`count` random points of the scan; points are repeated if it has fewer."""
    rng = np.random.default_rng(seed)
    if scan.faces is not None:
        return scan.sample(count, rng)
    if len(scan) >= count:
        return scan.select(rng.permutation(len(scan))[:count])
    return scan.select(rng.permutation(np.arange(count) % len(scan)))
