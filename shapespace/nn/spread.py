"""Independent pieces of work, side by side: one thread of torch's for each core, and no waiting inside a product.

A product that is cut among all cores ends when the slowest core does, and every layer waits for it; on a machine with
other work to do that is most of the time. Whole pieces need no such waiting, and a piece of a thousand points stays in
the cores' caches.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

PIECE = 1200  # points whose activations stay in a core's caches


def spread(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield `work(item)` for each item, in order, from as many threads as torch is set to use.

    Each thread computes by itself, with the caller's grad mode. With one thread, or from within one, the items are
    simply worked through.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(items) < 2:
        yield from map(work, items)
        return
    grad = torch.is_grad_enabled()

    def begin() -> None:
        torch.set_num_threads(1)
        torch.set_grad_enabled(grad)

    try:
        with ThreadPoolExecutor(min(threads, len(items)), initializer=begin) as pool:
            yield from pool.map(work, items)
    finally:
        torch.set_num_threads(threads)  # a thread's number is its own, but new threads would take the last one set
