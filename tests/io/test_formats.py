"""Formats of scans: the same points, faces and normals out of each of them, however it is written."""

import bz2
import gzip
import io
import json
import lzma
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from shapespace.io.formats import CONVERSIONS
from shapespace.io.pcd import unpack_lzf
from shapespace.io.scan_files import read_bytes, read_mesh, read_scan, stem

RNG = np.random.default_rng(0)
BALL = trimesh.creation.icosphere(2)
POINTS = (BALL.vertices * (0.3, 0.8, 0.2)).astype(np.float32)
FACES = BALL.faces.astype(np.int32)
NORMALS = BALL.vertices.astype(np.float32)
XYZ = "property float x\nproperty float y\nproperty float z\n"


def ply(elements: str, body: bytes, encoding: str = "binary_little_endian", comment: bytes = b"") -> bytes:
    return b"ply\nformat " + encoding.encode() + b" 1.0\n" + comment + elements.encode() + b"end_header\n" + body


def polygons(count_type: str = "u1") -> tuple[bytes, int]:
    """The faces with every tenth joined to its neighbor where they share an edge, as a binary list."""
    body, number, skip = b"", 0, set[int]()
    for a, b in BALL.face_adjacency[::3]:
        if a in skip or b in skip:
            continue
        skip |= {int(a), int(b)}
        first = [int(v) for v in FACES[a]]
        (new,) = set(FACES[b].tolist()) - set(first)
        at = next(i for i in range(3) if not {first[i], first[(i + 1) % 3]} - set(FACES[b].tolist()))
        corners = [*first[: at + 1], new, *first[at + 1 :]]
        body += np.array([4], f"<{count_type}").tobytes() + np.array(corners, "<i4").tobytes()
        number += 1
    for index, face in enumerate(FACES):
        if index not in skip:
            body += np.array([3], f"<{count_type}").tobytes() + face.astype("<i4").tobytes()
            number += 1
    return body, number


def mesh_header(faces: int, count_type: str = "uchar") -> str:
    vertices = f"element vertex {len(POINTS)}\n{XYZ}"
    return f"{vertices}element face {faces}\nproperty list {count_type} int vertex_indices\n"


def check_surface(path: Path) -> None:
    mesh = read_mesh(path)
    np.testing.assert_allclose(mesh.vertices, POINTS, atol=1e-6)
    whole = trimesh.Trimesh(POINTS, FACES, process=False)
    assert mesh.is_watertight
    assert len(mesh.faces) == len(FACES)
    assert mesh.volume == pytest.approx(whole.volume, rel=0.05)


# ----------------------------------------------------------------------------------------------------------------- PLY


@pytest.mark.parametrize("count_type", ["u1", "u4", "i2"])
def test_triangles_and_quads_in_one_ply(tmp_path: Path, count_type: str) -> None:
    body, number = polygons(count_type)
    names = {"u1": "uchar", "u4": "uint", "i2": "short"}
    (tmp_path / "x.ply").write_bytes(ply(mesh_header(number, names[count_type]), POINTS.tobytes() + body))
    check_surface(tmp_path / "x.ply")


def test_bytes_after_the_last_element_are_a_finding(tmp_path: Path) -> None:
    rows = np.column_stack([np.full(len(FACES), 3), FACES]).astype("<i4").tobytes()
    (tmp_path / "x.ply").write_bytes(ply(mesh_header(len(FACES), "int"), POINTS.tobytes() + rows + b"more data"))
    check_surface(tmp_path / "x.ply")
    assert [(found.code, found.values) for found in read_scan(tmp_path / "x.ply").findings] == [
        ("trailing-data-ignored", {"count": 9})
    ]


@pytest.mark.parametrize("line", ["\r\n", "\r"])
def test_comments_of_any_encoding_and_lines_of_any_system(tmp_path: Path, line: str) -> None:
    data = ply(f"element vertex {len(POINTS)}\n{XYZ}", b"", comment=b"comment K\xf6rper\nobj_info num_cols 4\n")
    (tmp_path / "x.ply").write_bytes(data.replace(b"\n", line.encode()) + POINTS.tobytes())
    np.testing.assert_array_equal(read_scan(tmp_path / "x.ply").points, POINTS)


def test_text_rows_over_several_lines_with_lists(tmp_path: Path) -> None:
    vertices = f"element vertex {len(POINTS)}\nproperty list uchar int seen_by\n{XYZ}"
    header = f"{vertices}element face {len(FACES)}\nproperty uchar flags\nproperty list uchar int vertex_index\n"
    lists = [" ".join(map(str, [i % 3, *range(i % 3)])) for i in range(len(POINTS))]
    body = "".join(f"{seen}\n{x} {y}\n{z}\n" for seen, (x, y, z) in zip(lists, POINTS.tolist(), strict=True))
    body += "".join(f"7\n3 {a} {b}\n{c}\n" for a, b, c in FACES.tolist())
    (tmp_path / "x.ply").write_bytes(ply(header, body.encode(), "ascii"))
    check_surface(tmp_path / "x.ply")


@pytest.mark.parametrize("order", ["<", ">"])
def test_lists_of_vertices_and_other_elements_are_skipped(tmp_path: Path, order: str) -> None:
    header = (
        "element camera 2\nproperty list uchar float matrix\nproperty short id\n"
        f"element vertex {len(POINTS)}\nproperty double x\nproperty list uchar short seen_by\nproperty float y\n"
        f"property float z\nelement range_grid 3\nproperty list uchar int vertex_indices\n"
    )
    body = b"".join(bytes([n]) + np.zeros(n, "f4").tobytes() + np.array([1], f"{order}i2").tobytes() for n in (2, 5))
    for index, (x, y, z) in enumerate(POINTS.tolist()):
        seen = np.zeros(index % 4, f"{order}i2").tobytes()
        body += struct.pack(f"{order}d", x) + bytes([index % 4]) + seen + struct.pack(f"{order}2f", y, z)
    body += b"\0" + b"\1" + np.array([7], f"{order}i4").tobytes() + b"\0"
    encoding = "binary_little_endian" if order == "<" else "binary_big_endian"
    (tmp_path / "x.ply").write_bytes(ply(header, body, encoding))
    scan = read_scan(tmp_path / "x.ply")
    np.testing.assert_allclose(scan.points, POINTS, atol=1e-7)
    assert scan.faces is None


def test_triangle_strips(tmp_path: Path) -> None:
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(20), [0], indexing="ij"), axis=-1).reshape(-1, 3)
    strips = [[v for j in range(20) for v in (20 * i + j, 20 * i + 20 + j)] + [-1] for i in range(19)]
    flat = np.concatenate(strips).astype("<i4")
    header = f"element vertex 400\n{XYZ}element tristrips 1\nproperty list int int vertex_indices\n"
    body = grid.astype("<f4").tobytes() + struct.pack("<i", len(flat)) + flat.tobytes()
    (tmp_path / "x.ply").write_bytes(ply(header, body))
    scan = read_scan(tmp_path / "x.ply")
    mesh = trimesh.Trimesh(scan.points, scan.faces, process=False)
    assert mesh.area == pytest.approx(361)
    np.testing.assert_allclose(mesh.face_normals, np.tile([0, 0, 1], (722, 1)), atol=1e-6)


def test_rows_of_text_with_too_many_numbers_are_refused(tmp_path: Path) -> None:
    body = "".join(f"{x} {y} {z} 9 9\n" for x, y, z in POINTS.tolist()).encode()
    (tmp_path / "x.ply").write_bytes(ply(f"element vertex {len(POINTS)}\n{XYZ}", body, "ascii"))
    with pytest.raises(ValueError, match=r"rows of 5 numbers, but the header declares 3 properties\. Export it again"):
        read_scan(tmp_path / "x.ply")


def test_opaque_splats_are_points(tmp_path: Path) -> None:
    opacity = np.where(np.arange(len(POINTS)) % 3 == 0, -4, 4).astype(np.float32)
    names = ("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "opacity")
    table = np.column_stack([POINTS, 0 * POINTS, opacity, opacity]).astype("<f4")
    header = f"element vertex {len(POINTS)}\n" + "".join(f"property float {name}\n" for name in names)
    (tmp_path / "x.ply").write_bytes(ply(header, table.tobytes()))
    rows = np.zeros(len(POINTS), dtype=[("p", "<f4", 3), ("s", "<f4", 3), ("c", "u1", 4), ("r", "u1", 4)])
    rows["p"], rows["c"][:, 3] = POINTS, np.where(opacity < 0, 5, 250)
    (tmp_path / "x.splat").write_bytes(rows.tobytes())
    for name in ("x.ply", "x.splat"):
        scan = read_scan(tmp_path / name)
        np.testing.assert_array_equal(scan.points, POINTS[opacity > 0])
        assert scan.normals is None
        values = {"count": int((opacity < 0).sum()), "total": len(POINTS), "opacity": 0.3}
        assert [(found.code, found.values) for found in scan.findings] == [("transparent-splats-dropped", values)]
    (tmp_path / "y.ply").write_bytes(ply(f"element vertex {len(POINTS)}\nproperty uint packed_position\n", bytes(648)))
    with pytest.raises(ValueError, match="compressed Gaussian splats"):
        read_scan(tmp_path / "y.ply")


# ---------------------------------------------------------------------------------------------------------------- glTF


class Gltf:
    """A glTF of one mesh, whose arrays are in one buffer."""

    def __init__(self, points: np.ndarray = POINTS, **primitive: Any) -> None:
        self.data, self.views, self.accessors = b"", list[Any](), list[Any]()
        attributes = {"POSITION": self.add(points, "VEC3", normalized=points.dtype.kind == "i")}
        part = {
            "attributes": attributes,
            "indices": self.add(FACES.astype("<u2").reshape(-1, 1), "SCALAR"),
            **primitive,
        }
        self.tree: dict[str, Any] = {
            "meshes": [{"primitives": [part]}],
            "nodes": [{"mesh": 0}],
            "scenes": [{"nodes": [0]}],
        }
        self.part = part

    def add(self, array: np.ndarray, kind: str, stride: int | None = None, **more: Any) -> int:
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        rows = array.view(np.uint8).reshape(len(array), -1)
        if stride:
            rows = np.pad(rows, ((0, 0), (0, stride - rows.shape[1])))
        self.views.append({"buffer": 0, "byteOffset": len(self.data), "byteLength": rows.size})
        self.views[-1] |= {"byteStride": stride} if stride else {}
        code = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}[array.dtype.str[1:]]
        self.accessors.append(
            {"bufferView": len(self.views) - 1, "componentType": code, "count": len(array), "type": kind}
        )
        self.accessors[-1] |= more
        self.data += rows.tobytes() + bytes(-rows.size % 4)
        return len(self.accessors) - 1

    def write(self, path: Path) -> None:
        tree = {
            "asset": {"version": "2.0"},
            "scene": 0,
            "accessors": self.accessors,
            "bufferViews": self.views,
            **self.tree,
        }
        tree["buffers"] = [{"byteLength": len(self.data)}]
        if path.suffix == ".gltf":
            tree["buffers"][0]["uri"] = "data.bin"
            (path.parent / "data.bin").write_bytes(self.data)
            path.write_text(json.dumps(tree))
            return
        text = json.dumps(tree).encode()
        text += b" " * (-len(text) % 4)
        chunks = (
            struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(self.data), 0x4E4942) + self.data
        )
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)


@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
def test_nodes_place_a_quantized_mesh(tmp_path: Path, suffix: str) -> None:
    gltf = Gltf(np.round(POINTS * 32767).astype("<i2"))
    gltf.accessors[0]["bufferView"] = gltf.accessors[gltf.add(np.round(POINTS * 32767).astype("<i2"), "VEC3", 8)][
        "bufferView"
    ]
    turn = Rotation.from_euler("z", 90, degrees=True)
    gltf.tree["nodes"] = [
        {"children": [1], "translation": [1e6, 0, 0]},
        {"mesh": 0, "scale": [2, 2, 2], "rotation": turn.as_quat().tolist(), "translation": [0, 0.25, 0]},
    ]
    gltf.tree["extensionsRequired"] = ["KHR_mesh_quantization"]
    gltf.write(tmp_path / f"x{suffix}")
    scan = read_scan(tmp_path / f"x{suffix}")
    placed = turn.apply(2 * POINTS.astype(np.float64)) + np.array([1e6, 0.25, 0])
    np.testing.assert_allclose(scan.points + scan.origin, placed, atol=1e-4, rtol=0)
    assert [found.code for found in scan.findings] == ["origin-moved"]


def test_weights_of_morph_targets_those_of_the_node_first(tmp_path: Path) -> None:
    gltf = Gltf()
    gltf.part["targets"] = [
        {"POSITION": gltf.add(np.tile(np.eye(3)[k], (len(POINTS), 1)).astype("<f4"), "VEC3")} for k in (0, 1)
    ]
    gltf.tree["meshes"][0]["weights"] = [0.5, 0]
    gltf.write(tmp_path / "x.glb")
    scan = read_scan(tmp_path / "x.glb")
    np.testing.assert_allclose(scan.points, POINTS + np.array([0.5, 0, 0]), atol=1e-6)
    assert [(found.code, found.values["what"]) for found in scan.findings] == [("pose-applied", "morph targets")]
    gltf.tree["nodes"][0]["weights"] = [0, -0.25]
    gltf.write(tmp_path / "x.glb")
    np.testing.assert_allclose(read_scan(tmp_path / "x.glb").points, POINTS - np.array([0, 0.25, 0]), atol=1e-6)
    gltf.tree["nodes"][0]["weights"] = [0, 0]
    gltf.write(tmp_path / "x.glb")
    assert read_scan(tmp_path / "x.glb").findings == ()


def test_a_skin_poses_the_vertices_by_its_joints_and_not_by_their_node(tmp_path: Path) -> None:
    gltf = Gltf()
    upper = POINTS[:, 1] > 0
    gltf.part["attributes"]["JOINTS_0"] = gltf.add(np.pad(upper[:, None], ((0, 0), (0, 3))).astype("u1"), "VEC4")
    weights = np.pad(np.full((len(POINTS), 1), 255), ((0, 0), (0, 3))).astype("u1")
    gltf.part["attributes"]["WEIGHTS_0"] = gltf.add(weights, "VEC4", normalized=True)
    rest, turn = np.eye(4), np.eye(4)
    rest[:3, 3] = (0, 0.1, 0)
    turn[:3, :3] = Rotation.from_euler("x", 40, degrees=True).as_matrix()
    inverse = np.stack([np.eye(4), np.linalg.inv(rest)]).transpose(0, 2, 1).reshape(2, 16).astype("<f4")
    gltf.tree["skins"] = [{"joints": [1, 2], "inverseBindMatrices": gltf.add(inverse, "MAT4")}]
    gltf.tree["nodes"] = [
        {"mesh": 0, "skin": 0, "translation": [9, 9, 9]},
        {"children": [2]},
        {"matrix": (rest @ turn).T.reshape(-1).tolist()},
    ]
    gltf.tree["scenes"] = [{"nodes": [0, 1]}]
    gltf.write(tmp_path / "x.glb")
    scan = read_scan(tmp_path / "x.glb")
    posed = trimesh.transform_points(POINTS, rest @ turn @ np.linalg.inv(rest))
    np.testing.assert_allclose(scan.points, np.where(upper[:, None], posed, POINTS), atol=1e-6)
    assert [found.code for found in scan.findings] == ["pose-applied"]


def test_draco_and_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = trimesh.exchange.gltf.export_glb(
        trimesh.Scene(trimesh.Trimesh(POINTS, FACES, process=False)), extension_draco=True
    )
    (tmp_path / "x.glb").write_bytes(data)
    assert b"KHR_draco_mesh_compression" in data
    mesh = read_mesh(tmp_path / "x.glb")
    assert mesh.volume == pytest.approx(trimesh.Trimesh(POINTS, FACES).volume, rel=1e-3)
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    with pytest.raises(ValueError, match=r"compressed by Draco, .* pip install 'shapespace\[draco\]'"):
        read_mesh(tmp_path / "x.glb")


def test_sparse_accessors_and_strips(tmp_path: Path) -> None:
    gltf = Gltf()
    indices, values = gltf.add(np.array([[3], [7]], "<u2"), "SCALAR"), gltf.add(POINTS[[3, 7]] + 1, "VEC3")
    gltf.accessors[0]["sparse"] = {
        "count": 2,
        "indices": {"bufferView": gltf.accessors[indices]["bufferView"], "componentType": 5123},
        "values": {"bufferView": gltf.accessors[values]["bufferView"]},
    }
    gltf.part |= {"mode": 5, "indices": gltf.add(np.arange(len(POINTS), dtype="<u4")[:, None], "SCALAR")}
    gltf.write(tmp_path / "x.glb")
    mesh = read_mesh(tmp_path / "x.glb")
    np.testing.assert_allclose(mesh.vertices[[2, 3, 7]], np.stack([POINTS[2], POINTS[3] + 1, POINTS[7] + 1]), atol=1e-6)
    np.testing.assert_array_equal(mesh.faces[:2], [[0, 1, 2], [2, 1, 3]])


def test_extensions_that_change_the_geometry_are_refused_by_name(tmp_path: Path) -> None:
    gltf = Gltf()
    gltf.views[0]["extensions"] = {"EXT_meshopt_compression": {}}
    gltf.write(tmp_path / "x.glb")
    with pytest.raises(ValueError, match=r"compressed by EXT_meshopt_compression\. Export it without"):
        read_scan(tmp_path / "x.glb")
    gltf = Gltf()
    gltf.tree["extensionsRequired"] = ["KHR_materials_unlit", "EXT_mesh_gpu_instancing"]
    gltf.write(tmp_path / "x.glb")
    with pytest.raises(ValueError, match=r"needs EXT_mesh_gpu_instancing, which is not supported"):
        read_scan(tmp_path / "x.glb")


# --------------------------------------------------------------------------------------------- arrays and point clouds


def test_arrays_of_any_layout(tmp_path: Path) -> None:
    points, both = POINTS[:160], np.hstack([POINTS, NORMALS])[:160]
    records = np.zeros(160, dtype=[("intensity", "u1"), ("z", "f8"), ("y", "f4"), ("x", "f4")])
    for axis, column in zip("xyz", points.T, strict=True):
        records[axis] = column
    arrays = {"p": points, "across": points.T, "both": both, "both across": both.T, "image": points.reshape(10, 16, 3)}
    for name, array in {**arrays, "records": records, "half": points.astype("f2")}.items():
        np.save(tmp_path / f"{name}.npy", array)
        scan = read_scan(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(scan.points, points, atol=1e-3 if name == "half" else 1e-7)
        assert (scan.normals is not None) == ("both" in name)
        assert [found.code for found in scan.findings] == (["array-transposed"] if "across" in name else [])
    for name, arrays in {"v": {"v": POINTS, "f": FACES}, "unnamed": {"arr_0": both}}.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    assert read_mesh(tmp_path / "v.npz").is_watertight
    np.testing.assert_allclose(read_scan(tmp_path / "unnamed.npz").normals, NORMALS[:160], atol=1e-6)


def test_arrays_of_other_programs(tmp_path: Path) -> None:
    count = 42 * 40
    points = RNG.uniform(-1, 1, (count, 3))
    image = np.column_stack([points, np.arange(count)]).reshape(42, 40, 4)
    arrays = {
        "batch": points[None],
        "single": points[:, None],
        "four channels": image,
        "channels first": np.moveaxis(image, 2, 0),
        "four rows": image.reshape(-1, 4).T,
        "records of three": np.rec.fromarrays([np.arange(count), points], dtype=[("id", "i4"), ("xyz", "f8", 3)]),
    }
    for name, array in arrays.items():
        np.save(tmp_path / "x.npy", array)
        scan = read_scan(tmp_path / "x.npy")
        np.testing.assert_allclose(scan.points, points, atol=1e-6)
        assert {found.code for found in scan.findings} == {
            *(["columns-dropped"] if "four" in name or "first" in name else []),
            *(["array-transposed"] if "rows" in name or "first" in name else []),
        }
    archives: dict[str, dict[str, np.ndarray]] = {
        "one table": {"cloud": points, "label": np.arange(count)},
        "axes": dict(zip("xyz", points.T, strict=True)),
        "one sensor": {"xyz": points, "sensors": np.array([0.0, 1, 5])},
    }
    for name, members in archives.items():
        np.savez(tmp_path / "x.npz", **members)
        scan = read_scan(tmp_path / "x.npz")
        np.testing.assert_allclose(scan.points, points, atol=1e-6)
        assert (scan.sensors is not None) == (name == "one sensor")
    np.savez(tmp_path / "x.npz", vertices=POINTS, triangles=FACES)
    assert read_mesh(tmp_path / "x.npz").is_watertight


def test_a_table_in_an_archive_is_the_scan_if_there_is_no_other(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("cloud.txt", "".join(f"{x} {y} {z}\n" for x, y, z in POINTS.tolist()))
        archive.writestr("photo.png", b"x")
    np.testing.assert_allclose(read_scan(tmp_path / "x.zip").points, POINTS, atol=1e-6)


def lzf(data: bytes) -> bytes:
    """LZF by h5py, as the only chunk of a dataset."""
    file = io.BytesIO()
    with h5py.File(file, "w") as store:
        stored = store.create_dataset("x", (len(data),), "u1", chunks=(len(data),), compression="lzf")
        stored[:] = np.frombuffer(data, "u1")
        return bytes(stored.id.read_direct_chunk((0,))[1])


@pytest.mark.parametrize("encoding", ["ascii", "binary", "binary_compressed"])
def test_pcd_with_fields_of_any_size_and_order(tmp_path: Path, encoding: str) -> None:
    count = len(POINTS) + 8
    kind = np.dtype(
        [("rgb", "<u4"), ("z", "<f8"), ("normal", "<f4", 3), ("x", "<f4"), ("histogram", "<i2", 2), ("y", "<f4")]
    )
    rows = np.zeros(count, kind)
    for axis, column in zip("xyz", POINTS.T, strict=True):
        rows[axis][: len(POINTS)], rows[axis][len(POINTS) :] = column, np.nan
    rows["normal"][: len(POINTS)] = NORMALS
    header = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS rgb z normal_x normal_y normal_z x histogram y\nSIZE 4 8 4 4 4 4 2 4\n"
        f"TYPE U F F F F F I F\nCOUNT 1 1 1 1 1 1 2 1\nWIDTH {count // 2}\nHEIGHT 2\nVIEWPOINT 0 0 0 1 0 0 0\n"
        f"POINTS {count}\nDATA {encoding}\n"
    )
    body = rows.tobytes()
    if encoding == "ascii":
        words = (np.concatenate([np.ravel(value) for value in row]) for row in rows.tolist())
        body = "".join(" ".join(f"{value:.9g}" for value in row) + "\n" for row in words).encode()
    elif encoding == "binary_compressed":
        fields = [
            rows[name][:, k] if rows[name].ndim == 2 and name == "normal" else rows[name]
            for name in kind.names or ()
            for k in range(3 if name == "normal" else 1)
        ]
        data = b"".join(np.ascontiguousarray(field).tobytes() for field in fields)
        body = struct.pack("<II", len(lzf(data)), len(data)) + lzf(data)
        assert unpack_lzf(lzf(data), len(data)) == data
    (tmp_path / "x.pcd").write_bytes(header.encode() + body)
    scan = read_scan(tmp_path / "x.pcd")
    np.testing.assert_allclose(scan.points, POINTS, atol=1e-6)
    np.testing.assert_allclose(scan.normals, NORMALS, atol=1e-6)
    assert [(found.code, found.values["count"]) for found in scan.findings] == [("unmeasured-points-dropped", 8)]
    np.testing.assert_array_equal(read_bytes((tmp_path / "x.pcd").read_bytes()).points, scan.points)


def test_colmap_binary_with_tracks(tmp_path: Path) -> None:
    rows = (
        struct.pack("<Q3d3BdQ", 7, *row, 1, 2, 3, 0.5, i % 5) + bytes(8 * (i % 5))
        for i, row in enumerate(POINTS.tolist())
    )
    (tmp_path / "points3D.bin").write_bytes(struct.pack("<Q", len(POINTS)) + b"".join(rows))
    np.testing.assert_allclose(read_scan(tmp_path / "points3D.bin").points, POINTS, atol=1e-7)


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_las_keeps_map_coordinates_and_drops_noise(tmp_path: Path, suffix: str) -> None:
    import laspy

    place = np.array([500_000.0, 4_649_776.0, 120.0])
    content = laspy.LasData(laspy.LasHeader(point_format=6, version="1.4"))
    content.header.scales, content.header.offsets = np.full(3, 1e-4), place
    content.x, content.y, content.z = np.concatenate([POINTS + place, [[500_000, 4_649_776, 160]]]).T
    content.classification = np.append(np.zeros(len(POINTS)), 18).astype("u1")
    content.write(tmp_path / f"x{suffix}")
    scan = read_scan(tmp_path / f"x{suffix}")
    np.testing.assert_allclose(scan.points + scan.origin, POINTS + place, atol=1e-4, rtol=0)
    np.testing.assert_allclose(np.ptp(scan.points, axis=0), np.ptp(POINTS, axis=0), atol=2e-4)


def test_e57_places_its_scans_and_their_scanners(tmp_path: Path) -> None:
    import pye57

    file = pye57.E57(str(tmp_path / "x.e57"), mode="w")
    turn = Rotation.from_euler("z", 30, degrees=True)
    for place in ((0.0, 0, 2), (1.0, 0, -2)):
        local = turn.inv().apply(POINTS.astype(np.float64) - place)
        columns = {f"cartesian{axis}": np.ascontiguousarray(local[:, i]) for i, axis in enumerate("XYZ")}
        file.write_scan_raw(columns, rotation=turn.as_quat()[[3, 0, 1, 2]], translation=np.array(place))
    file.close()
    scan = read_scan(tmp_path / "x.e57")
    np.testing.assert_allclose(scan.points, np.tile(POINTS, (2, 1)), atol=1e-5)
    np.testing.assert_allclose(scan.sensors[[0, -1]], [[0, 0, 2], [1, 0, -2]], atol=1e-6)


@pytest.mark.parametrize(("suffix", "module", "extra"), [(".las", "laspy", "las"), (".e57", "pye57", "e57")])
def test_without_its_package_a_format_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, module: str, extra: str
) -> None:
    (tmp_path / f"x{suffix}").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ValueError, match=rf"needs the package {module}\. Run pip install 'shapespace\[{extra}\]', or convert"
    ):
        read_scan(tmp_path / f"x{suffix}")


# ---------------------------------------------------------------------------------------------------------- containers


def test_files_in_containers_have_the_name_of_the_scan(tmp_path: Path) -> None:
    mesh = trimesh.Trimesh(POINTS, FACES, process=False)
    data = trimesh.exchange.ply.export_ply(mesh)
    written = {
        "anna.ply.gz": gzip.compress(data),
        "anna.ply.bz2": bz2.compress(data),
        "anna.ply.xz": lzma.compress(data),
        "anna.gz": gzip.compress(data),
    }
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    gltf = Gltf()
    gltf.write(tmp_path / "x.gltf")
    with zipfile.ZipFile(tmp_path / "anna.zip", "w") as archive:
        archive.write(tmp_path / "x.gltf", "anna/x.gltf")
        archive.writestr("anna/readme.txt", "scanned in May")
        archive.write(tmp_path / "data.bin", "anna/data.bin")
        archive.writestr("__MACOSX/anna/._x.gltf", b"x")
        archive.writestr("anna/texture.png", b"x")
    for name in (*written, "anna.zip"):
        scan = read_scan(tmp_path / name)
        np.testing.assert_allclose(scan.points, POINTS, atol=1e-6)
        assert scan.name == stem(tmp_path / name) == "anna"
    np.testing.assert_array_equal(read_bytes(gzip.compress(data)).faces, FACES)


def test_files_of_the_right_format_without_a_scan_say_what_to_pass(tmp_path: Path) -> None:
    broken = {
        "x.gltf": (
            b'{"asset": {"version": "1.0"}, "meshes": {"a": {}}}',
            "glTF 1.0 is not read. Convert it to glTF 2.0",
        ),
        "cameras.txt": (b"# Camera list with one line of data per camera:\n1 PINHOLE 9 9 1 1 4 4\n", "Pass its points"),
        "x.ply": (ply("element vertex 1\nproperty float px\n", bytes(4)), "vertices with px, without x, y and z"),
        "text.ply": (ply("element vertex 9\nproperty float x\n", b"1.5 -2\n" * 90), "declares binary data and text"),
        "cloud.ply": (b"# .PCD v0.7\n", r"contains PCD and is named PLY\. Rename it to cloud\.pcd\."),
        "scan.npy": (b"PK\x03\x04" + bytes(60), r"contains ZIP and is named NPY\. Rename it to scan\.zip\."),
    }
    for name, (content, message) in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_scan(tmp_path / name)


@pytest.mark.parametrize("suffix", sorted(CONVERSIONS))
def test_formats_that_are_not_read_say_how_to_convert(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"{suffix[1:].upper()} files are not read\. [A-Z].*\.$"):
        read_scan(tmp_path / f"x{suffix}")


def test_the_unit_of_depth_is_asked_for_if_nobody_is_in_the_picture(tmp_path: Path) -> None:
    from PIL import Image

    v, u = np.mgrid[:288, :200]
    inside = ((u - 99.5) / 25) ** 2 + ((v - 143.5) / 105) ** 2 < 1  # a body of 1.6 m at 2.5 m
    depth = np.where(inside, 2.5, 0)
    camera = {"width": 200, "height": 288, "fx": 330.0, "fy": 330.0, "cx": 99.5, "cy": 143.5}
    (tmp_path / "x.json").write_text(json.dumps(camera))
    for per_meter, fits in ((1000, True), (5000, False), (4000, False), (10_000, False)):
        Image.fromarray((depth * per_meter).astype(np.uint16)).save(tmp_path / "x.png")
        if fits:
            assert np.ptp(read_scan(tmp_path / "x.png").points[:, 1]) == pytest.approx(1.58, abs=0.05)
            continue
        with pytest.raises(
            ValueError, match=rf"Set depth_unit_scale_factor in .*x\.json to .*\b{1 / per_meter:g} \(a body of 1\.4"
        ):
            read_scan(tmp_path / "x.png")
    (tmp_path / "x.json").write_text(json.dumps({**camera, "depth_unit_scale_factor": 0.0001}))
    assert np.ptp(read_scan(tmp_path / "x.png").points[:, 1]) == pytest.approx(1.58, abs=0.05)
    (tmp_path / "x.json").write_text(json.dumps(camera))
    Image.fromarray((depth * 100).astype(np.uint16)).save(tmp_path / "x.png")  # centimeters
    with pytest.raises(ValueError, match=r"with 0\.001 m per value .* to 0\.01 \(a body of 1\.4"):
        read_scan(tmp_path / "x.png")
    np.save(tmp_path / "y.npy", (1000 * depth).astype(np.float32))  # floats in millimeters
    (tmp_path / "y.json").write_text(json.dumps(camera))
    with pytest.raises(ValueError, match=r"with 1 m per value .* to 0\.001 \(a body of 1\.4"):
        read_scan(tmp_path / "y.npy")


def test_a_text_ply_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    header = f"ply\nformat ascii 1.0\nelement vertex {len(POINTS)}\n{XYZ}end_header\n"
    rows = "".join(f"{x} {y} {z}\n" for x, y, z in POINTS.tolist())
    (tmp_path / "x.ply").write_text(header + rows, encoding="utf-8-sig")
    np.testing.assert_allclose(read_scan(tmp_path / "x.ply").points, POINTS, atol=1e-6)
