"""Sparse marching cubes against the dense grid and against closed forms."""

import math

import igl
import numpy as np
import pytest
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor
from trimesh import Trimesh

from shapespace.geometry import primitives
from shapespace.geometry.isosurface import (
    Balls,
    Field,
    bounded,
    dense_isosurface,
    evaluate,
    isosurface,
    isosurface_by_sign,
    largest_component,
)

A, B = torch.tensor([0.3, -0.4, 0.1]), torch.tensor([-0.1, 0.5, 0.3])

# A body of capsules about bones, which have four balls each.
BONES = torch.tensor(
    [
        [[0.0, -0.1, 0.0], [0.0, 0.5, 0.0]],
        [[0.1, -0.1, 0.0], [0.2, -0.85, 0.05]],
        [[-0.1, -0.1, 0.0], [-0.25, -0.8, -0.1]],
        [[0.1, 0.3, 0.0], [0.6, 0.1, 0.1]],
        [[-0.1, 0.3, 0.0], [-0.5, 0.6, -0.1]],
    ]
)
RADII = [0.13, 0.07, 0.06, 0.05, 0.04]
PLACES = torch.linspace(0, 1, 4)[:, None]
REACH = [1.1 * math.hypot(r, float((b - a).norm()) / 6) + 0.04 for (a, b), r in zip(BONES, RADII, strict=True)]
BALLS = Balls(
    torch.cat([torch.lerp(a, b, PLACES) for a, b in BONES]),
    torch.tensor(REACH).repeat_interleave(4),
)


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


def body(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    """Smooth union of the capsules within the balls, and sheets of both signs outside."""
    capsules = [primitives.capsule(x, a, b, r) for (a, b), r in zip(BONES, RADII, strict=True)]
    blend = (-50 * torch.stack(capsules)).logsumexp(dim=0) / -50
    return torch.where(BALLS.distance(x) < 0, blend, 3 * torch.sin(20 * x).sum(dim=1) - 1)


def jumping(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    """It jumps by up to 0.004 where the set of the four nearest centers changes."""
    nearest = torch.cdist(x, BALLS.centers).topk(4, largest=False).indices
    return body(x) + 0.004 * (nearest.square().sum(dim=1) * 37 % 11 / 10 - 0.5)


def steep(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    """Its slope is 20 in a spot on a leg."""
    return body(x) * (1 + 20 * torch.exp(-((x - BONES[1, 1]) / 0.05).square().sum(dim=1)))


def negative(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    """Its surface is cut off by the border of the balls."""
    return body(x) - 0.06


def everywhere_negative(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    return torch.full((len(x),), -1.0)


def ripples(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    return body(x) + 0.004 * torch.sin(150 * x).prod(dim=1)


class Counted:
    """A field and the points at which it was called."""

    def __init__(self, field: Field) -> None:
        self.field, self.points = field, torch.zeros(0, 3)

    def __call__(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        self.points = torch.cat([self.points, x])
        return self.field(x)


def assert_is_dense(field: Field, domain: Balls, *, resolution: int, half_extent: float = 1.0) -> Trimesh:
    """The same vertices to 1e-6, both ways, and as many faces, as libigl's marching cubes over every node."""
    mesh = isosurface(field, resolution=resolution, half_extent=half_extent, domain=domain)
    axis = np.linspace(-half_extent, half_extent, resolution + 1)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")  # x runs fastest
    grid = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    vertices, faces, _ = igl.marching_cubes(evaluate(bounded(field, domain), grid), grid, *3 * [resolution + 1])
    assert (len(mesh.vertices), len(mesh.faces)) == (len(vertices), len(faces))
    assert cKDTree(vertices).query(mesh.vertices)[0].max() < 1e-6
    assert cKDTree(mesh.vertices).query(vertices)[0].max() < 1e-6
    # The two cut some squares along the other diagonal.
    assert mesh.area == pytest.approx(Trimesh(vertices, faces, process=False).area, rel=2e-3)
    return mesh


@pytest.mark.parametrize("resolution", [32, 50, 64, 128])
@pytest.mark.parametrize(
    "field",
    [
        body,
        jumping,
        steep,
        ripples,
        negative,
        everywhere_negative,
        lambda x: 5 * body(x),
        lambda x: 0.2 * body(x),
    ],
)
def test_within_a_domain_the_mesh_equals_that_of_the_dense_grid(field: Field, resolution: int) -> None:
    mesh = assert_is_dense(field, BALLS, resolution=resolution)
    assert mesh.volume > 0  # outward
    plain = dense_isosurface(bounded(field, BALLS), resolution=resolution)
    assert cKDTree(plain.vertices).query(mesh.vertices)[0].max() < 1e-6


@pytest.mark.parametrize("roll", [0, 1, 2])
def test_the_mesh_is_cut_off_by_the_cube_as_that_of_the_dense_grid(roll: int) -> None:
    """On all sides, and with blocks that stick out of the cube."""
    domain = Balls(BALLS.centers.roll(roll, dims=1), BALLS.radii)
    mesh = assert_is_dense(lambda x: body(x.roll(-roll, dims=1)), domain, resolution=41, half_extent=0.45)
    assert not mesh.is_watertight


@pytest.mark.parametrize("slope", [1.0, 6.0])
def test_small_spheres_at_the_border_of_a_domain_are_found(slope: float) -> None:
    """Each must be found by itself: no surface leads to it."""
    direction = torch.randn(150, 3, generator=torch.Generator().manual_seed(0))
    spheres = Balls(direction * (0.67 / direction.norm(dim=1, keepdim=True)), torch.full((150,), 0.02))
    domain = Balls(torch.zeros(1, 3), torch.tensor([0.7]))
    mesh = assert_is_dense(lambda x: slope * spheres.distance(x), domain, resolution=128)
    assert mesh.body_count > 130  # a few touch


def test_no_sheets_are_found_outside_the_domain() -> None:
    mesh = isosurface(body, resolution=64, domain=BALLS)
    assert mesh.is_watertight
    assert len(largest_component(mesh).faces) == len(mesh.faces)
    assert body(torch.from_numpy(mesh.vertices).float()).abs().max() < 5e-3
    assert dense_isosurface(body, resolution=64).area > 2 * mesh.area  # there are sheets outside


@pytest.mark.parametrize("field", [body, jumping, steep])
def test_evaluations_within_a_domain_are_few_and_none_is_made_twice_or_outside(field: Field) -> None:
    counted = Counted(field)
    mesh = isosurface(counted, resolution=128, domain=BALLS)
    assert BALLS.distance(counted.points).max() < 0
    assert len(counted.points) < 5 * len(mesh.vertices)
    nodes = counted.points[((counted.points * 64).round() / 64 == counted.points).all(dim=1)].numpy()
    assert len(np.unique(nodes, axis=0)) == len(nodes)


def test_a_steep_spot_within_a_domain_costs_evaluations_there_alone() -> None:
    plain, with_spot = Counted(body), Counted(steep)
    for field in (plain, with_spot):
        isosurface(field, resolution=128, domain=BALLS)
    assert len(with_spot.points) < 1.05 * len(plain.points)


def test_balls_have_the_distance_to_their_union() -> None:
    x = 2 * torch.rand(5000, 3, generator=torch.Generator().manual_seed(0)) - 1
    plain = torch.stack([primitives.sphere(x, c, float(r)) for c, r in zip(*BALLS, strict=True)]).amin(dim=0)
    distance, outside = BALLS.distance(x), plain > 0
    torch.testing.assert_close(distance, plain, rtol=0, atol=1e-6)
    nearest = BALLS.nearest(x[outside])
    assert BALLS.distance(nearest).max() < 0
    apart = (nearest - x[outside]).norm(dim=1) - distance[outside]
    assert apart.abs().max() < 1.1e-4 * BALLS.radii.max()


def test_a_bounded_field_is_the_distance_to_its_domain_outside_and_positive_there() -> None:
    x = 2 * torch.rand(5000, 3, generator=torch.Generator().manual_seed(0)) - 1
    x = torch.cat([x, BALLS.nearest(x), BALLS.centers + BALLS.radii[:, None] * torch.tensor([1.0, 0, 0])])
    values, distance = bounded(everywhere_negative, BALLS)(x), BALLS.distance(x)
    torch.testing.assert_close(values, torch.where(distance < 0, -1.0, distance), rtol=0, atol=2e-6)
    assert values[distance >= 0].min() > 0
    torch.testing.assert_close(bounded(body, BALLS)(x)[distance < 0], body(x)[distance < 0], rtol=0, atol=1e-6)


def test_no_surface_within_a_domain_is_an_error_with_the_range_of_the_bounded_field() -> None:
    far = Balls(BALLS.centers + 5, BALLS.radii)
    for field, domain, low in ((lambda x: body(x) + 1, BALLS, "0"), (everywhere_negative, far, "[1-9]")):
        with pytest.raises(ValueError, match=rf"no surface at level 0: the field is within \[{low}.*Train the model"):
            isosurface(field, resolution=32, domain=domain)


def test_another_level_with_a_domain_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"isosurface: level 0.5 with a domain.*Subtract the level from the field"):
        isosurface(body, resolution=32, level=0.5, domain=BALLS)


def test_largest_component() -> None:
    two = isosurface(
        lambda x: primitives.union(sphere(x), primitives.sphere(x, torch.tensor([0.85, 0.85, 0.85]), 0.1)),
        resolution=64,
    )
    assert largest_component(two).volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=1e-2)
    assert two.volume > largest_component(two).volume
