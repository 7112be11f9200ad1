"""The decoder's network, its spatial gradient and its code Jacobian, all in one ordinary graph."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Beyond it softplus is its asymptote to the last bits of float32, and a CPU is spared the subnormal numbers of
# exp(-beta |z|), which are slow.
_SATURATION = 30.0


class _SoftStep(torch.autograd.Function):
    """Softplus and its derivative from one sigmoid; both differentiable, so that gradients can enter a loss.

    `softplus(z) = -log(sigmoid(-beta z)) / beta`: the sigmoid has to be known anyway, for the slope.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        rest = (z * -beta).clamp_(-_SATURATION, _SATURATION).sigmoid_()  # 1 - slope
        value = rest.log().mul_(-1 / beta).add_((z - _SATURATION / beta).clamp_(min=0))
        slope = 1 - rest
        ctx.save_for_backward(slope)
        ctx.beta = beta
        return value, slope

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        value_grad, slope_grad = grads
        (slope,) = ctx.saved_tensors
        curvature = (slope - slope.square()).mul_(ctx.beta)
        return curvature.mul_(slope_grad).addcmul_(value_grad, slope), None


def soft_step(z: Float[Tensor, "n w"], beta: float) -> tuple[Float[Tensor, "n w"], Float[Tensor, "n w"]]:
    """Softplus of sharpness `beta`, `log(1 + exp(beta z)) / beta`, and its derivative."""
    return _SoftStep.apply(z, beta)  # type: ignore[no-untyped-call]


class Linearised(NamedTuple):
    """A field to first order: value, gradient in x, Jacobian in the code."""

    value: Float[Tensor, "b q"]
    gradient: Float[Tensor, "b q 3"]
    jacobian: Float[Tensor, "b q k"]


class SkipMLP(nn.Module):
    """The network of IGR: softplus layers; the input enters once more, half-way (IGR, section 4 and appendix).

    `depth` hidden layers of `width`; the input (code, x) is concatenated to what enters layer `skip`, and both are
    divided by sqrt 2. The code's share of these two layers is one product per shape, never expanded to points.

    The initialisation is that of Atzmon & Lipman, SAL (CVPR 2020), section 4: for a code of zero the output is about
    |x| - radius.
    """

    def __init__(
        self, *, code: int, width: int, depth: int, skip: int, beta: float = 100.0, radius: float = 1.0, space: int = 3
    ) -> None:
        super().__init__()
        if not 0 < skip < depth:
            raise ValueError(f"the input re-enters at layer {skip}, but the layers between are 1 to {depth - 1}")
        if width <= code + space:
            raise ValueError(
                f"width {width} leaves nothing beside the input of {code} + {space} at the skip layer: "
                f"take a width above {code + space}, or a smaller code"
            )
        self.skip, self.beta = skip, beta
        narrow = width - code - space  # what enters the skip layer is `width` wide, the input included
        outs = [narrow if layer == skip - 1 else width for layer in range(depth)]
        self.point_in = nn.Linear(space, outs[0])
        self.code_in = nn.Linear(code, outs[0], bias=False)
        self.hidden = nn.ModuleList(nn.Linear(outs[layer - 1], outs[layer]) for layer in range(1, depth))
        self.point_skip = nn.Linear(space, width, bias=False)
        self.code_skip = nn.Linear(code, width, bias=False)
        self.out = nn.Linear(width, 1)
        for linear in (self.point_in, self.code_in, self.point_skip, self.code_skip, *self.layers()):
            nn.init.normal_(linear.weight, 0.0, math.sqrt(2 / linear.out_features))
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        for linear in (self.code_in, self.code_skip):  # whatever the code, the start is the sphere
            linear.weight.data *= 1e-2
        nn.init.normal_(self.out.weight, math.sqrt(math.pi / width), 1e-5)
        nn.init.constant_(self.out.bias, -radius)

    def layers(self) -> list[nn.Linear]:
        """Hidden layers after the first."""
        return [layer for layer in self.hidden if isinstance(layer, nn.Linear)]

    def forward(self, x: Float[Tensor, "b q d"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b q"]:
        """Field at x: negative inside."""
        h = self._climb(x, code)[0]
        return self.out(h).view(x.shape[:2])

    def value_and_gradient(
        self, x: Float[Tensor, "b q d"], code: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b q"], Float[Tensor, "b q d"]]:
        """Field and spatial gradient; an ordinary backward passes through both."""
        h, slopes = self._climb(x, code)
        value = self.out(h).view(x.shape[:2])
        first, entering = self._descend(slopes)
        gradient = first @ self.point_in.weight + entering @ self.point_skip.weight
        return value, gradient.view(x.shape)

    @torch.no_grad()
    def linearise(self, x: Float[Tensor, "b q d"], code: Float[Tensor, "b k"]) -> Linearised:
        """Field, spatial gradient and code Jacobian (no graph): one sweep up, one down."""
        h, slopes = self._climb(x, code)
        value = self.out(h).view(x.shape[:2])
        first, entering = self._descend(slopes)
        gradient = first @ self.point_in.weight + entering @ self.point_skip.weight
        jacobian = first @ self.code_in.weight + entering @ self.code_skip.weight
        return Linearised(value, gradient.view(x.shape), jacobian.view(*x.shape[:2], -1))

    def _climb(self, x: Tensor, code: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Up through the layers: the last activation (b q, width), and every layer's slope."""
        shape = x.shape[:2]
        flat = x.flatten(0, 1)
        z = self.point_in(flat).view(*shape, -1) + self.code_in(code)[:, None]
        h, slope = soft_step(z.flatten(0, 1), self.beta)
        slopes = [slope]
        for index, layer in enumerate(self.layers(), start=1):
            if index == self.skip:
                entering = (self.point_skip(flat).view(*shape, -1) + self.code_skip(code)[:, None]).flatten(0, 1)
                # dividing h and the input by sqrt 2 is dividing their products
                z = (entering + h @ layer.weight.T) * math.sqrt(0.5) + layer.bias
            else:
                z = layer(h)
            h, slope = soft_step(z, self.beta)
            slopes.append(slope)
        return h, slopes

    def _descend(self, slopes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Down through the transposed weights: d f / d z at the first layer, and at the skip layer's input."""
        delta = slopes[-1] * self.out.weight
        entering = delta
        for index, layer in reversed(list(enumerate(self.layers(), start=1))):
            if index == self.skip:
                delta = delta * math.sqrt(0.5)
                entering = delta
            delta = (delta @ layer.weight) * slopes[index - 1]
        return delta, entering
