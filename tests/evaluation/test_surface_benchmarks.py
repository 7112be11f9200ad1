"""IGR's experiments on single surfaces: exact distances, errors of fields, and the layout of a benchmark."""

from pathlib import Path

import numpy as np
import pytest
from trimesh import Trimesh, creation

from shapespace.evaluation.surface_benchmarks import (
    eikonal_error,
    field_error,
    known_surfaces,
    load_benchmark,
    sdf_error,
)
from shapespace.geometry.scan import Scan
from shapespace.io.scan_files import write_mesh, write_scan

KNOWN = known_surfaces()


@pytest.mark.parametrize("name", KNOWN)
def test_known_surfaces_are_closed_and_their_distances_signed(name: str) -> None:
    known = KNOWN[name]
    assert known.mesh.is_watertight
    assert known.mesh.volume > 0
    assert np.abs(known.mesh.vertices).max() < 1
    scan = known.points(500, np.random.default_rng(0))
    assert scan.normals is not None
    on = scan.points.astype(np.float64)
    assert np.abs(known.distance(on)).max() < 1e-6
    out = known.distance(on + 5e-3 * scan.normals)
    assert np.median(out) == pytest.approx(5e-3, rel=0.05)
    assert (np.sign(known.distance(on - 5e-3 * scan.normals)) < 0).mean() > 0.97  # thin parts have a far side
    places = np.random.default_rng(1).uniform(-1, 1, (2000, 2, 3))
    apart = np.linalg.norm(places[:, 0] - places[:, 1], axis=1)
    assert (np.abs(known.distance(places[:, 0]) - known.distance(places[:, 1])) <= apart + 1e-6).all()


def test_an_exact_field_has_no_error_and_a_shifted_one_its_shift() -> None:
    known, low, high = KNOWN["sphere"], np.full(3, -1.0), np.full(3, 1.0)
    assert field_error(known.distance, known, low, high, count=1000) == (0, 0, 0, 0, 1)
    off = field_error(lambda x: known.distance(x) + 0.01, known, low, high, count=1000)
    assert off.absolute == pytest.approx(0.01)
    twice = field_error(lambda x: -2 * known.distance(x), known, low, high, count=1000)
    assert twice.relative == pytest.approx(3)
    assert twice.ratio == pytest.approx(3)
    assert twice.sign == 0


def box() -> Trimesh:
    return creation.box([1.0] * 3)


def box_distance(points: np.ndarray, half: float = 0.5) -> np.ndarray:
    beyond = np.abs(points) - half
    return np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(axis=1), 0)


def test_sdf_error_of_an_exact_distance_and_of_its_double() -> None:
    rng = np.random.default_rng(0)
    exact = sdf_error(box_distance, box(), rng, count=2000)
    assert exact == pytest.approx({"absolute": 0, "relative": 0, "sign": 1}, abs=1e-9)
    doubled = sdf_error(lambda x: 2 * box_distance(x), box(), rng, count=2000)
    assert doubled["relative"] == pytest.approx(1)
    assert doubled["absolute"] == pytest.approx(1e3 * 0.01 * np.sqrt(2 / np.pi), rel=0.1)  # mean |N(0, 10 mm)|
    assert sdf_error(lambda x: -box_distance(x), box(), rng, count=2000)["sign"] == 0


def test_eikonal_error_is_the_departure_from_unit_length() -> None:
    def radial(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    rng = np.random.default_rng(0)
    ball = creation.icosphere(subdivisions=5, radius=0.5)
    assert eikonal_error(radial, ball, rng, count=500) == pytest.approx({"mean": 0, "rms": 0}, abs=1e-12)
    half = eikonal_error(lambda x: 0.5 * radial(x), ball, rng, count=500)
    assert half == pytest.approx({"mean": 0.5, "rms": 0.5})


def folder(root: Path, *, scans: bool) -> Path:
    """Two objects as Deep Geometric Prior has them: points with normals, and truths (points, and a mesh)."""
    ball = creation.icosphere(subdivisions=3, radius=40.0)
    (root / "ground_truth").mkdir(parents=True)
    write_mesh(root / "ground_truth" / "ball.ply", ball)
    if scans:
        np.savetxt(root / "ground_truth" / "dots.xyz", ball.vertices)
        for name in ("ball", "dots"):
            scan = Scan(name, ball.vertices.astype(np.float32), ball.vertex_normals.astype(np.float32))
            write_scan(root / "scans" / f"{name}.ply", scan)
    return root


def test_a_benchmark_s_unit_is_that_of_its_files(tmp_path: Path) -> None:
    cases = {case.name: case for case in load_benchmark(folder(tmp_path, scans=True))}
    assert set(cases) == {"ball", "dots"}
    assert len(cases["dots"].ground_truth.faces) == 0 < len(cases["ball"].ground_truth.faces)
    for case in cases.values():
        assert case.scan.normals is not None
        np.testing.assert_allclose(np.linalg.norm(case.scan.points, axis=1), 0.040, rtol=1e-5)


def test_without_scans_cameras_see_the_truth_whatever_its_size(tmp_path: Path) -> None:
    (case,) = load_benchmark(folder(tmp_path, scans=False))
    assert case.scan.sensors is not None
    radius = np.linalg.norm(case.scan.points, axis=1)
    assert len(radius) > 10_000
    assert np.abs(radius - 0.040).mean() < 2e-4  # the chords of the ball


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no ground truth"):
        next(load_benchmark(tmp_path))
    root = folder(tmp_path / "a", scans=True)
    (root / "ground_truth" / "dots.xyz").unlink()
    with pytest.raises(ValueError, match=r"ground_truth: no ground truth for scan dots\."):
        next(load_benchmark(root))
    root = folder(tmp_path / "b", scans=True)
    for file in (root / "scans").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="points without faces, which cameras cannot see"):
        list(load_benchmark(root))
