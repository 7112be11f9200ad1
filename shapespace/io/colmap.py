"""Sparse points of COLMAP: points3D.txt and points3D.bin."""

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from shapespace.io.errors import BadFileError
from shapespace.io.raw_scan import RawScan

_POINT = struct.Struct("<Q3d3BdQ")  # id, position, color, error, number of the images that see it
_TRACK = 8  # bytes of an entry of a track: image, feature


def read_points_text(lines: Iterable[str]) -> RawScan:
    """Rows POINT3D_ID X Y Z R G B ERROR TRACK[]."""
    rows = (line.split(None, 4) for line in lines if line.strip() and not line.startswith("#"))
    return RawScan(np.array([row[1:4] for row in rows], dtype=np.float64).reshape(-1, 3))


def read_points_binary(path: Path) -> RawScan:
    """A count, then the points with tracks of any length."""
    if not path.stem.lower().startswith("points3d"):
        raise BadFileError(
            f"{path}: of binary files without a format only points3D.bin of COLMAP is read. Pass that file, or export "
            "the scan as PLY."
        )
    data = path.read_bytes()
    count, place = int.from_bytes(data[:8], "little"), 8
    least = 8 + count * _POINT.size
    if len(data) < least:
        raise BadFileError(
            f"{path}: truncated. It declares at least {least:,} bytes and has {len(data):,}: copy it again."
        )
    points = np.empty((count, 3))
    for index in range(count):
        fields = _POINT.unpack_from(data, place)
        points[index] = fields[1:4]
        place += _POINT.size + _TRACK * fields[8]
    if place > len(data):
        raise BadFileError(f"{path}: truncated inside the track of a point. Copy it again.")
    return RawScan(points)
