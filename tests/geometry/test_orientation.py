"""Normals, faces and sensors that contradict the points are turned, oriented anew or dropped, with a finding."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from trimesh import Trimesh

from shapespace.geometry import normals
from shapespace.geometry.orientation import check_orientation
from shapespace.geometry.scan import Scan

COUNT = 4000


@pytest.fixture
def scan() -> Scan:
    """Points with outward normals of a capsule with a bump: closed, and its own mirror image in no plane but one."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(COUNT, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    axes = np.array([0.25, 0.85, 0.18])
    outward = directions / axes
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    return Scan("anna", (directions * axes).astype(np.float32), outward.astype(np.float32))


def codes(scan: Scan) -> list[str]:
    return [found.code for found in scan.findings]


def wrong(scan: Scan, truth: Scan) -> float:
    assert scan.normals is not None
    assert truth.normals is not None
    return float(((scan.normals * truth.normals).sum(axis=1) < 0).mean())


def test_good_normals_are_left_as_they_are(scan: Scan) -> None:
    assert check_orientation(scan) is scan
    bare = replace(scan, normals=None)
    assert check_orientation(bare) is bare


@pytest.mark.parametrize("one_side", [False, True])
def test_inward_normals_are_turned(scan: Scan, one_side: bool) -> None:
    assert scan.normals is not None
    scan = scan.select(np.flatnonzero(scan.normals[:, 2] > 0.2)) if one_side else scan
    assert scan.normals is not None
    turned = check_orientation(replace(scan, normals=-scan.normals))
    assert codes(turned) == ["normals-turned"]
    np.testing.assert_array_equal(turned.normals, scan.normals)


def random_signs(scan: Scan, rng: np.random.Generator) -> np.ndarray:
    return scan.normals * rng.choice([-1.0, 1.0], (len(scan), 1))


def one_direction(scan: Scan, rng: np.random.Generator) -> np.ndarray:
    assert scan.normals is not None
    return normals.orient_towards(scan.normals, np.tile([[0.0, 0.3, 1.0]], (len(scan), 1)))


def block(scan: Scan, rng: np.random.Generator) -> np.ndarray:
    return np.where(scan.points[:, 1:2] > 0.3, -scan.normals, scan.normals)


@pytest.mark.parametrize("spoil", [random_signs, one_direction, block])
def test_mixed_signs_are_oriented_anew(scan: Scan, spoil: Callable[[Scan, np.random.Generator], np.ndarray]) -> None:
    spoiled = replace(scan, normals=spoil(scan, np.random.default_rng(1)).astype(np.float32))
    mended = check_orientation(spoiled)
    assert codes(mended) == ["normals-oriented"]
    assert mended.findings[0].values["share"] == pytest.approx(wrong(spoiled, scan), abs=0.02)
    assert wrong(mended, scan) < 0.02


def test_vectors_that_are_no_normals_are_ignored(scan: Scan) -> None:
    colors = np.abs(np.random.default_rng(2).normal(size=scan.points.shape))
    colors /= np.linalg.norm(colors, axis=1, keepdims=True)
    mended = check_orientation(replace(scan, normals=colors.astype(np.float32)))
    assert codes(mended) == ["normals-disagree"]
    assert mended.normals is None


def test_sensors_that_cannot_have_seen_the_points_are_dropped(scan: Scan) -> None:
    assert scan.normals is not None
    true = (scan.points + 2 * scan.normals).astype(np.float32)
    right = replace(scan, sensors=true)
    assert check_orientation(right) is right
    one = np.tile(np.array([[0.0, 1.0, 3.0]], dtype=np.float32), (len(scan), 1))
    for given in (scan, replace(scan, normals=None)):
        mended = check_orientation(replace(given, sensors=one))
        assert codes(mended) == ["sensors-dropped"]
        assert mended.sensors is None


def test_a_mesh_that_is_inside_out_is_turned(make_body: Callable[..., Trimesh]) -> None:
    body = make_body(1.0, -0.8)
    scan = Scan.from_mesh(body, "anna")
    assert check_orientation(scan) is scan
    turned = check_orientation(replace(scan, faces=scan.faces[:, ::-1]))
    assert codes(turned) == ["faces-turned"]
    np.testing.assert_array_equal(turned.faces, scan.faces)


def test_faces_of_mixed_sides_become_points_with_outward_normals(make_body: Callable[..., Trimesh]) -> None:
    body = make_body(1.0, -0.8)
    faces = np.array(body.faces)
    flipped = np.random.default_rng(3).random(len(faces)) < 0.4
    faces[flipped] = faces[flipped, ::-1]
    mended = check_orientation(Scan("anna", np.asarray(body.vertices), faces=faces))
    assert codes(mended) == ["faces-oriented"]
    assert mended.faces is None
    assert mended.normals is not None


def test_few_points_are_not_judged(scan: Scan) -> None:
    few = scan.select(np.arange(60))
    assert check_orientation(few) is few
