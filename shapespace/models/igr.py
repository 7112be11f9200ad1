"""Implicit Geometric Regularization (Gropp et al., ICML 2020) across many shapes."""

from jaxtyping import Float
from torch import Tensor

from shapespace.data.loader import Batch
from shapespace.models import sdf as distance
from shapespace.models.base import DistanceModel
from shapespace.models.code import Code
from shapespace.models.encoders import Encoder
from shapespace.nn import losses
from shapespace.nn.mlp import InPlane, Linearised, SkipMLP
from shapespace.nn.prior import GaussianPrior


class IGR(DistanceModel):
    """A code vector conditions one MLP; its field is a signed distance in model units, learned from raw scans."""

    def __init__(self, encoder: Encoder, decoder: SkipMLP | InPlane, prior: GaussianPrior) -> None:
        super().__init__()
        self.encoder, self.decoder, self.prior = encoder, decoder, prior

    def encode(self, batch: Batch) -> Code:
        """Codes of a batch."""
        return self.encoder(batch)

    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        """Signed distance in model units, negative inside."""
        return self.decoder(x, code.parts[0])

    def linearise(self, x: Float[Tensor, "b q 3"], code: Code) -> Linearised:
        """Signed distance with its gradient in x and its Jacobian in the code."""
        return self.decoder.linearise(x, code.parts[0])

    def terms(self, batch: Batch, code: Code) -> dict[str, losses.Scalar]:
        """IGR eq. 2 and the codes' regulariser (section 6), with two more terms for the recommended recipe.

        Only taught encoders have a `lesson`.
        """
        terms = distance.terms(self.decoder.value_and_gradient, self.decoder, batch, code.parts[0])
        terms["code"] = (code.flat.norm(dim=-1) if code.cost is None else code.cost).mean()
        if code.lesson is not None:
            terms["lesson"] = code.lesson.mean()
        return terms
