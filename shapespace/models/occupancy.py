"""Occupancy Networks (Mescheder et al., CVPR 2019): the probability of being inside, from a code vector."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from shapespace.data.loader import Batch
from shapespace.models.base import FieldModel, ModelConfig
from shapespace.models.code import Code
from shapespace.models.encoders import Encoder, PointNetEncoder
from shapespace.nn import losses
from shapespace.nn.latent import GaussianPrior
from shapespace.nn.resnet import ConditionalMLP, ResidualPointNet


class Occupancy(FieldModel):
    """MLP conditioned on a code vector by batch normalization; the field is minus the logit of being inside."""

    is_sdf = False

    def __init__(self, encoder: Encoder, decoder: ConditionalMLP, prior: GaussianPrior) -> None:
        super().__init__()
        self.encoder, self.decoder, self.prior = encoder, decoder, prior

    def encode(self, batch: Batch) -> Code:
        """Encode a batch."""
        return self.encoder(batch)

    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        """Minus the logit: negative where the probability of being inside is above one half."""
        return -self.decoder(x, code.parts[0])

    def loss_terms(self, batch: Batch, code: Code) -> dict[str, losses.Scalar]:
        """Term `occupancy`: cross-entropy of the labels (section 3.2)."""
        return {"occupancy": occupancy(self, batch, code)}


def occupancy(model: FieldModel, batch: Batch, code: Code) -> losses.Scalar:
    """Cross-entropy at labeled points; for a scan without labels, at its near points with labels from its normals.

    The labels from normals are not in the papers, which do not fit codes: a near point is inside if it is below the
    tangent plane of its scan point. Raises `ValueError` for scans without labels and normals.
    """
    if batch.occupancy_points is not None and batch.occupancy is not None:
        return losses.occupancy(-model.field(batch.occupancy_points, code), batch.occupancy)
    if batch.normals is None:
        raise ValueError(
            "term `occupancy`: the batch has neither labels nor normals. Use scans that have ground truth or normals."
        )
    below = ((batch.near_points - batch.surface) * batch.normals).sum(dim=-1) < 0
    return losses.occupancy(-model.field(batch.near_points, code), below)


@dataclass(frozen=True)
class OccupancyConfig(ModelConfig):
    """Settings of an `Occupancy` model. The defaults are those of the paper for point clouds (supplementary)."""

    code_dim: int = 512
    """Dimension of the code."""
    width: int = 256
    """Units of each hidden layer of the decoder."""
    blocks: int = 5
    """Residual blocks of the decoder."""
    encoder_points: int = 300
    """Points of a scan that the encoder reads."""
    encoder_width: int = 512
    """Units of the layers of the encoder."""


def build_occupancy(config: OccupancyConfig, *, num_scans: int = 0) -> Occupancy:
    """Build an occupancy network; the number of training scans does not matter."""
    encoder = ResidualPointNet(code_dim=config.code_dim, num_points=config.encoder_points, width=config.encoder_width)
    decoder = ConditionalMLP(code_dim=config.code_dim, width=config.width, blocks=config.blocks)
    return Occupancy(PointNetEncoder(encoder), decoder, GaussianPrior(code_dim=config.code_dim))
