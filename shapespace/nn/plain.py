"""The plain twins of what `mlp` does fast: what the tests trust and what the benchmark measures against."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from shapespace.nn.mlp import SkipMLP


def value(net: SkipMLP, x: Float[Tensor, "b q d"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b q"]:
    """IGR's network as the paper draws it: (code, x) expanded to every point and concatenated, torch's softplus."""
    entry = torch.cat([code[:, None].expand(-1, x.shape[1], -1), x], dim=-1)
    first = torch.cat([net.code_in.weight, net.point_in.weight], dim=1)
    h = softplus(entry @ first.T + net.point_in.bias, net.beta)
    for index, layer in enumerate(net.layers(), start=1):
        weight = layer.weight
        if index == net.skip:
            h = torch.cat([h, entry], dim=-1) / math.sqrt(2)
            weight = torch.cat([weight, net.code_skip.weight, net.point_skip.weight], dim=1)
        h = softplus(h @ weight.T + layer.bias, net.beta)
    return (h @ net.out.weight.T + net.out.bias)[..., 0]


def value_and_gradient(
    net: SkipMLP, x: Float[Tensor, "b q d"], code: Float[Tensor, "b k"]
) -> tuple[Float[Tensor, "b q"], Float[Tensor, "b q d"]]:
    """Field and spatial gradient by autograd, so that a loss on the gradient needs a double backward."""
    x = x.detach().requires_grad_()
    found = value(net, x, code)
    (gradient,) = torch.autograd.grad(found.sum(), x, create_graph=True)
    return found, gradient
