"""Sequences: frames fitted alone and jointly, and missing frames."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shapespace import ShapeSpace
from shapespace.evaluation import sequences
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.sequence import SequenceOptions
from shapespace.models import igr
from shapespace.tools import evaluate_sequences, synthesize


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "people"
    synthesize.main(folder, people=1, poses=2, test_people=1, poses_per_test_person=2, jobs=1)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = igr.IGRConfig(code_dim=4, width=24, depth=3, skip=1, init_radius=0.5, encoder_points=128)
    model = igr.build_igr(config, num_scans=3).eval()
    ShapeSpace(model, config, scale=1.25, metadata={"weights": {}}).save(tmp_path / "run" / "model.safetensors")
    return tmp_path / "run"


def test_sequences_are_scored_alone_and_jointly_and_with_frames_missing(
    data: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = LMOptions(num_points=64, free_space_points=0, max_steps=5, effective_samples=0.01)
    sequence = SequenceOptions()

    def evaluate(**options: object) -> None:
        defaults = {"lm": lm, "sequence": sequence, "resolution": 16, "people": 1, "cases": ("points",)}
        evaluate_sequences.main(str(run), data, **{**defaults, **options})  # type: ignore[arg-type]

    cameras = replace(sequences.VirtualScanner(), azimuths=4, elevations=(0.0,), columns=40, rows=60)
    monkeypatch.setattr(sequences, "VirtualScanner", lambda: cameras)
    evaluate(frames=5)
    content = json.loads((run / "motion" / "sequences.json").read_text())
    settings = content["settings"]
    assert content["format"] == 2
    assert (settings["frames"], settings["sequence"]["acceleration_std"]) == (5, sequence.acceleration_std)
    rows = {row["fit"]: row for row in content["rows"]}
    assert list(rows) == [sequences.ALONE, sequences.JOINT, sequences.MIDPOINT, sequences.INTERPOLATED]
    assert {row["motion"] for row in rows.values()} == {"01/walk"}
    assert all(row["completeness"] > 0 and row["accuracy"] > 0 for row in rows.values())
    assert rows[sequences.JOINT]["acceleration_error"] < rows[sequences.ALONE]["acceleration_error"]
    assert rows[sequences.INTERPOLATED]["acceleration_error"] is None  # of one frame
    printed = capsys.readouterr().out
    assert "| points | missing: interpolated by the joint fit" in printed
    assert (run / "motion" / "sequences.md").read_text() in printed
    for options, sentence in (
        ({"frames": 4}, "--frames 4: must be between 5 and 40, the length of a clip"),
        ({"frames": 41}, "--frames 41: must be between 5 and 40"),
        ({"frames": 5, "split": "nowhere"}, "--split nowhere: no person of this dataset is in it. Choose another"),
        ({"frames": 5, "cases": ("wet",)}, "--cases wet: unknown. Choose from complete, encoded"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            evaluate(**options)
