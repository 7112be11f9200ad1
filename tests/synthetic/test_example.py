"""The packaged example scan: what makes it, how large it is, and that `humans` fits it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh

import shapespace
from shapespace import ShapeSpace, example_scan
from shapespace.evaluation import metrics
from shapespace.synthetic import example
from shapespace.synthetic.body import Body
from shapespace.synthetic.people import LIMITS, Capture, posed_body
from shapespace.tools._inputs import ScanInput, read_scans


def test_the_file_is_what_its_maker_makes() -> None:
    scan, made = example_scan(), example.make_example()
    assert scan.normals is not None
    assert made.normals is not None
    same = np.isclose(scan.points, made.points, atol=1e-6).all(axis=1)
    same &= np.isclose(scan.normals, made.normals, atol=1e-6).all(axis=1)
    assert (
        same.mean() > 0.999
    )  # another processor rounds a ray at an edge to its other side, seen at 1 of 10,000 points
    assert len(scan) == example.POINTS == 10_000
    assert scan.name == "example"
    assert example.example_file().stat().st_size < 260_000


def test_it_is_in_meters_with_y_up_and_feet_on_the_floor() -> None:
    low, high = example_scan().points.min(axis=0), example_scan().points.max(axis=0)
    assert high[1] - low[1] == pytest.approx(1.5, abs=0.1)
    assert low[1] == pytest.approx(0.0, abs=0.02)


def test_humans_fits_it_to_millimeters() -> None:
    space = ShapeSpace.load("humans")
    (fit,) = space.fit_scans([example_scan()])
    _, posed, _ = posed_body(example.SYNTHESIS, Capture(0, 0, LIMITS, 0, example.NAME))
    truth = trimesh.Trimesh(posed.vertices, Body.load().faces, process=False)
    scores = metrics.score(["surface_distance"], space.mesh(fit), truth, example_scan())["surface_distance"]
    assert scores["completeness"] < 2.0
    assert scores["accuracy"] < 2.0


def test_the_word_is_the_packaged_scan_unless_there_is_such_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ((scan,), source) = read_scans(["example"], ScanInput())
    np.testing.assert_array_equal(scan.points, example_scan().points)
    assert (scan.name, source.unit) == ("example", "m")
    np.save(tmp_path / "own.npy", scan.points[:200])
    (tmp_path / "own.npy").rename(tmp_path / "example")
    with pytest.raises(ValueError, match="example"):  # a file without a suffix: no format is known
        read_scans(["example"], ScanInput())


def test_the_public_names_are_there_and_come_lazily() -> None:
    names = ["Code", "Finding", "Fit", "Frame", "Scan", "ScanStore", "ScanWarning", "ShapeSpace", "example_scan"]
    assert sorted(shapespace.__all__) == sorted(names)
    assert all(getattr(shapespace, name).__name__ == name for name in names)
    with pytest.raises(AttributeError, match="has no attribute 'Shape'"):
        shapespace.Shape  # noqa: B018
    code = "import shapespace, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
