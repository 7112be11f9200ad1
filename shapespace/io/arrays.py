"""Scans in NumPy's files: NPY and NPZ."""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shapespace.geometry.camera import DepthImage
from shapespace.geometry.findings import Finding
from shapespace.io import raw_scan
from shapespace.io.columns import MAX_CHANNELS, find_named, split_columns
from shapespace.io.depth_images import has_camera, read_depth_image
from shapespace.io.errors import BadFileError
from shapespace.io.raw_scan import RawScan

# Names in an NPZ. `v_posed` is that of CAPE, `arr_0` that of an array without a name.
POINT_KEYS = ("points", "vertices", "verts", "v", "pos", "v_posed", "xyz", "coords", "pc", "arr_0")
FACE_KEYS = ("faces", "f", "triangles", "tris")
NORMAL_KEYS = ("normals", "normal")
_AXES = ("x", "y", "z")


def read_npy(path: Path) -> RawScan | list[DepthImage]:
    """Points, points with normals, or a depth image if there is a camera or the array is wide.

    Memory mapping makes NumPy compare the declared shape with the size of the file before it allocates memory.
    """
    array = _without_single_axes(np.load(path, mmap_mode="r", allow_pickle=False))
    if array.ndim == 2 and array.dtype.kind in "fiu":
        is_table = array.shape[1] in (2, 3, 4, 6) or (array.shape[1] <= MAX_CHANNELS and not has_camera(path))
        if not is_table and not (_is_across(array) and not has_camera(path)):
            return read_depth_image(path)
    return _scan_of_array(path, np.array(array))


def _without_single_axes(array: np.ndarray) -> np.ndarray:
    """The array without axes of length 1 that other programs add: (1, n, 3), (n, 1, 3), (rows, columns, 1)."""
    return array.squeeze() if array.ndim > 2 else array


def _is_across(array: np.ndarray) -> bool:
    """Whether the channels of points come first: (3, n), or (3, rows, columns)."""
    return array.ndim in (2, 3) and 3 <= array.shape[0] <= MAX_CHANNELS < min(array.shape[1:])


def _unpacked_fields(array: np.ndarray) -> np.ndarray:
    """Records with a field of three numbers for the points (and one for the normals) as records of single numbers."""
    fields: Mapping[str, Any] = array.dtype.fields or {}
    wide = {name.lower(): name for name, (kind, *_) in fields.items() if kind.shape == (3,)}
    points = next((wide[key] for key in POINT_KEYS if key in wide), None)
    if points is None:
        return array
    normals = next((wide[key] for key in (*NORMAL_KEYS, "n") if key in wide), None)
    chosen = [("", points), *([("n", normals)] if normals else [])]
    columns = {prefix + axis: array[name][..., i] for prefix, name in chosen for i, axis in enumerate(_AXES)}
    records = np.empty(array.shape, dtype=[(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        records[name] = column
    return records


def _scan_of_array(path: Path, array: np.ndarray) -> RawScan:
    """Points of an array: rows, columns (3, n), or records with the fields x, y, z."""
    names: tuple[str, ...] = ()
    array = _unpacked_fields(_without_single_axes(array))
    if array.dtype.names and find_named(array.dtype.names)[0]:
        names = tuple(array.dtype.names)
        wanted = [names[column] for columns in find_named(names) for column in columns]
        array, names = np.column_stack([array[name].reshape(-1) for name in wanted]), tuple(wanted)
    if _is_across(array):
        found = Finding("array-transposed", {"shape": str(array.shape), "count": math.prod(array.shape[1:])})
        raw = split_columns(path, array.reshape(len(array), -1).T)
        raw.findings = (found, *raw.findings)
        return raw
    return split_columns(path, array, names)


def read_npz(path: Path) -> RawScan:
    """Points, and faces, `normals` and `sensors` where there are any.

    Points have one of the names `POINT_KEYS`, or are columns `x`, `y`, `z`, or the only array (n, 3) or (n, 6).
    """
    tables = _check_npz(path)
    with np.load(path, allow_pickle=False) as arrays:
        keys = [key for key in POINT_KEYS if key in arrays] or (tables if len(tables) == 1 else [])
        if keys:
            points = _without_single_axes(arrays[keys[0]])
        elif set(_AXES) <= set(arrays):
            points = np.stack([arrays[axis].reshape(-1) for axis in _AXES], axis=-1)
        else:
            raise BadFileError(
                f"{path}: contains {', '.join(arrays) or 'nothing'} and none of {', '.join(POINT_KEYS)}. Save the "
                "points under one of these names."
            )
        faces = next((arrays[key] for key in FACE_KEYS if key in arrays), None)
        normals = next((arrays[key] for key in NORMAL_KEYS if key in arrays), None)
        sensors = arrays.get("sensors")
    if sensors is not None and sensors.size == 3 and sensors.dtype.kind in "fiu":
        sensors = np.tile(sensors.reshape(1, 3), (len(points), 1))  # one for all points
    if any(rows is not None for rows in (faces, normals, sensors)) or points.shape[1:] == (3,):
        return RawScan(points, faces, normals, sensors)
    return _scan_of_array(path, points)


def _check_npz(path: Path) -> list[str]:
    """Refuse arrays that are too large or incomplete, before they are decompressed.

    Returns the names of the others that can be points: fractions of shape (n, 3) or (n, 6).
    """
    tables = []
    with zipfile.ZipFile(path) as archive:
        for info in (info for info in archive.infolist() if info.filename.endswith(".npy")):
            key = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                version, _ = np.lib.format.read_magic(member)
                header = np.lib.format.read_array_header_1_0 if version == 1 else np.lib.format.read_array_header_2_0
                shape, _, kind = header(member)
            size = math.prod(shape) * kind.itemsize
            is_known = key in (*POINT_KEYS, *FACE_KEYS, *NORMAL_KEYS, "sensors", *_AXES)
            if not is_known and (len(shape) != 2 or shape[1] not in (3, 6) or kind.kind != "f"):
                continue
            if not is_known:
                tables.append(key)
            if kind.hasobject:
                continue  # refused by np.load
            if not 0 <= size <= min(info.file_size, raw_scan.MAX_UNPACKED):
                raise BadFileError(
                    f"{path}: {info.filename} declares {size:,} bytes and contains {info.file_size:,}; at most "
                    f"{raw_scan.MAX_UNPACKED:,} are read. Save the file again, or with fewer points."
                )
    return tables
