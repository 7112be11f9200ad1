"""Every experiment of the IGR paper, once on small data."""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trimesh import creation

from shapespace.data.preprocess import PreprocessOptions, preprocess
from shapespace.datasets import get_dataset
from shapespace.geometry.scan import Scan
from shapespace.io.scan_files import write_mesh, write_scan
from shapespace.tools import reproduce
from shapespace.tools.__main__ import main
from shapespace.training.run import Run

SMALL = """
model: {width: 48, depth: 4, skip: 2, init_radius: null, encoder: autodecoder, code_dim: 0}
batch: {scans: 1, points: 512, surface_points: 128, half_extent: 1.0}
optim: {max_steps: 60, lr: 3.0e-3, schedule: cosine}
weights: {surface: 3, normal: 0.3, eikonal: 0.1, tangent_plane: 3, unsigned_distance: 1, code_reg: 0}
"""


@pytest.fixture(scope="module")
def surfaces() -> Iterator[None]:
    """The known surfaces are made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "known_surfaces", cache(reproduce.known_surfaces))
        yield


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call `shapespace reproduce` with the small config; returns what it prints."""
    (tmp_path / "small.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)

    def called(*words: object, fails: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", ["shapespace", "reproduce", *map(str, words)])
        if fails:
            with pytest.raises(SystemExit):
                main()
            return capsys.readouterr().err
        main()
        return capsys.readouterr().out

    return called


SINGLE = ("--config", "small.yaml", "--no-detail", "--resolution", 32)


@pytest.mark.usefixtures("surfaces")
def test_known_surfaces(call: Callable[..., str], tmp_path: Path) -> None:
    printed = call("known-surfaces", "--surfaces", "sphere", "--points", 2000, *SINGLE, "--out", "known")
    assert "| sphere" in printed
    (row,) = json.loads((tmp_path / "known" / "rows.json").read_text())["rows"]
    assert 0 < row["relative"] < 0.5
    assert row["sign"] > 0.95
    assert "no known surface 'teapot'. There are sphere" in call("known-surfaces", "--surfaces", "teapot", fails=True)


@pytest.mark.usefixtures("surfaces")
def test_known_surfaces_continue_after_a_kill(
    call: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the threads of the parent do not exist in a fork
    (tmp_path / "small.yaml").write_text(SMALL + "save_every: 20\n")
    line = ("known-surfaces", "--surfaces", "sphere", "torus", "--points", 2000, *SINGLE, "--out")
    call(*line, "whole")
    steps: list[tuple[str, int]] = []
    save = Run.save_checkpoint

    def saved(run: Run, state: dict[str, Any]) -> None:
        save(run, state)
        steps.append((run.folder.name, state["step"]))
        if steps[-1] == ("torus", 40) and os.getpid() != pytest_pid:
            os.kill(os.getpid(), signal.SIGKILL)

    pytest_pid = os.getpid()
    monkeypatch.setattr(Run, "save_checkpoint", saved)
    child = multiprocessing.get_context("fork").Process(target=call, args=(*line, "killed"))
    child.start()
    child.join(100)
    assert child.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "rows.json").exists()
    call(*line, "killed")
    assert steps[0] == ("torus", 60)  # neither the sphere nor the first forty steps again
    whole, killed = (json.loads((tmp_path / out / "rows.json").read_text())["rows"] for out in ("whole", "killed"))
    assert [row["surface"] for row in killed] == ["sphere", "torus"]
    assert killed == whole
    steps.clear()
    call(*line, "killed")
    assert steps == []
    printed = call(*line, "killed", "--seed", 1, fails=True)
    assert "killed/sphere: holds a training with other settings (points was " in printed
    torch.set_num_threads(threads)


def test_the_folder_of_a_benchmark(call: Callable[..., str], tmp_path: Path) -> None:
    ball = creation.icosphere(subdivisions=3, radius=30.0)
    write_mesh(tmp_path / "data" / "ground_truth" / "gargoyle.ply", ball)
    write_scan(
        tmp_path / "data" / "scans" / "gargoyle.ply",
        Scan("", ball.vertices.astype(np.float32), ball.vertex_normals.astype(np.float32)),
    )
    printed = call("benchmark", "data", *SINGLE, "--out", "bench")
    line = next(line for line in printed.splitlines() if line.startswith("| gargoyle"))
    assert "0.16" in line  # the published value
    (row,) = json.loads((tmp_path / "bench" / "rows.json").read_text())["rows"]
    assert 0.05 < row["chamfer"] < 3  # of a radius of 30, in the same unit
    assert row["hausdorff"] > row["chamfer"]
    assert (tmp_path / "bench" / "benchmark.png").exists()


def test_detail_by_three_methods(call: Callable[..., str], tmp_path: Path, synthetic_root: Path) -> None:
    pytest.importorskip("pymeshlab")
    store = preprocess(get_dataset("synthetic"), synthetic_root, tmp_path / "people.h5", PreprocessOptions(points=3000))
    printed = call("detail", store.path, "--limit", 1, *SINGLE, "--out", "detail")
    for method in ("IGR", "regression of distances", "screened Poisson"):
        assert f"| {method}" in printed
    assert (tmp_path / "detail" / "detail.png").exists()


@pytest.mark.slow
def test_the_shape_space(call: Callable[..., str], tmp_path: Path, synthetic_root: Path) -> None:
    store = preprocess(get_dataset("synthetic"), synthetic_root, tmp_path / "people.h5", PreprocessOptions(points=3000))
    split = next(iter(json.loads((synthetic_root / "splits" / "train.json").read_text())))
    assert split == "scans"
    words = ("--config", "tiny", "--minutes", 0.05, "--tests", "train", "--limit", 1, "--resolution", 32)
    printed = call("shape-space", store.path, *words, "--methods", "auto", "--out", "space")
    assert "Published for unseen scans of D-FAUST" in printed
    assert (tmp_path / "space" / "report.html").exists()
    assert (tmp_path / "space" / "curves.png").exists()
