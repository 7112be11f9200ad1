"""Corruptions of scans, scans of objects that are not people, and random combinations of corruptions.

Everything is repeatable: random choices come from a generator that is passed in, and furniture is made of boxes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from trimesh import Trimesh, creation

from shapespace.fitting.clutter import Clutter
from shapespace.fitting.levenberg_marquardt import Alignment
from shapespace.geometry import proximity
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.io.units import GUESSED_UNITS, UNITS, to_meters
from shapespace.synthetic.scanner import VirtualScanner

COMPLETE = "complete"

_FURNITURE_DISTANCE = 0.15  # meters between a person and the furniture
_OBJECT_POINTS = 20_000
_CAMERA = VirtualScanner(azimuths=1, elevations=(0.0,))

Corrupt = Callable[[Scan, Trimesh, np.random.Generator], tuple[Scan, Trimesh]]


@dataclass(frozen=True)
class Corruption:
    """A way to corrupt a scan (and to move its ground truth along), and how the result is fitted."""

    description: str
    apply: Corrupt
    alignment: Alignment = "local"
    encode: bool = False
    """Encode only, without a fit."""
    clutter: Clutter = "remove"
    calibration: bool = False
    """Also measure how much of the ground truth is within the uncertainty."""


@dataclass(frozen=True)
class CorruptedScan:
    """A scan with several corruptions, in the unit of its file, and its ground truth in meters."""

    corruptions: tuple[str, ...]
    scan: Scan
    unit: float
    ground_truth: Trimesh


# ---------------------------------------------------------------------------------------------------- points and frames


def points_alone(scan: Scan) -> Scan:
    """Remove normals, sensors and faces."""
    return replace(scan, normals=None, sensors=None, unoriented_normals=None, faces=None)


def add_noise(scan: Scan, rng: np.random.Generator, std: float = 0.005) -> Scan:
    """Gaussian noise of `std` meters along each axis, on the points alone."""
    noisy = scan.points + rng.normal(scale=std, size=scan.points.shape)
    return replace(points_alone(scan), points=noisy.astype(np.float32))


def add_outliers(scan: Scan, rng: np.random.Generator, share: float = 0.3) -> Scan:
    """Replace a share of the points by uniform ones in a box that is 1.5 times as large as the scan."""
    low, high = scan.points.min(axis=0), scan.points.max(axis=0)
    margin = 0.25 * (high - low)
    points = scan.points.copy()
    replaced = rng.random(len(points)) < share
    points[replaced] = rng.uniform(low - margin, high + margin, (int(replaced.sum()), 3))
    return replace(points_alone(scan), points=points)


def guess_random_unit(scan: Scan, rng: np.random.Generator) -> Scan:
    """Convert to a random unit, and back by the unit that is guessed."""
    unit = float(rng.choice([UNITS[name] for name in GUESSED_UNITS]))
    (guessed,), _ = to_meters([scan.to_model(Frame(torch.zeros(3), torch.tensor(unit)))])
    return guessed


def rotate(scan: Scan, ground_truth: Trimesh, rotation: Rotation) -> tuple[Scan, Trimesh]:
    """Rotate a scan and its ground truth about the origin."""
    frame = Frame(torch.zeros(3), torch.tensor(1.0), torch.from_numpy(rotation.as_matrix()).float())
    vertices = frame.to_model(torch.from_numpy(np.asarray(ground_truth.vertices)).float()).numpy()
    return scan.to_model(frame), Trimesh(vertices, ground_truth.faces, process=False)


def upside_down(scan: Scan) -> Scan:
    """Rotate by 180 degrees about the z axis."""
    rotation = torch.from_numpy(Rotation.from_rotvec([0, 0, np.pi]).as_matrix()).float()
    return replace(scan.to_model(Frame(torch.zeros(3), torch.tensor(1.0), rotation)), name="a person upside down")


# ---------------------------------------------------------------------------------------------- objects and furniture


def non_people() -> list[Scan]:
    """Scans of objects of about the size of a person."""
    upright = _transform(np.pi / 2, (1, 0, 0))
    objects = {
        "ball": creation.icosphere(4, 0.6),
        "box": creation.box((0.6, 1.7, 0.4)),
        "cylinder": creation.cylinder(0.2, 1.7).apply_transform(upright),
        "torus": creation.torus(0.6, 0.15),
        "chair": chair(),
        "table": table(),
    }
    return [_scan_object(mesh, name) for name, mesh in objects.items()]


def chair() -> Trimesh:
    """A chair with its seat at 0.45 m and its feet on y = 0."""
    legs = [_box((0.04, 0.45, 0.04), (x, 0.225, z)) for x in (-0.2, 0.2) for z in (-0.2, 0.2)]
    return _join([_box((0.45, 0.04, 0.45), (0.0, 0.45, 0.0)), _box((0.45, 0.5, 0.04), (0.0, 0.7, -0.21)), *legs])


def table() -> Trimesh:
    """A table of 1.2 x 0.7 m, 0.75 m high, with its feet on y = 0."""
    legs = [_box((0.05, 0.73, 0.05), (x, 0.365, z)) for x in (-0.55, 0.55) for z in (-0.3, 0.3)]
    return _join([_box((1.2, 0.04, 0.7), (0.0, 0.73, 0.0)), *legs])


def floor(ground_truth: Trimesh) -> Trimesh:
    """A floor of 2 x 2 m under the feet."""
    center, low = ground_truth.bounds.mean(axis=0), ground_truth.bounds[0, 1]
    return _box((2.0, 0.02, 2.0), (center[0], low - 0.01, center[2]))


def place_beside(mesh: Trimesh, ground_truth: Trimesh, rng: np.random.Generator) -> Trimesh:
    """Furniture on the floor of a person, rotated at random, at 15 cm in a random direction."""
    angle, turn = rng.uniform(-np.pi, np.pi, 2)
    direction = np.array([np.sin(angle), 0, np.cos(angle)])
    center = ground_truth.bounds.mean(axis=0)
    placed = mesh.copy().apply_transform(_transform(turn, (0, 1, 0)))
    placed.apply_translation((center[0], ground_truth.bounds[0, 1], center[2]))
    surface = _scan_object(placed, "").points.astype(np.float64)
    body = np.asarray(ground_truth.vertices, dtype=np.float64)
    distance = next(
        step
        for step in np.arange(0, 5, 0.02)
        if proximity.nearest_point(surface + step * direction, body)[0].min() > _FURNITURE_DISTANCE
    )
    return placed.apply_translation(distance * direction)


def add_points(scan: Scan, ground_truth: Trimesh, other: Trimesh, rng: np.random.Generator) -> Scan:
    """Add points of another mesh with the density of the scan, and with normals if the scan has normals."""
    surface = Scan.from_mesh(other, dtype=np.float32)
    added = surface.sample(int(len(scan) * other.area / ground_truth.area), rng)
    normals = None
    if scan.normals is not None and added.normals is not None:
        normals = np.concatenate([scan.normals, added.normals])
    return Scan(scan.name, np.concatenate([scan.points, added.points]), normals)


def _scan_with_cameras(
    ground_truth: Trimesh, others: Sequence[Trimesh], rng: np.random.Generator, name: str, scanner: VirtualScanner
) -> Scan:
    """Virtual scan, as a mesh, of a person and other meshes."""
    scene = _join([ground_truth, *others])
    return scanner.scan(np.asarray(scene.vertices), np.asarray(scene.faces), rng, name)


def _single_view(scan: Scan, ground_truth: Trimesh, rng: np.random.Generator) -> Scan:
    return _scan_with_cameras(ground_truth, [], rng, scan.name, _CAMERA)


def _cluttered(scan: Scan, ground_truth: Trimesh, rng: np.random.Generator, scanner: VirtualScanner) -> Scan:
    others = [
        floor(ground_truth),
        place_beside(chair(), ground_truth, rng),
        place_beside(table(), ground_truth, rng),
    ]
    return _scan_with_cameras(ground_truth, others, rng, scan.name, scanner)


def _scan_object(mesh: Trimesh, name: str) -> Scan:
    return Scan.from_mesh(mesh, name, dtype=np.float32).sample(_OBJECT_POINTS, np.random.default_rng(0))


def _transform(angle: float, axis: tuple[int, int, int]) -> Float[np.ndarray, "4 4"]:
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_rotvec(angle * np.array(axis)).as_matrix()
    return transform


def _join(meshes: Sequence[Trimesh]) -> Trimesh:
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    faces = [mesh.faces + start for mesh, start in zip(meshes, starts[:-1], strict=True)]
    return Trimesh(np.concatenate([mesh.vertices for mesh in meshes]), np.concatenate(faces), process=False)


def _box(extents: tuple[float, float, float], center: tuple[float, float, float]) -> Trimesh:
    return creation.box(extents).apply_translation(center)


# --------------------------------------------------------------------------------------------------------------- cases


CORRUPTIONS = {
    COMPLETE: Corruption("the scan of the store", lambda scan, truth, rng: (scan, truth), calibration=True),
    "encoded": Corruption("the scan of the store, encoder alone", lambda scan, truth, rng: (scan, truth), encode=True),
    "points": Corruption(
        "points alone, without normals and sensors", lambda scan, truth, rng: (points_alone(scan), truth)
    ),
    "sparse": Corruption("500 points alone", lambda scan, truth, rng: (points_alone(scan).sample(500, rng), truth)),
    "noise": Corruption(
        "points alone with 5 mm of noise along each axis", lambda scan, truth, rng: (add_noise(scan, rng), truth)
    ),
    "outliers": Corruption(
        "points alone, 30 % of them outliers in a box around the scan",
        lambda scan, truth, rng: (add_outliers(scan, rng), truth),
    ),
    "single_view": Corruption(
        "one depth camera", lambda scan, truth, rng: (_single_view(scan, truth, rng), truth), calibration=True
    ),
    "single_view_encoded": Corruption(
        "one depth camera, encoder alone",
        lambda scan, truth, rng: (_single_view(scan, truth, rng), truth),
        encode=True,
    ),
    "heading": Corruption(
        "random heading",
        lambda scan, truth, rng: rotate(scan, truth, Rotation.from_rotvec([0, rng.uniform(-np.pi, np.pi), 0])),
        "yaw",
    ),
    "rotated": Corruption(
        "random rotation",
        lambda scan, truth, rng: rotate(scan, truth, Rotation.random(random_state=rng)),
        "full",
    ),
    "floor": Corruption(
        "on a floor of 2 m",
        lambda scan, truth, rng: (add_points(scan, truth, floor(truth), rng), truth),
    ),
    "floor_kept": Corruption(
        "on a floor of 2 m, with `--clutter keep`",
        lambda scan, truth, rng: (add_points(scan, truth, floor(truth), rng), truth),
        clutter="keep",
    ),
    "cluttered": Corruption(
        "on a floor, 15 cm from a chair and a table, seen by 16 cameras, as a mesh",
        lambda scan, truth, rng: (_cluttered(scan, truth, rng, VirtualScanner()), truth),
    ),
    "cluttered_single_view": Corruption(
        "on a floor, 15 cm from a chair and a table, one depth camera",
        lambda scan, truth, rng: (_cluttered(scan, truth, rng, _CAMERA), truth),
    ),
    "unit": Corruption(
        "in mm, cm, m or inches, unit guessed", lambda scan, truth, rng: (guess_random_unit(scan, rng), truth)
    ),
}


def random_corruption(scan: Scan, ground_truth: Trimesh, rng: np.random.Generator) -> CorruptedScan:
    """Combine corruptions at random, each with its own probability."""
    others: list[Trimesh] = []
    applied: list[str] = []

    def apply(name: str, probability: float) -> bool:
        if rng.random() >= probability:
            return False
        applied.append(name)
        return True

    if apply("floor", 0.4):
        others.append(floor(ground_truth))
    if apply("chair", 0.25):
        others.append(place_beside(chair(), ground_truth, rng))
    if apply("single view", 0.4):
        scan = _scan_with_cameras(ground_truth, others, rng, scan.name, _CAMERA)
    elif others:
        scan = add_points(scan, ground_truth, _join(others), rng)
    if apply("rotation", 0.15):
        scan, ground_truth = rotate(scan, ground_truth, Rotation.random(random_state=rng))
    if apply("points alone", 0.5):
        scan = points_alone(scan)
    if apply("few points", 0.2):
        scan = scan.sample(int(rng.integers(150, 3000)), rng)
    if apply("noise", 0.3):
        scan = add_noise(scan, rng, float(rng.uniform(0.001, 0.01)))
    if apply("outliers", 0.2):
        scan = add_outliers(scan, rng, float(rng.uniform(0.02, 0.3)))
    if apply("duplicates", 0.2):
        repeated = np.concatenate([np.arange(len(scan)), rng.integers(len(scan), size=len(scan) // 2)])
        scan = scan.select(repeated) if scan.faces is None else scan
    if apply("NaN", 0.15):
        points = scan.points.copy()
        points[rng.random(len(points)) < 0.02] = np.nan
        scan = replace(scan, points=points)
    unit = float(rng.choice([UNITS[name] for name in GUESSED_UNITS])) if apply("unit", 0.5) else 1.0
    return CorruptedScan(tuple(applied), scan, unit, ground_truth)
