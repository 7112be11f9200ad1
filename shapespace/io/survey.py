"""Formats of laser scanning that need an extra package: LAS and LAZ (`las`), E57 (`e57`)."""

from pathlib import Path
from typing import Any

import numpy as np

from shapespace.io import raw_scan
from shapespace.io.errors import BadFileError
from shapespace.io.raw_scan import RawScan

_CHUNK = 50_000_000  # bytes of points that are decoded at a time
_MIN_RECORD = 54  # bytes of the header of a variable length record
_MIN_CHUNK = 20  # bytes of a chunk of LAZ: its first point is not compressed


def read_las(path: Path) -> RawScan:
    """Points of a LAS or LAZ file, without those that are marked as withheld or as noise."""
    try:
        import laspy
    except ModuleNotFoundError as missing:
        raise _needs(path, "laspy", "las", "las2txt or CloudCompare") from missing
    _check_header(path)
    parts, noisy = [np.zeros((0, 3))], [np.zeros(0, np.bool_)]
    # One thread: the parallel decoder of LAZ believes all sizes in a file, and aborts the process if they are wrong.
    with laspy.open(path, laz_backend=[laspy.LazBackend.Lazrs], read_evlrs=False) as file:
        count = file.header.point_count
        _check_count(path, count)
        if file.header.are_points_compressed:
            _check_chunks(path, file.header.offset_to_point_data)
        for points in file.chunk_iterator(max(_CHUNK // file.header.point_format.size, 1)):
            parts.append(np.column_stack([np.asarray(points[axis], dtype=np.float64) for axis in "xyz"]))
            noisy.append(np.isin(np.asarray(points.classification), (7, 18)))  # low and high noise: LAS 1.4, table 17
    xyz, noise = np.concatenate(parts), np.concatenate(noisy)
    if len(xyz) != count:
        raise BadFileError(
            f"{path}: truncated. The header declares {count:,} points, {len(xyz):,} are readable: copy it again."
        )
    return RawScan(xyz[~noise]) if not noise.all() else RawScan(xyz)


def _check_header(path: Path) -> None:
    """Refuse a header of more bytes than the file has: laspy would allocate them."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(96)
        start, records = (int.from_bytes(file.read(4), "little") for _ in range(2))
    if start > size or records * _MIN_RECORD > size:
        raise BadFileError(
            f"{path}: truncated. The header declares {start:,} bytes and {records:,} records before the points, "
            f"the file has {size:,} bytes: copy it again."
        )


def _check_chunks(path: Path, start: int) -> None:
    """Refuse a table of more chunks than the file can hold: lazrs would allocate it, and abort the process."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(start)
        table = int.from_bytes(file.read(8), "little", signed=True)
        if table == -1:  # written by a stream: the place is at the end
            file.seek(max(size - 8, 0))
            table = int.from_bytes(file.read(8), "little", signed=True)
        file.seek(max(min(table, size), 0))
        head = file.read(8)
    count = int.from_bytes(head[4:], "little")
    if len(head) < 8 or count * _MIN_CHUNK > size:
        raise BadFileError(f"{path}: truncated, or its table of {count:,} chunks is damaged. Copy it again.")


def read_e57(path: Path) -> RawScan:
    """Points of all scans of an E57 file, placed by their poses; the position of each scanner is the sensor."""
    try:
        import pye57
    except ModuleNotFoundError as missing:
        raise _needs(path, "pye57", "e57", "CloudCompare") from missing
    file = pye57.E57(str(path))
    try:
        points, sensors = [], []
        for index in range(file.scan_count):
            header = file.get_header(index)
            _check_count(path, header.point_count)
            columns: dict[str, Any] = file.read_scan(index, ignore_missing_fields=True, transform=True)
            part = np.column_stack([columns[f"cartesian{axis}"] for axis in "XYZ"])
            place = np.asarray(header.translation, dtype=np.float64) if header.has_pose() else np.full(3, np.nan)
            points.append(part)
            sensors.append(np.tile(place, (len(part), 1)))
    finally:
        file.close()
    if not points:
        raise BadFileError(f"{path}: an E57 file without scans. Export the point cloud again.")
    origins = np.concatenate(sensors)
    return RawScan(np.concatenate(points), sensors=origins if np.isfinite(origins).all() else None)


def _check_count(path: Path, count: int) -> None:
    if not 0 <= 24 * count <= raw_scan.MAX_UNPACKED:
        raise BadFileError(
            f"{path}: declares {count:,} points; at most {raw_scan.MAX_UNPACKED // 24:,} are read. Export it again, or "
            "with fewer points."
        )


def _needs(path: Path, package: str, extra: str, program: str) -> BadFileError:
    kind = path.suffix[1:].upper()
    return BadFileError(
        f"{path}: reading {kind} needs the package {package}. Run pip install 'shapespace[{extra}]', or convert it to "
        f"PLY or XYZ ({program})."
    )
