"""Where the Eikonal term is tested: close around the scan, and anywhere in the box."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor


def shell(points: Float[Tensor, "*b n 3"], sigma: float, generator: Generator | None = None) -> Float[Tensor, "*b n 3"]:
    """One Gaussian neighbour for each point, with standard deviation `sigma` in the points' unit (IGR, section 4)."""
    return points + sigma * torch.randn(points.shape, generator=generator, dtype=points.dtype, device=points.device)


def box(shape: tuple[int, ...], half: float, generator: Generator | None = None) -> Float[Tensor, "..."]:
    """Points (*shape, 3), uniform in [-half, half]^3."""
    return (torch.rand((*shape, 3), generator=generator) * 2 - 1) * half


def around(
    points: Float[Tensor, "b n 3"], sigma: float, half: float, generator: Generator | None = None
) -> Float[Tensor, "b m 3"]:
    """For n points, n in the shell and n / 8 in the box (the share of IGR's shape-space experiment)."""
    anywhere = box((points.shape[0], max(1, points.shape[1] // 8)), half, generator).to(points)
    return torch.cat([shell(points, sigma, generator), anywhere], dim=1)
