"""Cholesky factorization of a block-sparse matrix: the normal matrix of unknowns that meet in few pairs.

Multifrontal (Duff & Reid 1983, Liu 1992): blocks that are eliminated together form a front, a dense matrix of these
pivots and of the later blocks that they touch. What remains of the later ones is added to the front of the parent.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

FRONT_COST = 2e6
"""Operations that take as long as the calls of one front. With 76 parts of a body and 30 unknowns each, values from 2e6
to 8e6 made no difference beyond the noise."""

ROUNDING = 0.0, 1e-6, 1e-5, 1e-4
"""Shares of its diagonal that are added, in this order, to a matrix that was summed in float32. A number of it is exact
to 6e-8 of the diagonal, an eigenvalue to that times the number of unknowns: small ones may have become negative.
Variances that the rounding errors hide come out too small."""


@dataclass(frozen=True, eq=False)
class Move:
    """A rectangle of what a child front leaves, and where the parent adds it. Slices of unknowns: rows, columns."""

    source: tuple[slice, slice]
    to_panel: bool
    """Whether the columns are pivots of the parent; otherwise they are of its boundary."""
    target: tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class Front:
    """A dense step of the elimination. Unknowns and blocks count in the order of elimination."""

    pivots: slice
    """Unknowns that this front eliminates (c of them)."""
    boundary: Int[Tensor, "r"]
    """Later unknowns that they touch, ascending."""
    entries: Int[Tensor, "e"]
    """Positions, in the pattern, of the blocks of the matrix that have a pivot for row or column and none before."""
    first: Int[Tensor, "e"]
    second: Int[Tensor, "e"]
    """Row and column of these blocks in the front: the pivots' blocks, then those of the boundary."""
    num_lower: int
    """How many of them, the first ones, lie on the diagonal or below."""
    children: tuple[tuple[int, tuple[Move, ...]], ...]
    """Fronts whose remainder is added to this one, with its rectangles."""
    parent: int
    """Front of the first unknown of the boundary; -1 without a boundary."""
    places: Int[Tensor, "r"]
    """Place of the boundary's unknowns in the parent front."""


@dataclass(frozen=True, eq=False)
class BlockPattern:
    """Where a symmetric matrix of n x n blocks (b x b each) is nonzero, and the order of its elimination.

    The matrix is stored as `blocks (p, b, b)`: blocks[i] = A[j, k] for (j, k) = pairs[i], j <= k; A[k, j] is its
    transpose. A diagonal block holds both of its triangles.
    """

    num_blocks: int
    block_size: int
    pairs: Int[Tensor, "p 2"]
    """Nonzero blocks (j, k) of the upper triangle with the diagonal, sorted by j, then by k."""
    diagonal: Int[Tensor, "n"]
    """Position of each diagonal block (j, j) in `pairs`."""
    order: Int[Tensor, "n"]
    """Blocks in the order of elimination."""
    fronts: tuple[Front, ...]
    """Steps of the elimination, children before parents."""

    @classmethod
    def from_pairs(cls, pairs: Int[Tensor, "m 2"], num_blocks: int, block_size: int) -> "BlockPattern":
        """The pattern of these pairs and of the diagonal; (j, k) and (k, j) are the same, repeated pairs count once."""
        if pairs.numel() and (int(pairs.min()) < 0 or int(pairs.max()) >= num_blocks):
            raise ValueError(
                f"BlockPattern.from_pairs: the pairs name blocks {int(pairs.min())} to {int(pairs.max())}, but "
                f"num_blocks is {num_blocks}. Give indices from 0 to {num_blocks - 1}."
            )
        adjacent = np.eye(num_blocks, dtype=bool)
        first, second = pairs.cpu().numpy().T
        adjacent[first, second] = adjacent[second, first] = True
        upper = torch.from_numpy(np.argwhere(np.triu(adjacent)))
        steps = merge_steps(minimum_fill(adjacent), block_size)
        order = torch.tensor([block for step in steps for block in step.pivots])
        place = torch.empty_like(order)
        place[order] = torch.arange(num_blocks)
        return cls(
            num_blocks=num_blocks,
            block_size=block_size,
            pairs=upper,
            diagonal=(upper[:, 0] == upper[:, 1]).nonzero()[:, 0],
            order=order,
            fronts=make_fronts(steps, place, place[upper], block_size),
        )

    def positions(self, pairs: Int[Tensor, "m 2"]) -> Int[Tensor, "m"]:
        """Position in `self.pairs` of each of these pairs (j, k), j <= k; ValueError where the pattern lacks one.

        The pattern is on the CPU, whatever the device of the matrix; so are the positions.
        """
        pairs = pairs.cpu()
        keys, wanted = (both[:, 0] * self.num_blocks + both[:, 1] for both in (self.pairs, pairs))
        found = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        if len(missing := pairs[(self.pairs[found] != pairs).any(dim=1)]):
            raise ValueError(
                f"BlockPattern.positions: the pattern has no block {tuple(missing[0].tolist())}. "
                "Give pairs (j, k) with j <= k that were among those of from_pairs."
            )
        return found

    def to_dense(self, blocks: Float[Tensor, "p b b"]) -> Float[Tensor, "u u"]:
        """The whole matrix, u = n b."""
        dense = blocks.new_zeros(self.num_blocks, self.num_blocks, self.block_size, self.block_size)
        first, second = self.pairs.T
        dense[second, first] = blocks.mT
        dense[first, second] = blocks
        return dense.transpose(1, 2).flatten(2).flatten(0, 1)

    def factorize(self, blocks: Float[Tensor, "p b b"]) -> "BlockFactor":
        """Factorize a positive definite matrix, in its precision; in float64 where float32 fails.

        Where float64 fails too, because the matrix itself was rounded to float32, the rounding errors are added to its
        diagonal. Raise torch.linalg.LinAlgError, as the dense factorization of torch, where that is not enough.
        """
        expected = (len(self.pairs), self.block_size, self.block_size)
        if blocks.shape != expected:
            raise ValueError(
                f"BlockPattern.factorize: the blocks have shape {tuple(blocks.shape)}, expected {expected}. "
                "Stack one block for each row of `pairs`."
            )
        try:
            return BlockFactor(self, self._eliminate(blocks))
        except LinAlgError as error:
            if blocks.dtype == torch.float64:
                raise
            failure = error
        exact = blocks.double()
        own = torch.diag_embed(exact[self.diagonal].diagonal(dim1=-2, dim2=-1))
        for share in ROUNDING:
            try:
                raised = exact.index_add(0, self.diagonal.to(exact.device), share * own)
                return BlockFactor(self, self._eliminate(raised))
            except LinAlgError as error:
                failure = error
        raise failure

    def _eliminate(self, blocks: Float[Tensor, "p b b"]) -> tuple[tuple[Tensor, Tensor], ...]:
        """For each front: the factor of its pivots, and the rows of the factor below them."""
        size = self.block_size
        factors: list[tuple[Tensor, Tensor]] = []
        remainders: dict[int, Tensor] = {}
        for index, front in enumerate(self.fronts):
            pivots, later, lower = front.pivots.stop - front.pivots.start, len(front.boundary), front.num_lower
            panel, rest = blocks.new_zeros(pivots + later, pivots), blocks.new_zeros(later, later)
            grid = panel.view(-1, size, pivots // size, size)
            grid[front.first[:lower], :, front.second[:lower], :] = blocks[front.entries[:lower]]
            grid[front.second[lower:], :, front.first[lower:], :] = blocks[front.entries[lower:]].mT
            for child, moves in front.children:
                remainder = remainders.pop(child)
                for move in moves:
                    (panel if move.to_panel else rest)[move.target].add_(remainder[move.source])
            own, info = torch.linalg.cholesky_ex(panel[:pivots])
            invalid = ~own.diagonal().isfinite()  # not every LAPACK reports NaN
            if int(info) or bool(invalid.any()):
                pivot = int(info) - 1 if int(info) else int(invalid.int().argmax())
                block, unknown = divmod(front.pivots.start + pivot, size)
                raise LinAlgError(
                    f"BlockPattern.factorize: the matrix is not positive definite at unknown {unknown} of block "
                    f"{int(self.order[block])} ({blocks.dtype}). Raise the damping of the diagonal, or check for NaN."
                )
            below = torch.linalg.solve_triangular(own.T, panel[pivots:], upper=True, left=False)
            remainders[index] = rest.addmm_(below, below.T, alpha=-1)  # its lower triangle alone is meaningful
            factors.append((own, below))
        return tuple(factors)


@dataclass(frozen=True, eq=False)
class BlockFactor:
    """Cholesky factor of a block-sparse matrix A."""

    pattern: BlockPattern
    factors: tuple[tuple[Tensor, Tensor], ...]
    """For each front, the factor (c, c) of its pivots and the rows (r, c) of the factor below them."""

    def solve(self, right: Float[Tensor, "u"]) -> Float[Tensor, "u"]:
        """The solution x of A x = right, of the type of `right`; computed in the precision of the factor."""
        pattern, steps = self.pattern, list(zip(self.pattern.fronts, self.factors, strict=True))
        x = right.to(self.factors[0][0].dtype).reshape(pattern.num_blocks, pattern.block_size)[pattern.order].flatten()
        for front, (own, below) in steps:
            x[front.pivots] = torch.linalg.solve_triangular(own, x[front.pivots, None], upper=False)[:, 0]
            x[front.boundary] -= below @ x[front.pivots]
        for front, (own, below) in reversed(steps):
            part = x[front.pivots] - x[front.boundary] @ below
            x[front.pivots] = torch.linalg.solve_triangular(own.T, part[:, None], upper=True)[:, 0]
        solution = right.new_empty(pattern.num_blocks, pattern.block_size)
        solution[pattern.order] = x.view_as(solution).to(right.dtype)
        return solution.flatten()

    def inverse(self) -> Float[Tensor, "p b b"]:
        """The blocks of the inverse of A at the pairs of the pattern, in the precision of the factor.

        The inverse is full, but its part in a front follows from its part in the parent (Takahashi, Fagan & Chin 1973).
        """
        size = self.pattern.block_size
        blocks = self.factors[0][0].new_empty(len(self.pattern.pairs), size, size)
        inverses: dict[int, Tensor] = {}
        for index, front in reversed(list(enumerate(self.pattern.fronts))):
            own, below = self.factors[index]
            inverse = torch.cholesky_inverse(own)
            if front.parent >= 0:
                after = inverses[front.parent][front.places[:, None], front.places]
                gain = torch.linalg.solve_triangular(own, below, upper=False, left=False)
                across = -after @ gain
                inverse = torch.cat(
                    [torch.cat([inverse - gain.T @ across, across.T], dim=1), torch.cat([across, after], dim=1)]
                )
            inverses[index] = inverse
            side = len(inverse) // size
            grid = inverse.view(side, size, side, size)
            blocks[front.entries] = grid[front.first, :, front.second, :]
        return blocks

    def inverse_diagonal(self) -> Float[Tensor, "n b b"]:
        """The diagonal blocks of the inverse of A: the marginal covariance of the unknowns of each block."""
        return self.inverse()[self.pattern.diagonal]


class Step(NamedTuple):
    """Blocks that are eliminated together, and the later blocks that they touch."""

    pivots: list[int]
    touched: set[int]


def minimum_fill(adjacent: Bool[np.ndarray, "n n"]) -> list[Step]:
    """Eliminate block by block, always the one whose neighbors lack the fewest pairs; then the one with the fewest."""
    graph = (adjacent & ~np.eye(len(adjacent), dtype=bool)).astype(np.float32)
    done = np.zeros(len(graph), dtype=bool)
    steps = []
    for _ in range(len(graph)):
        degree = graph.sum(axis=1)
        missing = degree * (degree - 1) - ((graph @ graph) * graph).sum(axis=1)
        block = int(np.lexsort((degree, missing, done))[0])
        neighbors = np.flatnonzero(graph[block])
        graph[np.ix_(neighbors, neighbors)] = 1
        graph[neighbors, neighbors] = 0
        graph[block] = graph[:, block] = 0
        done[block] = True
        steps.append(Step([block], set(neighbors.tolist())))
    return steps


def merge_steps(steps: list[Step], block_size: int) -> list[Step]:
    """Merge steps into their parents, where the zeros that this fills in cost less than the calls that it saves."""
    when = {block: index for index, step in enumerate(steps) for block in step.pivots}

    def cost(step: Step) -> float:
        own, later = len(step.pivots) * block_size, len(step.touched) * block_size
        return own**3 / 3 + own * own * later + own * later * later + FRONT_COST

    merged: dict[int, Step] = {}
    for index, step in enumerate(steps):
        while True:
            gains = {}
            for key, child in merged.items():
                if child.touched and min(child.touched, key=when.__getitem__) in step.pivots:
                    gains[key] = cost(child) + cost(step) - cost(Step(child.pivots + step.pivots, step.touched))
            best = max(gains, key=gains.__getitem__, default=None)
            if best is None or gains[best] <= 0:
                break
            step = Step(merged.pop(best).pivots + step.pivots, step.touched)
        merged[index] = step
    return list(merged.values())


def make_fronts(
    steps: list[Step], place: Int[Tensor, "n"], ends: Int[Tensor, "p 2"], block_size: int
) -> tuple[Front, ...]:
    """The fronts of these steps. `place`: of each block in the order of elimination; `ends`: of each pair's blocks."""
    stops = np.cumsum([len(step.pivots) for step in steps]).tolist()
    starts = [0, *stops[:-1]]
    boundaries = [sorted(place[list(step.touched)].tolist()) for step in steps]
    rows = [  # place in the order -> place in the front
        {block: row for row, block in enumerate([*range(start, stop), *boundary])}
        for start, stop, boundary in zip(starts, stops, boundaries, strict=True)
    ]
    parents = [bisect_right(stops, boundary[0]) if boundary else -1 for boundary in boundaries]
    places = [[rows[parent][block] for block in boundary] for parent, boundary in zip(parents, boundaries, strict=True)]
    column, upper = ends.amin(dim=1), ends[:, 0] < ends[:, 1]
    fronts = []
    for index, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        entries = ((column >= start) & (column < stop)).nonzero()[:, 0]
        entries = entries[upper[entries].int().argsort(stable=True)]
        local = torch.tensor([[rows[index][end] for end in pair] for pair in ends[entries].tolist()])
        fronts.append(
            Front(
                pivots=span(start, stop - start, block_size),
                boundary=unknowns(boundaries[index], block_size),
                entries=entries,
                first=local[:, 0],
                second=local[:, 1],
                num_lower=int((~upper[entries]).sum()),
                children=tuple(
                    (child, find_moves(places[child], stop - start, block_size))
                    for child, parent in enumerate(parents)
                    if parent == index
                ),
                parent=parents[index],
                places=unknowns(places[index], block_size),
            )
        )
    return tuple(fronts)


def unknowns(blocks: list[int], block_size: int) -> Int[Tensor, "r"]:
    """The unknowns of these blocks."""
    return (torch.tensor(blocks, dtype=torch.int64)[:, None] * block_size + torch.arange(block_size)).flatten()


def span(first: int, count: int, block_size: int) -> slice:
    """The unknowns of `count` blocks in a row."""
    return slice(first * block_size, (first + count) * block_size)


def find_moves(places: list[int], num_pivots: int, block_size: int) -> tuple[Move, ...]:
    """Rectangles of the lower triangle of what a child leaves; its blocks have these places (ascending) in the parent.

    Places without a gap make one run; a rectangle is a pair of runs. The parent's pivots and its boundary are apart.
    """
    breaks = [i for i in range(1, len(places)) if places[i] != places[i - 1] + 1 or places[i] == num_pivots]
    bounds = [0, *breaks, len(places)]
    runs = [(first, last - first) for first, last in pairwise(bounds)]
    moves = []
    for (column, width), (row, height) in combinations_with_replacement(runs, 2):
        to_panel = places[column] < num_pivots
        shift = 0 if to_panel else num_pivots
        source = span(row, height, block_size), span(column, width, block_size)
        target = span(places[row] - shift, height, block_size), span(places[column] - shift, width, block_size)
        moves.append(Move(source, to_panel, target))
    return tuple(moves)
