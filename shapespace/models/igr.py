"""Implicit Geometric Regularization (Gropp et al., ICML 2020) across many shapes."""

import torch
from jaxtyping import Float
from torch import Tensor

from shapespace import losses
from shapespace.data.loader import Batch
from shapespace.models.base import FieldModel
from shapespace.models.code import Code
from shapespace.nn.codebook import Codebook
from shapespace.nn.mlp import Linearised, SkipMLP
from shapespace.nn.pointnet import PointNet, divergence, sample_normal
from shapespace.nn.prior import GaussianPrior


class IGR(FieldModel):
    """A code vector conditions one MLP; its field is a signed distance in model units, learned from raw scans.

    `encoder` is a `PointNet`, or a `Codebook` for auto-decoder training: the same noun, a module from batch to code.
    """

    def __init__(self, encoder: PointNet | Codebook, decoder: SkipMLP, prior: GaussianPrior) -> None:
        super().__init__()
        self.encoder, self.decoder, self.prior = encoder, decoder, prior

    def encode(self, batch: Batch) -> Code:
        """Codes of a batch; while a variational encoder trains, a draw from its posterior."""
        if isinstance(self.encoder, Codebook):
            return Code((self.encoder(batch.shape),))
        mean, log_variance = self.encoder(batch.points)
        if log_variance is None or not self.training:
            return Code((mean,))
        return Code((sample_normal(mean, log_variance),), cost=divergence(mean, log_variance))

    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        """Signed distance in model units, negative inside."""
        return self.decoder(x, code.parts[0])

    def linearise(self, x: Float[Tensor, "b q 3"], code: Code) -> Linearised:
        """Signed distance with its gradient in x and its Jacobian in the code."""
        return self.decoder.linearise(x, code.parts[0])

    def terms(self, batch: Batch, code: Code) -> dict[str, losses.Scalar]:
        """IGR eq. 2, with the normals' term where the scans have normals, and the codes' regulariser (section 6)."""
        x = torch.cat([batch.points, batch.around], dim=1)
        value, gradient = self.decoder.value_and_gradient(x, code.parts[0])
        on, off = batch.points.shape[1], batch.around.shape[1]
        value_on, _ = value.split([on, off], dim=1)
        gradient_on, gradient_off = gradient.split([on, off], dim=1)
        terms = {
            "surface": losses.surface(value_on),
            "eikonal": losses.eikonal(gradient_off),
            "code": (code.flat.norm(dim=-1) if code.cost is None else code.cost).mean(),
        }
        if batch.normals is not None:
            terms["normal"] = losses.normal(gradient_on, batch.normals)
        return terms
