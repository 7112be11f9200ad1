"""Strays are told from thinly measured surface; subsets are even."""

import numpy as np
import pytest

from shapespace.geometry import density
from shapespace.geometry.scan import Scan


def body(count: int, rng: np.random.Generator) -> np.ndarray:
    """Points of even density on a sphere of radius 1."""
    points = rng.normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def test_a_thin_part_is_no_stray_and_an_even_subset_has_it_whole() -> None:
    rng = np.random.default_rng(0)
    points = body(20_000, rng)
    thin = points[:, 1] < -0.4
    points = points[~thin | (rng.random(len(points)) < 0.05)]
    thin = points[:, 1] < -0.4
    distance = density.neighbor_distance(points)
    assert not density.strays(points, distance).any()
    assert density.thin_share(distance) < 0.05
    chosen = density.thin_evenly(distance, np.random.default_rng(1))
    assert np.isin(np.flatnonzero(thin), chosen).mean() > 0.7
    assert 0.2 < thin[chosen].mean() < 0.45  # 0.3 of the area
    scan = Scan("anna", points).even_out()
    assert [found.code for found in scan.findings] == ["uneven-density"]


def test_points_that_fill_space_are_strays() -> None:
    rng = np.random.default_rng(2)
    noise = rng.uniform(-1.5, 1.5, (3000, 3))
    noise = noise[np.abs(np.linalg.norm(noise, axis=1) - 1) > 0.1]
    points = np.concatenate([body(7000, rng), noise])
    isolated = density.strays(points, density.neighbor_distance(points))
    assert isolated[7000:].mean() > 0.8
    assert isolated[:7000].mean() < 0.01
    kept = Scan("anna", points).even_out(keep_outliers=True)
    assert len(kept) == len(points)


@pytest.mark.parametrize("count", [5, 60, 90, 300])
def test_few_strays_in_the_space_around_a_body_do_not_make_it_uneven(count: int) -> None:
    rng = np.random.default_rng(4)
    points = np.concatenate([body(3000, rng) * (0.3, 0.8, 0.2), rng.uniform(-1, 1, (count, 3)) * (0.6, 1.6, 0.4)])
    scan = Scan("anna", points).even_out()
    assert scan.findings == ()
    outside = (np.square(scan.points / (0.3, 0.8, 0.2)).sum(axis=1) > 1.5).sum()
    assert outside < 0.02 * 3000
    assert len(scan) >= 3000


@pytest.mark.parametrize("count", [200, 300])
def test_strays_inside_of_a_flat_box_around_a_sparse_body_are_no_thin_part(count: int) -> None:
    rng = np.random.default_rng(4)
    points = np.concatenate([body(3000, rng) * (0.3, 0.8, 0.2), rng.uniform(-1, 1, (count, 3)) * (0.45, 0.9, 0.2)])
    scan = Scan("anna", points).even_out()
    assert scan.findings == ()
    assert 3000 <= len(scan) < 3000 + 0.7 * count


def test_points_that_were_measured_twice_are_judged_as_if_once() -> None:
    rng = np.random.default_rng(2)
    points = np.concatenate([body(7000, rng), rng.uniform(-1.5, 1.5, (3000, 3))])
    once = density.strays(points, density.neighbor_distance(points))
    twice = np.repeat(points, 2, axis=0)
    isolated = density.strays(twice, density.neighbor_distance(twice))
    assert isolated[::2].tolist() == isolated[1::2].tolist()
    assert isolated.mean() == pytest.approx(once.mean(), rel=0.2)


def test_even_points_are_left_as_they_are() -> None:
    scan = Scan("anna", body(3000, np.random.default_rng(3)))
    assert scan.even_out() is scan
