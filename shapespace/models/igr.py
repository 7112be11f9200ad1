"""Implicit Geometric Regularization (Gropp et al., ICML 2020) across many shapes."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from shapespace.data.loader import Batch
from shapespace.models import sdf
from shapespace.models.base import SDFModel
from shapespace.models.code import Code
from shapespace.models.encoders import AutoDecoder, DistilledEncoder, Encoder, PointNetEncoder
from shapespace.nn import losses
from shapespace.nn.latent import CodeTable, GaussianPrior
from shapespace.nn.mlp import Linearization, PlanarMLP, SkipMLP
from shapespace.nn.pointnet import PointNet


class IGR(SDFModel):
    """A code vector conditions one MLP; its field is a signed distance in model units, learned from raw scans."""

    def __init__(self, encoder: Encoder, decoder: SkipMLP | PlanarMLP, prior: GaussianPrior) -> None:
        super().__init__()
        self.encoder, self.decoder, self.prior = encoder, decoder, prior

    def encode(self, batch: Batch) -> Code:
        """Codes of a batch."""
        return self.encoder(batch)

    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        """Signed distance in model units, negative inside."""
        return self.decoder(x, code.parts[0])

    def linearize(self, x: Float[Tensor, "b q 3"], code: Code) -> Linearization:
        """Signed distance with its gradient in x and its Jacobian in the code."""
        return self.decoder.linearize(x, code.parts[0])

    def loss_terms(self, batch: Batch, code: Code) -> dict[str, losses.Scalar]:
        """IGR eq. 2 and the codes' regulariser (section 6), with two more terms for the recommended recipe.

        Only taught encoders have a `lesson`.
        """
        terms = sdf.loss_terms(self.decoder.value_and_gradient, self.decoder, batch, code.parts[0])
        terms["code_reg"] = (code.flat.norm(dim=-1) if code.kl is None else code.kl).mean()
        if code.distillation is not None:
            terms["distillation"] = code.distillation.mean()
        return terms


@dataclass(frozen=True)
class IGRConfig:
    """Sizes of an `IGR` model. The defaults are the paper's (section 6 and appendix)."""

    code_dim: int = 256
    """Numbers in a code."""
    width: int = 512
    """Units in each hidden layer of the decoder."""
    depth: int = 8
    """Hidden layers of the decoder."""
    skip: int = 4
    """The layer at which the decoder's input enters once more."""
    beta: float = 100.0
    """Sharpness of the softplus."""
    init_radius: float | None = 1.0
    """Radius, in model units, of the sphere that the decoder is at the start; `null` for the scan's own, where a single
    scan is reconstructed."""
    dims: Literal[2, 3] = 3
    """Dimensions of the space in which the shapes lie: 2 for curves in the plane z = 0."""
    encoder: Literal["pointnet", "variational", "autodecoder", "distilled"] = "pointnet"
    """Where codes come from: a PointNet; a variational one; a table of free codes (auto-decoder); or a table whose
    codes a PointNet is taught to find."""
    code_init_std: float = 0.0
    """Standard deviation of free codes at the start."""
    modulate: Literal["input", "all"] = "input"
    """Hidden layers of the decoder that the code shifts: the two at which the input enters, or all."""
    encoder_points: int = 1024
    """Points that the encoder reads of a scan."""
    encoder_width: int = 128
    """Units of the encoder's shared layers."""
    encoder_features: int = 512
    """Features over which the encoder takes the maximum."""


def build_igr(config: IGRConfig, *, num_scans: int = 0) -> IGR:
    """An IGR model; a table has room for the codes of `shapes` training scans."""
    if config.init_radius is None:
        raise ValueError(
            "model.radius is null, which is for `shapespace reconstruct`, where one scan has a size. "
            "Give the radius of the sphere that the decoder is at the start, in model units, such as 0.3."
        )
    decoder = SkipMLP(
        code_dim=config.code_dim,
        width=config.width,
        depth=config.depth,
        skip=config.skip,
        beta=config.beta,
        init_radius=config.init_radius,
        modulated=config.modulate == "all",
        dims=config.dims,
    )
    placed = PlanarMLP(decoder) if config.dims == 2 else decoder
    return IGR(_encoder(config, num_scans), placed, GaussianPrior(code_dim=config.code_dim))


def _encoder(config: IGRConfig, num_scans: int) -> Encoder:
    if config.encoder == "autodecoder":
        return AutoDecoder(CodeTable(num_scans=num_scans, code_dim=config.code_dim, init_std=config.code_init_std))
    pointnet = PointNet(
        code_dim=config.code_dim,
        num_points=config.encoder_points,
        width=config.encoder_width,
        features=config.encoder_features,
        variational=config.encoder == "variational",
    )
    if config.encoder == "distilled":
        return DistilledEncoder(
            pointnet, CodeTable(num_scans=num_scans, code_dim=config.code_dim, init_std=config.code_init_std)
        )
    return PointNetEncoder(pointnet)
