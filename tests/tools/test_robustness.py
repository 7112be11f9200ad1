"""Spoilt scans: what is done to them, and the table."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from trimesh import Trimesh

from shapespace import ShapeSpace
from shapespace.data.preprocess import preprocess
from shapespace.data.store import ScanStore
from shapespace.datasets import get_dataset
from shapespace.evaluation import corruptions, robustness
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.quality import FitQuality
from shapespace.geometry import proximity
from shapespace.geometry.scan import Scan
from shapespace.io.units import UNITS
from shapespace.models import igr
from shapespace.tools import robustness as tool


@pytest.fixture
def store(tmp_path: Path, synthetic_root: Path) -> Path:
    return preprocess(get_dataset("synthetic"), synthetic_root, tmp_path / "people.h5", points=3000).path


@pytest.fixture
def untrained(tmp_path: Path) -> str:
    torch.manual_seed(0)
    sizes = igr.IGRConfig(code_dim=4, width=24, depth=3, skip=1, init_radius=0.4, encoder_points=128)
    model = igr.build_igr(sizes).eval()
    with torch.no_grad():
        for entry in (model.decoder.code_in, model.decoder.code_skip):
            entry.weight.mul_(0.1)  # codes change the sphere a little: no fit loses its surface
    path = tmp_path / "m.safetensors"
    ShapeSpace(model, sizes, scale=1.25, metadata={"weights": {}}).save(path)
    return str(path)


QUICK = LMOptions(num_points=128, max_steps=5, trial_steps=1, free_space_points=32)


def test_every_case_ends_in_a_row(
    store: Path, untrained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool.main(untrained, store, lm=QUICK, split=None, limit=1, resolution=16, out=tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "robust.json").read_text())["rows"]
    assert [row["case"] for row in rows] == list(corruptions.CORRUPTIONS)
    assert all(np.isfinite(row["completeness"]) for row in rows)
    assert [row["case"] for row in rows if "in_band" in row] == ["complete", "single_view"]
    assert all(0 <= row.get("in_band", 0) <= 1 for row in rows)
    said = capsys.readouterr().out
    assert " 1.00 / 1.00 |" in said
    assert "of the true surface within 1.645 deviations" in said
    assert (tmp_path / "out" / "robust.png").exists()


def test_drawn_cases_end_in_a_result_or_a_sentence(
    store: Path, untrained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what is no person is fitted and told of; no other case is fitted then."""
    tool.main(
        untrained,
        store,
        lm=QUICK,
        split=None,
        limit=2,
        non_people=True,
        random_cases=3,
        resolution=16,
        out=tmp_path / "out",
    )
    left = json.loads((tmp_path / "out" / "robust.json").read_text())
    assert "rows" not in left
    assert len(left["drawn"]) == 3
    assert all(row["end"] != robustness.BROKEN for row in left["drawn"]), left["drawn"]
    assert [row["kind"] for row in left["things"]] == ["people"] * 2 + ["others"] * 7
    said = capsys.readouterr().out
    assert "3 cases drawn" in said
    assert "| a person upside down |" in said
    assert not (tmp_path / "out" / "robust.png").exists()


SURE, ODD, UNSURE = (FitQuality(0.002, 0.008, oddness, 0.3) for oddness in (2.0, 9.0, 5.0))


@pytest.mark.parametrize(
    ("error", "verdict", "end"),
    [
        (5.0, SURE, robustness.WELL_FITTED),
        (5.0, ODD, robustness.ODD),
        (5.0, UNSURE, robustness.UNSURE),
        (50.0, ODD, robustness.POOR_AND_ODD),
        (50.0, UNSURE, robustness.POOR_AND_UNSURE),
        (50.0, SURE, robustness.UNNAMED),
        (ValueError("no"), None, robustness.REFUSED),
        (KeyError("no"), None, robustness.BROKEN),
    ],
)
def test_how_a_drawn_case_ended(
    error: float | Exception,
    verdict: FitQuality | None,
    end: str,
    store: Path,
    untrained: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fitted(*_: object) -> tuple[float, FitQuality | None]:
        if isinstance(error, Exception):
            raise error
        return error, verdict

    monkeypatch.setattr(robust, "_as_a_file", fitted)
    packed = ScanStore(store)
    arguments = (ShapeSpace.load(untrained), packed, packed.scan_names(None), QUICK, 16, [0, 0], Path())
    first, again = (robustness._tried(*arguments) for _ in range(2))
    assert first["end"] == end
    assert first == again  # drawn by the seed
    page = robustness._page_of_drawn([first])
    assert ("- badly" in page) == (end == robustness.UNNAMED)
    assert ("KeyError" in page) == (end == robustness.BROKEN)


@pytest.mark.slow
def test_twenty_drawn_cases_of_the_space_that_comes_along(store: Path, tmp_path: Path) -> None:
    lm = LMOptions(num_points=512, free_space_points=256, max_steps=6, trial_steps=3)
    tool.main("humans", store, lm=lm, split=None, random_cases=20, resolution=48, out=tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "robust.json").read_text())["drawn"]
    assert len({tuple(row["how"]) for row in rows}) > 10
    assert all(row["end"] != robustness.BROKEN for row in rows), rows
    assert all(row["said"].endswith(".") for row in rows if row["end"] == robustness.REFUSED)


def test_an_unknown_case_is_named(store: Path) -> None:
    with pytest.raises(ValueError, match="no case 'foggy': there are complete"):
        tool.main("humans", store, lm=LMOptions(), cases=("foggy",))


def test_what_is_done_to_a_scan() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (5000, 3)).astype(np.float32) * np.float32([0.2, 0.8, 0.1])
    scan = Scan("s", points, points)
    moved = corruptions._noisy(scan, rng)
    assert np.std(moved.points - points) == pytest.approx(0.005, rel=0.05)
    wrong = corruptions._with_outliers(scan, rng)
    assert (np.abs(wrong.points - points).max(axis=1) > 0).mean() == pytest.approx(0.3, abs=0.03)
    assert moved.normals is None
    assert wrong.normals is None
    for seed in range(len(UNITS) + 3):
        back = corruptions._in_a_unit(scan, np.random.default_rng(seed))
        np.testing.assert_allclose(back.points, points, rtol=1e-4, atol=1e-6)


def test_furniture_stands_on_the_floor_and_touches_nobody(make_body: Callable[..., Trimesh]) -> None:
    truth = make_body()
    whole = Scan("s", np.asarray(truth.vertices, dtype=np.float32), faces=np.asarray(truth.faces, dtype=np.int32))
    scan = whole.sample(4000, np.random.default_rng(0))
    low = truth.bounds[0, 1]
    for seed in range(3):
        chair = corruptions._aside(corruptions._chair(), truth, np.random.default_rng(seed))
        assert chair.bounds[0, 1] == pytest.approx(low, abs=1e-6)
        apart = proximity.closest_point(chair.sample(2000, seed=0), truth)[0].min()
        assert 0.10 < apart < 0.25
    on = corruptions._with_points_of(scan, truth, corruptions._floor(truth), np.random.default_rng(0))
    np.testing.assert_array_equal(on.points[: len(scan)], scan.points)
    more = on.points[len(scan) :]
    assert len(more) / len(scan) == pytest.approx(8.16 / truth.area, rel=0.01)  # both sides of two metres squared
    assert more[:, 1].max() == pytest.approx(low, abs=1e-5)
    assert on.normals is not None
