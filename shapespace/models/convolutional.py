"""Convolutional Occupancy Networks (Peng et al., ECCV 2020), trained on labels or on raw scans."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shapespace.data.loader import Batch
from shapespace.models import sdf
from shapespace.models.base import FieldModel, ModelConfig
from shapespace.models.code import Code
from shapespace.models.occupancy import occupancy
from shapespace.nn import feature_grid, losses
from shapespace.nn.feature_grid import LocalPointNet, UNet
from shapespace.nn.resnet import ResidualBlock

Supervision = Literal["occupancy", "scans"]

_PLANES = ((0, 2), (0, 1), (1, 2))  # the axes that span each plane


class ConvolutionalEncoder(nn.Module):
    """Encoder: point features averaged on three planes and in a volume, then U-Nets (section 3.1)."""

    def __init__(self, *, features: int, width: int, num_points: int, plane: int, grid: int, depth: int) -> None:
        super().__init__()
        if not plane and not grid:
            raise ValueError("--model.plane 0 --model.grid 0: the code would be empty. Set one of them above 0.")
        feature_grid.check_divisible("plane", plane, depth - 1)
        feature_grid.check_divisible("grid", grid, depth - 1)
        self.count, self.plane, self.grid = num_points, plane, grid
        self.points = LocalPointNet(features=features, width=width)
        sizes = {"channels": features, "width": width, "depth": depth}
        self.planes = UNet(dimensions=2, **sizes) if plane else None
        self.volume = UNet(dimensions=3, **sizes) if grid else None

    def forward(self, batch: Batch) -> Code:
        """Encode a batch: three planes (with one U-Net for all), a volume, or both."""
        points = batch.points[:, : self.count]
        places = []
        if self.planes is not None:
            places += [(feature_grid.cell_index(points[..., axes], self.plane), self.plane**2) for axes in _PLANES]
        if self.volume is not None:
            places.append((feature_grid.cell_index(points, self.grid), self.grid**3))
        features = self.points(points, places)
        means = [feature_grid.scatter_mean(features, cell, count) for cell, count in places]
        parts = []
        if self.planes is not None:
            parts += [self.planes(mean.unflatten(2, (self.plane,) * 2)) for mean in means[: len(_PLANES)]]
        if self.volume is not None:
            parts.append(self.volume(means[-1].unflatten(2, (self.grid,) * 3)))
        return Code(tuple(parts))


class LocalMLP(nn.Module):
    """MLP from a point and the features at it to one number (section 3.2)."""

    def __init__(self, *, features: int, width: int, blocks: int) -> None:
        super().__init__()
        self.enter = nn.Linear(3, width)
        self.told = nn.ModuleList(nn.Linear(features, width) for _ in range(blocks))  # the name is in stored models
        self.blocks = nn.ModuleList(ResidualBlock(width, width) for _ in range(blocks))
        self.out = nn.Linear(width, 1)

    def forward(self, x: Float[Tensor, "b q 3"], features: Float[Tensor, "b q c"]) -> Float[Tensor, "b q"]:
        """One number for each point."""
        hidden = self.enter(x)
        for from_features, block in zip(self.told, self.blocks, strict=True):
            hidden = block(hidden + from_features(features))
        return self.out(hidden.relu())[..., 0]


class Convolutional(FieldModel):
    """Small MLP on features that are interpolated on planes and in a volume."""

    def __init__(self, encoder: ConvolutionalEncoder, decoder: LocalMLP, supervision: Supervision) -> None:
        super().__init__()
        self.encoder, self.decoder, self.prior = encoder, decoder, None
        self.is_sdf = supervision == "scans"

    def encode(self, batch: Batch) -> Code:
        """Encode a batch."""
        return self.encoder(batch)

    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        """Minus the logit of being inside; with supervision by scans the signed distance (model units)."""
        parts, features = list(code.parts), torch.zeros(())
        if self.encoder.planes is not None:
            for axes in _PLANES:
                features = features + feature_grid.interpolate(parts.pop(0), x[..., axes])
        if self.encoder.volume is not None:
            features = features + feature_grid.interpolate(parts.pop(0), x)
        output = self.decoder(x, features)
        return sdf.sphere_residual(x, output) if self.is_sdf else -output

    def loss_terms(self, batch: Batch, code: Code) -> dict[str, losses.Scalar]:
        """Cross-entropy of labels (section 3.3), or the terms of IGR, which are not in the paper."""
        if self.is_sdf:
            return sdf.loss_terms(sdf.autograd_gradient(self.field), self.field, batch, code)
        return {"occupancy": occupancy(self, batch, code)}


@dataclass(frozen=True)
class ConvolutionalConfig(ModelConfig):
    """Settings of a `Convolutional` model. The defaults are the three planes of the paper (section 4)."""

    features: int = 32
    """Channels of the planes and of the volume."""
    plane: int = 64
    """Nodes along each edge of the three planes; 0: no planes."""
    grid: int = 0
    """Nodes along each edge of the volume; 0: no volume. The paper has 32 without planes."""
    depth: int = 4
    """Levels of the U-Nets."""
    width: int = 32
    """Channels of the first level of the U-Nets, and units of encoder and decoder."""
    blocks: int = 5
    """Residual blocks of the decoder."""
    encoder_points: int = 3000
    """Points of a scan that the encoder reads."""
    supervision: Supervision = "occupancy"
    """Training data: occupancy labels from ground truth, as in the paper, or raw scans with the loss of IGR."""


def build_convolutional(config: ConvolutionalConfig, *, num_scans: int = 0) -> Convolutional:
    """Build a convolutional occupancy network; the number of training scans does not matter."""
    encoder = ConvolutionalEncoder(
        features=config.features,
        width=config.width,
        num_points=config.encoder_points,
        plane=config.plane,
        grid=config.grid,
        depth=config.depth,
    )
    return Convolutional(
        encoder, LocalMLP(features=config.features, width=config.width, blocks=config.blocks), config.supervision
    )
