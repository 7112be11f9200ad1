"""Readers of scan files: one function for each format, found by suffix."""

import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from trimesh.exchange.ply import load_ply

from shapespace.geometry.camera import DepthImage
from shapespace.io.depth_images import read_capture, read_depth_image
from shapespace.io.errors import BadFileError

POINT_KEYS = ("points", "vertices", "v", "pos", "v_posed")  # of an NPZ; the last is what CAPE says


MAX_UNPACKED = 1_000_000_000  # bytes of an array in an NPZ: a small file may pretend to hold anything


COLUMNS = (2, 3, 4, 6)  # of a table: points of the plane or of space, without normals or with


_NOT_SHAPES = {"zip", "bz2", "tar.gz", "tar.bz2", "dxf", "svg", "xyz"}  # archives, drawings, and what we read ourselves


@dataclass
class RawScan:
    """What a file holds, in its own unit and axes."""

    points: Any
    faces: Any = None
    normals: Any = None
    sensors: Any = None
    quality: Any = None
    """A length at each vertex, of PLY."""


def readers() -> dict[str, Callable[[Path], RawScan | list[DepthImage]]]:
    """Name a reader for each suffix."""
    ours: dict[str, Callable[[Path], RawScan | list[DepthImage]]] = {
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
    return {f".{kind}": _read_scene for kind in trimesh.available_formats() - _NOT_SHAPES} | ours


def readable_suffixes() -> frozenset[str]:
    """List the suffixes of files that can be read, with their dots."""
    return frozenset(readers())


def _read_ply(path: Path) -> RawScan:
    with path.open("rb") as file:
        _check_ply_size(path, file)
        file.seek(0)
        content = load_ply(file, fix_texture=False, skip_materials=True)
    elements = content["metadata"]["_ply_raw"]
    for key, element in elements.items():
        _check_ply_rows(path, key, element)
    if "vertices" not in content:
        raise BadFileError(f"{path} declares no vertices: there is nothing to read. Copy or download it again.")
    sensors = None
    if "sensor" in elements and "sensor" in elements["vertex"]["properties"]:
        origins = np.column_stack([elements["sensor"]["data"][axis] for axis in "xyz"])
        sensors = origins[elements["vertex"]["data"]["sensor"].reshape(-1)]
    quality = elements["vertex"]["data"]["quality"] if "quality" in elements["vertex"]["properties"] else None
    return RawScan(content["vertices"], content.get("faces"), content.get("vertex_normals"), sensors, quality)


PLY_BYTES = dict.fromkeys(b"char uchar int8 uint8".split(), 1)


def _check_ply_size(path: Path, file: Any) -> None:
    """Refuse a file that cannot hold what its header declares, before anything of that size is asked for."""
    binary, counts, rows = True, [0], [0]  # for each element how many, and how many bytes one takes at the least
    for line in iter(file.readline, b""):
        words = line.split()
        if words[:1] == [b"format"]:
            binary = words[1] != b"ascii"
        elif words[:1] == [b"element"]:
            counts.append(int(words[2]))
            rows.append(0)
        elif words[:2] == [b"property", b"list"]:
            corners = 3 if words[4].startswith(b"vertex_ind") else 0
            rows[-1] += PLY_BYTES[words[2]] + corners * PLY_BYTES[words[3]] if binary else 2 + 2 * corners
        elif words[:1] == [b"property"]:
            rows[-1] += PLY_BYTES[words[1]] if binary else 2  # a digit and a blank
        elif words[:1] == [b"end_header"]:
            break
    else:
        raise BadFileError(f"{path} is cut off inside its header or is not a PLY file. Copy or download it again.")
    least = file.tell() + sum(count * row for count, row in zip(counts, rows, strict=True)) - (not binary)
    size = path.stat().st_size
    if size < least:
        raise BadFileError(
            f"{path} is truncated: what its header declares takes {least:,} bytes or more, and the file has {size:,}. "
            "Copy or download it again."
        )


def _check_ply_rows(path: Path, key: str, element: dict[str, Any]) -> None:
    """Refuse an element that came out shorter than declared, or whose polygons differ in their number of corners."""
    data = element.get("data")
    columns = list(data.values()) if isinstance(data, dict) else [data] if data is not None else []
    rows = min((len(column) for column in columns), default=0)
    if rows != element["length"]:
        raise BadFileError(
            f"{path} is truncated: its header declares {element['length']:,} of {key}, and {rows:,} could be read. "
            "Copy or download it again."
        )
    if isinstance(data, np.ndarray) and data.dtype.names:
        lists = [data[field] for field in data.dtype.names if data.dtype[field].names]
        if any(np.ptp(entry["f0"]) for entry in lists if len(entry)):
            raise BadFileError(f"{path} mixes lists of different length in {key}. Save it as triangles only.")


def _read_obj(path: Path) -> RawScan:
    """Vertices in the order of the file (texture seams do not split them), polygons as fans of triangles."""
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
        raise BadFileError(f"{path} has a face with corner 0, and OBJ counts from 1. Export it again.")
    return RawScan(points, np.where(faces > 0, faces - 1, len(points) + faces))


def _read_scene(path: Path) -> RawScan:
    """All parts of a scene, each where the scene puts it."""
    if path.suffix.lower() in (".glb", ".gltf"):
        _check_gltf(path)
    scene = trimesh.load_scene(str(path), process=False, skip_materials=True)  # no images: they lie in other files
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
    """Refuse arrays of impossible length: those without data would be filled with zeros."""
    data = path.read_bytes()
    text, place = data, 12
    while data[:4] == b"glTF" and place < len(data):
        length = int.from_bytes(data[place : place + 4], "little")
        if place + 8 + length > len(data):
            raise BadFileError(f"{path} is truncated: a part of {length:,} bytes is not all there. Copy it again.")
        text = data[20 : 20 + length] if place == 12 else text
        place += 8 + length
    for accessor in json.loads(text).get("accessors", []):
        if not 0 <= accessor["count"] <= MAX_UNPACKED // 24:
            raise BadFileError(
                f"{path} declares an array of {accessor['count']:,} rows; 0 to {MAX_UNPACKED // 24:,} are read. "
                "Export it again, or fewer points."
            )


def _read_npy(path: Path) -> RawScan | list[DepthImage]:
    # Mapping the file, not loading it, makes numpy compare the declared shape with the size of the file first.
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim == 2 and array.shape[1] not in COLUMNS and array.dtype.kind in "fiu":
        return read_depth_image(path)
    return _split_columns(path, np.array(array))


def _read_npz(path: Path) -> RawScan:
    _check_npz(path)
    with np.load(path, allow_pickle=False) as arrays:
        keys = [key for key in POINT_KEYS if key in arrays]
        if not keys:
            raise BadFileError(
                f"{path} holds {', '.join(arrays) or 'nothing'}, and none of {', '.join(POINT_KEYS)}. "
                "Save the points under one of these names."
            )
        rest = {key: arrays.get(key) for key in ("faces", "normals", "sensors")}
        return RawScan(arrays[keys[0]], **rest)


def _check_npz(path: Path) -> None:
    """Refuse arrays that are too large unpacked, or larger than what is packed, before they are unpacked."""
    with zipfile.ZipFile(path) as archive:
        wanted = {f"{key}.npy" for key in (*POINT_KEYS, "faces", "normals", "sensors")}
        for info in (info for info in archive.infolist() if info.filename in wanted):
            with archive.open(info) as member:
                version, _ = np.lib.format.read_magic(member)
                header = np.lib.format.read_array_header_1_0 if version == 1 else np.lib.format.read_array_header_2_0
                shape, _, kind = header(member)
            size = math.prod(shape) * kind.itemsize
            if kind.hasobject:
                continue  # numpy refuses it
            if not 0 <= size <= min(info.file_size, MAX_UNPACKED):
                raise BadFileError(
                    f"{path}: {info.filename} declares {size:,} bytes; it holds {info.file_size:,}, and at most "
                    f"{MAX_UNPACKED:,} are read. Save the file again, or fewer points."
                )


def _read_table(path: Path) -> RawScan:
    with path.open(encoding="utf-8") as file:
        rows = (line.replace(",", " ").replace(";", " ") for line in file)
        return _split_columns(path, np.loadtxt(rows, dtype=np.float64, ndmin=2))


def _split_columns(path: Path, table: np.ndarray) -> RawScan:
    """Three columns are points, six are points and unit normals; two and four are the same in the plane z = 0."""
    if table.ndim != 2 or table.shape[1] not in COLUMNS:
        raise BadFileError(
            f"{path} is an array of shape {table.shape}; (n, 3) is points and (n, 6) points with normals, (n, 2) and "
            "(n, 4) are those of a plane. Save these columns only."
        )
    space = 3 if table.shape[1] in (3, 6) else 2
    points, normals = (_in_space(part) for part in (table[:, :space], table[:, space:]))
    if table.shape[1] == space:
        return RawScan(points)
    lengths = np.linalg.norm(normals.astype(np.float64), axis=1)
    if len(table) and np.median(lengths) > 1.5:
        raise BadFileError(
            f"{path} has {2 * space} columns, and the last {space} are no unit normals (median length "
            f"{np.median(lengths):.3g}). Are they colours? Save the coordinates alone."
        )
    return RawScan(points, normals=normals)


def _in_space(columns: np.ndarray) -> np.ndarray:
    """Two columns get a third of zeros."""
    return np.pad(columns, ((0, 0), (0, 1))) if columns.shape[1] == 2 else columns


def drop_unmeasured(raw: RawScan) -> RawScan:
    """Without the points that are NaN in all three coordinates, unless there are faces that count them."""
    points = np.asarray(raw.points)
    if points.dtype.kind != "f" or points.ndim != 2 or np.size([] if raw.faces is None else raw.faces):
        return raw
    there = ~np.isnan(points).all(axis=1)
    if there.all():
        return raw

    def kept(rows: Any) -> Any:
        return np.asarray(rows)[there] if np.shape(rows)[:1] == there.shape else rows  # others are refused below

    return replace(raw, points=kept(points), normals=kept(raw.normals), sensors=kept(raw.sensors))


def sniff_format(start: bytes) -> str:
    """The suffix that goes with the first bytes of a file."""
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
