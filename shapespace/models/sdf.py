"""Loss terms of signed distance fields: those of IGR, tangent planes and distances."""

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
    """Values of a field at points, and gradients at every k-th of them."""

    value: Float[Tensor, "b n"]
    gradient: Float[Tensor, "b k 3"]


def loss_terms(
    value_and_gradient: FieldAndGradient[C], field: Field[C], batch: Batch, code: C
) -> dict[str, losses.Scalar]:
    """Terms `surface`, `normal` and `eikonal` of IGR eq. 2, `tangent_plane`, and a distance term.

    The distance term is `signed_distance` where the batch has targets (refining), else `unsigned_distance`. Unoriented
    normals are oriented by the gradient, at the points that have one. Without any normals there are no terms `normal`
    and `tangent_plane`. The value is computed at all points, the gradient at every `batch.gradient_stride`-th.
    """
    on, near, uniform = _values_and_gradients(value_and_gradient, field, batch, code)
    stride = batch.gradient_stride
    terms = {
        "surface": losses.surface(on.value),
        "eikonal": losses.eikonal(torch.cat([near.gradient, uniform.gradient], dim=1)),
    }
    if batch.target_sdf is None:
        terms["unsigned_distance"] = losses.unsigned_distance(uniform.value, batch.uniform_points, batch.points)
    else:
        terms["signed_distance"] = losses.signed_distance(uniform.value, batch.target_sdf)
    if batch.normals is not None:
        terms["normal"] = losses.normal(on.gradient, batch.normals[:, ::stride])
        terms["tangent_plane"] = losses.tangent_plane(near.value, batch.near_points, batch.surface, batch.normals)
    elif batch.unoriented_normals is not None:
        normals = losses.orient_normals(batch.unoriented_normals[:, ::stride], on.gradient)
        planes = batch.near_points[:, ::stride], batch.surface[:, ::stride], normals
        terms["normal"] = losses.normal(on.gradient, normals)
        terms["tangent_plane"] = losses.tangent_plane(near.value[:, ::stride], *planes)
    return terms


def _values_and_gradients(
    value_and_gradient: FieldAndGradient[C], field: Field[C], batch: Batch, code: C
) -> list[ValueAndGradient]:
    """Values at surface, near and uniform points, and gradients at every `batch.gradient_stride`-th point of each.

    The other points are evaluated without gradient, and their values are inserted in order.
    """
    kinds, stride = (batch.surface, batch.near_points, batch.uniform_points), batch.gradient_stride
    strided = [kind[:, ::stride] for kind in kinds]
    sizes = [kind.shape[1] for kind in strided]
    value, gradient = value_and_gradient(torch.cat(strided, dim=1), code)
    values, gradients = value.split(sizes, dim=1), gradient.split(sizes, dim=1)
    if stride > 1:
        masks = [torch.arange(kind.shape[1], device=kind.device) % stride > 0 for kind in kinds]
        rest = torch.cat([kind[:, mask] for kind, mask in zip(kinds, masks, strict=True)], dim=1)
        rest_values = field(rest, code).split([int(mask.sum()) for mask in masks], dim=1)
        orders = [torch.cat([(~mask).nonzero(), mask.nonzero()])[:, 0].argsort() for mask in masks]
        parts = zip(values, rest_values, orders, strict=True)
        values = tuple(torch.cat([some, others], dim=1)[:, order] for some, others, order in parts)
    return [ValueAndGradient(*pair) for pair in zip(values, gradients, strict=True)]


def sphere_residual(
    x: Float[Tensor, "b q 3"], output: Float[Tensor, "b q"], radius: float = 0.5
) -> Float[Tensor, "b q"]:
    """Field from a network output: signed distance to a sphere plus a tenth of the output.

    So the initial field is positive outside. IGR has that by its initialization, networks of local features do not:
    without the sphere, a field that is negative nearly everywhere has a low loss, too.
    """
    return x.norm(dim=-1) - radius + 0.1 * output


def autograd_gradient(field: Field[C]) -> FieldAndGradient[C]:
    """Add the gradient in x by autograd; it can be differentiated again."""

    def value_and_gradient(x: Tensor, code: C) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = field(x, code)
            (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=torch.is_grad_enabled())
        return value, gradient

    return value_and_gradient


def finite_difference_gradient(field: Field[C], step: float) -> FieldAndGradient[C]:
    """Add the gradient in x by central differences with `step` to either side."""

    def value_and_gradient(x: Tensor, code: C) -> tuple[Tensor, Tensor]:
        moved = torch.cat([side * step * torch.eye(3, device=x.device) for side in (1, -1)])
        around = field((x[:, :, None] + moved).flatten(1, 2), code).view(*x.shape[:2], 2, 3)
        return field(x, code), (around[:, :, 0] - around[:, :, 1]) / (2 * step)

    return value_and_gradient
