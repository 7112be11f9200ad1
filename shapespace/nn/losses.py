"""Loss terms, one function for each formula, and their weighted sum."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

Scalar = Float[Tensor, ""]

# Order of summation. Floating-point sums depend on it: it is fixed so that a seed gives the same bits in every version.
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
    """Mean |f| at points of the scan (IGR eq. 2)."""
    return value.abs().mean()


def normal(gradient: Float[Tensor, "b n 3"], normals: Float[Tensor, "b n 3"]) -> Scalar:
    """Mean norm of grad f - n at points of the scan (IGR eq. 2)."""
    return (gradient - normals).norm(dim=-1).mean()


def orient_normals(unoriented: Float[Tensor, "b n 3"], gradient: Float[Tensor, "b n 3"]) -> Float[Tensor, "b n 3"]:
    """Orient unoriented normals to the side on which the present field increases.

    Not in IGR. The field is initialized as a sphere inside the body and is shared by all scans, so most normals are
    oriented outward from the first step, and the others follow their neighbors.
    """
    return torch.where((unoriented * gradient.detach()).sum(dim=-1, keepdim=True) < 0, -unoriented, unoriented)


def eikonal(gradient: Float[Tensor, "b n 3"]) -> Scalar:
    """Mean (|grad f| - 1)^2: the gradient of a distance has norm 1 (IGR eq. 2)."""
    return (gradient.norm(dim=-1) - 1).square().mean()


def tangent_plane(
    value: Float[Tensor, "b n"],
    near_points: Float[Tensor, "b n 3"],
    points: Float[Tensor, "b n 3"],
    normals: Float[Tensor, "b n 3"],
) -> Scalar:
    """Mean |f(y) - n (y - x)| at near points y of scan points x: f is the signed distance to the tangent plane.

    The planes are those of Hoppe et al. (SIGGRAPH 1992, section 3.3). Not in IGR: it supervises sign and distance at
    the points where the Eikonal term is evaluated anyway.
    """
    return (value - ((near_points - points) * normals).sum(dim=-1)).abs().mean()


def unsigned_distance(
    value: Float[Tensor, "b m"], uniform_points: Float[Tensor, "b m 3"], points: Float[Tensor, "b p 3"]
) -> Scalar:
    """Mean ||f(y)| - d(y)| at uniform points y of the box, where d is the distance to the nearest point of the scan.

    The unsigned loss of Atzmon & Lipman (SAL, CVPR 2020, eq. 4): it needs neither normals nor a closed surface. Not in
    IGR; it removes spurious sheets in empty space early.
    """
    return (value.abs() - torch.cdist(uniform_points, points).amin(dim=-1)).abs().mean()


def signed_distance(value: Float[Tensor, "b m"], target: Float[Tensor, "b m"]) -> Scalar:
    """Mean |f - s| at points of known signed distance s. Not in IGR; used for refining."""
    return (value - target).abs().mean()


def occupancy(logit: Float[Tensor, "b l"], inside: Bool[Tensor, "b l"]) -> Scalar:
    """Mean cross-entropy of the probability of being inside (Occupancy Networks, CVPR 2019, eq. 3)."""
    return binary_cross_entropy_with_logits(logit, inside.to(logit.dtype))


def chamfer(predicted: Float[Tensor, "b n 3"], points: Float[Tensor, "b m 3"]) -> Scalar:
    """Sum of the mean squared nearest-point distances in both directions (AtlasNet, CVPR 2018, eq. 1)."""
    distances = torch.cdist(predicted, points, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.amin(dim=2).square().mean() + distances.amin(dim=1).square().mean()


def _rank(term: str) -> tuple[int, str]:
    """Sort key of a term in the sum; unknown terms come last, by name."""
    return (_ORDER.index(term) if term in _ORDER else len(_ORDER), term)


def weighted_sum(terms: Mapping[str, Scalar], weights: Mapping[str, float]) -> Scalar:
    """The loss: the sum of weight times term. A weight of zero removes its term.

    Raises `ValueError` for a term without a weight, or for a nonzero weight without a term.
    """
    wanted = {name for name, weight in weights.items() if weight}
    if unknown := sorted(terms.keys() - weights.keys()):
        raise ValueError(
            f"no weight for these loss terms: {', '.join(unknown)}. Set --weights.{unknown[0]}, or 0 to drop the term."
        )
    if missing := sorted(wanted - terms.keys()):
        drop = " ".join(f"--weights.{name.replace('_', '-')} 0" for name in missing)
        remedy = f"Set {drop}."
        if "normal" in missing and "eikonal" in terms:
            remedy = f"The scans have no normals: preprocess them again, or set {drop}."
        raise ValueError(
            f"no loss term for these weights: {', '.join(missing)} (terms of this batch: {', '.join(sorted(terms))}). "
            + remedy
        )
    if not wanted:
        raise ValueError("every loss weight is zero. Set at least one, such as --weights.surface 1.")
    return sum(
        (weights[name] * terms[name] for name in sorted(wanted, key=_rank)),
        start=next(iter(terms.values())).new_zeros(()),
    )
