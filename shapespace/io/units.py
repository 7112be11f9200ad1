"""Units and up axes of files; the unit that fits the size of a person."""

import os
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from shapespace.geometry.scan import Scan

Up = Literal["x", "y", "z", "-x", "-y", "-z"]


UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254}  # metres per file unit


# Rows are the world axes in file axes: each is a turn (no mirror) that brings the file's up axis to +y.
AXIS_ROTATIONS: dict[str, list[list[int]]] = {
    "y": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "-y": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
    "z": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
    "-z": [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
    "x": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
    "-x": [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
}


def to_world(vectors: Float[np.ndarray, "n 3"], *, unit: float = 1.0, up: Up = "y") -> Float[np.ndarray, "n 3"]:
    """Bring points of a file's unit (metres per file unit) and up axis into metres, y up; float32."""
    return transform("points", vectors, unit * axis_rotation(up))


def from_world(vectors: Float[np.ndarray, "n 3"], *, unit: float = 1.0, up: Up = "y") -> Float[np.ndarray, "n 3"]:
    """The way back from `to_world`."""
    return np.asarray(vectors @ (axis_rotation(up) / unit))


def axis_rotation(up: str) -> Float[np.ndarray, "3 3"]:
    if up not in AXIS_ROTATIONS:
        raise ValueError(
            f"up axis {up!r} is none of {', '.join(AXIS_ROTATIONS)}. Name the axis of the file that points up."
        )
    return np.array(AXIS_ROTATIONS[up], dtype=np.float64)


def transform(
    path: str | os.PathLike[str], vectors: Float[np.ndarray, "n 3"], matrix: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "n 3"]:
    """`matrix` applied to each row, float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        moved = (vectors.astype(np.float64) @ matrix.T).astype(np.float32)
    if not np.isfinite(moved).all():
        raise ValueError(
            f"{path}: coordinates of {np.abs(vectors).max():.3g} are too large for float32. Is the file damaged?"
        )
    return np.asarray(moved)


def check_size(scan: Scan, *, scale: float, unit: float = 1.0) -> None:
    """Refuse a scan (metres) whose size is not that of what `scale` was chosen for; the likely cause is its unit.

    The size is the largest extent of all but the lowest and highest 1 % of the points, because raw scans have
    stray ones. It must lie between 0.24 and 2.4 model units: 0.3 to 3 m for people. `unit` is metres per file unit.
    """
    size = _size(scan)
    least, most = 0.24 * scale, 2.4 * scale
    if least <= size <= most:
        return
    sizes = {name: size / unit * metres for name, metres in UNITS.items()}
    likely = min(sizes, key=lambda name: abs(np.log(max(sizes[name], 1e-30) / (1.36 * scale))))
    if least <= sizes[likely] <= most:
        remedy = f"Are the files in {likely}? Then say --unit {likely}."
    else:
        remedy = "Is it the right file? If it is no person, give its size by --scale."
    shown = f"{size:,.0f}" if size > 10 else f"{size:.3g}"
    raise ValueError(f"scan {scan.name} is {shown} m large, and {least:.2g} to {most:.2g} m is expected. {remedy}")


UnitName = Literal["m", "cm", "mm", "in"]


class Unit(NamedTuple):
    """A unit by its name, and the probability that it is the one, if it is one of these and the scans are people."""

    name: UnitName
    confidence: float


def guess_unit(scans: Sequence[Scan]) -> Unit:
    """The unit of scans (as their files have them) by how large people are, all of them in one unit.

    The size of a scan (see `check_size`) is taken for that of a person: 1.5 m, give or take a quarter, whether they
    stand, bend, or were seen in part. Where nobody is so large in any unit, it is metres, with no confidence at all.
    """
    sizes = np.array([_size(scan) for scan in scans])
    off = {name: np.log(np.maximum(sizes, 1e-30) * metres / 1.5) / 0.25 for name, metres in UNITS.items()}
    score = {name: -0.5 * float(np.square(each).mean()) for name, each in off.items()}
    best = max(get_args(UnitName), key=lambda name: score[name])
    if score[best] < -0.5 * 4**2:
        return Unit("m", 0.0)
    return Unit(best, 1 / sum(float(np.exp(other - score[best])) for other in score.values()))


def _size(scan: Scan) -> float:
    """The largest extent of all but the lowest and highest 1 % of the points."""
    low, high = np.percentile(scan.points, [1, 99], axis=0)
    return float((high - low).max())
