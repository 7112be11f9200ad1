"""Units and up axes of files, and guessing of the unit from the size of a person."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from shapespace.geometry.findings import Finding
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.io.cleaning import measured_size

Up = Literal["x", "y", "z", "-x", "-y", "-z"]
UnitName = Literal["m", "cm", "mm", "in", "ft", "dm"]

UNITS: dict[str, float] = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254, "ft": 0.3048, "dm": 0.1}  # meters each

# Feet and decimeters are not guessed: a room of 4 m would be a child of 4 feet. `check_size` names them.
GUESSED_UNITS: tuple[UnitName, ...] = ("m", "cm", "mm", "in")

# Rows are the world axes in file axes: each is a rotation (no mirror) that brings the file's up axis to +y.
AXIS_ROTATIONS: dict[str, list[list[int]]] = {
    "y": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "-y": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
    "z": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
    "-z": [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
    "x": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
    "-x": [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
}

_FAR_AWAY = 100.0  # sizes of a scan: from there on its coordinates are relative to an origin of their own; arbitrary
_COARSE = 1e-3  # sizes of a scan: 1.7 mm for people
MAX_SHIFT = 500.0  # meters: float32 has steps of 0.03 mm there

_MIN_SIZE, _MAX_SIZE = 0.24, 2.4  # model units: 0.3 to 3 m for people
_LIKELY_SIZE = 1.36  # model units: 1.7 m for people
_PERSON_SIZE = 1.5  # meters: people who stand, bend, or were scanned in part
_PERSON_SIZE_STD = 0.25  # of the logarithm of the size
_MIN_PERSON, _MAX_PERSON = 0.8, 2.5  # meters: a crouch, and an adult with raised arms
_LIKELY_PERSON = 1.7  # meters
_CERTAIN = 0.99  # confidence from which on meters are no finding; arbitrary
_MAX_DEVIATION = 4.0  # standard deviations: beyond this no unit gives the size of a person


class Origin(NamedTuple):
    """A point near a scan that is far from the origin of its file, in file units, and what was noticed about it."""

    point: Float[np.ndarray, "3"]
    findings: tuple[Finding, ...]


def find_origin(points: Float[np.ndarray, "n 3"], *, single: bool = False) -> Origin | None:
    """Origin for points (file units, float64) that float32 cannot hold with their place; None for points near zero.

    It is a round number of file units. `single`: the file has float32, whose steps may be coarse at that distance.
    """
    with np.errstate(over="ignore"):
        low, high = measured_size(points)
        size, middle = float((high - low).max()), (low + high) / 2
        distance = float(np.abs(middle).max())
    if not 0 < size < np.inf or not distance < np.inf or distance < _FAR_AWAY * size:
        return None
    step = 10.0 ** np.floor(np.log10(size))
    point = np.round(middle / step) * step
    shown = "(" + ", ".join(f"{value:.10g}" for value in point.tolist()) + ")"
    found = [Finding("origin-moved", {"distance": distance, "origin": shown})]
    spacing = float(np.spacing(np.float32(min(distance, 1e38)))) if single else 0.0
    if spacing > _COARSE * size:
        found.append(Finding("coarse-coordinates", {"step": spacing, "distance": distance}))
    return Origin(point, tuple(found))


def to_world(vectors: Float[np.ndarray, "n 3"], *, unit: float = 1.0, up: Up = "y") -> Float[np.ndarray, "n 3"]:
    """Convert file coordinates to meters, y up; float32. `unit` is meters per file unit."""
    return transform("points", vectors, unit * axis_rotation(up))


def from_world(
    vectors: Float[np.ndarray, "n 3"],
    *,
    unit: float = 1.0,
    up: Up = "y",
    origin: Float[np.ndarray, "3"] | None = None,
) -> Float[np.ndarray, "n 3"]:
    """Convert meters, y up, relative to `origin` (`Scan.origin`), to file coordinates: the inverse of `to_world`."""
    placed = vectors if origin is None else vectors.astype(np.float64) + origin
    return np.asarray(placed @ (axis_rotation(up) / unit))


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
    """A unit and its probability, if the scans are people and the unit is one of `GUESSED_UNITS`."""

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
    for name in GUESSED_UNITS:
        deviation = np.log(np.maximum(sizes, 1e-30) * UNITS[name] / _PERSON_SIZE) / _PERSON_SIZE_STD
        score[name] = -0.5 * float(np.square(deviation).mean())
    best = max(GUESSED_UNITS, key=lambda name: score[name])
    if score[best] < -0.5 * _MAX_DEVIATION**2:
        return Unit("m", 0.0)
    return Unit(best, 1 / sum(float(np.exp(other - score[best])) for other in score.values()))


def to_meters(scans: Sequence[Scan]) -> tuple[list[Scan], Unit]:
    """Convert scans of one unknown unit to meters, by `guess_unit`.

    Scans without points are converted too, and do not enter the guess; depth images are metric, and neither. A unit
    that is not certainly meters is a finding (`unit-guessed`); without confidence there is none, since the size is an
    error of the fit.
    """
    unknown = [scan for scan in scans if len(scan) and not scan.is_metric]
    unit = guess_unit(unknown) if unknown or not any(scan.is_metric for scan in scans) else Unit("m", 1.0)
    meters = UNITS[unit.name]
    frame = Frame(torch.zeros(3), torch.tensor(meters))
    found: tuple[Finding, ...] = ()
    if unit.confidence and (unit.name != "m" or unit.confidence < _CERTAIN):
        found = (Finding("unit-guessed", {"unit": unit.name, "confidence": round(unit.confidence, 4)}),)

    def convert(scan: Scan) -> Scan:
        if scan.is_metric:
            return scan
        origin = None if scan.origin is None else meters * scan.origin
        converted = replace(scan.to_world(frame), origin=origin)
        return converted.with_findings(*found) if len(scan) else converted

    return [convert(scan) for scan in scans], unit


def share_origin(scans: Sequence[Scan]) -> list[Scan]:
    """The scans (meters) relative to one origin, that of the first which has one: the frames of a motion share a world.

    A scan that float32 cannot place there, because it is too far away, keeps its own origin.
    """
    common = next((scan.origin for scan in scans if scan.origin is not None), None)
    if common is None:
        return list(scans)

    def move(scan: Scan) -> Scan:
        shift = (np.zeros(3) if scan.origin is None else scan.origin) - common
        if np.abs(shift).max() > MAX_SHIFT:
            return scan
        sensors = None if scan.sensors is None else (scan.sensors + shift).astype(np.float32)
        return replace(scan, points=(scan.points + shift).astype(np.float32), sensors=sensors, origin=common)

    return [move(scan) for scan in scans]


def check_size(scan: Scan, *, scale: float, unit: float = 1.0, remedy: str = "") -> None:
    """Refuse a scan (meters) of implausible size; the usual cause is a wrong unit.

    The size is the largest extent without the lowest and highest 1 % of the points, since raw scans have outliers. It
    must be between 0.24 and 2.4 model units: 0.3 to 3 m for people. `scale` is meters per model unit, `unit` meters per
    file unit. `remedy` ends the error if no unit gives such a size.

    Raises:
        ValueError: The size is outside these bounds.

    """
    size = _size(scan)
    least, most = _MIN_SIZE * scale, _MAX_SIZE * scale
    if least <= size <= most:
        return
    sizes = {name: size / unit * meters for name, meters in UNITS.items()}
    likely = min(sizes, key=lambda name: abs(np.log(max(sizes[name], 1e-30) / (_LIKELY_SIZE * scale))))
    factor = _LIKELY_SIZE * scale / max(size, 1e-30)
    if scan.is_metric:
        remedy = (
            "It is a depth image: limit its depth (far in the JSON of its camera) if it shows more than the person, or "
            f"multiply depth_unit_scale_factor there by about {factor:.2g}."
        )
    elif least <= sizes[likely] <= most:
        remedy = (
            f"If the files are in {likely}, pass --unit {likely}, or multiply the coordinates by "
            f"{UNITS[likely] / unit:g}."
        )
    elif not remedy:
        remedy = (
            f"If it is a person, its lengths must be multiplied by about {factor:.2g}: check --unit, or scale the file."
        )
    shown = f"{size:,.0f}" if size > 10 else f"{size:.3g}"
    raise ValueError(f"scan {scan.name}: size {shown} m, expected {least:.2g} to {most:.2g} m. {remedy}")


def check_person_size(scan: Scan) -> Scan:
    """The scan (meters), with the finding `unlikely-size` if it is larger or smaller than people in any pose."""
    size = _size(scan)
    if _MIN_PERSON <= size <= _MAX_PERSON:
        return scan
    factor = round(_LIKELY_PERSON / size, 3)
    return scan.with_findings(Finding("unlikely-size", {"size": round(size, 3), "factor": factor}))


def _size(scan: Scan) -> float:
    """Largest extent of all but the lowest and highest 1 % of the points."""
    low, high = np.percentile(scan.points, [1, 99], axis=0)
    return float((high - low).max())
