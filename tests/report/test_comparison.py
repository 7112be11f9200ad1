"""What is gathered is what was written, each under its own name, and what cannot be compared is named."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from shapespace.evaluation import metrics
from shapespace.evaluation.scores import ScoreReport, to_json
from shapespace.report import comparison, page
from shapespace.report.comparison import load_scores

SETTINGS = {"store": "people.h5", "resolution": 128, "components": "largest", "seed": 0}
Values = Sequence[float | None]


def score(
    folder: Path,
    surface: Values,
    *,
    split: str = "unseen_people",
    hands: Values = (),
    names: Sequence[str] = (),
    **settings: Any,
) -> None:
    """Scores of a split: truth → found is `surface`, found → truth twice as much, `hands` is of protocol parts."""
    rows: list[dict[str, Any]] = []
    for k, error in enumerate(surface):
        there = float("nan") if error is None else error
        rows.append({"name": names[k] if names else f"p/walk/{k}", "split": split})
        rows[-1]["surface"] = {"completeness": there, "accuracy": 2 * there}
        if hands:
            rows[-1]["parts"] = {"hands": hands[k], "feet": 1.0, "rest": 2.0}
    chosen = ("surface", "parts") if hands else ("surface",)
    ScoreReport(
        metrics={name: metrics.METRICS[name].description for name in chosen},
        units={name: metrics.METRICS[name].all_units for name in chosen},
        rows=rows,
        summary=metrics.summarize(rows),
        settings={**SETTINGS, "method": "lm", **settings},
    ).write(folder)


def train(folder: Path, *, minutes: float, steps: int, family: str = "igr") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"family": family}))
    torch.save({"step": steps, "seconds": 60 * minutes, "model": {"w": torch.zeros(3)}}, folder / "checkpoint.pt")
    return folder


def move(folder: Path, medians: Mapping[str, Any], **settings: Any) -> None:
    told = {"family": "igr", "data": "d", "split": "test", "pairs": 2, "steps": 5, "resolution": 96, **settings}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "motion.json").write_text(json.dumps(to_json({"settings": told, "medians": medians, "rows": []})))


def cells(table: page.Table) -> list[dict[str, str]]:
    return [dict(zip(table.head, line, strict=True)) for line in table.lines]


def test_a_run_is_gathered_with_what_its_training_took(tmp_path: Path) -> None:
    run = train(tmp_path / "grid", minutes=2.5, steps=700, family="voxel")
    score(run, [3.0, 1.0, 2.0], method="adam")
    score(run / "encode", [None, 4.0, 5.0], method="encode")
    first, second = load_scores([run])[0]
    assert [(one.run, one.family, one.method) for one in (first, second)] == (
        [("grid", "voxel", "adam"), ("grid", "voxel", "encode")]
    )
    assert (first.training_minutes, first.steps) == (2.5, 700)
    assert first.median("unseen_people", "surface", "completeness") == 2
    assert first.median("unseen_people", "iou", "iou") is None
    assert first.errors("unseen_people", "accuracy") == [6, 2, 4]
    assert second.errors("unseen_people", "completeness") == [None, 4, 5]
    assert (first.failed("unseen_people"), second.failed("unseen_people")) == (0, 1)
    assert load_scores([run, run / "encode", run])[0] == [first, second]  # once each


def test_what_the_scores_tell_of_the_training_goes_before_the_checkpoint(tmp_path: Path) -> None:
    run = train(tmp_path / "a", minutes=9, steps=900)
    score(run, [1.0], training_seconds=60.0, training_steps=100, family="igr")
    score(run / "humans", [1.0], run="humans", training_seconds=None, training_steps=None, family="igr")
    ours, other = load_scores([run])[0]
    assert (ours.run, ours.training_minutes, ours.steps) == ("a", 1, 100)
    assert (other.run, other.training_minutes, other.steps) == ("humans", None, None)


def test_namesakes_are_told_apart(tmp_path: Path) -> None:
    for folder in ("x/a", "y/a", "y/b"):
        run = train(tmp_path / folder, minutes=1, steps=1)
        score(run / "lm", [1.0])
        score(run / "encode", [1.0], method="encode")
    score(tmp_path / "y" / "b" / "again", [1.0])
    found = load_scores([tmp_path])[0]
    assert {(one.run, one.method) for one in found} == {
        *((run, method) for run in ("x/a", "y/a") for method in ("lm", "encode")),
        *{("b/lm", "lm"), ("b/again", "lm"), ("b", "encode")},
    }


def test_tables_hold_the_medians_and_a_dash_where_there_is_none(tmp_path: Path) -> None:
    score(train(tmp_path / "a", minutes=10, steps=12345), [1.0, 2.0, 9.0], hands=[7.0, 8.0, 9.5], **COSTS)
    score(train(tmp_path / "b", minutes=10, steps=5, family="atlas"), [None, 3.0, None], method="encode")
    scored, _ = load_scores([tmp_path])
    a, b = cells(comparison.errors(scored, "unseen_people"))
    assert list(a.values()) == ["a", "igr", "lm", "2.00", "4.00", "8.00", "1.00", "2.00", "3", "0"]
    assert list(b.values()) == ["b", "atlas", "encode", "3.00", "6.00", "-", "-", "-", "3", "2"]
    a, b = cells(comparison.costs(scored))
    assert (a["minutes trained"], a["steps"], a["weights"], a["weights, MB"]) == ("10.0", "12,345", "2,000,000", "8.00")
    assert (a["code"], a["encode, s"], a["fit, s"], a["mesh, s"]) == ("256", "0.012", "-", "1.500")
    assert {b[key] for key in ("weights", "weights, MB", "code", "encode, s", "fit, s", "mesh, s")} == {"-"}
    everything = cells(comparison.everything(scored, "unseen_people"))
    hands = next(line for line in everything if line["column"] == "hands")
    assert (hands["unit"], hands["a by lm"], hands["b by encode"]) == ("mm", "8.000", "-")
    assert list(comparison.panels(scored)) == ["unseen_people, truth → found", "unseen_people, found → truth"]


COSTS = {"num_parameters": 2_000_000, "parameter_bytes": 8_000_000, "code_dim": 256} | (
    {"encode_seconds": 0.0123, "fit_seconds": None, "mesh_seconds": 1.5}
)


def test_parts_that_nobody_scored_take_no_room(tmp_path: Path) -> None:
    score(tmp_path / "a", [1.0])
    scored, _ = load_scores([tmp_path])
    assert not set(comparison.PARTS) & set(comparison.errors(scored, "unseen_people").head)
    assert "refine, s" not in comparison.costs(scored).head
    score(tmp_path / "a", [1.0], method="refine", refine_seconds=3.0)
    (line,) = cells(comparison.costs(load_scores([tmp_path])[0]))
    assert line["refine, s"] == "3.000"


def test_interpolated_poses_have_a_line_for_each_path(tmp_path: Path) -> None:
    run = train(tmp_path / "a", minutes=1, steps=1)
    score(run, [1.0])
    linear = {"completeness": 12.345, "accuracy": None, "failed": 1}
    move(run / "motion", {"linear": linear, "truth": {"sa_sigma": 0.1}}, run="a", method="lm")
    _, moved = load_scores([run])
    (line,) = cells(comparison.motions(moved))
    assert line == {"run": "a", "family": "igr", "method": "lm", "path": "linear", "split": "test"} | (
        {"truth → found": "12.35", "found → truth": "-", "pairs": "2", "no surface": "1"}
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"store": "other.h5"}, "Different stores: people.h5 (a by lm); other.h5 (b by lm). The errors cannot be comp"),
        ({"resolution": 64}, "Different resolutions of the meshes: 128 (a by lm); 64 (b by lm). The errors cannot be"),
        (
            {"components": "all"},
            "Different components: largest (a by lm); all (b by lm). The errors cannot be compared",
        ),
        ({"names": ["q", "r", "s"]}, "As many scans of unseen_people, but not the same ones. The errors cannot be"),
        ({"surface": [1.0]}, "Different numbers of scans of unseen_people: 3 (a by lm); 1 (b by lm). The errors can"),
        ({"training_seconds": 90.0, "training_steps": 1}, "Trained for different times, minutes: 1.0 (a), 1.5 (b)."),
        ({"seed": 1, "training_seconds": 61.0, "training_steps": 1}, None),
    ],
)
def test_what_cannot_be_compared_is_named(settings: dict[str, Any], sentence: str | None, tmp_path: Path) -> None:
    for name, own in (("a", {}), ("b", settings)):
        score(train(tmp_path / name, minutes=1, steps=1), **{"surface": [1.0, 2.0, 3.0], **own})
    found = comparison.comparison_warnings(*load_scores([tmp_path]))
    assert [line[: len(sentence or "")] for line in found] == ([sentence] if sentence else [])
    titles = [section.title for section in comparison.sections(*load_scores([tmp_path]), None)]
    assert ("Before comparing" in titles) == bool(sentence)


def test_protocols_of_other_settings_and_other_motions_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = train(tmp_path / name, minutes=1, steps=1)
        score(run, [1.0])
        move(run, {"linear": {}}, run=name, method="lm", pairs=2 if name == "a" else 12)
    file = tmp_path / "b" / "scores.json"
    file.write_text(file.read_text().replace("count 30,000", "count 10"))
    assert comparison.comparison_warnings(*load_scores([tmp_path])) == [
        "Protocol surface was not measured in the same way (other settings, or another version). The errors cannot be "
        "compared.",
        "Interpolated poses: different pairs: 2 (a by lm); 12 (b by lm). The errors cannot be compared.",
    ]


def test_a_folder_without_scores_is_told_the_verb(tmp_path: Path) -> None:
    score(tmp_path / "a", [1.0])
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError, match=r"b has no scores\.json, .*: score .*, shapespace evaluate .*b STORE"):
        load_scores([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(FileNotFoundError, match="c is no folder: score the run first"):
        load_scores([tmp_path / "c"])


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("scores.json", "{", r"scores\.json is no JSON .*: write it again, shapespace evaluate"),
        ("scores.json", "[]", r"scores\.json does not tell its settings"),
        ("scores.json", '{"settings": {"seed": 0}, "protocols": {}}', r"scores\.json does not tell its protocols"),
        ("motion.json", '{"medians": {}}', r"motion\.json does not tell its settings: .*shapespace motion, or remove"),
        (
            "scores.json",
            '{"settings": [0], "protocols": [0], "summary": [0], "rows": [0]}',
            r"does not tell its method",
        ),
        ("motion.json", '{"settings": {"run": "a"}, "medians": {"linear": {}}}', r"does not tell its family"),
    ],
)
def test_files_that_are_not_what_their_names_say_are_named(name: str, text: str, sentence: str, tmp_path: Path) -> None:
    score(tmp_path, [1.0])
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load_scores([tmp_path])
