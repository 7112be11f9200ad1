"""The page of `shapespace report` is complete and self-contained, and escapes the names of runs."""

import re
from pathlib import Path

import pytest
from PIL import Image

from shapespace.evaluation import metrics
from shapespace.evaluation.scores import ScoreReport
from shapespace.tools.report import main


def score(folder: Path, errors: list[float], metric: str = "surface_distance", **settings: object) -> None:
    rows = [
        {"name": f"p/{k}", "split": "test", metric: dict.fromkeys(metrics.METRICS[metric].units, error)}
        for k, error in enumerate(errors)
    ]
    described = metrics.METRICS[metric]
    recorded = {"store": "s.h5", "method": "lm", "family": "igr", **settings}
    ScoreReport(
        {metric: described.description}, {metric: described.units}, rows, metrics.summarize(rows), recorded
    ).write(folder)


def test_the_page_the_markdown_and_the_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rude = tmp_path / "<b>$x$ & |"
    score(tmp_path / "a", [1.0, 2.0, 4.0])
    score(rude, [3.0, float("nan"), 5.0], method="encode")
    main((tmp_path / "a", rude), out=tmp_path / "out")

    html = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;b&gt;$x$ &amp; |" in html
    assert "<b>" not in html
    assert not re.search(r"https?:|<script", html)
    assert html.count("<svg") == html.count("</svg>") == 1
    assert html.index("<svg") > html.index("Errors of all scans") > html.index("Errors: test")

    printed = capsys.readouterr().out
    written = (tmp_path / "out" / "report.md").read_text()
    assert printed.startswith(written)
    assert printed.splitlines()[-1].startswith(f"page in {tmp_path / 'out' / 'report.html'}")
    assert any(line.split()[1:8:2] == ["a", "igr", "lm", "2.00"] for line in written.splitlines() if "|" in line)
    assert "![curves](curves.png)" in written
    assert Image.open(tmp_path / "out" / "curves.png").width > 600


def test_one_run_has_its_page_beside_its_scores(tmp_path: Path) -> None:
    score(tmp_path, [1.0, 2.0])
    main((tmp_path,))
    assert f"<h1>Run {tmp_path.name}</h1>" in (tmp_path / "report.html").read_text()


def test_scores_without_surface_make_a_page_without_curves(tmp_path: Path) -> None:
    score(tmp_path, [0.5, 0.75], "iou")
    main((tmp_path,))
    page = (tmp_path / "report.md").read_text()
    assert "0.625" in page
    assert "curves" not in page
    assert not (tmp_path / "curves.png").exists()
