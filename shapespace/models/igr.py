"""Implicit Geometric Regularization (Gropp et al., ICML 2020) across many shapes."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from shapespace import losses
from shapespace.data.loader import Batch
from shapespace.models.base import FieldModel
from shapespace.models.code import Code
from shapespace.models.encoders import Encoder
from shapespace.nn.mlp import Linearised, SkipMLP
from shapespace.nn.prior import GaussianPrior


class _Sloped(NamedTuple):
    """Values at some points, and gradients at every so-manieth of them."""

    value: Float[Tensor, "b n"]
    gradient: Float[Tensor, "b k 3"]


class IGR(FieldModel):
    """A code vector conditions one MLP; its field is a signed distance in model units, learned from raw scans."""

    def __init__(self, encoder: Encoder, decoder: SkipMLP, prior: GaussianPrior) -> None:
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

        Only taught encoders have a `lesson`. Scans without normals have lines, which are turned outward where the
        gradient is known; scans without either have no `normal` and no `tangent`. The value is computed at all points,
        the gradient at every `batch.sloped`-th.
        """
        on, near, anywhere = self._values(batch, code)
        every = batch.sloped
        terms = {
            "surface": losses.surface(on.value),
            "eikonal": losses.eikonal(torch.cat([near.gradient, anywhere.gradient], dim=1)),
            "far": losses.far(anywhere.value, batch.box, batch.points)
            if batch.target is None
            else losses.told(anywhere.value, batch.target),
            "code": (code.flat.norm(dim=-1) if code.cost is None else code.cost).mean(),
        }
        if code.lesson is not None:
            terms["lesson"] = code.lesson.mean()
        if batch.normals is not None:
            terms["normal"] = losses.normal(on.gradient, batch.normals[:, ::every])
            terms["tangent"] = losses.tangent(near.value, batch.shell, batch.surface, batch.normals)
        elif batch.lines is not None:
            normals = losses.outward(batch.lines[:, ::every], on.gradient)
            planes = batch.shell[:, ::every], batch.surface[:, ::every], normals
            terms["normal"] = losses.normal(on.gradient, normals)
            terms["tangent"] = losses.tangent(near.value[:, ::every], *planes)
        return terms

    def _values(self, batch: Batch, code: Code) -> list[_Sloped]:
        """Values at surface, shell and box, and gradients at every `batch.sloped`-th point of each."""
        kinds, every = (batch.surface, batch.shell, batch.box), batch.sloped
        sloped = [kind[:, ::every] for kind in kinds]
        sizes = [kind.shape[1] for kind in sloped]
        value, gradient = self.decoder.value_and_gradient(torch.cat(sloped, dim=1), code.parts[0])
        values, gradients = value.split(sizes, dim=1), gradient.split(sizes, dim=1)
        if every > 1:
            left = [torch.arange(kind.shape[1], device=kind.device) % every > 0 for kind in kinds]
            rest = torch.cat([kind[:, where] for kind, where in zip(kinds, left, strict=True)], dim=1)
            more = self.decoder(rest, code.parts[0]).split([int(where.sum()) for where in left], dim=1)
            order = [torch.cat([(~where).nonzero(), where.nonzero()])[:, 0].argsort() for where in left]
            both = zip(values, more, order, strict=True)
            values = tuple(torch.cat([some, others], dim=1)[:, back] for some, others, back in both)
        return [_Sloped(*pair) for pair in zip(values, gradients, strict=True)]
