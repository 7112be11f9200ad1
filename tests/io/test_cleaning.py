"""What is no measurement is removed with a finding; what is one stays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from shapespace.geometry.scan import Scan
from shapespace.io.scan_files import read_mesh, read_scan

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(1000, 3)) * (0.2, 0.5, 0.1) + (0.3, 1, -2)
NORMALS = POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True)


def read(path: Path, **arrays: np.ndarray) -> Scan:
    np.savez(path / "x.npz", **arrays)
    return read_scan(path / "x.npz")


def codes(scan: Scan) -> list[tuple[str, Any]]:
    return [(found.code, found.values) for found in scan.findings]


@pytest.mark.parametrize("count", [3, 30, 5000])
def test_zeros_of_a_camera_are_dropped(tmp_path: Path, count: int) -> None:
    points = RNG.permutation(np.concatenate([POINTS, np.zeros((count, 3))]))
    scan = read(tmp_path, points=points)
    np.testing.assert_allclose(scan.points, points[points.any(axis=1)], rtol=1e-6)
    assert codes(scan) == [("zero-points-dropped", {"count": count, "total": 1000 + count})]


def test_one_zero_and_zeros_among_other_repeated_points_stay(tmp_path: Path) -> None:
    scan = read(tmp_path, points=np.concatenate([POINTS, np.zeros((2, 3))]))
    assert (len(scan), codes(scan)) == (1002, [])
    grid = np.round(2 * (POINTS - POINTS.mean(axis=0)))  # (0, 0, 0) is a voxel as others
    scan = read(tmp_path, points=grid)
    assert (len(scan), codes(scan)) == (1000, [])


def test_zeros_that_were_moved_with_the_cloud_are_dropped(tmp_path: Path) -> None:
    scan = read(tmp_path, points=np.concatenate([POINTS, np.tile([4.0, 5, 6], (300, 1))]))
    np.testing.assert_allclose(scan.points, POINTS, rtol=1e-6)
    assert codes(scan) == [("repeated-points-dropped", {"count": 300, "total": 1300, "point": "(4, 5, 6)"})]


def test_every_point_twice_is_left_alone(tmp_path: Path) -> None:
    scan = read(tmp_path, points=np.repeat(POINTS, 30, axis=0))
    assert (len(scan), codes(scan)) == (30_000, [])


def test_rows_of_normals_and_sensors_follow_their_points(tmp_path: Path) -> None:
    points = np.concatenate([np.zeros((50, 3)), POINTS])
    normals, sensors = np.concatenate([np.ones((50, 3)), NORMALS]), np.concatenate([np.ones((50, 3)), POINTS + 1])
    scan = read(tmp_path, points=points, normals=normals, sensors=sensors)
    np.testing.assert_allclose(scan.normals, NORMALS, atol=1e-6)
    np.testing.assert_allclose(scan.sensors, POINTS + 1, atol=1e-6)


def test_few_normals_of_length_zero_are_dropped_with_their_points_many_with_all_normals(tmp_path: Path) -> None:
    some, many = NORMALS.copy(), NORMALS.copy()
    some[[3, 5]], many[::2] = 0, 0
    scan = read(tmp_path, points=POINTS, normals=some)
    np.testing.assert_allclose(scan.points, np.delete(POINTS, [3, 5], axis=0), rtol=1e-6)
    np.testing.assert_allclose(scan.normals, np.delete(NORMALS, [3, 5], axis=0), atol=1e-6)
    assert codes(scan) == [("points-without-normals-dropped", {"count": 2, "total": 1000})]
    scan = read(tmp_path, points=POINTS, normals=many)
    assert (len(scan), scan.normals) == (1000, None)
    assert codes(scan) == [("normals-dropped", {"count": 500, "total": 1000})]
    np.savez(tmp_path / "x.npz", points=POINTS, normals=many)
    assert codes(read_scan(tmp_path / "x.npz", normals="drop")) == []


@pytest.mark.parametrize(("levels", "dropped"), [((0, 1, 2), True), ((1.0, 0.0), True), ((7,), False)])
def test_points_of_the_lowest_confidence_are_dropped(tmp_path: Path, levels: tuple[float, ...], dropped: bool) -> None:
    confidence = np.resize(levels, 1000)
    if levels[0] == 1:
        confidence[: len(confidence) // 2 + 100] = 1  # a mask that excludes few
    table = np.column_stack([POINTS, confidence])
    kept = confidence > min(levels) if dropped else np.ones(1000, dtype=bool)
    rows = "".join(" ".join(f"{value:.6f}" for value in row) + "\n" for row in table)
    header = "ply\nformat ascii 1.0\nelement vertex 1000\n"
    properties = "".join(f"property float {name}\n" for name in ("x", "y", "z", "confidence"))
    (tmp_path / "x.ply").write_text(header + properties + "end_header\n" + rows)
    (tmp_path / "x.txt").write_text("x y z confidence\n" + rows)
    for name in ("x.ply", "x.txt"):
        scan = read_scan(tmp_path / name)
        np.testing.assert_allclose(scan.points, POINTS[kept], atol=1e-6)
        values = {"level": min(levels), "median": np.median(confidence)}
        count = {"count": int((~kept).sum()), "total": 1000, **values}
        assert codes(scan) == ([("low-confidence-points-dropped", count)] if dropped else [])


@pytest.mark.parametrize(("low", "dropped"), [((0, 20), 300), ((-20, 0), 0), ((60, 90), 0)])
def test_points_of_less_than_half_of_the_median_confidence_are_dropped(
    tmp_path: Path, low: tuple[float, float], dropped: int
) -> None:
    confidence = np.concatenate([RNG.uniform(*low, 300), RNG.uniform(60, 90, 700)])
    rows = np.column_stack([POINTS, confidence])
    (tmp_path / "x.csv").write_text("x,y,z,confidence\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    scan = read_scan(tmp_path / "x.csv")
    assert (len(scan), len(codes(scan))) == (1000 - dropped, int(dropped > 0))


def test_rows_that_are_partly_nan_or_infinite_are_dropped(tmp_path: Path) -> None:
    points = POINTS.copy()
    points[3, 2], points[5], points[7, 0] = np.nan, np.inf, -np.inf
    scan = read(tmp_path, points=points, normals=NORMALS)
    np.testing.assert_allclose(scan.points, np.delete(POINTS, [3, 5, 7], axis=0), rtol=1e-6)
    np.testing.assert_allclose(scan.normals, np.delete(NORMALS, [3, 5, 7], axis=0), atol=1e-6)
    assert codes(scan) == [("unmeasured-points-dropped", {"count": 3, "total": 1000})]


def test_normals_that_are_nan_are_none(tmp_path: Path) -> None:
    some, many = NORMALS.copy(), NORMALS.copy()
    some[[3, 5]], many[::2] = np.nan, np.nan
    scan = read(tmp_path, points=POINTS, normals=some)
    np.testing.assert_allclose(scan.points, np.delete(POINTS, [3, 5], axis=0), rtol=1e-6)
    assert codes(scan) == [("points-without-normals-dropped", {"count": 2, "total": 1000})]
    scan = read(tmp_path, points=POINTS, normals=many)
    assert (len(scan), scan.normals) == (1000, None)
    assert codes(scan) == [("normals-dropped", {"count": 500, "total": 1000})]


def test_single_points_far_away_are_dropped_and_parts_of_a_scene_are_not(tmp_path: Path) -> None:
    scan = read(tmp_path, points=np.concatenate([POINTS, [[0, 90, 0]]]))
    assert len(scan) == 1000
    ((code, values),) = codes(scan)
    assert (code, values["count"], values["faces"]) == ("far-points-dropped", 1, 0)
    assert 85 < values["distance"] < 90
    scan = read(tmp_path, points=np.concatenate([POINTS, POINTS[:30] + np.array([40, 0, 0])]))
    assert (len(scan), codes(scan)) == (1030, [])


def body() -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(4)
    mesh.apply_scale((0.3, 0.8, 0.2))
    return mesh


def test_invalid_vertices_of_a_mesh_are_dropped_with_their_faces(tmp_path: Path) -> None:
    mesh = body()
    points = np.array(mesh.vertices)
    points[7], points[9, 1] = np.nan, np.inf
    scan = read(tmp_path, points=points, faces=mesh.faces)
    assert len(scan) == len(points) - 2
    ((code, values),) = codes(scan)
    gone = np.isin(mesh.faces, [7, 9]).any(axis=1)
    assert code == "invalid-vertices-dropped"
    assert values == {"count": 2, "total": len(points), "first": 7, "faces": int(gone.sum())}
    whole = points[mesh.faces[~gone]]
    np.testing.assert_allclose(scan.points[scan.faces], whole, atol=1e-6)


@pytest.mark.parametrize("height", [3.0, 100.0])
def test_vertices_of_no_face_and_spikes_are_dropped_with_few_faces(tmp_path: Path, height: float) -> None:
    mesh = body()
    room = RNG.uniform(-height, height, (400, 3))
    scan = read(tmp_path, points=np.concatenate([room, mesh.vertices]), faces=mesh.faces + 400)
    np.testing.assert_allclose(scan.points, mesh.vertices, atol=1e-6)
    np.testing.assert_array_equal(scan.faces, mesh.faces)
    assert codes(scan) == [("unused-vertices-dropped", {"count": 400, "total": 400 + len(mesh.vertices)})]
    points = np.array(mesh.vertices)
    points[11] = (0, height, 0)
    scan = read(tmp_path, points=points, faces=mesh.faces)
    ((code, values),) = codes(scan)
    assert (code, values["count"], values["faces"]) == (
        "far-points-dropped",
        1,
        int((mesh.faces == 11).any(axis=1).sum()),
    )
    assert np.abs(scan.points).max() < 0.81


def test_a_registered_mesh_keeps_all_its_vertices(tmp_path: Path) -> None:
    """Vertices of no face inside of the mesh (eyes, joints), and long faces, are no errors."""
    mesh = body()
    inside = np.concatenate([mesh.vertices, np.zeros((3, 3))])
    scan = read(tmp_path, points=inside, faces=mesh.faces)
    assert (len(scan), codes(scan)) == (len(inside), [])
    box = trimesh.creation.box((0.5, 1.7, 0.3)).subdivide_loop(0)
    for _ in range(3):
        box = box.subdivide()
    scan = read(tmp_path, points=box.vertices, faces=box.faces)
    assert (len(scan), codes(scan)) == (len(box.vertices), [])
    far = np.concatenate([mesh.vertices, [[50, 0, 0]]])
    np.savez(tmp_path / "x.npz", points=far, faces=mesh.faces)
    assert len(read_mesh(tmp_path / "x.npz").vertices) == len(far)  # vertices that correspond are not removed
