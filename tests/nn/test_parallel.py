"""Thread pool: order, the number of torch threads, and errors."""

from collections.abc import Iterator

import pytest
import torch

from shapespace.nn.parallel import parallel_map, parallel_results


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_are_in_order_and_have_one_thread_each() -> None:
    assert parallel_map(lambda item: (item, torch.get_num_threads()), range(5)) == [(item, 1) for item in range(5)]
    assert torch.get_num_threads() == 2


def test_the_number_of_threads_is_restored_after_an_early_exit_and_an_error() -> None:
    with parallel_results(lambda item: item, range(5)) as results:
        assert next(results) == 0
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2

    def fail(item: int) -> int:
        raise OSError(f"task {item}")

    with pytest.raises(OSError, match="task 0"):
        parallel_map(fail, range(5))
    assert torch.get_num_threads() == 2


def test_tasks_have_the_grad_mode_of_the_caller() -> None:
    with torch.no_grad():
        assert parallel_map(lambda _: torch.is_grad_enabled(), range(3)) == [False] * 3
    assert parallel_map(lambda _: torch.is_grad_enabled(), range(3)) == [True] * 3
