"""The terms of the loss, one formula each, and the one place where weights meet them."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

Scalar = Float[Tensor, ""]


def surface(value: Float[Tensor, "b n"]) -> Scalar:
    """Mean |f| on the scan: the surface is where f is zero (IGR eq. 2)."""
    return value.abs().mean()


def normal(gradient: Float[Tensor, "b n 3"], normals: Float[Tensor, "b n 3"]) -> Scalar:
    """Mean length of grad f - n on the scan (IGR eq. 2)."""
    return (gradient - normals).norm(dim=-1).mean()


def eikonal(gradient: Float[Tensor, "b n 3"]) -> Scalar:
    """Mean squared departure of |grad f| from 1: f is a distance (IGR eq. 2)."""
    return (gradient.norm(dim=-1) - 1).square().mean()


def weigh(terms: Mapping[str, Scalar], weights: Mapping[str, float]) -> Scalar:
    """The loss: the sum of weight times term. A weight of zero takes its term out of the loss.

    Raises `ValueError` for a term without a weight, or a weight without its term.
    """
    wanted = {name for name, weight in weights.items() if weight}
    if unknown := sorted(terms.keys() - weights.keys()):
        raise ValueError(f"loss terms without a weight: {', '.join(unknown)}. Give each one under `weights`, or 0.")
    if missing := sorted(wanted - terms.keys()):
        raise ValueError(
            f"weights without a term: {', '.join(missing)}; this model on this batch has {', '.join(sorted(terms))}. "
            "Scans without normals have no `normal` term: train them with --weights.normal 0."
        )
    if not wanted:
        raise ValueError("every weight of the loss is zero: nothing would be learned. Set one under `weights`.")
    return sum((weights[name] * terms[name] for name in sorted(wanted)), start=next(iter(terms.values())).new_zeros(()))
