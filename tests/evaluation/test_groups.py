"""Scores by groups: every scan counts once for each label, numbers go into thirds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shapespace.evaluation.groups import group_lines, group_rows, read_labels, summarize_groups
from shapespace.evaluation.scores import make_score_report


def row(name: str, completeness: float) -> dict[str, Any]:
    return {
        "name": name,
        "split": "s",
        "surface_distance": {"completeness": completeness, "accuracy": 2 * completeness},
    }


ROWS = [row(str(number), float(number)) for number in range(1, 8)]
LABELS = {
    str(number): {"pose": "bent" if number < 4 else "upright", "stature": 1.5 + number / 100, "split": "s"}
    for number in range(1, 8)
}


def test_each_scan_is_in_one_group_of_each_label() -> None:
    groups = group_rows(ROWS, LABELS)
    assert list(groups) == ["pose", "stature"]  # all are of one split
    assert [len(rows) for rows in groups["pose"].values()] == [3, 4]
    assert list(groups["stature"]) == ["1.51 to 1.53", "1.54 to 1.55", "1.56 to 1.57"]
    assert sorted(each["name"] for rows in groups["stature"].values() for each in rows) == sorted(LABELS)


def test_medians_of_groups() -> None:
    summary = summarize_groups(ROWS, LABELS)
    assert summary["pose"]["bent"]["surface_distance"]["completeness"]["median"] == 2
    assert summary["pose"]["upright"]["surface_distance"]["accuracy"]["median"] == 11
    lines = group_lines(summary)
    assert lines[0] == ["label", "value", "completeness", "accuracy", "scans"]
    assert lines[1] == ["pose", "bent", "2.00", "4.00", "3"]
    report = make_score_report(ROWS, ("surface_distance",), {}, LABELS)
    assert "| pose    | upright      |" in report.markdown()
    assert json.loads(report.json())["groups"]["pose"]["upright"]["surface_distance"]["completeness"]["count"] == 4
    assert "bent" in report.table()
    assert "Groups" not in make_score_report(ROWS, ("surface_distance",), {}).markdown()


def test_failed_scans_are_counted_and_left_out() -> None:
    summary = summarize_groups([*ROWS[:2], row("3", float("nan"))], LABELS | {"3": {"pose": "odd", "stature": 2.0}})
    lines = group_lines(summary)
    assert next(line for line in lines if line[1] == "odd") == ["pose", "odd", "-", "-", "1"]
    assert np.isnan(summary["pose"]["odd"]["surface_distance"]["accuracy"]["median"])


def test_scans_without_labels_are_named() -> None:
    with pytest.raises(ValueError, match=r"^1 of 2 scans have no labels, for example z\.$"):
        group_rows([row("1", 1.0), row("z", 1.0)], LABELS)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": {"b": []}}'])
def test_files_of_another_kind_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="labels"):
        read_labels(path)
