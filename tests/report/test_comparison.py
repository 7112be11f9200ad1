"""Loading of scores, comparison tables, and warnings on runs that cannot be compared."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from shapespace.evaluation import metrics
from shapespace.evaluation.scores import ScoreReport, to_json
from shapespace.evaluation.stored_scores import load_scores
from shapespace.report import comparison, page

SETTINGS = {"store": "people.h5", "resolution": 128, "components": "largest", "seed": 0}
FORMAT1 = Path(__file__).parents[1] / "data" / "format1"
Values = Sequence[float | None]


def score(
    folder: Path,
    errors: Values,
    *,
    split: str = "unseen_people",
    hands: Values = (),
    names: Sequence[str] = (),
    **settings: Any,
) -> None:
    """Scores of a split: `errors` is the completeness, the accuracy is twice as much; `hands` is of part_distance."""
    rows: list[dict[str, Any]] = []
    for k, error in enumerate(errors):
        value = float("nan") if error is None else error
        rows.append({"name": names[k] if names else f"p/walk/{k}", "split": split})
        rows[-1]["surface_distance"] = {"completeness": value, "accuracy": 2 * value}
        if hands:
            rows[-1]["part_distance"] = {"hands": hands[k], "feet": 1.0, "rest": 2.0}
    chosen = ("surface_distance", "part_distance") if hands else ("surface_distance",)
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
    settings = {"family": "igr", "data": "d", "split": "test", "pairs": 2, "steps": 5, "resolution": 96, **settings}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "motion.json").write_text(
        json.dumps(to_json({"format": 2, "settings": settings, "medians": medians, "rows": []}))
    )


def cells(table: page.Table) -> list[dict[str, str]]:
    return [dict(zip(table.head, line, strict=True)) for line in table.lines]


def test_scores_are_loaded_with_the_length_of_the_training(tmp_path: Path) -> None:
    run = train(tmp_path / "grid", minutes=2.5, steps=700, family="voxel")
    score(run, [3.0, 1.0, 2.0], method="adam")
    score(run / "encode", [None, 4.0, 5.0], method="encode")
    first, second = load_scores([run])[0]
    assert [(one.run, one.family, one.method) for one in (first, second)] == (
        [("grid", "voxel", "adam"), ("grid", "voxel", "encode")]
    )
    assert (first.training_minutes, first.steps) == (2.5, 700)
    assert first.median("unseen_people", "surface_distance", "completeness") == 2
    assert first.median("unseen_people", "iou", "iou") is None
    assert first.errors("unseen_people", "accuracy") == [6, 2, 4]
    assert second.errors("unseen_people", "completeness") == [None, 4, 5]
    assert (first.failed("unseen_people"), second.failed("unseen_people")) == (0, 1)
    assert load_scores([run, run / "encode", run])[0] == [first, second]  # once each


def test_the_training_length_in_the_scores_has_priority_over_the_checkpoint(tmp_path: Path) -> None:
    run = train(tmp_path / "a", minutes=9, steps=900)
    score(run, [1.0], training_seconds=60.0, training_steps=100, family="igr")
    score(run / "humans", [1.0], run="humans", training_seconds=None, training_steps=None, family="igr")
    ours, other = load_scores([run])[0]
    assert (ours.run, ours.training_minutes, ours.steps) == ("a", 1, 100)
    assert (other.run, other.training_minutes, other.steps) == ("humans", None, None)


def test_runs_of_one_name_get_unique_names(tmp_path: Path) -> None:
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


def test_tables_have_medians_and_a_dash_for_missing_values(tmp_path: Path) -> None:
    score(train(tmp_path / "a", minutes=10, steps=12345), [1.0, 2.0, 9.0], hands=[7.0, 8.0, 9.5], **COSTS)
    score(train(tmp_path / "b", minutes=10, steps=5, family="atlas"), [None, 3.0, None], method="encode")
    scored, _ = load_scores([tmp_path])
    a, b = cells(comparison.error_table(scored, "unseen_people"))
    assert list(a.values()) == ["a", "igr", "lm", "2.00", "4.00", "8.00", "1.00", "2.00", "3", "0"]
    assert list(b.values()) == ["b", "atlas", "encode", "3.00", "6.00", "-", "-", "-", "3", "2"]
    a, b = cells(comparison.cost_table(scored))
    assert (a["training, min"], a["steps"], a["parameters"], a["parameters, MB"]) == (
        "10.0",
        "12,345",
        "2,000,000",
        "8.00",
    )
    assert (a["code"], a["encode, s"], a["fit, s"], a["mesh, s"]) == ("256", "0.012", "-", "1.500")
    assert {b[key] for key in ("parameters", "parameters, MB", "code", "encode, s", "fit, s", "mesh, s")} == {"-"}
    everything = cells(comparison.median_table(scored, "unseen_people"))
    hands = next(line for line in everything if line["column"] == "hands")
    assert (hands["unit"], hands["a by lm"], hands["b by encode"]) == ("mm", "8.000", "-")
    assert list(comparison.error_panels(scored)) == ["unseen_people, completeness", "unseen_people, accuracy"]


COSTS = {"num_parameters": 2_000_000, "parameter_bytes": 8_000_000, "code_dim": 256} | (
    {"encode_seconds": 0.0123, "fit_seconds": None, "mesh_seconds": 1.5}
)


def test_parts_without_scores_have_no_columns(tmp_path: Path) -> None:
    score(tmp_path / "a", [1.0])
    scored, _ = load_scores([tmp_path])
    assert not set(comparison.PARTS) & set(comparison.error_table(scored, "unseen_people").head)
    assert "refine, s" not in comparison.cost_table(scored).head
    score(tmp_path / "a", [1.0], method="refine", refine_seconds=3.0)
    (line,) = cells(comparison.cost_table(load_scores([tmp_path])[0]))
    assert line["refine, s"] == "3.000"


def test_interpolated_poses_have_a_row_for_each_path(tmp_path: Path) -> None:
    run = train(tmp_path / "a", minutes=1, steps=1)
    score(run, [1.0])
    linear = {"completeness": 12.345, "accuracy": None, "failed": 1}
    move(run / "motion", {"linear": linear, "truth": {"sa_sigma": 0.1}}, run="a", method="lm")
    _, moved = load_scores([run])
    (line,) = cells(comparison.path_table(moved))
    assert line == {"run": "a", "family": "igr", "method": "lm", "path": "linear", "split": "test"} | (
        {"completeness": "12.35", "accuracy": "-", "pairs": "2", "no surface": "1"}
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"store": "other.h5"}, "Different stores: people.h5 (a by lm); other.h5 (b by lm). The errors cannot be comp"),
        ({"resolution": 64}, "Different mesh resolutions: 128 (a by lm); 64 (b by lm). The errors cannot be"),
        (
            {"components": "all"},
            "Different components: largest (a by lm); all (b by lm). The errors cannot be compared",
        ),
        ({"names": ["q", "r", "s"]}, "Different scans of unseen_people, equal in number. The errors cannot be"),
        ({"errors": [1.0]}, "Different numbers of scans of unseen_people: 3 (a by lm); 1 (b by lm). The errors can"),
        ({"training_seconds": 90.0, "training_steps": 1}, "Different training times (minutes): 1.0 (a), 1.5 (b)."),
        ({"seed": 1, "training_seconds": 61.0, "training_steps": 1}, None),
    ],
)
def test_differences_between_runs_are_listed(settings: dict[str, Any], sentence: str | None, tmp_path: Path) -> None:
    for name, own in (("a", {}), ("b", settings)):
        score(train(tmp_path / name, minutes=1, steps=1), **{"errors": [1.0, 2.0, 3.0], **own})
    found = comparison.comparison_warnings(*load_scores([tmp_path]))
    assert [line[: len(sentence or "")] for line in found] == ([sentence] if sentence else [])
    titles = [section.title for section in comparison.score_sections(*load_scores([tmp_path]), None)]
    assert ("Differences between the runs" in titles) == bool(sentence)


def test_metrics_of_other_settings_and_other_motions_are_listed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = train(tmp_path / name, minutes=1, steps=1)
        score(run, [1.0])
        move(run, {"linear": {}}, run=name, method="lm", pairs=2 if name == "a" else 12)
    file = tmp_path / "b" / "scores.json"
    file.write_text(file.read_text().replace("count 30,000", "count 10"))
    assert comparison.comparison_warnings(*load_scores([tmp_path])) == [
        "Metric surface_distance has different settings, or is of another version. The errors cannot be compared.",
        "Interpolated poses: different pairs: 2 (a by lm); 12 (b by lm). The errors cannot be compared.",
    ]


def test_a_folder_without_scores_raises_an_error_with_the_command(tmp_path: Path) -> None:
    score(tmp_path / "a", [1.0])
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError, match=r"b: no scores\.json .*\. Score .*: shapespace evaluate .*b STORE"):
        load_scores([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(FileNotFoundError, match=r"c: no such folder\. Score the run first"):
        load_scores([tmp_path / "c"])


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("scores.json", '{"format": 3}', r"scores\.json: format 3 of scores files is unknown"),
        ("scores.json", "{", r"scores\.json: not valid JSON .*\. Write it again: shapespace evaluate"),
        ("scores.json", "[]", r"scores\.json: settings is missing"),
        ("scores.json", '{"settings": {"seed": 0}, "metrics": {}}', r"scores\.json: metrics is missing"),
        ("motion.json", '{"medians": {}}', r"motion\.json: settings is missing.*shapespace evaluate-paths\), or rem"),
        (
            "scores.json",
            '{"settings": [0], "metrics": [0], "summary": [0], "rows": [0]}',
            r"method is missing",
        ),
        ("motion.json", '{"settings": {"run": "a"}, "medians": {"linear": {}}}', r"family is missing"),
    ],
)
def test_invalid_files_are_named(name: str, text: str, sentence: str, tmp_path: Path) -> None:
    score(tmp_path, [1.0])
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load_scores([tmp_path])


def test_scores_of_format_1_are_read(tmp_path: Path) -> None:
    shutil.copy(FORMAT1 / "scores.json", tmp_path)
    ((one,), _) = load_scores([tmp_path])
    assert one.median("unseen_poses", "surface_distance", "completeness") == pytest.approx(176.2389, abs=1e-4)
    assert (one.steps, one.training_minutes) == (20, pytest.approx(2.6 / 60))
    (line,) = cells(comparison.cost_table([one]))
    assert (line["parameters"], line["code"], line["mesh, s"]) == ("3,953", "4", "0.049")
    assert comparison.error_table([one], "unseen_poses").lines[0][3:5] == ["176.24", "22.49"]


def test_motions_of_format_1_are_read(tmp_path: Path) -> None:
    score(tmp_path, [1.0])
    medians = {"spherical": {"truth_to_found": 3.0, "found_to_truth": 4.0, "failed": 0}}
    move(tmp_path, medians, run="a", method="lm", trained_seconds=60.0)
    file = tmp_path / "motion.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "format"}))
    (line,) = cells(comparison.path_table(load_scores([tmp_path])[1]))
    assert (line["path"], line["completeness"], line["accuracy"]) == ("slerp", "3.00", "4.00")
