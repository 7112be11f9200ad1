"""Chains against a dense solve."""

import pytest
import torch

from shapespace.fitting import tridiagonal


def spd(count: int, size: int, seed: int) -> torch.Tensor:
    root = torch.randn(count, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.mT + 0.1 * torch.eye(size, dtype=torch.float64)


def test_second_differences_of_a_line_are_none_and_of_a_parabola_the_same() -> None:
    time = torch.arange(5, dtype=torch.float64)
    both = tridiagonal.second_differences(5) @ torch.stack([3 * time + 1, time**2], dim=1)
    torch.testing.assert_close(both, torch.tensor([[0.0, 2.0]] * 3, dtype=torch.float64))


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("silent", [(), (0, 1), (2, 3, 4, 5)])
def test_a_chain_equals_the_dense_solve(count: int, silent: tuple[int, ...]) -> None:
    size = 3
    silent = tuple(link for link in silent if count >= 7)
    own, stiffness = spd(count, size, 0), spd(1, size, 1)[0]
    own[list(silent)] = 0
    right = torch.randn(count, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    bends = tridiagonal.second_differences(count)
    dense = torch.block_diag(*own) + torch.kron(bends.T @ bends, stiffness)
    found, spread = tridiagonal.solve_block_tridiagonal(own, stiffness, right)
    torch.testing.assert_close(found.flatten(), torch.linalg.solve(dense, right.flatten()), rtol=1e-8, atol=1e-8)
    inverse = torch.linalg.inv(dense).reshape(count, size, count, size)
    blocks = torch.stack([inverse[link, :, link] for link in range(count)])
    torch.testing.assert_close(spread, blocks, rtol=1e-8, atol=1e-8)


def test_a_silent_link_lies_where_the_chain_does_not_bend() -> None:
    """Four links that are held stiffly on a line, and one between them that says nothing."""
    own = 1e9 * torch.eye(1, dtype=torch.float64).repeat(5, 1, 1)
    own[2] = 0
    held = torch.tensor([[1.0], [2.0], [0.0], [4.0], [5.0]], dtype=torch.float64)
    found, _ = tridiagonal.solve_block_tridiagonal(
        own, torch.eye(1, dtype=torch.float64), (own @ held[..., None])[..., 0]
    )
    assert float(found[2]) == pytest.approx(3, abs=1e-6)
