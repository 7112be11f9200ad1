"""Readers of scan files: one function for each format, in a registry by suffix."""

import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import trimesh

from shapespace.geometry.camera import DepthImage
from shapespace.geometry.findings import Finding
from shapespace.io.arrays import read_npy, read_npz
from shapespace.io.colmap import read_points_binary
from shapespace.io.containers import CONTAINERS, unpacked
from shapespace.io.depth_images import read_capture, read_depth_image
from shapespace.io.errors import BadFileError, damage_as_error
from shapespace.io.gltf import read_gltf
from shapespace.io.pcd import read_pcd
from shapespace.io.ply import read_ply
from shapespace.io.raw_scan import COPY_AGAIN, NOT_A_NUMBER, RawScan
from shapespace.io.splats import read_splat
from shapespace.io.survey import read_e57, read_las
from shapespace.io.tables import read_ptx, read_table

Reader = Callable[[Path], RawScan | list[DepthImage]]

# Formats that people bring and that are not read: how to convert them.
CONVERSIONS = {
    **dict.fromkeys((".usdz", ".usd", ".usda", ".usdc"), "Export OBJ or GLB from the app, or convert it with Blender"),
    **dict.fromkeys(
        (".fbx", ".blend", ".dae", ".abc", ".3ds", ".max", ".ma", ".mb", ".c4d"), "Export GLB from Blender"
    ),
    **dict.fromkeys((".stp", ".step", ".igs", ".iges", ".3dm"), "Export STL from the CAD program"),
    **dict.fromkeys(
        (".rcp", ".rcs", ".fls", ".lsproj", ".zfs", ".imp"), "Export E57 or PTX from the scanner's program"
    ),
    **dict.fromkeys((".ksplat", ".spz", ".sog"), "Export PLY from SuperSplat, or convert it with splat-transform"),
    **dict.fromkeys((".vtk", ".vtp", ".vtu"), "Export PLY from ParaView"),
    **dict.fromkeys((".x3d", ".wrl", ".vrml", ".3mf", ".amf", ".ctm", ".drc"), "Export PLY from MeshLab or Blender"),
    **dict.fromkeys((".psx", ".psz", ".oc3", ".nvm", ".out"), "Export the dense cloud or the mesh as PLY"),
    **dict.fromkeys((".tar", ".tgz", ".7z", ".rar"), "Unpack it, and pass the scan in it"),
    **dict.fromkeys((".mat", ".pkl", ".pt", ".pth", ".h5", ".hdf5"), "Save the points with numpy.save, shape (n, 3)"),
    **dict.fromkeys((".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".heic"), "Pass a depth image as 16-bit PNG"),
    **dict.fromkeys((".mp4", ".mov", ".bag", ".svo", ".oni", ".klg"), "Export depth images as 16-bit PNG"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "Save it as CSV"),
}


def read_raw(path: Path) -> RawScan | list[DepthImage]:
    """Read a file by the reader of its suffix.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The suffix is unknown, or the file is empty, damaged, or no regular file.

    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file. Check the path, and that the dataset was unpacked there.")
    suffix = path.suffix.lower()
    if suffix in CONVERSIONS and suffix not in READERS and not path.is_dir():
        raise ValueError(f"{path}: {suffix[1:].upper()} files are not read. {CONVERSIONS[suffix]}.")
    if path.is_dir() or suffix not in (*READERS, *CONTAINERS):
        reason = "is a folder" if path.is_dir() else f"unknown suffix {path.suffix!r}"
        raise ValueError(f"{path}: {reason}. Pass a file with one of the suffixes {', '.join(sorted(READERS))}.")
    if not path.is_file():
        raise ValueError(f"{path}: is a pipe or a device. Pass a file, or - to read standard input.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: empty (0 bytes). Copy it again.")
    try:
        with damage_as_error(path, COPY_AGAIN), warnings.catch_warnings(action="ignore"):
            return _read_unpacked(path) if suffix in CONTAINERS else READERS[suffix](path)
    except BadFileError as error:
        kind = _recognized(path)
        if kind in ("", suffix) or {kind, suffix} in _ALIKE:
            raise
        inner = Path(path.stem)  # of a file that is named as a container, and is none
        name = inner if inner.suffix.lower() == kind else inner.with_name(inner.name + kind)
        raise BadFileError(
            f"{path}: contains {kind[1:].upper()} and is named {suffix[1:].upper()}. Rename it to {name}."
        ) from error


def _read_unpacked(path: Path) -> RawScan | list[DepthImage]:
    """The scan inside of a container; its errors name the container."""
    with unpacked(path, frozenset(READERS), sniff_format) as inner:
        try:
            return read_raw(inner)
        except ValueError as error:
            raise BadFileError(str(error).replace(str(inner), f"{path} ({inner.name})")) from error


def readable_suffixes() -> frozenset[str]:
    """Suffixes of the formats that can be read, each with its dot; `CONTAINERS` around them are read too."""
    return frozenset(READERS)


def is_scan_file(path: Path) -> bool:
    """Whether the suffix is that of a scan, or of a scan in a container that holds one file."""
    suffix = path.suffix.lower()
    return suffix in READERS or (suffix in CONTAINERS - {".zip"} and Path(path.stem).suffix.lower() in READERS)


def _read_obj(path: Path) -> RawScan:
    """Vertices in file order, not split at texture seams; polygons become fans."""
    lines: dict[str, list[list[str]]] = {"v": [], "vn": [], "f": []}
    text = path.read_text(encoding="utf-8-sig", errors="replace").replace("\\\n", " ")
    for line in text.splitlines():
        if "#" in line or "(" in line:
            line = NOT_A_NUMBER.sub("nan", line).partition("#")[0]
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


def _read_stl(path: Path) -> RawScan:
    """Triangles of a binary STL, by its count; text is read by trimesh, which refuses a binary one with more bytes.

    A count of zero was never filled in by the program that wrote the file: there are as many triangles as fit.
    """
    data = path.read_bytes()
    count = int.from_bytes(data[80:84], "little") or (len(data) - _STL_HEADER) // _STL_TRIANGLE.itemsize
    end = _STL_HEADER + count * _STL_TRIANGLE.itemsize
    is_text = data[:100].lstrip().lower().startswith(b"solid") and b"facet" in data[:1000].lower()
    if is_text and len(data) != end:
        return _read_scene(path)
    if len(data) < max(end, _STL_HEADER):  # a file of less than a header, too
        raise BadFileError(
            f"{path}: truncated. The header declares {count:,} triangles ({end:,} bytes), the file has {len(data):,} "
            "bytes: copy it again."
        )
    triangles = np.frombuffer(data, _STL_TRIANGLE, count, _STL_HEADER)
    rest = len(data) - end
    findings = (Finding("trailing-data-ignored", {"count": rest}),) if rest else ()
    points = triangles["corners"].astype(np.float32).reshape(-1, 3)
    return RawScan(points, np.arange(len(points)).reshape(-1, 3) if count else None, findings=findings)


def _read_scene(path: Path) -> RawScan:
    """All parts of a scene, transformed by the scene graph and concatenated."""
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


def _recognized(path: Path) -> str:
    """Suffix of the format whose mark a file begins with; an empty string without one."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"PK\x03\x04") and b".npy" not in start:
        return ".zip"
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")


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
    b"# .PCD": ".pcd",
    b"LASF": ".las",
    b"ASTM-E57": ".e57",
    b"\x93NUMPY": ".npy",
    b"PK\x03\x04": ".npz",
    b"\x1f\x8b": ".gz",
    b"glTF": ".glb",
    b"OFF": ".off",
    b"solid": ".stl",
    b"\x89PNG": ".png",
}

_ALIKE: tuple[set[str], ...] = (  # one mark, two formats
    {".npz", ".zip"},
    {".las", ".laz"},
    {".glb", ".gltf"},
    {".stl", ".stl_ascii"},
)

_STL_HEADER = 84  # bytes: a comment, and the number of triangles
_STL_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])

# Archives and drawings, and XYZ, which is read as a table.
_NOT_SHAPES = {"zip", "bz2", "tar.gz", "tar.bz2", "dxf", "svg", "xyz"}

# A new format is one function and one line here.
READERS: dict[str, Reader] = {
    **{f".{kind}": _read_scene for kind in trimesh.available_formats() - _NOT_SHAPES},
    ".ply": read_ply,
    ".obj": _read_obj,
    ".stl": _read_stl,
    ".glb": read_gltf,
    ".gltf": read_gltf,
    ".npy": read_npy,
    ".npz": read_npz,
    **dict.fromkeys((".xyz", ".xyzn", ".xyzrgb", ".txt", ".dat", ".csv", ".tsv", ".asc", ".pts"), read_table),
    ".ptx": read_ptx,
    ".pcd": read_pcd,
    ".bin": read_points_binary,
    ".splat": read_splat,
    ".las": read_las,
    ".laz": read_las,
    ".e57": read_e57,
    ".png": read_depth_image,
    ".exr": read_depth_image,
    ".json": read_capture,
}
