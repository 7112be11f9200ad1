"""Removal of clutter: planes and separate parts go, the person stays."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from trimesh import Trimesh, creation, util

from shapespace.fitting.clutter import QuickFit, parts_of_person, remove_clutter
from shapespace.geometry.scan import Scan


def of(mesh: Trimesh, *, faces: bool = False, count: int = 6000) -> Scan:
    scan = Scan("p/s/0", np.asarray(mesh.vertices, dtype=np.float32), faces=np.asarray(mesh.faces, dtype=np.int32))
    return scan if faces else scan.sample(count, np.random.default_rng(0))


def box(extents: tuple[float, float, float], center: tuple[float, float, float]) -> Trimesh:
    return creation.box(extents).apply_translation(center)


def never(scan: Scan) -> QuickFit:
    raise AssertionError(f"{scan.name} is one part: no quick fit is needed")


def people_at(*centers: float) -> Callable[[Scan], QuickFit]:
    """Quick fits of a stand-in for a space: people are within 0.7 m (along x) of these centers."""

    def quick_fit(scan: Scan) -> QuickFit:
        away = np.abs(scan.points[:, :1] - np.array(centers)).min(axis=1)
        return QuickFit(1.0 if np.median(away) < 0.7 else 20.0, lambda x: np.abs(x[:, :1] - centers).min(axis=1) // 0.7)

    return quick_fit


FLOOR = box((2.4, 0.02, 2.4), (0, -0.011, 0))
CABINET = box((0.6, 1.8, 1.2), (1.1, 0.9, 0))


@pytest.fixture
def body(make_body: Callable[..., Trimesh]) -> Trimesh:
    return make_body(1.0, -0.8)


@pytest.mark.parametrize("faces", [False, True])
def test_a_scan_of_a_person_alone_is_left_as_it_is(body: Trimesh, faces: bool) -> None:
    scan = of(body, faces=faces)
    assert remove_clutter(scan, never) is scan


@pytest.mark.parametrize("faces", [False, True])
def test_a_floor_goes_and_the_person_stays(body: Trimesh, faces: bool) -> None:
    alone = remove_clutter(of(util.concatenate([body, FLOOR]), faces=faces), never)
    assert alone.points[:, 1].min() > 0
    np.testing.assert_allclose(np.ptp(alone.points, axis=0), np.ptp(body.vertices, axis=0), atol=0.04)
    assert (alone.faces is not None) == faces
    if alone.faces is not None:
        above = np.asarray(body.vertices)[:, 1] >= alone.points[:, 1].min() - 1e-6
        assert len(alone.faces) == above[np.asarray(body.faces)].all(axis=1).sum()


@pytest.mark.parametrize("faces", [False, True])
def test_a_cabinet_larger_than_the_person_goes_and_so_does_a_floor(body: Trimesh, faces: bool) -> None:
    scene = of(util.concatenate([CABINET, body, FLOOR]), faces=faces, count=20_000)
    alone = remove_clutter(scene, people_at(0.0))
    assert alone.points[:, 0].max() < 0.79
    np.testing.assert_allclose(np.ptp(alone.points, axis=0), np.ptp(body.vertices, axis=0), atol=0.04)


def test_parts_that_are_one_person_stay_together(body: Trimesh) -> None:
    scan = of(body)
    apart = np.abs(scan.points[:, 1] - 1.2) > 0.1  # seen above and below of something
    torn = scan.select(np.flatnonzero(apart))
    assert remove_clutter(torn, people_at(0.0)) is torn
    beside = Scan("p/s/0", np.concatenate([torn.points, of(CABINET).points]))
    np.testing.assert_allclose(remove_clutter(beside, people_at(0.0)).points, torn.points)


def test_a_leg_that_looks_like_a_person_is_not_taken_for_the_person(body: Trimesh) -> None:
    """The rest is out of distribution, as in a single view without a knee."""
    scan = of(body)
    above, below = (
        scan.select(np.flatnonzero(chosen)) for chosen in (scan.points[:, 1] > 0.5, scan.points[:, 1] < 0.3)
    )
    leg = below.select(np.flatnonzero(below.points[:, 0] > 0))
    torn = Scan("p/s/0", np.concatenate([above.points, leg.points]))
    assert 0.05 * len(torn) < len(leg) < 0.2 * len(torn)
    asked: list[int] = []

    def quick_fit(some: Scan) -> QuickFit:
        asked.append(len(some))
        return QuickFit(3.0 if len(some) < 0.2 * len(torn) else 9.0, lambda x: np.zeros(len(x)))

    alone = remove_clutter(torn, quick_fit)
    assert len(asked) > 1
    np.testing.assert_array_equal(alone.points, above.points)


def test_normals_and_sensors_go_with_their_points(body: Trimesh) -> None:
    whole = of(util.concatenate([body, FLOOR]))
    scan = replace(whole, sensors=whole.points + 1)
    alone = remove_clutter(scan, never)
    assert alone.normals is not None
    assert alone.sensors is not None
    np.testing.assert_array_equal(alone.sensors, alone.points + 1)
    assert len(alone.normals) == len(alone) < len(scan)


def test_a_scan_of_a_plane_alone_is_unchanged() -> None:
    scan = of(FLOOR)
    assert remove_clutter(scan, never) is scan


def test_without_quick_fits_only_planes_are_removed(body: Trimesh) -> None:
    alone = remove_clutter(of(util.concatenate([CABINET, body, FLOOR])), None)
    assert 0 < alone.points[:, 1].min() < 0.05
    assert alone.points[:, 0].max() > 1.3


@pytest.mark.parametrize(
    ("score", "distance", "stays"),
    [(1.2, 0.019, True), (1.2, 0.04, False), (1.6, 0.019, False), (2.4, 0.01, True), (2.6, 0.01, False)],
)
def test_a_small_part_is_a_limb_if_a_fit_of_all_reaches_it_and_is_no_odder(
    body: Trimesh, score: float, distance: float, stays: bool
) -> None:
    scan = of(body)
    hand = (np.random.default_rng(0).normal(size=(80, 3)) * 0.02 + (0.9, 1.0, 0)).astype(np.float32)
    apart = Scan("p/s/0", np.concatenate([scan.points, hand]))

    def quick_fit(some: Scan) -> QuickFit:
        with_hand = len(some) > len(scan)
        far = distance if with_hand else 0.15
        return QuickFit(score if with_hand else 1.0, lambda x: np.where(x[:, 0] > 0.8, far, 0.001))

    assert len(remove_clutter(apart, quick_fit)) == len(scan) + stays * len(hand)


@pytest.mark.filterwarnings("error")
def test_parts_that_are_no_person_by_their_size_stay_for_the_check_of_the_size(body: Trimesh) -> None:
    scan = of(body)
    parts = np.repeat([0, 1], [len(scan) - 200, 200])
    nothing = QuickFit(np.inf, lambda points: np.full(len(points), np.inf))
    assert parts_of_person(scan, parts, lambda some: nothing).all()
