"""The residual networks of Occupancy Networks (Mescheder et al., CVPR 2019, supplementary, figures 1 to 3)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """`x + W1 relu(W0 relu(x))`; a shortcut where the sizes differ. The second product is zero at the start."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        hidden = min(size_in, size_out)
        self.first, self.second = nn.Linear(size_in, hidden), nn.Linear(hidden, size_out)
        self.shortcut = nn.Linear(size_in, size_out, bias=False) if size_in != size_out else nn.Identity()
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """As many rows, `size_out` wide."""
        return self.shortcut(x) + self.second(self.first(x.relu()).relu())


class ConditionalNorm(nn.Module):
    """Batch normalisation whose factor and shift are read from the code."""

    def __init__(self, *, code_dim: int, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.factor, self.shift = nn.Linear(code_dim, width), nn.Linear(code_dim, width)
        for linear, start in ((self.factor, 1.0), (self.shift, 0.0)):
            nn.init.zeros_(linear.weight)
            nn.init.constant_(linear.bias, start)

    def forward(self, x: Float[Tensor, "b q w"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b q w"]:
        """Normalised over all points of all shapes while training, by the running moments afterwards."""
        even = self.norm(x.flatten(0, 1)).view(x.shape)
        return torch.addcmul(self.shift(code)[:, None], even, self.factor(code)[:, None])


class ConditionalBlock(nn.Module):
    """A residual block with conditional normalisation before each product."""

    def __init__(self, *, code_dim: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ConditionalNorm(code_dim=code_dim, width=width) for _ in range(2))
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Float[Tensor, "b q w"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b q w"]:
        """Features of the same size."""
        first, second = self.norms
        return x + self.second(second(self.first(first(x, code).relu()), code).relu())


class ConditionalMLP(nn.Module):
    """From points and a code to one number each: blocks under conditional batch normalisation."""

    def __init__(self, *, code_dim: int, width: int, blocks: int) -> None:
        super().__init__()
        self.enter = nn.Linear(3, width)
        self.blocks = nn.ModuleList(ConditionalBlock(code_dim=code_dim, width=width) for _ in range(blocks))
        self.norm = ConditionalNorm(code_dim=code_dim, width=width)
        self.out = nn.Linear(width, 1)

    def forward(self, x: Float[Tensor, "b q 3"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b q"]:
        """One number for each point."""
        found = self.enter(x)
        for block in self.blocks:
            found = block(found, code)
        return self.out(self.norm(found, code).relu())[..., 0]


class ResidualPointNet(nn.Module):
    """A PointNet of five residual blocks; between two, each point is also told the maximum over all points.

    It reads the first `count` points of a scan, which lie in random order.
    """

    def __init__(self, *, code_dim: int, num_points: int, width: int) -> None:
        super().__init__()
        self.count = num_points
        self.enter = nn.Linear(3, 2 * width)
        self.blocks = nn.ModuleList(ResidualBlock(2 * width, width) for _ in range(5))
        self.out = nn.Linear(width, code_dim)

    def forward(self, points: Float[Tensor, "b n 3"]) -> tuple[Float[Tensor, "b k"], None]:
        """The code; it has no variance."""
        found = self.enter(points[:, : self.count])
        for index, block in enumerate(self.blocks):
            if index:
                found = torch.cat([found, found.amax(dim=1, keepdim=True).expand_as(found)], dim=-1)
            found = block(found)
        return self.out(found.amax(dim=1).relu()), None
