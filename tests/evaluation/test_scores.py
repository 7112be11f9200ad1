"""Score files: values come back as they were written, and tables show what was measured."""

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from shapespace.evaluation import metrics
from shapespace.evaluation.scores import ScoreReport, best_median_worst, write_table
from shapespace.io.atomic import replacing


@pytest.fixture
def report() -> ScoreReport:
    nan = float("nan")
    rows = [
        {
            "name": "p/walk/000001",
            "split": "unseen_poses",
            "surface_distance": {"completeness": 5.0, "accuracy": 7.125},
        },
        {"name": "p/walk/000002", "split": "unseen_poses", "surface_distance": {"completeness": 6.0, "accuracy": 8.0}},
        {"name": "p/kick, high/1", "split": "unseen_poses", "surface_distance": {"completeness": nan, "accuracy": nan}},
        {
            "name": "q/walk/000001",
            "split": "unseen_people",
            "surface_distance": {
                "completeness": 0.12345,
                "accuracy": np.float64(123.456),
                "visible_completeness": 1.0,
            },
            "normal_consistency": {"consistency": 0.98765},
        },
    ]
    chosen = ("surface_distance", "normal_consistency")
    return ScoreReport(
        metrics={name: metrics.METRICS[name].description for name in chosen},
        units={name: metrics.METRICS[name].all_units for name in chosen},
        rows=rows,
        summary=metrics.summarize(rows),
        settings={"run": Path("runs/demo"), "resolution": 128, "largest_component": True, "worst": nan},
    )


def test_json_has_format_summary_and_rows_without_nan(report: ScoreReport, tmp_path: Path) -> None:
    report.write(tmp_path)
    text = (tmp_path / "scores.json").read_text(encoding="utf-8")

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} in the JSON")

    scores = json.loads(text, parse_constant=refuse)
    column = scores["summary"]["unseen_poses"]["surface_distance"]["completeness"]
    assert column == pytest.approx({"mean": 5.5, "median": 5.5, "p5": 5.05, "p95": 5.95, "count": 2, "failed": 1})
    assert scores["rows"][2]["surface_distance"] == {"completeness": None, "accuracy": None}
    assert scores["rows"][3]["surface_distance"]["accuracy"] == 123.456
    assert scores["metrics"]["surface_distance"]["units"]["completeness"] == "mm"
    assert "unsquared" in scores["metrics"]["surface_distance"]["description"]
    assert scores["format"] == 2
    assert scores["settings"] == {"run": "runs/demo", "resolution": 128, "largest_component": True, "worst": None}


def test_csv_reads_back_with_one_row_per_scan_and_units_in_the_header(report: ScoreReport, tmp_path: Path) -> None:
    report.write(tmp_path)
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == [row["name"] for row in report.rows]
    assert list(lines[0]) == [
        "name",
        "split",
        "surface_distance.completeness [mm]",
        "surface_distance.accuracy [mm]",
        "surface_distance.visible_completeness [mm]",
        "normal_consistency.consistency [|cos|]",
    ]
    for row, line in zip(report.rows, lines, strict=True):
        for name, units in report.units.items():
            for column, unit in units.items():
                wanted = row.get(name, {}).get(column, math.nan)
                read = line.get(f"{name}.{column} [{unit}]", "")
                assert read == "" if math.isnan(wanted) else float(read) == wanted


def test_markdown_has_numbers_units_failures_and_settings(report: ScoreReport) -> None:
    page = report.markdown()
    lines = page.splitlines()
    line = next(line for line in lines if "completeness" in line and line.startswith("| surface"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["surface_distance", "completeness", "mm", "5.50", "5.50", "5.05", "5.95", "2 of 3"]
    assert "- p/kick, high/1 (unseen_poses)" in lines
    assert "- resolution: 128" in lines
    assert any(line.startswith("- **surface_distance**: Mean exact distance") for line in lines)
    assert r"\|cos\|" in page
    tables = page.split("## ")[1:3]
    for table in tables:  # aligned in the source too, with the same number of cells in every line
        source = [line for line in table.splitlines() if line.startswith("|")]
        assert len({len(line) for line in source}) == 1
        assert len({line.replace(r"\|", "").count("|") for line in source}) == 1


def test_table_is_aligned_and_says_how_many_failed(report: ScoreReport, capsys: pytest.CaptureFixture[str]) -> None:
    report.show()
    printed = capsys.readouterr().out
    blocks = printed.strip("\n").split("\n\n")
    assert len(blocks) == 2
    for block in blocks:
        assert len({len(line) for line in block.splitlines()}) == 1
    assert blocks[0].splitlines()[0].split() == ["unseen_poses", "median", "mean", "p5", "p95", "scans"]
    assert blocks[0].splitlines()[1].split() == (
        ["surface_distance.completeness", "[mm]", "5.50", "5.50", "5.05", "5.95", "2", "of", "3"]
    )
    assert blocks[1].splitlines()[1].split()[2] == "0.123"  # three digits of a small number
    assert blocks[1].splitlines()[2].split()[2] == "123.5"


def test_a_column_where_all_failed_shows_dashes() -> None:
    rows = [{"name": "a/b/0", "split": "s", "surface_distance": {"completeness": float("nan")}}]
    table = ScoreReport({"surface_distance": "x"}, {}, rows, metrics.summarize(rows)).table()
    assert table.splitlines()[1].split() == ["surface_distance.completeness", "-", "-", "-", "-", "0", "of", "1"]


def test_the_same_scores_are_the_same_bytes_and_nothing_is_left_beside_them(
    report: ScoreReport, tmp_path: Path
) -> None:
    first = [path.read_bytes() for path in report.write(tmp_path / "new" / "folder")]
    assert [path.read_bytes() for path in report.write(tmp_path / "new" / "folder")] == first
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["scores.csv", "scores.json", "scores.md"]


def scored(name: str, metric: str = "surface_distance", **columns: float | None) -> dict[str, object]:
    return {"name": name, "split": "s", metric: columns}


def test_best_median_and_worst_are_ordered_by_the_mean_of_completeness_and_accuracy() -> None:
    # The sum of all columns puts "hidden" last: its hidden part is far away, although both directions are good.
    rows = [
        scored("bad", completeness=9.0, accuracy=9.0, visible_completeness=1.0, hidden_completeness=1.0),
        scored("hidden", completeness=5.8, accuracy=6.3, visible_completeness=5.0, hidden_completeness=40.0),
        scored("good", completeness=4.0, accuracy=4.0, visible_completeness=4.0, hidden_completeness=30.0),
        scored("failed", completeness=None, accuracy=None),
    ]
    chosen = best_median_worst(rows, "s")
    assert [chosen[word]["name"] for word in ("best", "median", "worst")] == ["good", "hidden", "bad"]
    sums = [sum(row["surface_distance"].values()) for row in rows[:3]]  # type: ignore[attr-defined]
    assert rows[int(np.argmax(sums))]["name"] == "hidden"
    assert best_median_worst(rows[3:], "s") == {}
    assert best_median_worst(rows, "other") == {}


def test_the_order_of_other_metrics_follows_their_direction() -> None:
    consistent = [
        scored(name, "normal_consistency", completeness=cos, accuracy=cos, consistency=cos, angle=angle)
        for name, cos, angle in (("best", 0.9, 20.0), ("worst", 0.7, 40.0), ("median", 0.8, 30.0))
    ]
    assert all(row["name"] == word for word, row in best_median_worst(consistent, "s").items())
    overlapping = [scored(name, "iou", iou=iou) for name, iou in (("best", 0.9), ("worst", 0.7), ("median", 0.8))]
    assert all(row["name"] == word for word, row in best_median_worst(overlapping, "s").items())
    scanned = [
        scored("best", "srb", chamfer=1.0, hausdorff=2.0, scan_to_mesh=9.0),
        scored("median", "srb", chamfer=2.0, hausdorff=3.0),
        scored("worst", "srb", chamfer=3.0, hausdorff=4.0, scan_to_mesh=0.0),
    ]
    assert all(row["name"] == word for word, row in best_median_worst(scanned, "s").items())


def test_a_table_is_written_as_json_and_markdown(tmp_path: Path) -> None:
    rows = [{"case": "noise", "error": np.float64(1.5)}, {"case": "floor", "error": math.nan}]
    lines = [["case", "error"], ["noise", "1.5"], ["floor", "-"]]
    page = write_table(tmp_path / "out", "errors", rows, lines, "Errors in mm.", settings={"store": Path("a.h5")})
    assert page == (tmp_path / "out" / "errors.md").read_text()
    assert page.splitlines()[-1] == "Errors in mm."
    assert "| noise |   1.5 |" in page
    assert json.loads((tmp_path / "out" / "errors.json").read_text()) == {
        "format": 2,
        "settings": {"store": "a.h5"},
        "rows": [{"case": "noise", "error": 1.5}, {"case": "floor", "error": None}],
    }


def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text("old")

    def stop_half_way() -> None:
        with replacing(path) as part:
            part.write_text("new, but")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        stop_half_way()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["scores.json"]
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
