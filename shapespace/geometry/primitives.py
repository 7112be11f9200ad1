"""Signed distances in closed form, negative inside; the reference of the tests."""

import torch
from jaxtyping import Float
from torch import Tensor


def sphere(x: Float[Tensor, "*b 3"], center: Float[Tensor, "3"], radius: float) -> Float[Tensor, "*b"]:
    """Distance to the ball of `radius` about `center`; negative inside."""
    return (x - center).norm(dim=-1) - radius


def box(x: Float[Tensor, "*b 3"], half_extents: Float[Tensor, "3"]) -> Float[Tensor, "*b"]:
    """Distance to the box [-half_extents, half_extents]; negative inside."""
    beyond = x.abs() - half_extents
    deepest = beyond.amax(dim=-1)
    # not clamp: on the surface its gradient is 0 since torch 2.14, and 1 before
    return beyond.clamp(min=0).norm(dim=-1) + torch.where(deepest > 0, torch.zeros_like(deepest), deepest)


def torus(x: Float[Tensor, "*b 3"], ring: float, tube: float) -> Float[Tensor, "*b"]:
    """Distance to the torus of radii `ring` and `tube` about the y axis; negative inside."""
    sideways = torch.hypot(x[..., 0], x[..., 2]) - ring
    return torch.hypot(sideways, x[..., 1]) - tube


def capsule(
    x: Float[Tensor, "*b 3"], a: Float[Tensor, "3"], b: Float[Tensor, "3"], radius: float
) -> Float[Tensor, "*b"]:
    """Distance to the points within `radius` of the segment a-b; negative inside."""
    along = b - a
    t = ((x - a) @ along / along.dot(along)).clamp(0, 1)
    return (x - a - t[..., None] * along).norm(dim=-1) - radius


def union(*distances: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Distance to a union of shapes: exact outside, a lower bound of the depth inside."""
    return torch.stack(distances).amin(dim=0)
