"""Reader of PCD, the format of the Point Cloud Library: text, binary and compressed.

Of the packages on PyPI only pypcd4 is maintained; it requires pydantic and an LZF of its own, and believes the counts
of a header. h5py, which is installed anyway, contains LZF.
"""

from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from shapespace.io import raw_scan
from shapespace.io.errors import BadFileError
from shapespace.io.raw_scan import NOT_A_NUMBER_BYTES, RawScan

_KINDS = {"F": "f", "I": "i", "U": "u"}
_MAX_HEADER = 100  # lines


def read_pcd(path: Path) -> RawScan:
    """Points, and normals under normal_x, normal_y and normal_z; of an organized cloud too."""
    with path.open("rb") as file:
        header = _read_header(path, file)
        sizes, counts = ([int(word) for word in header[key]] for key in ("SIZE", "COUNT"))
        kinds = [f"<{_KINDS[kind]}{size}" for kind, size in zip(header["TYPE"], sizes, strict=True)]
        fields = [
            (f"{index} {name.lower()}", kind, (count,))
            for index, (name, kind, count) in enumerate(zip(header["FIELDS"], kinds, counts, strict=True))
        ]
        row, points = np.dtype(fields), int(header["POINTS"][0])
        if not 0 <= points * row.itemsize <= raw_scan.MAX_UNPACKED:
            raise BadFileError(
                f"{path}: declares {points:,} points of {row.itemsize} bytes; at most {raw_scan.MAX_UNPACKED:,} bytes "
                "are read. Export it again, or with fewer points."
            )
        columns = _READERS[header["DATA"][0].lower()](path, file.read(), row, points)
    names = {name.split(" ", 1)[1]: name for name in row.names or ()}

    def matrix(*wanted: str) -> np.ndarray | None:
        if not all(name in names for name in wanted):
            return None
        return np.column_stack([columns[names[name]][:, 0] for name in wanted])

    found = matrix("x", "y", "z")
    if found is None:
        raise BadFileError(f"{path}: fields {', '.join(header['FIELDS'])[:60]} without x, y and z. Export it again.")
    confidence = matrix("confidence")
    return RawScan(found, normals=matrix("normal_x", "normal_y", "normal_z"), confidence=confidence)


def _read_header(path: Path, file: BinaryIO) -> dict[str, list[str]]:
    """The words of each line up to DATA, by the first of them."""
    header: dict[str, list[str]] = {}
    for _ in range(_MAX_HEADER):
        words = file.readline(100_000).decode("latin-1").split()
        if words and not words[0].startswith("#"):
            header[words[0].upper()] = words[1:]
        if "DATA" in header:
            break
    header.setdefault("FIELDS", header.get("COLUMNS", []))  # the name before version 0.6
    header.setdefault("COUNT", ["1"] * len(header["FIELDS"]))
    if "POINTS" not in header and {"WIDTH", "HEIGHT"} <= header.keys():
        header["POINTS"] = [str(int(header["WIDTH"][0]) * int(header["HEIGHT"][0]))]
    missing = [key for key in ("FIELDS", "SIZE", "TYPE", "POINTS", "DATA") if not header.get(key)]
    if missing:
        raise BadFileError(f"{path}: truncated inside the header, or not a PCD file (no {missing[0]}). Copy it again.")
    return header


def _text(path: Path, body: bytes, row: np.dtype, points: int) -> dict[str, np.ndarray]:
    if b"(" in body or b"#" in body:
        body = NOT_A_NUMBER_BYTES.sub(b"nan", body)
    values = np.fromstring(body, np.float64, sep=" ")
    width = sum(kind[0].shape[0] for kind in (row.fields or {}).values())
    if len(values) < points * width:
        raise _truncated(path, points * width, len(values), "numbers")
    table, columns, start = values[: points * width].reshape(points, width), {}, 0
    for name in row.names or ():
        size = row[name].shape[0]
        columns[name] = table[:, start : start + size]
        start += size
    return columns


def _binary(path: Path, body: bytes, row: np.dtype, points: int) -> dict[str, np.ndarray]:
    if len(body) < points * row.itemsize:
        raise _truncated(path, points * row.itemsize, len(body), "bytes of points")
    rows = np.frombuffer(body, row, points)
    return {name: rows[name] for name in row.names or ()}


def _compressed(path: Path, body: bytes, row: np.dtype, points: int) -> dict[str, np.ndarray]:
    """The sizes of the packed and the unpacked data, then the packed data: field after field."""
    packed, size = (int.from_bytes(body[start : start + 4], "little") for start in (0, 4))
    if len(body) < 8 + packed:
        raise _truncated(path, 8 + packed, len(body), "bytes of points")
    if size != points * row.itemsize:
        raise BadFileError(
            f"{path}: {size:,} bytes of points, but the header declares {points * row.itemsize:,}. Export it again."
        )
    data, columns, start = unpack_lzf(body[8 : 8 + packed], size), {}, 0
    for name in row.names or ():
        kind = row[name]
        columns[name] = np.frombuffer(data, kind.base, points * kind.shape[0], start).reshape(points, -1)
        start += points * kind.itemsize
    return columns


_READERS = {"ascii": _text, "binary": _binary, "binary_compressed": _compressed}


def unpack_lzf(data: bytes, size: int) -> bytes:
    """Unpack LZF, by the filter of HDF5 for it: the data become the only chunk of a file in memory.

    Raises:
        OSError: The data are damaged.

    """
    if not size:
        return b""
    with h5py.File("lzf", "w", driver="core", backing_store=False) as file:
        stored = file.create_dataset("data", (size,), np.uint8, chunks=(size,), compression="lzf")
        stored.id.write_direct_chunk((0,), data)
        return bytes(stored[:])


def _truncated(path: Path, declared: int, present: int, what: str) -> BadFileError:
    return BadFileError(
        f"{path}: truncated. The header declares {declared:,} {what} and the file has {present:,}: copy it again."
    )
