"""Metrics of shapes in closed form, and reference implementations of the fast code."""

import igl
import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from trimesh import Trimesh

from shapespace.evaluation import metrics
from shapespace.evaluation.metrics import METRICS, score, summarize
from shapespace.geometry.scan import Scan
from shapespace.synthetic.body import Body

GENERAL = METRICS.keys() - {"part_distance", "vertex_distance"}  # which need a template as ground truth


def square(height: float = 0.0, side: float = 1.0) -> Trimesh:
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1]]) * side - [side / 2, -height, side / 2]
    return Trimesh(corners, [[0, 2, 1], [0, 3, 2]], process=False)


def sphere(radius: float = 0.5, subdivisions: int = 5) -> Trimesh:
    return trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)


def box(side: float = 1.0, shift: float = 0.0) -> Trimesh:
    mesh = trimesh.creation.box([side] * 3)
    mesh.apply_translation([shift, 0, 0])
    return mesh


def one(
    name: str, predicted: Trimesh, ground_truth: Trimesh, scan: Scan | None = None, **settings: float
) -> dict[str, float]:
    return METRICS[name].score(predicted, ground_truth, scan, np.random.default_rng(0), **settings)


def closest_on_triangles(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Least distance of each point to any triangle: to its plane where the foot is inside, else to its three edges."""
    best = np.full(len(points), np.inf)
    for corners in triangles:
        for k in range(3):
            a, edge = corners[k], corners[(k + 1) % 3] - corners[k]
            t = np.clip((points - a) @ edge / (edge @ edge), 0, 1)
            best = np.minimum(best, np.linalg.norm(points - a - t[:, None] * edge, axis=1))
        normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
        normal /= np.linalg.norm(normal)
        height = (points - corners[0]) @ normal
        foot = points - height[:, None] * normal
        sides = [np.cross(corners[(k + 1) % 3] - corners[k], foot - corners[k]) @ normal for k in range(3)]
        best = np.where(np.min(sides, axis=0) >= 0, np.minimum(best, np.abs(height)), best)
    return best


# ------------------------------------------------------------------------------------------------------------- surface


def test_surface_is_zero_between_equal_meshes_and_the_gap_between_parallel_ones() -> None:
    assert one("surface_distance", sphere(), sphere()) == pytest.approx({"completeness": 0, "accuracy": 0}, abs=1e-9)
    assert one("surface_distance", square(0.003), square()) == pytest.approx({"completeness": 3, "accuracy": 3})


def test_surface_of_concentric_spheres_and_capsules_is_the_difference_of_their_radii() -> None:
    row = one("surface_distance", sphere(0.52), sphere(0.50))
    assert row == pytest.approx({"completeness": 20, "accuracy": 20}, rel=0.01)
    thin, thick = (trimesh.creation.capsule(1.0, radius, count=[128, 128]) for radius in (0.10, 0.105))
    assert one("surface_distance", thick, thin) == pytest.approx({"completeness": 5, "accuracy": 5}, rel=0.01)


def test_surface_of_a_shifted_sphere_is_half_the_shift() -> None:
    # To first order the distance at angle t from the shift is e |cos t|, whose mean over the sphere is e / 2.
    moved = sphere()
    moved.apply_translation([0, 0.004, 0])
    assert one("surface_distance", moved, sphere())["completeness"] == pytest.approx(2.0, rel=0.02)


def test_surface_keeps_its_directions_apart() -> None:
    # Half of the truth is missing: what was predicted is right, and the missing half lies up to 1 m away (mean 0.5).
    whole = trimesh.util.concatenate([square(side=1.0), square(side=1.0).apply_translation([1.0, 0, 0])])
    row = one("surface_distance", square(side=1.0), whole)
    assert row["accuracy"] == pytest.approx(0, abs=1e-9)
    assert row["completeness"] == pytest.approx(250, rel=0.02)  # half the points, mean 0.5 m


def test_surface_counts_only_seen_truth_beside_a_scan() -> None:
    seen, unseen = square(), square(height=-0.5)
    ground_truth = trimesh.util.concatenate([seen, unseen])
    grid = np.stack(np.meshgrid(np.linspace(-0.5, 0.5, 101), [0.0], np.linspace(-0.5, 0.5, 101)), -1).reshape(-1, 3)
    row = one("surface_distance", seen, ground_truth, Scan("a/b/0", grid.astype(np.float32)))
    assert row["visible_completeness"] == pytest.approx(0, abs=1e-9)
    assert row["completeness"] == pytest.approx(250, rel=0.02)
    assert row["hidden_completeness"] == pytest.approx(500, abs=1e-6)
    assert "visible_completeness" not in one("surface_distance", seen, ground_truth)
    assert "hidden_completeness" not in one("surface_distance", seen, seen, Scan("a/b/0", grid.astype(np.float32)))


def test_surface_refuses_a_scan_that_lies_elsewhere() -> None:
    far = Scan("a/b/7", np.full((5, 3), 1700.0, dtype=np.float32))
    with pytest.raises(ValueError, match=r"scan a/b/7: no point within 10 mm.*same unit"):
        one("surface_distance", sphere(), sphere(), far)


def test_surface_equals_its_plain_twin() -> None:
    rng = np.random.default_rng(3)
    predicted, ground_truth = (Trimesh(rng.normal(size=(12, 3)), rng.permutation(12).reshape(4, 3)) for _ in range(2))
    row = one("surface_distance", predicted, ground_truth, count=200)
    a, b = metrics._samples(ground_truth, predicted, 200, np.random.default_rng(0))
    plain = {
        "completeness": 1e3 * closest_on_triangles(a.points, predicted.triangles).mean(),
        "accuracy": 1e3 * closest_on_triangles(b.points, ground_truth.triangles).mean(),
    }
    assert row == pytest.approx(plain, rel=1e-9)


# ------------------------------------------------------------------------------------------- sample-to-sample metrics


def test_sample_to_sample_metrics_equal_their_plain_twins() -> None:
    predicted, ground_truth, n = sphere(0.5, 2), box(0.8), 300
    scan = Scan("a/b/0", np.random.default_rng(9).normal(size=(n, 3)))
    samples = metrics._samples(ground_truth, predicted, n, np.random.default_rng(0))
    a, b = (each.points for each in samples)
    there, back = cdist(a, b).min(axis=1), cdist(b, a).min(axis=1)
    assert one("chamfer_l1", predicted, ground_truth, count=n) == pytest.approx(
        {"chamfer": 500 * (there.mean() + back.mean())}
    )
    squares = {"chamfer": 1e6 * ((there**2).mean() + (back**2).mean())}
    assert one("chamfer_l2", predicted, ground_truth, count=n) == pytest.approx(squares)

    ahead = cdist(scan.points, b).min(axis=1)
    behind = cdist(b, scan.points).min(axis=1)
    assert one("one_sided_chamfer", predicted, ground_truth, scan, count=n) == pytest.approx(
        {
            "completeness": 1e3 * there.mean(),
            "accuracy": 1e3 * back.mean(),
            "scan_to_mesh": 1e3 * ahead.mean(),
            "mesh_to_scan": 1e3 * behind.mean(),
        }
    )
    assert one("srb", predicted, ground_truth, scan, count=n) == pytest.approx(
        {
            "chamfer": 500 * (there.mean() + back.mean()),
            "hausdorff": 1e3 * max(there.max(), back.max()),
            "scan_to_mesh": 1e3 * ahead.mean(),
            "scan_to_mesh_max": 1e3 * ahead.max(),
        }
    )


def test_srb_takes_a_truth_of_points_whole() -> None:
    cloud = Trimesh(np.array([[0.0, 0.25, 0], [0.1, 0.25, 0.1]]), process=False)
    row = one("srb", square(), cloud, count=50_000)
    assert row["hausdorff"] > 600  # the square's far corners
    assert row["chamfer"] > 0.5 * 250


def test_sample_to_sample_distances_have_a_floor_that_shrinks_with_the_root_of_the_count() -> None:
    floors = [one("chamfer_l1", sphere(), sphere(), count=count)["chamfer"] for count in (5_000, 20_000)]
    assert floors[0] / floors[1] == pytest.approx(2, rel=0.05)
    # The mean distance to the nearest of n random points on area A is 0.5 sqrt(A / n).
    assert floors[1] == pytest.approx(500 * np.sqrt(sphere().area / 20_000), rel=0.03)
    assert one("surface_distance", sphere(), sphere(), count=20_000)["completeness"] < 1e-9


# --------------------------------------------------------------------------------------------- the other mesh metrics


def test_hausdorff_finds_the_tip_of_a_spike() -> None:
    ground_truth = sphere(0.5, 4)
    spiked = ground_truth.copy()
    spiked.vertices[7] *= 1 + 0.1 / 0.5
    row = one("hausdorff", spiked, ground_truth, count=1000)
    assert row["accuracy"] == pytest.approx(100)
    assert row["both"] == row["accuracy"] > row["completeness"] > 0
    back = one("hausdorff", ground_truth, spiked, count=1000)
    assert (back["completeness"], back["accuracy"]) == pytest.approx((100, row["completeness"]), rel=0.2)


def test_normals_measure_the_angle_of_a_turned_plane_and_do_not_notice_orientation() -> None:
    turned = square()
    turned.apply_transform(trimesh.transformations.rotation_matrix(np.radians(30), [1, 0, 0]))
    cos = np.cos(np.radians(30))
    wanted = {"completeness": cos, "accuracy": cos, "consistency": cos, "angle": 30}
    assert one("normal_consistency", turned, square(), count=500) == pytest.approx(wanted)
    inside_out = sphere(0.5, 3)
    inside_out.invert()
    same = one("normal_consistency", inside_out, sphere(0.5, 3), count=500)
    assert same == pytest.approx({"completeness": 1, "accuracy": 1, "consistency": 1, "angle": 0}, abs=1e-4)


def test_normals_tell_the_two_ways_apart() -> None:
    wall = square().apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0], [0, 0, 0.5]))
    row = one("normal_consistency", trimesh.util.concatenate([square(), wall]), square(), count=4000)
    assert row["completeness"] == pytest.approx(1, abs=0.01)
    assert row["accuracy"] == pytest.approx(0.5, abs=0.03)
    assert row["angle"] == pytest.approx(22.5, abs=1.5)


def test_fscore_steps_from_nothing_to_all_at_the_gap() -> None:
    assert one("fscore", square(0.003), square(), count=500) == {"f_1mm": 0, "f_5mm": 1, "f_10mm": 1, "f_1pct": 1}
    assert one("fscore", square(0.003), square(side=0.25), count=500)["f_1pct"] == 0  # 1 % of the truth's 250 mm


def test_fscore_is_the_harmonic_mean() -> None:
    whole = trimesh.util.concatenate([square(), square().apply_translation([1.0, 0, 0])])
    row = one("fscore", square(), whole)  # everything predicted is right, half is missing (and 10 mm of its border)
    recall = 0.5 * (1 + 0.010)
    assert row["f_10mm"] == pytest.approx(2 * recall / (recall + 1), abs=0.01)


def test_iou_of_boxes_and_spheres_in_closed_form() -> None:
    assert one("iou", box(), box())["iou"] == 1
    assert one("iou", box(shift=0.5), box())["iou"] == pytest.approx(1 / 3, abs=0.01)
    assert one("iou", box(shift=2.0), box())["iou"] == 0
    assert one("iou", sphere(0.4), sphere(0.5))["iou"] == pytest.approx(0.8**3, abs=0.01)
    r, d = 0.5, 0.3
    lens = np.pi * (4 * r + d) * (2 * r - d) ** 2 / 12
    both = one("iou", sphere().apply_translation([d, 0, 0]), sphere())["iou"]
    assert both == pytest.approx(lens / (2 * 4 / 3 * np.pi * r**3 - lens), abs=0.01)


def test_iou_bears_holes_and_either_orientation_but_not_a_truth_without_inside() -> None:
    holed = sphere(0.5, 4)
    holed.update_faces(np.random.default_rng(0).random(len(holed.faces)) > 0.05)
    holed.invert()
    assert one("iou", holed, sphere(0.5, 4))["iou"] > 0.97
    with pytest.raises(ValueError, match=r"ground truth \(2 faces\) contains none .* Remove iou from --metrics"):
        one("iou", sphere(), square())


# -------------------------------------------------------------------------------------------------------------- paths


def test_areas_volumes_and_sa_sigma_of_boxes() -> None:
    boxes = [box(1.0), box(2.0)]
    assert metrics.areas(boxes) == pytest.approx([6, 24])
    assert metrics.volumes(boxes) == pytest.approx([1, 8])
    inside_out = box()
    inside_out.invert()
    assert metrics.volumes([inside_out]) == pytest.approx([-1])
    assert metrics.sa_sigma(boxes) == pytest.approx(9)
    assert metrics.sa_sigma([box(), box(shift=1.0)]) == pytest.approx(0)
    with pytest.raises(ValueError, match="sa_sigma: 0 meshes"):
        metrics.sa_sigma([])


# ------------------------------------------------------------------------------------------------- rows and summaries


def test_score_gives_rows_that_do_not_depend_on_their_neighbors() -> None:
    predicted = sphere(0.51, 3)
    both = score(["chamfer_l1", "surface_distance"], predicted, sphere(0.5, 3))
    assert list(both) == ["chamfer_l1", "surface_distance"]
    assert both["surface_distance"] == score(["surface_distance"], predicted, sphere(0.5, 3))["surface_distance"]
    assert (
        both["surface_distance"] != score(["surface_distance"], predicted, sphere(0.5, 3), seed=1)["surface_distance"]
    )


def test_every_metric_equals_one_by_plain_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    def closest_point(points: np.ndarray, mesh: Trimesh) -> tuple[np.ndarray, ...]:
        squared = igl.point_mesh_squared_distance(points, np.array(mesh.vertices), np.array(mesh.faces))
        return np.sqrt(squared[0]), *squared[1:]

    def nearest_point(points: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return cKDTree(others).query(points)

    def mutual_nearest(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return nearest_point(a, b)[0], nearest_point(b, a)[0]

    predicted, ground_truth = sphere(0.502, 4).apply_translation([0.003, 0, 0]), sphere(0.5, 4)
    scan = Scan("a/b/0", np.asarray(sphere(0.501, 3).vertices, dtype=np.float32))
    fast = {name: one(name, predicted, ground_truth, scan, count=5000) for name in GENERAL}
    for plain in (closest_point, nearest_point, mutual_nearest):
        monkeypatch.setattr(metrics, plain.__name__, plain)
    assert fast == {name: one(name, predicted, ground_truth, scan, count=5000) for name in GENERAL}


@pytest.mark.parametrize(
    "predicted",
    [None, Trimesh(), Trimesh(np.zeros((3, 3)), [[0, 1, 2]], process=False), "nan"],
    ids=["none", "empty", "no area", "nan"],
)
def test_score_of_nothing_is_nan_in_every_column(predicted: Trimesh | str | None) -> None:
    if predicted == "nan":
        predicted = Trimesh(np.full((3, 3), np.nan), [[0, 1, 2]], process=False)
    scan = Scan("a/b/0", np.zeros((4, 3), dtype=np.float32))
    for name, entry in METRICS.items():
        row = score([name], predicted, sphere(0.5, 2), scan)[name]
        assert set(row) == set(entry.all_units)
        assert np.isnan(list(row.values())).all()
        assert set(score([name], predicted, sphere(0.5, 2))[name]) == set(entry.units)


def test_every_metric_gives_the_columns_that_it_declares() -> None:
    predicted, ground_truth = sphere(0.5, 2), sphere(0.49, 2)
    scan = Scan("a/b/0", np.asarray(ground_truth.vertices, dtype=np.float32))
    for name in GENERAL:
        entry = METRICS[name]
        assert set(one(name, predicted, ground_truth, scan, count=500)) == set(entry.all_units), name
        assert set(one(name, predicted, ground_truth, count=500)) == set(entry.units), name
        assert "count" in entry.description
        assert len(entry.description) > 40


def test_description_tells_unit_square_and_count() -> None:
    assert "each direction (mm, unsquared)" in METRICS["surface_distance"].description
    assert METRICS["surface_distance"].description.endswith("count 30,000.")
    assert "squared" in METRICS["chamfer_l2"].description
    assert METRICS["chamfer_l2"].units == {"chamfer": "mm²"}


def test_vertex_distance_is_that_of_each_vertex_from_its_own_place() -> None:
    truth = sphere(0.5, 2)
    shift = np.zeros((len(truth.vertices), 3))
    shift[: len(shift) // 2, 1] = 0.004
    shift[0] = (0.03, 0, 0.04)
    row = score(["vertex_distance"], Trimesh(truth.vertices + shift, truth.faces, process=False), truth)
    length = 1000 * np.linalg.norm(shift, axis=1)
    expected = {"mean": length.mean(), "median": np.median(length), "p95": np.percentile(length, 95)}
    assert row["vertex_distance"] == pytest.approx(expected)
    turned = Trimesh(truth.vertices[::-1], len(shift) - 1 - truth.faces, process=False)  # the same surface
    for other in (turned, sphere(0.5, 1)):
        sentence = rf"vertex_distance: the prediction \({len(other.vertices):,} vertices, .* Use --surface template"
        with pytest.raises(ValueError, match=sentence):
            score(["vertex_distance"], other, truth)
    assert METRICS["vertex_distance"].description.endswith("true place (mm, unsquared).")


def test_an_unknown_metric_is_answered_with_the_nearest_and_all() -> None:
    with pytest.raises(
        ValueError,
        match=r"no metric 'surface'\. Did you mean surface_distance\? All metrics: surface_distance, chamfer_l1",
    ):
        score(["surface"], sphere(0.5, 1), sphere(0.5, 1))
    with pytest.raises(ValueError, match=r"no metric 'zzz'\. .* All metrics: surface_distance"):
        metrics.get_metric("zzz")


def test_a_mesh_without_faces_is_refused_by_a_metric_called_alone() -> None:
    for name in GENERAL - {"iou"}:
        with pytest.raises(ValueError, match="predicted mesh has 0 faces"):
            one(name, Trimesh(), sphere(0.5, 1), count=10)
    assert one("iou", Trimesh(), sphere(0.5, 1)) == {"iou": 0}


def test_summary_has_the_statistics_and_counts_failures_apart() -> None:
    values = np.arange(1.0, 22.0)
    rows = [{"name": f"a/b/{v:.0f}", "split": "seen", "surface_distance": {"completeness": v}} for v in values]
    rows.append({"name": "a/b/99", "split": "seen", "surface_distance": {"completeness": float("nan")}})
    rows.append({"name": "c/d/0", "split": "other", "surface_distance": {"completeness": float("nan")}})
    summary = summarize(rows)
    assert list(summary) == ["seen", "other"]
    assert summary["seen"]["surface_distance"]["completeness"] == pytest.approx(
        {"mean": 11, "median": 11, "p5": 2, "p95": 20, "count": 21, "failed": 1}
    )
    other = summary["other"]["surface_distance"]["completeness"]
    assert (other["count"], other["failed"]) == (0, 1)
    assert np.isnan([other[key] for key in ("mean", "median", "p5", "p95")]).all()


def test_summary_of_a_column_that_only_some_scans_have() -> None:
    rows = [
        {"name": "a", "split": "s", "surface_distance": {"completeness": 1.0, "visible_completeness": 0.5}},
        {"name": "b", "split": "s", "surface_distance": {"completeness": 3.0}},
    ]
    columns = summarize(rows)["s"]["surface_distance"]
    assert (columns["completeness"]["count"], columns["visible_completeness"]["count"]) == (2, 1)
    assert columns["visible_completeness"]["failed"] == 0


def test_parts_are_hands_feet_and_the_rest() -> None:
    """Feet that are cut off are missed by their own column alone."""
    body = Body.load()
    vertices, _ = body.rest_pose(np.zeros(len(body.components)))
    ground_truth, feet = Trimesh(vertices, body.faces, process=False), body.parts()["feet"]
    predicted = Trimesh(vertices, body.faces[~feet[body.faces].any(axis=1)], process=False)
    row = score(["part_distance"], predicted, ground_truth)["part_distance"]
    assert row["hands"] < 1e-3
    assert row["feet"] > 30
    assert row["rest"] < 0.5
    assert row["face"] < 1e-3
    faceless = Trimesh(vertices, body.faces[~body.face()[body.faces].any(axis=1)], process=False)
    row = score(["part_distance"], faceless, ground_truth)["part_distance"]
    assert row["face"] > 5
    assert row["hands"] < 1e-3
    with pytest.raises(ValueError, match="is not the synthetic body"):
        score(["part_distance"], predicted, predicted)
