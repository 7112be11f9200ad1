"""The IGR decoder with analytic spatial gradient and code Jacobian."""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from shapespace.nn.parallel import CHUNK_POINTS, parallel_map

# Pre-activations are clamped here: below, softplus is 0 in float32, and subnormal exponentials are slow on a CPU.
_SATURATION = -30.0


class Linearization(NamedTuple):
    """First-order expansion of a field: value, gradient in x, Jacobian in the code."""

    value: Float[Tensor, "b q"]
    gradient: Float[Tensor, "b q 3"]
    jacobian: Float[Tensor, "b q k"]


class SkipMLP(nn.Module):
    """The network of IGR: softplus layers and one skip connection from the input (IGR, section 4 and appendix).

    There are `depth` hidden layers of `width` units. At layer `skip` the input (code, x) is concatenated to the hidden
    units, and both are divided by sqrt 2. The code is multiplied once for each shape, not for each point. A `modulated`
    network adds a product with the code in every layer: shift modulations (Dupont et al., Functa, ICML 2022, section
    3.2), initialized with 0; they add many weights and almost no time.

    The initialization is that of Atzmon & Lipman, SAL (CVPR 2020), section 4: for a code of zero the output is about
    |x| - `init_radius`.

    `matmul_dtype` is the type of the products between hidden layers in training mode; None is the type of the weights.
    bfloat16 halves their time on processors with instructions for it. The first and the last layer, and everything in
    evaluation mode, use the type of the weights.
    """

    matmul_dtype: torch.dtype | None = None

    def __init__(
        self,
        *,
        code_dim: int,
        width: int,
        depth: int,
        skip: int,
        beta: float = 100.0,
        init_radius: float = 1.0,
        modulated: bool = False,
        dims: int = 3,
    ) -> None:
        super().__init__()
        if not 0 < skip < depth:
            raise ValueError(
                f"skip {skip}: must be a hidden layer from 1 to {depth - 1}. Set --model.skip or --model.depth."
            )
        if width <= code_dim + dims:
            raise ValueError(
                f"width {width}: must exceed the {code_dim} + {dims} inputs that enter at the skip layer. "
                "Set a larger --model.width or a smaller --model.code-dim."
            )
        self.skip, self.beta = skip, beta
        narrow = width - code_dim - dims  # the input of the skip layer has `width` units, including (code, x)
        outs = [narrow if layer == skip - 1 else width for layer in range(depth)]
        self.point_in = nn.Linear(dims, outs[0])
        self.code_in = _code_layer(code_dim, outs[0])
        self.hidden = nn.ModuleList(nn.Linear(outs[layer - 1], outs[layer]) for layer in range(1, depth))
        self.point_skip = nn.Linear(dims, width, bias=False)
        self.code_skip = _code_layer(code_dim, width)
        self.out = nn.Linear(width, 1)
        between = [layer for layer in range(1, depth) if layer != skip] if modulated else []
        self.code_hidden = nn.ModuleDict({str(layer): _code_layer(code_dim, outs[layer]) for layer in between})
        for linear in (self.point_in, self.code_in, self.point_skip, self.code_skip, *self.layers()):
            nn.init.normal_(linear.weight, 0.0, math.sqrt(2 / linear.out_features))
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        for linear in (self.code_in, self.code_skip):  # the initial field is the sphere for every code
            linear.weight.data *= 1e-2
        for linear in self._modulations().values():
            nn.init.zeros_(linear.weight)
        nn.init.normal_(self.out.weight, math.sqrt(math.pi / width), 1e-5)
        nn.init.constant_(self.out.bias, -init_radius)

    def layers(self) -> list[nn.Linear]:
        """Hidden layers after the first one."""
        return [layer for layer in self.hidden if isinstance(layer, nn.Linear)]

    @property
    def modulated(self) -> bool:
        """Whether the code shifts every layer."""
        return len(self.code_hidden) > 0

    def _modulations(self) -> dict[int, nn.Linear]:
        return {int(layer): linear for layer, linear in self.code_hidden.items() if isinstance(linear, nn.Linear)}

    def weights(self) -> "_Weights":
        """Weights for the forward and gradient passes, with beta and the factors sqrt 2 multiplied in.

        The layer before the skip is padded with units of weight zero: products are faster with sizes divisible by 16.
        """
        hidden: list[Tensor] = [layer.weight for layer in self.layers()]
        point_in = self.point_in.weight
        padding = self._padding
        hidden[self.skip - 1] = pad(hidden[self.skip - 1] * math.sqrt(0.5), (0, padding))
        if self.skip > 1:
            hidden[self.skip - 2] = pad(hidden[self.skip - 2], (0, 0, 0, padding))
        else:
            point_in = pad(point_in, (0, 0, 0, padding))
        return _Weights(
            point_in * self.beta,
            self.point_skip.weight * (self.beta * math.sqrt(0.5)),
            self.out.weight / self.beta,
            self.out.bias,
            tuple(hidden),
        )

    def code_weights(self) -> list[Tensor | None]:
        """Weights from the code to each layer, scaled as in `weights`; None for layers without code input."""
        weights: list[Tensor | None] = [None] * (len(self.hidden) + 1)
        weights[0] = self.code_in.weight * self.beta
        weights[self.skip] = self.code_skip.weight * (self.beta * math.sqrt(0.5))
        for layer, linear in self._modulations().items():
            weights[layer] = linear.weight * self.beta
        if (narrow := weights[self.skip - 1]) is not None:
            weights[self.skip - 1] = pad(narrow, (0, 0, 0, self._padding))
        return weights

    def layer_biases(self, code: Float[Tensor, "b k"]) -> list[Tensor]:
        """Bias of each layer plus its code input, scaled as in `weights`: (b, width); (1, width) without code input."""
        biases = [layer.bias * self.beta for layer in (self.point_in, *self.layers())]
        biases[self.skip - 1] = pad(biases[self.skip - 1], (0, self._padding))
        return [
            bias[None] if by_code is None else torch.addmm(bias, code, by_code.T)
            for bias, by_code in zip(biases, self.code_weights(), strict=True)
        ]

    @property
    def _padding(self) -> int:
        """Units that make the layer before the skip divisible by 16."""
        return -self.layers()[self.skip - 1].in_features % 16

    def forward(self, x: Float[Tensor, "b q d"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b q"]:
        """Field at x: negative inside."""
        if torch.is_grad_enabled():
            return self._evaluate(x, code, with_gradient=False)[0]
        w, biases = self.weights(), self.layer_biases(code)
        size = CHUNK_POINTS if x.device.type == "cpu" else max(x.shape[1], 1)

        def value(chunk: tuple[Tensor, int]) -> Tensor:
            points, row = chunk
            own = [bias if len(bias) == 1 else bias[row : row + 1] for bias in biases]
            for activation, _ in _layers(points, own, w, self.skip):  # earlier activations are freed
                last = activation
            return _output(last, w)

        chunks = [(points, row) for row in range(len(x)) for points in x[row : row + 1].split(size, dim=1)]
        return torch.cat(parallel_map(value, chunks)).view(x.shape[:2])

    def value_and_gradient(
        self, x: Float[Tensor, "b q d"], code: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b q"], Float[Tensor, "b q d"]]:
        """Field and spatial gradient; one backward pass differentiates both with respect to weights, code and x."""
        return self._evaluate(x, code, with_gradient=True)

    def _evaluate(self, x: Tensor, code: Tensor, *, with_gradient: bool) -> tuple[Tensor, Tensor]:
        dtype = self.matmul_dtype if self.training else None
        flat = (*self.weights().flat, *self.layer_biases(code))
        return _ValueAndGradient.apply(x, self.skip, with_gradient, dtype, *flat)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def features(self, x: Float[Tensor, "b q d"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b q w"]:
        """Input of the last layer (no graph): the field is `out(features)`, linear in the weights of `out`."""
        for activation, _ in _layers(x, self.layer_biases(code), self.weights(), self.skip):
            last = activation
        return (last / self.beta).view(*x.shape[:2], -1)

    @torch.no_grad()
    def linearize(self, x: Float[Tensor, "b q d"], code: Float[Tensor, "b k"]) -> Linearization:
        """Field, spatial gradient and code Jacobian (no graph), by one forward and one gradient pass."""
        w = self.weights()
        activations, derivatives = _forward_pass(x, self.layer_biases(code), w, self.skip)
        deltas = _input_gradient_pass(derivatives, w)
        jacobian = deltas[0].new_zeros(len(deltas[0]), code.shape[1])
        for delta, by_code in zip(deltas, self.code_weights(), strict=True):
            if by_code is not None:
                jacobian.addmm_(delta, by_code)
        value, gradient = _output(activations[-1], w), _input_gradient(deltas, w, self.skip)
        return Linearization(value.view(x.shape[:2]), gradient.view(x.shape), jacobian.view(*x.shape[:2], -1))


def _code_layer(code: int, units: int) -> nn.Linear:
    """Linear layer without bias from a code. Its dimension may be 0 (a single scan), of which torch warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        return nn.Linear(code, units, bias=False)


class PlanarMLP(nn.Module):
    """Network of the plane (`dims` 2) for points in space: z is ignored, and the gradient in z is 0."""

    def __init__(self, network: SkipMLP) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Float[Tensor, "b q 3"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b q"]:
        """Field at x: negative inside."""
        return self.network(x[..., :2], code)

    def value_and_gradient(
        self, x: Float[Tensor, "b q 3"], code: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b q"], Float[Tensor, "b q 3"]]:
        """Field and spatial gradient, both differentiable."""
        value, gradient = self.network.value_and_gradient(x[..., :2], code)
        return value, pad(gradient, (0, 1))

    def features(self, x: Float[Tensor, "b q 3"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b q w"]:
        """Input of the last layer (no graph)."""
        return self.network.features(x[..., :2], code)

    @property
    def out(self) -> nn.Linear:
        """The last layer."""
        return self.network.out

    def linearize(self, x: Float[Tensor, "b q 3"], code: Float[Tensor, "b k"]) -> Linearization:
        """Field, spatial gradient and code Jacobian (no graph)."""
        linearization = self.network.linearize(x[..., :2], code)
        return linearization._replace(gradient=pad(linearization.gradient, (0, 1)))


# Below, the points of all shapes are in one dimension (n = b q), and lengths are in units of 1 / beta, so that the
# softplus has sharpness 1. `biases` include the code input (see `layer_biases`).


class _Weights(NamedTuple):
    """Weights of a `SkipMLP` without its layer biases. `hidden[l - 1]` connects layer l - 1 to layer l."""

    point_in: Float[Tensor, "w d"]
    point_skip: Float[Tensor, "v d"]
    out: Float[Tensor, "1 u"]
    out_bias: Float[Tensor, "1"]
    hidden: tuple[Tensor, ...]

    @property
    def flat(self) -> tuple[Tensor, ...]:
        """All tensors in one tuple."""
        return (*self[:4], *self.hidden)

    def cast(self, dtype: torch.dtype | None) -> "_Weights":
        """The same weights with hidden products of another type; None leaves them."""
        return self if dtype is None else self._replace(hidden=tuple(h.to(dtype) for h in self.hidden))

    @classmethod
    def split(cls, flat: Sequence[Tensor]) -> tuple["_Weights", Sequence[Tensor]]:
        """Weights and layer biases from `(*flat, *biases)`; there is one bias more than hidden weights."""
        depth = (len(flat) - 3) // 2
        a, b, c, d, *rest = flat
        return cls(a, b, c, d, tuple(rest[: depth - 1])), rest[depth - 1 :]


def softplus_and_derivative(z: Float[Tensor, "n w"]) -> tuple[Float[Tensor, "n w"], Float[Tensor, "n w"]]:
    """Softplus `log(1 + exp z)` and its derivative, the sigmoid; overwrites z.

    It is computed as `z - log(sigmoid(z))`, since the sigmoid is needed anyway.
    """
    derivative = torch.sigmoid(z.clamp_(min=_SATURATION))
    activation = torch.log(derivative)
    return torch.sub(z, activation, out=activation), derivative


def _point_input(x: Tensor, bias: Tensor, by_point: Tensor) -> Tensor:
    """Bias plus the product of the points with their weights."""
    return torch.baddbmm(bias[:, None], x, by_point.T.expand(len(x), -1, -1)).flatten(0, 1)


def _layers(x: Tensor, biases: Sequence[Tensor], w: _Weights, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Forward pass: activation and derivative of each layer, in the type of the hidden products."""
    activation, dtype = x, w.hidden[0].dtype
    for layer, bias in enumerate(biases):
        if layer == 0:
            z = _point_input(x, bias, w.point_in).to(dtype)
        elif layer == skip:
            z = _point_input(x, bias, w.point_skip).to(dtype)
            z.addmm_(activation, w.hidden[layer - 1].T)
        elif len(bias) == 1:
            z = torch.addmm(bias[0].to(dtype), activation, w.hidden[layer - 1].T)
        else:
            z = activation @ w.hidden[layer - 1].T
            z.view(*x.shape[:2], -1).add_(bias[:, None].to(dtype))
        activation, derivative = softplus_and_derivative(z)
        yield activation, derivative


def _forward_pass(x: Tensor, biases: Sequence[Tensor], w: _Weights, skip: int) -> tuple[list[Tensor], list[Tensor]]:
    """Activations and derivatives of all layers."""
    layers = list(_layers(x, biases, w, skip))
    return [activation for activation, _ in layers], [derivative for _, derivative in layers]


def _output(activation: Tensor, w: _Weights) -> Tensor:
    """Last layer."""
    return torch.addmv(w.out_bias, activation.to(w.out.dtype), w.out[0])


def _input_gradient_pass(derivatives: Sequence[Tensor], w: _Weights) -> list[Tensor]:
    """Backward pass of the value: delta = d f / d z of each layer."""
    deltas = [derivatives[-1] * w.out.to(derivatives[-1].dtype)]
    for weight, derivative in zip(reversed(w.hidden), reversed(derivatives[:-1]), strict=True):
        deltas.append((deltas[-1] @ weight).mul_(derivative))
    return deltas[::-1]


def _input_gradient(deltas: Sequence[Tensor], w: _Weights, skip: int) -> Tensor:
    """Gradient in x from the deltas of the two layers that x enters."""
    at_input, at_skip = (deltas[layer].to(w.point_in.dtype) for layer in (0, skip))
    return (at_input @ w.point_in).addmm_(at_skip, w.point_skip)


class _ValueAndGradient(torch.autograd.Function):
    """Value and spatial gradient, with one backward pass through both: six passes of matrix products in all.

    The gradient pass is linear in the weights and in the derivatives s(z), and s' = s (1 - s): gradients in the
    derivatives are added to those in the activations, and both are propagated together. Without
    `with_gradient` there are three passes, and zeros are returned as the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, skip: int, with_gradient: bool, dtype: torch.dtype | None, *flat: Tensor
    ) -> tuple[Tensor, Tensor]:
        w, biases = _Weights.split(flat)
        w = w.cast(dtype)
        activations, derivatives = _forward_pass(x, biases, w, skip)
        deltas = _input_gradient_pass(derivatives, w) if with_gradient else []
        ctx.save_for_backward(x, *flat, *activations, *derivatives, *deltas)
        ctx.skip, ctx.dtype, ctx.flat = skip, dtype, len(flat)
        gradient = _input_gradient(deltas, w, skip).view(x.shape) if with_gradient else torch.zeros_like(x)
        return _output(activations[-1], w).view(x.shape[:2]), gradient

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        w, biases = _Weights.split(saved[: ctx.flat])
        depth = len(biases)
        activations, derivatives, deltas = (
            saved[ctx.flat + part * depth : ctx.flat + (part + 1) * depth] for part in range(3)
        )
        by_x, by_biases, gradients = _backward(
            x,
            [len(bias) for bias in biases],
            ctx.skip,
            w.cast(ctx.dtype),
            activations,
            derivatives,
            deltas,
            *grads,
            with_weights=any(ctx.needs_input_grad[4:-depth]),
        )
        by_weights = gradients.cast(w.out.dtype).flat if gradients else [None] * (ctx.flat - depth)
        return by_x, None, None, None, *by_weights, *by_biases


# In one piece although it is long: the two halves share the deltas and the list of weight gradients, and each tensor is
# overwritten as soon as it was read last.
def _backward(
    x: Tensor,
    rows: Sequence[int],
    skip: int,
    w: _Weights,
    activations: list[Tensor],
    derivatives: list[Tensor],
    deltas: list[Tensor],
    by_value: Tensor,
    by_gradient: Tensor,
    *,
    with_weights: bool,
) -> tuple[Tensor, list[Tensor], _Weights | None]:
    """Gradients of the loss in x, layer biases and weights, from those in value (b, q) and spatial gradient (b, q, d).

    `rows` of each bias: one for each shape, or 1 for all. `by_y` is the gradient of the loss in y.
    """
    points, by_value, by_gradient = x.flatten(0, 1), by_value.flatten(), by_gradient.flatten(0, 1)
    depth, dtype, exact = len(rows), w.hidden[0].dtype, w.out.dtype
    by_hidden: list[Tensor] = []
    by_out = activations[-1].T.to(exact) @ by_value if with_weights else None

    # backward through the gradient pass: from the input to the output
    by_delta = [(by_gradient @ w.point_in.T).to(dtype)] if deltas else []
    for layer in range(1, depth if deltas else 0):
        inner = by_delta[-1] * derivatives[layer - 1]
        by_delta.append(inner @ w.hidden[layer - 1].T)
        if layer == skip:
            by_delta[-1].add_((by_gradient @ w.point_skip.T).to(dtype))
        if with_weights:
            by_hidden.append(deltas[layer].T @ inner)
    if by_out is not None and deltas:
        by_out += (by_delta[-1] * derivatives[-1]).sum(0, dtype=exact)

    # backward through the forward pass: from the output to the input
    by_activation = torch.outer(by_value, w.out[0]).to(dtype)
    by_point_layer, by_biases = {}, []
    for layer in reversed(range(depth)):
        if deltas:  # through the derivative: delta contains the s of s (1 - s), lerp multiplies by (1 - s)
            by_z = torch.lerp(by_delta.pop().mul_(deltas[layer]), by_activation, derivatives[layer], out=by_activation)
        else:
            by_z = by_activation.mul_(derivatives[layer])
        if layer in (0, skip):
            by_point_layer[layer] = by_z.to(exact)
        by_biases.append(by_z.view(rows[layer], -1, by_z.shape[1]).sum(1, dtype=exact))
        if layer and with_weights and deltas:
            by_hidden[layer - 1].addmm_(by_z.T, activations[layer - 1])
        elif layer and with_weights:
            by_hidden.insert(0, by_z.T @ activations[layer - 1])
        if layer:
            by_activation = by_z @ w.hidden[layer - 1]

    at_input, at_skip = by_point_layer[0], by_point_layer[skip]
    by_x = (at_input @ w.point_in).addmm_(at_skip, w.point_skip).view(x.shape)
    if by_out is None:
        return by_x, by_biases[::-1], None
    by_point_in, by_point_skip = at_input.T @ points, at_skip.T @ points
    if deltas:
        by_point_in.addmm_(deltas[0].T.to(exact), by_gradient)
        by_point_skip.addmm_(deltas[skip].T.to(exact), by_gradient)
    gradients = _Weights(by_point_in, by_point_skip, by_out[None], by_value.sum()[None], tuple(by_hidden))
    return by_x, by_biases[::-1], gradients
