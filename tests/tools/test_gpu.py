"""The script of `make gpu`, on the CPU: what differs, fails or takes too long is recorded, and nothing else is lost."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from shapespace.tools import _gpu, _gpu_checks
from shapespace.tools._gpu import main, run_checks
from shapespace.tools._gpu_checks import Row, compare


def test_results_are_compared_and_failures_recorded(tmp_path: Path) -> None:
    def fails() -> Row:
        raise RuntimeError("CUDA error: out of memory\nand more")

    checks = [
        ("fit", "equal", lambda: Row("", "", 1.0, 0.5, 0.1, 0.2, "mm")),
        ("fit", "differs", lambda: Row("", "", 1.0, 0.5, 0.3, 0.2, "mm")),
        ("fit", "no number", lambda: Row("", "", 1.0, 0.5, float("nan"), 0.2, "mm")),
        ("step", "fails", fails),
        ("step", "endless", lambda: time.sleep(60)),
        ("api", "late", lambda: Row("", "")),
    ]
    rows = run_checks(checks, tmp_path, minutes=0.5 / 60)  # type: ignore[arg-type]
    assert [row.passed for row in rows] == [True, False, False, False, False, False]
    assert rows[3].error == "RuntimeError: CUDA error: out of memory"
    assert "not finished" in rows[4].error
    assert "not run" in rows[5].error
    stored = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["name"] for row in stored] == [name for _, name, _ in checks]
    assert [row["passed"] for row in stored] == [row.passed for row in rows]
    page = (tmp_path / "gpu.md").read_text()
    assert "| differs " in page
    assert "FAILED" in page
    assert "out of memory\nand more" in (tmp_path / "gpu.log").read_text()


def test_a_result_on_the_device_is_compared_with_that_of_the_cpu() -> None:
    calls = []

    def work(device: str) -> np.ndarray:
        calls.append(device)
        return np.zeros((2, 3)) if device == "cpu" else np.array([[0, 0, 0], [0.003, 0, 0.004]])

    row = compare(work, "cuda:fake", _gpu_checks._rows, 4.9, "mm")
    assert row.deviation == pytest.approx(5.0)
    assert not row.passed
    assert calls == ["cpu", "cuda:fake", "cuda:fake"]  # the first call on a device is not timed
    assert _gpu_checks._difference(np.eye(3), np.eye(3)[::-1], np.max) == 0  # vertices in any order
    with pytest.raises(ValueError, match="shapes differ"):
        _gpu_checks._rows(np.zeros((2, 3)), np.zeros((3, 3)))


def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU here"):
        main(out=tmp_path)
    with pytest.raises(ValueError, match=r"no section 'fti'\. Give some of step, fit"):
        main("cpu", sections=("fti",), quick=True, out=tmp_path)


def test_the_small_form_passes_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some checks of each section but the trainings."""
    wanted = ("one scan, humans_v1", "cells, humans_v1", "points, 8 x 32, eager", "humans_v1: sample")
    every = _gpu.list_checks

    def some(*arguments: object, **named: object) -> list[_gpu_checks.Check]:
        return [check for check in every(*arguments, **named) if check[1].endswith(wanted)]  # type: ignore[arg-type]

    monkeypatch.setattr(_gpu, "list_checks", some)
    main("cpu", sections=("fit", "step", "api"), quick=True, out=tmp_path)
    assert "4 of 4 checks passed" in capsys.readouterr().out
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert all(row["deviation"] == 0 for row in rows)


@pytest.mark.slow
def test_all_of_the_small_form_passes_on_the_cpu(tmp_path: Path) -> None:
    main("cpu", quick=True, minutes=30, out=tmp_path)
