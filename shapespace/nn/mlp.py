"""The decoder's network, its spatial gradient and its code Jacobian: sweeps up and down, written out."""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from shapespace.nn.parallel import CHUNK_POINTS, parallel_map

# Below it softplus is zero to the last bits of float32, and a CPU is spared the subnormal numbers of its exponential,
# which are slow.
_SATURATION = -30.0


class Linearization(NamedTuple):
    """A field to first order: value, gradient in x, Jacobian in the code."""

    value: Float[Tensor, "b q"]
    gradient: Float[Tensor, "b q 3"]
    jacobian: Float[Tensor, "b q k"]


class SkipMLP(nn.Module):
    """The network of IGR: softplus layers; the input enters once more, half-way (IGR, section 4 and appendix).

    `depth` hidden layers of `width`; the input (code, x) is concatenated to what enters layer `skip`, and both are
    divided by sqrt 2. The code's share of these two layers is one product per shape, never expanded to points. A
    `modulated` network has such a share in all its layers: shift modulations (Dupont et al., Functa, ICML 2022,
    section 3.2), whose many weights cost next to no time. They are zero at the start.

    The initialisation is that of Atzmon & Lipman, SAL (CVPR 2020), section 4: for a code of zero the output is about
    |x| - radius.

    `products` is the type of numbers in the products between hidden layers while the network trains, if it is not that
    of the weights: bfloat16 takes half the time where the processor has instructions for it. What leads in and out has
    the type of the weights, and so has everything once training is over.
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
            raise ValueError(f"the input re-enters at layer {skip}, but the layers between are 1 to {depth - 1}")
        if width <= code_dim + dims:
            raise ValueError(
                f"width {width} leaves nothing beside the input of {code_dim} + {dims} at the skip layer: "
                f"take a width above {code_dim + dims}, or a smaller code"
            )
        self.skip, self.beta = skip, beta
        narrow = width - code_dim - dims  # what enters the skip layer is `width` wide, the input included
        outs = [narrow if layer == skip - 1 else width for layer in range(depth)]
        self.point_in = nn.Linear(dims, outs[0])
        self.code_in = _of_code(code_dim, outs[0])
        self.hidden = nn.ModuleList(nn.Linear(outs[layer - 1], outs[layer]) for layer in range(1, depth))
        self.point_skip = nn.Linear(dims, width, bias=False)
        self.code_skip = _of_code(code_dim, width)
        self.out = nn.Linear(width, 1)
        between = [layer for layer in range(1, depth) if layer != skip] if modulated else []
        self.code_hidden = nn.ModuleDict({str(layer): _of_code(code_dim, outs[layer]) for layer in between})
        for linear in (self.point_in, self.code_in, self.point_skip, self.code_skip, *self.layers()):
            nn.init.normal_(linear.weight, 0.0, math.sqrt(2 / linear.out_features))
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        for linear in (self.code_in, self.code_skip):  # whatever the code, the start is the sphere
            linear.weight.data *= 1e-2
        for linear in self._modulations().values():
            nn.init.zeros_(linear.weight)
        nn.init.normal_(self.out.weight, math.sqrt(math.pi / width), 1e-5)
        nn.init.constant_(self.out.bias, -init_radius)

    def layers(self) -> list[nn.Linear]:
        """Hidden layers after the first."""
        return [layer for layer in self.hidden if isinstance(layer, nn.Linear)]

    @property
    def modulated(self) -> bool:
        """Whether the code shifts every layer."""
        return len(self.code_hidden) > 0

    def _modulations(self) -> dict[int, nn.Linear]:
        return {int(layer): linear for layer, linear in self.code_hidden.items() if isinstance(linear, nn.Linear)}

    def weights(self) -> "_Weights":
        """What the sweeps need; beta and the square roots of 2 are in it, so that they know of neither.

        The narrow layer is filled up with units that nobody listens to: products like sizes that divide by 16.
        """
        hidden: list[Tensor] = [layer.weight for layer in self.layers()]
        entry = self.point_in.weight
        fill = self._padding
        hidden[self.skip - 1] = pad(hidden[self.skip - 1] * math.sqrt(0.5), (0, fill))
        if self.skip > 1:
            hidden[self.skip - 2] = pad(hidden[self.skip - 2], (0, 0, 0, fill))
        else:
            entry = pad(entry, (0, 0, 0, fill))
        return _Weights(
            entry * self.beta,
            self.point_skip.weight * (self.beta * math.sqrt(0.5)),
            self.out.weight / self.beta,
            self.out.bias,
            tuple(hidden),
        )

    def code_weights(self) -> list[Tensor | None]:
        """What leads from the code to each layer, in the sweeps' units; none where it does not enter."""
        found: list[Tensor | None] = [None] * (len(self.hidden) + 1)
        found[0] = self.code_in.weight * self.beta
        found[self.skip] = self.code_skip.weight * (self.beta * math.sqrt(0.5))
        for layer, linear in self._modulations().items():
            found[layer] = linear.weight * self.beta
        if (narrow := found[self.skip - 1]) is not None:
            found[self.skip - 1] = pad(narrow, (0, 0, 0, self._padding))
        return found

    def layer_biases(self, code: Float[Tensor, "b k"]) -> list[Tensor]:
        """What is added in each layer, in the sweeps' units: (b, width), or (1, width) where no code enters."""
        biases = [layer.bias * self.beta for layer in (self.point_in, *self.layers())]
        biases[self.skip - 1] = pad(biases[self.skip - 1], (0, self._padding))
        return [
            bias[None] if by_code is None else torch.addmm(bias, code, by_code.T)
            for bias, by_code in zip(biases, self.code_weights(), strict=True)
        ]

    @property
    def _padding(self) -> int:
        return -self.layers()[self.skip - 1].in_features % 16

    def forward(self, x: Float[Tensor, "b q d"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b q"]:
        """Field at x: negative inside."""
        if torch.is_grad_enabled():
            return self._sweep(x, code, sloped=False)[0]
        w, shifts, size = (
            self.weights(),
            self.layer_biases(code),
            CHUNK_POINTS if x.device.type == "cpu" else max(x.shape[1], 1),
        )

        def value(block: tuple[Tensor, int]) -> Tensor:
            part, row = block
            own = [shift if len(shift) == 1 else shift[row : row + 1] for shift in shifts]
            for last, _ in _layers(part, own, w, self.skip):
                height = last
            return _read(height, w)

        blocks = [(part, row) for row in range(len(x)) for part in x[row : row + 1].split(size, dim=1)]
        return torch.cat(list(parallel_map(value, blocks))).view(x.shape[:2])

    def value_and_gradient(
        self, x: Float[Tensor, "b q d"], code: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b q"], Float[Tensor, "b q d"]]:
        """Field and spatial gradient; one ordinary backward passes through both, to weights, code and x."""
        return self._sweep(x, code, sloped=True)

    def _sweep(self, x: Tensor, code: Tensor, *, sloped: bool) -> tuple[Tensor, Tensor]:
        products = self.matmul_dtype if self.training else None
        flat = (*self.weights().flat, *self.layer_biases(code))
        return _ValueAndGradient.apply(x, self.skip, sloped, products, *flat)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def features(self, x: Float[Tensor, "b q d"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b q w"]:
        """What the last layer reads (no graph): the field is `out(features)`, linear in the weights of `out`."""
        for last, _ in _layers(x, self.layer_biases(code), self.weights(), self.skip):
            height = last
        return (height / self.beta).view(*x.shape[:2], -1)

    @torch.no_grad()
    def linearize(self, x: Float[Tensor, "b q d"], code: Float[Tensor, "b k"]) -> Linearization:
        """Field, spatial gradient and code Jacobian (no graph): one sweep up, one down."""
        w = self.weights()
        heights, slopes = _forward_pass(x, self.layer_biases(code), w, self.skip)
        deltas = _input_gradient_pass(slopes, w)
        jacobian = deltas[0].new_zeros(len(deltas[0]), code.shape[1])
        for delta, by_code in zip(deltas, self.code_weights(), strict=True):
            if by_code is not None:
                jacobian.addmm_(delta, by_code)
        value, gradient = _read(heights[-1], w), _gradient(deltas, w, self.skip)
        return Linearization(value.view(x.shape[:2]), gradient.view(x.shape), jacobian.view(*x.shape[:2], -1))


def _of_code(code: int, units: int) -> nn.Linear:
    """A layer that reads a code, which may have no numbers; torch warns of that, and here it is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        return nn.Linear(code, units, bias=False)


class PlanarMLP(nn.Module):
    """A network of the plane (`space` 2) in space: it does not hear of z, and has no gradient there."""

    def __init__(self, network: SkipMLP) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Float[Tensor, "b q 3"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b q"]:
        """Field at x: negative inside."""
        return self.network(x[..., :2], code)

    def value_and_gradient(
        self, x: Float[Tensor, "b q 3"], code: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b q"], Float[Tensor, "b q 3"]]:
        """Field and spatial gradient; one ordinary backward passes through both."""
        value, gradient = self.network.value_and_gradient(x[..., :2], code)
        return value, pad(gradient, (0, 1))

    def features(self, x: Float[Tensor, "b q 3"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b q w"]:
        """What the last layer reads (no graph)."""
        return self.network.features(x[..., :2], code)

    @property
    def out(self) -> nn.Linear:
        """The last layer."""
        return self.network.out

    def linearize(self, x: Float[Tensor, "b q 3"], code: Float[Tensor, "b k"]) -> Linearization:
        """Field, spatial gradient and code Jacobian (no graph)."""
        found = self.network.linearize(x[..., :2], code)
        return found._replace(gradient=pad(found.gradient, (0, 1)))


# Below, points of all shapes stand in one row (n = b q) and lengths are in units of 1 / beta: softplus has sharpness 1.


class _Weights(NamedTuple):
    """What a `SkipMLP` has learned, but for what it adds. `hidden[l - 1]` leads from layer l - 1 to layer l."""

    point_in: Float[Tensor, "w d"]
    point_skip: Float[Tensor, "v d"]
    out: Float[Tensor, "1 u"]
    out_bias: Float[Tensor, "1"]
    hidden: tuple[Tensor, ...]

    @property
    def flat(self) -> tuple[Tensor, ...]:
        """One tensor after the other."""
        return (*self[:4], *self.hidden)

    def cast(self, products: torch.dtype | None) -> "_Weights":
        """The same with hidden products of another type."""
        return self if products is None else self._replace(hidden=tuple(h.to(products) for h in self.hidden))

    @classmethod
    def of(cls, flat: Sequence[Tensor]) -> tuple["_Weights", Sequence[Tensor]]:
        """The way back from `flat` with the shifts behind it: there is one shift more than hidden products."""
        depth = (len(flat) - 3) // 2
        a, b, c, d, *rest = flat
        return cls(a, b, c, d, tuple(rest[: depth - 1])), rest[depth - 1 :]


def softplus_and_derivative(z: Float[Tensor, "n w"]) -> tuple[Float[Tensor, "n w"], Float[Tensor, "n w"]]:
    """Softplus `log(1 + exp z)` and its slope; overwrites z.

    `softplus(z) = z - log(sigmoid(z))`: the sigmoid has to be known anyway, for the slope.
    """
    slope = torch.sigmoid(z.clamp_(min=_SATURATION))
    height = torch.log(slope)
    return torch.sub(z, height, out=height), slope


def _enter(x: Tensor, shift: Tensor, by_point: Tensor) -> Tensor:
    """What the input brings to a layer."""
    return torch.baddbmm(shift[:, None], x, by_point.T.expand(len(x), -1, -1)).flatten(0, 1)


def _layers(x: Tensor, shifts: Sequence[Tensor], w: _Weights, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Up through the layers: each one's height and slope, in the type of the hidden products."""
    height, products = x, w.hidden[0].dtype
    for layer, shift in enumerate(shifts):
        if layer == 0:
            z = _enter(x, shift, w.point_in).to(products)
        elif layer == skip:
            z = _enter(x, shift, w.point_skip).to(products)
            z.addmm_(height, w.hidden[layer - 1].T)
        elif len(shift) == 1:
            z = torch.addmm(shift[0].to(products), height, w.hidden[layer - 1].T)
        else:
            z = height @ w.hidden[layer - 1].T
            z.view(*x.shape[:2], -1).add_(shift[:, None].to(products))
        height, slope = softplus_and_derivative(z)
        yield height, slope


def _forward_pass(x: Tensor, shifts: Sequence[Tensor], w: _Weights, skip: int) -> tuple[list[Tensor], list[Tensor]]:
    """Heights and slopes of all layers."""
    steps = list(_layers(x, shifts, w, skip))
    return [height for height, _ in steps], [slope for _, slope in steps]


def _read(height: Tensor, w: _Weights) -> Tensor:
    return torch.addmv(w.out_bias, height.to(w.out.dtype), w.out[0])


def _input_gradient_pass(slopes: Sequence[Tensor], w: _Weights) -> list[Tensor]:
    """Down through the transposed weights: d f / d z of each layer."""
    deltas = [slopes[-1] * w.out.to(slopes[-1].dtype)]
    for weight, slope in zip(reversed(w.hidden), reversed(slopes[:-1]), strict=True):
        deltas.append((deltas[-1] @ weight).mul_(slope))
    return deltas[::-1]


def _gradient(deltas: Sequence[Tensor], w: _Weights, skip: int) -> Tensor:
    first, entering = (deltas[layer].to(w.point_in.dtype) for layer in (0, skip))
    return (first @ w.point_in).addmm_(entering, w.point_skip)


class _ValueAndGradient(torch.autograd.Function):
    """Value and spatial gradient, and the backward through both: six sweeps of products in all, none of them twice.

    The sweep down is linear in the weights and in the slopes s(z), and s' = s (1 - s): what comes back through the
    slopes joins what comes back through the heights, and both go down together. Without the gradient (`sloped`) it is
    the usual three sweeps, and zeros stand for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, skip: int, sloped: bool, products: torch.dtype | None, *flat: Tensor
    ) -> tuple[Tensor, Tensor]:
        w, shifts = _Weights.of(flat)
        w = w.cast(products)
        heights, slopes = _forward_pass(x, shifts, w, skip)
        deltas = _input_gradient_pass(slopes, w) if sloped else []
        ctx.save_for_backward(x, *flat, *heights, *slopes, *deltas)
        ctx.skip, ctx.products, ctx.flat = skip, products, len(flat)
        gradient = _gradient(deltas, w, skip).view(x.shape) if sloped else torch.zeros_like(x)
        return _read(heights[-1], w).view(x.shape[:2]), gradient

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        w, shifts = _Weights.of(saved[: ctx.flat])
        depth = len(shifts)
        heights, slopes, deltas = (saved[ctx.flat + at * depth : ctx.flat + (at + 1) * depth] for at in range(3))
        by_x, by_shifts, found = _backward(
            x,
            [len(shift) for shift in shifts],
            ctx.skip,
            w.cast(ctx.products),
            heights,
            slopes,
            deltas,
            *grads,
            weights=any(ctx.needs_input_grad[4:-depth]),
        )
        by_weights = found.cast(w.out.dtype).flat if found else [None] * (ctx.flat - depth)
        return by_x, None, None, None, *by_weights, *by_shifts


def _backward(
    x: Tensor,
    rows: Sequence[int],
    skip: int,
    w: _Weights,
    heights: list[Tensor],
    slopes: list[Tensor],
    deltas: list[Tensor],
    by_value: Tensor,
    by_gradient: Tensor,
    *,
    weights: bool,
) -> tuple[Tensor, list[Tensor], _Weights | None]:
    """From gradients with respect to value (b, q) and gradient (b, q, d) to those of x, shifts and weights.

    `rows` of each layer's shift: one for each shape, or one for all.
    """
    points, by_value, by_gradient = x.flatten(0, 1), by_value.flatten(), by_gradient.flatten(0, 1)
    depth, products, exact = len(rows), w.hidden[0].dtype, w.out.dtype
    hidden: list[Tensor] = []
    out = heights[-1].T.to(exact) @ by_value if weights else None

    # back through the sweep down: from the coordinates to the output
    by_delta = [(by_gradient @ w.point_in.T).to(products)] if deltas else []
    for layer in range(1, depth if deltas else 0):
        inner = by_delta[-1] * slopes[layer - 1]
        by_delta.append(inner @ w.hidden[layer - 1].T)
        if layer == skip:
            by_delta[-1].add_((by_gradient @ w.point_skip.T).to(products))
        if weights:
            hidden.append(deltas[layer].T @ inner)
    if out is not None and deltas:
        out += (by_delta[-1] * slopes[-1]).sum(0, dtype=exact)

    # back through the sweep up: from the output to the coordinates
    by_height = torch.outer(by_value, w.out[0]).to(products)
    by_entry, by_shifts = {}, []
    for layer in reversed(range(depth)):
        if deltas:  # through the slope: delta has the s of s (1 - s), lerp the (1 - s)
            by_z = torch.lerp(by_delta.pop().mul_(deltas[layer]), by_height, slopes[layer], out=by_height)
        else:
            by_z = by_height.mul_(slopes[layer])
        if layer in (0, skip):
            by_entry[layer] = by_z.to(exact)
        by_shifts.append(by_z.view(rows[layer], -1, by_z.shape[1]).sum(1, dtype=exact))
        if layer and weights and deltas:
            hidden[layer - 1].addmm_(by_z.T, heights[layer - 1])
        elif layer and weights:
            hidden.insert(0, by_z.T @ heights[layer - 1])
        if layer:
            by_height = by_z @ w.hidden[layer - 1]

    first, entering = by_entry[0], by_entry[skip]
    by_x = (first @ w.point_in).addmm_(entering, w.point_skip).view(x.shape)
    if out is None:
        return by_x, by_shifts[::-1], None
    point_in, point_skip = first.T @ points, entering.T @ points
    if deltas:
        point_in.addmm_(deltas[0].T.to(exact), by_gradient)
        point_skip.addmm_(deltas[skip].T.to(exact), by_gradient)
    found = _Weights(point_in, point_skip, out[None], by_value.sum()[None], tuple(hidden))
    return by_x, by_shifts[::-1], found
