"""Sizes become models: every size of every family stands here."""

from dataclasses import dataclass
from typing import Literal

from shapespace.models.encoders import Encoder, PointEncoder, TableEncoder, TaughtEncoder
from shapespace.models.igr import IGR
from shapespace.nn.codebook import Codebook
from shapespace.nn.mlp import SkipMLP
from shapespace.nn.pointnet import PointNet
from shapespace.nn.prior import GaussianPrior


@dataclass(frozen=True)
class IGRSizes:
    """Sizes of an `IGR` model. The defaults are the paper's (section 6 and appendix)."""

    code: int = 256
    """Numbers in a code."""
    width: int = 512
    """Units in each hidden layer of the decoder."""
    depth: int = 8
    """Hidden layers of the decoder."""
    skip: int = 4
    """The layer at which the decoder's input enters once more."""
    beta: float = 100.0
    """Sharpness of the softplus."""
    radius: float = 1.0
    """Radius, in model units, of the sphere that the decoder is at the start."""
    modulate: Literal["input", "all"] = "input"
    """Hidden layers of the decoder that the code shifts: the two at which the input enters, or all."""
    encoder: Literal["points", "variational", "table", "taught"] = "points"
    """Where codes come from: a PointNet; a variational one; a table of free codes (auto-decoder); or a table whose
    codes a PointNet is taught to find."""
    spread: float = 0.0
    """Standard deviation of free codes at the start."""
    noise: float = 0.0
    """Noise on free codes while training, in units of the standard deviation of all of them."""
    encoder_points: int = 1024
    """Points that the encoder reads of a scan."""
    encoder_width: int = 128
    """Units of the encoder's shared layers."""
    encoder_features: int = 512
    """Features over which the encoder takes the maximum."""


def igr(sizes: IGRSizes, *, shapes: int = 0) -> IGR:
    """An IGR model; a table has room for the codes of `shapes` training scans."""
    decoder = SkipMLP(
        code=sizes.code,
        width=sizes.width,
        depth=sizes.depth,
        skip=sizes.skip,
        beta=sizes.beta,
        radius=sizes.radius,
        modulated=sizes.modulate == "all",
    )
    return IGR(_encoder(sizes, shapes), decoder, GaussianPrior(code=sizes.code))


def _encoder(sizes: IGRSizes, shapes: int) -> Encoder:
    if sizes.encoder == "table":
        return TableEncoder(Codebook(shapes=shapes, code=sizes.code, spread=sizes.spread, noise=sizes.noise))
    pointnet = PointNet(
        code=sizes.code,
        count=sizes.encoder_points,
        width=sizes.encoder_width,
        features=sizes.encoder_features,
        variational=sizes.encoder == "variational",
    )
    if sizes.encoder == "taught":
        return TaughtEncoder(pointnet, Codebook(shapes=shapes, code=sizes.code, spread=sizes.spread, noise=sizes.noise))
    return PointEncoder(pointnet)
