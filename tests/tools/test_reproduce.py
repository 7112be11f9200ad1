"""The paper's experiments, each once on something small."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from trimesh import creation

from shapespace.data.preprocess import PreprocessOptions, preprocess
from shapespace.datasets import get_dataset
from shapespace.geometry.scan import Scan
from shapespace.io.scan_files import write_mesh, write_scan
from shapespace.tools.__main__ import main

SMALL = """
model: {width: 48, depth: 4, skip: 2, radius: null, encoder: table, code: 0}
batch: {scans: 1, points: 512, surface: 128, half: 1.0}
optim: {steps: 60, lr: 3.0e-3, schedule: cosine}
weights: {surface: 3, normal: 0.3, eikonal: 0.1, tangent: 3, far: 1, code: 0}
"""


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call `shapespace reproduce` with the small config: what it prints."""
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


def test_known_surfaces(call: Callable[..., str], tmp_path: Path) -> None:
    said = call("known-surfaces", "--surfaces", "sphere", "--points", 2000, *SINGLE, "--out", "known")
    assert "| sphere" in said
    (row,) = json.loads((tmp_path / "known" / "rows.json").read_text())["rows"]
    assert 0 < row["relative"] < 0.5
    assert row["sign"] > 0.95
    assert "no known surface 'teapot': there are sphere" in call("known-surfaces", "--surfaces", "teapot", fails=True)


def test_a_benchmark_s_folder(call: Callable[..., str], tmp_path: Path) -> None:
    ball = creation.icosphere(subdivisions=3, radius=30.0)
    write_mesh(tmp_path / "data" / "ground_truth" / "gargoyle.ply", ball)
    write_scan(
        tmp_path / "data" / "scans" / "gargoyle.ply",
        Scan("", ball.vertices.astype(np.float32), ball.vertex_normals.astype(np.float32)),
    )
    said = call("benchmark", "data", *SINGLE, "--out", "bench")
    line = next(line for line in said.splitlines() if line.startswith("| gargoyle"))
    assert "0.16" in line  # published, beside
    (row,) = json.loads((tmp_path / "bench" / "rows.json").read_text())["rows"]
    assert 0.05 < row["chamfer"] < 3  # of a radius of 30, in the same unit
    assert row["hausdorff"] > row["chamfer"]
    assert (tmp_path / "bench" / "benchmark.png").exists()


def test_detail_three_ways(call: Callable[..., str], tmp_path: Path, synthetic_root: Path) -> None:
    pytest.importorskip("pymeshlab")
    store = preprocess(get_dataset("synthetic"), synthetic_root, tmp_path / "people.h5", PreprocessOptions(points=3000))
    said = call("detail", store.path, "--limit", 1, *SINGLE, "--out", "detail")
    for way in ("IGR", "regression of distances", "screened Poisson"):
        assert f"| {way}" in said
    assert (tmp_path / "detail" / "detail.png").exists()


@pytest.mark.slow
def test_the_shape_space(call: Callable[..., str], tmp_path: Path, synthetic_root: Path) -> None:
    store = preprocess(get_dataset("synthetic"), synthetic_root, tmp_path / "people.h5", PreprocessOptions(points=3000))
    split = next(iter(json.loads((synthetic_root / "splits" / "train.json").read_text())))
    assert split == "scans"
    words = ("--config", "tiny", "--minutes", 0.05, "--tests", "train", "--limit", 1, "--resolution", 32)
    said = call("shape-space", store.path, *words, "--methods", "auto", "--out", "space")
    assert "published, D-FAUST" in said
    assert (tmp_path / "space" / "report.html").exists()
    assert (tmp_path / "space" / "curves.png").exists()
