"""Outlier removal, scans in memory, and scans of the plane."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shapespace.data.loader import collate
from shapespace.data.store import InMemoryStore
from shapespace.geometry.scan import Scan
from shapespace.io.scan_files import read_scan
from shapespace.rendering.plots import write_curves


def sphere(count: int = 2000) -> Scan:
    out = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return Scan("sphere", out, out)


def test_outliers_are_removed_and_the_surface_stays() -> None:
    clean, rng = sphere(), np.random.default_rng(1)
    assert clean.remove_statistical_outliers() is clean
    away = rng.uniform(-2, 2, (600, 3)).astype(np.float32)
    noisy = Scan("noisy", np.concatenate([clean.points, away]), np.concatenate([clean.points, away]))
    cleaned = noisy.remove_statistical_outliers()
    assert cleaned.normals is not None
    np.testing.assert_array_equal(cleaned.points, cleaned.normals)  # attributes of a point stay with it
    radius = np.linalg.norm(cleaned.points, axis=1)
    assert (np.abs(radius - 1) < 1e-5).sum() > 0.99 * len(clean)
    assert (np.abs(radius - 1) > 0.2).sum() < 0.1 * len(away)


def test_rims_are_not_outliers_and_meshes_are_unchanged() -> None:
    half = sphere()
    half = half.select(np.flatnonzero(half.points[:, 2] > 0))
    assert half.remove_statistical_outliers() is half
    mesh = Scan("mesh", sphere().points, faces=np.arange(1998).reshape(-1, 3))
    assert mesh.remove_statistical_outliers() is mesh


def test_scans_in_memory_are_drawn_from_like_a_store_s() -> None:
    scan = Scan("s", 3 * sphere().points + np.float32(5), sphere().normals)
    source = InMemoryStore({"s": scan}, scale=4.0, metadata={})
    drawn = source.sample("s", 5000, np.random.default_rng(0))
    assert len(drawn) == 5000
    np.testing.assert_allclose(np.linalg.norm(drawn.points, axis=1), 0.75, atol=0.03)  # about the mean of the points
    back = drawn.to_world(source.frame("s"))
    assert np.abs(np.linalg.norm(back.points - 5, axis=1) - 3).max() < 1e-4
    assert not source.has_ground_truth("s")
    assert source.ground_truth("s") is None


def test_a_batch_of_the_plane_stays_in_it() -> None:
    flat = sphere(64)
    plane = Scan("plane", flat.points * np.float32([1, 1, 0]))
    batch = collate([plane], seed=3)
    assert not batch.near_points[..., 2].any()
    assert not batch.uniform_points[..., 2].any()
    assert batch.uniform_points[..., :2].std() > 0.3
    assert collate([flat], seed=3).uniform_points[..., 2].any()


@pytest.mark.parametrize("columns", [2, 4])
def test_columns_of_the_plane_are_points_with_a_z_of_zero(columns: int, tmp_path: Path) -> None:
    angle = np.linspace(0, 6, 150)
    out = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    np.savetxt(tmp_path / "curve.csv", np.concatenate([7 * out, out], axis=1)[:, :columns], delimiter=",")
    scan = read_scan(tmp_path / "curve.csv")
    np.testing.assert_allclose(scan.points, np.pad(7 * out, ((0, 0), (0, 1))), atol=1e-5)
    assert (scan.normals is None) == (columns == 2)
    if scan.normals is not None:
        np.testing.assert_allclose(scan.normals, np.pad(out, ((0, 0), (0, 1))), atol=1e-5)


def test_four_columns_that_are_no_normals_of_the_plane_are_points_and_something_else(tmp_path: Path) -> None:
    table = np.random.default_rng(0).uniform(0, 200, (150, 4))
    np.savetxt(tmp_path / "intensity.csv", table, delimiter=",")
    scan = read_scan(tmp_path / "intensity.csv")
    np.testing.assert_allclose(scan.points, table[:, :3], rtol=1e-6)
    assert scan.normals is None
    assert [(finding.code, finding.values) for finding in scan.findings] == [("columns-dropped", {"columns": "4"})]


def test_curves_are_written_upright(tmp_path: Path) -> None:
    write_curves(tmp_path / "c.svg", [np.array([[0.0, 0], [2, 0], [2, 1]])])
    text = (tmp_path / "c.svg").read_text()
    assert 'd="M0,0 L2,0 L2,1"' in text
    assert 'transform="scale(1 -1)"' in text
    assert 'viewBox="-0.1 -1.1 2.2 1.2"' in text


def test_normals_rotate_with_the_scan() -> None:
    from shapespace.geometry.similarity import frame_of

    scan = sphere()
    moved = scan.to_model(frame_of(torch.tensor([0.5, -0.2, 0.9, 0.0, 0.0, 0.0, 0.0])))
    assert moved.normals is not None
    np.testing.assert_allclose(moved.normals, moved.points, atol=1e-5)
    assert np.abs(moved.points - scan.points).max() > 0.5
