"""Reconstruct the surface of one scan, or the curve of points in a plane, without a shape space (IGR, section 5).

A reconstruction is a shape space of one scan whose code has no numbers: it is trained and refined as any other.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from trimesh import Trimesh

from shapespace.data.store import InMemoryStore
from shapespace.fitting.refine import RefineOptions
from shapespace.fitting.result import Fit
from shapespace.geometry import isosurface, proximity
from shapespace.geometry.normals import is_flat, orient_outward
from shapespace.geometry.scan import MIN_POINTS, Scan
from shapespace.models.base import FieldModel
from shapespace.models.code import Code
from shapespace.models.igr import IGRConfig
from shapespace.space import ShapeSpace
from shapespace.training.config import TrainConfig
from shapespace.training.run import Run

MAX_POINTS = 250_000  # points that are drawn from a scan with faces (IGR's preparation), at most used of one without
DETAIL = RefineOptions(max_points=100_000)
HALF_EXTENT = 1.1  # half the edge of the model cube, in units of the distance from the mean to the farthest point
SHELL_NEIGHBOR = 50  # the distance to this neighbor is the standard deviation of near-surface samples (IGR, section 4)
MAX_INCONSISTENT = 0.02  # share of normals against their neighbors above which a hint is given; arbitrary
CHECKED_POINTS = 2000  # points whose normals are compared with those of their neighbors


@dataclass(frozen=True)
class Reconstruction:
    """The field of one scan: a space whose code has no numbers, the place of the scan, and hints about its normals."""

    space: ShapeSpace
    fit: Fit
    hints: tuple[str, ...] = ()

    def mesh(self, *, resolution: int = 256) -> Trimesh:
        """The surface at the position of the scan, in the unit of the scan; `resolution` cells along an edge."""
        return self.space.mesh(self.fit, resolution=resolution)

    def field(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        """Signed distance at world points, in the unit of the scan; negative inside."""
        model, frame, device = self.space.model, self.fit.frame, self.space.device
        assert isinstance(model, FieldModel)  # IGR
        placed = frame.to_model(torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32))).numpy()
        values = isosurface.evaluate(lambda x: model.field(x.to(device)[None], self.fit.code)[0], placed)
        return values * self.space.scale

    def contours(self, *, resolution: int = 512) -> list[Float[np.ndarray, "k 2"]]:
        """The curve of a scan in the plane z = 0 as polylines; the last point of a closed one is its first."""
        values, axes = self.plane(resolution=resolution)
        return isosurface.contours(values, axes)

    def plane(self, *, resolution: int = 512) -> tuple[Float[np.ndarray, "y x"], Float[np.ndarray, "2 n"]]:
        """The field on a grid of the plane z = 0 that fills the model square; x of its columns, y of its rows."""
        across = np.linspace(-1, 1, resolution) * self.space.scale
        axes = self.fit.frame.center.double().numpy()[:2, None] + across
        x, y = np.meshgrid(*axes)
        points = np.stack([x, y, np.zeros_like(x)], axis=-1).reshape(-1, 3)
        return self.field(points).reshape(x.shape), axes


def reconstruct(
    scan: Scan,
    run: Run,
    config: TrainConfig[IGRConfig],
    refine: RefineOptions | None = None,
    *,
    seed: int = 0,
    resume: bool = False,
) -> Reconstruction:
    """Reconstruct the surface of a scan in any unit; all files of the training are in `run`.

    A scan in the plane z = 0 gives a curve. Missing normals are estimated; where the points do not show which side is
    outside, the field decides in training. `refine` adapts the model and adds detail afterwards, for surfaces only. The
    standard deviation of near-surface samples is the median distance to the 50th neighbor; IGR has one for each point.
    Without `config.model.init_radius` the initial sphere has the median distance of the points from their mean: from a
    smaller one, the field stayed flat within a ball with all units off. Raises `ValueError` for too few points.
    """
    if len(scan) < MIN_POINTS:
        raise ValueError(
            f"scan {scan.name}: {len(scan)} points, a surface needs at least {MIN_POINTS}. Give a denser scan."
        )
    is_planar = is_flat(scan.points)
    cleaned = scan.sample(MAX_POINTS, np.random.default_rng(seed)).remove_statistical_outliers()
    oriented, hints = _check_normals(cleaned)
    oriented = oriented.estimate_normals()
    distance = np.linalg.norm(oriented.points - oriented.points.mean(axis=0), axis=1)
    scale = HALF_EXTENT * float(distance.max())
    radius = float(np.median(distance)) / scale if config.model.init_radius is None else config.model.init_radius
    store = InMemoryStore({scan.name: oriented}, scale=scale, metadata={"scan": scan.name})
    frame = store.frame(scan.name)
    near_std = proximity.median_spacing(oriented.to_model(frame).points, neighbor=SHELL_NEIGHBOR)
    config = replace(
        config,
        model=replace(config.model, code_dim=0, encoder="autodecoder", dims=2 if is_planar else 3, init_radius=radius),
        batch=replace(config.batch, scans=1, near_std=near_std),
    )
    space = ShapeSpace.train(store, [scan.name], run, config, resume=resume)
    fit = Fit(Code((torch.zeros(1, 0, device=space.device),)), frame, np.empty(0), name=scan.name)
    if refine is not None and not is_planar:
        (space,) = space.refine([oriented], [fit], refine, seed=seed)
    return Reconstruction(space, fit, hints)


class Consistency(NamedTuple):
    """Shares of the points: normals against most of their neighbors', and normals that point inward."""

    inconsistent: float
    inward: float


def consistency(scan: Scan) -> Consistency:
    """Consistency of the normals with each other, and with the outward side (`geometry.normals.orient_outward`).

    The outward side of a partial surface is not known: `inward` is 0 for it.
    """
    assert scan.normals is not None
    rows = np.random.default_rng(0).permutation(len(scan))[:CHECKED_POINTS]
    neighbors = proximity.k_nearest(scan.points[rows], scan.points, 6)
    cosine = (scan.normals[neighbors] * scan.normals[rows, None]).sum(axis=2)
    oriented = orient_outward(scan.points, scan.normals)
    is_inward = (oriented.normals * scan.normals).sum(axis=1) < 0
    return Consistency(float(((cosine < 0).mean(axis=1) > 0.5).mean()), float(is_inward.mean()) * oriented.is_complete)


def _check_normals(scan: Scan) -> tuple[Scan, tuple[str, ...]]:
    """The scan, with its normals flipped if they point inward, and hints for the user."""
    if scan.normals is None:
        return scan, (
            f"{scan.name}: no normals, they are estimated. Add those of the scanner if there are any: thin parts and "
            "creases are more accurate with them.",
        )
    shares = consistency(scan)
    if shares.inconsistent > MAX_INCONSISTENT:
        return scan, (
            f"{scan.name}: {shares.inconsistent:.0%} of the normals point against their neighbors'. Orient them, or "
            "ignore them with --normals drop.",
        )
    if shares.inward > 0.5:
        return replace(scan, normals=-scan.normals), (
            f"{scan.name}: the normals point inward and were flipped. If the scan shows a hollow from within, flip the "
            "faces of the result.",
        )
    return scan, ()
