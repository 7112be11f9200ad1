"""The shortest path against the straight one, on a field whose answer is known."""

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
    """A ball whose radius is exp of the code's first number; the second one means nothing."""

    def encode(self, batch: object) -> Code:
        raise NotImplementedError

    def terms(self, batch: object, code: Code) -> dict[str, Tensor]:
        raise NotImplementedError

    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        return x.norm(dim=-1) - code.flat[:, :1].exp()

    def linearise(self, x: Float[Tensor, "b q 3"], code: Code) -> Linearization:
        value = self.field(x, code)
        jacobian = torch.zeros(*value.shape, 2)
        jacobian[..., 0] = -code.flat[:, :1].exp()
        jacobian[..., 1] = 1e-4  # so that the matrix has an inverse
        return Linearization(value, x / x.norm(dim=-1, keepdim=True), jacobian)


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
