"""Articulated parts: rotations of parts, and the tree along which poses are interpolated, exchanged and turned.

A part has a pose: a center t (3) and a rotation R (3 x 3) that bring points u of its frame to x = R u + t. Lengths are
in the unit of the caller (model units or meters), angles in radians.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

# ----------------------------------------------------------------------------------------------------------- rotations


def rotation_from_6d(columns: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 3 3"]:
    """Rotations from their first two columns, one after the other, by Gram-Schmidt.

    Zhou et al., On the Continuity of Rotation Representations in Neural Networks, CVPR 2019, section 4. The columns
    need not be orthonormal, but they must not be parallel.
    """
    first = functional.normalize(columns[..., :3], dim=-1)
    second = columns[..., 3:] - (first * columns[..., 3:]).sum(dim=-1, keepdim=True) * first
    second = functional.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)


def rotation_to_6d(rotation: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 6"]:
    """First two columns of rotations, one after the other: what `rotation_from_6d` takes."""
    return rotation[..., :2].mT.flatten(-2)


def procrustes(
    reference: Float[Tensor, "v 3"], posed: Float[Tensor, "b v 3"], weights: Float[Tensor, "v"]
) -> tuple[Float[Tensor, "b 3 3"], Float[Tensor, "b 3"]]:
    """Rotations R and centers t with posed = R (reference - its weighted mean) + t, by weighted least squares.

    The centers are the weighted means of the posed points. Kabsch, Acta Cryst. A 32, 1976; never a reflection (Umeyama,
    PAMI 1991). Solved in float64, returned in the precision of `posed`. Points on a line leave the turn about it free:
    one of the rotations that fit is returned.

    Raises:
        ValueError: A weight is negative, or their sum is not positive.

    """
    if bool((weights < 0).any()) or not float(weights.sum()) > 0:
        raise ValueError(
            f"procrustes: weights from {float(weights.min()):g} to {float(weights.max()):g}. Give weights that are not "
            "negative, at least one of them positive."
        )
    share = (weights / weights.sum()).double()
    centered = reference.double() - share @ reference.double()
    centers = torch.einsum("v,bvd->bd", share, posed.double())
    covariance = torch.einsum("v,bvi,vj->bij", share, posed.double() - centers[:, None], centered)
    left, _, right = torch.linalg.svd(covariance)
    left = left * torch.linalg.det(left @ right).sign()[:, None, None] ** torch.tensor([0, 0, 1], device=left.device)
    return (left @ right).to(posed), centers.to(posed)
