"""Independent pieces of work, side by side: one thread of torch's for each core, and no waiting inside a product.

A product that is cut among all cores ends when the slowest core does, and every layer waits for it; on a machine with
other work to do that is most of the time. Whole pieces need no such waiting, and a piece of a thousand points stays in
the cores' caches.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK_POINTS = 1200  # points whose activations stay in a core's caches


def parallel_map(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield `work(item)` for each item, in order, from as many threads as torch is set to use.

    Each thread computes by itself, with the caller's grad mode. With one thread, or from within one, the items are
    simply worked through.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(items) < 2:
        yield from map(work, items)
        return
    grad = torch.is_grad_enabled()

    def in_thread(item: Item) -> Result:
        with torch.set_grad_enabled(grad):
            return work(item)

    torch.set_num_threads(1)  # whoever takes the results must not ask for cores that are busy
    try:
        yield from _pool(threads).map(in_thread, items)
    finally:
        torch.set_num_threads(threads)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay, with what the libraries keep for each; each has one thread of torch's."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive in a forked process
