"""One scan, no code: its surface alone, in space, or its curve in the plane (Gropp et al., ICML 2020, section 5).

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

POINTS = 250_000  # that are drawn from a scan with faces (IGR's preparation), and kept of one without
DETAIL = RefineOptions(max_points=100_000)
_ROOM = 1.1  # the cube's half edge, in units of the distance from the scan's mean to its farthest point
_NEIGHBOUR = 50  # to which the distance is the width of the shell (IGR, section 4)
_ASTRAY = 0.02  # share of normals against their neighbours' from which on a hint is due
_ASKED = 2000  # points that are asked about their neighbours


@dataclass(frozen=True)
class Reconstruction:
    """A field for one scan: the space that holds it, and where it lies. `hints` say what was odd about the scan."""

    space: ShapeSpace
    place: Fit
    hints: tuple[str, ...] = ()

    def mesh(self, *, resolution: int = 256) -> Trimesh:
        """The surface in metres, where the scan lies."""
        return self.space.mesh(self.place, resolution=resolution)

    def field(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        """Signed distance in metres at points in metres; negative inside."""
        model, frame = self.space.model, self.place.frame
        assert isinstance(model, FieldModel)  # of one family
        placed = frame.to_model(torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32))).numpy()
        return isosurface.evaluate(lambda x: model.field(x[None], self.place.code)[0], placed) * self.space.scale

    def contours(self, *, resolution: int = 512) -> list[Float[np.ndarray, "k 2"]]:
        """The curve of a scan in the plane, in metres: polylines; a closed one ends where it began."""
        values, axes = self.plane(resolution=resolution)
        return isosurface.contours(values, axes)

    def plane(self, *, resolution: int = 512) -> tuple[Float[np.ndarray, "y x"], Float[np.ndarray, "2 n"]]:
        """The field (metres) on a grid of the plane that the model square fills; where its columns and rows lie."""
        across = np.linspace(-1, 1, resolution) * self.space.scale
        axes = self.place.frame.center.double().numpy()[:2, None] + across
        x, y = np.meshgrid(*axes)
        points = np.stack([x, y, np.zeros_like(x)], axis=-1).reshape(-1, 3)
        return self.field(points).reshape(x.shape), axes


def reconstruct(
    scan: Scan, run: Run, config: TrainConfig[IGRConfig], refine: RefineOptions | None = None, *, seed: int = 0
) -> Reconstruction:
    """The surface of one scan in any unit, leaving the training in `run`; a scan in the plane z = 0 has a curve.

    Without normals, these are estimated, and where outside cannot be told by the points, the field tells it while it
    learns. `refine` adapts and details it afterwards, in space only. The width of the shell is the median distance to
    the 50th neighbour, the same for all points; the paper has one for each. A recipe without a `radius` starts from the
    sphere through the middle of the points: from a smaller one the field stayed flat within a ball, all units off.
    """
    if len(scan) < MIN_POINTS:
        raise ValueError(f"scan {scan.name} has {len(scan)} points: a surface needs at least {MIN_POINTS}.")
    flat = is_flat(scan.points)
    known, hints = _checked(scan.sample(POINTS, np.random.default_rng(seed)).remove_statistical_outliers())
    known = known.estimate_normals()
    away = np.linalg.norm(known.points - known.points.mean(axis=0), axis=1)
    scale = _ROOM * float(away.max())
    radius = float(np.median(away)) / scale if config.model.init_radius is None else config.model.init_radius
    scans = InMemoryStore({scan.name: known}, scale=scale, metadata={"scan": scan.name})
    frame = scans.frame(scan.name)
    settled = replace(
        config,
        model=replace(config.model, code_dim=0, encoder="autodecoder", dims=2 if flat else 3, init_radius=radius),
        batch=replace(
            config.batch, scans=1, near_std=proximity.median_spacing(known.to_model(frame).points, neighbor=_NEIGHBOUR)
        ),
    )
    space = ShapeSpace.train(scans, [scan.name], run, settled)
    place = Fit(Code((torch.zeros(1, 0),)), frame, np.empty(0), name=scan.name)
    if refine is not None and not flat:
        (space,) = space.refine([known], [place], refine, seed=seed)
    return Reconstruction(space, place, hints)


class Consistency(NamedTuple):
    """Shares of the points: those whose normal is against most of its neighbours', and those whose normal looks in."""

    against: float
    inward: float


def consistency(scan: Scan) -> Consistency:
    """How far the normals of a scan agree with each other, and with where one can leave (`geometry.normals.outward`).

    Of a scan that was not seen from all around, nobody knows whether its normals look in: then none do.
    """
    assert scan.normals is not None
    asked = np.random.default_rng(0).permutation(len(scan))[:_ASKED]
    around = proximity.k_nearest(scan.points[asked], scan.points, 6)
    alike = (scan.normals[around] * scan.normals[asked, None]).sum(axis=2)
    oriented = orient_outward(scan.points, scan.normals)
    turned = (oriented.normals * scan.normals).sum(axis=1) < 0
    return Consistency(float(((alike < 0).mean(axis=1) > 0.5).mean()), float(turned.mean()) * oriented.whole)


def _checked(scan: Scan) -> tuple[Scan, tuple[str, ...]]:
    """The scan, its normals turned around if they look in, and what is to be said about them."""
    if scan.normals is None:
        return scan, (
            f"{scan.name} has no normals: they are estimated from its points. Give those of the scanner, if there are "
            "any: thin parts and creases come out better.",
        )
    found = consistency(scan)
    if found.against > _ASTRAY:
        return scan, (
            f"{found.against:.0%} of the normals of {scan.name} point against their neighbours': outside is on both "
            "sides there. Orient them, or do without them (--normals drop).",
        )
    if found.inward > 0.5:
        return replace(scan, normals=-scan.normals), (
            f"the normals of {scan.name} look in, so they were turned around. If its surface is a hollow that was "
            "scanned from within, the result is the other side of it: turn its faces.",
        )
    return scan, ()
