"""Bounding planes and connected parts of known points."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from shapespace.geometry import segmentation


def capsule(count: int = 6000) -> np.ndarray:
    """Points of a body of 1.7 m whose feet are at the origin: a cylinder of radius 0.15, both ends closed."""
    rng = np.random.default_rng(0)
    angle, height = rng.uniform(0, 2 * np.pi, count), rng.uniform(0, 1.7, count)
    side = np.stack([0.15 * np.cos(angle), height, 0.15 * np.sin(angle)], axis=1)
    lids = rng.uniform(-0.15, 0.15, (count // 10, 2))
    lids = lids[np.linalg.norm(lids, axis=1) < 0.15]
    return np.concatenate([side, *(np.stack([lids[:, 0], np.full(len(lids), y), lids[:, 1]], 1) for y in (0.0, 1.7))])


def floor(edge: float = 2.0, noise: float = 0.002) -> np.ndarray:
    rng = np.random.default_rng(1)
    x, z = rng.uniform(-edge / 2, edge / 2, (2, int(3500 * edge**2)))
    return np.stack([x, rng.normal(0, noise, len(x)), z], axis=1)


@pytest.mark.parametrize("turn", [(0, 0, 0), (1.2, -0.7, 0.4)])
def test_a_floor_is_detected_in_any_orientation(turn: tuple[float, float, float]) -> None:
    rotation = Rotation.from_rotvec(turn)
    body, ground = capsule(), floor()
    points = rotation.apply(np.concatenate([body, ground])) + np.array([3, -2, 5])
    (plane,) = segmentation.bounding_planes(points, np.random.default_rng(0))
    np.testing.assert_allclose(plane.normal, rotation.apply([0, 1, 0]), atol=5e-3)
    assert plane.height(np.array([[3.0, -2.0, 5.0]])) == pytest.approx(0, abs=2e-3)
    below = plane.below(points)
    assert below[len(body) :].mean() > 0.99
    np.testing.assert_array_equal(below[: len(body)], body[:, 1] < plane.thickness)


def test_a_corner_of_a_room_has_a_floor_and_two_walls() -> None:
    ground = floor()
    walls = [ground[:, [1, 0, 2]] + (-1, 1, 0), ground[:, [0, 2, 1]] + (0, 1, -1)]
    planes = segmentation.bounding_planes(np.concatenate([capsule(), ground, *walls]), np.random.default_rng(0))
    normals = np.array([plane.normal for plane in planes])
    np.testing.assert_allclose(normals[np.argmax(normals, axis=1).argsort()], np.eye(3)[[0, 1, 2]], atol=0.01)


@pytest.mark.parametrize("points", [capsule(), floor(0.6), capsule(300), floor()[:3], np.zeros((200, 3))])
def test_points_without_a_large_plane_have_no_bounding_plane(points: np.ndarray) -> None:
    assert segmentation.bounding_planes(points, np.random.default_rng(0)) == []


def test_a_plane_through_the_middle_is_not_a_bounding_plane() -> None:
    points = np.concatenate([capsule(), floor() + np.array([0, 0.8, 0])])
    assert segmentation.bounding_planes(points, np.random.default_rng(0)) == []


def test_parts_are_separated_by_a_gap() -> None:
    body = capsule()
    near, far = body + np.array([0.30 + 0.02, 0, 0]), body + np.array([0, 0, 0.30 + 0.15])
    assert len(np.unique(segmentation.connected_parts(np.concatenate([body, near])))) == 1
    labels = segmentation.connected_parts(np.concatenate([body, far]))
    assert set(labels[: len(body)]) == {labels[0]}
    assert set(labels[len(body) :]) == {labels[-1]}
    assert labels[0] != labels[-1]


def test_few_sparse_points_are_one_part() -> None:
    assert set(segmentation.connected_parts(capsule(500))) == {0}
