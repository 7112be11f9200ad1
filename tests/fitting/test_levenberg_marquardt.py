"""The solver on plain residuals, which have nothing to do with codes, against SciPy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from scipy.optimize import least_squares
from torch import Tensor

from shapespace.fitting.levenberg_marquardt import DenseCholesky, LMState, Objective, cholesky, levenberg_marquardt

TIMES = np.linspace(0, 4, 30)


def rosenbrock(x: Float[Tensor, "s 2"], rows: Int[Tensor, "s"]) -> Float[Tensor, "s 2"]:
    """Residuals with the minimum 0 at (1, 1), at the end of a curved valley."""
    return torch.stack([10 * (x[:, 1] - x[:, 0].square()), 1 - x[:, 0]], dim=1)


def decay(x: Float[Tensor, "s 3"], rows: Int[Tensor, "s"]) -> Float[Tensor, "s n"]:
    """Residuals of a exp(-b t) + c to noisy samples, other ones for each problem of the batch."""
    a, b, c = x.unbind(dim=1)
    return a[:, None] * torch.exp(-b[:, None] * torch.from_numpy(TIMES)) + c[:, None] - SAMPLES[rows]


TRUE = np.array([[3.0, 1.2, 0.5], [1.0, 0.4, -0.3], [2.0, 2.5, 0.1]])
SAMPLES = torch.from_numpy(
    TRUE[:, :1] * np.exp(-TRUE[:, 1:2] * TIMES)
    + TRUE[:, 2:]
    + np.random.default_rng(0).normal(scale=0.05, size=(3, len(TIMES)))
)

Residuals = Callable[[Tensor, Tensor], Tensor]


def objective(residuals: Residuals) -> Objective:
    def state(rows: Int[Tensor, "s"], x: Float[Tensor, "s k"]) -> LMState:
        value = residuals(x, rows)
        jacobian = torch.func.vmap(
            torch.func.jacrev(lambda one, row: residuals(one[None], row[None])[0]),  # a problem sees its own x alone
        )(x, rows)
        gradient = (jacobian.mT @ value[..., None])[..., 0]
        return LMState(x.clone(), 0.5 * value.square().sum(dim=1), gradient, jacobian.mT @ jacobian)

    return state


def reference(residuals: Residuals, start: Float[Tensor, "r k"]) -> Float[np.ndarray, "r k"]:
    def solution(row: int) -> Float[np.ndarray, "k"]:
        def one(x: Float[np.ndarray, "k"]) -> Float[np.ndarray, "n"]:
            return residuals(torch.from_numpy(x)[None], torch.tensor([row]))[0].numpy()

        return np.asarray(least_squares(one, start[row].numpy(), method="lm").x)

    return np.stack([solution(row) for row in range(len(start))])


@pytest.mark.parametrize(
    ("residuals", "start"),
    [
        (rosenbrock, [[-1.2, 1.0], [0.0, 0.0], [2.0, -1.0]]),
        (decay, [[1.0, 1.0, 0.0]] * 3),
    ],
)
def test_a_batch_of_problems_ends_where_scipy_does(residuals: Residuals, start: list[list[float]]) -> None:
    x = torch.tensor(start, dtype=torch.float64)
    state = levenberg_marquardt(objective(residuals), x, max_steps=200, ftol=1e-14)
    np.testing.assert_allclose(state.x.numpy(), reference(residuals, x), atol=1e-6)
    assert state.gradient.abs().max() < 1e-6


def test_the_batch_equals_its_problems_and_the_start_is_unchanged() -> None:
    x = torch.tensor([[1.0, 1.0, 0.0]] * 3, dtype=torch.float64)
    together = levenberg_marquardt(objective(decay), x, max_steps=50, ftol=1e-10)
    assert torch.equal(x, torch.tensor([[1.0, 1.0, 0.0]] * 3, dtype=torch.float64))
    for row in range(3):

        def alone(rows: Int[Tensor, "s"], x: Float[Tensor, "s 3"], row: int = row) -> LMState:
            return objective(decay)(torch.full_like(rows, row), x)

        single = levenberg_marquardt(alone, x[:1], max_steps=50, ftol=1e-10)
        torch.testing.assert_close(single.x[0], together.x[row], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("max_steps", [0, 3])
def test_the_cost_never_rises_and_the_state_is_that_of_its_x(max_steps: int) -> None:
    x = torch.tensor([[-1.2, 1.0], [3.0, 3.0]], dtype=torch.float64)
    rows = torch.arange(2)
    state = levenberg_marquardt(objective(rosenbrock), x, max_steps=max_steps, ftol=1e-14)
    for ours, expected in zip(state, objective(rosenbrock)(rows, state.x), strict=True):
        torch.testing.assert_close(ours, expected)
    assert (state.cost <= objective(rosenbrock)(rows, x).cost).all()


Solve = Callable[[Tensor, Tensor], Tensor]


def by_pinv(matrix: Float[Tensor, "s k k"], right: Float[Tensor, "s k"]) -> Float[Tensor, "s k"]:
    return (torch.linalg.pinv(matrix) @ right[..., None])[..., 0]


def by_blocks(matrix: Float[Tensor, "s k k"], right: Float[Tensor, "s k"]) -> Float[Tensor, "s k"]:
    """Eliminate the last unknown, as a block-sparse solver would (Schur complement)."""
    a, b, c = matrix[:, :-1, :-1], matrix[:, :-1, -1:], matrix[:, -1:, -1:]
    first = torch.linalg.solve(a - b @ b.mT / c, (right[:, :-1, None] - b * right[:, -1:, None] / c))
    last = (right[:, -1:, None] - b.mT @ first) / c
    return torch.cat([first, last], dim=1)[..., 0]


class Counted(DenseCholesky):
    """Another way to solve the same systems; it notes how many it was given."""

    def __init__(self, way: Solve) -> None:
        self.way, self.calls = way, list[int]()

    def solve(self, hessian: Tensor, added: Tensor, right: Tensor) -> Tensor:
        self.calls.append(len(hessian))
        found = self.way(hessian + torch.diag_embed(added), right)
        torch.testing.assert_close(found, super().solve(hessian, added, right), rtol=1e-6, atol=1e-9)
        return found


@pytest.mark.parametrize("way", [by_pinv, by_blocks])
def test_another_solver_gives_the_same_minimum(way: Solve) -> None:
    x = torch.tensor([[1.0, 1.0, 0.0]] * 3, dtype=torch.float64)
    dense = levenberg_marquardt(objective(decay), x, max_steps=50, ftol=1e-12)
    solver = Counted(way)
    other = levenberg_marquardt(objective(decay), x, max_steps=50, ftol=1e-12, solver=solver)
    torch.testing.assert_close(other.x, dense.x, atol=1e-6, rtol=1e-6)
    assert solver.calls[0] == 3
    assert solver.calls[-1] <= 3  # converged problems are left out


def test_a_matrix_that_float32_cannot_factorize_is_factorized_in_float64() -> None:
    matrix = torch.tensor([[[3.0, 5258.0], [5258.0, 9215522.0]]])  # integers: its determinant is 2
    assert torch.linalg.cholesky_ex(matrix).info.any()
    factor = cholesky(matrix)
    torch.testing.assert_close(factor @ factor.mT, matrix.double())
    assert factor.dtype == torch.float64
    with pytest.raises(torch.linalg.LinAlgError):
        cholesky(-torch.eye(2)[None])


def test_a_matrix_that_rounding_made_indefinite_is_factorized() -> None:
    """Of rank 3 and no more; rounded to float32, it has negative eigenvalues."""
    rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 30
    matrix = (rows @ rows.T)[None]
    assert torch.linalg.cholesky_ex(matrix.double()).info.any()
    factor = cholesky(matrix)
    torch.testing.assert_close((factor @ factor.mT)[0].float(), matrix[0], rtol=1e-3, atol=1.0)
