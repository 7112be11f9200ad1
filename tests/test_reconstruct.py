"""One scan alone: its surface in space or its curve in the plane, and hints about its normals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shapespace.fitting.refine import RefineOptions
from shapespace.geometry.scan import Scan
from shapespace.models.igr import IGRConfig
from shapespace.reconstruct import Reconstruction, consistency, reconstruct
from shapespace.training.config import BatchConfig, LossWeights, OptimConfig, TrainConfig
from shapespace.training.run import Run

SMALL = TrainConfig(
    model=IGRConfig(width=64, depth=4, skip=2, init_radius=None),
    batch=BatchConfig(points=512, surface_points=256, half_extent=1.0),
    optim=OptimConfig(max_steps=150, lr=3e-3, schedule="cosine"),
    weights=LossWeights(surface=3.0, normal=0.3, eikonal=0.1, tangent_plane=3.0, unsigned_distance=1.0, code_reg=0.0),
    execution="eager",
    matmul_precision="float32",
)


def egg(count: int = 3000, size: float = 1.0) -> Scan:
    """A ball of radius 0.5 off the origin, in some unit."""
    out = np.random.default_rng(0).normal(size=(count, 3))
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return Scan("egg", (size * (0.5 * out + [3, 1, 2])).astype(np.float32), out.astype(np.float32))


def circle(count: int = 200) -> Scan:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    out = np.stack([np.cos(angle), np.sin(angle), np.zeros(count)], axis=1).astype(np.float32)
    return Scan("circle", 20 * out + np.float32([5, 1, 0]), out)


def run_reconstruct(scan: Scan, folder: Path, refine: RefineOptions | None = None) -> Reconstruction:
    return reconstruct(scan, Run(folder / "run"), _created(folder), refine)


def _created(folder: Path) -> TrainConfig[IGRConfig]:
    Run(folder / "run").create({})
    return SMALL


@pytest.mark.parametrize("size", [1.0, 400.0])
def test_a_ball_is_reconstructed_in_place_and_closed(tmp_path: Path, size: float) -> None:
    result = run_reconstruct(egg(size=size), tmp_path)
    mesh = result.mesh(resolution=48)
    radius = np.linalg.norm(mesh.vertices / size - [3, 1, 2], axis=1)
    assert np.abs(radius - 0.5).mean() < 0.01
    assert mesh.is_watertight
    assert mesh.volume / size**3 == pytest.approx(4 / 3 * np.pi / 8, rel=0.06)
    inside, outside = result.field(size * np.array([[3.0, 1, 2], [3.9, 1, 2]]))
    assert inside < 0 < outside
    assert outside == pytest.approx(0.4 * size, rel=0.1)


def test_detail_is_closer_to_the_points(tmp_path: Path) -> None:
    plain = run_reconstruct(egg(), tmp_path / "a")
    fine = run_reconstruct(egg(), tmp_path / "b", RefineOptions(steps=40))
    fresh = egg(1000).points.astype(np.float64)
    assert np.abs(fine.field(fresh)).mean() < 0.7 * np.abs(plain.field(fresh)).mean()


@pytest.mark.parametrize("with_normals", [True, False])
def test_points_of_the_plane_give_a_curve(tmp_path: Path, with_normals: bool) -> None:
    scan = circle() if with_normals else replace(circle(), normals=None)
    result = run_reconstruct(scan, tmp_path)
    (curve,) = result.contours(resolution=128)
    radius = np.linalg.norm(curve - [5, 1], axis=1)
    assert np.abs(radius - 20).mean() < 0.4
    np.testing.assert_allclose(curve[0], curve[-1])
    points = np.array([[5.0, 1, 0], [29, 1, 0]])
    np.testing.assert_array_equal(result.field(points), result.field(points + np.array([0, 0, 7.0])))
    assert result.field(points)[0] < 0 < result.field(points)[1]


def test_hints_about_normals(tmp_path: Path) -> None:
    assert run_reconstruct(egg(), tmp_path / "a").hints == ()
    (missing,) = run_reconstruct(replace(egg(), normals=None), tmp_path / "b").hints
    assert "no normals, they are estimated" in missing
    scan = egg()
    assert scan.normals is not None
    flipped = run_reconstruct(replace(scan, normals=-scan.normals), tmp_path / "c")
    assert "the normals point inward and were flipped" in flipped.hints[0]
    assert flipped.mesh(resolution=32).volume > 0
    signs = np.where(np.random.default_rng(0).random(len(scan)) < 0.3, -1, 1).astype(np.float32)
    (mixed,) = run_reconstruct(replace(scan, normals=signs[:, None] * scan.normals), tmp_path / "d").hints
    assert "point against their neighbors'" in mixed
    assert "--normals drop" in mixed


def test_consistency_counts_both_kinds() -> None:
    scan = egg()
    assert scan.normals is not None
    assert consistency(scan) == (0.0, pytest.approx(0.0, abs=0.01))
    inconsistent, inward = consistency(replace(scan, normals=-scan.normals))
    assert inconsistent == 0
    assert inward > 0.95


def test_too_few_points_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scan egg: 99 points, a surface needs at least 100"):
        run_reconstruct(egg(99), tmp_path)
