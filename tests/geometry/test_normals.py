"""Lines against the normals of surfaces that are known."""

import numpy as np

from shapespace.geometry.normals import estimate


def test_lines_of_a_sphere_are_its_radii_up_to_their_side() -> None:
    points = np.random.default_rng(0).normal(size=(4000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    lines = estimate(points)
    cosine = (lines * points).sum(axis=1)
    np.testing.assert_allclose(np.linalg.norm(lines, axis=1), 1, atol=1e-6)
    assert np.abs(cosine).min() > 0.98


def test_lines_of_a_noisy_plane_stand_on_it() -> None:
    rng = np.random.default_rng(1)
    points = np.column_stack([rng.uniform(-1, 1, (3000, 2)), rng.normal(0, 0.002, 3000)]).astype(np.float32)
    lines = estimate(points)
    assert lines.dtype == np.float32
    assert np.median(np.abs(lines[:, 2])) > 0.99


def test_three_points_have_lines_too() -> None:
    lines = estimate(np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]))
    np.testing.assert_allclose(np.abs(lines), [[0, 0, 1]] * 3, atol=1e-9)
