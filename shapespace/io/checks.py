"""Checks of points, faces and normals read from a file."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

Normals = Literal["auto", "require", "drop"]


def check_rows(path: Path, values: Any, what: str, count: int | None = None) -> Float[np.ndarray, "n 3"]:
    """Convert to finite float64 (n, 3), with `count` rows if given; `what` is for errors.

    Raises:
        ValueError: The shape, the type or the number of rows is wrong, or values are not finite.

    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(
            f"{path}: {what} are an array of {array.dtype} {array.shape}. Save an array of numbers of shape (n, 3)."
        )
    if count is not None and len(array) != count:
        raise ValueError(f"{path}: {len(array):,} {what} for {count:,} points. Save one for each point, or none.")
    with np.errstate(invalid="ignore"):
        array = array.astype(np.float64)
    bad = int((~np.isfinite(array)).any(axis=1).sum())
    if bad:
        raise ValueError(
            f"{path}: {bad:,} of {len(array):,} {what} have NaN or infinite coordinates. Remove these rows."
        )
    return array


def check_points(path: Path, values: Any, least: int) -> Float[np.ndarray, "n 3"]:
    """Convert to finite float64 (n, 3).

    Raises:
        ValueError: There are fewer than `least` points, or all are equal.

    """
    points = check_rows(path, values, "points")
    if len(points) < least:
        raise ValueError(f"{path}: {len(points)} points, at least {least} are required. Pass a file with more points.")
    if not np.ptp(points, axis=0).any():
        raise ValueError(f"{path}: all {len(points):,} points are equal ({points[0]}). Export the file again.")
    return points


def check_faces(path: Path, values: Any, count: int) -> Int[np.ndarray, "m 3"] | None:
    """Convert to triangles (m, 3), quads to two each; None if there are no faces.

    `count` is the number of vertices.

    Raises:
        ValueError: The shape or the type is wrong, or a face refers to a vertex that does not exist.

    """
    faces = np.asarray(values if values is not None else [])
    if not faces.size:
        return None
    if faces.dtype.kind not in "iu" or faces.ndim != 2 or faces.shape[1] not in (3, 4):
        raise ValueError(
            f"{path}: faces are an array of {faces.dtype} {faces.shape}. Save triangles: integers of shape (m, 3)."
        )
    bad = int(((faces < 0) | (faces >= count)).any(axis=1).sum())
    if bad:
        hint = ", with indices that start at 0" if faces.min() == 1 and faces.max() == count else ""
        raise ValueError(
            f"{path}: {bad:,} of {len(faces):,} faces have vertices outside 0..{count - 1:,} (lowest {faces.min()}, "
            f"highest {faces.max()}). Export it again{hint}."
        )
    triangles = np.concatenate([faces[:, [0, a - 1, a]] for a in range(2, faces.shape[1])])
    return np.asarray(triangles, dtype=np.int32)


def check_normals(path: Path, values: Any, count: int) -> Float[np.ndarray, "n 3"] | None:
    """Convert to unit vectors (count, 3); None if the file has no normals.

    Raises:
        ValueError: The shape is wrong, or normals have length zero.

    """
    if values is None:
        return None
    normals = check_rows(path, values, "normals", count)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    bad = int((lengths < 1e-6).sum())
    if bad:
        raise ValueError(
            f"{path}: {bad:,} of {count:,} normals have length zero. Compute them again, or pass --normals drop."
        )
    return np.asarray(normals / lengths)
