"""Threads and processes: order, the number of torch threads, and errors."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shapespace.nn.parallel import can_fork, forked_results, parallel_map, parallel_results

forking = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


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


@forking
def test_processes_give_the_results_in_order_and_have_one_thread_each() -> None:
    assert can_fork()
    unpicklable = [lambda: 0, lambda: 1, lambda: 2]
    before = torch.get_num_threads()
    results = list(
        forked_results(lambda item: (item(), torch.full((3,), item()), torch.get_num_threads()), unpicklable)
    )
    assert [(item, tensor.tolist(), threads) for item, tensor, threads in results] == [
        (i, [i] * 3, 1) for i in range(3)
    ]
    assert torch.get_num_threads() == before
    torch.set_num_threads(1)
    assert not can_fork()


@forking
def test_errors_of_processes_are_raised_here() -> None:
    def fail(item: int) -> int:
        raise OSError(f"task {item}")

    with pytest.raises(OSError, match="task 0"):
        list(forked_results(fail, range(5)))
    with pytest.raises(OSError, match="a process died"):
        list(forked_results(lambda _: os.kill(os.getpid(), signal.SIGKILL), range(5)))


@forking
def test_processes_end_with_their_parent() -> None:
    """Killed, it leaves none behind."""
    code = (
        "import os, time, torch; from shapespace.nn.parallel import forked_results; torch.set_num_threads(2);"
        "list(forked_results(lambda _: (print(os.getpid(), flush=True), time.sleep(60)), range(2)))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(Path(f"/proc/{child}").exists() for child in children)
        parent.kill()
    deadline = time.monotonic() + 10
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(process: int) -> bool:
    """Whether it exists and is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False
