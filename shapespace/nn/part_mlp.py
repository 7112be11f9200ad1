"""Many small MLPs, one for each body part, blended into one field; value, gradient and Jacobian written out by hand."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shapespace.nn.parallel import parallel_map
from shapespace.nn.part_layers import Expansion, PartField, PartWeights, Rows, distances, expand

NEAREST = 4  # parts that are blended at a point
BLEND_SHARPNESS = 4.0  # of the weights softmax(-4 d^2), d the distance to a part's center over its radius
CHUNK = 4800  # points in a task on a CPU
MIN_CHUNK = 1200  # fewer make the products of a part small
CACHED = 2**18  # numbers that a core has in its caches
LARGEST = 2**31 - 1  # number of int32


class PartStates(NamedTuple):
    """Parts of b bodies: where they are, and what shape they have.

    A point u of a part's frame (in units of its radius) is at `center + radius * rotation @ u` in the model frame.
    """

    center: Float[Tensor, "b k 3"]
    rotation: Float[Tensor, "b k 3 3"]
    local_code: Float[Tensor, "b k l"]

    def __getitem__(self, rows: Any) -> "PartStates":  # type: ignore[override]
        """`select`, which type checkers take for the item of a tuple."""
        return self.select(rows)

    def select(self, rows: slice | Tensor) -> "PartStates":
        """Bodies by a slice or a tensor of indices."""
        return PartStates(self.center[rows], self.rotation[rows], self.local_code[rows])

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
    units of the part's radius. The initial field of a part is about a ball's, by the initialization of Atzmon & Lipman,
    SAL (CVPR 2020), section 4.

    The field of a body is the blend of the `NEAREST` parts of a point: f = sum_k w_k radius_k g_k(u_k, l_k), with
    w = softmax(-4 |x - center_k|^2 / radius_k^2). Parts with local codes: Mihajlovic et al., COAP (CVPR 2022).
    """

    radius: Tensor

    def __init__(self, *, num_parts: int, local_dim: int, width: int = 64, depth: int = 4, beta: float = 30.0) -> None:
        super().__init__()
        self.num_parts, self.local_dim, self.width, self.depth, self.beta = num_parts, local_dim, width, depth, beta
        self.point_in = nn.Parameter(torch.empty(num_parts, 3, width))
        self.hidden = nn.Parameter(torch.empty(depth - 1, num_parts, width, width))
        self.shift = nn.Parameter(torch.empty(depth, num_parts, local_dim, width))
        self.bias = nn.Parameter(torch.zeros(depth, num_parts, width))
        self.out = nn.Parameter(torch.empty(num_parts, width))
        self.out_bias = nn.Parameter(torch.full((num_parts,), -0.5))
        self.register_buffer("radius", torch.ones(num_parts))
        self._initialize()

    def _initialize(self) -> None:
        """Fill the weights once all are registered: sizes of an untrusted file are refused before they use memory."""
        for weight in (self.point_in, self.hidden):
            nn.init.normal_(weight, 0.0, math.sqrt(2 / self.width))
        nn.init.normal_(self.shift, 0.0, 1e-2)
        nn.init.normal_(self.out, math.sqrt(math.pi / self.width), 1e-4)

    def weights(self, local_code: Float[Tensor, "b k l"]) -> PartWeights:
        """Weights for softplus in units of ln 2 and of sharpness 1, and what each layer of each part adds."""
        scale, count = self.scale, self.num_parts
        codes = local_code.transpose(0, 1).expand(self.depth, -1, -1, -1).flatten(0, 1)
        shift = torch.baddbmm(
            (scale * self.bias).flatten(0, 1)[:, None], codes, self.shift.flatten(0, 1), beta=1, alpha=scale
        )
        shift = shift.view(self.depth, count, len(local_code), self.width)
        return PartWeights(self.point_in * scale, self.hidden, self.out / scale, self.out_bias, shift)

    @property
    def scale(self) -> float:
        """Factor on the inputs of the softplus."""
        return self.beta / math.log(2)

    def forward(self, x: Float[Tensor, "b q 3"], states: PartStates) -> Float[Tensor, "b q"]:
        """Field at points of the model frame (model units), negative inside."""
        if torch.is_grad_enabled():
            return self._evaluate(x, states, with_gradient=False)[0]
        weights = self.weights(states.local_code)

        def value(chunk: tuple[Tensor, slice]) -> Tensor:
            points, row = chunk
            pairs = self._pairs(points, states.select(row))
            own = weights._replace(shift=weights.shift[:, :, row])
            return pairs.blend(distances(pairs.rows, own))

        return torch.cat([x.new_zeros(0), *parallel_map(value, self._chunks(x))]).view(x.shape[:2])

    def value_and_gradient(
        self, x: Float[Tensor, "b q 3"], states: PartStates
    ) -> tuple[Float[Tensor, "b q"], Float[Tensor, "b q 3"]]:
        """Field and spatial gradient; one backward pass differentiates both in the weights and the states."""
        return self._evaluate(x, states, with_gradient=True)

    def _evaluate(self, x: Tensor, states: PartStates, *, with_gradient: bool) -> tuple[Tensor, Tensor]:
        pairs = self._pairs(x, states)
        distance, slope = PartField.apply(  # type: ignore[no-untyped-call]
            pairs.rows.local, pairs.rows, with_gradient, *self.weights(states.local_code)
        )
        value = pairs.blend(distance)
        gradient = pairs.gradient(distance, slope, value).reshape(x.shape) if with_gradient else slope
        return value.view(x.shape[:2]), gradient

    @torch.no_grad()
    def linearize(self, x: Float[Tensor, "b q 3"], states: PartStates) -> PartLinearization:
        """Field, spatial gradient, and Jacobian in the states of the blended parts (no graph)."""
        weights, by_shift = self.weights(states.local_code), (self.shift * self.scale).mT

        def expanded(chunk: tuple[Tensor, slice]) -> tuple[Tensor, ...]:
            points, row = chunk
            pairs = self._pairs(points, states.select(row))
            own = weights._replace(shift=weights.shift[:, :, row])
            expansion = expand(pairs.rows, own, by_shift)
            value = pairs.blend(expansion.distance)
            gradient = pairs.gradient(expansion.distance, expansion.slope, value)
            return value, gradient, pairs.part.T, pairs.jacobian(expansion, value)

        columns = min(NEAREST, self.num_parts), 6 + self.local_dim
        part = torch.zeros(0, columns[0], dtype=torch.long, device=x.device)
        nothing = x.new_zeros(0), x.new_zeros(0, 3), part, x.new_zeros(0, *columns)
        results = zip(nothing, *parallel_map(expanded, self._chunks(x)), strict=True)
        parts = [torch.cat(tensors) for tensors in results]
        return PartLinearization(*(part.view(*x.shape[:2], *part.shape[1:]) for part in parts))

    def _chunks(self, x: Tensor) -> list[tuple[Tensor, slice]]:
        """Points of one body each, at most `CHUNK` on a CPU and equally many, with the row of the body as a slice."""
        size, threads = x.shape[1], torch.get_num_threads()
        if x.device.type == "cpu":
            count = math.ceil(size / CHUNK)
            if len(x) * count % threads and size > threads * MIN_CHUNK:
                count += threads - count % threads
            size = math.ceil(size / max(count, 1))
        bodies = [slice(row, row + 1) for row in range(len(x))]
        return [(points, row) for row in bodies for points in x[row].split(max(size, 1), dim=1)]

    def _pairs(self, x: Tensor, states: PartStates) -> "_Pairs":
        """The nearest parts of each point, and the points in their frames, sorted by part."""
        bodies = len(x)
        with torch.no_grad():
            part = nearest_parts(x, states.center, self.radius)
            place = (part * bodies + torch.arange(bodies, device=x.device)[:, None]).flatten()
            order = place.argsort()
            inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
            counts = place.bincount(minlength=self.num_parts * bodies).view(self.num_parts, bodies)
            part = part.flatten(1)
        radius = self.radius.index_select(0, part.flatten()).view(part.shape)
        offset = x.reshape(-1, 3).T[:, None] - _columns(states.center, place).view(3, *part.shape)
        rotation = _columns(states.rotation, place).view(3, 3, *part.shape)
        local = (offset[:, None] * rotation).sum(dim=0) / radius
        score = (offset / radius).square().sum(dim=0) * -BLEND_SHARPNESS
        sort = order, inverse
        sorted_local = _Permute.apply(local.flatten(1), *sort)  # type: ignore[no-untyped-call]
        rows = Rows(sorted_local.T, place.index_select(0, order), counts)
        return _Pairs(part, score.softmax(dim=0), offset, rotation, radius, rows, sort)


class _Pairs(NamedTuple):
    """Pairs of the p-th nearest part with point q (all bodies in one dimension), and the same as rows sorted by part.

    Coordinates and pairs are the first dimensions, since sums over the first dimensions are fast.
    """

    part: Int[Tensor, "n q"]
    weight: Float[Tensor, "n q"]
    offset: Float[Tensor, "3 n q"]  # x - center
    rotation: Float[Tensor, "3 3 n q"]
    radius: Float[Tensor, "n q"]
    rows: Rows
    sort: tuple[Tensor, Tensor]  # pairs to rows, and back

    def blend(self, distance: Float[Tensor, "m"]) -> Float[Tensor, "q"]:
        """Value of the field from the distances of the rows."""
        return (self.weight * self._in_model_units(distance)).sum(dim=0)

    def gradient(
        self, distance: Float[Tensor, "m"], slope: Float[Tensor, "m 3"], value: Float[Tensor, "q"]
    ) -> Float[Tensor, "q 3"]:
        """Spatial gradient of the field: that of the parts, and that of the weights."""
        return (self.weight * self._steps(slope) - self._pull(distance, value)).sum(dim=1).T

    def jacobian(self, expansion: Expansion, value: Float[Tensor, "q"]) -> Float[Tensor, "q n p"]:
        """Derivatives of the field in center, rotation vector and local code of each part."""
        steps, width = self._steps(expansion.slope), expansion.by_code.shape[1]
        result = value.new_empty(*self.part.T.shape, 6 + width)
        by_point = result.permute(2, 1, 0)
        torch.sub(self._pull(expansion.distance, value), self.weight * steps, out=by_point[:3])
        torch.mul(torch.linalg.cross(steps, self.offset, dim=0), self.weight, out=by_point[3:6])
        by_code = expansion.by_code.index_select(0, self.sort[1].view(self.part.shape).T.flatten())
        factor = (self.weight * self.radius).T[..., None]
        torch.mul(by_code.view(*self.part.T.shape, width), factor, out=result[..., 6:])
        return result

    def _in_model_units(self, distance: Tensor) -> Float[Tensor, "n q"]:
        return _Permute.apply(distance, *self.sort[::-1]).view_as(self.radius) * self.radius  # type: ignore[no-untyped-call]

    def _steps(self, slope: Tensor) -> Float[Tensor, "3 n q"]:
        """Gradients of the parts, turned into the model frame."""
        unsorted = _Permute.apply(slope.T, *self.sort[::-1])  # type: ignore[no-untyped-call]
        return (self.rotation * unsorted.view_as(self.offset)).sum(dim=1)

    def _pull(self, distance: Tensor, value: Tensor) -> Float[Tensor, "3 n q"]:
        """Derivative of the blend in the centers through the weights alone."""
        around = self._in_model_units(distance) - value
        return (2 * BLEND_SHARPNESS * self.weight * around / self.radius.square()) * self.offset


@torch.no_grad()
def nearest_parts(
    x: Float[Tensor, "b q 3"], center: Float[Tensor, "b k 3"], radius: Float[Tensor, "k"]
) -> Int[Tensor, "n b q"]:
    """The `NEAREST` parts of each point by distance over radius, nearest first.

    Squared distances are compared without their last bits, which the number of the part replaces: so minima of integers
    give the parts, too, in less time than a partial sort.
    """
    count = center.shape[1]
    low = (1 << (count - 1).bit_length()) - 1
    index = torch.arange(count, dtype=torch.int32, device=x.device)[:, None]
    by_axis, centers = x.float().mT.contiguous(), center.float().unbind(dim=-1)
    inverse = radius.float().square().reciprocal()[:, None]
    size = max(1, CACHED // max(centers[0].numel(), 1)) if x.device.type == "cpu" else max(x.shape[1], 1)
    found = []
    for points in by_axis.split(size, dim=2):
        squared = (points[:, 0, None] - centers[0][..., None]).square_()
        difference = torch.empty_like(squared)
        for axis in (1, 2):
            torch.sub(points[:, axis, None], centers[axis][..., None], out=difference)
            squared.addcmul_(difference, difference)
        key = squared.mul_(inverse).view(torch.int32).bitwise_and_(~low).bitwise_or_(index)
        minima = [key.amin(dim=1)]
        for _ in range(1, min(NEAREST, count)):
            # Keys up to the last minimum become the largest by the overflow of the sum.
            step = LARGEST - minima[-1]
            minima.append(torch.add(key, step[:, None], out=difference.view(torch.int32)).amin(dim=1) - step)
        found.append(torch.stack(minima).bitwise_and_(low))
    return torch.cat(found, dim=2).long()


def _columns(table: Float[Tensor, "b k *r"], place: Int[Tensor, "m"]) -> Float[Tensor, "r m"]:
    """Numbers of each place, part * bodies + body; many times each."""
    numbers = table.flatten(2).permute(2, 1, 0).flatten(1)
    return _Columns.apply(numbers, place)  # type: ignore[no-untyped-call]


class _Columns(torch.autograd.Function):
    """`table[:, index]` of a small table; in the backward pass, rows of numbers are added in less time than columns."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.columns = table.shape[1]
        return table.index_select(1, index)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_values: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        by_table = by_values.new_zeros(ctx.columns, len(by_values))
        return by_table.index_add_(0, index, by_values.T.contiguous()).T, None


class _Permute(torch.autograd.Function):
    """`values[..., order]`, with the inverse order."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return values.index_select(-1, order)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_values: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return by_values.index_select(-1, inverse), None, None
