"""Frames, samples, closed-form distances, closest points, face normals."""

from collections.abc import Callable

import igl
import numpy as np
import pytest
import torch
import trimesh

from shapespace.data import loader
from shapespace.geometry import primitives, proximity
from shapespace.geometry.frame import Frame


def test_frame_moves_there_and_back_and_keeps_directions() -> None:
    frame = Frame(torch.tensor([1.0, 2.0, 3.0]), torch.tensor(2.0))
    world = torch.randn(10, 3)
    torch.testing.assert_close(frame.to_world(frame.to_model(world)), world)
    torch.testing.assert_close(frame.to_model(torch.tensor([[3.0, 2.0, 3.0]])), torch.tensor([[1.0, 0.0, 0.0]]))


def test_frame_of_a_batch() -> None:
    frame = Frame(torch.randn(4, 3), torch.rand(4) + 1)
    model = torch.randn(4, 5, 3)
    one = Frame(frame.center[2], frame.scale[2]).to_world(model[2])
    torch.testing.assert_close(frame.to_world(model)[2], one)


def test_near_surface_and_uniform_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    shell = loader.sample_near_surface(torch.ones(3, 800, 3), std=0.01, generator=generator)
    assert shell.shape == (3, 800, 3)
    assert abs(shell.std().item() - 0.01) < 1e-3
    assert abs(shell.mean().item() - 1) < 1e-3
    box = loader.sample_uniform((3, 1000), half_extent=0.9, generator=generator)
    assert box.shape == (3, 1000, 3)
    assert 0.89 < box.abs().max() <= 0.9
    assert abs(box.mean().item()) < 0.03


def test_shapes_are_distances() -> None:
    """|grad| is 1 almost everywhere, and stepping by the distance along the gradient lands on the surface."""
    torch.manual_seed(0)
    a, b = torch.tensor([0.2, -0.4, 0.1]), torch.tensor([-0.1, 0.5, 0.3])
    fields = {
        "sphere": lambda x: primitives.sphere(x, a, 0.3),
        "box": lambda x: primitives.box(x, torch.tensor([0.2, 0.4, 0.3])),
        "torus": lambda x: primitives.torus(x, 0.5, 0.2),
        "capsule": lambda x: primitives.capsule(x, a, b, 0.15),
    }
    for name, field in fields.items():
        x = (torch.rand(2000, 3, dtype=torch.float64) * 2 - 1).float().requires_grad_()
        value = field(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        torch.testing.assert_close(gradient.norm(dim=-1), torch.ones(2000), atol=1e-4, rtol=0, msg=name)
        landed = (x - value[:, None] * gradient).detach()
        assert field(landed).abs().quantile(0.99) < 1e-5, name
        assert value.min() < 0 < value.max(), name


def test_union_is_the_smaller_distance() -> None:
    x = torch.randn(100, 3)
    one, other = x.norm(dim=-1) - 1, (x - 1).norm(dim=-1) - 1
    assert torch.equal(primitives.union(one, other), torch.minimum(one, other))


def test_nearest_on_a_box_is_the_closed_form() -> None:
    box = trimesh.creation.box((0.4, 0.8, 0.6))
    points = np.random.default_rng(0).uniform(-1, 1, (500, 3))
    distance, face, closest = proximity.closest_point(points, box)
    expected = primitives.box(torch.from_numpy(points), torch.tensor([0.2, 0.4, 0.3], dtype=torch.float64)).abs()
    np.testing.assert_allclose(distance, expected.numpy(), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(points - closest, axis=1), distance, atol=1e-12)
    normal = box.face_normals[face]
    np.testing.assert_allclose(np.einsum("ij,ij->i", closest - box.triangles[face, 0], normal), 0, atol=1e-12)


def test_closest_point_is_that_of_libigl_to_the_bit(make_body: Callable[..., trimesh.Trimesh]) -> None:
    body, rng = make_body(), np.random.default_rng(0)
    points = np.concatenate([body.vertices, body.sample(5000, seed=0), rng.normal(size=(5000, 3))])
    plain = igl.point_mesh_squared_distance(points, np.array(body.vertices), np.array(body.faces))
    for ours, theirs in zip(proximity.closest_point(points, body), (np.sqrt(plain[0]), *plain[1:]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_nearest_notices_that_a_mesh_was_changed() -> None:
    box, origin = trimesh.creation.box((2.0, 2.0, 2.0)), np.zeros((1, 3))
    assert proximity.closest_point(origin, box)[0] == 1
    box.apply_scale(3)
    assert proximity.closest_point(origin, box)[0] == 3
    box.vertices[:, 0] *= 0.5
    assert proximity.closest_point(origin, box)[0] == 1.5
    box.update_faces(np.abs(box.face_normals[:, 0]) < 0.5)
    assert proximity.closest_point(origin, box)[0] == 3


def test_nearest_refuses_a_mesh_without_faces() -> None:
    with pytest.raises(ValueError, match=r"mesh: it has 0 vertices and no faces"):
        proximity.closest_point(np.zeros((1, 3)), trimesh.Trimesh())


def test_signed_distance_of_a_box_is_the_closed_form() -> None:
    box = trimesh.creation.box((0.4, 0.8, 0.6))
    points = np.random.default_rng(0).uniform(-1, 1, (500, 3))
    expected = primitives.box(torch.from_numpy(points), torch.tensor([0.2, 0.4, 0.3], dtype=torch.float64))
    np.testing.assert_allclose(proximity.signed_distance(points, box), expected.numpy(), atol=1e-12)


def test_face_normals_and_areas_are_those_of_trimesh(make_body: Callable[..., trimesh.Trimesh]) -> None:
    body = make_body()
    normals, areas = proximity.face_normals_and_areas(np.asarray(body.vertices), np.asarray(body.faces))
    np.testing.assert_allclose(normals, body.face_normals, atol=1e-9)
    np.testing.assert_allclose(areas, body.area_faces, rtol=1e-9)
    flat, none = proximity.face_normals_and_areas(np.zeros((3, 3)), np.array([[0, 1, 2]]))
    assert not flat.any()
    assert not none.any()


def test_nearest_among_points() -> None:
    rng = np.random.default_rng(0)
    points, others = rng.normal(size=(50, 3)), rng.normal(size=(60, 3))
    distance, index = proximity.nearest_point(points, others)
    table = np.linalg.norm(points[:, None] - others, axis=-1)
    np.testing.assert_allclose(distance, table.min(axis=1))
    np.testing.assert_array_equal(index, table.argmin(axis=1))
    there, back = proximity.mutual_nearest(points, others)
    np.testing.assert_array_equal(there, distance)
    np.testing.assert_allclose(back, table.min(axis=0))


@pytest.mark.parametrize(
    "points", [np.zeros((0, 3)), np.ones((40, 3)), np.geomspace(1e-300, 1, 900)[:, None] * [1, 0, 0]]
)
def test_nearest_works_for_no_points_equal_points_and_crowded_points(points: np.ndarray) -> None:
    to_itself, _ = (
        proximity.nearest_point(points, points) if len(points) else proximity.nearest_point(points, np.ones((1, 3)))
    )
    np.testing.assert_array_equal(to_itself, 0)
    distance, face, closest = proximity.closest_point(points, trimesh.creation.box((8.0, 8.0, 8.0)))
    assert (len(distance), len(face), closest.shape) == (len(points), len(points), points.shape)
    np.testing.assert_allclose(distance, 4 - points.max(axis=1, initial=-np.inf))


def test_kth_neighbor_distance() -> None:
    points = np.random.default_rng(0).normal(size=(200, 3))
    apart = np.sort(np.linalg.norm(points[:, None] - points, axis=2), axis=1)
    np.testing.assert_allclose(proximity.kth_neighbor_distance(points, neighbor=8), apart[:, 8])
    index = proximity.k_nearest(points[:5], points, 4)
    np.testing.assert_allclose(np.linalg.norm(points[:5, None] - points[index], axis=2), apart[:5, :4], atol=1e-12)


def test_barycentric_weights_give_the_points_back() -> None:
    rng = np.random.default_rng(0)
    corners, weights = rng.normal(size=(100, 3, 3)), rng.dirichlet(np.ones(3), size=100)
    points = np.einsum("nc,ncd->nd", weights, corners)
    np.testing.assert_allclose(proximity.barycentric(points, corners), weights, atol=1e-9)
