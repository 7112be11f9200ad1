"""The experiments of IGR's paper that concern single surfaces (Gropp et al., ICML 2020, section 6): what goes in.

*Known surfaces* have a signed distance that can be told exactly; a *benchmark* is a folder of points and truths.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from trimesh import Trimesh

from shapespace.geometry import primitives, proximity
from shapespace.geometry.isosurface import isosurface
from shapespace.geometry.proximity import contains
from shapespace.geometry.scan import Scan
from shapespace.io import formats, scan_files, units
from shapespace.synthetic.body import Body
from shapespace.synthetic.scanner import VirtualScanner

Distance = Callable[[Float[np.ndarray, "n 3"]], Float[np.ndarray, "n"]]

_CELLS = 256  # along the edge of the cube in which a shape in closed form is meshed


@dataclass(frozen=True)
class KnownSurface:
    """A closed surface as a fine mesh, with its exact signed distance, negative inside; metres.

    `moved` takes points near the surface onto it, and gives its normals there; without it, the mesh is the surface.
    """

    name: str
    mesh: Trimesh
    distance: Distance
    project: Callable[[Float[np.ndarray, "n 3"]], tuple[np.ndarray, np.ndarray]] | None = None

    def points(self, count: int, rng: np.random.Generator) -> Scan:
        """Points of the surface, with its normals."""
        scan = Scan(self.name, np.asarray(self.mesh.vertices), faces=np.asarray(self.mesh.faces)).sample(count, rng)
        return scan if self.project is None else Scan(self.name, *self.project(scan.points.astype(np.float64)))


def known_surfaces() -> dict[str, KnownSurface]:
    """A sphere, a box, a torus, a union of capsules, and a watertight body in its rest pose."""
    centre, half = torch.tensor([0.1, -0.05, 0.2]), torch.tensor([0.5, 0.3, 0.4])
    capsules = partial(_capsules, radius=0.15)
    body = Body.load()
    vertices, _ = body.rest_pose(body.sample_shape(np.random.default_rng(0)))
    middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    found = [
        _in_closed_form("sphere", partial(primitives.sphere, centre=centre, radius=0.6)),
        _in_closed_form("box", partial(primitives.box, half=half)),
        _in_closed_form("torus", partial(primitives.torus, ring=0.5, tube=0.2)),
        _of_mesh("capsules", _in_closed_form("capsules", capsules).mesh),
        _of_mesh("body", Trimesh(vertices - middle, body.faces, process=False)),
    ]
    return {known.name: known for known in found}


def _capsules(x: Float[Tensor, "n 3"], radius: float) -> Float[Tensor, "n"]:
    """Three limbs that meet; inside, a union of distances is a bound only."""
    ends = [torch.tensor(end) for end in ([0.6, 0.5, 0.0], [-0.6, 0.4, 0.2], [0.0, -0.7, -0.1])]
    return primitives.union(*(primitives.capsule(x, torch.zeros(3), end, radius) for end in ends))


def _in_closed_form(name: str, field: Callable[[Tensor], Tensor]) -> KnownSurface:
    mesh = isosurface(field, resolution=_CELLS)

    def distance(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        return field(torch.from_numpy(points).double()).numpy()

    def moved(points: Float[np.ndarray, "n 3"]) -> tuple[np.ndarray, np.ndarray]:
        x = torch.from_numpy(points)
        for _ in range(3):  # once would do, but where the nearest point changes, as at the edges of a box
            x = x.detach().requires_grad_()
            value = field(x)
            (slope,) = torch.autograd.grad(value.sum(), x)
            x = x - value[:, None] * slope
        return x.detach().numpy(), slope.numpy()

    return KnownSurface(name, mesh, distance, moved)


def _of_mesh(name: str, mesh: Trimesh) -> KnownSurface:
    def distance(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        away, _, _ = proximity.closest_point(points, mesh)
        return np.where(contains(points, mesh), -away, away)

    return KnownSurface(name, mesh, distance)


class FieldError(NamedTuple):
    """How far a field is from a signed distance, at points spread evenly over the model cube.

    `relative` is the mean of |f - d| / |d|, as in IGR's table, `median` the median of these; `ratio` is mean |f - d|
    over mean |d|; `absolute` is mean |f - d| in metres, and `sign` the share of points whose sign is right.
    """

    relative: float
    median: float
    ratio: float
    absolute: float
    sign: float


def field_error(
    field: Distance,
    known: KnownSurface,
    low: Float[np.ndarray, "3"],
    high: Float[np.ndarray, "3"],
    *,
    count: int = 100_000,
) -> FieldError:
    """Errors of a field (metres in, metres out) between the corners of a box."""
    points = np.random.default_rng(0).uniform(low, high, (count, 3))
    true, found = known.distance(points), field(points)
    error, size = np.abs(found - true), np.abs(true)
    return FieldError(
        float((error / size).mean()),
        float(np.median(error / size)),
        float(error.mean() / size.mean()),
        float(error.mean()),
        float((np.sign(found) == np.sign(true)).mean()),
    )


@dataclass(frozen=True)
class BenchmarkCase:
    """One object of a benchmark: its points (with normals or without), and its true surface or points of it."""

    name: str
    scan: Scan
    ground_truth: Trimesh


def load_benchmark(folder: Path, *, seed: int = 0) -> Iterator[BenchmarkCase]:
    """The objects of a folder, in the layout of Deep Geometric Prior (Williams et al., CVPR 2019).

    `scans/NAME.ply` holds the points of an object and `ground_truth/NAME.xyz` (or a mesh) its truth. Where there are no
    scans, true meshes are seen by virtual cameras. One unit of the files is taken for a millimetre, so that errors in
    millimetres are in the unit of the files.

    Raises `FileNotFoundError` where the folder is of another layout, and `ValueError` for a scan without its truth.
    """
    truths = {path.stem: path for path in _files(folder / "ground_truth")}
    scans = {path.stem: path for path in _files(folder / "scans")}
    if not truths:
        raise FileNotFoundError(
            f"{folder} has no truths: ground_truth/NAME.xyz (points) or .ply (a mesh), and scans/NAME.ply, are needed. "
            "The data of Deep Geometric Prior have this layout."
        )
    if lost := sorted(scans.keys() - truths.keys()):
        raise ValueError(
            f"{folder / 'scans'} has {lost[0]}, and {folder / 'ground_truth'} has no truth for it. Add it."
        )
    millimetre = units.UNITS["mm"]
    for index, name in enumerate(sorted(scans or truths)):
        known = scan_files.read_scan(truths[name], name=name, unit=millimetre)
        faces = known.faces if known.faces is not None else np.empty((0, 3), dtype=int)
        truth = Trimesh(known.points, faces, process=False)
        if scans:
            yield BenchmarkCase(name, scan_files.read_scan(scans[name], name=name, unit=millimetre), truth)
        else:
            yield BenchmarkCase(name, _seen(known, np.random.default_rng([seed, index])), truth)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in formats.readable_suffixes())


def _seen(known: Scan, rng: np.random.Generator) -> Scan:
    """A virtual scan of a mesh of any size: the cameras stand about a body of a metre and a half."""
    if known.faces is None:
        raise ValueError(
            f"{known.name} has no scan, and its truth is points without faces, which cameras cannot see. Give a mesh."
        )
    size = float(np.ptp(known.points, axis=0).max()) / 1.5
    scan = VirtualScanner().scan(known.points / size, known.faces, rng, known.name)
    assert scan.sensors is not None  # the cameras'
    return Scan(known.name, scan.points * size, sensors=scan.sensors * size, faces=scan.faces)
