"""Scores against a store: exact meshes have zero error, missing ones are counted, missing ground truth is an error."""

from pathlib import Path

import numpy as np
import pytest
import trimesh

from shapespace.data.preprocess import PreprocessOptions, preprocess
from shapespace.data.store import ScanStore
from shapespace.datasets import get_dataset
from shapespace.evaluation.motion import acceleration_error, signed_offsets
from shapespace.evaluation.scores import make_score_report, score_meshes


def test_the_truth_scores_zero_and_nothing_is_counted_as_failed(synthetic_root: Path, tmp_path: Path) -> None:
    preprocess(get_dataset("synthetic"), synthetic_root, tmp_path / "store.h5", PreprocessOptions(points=500))
    store = ScanStore(tmp_path / "store.h5")
    first, second = store.scan_names("unseen_poses")
    predicted = [("unseen_poses", first, store.ground_truth(first)), ("unseen_poses", second, None)]
    names = ["surface_distance", "normal_consistency"]
    report = make_score_report(list(score_meshes(predicted, store, names)), names, {"method": "none"})
    column = report.summary["unseen_poses"]["surface_distance"]["completeness"]
    assert column["median"] == pytest.approx(0, abs=1e-3)
    assert (column["count"], column["failed"]) == (1, 1)
    assert report.summary["unseen_poses"]["normal_consistency"]["angle"]["median"] < 0.1


def test_a_scan_without_truth_is_named(make_raw: object, make_body: object, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    make_raw(make_body(), 0).export(tmp_path / "scans" / "one.ply")  # type: ignore[operator]
    preprocess(get_dataset("folder"), tmp_path / "scans", tmp_path / "store.h5", PreprocessOptions(points=500))
    store = ScanStore(tmp_path / "store.h5")
    with pytest.raises(ValueError, match=f"scan {store.names[0]} has no ground truth"):
        next(score_meshes([("all", store.names[0], None)], store, ["surface_distance"]))


def test_flicker_is_what_trembles_and_neither_motion_nor_an_error_that_stays() -> None:
    def ball(radius: float, x: float) -> trimesh.Trimesh:
        made = trimesh.creation.icosphere(3, radius)
        return made.apply_translation((x, 0, 0))

    ground_truth = [ball(1.0, 0.1 * t * t) for t in range(5)]
    wide = [ball(1.01, 0.1 * t * t) for t in range(5)]
    tremble = [ball(1.01 - 0.002 * (t % 2), 0.1 * t * t) for t in range(5)]
    assert np.mean(signed_offsets(wide[0], ground_truth[0])) == pytest.approx(10, abs=0.1)
    assert acceleration_error(
        [signed_offsets(*pair) for pair in zip(wide, ground_truth, strict=True)]
    ) == pytest.approx(0, abs=0.01)
    assert acceleration_error(
        [signed_offsets(*pair) for pair in zip(tremble, ground_truth, strict=True)]
    ) == pytest.approx(4, rel=0.02)
