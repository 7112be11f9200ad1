"""The residual networks of Occupancy Networks (Mescheder et al., CVPR 2019, supplementary, figures 1 to 3)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Residual block `x + W1 relu(W0 relu(x))`, with a linear shortcut where the sizes differ; W1 starts at 0."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        hidden = min(size_in, size_out)
        self.first, self.second = nn.Linear(size_in, hidden), nn.Linear(hidden, size_out)
        self.shortcut = nn.Linear(size_in, size_out, bias=False) if size_in != size_out else nn.Identity()
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """Features of `size_out` channels."""
        return self.shortcut(x) + self.second(self.first(x.relu()).relu())


class ConditionalNorm(nn.Module):
    """Batch normalization whose scale and shift are linear functions of the code."""

    def __init__(self, *, code_dim: int, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.factor, self.shift = nn.Linear(code_dim, width), nn.Linear(code_dim, width)
        for linear, start in ((self.factor, 1.0), (self.shift, 0.0)):
            nn.init.zeros_(linear.weight)
            nn.init.constant_(linear.bias, start)

    def forward(self, x: Float[Tensor, "b q w"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b q w"]:
        """Normalize over all points of all shapes in training, and with the running moments in evaluation."""
        normalized = self.norm(x.flatten(0, 1)).view(x.shape)
        return torch.addcmul(self.shift(code)[:, None], normalized, self.factor(code)[:, None])


class ConditionalBlock(nn.Module):
    """Residual block with conditional batch normalization before each linear layer."""

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
    """MLP from a point to one number, conditioned on a code by the batch normalization of its residual blocks."""

    def __init__(self, *, code_dim: int, width: int, blocks: int) -> None:
        super().__init__()
        self.enter = nn.Linear(3, width)
        self.blocks = nn.ModuleList(ConditionalBlock(code_dim=code_dim, width=width) for _ in range(blocks))
        self.norm = ConditionalNorm(code_dim=code_dim, width=width)
        self.out = nn.Linear(width, 1)

    def forward(self, x: Float[Tensor, "b q 3"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b q"]:
        """One number for each point."""
        features = self.enter(x)
        for block in self.blocks:
            features = block(features, code)
        return self.out(self.norm(features, code).relu())[..., 0]


class ResidualPointNet(nn.Module):
    """PointNet of five residual blocks; between two blocks, the maximum over all points is concatenated to each point.

    It reads the first `num_points` points of a scan; the points are in random order.
    """

    def __init__(self, *, code_dim: int, num_points: int, width: int) -> None:
        super().__init__()
        self.count = num_points
        self.enter = nn.Linear(3, 2 * width)
        self.blocks = nn.ModuleList(ResidualBlock(2 * width, width) for _ in range(5))
        self.out = nn.Linear(width, code_dim)

    def forward(self, points: Float[Tensor, "b n 3"]) -> tuple[Float[Tensor, "b k"], None]:
        """Code of each scan, without a variance."""
        features = self.enter(points[:, : self.count])
        for index, block in enumerate(self.blocks):
            if index:
                features = torch.cat([features, features.amax(dim=1, keepdim=True).expand_as(features)], dim=-1)
            features = block(features)
        return self.out(features.amax(dim=1).relu()), None
