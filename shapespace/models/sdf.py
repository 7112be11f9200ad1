"""The loss of a field that is to be a signed distance, whatever its code is: IGR's terms, and two more."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from shapespace.data.loader import Batch
from shapespace.nn import losses

C = TypeVar("C")
Field = Callable[[Tensor, C], Tensor]
FieldAndGradient = Callable[[Tensor, C], tuple[Tensor, Tensor]]


class ValueAndGradient(NamedTuple):
    """Values at some points, and gradients at every so-manieth of them."""

    value: Float[Tensor, "b n"]
    gradient: Float[Tensor, "b k 3"]


def loss_terms(both: FieldAndGradient[C], field: Field[C], batch: Batch, code: C) -> dict[str, losses.Scalar]:
    """IGR eq. 2, and the terms `tangent` and `far`.

    Scans without normals have lines, which are turned outward where the gradient is known; scans without either have no
    `normal` and no `tangent`. The value is computed at all points, the gradient at every `batch.gradient_stride`-th.
    """
    on, near, anywhere = _values(both, field, batch, code)
    every = batch.gradient_stride
    found = {
        "surface": losses.surface(on.value),
        "eikonal": losses.eikonal(torch.cat([near.gradient, anywhere.gradient], dim=1)),
    }
    if batch.target_sdf is None:
        found["unsigned_distance"] = losses.unsigned_distance(anywhere.value, batch.uniform_points, batch.points)
    else:
        found["signed_distance"] = losses.signed_distance(anywhere.value, batch.target_sdf)
    if batch.normals is not None:
        found["normal"] = losses.normal(on.gradient, batch.normals[:, ::every])
        found["tangent_plane"] = losses.tangent_plane(near.value, batch.near_points, batch.surface, batch.normals)
    elif batch.unoriented_normals is not None:
        normals = losses.orient_normals(batch.unoriented_normals[:, ::every], on.gradient)
        planes = batch.near_points[:, ::every], batch.surface[:, ::every], normals
        found["normal"] = losses.normal(on.gradient, normals)
        found["tangent_plane"] = losses.tangent_plane(near.value[:, ::every], *planes)
    return found


def _values(both: FieldAndGradient[C], field: Field[C], batch: Batch, code: C) -> list[ValueAndGradient]:
    """Values at surface, shell and box, and gradients at every `batch.gradient_stride`-th point of each."""
    kinds, every = (batch.surface, batch.near_points, batch.uniform_points), batch.gradient_stride
    sloped = [kind[:, ::every] for kind in kinds]
    sizes = [kind.shape[1] for kind in sloped]
    value, gradient = both(torch.cat(sloped, dim=1), code)
    values, gradients = value.split(sizes, dim=1), gradient.split(sizes, dim=1)
    if every > 1:
        left = [torch.arange(kind.shape[1], device=kind.device) % every > 0 for kind in kinds]
        rest = torch.cat([kind[:, where] for kind, where in zip(kinds, left, strict=True)], dim=1)
        more = field(rest, code).split([int(where.sum()) for where in left], dim=1)
        order = [torch.cat([(~where).nonzero(), where.nonzero()])[:, 0].argsort() for where in left]
        halves = zip(values, more, order, strict=True)
        values = tuple(torch.cat([some, others], dim=1)[:, back] for some, others, back in halves)
    return [ValueAndGradient(*pair) for pair in zip(values, gradients, strict=True)]


def sphere_residual(
    x: Float[Tensor, "b q 3"], change: Float[Tensor, "b q"], radius: float = 0.5
) -> Float[Tensor, "b q"]:
    """A field that is told as its difference from the distance to a sphere: it knows where outside is from the start.

    IGR has such a start by its initialisation; networks of local features have none, and without one the terms of a
    scan are content with a field that is negative nearly everywhere.
    """
    return x.norm(dim=-1) - radius + 0.1 * change


def autograd_gradient(field: Field[C]) -> FieldAndGradient[C]:
    """A field with its gradient, through which one can differentiate again."""

    def both(x: Tensor, code: C) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = field(x, code)
            (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=torch.is_grad_enabled())
        return value, gradient

    return both


def finite_difference_gradient(field: Field[C], step: float) -> FieldAndGradient[C]:
    """A field with its gradient by central differences over `step` to either side."""

    def both(x: Tensor, code: C) -> tuple[Tensor, Tensor]:
        moved = torch.cat([side * step * torch.eye(3, device=x.device) for side in (1, -1)])
        around = field((x[:, :, None] + moved).flatten(1, 2), code).view(*x.shape[:2], 2, 3)
        return field(x, code), (around[:, :, 0] - around[:, :, 1]) / (2 * step)

    return both
