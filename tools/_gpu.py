"""Check and time the package on a GPU against the CPU, in at most eight minutes: `make gpu`.

    python -m shapespace.tools._gpu --out runs/gpu
    python -m shapespace.tools._gpu --device cpu --quick --out runs/gpu_quick        (the script itself, without a GPU)

Every check computes the same on the CPU and on the device, compares the results with a bound, and times both. A check
that fails does not end the others. `gpu.json` and `gpu.md` are written anew after every check, and `gpu.log` has the
tracebacks. The exit code is 1 if a check failed or was not run.
"""

import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from shapespace.evaluation.scores import markdown_table, write_results
from shapespace.io.atomic import make_folder
from shapespace.tools._gpu_checks import Check, Row, list_checks
from shapespace.training.run import describe_hardware


def main(
    device: Literal["cuda", "cpu"] = "cuda",
    *,
    sections: tuple[str, ...] = ("fit", "step", "api", "train"),
    quick: bool = False,
    minutes: float = 8.0,
    out: Path = Path("runs/gpu"),
) -> None:
    """Run all checks and write a table.

    Args:
        device: Device that is compared with the CPU.
        sections: Sections to run, in this order.
        quick: Small models and few points, to test the script.
        minutes: Time after which the present check is ended and the others are not run.
        out: Folder for the results.

    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here, or torch has no CUDA. With --device cpu --quick the script itself is tested.")
    make_folder(out)
    checks = list_checks(device, sections, out, quick=quick)
    rows = run_checks(checks, out, minutes)
    failed = [f"{row.section}: {row.name}" for row in rows if not row.passed]
    print((out / "gpu.md").read_text())
    print(f"{len(rows) - len(failed)} of {len(rows)} checks passed; table in {out / 'gpu.md'}")
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}. Tracebacks are in {out / 'gpu.log'}")


def run_checks(checks: Sequence[Check], out: Path, minutes: float) -> list[Row]:
    """Rows of all checks, also of those that failed; the results are written after each."""
    until = time.monotonic() + 60 * minutes
    rows: list[Row] = []
    log = out / "gpu.log"
    log.write_text("")
    for section, name, check in checks:
        began = time.monotonic()
        try:
            with _time_limit(until - began):
                row = check()
        except Exception as error:  # of any kind: the other checks are run
            words = str(error).strip().splitlines() or [""]
            row = Row(section, name, error=f"{type(error).__name__}: {words[0]}"[:200])
            with log.open("a") as file:
                file.write(f"{section}: {name}\n{traceback.format_exc()}\n")
        rows.append(replace(row, section=section, name=name))
        print(f"{section}: {name}: {row.error or 'ok'} ({time.monotonic() - began:.1f} s)", file=sys.stderr)
        _write(rows, out)
    return rows


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in the block after these seconds; at once if there are none."""

    def end(*_: Any) -> None:
        raise TimeoutError("not finished in the time of the script: --minutes")

    if seconds <= 0:
        raise TimeoutError("not run: the time of the script is over (--minutes)")
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _write(rows: Sequence[Row], out: Path) -> None:
    lines = [["section", "check", "CPU", "device", "ratio", "difference", "bound", "result"]]
    lines += [_cells(row) for row in rows]
    hardware = f"{describe_hardware()}, {date.today()}"
    page = f"{markdown_table(lines, 2)}\n\n{hardware}. Differences in the unit of the bound.\n"
    content = {"machine": hardware, "rows": [{**asdict(row), "passed": row.passed} for row in rows]}
    write_results(out, "gpu", _finite(content), page)


def _cells(row: Row) -> list[str]:
    seconds = ["-" if value is None else f"{value:.4g} s" for value in (row.cpu_s, row.device_s)]
    ratio = f"{row.cpu_s / row.device_s:.2f}" if row.cpu_s is not None and row.device_s else "-"
    deviation = "-" if row.deviation is None else f"{row.deviation:.2g}"
    bound = "-" if row.bound is None else f"{row.bound:g} {row.unit}".strip()
    return [row.section, row.name, *seconds, ratio, deviation, bound, "ok" if row.passed else row.error or "FAILED"]


def _finite(content: dict[str, Any]) -> dict[str, Any]:
    """Content whose deviations that are no numbers are texts: JSON has none."""
    for row in content["rows"]:
        if row["deviation"] is not None and not np.isfinite(row["deviation"]):
            row["deviation"] = str(row["deviation"])
    return content


if __name__ == "__main__":
    tyro.cli(main)
