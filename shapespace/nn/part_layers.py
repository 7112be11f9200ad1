"""Layers of many small MLPs on sorted rows: each MLP has a slice of the rows. Forward and backward pass by hand.

A layer of all MLPs is one matrix product for each slice: a padded batch of products takes longer. On a CPU, the layers
of a few MLPs are computed together (a slab), so that their activations stay in the caches of a core.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shapespace.nn.parallel import parallel_map

SLAB = 2048  # rows whose layers are computed together on a CPU
MAX_EXPONENT = 126.0  # 1 + 2^y and its inverse are normal numbers of float32


class Rows(NamedTuple):
    """Points in the frames of their parts, sorted by part, and by body within a part.

    `place` is part * bodies + body, and `counts` is how often each place occurs.
    """

    local: Float[Tensor, "m 3"]
    place: Int[Tensor, "m"]
    counts: Int[Tensor, "k b"]


class PartWeights(NamedTuple):
    """Weights of all parts, and what each layer adds for each body; scaled as in `PartMLP.weights`."""

    point_in: Float[Tensor, "k 3 w"]
    hidden: Float[Tensor, "d k w w"]
    out: Float[Tensor, "k w"]
    out_bias: Float[Tensor, "k"]
    shift: Float[Tensor, "depth k b w"]


class Expansion(NamedTuple):
    """Distance of each row with its derivatives in the point and in the local code; they are empty if not asked for."""

    distance: Float[Tensor, "m"]
    slope: Float[Tensor, "m 3"]
    by_code: Float[Tensor, "m l"]


class Slab(NamedTuple):
    """Rows of parts that follow each other. `parts` and `sizes` are those of parts with rows."""

    rows: slice
    parts: list[int]
    sizes: list[int]

    def split(self, tensor: Tensor) -> Sequence[Tensor]:
        """Slices of the parts, of a tensor of all rows."""
        return tensor[self.rows].split(self.sizes)

    def of(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Views of the parts, from those of all parts."""
        return [views[part] for part in self.parts]

    def products(self, x: Sequence[Tensor], matrices: Sequence[Tensor]) -> Float[Tensor, "n w"]:
        """Product of the slice of each part with its matrix; `matrices` are those of all parts."""
        views = self.of(matrices)
        result = x[0].new_empty(sum(self.sizes), views[0].shape[1])
        for a, b, c in zip(x, views, result.split(self.sizes), strict=True):
            torch.mm(a, b, out=c)
        return result


class Saved(NamedTuple):
    """What the backward pass reads, for each layer: s is 1 - softplus', a delta the derivative of the distance in z."""

    activations: list[Tensor]
    s: list[Tensor]
    deltas: list[Tensor]


class PartLayers:
    """Layers of all parts for some rows. Each method computes one slab and writes to its rows of the results."""

    def __init__(self, rows: Rows, weights: PartWeights) -> None:
        self.rows, self.weights = rows, weights
        sizes = rows.counts.sum(dim=1).tolist()
        self.slabs = _slabs(sizes, SLAB if rows.local.device.type == "cpu" else max(sum(sizes), 1))
        self.matrices = [table.unbind() for table in (weights.point_in, *weights.hidden)]
        self.shifts = [shift.flatten(0, 1) for shift in weights.shift]
        self.out = weights.out.unbind()

    @cached_property
    def transposed(self) -> list[Sequence[Tensor]]:
        """The transposed matrices of each layer, for all parts."""
        return [table.mT.unbind() for table in (self.weights.point_in, *self.weights.hidden)]

    @cached_property
    def starts(self) -> Int[Tensor, "k b"]:
        """First row of each place."""
        counts = self.rows.counts.flatten()
        return (counts.cumsum(dim=0) - counts).view_as(self.rows.counts)

    def distances(self) -> Tensor:
        """Distances with the last bias alone, to which `forward` adds."""
        biases = self.weights.out_bias[:, None].expand_as(self.rows.counts).reshape(-1)
        return biases.index_select(0, self.rows.place)

    def forward(self, slab: Slab, distance: Float[Tensor, "m"], *, saving: bool) -> Saved:
        """Add the output of the layers to the distances. Without `saving`, the layers are not kept."""
        saved = Saved([], [], [])
        place, inputs = self.rows.place[slab.rows], slab.split(self.rows.local)
        for matrices, shift in zip(self.matrices, self.shifts, strict=True):
            y = shift.index_select(0, place)
            for x, matrix, part in zip(inputs, slab.of(matrices), y.split(slab.sizes), strict=True):
                part.addmm_(x, matrix)
            if saving:
                activation, s = softplus_and_complement(y)
                saved.activations.append(activation)
                saved.s.append(s)
            else:
                activation = softplus(y)
            inputs = activation.split(slab.sizes)
        for x, out, part in zip(inputs, slab.of(self.out), slab.split(distance), strict=True):
            part.addmv_(x, out)
        return saved

    def slope(self, slab: Slab, saved: Saved, slope: Float[Tensor, "m 3"]) -> None:
        """Append the deltas of all layers to `saved`, and write the slopes."""
        delta = torch.empty_like(saved.s[-1])
        for out, part in zip(slab.of(self.out), delta.split(slab.sizes), strict=True):
            part.copy_(out)
        for layer in reversed(range(len(saved.s))):
            delta.addcmul_(delta, saved.s[layer], value=-1)  # times 1 - s
            saved.deltas.insert(0, delta)
            parts = delta.split(slab.sizes)
            if layer:
                delta = slab.products(parts, self.transposed[layer])
        for part, matrix, result in zip(parts, slab.of(self.transposed[0]), slab.split(slope), strict=True):
            torch.mm(part, matrix, out=result)


def _slabs(sizes: Sequence[int], limit: int) -> list[Slab]:
    """Slabs of at least `limit` rows, but for the last; parts without rows are in none."""
    slabs, parts, first = [], list[int](), 0
    occupied = [part for part, size in enumerate(sizes) if size]
    for part in occupied:
        parts.append(part)
        counts = [sizes[each] for each in parts]
        if sum(counts) >= limit or part == occupied[-1]:
            slabs.append(Slab(slice(first, first + sum(counts)), parts, counts))
            parts, first = [], first + sum(counts)
    return slabs


def softplus(y: Float[Tensor, "n w"]) -> Float[Tensor, "n w"]:
    """`log2(1 + 2^y)`; overwrites y. The softplus in units of ln 2: its logarithm and power take the least time."""
    if _may_overflow(y):
        return torch.maximum(y, y.clamp(max=MAX_EXPONENT).exp2_().add_(1).log2_())
    return y.exp2_().add_(1).log2_()


def softplus_and_complement(y: Float[Tensor, "n w"]) -> tuple[Float[Tensor, "n w"], Float[Tensor, "n w"]]:
    """`softplus`, and s = 1 / (1 + 2^y): its derivative is 1 - s, its second derivative ln 2 s (1 - s)."""
    power = (y.clamp(max=MAX_EXPONENT) if (large := _may_overflow(y)) else y).exp2_().add_(1)
    s = power.reciprocal()
    activation = power.log2_()
    return torch.maximum(y, activation) if large else activation, s


def _may_overflow(y: Tensor) -> bool:
    """Whether a power may overflow; on a GPU it would have to wait for the answer."""
    return y.device.type != "cpu" or bool(y.amax() > MAX_EXPONENT)


@torch.no_grad()
def distances(rows: Rows, weights: PartWeights) -> Float[Tensor, "m"]:
    """Distance of each row (no graph)."""
    layers = PartLayers(rows, weights)
    distance = layers.distances()
    for slab in layers.slabs:
        layers.forward(slab, distance, saving=False)
    return distance


@torch.no_grad()
def expand(rows: Rows, weights: PartWeights, by_shift: Float[Tensor, "depth k w l"]) -> Expansion:
    """Distance of each row with its derivatives in point and local code (no graph); `by_shift`: those of the shifts."""
    layers = PartLayers(rows, weights)
    distance, slope = layers.distances(), torch.empty_like(rows.local)
    by_code = rows.local.new_zeros(len(rows.local), by_shift.shape[-1])
    codes = [table.unbind() for table in by_shift]
    for slab in layers.slabs:
        saved = layers.forward(slab, distance, saving=True)
        layers.slope(slab, saved, slope)
        for delta, matrices in zip(saved.deltas, codes, strict=True):
            for a, b, c in zip(delta.split(slab.sizes), slab.of(matrices), slab.split(by_code), strict=True):
                c.addmm_(a, b)
    return Expansion(distance, slope, by_code)


class PartField(torch.autograd.Function):
    """Distance and slope of each row, with one backward pass through both.

    The slope is linear in the matrices and in the derivatives 1 - s: gradients in the derivatives are added to those in
    the activations, and both are propagated together (as in `mlp`).
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, rows: Rows, with_slope: bool, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (m,), and slopes (m, 3) with `with_slope`, of `rows` at `local`; `tensors` are `PartWeights`."""
        layers = PartLayers(rows._replace(local=local.detach()), PartWeights(*(tensor.detach() for tensor in tensors)))
        distance = layers.distances()
        slope = torch.empty_like(local) if with_slope else local.new_zeros(0, 3)

        def run(slab: Slab) -> Saved:
            saved = layers.forward(slab, distance, saving=True)
            if with_slope:
                layers.slope(slab, saved, slope)
            return saved

        ctx.layers, ctx.saved = layers, parallel_map(run, layers.slabs)
        return distance, slope

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_distance: Tensor, by_slope: Tensor) -> tuple[Any, ...]:
        """Gradients in `local` and `tensors`."""
        needs_local = ctx.needs_input_grad[0]
        gradients = _Gradients(ctx.layers, with_local=needs_local, with_weights=any(ctx.needs_input_grad[3:7]))

        def run(both: tuple[Slab, Saved]) -> None:
            slab, saved = both
            curved = gradients.through_slope(slab, saved, by_slope) if saved.deltas else []
            gradients.through_distance(slab, saved, by_distance, curved)

        parallel_map(run, list(zip(ctx.layers.slabs, ctx.saved, strict=True)))
        by_local = gradients.by_local if needs_local else None
        return by_local, None, None, *gradients.of_weights


class _Gradients:
    """Gradients of a loss, to which each slab adds its rows and parts."""

    def __init__(self, layers: PartLayers, *, with_local: bool, with_weights: bool) -> None:
        self.layers, self.with_local, self.with_weights = layers, with_local, with_weights
        self.by_local = torch.empty_like(layers.rows.local)
        self.of_weights = PartWeights(*(torch.zeros_like(table) for table in layers.weights))
        self.by_matrix = [table.unbind() for table in (self.of_weights.point_in, *self.of_weights.hidden)]
        self.by_shift = [table.flatten(0, 1) for table in self.of_weights.shift]
        self.by_out = self.of_weights.out.unbind()

    def through_slope(self, slab: Slab, saved: Saved, by_slope: Float[Tensor, "m 3"]) -> list[Tensor]:
        """Backward through the slopes, from the point to the last layer.

        Return, for each layer, what the slopes add to the gradient in its input, over 1 - softplus'.
        """
        curved, below = [], by_slope[slab.rows]
        for layer, delta in enumerate(saved.deltas):
            if self.with_weights:
                self._add_outer(slab, layer, below, delta.split(slab.sizes))
            by_delta = slab.products(below.split(slab.sizes), self.layers.matrices[layer])
            below = torch.addcmul(by_delta, by_delta, saved.s[layer], value=-1)
            curved.append(by_delta.mul_(delta).mul_(math.log(2)))
        if self.with_weights:
            first, last = slab.parts[0], slab.parts[-1] + 1
            self.of_weights.out[first:last] += _sums(slab, below, self.layers.starts[first:last, 0])
        return curved

    def through_distance(
        self, slab: Slab, saved: Saved, by_distance: Float[Tensor, "m"], curved: Sequence[Tensor]
    ) -> None:
        """Backward through the distances, from the last layer to the point."""
        layers, parts = self.layers, slice(slab.parts[0], slab.parts[-1] + 1)
        by_parts, starts = slab.split(by_distance), layers.starts[parts]
        upper = torch.empty_like(saved.s[-1])
        for by_part, out, part in zip(by_parts, slab.of(layers.out), upper.split(slab.sizes), strict=True):
            torch.outer(by_part, out, out=part)
        if self.with_weights:
            activations = saved.activations[-1].T.split(slab.sizes, dim=1)
            for by_part, activation, by_out in zip(by_parts, activations, slab.of(self.by_out), strict=True):
                by_out.addmv_(activation, by_part)
            self.of_weights.out_bias[parts] = _sums(slab, by_distance[slab.rows, None], starts[:, 0])[:, 0]
        places = slice(parts.start * starts.shape[1], parts.stop * starts.shape[1])
        for layer in reversed(range(len(saved.s))):
            s = saved.s[layer]
            # times 1 - s, plus s times what the slopes add
            by_y = torch.lerp(upper, curved[layer], s, out=upper) if curved else upper.addcmul_(upper, s, value=-1)
            self.by_shift[layer][places] = _sums(slab, by_y, starts.flatten())
            by_y_parts = by_y.split(slab.sizes)
            if self.with_weights:
                below = saved.activations[layer - 1] if layer else layers.rows.local[slab.rows]
                self._add_outer(slab, layer, below, by_y_parts)
            if layer:
                upper = slab.products(by_y_parts, layers.transposed[layer])
            elif self.with_local:
                self.by_local[slab.rows] = slab.products(by_y_parts, layers.transposed[0])

    def _add_outer(self, slab: Slab, layer: int, x: Tensor, y: Sequence[Tensor]) -> None:
        """Add the product of the transposed slice of x with that of y to the gradient of each part's matrix."""
        for a, b, c in zip(x.T.split(slab.sizes, dim=1), y, slab.of(self.by_matrix[layer]), strict=True):
            c.addmm_(a, b)


def _sums(slab: Slab, values: Float[Tensor, "n w"], starts: Int[Tensor, "s"]) -> Float[Tensor, "s w"]:
    """Sums of the slab's rows from each start to the next."""
    index = torch.arange(len(values), device=values.device)
    return torch.nn.functional.embedding_bag(index, values, starts - slab.rows.start, mode="sum")
