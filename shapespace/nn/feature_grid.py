"""Feature grids and planes: scattering from points, U-Nets, and multilinear interpolation.

A grid has r nodes along each axis of [-1, 1]; the first and the last node are on the faces of the cube.
"""

from itertools import pairwise, product

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shapespace.nn.resnet import ResidualBlock


def interpolate(grid: Float[Tensor, "b c *r"], x: Float[Tensor, "b q d"]) -> Float[Tensor, "b q c"]:
    """Multilinear interpolation of features at x. It is twice differentiable; `grid_sample` is not.

    A point outside of the cube has the features of the nearest point of the cube.
    """
    sizes = torch.tensor(grid.shape[2:], device=x.device)
    place = ((x.clamp(-1, 1) + 1) / 2) * (sizes - 1)
    low = place.detach().floor().long().clamp(min=0).minimum(sizes - 2)
    fraction = place - low
    flat, features = grid.flatten(2), torch.zeros(())
    for corner in product((0, 1), repeat=x.shape[-1]):
        at = torch.tensor(corner, device=x.device)
        weight = torch.where(at.bool(), fraction, 1 - fraction).prod(dim=-1)
        node = _node(low + at, sizes)
        values = flat.gather(2, node[:, None].expand(-1, flat.shape[1], -1))
        features = features + (weight[:, None] * values)
    return features.transpose(1, 2)


def cell_index(x: Float[Tensor, "b n d"], resolution: int) -> Int[Tensor, "b n"]:
    """Flat index of the node of an r^d grid that is nearest to each point."""
    place = ((x.clamp(-1, 1) + 1) / 2 * (resolution - 1)).round().long()
    return _node(place, torch.full((x.shape[-1],), resolution, device=x.device))


def _node(place: Int[Tensor, "b q d"], sizes: Int[Tensor, "d"]) -> Int[Tensor, "b q"]:
    """Flat index of a node from its indices along the axes."""
    node = place[..., 0]
    for axis in range(1, place.shape[-1]):
        node = node * sizes[axis] + place[..., axis]
    return node


def scatter_mean(features: Float[Tensor, "b n c"], cell: Int[Tensor, "b n"], count: int) -> Float[Tensor, "b c m"]:
    """Mean of the features of the points in each of `count` cells; zero in empty cells."""
    index = cell[:, None].expand(-1, features.shape[-1], -1)
    total = features.new_zeros(len(features), features.shape[-1], count).scatter_add(2, index, features.transpose(1, 2))
    members = features.new_zeros(len(features), 1, count).scatter_add(
        2, cell[:, None], torch.ones_like(cell[:, None], dtype=features.dtype)
    )
    return total / members.clamp(min=1)


def scatter_max(features: Float[Tensor, "b n c"], cell: Int[Tensor, "b n"], count: int) -> Float[Tensor, "b n c"]:
    """For each point, the maximum of the features over the points in its cell."""
    index = cell[..., None].expand_as(features)
    empty = features.new_zeros(len(features), count, features.shape[-1])
    return empty.scatter_reduce(1, index, features, "amax", include_self=False).gather(1, index)


def check_divisible(name: str, size: int, times: int) -> None:
    """Raise `ValueError` if the grid size, which is the setting `--model.NAME`, cannot be halved `times` times."""
    if size % 2**times:
        raise ValueError(f"--model.{name} {size}: cannot be halved {times} times. Set a multiple of {2**times}.")


class LocalPointNet(nn.Module):
    """PointNet with maxima over grid cells instead of the whole scan (Peng et al., ECCV 2020, section 3.1)."""

    def __init__(self, *, features: int, width: int, blocks: int = 5) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 2 * width)
        self.blocks = nn.ModuleList(ResidualBlock(2 * width, width) for _ in range(blocks))
        self.out = nn.Linear(width, features)

    def forward(
        self, points: Float[Tensor, "b n 3"], places: list[tuple[Int[Tensor, "b n"], int]]
    ) -> Float[Tensor, "b n c"]:
        """Features of each point; `places` has, for each plane or grid, the cells of the points and their number."""
        hidden = self.enter(points)
        for index, block in enumerate(self.blocks):
            if index:
                pooled = torch.stack([scatter_max(hidden, cell, count) for cell, count in places]).sum(dim=0)
                hidden = torch.cat([hidden, pooled], dim=-1)
            hidden = block(hidden)
        return self.out(hidden)


class UNet(nn.Module):
    """U-Net on planes or volumes (Ronneberger et al., MICCAI 2015; in three dimensions Cicek et al., MICCAI 2016).

    It has `depth` levels. The first has `width` channels; each further one has twice as many at half the resolution.
    """

    def __init__(self, *, dimensions: int, channels: int, width: int, depth: int) -> None:
        super().__init__()
        convolution = (nn.Conv2d, nn.Conv3d)[dimensions - 2]
        transposed = (nn.ConvTranspose2d, nn.ConvTranspose3d)[dimensions - 2]
        self.pool = (nn.MaxPool2d, nn.MaxPool3d)[dimensions - 2](2)

        def double_convolution(size_in: int, size_out: int) -> nn.Sequential:
            first, second = (convolution(size, size_out, 3, padding=1) for size in (size_in, size_out))
            return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

        sizes = [width * 2**level for level in range(depth)]
        self.down = nn.ModuleList(double_convolution(a, b) for a, b in pairwise([channels, *sizes]))
        self.lift = nn.ModuleList(transposed(b, a, 2, stride=2) for a, b in pairwise(sizes))
        self.up = nn.ModuleList(double_convolution(2 * size, size) for size in sizes[:-1])
        self.out = convolution(width, channels, 1)

    def forward(self, grid: Float[Tensor, "b c *r"]) -> Float[Tensor, "b c *r"]:
        """Features of the same size; the resolution must be divisible by 2^(depth - 1)."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            grid = block(grid if level == 0 else self.pool(grid))
            skips.append(grid)
        for lift, block, skip in reversed(list(zip(self.lift, self.up, skips[:-1], strict=True))):
            grid = block(torch.cat([lift(grid), skip], dim=1))
        return self.out(grid)
