"""Checks of points, faces and normals that were read from a file."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

Normals = Literal["auto", "require", "drop"]


def check_rows(path: Path, values: Any, what: str, count: int | None = None) -> Float[np.ndarray, "n 3"]:
    """`values` as finite (n, 3) float64, one row per point if a count is given."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(
            f"{path}: {what} are an array of {array.dtype} {array.shape}, not numbers (n, 3). Save them so."
        )
    if count is not None and len(array) != count:
        raise ValueError(f"{path} has {len(array):,} {what} for {count:,} points. Save one for each point, or none.")
    with np.errstate(invalid="ignore"):
        array = array.astype(np.float64)
    bad = int((~np.isfinite(array)).any(axis=1).sum())
    if bad:
        raise ValueError(
            f"{path}: {bad:,} of {len(array):,} {what} have NaN or infinite coordinates. Remove those rows."
        )
    return array


def check_points(path: Path, values: Any, least: int) -> Float[np.ndarray, "n 3"]:
    points = check_rows(path, values, "points")
    if len(points) < least:
        raise ValueError(f"{path} holds {len(points)} points, and at least {least} are needed. Is it the right file?")
    if not np.ptp(points, axis=0).any():
        raise ValueError(f"{path}: all {len(points):,} points are the same, {points[0]}. Export the file again.")
    return points


def check_faces(path: Path, values: Any, count: int) -> Int[np.ndarray, "m 3"] | None:
    """Triangles (quads are cut in two), or None if there are none."""
    faces = np.asarray(values if values is not None else [])
    if not faces.size:
        return None
    if faces.dtype.kind not in "iu" or faces.ndim != 2 or faces.shape[1] not in (3, 4):
        raise ValueError(
            f"{path}: faces are an array of {faces.dtype} {faces.shape}, not whole numbers (m, 3). Save triangles."
        )
    bad = int(((faces < 0) | (faces >= count)).any(axis=1).sum())
    if bad:
        raise ValueError(
            f"{path}: {bad:,} of {len(faces):,} faces name vertices outside 0..{count - 1:,} (lowest {faces.min()}, "
            f"highest {faces.max()}). The file is damaged, or counts from 1: export it again."
        )
    triangles = np.concatenate([faces[:, [0, a - 1, a]] for a in range(2, faces.shape[1])])
    return np.asarray(triangles, dtype=np.int32)


def check_normals(path: Path, values: Any, count: int) -> Float[np.ndarray, "n 3"] | None:
    """Check the normals and make them unit vectors; None if the file has none."""
    if values is None:
        return None
    normals = check_rows(path, values, "normals", count)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    bad = int((lengths < 1e-6).sum())
    if bad:
        raise ValueError(
            f"{path}: {bad:,} of {count:,} normals have length zero. "
            "Compute them anew, or say --normals drop to use the points alone."
        )
    return np.asarray(normals / lengths)
