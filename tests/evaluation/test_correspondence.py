"""Scores of correspondence on registrations whose errors are known."""

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation
from trimesh import Trimesh

from shapespace.data.registration import vertex_areas
from shapespace.evaluation import correspondence
from shapespace.evaluation.correspondence import RegisteredScan


def sphere() -> Trimesh:
    return trimesh.creation.icosphere(subdivisions=3, radius=0.5)


def tilt(angle: float) -> Float[np.ndarray, "3 3"]:
    return Rotation.from_rotvec(angle * np.array([1, 2, 3]) / np.sqrt(14)).as_matrix()


def registered(name: str, predicted: np.ndarray, truth: np.ndarray, split: str = "test") -> RegisteredScan:
    return RegisteredScan(name, split, predicted, truth)


def grid(size: int = 21) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]:
    """A flat sheet of one square meter in the plane z = 0."""
    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size), indexing="ij")
    corner = (np.arange(size - 1)[:, None] * size + np.arange(size - 1)).ravel()
    faces = np.concatenate(
        [
            np.stack([corner, corner + size, corner + 1], 1),
            np.stack([corner + size, corner + size + 1, corner + 1], 1),
        ]
    )
    return np.stack([x.ravel(), y.ravel(), np.zeros(size * size)], axis=1), faces.astype(np.int64)


def test_a_moved_mesh_is_off_by_the_way_it_was_moved_in_millimeters() -> None:
    vertices = sphere().vertices.view(np.ndarray)
    step = np.array([0.003, -0.004, 0.012])
    np.testing.assert_allclose(correspondence.vertex_errors(vertices + step, vertices), 13, atol=1e-9)
    np.testing.assert_allclose(correspondence.pose_transfer_error(vertices + step, vertices), 0, atol=1e-9)


def test_pose_transfer_keeps_rotation_and_size() -> None:
    vertices = sphere().vertices.view(np.ndarray)
    np.testing.assert_allclose(correspondence.pose_transfer_error(1.02 * vertices, vertices), 10, atol=1e-6)
    turned = correspondence.pose_transfer_error(vertices @ tilt(0.1).T + 3, vertices)
    axis = np.array([1, 2, 3]) / np.sqrt(14)
    radius = np.linalg.norm(np.cross(vertices, axis), axis=1)
    np.testing.assert_allclose(turned, 1000 * 2 * np.sin(0.05) * radius, atol=1e-6)


def test_another_template_is_refused() -> None:
    with pytest.raises(ValueError, match=r"4 predicted vertices, but 3 true ones. Give a registration by the same"):
        correspondence.vertex_errors(np.zeros((4, 3)), np.zeros((3, 3)))


def test_scores_are_mean_median_percentile_and_the_mean_by_region() -> None:
    errors = np.arange(101.0)
    low = np.arange(101) <= 10
    scores = correspondence.score_errors(errors, {"low": low, "high": ~low})
    assert (scores.mean, scores.median, scores.p95) == (50, 50, 95)
    assert scores.regions == {"low": 5, "high": 55.5}
    assert list(scores.row()) == ["mean", "median", "p95", "low", "high"]


def test_vertices_count_by_their_area() -> None:
    """As if every vertex was there as often as its area says."""
    errors, areas = np.array([5.0, 1, 3, 2]), np.array([1.0, 6, 1, 12])
    scores = correspondence.score_errors(errors, {"last": np.arange(4) >= 2}, areas)
    plain = errors.repeat(areas.astype(int))
    assert (scores.mean, scores.median, scores.p95) == (plain.mean(), 2, 3)
    assert scores.regions["last"] == pytest.approx(27 / 13)
    assert np.isnan(correspondence.score_errors(np.full(4, np.nan), areas=areas).median)
    mesh = sphere()
    of_vertices = vertex_areas(np.asarray(mesh.vertices), np.asarray(mesh.faces))
    assert of_vertices.sum() == pytest.approx(mesh.area)
    assert of_vertices[0] == pytest.approx(mesh.area_faces[(mesh.faces == 0).any(axis=1)].sum() / 3)


def test_a_region_without_vertices_is_refused() -> None:
    with pytest.raises(ValueError, match=r"region 'tail' has 0 of 5 vertices. Leave it out"):
        correspondence.score_errors(np.ones(5), {"tail": np.zeros(5, dtype=bool)})


def test_true_registrations_carry_every_point_to_its_place() -> None:
    mesh = sphere()
    a, b = mesh.vertices.view(np.ndarray), mesh.vertices * (1.0, 1.3, 0.8) @ tilt(0.4).T
    errors = correspondence.carried_errors(registered("a", a, a), registered("b", b, b), mesh.faces)
    np.testing.assert_allclose(errors, 0, atol=1e-6)


def test_what_slides_on_the_source_is_carried_with_it() -> None:
    """The registered sheet slides by 20 mm on the true one: points are carried 20 mm back, but not over the edge."""
    vertices, faces = grid()
    slid = vertices + np.array([0.02, 0, 0])
    errors = correspondence.carried_errors(registered("a", slid, vertices), registered("b", vertices, vertices), faces)
    on_edge = vertices[:, 0] == 0
    np.testing.assert_allclose(errors[~on_edge], 20, atol=1e-6)
    np.testing.assert_allclose(errors[on_edge], 0, atol=1e-6)


def test_distance_from_the_surface_on_the_source_costs_nothing_and_on_the_target_its_length() -> None:
    vertices, faces = grid()
    lifted = vertices + np.array([0, 0, 0.007])
    off, true = registered("a", lifted, vertices), registered("b", vertices, vertices)
    np.testing.assert_allclose(correspondence.carried_errors(off, true, faces), 0, atol=1e-6)
    np.testing.assert_allclose(correspondence.carried_errors(true, off, faces), 7, atol=1e-6)


def test_equal_slides_on_both_sides_cancel() -> None:
    """A template that slides alike on both people still carries points between them."""
    mesh = sphere()
    truth, slid = mesh.vertices.view(np.ndarray), mesh.vertices @ tilt(0.05).T
    a, b = registered("a", slid, truth), registered("b", slid, truth)
    chord = 1000 * (0.5 - np.linalg.norm(mesh.triangles_center, axis=1).min())  # faces are inside of the sphere
    assert correspondence.carried_errors(a, b, mesh.faces).max() <= chord
    assert correspondence.vertex_errors(slid, truth).mean() > 15


def test_faces_without_area_carry_by_a_corner() -> None:
    vertices, faces = grid(3)
    collapsed = vertices.copy()
    collapsed[:] = vertices[4]
    errors = correspondence.carried_errors(
        registered("a", collapsed, vertices), registered("b", vertices, vertices), faces
    )
    assert np.isfinite(errors).all()


@pytest.mark.parametrize("bad", [0, 1])
def test_a_failed_registration_carries_nothing(bad: int) -> None:
    vertices, faces = grid(3)
    failed = vertices.copy()
    failed[2] = np.nan
    source, target = (registered(str(end), failed if end == bad else vertices, vertices) for end in (0, 1))
    assert np.isnan(correspondence.carried_errors(source, target, faces)).all()


def some_scans() -> list[RegisteredScan]:
    vertices, _ = grid(3)
    names = ["p/walk/0", "p/walk/1", "q/walk/0", "r/walk/0"]
    splits = ["unseen_people", "unseen_people", "unseen_people", "unseen_poses"]
    return [
        RegisteredScan(
            name,
            split,
            vertices + np.array([0, 0, 0.001 * place]),
            vertices,
            vertices[:2] + np.array([0, 0.002, 0]),
            vertices[:2],
        )
        for place, (name, split) in enumerate(zip(names, splits, strict=True))
    ]


def test_pairs_are_of_two_people_of_one_split_and_every_scan_takes_its_turn() -> None:
    pairs = correspondence.choose_carried_pairs(some_scans(), 30)
    assert len(pairs) == 30
    assert {source.name for source, _ in pairs[:3]} == {"p/walk/0", "p/walk/1", "q/walk/0"}
    assert all(a.subject != b.subject and a.split == b.split for a, b in pairs)
    assert {b.name for _, b in pairs} == {"p/walk/0", "p/walk/1", "q/walk/0"}
    again = correspondence.choose_carried_pairs(some_scans(), 30)
    assert [(a.name, b.name) for a, b in again] == [(a.name, b.name) for a, b in pairs]


def test_one_person_alone_has_no_pairs() -> None:
    assert correspondence.choose_carried_pairs(some_scans()[:2], 5) == []


def test_the_report_has_a_row_per_scan_and_pair_and_statistics_by_split(tmp_path: Path) -> None:
    _, faces = grid(3)
    edge = np.arange(9) < 3
    report = correspondence.make_correspondence_report(
        some_scans(), faces, regions={"edge": edge}, pairs=2, settings={"run": "demo"}
    )
    report.write(tmp_path)
    stored = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert stored["settings"] == {"pairs": 2, "seed": 0, "run": "demo"}
    assert stored["metrics"]["joint_error"]["units"] == {"mean": "mm", "median": "mm", "p95": "mm"}
    of_people = stored["summary"]["unseen_people"]
    assert of_people["vertex_error"]["edge"] == pytest.approx(
        {"mean": 1, "median": 1, "p5": 0.1, "p95": 1.9, "count": 3, "failed": 0}
    )
    assert of_people["joint_error"]["mean"]["mean"] == pytest.approx(2)
    assert of_people["carried_error"]["mean"]["count"] == 2
    assert stored["summary"]["unseen_poses"]["vertex_error"]["p95"]["mean"] == pytest.approx(3)
    assert " to " in stored["rows"][-1]["name"]
    assert "vertex_error.edge [mm]" in report.csv()


def test_a_failed_registration_is_counted_and_left_out() -> None:
    vertices, faces = grid(3)
    failed = registered("s/walk/0", np.full_like(vertices, np.nan), vertices, "unseen_people")
    report = correspondence.make_correspondence_report([*some_scans()[:3], failed], faces)
    column = report.summary["unseen_people"]["vertex_error"]["mean"]
    assert (column["count"], column["failed"]) == (3, 1)
    assert column["mean"] == pytest.approx(1)
    assert "carried_error" not in report.metrics
