"""IF-Nets (Chibane et al., CVPR 2020): a pyramid of feature grids, trained on labels or on raw scans."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shapespace.data.loader import Batch
from shapespace.models import sdf
from shapespace.models.base import FieldModel, ModelConfig
from shapespace.models.code import Code
from shapespace.models.convolutional import Supervision
from shapespace.models.occupancy import occupancy
from shapespace.nn import feature_grid, losses


class PyramidEncoder(nn.Module):
    """Encoder: an occupancy grid of the points and convolutions at decreasing resolutions (section 3.1).

    Level l has `width * 2^l` channels at the resolution `grid / 2^l`.
    """

    def __init__(self, *, num_points: int, grid: int, width: int, levels: int) -> None:
        super().__init__()
        feature_grid.check_divisible("grid", grid, levels - 1)
        self.count, self.grid = num_points, grid
        self.channels = [width * 2**level for level in range(levels)]
        self.pool = nn.MaxPool3d(2)
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(before, after, 3, padding=1, padding_mode="replicate"),
                nn.ReLU(),
                nn.Conv3d(after, after, 3, padding=1, padding_mode="replicate"),
                nn.ReLU(),
                nn.BatchNorm3d(after),
            )
            for before, after in pairwise([1, *self.channels])
        )

    def forward(self, batch: Batch) -> Code:
        """Encode a batch: the occupancy grid, and the features of each level."""
        points = batch.points[:, : self.count]
        cell = feature_grid.cell_index(points, self.grid)
        occupied = points.new_zeros(len(points), self.grid**3).scatter(1, cell, 1.0)
        parts = [occupied.view(-1, 1, *(self.grid,) * 3)]
        for level, block in enumerate(self.levels):
            parts.append(block(parts[-1] if level == 0 else self.pool(parts[-1])))
        return Code(tuple(parts))


class Multiscale(FieldModel):
    """MLP on the features of all levels at a point and at its six neighbors."""

    around: Tensor

    def __init__(self, encoder: PyramidEncoder, *, width: int, step: float, supervision: Supervision) -> None:
        """`step` is the distance of the neighbors (model units)."""
        super().__init__()
        self.encoder, self.prior = encoder, None
        size = 7 * (1 + sum(encoder.channels))
        layers = [
            nn.Linear(size, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, width),
            nn.ReLU(),
            nn.Linear(width, width),
        ]
        self.decoder = nn.Sequential(*layers, nn.ReLU(), nn.Linear(width, 1))
        around = torch.cat([torch.zeros(1, 3), step * torch.eye(3), -step * torch.eye(3)])
        self.register_buffer("around", around, persistent=False)
        self.is_sdf = supervision == "scans"

    def encode(self, batch: Batch) -> Code:
        """Encode a batch."""
        return self.encoder(batch)

    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        """Minus the logit of being inside; with supervision by scans the signed distance (model units)."""
        points = (x[:, :, None] + self.around).flatten(1, 2)
        features = torch.cat([feature_grid.interpolate(part, points) for part in code.parts], dim=-1)
        output = self.decoder(features.view(*x.shape[:2], -1))[..., 0]
        return sdf.sphere_residual(x, output) if self.is_sdf else -output

    def loss_terms(self, batch: Batch, code: Code) -> dict[str, losses.Scalar]:
        """Cross-entropy of labels (section 3.2), or the terms of IGR, which are not in the paper."""
        if self.is_sdf:
            return sdf.loss_terms(sdf.autograd_gradient(self.field), self.field, batch, code)
        return {"occupancy": occupancy(self, batch, code)}


@dataclass(frozen=True)
class MultiscaleConfig(ModelConfig):
    """Settings of a `Multiscale` model. The defaults are those of the paper for dense point clouds (supplementary)."""

    grid: int = 128
    """Nodes along each edge of the occupancy grid."""
    levels: int = 5
    """Number of levels of the pyramid."""
    features: int = 16
    """Channels of the first level; each further one has twice as many."""
    width: int = 256
    """Units of the layers of the decoder; the first has twice as many."""
    step: float = 0.0722
    """Distance of the six neighbors at which features are read too (model units)."""
    encoder_points: int = 3000
    """Points of a scan that the encoder reads."""
    supervision: Supervision = "occupancy"
    """Training data: occupancy labels from ground truth, as in the paper, or raw scans with the loss of IGR."""


def build_multiscale(config: MultiscaleConfig, *, num_scans: int = 0) -> Multiscale:
    """Build an IF-Net; the number of training scans does not matter."""
    encoder = PyramidEncoder(
        num_points=config.encoder_points, grid=config.grid, width=config.features, levels=config.levels
    )
    return Multiscale(encoder, width=config.width, step=config.step, supervision=config.supervision)
