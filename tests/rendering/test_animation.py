"""Animated GLB: nodes with scales for any meshes, morph targets for the motion of one mesh."""

import json
import os
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from trimesh import Trimesh

from shapespace.rendering.animation import write_animated_glb
from shapespace.rendering.renderer import CLAY

RED = (200, 20, 20)
WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
KINDS = {5121: "u1", 5125: "<u4", 5126: "<f4"}


def sphere() -> Trimesh:
    return trimesh.creation.icosphere(subdivisions=4, radius=0.5)


def red_box() -> Trimesh:
    mesh = trimesh.creation.box((1, 1, 1))
    return Trimesh(mesh.vertices, mesh.faces, vertex_colors=np.tile(RED, (8, 1)), process=False)


class Glb:
    """A GLB taken apart by its specification: header, JSON chunk, binary chunk."""

    def __init__(self, path: Path):
        data = path.read_bytes()
        magic, version, length = struct.unpack("<4sII", data[:12])
        size, kind = struct.unpack("<I4s", data[12:20])
        assert (magic, version, length, kind) == (b"glTF", 2, len(data), b"JSON")
        self.tree: dict[str, Any] = json.loads(data[20 : 20 + size])
        binary, kind = struct.unpack("<I4s", data[20 + size : 28 + size])
        assert (kind, 28 + size + binary) == (b"BIN\0", len(data))
        self.binary = data[28 + size :]

    def values(self, index: int) -> np.ndarray:
        accessor = self.tree["accessors"][index]
        view = self.tree["bufferViews"][accessor["bufferView"]]
        kind, width = KINDS[accessor["componentType"]], WIDTHS[accessor["type"]]
        start = view["byteOffset"] + accessor.get("byteOffset", 0)
        needed = accessor["count"] * width * np.dtype(kind).itemsize
        assert start % 4 == 0
        assert start + needed <= view["byteOffset"] + view["byteLength"] <= len(self.binary)
        return np.frombuffer(self.binary, kind, accessor["count"] * width, start).reshape(-1, width)

    def shown(self, time: float) -> list[str]:
        """Names of the nodes with scale 1 at a time; every other must have scale 0."""
        animation, nodes = self.tree["animations"][0], self.tree["nodes"]
        names = []
        for channel in animation["channels"]:
            sampler = animation["samplers"][channel["sampler"]]
            times = self.values(sampler["input"])[:, 0]
            scale = self.values(sampler["output"])[max(int(np.searchsorted(times, time, side="right")) - 1, 0)]
            assert scale.tolist() in ([0, 0, 0], [1, 1, 1])
            names += [nodes[channel["target"]["node"]]["name"]] if scale[0] else []
        return names

    def frames(self) -> list[dict[str, np.ndarray]]:
        """Positions and normals of the only mesh: the base, then the base plus each morph target."""
        (mesh,) = self.tree["meshes"]
        (primitive,) = mesh["primitives"]
        base = {name: self.values(primitive["attributes"][name]).astype(np.float64) for name in ("POSITION", "NORMAL")}
        posed = [{name: base[name] + self.values(target[name]) for name in base} for target in primitive["targets"]]
        return [base, *posed]

    def posed(self, time: float) -> np.ndarray:
        """Positions of the only mesh at a time: base plus the targets times the interpolated weights."""
        (primitive,) = self.tree["meshes"][0]["primitives"]
        (sampler,) = self.tree["animations"][0]["samplers"]
        times, targets = self.values(sampler["input"])[:, 0], primitive["targets"]
        weights = self.values(sampler["output"]).reshape(len(times), len(targets))
        now = [np.interp(time, times, column) for column in weights.T]
        deltas = [self.values(target["POSITION"]) for target in targets]
        return self.values(primitive["attributes"]["POSITION"]) + np.tensordot(now, deltas, axes=1)


def grown(count: int) -> list[Trimesh]:
    return [trimesh.creation.icosphere(subdivisions=1 + k % 2, radius=0.5 + 0.1 * k) for k in range(count)]


@pytest.mark.parametrize("back", [True, False])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_animation_shows_one_frame_at_a_time_and_goes_back_if_asked(tmp_path: Path, count: int, back: bool) -> None:
    path = tmp_path / "walk.glb"
    write_animated_glb(grown(count), path, seconds=2.0, back=back)
    glb = Glb(path)
    step = 2.0 / (count - 1)
    order = [*range(count), *(range(count - 2, 0, -1) if back else [])]
    for slot, frame in enumerate(order):
        for moment in (slot + 0.01, slot + 0.5, slot + 0.99):
            assert glb.shown(moment * step) == [f"frame_{frame:04d}"]
    ends = [glb.values(s["input"])[-1, 0] for s in glb.tree["animations"][0]["samplers"]]
    assert ends == pytest.approx([len(order) * step] * count)  # the last frame is shown as long as the others
    assert os.listdir(tmp_path) == ["walk.glb"]


def test_animation_keeps_to_the_specification(tmp_path: Path) -> None:
    write_animated_glb(grown(4), tmp_path / "walk.glb")
    glb = Glb(tmp_path / "walk.glb")
    tree = glb.tree
    animation = tree["animations"][0]
    targets = [channel["target"]["node"] for channel in animation["channels"]]
    assert len(set(targets)) == len(targets) == 4
    for channel in animation["channels"]:
        assert channel["target"]["path"] == "scale"
        assert "matrix" not in tree["nodes"][channel["target"]["node"]]  # forbidden for animated nodes
        sampler = animation["samplers"][channel["sampler"]]
        assert sampler["interpolation"] == "STEP"
        times, scales = glb.values(sampler["input"]), glb.values(sampler["output"])
        accessor = tree["accessors"][sampler["input"]]
        assert (np.diff(times[:, 0]) > 0).all()
        assert times[0] == 0
        assert len(times) == len(scales)
        assert (accessor["min"], accessor["max"]) == (times.min(axis=0).tolist(), times.max(axis=0).tolist())
    at_rest = {node["name"]: node["scale"] for node in tree["nodes"] if "scale" in node}
    assert at_rest == {f"frame_{k:04d}": [1.0] * 3 if k == 0 else [0.0] * 3 for k in range(4)}
    for mesh in tree["meshes"]:
        (primitive,) = mesh["primitives"]
        normals = glb.values(primitive["attributes"]["NORMAL"])
        positions = glb.values(primitive["attributes"]["POSITION"])
        assert np.linalg.norm(normals, axis=1) == pytest.approx(1, abs=1e-5)
        assert (normals * positions).sum(axis=1).min() > 0  # outward, for spheres around the origin
        assert glb.values(primitive["indices"]).max() == len(positions) - 1
        assert tree["materials"][primitive["material"]]["name"] == "clay"
    assert len(tree["materials"]) == 1


def test_animation_reads_back_through_trimesh_with_the_first_frame_at_rest(tmp_path: Path) -> None:
    meshes = grown(3)
    write_animated_glb(meshes, tmp_path / "walk.glb")
    scene = trimesh.load_scene(tmp_path / "walk.glb", process=False)
    assert sorted(scene.geometry) == ["frame_0000", "frame_0001", "frame_0002"]
    for k, mesh in enumerate(meshes):
        read = scene.geometry[f"frame_{k:04d}"]
        assert read.vertices == pytest.approx(np.asarray(mesh.vertices), abs=1e-6)
        assert read.faces.tolist() == mesh.faces.tolist()
    assert scene.bounds == pytest.approx(meshes[0].bounds)


def test_animation_keeps_colors_drops_unused_vertices_and_does_not_change_the_meshes(tmp_path: Path) -> None:
    loose = Trimesh(np.array([[9.0, 9, 9], [0, 0, 0], [1, 0, 0], [0, 1, 0]]), [[1, 2, 3]], process=False)
    painted = red_box()
    before = [np.array(mesh.vertices) for mesh in (loose, painted)]
    write_animated_glb([loose, painted], tmp_path / "pair.glb")
    glb = Glb(tmp_path / "pair.glb")
    first, second = (mesh["primitives"][0] for mesh in glb.tree["meshes"])
    assert len(glb.values(first["attributes"]["POSITION"])) == 3
    assert "COLOR_0" not in first["attributes"]
    colors = glb.values(second["attributes"]["COLOR_0"])
    np.testing.assert_allclose(
        255 * (colors[:, :3] / 255) ** (1 / 2.2), np.tile(RED, (8, 1)), atol=4
    )  # 8 bits of light
    assert (colors[:, 3] == 255).all()
    assert [glb.tree["materials"][p["material"]]["name"] for p in (first, second)] == ["clay", "painted"]
    assert all((mesh.vertices == old).all() for mesh, old in zip((loose, painted), before, strict=True))


def test_animation_of_one_frame_is_a_plain_mesh_and_of_none_is_refused(tmp_path: Path) -> None:
    write_animated_glb(grown(1), tmp_path / "one.glb")
    assert "animations" not in Glb(tmp_path / "one.glb").tree
    with pytest.raises(ValueError, match=r"none\.glb: no meshes for an animation"):
        write_animated_glb([], tmp_path / "none.glb")
    with pytest.raises(ValueError, match="frame 1 of 2 has no faces"):
        write_animated_glb([sphere(), Trimesh()], tmp_path / "none.glb")
    assert os.listdir(tmp_path) == ["one.glb"]


def test_the_same_meshes_give_the_same_animation(tmp_path: Path) -> None:
    for name in ("a.glb", "b.glb"):
        write_animated_glb(grown(3), tmp_path / name)
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()


# ------------------------------------------------------------------------------------------------- motion of one mesh


def motion(count: int, colors: np.ndarray | None = None) -> list[Trimesh]:
    """A sphere that is bent further in each frame; its faces stay."""
    rest = trimesh.creation.icosphere(subdivisions=2, radius=0.5)
    frames = []
    for k in range(count):
        angle = 0.4 * k * rest.vertices[:, 1]
        x, y, z = rest.vertices.T
        bent = np.stack([np.cos(angle) * x + np.sin(angle) * z + 0.1 * k, y, np.cos(angle) * z - np.sin(angle) * x], 1)
        frames.append(Trimesh(bent, rest.faces, process=False, vertex_colors=colors))
    return frames


@pytest.mark.parametrize("count", [2, 3, 7])
def test_motion_of_one_mesh_is_a_base_and_a_target_for_each_later_frame(tmp_path: Path, count: int) -> None:
    meshes = motion(count)
    write_animated_glb(meshes, tmp_path / "walk.glb")
    glb = Glb(tmp_path / "walk.glb")
    frames = glb.frames()
    assert len(frames) == count
    for mesh, frame in zip(meshes, frames, strict=True):
        np.testing.assert_allclose(frame["POSITION"], mesh.vertices, rtol=0, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(frame["NORMAL"], axis=1), 1, rtol=0, atol=1e-6)
        corners = frame["POSITION"][mesh.faces]
        cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])  # area times two: the weights
        summed = np.zeros_like(frame["NORMAL"])
        np.add.at(summed, mesh.faces, cross[:, None])
        expected = summed / np.linalg.norm(summed, axis=1, keepdims=True)
        np.testing.assert_allclose(frame["NORMAL"], expected, rtol=0, atol=1e-4)  # float32 corners of small faces
    (mesh,) = glb.tree["meshes"]
    assert mesh["weights"] == [0] * (count - 1)
    assert mesh["extras"]["targetNames"] == [f"frame_{k:04d}" for k in range(1, count)]


@pytest.mark.parametrize("back", [True, False])
@pytest.mark.parametrize("count", [2, 5])
def test_motion_passes_linearly_through_its_frames_in_order(tmp_path: Path, count: int, back: bool) -> None:
    meshes = motion(count)
    write_animated_glb(meshes, tmp_path / "walk.glb", seconds=2.0, back=back)
    glb = Glb(tmp_path / "walk.glb")
    (animation,) = glb.tree["animations"]
    (sampler,), (channel,) = animation["samplers"], animation["channels"]
    assert sampler["interpolation"] == "LINEAR"
    assert (channel["sampler"], channel["target"]["path"]) == (0, "weights")
    assert glb.tree["nodes"][channel["target"]["node"]]["mesh"] == 0
    step = 2.0 / (count - 1)
    order = [*range(count), *([*range(count - 2, 0, -1), 0] if back else [count - 1])]
    times, weights = glb.values(sampler["input"])[:, 0], glb.values(sampler["output"])
    assert times == pytest.approx(step * np.arange(len(order)))
    assert len(weights) == len(order) * (count - 1)
    one_hot = [[float(frame == target) for target in range(1, count)] for frame in order]
    assert weights.reshape(len(order), count - 1).tolist() == one_hot
    for slot, (now, later) in enumerate(pairwise(order)):
        for part in (0.0, 0.3, 0.5, 1.0):
            expected = (1 - part) * meshes[now].vertices + part * meshes[later].vertices
            np.testing.assert_allclose(glb.posed((slot + part) * step), expected, rtol=0, atol=2e-6)


def check_layout(glb: Glb) -> None:
    """The rules of the glTF 2.0 specification for buffer views, accessors, morph targets and animation samplers."""
    tree = glb.tree
    (buffer,), end = tree["buffers"], 0
    assert buffer["byteLength"] <= len(glb.binary) < buffer["byteLength"] + 4
    for view in tree["bufferViews"]:
        assert view["byteOffset"] == end  # no gaps, no overlaps
        assert view["byteOffset"] % 4 == 0
        end += view["byteLength"]
    assert end == buffer["byteLength"]
    for index, accessor in enumerate(tree["accessors"]):
        values = glb.values(index)  # checks the alignment, and that the view holds the values
        size = values.size * values.itemsize
        assert size <= tree["bufferViews"][accessor["bufferView"]]["byteLength"] < size + 4
        assert np.isfinite(values).all()
        assert (accessor["min"], accessor["max"]) == (values.min(axis=0).tolist(), values.max(axis=0).tolist())
    (primitive,) = tree["meshes"][0]["primitives"]
    count = tree["accessors"][primitive["attributes"]["POSITION"]]["count"]
    assert glb.values(primitive["indices"]).max() == count - 1
    for target in primitive["targets"]:
        assert set(target) == {"POSITION", "NORMAL"}
        for index in target.values():
            accessor = tree["accessors"][index]
            assert (accessor["count"], accessor["type"], accessor["componentType"]) == (count, "VEC3", 5126)
    for sampler in tree["animations"][0]["samplers"]:
        times = glb.values(sampler["input"])[:, 0]
        assert times[0] == 0
        assert (np.diff(times) > 0).all()
        assert tree["accessors"][sampler["output"]]["count"] == len(times) * len(primitive["targets"])
        assert tree["accessors"][sampler["output"]]["type"] == "SCALAR"


@pytest.mark.parametrize("count", [2, 6])
@pytest.mark.parametrize("colored", [True, False])
def test_motion_keeps_to_the_specification(tmp_path: Path, count: int, colored: bool) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (162, 3)).astype(np.uint8) if colored else None
    write_animated_glb(motion(count, colors), tmp_path / "walk.glb")
    glb = Glb(tmp_path / "walk.glb")
    check_layout(glb)
    (primitive,) = glb.tree["meshes"][0]["primitives"]
    (material,) = glb.tree["materials"]
    assert primitive["material"] == 0
    if colors is None:
        assert "COLOR_0" not in primitive["attributes"]
        assert material["pbrMetallicRoughness"]["baseColorFactor"][:3] == pytest.approx(np.power(CLAY, 2.2), abs=1e-4)
    else:
        stored = glb.values(primitive["attributes"]["COLOR_0"])
        assert (stored[:, :3] == np.rint(255 * (colors / 255) ** 2.2)).all()
        assert material["pbrMetallicRoughness"]["baseColorFactor"] == [1, 1, 1, 1]


def test_motion_reads_back_through_trimesh_as_its_first_frame(tmp_path: Path) -> None:
    meshes = motion(4)
    write_animated_glb(meshes, tmp_path / "walk.glb")
    (read,) = trimesh.load_scene(tmp_path / "walk.glb", process=False).geometry.values()
    np.testing.assert_allclose(read.vertices, meshes[0].vertices, rtol=0, atol=1e-6)
    assert read.faces.tolist() == meshes[0].faces.tolist()


def test_motion_drops_unused_vertices_in_all_frames(tmp_path: Path) -> None:
    plain = motion(3)
    loose = [Trimesh(np.insert(m.vertices, 5, 9.0 + k, 0), m.faces + (m.faces >= 5), process=False)
             for k, m in enumerate(plain)]  # fmt: skip
    for name, meshes in (("plain.glb", plain), ("loose.glb", loose)):
        write_animated_glb(meshes, tmp_path / name)
    assert (tmp_path / "plain.glb").read_bytes() == (tmp_path / "loose.glb").read_bytes()


def test_only_meshes_of_the_same_faces_and_colors_are_a_motion(tmp_path: Path) -> None:
    painted = motion(2, np.tile(RED, (162, 1)).astype(np.uint8))
    repainted = motion(2, np.tile((20, 20, 200), (162, 1)).astype(np.uint8))
    plain = motion(2)
    turned = Trimesh(plain[1].vertices, np.roll(plain[1].faces, 1, axis=1), process=False)
    pairs = {
        "same": (plain[0], plain[1], True),
        "still": (plain[0], plain[0], True),
        "painted": (*painted, True),
        "other faces": (plain[0], turned, False),
        "other colors": (painted[0], repainted[1], False),
        "no colors": (painted[0], plain[1], False),
        "new colors": (plain[0], painted[1], False),
    }
    for name, (first, second, is_motion) in pairs.items():
        write_animated_glb([first, second], tmp_path / "pair.glb")
        tree = Glb(tmp_path / "pair.glb").tree
        paths = {channel["target"]["path"] for channel in tree["animations"][0]["channels"]}
        assert (len(tree["meshes"]), paths) == ((1, {"weights"}) if is_motion else (2, {"scale"})), name


def test_a_long_motion_has_the_size_of_its_positions_and_normals(tmp_path: Path) -> None:
    count = 200
    write_animated_glb(motion(count), tmp_path / "walk.glb", back=False)
    glb = Glb(tmp_path / "walk.glb")
    check_layout(glb)
    values = 2 * 3 * 162 * count + 3 * 320 + (count + 1) * count  # vertices, faces, one weight and time for each key
    assert sum(view["byteLength"] for view in glb.tree["bufferViews"]) == 4 * values
    np.testing.assert_allclose(glb.frames()[-1]["POSITION"], motion(count)[-1].vertices, rtol=0, atol=1e-5)
