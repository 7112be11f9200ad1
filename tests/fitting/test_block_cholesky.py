"""The block-sparse Cholesky solver against the dense one."""

import pytest
import torch

from shapespace.fitting import block_cholesky
from shapespace.fitting.block_cholesky import BlockPattern

SIZE = 3


def body() -> list[tuple[int, int]]:
    """Pairs of 24 parts: a trunk of eight that all meet, and four limbs whose parts meet the next two."""
    trunk = [(j, k) for k in range(8) for j in range(k)]
    limbs = [[2 * limb, *range(8 + 4 * limb, 12 + 4 * limb)] for limb in range(4)]
    return trunk + [(limb[i], limb[k]) for limb in limbs for k in range(5) for i in range(max(0, k - 2), k)]


PATTERNS = {
    "single": (1, []),
    "diagonal": (4, []),
    "chain": (9, [(k, k + 1) for k in range(8)]),
    "ring": (8, [(k, (k + 1) % 8) for k in range(8)]),
    "full": (6, [(j, k) for k in range(6) for j in range(k)]),
    "disconnected": (9, [(0, 7), (7, 3), (3, 5), (1, 2), (2, 8), (1, 8)]),
    "body": (24, body()),
}


def make_pattern(name: str) -> BlockPattern:
    count, pairs = PATTERNS[name]
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return BlockPattern.from_pairs(shuffled[torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)], count, SIZE)


def positive_definite(pattern: BlockPattern, dtype: torch.dtype) -> torch.Tensor:
    """The sum of J^T J over the pairs, J the Jacobian of a few residuals of both blocks, and of a small diagonal."""
    generator, size = torch.Generator().manual_seed(1), pattern.block_size
    blocks = torch.zeros(len(pattern.pairs), size, size, dtype=torch.float64)
    blocks[pattern.diagonal] = 0.5 * torch.eye(size, dtype=torch.float64)
    for position, (j, k) in enumerate(pattern.pairs.tolist()):
        jacobian = torch.randn(2, 4, size, generator=generator, dtype=torch.float64)
        blocks[pattern.diagonal[j]] += jacobian[0].T @ jacobian[0]
        if j != k:
            blocks[pattern.diagonal[k]] += jacobian[1].T @ jacobian[1]
            blocks[position] = jacobian[0].T @ jacobian[1]
    return blocks.to(dtype)


def check_against_dense(pattern: BlockPattern, dtype: torch.dtype) -> None:
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    blocks = positive_definite(pattern, dtype)
    dense = pattern.to_dense(blocks).double()
    factor = pattern.factorize(blocks)
    right = torch.randn(len(dense), generator=torch.Generator().manual_seed(2), dtype=dtype)
    solution = factor.solve(right)
    assert solution.dtype == factor.inverse().dtype == dtype
    torch.testing.assert_close(
        solution.double(), torch.linalg.solve(dense, right.double()), rtol=tolerance, atol=tolerance
    )
    inverse = torch.linalg.inv(dense).reshape(pattern.num_blocks, SIZE, pattern.num_blocks, SIZE).transpose(1, 2)
    first, second = pattern.pairs.T
    torch.testing.assert_close(factor.inverse().double(), inverse[first, second], rtol=tolerance, atol=tolerance)
    every = torch.arange(pattern.num_blocks)
    torch.testing.assert_close(
        factor.inverse_diagonal().double(), inverse[every, every], rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("front_cost", [0.0, 1e2, 2e3, block_cholesky.FRONT_COST])
def test_solution_and_inverse_equal_the_dense_ones(
    name: str, dtype: torch.dtype, front_cost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every amount of merging: from hardly any (calls are free) to one front for each connected part."""
    monkeypatch.setattr(block_cholesky, "FRONT_COST", front_cost)
    check_against_dense(make_pattern(name), dtype)


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_equal_the_dense_ones(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_cholesky, "FRONT_COST", 5e2)
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randint(0, 15, (4 + 2 * seed, 2), generator=generator)
    check_against_dense(BlockPattern.from_pairs(pairs, 15, SIZE), torch.float64)


def test_merging_changes_the_number_of_fronts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(make_pattern("body").fronts) == 1
    monkeypatch.setattr(block_cholesky, "FRONT_COST", 2e3)
    assert 1 < len(make_pattern("body").fronts) < 24
    assert len(make_pattern("disconnected").fronts) >= 4  # two that are joined to others, two alone


def test_a_tree_is_eliminated_without_fill() -> None:
    """Minimum fill starts at the leaves; each block but the last then touches one other."""
    star = torch.eye(6, dtype=torch.bool)
    star[0] = star[:, 0] = True
    steps = block_cholesky.minimum_fill(star.numpy())
    assert sorted(len(step.touched) for step in steps) == [0, 1, 1, 1, 1, 1]
    assert sorted(block for step in steps for block in step.pivots) == list(range(6))


def test_pairs_may_be_reversed_repeated_and_on_the_diagonal() -> None:
    pattern = BlockPattern.from_pairs(torch.tensor([[2, 0], [0, 2], [1, 1], [3, 2], [2, 0]]), 4, SIZE)
    assert pattern.pairs.tolist() == [[0, 0], [0, 2], [1, 1], [2, 2], [2, 3], [3, 3]]
    assert pattern.diagonal.tolist() == [0, 2, 3, 5]
    assert pattern.positions(torch.tensor([[2, 3], [0, 0], [0, 2]])).tolist() == [4, 0, 1]


def test_dense_matrix_holds_the_blocks_above_and_their_transposes_below() -> None:
    pattern = BlockPattern.from_pairs(torch.tensor([[0, 2]]), 3, 2)
    blocks = torch.arange(16.0).reshape(4, 2, 2)
    zero = torch.zeros(2, 2)
    rows = [[blocks[0], zero, blocks[1]], [zero, blocks[2], zero], [blocks[1].T, zero, blocks[3]]]
    torch.testing.assert_close(pattern.to_dense(blocks), torch.cat([torch.cat(row, dim=1) for row in rows]))


def test_float64_where_float32_fails() -> None:
    """Integers below 2^24: exact in float32, whose rounding during the elimination exceeds the least eigenvalue."""
    pattern = BlockPattern.from_pairs(torch.tensor([[0, 1]]), 2, 16)
    root = torch.randint(2048, 4096, (1, 32), generator=torch.Generator().manual_seed(0)).double()
    dense = root.T @ root + torch.eye(32, dtype=torch.float64)
    blocks = torch.stack([dense[:16, :16], dense[:16, 16:], dense[16:, 16:]]).float()
    torch.testing.assert_close(pattern.to_dense(blocks).double(), dense, rtol=0, atol=0)
    assert int(torch.linalg.cholesky_ex(dense.float()).info) > 0
    factor, right = pattern.factorize(blocks), torch.arange(32, dtype=torch.float64)
    expected = right - root[0] * (root[0] @ right) / (1 + root[0] @ root[0])  # Sherman & Morrison
    assert factor.inverse().dtype == torch.float64
    torch.testing.assert_close(factor.solve(right), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(factor.solve(right.float()), expected.float(), rtol=1e-5, atol=1e-5)


def test_a_matrix_that_rounding_made_indefinite_is_factorized() -> None:
    """Sums of squares in float32: an eigenvalue is below the rounding errors of the matrix, and negative in float64."""
    pattern, generator = BlockPattern.from_pairs(torch.tensor([[0, 1]]), 2, 16), torch.Generator().manual_seed(0)
    root = 1e4 * torch.randn(12, 32, generator=generator, dtype=torch.float64)
    exact = root.T @ root + torch.eye(32, dtype=torch.float64)
    dense = exact.float()
    assert torch.linalg.eigvalsh(dense.double()).min() < 0 < torch.linalg.eigvalsh(exact).min()
    blocks = torch.stack([dense[:16, :16], dense[:16, 16:], dense[16:, 16:]])
    inverse = pattern.to_dense(pattern.factorize(blocks).inverse())
    assert torch.linalg.eigvalsh(inverse).min() > 0
    measured = torch.linalg.svd(root).Vh[:12]  # directions that the rounding leaves as they were
    expected = torch.linalg.inv(exact)
    torch.testing.assert_close(measured @ inverse @ measured.T, measured @ expected @ measured.T, rtol=1e-3, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_matrix_that_is_not_positive_definite_has_no_factor(dtype: torch.dtype, value: float) -> None:
    pattern = BlockPattern.from_pairs(torch.tensor([[0, 2], [1, 3]]), 4, SIZE)
    for block in range(4):
        blocks = positive_definite(pattern, dtype)
        blocks[pattern.diagonal[block], 2, 2] = value
        with pytest.raises(
            torch.linalg.LinAlgError, match=r"not positive definite .*\(torch.float64\)\. Raise the damping"
        ):
            pattern.factorize(blocks)


def test_the_unknown_without_a_positive_pivot_is_named() -> None:
    pattern = BlockPattern.from_pairs(torch.tensor([[0, 3], [1, 3]]), 4, SIZE)
    blocks = positive_definite(pattern, torch.float32)
    blocks[pattern.diagonal[2], 1, 1] = -1
    blocks[pattern.diagonal[2], [0, 2], 1] = blocks[pattern.diagonal[2], 1, [0, 2]] = 0
    with pytest.raises(torch.linalg.LinAlgError, match="at unknown 1 of block 2 "):
        pattern.factorize(blocks)


def test_wrong_input_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"the pairs name blocks 1 to 4, but num_blocks is 4\. Give indices from 0 to 3"
    ):
        BlockPattern.from_pairs(torch.tensor([[1, 4]]), 4, SIZE)
    with pytest.raises(ValueError, match="the pairs name blocks -1 to 2"):
        BlockPattern.from_pairs(torch.tensor([[-1, 2]]), 4, SIZE)
    pattern = make_pattern("chain")
    with pytest.raises(ValueError, match=r"blocks have shape \(9, 3, 3\), expected \(17, 3, 3\)"):
        pattern.factorize(torch.eye(3).repeat(9, 1, 1))
    first, second = pattern.pairs[(pattern.pairs[:, 0] < pattern.pairs[:, 1])][0].tolist()
    with pytest.raises(ValueError, match=rf"no block \({second}, {first}\)"):
        pattern.positions(torch.tensor([[first, first], [second, first]]))
