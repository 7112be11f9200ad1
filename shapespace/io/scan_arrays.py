"""Scans from arrays of a caller: NumPy, torch tensors or lists, of any float type, checked as files are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from shapespace.geometry.findings import Finding
from shapespace.geometry.scan import Scan
from shapespace.io.checks import check_faces
from shapespace.io.cleaning import clean
from shapespace.io.columns import split_columns
from shapespace.io.raw_scan import RawScan
from shapespace.io.units import find_origin

_MAX_WITHOUT_NORMAL = 0.05  # share of normals of length zero that are dropped with their points; as for files
_UNIT_LENGTH = 1e-3  # deviation of the length of a normal from 1 that is left as it is


def scan_of_arrays(points: Any, normals: Any = None, sensors: Any = None, name: str = "scan") -> Scan:
    """Scan of arrays in meters, y up: NumPy arrays, torch tensors or nested lists of numbers of any type.

    `points` are (n, 3), or (n, 6) with normals; normals (n, 3) may have any length; sensors (n, 3), or (3,) for one
    sensor that measured all points. What is no measurement is removed as in files (`clean`), and points far from the
    origin are moved near it in double precision (`Scan.origin`).

    Raises:
        ValueError: An array is no table of numbers, has the wrong shape or as many rows as no other, or holds sensors
            that are not finite.

    """
    table = _numbers("points", points)
    found: tuple[Finding, ...] = ()
    if table.ndim == 2 and table.shape[0] in (3, 6) and table.shape[1] > table.shape[0] and table.shape[1] != 6:
        found = (Finding("array-transposed", {"shape": str(table.shape), "count": table.shape[1]}),)
        table = table.T
    if table.ndim != 2 or table.shape[1] not in (3, 6):
        raise ValueError(f"points: an array of shape {table.shape}. Pass (n, 3) points, or (n, 6) points with normals.")
    if table.shape[1] == 6:
        raw = split_columns(Path("points"), table)
        table, found = np.asarray(raw.points), (*found, *raw.findings)
        normals = raw.normals if normals is None else normals
    vectors = None if normals is None else _shaped(name, "normals", normals, len(table))
    raw = clean(RawScan(table, None, vectors, _one_for_each(name, sensors, len(table)), findings=found))
    return check_arrays(Scan(name, raw.points, raw.normals, raw.sensors, findings=raw.findings))


def check_arrays(scan: Scan) -> Scan:
    """The scan with NumPy arrays of the right shapes, and normals of unit length; the same object if it has these.

    Raises:
        ValueError: As in `scan_of_arrays`; the points themselves may have values that are not finite.

    """
    name, points = scan.name or "scan", _numbers("points", scan.points)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"{name}: points have the shape {points.shape}. Pass (n, 3) points.")
    changed: dict[str, Any] = {} if points is scan.points else {"points": points}
    faces = None if scan.faces is None else check_faces(Path(name), _numbers("faces", scan.faces, "iu"), len(points))
    if scan.faces is not None and (faces is None or not np.array_equal(faces, scan.faces)):
        changed |= {"faces": faces}
    arrays = {
        "normals": _vectors(name, "normals", scan.normals, len(points)),
        "unoriented_normals": _vectors(name, "unoriented normals", scan.unoriented_normals, len(points)),
        "sensors": _sensors(name, scan.sensors, len(points)),
    }
    changed |= {key: rows for key, rows in arrays.items() if rows is not getattr(scan, key)}
    scan = replace(scan, **changed) if changed else scan
    return _near_origin(_without_zero_normals(scan))


def _numbers(what: str, values: Any, kinds: str = "fiu") -> np.ndarray:
    """A NumPy array of numbers; floats have at least single precision."""
    if hasattr(values, "detach"):  # a tensor, on any device and with any gradient
        values = values.detach().cpu()
        values = values.float().numpy() if values.is_floating_point() and values.itemsize < 4 else values.numpy()
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"{what}: rows of different lengths. Pass an array of shape (n, 3).") from None
    if array.dtype.kind not in kinds or not array.ndim:
        raise ValueError(
            f"{what}: {type(values).__name__} of type {array.dtype}. Pass an array of numbers of shape (n, 3)."
        )
    if "f" not in kinds:
        return array
    wanted = np.float32 if array.dtype.kind == "f" and array.dtype.itemsize <= 4 else np.float64
    return array if array.dtype == wanted else array.astype(wanted)


def _vectors(name: str, what: str, values: Any, count: int) -> Float[np.ndarray, "n 3"] | None:
    """Normals of unit length, or None."""
    return None if values is None else _unit(_rows(name, what, values, count))


def _sensors(name: str, values: Any, count: int) -> Float[np.ndarray, "n 3"] | None:
    """One sensor for each point, all finite, or None."""
    return None if values is None else _rows(name, "sensors", _one_for_each(name, values, count), count)


def _one_for_each(name: str, values: Any, count: int) -> Float[np.ndarray, "n 3"] | None:
    """One sensor for each point, or None."""
    if values is None:
        return None
    array = _numbers("sensors", values)
    return _shaped(name, "sensors", np.tile(array.reshape(1, 3), (count, 1)) if array.size == 3 else array, count)


def _rows(name: str, what: str, values: Any, count: int) -> Float[np.ndarray, "n 3"]:
    array = _shaped(name, what, values, count)
    bad = int((~np.isfinite(array)).any(axis=1).sum())
    if bad:
        raise ValueError(f"{name}: {bad:,} of {count:,} {what} are not finite. Remove these rows.")
    return array


def _shaped(name: str, what: str, values: Any, count: int) -> Float[np.ndarray, "n 3"]:
    array = _numbers(what, values)
    if array.shape != (count, 3):
        hint = " or (3,) for one sensor of all points" if what == "sensors" else ""
        raise ValueError(
            f"{name}: {what} of shape {array.shape} for {count:,} points. Pass ({count}, 3), one for each point{hint}."
        )
    return array


def _unit(normals: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Normals of unit length; those of length zero stay zero."""
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    if (np.abs(lengths - 1) <= _UNIT_LENGTH).all():
        return normals
    return np.asarray(normals / np.where(lengths > 0, lengths, 1))


def _without_zero_normals(scan: Scan) -> Scan:
    """Drop points without a normal, if they are few; otherwise the normals are none."""
    if scan.normals is None:
        return scan
    zero = np.asarray(~scan.normals.any(axis=1), dtype=np.bool_)
    if not zero.any():
        return scan
    values = {"count": int(zero.sum()), "total": len(zero)}
    if zero.mean() > _MAX_WITHOUT_NORMAL or scan.faces is not None:
        return replace(scan, normals=None).with_findings(Finding("normals-dropped", values))
    return scan.mask(~zero).with_findings(Finding("points-without-normals-dropped", values))


def _near_origin(scan: Scan) -> Scan:
    """Points (double precision) that float32 could not hold, relative to an origin near them."""
    if scan.origin is not None or not len(scan) or not np.isfinite(scan.points).all():
        return scan
    found = find_origin(scan.points, single=scan.points.dtype == np.float32)
    if found is None:
        return scan
    points = (scan.points - found.point).astype(np.float32)
    sensors: Int[np.ndarray, "n 3"] | None = None
    if scan.sensors is not None:
        sensors = (scan.sensors - found.point).astype(np.float32)
    return replace(scan, points=points, sensors=sensors, origin=found.point).with_findings(*found.findings)
