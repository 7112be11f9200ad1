"""Robustness: what each corruption does to a scan, and the tables."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from trimesh import Trimesh

from shapespace import ShapeSpace
from shapespace.data.preprocess import PreprocessOptions, preprocess
from shapespace.data.store import ScanStore
from shapespace.datasets import get_dataset
from shapespace.evaluation import corruptions, robustness
from shapespace.evaluation.robustness import RobustnessOptions
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.quality import FitQuality
from shapespace.geometry import proximity
from shapespace.geometry.scan import Scan
from shapespace.io.units import UNITS
from shapespace.models import igr
from shapespace.rendering import renderer
from shapespace.tools import robustness as tool

pytestmark = pytest.mark.usefixtures("first_fit_only")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_synthetic: Callable[[Path], Path]) -> Path:
    root = tmp_path_factory.mktemp("people")
    people = make_synthetic(root / "synthetic")
    return preprocess(get_dataset("synthetic"), people, root / "people.h5", PreprocessOptions(points=3000)).path


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    sizes = igr.IGRConfig(code_dim=4, width=24, depth=3, skip=1, init_radius=0.4, encoder_points=128)
    model = igr.build_igr(sizes).eval()
    with torch.no_grad():
        for entry in (model.decoder.code_in, model.decoder.code_skip):
            entry.weight.mul_(0.1)  # codes change the sphere a little: no fit loses its surface
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    ShapeSpace(model, sizes, scale=1.25, metadata={"weights": {}}).save(path)
    return str(path)


QUICK = LMOptions(num_points=128, max_steps=5, trial_steps=1, free_space_points=32)


def test_every_case_ends_in_a_row(
    store: Path,
    untrained: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(renderer, "MAX_POINT_MARKERS", 200)  # the picture has a row of scans
    tool.main(untrained, store, lm=QUICK, split=None, limit=1, resolution=16, out=tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "robustness.json").read_text())["rows"]
    assert [row["case"] for row in rows] == list(corruptions.CORRUPTIONS)
    assert all(np.isfinite(row["completeness"]) for row in rows)
    assert [row["case"] for row in rows if "in_interval" in row] == ["complete", "single_view"]
    assert all(0 <= row.get("in_interval", 0) <= 1 for row in rows)
    printed = capsys.readouterr().out
    assert " 1.00 / 1.00 |" in printed
    assert "of the ground truth within 1.645 standard deviations" in printed
    assert (tmp_path / "out" / "robustness.png").exists()


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
    content = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert "rows" not in content
    assert len(content["random_cases"]) == 3
    assert all(row["outcome"] != robustness.CRASHED for row in content["random_cases"]), content["random_cases"]
    assert [row["kind"] for row in content["non_people"]] == ["people"] * 2 + ["others"] * 7
    printed = capsys.readouterr().out
    assert "3 random cases" in printed
    assert "| a person upside down |" in printed
    assert not (tmp_path / "out" / "robustness.png").exists()


SURE, OOD, UNSURE = (FitQuality(0.002, 0.008, score, 0.3) for score in (2.0, 9.0, 5.0))


@pytest.mark.parametrize(
    ("error", "quality", "outcome"),
    [
        (5.0, SURE, robustness.GOOD),
        (5.0, OOD, robustness.GOOD_OOD),
        (5.0, UNSURE, robustness.GOOD_LOW_CONFIDENCE),
        (50.0, OOD, robustness.BAD_OOD),
        (50.0, UNSURE, robustness.BAD_LOW_CONFIDENCE),
        (50.0, SURE, robustness.BAD_NO_WARNING),
        (ValueError("no"), None, robustness.REFUSED),
        (KeyError("no"), None, robustness.CRASHED),
    ],
)
def test_how_a_drawn_case_ended(
    error: float | Exception,
    quality: FitQuality | None,
    outcome: str,
    store: Path,
    untrained: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fitted(*_: object) -> tuple[float, FitQuality | None]:
        if isinstance(error, Exception):
            raise error
        return error, quality

    monkeypatch.setattr(robustness, "fit_as_file", fitted)
    scans = ScanStore(store)
    arguments = (ShapeSpace.load(untrained), scans, scans.scan_names(None), 0, RobustnessOptions(QUICK, 16), Path())
    first, again = (robustness.run_random_case(*arguments) for _ in range(2))
    assert first["outcome"] == outcome
    assert first == again  # drawn by the seed
    table = robustness.random_case_table([first])
    assert [outcome, "1"] in table.lines
    assert ("- bad fit" in table.note) == (outcome == robustness.BAD_NO_WARNING)
    assert ("KeyError" in table.note) == (outcome == robustness.CRASHED)


@pytest.mark.slow
def test_twenty_drawn_cases_of_the_space_that_comes_along(store: Path, tmp_path: Path) -> None:
    lm = LMOptions(num_points=512, free_space_points=256, max_steps=6, trial_steps=3)
    tool.main("humans", store, lm=lm, split=None, random_cases=20, resolution=48, out=tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "robustness.json").read_text())["random_cases"]
    assert len({tuple(row["corruptions"]) for row in rows}) > 10
    assert all(row["outcome"] != robustness.CRASHED for row in rows), rows
    assert all(row["message"].endswith(".") for row in rows if row["outcome"] == robustness.REFUSED)


def test_an_unknown_case_is_named(store: Path) -> None:
    with pytest.raises(ValueError, match=r"--cases foggy: unknown\. Choose from complete"):
        tool.main("humans", store, lm=LMOptions(), cases=("foggy",))


def test_what_is_done_to_a_scan() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (5000, 3)).astype(np.float32) * np.float32([0.2, 0.8, 0.1])
    scan = Scan("s", points, points)
    moved = corruptions.add_noise(scan, rng)
    assert np.std(moved.points - points) == pytest.approx(0.005, rel=0.05)
    wrong = corruptions.add_outliers(scan, rng)
    assert (np.abs(wrong.points - points).max(axis=1) > 0).mean() == pytest.approx(0.3, abs=0.03)
    assert moved.normals is None
    assert wrong.normals is None
    for seed in range(len(UNITS) + 3):
        back = corruptions.guess_random_unit(scan, np.random.default_rng(seed))
        np.testing.assert_allclose(back.points, points, rtol=1e-4, atol=1e-6)


def test_furniture_stands_on_the_floor_and_touches_nobody(make_body: Callable[..., Trimesh]) -> None:
    ground_truth = make_body()
    scan = Scan.from_mesh(ground_truth, "s", dtype=np.float32).sample(4000, np.random.default_rng(0))
    low = ground_truth.bounds[0, 1]
    for seed in range(3):
        chair = corruptions.place_beside(corruptions.chair(), ground_truth, np.random.default_rng(seed))
        assert chair.bounds[0, 1] == pytest.approx(low, abs=1e-6)
        apart = proximity.closest_point(chair.sample(2000, seed=0), ground_truth)[0].min()
        assert 0.10 < apart < 0.25
    on = corruptions.add_points(scan, ground_truth, corruptions.floor(ground_truth), np.random.default_rng(0))
    np.testing.assert_array_equal(on.points[: len(scan)], scan.points)
    more = on.points[len(scan) :]
    floor_area = 8.16  # square meters: both sides of 2 x 2 m, and the edges
    assert len(more) / len(scan) == pytest.approx(floor_area / ground_truth.area, rel=0.01)
    assert more[:, 1].max() == pytest.approx(low, abs=1e-5)
    assert on.normals is not None
