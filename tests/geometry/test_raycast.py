"""First hits against a sphere, whose distances are known."""

import numpy as np
import pytest
import trimesh

from shapespace.geometry.raycast import Raycaster


@pytest.fixture(scope="module")
def ball() -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=5, radius=0.5)


def test_first_hit_of_a_sphere(ball: trimesh.Trimesh) -> None:
    rng = np.random.default_rng(0)
    origins = rng.normal(size=(500, 3))
    origins *= 2 / np.linalg.norm(origins, axis=1, keepdims=True)
    aims = rng.uniform(-0.25, 0.25, size=(500, 3))
    directions = (aims - origins) * 0.5  # not unit: distances are in lengths of the direction
    distance, face = Raycaster(ball.vertices, ball.faces).first_hit(origins, directions)
    hits = origins + distance[:, None] * directions
    assert np.abs(np.linalg.norm(hits, axis=1) - 0.5).max() < 5e-4
    assert (np.einsum("nd,nd->n", hits, directions) < 0).all()  # the near side
    centers = ball.triangles_center[face]
    assert np.linalg.norm(hits - centers, axis=1).max() < 0.03  # and the face is the one that was hit


def test_a_miss_is_infinitely_far(ball: trimesh.Trimesh) -> None:
    distance, face = Raycaster(ball.vertices, ball.faces).first_hit(
        np.array([[0.0, 0.0, 2.0]]), np.array([[0.0, 0.0, 1.0]])
    )
    assert np.isinf(distance[0])
    assert face[0] == -1


def test_faces_are_hit_from_inside(ball: trimesh.Trimesh) -> None:
    distance, face = Raycaster(ball.vertices, ball.faces).first_hit(np.zeros((1, 3)), np.array([[0.0, 1.0, 0.0]]))
    assert distance[0] == pytest.approx(0.5, abs=1e-3)
    assert face[0] >= 0
