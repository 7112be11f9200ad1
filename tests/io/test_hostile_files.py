"""Files that were damaged, mislabelled or made to harm: each ends in a scan or a sentence, soon, in little memory."""

import base64
import gzip
import io
import json
import math
import os
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from shapespace.geometry.scan import MIN_POINTS, Scan
from shapespace.io import raw_scan
from shapespace.io.formats import readable_suffixes
from shapespace.io.scan_files import read_scan, write_scan

SECONDS, MEMORY = 10.0, 150e6  # for any of these files, the largest of which have 2 MB; checks of shapes included

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(201, 3)).astype("<f4")
FACES = np.arange(201, dtype="<i4").reshape(-1, 3)
XYZ = "property float x\nproperty float y\nproperty float z\n"
LIST = "property list uchar int vertex_indices\n"
MAX = 2**32 - 1


def ply(header: str, body: bytes = b"", encoding: str = "binary_little_endian") -> bytes:
    return f"ply\nformat {encoding} 1.0\n{header}end_header\n".encode() + body


def mesh(faces: np.ndarray, points: np.ndarray = POINTS) -> bytes:
    """A binary PLY with these faces, whatever they name."""
    rows = np.zeros(len(faces), dtype=[("n", "u1"), ("i", "<i4", faces.shape[1])])
    rows["n"], rows["i"] = faces.shape[1], faces
    header = f"element vertex {len(points)}\n{XYZ}element face {len(faces)}\n{LIST}"
    return ply(header, points.astype("<f4").tobytes() + rows.tobytes())


def vertices(points: np.ndarray) -> bytes:
    return ply(f"element vertex {len(points)}\n{XYZ}", points.astype("<f4").tobytes())


def npy(array: np.ndarray, **header: Any) -> bytes:
    """An NPY whose header may say something else than what follows."""
    file = io.BytesIO()
    told = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **header}
    np.lib.format.write_array_header_1_0(file, told)
    return file.getvalue() + array.tobytes()


def packed(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as content:
        for name, data in members.items():
            content.writestr(name, data)
    return file.getvalue()


def tree(count: int = len(POINTS), **changes: Any) -> dict[str, Any]:
    """A glTF of one mesh without indices."""
    data = base64.b64encode(POINTS.tobytes()).decode()
    return {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "accessors": [{"componentType": 5126, "count": count, "type": "VEC3", "bufferView": 0}],
        "bufferViews": [{"buffer": 0, "byteLength": POINTS.nbytes}],
        "buffers": [{"byteLength": POINTS.nbytes, "uri": f"data:application/octet-stream;base64,{data}"}],
        **changes,
    }


def gltf(count: int = len(POINTS), **changes: Any) -> bytes:
    return json.dumps(tree(count, **changes)).encode()


def glb(length: int | None = None) -> bytes:
    text = gltf()
    text += b" " * (-len(text) % 4)
    return b"glTF" + struct.pack("<IIII", 2, len(text) + 20, len(text) if length is None else length, 0x4E4F534A) + text


def png(width: int = 64, height: int = 64, bits: int = 16, color: int = 0, values: bytes | None = None) -> bytes:
    """A PNG chunk by chunk, so that its header may say what it likes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    if values is None:
        values = b"".join(b"\0" + struct.pack(">64H", *(2000 + row,) * 64) for row in range(64))
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(values)) + chunk(b"IEND", b"")


def exr() -> bytes:
    import OpenEXR

    rows = np.tile(np.linspace(2, 2.064, 64, dtype=np.float32)[:, None], 64)
    with NamedTemporaryFile(suffix=".exr") as place:
        with OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}, {"Z": rows}) as file:
            file.write(place.name)
        return Path(place.name).read_bytes()


def camera(**changes: Any) -> bytes:
    return json.dumps({"width": 64, "height": 64, "fx": 60, "fy": 60, "cx": 31.5, "cy": 31.5, **changes}).encode()


def with_camera(image: bytes, **changes: Any) -> dict[str, bytes]:
    return {"x.png": image, "x.json": camera(**changes)}


def text(rows: np.ndarray) -> bytes:
    return "\n".join(" ".join(map(str, row)) for row in rows.tolist()).encode()


def obj(*lines: str) -> bytes:
    return "\n".join([*(f"v {x} {y} {z}" for x, y, z in POINTS.tolist()), *lines]).encode()


def pcd(points: np.ndarray = POINTS, encoding: str = "binary", body: bytes | None = None, **header: str) -> bytes:
    """A PCD whose header may say something else than what follows."""
    told = {"FIELDS": "x y z", "SIZE": "4 4 4", "TYPE": "F F F", "COUNT": "1 1 1", "WIDTH": str(len(points))}
    told |= {"HEIGHT": "1", "POINTS": str(len(points)), **header, "DATA": encoding}
    lines = "".join(f"{key} {value}\n" for key, value in told.items())
    return f"# .PCD v0.7\n{lines}".encode() + (points.astype("<f4").tobytes() if body is None else body)


def lzf(data: bytes) -> bytes:
    """LZF without compression: runs of at most 32 bytes."""
    return b"".join(bytes([len(run) - 1]) + run for run in (data[i : i + 32] for i in range(0, len(data), 32)))


def compressed_pcd(points: np.ndarray = POINTS, size: int | None = None, body: bytes | None = None) -> bytes:
    data = points.astype("<f4").T.tobytes()
    packed_data = lzf(data) if body is None else body
    sizes = struct.pack("<II", len(packed_data), len(data) if size is None else size)
    return pcd(points, "binary_compressed", sizes + packed_data)


def colmap(points: np.ndarray = POINTS, count: int | None = None, track: int = 1) -> bytes:
    rows = [struct.pack("<Q3d3BdQ", i, *row, 1, 2, 3, 0.5, track) + bytes(8) for i, row in enumerate(points.tolist())]
    return struct.pack("<Q", len(points) if count is None else count) + b"".join(rows)


def splat(points: np.ndarray = POINTS, alpha: int = 255) -> bytes:
    rows = np.zeros(len(points), dtype=[("p", "<f4", 3), ("s", "<f4", 3), ("c", "u1", 4), ("r", "u1", 4)])
    rows["p"], rows["c"] = points, (1, 2, 3, alpha)
    return rows.tobytes()


def ptx(points: np.ndarray = POINTS, columns: int = 3) -> bytes:
    pose = "0 0 0\n1 0 0\n0 1 0\n0 0 1\n1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"
    return f"{columns}\n{len(points) // 3}\n{pose}".encode() + b"".join(
        b"%r %r %r 0.5\n" % tuple(p) for p in points.tolist()
    )


@cache
def las(suffix: str = ".las") -> bytes:
    import laspy

    content = laspy.LasData(laspy.LasHeader(point_format=0, version="1.2"))
    content.header.scales = np.full(3, 1e-4)
    content.x, content.y, content.z = POINTS.T.astype(np.float64)
    file = io.BytesIO()
    content.write(file, do_compress=suffix == ".laz")
    return file.getvalue()


@cache
def e57() -> bytes:
    import pye57

    with TemporaryDirectory() as folder:
        file = pye57.E57(f"{folder}/x.e57", mode="w")
        file.write_scan_raw(
            {f"cartesian{axis}": column for axis, column in zip("XYZ", POINTS.T.astype("<f8"), strict=True)}
        )
        file.close()
        return Path(folder, "x.e57").read_bytes()


WHOLE: dict[str, Callable[[], bytes]] = {
    ".ply": lambda: mesh(FACES),
    ".obj": lambda: obj("f 1 2 3"),
    ".off": lambda: trimesh.exchange.off.export_off(trimesh.Trimesh(POINTS, FACES, process=False)).encode(),
    ".stl": lambda: trimesh.exchange.stl.export_stl(trimesh.Trimesh(POINTS, FACES, process=False)),
    ".stl_ascii": lambda: trimesh.exchange.stl.export_stl_ascii(trimesh.Trimesh(POINTS, FACES, process=False)).encode(),
    ".gltf": gltf,
    ".glb": glb,
    ".npy": lambda: npy(POINTS),
    ".npz": lambda: packed(points=npy(POINTS)),
    ".xyz": lambda: text(POINTS),
    ".txt": lambda: text(POINTS),
    ".csv": lambda: text(POINTS).replace(b" ", b","),
    ".tsv": lambda: text(POINTS).replace(b" ", b"\t"),
    ".asc": lambda: text(POINTS),
    ".dat": lambda: text(POINTS),
    ".xyzn": lambda: text(np.hstack([POINTS, POINTS])),
    ".xyzrgb": lambda: text(np.hstack([POINTS, np.abs(POINTS)])),
    ".pts": lambda: b"201\n" + text(POINTS),
    ".ptx": ptx,
    ".pcd": pcd,
    ".bin": colmap,
    ".splat": splat,
    ".las": las,
    ".laz": lambda: las(".laz"),
    ".e57": e57,
    ".png": png,
    ".exr": exr,
    ".json": camera,
}

# What they hold by the name of the file; where there are several, the first is read. None: a scan comes of it.
HOSTILE: dict[str, tuple[dict[str, bytes], str | None]] = {
    # ---- declared counts
    "ply counts": ({"x.ply": ply(f"element vertex {10**15}\n{XYZ}", b"0")}, "truncated. The header declares at least"),
    "ply text counts": ({"x.ply": ply(f"element vertex {10**15}\n{XYZ}", b"0", "ascii")}, ": truncated"),
    "ply counts of nothing": (
        {"x.ply": ply(f"element vertex 201\n{XYZ}element foo {10**15}\n", POINTS.tobytes())},
        "not a valid PLY file|: truncated",
    ),
    "ply negative": ({"x.ply": ply(f"element vertex -5\n{XYZ}", POINTS.tobytes())}, "not a valid|: truncated"),
    "ply negative, in sum": (
        {"x.ply": ply(f"element vertex {10**12}\n{XYZ}element b -{10**12}\n{XYZ}", POINTS.tobytes())},
        "not a valid|: truncated",
    ),
    "ply long list": (
        {
            "x.ply": ply(
                f"element vertex 201\n{XYZ}element face 1\nproperty list uint int vertex_indices\n",
                POINTS.tobytes() + struct.pack("<4I", MAX, 0, 1, 2),
            )
        },
        "not a valid PLY file",
    ),
    "ply count in words": ({"x.ply": ply("element vertex many\n" + XYZ)}, "not a valid PLY file"),
    "ply count of digits": ({"x.ply": ply("element vertex " + "9" * 5000 + "\n" + XYZ)}, "not a valid PLY file"),
    "npy counts": ({"x.npy": npy(POINTS, shape=(10**12, 3))}, "not a valid NPY file"),
    "npy overflows": ({"x.npy": npy(POINTS, shape=(2**62, 4))}, "not a valid NPY file|depth image"),
    "npy negative": ({"x.npy": npy(POINTS, shape=(-201, -3))}, "not a valid NPY file|depth image"),
    "npz counts": (
        {"x.npz": packed(points=npy(POINTS, shape=(10**9, 3)))},
        r"points\.npy declares 12,000,000,000 bytes",
    ),
    "npz counts of faces": (
        {"x.npz": packed(points=npy(POINTS), faces=npy(FACES, shape=(10**9, 3)))},
        r"faces\.npy declares",
    ),
    "gltf counts": ({"x.gltf": gltf(10**12)}, "declares an array of 1,000,000,000,000 rows"),
    "gltf counts of zeros": (
        {"x.gltf": gltf(accessors=[{"componentType": 5126, "count": 3 * 10**8, "type": "VEC3"}])},
        "declares an array of 300,000,000 rows",
    ),
    "gltf negative": ({"x.gltf": gltf(-5)}, "declares an array of -5 rows"),
    "glb chunk": ({"x.glb": glb(MAX)}, "truncated. A chunk of 4,294,967,295 bytes"),
    "stl counts": (
        {"x.stl": bytes(80) + struct.pack("<I", MAX) + bytes(100)},
        "truncated. The header declares 4,294,967,295 triangles|not a valid STL file",
    ),
    "off counts": ({"x.off": b"OFF\n1000000000000 1000000000000 0\n0 0 0\n"}, "not a valid OFF file"),
    "off negative": ({"x.off": b"OFF\n-3 -1 0\n0 0 0\n"}, ": 0 points|not a valid OFF file"),
    "png size": (
        with_camera(png(30_000, 30_000), width=30_000, height=30_000, fx=9e4, fy=9e4),
        "not a valid PNG file",
    ),
    "png size, less so": (
        with_camera(png(9000, 9000), width=9000, height=9000, fx=9e3, fy=9e3),
        "81,?000,?000|9000 x 9000",
    ),
    "png of other size": (with_camera(png(), width=63), ": 64 x 64 pixels, but the camera in .* has 63 x 64"),
    "png shorter than it says": (with_camera(png(values=b"\0" * 100)), "not a valid PNG file"),
    "png of zeros": (with_camera(png(values=bytes(64 * 129))), ": 0 surface points"),
    "png of eight bits": (with_camera(png(bits=8, values=bytes(64 * 65))), "not a 16-bit grayscale PNG"),
    "png of no known bits": (with_camera(png(bits=17)), "not a 16-bit grayscale PNG"),
    "one image, again and again": (
        {"x.json": camera(width=1000, height=1000, frames=[{"depth_file_path": "a.png"}] * 11), "a.png": png()},
        "11,000,000 pixels together, more than 10,000,000",
    ),
    "pcd counts": ({"x.pcd": pcd(POINTS="1000000000000")}, "declares 1,000,000,000,000 points of 12 bytes"),
    "pcd counts, less so": ({"x.pcd": pcd(POINTS="1000000")}, "truncated. The header declares 12,000,000 bytes"),
    "pcd negative": ({"x.pcd": pcd(POINTS="-5")}, "declares -5 points"),
    "pcd fields of no size": ({"x.pcd": pcd(SIZE="4 4")}, "not a valid PCD file"),
    "pcd wide fields": ({"x.pcd": pcd(COUNT="1 1 1000000000")}, "bytes are read|not a valid PCD file"),
    "pcd without x": ({"x.pcd": pcd(FIELDS="a b c")}, "fields a, b, c without x, y and z"),
    "pcd of no kind": ({"x.pcd": pcd(encoding="zipped")}, "not a valid PCD file"),
    "pcd text": ({"x.pcd": pcd(encoding="ascii", body=text(POINTS))}, None),
    "pcd text, cut off": (
        {"x.pcd": pcd(encoding="ascii", body=text(POINTS)[:900])},
        "truncated. The header declares 603",
    ),
    "pcd packed": ({"x.pcd": compressed_pcd()}, None),
    "pcd packed sizes": ({"x.pcd": compressed_pcd(size=MAX)}, "4,294,967,295 bytes of points, but the header declares"),
    "pcd packed rubbish": ({"x.pcd": compressed_pcd(body=bytes(range(256)) * 8)}, None),
    "pcd packed, points backward": ({"x.pcd": compressed_pcd(body=b"\xff\xff\xff" * 700)}, None),
    "colmap counts": ({"points3D.bin": colmap(count=10**15)}, "truncated. It declares at least"),
    "colmap tracks": ({"points3D.bin": colmap(track=2**60)}, "truncated inside|not a valid BIN file"),
    "other binary": ({"x.bin": colmap()}, r"only points3D\.bin of COLMAP is read"),
    "splats cut off": ({"x.splat": splat()[:-5]}, "no whole number of splats"),
    "splats of haze": ({"x.splat": splat(alpha=2)}, ": 0 points"),
    "splats of nothing": ({"x.splat": splat(np.full_like(POINTS, np.nan))}, ": 0 points"),
    "ptx counts": ({"x.ptx": ptx(columns=10**12)}, "truncated. A scan declares"),
    "ptx without rows": ({"x.ptx": b"3\n67\n"}, "not a valid PTX file"),
    "las counts": ({"x.las": las()[:107] + struct.pack("<I", MAX) + las()[111:]}, "declares 4,294,967,295 points"),
    "las counts, less so": ({"x.las": las()[:107] + struct.pack("<I", 10**6) + las()[111:]}, "LAS|truncated"),
    "laz rubbish": ({"x.laz": las(".laz")[:400] + bytes(3000)}, None),
    "e57 cut off": ({"x.e57": e57()[:2048]}, "not a valid E57 file"),
    "draco rubbish": (
        {
            "x.gltf": gltf(
                meshes=[
                    {
                        "primitives": [
                            {
                                "attributes": {"POSITION": 0},
                                "extensions": {
                                    "KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}
                                },
                            }
                        ]
                    }
                ]
            )
        },
        "not a valid GLTF file",
    ),
    "gltf of another extension": ({"x.gltf": gltf(extensionsRequired=["EXT_magic"])}, "needs EXT_magic"),
    "gltf joints out of range": (
        {
            "x.gltf": gltf(
                nodes=[{"mesh": 0, "skin": 0}],
                skins=[{"joints": [0]}],
                meshes=[{"primitives": [{"attributes": {"POSITION": 0, "JOINTS_0": 0, "WEIGHTS_0": 0}}]}],
            )
        },
        None,
    ),
    "gz bomb": ({"x.ply.gz": gzip.compress(bytes(2_000_000))}, r"x\.ply\.gz \(x\.ply\): truncated inside the header"),
    "gz cut off": ({"x.ply.gz": gzip.compress(mesh(FACES))[:-40]}, "not a valid GZ file"),
    "gz of a gz": ({"x.ply.gz.gz": gzip.compress(gzip.compress(mesh(FACES)))}, None),
    "gz of nothing": ({"x.ply.gz": gzip.compress(b"")}, r"\(x\.ply\): empty"),
    "gz that is none": ({"x.ply.gz": mesh(FACES)}, r"contains PLY and is named GZ\. Rename it to x\.ply\.$"),
    "zip of two": ({"x.zip": archive(**{"a.ply": mesh(FACES), "b.ply": mesh(FACES)})}, r"2 scans \(a\.ply, b\.ply\)"),
    "zip of none": ({"x.zip": archive(**{"a.docx": b"x"})}, "an archive with 0 scans"),
    "zip to elsewhere": ({"x.zip": archive(**{"../../../a.ply": mesh(FACES)})}, None),
    "zip of an absolute path": ({"x.zip": archive(**{"/tmp/a.ply": mesh(FACES)})}, None),
    "zip that is none": ({"x.zip": mesh(FACES)}, r"contains PLY and is named ZIP\. Rename it to x\.ply\.$"),
    # ---- numbers
    "nan": ({"x.ply": vertices(np.where(np.arange(603).reshape(-1, 3) == 7, np.nan, POINTS))}, None),
    "nan, and one normal for all": (
        {
            "x.npz": packed(
                points=npy(np.where(np.arange(201)[:, None] == 7, np.nan, POINTS)), normals=npy(np.array(1.0))
            )
        },
        "normals are an array",
    ),
    "nan throughout": ({"x.ply": vertices(np.where(np.arange(201)[:, None] == 7, np.nan, POINTS))}, None),
    "infinite": ({"x.xyz": b"inf -inf nan\n" * 201}, "201 of 201 points have NaN or infinite"),
    "digits without end": ({"x.xyz": text(POINTS) + b"\n" + b"9" * 1_000_000 + b" 1 2\n"}, None),
    "gigantic": ({"x.npy": npy(1e300 * POINTS.astype("<f8"))}, "too large for float32"),
    "nearly gigantic": ({"x.ply": vertices(1e37 * POINTS)}, None),
    "tiny": ({"x.ply": vertices(1e-42 * POINTS)}, None),
    "all equal": ({"x.ply": vertices(np.ones((500, 3)))}, "all 500 points are equal"),
    "duplicates": ({"x.ply": vertices(np.repeat(POINTS, 50, axis=0))}, None),
    "complex": ({"x.npy": npy(POINTS.astype(np.complex64))}, "array of complex64"),
    "truths": ({"x.npy": npy(POINTS > 0)}, "array of bool"),
    "records": ({"x.npy": npy(np.zeros(201, dtype=[("x", "<f4"), ("y", "<f4")]))}, r"array of shape \(201,\)"),
    "objects": ({"x.npy": npy(np.zeros((201, 24), np.uint8), descr="|O", shape=(201, 3))}, "not a valid NPY file"),
    "gigantic depth": (
        {"x.npy": npy(np.full((64, 64), 1e300)), "x.json": camera()},
        "too large for float32|: 0 surface points",
    ),
    "gigantic factor": (with_camera(png(), depth_unit_scale_factor=1e999), "is Infinity"),
    "infinite focal length": (with_camera(png(), fx=math.inf), "fx is Infinity"),
    # ---- faces
    "no faces": ({"x.ply": mesh(np.zeros((0, 3), np.int32))}, None),
    "faces out of range": ({"x.ply": mesh(FACES + 1)}, r"have vertices outside 0\.\.200"),
    "faces negative": ({"x.ply": mesh(FACES - 7)}, r"have vertices outside 0\.\.200 \(lowest -7"),
    "faces beyond 32 bits": (
        {"x.npz": packed(points=npy(POINTS), faces=npy(np.full((5, 3), 2**63, "<u8")))},
        r"5 of 5 faces have vertices outside",
    ),
    "obj face out of range": ({"x.obj": obj("f 1 2 202")}, r"have vertices outside 0\.\.200"),
    "obj face far behind": ({"x.obj": obj("f -1 -2 -999")}, r"have vertices outside 0\.\.200"),
    "obj face of too many digits": ({"x.obj": obj("f 1 2 " + "9" * 30)}, "not a valid OBJ file"),
    "obj face without vertices": ({"x.obj": obj("f //1 //2 //3")}, "not a valid OBJ file"),
    "obj face of a line": ({"x.obj": obj("f 1 2", "f 1", "f")}, None),
    "obj polygon": ({"x.obj": obj("f " + "1 2 3 " * 100_000)}, None),
    "faces of one corner": ({"x.ply": mesh(np.zeros((50, 3), np.int32))}, None),
    "soup": ({"x.ply": mesh(RNG.integers(0, 201, (20_000, 3)))}, None),
    "one edge, many faces": ({"x.ply": mesh(np.column_stack([np.zeros(199), np.ones(199), np.arange(2, 201)]))}, None),
    "pentagons": ({"x.ply": mesh(np.tile(np.arange(5), (20, 1)))}, None),
    "pentagons that share nothing": ({"x.ply": mesh(np.arange(200).reshape(-1, 5))}, None),
    # ---- structure
    "ply header without end": (
        {"x.ply": b"ply\nformat ascii 1.0\n" + b"comment x\n" * 200_000},
        "inside the header",
    ),
    "ply in one line": ({"x.ply": b"ply" + b" " * 2_000_000}, "truncated inside the header"),
    "ply property first": ({"x.ply": ply("property float x\nelement vertex 1\n")}, "not a valid PLY file"),
    "ply property of no kind": (
        {"x.ply": ply("element vertex 201\nproperty quaternion x\n", bytes(5000))},
        "not a valid",
    ),
    "ply without coordinates": (
        {"x.ply": ply("element vertex 3\nproperty float a\n", bytes(12))},
        "vertices with a, without x, y and z",
    ),
    "ply coordinates as lists": (
        {
            "x.ply": ply(
                "element vertex 201\nproperty list uchar float x\nproperty float y\nproperty float z\n", b"\1" * 2613
            )
        },
        "not a valid PLY file",
    ),
    "ply two vertices": (
        {"x.ply": ply(f"element vertex 1\n{XYZ}element vertex 1\n{XYZ}", bytes(24))},
        "not a valid|: 1 points",
    ),
    "ply says binary, is text": ({"x.ply": ply(f"element vertex 201\n{XYZ}", text(POINTS))}, None),
    "ply says text, is binary": ({"x.ply": ply(f"element vertex 201\n{XYZ}", POINTS.tobytes() * 4, "ascii")}, "PLY"),
    "ply of no format": ({"x.ply": ply(f"element vertex 201\n{XYZ}", POINTS.tobytes(), "")}, None),
    "ply sensor out of range": (
        {
            "x.ply": ply(
                "element vertex 201\nproperty float x\nproperty float y\nproperty float z\nproperty int sensor\n"
                f"element sensor 1\n{XYZ}",
                b"".join(row.tobytes() + struct.pack("<i", 9) for row in POINTS) + bytes(12),
            )
        },
        "not a valid PLY file",
    ),
    "ply texture elsewhere": (
        {"x.ply": ply(f"comment TextureFile ../../../etc/hostname\nelement vertex 201\n{XYZ}", POINTS.tobytes())},
        None,
    ),
    "gltf buffer elsewhere": (
        {"x.gltf": gltf(buffers=[{"byteLength": 9, "uri": "../../../etc/hostname"}])},
        "GLTF file",
    ),
    "gltf buffer in the net": (
        {"x.gltf": gltf(buffers=[{"byteLength": 9, "uri": "http://127.0.0.1:9/"}])},
        "GLTF file",
    ),
    "gltf circle": ({"x.gltf": gltf(nodes=[{"mesh": 0, "children": [1]}, {"children": [0]}])}, None),
    "gltf doubles": ({"x.gltf": gltf(nodes=[*({"children": [i + 1] * 2} for i in range(40)), {"mesh": 0}])}, None),
    "gltf nested": ({"x.gltf": b'{"a":' * 100_000 + b"1" + b"}" * 100_000}, "not a valid GLTF file"),
    "gltf list": ({"x.gltf": b"[]"}, "not a valid GLTF file"),
    "json nested": ({"x.json": b"[" * 1_000_000}, "not a valid JSON file"),
    "json of numbers": ({"x.json": b"7"}, "not a JSON object"),
    "json cut off": ({"x.json": camera()[:20]}, "not a valid JSON file"),
    "json of itself": ({"x.json": camera(depth_file_path="x.json")}, "not a valid JSON file"),
    "json of a folder": ({"x.json": camera(depth_file_path="..")}, r"depth_file_path \.\. is outside the folder"),
    "json of no text": ({"x.json": camera(depth_file_path="a\0b")}, "no such depth image|not a valid JSON file"),
    "camera cut off": ({"x.png": png(), "x.json": b'{"fx": '}, r"x\.json: not a valid JSON file"),
    "npz of other things": ({"x.npz": packed(points=b"not an array")}, "not a valid NPZ file"),
    "npz cut off": ({"x.npz": packed(points=npy(POINTS))[:-30]}, "not a valid NPZ file"),
    "npz in an npz": ({"x.npz": packed(points=packed(points=npy(POINTS)))}, "not a valid NPZ file"),
    "table of one line": ({"x.xyz": b"1 " * 500_000}, "array of shape"),
    "table of changing width": ({"x.csv": b"1,2,3\n" * 200 + b"1,2\n"}, "not a valid CSV file"),
    "table of zeros bytes": ({"x.txt": bytes(10_000)}, "not a valid TXT file"),
    "stl of words": ({"x.stl": b"solid x\nfacet normal 0 0 1\nouter loop\nvertex 1e999 nan 0\n"}, "STL|: 0 points"),
}


def stem(suffix: str) -> str:
    """Name of a file of that format: of `.bin` only that of COLMAP is read."""
    return "points3D" if suffix == ".bin" else "x"


@contextmanager
def bounded() -> Iterator[None]:
    """Little time and memory."""
    tracemalloc.start()
    began = time.perf_counter()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.perf_counter() - began < SECONDS
    assert peak < MEMORY


def check(path: Path, message: str | None = None) -> Scan | None:
    """Read it: a usable scan, or one sentence that names the file."""
    with bounded():
        try:
            scan = read_scan(path)
        except (ValueError, OSError) as error:
            sentence = str(error)
            scan = None
    if scan is None:
        assert str(path.with_suffix("")) in sentence, sentence
        assert "\n" not in sentence
        assert sentence.endswith(".")
        assert len(sentence) < 600
        return None
    assert message is None
    assert len(scan) >= MIN_POINTS
    for array in (scan.points, scan.normals, scan.sensors):
        assert array is None or np.isfinite(array).all()
    assert scan.faces is None or 0 <= scan.faces.min() <= scan.faces.max() < len(scan)
    return scan


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_ends_in_a_scan_or_in_a_sentence(tmp_path: Path, case: str) -> None:
    contents, message = HOSTILE[case]
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    path = tmp_path / next(iter(contents))
    if message is None:
        check(path)
    else:
        with pytest.raises((ValueError, OSError), match=message):
            read_scan(path)
        check(path, message)


def test_what_unpacks_to_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.npz").write_bytes(packed(points=npy(np.zeros((100_000, 3), "<f4"))))
    assert (tmp_path / "x.npz").stat().st_size < 5000
    monkeypatch.setattr(raw_scan, "MAX_UNPACKED", 1_000_000)
    check(tmp_path / "x.npz", "declares")
    with pytest.raises(ValueError, match=r"points\.npy declares 1,200,000 bytes and .* at most 1,000,000 are read"):
        read_scan(tmp_path / "x.npz")


def test_what_a_container_unpacks_to_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = ply("element vertex 400000\n" + XYZ, bytes(4_800_000))
    (tmp_path / "x.ply.gz").write_bytes(gzip.compress(bomb))
    (tmp_path / "x.zip").write_bytes(archive(**{"x.ply": bomb}))
    monkeypatch.setattr(raw_scan, "MAX_UNPACKED", 1_000_000)
    for name in ("x.ply.gz", "x.zip"):
        assert (tmp_path / name).stat().st_size < 10_000
        with pytest.raises(ValueError, match="unpacks to more than 1,000,000 bytes"):
            read_scan(tmp_path / name)


def test_they_are_many() -> None:
    assert len(HOSTILE) + 3 * len(readable_suffixes()) > 100


def test_each_format_has_a_whole_file_here(tmp_path: Path) -> None:
    """Or the damage below would be done to nothing."""
    assert readable_suffixes() == WHOLE.keys()
    for suffix, make in WHOLE.items():
        (tmp_path / f"{stem(suffix)}{suffix}").write_bytes(make())
    for suffix in WHOLE:
        assert len(read_scan(tmp_path / f"{stem(suffix)}{suffix}")) >= 201


@pytest.mark.parametrize("suffix", sorted(WHOLE))
def test_rubbish_under_any_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"{stem(suffix)}{suffix}"
    whole = WHOLE[suffix]()
    if suffix in (".png", ".exr"):
        (tmp_path / "x.json").write_bytes(camera())
    elif suffix == ".json":
        (tmp_path / "x.png").write_bytes(png())
    rubbish = np.random.default_rng(1).integers(0, 256, 100_000, dtype=np.uint8).tobytes()
    for content in (b"", b"\0", rubbish, whole[:16] + rubbish, rubbish + whole, whole[:-9], whole[: len(whole) // 2]):
        path.write_bytes(content)
        check(path)
    for other in WHOLE.values():
        path.write_bytes(other())
        check(path)


@pytest.mark.parametrize("suffix", sorted(WHOLE))
def test_headers_with_other_bytes_in_them(tmp_path: Path, suffix: str) -> None:
    """Every one of the first bytes replaced, and the header cut off everywhere."""
    path, whole, rng = tmp_path / f"{stem(suffix)}{suffix}", WHOLE[suffix](), np.random.default_rng(2)
    if suffix in (".png", ".exr"):
        (tmp_path / "x.json").write_bytes(camera())
    elif suffix == ".json":
        (tmp_path / "x.png").write_bytes(png())
    for place in range(0, min(len(whole), 240), 2):
        damaged = bytearray(whole)
        damaged[place] = rng.integers(256)
        for content in (bytes(damaged), whole[:place]):
            path.write_bytes(content)
            check(path)


@pytest.mark.parametrize("name", ["x.ply", "x.npz", "x.json", "x.png"])
def test_folders_pipes_and_links_to_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        read_scan(tmp_path / name)
    os.mkfifo(tmp_path / f"fifo{name}")
    with pytest.raises(ValueError, match="is a pipe or a device"):
        read_scan(tmp_path / f"fifo{name}")
    (tmp_path / f"link{name}").symlink_to(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=f"link{name}: no such file"):
        read_scan(tmp_path / f"link{name}")


@pytest.mark.parametrize("case", ["faces of one corner", "nearly gigantic", "tiny", "all equal", "ply counts"])
def test_by_the_command_line_they_end_in_one_sentence(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can be read and is no person either is refused before the fit."""
    from shapespace import ShapeSpace
    from shapespace.models import igr
    from shapespace.tools.__main__ import main

    torch.manual_seed(0)
    sizes = igr.IGRConfig(code_dim=4, width=24, depth=3, skip=1, init_radius=0.5, encoder_points=128)
    ShapeSpace(igr.build_igr(sizes).eval(), sizes, scale=1.25, metadata={"weights": {}}).save(
        tmp_path / "m.safetensors"
    )
    contents = HOSTILE[case][0]
    (tmp_path / "x.ply").write_bytes(contents["x.ply"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["shapespace", "fit", "m.safetensors", "x.ply"])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.out == ""
    assert said.err.startswith("shapespace fit: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    assert not (tmp_path / "fitted").exists()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".ply", ".npy"])
def test_ten_million_points_are_only_many(tmp_path: Path, suffix: str) -> None:
    points = np.random.default_rng(0).normal(size=(10_000_000, 3)).astype(np.float32)
    path = tmp_path / f"x{suffix}"
    if suffix == ".ply":
        write_scan(path, Scan("x", points))
    else:
        np.save(path, points)
    began = time.perf_counter()
    scan = read_scan(path)
    assert len(scan) == len(points)
    assert len(scan.sample(1000, np.random.default_rng(0))) == 1000
    assert time.perf_counter() - began < 20
