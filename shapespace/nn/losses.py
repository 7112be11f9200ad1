"""The terms of the loss, one formula each, and the one place where weights meet them."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

Scalar = Float[Tensor, ""]

# Order of summation: floating-point sums depend on it, and the same seed gives the same bits in every version.
_ORDER = (
    "chamfer",
    "code_reg",
    "eikonal",
    "unsigned_distance",
    "signed_distance",
    "distillation",
    "normal",
    "occupancy",
    "surface",
    "tangent_plane",
)


def surface(value: Float[Tensor, "b n"]) -> Scalar:
    """Mean |f| on the scan: the surface is where f is zero (IGR eq. 2)."""
    return value.abs().mean()


def normal(gradient: Float[Tensor, "b n 3"], normals: Float[Tensor, "b n 3"]) -> Scalar:
    """Mean length of grad f - n on the scan (IGR eq. 2)."""
    return (gradient - normals).norm(dim=-1).mean()


def orient_normals(unoriented: Float[Tensor, "b n 3"], gradient: Float[Tensor, "b n 3"]) -> Float[Tensor, "b n 3"]:
    """Normals of a scan that has none: its lines, each turned to the side on which the field rises at present.

    Not in IGR. The field starts as a sphere inside the body and is one for all scans, so that most lines are turned
    outward from the beginning, and the others follow their neighbours.
    """
    return torch.where((unoriented * gradient.detach()).sum(dim=-1, keepdim=True) < 0, -unoriented, unoriented)


def eikonal(gradient: Float[Tensor, "b n 3"]) -> Scalar:
    """Mean squared departure of |grad f| from 1: f is a distance (IGR eq. 2)."""
    return (gradient.norm(dim=-1) - 1).square().mean()


def tangent_plane(
    value: Float[Tensor, "b n"],
    near_points: Float[Tensor, "b n 3"],
    points: Float[Tensor, "b n 3"],
    normals: Float[Tensor, "b n 3"],
) -> Scalar:
    """Mean |f(y) - n (y - x)| close to the scan: f is the signed distance to the tangent plane.

    The planes are those of Hoppe et al. (SIGGRAPH 1992, section 3.3). Not in IGR: the same points, already evaluated
    for the Eikonal term, also tell sign and distance.
    """
    return (value - ((near_points - points) * normals).sum(dim=-1)).abs().mean()


def unsigned_distance(
    value: Float[Tensor, "b m"], uniform_points: Float[Tensor, "b m 3"], points: Float[Tensor, "b p 3"]
) -> Scalar:
    """Mean ||f(y)| - d(y)| anywhere in the box, where d is the distance to the nearest point of the scan.

    The unsigned loss of Atzmon & Lipman (SAL, CVPR 2020, eq. 4): it needs neither normals nor a closed surface. Not in
    IGR, where ghost sheets in empty space take long to go.
    """
    return (value.abs() - torch.cdist(uniform_points, points).amin(dim=-1)).abs().mean()


def signed_distance(value: Float[Tensor, "b m"], target: Float[Tensor, "b m"]) -> Scalar:
    """Mean |f - s| where the signed distance s is known: `far` with a sign. Not in IGR; for refining."""
    return (value - target).abs().mean()


def occupancy(logit: Float[Tensor, "b l"], inside: Bool[Tensor, "b l"]) -> Scalar:
    """Mean cross-entropy of the probability of being inside (Occupancy Networks, CVPR 2019, eq. 3)."""
    return binary_cross_entropy_with_logits(logit, inside.to(logit.dtype))


def chamfer(predicted: Float[Tensor, "b n 3"], points: Float[Tensor, "b m 3"]) -> Scalar:
    """Mean squared distance to the nearest point, one way and the other, added (AtlasNet, CVPR 2018, eq. 1)."""
    apart = torch.cdist(predicted, points, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.amin(dim=2).square().mean() + apart.amin(dim=1).square().mean()


def _place(term: str) -> tuple[int, str]:
    return (_ORDER.index(term) if term in _ORDER else len(_ORDER), term)


def weighted_sum(terms: Mapping[str, Scalar], weights: Mapping[str, float]) -> Scalar:
    """The loss: the sum of weight times term. A weight of zero takes its term out of the loss.

    Raises `ValueError` for a term without a weight, or a weight without its term.
    """
    wanted = {name for name, weight in weights.items() if weight}
    if unknown := sorted(terms.keys() - weights.keys()):
        raise ValueError(f"loss terms without a weight: {', '.join(unknown)}. Give each one under `weights`, or 0.")
    if missing := sorted(wanted - terms.keys()):
        raise ValueError(
            f"weights without a term: {', '.join(missing)}; this model on this batch has {', '.join(sorted(terms))}. "
            "Scans with neither normals nor lines have no terms `normal` and `tangent`: pack them anew, or add "
            "--weights.normal 0 --weights.tangent-plane 0."
        )
    if not wanted:
        raise ValueError("every weight of the loss is zero: nothing would be learned. Set one under `weights`.")
    return sum(
        (weights[name] * terms[name] for name in sorted(wanted, key=_place)),
        start=next(iter(terms.values())).new_zeros(()),
    )
