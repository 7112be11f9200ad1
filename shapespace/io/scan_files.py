"""Scan and mesh files: the only place that knows their formats.

Inside the program lengths are metres and y is up; unit and up axis are converted here, on the way in and out.
"""

import logging
import os
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Int
from trimesh import Trimesh
from trimesh.visual import ColorVisuals

from shapespace.geometry.camera import MAX_DEPTH_JUMP, DepthImage
from shapespace.geometry.scan import MIN_POINTS, Scan
from shapespace.io.atomic import replacing
from shapespace.io.checks import Normals, check_faces, check_normals, check_points, check_rows
from shapespace.io.depth_images import scan_of_depth_images
from shapespace.io.errors import damage_as_error
from shapespace.io.formats import PLY_BYTES, RawScan, drop_unmeasured, readers, sniff_format
from shapespace.io.units import Up, axis_rotation, from_world, transform

logging.getLogger("trimesh").addHandler(logging.NullHandler())  # what it could not read becomes our sentence


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
    max_depth_jump: float = MAX_DEPTH_JUMP,
    min_depth: float = 0.0,
    max_depth: float = np.inf,
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
    if not isinstance(raw, RawScan):
        limited = [replace(view, camera=view.camera.with_limits(min_depth, max_depth)) for view in raw]
        seen = scan_of_depth_images(path, limited, name or path.stem, unit, up, max_depth_jump)
        return replace(seen, normals=None) if normals == "drop" else seen
    raw = drop_unmeasured(raw)
    points, faces = check_points(path, raw.points, MIN_POINTS), check_faces(path, raw.faces, len(raw.points))
    vectors = None if normals == "drop" or faces is not None else check_normals(path, raw.normals, len(points))
    if normals == "require" and faces is None and vectors is None:
        raise ValueError(
            f"{path} holds {len(points):,} points without faces or normals, and normals are required. "
            "Use a mesh or a file with normals, or say --normals auto and train without them."
        )
    sensors = None if raw.sensors is None else check_rows(path, raw.sensors, "sensors", len(points))
    turn = axis_rotation(up)
    return Scan(
        name or path.stem,
        transform(path, points, unit * turn),
        None if vectors is None else transform(path, vectors, turn),
        None if sensors is None else transform(path, sensors, unit * turn),
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
        path = (
            Path(folder) / "stdin" / f"stdin{sniff_format(data[:4096])}"
        )  # a folder of its own: no camera lies above it
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
    if not isinstance(raw, RawScan):
        seen = scan_of_depth_images(path, raw, path.stem, unit, up, MAX_DEPTH_JUMP)
        return Trimesh(seen.points, seen.faces, process=False)
    points, faces = check_points(path, raw.points, 3), check_faces(path, raw.faces, len(raw.points))
    if faces is None:
        raise ValueError(f"{path} holds {len(points):,} points and no faces. Choose a file with a mesh.")
    mesh = Trimesh(transform(path, points, unit * axis_rotation(up)), faces, process=False)
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
    with damage_as_error(path):
        values = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    faces = check_faces(path, values, np.iinfo(np.int32).max)
    if faces is None:
        raise ValueError(f"{path} holds no faces. Copy or download it again.")
    return faces


def write_scan(path: str | os.PathLike[str], scan: Scan, *, unit: float = 1.0, up: Up = "y") -> None:
    """Write a scan as binary PLY, in the given unit and up axis; the file appears complete or not at all.

    Vertices have x, y, z, and where the scan has them nx, ny, nz and `sensor`: the row of the extra element `sensor`
    (x, y, z), which holds each origin once.
    """
    turn = axis_rotation(up).T
    columns: dict[str, np.ndarray] = dict(zip("xyz", transform(path, scan.points, turn / unit).T, strict=True))
    if scan.normals is not None:
        columns |= dict(zip(("nx", "ny", "nz"), transform(path, scan.normals, turn).T, strict=True))
    elements: list[tuple[str, dict[str, np.ndarray]]] = [("vertex", columns)]
    if scan.faces is not None:
        elements.append(("face", {"vertex_indices": scan.faces.astype("<i4")}))
    if scan.sensors is not None:
        origins, index = np.unique(scan.sensors, axis=0, return_inverse=True)
        columns["sensor"] = index.reshape(-1).astype("u1" if len(origins) <= 256 else "<i4")
        elements.append(("sensor", dict(zip("xyz", transform(path, origins, turn / unit).T, strict=True))))
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


def _read(path: Path) -> RawScan | list[DepthImage]:
    """Read the file, after the checks that come before any format."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}. Check the path, and that the data set was unpacked there.")
    known = readers()
    if path.is_dir() or path.suffix.lower() not in known:
        what = "is a folder" if path.is_dir() else f"has the unknown suffix {path.suffix!r}"
        raise ValueError(f"{path} {what}. Give a file whose name ends in one of {', '.join(sorted(known))}.")
    if not path.is_file():
        raise ValueError(f"{path} is a pipe or a device. Give a file, or - to read standard input.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes). Copy or download it again.")
    with damage_as_error(path), warnings.catch_warnings(action="ignore"):
        return known[path.suffix.lower()](path)


PLY_BYTES |= dict.fromkeys(b"short ushort int16 uint16 float16".split(), 2)
PLY_BYTES |= dict.fromkeys(b"int uint int32 uint32 float float32".split(), 4)
PLY_BYTES |= dict.fromkeys(b"double float64 int64 uint64".split(), 8)


# ------------------------------------------------------------------------------------------------------------ checking


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


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as part:
        part.write_bytes(data)
