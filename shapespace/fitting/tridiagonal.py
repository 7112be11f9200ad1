"""Gaussians along a chain: what each link says for itself, and that the chain bends little."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor


def second_differences(count: int) -> Float[Tensor, "m n"]:
    """The matrix that takes n values in a row to x[t - 1] - 2 x[t] + x[t + 1], for all but both ends (float64)."""
    whole = torch.eye(count, dtype=torch.float64)
    return whole[:-2] - 2 * whole[1:-1] + whole[2:]


def solve_block_tridiagonal(
    own: Float[Tensor, "n k k"], stiffness: Float[Tensor, "k k"], right: Float[Tensor, "n k"]
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k k"]]:
    """Solve A x = right, and give the blocks on the diagonal of A's inverse (all float64).

    A = diag(own) + (D^T D) x stiffness (Kronecker), D the second differences: the normal matrix of the links' own
    quadratics and of the squared bends of the chain. A link that says nothing has zeros for its own; at least two must
    speak. Two links make one block of a tridiagonal matrix, which is eliminated from its first block to its last; the
    way back gives the solution and the inverse's blocks (as Rauch, Tung & Striebel's smoother does, 1965).
    """
    count, size = right.shape
    bends = second_differences(count)
    odd = count % 2  # one more link, which is tied to nothing, makes them even
    coupling = torch.nn.functional.pad(bends.T @ bends, (0, odd, 0, odd))
    blocks = torch.cat([own, torch.eye(size, dtype=own.dtype)[None].expand(odd, -1, -1)])
    ahead = torch.nn.functional.pad(right, (0, 0, 0, odd)).reshape(-1, 2 * size)
    pairs = [slice(first, first + 2) for first in range(0, count + odd, 2)]
    diagonal = [torch.block_diag(*blocks[pair]) + torch.kron(coupling[pair, pair], stiffness) for pair in pairs]
    below = [torch.kron(coupling[b, a], stiffness) for a, b in pairwise(pairs)]

    inverse: list[Tensor] = []
    gain: list[Tensor] = []
    sums: list[Tensor] = []
    for index, block in enumerate(diagonal):
        total = ahead[index]
        if index:
            block = block - below[index - 1] @ gain[-1]
            total = total - gain[-1].T @ sums[-1]
        inverse.append(torch.cholesky_inverse(torch.linalg.cholesky(block)))
        sums.append(total)
        if index < len(below):
            gain.append(inverse[-1] @ below[index].T)
    found, spread = [inverse[-1] @ sums[-1]], [inverse[-1]]
    for index in reversed(range(len(below))):
        found.append(inverse[index] @ sums[index] - gain[index] @ found[-1])
        spread.append(inverse[index] + gain[index] @ spread[-1] @ gain[index].T)
    parts = [part for pair in reversed(spread) for part in (pair[:size, :size], pair[size:, size:])]
    return torch.stack(found[::-1]).reshape(-1, size)[:count], torch.stack(parts)[:count]
