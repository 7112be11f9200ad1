"""Many small MLPs, one for each body part, blended into one field; value, gradient and Jacobian written out by hand."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shapespace.nn.mlp import softplus_and_derivative
from shapespace.nn.parallel import parallel_map

NEAREST = 4  # parts that are blended at a point
BLEND_SHARPNESS = 4.0  # of the weights softmax(-4 d^2), d the distance to a part's center over its radius
CHUNK = 4800  # points in a task on a CPU: fewer make the products of a part small, more leave the caches


class PartStates(NamedTuple):
    """Parts of b bodies: where they are, and what shape they have.

    A point u of a part's frame (in units of its radius) is at `center + radius * rotation @ u` in the model frame.
    """

    center: Float[Tensor, "b k 3"]
    rotation: Float[Tensor, "b k 3 3"]
    local_code: Float[Tensor, "b k l"]

    def __getitem__(self, rows: Any) -> "PartStates":  # type: ignore[override]
        """Select bodies by a slice or a tensor of indices."""
        return PartStates(*(tensor[rows] for tensor in (self.center, self.rotation, self.local_code)))

    def detach_pose(self) -> "PartStates":
        """The same without a gradient in centers and rotations."""
        return PartStates(self.center.detach(), self.rotation.detach(), self.local_code)


class PartLinearization(NamedTuple):
    """First-order expansion of the blended field.

    `part` are the blended parts of each point, `jacobian` the derivatives in their center (3), rotation vector (3) and
    local code (l). A rotation vector w turns a part about its center: `exp(w) @ rotation`.
    """

    value: Float[Tensor, "b q"]
    gradient: Float[Tensor, "b q 3"]
    part: Int[Tensor, "b q n"]
    jacobian: Float[Tensor, "b q n p"]


class PartMLP(nn.Module):
    """One MLP for each part: from a point in the frame of the part and a local code to a signed distance.

    There are `depth` hidden layers of `width` units with softplus; the local code shifts each of them. Distances are in
    units of the part's radius. The initial field of a part is a sphere of half the radius about its center, by the
    initialization of Atzmon & Lipman, SAL (CVPR 2020), section 4.

    The field of a body is the blend of the `NEAREST` parts of a point: f = sum_k w_k radius_k g_k(u_k, l_k), with
    w = softmax(-4 |x - center_k|^2 / radius_k^2). Parts with local codes: Mihajlovic et al., COAP (CVPR 2022).
    """

    radius: Tensor

    def __init__(self, *, num_parts: int, local_dim: int, width: int = 64, depth: int = 4, beta: float = 30.0) -> None:
        super().__init__()
        self.num_parts, self.local_dim, self.width, self.depth, self.beta = num_parts, local_dim, width, depth, beta
        std = math.sqrt(2 / width)
        self.point_in = nn.Parameter(std * torch.randn(num_parts, 3, width))
        self.hidden = nn.Parameter(std * torch.randn(depth - 1, num_parts, width, width))
        self.shift = nn.Parameter(1e-2 * torch.randn(depth, num_parts, local_dim, width))
        self.bias = nn.Parameter(torch.zeros(depth, num_parts, width))
        self.out = nn.Parameter(math.sqrt(math.pi / width) + 1e-4 * torch.randn(num_parts, width))
        self.out_bias = nn.Parameter(torch.full((num_parts,), -0.5))
        self.register_buffer("radius", torch.ones(num_parts))

    def weights(self) -> "_Weights":
        """Weights with the sharpness of the softplus multiplied in, so that its sharpness is 1."""
        return _Weights(self.point_in * self.beta, self.hidden, self.out / self.beta, self.out_bias)

    def shifts(self, local_code: Float[Tensor, "b k l"]) -> Float[Tensor, "d k b w"]:
        """What each layer of each part adds for each body, scaled as in `weights`."""
        by_code = local_code.transpose(0, 1) @ self.shift  # (d, k, b, w)
        return (by_code + self.bias[:, :, None]) * self.beta

    def forward(self, x: Float[Tensor, "b q 3"], states: PartStates) -> Float[Tensor, "b q"]:
        """Field at points of the model frame (model units), negative inside."""
        if torch.is_grad_enabled():
            return self._evaluate(x, states, with_gradient=False)[0]
        weights, shifts = self.weights(), self.shifts(states.local_code)

        def value(chunk: tuple[Tensor, int]) -> Tensor:
            points, row = chunk
            pairs = self._pairs(points, states[row : row + 1])
            for activation, _ in _layers(pairs, weights, shifts[:, :, row : row + 1]):  # earlier ones are freed
                last = activation
            return self._blend(pairs, _output(last, pairs, weights))

        return torch.cat(parallel_map(value, self._chunks(x))).view(x.shape[:2])

    def value_and_gradient(
        self, x: Float[Tensor, "b q 3"], states: PartStates
    ) -> tuple[Float[Tensor, "b q"], Float[Tensor, "b q 3"]]:
        """Field and spatial gradient; one backward pass differentiates both in the weights and the states."""
        return self._evaluate(x, states, with_gradient=True)

    def _evaluate(self, x: Tensor, states: PartStates, *, with_gradient: bool) -> tuple[Tensor, Tensor]:
        pairs = self._pairs(x, states)
        distance, slope = _PartField.apply(  # type: ignore[no-untyped-call]
            pairs.local, pairs, with_gradient, *self.weights(), self.shifts(states.local_code)
        )
        value = self._blend(pairs, distance)
        if not with_gradient:
            return value.view(x.shape[:2]), slope
        return value.view(x.shape[:2]), self._blend_gradient(pairs, distance, slope, value).view(x.shape)

    @torch.no_grad()
    def linearize(self, x: Float[Tensor, "b q 3"], states: PartStates) -> PartLinearization:
        """Field, spatial gradient, and Jacobian in the states of the blended parts (no graph)."""
        weights, shifts = self.weights(), self.shifts(states.local_code)

        def expand(chunk: tuple[Tensor, int]) -> tuple[Tensor, ...]:
            points, row = chunk
            pairs = self._pairs(points, states[row : row + 1])
            layers = list(_layers(pairs, weights, shifts[:, :, row : row + 1]))
            distance = _output(layers[-1][0], pairs, weights)
            deltas = _deltas(pairs, [derivative for _, derivative in layers], weights)
            slope = _grouped(deltas[0][1], weights.point_in.mT, pairs.sizes)
            by_local = pairs.point.new_zeros(len(slope), self.local_dim)
            for (_, delta), by_code in zip(deltas, self.shift, strict=True):
                _grouped_add(by_local, delta, (by_code * self.beta).mT, pairs.sizes)
            value = self._blend(pairs, distance)
            gradient = self._blend_gradient(pairs, distance, slope, value)
            return value, gradient, pairs.part, self._jacobian(pairs, distance, slope, by_local, value)

        parts = [torch.cat(tensors) for tensors in zip(*parallel_map(expand, self._chunks(x)), strict=True)]
        return PartLinearization(*(part.view(*x.shape[:2], *part.shape[1:]) for part in parts))

    def _chunks(self, x: Tensor) -> list[tuple[Tensor, int]]:
        """Points of one body each, at most `CHUNK` on a CPU, with the row of the body."""
        size = CHUNK if x.device.type == "cpu" else max(x.shape[1], 1)
        return [(points, row) for row in range(len(x)) for points in x[row : row + 1].split(size, dim=1)]

    def _pairs(self, x: Tensor, states: PartStates) -> "_Pairs":
        """The nearest parts of each point, and the points in their frames, sorted by part."""
        bodies, count = x.shape[:2]
        with torch.no_grad():
            squared = torch.cdist(x, states.center, compute_mode="donot_use_mm_for_euclid_dist").square_()
            part = squared.div_(self.radius.square()).topk(min(NEAREST, self.num_parts), largest=False).indices
            flat = part.flatten()  # point after point
            order = flat.argsort()
            body = torch.arange(bodies, device=x.device).repeat_interleave(count * part.shape[-1])
            place = body * self.num_parts + flat
            sizes = flat.bincount(minlength=self.num_parts).tolist()
        rotation, center = (
            _Rows.apply(states.rotation.flatten(0, 1), place),
            _Rows.apply(states.center.flatten(0, 1), place),
        )  # type: ignore[no-untyped-call]
        radius = self.radius[flat]
        offset = x.reshape(-1, 1, 3).expand(-1, part.shape[-1], 3).reshape(-1, 3) - center
        local = (offset[:, None] @ rotation)[:, 0] / radius[:, None]
        score = -BLEND_SHARPNESS * (offset / radius[:, None]).square().sum(dim=1).view(-1, part.shape[-1])
        return _Pairs(
            part.flatten(0, 1),
            score.softmax(dim=1),
            offset,
            rotation,
            radius,
            _Permute.apply(local, order),  # type: ignore[no-untyped-call]
            order,
            body[order],
            sizes,
            bodies,
        )

    def _blend(self, pairs: "_Pairs", distance: Tensor) -> Tensor:
        """Value of the field from the distances of the pairs."""
        by_point = (pairs.unsort(distance) * pairs.radius).view_as(pairs.weight)
        return (by_point * pairs.weight).sum(dim=1)

    def _blend_gradient(self, pairs: "_Pairs", distance: Tensor, slope: Tensor, value: Tensor) -> Tensor:
        """Spatial gradient: that of the parts, and that of the weights."""
        steps = (pairs.rotation @ pairs.unsort(slope)[:, :, None])[:, :, 0]
        pull = pairs.pull(pairs.unsort(distance) * pairs.radius, value)
        return (pairs.weight.reshape(-1, 1) * steps - pull).view(*pairs.weight.shape, 3).sum(dim=1)

    def _jacobian(
        self, pairs: "_Pairs", distance: Tensor, slope: Tensor, by_local: Tensor, value: Tensor
    ) -> Float[Tensor, "q n p"]:
        weight = pairs.weight.reshape(-1, 1)
        steps = (pairs.rotation @ pairs.unsort(slope)[:, :, None])[:, :, 0]
        by_center = pairs.pull(pairs.unsort(distance) * pairs.radius, value) - weight * steps
        by_rotation = weight * torch.linalg.cross(steps, pairs.offset)
        by_code = (weight * pairs.radius[:, None]) * pairs.unsort(by_local)
        return torch.cat([by_center, by_rotation, by_code], dim=1).view(*pairs.weight.shape, -1)


# Below, a pair is a point and one of its parts. Pairs are in the order of the points, or sorted by part: then those of
# a part are one slice, and a layer of all parts is one product for each slice. A padded batch of products takes longer.


class _Weights(NamedTuple):
    """Weights of all parts, scaled."""

    point_in: Float[Tensor, "k 3 w"]
    hidden: Float[Tensor, "d k w w"]
    out: Float[Tensor, "k w"]
    out_bias: Float[Tensor, "k"]


class _Pairs(NamedTuple):
    """Pairs of points and parts. In the order of the points: all but `local` and `body`, which are sorted by part."""

    part: Int[Tensor, "q n"]
    weight: Float[Tensor, "q n"]
    offset: Float[Tensor, "m 3"]  # x - center
    rotation: Float[Tensor, "m 3 3"]
    radius: Float[Tensor, "m"]
    local: Float[Tensor, "m 3"]  # in the frame of the part, over its radius
    order: Int[Tensor, "m"]
    body: Int[Tensor, "m"]
    sizes: list[int]
    bodies: int

    @property
    def point(self) -> Tensor:
        """The tensor that gives type and device."""
        return self.local

    def unsort(self, values: Tensor) -> Tensor:
        """Values of the sorted pairs in the order of the points."""
        return _Unpermute.apply(values, self.order)  # type: ignore[no-untyped-call,no-any-return]

    def pull(self, distance: Tensor, value: Tensor) -> Float[Tensor, "m 3"]:
        """Derivative of the blend in the centers through the weights alone."""
        around = distance.view_as(self.weight) - value[:, None]
        factor = 2 * BLEND_SHARPNESS * (self.weight * around).reshape(-1) / self.radius.square()
        return factor[:, None] * self.offset


class _Rows(torch.autograd.Function):
    """Rows of a small table, many times each; the backward pass is a product instead of a scatter."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = table.shape
        return table[index]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_rows: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        table = by_rows.new_zeros(ctx.shape[0], by_rows[0].numel())
        return table.index_add_(0, index, by_rows.flatten(1)).view(ctx.shape), None


class _Permute(torch.autograd.Function):
    """`values[order]` for a permutation."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return values[order]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_values: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return _scattered(by_values, order), None


class _Unpermute(torch.autograd.Function):
    """The inverse of `_Permute`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return _scattered(values, order)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_values: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return by_values[order], None


def _scattered(values: Tensor, order: Tensor) -> Tensor:
    result = torch.empty_like(values)
    result[order] = values
    return result


def _grouped(x: Float[Tensor, "m i"], weight: Float[Tensor, "k i o"], sizes: Sequence[int]) -> Float[Tensor, "m o"]:
    """Product of each part's slice with its matrix."""
    out = x.new_empty(len(x), weight.shape[2])
    for a, b, c in zip(x.split(sizes), weight.unbind(), out.split(sizes), strict=True):
        if len(a):
            torch.mm(a, b, out=c)
    return out


def _grouped_add(out: Tensor, x: Tensor, weight: Tensor, sizes: Sequence[int]) -> Tensor:
    """Add the product of `_grouped` to `out`."""
    for a, b, c in zip(x.split(sizes), weight.unbind(), out.split(sizes), strict=True):
        if len(a):
            c.addmm_(a, b)
    return out


def _grouped_outer(x: Float[Tensor, "m i"], y: Float[Tensor, "m o"], sizes: Sequence[int]) -> Float[Tensor, "k i o"]:
    """Product of the transposed slice of x with that of y, for each part: the gradient of its matrix."""
    out = x.new_zeros(len(sizes), x.shape[1], y.shape[1])
    for a, b, c in zip(x.split(sizes), y.split(sizes), out.unbind(), strict=True):
        if len(a):
            torch.mm(a.T, b, out=c)
    return out


def _one_hot(pairs: _Pairs) -> Float[Tensor, "m b"]:
    """Which body a sorted pair belongs to."""
    return torch.nn.functional.one_hot(pairs.body, pairs.bodies).to(pairs.local.dtype)


def _layers(pairs: _Pairs, w: _Weights, shifts: Float[Tensor, "d k b w"]) -> Any:
    """Activation and derivative of each layer, for the sorted pairs."""
    body = _one_hot(pairs)
    x, matrices = pairs.local, [w.point_in, *w.hidden]
    for matrix, shift in zip(matrices, shifts, strict=True):
        z = _grouped(body, shift, pairs.sizes)
        x, derivative = softplus_and_derivative(_grouped_add(z, x, matrix, pairs.sizes))
        yield x, derivative


def _rows_of(parts: Tensor, sizes: Sequence[int]) -> Tensor:
    """A row for each pair from one for each part."""
    return parts.repeat_interleave(torch.tensor(sizes, device=parts.device), dim=0)


def _output(activation: Tensor, pairs: _Pairs, w: _Weights) -> Float[Tensor, "m"]:
    """Last layer: the distance in units of the part's radius."""
    return _grouped(activation, w.out[:, :, None], pairs.sizes)[:, 0] + _rows_of(w.out_bias, pairs.sizes)


def _deltas(pairs: _Pairs, derivatives: Sequence[Tensor], w: _Weights) -> list[tuple[Tensor, Tensor]]:
    """For each layer, the derivative of the distance in its activation, and in its input."""
    upper = _rows_of(w.out, pairs.sizes)
    result = [(upper, upper * derivatives[-1])]
    for matrix, derivative in zip(reversed(w.hidden), reversed(derivatives[:-1]), strict=True):
        upper = _grouped(result[-1][1], matrix.mT, pairs.sizes)
        result.append((upper, upper * derivative))
    return result[::-1]


class _PartField(torch.autograd.Function):
    """Distances of sorted pairs (over the radius) and their slopes in the part's frame, with a first-order backward."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, pairs: _Pairs, with_gradient: bool, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        w, shifts = _Weights(*tensors[:-1]), tensors[-1]
        pairs = pairs._replace(local=local.detach())
        layers = list(_layers(pairs, w, shifts))
        activations, derivatives = [a for a, _ in layers], [d for _, d in layers]
        distance, slope, deltas = _output(activations[-1], pairs, w), local.new_zeros(0, 3), []
        if with_gradient:
            deltas = _deltas(pairs, derivatives, w)
            slope = _grouped(deltas[0][1], w.point_in.mT, pairs.sizes)
        ctx.pairs, ctx.w, ctx.layers, ctx.deltas = pairs, w, layers, deltas
        return distance, slope

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_distance: Tensor, by_slope: Tensor) -> tuple[Any, ...]:
        pairs, w, sizes = ctx.pairs, ctx.w, ctx.pairs.sizes
        depth, matrices = len(ctx.layers), [w.point_in, *w.hidden]
        by_matrix: list[Tensor | None] = [None] * depth
        by_out = w.out.new_zeros(w.out.shape)
        curved: list[Tensor | None] = [None] * depth  # from the slopes, by the input of each layer
        if ctx.deltas:  # the gradient pass in reverse: from the slope up to the last layer
            by_delta = _grouped(by_slope, w.point_in, sizes)
            by_matrix[0] = _grouped_outer(by_slope, ctx.deltas[0][1], sizes)
            for layer, ((_, derivative), (upper, _)) in enumerate(zip(ctx.layers, ctx.deltas, strict=True)):
                # softplus'' = sigmoid (1 - sigmoid)
                curved[layer] = (by_delta * upper).mul_(derivative).mul_(1 - derivative)
                by_upper = by_delta.mul_(derivative)
                if layer + 1 < depth:
                    by_matrix[layer + 1] = _grouped_outer(by_upper, ctx.deltas[layer + 1][1], sizes)
                    by_delta = _grouped(by_upper, matrices[layer + 1], sizes)
                else:
                    by_out += torch.stack([part.sum(dim=0) for part in by_upper.split(sizes)])
        body = _one_hot(pairs)
        by_shift = []
        by_out += _grouped_outer(ctx.layers[-1][0], by_distance[:, None].contiguous(), sizes)[:, :, 0]
        by_out_bias = torch.stack([part.sum() for part in by_distance.split(sizes)])
        by_activation = _rows_of(w.out, sizes) * by_distance[:, None]
        for layer in reversed(range(depth)):
            below = ctx.layers[layer - 1][0] if layer else pairs.local
            by_input = by_activation.mul_(ctx.layers[layer][1])
            if (extra := curved[layer]) is not None:
                by_input += extra
            by_shift.append(_grouped_outer(body, by_input, sizes))
            more = _grouped_outer(below, by_input, sizes)
            known = by_matrix[layer]
            by_matrix[layer] = more if known is None else known.add_(more)
            if layer or ctx.needs_input_grad[0]:
                by_activation = _grouped(by_input, matrices[layer].mT, sizes)
        by_local = by_activation if ctx.needs_input_grad[0] else None
        hidden = torch.stack([m for m in by_matrix[1:] if m is not None])
        return by_local, None, None, by_matrix[0], hidden, by_out, by_out_bias, torch.stack(by_shift[::-1])
