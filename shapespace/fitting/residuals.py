"""Residuals of a fit: surface, normals, free space and prior."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from shapespace.fitting.levenberg_marquardt import LMOptions, LMState, Objective
from shapespace.geometry import proximity, similarity
from shapespace.geometry.scan import Scan
from shapespace.models.base import SDFModel
from shapespace.models.code import Code
from shapespace.nn import losses
from shapespace.nn.mlp import Linearization
from shapespace.nn.parallel import CHUNK_POINTS, parallel_map

_FAR = 1e9  # a free point that is asked to be above minus this is content with any field


_ESTIMATED = 50_000  # points of a scan without normals that get some: two seconds


_ROWS_ON_GPU = 16  # codes that are linearised at once: some 6 GB at 7,168 points each


class FitProblem:
    """What is asked of the field at the points of each scan: cost, gradient and Gauss-Newton matrix for given codes.

    Scans are padded to the same number of points, with free space of which nothing is asked. Where the pose is not
    given, a row holds a code and the pose that moves the scan (`geometry.pose`).
    """

    def __init__(self, model: SDFModel, scans: Sequence[Scan], codes: Code, options: LMOptions, seed: int) -> None:
        self.model, self.codes, self.options = model, codes, options
        asked = [_constraints(scan, options, seed) for scan in scans]
        x, target, free = (list(parts) for parts in zip(*asked, strict=True))
        self.counts = [len(points) for points in x]
        device = codes.flat.device
        self.x = pad_sequence(x, batch_first=True).to(device)
        self.target = pad_sequence(target, batch_first=True, padding_value=-_FAR).to(device)
        self.free = pad_sequence(free, batch_first=True, padding_value=True).to(device)
        self.posed = options.alignment != "fixed"
        deviations = [options.rotation_std] * 3 + [options.translation_std] * 3 + [options.scale_std]
        self.mean = torch.cat([model.prior.mean, torch.zeros(similarity.SIZE * self.posed, device=device)])
        firm = torch.tensor(deviations[: similarity.SIZE * self.posed], device=device).square().reciprocal()
        self.precision = (
            torch.block_diag(model.prior.precision(), torch.diag(firm)) if self.posed else model.prior.precision()
        )

    def with_identity(self, codes: Float[Tensor, "r c"]) -> Float[Tensor, "r k"]:
        """Codes of scans that are not moved."""
        return pad(codes, (0, similarity.SIZE * self.posed))

    def split(self, flat: Float[Tensor, "r k"]) -> tuple[Float[Tensor, "r c"], Float[Tensor, "r p"]]:
        """Codes, and poses (of no numbers where they are given)."""
        found = flat.split([flat.shape[1] - similarity.SIZE * self.posed, similarity.SIZE * self.posed], dim=1)
        return found[0], found[1]

    def objective(self, scans: Int[Tensor, "r"]) -> Objective:
        """The objective of a batch whose rows belong to these scans."""
        return lambda rows, flat: self(scans[rows], flat)

    def __call__(self, scans: Int[Tensor, "r"], flat: Float[Tensor, "r k"]) -> LMState:
        """State of each code for its scan: the sum over the scan's points, and the prior of the codes."""
        away = flat - self.mean
        pull = away @ self.precision
        total = LMState(flat, 0.5 * (away * pull).sum(dim=1), pull, self.precision.repeat(len(flat), 1, 1))
        if flat.device.type == "cpu":
            pieces = [
                (slice(row, row + 1), slice(first, min(first + CHUNK_POINTS, self.counts[scan])))
                for row, scan in enumerate(scans.tolist())
                for first in range(0, self.counts[scan], CHUNK_POINTS)
            ]
        else:
            pieces = [(slice(row, row + _ROWS_ON_GPU), slice(None)) for row in range(0, len(flat), _ROWS_ON_GPU)]
        found = parallel_map(lambda piece: self._part(scans[piece[0]], flat[piece[0]], piece[1]), pieces)
        for (rows, _), part in zip(pieces, found, strict=True):
            for whole, more in zip(total[1:], part, strict=True):
                whole[rows] += more
        return total

    def _part(
        self, scans: Int[Tensor, "r"], flat: Float[Tensor, "r k"], points: slice
    ) -> tuple[Float[Tensor, "r"], Float[Tensor, "r k"], Float[Tensor, "r k k"]]:
        """What some points say. IRLS with Huber's weights for the scan, a hinge for free space."""
        options = self.options
        field = self._linearise(self.x[scans, points], flat)
        residual = field.value - self.target[scans, points]
        content = self.free[scans, points] & (residual > 0)  # free space asks for f >= target only
        size = residual.abs()
        weight = (options.huber_delta / size.clamp(min=options.huber_delta)).masked_fill(content, 0.0)
        loss = torch.where(
            size < options.huber_delta, 0.5 * size.square(), options.huber_delta * (size - 0.5 * options.huber_delta)
        )
        share = options.effective_samples / options.num_points / options.noise_std**2
        weighted = field.jacobian * (share * weight)[..., None]
        return (
            share * loss.masked_fill(content, 0.0).sum(dim=1),
            (weighted.mT @ residual[..., None])[..., 0],
            weighted.mT @ field.jacobian,
        )

    def _linearise(self, x: Float[Tensor, "r q 3"], flat: Float[Tensor, "r k"]) -> Linearization:
        """The field at the points, moved by each row's pose; its Jacobian in all numbers of the row."""
        codes, poses = self.split(flat)
        if not self.posed:
            return self.model.linearize(x, self.codes.unflatten(codes))
        moved, left = similarity.apply(x, poses)
        field = self.model.linearize(moved, self.codes.unflatten(codes))
        by_pose = similarity.jacobian(field.gradient, moved, poses, left)
        return field._replace(jacobian=torch.cat([field.jacobian, by_pose], dim=2))


def _constraints(scan: Scan, options: LMOptions, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where f is asked for what: points (q, 3), targets (q), and whether only f >= target is asked (q)."""
    x, target = [scan.points], [np.zeros(len(scan))]
    if scan.normals is not None:
        for offset in (options.normal_offset, -options.normal_offset):
            x.append(scan.points + offset * scan.normals)
            target.append(np.full(len(scan), offset))
    on = sum(len(part) for part in x)
    if scan.sensors is not None and options.free_space_points:
        rng = np.random.default_rng(seed)
        chosen = rng.integers(len(scan), size=options.free_space_points)
        ray = scan.sensors[chosen] - scan.points[chosen]
        length = np.linalg.norm(ray, axis=1, keepdims=True).clip(1e-9)
        along = np.minimum(rng.uniform(options.normal_offset, 0.5, (len(chosen), 1)), length)
        seen_through = scan.points[chosen] + along * ray / length
        distance, _ = proximity.nearest_point(seen_through, scan.points)
        x.append(seen_through)
        target.append(options.free_space_ratio * distance)
    points = torch.from_numpy(np.concatenate(x)).float()
    free = torch.arange(len(points)) >= on
    return points, torch.from_numpy(np.concatenate(target)).float(), free


def estimate_normals(scan: Scan, seed: int) -> Scan:
    """The scan with normals, its own or estimated; no more points are kept than estimating them should cost.

    Points that only one camera can have seen get that camera back too: it tells the space before a person from the
    space behind.
    """
    if scan.normals is not None or scan.faces is not None:
        return scan
    return scan.sample(_ESTIMATED, np.random.default_rng(seed)).infer_sensor().estimate_normals()


def orient_normals(model: SDFModel, scan: Scan, code: Code) -> Scan:
    """The scan (model frame), its lines turned into normals: each to the side on which the field of the code rises."""
    if scan.normals is not None or scan.unoriented_normals is None:
        return scan
    points, lines = (
        torch.from_numpy(array).float()[None].to(code.flat.device) for array in (scan.points, scan.unoriented_normals)
    )
    return replace(scan, normals=losses.orient_normals(lines, model.linearize(points, code).gradient)[0].cpu().numpy())


def residuals(model: SDFModel, scans: Sequence[Scan], code: Code, seed: int, count: int = 2048) -> Float[Tensor, "b n"]:
    """|f| at fresh points."""
    device = code.flat.device
    batch = torch.from_numpy(np.stack([resample(scan, count, seed + 1).points for scan in scans])).float().to(device)
    with torch.no_grad():
        return model.field(batch, code).abs()


def resample(scan: Scan, count: int, seed: int) -> Scan:
    """`count` points of the scan, some of them repeated if it has fewer."""
    rng = np.random.default_rng(seed)
    if scan.faces is not None:
        return scan.sample(count, rng)
    if len(scan) >= count:
        return scan.select(rng.permutation(len(scan))[:count])
    return scan.select(rng.permutation(np.arange(count) % len(scan)))
