"""Registration: onto the surface, to the right places on it, and never after a wrong surface."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from trimesh.creation import icosphere

from shapespace.data.registration import make_template
from shapespace.fitting.registration import (
    Registration,
    RegistrationOptions,
    laplacian,
    matern_root,
    register,
    vertex_normals,
)
from shapespace.models.articulated import ArticulatedConfig, ArticulatedSDF, build_articulated
from shapespace.models.code import Code
from shapespace.models.template import PosedTemplate

RADIUS = 0.5


def ball(subdivisions: int = 3) -> tuple[Tensor, Tensor]:
    mesh = icosphere(subdivisions=subdivisions, radius=RADIUS)
    return torch.from_numpy(mesh.vertices.copy()).float(), torch.from_numpy(mesh.faces.copy())


def sphere_at(center: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def field(x: Tensor) -> tuple[Tensor, Tensor]:
        distance = (x - center).norm(dim=1)
        return distance - RADIUS, (x - center) / distance[:, None]

    return field


def waves(x: Tensor) -> Tensor:
    """A smooth displacement of a few thousandths, radial or not."""
    return 0.002 * torch.stack([(4 * x[:, 1]).sin(), (3 * x[:, 2]).cos(), (5 * x[:, 0]).sin()], dim=1)


def test_vertices_come_to_lie_on_the_surface() -> None:
    vertices, faces = ball()
    field, start = sphere_at(torch.zeros(3)), vertices + waves(vertices)
    moved = Registration(vertices, faces, RegistrationOptions(share=1.0))(field, start)
    assert field(start)[0].abs().max() > 2e-3
    assert field(moved)[0].abs().max() < 1e-4


def test_a_posed_template_on_the_surface_stays() -> None:
    vertices, faces = ball()
    moved = Registration(vertices, faces)(sphere_at(torch.zeros(3)), vertices)
    torch.testing.assert_close(moved, vertices, atol=1e-6, rtol=0)


def test_vertices_find_their_places_along_the_surface() -> None:
    vertices, faces = ball()
    shift = torch.tensor([0.004, -0.003, 0.002])
    field = sphere_at(shift)
    moved = Registration(vertices, faces, RegistrationOptions(correlation_length=3.0, iterations=20))(field, vertices)
    value, gradient = field(vertices)
    along_gradient = vertices - value[:, None] * gradient
    error, plain = (moved - vertices - shift).norm(dim=1), (along_gradient - vertices - shift).norm(dim=1)
    assert field(along_gradient)[0].abs().max() < 1e-4
    assert field(moved)[0].abs().max() < 1e-4
    assert plain.mean() > 0.6 * shift.norm()
    assert error.mean() < 0.2 * plain.mean()
    assert error.max() < 0.5 * plain.max()


@pytest.mark.parametrize("wrong", ["far", "flipped", "flat"])
def test_vertices_without_a_surface_follow_their_neighbors(wrong: str) -> None:
    vertices, faces = ball()
    shift = torch.tensor([0.0, 0.0, 0.004])
    truth = sphere_at(shift)
    hole = (vertices[:, 2] > 0.4).nonzero()[:, 0]

    def field(x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = truth(x)
        is_wrong = x[:, 2] > 0.39
        if wrong == "far":
            return torch.where(is_wrong, 0.3, value), gradient
        factor = {"flipped": -1.0, "flat": 1e-3}[wrong]
        return torch.where(is_wrong, value + 0.01, value), torch.where(is_wrong[:, None], factor * gradient, gradient)

    moved = Registration(vertices, faces, RegistrationOptions(correlation_length=3.0, iterations=20))(field, vertices)
    assert len(hole) > 30
    error = (moved - vertices - shift)[hole].norm(dim=1)
    assert error.mean() < 0.1 * shift.norm()
    assert error.max() < 0.2 * shift.norm()


def test_conjugate_gradients_solve_the_normal_equations() -> None:
    vertices, faces = ball(2)
    registration = Registration(vertices, faces, RegistrationOptions(iterations=200, share=0.5))
    generator = np.random.default_rng(0)
    sample, count = registration.sample, len(vertices)
    assert 0.4 * count < len(sample) < 0.6 * count
    normal = functional.normalize(vertices, dim=1).double().numpy()[sample]
    distance, start = 0.01 * generator.normal(size=len(sample)), 0.01 * generator.normal(size=(count, 3))
    weight = registration.weight * generator.uniform(size=len(sample))
    solved = registration._solve(start, normal, distance, weight)
    matrix = np.kron(registration.precision.toarray(), np.eye(3))
    rows = np.zeros((len(sample), 3 * count))
    for index, (vertex, direction) in enumerate(zip(sample, normal, strict=True)):
        rows[index, 3 * vertex : 3 * vertex + 3] = direction
    target = rows @ start.ravel() - distance
    expected = np.linalg.solve(matrix + rows.T @ (weight[:, None] * rows), rows.T @ (weight * target))
    np.testing.assert_allclose(solved.ravel(), expected, atol=1e-8 * abs(expected).max(), rtol=0)


def test_the_weight_of_the_data_does_not_depend_on_the_sample() -> None:
    vertices, faces = ball()
    totals = [Registration(vertices, faces, RegistrationOptions(share=share)).weight.sum() for share in (0.1, 1.0)]
    np.testing.assert_allclose(totals[0], totals[1])
    np.testing.assert_allclose(totals[0], 4 * np.pi * RADIUS**2 / (0.03 * 0.0025) ** 2, rtol=0.02)


def test_the_laplacian_of_a_plane() -> None:
    line = np.arange(7.0)
    vertices = np.stack([*(axis.ravel() for axis in np.meshgrid(line, line)), np.zeros(49)], axis=1)
    corner = np.array([7 * row + column for row in range(6) for column in range(6)])
    faces = np.concatenate([corner[:, None] + [0, 1, 8], corner[:, None] + [0, 8, 7]])
    stiffness, area = laplacian(vertices, faces)
    inner = ((vertices[:, :2] > 0) & (vertices[:, :2] < 6)).all(axis=1)
    dense = stiffness.toarray()
    np.testing.assert_allclose(dense, dense.T)
    np.testing.assert_allclose(dense.sum(axis=1), 0, atol=1e-12)
    assert np.linalg.eigvalsh(dense).min() > -1e-12
    np.testing.assert_allclose(area.sum(), 36)
    np.testing.assert_allclose((dense @ (2 * vertices[:, 0] - vertices[:, 1]))[inner], 0, atol=1e-12)
    # -(x^2)'' = -2 on an area of 1 around each vertex; the clipped cotangents of right angles add a little
    np.testing.assert_allclose((dense @ vertices[:, 0] ** 2)[inner], -2, rtol=0.05)


def test_the_prior_has_its_standard_deviation_and_its_correlation_length() -> None:
    vertices, faces = ball(3)
    std, length = 0.004, 0.4
    root = matern_root(*laplacian(vertices.double().numpy(), faces.numpy()), std, length).toarray()
    covariance = np.linalg.inv(root @ root.T)
    np.testing.assert_allclose(np.sqrt(covariance.diagonal().mean()), std, rtol=0.1)
    unit = vertices.numpy() / RADIUS
    along = RADIUS * np.arccos(np.clip(unit @ unit.T, -1, 1))
    correlation = covariance / np.sqrt(np.outer(covariance.diagonal(), covariance.diagonal()))
    assert 0.05 < correlation[abs(along - length) < 0.02].mean() < 0.2
    assert correlation[along < 0.1].mean() > 0.7
    assert abs(correlation[along > 3 * length].mean()) < 0.02


def test_normals_of_a_ball_are_its_directions() -> None:
    vertices, faces = ball()
    torch.testing.assert_close(vertex_normals(vertices, faces), vertices / RADIUS, atol=0.02, rtol=0)


@pytest.fixture
def model() -> ArticulatedSDF:
    torch.manual_seed(0)
    built = build_articulated(ArticulatedConfig(code_dim=4, num_parts=4, local_dim=3, width=8, hyper_width=8))
    mesh = make_template(*ball(2), 4)  # all blended everywhere: the nearest four do not change
    built.decoder.radius.copy_(mesh.radius)
    built.hypernetwork.mean[:, :3] = mesh.center
    built.template = PosedTemplate()
    built.template.set(mesh)
    return built.eval()


def test_bodies_of_a_model_are_registered_one_by_one(model: ArticulatedSDF) -> None:
    code = Code((torch.randn(3, 4, generator=torch.Generator().manual_seed(1)),))
    registered = register(model, code)
    posed = model.template(model.states(code)).detach()
    assert registered.shape == posed.shape == (3, 162, 3)
    assert (registered - posed).abs().max() > 1e-4
    shared = Registration(model.template.vertices, model.template.faces)
    for row in range(3):
        torch.testing.assert_close(register(model, code[row], shared)[0], registered[row], atol=1e-6, rtol=0)
    torch.testing.assert_close(register(model, model.expand(code)), registered, atol=1e-6, rtol=0)


def test_a_model_without_a_template_is_refused(model: ArticulatedSDF) -> None:
    model.template = PosedTemplate()
    with pytest.raises(ValueError, match=r"registration: the model has no template mesh\. .*--init-from SPACE"):
        register(model, Code((torch.zeros(1, 4),)))
