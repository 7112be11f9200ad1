"""Readers of scan files: one function for each format, in a registry by suffix."""

import json
import math
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import trimesh
from trimesh.exchange.ply import load_ply

from shapespace.geometry.camera import DepthImage
from shapespace.io.depth_images import read_capture, read_depth_image
from shapespace.io.errors import BadFileError, damage_as_error

POINT_KEYS = ("points", "vertices", "v", "pos", "v_posed")  # names of the points in an NPZ; the last is that of CAPE
COPY_AGAIN = "Copy it again, or export it as binary PLY with triangles."

_MAX_UNPACKED = 1_000_000_000  # bytes of one array in an NPZ or glTF: a small compressed file can declare any size
_COLUMNS = (2, 3, 4, 6)  # of a table: points in the plane or in space, without normals or with normals
_PLY_BYTES = {
    **dict.fromkeys(b"char uchar int8 uint8".split(), 1),
    **dict.fromkeys(b"short ushort int16 uint16 float16".split(), 2),
    **dict.fromkeys(b"int uint int32 uint32 float float32".split(), 4),
    **dict.fromkeys(b"double float64 int64 uint64".split(), 8),
}


@dataclass
class RawScan:
    """Contents of a file, in its own unit and axes."""

    points: Any
    faces: Any = None
    normals: Any = None
    sensors: Any = None
    quality: Any = None
    """A length for each vertex (PLY property `quality`)."""


Reader = Callable[[Path], RawScan | list[DepthImage]]


def read_raw(path: Path) -> RawScan | list[DepthImage]:
    """Read a file by the reader of its suffix.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The suffix is unknown, or the file is empty, damaged, or no regular file.

    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file. Check the path, and that the dataset was unpacked there.")
    if path.is_dir() or path.suffix.lower() not in READERS:
        reason = "is a folder" if path.is_dir() else f"unknown suffix {path.suffix!r}"
        raise ValueError(f"{path}: {reason}. Pass a file with one of the suffixes {', '.join(sorted(READERS))}.")
    if not path.is_file():
        raise ValueError(f"{path}: is a pipe or a device. Pass a file, or - to read standard input.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: empty (0 bytes). Copy it again.")
    with damage_as_error(path, COPY_AGAIN), warnings.catch_warnings(action="ignore"):
        return READERS[path.suffix.lower()](path)


def readable_suffixes() -> frozenset[str]:
    """Suffixes of the files that can be read, each with its dot."""
    return frozenset(READERS)


def _read_ply(path: Path) -> RawScan:
    """Vertices, faces, normals, `quality`, and the sensor of each vertex (see `write_scan`)."""
    with path.open("rb") as file:
        _check_ply_size(path, file)
        file.seek(0)
        content = load_ply(file, fix_texture=False, skip_materials=True)
    elements = content["metadata"]["_ply_raw"]
    for key, element in elements.items():
        _check_ply_rows(path, key, element)
    if "vertices" not in content:
        raise BadFileError(f"{path}: the header declares no vertices. Copy it again.")
    sensors = None
    if "sensor" in elements and "sensor" in elements["vertex"]["properties"]:
        origins = np.column_stack([elements["sensor"]["data"][axis] for axis in "xyz"])
        sensors = origins[elements["vertex"]["data"]["sensor"].reshape(-1)]
    quality = elements["vertex"]["data"]["quality"] if "quality" in elements["vertex"]["properties"] else None
    return RawScan(content["vertices"], content.get("faces"), content.get("vertex_normals"), sensors, quality)


def _check_ply_size(path: Path, file: BinaryIO) -> None:
    """Refuse a file smaller than its header declares, before memory is allocated."""
    binary, counts, rows = True, [0], [0]  # of each element: the number of rows, and the least bytes of a row
    for line in iter(file.readline, b""):
        words = line.split()
        if words[:1] == [b"format"]:
            binary = words[1] != b"ascii"
        elif words[:1] == [b"element"]:
            counts.append(int(words[2]))
            rows.append(0)
        elif words[:2] == [b"property", b"list"]:
            corners = 3 if words[4].startswith(b"vertex_ind") else 0
            rows[-1] += _PLY_BYTES[words[2]] + corners * _PLY_BYTES[words[3]] if binary else 2 + 2 * corners
        elif words[:1] == [b"property"]:
            rows[-1] += _PLY_BYTES[words[1]] if binary else 2  # at least one digit and one blank
        elif words[:1] == [b"end_header"]:
            break
    else:
        raise BadFileError(f"{path}: truncated inside the header, or not a PLY file. Copy it again.")
    least = file.tell() + sum(count * row for count, row in zip(counts, rows, strict=True)) - (not binary)
    size = path.stat().st_size
    if size < least:
        raise BadFileError(
            f"{path}: truncated. The header declares at least {least:,} bytes and the file has {size:,}: copy it again."
        )


def _check_ply_rows(path: Path, key: str, element: dict[str, Any]) -> None:
    """Refuse an element with fewer rows than declared, or with polygons of different sizes."""
    data = element.get("data")
    columns = list(data.values()) if isinstance(data, dict) else [data] if data is not None else []
    rows = min((len(column) for column in columns), default=0)
    if rows != element["length"]:
        raise BadFileError(
            f"{path}: truncated. The header declares {element['length']:,} rows of {key}, {rows:,} are readable: "
            "copy it again."
        )
    if isinstance(data, np.ndarray) and data.dtype.names:
        lists = [data[field] for field in data.dtype.names if data.dtype[field].names]
        if any(np.ptp(entry["f0"]) for entry in lists if len(entry)):
            raise BadFileError(f"{path}: lists of different length in {key}. Export it as triangles.")


def _read_obj(path: Path) -> RawScan:
    """Vertices in file order, not split at texture seams; polygons become fans."""
    lines: dict[str, list[list[str]]] = {"v": [], "vn": [], "f": []}
    for line in path.read_text(encoding="utf-8", errors="replace").replace("\\\n", " ").splitlines():
        words = line.split()
        if words and words[0] in lines:
            lines[words[0]].append(words[1:])
    points = np.array([words[:3] for words in lines["v"]], dtype=np.float64).reshape(-1, 3)
    normals = np.array([words[:3] for words in lines["vn"]], dtype=np.float64) if lines["vn"] else None
    fans = []
    for words in lines["f"]:
        corners = [int(word.split("/")[0]) for word in words]
        fans += [(corners[0], b, c) for b, c in pairwise(corners[1:])]
    if not fans:
        return RawScan(points, None, normals)
    faces = np.array(fans, dtype=np.int64)
    if (faces == 0).any():
        raise BadFileError(f"{path}: a face has corner 0, and OBJ indices start at 1. Export it again.")
    return RawScan(points, np.where(faces > 0, faces - 1, len(points) + faces))


def _read_scene(path: Path) -> RawScan:
    """All parts of a scene, transformed by the scene graph and concatenated."""
    if path.suffix.lower() in (".glb", ".gltf"):
        _check_gltf(path)
    scene = trimesh.load_scene(str(path), process=False, skip_materials=True)  # images would be read from other files
    points: list[np.ndarray] = [np.zeros((0, 3))]
    faces: list[np.ndarray] = []
    for node in scene.graph.nodes_geometry:
        transform, key = scene.graph[node]
        part = scene.geometry[key]
        corners = np.asarray(getattr(part, "faces", np.zeros((0, 3), dtype=np.int64)))
        mirrored = np.linalg.det(transform[:3, :3]) < 0
        faces.append((corners[:, ::-1] if mirrored else corners) + sum(map(len, points)))
        points.append(trimesh.transform_points(np.asarray(part.vertices), transform))
    joined = np.concatenate(faces) if faces else np.zeros((0, 3), dtype=np.int64)
    return RawScan(np.concatenate(points), joined if len(joined) else None)


def _check_gltf(path: Path) -> None:
    """Refuse arrays of impossible length: trimesh fills arrays without data with zeros."""
    data = path.read_bytes()
    text, place = data, 12
    while data[:4] == b"glTF" and place < len(data):
        length = int.from_bytes(data[place : place + 4], "little")
        if place + 8 + length > len(data):
            raise BadFileError(f"{path}: truncated. A chunk of {length:,} bytes is incomplete: copy the file again.")
        text = data[20 : 20 + length] if place == 12 else text
        place += 8 + length
    for accessor in json.loads(text).get("accessors", []):
        if not 0 <= accessor["count"] <= _MAX_UNPACKED // 24:
            raise BadFileError(
                f"{path}: declares an array of {accessor['count']:,} rows; 0 to {_MAX_UNPACKED // 24:,} are read. "
                "Export it again, or with fewer points."
            )


def _read_npy(path: Path) -> RawScan | list[DepthImage]:
    """Points, points with normals, or a depth image if the array is wider.

    Memory mapping makes NumPy compare the declared shape with the size of the file before it allocates memory.
    """
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim == 2 and array.shape[1] not in _COLUMNS and array.dtype.kind in "fiu":
        return read_depth_image(path)
    return _split_columns(path, np.array(array))


def _read_npz(path: Path) -> RawScan:
    """Points under one of `POINT_KEYS`, and `faces`, `normals`, `sensors` where there are any."""
    _check_npz(path)
    with np.load(path, allow_pickle=False) as arrays:
        keys = [key for key in POINT_KEYS if key in arrays]
        if not keys:
            raise BadFileError(
                f"{path}: contains {', '.join(arrays) or 'nothing'} and none of {', '.join(POINT_KEYS)}. Save the "
                "points under one of these names."
            )
        rest = {key: arrays.get(key) for key in ("faces", "normals", "sensors")}
        return RawScan(arrays[keys[0]], **rest)


def _check_npz(path: Path) -> None:
    """Refuse arrays that are too large or incomplete, before they are decompressed."""
    with zipfile.ZipFile(path) as archive:
        wanted = {f"{key}.npy" for key in (*POINT_KEYS, "faces", "normals", "sensors")}
        for info in (info for info in archive.infolist() if info.filename in wanted):
            with archive.open(info) as member:
                version, _ = np.lib.format.read_magic(member)
                header = np.lib.format.read_array_header_1_0 if version == 1 else np.lib.format.read_array_header_2_0
                shape, _, kind = header(member)
            size = math.prod(shape) * kind.itemsize
            if kind.hasobject:
                continue  # refused by np.load
            if not 0 <= size <= min(info.file_size, _MAX_UNPACKED):
                raise BadFileError(
                    f"{path}: {info.filename} declares {size:,} bytes and contains {info.file_size:,}; at most "
                    f"{_MAX_UNPACKED:,} are read. Save the file again, or with fewer points."
                )


def _read_table(path: Path) -> RawScan:
    """Numbers separated by blanks, commas or semicolons, one point per line."""
    with path.open(encoding="utf-8") as file:
        rows = (line.replace(",", " ").replace(";", " ") for line in file)
        return _split_columns(path, np.loadtxt(rows, dtype=np.float64, ndmin=2))


def _split_columns(path: Path, table: np.ndarray) -> RawScan:
    """Split a table into points and unit normals.

    3 columns are points, 6 are points and normals; 2 and 4 are the same in the plane z = 0.
    """
    if table.ndim != 2 or table.shape[1] not in _COLUMNS:
        raise BadFileError(
            f"{path}: array of shape {table.shape}. Save (n, 3) points or (n, 6) points with normals; (n, 2) or "
            "(n, 4) in the plane."
        )
    space = 3 if table.shape[1] in (3, 6) else 2
    points, normals = (_in_space(part) for part in (table[:, :space], table[:, space:]))
    if table.shape[1] == space:
        return RawScan(points)
    lengths = np.linalg.norm(normals.astype(np.float64), axis=1)
    if len(table) and np.median(lengths) > 1.5:
        raise BadFileError(
            f"{path}: the last {space} of {2 * space} columns are not unit normals (median length "
            f"{np.median(lengths):.3g}). If they are colors, save the coordinates alone."
        )
    return RawScan(points, normals=normals)


def _in_space(columns: np.ndarray) -> np.ndarray:
    """Add a third column of zeros to two columns."""
    return np.pad(columns, ((0, 0), (0, 1))) if columns.shape[1] == 2 else columns


def drop_unmeasured(raw: RawScan) -> RawScan:
    """Remove points that are NaN in all three coordinates, unless there are faces."""
    points = np.asarray(raw.points)
    if points.dtype.kind != "f" or points.ndim != 2 or np.size([] if raw.faces is None else raw.faces):
        return raw
    measured = ~np.isnan(points).all(axis=1)
    if measured.all():
        return raw

    def select(rows: Any) -> Any:
        return np.asarray(rows)[measured] if np.shape(rows)[:1] == measured.shape else rows  # refused by check_rows

    return replace(raw, points=select(points), normals=select(raw.normals), sensors=select(raw.sensors))


def sniff_format(start: bytes) -> str:
    """Suffix of the format that the first bytes of a file indicate, by default `.ply`."""
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return kind
    lines = [line.split() for line in start.splitlines() if line.strip() and not line.startswith(b"#")]
    word = lines[0][0] if lines else b""
    if word in (b"v", b"vn", b"vt", b"f", b"o", b"g", b"s", b"mtllib", b"usemtl"):
        return ".obj"
    return ".xyz" if word[:1] in b"+-.0123456789" and word else ".ply"


_MAGIC = {
    b"ply": ".ply",
    b"\x93NUMPY": ".npy",
    b"PK\x03\x04": ".npz",
    b"glTF": ".glb",
    b"OFF": ".off",
    b"solid": ".stl",
    b"\x89PNG": ".png",
}

# Archives and drawings, and XYZ, which is read as a table.
_NOT_SHAPES = {"zip", "bz2", "tar.gz", "tar.bz2", "dxf", "svg", "xyz"}

# A new format is one function and one line here.
READERS: dict[str, Reader] = {
    **{f".{kind}": _read_scene for kind in trimesh.available_formats() - _NOT_SHAPES},
    ".ply": _read_ply,
    ".obj": _read_obj,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".xyz": _read_table,
    ".txt": _read_table,
    ".csv": _read_table,
    ".png": read_depth_image,
    ".exr": read_depth_image,
    ".json": read_capture,
}
