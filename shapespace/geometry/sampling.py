"""Where a field is tested off the surface: close around the scan, and anywhere in the box.

For n points, IGR's shape-space experiment draws n in the shell and n / 8 in the box.
"""

import torch
from jaxtyping import Float
from torch import Generator, Tensor


def shell(points: Float[Tensor, "*b n 3"], sigma: float, generator: Generator | None = None) -> Float[Tensor, "*b n 3"]:
    """One Gaussian neighbour for each point, with standard deviation `sigma` in the points' unit (IGR, section 4)."""
    return points + sigma * torch.randn(points.shape, generator=generator, dtype=points.dtype, device=points.device)


def box(shape: tuple[int, ...], half: float, generator: Generator | None = None) -> Float[Tensor, "..."]:
    """Points (*shape, 3), uniform in [-half, half]^3."""
    return (torch.rand((*shape, 3), generator=generator) * 2 - 1) * half
