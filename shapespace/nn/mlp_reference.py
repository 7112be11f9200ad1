"""The plain twin of what `mlp` does fast: what the tests trust and what the benchmark measures against."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from shapespace.nn.mlp import SkipMLP


class ReferenceMLP(SkipMLP):
    """The same network and the same weights, computed as the paper's code does."""

    def forward(self, x: Float[Tensor, "b q d"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b q"]:
        """Field at x: (code, x) expanded to every point and concatenated, torch's softplus."""
        entry = torch.cat([code[:, None].expand(-1, x.shape[1], -1), x], dim=-1)
        first = torch.cat([self.code_in.weight, self.point_in.weight], dim=1)
        h = softplus(entry @ first.T + self.point_in.bias, self.beta)
        for index, layer in enumerate(self.layers(), start=1):
            weight = layer.weight
            if index == self.skip:
                h = torch.cat([h, entry], dim=-1) / math.sqrt(2)
                weight = torch.cat([weight, self.code_skip.weight, self.point_skip.weight], dim=1)
            z = h @ weight.T + layer.bias
            if str(index) in self.code_hidden:
                z = z + self.code_hidden[str(index)](code)[:, None]
            h = softplus(z, self.beta)
        return (h @ self.out.weight.T + self.out.bias)[..., 0]

    def value_and_gradient(
        self, x: Float[Tensor, "b q d"], code: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b q"], Float[Tensor, "b q d"]]:
        """Field and spatial gradient by autograd, so that a loss on the gradient needs a double backward."""
        x = x.detach().requires_grad_()
        found = self(x, code)
        (gradient,) = torch.autograd.grad(found.sum(), x, create_graph=True)
        return found, gradient


def reference_of(net: SkipMLP) -> ReferenceMLP:
    """The twin of a network: the same tensors."""
    plain = ReferenceMLP(
        code_dim=net.code_in.in_features,
        width=net.point_skip.out_features,
        depth=len(net.hidden) + 1,
        skip=net.skip,
        beta=net.beta,
        modulated=net.modulated,
        dims=net.point_in.in_features,
    )
    for name, parameter in net.named_parameters():
        plain.get_submodule(name.rpartition(".")[0]).register_parameter(name.rpartition(".")[2], parameter)
    return plain
