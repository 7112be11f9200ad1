"""Occupancy Networks (Mescheder et al., CVPR 2019) across many shapes."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from shapespace.data.loader import Batch
from shapespace.models.base import FieldModel
from shapespace.models.code import Code
from shapespace.models.encoders import Encoder, PointNetEncoder
from shapespace.nn import losses
from shapespace.nn.latent import GaussianPrior
from shapespace.nn.resnet import ConditionalMLP, ResidualPointNet


class Occupancy(FieldModel):
    """A code vector conditions an MLP by its normalisations; the field is minus the logit of being inside."""

    def __init__(self, encoder: Encoder, decoder: ConditionalMLP, prior: GaussianPrior) -> None:
        super().__init__()
        self.encoder, self.decoder, self.prior, self.is_sdf = encoder, decoder, prior, False

    def encode(self, batch: Batch) -> Code:
        """Codes of a batch."""
        return self.encoder(batch)

    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        """Minus the logit: negative where inside is likelier than outside."""
        return -self.decoder(x, code.parts[0])

    def loss_terms(self, batch: Batch, code: Code) -> dict[str, losses.Scalar]:
        """Cross-entropy of labels (section 3.2)."""
        return {"occupancy": occupancy(self, batch, code)}


def occupancy(model: FieldModel, batch: Batch, code: Code) -> losses.Scalar:
    """Cross-entropy at labelled points; of a scan that has no labels, close to it, by its normals.

    The latter is not in the papers, which never fit a code: a point of the shell is inside if it lies below the plane
    of its neighbour on the scan. Raises `ValueError` for scans with neither.
    """
    if batch.occupancy_points is not None and batch.occupancy is not None:
        return losses.occupancy(-model.field(batch.occupancy_points, code), batch.occupancy)
    if batch.normals is None:
        raise ValueError("labels need a true surface, and scans without any need normals: this batch has neither.")
    below = ((batch.near_points - batch.surface) * batch.normals).sum(dim=-1) < 0
    return losses.occupancy(-model.field(batch.near_points, code), below)


@dataclass(frozen=True)
class OccupancyConfig:
    """Sizes of an `Occupancy` model. The defaults are those of Occupancy Networks for point clouds (supplementary)."""

    code_dim: int = 512
    """Numbers in a code."""
    width: int = 256
    """Units in each hidden layer of the decoder."""
    blocks: int = 5
    """Residual blocks of the decoder."""
    encoder_points: int = 300
    """Points that the encoder reads of a scan."""
    encoder_width: int = 512
    """Units of the encoder's layers."""


def build_occupancy(config: OccupancyConfig) -> Occupancy:
    """An occupancy network."""
    encoder = ResidualPointNet(code_dim=config.code_dim, num_points=config.encoder_points, width=config.encoder_width)
    decoder = ConditionalMLP(code_dim=config.code_dim, width=config.width, blocks=config.blocks)
    return Occupancy(PointNetEncoder(encoder), decoder, GaussianPrior(code_dim=config.code_dim))
