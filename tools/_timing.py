"""Two ways to the same thing, timed in turn in one run, with their peak memory."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")
Variant = Callable[[], Result]


@dataclass(frozen=True)
class Figure:
    """One comparison."""

    section: str
    name: str
    reference_s: float
    ours_s: float
    ratio: float
    reference_mb: float | None
    ours_mb: float | None
    equal: bool | None
    """Both gave the same, to the tolerance that the tests state; None where nothing is compared."""


def compare(
    section: str,
    name: str,
    reference: Variant[Result],
    ours: Variant[Result],
    equal: Callable[[Result, Result], bool] | None,
    *,
    times: int,
    scale: tuple[float, float] = (1.0, 1.0),
) -> Figure:
    """Time both, after a first call of each that is not counted, and whose results are compared.

    `scale` is how many times what was timed the whole would be. With no `times`, the first calls are what counts.
    """
    began = time.perf_counter()
    first, reference_mb = _peak(reference)
    between = time.perf_counter()
    second, ours_mb = _peak(ours)
    ended = time.perf_counter()
    slow, fast = interleaved([reference, ours], times) if times else (between - began, ended - between)
    slow, fast = slow * scale[0], fast * scale[1]
    same = None if equal is None else bool(equal(first, second))
    return Figure(section, name, slow, fast, slow / fast, reference_mb, ours_mb, same)


def interleaved(ways: list[Variant[Result]], times: int) -> list[float]:
    """Median seconds of each, called in turn."""
    taken: list[list[float]] = [[] for _ in ways]
    for _ in range(times):
        for way, seconds in zip(ways, taken, strict=True):
            began = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    return [statistics.median(seconds) for seconds in taken]


HEADER = f"{'section':<7} {'what':<62} {'reference':>11} {'ours':>11} {'ratio':>8} {'memory, MB':>15}  same"


def show(figure: Figure, *, first: bool) -> None:
    """Print one row of the table, and its head before the first."""
    if first:
        print(HEADER)
    f = figure
    memory = "" if f.reference_mb is None or f.ours_mb is None else f"{f.reference_mb:,.0f} > {f.ours_mb:,.0f}"
    same = {True: "yes", False: "NO", None: "-"}[f.equal]
    print(
        f"{f.section:<7} {f.name:<62} {_seconds(f.reference_s):>11} {_seconds(f.ours_s):>11} {f.ratio:>7.2f}x "
        f"{memory:>15}  {same}",
        flush=True,
    )


def _seconds(value: float) -> str:
    return f"{1e3 * value:,.1f} ms" if value < 1 else f"{value:,.2f} s"


def _peak(way: Variant[Result]) -> tuple[Result, float | None]:
    """What a call gives, and the most memory (MB) that it held at once beyond what was held before."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        return way(), (torch.cuda.max_memory_allocated() - held) / 1e6
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or what earlier calls left to the heap would not be counted
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (Linux)
    except (OSError, AttributeError):
        return way(), None
    before = _status("VmRSS")
    result = way()
    return result, _status("VmHWM") - before


def _status(key: str) -> float:
    """A figure of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / 1e6
