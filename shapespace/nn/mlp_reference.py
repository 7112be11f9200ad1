"""Reference implementations of `mlp` and `part_mlp` by autograd, for tests and benchmarks."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from shapespace.nn.mlp import SkipMLP
from shapespace.nn.part_mlp import BLEND_SHARPNESS, NEAREST, PartMLP, PartStates


class ReferenceMLP(SkipMLP):
    """`SkipMLP` with the same weights, evaluated as in the code of the IGR paper."""

    def forward(self, x: Float[Tensor, "b q d"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b q"]:
        """Field at x: (code, x) is expanded to every point and concatenated, with the softplus of torch."""
        inputs = torch.cat([code[:, None].expand(-1, x.shape[1], -1), x], dim=-1)
        first = torch.cat([self.code_in.weight, self.point_in.weight], dim=1)
        h = softplus(inputs @ first.T + self.point_in.bias, self.beta)
        for index, layer in enumerate(self.layers(), start=1):
            weight = layer.weight
            if index == self.skip:
                h = torch.cat([h, inputs], dim=-1) / math.sqrt(2)
                weight = torch.cat([weight, self.code_skip.weight, self.point_skip.weight], dim=1)
            z = h @ weight.T + layer.bias
            if str(index) in self.code_hidden:
                z = z + self.code_hidden[str(index)](code)[:, None]
            h = softplus(z, self.beta)
        return (h @ self.out.weight.T + self.out.bias)[..., 0]

    def value_and_gradient(
        self, x: Float[Tensor, "b q d"], code: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b q"], Float[Tensor, "b q d"]]:
        """Field and spatial gradient by autograd; a loss on the gradient needs a double backward."""
        x = x.detach().requires_grad_()
        value = self(x, code)
        (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return value, gradient


def reference_of(net: SkipMLP) -> ReferenceMLP:
    """Reference network that shares the parameters of `net`."""
    reference = ReferenceMLP(
        code_dim=net.code_in.in_features,
        width=net.point_skip.out_features,
        depth=len(net.hidden) + 1,
        skip=net.skip,
        beta=net.beta,
        modulated=net.modulated,
        dims=net.point_in.in_features,
    )
    for name, parameter in net.named_parameters():
        reference.get_submodule(name.rpartition(".")[0]).register_parameter(name.rpartition(".")[2], parameter)
    return reference


class ReferencePartMLP(PartMLP):
    """`PartMLP` with the same weights: every part at every point, and the nearest ones are blended."""

    def forward(self, x: Float[Tensor, "b q 3"], states: PartStates) -> Float[Tensor, "b q"]:
        """Field at points of the model frame (model units), negative inside."""
        offset = (x[:, :, None] - states.center[:, None]) / self.radius[:, None]
        score = -BLEND_SHARPNESS * offset.square().sum(dim=-1)
        nearest = score.topk(min(NEAREST, self.num_parts)).indices
        is_far = torch.ones_like(score, dtype=torch.bool).scatter(2, nearest, False)
        weight = score.masked_fill(is_far, -math.inf).softmax(dim=-1)
        h = torch.einsum("bqki,bkij->bqkj", offset, states.rotation)
        for matrix, by_code, bias in zip([self.point_in, *self.hidden], self.shift, self.bias, strict=True):
            shift = torch.einsum("bkl,klw->bkw", states.local_code, by_code) + bias
            h = softplus(torch.einsum("bqki,kiw->bqkw", h, matrix) + shift[:, None], self.beta, threshold=60)
        distance = (h * self.out).sum(dim=-1) + self.out_bias
        return (weight * self.radius * distance).sum(dim=-1)

    def value_and_gradient(
        self, x: Float[Tensor, "b q 3"], states: PartStates
    ) -> tuple[Float[Tensor, "b q"], Float[Tensor, "b q 3"]]:
        """Field and spatial gradient by autograd; a loss on the gradient needs a double backward."""
        x = x if x.requires_grad else x.detach().requires_grad_()
        value = self(x, states)
        (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return value, gradient


def reference_of_parts(net: PartMLP) -> ReferencePartMLP:
    """Reference network that shares the parameters of `net`."""
    sizes = {name: getattr(net, name) for name in ("num_parts", "local_dim", "width", "depth", "beta")}
    reference = ReferencePartMLP(**sizes)
    for name, parameter in net.named_parameters():
        reference.register_parameter(name, parameter)
    reference.radius = net.radius
    return reference
