"""A scan, moved and stretched."""

import numpy as np
import pytest

from shapespace.data.scan import Scan


@pytest.mark.parametrize("factors", [(1.0, 2.0, 0.5), (-1.2, 1.0, 0.9)])
def test_a_stretched_sphere_is_an_ellipsoid_whose_normals_point_out(factors: tuple[float, float, float]) -> None:
    rng, axes = np.random.default_rng(0), np.array(factors)
    points = rng.standard_normal((500, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    scan = Scan("a/b/1", points, points, 3 * points, lines=-points).stretched(axes)
    np.testing.assert_allclose(np.square(scan.points / axes).sum(axis=1), 1)
    slope = scan.points / axes**2  # of the implicit function of the ellipsoid
    normals = slope / np.linalg.norm(slope, axis=1, keepdims=True)
    np.testing.assert_allclose(scan.normals, normals, atol=1e-12)
    np.testing.assert_allclose(scan.lines, -normals, atol=1e-12)
    np.testing.assert_allclose(scan.sensors, 3 * scan.points)


def test_a_mirror_changes_sides_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    scan = Scan("a/b/1", rng.standard_normal((9, 3)))
    mirrored = scan.stretched(np.array([-1.0, 1.0, 1.0]))
    np.testing.assert_array_equal(mirrored.points * [-1, 1, 1], scan.points)
    assert mirrored.normals is None
