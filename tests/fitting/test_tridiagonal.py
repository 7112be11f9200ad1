"""The block-tridiagonal solver against a dense one."""

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
@pytest.mark.parametrize("absent", [(), (0, 1), (2, 3, 4, 5)])
def test_solution_and_inverse_equal_the_dense_ones(count: int, absent: tuple[int, ...]) -> None:
    size = 3
    absent = tuple(index for index in absent if count >= 7)
    own, stiffness = spd(count, size, 0), spd(1, size, 1)[0]
    own[list(absent)] = 0
    right = torch.randn(count, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    differences = tridiagonal.second_differences(count)
    dense = torch.block_diag(*own) + torch.kron(differences.T @ differences, stiffness)
    solution, covariance = tridiagonal.solve_block_tridiagonal(own, stiffness, right)
    torch.testing.assert_close(solution.flatten(), torch.linalg.solve(dense, right.flatten()), rtol=1e-8, atol=1e-8)
    inverse = torch.linalg.inv(dense).reshape(count, size, count, size)
    blocks = torch.stack([inverse[index, :, index] for index in range(count)])
    torch.testing.assert_close(covariance, blocks, rtol=1e-8, atol=1e-8)


def test_an_unknown_without_a_cost_is_interpolated() -> None:
    """Four values fixed to points of a line, and one between them without a cost."""
    own = 1e9 * torch.eye(1, dtype=torch.float64).repeat(5, 1, 1)
    own[2] = 0
    fixed = torch.tensor([[1.0], [2.0], [0.0], [4.0], [5.0]], dtype=torch.float64)
    solution, _ = tridiagonal.solve_block_tridiagonal(
        own, torch.eye(1, dtype=torch.float64), (own @ fixed[..., None])[..., 0]
    )
    assert float(solution[2]) == pytest.approx(3, abs=1e-6)
