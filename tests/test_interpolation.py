"""Paths between codes: ends, symmetry, and a geodesic that is known in closed form."""

import math

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shapespace import interpolation
from shapespace.models.base import SDFModel
from shapespace.models.code import Code
from shapespace.nn.mlp import Linearization


class Ball(SDFModel):
    """Ball with radius exp(first number of the code); the second number has no effect."""

    def encode(self, batch: object) -> Code:
        raise NotImplementedError

    def loss_terms(self, batch: object, code: Code) -> dict[str, Tensor]:
        raise NotImplementedError

    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        return x.norm(dim=-1) - code.flat[:, :1].exp()

    def linearize(self, x: Float[Tensor, "b q 3"], code: Code) -> Linearization:
        value = self.field(x, code)
        jacobian = torch.zeros(*value.shape, 2)
        jacobian[..., 0] = -code.flat[:, :1].exp()
        jacobian[..., 1] = 1e-4  # so that the matrix has an inverse
        return Linearization(value, x / x.norm(dim=-1, keepdim=True), jacobian)


def codes(seed: int = 0, count: int = 3) -> Code:
    generator = torch.Generator().manual_seed(seed)
    return Code((torch.randn(count, 4, generator=generator), torch.randn(count, 2, 3, 3, generator=generator)))


def test_the_surface_moves_at_an_even_speed() -> None:
    """From radius 0.2 to 0.8: even in the radius is not straight in the code, which holds its logarithm."""
    a, b = Code((torch.tensor([[math.log(0.2), 0.0]]),)), Code((torch.tensor([[math.log(0.8), 0.0]]),))
    model = Ball()
    radii = interpolation.interpolate(model, a, b, 5, "geodesic").flat[:, 0].exp()
    torch.testing.assert_close(radii, torch.tensor([0.2, 0.35, 0.5, 0.65, 0.8]), atol=0.01, rtol=0)
    straight = interpolation.interpolate(model, a, b, 5, "linear").flat[:, 0].exp()
    assert straight[2] == pytest.approx(0.4, abs=1e-6)


@pytest.mark.parametrize("path", ["linear", "slerp", "geodesic"])
def test_the_ends_are_the_ends(path: interpolation.InterpolationPath) -> None:
    a, b = Code((torch.tensor([[-1.5, 0.1]]),)), Code((torch.tensor([[-0.3, -0.1]]),))
    for steps in (2, 4):
        way = interpolation.interpolate(Ball(), a, b, steps, path).flat
        assert len(way) == steps
        torch.testing.assert_close(way[[0, -1]], torch.cat([a.flat, b.flat]))


@pytest.mark.parametrize("path", ["linear", "slerp"])
def test_a_path_has_its_ends_and_is_symmetric(path: interpolation.InterpolationPath) -> None:
    a, b = codes(1, 1), codes(2, 1)
    way = interpolation.interpolate(Ball(), a, b, 5, path)
    torch.testing.assert_close(way.flat[0], a.flat[0])
    torch.testing.assert_close(way.flat[-1], b.flat[0])
    torch.testing.assert_close(interpolation.interpolate(Ball(), b, a, 5, path).flat.flip(0), way.flat)


def test_linear_is_the_weighted_mean() -> None:
    a, b = codes(1, 1), codes(2, 1)
    torch.testing.assert_close(interpolation.linear(a, b, 5).flat[1], 0.75 * a.flat[0] + 0.25 * b.flat[0])


def test_spherical_turns_evenly_and_keeps_length() -> None:
    a, b = Code((torch.tensor([[2.0, 0.0]]),)), Code((torch.tensor([[0.0, 2.0]]),))
    way = interpolation.slerp(a, b, 4).flat
    torch.testing.assert_close(way.norm(dim=1), torch.full((4,), 2.0))
    torch.testing.assert_close(torch.atan2(way[:, 1], way[:, 0]), torch.linspace(0, torch.pi / 2, 4))


def test_spherical_between_equal_and_opposite_codes_is_straight() -> None:
    a = codes(1, 1)
    torch.testing.assert_close(interpolation.slerp(a, a, 3).flat[1], a.flat[0])
    opposite = a.unflatten(-a.flat)
    assert interpolation.slerp(a, opposite, 3).flat.isfinite().all()


@pytest.mark.parametrize("path", ["linear", "slerp"])
def test_impossible_paths_are_refused(path: interpolation.InterpolationPath) -> None:
    with pytest.raises(ValueError, match="--steps 1: a path has at least its two ends"):
        interpolation.interpolate(Ball(), codes(1, 1), codes(2, 1), 1, path)
