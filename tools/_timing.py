"""Time two implementations in turn, with their peak memory, and compare their results."""

import ctypes
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from trimesh import Trimesh

from shapespace.geometry.proximity import mutual_nearest

Item = TypeVar("Item")
Result = TypeVar("Result")
Variant = Callable[[], Result]

MATMUL_ROWS, MATMUL_CALLS = 4096, 20  # of the matrix product that measures the speed of the machine; arbitrary


@dataclass(frozen=True)
class Comparison:
    """Times (s) and peak memory (MB) of the reference and of our implementation."""

    section: str
    name: str
    reference_s: float
    ours_s: float
    ratio: float
    reference_mb: float | None
    ours_mb: float | None
    equal: bool | None
    """Whether the results are equal within the tolerance of the tests; None if they are not compared."""


def compare(
    section: str,
    name: str,
    reference: Variant[Result],
    ours: Variant[Result],
    equal: Callable[[Result, Result], bool] | None,
    *,
    times: int,
    scale: tuple[float, float] = (1.0, 1.0),
) -> Comparison:
    """Time both after a first call of each, which gives the results and the memory.

    `scale` multiplies the times of parts of the work. With 0 `times` the first calls are timed.
    """
    began = time.perf_counter()
    first, reference_mb = _peak(reference)
    between = time.perf_counter()
    second, ours_mb = _peak(ours)
    ended = time.perf_counter()
    slow, fast = interleaved([reference, ours], times) if times else (between - began, ended - between)
    slow, fast = slow * scale[0], fast * scale[1]
    same = None if equal is None else bool(equal(first, second))
    return Comparison(section, name, slow, fast, slow / fast, reference_mb, ours_mb, same)


def compare_many_with_one(
    section: str, name: str, work: Callable[[Sequence[Item]], object], items: Sequence[Item]
) -> Comparison:
    """Compare `work` on all items in one call, for each item, with three calls on one item each."""
    some = items[:: max(1, len(items) // 3)][:3]
    return compare(
        section,
        name,
        lambda: [work([one]) for one in some],
        lambda: work(items),
        None,
        times=0,
        scale=(1 / len(some), 1 / len(items)),
    )


def interleaved(variants: list[Variant[Result]], times: int) -> list[float]:
    """Median seconds of each variant; the variants are called in turn."""
    taken: list[list[float]] = [[] for _ in variants]
    for _ in range(times):
        for variant, seconds in zip(variants, taken, strict=True):
            began = time.perf_counter()
            variant()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    return [statistics.median(seconds) for seconds in taken]


HEADER = f"{'section':<7} {'what':<62} {'reference':>11} {'ours':>11} {'ratio':>8} {'memory, MB':>15}  equal"


def show(comparison: Comparison, *, first: bool) -> None:
    """Print one row of the table, with the header before the first."""
    if first:
        print(HEADER)
    c = comparison
    memory = "" if c.reference_mb is None or c.ours_mb is None else f"{c.reference_mb:,.0f} > {c.ours_mb:,.0f}"
    equal = {True: "yes", False: "NO", None: "-"}[c.equal]
    print(
        f"{c.section:<7} {c.name:<62} {_seconds(c.reference_s):>11} {_seconds(c.ours_s):>11} {c.ratio:>7.2f}x "
        f"{memory:>15}  {equal}",
        flush=True,
    )


def close(tolerance: float) -> Callable[[Tensor, Tensor], bool]:
    """Comparison of two tensors by their relative distance."""
    return lambda a, b: bool((a - b).norm() <= tolerance * a.norm())


def same_vertices(a: Trimesh, b: Trimesh) -> bool:
    """Whether every vertex of each mesh is a vertex of the other (to 1e-6)."""
    return max(distances.max() for distances in mutual_nearest(a.vertices, b.vertices)) < 1e-6


def _seconds(value: float) -> str:
    return f"{1e3 * value:,.1f} ms" if value < 1 else f"{value:,.2f} s"


def _peak(variant: Variant[Result]) -> tuple[Result, float | None]:
    """Result of a call, and its peak memory above the memory in use before (MB); None where it cannot be measured."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return variant(), (torch.cuda.max_memory_allocated() - before) / 1e6
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else memory that earlier calls left in the heap is not counted
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak (Linux)
    except (OSError, AttributeError):
        return variant(), None
    resident = _status("VmRSS")
    result = variant()
    return result, _status("VmHWM") - resident


def _status(key: str) -> float:
    """Memory of this process by `/proc/self/status` (MB)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / 1e6


def with_precision(precision: str, variant: Variant[Result]) -> Variant[Result]:
    """The variant under this matmul precision (`torch.set_float32_matmul_precision`)."""

    def under() -> Result:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            return variant()
        finally:
            torch.set_float32_matmul_precision(before)

    return under


def matmul(width: int, device: torch.device, precision: str) -> Variant[None]:
    """`MATMUL_CALLS` matrix products of `MATMUL_ROWS` x width x width."""
    a, b = torch.randn(MATMUL_ROWS, width, device=device), torch.randn(width, width, device=device)

    def products() -> None:
        for _ in range(MATMUL_CALLS):
            torch.mm(a, b)

    return with_precision(precision, products)


def share_of_peak(
    section: str, name: str, operations: float, width: int, matmul_seconds: float, seconds: float
) -> Comparison:
    """Compare the floating-point operations of some work, at the speed of `matmul`, with its time."""
    peak = MATMUL_CALLS * 2 * MATMUL_ROWS * width**2 / matmul_seconds
    rate = f"{name}: {operations / seconds / 1e9:,.0f} GFLOP/s; reference: matmul alone, {peak / 1e9:,.0f}"
    return Comparison(section, rate, operations / peak, seconds, operations / peak / seconds, None, None, None)


_TRAINING = """
import torch
net = torch.nn.Sequential(*(layer for _ in range(4) for layer in (torch.nn.Linear(512, 512), torch.nn.Softplus(100))))
while True:
    net(torch.randn(4096, 512)).sum().backward()
"""


@contextmanager
def other_trainings(processes: int) -> Iterator[None]:
    """Run this many other processes that train a network, as on a shared machine."""
    busy = [subprocess.Popen([sys.executable, "-c", _TRAINING]) for _ in range(processes)]
    try:
        time.sleep(5)  # until they have imported torch
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()
