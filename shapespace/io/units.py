"""Units and up axes of files, and guessing of the unit from the size of a person."""

import os
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float

from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan

Up = Literal["x", "y", "z", "-x", "-y", "-z"]
UnitName = Literal["m", "cm", "mm", "in"]

UNITS: dict[str, float] = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254}  # meters per file unit

# Rows are the world axes in file axes: each is a rotation (no mirror) that brings the file's up axis to +y.
AXIS_ROTATIONS: dict[str, list[list[int]]] = {
    "y": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "-y": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
    "z": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
    "-z": [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
    "x": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
    "-x": [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
}

_MIN_SIZE, _MAX_SIZE = 0.24, 2.4  # model units: 0.3 to 3 m for people
_LIKELY_SIZE = 1.36  # model units: 1.7 m for people
_PERSON_SIZE = 1.5  # meters: people who stand, bend, or were scanned in part
_PERSON_SIZE_STD = 0.25  # of the logarithm of the size
_MAX_DEVIATION = 4.0  # standard deviations: beyond this no unit gives the size of a person


def to_world(vectors: Float[np.ndarray, "n 3"], *, unit: float = 1.0, up: Up = "y") -> Float[np.ndarray, "n 3"]:
    """Convert file coordinates to meters, y up; float32. `unit` is meters per file unit."""
    return transform("points", vectors, unit * axis_rotation(up))


def from_world(vectors: Float[np.ndarray, "n 3"], *, unit: float = 1.0, up: Up = "y") -> Float[np.ndarray, "n 3"]:
    """Convert meters, y up, to file coordinates: the inverse of `to_world`."""
    return np.asarray(vectors @ (axis_rotation(up) / unit))


def axis_rotation(up: str) -> Float[np.ndarray, "3 3"]:
    """Rotation matrix that brings the file's up axis to +y.

    Raises:
        ValueError: The axis is unknown.

    """
    if up not in AXIS_ROTATIONS:
        raise ValueError(f"--up {up}: unknown up axis. Choose one of {', '.join(AXIS_ROTATIONS)}.")
    return np.array(AXIS_ROTATIONS[up], dtype=np.float64)


def transform(
    path: str | os.PathLike[str], vectors: Float[np.ndarray, "n 3"], matrix: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "n 3"]:
    """Apply `matrix` to each row; float32.

    Raises:
        ValueError: The result overflows float32.

    """
    with np.errstate(over="ignore", invalid="ignore"):
        moved = (vectors.astype(np.float64) @ matrix.T).astype(np.float32)
    if not np.isfinite(moved).all():
        raise ValueError(
            f"{path}: coordinates of {np.abs(vectors).max():.3g} are too large for float32. Export the file again."
        )
    return np.asarray(moved)


class Unit(NamedTuple):
    """A unit and its probability, if the scans are people and the unit is in `UNITS`."""

    name: UnitName
    confidence: float


def guess_unit(scans: Sequence[Scan]) -> Unit:
    """Guess the common unit of scans (in file units) from the size of a person.

    The size of a scan (see `check_size`) is compared with 1.5 m, with a standard deviation of a quarter: people stand,
    bend, or are seen in part. If no unit gives a plausible size, the answer is meters with confidence 0.
    """
    if not scans:
        return Unit("m", 0.0)
    sizes = np.array([_size(scan) for scan in scans])
    score: dict[str, float] = {}
    for name, meters in UNITS.items():
        deviation = np.log(np.maximum(sizes, 1e-30) * meters / _PERSON_SIZE) / _PERSON_SIZE_STD
        score[name] = -0.5 * float(np.square(deviation).mean())
    names: tuple[UnitName, ...] = get_args(UnitName)
    best = max(names, key=lambda name: score[name])
    if score[best] < -0.5 * _MAX_DEVIATION**2:
        return Unit("m", 0.0)
    return Unit(best, 1 / sum(float(np.exp(other - score[best])) for other in score.values()))


def to_meters(scans: Sequence[Scan]) -> tuple[list[Scan], Unit]:
    """Convert scans of one unknown unit to meters, by `guess_unit`.

    Scans without points are converted too, and do not enter the guess.
    """
    unit = guess_unit([scan for scan in scans if len(scan)])
    frame = Frame(torch.zeros(3), torch.tensor(UNITS[unit.name]))
    return [scan.to_world(frame) for scan in scans], unit


def check_size(scan: Scan, *, scale: float, unit: float = 1.0) -> None:
    """Refuse a scan (meters) of implausible size; the usual cause is a wrong unit.

    The size is the largest extent without the lowest and highest 1 % of the points, since raw scans have outliers. It
    must be between 0.24 and 2.4 model units: 0.3 to 3 m for people. `scale` is meters per model unit, `unit` meters per
    file unit.

    Raises:
        ValueError: The size is outside these bounds.

    """
    size = _size(scan)
    least, most = _MIN_SIZE * scale, _MAX_SIZE * scale
    if least <= size <= most:
        return
    sizes = {name: size / unit * meters for name, meters in UNITS.items()}
    likely = min(sizes, key=lambda name: abs(np.log(max(sizes[name], 1e-30) / (_LIKELY_SIZE * scale))))
    if least <= sizes[likely] <= most:
        remedy = f"If the files are in {likely}, pass --unit {likely}."
    else:
        remedy = "If it is no person, pass --scale with the meters per model unit."
    shown = f"{size:,.0f}" if size > 10 else f"{size:.3g}"
    raise ValueError(f"scan {scan.name}: size {shown} m, expected {least:.2g} to {most:.2g} m. {remedy}")


def _size(scan: Scan) -> float:
    """Largest extent of all but the lowest and highest 1 % of the points."""
    low, high = np.percentile(scan.points, [1, 99], axis=0)
    return float((high - low).max())
