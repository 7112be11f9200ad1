"""Run independent tasks in threads or processes, each with one torch thread.

A matrix product that is split over all cores ends with its slowest core, and every layer waits for it. Whole tasks do
not wait for each other, and the activations of about a thousand points stay in the caches of a core.

Threads share the lock of the interpreter: tasks of many small products wait for it, and gain by processes.
"""

import ctypes
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context
from typing import Any, TypeVar

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


PARENT_DIED = 1  # PR_SET_PDEATHSIG of Linux: the signal that a process gets when its parent dies


def can_fork() -> bool:
    """Whether tasks may run in processes that start as copies of this one: on Linux, with several torch threads."""
    return sys.platform == "linux" and torch.get_num_threads() > 1


def forked_results(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield `work(item)` for each item, in order, from as many processes as torch is set to use threads (`can_fork`).

    The processes are copies of this one, so `work` and items need not be pickled; results are. They end with this one.
    What `work` raises is raised here; `OSError` if a process dies.
    """
    count = min(torch.get_num_threads(), len(items))
    pool = ProcessPoolExecutor(count, get_context("fork"), initializer=_begin, initargs=(work, items))
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads: those of the pool above are idle, and the copies do not use it.
            warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
            results = pool.map(_run, range(len(items)))
        for result in results:
            yield pickle.loads(result)
    except BrokenProcessPool as error:
        raise OSError(
            "a process died, probably because memory ran out. Run it again with one thread: OMP_NUM_THREADS=1."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_task: tuple[Callable[[Any], Any], Sequence[Any]]


def _begin(work: Callable[[Any], Any], items: Sequence[Any]) -> None:
    """Prepare a process: it ends at once with Ctrl-C, and with its parent."""
    global _task
    _task = work, items
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PARENT_DIED, signal.SIGKILL)
    torch.set_num_threads(1)


def _run(index: int) -> bytes:
    """Pickled as bytes: torch would send its tensors as shared memory, which ends with the process."""
    work, items = _task
    return pickle.dumps(work(items[index]))
