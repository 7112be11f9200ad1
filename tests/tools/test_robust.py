"""Spoilt scans: what is done to them, and the table."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from shapespace import ShapeSpace, build
from shapespace.data.files import UNITS
from shapespace.data.pack import pack
from shapespace.data.scan import Scan
from shapespace.datasets import find_recipe
from shapespace.fit import LMOptions
from shapespace.tools import robust


@pytest.fixture
def store(tmp_path: Path, synthetic_root: Path) -> Path:
    return pack(find_recipe("synthetic"), synthetic_root, tmp_path / "people.h5", points=3000).path


def test_every_case_ends_in_a_row(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    sizes = build.IGRSizes(code=4, width=24, depth=3, skip=1, radius=0.4, encoder_points=128)
    ShapeSpace(build.igr(sizes).eval(), sizes, scale=1.25, about={"weights": {}}).save(tmp_path / "m.safetensors")
    robust.main(
        str(tmp_path / "m.safetensors"),
        store,
        lm=LMOptions(points=128, steps=5, trial=1, free=32),
        split=None,
        limit=1,
        resolution=16,
        out=tmp_path / "out",
    )
    rows = json.loads((tmp_path / "out" / "robust.json").read_text())["rows"]
    assert [row["case"] for row in rows] == list(robust.CASES)
    assert all(np.isfinite(row["truth_to_found"]) for row in rows)
    said = capsys.readouterr().out
    assert "| 1.00 / 1.00 |" in said
    assert (tmp_path / "out" / "robust.png").exists()


def test_an_unknown_case_is_named(store: Path) -> None:
    with pytest.raises(ValueError, match="no case 'foggy': there are complete"):
        robust.main("humans", store, lm=LMOptions(), cases=("foggy",))


def test_what_is_done_to_a_scan() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (5000, 3)).astype(np.float32) * np.float32([0.2, 0.8, 0.1])
    scan = Scan("s", points, points)
    moved = robust._noisy(scan, rng)
    assert np.std(moved.points - points) == pytest.approx(0.005, rel=0.05)
    wrong = robust._with_outliers(scan, rng)
    assert (np.abs(wrong.points - points).max(axis=1) > 0).mean() == pytest.approx(0.3, abs=0.03)
    assert moved.normals is None
    assert wrong.normals is None
    for seed in range(len(UNITS) + 3):
        back = robust._in_a_unit(scan, np.random.default_rng(seed))
        np.testing.assert_allclose(back.points, points, rtol=1e-4, atol=1e-6)
