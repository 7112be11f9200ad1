"""Sparse marching cubes against the dense grid and against closed forms."""

import igl
import numpy as np
import pytest
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from shapespace.geometry import primitives
from shapespace.geometry.isosurface import dense_isosurface, isosurface, isosurface_by_sign, largest_component

A, B = torch.tensor([0.3, -0.4, 0.1]), torch.tensor([-0.1, 0.5, 0.3])


def capsule(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    return primitives.capsule(x, A, B, 0.15)


def sphere(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    return primitives.sphere(x, torch.zeros(3), 0.6)


@pytest.mark.parametrize("mesher", [isosurface, isosurface_by_sign, dense_isosurface])
def test_a_sphere_is_a_sphere(mesher: object) -> None:
    mesh = mesher(sphere, resolution=64)  # type: ignore[operator]
    assert mesh.is_watertight
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), 0.6, atol=1e-3)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=5e-3)  # positive: outward


@pytest.mark.parametrize("mesher", [isosurface, isosurface_by_sign, dense_isosurface])
def test_an_off_center_capsule_is_not_mirrored_or_swapped(mesher: object) -> None:
    mesh = mesher(capsule, resolution=96)  # type: ignore[operator]
    assert mesh.is_watertight
    assert capsule(torch.from_numpy(mesh.vertices).float()).abs().max() < 1e-3
    proper = mesh.area_faces > 1e-9  # a grid node on the surface leaves faces of no area, which face nowhere
    outward = (mesh.triangles_center + 0.01 * mesh.face_normals)[proper]
    assert capsule(torch.from_numpy(outward).float()).min() > 0


@pytest.mark.parametrize("resolution", [32, 48, 100])
def test_sparse_equals_dense_on_the_same_grid(resolution: int) -> None:
    """The same vertices to 1e-6, and the same surface, as libigl's marching cubes over every node."""
    sparse = isosurface(capsule, resolution=resolution)
    axis = np.linspace(-1, 1, resolution + 1)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3, order="C")
    grid = grid[np.lexsort((grid[:, 0], grid[:, 1], grid[:, 2]))]  # x runs fastest
    values = capsule(torch.from_numpy(grid).float()).double().numpy()
    vertices, faces, _ = igl.marching_cubes(values, grid, *(resolution + 1,) * 3)
    assert len(sparse.vertices) == len(vertices)
    assert len(sparse.faces) == len(faces)
    order = lambda v: v[np.lexsort(np.round(v, 5).T)]  # noqa: E731
    np.testing.assert_allclose(order(sparse.vertices), order(vertices), atol=1e-5)
    assert sparse.area == pytest.approx(dense_isosurface(capsule, resolution=resolution).area, rel=2e-3)


@pytest.mark.parametrize("resolution", [24, 64, 128])
def test_a_field_that_is_not_a_distance_is_meshed_by_its_signs(resolution: int) -> None:
    """A steep and warped field has the surface of the distance."""
    mesh = isosurface_by_sign(lambda x: (40 * capsule(x)).tanh() * (2 + x[:, 0].sin()), resolution=resolution)
    assert mesh.is_watertight
    assert capsule(torch.from_numpy(mesh.vertices).float()).abs().max() < 0.2 * 2 / resolution
    assert len(mesh.vertices) == len(isosurface(capsule, resolution=resolution).vertices)


def test_evaluations_grow_with_the_surface_and_not_with_the_volume() -> None:
    def evaluations(resolution: int) -> int:
        evaluated = 0

        def counted(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
            nonlocal evaluated
            evaluated += len(x)
            return capsule(x)

        isosurface(counted, resolution=resolution)
        return evaluated

    few, many = evaluations(128), evaluations(256)
    assert many < 0.012 * 257**3
    assert many < 4.5 * few  # a volume would be 8 times as large


@pytest.mark.parametrize("speed", [0.2, 1.25, 1.9, 5.0])
def test_a_steeper_field_than_a_distance_has_the_complete_surface(speed: float) -> None:
    """A slope above the assumed one repeats the search."""
    fast = isosurface(lambda x: speed * capsule(x), resolution=64)
    plain = dense_isosurface(lambda x: speed * capsule(x), resolution=64)
    distance, _ = cKDTree(plain.vertices).query(fast.vertices)
    assert distance.max() < 1e-6
    np.testing.assert_allclose(fast.area, plain.area, rtol=2e-3)  # the two marchers cut some cells differently


def test_no_point_is_evaluated_twice_if_the_search_is_repeated() -> None:
    seen = []

    def field(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        seen.append(x)
        return 2.4 * capsule(x)

    isosurface(field, resolution=64)
    points = torch.cat(seen).numpy()
    apart = cKDTree(points).query(points, k=2)[0][:, 1]
    assert apart.min() > 0.4 * 2 / 64  # corners and centers of cells


def test_a_steep_spot_between_the_centers_repeats_the_search() -> None:
    """Its slope along edges of marched cells is below the limit of large blocks, above that of small ones."""

    def field(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        ripple = 0.006 * torch.sin(160 * x[:, 0]) * torch.exp(-((x[:, 1] - 0.6) / 0.03).square())
        return sphere(x) + ripple

    mesh = isosurface(field, resolution=64)
    assert mesh.area == pytest.approx(dense_isosurface(field, resolution=64).area, rel=2e-3)


def test_no_surface_is_an_error_with_the_range_of_the_field() -> None:
    for mesher in (isosurface, dense_isosurface):
        with pytest.raises(
            ValueError, match=r"no surface at level 0: the field is within \[2, 2\].*Train the model.*model frame"
        ):
            mesher(lambda x: torch.full((len(x),), 2.0), resolution=16)


def test_largest_component() -> None:
    two = isosurface(
        lambda x: primitives.union(sphere(x), primitives.sphere(x, torch.tensor([0.85, 0.85, 0.85]), 0.1)),
        resolution=64,
    )
    assert largest_component(two).volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=1e-2)
    assert two.volume > largest_component(two).volume
