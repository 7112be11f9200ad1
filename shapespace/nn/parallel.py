"""Run independent tasks in a thread pool, each with one torch thread.

A matrix product that is split over all cores ends with its slowest core, and every layer waits for it. Whole tasks do
not wait for each other, and the activations of about a thousand points stay in the caches of a core.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK_POINTS = 1200  # points in a task; their activations fit into the caches of a core


def parallel_map(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return `work(item)` for each item, in order (see `parallel_results`)."""
    with parallel_results(work, items) as results:
        return list(results)


@contextmanager
def parallel_results(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Iterator[Result]]:
    """Give an iterator over `work(item)` for each item, in order: results need not all be in memory at once.

    There are as many threads as torch is set to use. Each runs with the grad mode of the caller. With one torch thread,
    or inside such a task, the items are processed one after another. Inside the context, torch uses one thread; the
    number is restored at its end.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(items) < 2:
        yield map(work, items)
        return
    grad = torch.is_grad_enabled()

    def in_thread(item: Item) -> Result:
        with torch.set_grad_enabled(grad):
            return work(item)

    torch.set_num_threads(1)  # the cores are busy with the tasks
    try:
        yield _pool(threads).map(in_thread, items)
    finally:
        torch.set_num_threads(threads)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Thread pool that is reused, with the buffers that libraries allocate for each thread."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive in a forked process
