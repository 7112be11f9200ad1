import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shapespace.geometry.scan import MIN_POINTS, Scan
from shapespace.io.formats import readable_suffixes
from shapespace.io.scan_files import read_bytes, read_faces, read_mesh, read_scan, read_scans, write_mesh, write_scan
from shapespace.io.units import UNITS, axis_rotation, to_world

UPS = ("x", "y", "z", "-x", "-y", "-z")


def capsule() -> trimesh.Trimesh:
    """Off center and along z, so that swapped or mirrored axes show."""
    mesh = trimesh.creation.capsule(height=1.2, radius=0.3, count=(12, 12))
    mesh.apply_translation((0.1, 0.2, 0.4))
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def scan_of(mesh: trimesh.Trimesh, **extra: np.ndarray) -> Scan:
    return Scan("a/b/000001", mesh.vertices.astype(np.float32), faces=mesh.faces.astype(np.int32), **extra)


def cloud(count: int = 200) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3))


def unit_vectors(count: int = 200) -> np.ndarray:
    vectors = np.random.default_rng(1).normal(size=(count, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# ----------------------------------------------------------------------------------------------------- units and axes


@pytest.mark.parametrize("up", UPS)
def test_each_up_axis_is_turned_to_y_without_a_mirror(up):
    turned = to_world(np.eye(3), up=up)
    assert np.linalg.det(turned) == pytest.approx(1)
    np.testing.assert_allclose(turned @ turned.T, np.eye(3))
    sign = -1 if up.startswith("-") else 1
    np.testing.assert_array_equal(sign * turned["xyz".index(up[-1])], [0, 1, 0])


@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("unit", UNITS.values())
def test_a_scan_comes_back_through_any_unit_and_axis(tmp_path, up, unit):
    drawn = scan_of(capsule(), sensors=np.repeat(np.eye(3, dtype=np.float32), 200, axis=0)[: len(capsule().vertices)])
    write_scan(tmp_path / "s.ply", drawn, unit=unit, up=up)
    back = read_scan(tmp_path / "s.ply", name=drawn.name, unit=unit, up=up)
    np.testing.assert_allclose(back.points, drawn.points, atol=1e-6)
    np.testing.assert_allclose(back.sensors, drawn.sensors, atol=1e-6)
    np.testing.assert_array_equal(back.faces, drawn.faces)
    in_file = trimesh.load_mesh(tmp_path / "s.ply", process=False)
    assert in_file.volume == pytest.approx(capsule().volume / unit**3, rel=1e-4)
    assert np.ptp(in_file.vertices, axis=0)["xyz".index(up[-1])] == pytest.approx(0.6 / unit, rel=1e-4)


def test_normals_turn_and_stay_of_unit_length(tmp_path):
    drawn = scan_of(capsule()).sample(500, np.random.default_rng(0))
    write_scan(tmp_path / "s.ply", drawn, unit=0.001, up="z")
    back = read_scan(tmp_path / "s.ply", unit=0.001, up="z")
    assert back.faces is None
    np.testing.assert_allclose(back.normals, drawn.normals, atol=1e-6)
    np.testing.assert_allclose(back.points, drawn.points, atol=1e-6)


def test_rows_where_nothing_was_measured_are_left_out(tmp_path):
    points, normals = capsule().vertices.copy(), capsule().vertex_normals.copy()
    there = np.arange(len(points)) % 10 > 0
    points[~there], normals[~there] = np.nan, np.nan  # as in the organised clouds of PCL, normals included
    np.savez(tmp_path / "s.npz", points=points, normals=normals, sensors=np.where(there[:, None], 1.0, points))
    scan = read_scan(tmp_path / "s.npz")
    np.testing.assert_allclose(scan.points, points[there], atol=1e-6)
    np.testing.assert_allclose(scan.normals, normals[there], atol=1e-6)
    assert len(scan.sensors) == there.sum()


def test_an_unknown_axis_is_refused():
    with pytest.raises(ValueError, match=r"--up w: unknown up axis\. Choose one of y, -y, "):
        axis_rotation("w")


def test_the_unit_of_files_is_guessed_or_given(tmp_path):
    for name, size in (("a", 165), ("b", 172)):
        points = size * np.random.default_rng(0).uniform(-0.5, 0.5, (300, 3))
        np.save(tmp_path / f"{name}.npy", points)
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    scans, unit = read_scans(paths)
    assert unit.name == "cm"
    assert [scan.name for scan in scans] == ["a", "b"]
    given, certain = read_scans(paths, unit="cm")
    assert certain == ("cm", 1.0)
    for guessed, scan, path in zip(scans, given, paths, strict=True):
        np.testing.assert_allclose(guessed.points, scan.points, rtol=1e-6)
        np.testing.assert_array_equal(read_scan(path, unit="auto").points, guessed.points)
        np.testing.assert_array_equal(read_bytes(path.read_bytes(), unit="auto").points, guessed.points)


# ------------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb"])
def test_a_written_mesh_comes_back_vertex_by_vertex(tmp_path, suffix):
    mesh, path = capsule(), tmp_path / "deep" / f"m{suffix}"
    write_mesh(path, mesh, unit=0.01, up="-z")
    back = read_mesh(path, unit=0.01, up="-z")
    np.testing.assert_allclose(back.vertices, mesh.vertices, atol=1e-6)
    np.testing.assert_array_equal(back.faces, mesh.faces)


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".off", ".stl", ".glb", ".gltf"])
def test_the_formats_of_trimesh_are_read_outward_and_unmirrored(tmp_path, suffix):
    capsule().export(tmp_path / f"m{suffix}")
    scan = read_scan(tmp_path / f"m{suffix}")
    mesh = trimesh.Trimesh(scan.points, scan.faces)
    assert mesh.volume == pytest.approx(capsule().volume, rel=1e-4)
    np.testing.assert_allclose(mesh.bounds, capsule().bounds, atol=1e-6)


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
def test_ply_of_either_encoding(tmp_path, encoding):
    (tmp_path / "m.ply").write_bytes(trimesh.exchange.ply.export_ply(capsule(), encoding=encoding))
    scan = read_scan(tmp_path / "m.ply")
    np.testing.assert_allclose(scan.points, capsule().vertices, atol=1e-6)
    np.testing.assert_array_equal(scan.faces, capsule().faces)


def test_big_endian_ply_of_quads_with_comments_and_colors(tmp_path):
    grid = np.stack(np.meshgrid(np.arange(11), np.arange(11), [0], indexing="ij"), axis=-1).reshape(-1, 3)
    quads = np.array(
        [[11 * i + j, 11 * i + j + 11, 11 * i + j + 12, 11 * i + j + 1] for i in range(10) for j in range(10)]
    )
    rows = np.zeros(121, dtype=[("p", ">f8", 3), ("red", "u1")])
    rows["p"] = grid
    faces = np.zeros(100, dtype=[("n", "u1"), ("i", ">i4", 4)])
    faces["n"], faces["i"] = 4, quads
    header = (
        "ply\nformat binary_big_endian 1.0\ncomment made by hand\nelement vertex 121\nproperty double x\n"
        "property double y\nproperty double z\nproperty uchar red\nelement face 100\n"
        "property list uchar int vertex_indices\nend_header\n"
    )
    (tmp_path / "q.ply").write_bytes(header.encode() + rows.tobytes() + faces.tobytes())
    scan = read_scan(tmp_path / "q.ply")
    np.testing.assert_array_equal(scan.points, grid)
    mesh = trimesh.Trimesh(scan.points, scan.faces, process=False)
    assert mesh.area == pytest.approx(100)
    np.testing.assert_allclose(mesh.face_normals, np.tile([0, 0, 1], (200, 1)))


def test_obj_keeps_its_order_with_texture_seams_and_negative_indices(tmp_path):
    mesh = capsule()
    lines = [f"v {x} {y} {z}" for x, y, z in mesh.vertices] + ["vt 0 0", "vt 1 1"]
    count = len(mesh.vertices)
    lines += [f"f {a + 1}/1 {b - count}/2 {c + 1}/1" for a, b, c in mesh.faces]
    (tmp_path / "m.obj").write_text("\n".join(lines))
    back = read_mesh(tmp_path / "m.obj")
    np.testing.assert_allclose(back.vertices, mesh.vertices, atol=1e-6)
    np.testing.assert_array_equal(back.faces, mesh.faces)


def test_obj_may_have_a_byte_order_mark_comments_behind_numbers_and_vertices_that_are_none(tmp_path):
    mesh = capsule()
    lines = [f"v {x} {y} {z} # vertex" for x, y, z in mesh.vertices] + ["v -nan(ind) -1.#IND nan"]
    lines += [f"f {a + 1} {b + 1} {c + 1} # face" for a, b, c in mesh.faces]
    (tmp_path / "m.obj").write_text("\n".join(lines), encoding="utf-8-sig")
    scan = read_scan(tmp_path / "m.obj")
    np.testing.assert_allclose(scan.points, mesh.vertices, atol=1e-6)
    np.testing.assert_array_equal(scan.faces, mesh.faces)
    assert [found.code for found in scan.findings] == ["invalid-vertices-dropped"]


def test_binary_stl_with_other_bytes_behind_or_a_count_that_was_not_filled_in(tmp_path):
    data = trimesh.exchange.stl.export_stl(capsule())
    for name, content in {
        "solid": b"solid of a scanner".ljust(80) + data[80:],
        "tail": data + b"made by",
        "count": data[:80] + bytes(4) + data[84:],
    }.items():
        (tmp_path / f"{name}.stl").write_bytes(content)
        scan = read_scan(tmp_path / f"{name}.stl")
        np.testing.assert_allclose(scan.points[scan.faces], capsule().triangles, atol=1e-6)
        assert [found.code for found in scan.findings] == (["trailing-data-ignored"] if name == "tail" else [])
    (tmp_path / "cut.stl").write_bytes(data[:-70])
    with pytest.raises(ValueError, match=r"cut\.stl: truncated\. The header declares [\d,]+ triangles"):
        read_scan(tmp_path / "cut.stl")


def test_the_parts_of_a_scene_stand_where_it_puts_them_mirrored_ones_outward(tmp_path):
    mirror = np.diag([-1.0, 1, 1, 1])
    mirror[:3, 3] = (-3, 0, 0)
    scene = trimesh.Scene()
    scene.add_geometry(capsule(), geom_name="body", node_name="one")
    scene.graph.update("two", matrix=mirror, geometry="body")
    scene.export(tmp_path / "s.glb")
    mesh = read_mesh(tmp_path / "s.glb")
    assert mesh.volume == pytest.approx(2 * capsule().volume, rel=1e-4)
    assert mesh.bounds[0, 0] == pytest.approx(-3 - capsule().bounds[1, 0], abs=1e-5)


def test_arrays_and_tables(tmp_path):
    points, normals = cloud(), unit_vectors()
    both = np.hstack([points, 0.9 * normals])
    np.save(tmp_path / "p.npy", points)
    np.save(tmp_path / "n.npy", both)
    np.savetxt(tmp_path / "n.xyz", both, header="x y z nx ny nz")
    np.savetxt(tmp_path / "n.csv", both, delimiter=", ")
    np.savetxt(tmp_path / "p.txt", points, delimiter="\t")
    np.savez(tmp_path / "n.npz", pos=points, normals=normals, sensors=points + 1)
    for name in ("p.npy", "n.npy", "n.xyz", "n.csv", "p.txt", "n.npz"):
        scan = read_scan(tmp_path / name)
        np.testing.assert_allclose(scan.points, points, atol=1e-6)
        assert scan.faces is None
        assert (scan.normals is None) == name.startswith("p")
        if scan.normals is not None:
            np.testing.assert_allclose(scan.normals, normals, atol=1e-6)
    np.testing.assert_allclose(read_scan(tmp_path / "n.npz").sensors, points + 1, atol=1e-6)


def test_an_npz_may_hold_a_mesh_and_faces_may_lie_apart(tmp_path):
    mesh = capsule()
    np.savez(tmp_path / "m.npz", vertices=mesh.vertices, faces=mesh.faces.astype(np.uint32))
    np.save(tmp_path / "f.npy", mesh.faces.astype(np.uint32))
    mesh.export(tmp_path / "m.ply")
    assert read_mesh(tmp_path / "m.npz").volume == pytest.approx(mesh.volume, rel=1e-5)
    np.testing.assert_array_equal(read_faces(tmp_path / "f.npy"), mesh.faces)
    np.testing.assert_array_equal(read_faces(tmp_path / "m.ply"), mesh.faces)


def test_normals_are_kept_required_or_dropped(tmp_path):
    np.savez(tmp_path / "n.npz", points=cloud(), normals=unit_vectors())
    np.savez(tmp_path / "p.npz", points=cloud())
    write_scan(tmp_path / "m.ply", scan_of(capsule()))
    assert read_scan(tmp_path / "n.npz", normals="require").normals is not None
    assert read_scan(tmp_path / "n.npz", normals="drop").normals is None
    assert read_scan(tmp_path / "m.ply", normals="require").faces is not None
    with pytest.raises(ValueError, match=r"p\.npz: 200 points without faces or normals.* --normals auto"):
        read_scan(tmp_path / "p.npz", normals="require")


def test_the_name_is_that_of_the_file_unless_given(tmp_path):
    np.save(tmp_path / "anna.npy", cloud())
    assert read_scan(tmp_path / "anna.npy").name == "anna"
    assert read_scan(tmp_path / "anna.npy", name="a/b/1").name == "a/b/1"


# ------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("sensors", [2, 300])
def test_each_sensor_is_written_once_and_the_bytes_repeat(tmp_path, sensors):
    points = cloud(1000).astype(np.float32)
    origins = np.random.default_rng(2).normal(size=(sensors, 3)).astype(np.float32)
    scan = Scan("s", points, None, origins[np.arange(1000) % sensors])
    write_scan(tmp_path / "a.ply", scan)
    write_scan(tmp_path / "b.ply", scan)
    data = (tmp_path / "a.ply").read_bytes()
    assert f"element sensor {sensors}\n".encode() in data
    assert data == (tmp_path / "b.ply").read_bytes()
    np.testing.assert_array_equal(read_scan(tmp_path / "a.ply").sensors, scan.sensors)


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path):
    scan = Scan("s", np.full((200, 3), 3e38, dtype=np.float32))
    with pytest.raises(ValueError, match=r"s\.ply: coordinates of 3e\+38 are too large for float32"):
        write_scan(tmp_path / "s.ply", scan, unit=0.001)
    with pytest.raises(ValueError, match=r"cannot write a mesh with suffix '\.vtk'\. Use one of \.ply, \.obj, \.glb"):
        write_mesh(tmp_path / "m.vtk", capsule())
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------------------- errors


def _ply(cut: int = 0) -> bytes:
    data = trimesh.exchange.ply.export_ply(capsule())
    return data[: len(data) - cut]


def _npz(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, **arrays)


def _with(values: np.ndarray, row: int | tuple[int, int], value: float) -> np.ndarray:
    values = values.copy()
    values[row] = value
    return values


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty": ("s.ply", lambda p: p.write_bytes(b""), r"s\.ply: empty \(0 bytes\)\. Copy it again"),
    "truncated": (
        "s.ply",
        lambda p: p.write_bytes(_ply(cut=40)),
        r"s\.ply: truncated\. The header declares at least [\d,]+ bytes",
    ),
    "truncated header": ("s.ply", lambda p: p.write_bytes(_ply()[:60]), "truncated inside the header"),
    "stl": ("s.ply", lambda p: p.write_bytes(b"solid nothing\n" * 50), "contains STL and is named PLY"),
    "no ply": ("s.ply", lambda p: p.write_bytes(b"nothing here\n" * 50), "truncated inside the header, or not a PLY"),
    "truncated ascii": (
        "s.ply",
        lambda p: p.write_bytes(trimesh.exchange.ply.export_ply(capsule(), encoding="ascii")[:-3000]),
        "truncated. The header declares .* rows of face, .* are readable|truncated. The header declares at least",
    ),
    "mixed polygons": (
        "s.ply",
        lambda p: p.write_bytes(
            _ply()[:-13] + b"\x04" + _ply()[-12:]
        ),  # the last triangle says that it has four corners
        r"not a valid PLY file \(a list of 4 values in face, and the file ends before",
    ),
    "no vertices": (
        "s.ply",
        lambda p: p.write_bytes(b"ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nend_header\n"),
        "the header declares no vertices",
    ),
    "nothing measured": ("s.npy", lambda p: np.save(p, np.full((200, 3), np.nan)), ": 0 points, at least"),
    "infinite": ("s.npy", lambda p: np.save(p, np.full((200, 3), np.inf)), "200 of 200 points have NaN or infinite"),
    "one point": ("s.npy", lambda p: np.save(p, cloud(1)), f": 1 points, at least {MIN_POINTS} are required"),
    "same points": ("s.npy", lambda p: np.save(p, np.ones((200, 3))), "all 200 points are equal"),
    "too large": ("s.npy", lambda p: np.save(p, cloud() * 1e300), "too large for float32"),
    "flat": ("s.npy", lambda p: np.save(p, cloud().ravel()), r"array of shape \(600,\)\. Save \(n, 3\) points"),
    "text array": ("s.npy", lambda p: np.save(p, cloud().astype(str)), "array of <U32 .* Save an array of numbers"),
    "objects": ("s.npy", lambda p: np.save(p, np.array([{}] * 200, dtype=object)), "not a valid NPY file"),
    "object npz": ("s.npz", lambda p: _npz(p, points=np.array([{}] * 200, dtype=object)), "not a valid NPZ file"),
    "no key": ("s.npz", lambda p: _npz(p, a=cloud(), b=cloud()), "contains a, b and none of points, vertices"),
    "nan sensors": (
        "s.npz",
        lambda p: _npz(p, points=cloud(), sensors=_with(unit_vectors(), 3, np.nan)),
        "1 of 200 sensors have NaN",
    ),
    "few normals": (
        "s.npz",
        lambda p: _npz(p, points=cloud(), normals=unit_vectors(5)),
        ": 5 normals for 200 points",
    ),
    "few sensors": ("s.npz", lambda p: _npz(p, points=cloud(), sensors=cloud(5)), ": 5 sensors for 200 points"),
    "face range": (
        "s.npz",
        lambda p: _npz(p, points=cloud(), faces=np.array([[0, 1, 2], [0, 1, 200]])),
        r"1 of 2 faces have vertices outside 0\.\.199 \(lowest 0, highest 200\)",
    ),
    "face kind": ("s.npz", lambda p: _npz(p, points=cloud(), faces=cloud()), "Save triangles: integers"),
    "face zero": (
        "s.obj",
        lambda p: p.write_text("v 0 0 1\n" * 200 + "f 0 1 2\n"),
        "corner 0, and OBJ indices start",
    ),
    "words": ("s.txt", lambda p: p.write_text("these are\nmy notes\n"), "not a valid TXT file"),
    "suffix": ("s.docx", lambda p: p.write_bytes(b"x"), r"unknown suffix '\.docx'\. Pass a file .* \.npz, \.obj"),
    "folder": ("s.ply", lambda p: p.mkdir(), r"s\.ply: is a folder\. Pass a file"),
    "garbage": (
        "s.glb",
        lambda p: p.write_bytes(bytes(range(256))),
        "not a valid GLB file .*Copy it again, or export",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_gives_one_sentence_that_names_it(tmp_path, case):
    name, make, message = BAD[case]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message) as error:
        read_scan(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.ply: no such file\. Check the path"):
        read_scan(tmp_path / "x.ply")


def test_points_are_no_mesh_and_points_are_no_faces(tmp_path):
    np.save(tmp_path / "p.npy", cloud())
    with pytest.raises(ValueError, match=": 200 points and no faces"):
        read_mesh(tmp_path / "p.npy")
    with pytest.raises(ValueError, match="Save triangles: integers"):
        read_faces(tmp_path / "p.npy")
    np.save(tmp_path / "e.npy", np.zeros((0, 3), dtype=np.int32))
    with pytest.raises(ValueError, match=r"e\.npy: (no faces|not a valid)"):
        read_faces(tmp_path / "e.npy")


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian"])
def test_a_header_is_not_believed_before_the_size_is_looked_at(tmp_path, encoding):
    header = f"ply\nformat {encoding} 1.0\nelement vertex 1000000000000\n"
    (tmp_path / "s.ply").write_text(
        header + "property float x\nproperty float y\nproperty float z\nend_header\n0 0 0\n"
    )
    np.save(tmp_path / "s.npy", cloud())
    array = (tmp_path / "s.npy").read_bytes().replace(b"(200, 3), }      ", b"(99999999999, 3),}")
    (tmp_path / "s.npy").write_bytes(array)
    tracemalloc.start()
    for name, message in (("s.ply", "s.ply: truncated"), ("s.npy", "not a valid NPY file")):
        with pytest.raises(ValueError, match=message):
            read_scan(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".ply", ".ascii.ply", ".obj", ".npy", ".npz", ".glb", ".xyz"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_ends_in_a_scan_or_in_a_sentence(tmp_path, suffix, data):
    path = tmp_path / f"whole{suffix}"
    if not path.exists():
        if suffix == ".ascii.ply":
            path.write_bytes(trimesh.exchange.ply.export_ply(capsule(), encoding="ascii"))
        elif suffix in (".npy", ".xyz"):
            np.save(path, cloud()) if suffix == ".npy" else np.savetxt(path, cloud())
        elif suffix == ".npz":
            np.savez(path, points=cloud(), normals=unit_vectors())
        else:
            capsule().export(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 8))):
        # Headers are short: half of the flips go there.
        last = data.draw(st.sampled_from([min(300, len(content)), len(content)])) - 1
        content[data.draw(st.integers(0, last))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))]
    damaged = tmp_path / f"damaged{suffix}"
    damaged.write_bytes(content)
    try:
        scan = read_scan(damaged)
    except (ValueError, OSError) as error:
        sentence = str(error)
        assert str(damaged) in sentence
        return
    assert len(scan) >= MIN_POINTS
    assert np.isfinite(scan.points).all()
    assert scan.faces is None or 0 <= scan.faces.min() <= scan.faces.max() < len(scan)


def test_suffixes_name_what_can_be_read():
    assert {
        ".ply",
        ".obj",
        ".npy",
        ".npz",
        ".xyz",
        ".glb",
        ".stl",
        ".off",
        ".png",
        ".exr",
        ".json",
    } <= readable_suffixes()
    assert not {".zip", ".h5"} & readable_suffixes()
