"""Block-tridiagonal solver for a sequence of quadratic costs and its second differences."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor


def second_differences(count: int) -> Float[Tensor, "m n"]:
    """Matrix D (float64) with (D x)[t - 1] = x[t - 1] - 2 x[t] + x[t + 1]: n columns, n - 2 rows."""
    identity = torch.eye(count, dtype=torch.float64)
    return identity[:-2] - 2 * identity[1:-1] + identity[2:]


def solve_block_tridiagonal(
    own: Float[Tensor, "n k k"], stiffness: Float[Tensor, "k k"], right: Float[Tensor, "n k"]
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k k"]]:
    """Solve A x = right; return x and the diagonal blocks of the inverse of A (all float64).

    A = diag(own) + (D^T D) x stiffness (Kronecker), D the second differences: the normal matrix of n quadratic costs
    and of the squared second differences between them. A cost that is absent has a block of zeros; at least two must be
    present. D^T D has five diagonals, so two unknowns form one block of a tridiagonal matrix. The blocks are eliminated
    from first to last; back substitution gives the solution and the blocks of the inverse (as the smoother of Rauch,
    Tung & Striebel 1965).
    """
    count, size = right.shape
    differences = second_differences(count)
    odd = count % 2  # one more unknown without any coupling makes the count even
    coupling = torch.nn.functional.pad(differences.T @ differences, (0, odd, 0, odd))
    blocks = torch.cat([own, torch.eye(size, dtype=own.dtype)[None].expand(odd, -1, -1)])
    rights = torch.nn.functional.pad(right, (0, 0, 0, odd)).reshape(-1, 2 * size)
    pairs = [slice(first, first + 2) for first in range(0, count + odd, 2)]
    diagonal = [torch.block_diag(*blocks[pair]) + torch.kron(coupling[pair, pair], stiffness) for pair in pairs]
    below = [torch.kron(coupling[b, a], stiffness) for a, b in pairwise(pairs)]

    inverses: list[Tensor] = []
    gains: list[Tensor] = []
    sums: list[Tensor] = []
    for index, block in enumerate(diagonal):
        total = rights[index]
        if index:
            block = block - below[index - 1] @ gains[-1]
            total = total - gains[-1].T @ sums[-1]
        inverses.append(torch.cholesky_inverse(torch.linalg.cholesky(block)))
        sums.append(total)
        if index < len(below):
            gains.append(inverses[-1] @ below[index].T)
    solution, covariance = [inverses[-1] @ sums[-1]], [inverses[-1]]
    for index in reversed(range(len(below))):
        solution.append(inverses[index] @ sums[index] - gains[index] @ solution[-1])
        covariance.append(inverses[index] + gains[index] @ covariance[-1] @ gains[index].T)
    parts = [part for pair in reversed(covariance) for part in (pair[:size, :size], pair[size:, size:])]
    return torch.stack(solution[::-1]).reshape(-1, size)[:count], torch.stack(parts)[:count]
