"""Implicit Geometric Regularization, IGR (Gropp et al., ICML 2020): a signed distance field of a code vector."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from shapespace.data.loader import Batch
from shapespace.models import sdf
from shapespace.models.base import ModelConfig, SDFModel
from shapespace.models.code import Code
from shapespace.models.encoders import AutoDecoder, DistilledEncoder, Encoder, PointNetEncoder
from shapespace.nn import losses
from shapespace.nn.latent import CodeTable, GaussianPrior
from shapespace.nn.mlp import Linearization, PlanarMLP, SkipMLP
from shapespace.nn.pointnet import PointNet


class IGR(SDFModel):
    """MLP conditioned on a code vector; its field is a signed distance (model units), trained on raw scans."""

    def __init__(self, encoder: Encoder, decoder: SkipMLP | PlanarMLP, prior: GaussianPrior) -> None:
        super().__init__()
        self.encoder, self.decoder, self.prior = encoder, decoder, prior

    def encode(self, batch: Batch) -> Code:
        """Encode a batch."""
        return self.encoder(batch)

    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        """Signed distance (model units), negative inside."""
        return self.decoder(x, code.parts[0])

    def linearize(self, x: Float[Tensor, "b q 3"], code: Code) -> Linearization:
        """Signed distance with its gradient in x and its Jacobian in the code."""
        return self.decoder.linearize(x, code.parts[0])

    def loss_terms(self, batch: Batch, code: Code) -> dict[str, losses.Scalar]:
        """Terms of IGR eq. 2, those of `sdf.loss_terms`, and the code regularization (section 6).

        `code_reg` is the mean norm of the codes, or the KL divergence of a variational encoder. A distilled encoder
        adds `distillation`.
        """
        terms = sdf.loss_terms(self.decoder.value_and_gradient, self.decoder, batch, code.parts[0])
        terms["code_reg"] = (code.flat.norm(dim=-1) if code.kl is None else code.kl).mean()
        if code.distillation is not None:
            terms["distillation"] = code.distillation.mean()
        return terms


@dataclass(frozen=True)
class IGRConfig(ModelConfig):
    """Settings of an `IGR` model. The defaults are those of the paper (section 6 and appendix)."""

    code_dim: int = 256
    """Dimension of the code."""
    width: int = 512
    """Units of each hidden layer of the decoder."""
    depth: int = 8
    """Hidden layers of the decoder."""
    skip: int = 4
    """Hidden layer at which the input of the decoder is concatenated again."""
    beta: float = 100.0
    """Sharpness of the softplus (1 / model unit)."""
    init_radius: float | None = 1.0
    """Radius of the initial sphere (model units). `null`, for `shapespace reconstruct` only: the median radius of the
    scan."""
    dims: Literal[2, 3] = 3
    """Dimension of space: 3, or 2 for curves in the plane z = 0."""
    encoder: Literal["pointnet", "variational", "autodecoder", "distilled"] = "pointnet"
    """Source of the codes: a PointNet, a variational PointNet, a table of free codes (autodecoder), or a table with a
    PointNet that is distilled from it."""
    code_init_std: float = 0.0
    """Standard deviation of the initial free codes."""
    modulate: Literal["input", "all"] = "input"
    """Hidden layers that read the code: the two that read the input, or all (shift modulation)."""
    encoder_points: int = 1024
    """Points of a scan that the encoder reads."""
    encoder_width: int = 128
    """Units of the shared layers of the encoder."""
    encoder_features: int = 512
    """Features that the encoder pools by a maximum over the points."""


def build_igr(config: IGRConfig, *, num_scans: int = 0) -> IGR:
    """Build an IGR model, with free codes for `num_scans` training scans."""
    if config.init_radius is None:
        raise ValueError(
            "--model.init-radius null: only `shapespace reconstruct` sets the radius by the scan. "
            "Set the radius of the initial sphere in model units, such as --model.init-radius 0.3."
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
    network = PlanarMLP(decoder) if config.dims == 2 else decoder
    return IGR(_build_encoder(config, num_scans), network, GaussianPrior(code_dim=config.code_dim))


def _build_encoder(config: IGRConfig, num_scans: int) -> Encoder:
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
