"""Estimated normals against those of known surfaces."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from trimesh import Trimesh
from trimesh.creation import capsule

from shapespace.geometry.normals import (
    estimate,
    estimate_where_flat,
    orient_outward,
    orient_towards,
    single_view_direction,
)
from shapespace.geometry.scan import Scan
from shapespace.synthetic.scanner import VirtualScanner


def test_normals_of_a_sphere_are_its_radii_up_to_sign() -> None:
    points = np.random.default_rng(0).normal(size=(4000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    unoriented = estimate(points)
    cosine = (unoriented * points).sum(axis=1)
    np.testing.assert_allclose(np.linalg.norm(unoriented, axis=1), 1, atol=1e-6)
    assert np.abs(cosine).min() > 0.98


def test_normals_of_a_noisy_plane_are_perpendicular_to_it() -> None:
    rng = np.random.default_rng(1)
    points = np.column_stack([rng.uniform(-1, 1, (3000, 2)), rng.normal(0, 0.002, 3000)]).astype(np.float32)
    unoriented = estimate(points)
    assert unoriented.dtype == np.float32
    assert np.median(np.abs(unoriented[:, 2])) > 0.99


def test_three_points_have_normals() -> None:
    unoriented = estimate(np.array([[0.0, 0, 1], [1, 0, 1], [0, 1, 1]]))
    np.testing.assert_allclose(np.abs(unoriented), [[0, 0, 1]] * 3, atol=1e-9)


def test_normals_of_few_points_of_a_limb_are_unknown_or_right() -> None:
    mesh, rng = capsule(height=0.5, radius=0.04), np.random.default_rng(2)
    for count, least, most in ((2000, 0.9, 1.0), (150, 0.05, 0.7)):
        sample = Scan.from_mesh(mesh).sample(count, rng)
        assert sample.normals is not None
        lines = estimate_where_flat(sample.points)
        is_known = lines.any(axis=1)
        assert least <= is_known.mean() <= most
        np.testing.assert_allclose(np.linalg.norm(lines[is_known], axis=1), 1, atol=1e-6)
        assert (np.abs((lines * sample.normals).sum(axis=1)[is_known]) > 0.7).mean() > 0.8


def body(count: int) -> Scan:
    """A trunk between two arms that hide its sides: points and true normals."""
    rng = np.random.default_rng(0)
    parts = []
    for x, radius in ((0.0, 0.2), (-0.35, 0.08), (0.35, 0.08)):
        mesh = capsule(height=0.8, radius=radius).apply_translation([x, 0, 0])
        parts.append(Scan("", np.asarray(mesh.vertices), faces=np.asarray(mesh.faces)).sample(count, rng))
    normals = [part.normals for part in parts if part.normals is not None]
    return Scan("", np.concatenate([part.points for part in parts]), np.concatenate(normals))


def test_outward_is_the_visible_side() -> None:
    scan = body(4000)
    assert scan.normals is not None
    oriented = orient_outward(scan.points, estimate(scan.points))
    assert oriented.is_complete
    assert ((oriented.normals * scan.normals).sum(axis=1) > 0).mean() > 0.99


@pytest.mark.parametrize("turn", [(0.0, 0.0, 0.0), (0.0, 1.5, 0.0), (0.7, 2.5, -0.4)])
def test_the_sensor_of_one_view_is_inferred(turn: tuple[float, ...], make_body: Callable[..., Trimesh]) -> None:
    """A person seen by one camera from the front, the side, and behind and above; then by sixteen."""
    mesh = make_body()
    vertices = Rotation.from_rotvec(turn).apply(np.asarray(mesh.vertices))
    rng = np.random.default_rng(0)
    view = VirtualScanner(azimuths=1, elevations=(0.0,)).scan(vertices, np.asarray(mesh.faces), rng, "view")
    assert view.sensors is not None
    towards = view.sensors.mean(axis=0) - view.points.mean(axis=0)
    towards /= np.linalg.norm(towards)
    for noise in (0.0, 0.005):
        points = view.points + rng.normal(scale=noise, size=view.points.shape).astype(np.float32)
        scan = Scan("", points).infer_sensor()
        assert scan.sensors is not None
        np.testing.assert_allclose(np.linalg.norm(scan.sensors - points, axis=1), 3, rtol=1e-5)
        assert ((scan.sensors - points) @ towards).min() > 3 * 0.95
    whole = VirtualScanner().scan(vertices, np.asarray(mesh.faces), rng, "whole")
    few = whole.sample(2000, rng).points
    assert single_view_direction(few, estimate(few)) is None


def test_no_sensor_is_inferred_for_more_than_points_or_for_several_views() -> None:
    scan = body(2000)
    assert scan.normals is not None
    assert Scan("", scan.points).infer_sensor().sensors is None
    front = scan.select(np.flatnonzero(scan.normals[:, 2] > 0.5))
    assert Scan("", front.points).infer_sensor().sensors is not None
    assert front.infer_sensor() is front  # normals
    meshed = Scan("", front.points, faces=np.array([[0, 1, 2]]))
    assert meshed.infer_sensor() is meshed
    placed = Scan("", front.points, sensors=front.points - 1)
    assert placed.infer_sensor() is placed


def test_both_sides_of_a_slab_are_not_a_single_view() -> None:
    out = np.random.default_rng(0).normal(size=(2000, 3))
    points = out / np.linalg.norm(out, axis=1, keepdims=True) * (0.3, 0.85, 0.1)
    assert single_view_direction(points, estimate(points)) is None
    front = points[points[:, 2] > 0]
    np.testing.assert_allclose(single_view_direction(front, estimate(front)), [0, 0, 1], atol=0.1)


def test_normals_of_half_a_surface_stay_unoriented() -> None:
    scan = body(4000)
    half = scan.select(np.flatnonzero(scan.points[:, 1] > 0.02))
    assert not orient_outward(half.points, estimate(half.points)).is_complete
    bare = Scan("", half.points).estimate_normals()
    assert bare.normals is None
    assert bare.unoriented_normals is not None


def test_normals_point_to_the_sensor() -> None:
    scan = body(500)
    assert scan.normals is not None
    half = scan.select(np.flatnonzero(scan.normals[:, 1] > 0.3))
    seen = Scan("", half.points, sensors=half.points + np.array([0.0, 3.0, 0.0])).estimate_normals()
    assert seen.normals is not None
    assert (seen.normals[:, 1] > 0).all()
    np.testing.assert_array_equal(orient_towards(-seen.normals, np.tile([0.0, 1.0, 0.0], (len(seen), 1))), seen.normals)
