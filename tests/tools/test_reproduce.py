"""Every experiment of the IGR paper, once on small data."""

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
model: {width: 48, depth: 4, skip: 2, init_radius: null, encoder: autodecoder, code_dim: 0}
batch: {scans: 1, points: 512, surface_points: 128, half_extent: 1.0}
optim: {max_steps: 60, lr: 3.0e-3, schedule: cosine}
weights: {surface: 3, normal: 0.3, eikonal: 0.1, tangent_plane: 3, unsigned_distance: 1, code_reg: 0}
"""


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


def test_known_surfaces(call: Callable[..., str], tmp_path: Path) -> None:
    printed = call("known-surfaces", "--surfaces", "sphere", "--points", 2000, *SINGLE, "--out", "known")
    assert "| sphere" in printed
    (row,) = json.loads((tmp_path / "known" / "rows.json").read_text())["rows"]
    assert 0 < row["relative"] < 0.5
    assert row["sign"] > 0.95
    assert "no known surface 'teapot'. There are sphere" in call("known-surfaces", "--surfaces", "teapot", fails=True)


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
