"""Scans as they should not be: ways to spoil one, things that are no people, and cases drawn at random.

All of it is repeatable: what is drawn is drawn by a generator, and furniture is made of boxes.
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
from shapespace.io.units import UNITS, guess_unit
from shapespace.synthetic.scanner import VirtualScanner

COMPLETE = "complete"

_ASIDE = 0.15  # metres between a person and the furniture
_POINTS_OF_A_THING = 20_000
_CAMERA = VirtualScanner(azimuths=1, elevations=(0.0,))

Corrupt = Callable[[Scan, Trimesh, np.random.Generator], tuple[Scan, Trimesh]]


@dataclass(frozen=True)
class Corruption:
    """A way to spoil a scan (and to move its truth along), and what is told of it when it is fitted."""

    description: str
    apply: Corrupt
    alignment: Alignment = "local"
    encode: bool = False
    """By the encoder alone."""
    clutter: Clutter = "remove"
    band: bool = False
    """Whether it is asked how much of the truth the uncertainty covers."""


@dataclass(frozen=True)
class CorruptedScan:
    """A scan that was spoilt in several ways at once, in the unit of its file, and its true surface in metres."""

    how: tuple[str, ...]
    scan: Scan
    unit: float
    ground_truth: Trimesh


def _bare(scan: Scan) -> Scan:
    return replace(scan, normals=None, sensors=None, unoriented_normals=None, faces=None)


def _noisy(scan: Scan, rng: np.random.Generator, size: float = 0.005) -> Scan:
    moved = scan.points + rng.normal(scale=size, size=scan.points.shape)
    return replace(_bare(scan), points=moved.astype(np.float32))


def _with_outliers(scan: Scan, rng: np.random.Generator, share: float = 0.3) -> Scan:
    """A share of the points lies anywhere in a box half as large again as the scan."""
    low, high = scan.points.min(axis=0), scan.points.max(axis=0)
    margin = 0.25 * (high - low)
    points = scan.points.copy()
    wrong = rng.random(len(points)) < share
    points[wrong] = rng.uniform(low - margin, high + margin, (int(wrong.sum()), 3))
    return replace(_bare(scan), points=points)


def _one_view(scan: Scan, truth: Trimesh, rng: np.random.Generator) -> Scan:
    return _seen(truth, [], rng, scan.name, _CAMERA)


def _turned(scan: Scan, truth: Trimesh, rotation: Rotation) -> tuple[Scan, Trimesh]:
    frame = Frame(torch.zeros(3), torch.tensor(1.0), torch.from_numpy(rotation.as_matrix()).float())
    vertices = frame.to_model(torch.from_numpy(np.asarray(truth.vertices)).float()).numpy()
    return scan.to_model(frame), Trimesh(vertices, truth.faces, process=False)


def _in_a_unit(scan: Scan, rng: np.random.Generator) -> Scan:
    """In a unit that nobody tells, and back by the one that is guessed."""
    unit = float(rng.choice(list(UNITS.values())))
    there = scan.to_model(Frame(torch.zeros(3), torch.tensor(unit)))
    guessed = UNITS[guess_unit([there]).name]
    return there.to_world(Frame(torch.zeros(3), torch.tensor(guessed)))


def _thing(mesh: Trimesh, name: str) -> Scan:
    whole = Scan(name, np.asarray(mesh.vertices, dtype=np.float32), faces=np.asarray(mesh.faces, dtype=np.int32))
    return whole.sample(_POINTS_OF_A_THING, np.random.default_rng(0))


def non_people() -> list[Scan]:
    """Scans of what is no person, about as large as one."""
    upright = _turn(np.pi / 2, (1, 0, 0))
    made = {
        "ball": creation.icosphere(4, 0.6),
        "box": creation.box((0.6, 1.7, 0.4)),
        "cylinder": creation.cylinder(0.2, 1.7).apply_transform(upright),
        "torus": creation.torus(0.6, 0.15),
        "chair": _chair(),
        "table": _table(),
    }
    return [_thing(mesh, name) for name, mesh in made.items()]


def upside_down(scan: Scan) -> Scan:
    """Turned by half a circle about the axis ahead."""
    about = torch.from_numpy(Rotation.from_rotvec([0, 0, np.pi]).as_matrix()).float()
    return replace(scan.to_model(Frame(torch.zeros(3), torch.tensor(1.0), about)), name="a person upside down")


def _turn(angle: float, axis: tuple[int, int, int]) -> Float[np.ndarray, "4 4"]:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec(angle * np.array(axis)).as_matrix()
    return turn


def _together(parts: Sequence[Trimesh]) -> Trimesh:
    """One mesh of several."""
    before = np.cumsum([0, *(len(part.vertices) for part in parts)])
    faces = [part.faces + start for part, start in zip(parts, before[:-1], strict=True)]
    return Trimesh(np.concatenate([part.vertices for part in parts]), np.concatenate(faces), process=False)


def _box(extents: tuple[float, float, float], centre: tuple[float, float, float]) -> Trimesh:
    return creation.box(extents).apply_translation(centre)


def _chair() -> Trimesh:
    """Its seat at 0.45 m, its feet on y = 0."""
    legs = [_box((0.04, 0.45, 0.04), (x, 0.225, z)) for x in (-0.2, 0.2) for z in (-0.2, 0.2)]
    return _together([_box((0.45, 0.04, 0.45), (0.0, 0.45, 0.0)), _box((0.45, 0.5, 0.04), (0.0, 0.7, -0.21)), *legs])


def _table() -> Trimesh:
    legs = [_box((0.05, 0.73, 0.05), (x, 0.365, z)) for x in (-0.55, 0.55) for z in (-0.3, 0.3)]
    return _together([_box((1.2, 0.04, 0.7), (0.0, 0.73, 0.0)), *legs])


def _floor(truth: Trimesh) -> Trimesh:
    """Two metres square under the feet."""
    middle, low = truth.bounds.mean(axis=0), truth.bounds[0, 1]
    return _box((2.0, 0.02, 2.0), (middle[0], low - 0.01, middle[2]))


def _aside(thing: Trimesh, truth: Trimesh, rng: np.random.Generator) -> Trimesh:
    """On the person's floor, turned anyhow, in any direction as near as it may be."""
    angle, turn = rng.uniform(-np.pi, np.pi, 2)
    ahead = np.array([np.sin(angle), 0, np.cos(angle)])
    middle = truth.bounds.mean(axis=0)
    placed = thing.copy().apply_transform(_turn(turn, (0, 1, 0)))
    placed.apply_translation((middle[0], truth.bounds[0, 1], middle[2]))
    outline = _thing(placed, "").points.astype(np.float64)
    body = np.asarray(truth.vertices, dtype=np.float64)
    away = next(
        step
        for step in np.arange(0, 5, 0.02)
        if proximity.nearest_point(outline + step * ahead, body)[0].min() > _ASIDE
    )
    return placed.apply_translation(away * ahead)


def _with_points_of(scan: Scan, truth: Trimesh, other: Trimesh, rng: np.random.Generator) -> Scan:
    """The scan, with points of something else, as dense as its own, and with normals if it has some."""
    whole = Scan("", np.asarray(other.vertices, dtype=np.float32), faces=np.asarray(other.faces, dtype=np.int32))
    more = whole.sample(int(len(scan) * other.area / truth.area), rng)
    both = None
    if scan.normals is not None and more.normals is not None:
        both = np.concatenate([scan.normals, more.normals])
    return Scan(scan.name, np.concatenate([scan.points, more.points]), both)


def _seen(
    truth: Trimesh, others: Sequence[Trimesh], rng: np.random.Generator, name: str, scanner: VirtualScanner
) -> Scan:
    """A person among other things, seen by cameras, as a mesh."""
    scene = _together([truth, *others])
    return scanner.scan(np.asarray(scene.vertices), np.asarray(scene.faces), rng, name)


def _furnished(scan: Scan, truth: Trimesh, rng: np.random.Generator, scanner: VirtualScanner) -> Scan:
    others = [_floor(truth), _aside(_chair(), truth, rng), _aside(_table(), truth, rng)]
    return _seen(truth, others, rng, scan.name, scanner)


CORRUPTIONS = {
    COMPLETE: Corruption("as the store has it", lambda scan, truth, rng: (scan, truth), band=True),
    "encoded": Corruption("the same, by the encoder alone", lambda scan, truth, rng: (scan, truth), encode=True),
    "points": Corruption("points alone, without normals and sensors", lambda scan, truth, rng: (_bare(scan), truth)),
    "sparse": Corruption("500 points, alone", lambda scan, truth, rng: (_bare(scan).sample(500, rng), truth)),
    "noise": Corruption(
        "points alone, 5 mm of noise along each axis", lambda scan, truth, rng: (_noisy(scan, rng), truth)
    ),
    "outliers": Corruption(
        "points alone, 30 % of them anywhere in a box about the scan",
        lambda scan, truth, rng: (_with_outliers(scan, rng), truth),
    ),
    "single_view": Corruption(
        "seen by one depth camera", lambda scan, truth, rng: (_one_view(scan, truth, rng), truth), band=True
    ),
    "one_view_encoded": Corruption(
        "the same, by the encoder alone",
        lambda scan, truth, rng: (_one_view(scan, truth, rng), truth),
        encode=True,
    ),
    "heading": Corruption(
        "facing anywhere",
        lambda scan, truth, rng: _turned(scan, truth, Rotation.from_rotvec([0, rng.uniform(-np.pi, np.pi), 0])),
        "yaw",
    ),
    "rotated": Corruption(
        "turned about all axes",
        lambda scan, truth, rng: _turned(scan, truth, Rotation.random(random_state=rng)),
        "full",
    ),
    "floor": Corruption(
        "on a floor of two metres",
        lambda scan, truth, rng: (_with_points_of(scan, truth, _floor(truth), rng), truth),
    ),
    "floor_kept": Corruption(
        "the same, the floor left in (`--clutter keep`)",
        lambda scan, truth, rng: (_with_points_of(scan, truth, _floor(truth), rng), truth),
        clutter="keep",
    ),
    "cluttered": Corruption(
        "on a floor, 15 cm from a chair and from a table, all seen by 16 cameras, as a mesh",
        lambda scan, truth, rng: (_furnished(scan, truth, rng, VirtualScanner()), truth),
    ),
    "furnished_view": Corruption(
        "the same, seen by one of them",
        lambda scan, truth, rng: (_furnished(scan, truth, rng, _CAMERA), truth),
    ),
    "unit": Corruption("in mm, cm, m or inches, untold", lambda scan, truth, rng: (_in_a_unit(scan, rng), truth)),
}


def random_corruption(scan: Scan, truth: Trimesh, rng: np.random.Generator) -> CorruptedScan:
    """Spoil a scan in several ways at once: each way comes with a chance of its own."""
    others: list[Trimesh] = []
    how: list[str] = []

    def happens(what: str, chance: float) -> bool:
        if rng.random() >= chance:
            return False
        how.append(what)
        return True

    if happens("floor", 0.4):
        others.append(_floor(truth))
    if happens("chair", 0.25):
        others.append(_aside(_chair(), truth, rng))
    if happens("one view", 0.4):
        scan = _seen(truth, others, rng, scan.name, _CAMERA)
    elif others:
        scan = _with_points_of(scan, truth, _together(others), rng)
    if happens("rotated", 0.15):
        scan, truth = _turned(scan, truth, Rotation.random(random_state=rng))
    if happens("points alone", 0.5):
        scan = _bare(scan)
    if happens("few points", 0.2):
        scan = scan.sample(int(rng.integers(150, 3000)), rng)
    if happens("noise", 0.3):
        scan = _noisy(scan, rng, float(rng.uniform(0.001, 0.01)))
    if happens("outliers", 0.2):
        scan = _with_outliers(scan, rng, float(rng.uniform(0.02, 0.3)))
    if happens("duplicates", 0.2):
        twice = np.concatenate([np.arange(len(scan)), rng.integers(len(scan), size=len(scan) // 2)])
        scan = scan.select(twice) if scan.faces is None else scan
    if happens("NaN", 0.15):
        points = scan.points.copy()
        points[rng.random(len(points)) < 0.02] = np.nan
        scan = replace(scan, points=points)
    unit = float(rng.choice(list(UNITS.values()))) if happens("unit", 0.5) else 1.0
    return CorruptedScan(tuple(how), scan, unit, truth)
