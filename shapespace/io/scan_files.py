"""Scan and mesh files: the only place that knows their formats.

Inside the program lengths are metres and y is up; unit and up axis are converted here, on the way in and out.
"""

import json
import logging
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import trimesh
from jaxtyping import Float, Int
from PIL import Image
from trimesh import Trimesh
from trimesh.exchange.ply import load_ply
from trimesh.visual import ColorVisuals

from shapespace.geometry.camera import JUMP, Camera, View, joined, metres_per_value
from shapespace.geometry.scan import Scan
from shapespace.io.atomic import replacing

logging.getLogger("trimesh").addHandler(logging.NullHandler())  # what it could not read becomes our sentence

Up = Literal["x", "y", "z", "-x", "-y", "-z"]
Normals = Literal["auto", "require", "drop"]

MIN_POINTS = 100  # fewer cannot describe a body; it also catches files that hold a skeleton or a single marker
POINT_KEYS = ("points", "vertices", "v", "pos", "v_posed")  # of an NPZ; the last is what CAPE says
MAX_UNPACKED = 1_000_000_000  # bytes of an array in an NPZ: a small file may pretend to hold anything
MAX_PIXELS = 10_000_000  # of the depth images of one scan
COLUMNS = (2, 3, 4, 6)  # of a table: points of the plane or of space, without normals or with
UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254}  # metres per file unit
_NOTHING = 1e9  # metres: no depth of an EXR image is as large
CAMERAS = ("camera.json", "intrinsic.json", "camera_intrinsic.json")  # the last two are what Open3D's recorders write

# Rows are the world axes in file axes: each is a turn (no mirror) that brings the file's up axis to +y.
_TURNS: dict[str, list[list[int]]] = {
    "y": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "-y": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
    "z": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
    "-z": [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
    "x": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
    "-x": [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
}
_NOT_SHAPES = {"zip", "bz2", "tar.gz", "tar.bz2", "dxf", "svg", "xyz"}  # archives, drawings, and what we read ourselves


@dataclass
class _Raw:
    """What a file holds, in its own unit and axes."""

    points: Any
    faces: Any = None
    normals: Any = None
    sensors: Any = None
    quality: Any = None
    """A length at each vertex, of PLY."""


def file_name(name: str) -> str:
    """The name of a scan or a split as the stem of a file: of one folder, whatever it says."""
    return name.replace("/", "_") if name.strip(".") else "_" * len(name)


def read_scan(
    path: str | os.PathLike[str],
    *,
    name: str = "",
    unit: float = 1.0,
    up: Up = "y",
    normals: Normals = "auto",
    jump: float = JUMP,
    near: float = 0.0,
    far: float = np.inf,
) -> Scan:
    """Read a scan: any mesh or point file that trimesh reads, NPY, NPZ, XYZ, TXT or CSV, or depth images.

    Arrays and tables hold n rows of 3 (points) or 6 (points, normals); an NPZ names them `points` (or one of
    `POINT_KEYS`), `normals`, `faces`, `sensors`. A PLY may name the sensor of each vertex, as `write_scan` does. The
    parts of a scene are joined where the scene puts them. Points and sensors come back in metres, y up, float32. Rows
    that are NaN throughout, in points without faces, are left out: so do depth cameras say that they measured nothing.

    A depth image is a PNG of 16-bit grey (millimetres) or an NPY (metres, or millimetres as whole numbers) of the size
    that its camera has; the camera is a JSON beside it (see docs/data.md), and may also be given itself: it then means
    all images that it names, as one scan. Without a camera's place in the world, it is level and looks along -z.

    Args:
        path: The file.
        name: The scan's name; that of the file by default.
        unit: Metres per unit of the file; with depth images, of the places of their cameras.
        up: The file's axis that points up.
        normals: `auto` keeps the normals of points without faces, where there are any; `require` refuses a file from
            which no normals can be had (neither faces nor normals); `drop` ignores the file's normals.
        jump: Neighbouring pixels of a depth image that differ by more (metres) are not one surface.
        near: Depths below (metres) are ignored, beside the limits that a camera has of its own.
        far: Depths above (metres) are ignored.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty, damaged, of an unknown kind, or holds no usable scan.

    """
    path = Path(path)
    raw = _read(path)
    if not isinstance(raw, _Raw):
        limited = [replace(view, camera=view.camera.within(near, far)) for view in raw]
        seen = _seen(path, limited, name or path.stem, unit, up, jump)
        return replace(seen, normals=None) if normals == "drop" else seen
    raw = _measured(raw)
    points, faces = _points(path, raw.points, MIN_POINTS), _faces(path, raw.faces, len(raw.points))
    vectors = None if normals == "drop" or faces is not None else _normals(path, raw.normals, len(points))
    if normals == "require" and faces is None and vectors is None:
        raise ValueError(
            f"{path} holds {len(points):,} points without faces or normals, and normals are required. "
            "Use a mesh or a file with normals, or say --normals auto and train without them."
        )
    sensors = None if raw.sensors is None else _rows(path, raw.sensors, "sensors", len(points))
    turn = _turn(up)
    return Scan(
        name or path.stem,
        _moved(path, points, unit * turn),
        None if vectors is None else _moved(path, vectors, turn),
        None if sensors is None else _moved(path, sensors, unit * turn),
        faces,
    )


def read_bytes(
    data: bytes, *, name: str = "stdin", unit: float = 1.0, up: Up = "y", called: str = "standard input"
) -> Scan:
    """Read a scan that came without a path; its first bytes tell the format, and it is PLY if they do not.

    Raises:
        ValueError: As `read_scan`, about what the bytes are `called`; a depth image has no camera there.

    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "stdin" / f"stdin{_sniffed(data[:4096])}"  # a folder of its own: no camera lies above it
        path.parent.mkdir()
        path.write_bytes(data)
        try:
            return read_scan(path, name=name, unit=unit, up=up)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), called)) from error


def read_mesh(path: str | os.PathLike[str], *, unit: float = 1.0, up: Up = "y") -> Trimesh:
    """Read a triangle mesh in metres, y up; the order of the vertices is that of the file (OBJ and PLY).

    The `quality` of a PLY's vertices comes back as the vertex attribute that `write_mesh` wrote, in metres.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty, damaged, of an unknown kind, or has no faces.

    """
    path = Path(path)
    raw = _read(path)
    if not isinstance(raw, _Raw):
        seen = _seen(path, raw, path.stem, unit, up, JUMP)
        return Trimesh(seen.points, seen.faces, process=False)
    points, faces = _points(path, raw.points, 3), _faces(path, raw.faces, len(raw.points))
    if faces is None:
        raise ValueError(f"{path} holds {len(points):,} points and no faces. Choose a file with a mesh.")
    mesh = Trimesh(_moved(path, points, unit * _turn(up)), faces, process=False)
    if raw.quality is not None and len(raw.quality) == len(points):
        mesh.vertex_attributes["quality"] = unit * np.asarray(raw.quality, dtype=np.float64).reshape(-1)
    return mesh


def read_faces(path: str | os.PathLike[str]) -> Int[np.ndarray, "m 3"]:
    """Read only the triangles: of a mesh file, or an NPY of whole numbers (m, 3).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or has no faces.

    """
    path = Path(path)
    if path.suffix.lower() != ".npy":
        return np.asarray(read_mesh(path).faces, dtype=np.int32)
    with _readable(path):
        values = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    faces = _faces(path, values, np.iinfo(np.int32).max)
    if faces is None:
        raise ValueError(f"{path} holds no faces. Copy or download it again.")
    return faces


def write_scan(path: str | os.PathLike[str], scan: Scan, *, unit: float = 1.0, up: Up = "y") -> None:
    """Write a scan as binary PLY, in the given unit and up axis; the file appears complete or not at all.

    Vertices have x, y, z, and where the scan has them nx, ny, nz and `sensor`: the row of the extra element `sensor`
    (x, y, z), which holds each origin once.
    """
    turn = _turn(up).T
    columns: dict[str, np.ndarray] = dict(zip("xyz", _moved(path, scan.points, turn / unit).T, strict=True))
    if scan.normals is not None:
        columns |= dict(zip(("nx", "ny", "nz"), _moved(path, scan.normals, turn).T, strict=True))
    elements: list[tuple[str, dict[str, np.ndarray]]] = [("vertex", columns)]
    if scan.faces is not None:
        elements.append(("face", {"vertex_indices": scan.faces.astype("<i4")}))
    if scan.sensors is not None:
        origins, index = np.unique(scan.sensors, axis=0, return_inverse=True)
        columns["sensor"] = index.reshape(-1).astype("u1" if len(origins) <= 256 else "<i4")
        elements.append(("sensor", dict(zip("xyz", _moved(path, origins, turn / unit).T, strict=True))))
    _write(Path(path), _ply_bytes(elements))


def write_mesh(path: str | os.PathLike[str], mesh: Trimesh, *, unit: float = 1.0, up: Up = "y") -> None:
    """Write a mesh as PLY, OBJ or GLB, by the suffix; the file appears complete or not at all.

    Raises:
        ValueError: The suffix is none of these.

    """
    _write(Path(path), mesh_bytes(mesh, Path(path), unit=unit, up=up))


def mesh_bytes(mesh: Trimesh, path: Path = Path("mesh.ply"), *, unit: float = 1.0, up: Up = "y") -> bytes:
    """Lay out a mesh as `write_mesh` writes it to a file of that name.

    Colours of vertices are kept, and so is, in PLY, a vertex attribute `quality`, which is a length.
    """
    exporters: dict[str, tuple[str, dict[str, Any]]] = {
        ".ply": ("ply", {"vertex_normal": False}),
        ".obj": ("obj", {"include_normals": False}),
        ".glb": ("glb", {"include_normals": False}),
    }
    if path.suffix.lower() not in exporters:
        raise ValueError(
            f"cannot write a mesh as {path}: the suffix {path.suffix!r} is none of {', '.join(exporters)}. Choose one."
        )
    kind, options = exporters[path.suffix.lower()]
    visual = mesh.visual
    colours = visual.vertex_colors if isinstance(visual, ColorVisuals) and visual.kind == "vertex" else None
    vertices = from_world(np.asarray(mesh.vertices), unit=unit, up=up)
    moved = Trimesh(vertices, mesh.faces, process=False, vertex_colors=colours)
    if "quality" in mesh.vertex_attributes:
        moved.vertex_attributes["quality"] = (np.asarray(mesh.vertex_attributes["quality"]) / unit).astype(np.float32)
    data: Any = moved.export(file_type=kind, **options)
    return data.encode() if isinstance(data, str) else bytes(data)


# ------------------------------------------------------------------------------------------------------------- reading


def _read(path: Path) -> _Raw | list[View]:
    """Read the file, after the checks that come before any format."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}. Check the path, and that the data set was unpacked there.")
    readers = _readers()
    if path.is_dir() or path.suffix.lower() not in readers:
        what = "is a folder" if path.is_dir() else f"has the unknown suffix {path.suffix!r}"
        raise ValueError(f"{path} {what}. Give a file whose name ends in one of {', '.join(sorted(readers))}.")
    if not path.is_file():
        raise ValueError(f"{path} is a pipe or a device. Give a file, or - to read standard input.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes). Copy or download it again.")
    with _readable(path), warnings.catch_warnings(action="ignore"):
        return readers[path.suffix.lower()](path)


def _readers() -> dict[str, Callable[[Path], _Raw | list[View]]]:
    """Name a reader for each suffix."""
    ours: dict[str, Callable[[Path], _Raw | list[View]]] = {
        ".ply": _read_ply,
        ".obj": _read_obj,
        ".npy": _read_npy,
        ".npz": _read_npz,
        ".xyz": _read_table,
        ".txt": _read_table,
        ".csv": _read_table,
        ".png": _read_image,
        ".exr": _read_image,
        ".json": _read_capture,
    }
    return {f".{kind}": _read_scene for kind in trimesh.available_formats() - _NOT_SHAPES} | ours


def suffixes() -> frozenset[str]:
    """List the suffixes of files that can be read, with their dots."""
    return frozenset(_readers())


def to_world(vectors: Float[np.ndarray, "n 3"], *, unit: float = 1.0, up: Up = "y") -> Float[np.ndarray, "n 3"]:
    """Bring points of a file's unit (metres per file unit) and up axis into metres, y up; float32."""
    return _moved("points", vectors, unit * _turn(up))


def from_world(vectors: Float[np.ndarray, "n 3"], *, unit: float = 1.0, up: Up = "y") -> Float[np.ndarray, "n 3"]:
    """The way back from `to_world`."""
    return np.asarray(vectors @ (_turn(up) / unit))


class _BadFileError(ValueError):
    """A complete sentence about a bad file, to be passed on as it is."""


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever a parser raises on a damaged file into one sentence that names the file."""
    try:
        yield
    except (_BadFileError, PermissionError):
        raise
    except Exception as error:
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise _BadFileError(
            f"{path} cannot be read as {path.suffix.lower()[1:].upper()} ({what}): it is damaged or of another kind. "
            "Copy or download it again, or save it anew as triangles in binary PLY."
        ) from error


def _read_ply(path: Path) -> _Raw:
    with path.open("rb") as file:
        _check_ply_size(path, file)
        file.seek(0)
        content = load_ply(file, fix_texture=False, skip_materials=True)
    elements = content["metadata"]["_ply_raw"]
    for key, element in elements.items():
        _check_ply_rows(path, key, element)
    if "vertices" not in content:
        raise _BadFileError(f"{path} declares no vertices: there is nothing to read. Copy or download it again.")
    sensors = None
    if "sensor" in elements and "sensor" in elements["vertex"]["properties"]:
        origins = np.column_stack([elements["sensor"]["data"][axis] for axis in "xyz"])
        sensors = origins[elements["vertex"]["data"]["sensor"].reshape(-1)]
    quality = elements["vertex"]["data"]["quality"] if "quality" in elements["vertex"]["properties"] else None
    return _Raw(content["vertices"], content.get("faces"), content.get("vertex_normals"), sensors, quality)


_PLY_BYTES = dict.fromkeys(b"char uchar int8 uint8".split(), 1)
_PLY_BYTES |= dict.fromkeys(b"short ushort int16 uint16 float16".split(), 2)
_PLY_BYTES |= dict.fromkeys(b"int uint int32 uint32 float float32".split(), 4)
_PLY_BYTES |= dict.fromkeys(b"double float64 int64 uint64".split(), 8)


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
            rows[-1] += _PLY_BYTES[words[2]] + corners * _PLY_BYTES[words[3]] if binary else 2 + 2 * corners
        elif words[:1] == [b"property"]:
            rows[-1] += _PLY_BYTES[words[1]] if binary else 2  # a digit and a blank
        elif words[:1] == [b"end_header"]:
            break
    else:
        raise _BadFileError(f"{path} is cut off inside its header or is not a PLY file. Copy or download it again.")
    least = file.tell() + sum(count * row for count, row in zip(counts, rows, strict=True)) - (not binary)
    size = path.stat().st_size
    if size < least:
        raise _BadFileError(
            f"{path} is truncated: what its header declares takes {least:,} bytes or more, and the file has {size:,}. "
            "Copy or download it again."
        )


def _check_ply_rows(path: Path, key: str, element: dict[str, Any]) -> None:
    """Refuse an element that came out shorter than declared, or whose polygons differ in their number of corners."""
    data = element.get("data")
    columns = list(data.values()) if isinstance(data, dict) else [data] if data is not None else []
    rows = min((len(column) for column in columns), default=0)
    if rows != element["length"]:
        raise _BadFileError(
            f"{path} is truncated: its header declares {element['length']:,} of {key}, and {rows:,} could be read. "
            "Copy or download it again."
        )
    if isinstance(data, np.ndarray) and data.dtype.names:
        lists = [data[field] for field in data.dtype.names if data.dtype[field].names]
        if any(np.ptp(entry["f0"]) for entry in lists if len(entry)):
            raise _BadFileError(f"{path} mixes lists of different length in {key}. Save it as triangles only.")


def _read_obj(path: Path) -> _Raw:
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
        return _Raw(points, None, normals)
    faces = np.array(fans, dtype=np.int64)
    if (faces == 0).any():
        raise _BadFileError(f"{path} has a face with corner 0, and OBJ counts from 1. Export it again.")
    return _Raw(points, np.where(faces > 0, faces - 1, len(points) + faces))


def _read_scene(path: Path) -> _Raw:
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
    return _Raw(np.concatenate(points), joined if len(joined) else None)


def _check_gltf(path: Path) -> None:
    """Refuse arrays of impossible length: those without data would be filled with zeros."""
    data = path.read_bytes()
    text, place = data, 12
    while data[:4] == b"glTF" and place < len(data):
        length = int.from_bytes(data[place : place + 4], "little")
        if place + 8 + length > len(data):
            raise _BadFileError(f"{path} is truncated: a part of {length:,} bytes is not all there. Copy it again.")
        text = data[20 : 20 + length] if place == 12 else text
        place += 8 + length
    for accessor in json.loads(text).get("accessors", []):
        if not 0 <= accessor["count"] <= MAX_UNPACKED // 24:
            raise _BadFileError(
                f"{path} declares an array of {accessor['count']:,} rows; 0 to {MAX_UNPACKED // 24:,} are read. "
                "Export it again, or fewer points."
            )


def _read_npy(path: Path) -> _Raw | list[View]:
    # Mapping the file, not loading it, makes numpy compare the declared shape with the size of the file first.
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim == 2 and array.shape[1] not in COLUMNS and array.dtype.kind in "fiu":
        return _read_image(path)
    return _split_columns(path, np.array(array))


def _read_npz(path: Path) -> _Raw:
    _check_npz(path)
    with np.load(path, allow_pickle=False) as arrays:
        keys = [key for key in POINT_KEYS if key in arrays]
        if not keys:
            raise _BadFileError(
                f"{path} holds {', '.join(arrays) or 'nothing'}, and none of {', '.join(POINT_KEYS)}. "
                "Save the points under one of these names."
            )
        rest = {key: arrays.get(key) for key in ("faces", "normals", "sensors")}
        return _Raw(arrays[keys[0]], **rest)


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
                raise _BadFileError(
                    f"{path}: {info.filename} declares {size:,} bytes; it holds {info.file_size:,}, and at most "
                    f"{MAX_UNPACKED:,} are read. Save the file again, or fewer points."
                )


def _read_image(path: Path) -> list[View]:
    about, described = _camera_of(path)
    camera = _camera(about, described)
    return [View(_depths(path, about, described, camera), camera)]


def _read_capture(path: Path) -> list[View]:
    """All depth images that a JSON names, or that of its own name."""
    about = _json(path)
    frames = about.get("frames", [{}])
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise _BadFileError(f"{path}: frames must be a list that names the depth_file_path of each image, one or more.")
    described = [{**about, **frame} for frame in frames]
    images = [_image_of(path, camera) for camera in described]
    cameras = [_camera(path, camera) for camera in described]
    if sum(camera.width * camera.height for camera in cameras) > MAX_PIXELS:
        raise _BadFileError(f"{path} names images of more than {MAX_PIXELS:,} pixels together. Give fewer at once.")
    shots = zip(images, cameras, described, strict=True)
    return [View(_depths(image, path, told, camera), camera) for image, camera, told in shots]


def _image_of(path: Path, camera: dict[str, Any]) -> Path:
    """The depth image that a JSON names, or that of its own name."""
    near = [image.name for image in map(path.with_suffix, (".png", ".npy", ".exr")) if image.exists()]
    name = camera.get("depth_file_path") or (near[0] if near and "frames" not in camera else None)
    if not isinstance(name, str):
        raise _BadFileError(
            f"{path} names no depth image{' for some frame' if 'frames' in camera else ', and none has its name'}. Add "
            '"depth_file_path": the PNG, NPY or EXR, seen from the JSON.'
        )
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise _BadFileError(
            f"{path} names {name}, and only images beside or below it are read. Move it to the folder that holds them."
        )
    return path.parent / name


def _camera_of(image: Path) -> tuple[Path, dict[str, Any]]:
    """The JSON that describes the camera of an image: of its name, or one for the folder or that above (Open3D)."""
    near = [folder / name for folder in (image.parent, image.parent.parent) for name in CAMERAS]
    for path in (image.with_suffix(".json"), *near):
        if path.is_file():
            about = _json(path)
            if "frames" in about:
                raise _BadFileError(f"{image} is one of the images of {path}. Give that file: it is the whole capture.")
            return path, about
    raise _BadFileError(
        f"{image} is a depth image without a camera: there is neither {image.with_suffix('.json').name} beside it nor "
        f"{' or '.join(CAMERAS)} there or in the folder above. Write one with fx, fy, cx, cy, width and height."
    )


def _camera(path: Path, described: dict[str, Any]) -> Camera:
    try:
        return Camera.described(described)
    except ValueError as error:
        raise _BadFileError(f"{path}: {error}") from error


def _depths(image: Path, about: Path, described: dict[str, Any], camera: Camera) -> Float[np.ndarray, "r c"]:
    """The values of an image, in metres."""
    if not image.is_file():
        raise _BadFileError(f"there is no depth image {image}, which {about} describes. Check depth_file_path.")
    with _readable(image):
        if image.suffix.lower() == ".png":
            if not shows_depth(image):
                raise _BadFileError(
                    f"{image} is no PNG of 16-bit grey, as depth images are: colours, or 8 bits, hold no distances. "
                    "Export the depth itself, in millimetres."
                )
            with Image.open(image) as opened:
                _check_size(image, about, opened.size, camera)
                values = np.asarray(opened)
        elif image.suffix.lower() == ".exr":
            values = _exr_values(image, about, camera)
        else:
            mapped = np.load(image, mmap_mode="r", allow_pickle=False)
            if mapped.ndim != 2 or mapped.dtype.kind not in "fiu":
                raise _BadFileError(
                    f"{image} is an array of {mapped.dtype} {mapped.shape}, not numbers (rows, columns). Save it so."
                )
            _check_size(image, about, mapped.shape[::-1], camera)
            values = np.array(mapped)
    try:
        factor = metres_per_value(described, whole=values.dtype.kind != "f")
    except ValueError as error:
        raise _BadFileError(f"{about}: {error}") from error
    with np.errstate(over="ignore"):
        return values.astype(np.float64) * factor


def _exr_values(image: Path, about: Path, camera: Camera) -> Float[np.ndarray, "r c"]:
    """The one channel of an EXR image; 0 where a renderer says that nothing is there (infinity, or Blender's 1e10)."""
    try:
        import OpenEXR
    except ModuleNotFoundError as missing:
        raise _BadFileError(
            f"{image} is an EXR image, and its reader is not installed: pip install 'shapespace[exr]', or save NPY."
        ) from missing
    with OpenEXR.File(str(image), header_only=True) as file:
        low, high = ([int(place) for place in corner] for corner in file.header()["dataWindow"])
        names = [channel.name for channel in file.header()["channels"]]
    _check_size(image, about, (high[0] - low[0] + 1, high[1] - low[1] + 1), camera)
    if len(names) != 1:
        raise _BadFileError(f"{image} has the channels {', '.join(names)[:60]}, and depth is one alone. Save that one.")
    with OpenEXR.File(str(image), separate_channels=True) as file:
        values = np.array(file.channels()[names[0]].pixels)
    return np.where(values < _NOTHING, values, 0)


def _check_size(image: Path, about: Path, size: tuple[int, ...], camera: Camera) -> None:
    """Refuse an image of another size than its camera's, before it is decoded."""
    wide, high = size
    if wide * high > MAX_PIXELS:
        raise _BadFileError(f"{image} has {wide} x {high} pixels, more than {MAX_PIXELS:,}. Give a smaller one.")
    if (wide, high) != (camera.width, camera.height):
        raise _BadFileError(
            f"{image} has {wide} x {high} pixels, and {about} describes {camera.width} x {camera.height}. Give the "
            "camera of this image, in pixels of its size."
        )


def shows_depth(path: Path) -> bool:
    """Whether a PNG is 16-bit grey: depth images are, and pictures and textures are not."""
    with path.open("rb") as file:
        start = file.read(26)
    return start[:8] == b"\x89PNG\r\n\x1a\n" and start[24:26] == bytes([16, 0])


def _json(path: Path) -> dict[str, Any]:
    """A JSON that holds an object."""
    if path.stat().st_size > 10_000_000:
        raise _BadFileError(f"{path} has {path.stat().st_size:,} bytes: that is no description of cameras.")
    with _readable(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise _BadFileError(f"{path} holds no JSON object. Write one with fx, fy, cx, cy, width and height.")
    return content


def _seen(path: Path, views: list[View], name: str, unit: float, up: str, jump: float) -> Scan:
    """The scan that depth images make, in metres, y up."""
    placed = [replace(view, camera=view.camera.placed(_turn(up), unit)) for view in views]
    scan = joined(placed, name, jump=jump)
    if len(scan) < MIN_POINTS:
        measured = np.concatenate([view.depth[view.measured] for view in views])
        ignored = len(measured) - sum(int(view.seen.sum()) for view in views)
        beyond = f" ({ignored:,} of them nearer or farther than the limits allow)" if ignored else ""
        low, high = (measured.min(), measured.max()) if len(measured) else (0, 0)
        raise ValueError(
            f"{path} shows {len(scan)} points of a surface, and at least {MIN_POINTS} are needed: {len(measured):,} "
            f"pixels measured something, at {low:.3g} to {high:.3g} m{beyond}, and neighbours {jump:g} m apart are not "
            "joined. Is it in millimetres, or does its JSON say depth_unit_scale_factor?"
        )
    moved: dict[str, Any] = {of: _moved(path, getattr(scan, of), np.eye(3)) for of in ("points", "normals", "sensors")}
    return replace(scan, **moved)


def _read_table(path: Path) -> _Raw:
    with path.open(encoding="utf-8") as file:
        rows = (line.replace(",", " ").replace(";", " ") for line in file)
        return _split_columns(path, np.loadtxt(rows, dtype=np.float64, ndmin=2))


def _split_columns(path: Path, table: np.ndarray) -> _Raw:
    """Three columns are points, six are points and unit normals; two and four are the same in the plane z = 0."""
    if table.ndim != 2 or table.shape[1] not in COLUMNS:
        raise _BadFileError(
            f"{path} is an array of shape {table.shape}; (n, 3) is points and (n, 6) points with normals, (n, 2) and "
            "(n, 4) are those of a plane. Save these columns only."
        )
    space = 3 if table.shape[1] in (3, 6) else 2
    points, normals = (_in_space(part) for part in (table[:, :space], table[:, space:]))
    if table.shape[1] == space:
        return _Raw(points)
    lengths = np.linalg.norm(normals.astype(np.float64), axis=1)
    if len(table) and np.median(lengths) > 1.5:
        raise _BadFileError(
            f"{path} has {2 * space} columns, and the last {space} are no unit normals (median length "
            f"{np.median(lengths):.3g}). Are they colours? Save the coordinates alone."
        )
    return _Raw(points, normals=normals)


def _in_space(columns: np.ndarray) -> np.ndarray:
    """Two columns get a third of zeros."""
    return np.pad(columns, ((0, 0), (0, 1))) if columns.shape[1] == 2 else columns


# ------------------------------------------------------------------------------------------------------------ checking


def _rows(path: Path, values: Any, what: str, count: int | None = None) -> Float[np.ndarray, "n 3"]:
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


def _measured(raw: _Raw) -> _Raw:
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


def _points(path: Path, values: Any, least: int) -> Float[np.ndarray, "n 3"]:
    points = _rows(path, values, "points")
    if len(points) < least:
        raise ValueError(f"{path} holds {len(points)} points, and at least {least} are needed. Is it the right file?")
    if not np.ptp(points, axis=0).any():
        raise ValueError(f"{path}: all {len(points):,} points are the same, {points[0]}. Export the file again.")
    return points


def _faces(path: Path, values: Any, count: int) -> Int[np.ndarray, "m 3"] | None:
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


def _normals(path: Path, values: Any, count: int) -> Float[np.ndarray, "n 3"] | None:
    """Check the normals and make them unit vectors; None if the file has none."""
    if values is None:
        return None
    normals = _rows(path, values, "normals", count)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    bad = int((lengths < 1e-6).sum())
    if bad:
        raise ValueError(
            f"{path}: {bad:,} of {count:,} normals have length zero. "
            "Compute them anew, or say --normals drop to use the points alone."
        )
    return np.asarray(normals / lengths)


def _turn(up: str) -> Float[np.ndarray, "3 3"]:
    if up not in _TURNS:
        raise ValueError(f"up axis {up!r} is none of {', '.join(_TURNS)}. Name the axis of the file that points up.")
    return np.array(_TURNS[up], dtype=np.float64)


def _moved(
    path: str | os.PathLike[str], vectors: Float[np.ndarray, "n 3"], matrix: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "n 3"]:
    """`matrix` applied to each row, float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        moved = (vectors.astype(np.float64) @ matrix.T).astype(np.float32)
    if not np.isfinite(moved).all():
        raise ValueError(
            f"{path}: coordinates of {np.abs(vectors).max():.3g} are too large for float32. Is the file damaged?"
        )
    return np.asarray(moved)


def _sniffed(start: bytes) -> str:
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


# ------------------------------------------------------------------------------------------------------------- writing


def _ply_bytes(elements: list[tuple[str, dict[str, np.ndarray]]]) -> bytes:
    """Lay out a binary little-endian PLY; a column of shape (n, k) becomes a list of k."""
    names = {"u1": "uchar", "i4": "int", "f4": "float"}
    header, blocks = ["ply", "format binary_little_endian 1.0"], []
    for key, columns in elements:
        header.append(f"element {key} {len(next(iter(columns.values())))}")
        fields: list[Any] = []
        for name, column in columns.items():
            kind, listed = column.dtype.str[1:], column.ndim == 2
            header.append(f"property {'list uchar ' if listed else ''}{names[kind]} {name}")
            fields += [(f"{name} count", "u1"), (name, "<" + kind, column.shape[1])] if listed else [(name, "<" + kind)]
        block = np.zeros(len(next(iter(columns.values()))), dtype=fields)
        for name, column in columns.items():
            block[name] = column
            if column.ndim == 2:
                block[f"{name} count"] = column.shape[1]
        blocks.append(block.tobytes())
    return "\n".join([*header, "end_header\n"]).encode() + b"".join(blocks)


def write_curves(path: str | os.PathLike[str], curves: Sequence[Float[np.ndarray, "k 2"]]) -> None:
    """Write polylines of the plane as SVG, in their own unit; y points up."""
    low, high = (kind([kind(curve, axis=0) for curve in curves], axis=0) for kind in (np.min, np.max))
    margin = 0.05 * float((high - low).max())
    x, y, width, height = (float(value) for value in (*(low - margin), *(high - low + 2 * margin)))
    ways = [" L".join(f"{a:.6g},{b:.6g}" for a, b in curve) for curve in curves]
    text = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{x:.6g} {-y - height:.6g} {width:.6g} {height:.6g}">',
        f'<g transform="scale(1 -1)" fill="none" stroke="black" stroke-width="{0.1 * margin:.3g}">',
        *(f'<path d="M{way}"/>' for way in ways),
        "</g>\n</svg>\n",
    ]
    _write(Path(path), "\n".join(text).encode())


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as part:
        part.write_bytes(data)
