"""Sizes become models: every size of every family stands here."""

from dataclasses import dataclass

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
    encoder: bool = True
    """A PointNet encoder; without one, each training scan has a free code (auto-decoder)."""
    variational: bool = False
    """The encoder predicts a Gaussian and trains with a draw from it."""
    encoder_points: int = 1024
    """Points that the encoder reads of a scan."""
    encoder_width: int = 128
    """Units of the encoder's shared layers."""
    encoder_features: int = 512
    """Features over which the encoder takes the maximum."""


def igr(sizes: IGRSizes, *, shapes: int = 0) -> IGR:
    """An IGR model; an auto-decoder has room for the codes of `shapes` training scans."""
    encoder = (
        PointNet(
            code=sizes.code,
            count=sizes.encoder_points,
            width=sizes.encoder_width,
            features=sizes.encoder_features,
            variational=sizes.variational,
        )
        if sizes.encoder
        else Codebook(shapes=shapes, code=sizes.code)
    )
    decoder = SkipMLP(
        code=sizes.code,
        width=sizes.width,
        depth=sizes.depth,
        skip=sizes.skip,
        beta=sizes.beta,
        radius=sizes.radius,
    )
    return IGR(encoder, decoder, GaussianPrior(code=sizes.code))
