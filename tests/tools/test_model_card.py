"""The results of `make humans`: what the page says is what the scores say."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from trimesh import Trimesh, creation

from shapespace.data.store import ScanStore
from shapespace.geometry.scan import Scan
from shapespace.io.scan_files import write_mesh
from shapespace.tools import _model_card
from shapespace.tools._model_card import BEGIN, END, main

BALL = creation.icosphere(subdivisions=1, radius=0.5)
NAMES = ("00/stand/000000", "01/stand/000000")
SHIFTS = {"00": 0.0, "01": 1.0}  # meters, of the people; what is carried between them is off by that of the fits
ERRORS = {"first": (1.0, 2.0), "second": (3.0, 40.0)}  # mm, of the two people of each draw


class TwoPeople(ScanStore):
    """Ground truth and scans of the two people."""

    def __init__(self, path: Path) -> None:
        assert path.suffix == ".h5"

    def ground_truth(self, name: str) -> Trimesh:
        return Trimesh(BALL.vertices + SHIFTS[name[:2]], BALL.faces, process=False)

    def scan(self, name: str) -> Scan:
        return Scan.from_mesh(self.ground_truth(name), name, dtype=np.float32)


def row(name: str, error: float) -> dict[str, Any]:
    """Scores of a scan, every column a multiple of one error."""
    parts = {"hands": 4 * error, "feet": 5 * error, "face": 6 * error, "rest": 7 * error}
    surface = {"completeness": error, "accuracy": 2 * error}
    return {
        "name": name,
        "split": "unseen_people",
        "surface_distance": surface,
        "part_distance": parts,
        "vertex_distance": {"mean": 8 * error},
    }


def write_scores(folder: Path, errors: tuple[float, float], method: str) -> None:
    rows = [row(name, error) for name, error in zip(NAMES, errors, strict=True)]
    content = {
        "format": 2,
        "settings": {"method": method, "run": "humans", "training_steps": None},
        "metrics": {"surface_distance": "distance"},
        "summary": {"unseen_people": {}},
        "rows": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(json.dumps(content))


@pytest.fixture
def draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two draws of the same two people; every fit is 10 mm too high, but for the second person's of the second draw."""
    monkeypatch.setattr(_model_card, "ScanStore", TwoPeople)
    monkeypatch.setattr(
        _model_card.Body,
        "load",
        lambda: SimpleNamespace(faces=BALL.faces, parts=lambda: {"lower": BALL.vertices[:, 1] < 0}),
    )
    monkeypatch.setattr(_model_card, "PAIRS", 2)
    given = []
    for draw, errors in ERRORS.items():
        folder = tmp_path / draw
        write_scores(folder, errors, "lm")
        for name in NAMES:
            up = 0.03 if (draw, name[:2]) == ("second", "01") else 0.01
            mesh = TwoPeople(Path("x.h5")).ground_truth(name)
            mesh.vertices += (0, up, 0)
            write_mesh(folder / f"meshes/unseen_people/{name.replace('/', '_')}.ply", mesh)
        labels = {
            name: {"pose": pose, "scanner": "frame"} for name, pose in zip(NAMES, ("bent", "upright"), strict=True)
        }
        (folder / "captures.json").write_text(json.dumps(labels))
        given.append(f"{folder}:{folder / 'captures.json'}:{folder / 'store.h5'}")
    write_scores(tmp_path / "first/encode", (11.0, 13.0), "encode")
    return given


def cells(text: str, *start: str) -> list[str]:
    """The cells of the one line of a table that starts with these, without them."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    (found,) = [line[len(start) :] for line in lines if tuple(line[: len(start)]) == start]
    return found


def test_the_page_says_what_the_scores_say(draws: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        _model_card.sheet, "contact_sheet", lambda rows, path, **rest: drawn.update(rows=rows, path=path)
    )
    page, picture = tmp_path / "page.md", tmp_path / "worst.png"
    page.write_text(f"# Humans\n\n{BEGIN}\nold results\n{END}\n\nMore.\n")
    main(page, picture, draws)
    text = page.read_text()
    assert text.startswith(f"# Humans\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\n\nMore.\n")
    assert "old results" not in text
    assert cells(text, "2 of draw 1", "median") == ["1.50", "3.00", "6.00", "7.50", "9.00", "10.50", "4.0"]
    assert cells(text, "2 of draw 1", "mean") == ["1.50", "3.00", "6.00", "7.50", "9.00", "10.50", "4.0"]
    assert cells(text, "2 of draw 1", "encoder alone, median")[:2] == ["12.00", "24.00"]
    assert cells(text, "2 of draw 2", "median")[:2] == ["21.50", "43.00"]
    assert cells(text, "2 of draw 2", "median")[-1] == "80.0"
    assert cells(text, "all 4", "median")[:2] == ["2.50", "5.00"]
    assert cells(text, "pose", "bent") == ["2.00", "4.00", "8.00", "10.00", "12.00", "14.00", "16.00", "2"]
    assert cells(text, "pose", "upright")[:2] == ["21.00", "42.00"]
    assert "scanner" not in text.split("By group")[1].split("carried")[0]  # one value only
    carried = cells(text, "4")
    assert len(carried) == 4  # median, mean, 95 % and the region
    assert all(5 < float(value) < 35 for value in carried)
    assert drawn["path"] == picture
    labels = [label for label, _ in drawn["rows"]]
    assert labels == [
        "upright, frame: 40.0 / 80.0 mm",
        "bent, frame: 3.0 / 6.0 mm",
        "upright, frame: 2.0 / 4.0 mm",
        "bent, frame: 1.0 / 2.0 mm",
    ]


def test_a_page_without_its_place_is_refused(draws: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Humans\n\n{END}\n")
    with pytest.raises(ValueError, match=r"page\.md: it needs one line '<!-- results: make humans -->'"):
        main(page, tmp_path / "worst.png", draws)
    assert page.read_text() == f"# Humans\n\n{END}\n"
