"""Test data and field errors for the experiments of IGR on single surfaces (Gropp et al., ICML 2020, section 6).

A *known surface* has an exact signed distance; a *benchmark* is a folder of scans with ground truth.
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

from shapespace.evaluation.metrics import MILLIMETERS, Row
from shapespace.geometry import primitives, proximity
from shapespace.geometry.isosurface import isosurface
from shapespace.geometry.scan import Scan
from shapespace.io import formats, scan_files, units
from shapespace.synthetic.body import Body
from shapespace.synthetic.scanner import VirtualScanner

Distance = Callable[[Float[np.ndarray, "n 3"]], Float[np.ndarray, "n"]]
Gradient = Callable[[Float[np.ndarray, "n 3"]], Float[np.ndarray, "n 3"]]

_CELLS = 256  # along an edge of the cube in which a closed-form SDF is meshed
_SCANNER_SIZE = 1.5  # meters: size of the body that the virtual cameras surround


@dataclass(frozen=True)
class KnownSurface:
    """A closed surface as a fine mesh, with its exact signed distance, negative inside; meters.

    `project` moves points near the surface onto it and returns the normals there. Without it the mesh is exact.
    """

    name: str
    mesh: Trimesh
    distance: Distance
    project: Callable[[Float[np.ndarray, "n 3"]], tuple[np.ndarray, np.ndarray]] | None = None

    def points(self, count: int, rng: np.random.Generator) -> Scan:
        """Points on the surface, with normals."""
        scan = Scan.from_mesh(self.mesh, self.name).sample(count, rng)
        return scan if self.project is None else Scan(self.name, *self.project(scan.points.astype(np.float64)))


def known_surfaces() -> dict[str, KnownSurface]:
    """A sphere, a box, a torus, a union of capsules, and a watertight body in its rest pose."""
    center, half = torch.tensor([0.1, -0.05, 0.2]), torch.tensor([0.5, 0.3, 0.4])
    capsules = partial(_capsules, radius=0.15)
    body = Body.load()
    vertices, _ = body.rest_pose(body.sample_shape(np.random.default_rng(0)))
    body_center = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    surfaces = [
        _from_sdf("sphere", lambda x: primitives.sphere(x, center, 0.6)),
        _from_sdf("box", partial(primitives.box, half_extents=half)),
        _from_sdf("torus", partial(primitives.torus, ring=0.5, tube=0.2)),
        _from_mesh("capsules", _from_sdf("capsules", capsules).mesh),
        _from_mesh("body", Trimesh(vertices - body_center, body.faces, process=False)),
    ]
    return {known.name: known for known in surfaces}


def _capsules(x: Float[Tensor, "n 3"], radius: float) -> Float[Tensor, "n"]:
    """Three capsules with a common end. Inside, the union is only a bound of the distance."""
    ends = [torch.tensor(end) for end in ([0.6, 0.5, 0.0], [-0.6, 0.4, 0.2], [0.0, -0.7, -0.1])]
    return primitives.union(*(primitives.capsule(x, torch.zeros(3), end, radius) for end in ends))


def _from_sdf(name: str, field: Callable[[Tensor], Tensor]) -> KnownSurface:
    mesh = isosurface(field, resolution=_CELLS)

    def distance(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        return field(torch.from_numpy(points).double()).numpy()

    def project(points: Float[np.ndarray, "n 3"]) -> tuple[np.ndarray, np.ndarray]:
        x = torch.from_numpy(points)
        for _ in range(3):  # one step is exact except where the nearest point changes, as at the edges of a box
            x = x.detach().requires_grad_()
            value = field(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
            x = x - value[:, None] * gradient
        return x.detach().numpy(), gradient.numpy()

    return KnownSurface(name, mesh, distance, project)


def _from_mesh(name: str, mesh: Trimesh) -> KnownSurface:
    return KnownSurface(name, mesh, partial(proximity.signed_distance, mesh=mesh))


class FieldError(NamedTuple):
    """Difference between a field f and the signed distance d, at points that are uniform in the model cube.

    `relative` is the mean of |f - d| / |d| (IGR's table), `median` the median of these; `ratio` is mean |f - d| over
    mean |d|; `absolute` is mean |f - d| in meters; `sign` is the share of points with the correct sign.
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
    """Errors of a field (meters in, meters out) in the box between two corners."""
    points = np.random.default_rng(0).uniform(low, high, (count, 3))
    distance, value = known.distance(points), field(points)
    error, size = np.abs(value - distance), np.abs(distance)
    return FieldError(
        float((error / size).mean()),
        float(np.median(error / size)),
        float(error.mean() / size.mean()),
        float(error.mean()),
        float((np.sign(value) == np.sign(distance)).mean()),
    )


def sdf_error(
    sdf: Distance, ground_truth: Trimesh, rng: np.random.Generator, *, count: int = 30_000, near_std: float = 0.01
) -> Row:
    """Error of a signed distance near a closed surface: `absolute` (mm), `relative`, and share of correct `sign`.

    `sdf` takes points in meters and returns meters, negative inside. `relative` is the mean error over the mean
    distance (IGR's experiment on known signed distances). Points as in `eikonal_error`.
    """
    points = _near_points(ground_truth, rng, count, near_std)
    distance, value = proximity.signed_distance(points, ground_truth), sdf(points)
    error = np.abs(value - distance).mean()
    row = {
        "absolute": MILLIMETERS * error,
        "relative": error / np.abs(distance).mean(),
        "sign": (np.sign(value) == np.sign(distance)).mean(),
    }
    return {column: float(number) for column, number in row.items()}


def eikonal_error(
    gradient: Gradient,
    ground_truth: Trimesh,
    rng: np.random.Generator,
    *,
    count: int = 30_000,
    near_std: float = 0.01,
) -> Row:
    """Deviation of the gradient norm from 1 near a surface: mean absolute deviation and root mean square.

    `gradient` takes points in meters; the gradient of a signed distance in meters has norm 1 (IGR, equation 2). The
    points are surface samples with Gaussian noise of `near_std` meters along each axis.
    """
    norms = np.linalg.norm(gradient(_near_points(ground_truth, rng, count, near_std)), axis=1)
    return {"mean": float(np.abs(norms - 1).mean()), "rms": float(np.sqrt(np.square(norms - 1).mean()))}


def _near_points(mesh: Trimesh, rng: np.random.Generator, count: int, std: float) -> Float[np.ndarray, "n 3"]:
    points = Scan.from_mesh(mesh).sample(count, rng).points
    return points + rng.normal(scale=std, size=points.shape)


@dataclass(frozen=True)
class BenchmarkCase:
    """One object of a benchmark: its scan (with or without normals), and its true surface or points of it."""

    name: str
    scan: Scan
    ground_truth: Trimesh


def load_benchmark(folder: Path, *, seed: int = 0) -> Iterator[BenchmarkCase]:
    """Objects of a folder in the layout of Deep Geometric Prior (Williams et al., CVPR 2019).

    `scans/NAME.ply` holds the points of an object, `ground_truth/NAME.xyz` (or a mesh) its ground truth. Without
    `scans`, virtual cameras scan the meshes of the ground truth. One unit of the files is read as a millimeter, so
    errors in millimeters are in the unit of the files.

    Raises:
        FileNotFoundError: The folder has another layout.
        ValueError: A scan has no ground truth.

    """
    truth_files = {path.stem: path for path in _files(folder / "ground_truth")}
    scan_paths = {path.stem: path for path in _files(folder / "scans")}
    if not truth_files:
        raise FileNotFoundError(
            f"{folder}: no ground truth. Provide ground_truth/NAME.xyz (points) or .ply (a mesh), and scans/NAME.ply, "
            "as in the data of Deep Geometric Prior."
        )
    if missing := sorted(scan_paths.keys() - truth_files.keys()):
        raise ValueError(
            f"{folder / 'ground_truth'}: no ground truth for scan {missing[0]}. Add it or remove the scan."
        )
    millimeter = units.UNITS["mm"]
    for index, name in enumerate(sorted(scan_paths or truth_files)):
        known = scan_files.read_scan(truth_files[name], name=name, unit=millimeter)
        faces = known.faces if known.faces is not None else np.empty((0, 3), dtype=int)
        ground_truth = Trimesh(known.points, faces, process=False)
        if scan_paths:
            scan = scan_files.read_scan(scan_paths[name], name=name, unit=millimeter)
        else:
            scan = _virtual_scan(known, np.random.default_rng([seed, index]))
        yield BenchmarkCase(name, scan, ground_truth)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in formats.readable_suffixes())


def _virtual_scan(known: Scan, rng: np.random.Generator) -> Scan:
    """Virtual scan of a mesh of any size, scaled to the size of a body for the cameras."""
    if known.faces is None:
        raise ValueError(
            f"{known.name}: no scan, and its ground truth is points without faces, which cameras cannot see. Add "
            f"scans/{known.name}.ply, or give the ground truth as a mesh."
        )
    size = float(np.ptp(known.points, axis=0).max()) / _SCANNER_SIZE
    scan = VirtualScanner().scan(known.points / size, known.faces, rng, known.name)
    assert scan.sensors is not None  # virtual scans have sensors
    return Scan(known.name, scan.points * size, sensors=scan.sensors * size, faces=scan.faces)
