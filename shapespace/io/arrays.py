"""Scans in NumPy's files: NPY and NPZ."""

import math
import zipfile
from pathlib import Path

import numpy as np

from shapespace.geometry.camera import DepthImage
from shapespace.geometry.findings import Finding
from shapespace.io import raw_scan
from shapespace.io.columns import find_named, split_columns
from shapespace.io.depth_images import has_camera, read_depth_image
from shapespace.io.errors import BadFileError
from shapespace.io.raw_scan import RawScan

# Names in an NPZ. `v_posed` is that of CAPE, `arr_0` that of an array without a name.
POINT_KEYS = ("points", "vertices", "v", "pos", "v_posed", "arr_0")
FACE_KEYS = ("faces", "f")
_OTHER_KEYS = ("normals", "sensors")

_WIDEST_TABLE = 12  # columns of an array without a camera that is a table of points and not a depth image


def read_npy(path: Path) -> RawScan | list[DepthImage]:
    """Points, points with normals, or a depth image if there is a camera or the array is wide.

    Memory mapping makes NumPy compare the declared shape with the size of the file before it allocates memory.
    """
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim == 2 and array.dtype.kind in "fiu":
        is_table = array.shape[1] in (2, 3, 4, 6) or (array.shape[1] <= _WIDEST_TABLE and not has_camera(path))
        is_across = array.shape[0] in (3, 6) and array.shape[1] > _WIDEST_TABLE and not has_camera(path)
        if not is_table and not is_across:
            return read_depth_image(path)
    return _scan_of_array(path, np.array(array))


def _scan_of_array(path: Path, array: np.ndarray) -> RawScan:
    """Points of an array: rows, columns (3, n), or records with the fields x, y, z."""
    names: tuple[str, ...] = ()
    if array.dtype.names and find_named(array.dtype.names)[0]:
        names = tuple(array.dtype.names)
        wanted = [names[column] for columns in find_named(names) for column in columns]
        array, names = np.column_stack([array[name].reshape(-1) for name in wanted]), tuple(wanted)
    if array.ndim == 2 and array.shape[0] in (3, 6) and array.shape[1] > _WIDEST_TABLE:
        found = Finding("array-transposed", {"shape": str(array.shape), "count": array.shape[1]})
        raw = split_columns(path, array.T)
        raw.findings = (found, *raw.findings)
        return raw
    return split_columns(path, array, names)


def read_npz(path: Path) -> RawScan:
    """Points under one of `POINT_KEYS`, and faces, `normals` and `sensors` where there are any."""
    _check_npz(path)
    with np.load(path, allow_pickle=False) as arrays:
        keys = [key for key in POINT_KEYS if key in arrays]
        if not keys:
            raise BadFileError(
                f"{path}: contains {', '.join(arrays) or 'nothing'} and none of {', '.join(POINT_KEYS)}. Save the "
                "points under one of these names."
            )
        points = arrays[keys[0]]
        faces = next((arrays[key] for key in FACE_KEYS if key in arrays), None)
        normals, sensors = (arrays.get(key) for key in _OTHER_KEYS)
    if any(rows is not None for rows in (faces, normals, sensors)) or points.shape[1:] == (3,):
        return RawScan(points, faces, normals, sensors)
    return _scan_of_array(path, points)


def _check_npz(path: Path) -> None:
    """Refuse arrays that are too large or incomplete, before they are decompressed."""
    with zipfile.ZipFile(path) as archive:
        wanted = {f"{key}.npy" for key in (*POINT_KEYS, *FACE_KEYS, *_OTHER_KEYS)}
        for info in (info for info in archive.infolist() if info.filename in wanted):
            with archive.open(info) as member:
                version, _ = np.lib.format.read_magic(member)
                header = np.lib.format.read_array_header_1_0 if version == 1 else np.lib.format.read_array_header_2_0
                shape, _, kind = header(member)
            size = math.prod(shape) * kind.itemsize
            if kind.hasobject:
                continue  # refused by np.load
            if not 0 <= size <= min(info.file_size, raw_scan.MAX_UNPACKED):
                raise BadFileError(
                    f"{path}: {info.filename} declares {size:,} bytes and contains {info.file_size:,}; at most "
                    f"{raw_scan.MAX_UNPACKED:,} are read. Save the file again, or with fewer points."
                )
