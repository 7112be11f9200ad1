"""Reading and writing of scan and mesh files; unit and up axis are converted here.

In the program lengths are meters and y is up.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from trimesh import Scene, Trimesh
from trimesh.visual import ColorVisuals

from shapespace.geometry.camera import MAX_DEPTH_JUMP
from shapespace.geometry.scan import MIN_POINTS, Scan
from shapespace.io.atomic import replacing
from shapespace.io.checks import Normals, check_faces, check_normals, check_points, check_rows
from shapespace.io.cleaning import clean
from shapespace.io.containers import CONTAINERS
from shapespace.io.depth_images import scan_of_depth_images
from shapespace.io.errors import damage_as_error
from shapespace.io.formats import read_raw, readable_suffixes, sniff_format
from shapespace.io.raw_scan import COPY_AGAIN, RawScan
from shapespace.io.units import (
    UNITS,
    Unit,
    UnitName,
    Up,
    axis_rotation,
    find_origin,
    from_world,
    share_origin,
    to_meters,
    transform,
)

MeshFormat = Literal["ply", "obj", "glb"]
"""Suffixes that `write_mesh` writes."""

_EXPORTERS: dict[str, dict[str, Any]] = {
    "ply": {"vertex_normal": False},
    "obj": {"include_normals": False},
    "glb": {"include_normals": False},
}

logging.getLogger("trimesh").addHandler(logging.NullHandler())  # its warnings are repeated in our errors


def file_name(name: str) -> str:
    """File stem for the name of a scan or a split; it never leads to another folder."""
    return name.replace("/", "_") if name.strip(".") else "_" * len(name)


def stem(path: str | os.PathLike[str]) -> str:
    """Name of a file without the suffix of its format, and without that of a container around it (`.gz`, `.zip`)."""
    name = Path(Path(path).name)
    if name.suffix.lower() not in CONTAINERS:
        return name.stem
    inner = Path(name.stem)
    return inner.stem if inner.suffix.lower() in readable_suffixes() else inner.name


# ------------------------------------------------------------------------------------------------------------- reading


def read_scan(
    path: str | os.PathLike[str],
    *,
    name: str = "",
    unit: float | Literal["auto"] = 1.0,
    up: Up = "y",
    normals: Normals = "auto",
    max_depth_jump: float = MAX_DEPTH_JUMP,
    min_depth: float = 0.0,
    max_depth: float = np.inf,
) -> Scan:
    """Read a scan from a mesh, a point file, an array, a table, or depth images.

    Formats: those of trimesh, NPY, NPZ, XYZ, TXT, CSV, and depth images as PNG, NPY or EXR. Points and sensors are
    returned in meters, y up, float32. Arrays and tables have n rows of 3 (points) or 6 (points, normals) columns; an
    NPZ names them `points` (or another of `POINT_KEYS`), `normals`, `faces`, `sensors`. A PLY can give the sensor of
    each vertex, as `write_scan` does. The parts of a scene are transformed and concatenated. Rows that are all NaN, in
    points without faces, are removed: depth cameras mark missing measurements so.

    A depth image is a 16-bit grayscale PNG (millimeters), an EXR (meters) or an NPY (meters, or integer millimeters).
    Its camera is a JSON beside it, see docs/guide/depth_images.md. A JSON can be passed too: all its images are one
    scan. A camera without a pose is level and looks along -z.

    Args:
        path: The file.
        name: Name of the scan; by default the file stem.
        unit: Meters per file unit, or `auto`: see `guess_unit`. For depth images it is the unit of the camera poses.
        up: Axis of the file that points up.
        normals: `auto` uses the normals of points without faces, where there are any; `require` refuses a file with
            neither faces nor normals; `drop` ignores the normals of the file.
        max_depth_jump: Maximum depth difference of neighboring pixels on one surface (meters).
        min_depth: Minimum depth (meters); the limits of the camera apply too.
        max_depth: Maximum depth (meters).

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is empty, damaged, of an unknown format, or has no usable scan.

    """
    path = Path(path)
    if unit == "auto":
        scan = read_scan(
            path,
            name=name,
            up=up,
            normals=normals,
            max_depth_jump=max_depth_jump,
            min_depth=min_depth,
            max_depth=max_depth,
        )
        return to_meters([scan])[0][0]
    raw = read_raw(path)
    if isinstance(raw, RawScan):
        return _scan_of_points(path, raw, name or stem(path), unit, up, normals)
    limited = [replace(view, camera=view.camera.with_limits(min_depth, max_depth)) for view in raw]
    scan = scan_of_depth_images(path, limited, name or stem(path), unit, up, max_depth_jump)
    return replace(scan, normals=None) if normals == "drop" else scan


def _scan_of_points(path: Path, raw: RawScan, name: str, unit: float, up: Up, normals: Normals) -> Scan:
    """Check the contents of a file and convert them to meters, y up."""
    if normals == "drop":
        raw = replace(raw, normals=None)
    single = np.asarray(raw.points).dtype == np.float32
    raw = clean(raw)
    points, faces = check_points(path, raw.points, MIN_POINTS), check_faces(path, raw.faces, len(raw.points))
    vectors = None if faces is not None else check_normals(path, raw.normals, len(points))
    if normals == "require" and faces is None and vectors is None:
        raise ValueError(
            f"{path}: {len(points):,} points without faces or normals (--normals require). Pass a file with faces or "
            "normals, or --normals auto."
        )
    sensors = None if raw.sensors is None else check_rows(path, raw.sensors, "sensors", len(points))
    origin, rotation = find_origin(points, single=single), axis_rotation(up)
    start = np.zeros(3) if origin is None else origin.point
    return Scan(
        name,
        transform(path, points - start, unit * rotation),
        None if vectors is None else transform(path, vectors, rotation),
        None if sensors is None else transform(path, sensors - start, unit * rotation),
        faces,
        origin=None if origin is None else unit * rotation @ start,
        findings=raw.findings if origin is None else (*raw.findings, *origin.findings),
    )


def read_scans(
    paths: Sequence[str | os.PathLike[str]],
    *,
    unit: Literal["auto"] | UnitName = "auto",
    up: Up = "y",
    normals: Normals = "auto",
) -> tuple[list[Scan], Unit]:
    """Read scans that share one unit and one origin: in meters, y up, and the unit of the files.

    `auto` guesses the unit from all scans together; a given unit has confidence 1. Raises as `read_scan` does.
    """
    meters = 1.0 if unit == "auto" else UNITS[unit]
    scans = [read_scan(path, unit=meters, up=up, normals=normals) for path in paths]
    scans, found = to_meters(scans) if unit == "auto" else (scans, Unit(unit, 1.0))
    return share_origin(scans), found


def read_bytes(
    data: bytes,
    *,
    name: str = "stdin",
    unit: float | Literal["auto"] = 1.0,
    up: Up = "y",
    normals: Normals = "auto",
    called: str = "standard input",
) -> Scan:
    """Read a scan from bytes; the format is that of the first bytes, PLY if they indicate none.

    Raises:
        ValueError: As `read_scan`, with `called` in place of the path. A depth image has no camera here.

    """
    with TemporaryDirectory() as folder:
        # In a folder of its own, so that no camera is found in the folder above.
        path = Path(folder) / "stdin" / f"stdin{sniff_format(data[:4096])}"
        path.parent.mkdir()
        path.write_bytes(data)
        try:
            return read_scan(path, name=name, unit=unit, up=up, normals=normals)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), called)) from error


def read_mesh(path: str | os.PathLike[str], *, unit: float = 1.0, up: Up = "y") -> Trimesh:
    """Read a triangle mesh in meters, y up; OBJ and PLY keep the vertex order of the file.

    The vertex property `quality` of a PLY becomes a vertex attribute in meters, as `write_mesh` wrote it.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is empty, damaged, of an unknown format, or has no faces.

    """
    path = Path(path)
    raw = read_raw(path)
    if not isinstance(raw, RawScan):
        scan = scan_of_depth_images(path, raw, path.stem, unit, up, MAX_DEPTH_JUMP)
        return Trimesh(scan.points, scan.faces, process=False)
    points, faces = check_points(path, raw.points, 3), check_faces(path, raw.faces, len(raw.points))
    if faces is None:
        raise ValueError(f"{path}: {len(points):,} points and no faces. Pass a file with a mesh.")
    transform(path, points, unit * axis_rotation(up))  # refuses coordinates beyond float32, which files written have
    mesh = Trimesh(points @ (unit * axis_rotation(up)).T, faces, process=False)
    if raw.quality is not None and len(raw.quality) == len(points):
        mesh.vertex_attributes["quality"] = unit * np.asarray(raw.quality, dtype=np.float64).reshape(-1)
    return mesh


def read_faces(path: str | os.PathLike[str]) -> Int[np.ndarray, "m 3"]:
    """Read the triangles of a mesh file, or of an NPY of integers (m, 3).

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is damaged or has no faces.

    """
    path = Path(path)
    if path.suffix.lower() != ".npy":
        return np.asarray(read_mesh(path).faces, dtype=np.int32)
    with damage_as_error(path, COPY_AGAIN):
        values = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    faces = check_faces(path, values, np.iinfo(np.int32).max)
    if faces is None:
        raise ValueError(f"{path}: no faces. Copy it again.")
    return faces


# ------------------------------------------------------------------------------------------------------------- writing


def write_scan(path: str | os.PathLike[str], scan: Scan, *, unit: float = 1.0, up: Up = "y") -> None:
    """Write a scan as binary PLY, in the given unit (meters per file unit) and up axis; atomic.

    Vertices have x, y, z, and where the scan has them nx, ny, nz and `sensor`: the row of the extra element `sensor`
    (x, y, z), which stores each origin once. Coordinates are float32, or float64 for a scan with an `origin`.
    """
    path, rotation = Path(path), axis_rotation(up).T

    def placed(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        if scan.origin is not None:
            return from_world(points, unit=unit, up=up, origin=scan.origin)
        return transform(path, points, rotation / unit)

    columns: dict[str, np.ndarray] = dict(zip("xyz", placed(scan.points).T, strict=True))
    if scan.normals is not None:
        columns |= dict(zip(("nx", "ny", "nz"), transform(path, scan.normals, rotation).T, strict=True))
    elements: list[tuple[str, dict[str, np.ndarray]]] = [("vertex", columns)]
    if scan.faces is not None:
        elements.append(("face", {"vertex_indices": scan.faces.astype("<i4")}))
    if scan.sensors is not None:
        origins, index = np.unique(scan.sensors, axis=0, return_inverse=True)
        columns["sensor"] = index.reshape(-1).astype("u1" if len(origins) <= 256 else "<i4")
        elements.append(("sensor", dict(zip("xyz", placed(origins).T, strict=True))))
    _write(path, _ply_bytes(elements))


def write_mesh(
    path: str | os.PathLike[str],
    mesh: Trimesh,
    *,
    unit: float = 1.0,
    up: Up = "y",
    origin: Float[np.ndarray, "3"] | None = None,
) -> None:
    """Write a mesh as PLY, OBJ or GLB, by the suffix; atomic.

    `unit` is meters per file unit, `up` the axis of the file that points up, `origin` (meters, y up) is added to the
    vertices: `Scan.origin` or `Fit.origin`.

    Raises:
        ValueError: The suffix is another one.

    """
    _write(Path(path), mesh_bytes(mesh, Path(path), unit=unit, up=up, origin=origin))


def mesh_bytes(
    mesh: Trimesh,
    path: Path = Path("mesh.ply"),
    *,
    unit: float = 1.0,
    up: Up = "y",
    origin: Float[np.ndarray, "3"] | None = None,
) -> bytes:
    """Contents of the file that `write_mesh` writes to a path of that suffix.

    Vertex colors are written, and in PLY the vertex attribute `quality`, a length in meters. With an `origin` PLY has
    float64 vertices, OBJ all their digits, and GLB, whose vertices are float32 by its definition, a node at the origin.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in _EXPORTERS:
        raise ValueError(
            f"{path}: cannot write a mesh with suffix {path.suffix!r}. Use one of .{', .'.join(_EXPORTERS)}."
        )
    visual = mesh.visual
    colors = visual.vertex_colors if isinstance(visual, ColorVisuals) and visual.kind == "vertex" else None
    near = None if kind == "glb" else origin
    vertices = from_world(np.asarray(mesh.vertices), unit=unit, up=up, origin=near)
    quality = mesh.vertex_attributes.get("quality")
    scaled = None if quality is None else (np.asarray(quality) / unit).astype(np.float32)
    if kind == "ply" and origin is not None:
        columns: dict[str, np.ndarray] = dict(zip("xyz", vertices.T, strict=True))
        columns |= {} if scaled is None else {"quality": scaled.reshape(-1)}
        if colors is not None:
            columns |= dict(zip(("red", "green", "blue", "alpha"), np.asarray(colors, dtype="u1").T, strict=True))
        return _ply_bytes([("vertex", columns), ("face", {"vertex_indices": np.asarray(mesh.faces, dtype="<i4")})])
    moved = Trimesh(vertices, mesh.faces, process=False, vertex_colors=colors)
    if scaled is not None:
        moved.vertex_attributes["quality"] = scaled
    exported: Any = moved
    if kind == "glb" and origin is not None:
        place = np.eye(4)
        place[:3, 3] = from_world(np.zeros((1, 3)), unit=unit, up=up, origin=origin)[0]
        exported = Scene()
        exported.add_geometry(moved, node_name="mesh", transform=place)
    data: Any = exported.export(file_type=kind, **_EXPORTERS[kind])
    return data.encode() if isinstance(data, str) else bytes(data)


def _ply_bytes(elements: list[tuple[str, dict[str, np.ndarray]]]) -> bytes:
    """Contents of a binary little-endian PLY; columns of shape (n, k) become lists."""
    names = {"u1": "uchar", "i4": "int", "f4": "float", "f8": "double"}
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
