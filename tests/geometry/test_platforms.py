"""A level surface under the feet on which nothing stands is a platform; soles are none."""

from collections.abc import Callable

import numpy as np
import pytest
from trimesh import Trimesh, creation, transformations

from shapespace.fitting.clutter import remove_clutter
from shapespace.geometry.platforms import MIN_PLATFORM, find_platform
from shapespace.geometry.scan import Scan


def points_of(mesh: Trimesh, density: float = 3000) -> np.ndarray:
    return Scan.from_mesh(mesh).sample(int(density * mesh.area), np.random.default_rng(0)).points


@pytest.fixture
def person(make_body: Callable[..., Trimesh]) -> np.ndarray:
    return points_of(make_body(1.0, -0.8))


def test_a_turntable_goes_and_the_person_stays(person: np.ndarray) -> None:
    level = transformations.rotation_matrix(np.pi / 2, (1, 0, 0))
    disc = points_of(creation.cylinder(0.4, 0.04).apply_transform(level)) - [0, 0.02, 0]
    both = np.concatenate([person, disc])
    platform = find_platform(both, np.random.default_rng(1))
    assert platform is not None
    assert platform.plane.normal[1] > 0.99
    assert platform.plane.offset == pytest.approx(0.0, abs=0.01)
    assert 0.3 < platform.free_area < np.pi * 0.4**2
    alone = remove_clutter(Scan("anna", both), None)
    assert "platform-removed" in [found.code for found in alone.findings]
    assert alone.points[:, 1].min() > -0.01
    assert len(alone) == pytest.approx(len(person), rel=0.02)


def test_a_person_alone_stands_on_no_platform(person: np.ndarray) -> None:
    assert find_platform(person, np.random.default_rng(1)) is None


def test_scales_are_a_platform_and_feet_are_none(person: np.ndarray) -> None:
    """Two feet cover most of small scales; without scales there is a gap between them."""
    rng = np.random.default_rng(2)
    foot = points_of(creation.box((0.09, 0.08, 0.25)))
    feet = [foot + np.array([x, 0.04, 0.0]) for x in (-0.09, 0.09)]
    body = np.concatenate([*feet, person + np.array([0, 0.05 - person[:, 1].min(), 0])])
    board = points_of(creation.box((0.31, 0.03, 0.31))) - [0, 0.015, 0]
    covered = (np.abs(np.abs(board[:, 0]) - 0.09) < 0.045) & (np.abs(board[:, 2]) < 0.125) & (board[:, 1] > -0.01)
    platform = find_platform(np.concatenate([body, board[~covered]]), rng)
    assert platform is not None
    assert platform.plane.offset == pytest.approx(0.0, abs=0.01)
    assert platform.free_area < MIN_PLATFORM  # found by its covered hull alone
    assert find_platform(body, rng) is None


@pytest.mark.parametrize("seed", range(4))
def test_a_board_with_a_quarter_of_the_density_of_the_person_is_found(person: np.ndarray, seed: int) -> None:
    """The body above most of it does not hide it, and few triples of points have all three on it."""
    board = Scan.from_mesh(creation.box((0.45, 0.05, 0.36))).sample(250, np.random.default_rng(seed)).points
    low = person[:, 1].min()
    few = person[np.random.default_rng(seed).permutation(len(person))[:3000]]
    platform = find_platform(np.concatenate([few, board + np.array([0, low - 0.026, 0])]), np.random.default_rng(seed))
    assert platform is not None
    assert platform.plane.offset == pytest.approx(low, abs=0.012)
    assert find_platform(few, np.random.default_rng(seed)) is None
