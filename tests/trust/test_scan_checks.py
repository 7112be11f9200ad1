"""A person whose scan is spoilt in a common way is fitted as well as before, or a finding says what was noticed."""

import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from trimesh import Trimesh, creation

from shapespace import Finding, Fit, Scan, ScanWarning, ShapeSpace, example_scan
from shapespace.fitting.checks import check_scan
from shapespace.geometry import proximity
from shapespace.io.scan_arrays import scan_of_arrays

GRACE = 0.0005  # meters


@cache
def space() -> ShapeSpace:
    return ShapeSpace.load("humans")


@cache
def clean() -> tuple[Scan, Fit, Trimesh]:
    """The example scan, its fit without warnings, and the mesh."""
    scan = example_scan()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScanWarning)
        fit = space().fit(scan.points, scan.normals)
    return scan, fit, space().mesh(fit)


def error(mesh: Trimesh) -> float:
    """Mean distance (m) of the clean scan from a mesh."""
    return float(proximity.closest_point(clean()[0].points.astype(np.float64), mesh)[0].mean())


def spoil(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Points and normals of the example, spoilt, and the 4 x 4 matrix that brings the result back."""
    scan = clean()[0]
    assert scan.normals is not None
    points, normals, back = scan.points.astype(np.float64), scan.normals.astype(np.float64), np.eye(4)
    if kind == "rows":
        order = rng.permutation(len(points))
        return points[order], normals[order], back
    if kind == "offset":
        shift = rng.uniform(-1e6, 1e6, 3)
        back[:3, 3] = 0  # the mesh is relative to the origin of the fit
        return points + shift, normals, back
    if kind == "unit":
        scale = rng.choice([0.5, 1.7])
        return points * scale, normals, np.diag([1 / scale] * 3 + [1.0])
    if kind == "flipped block":
        center = points[rng.integers(len(points))]
        near = np.linalg.norm(points - center, axis=1) < rng.uniform(0.1, 0.9)
        return points, np.where(near[:, None], -normals, normals), back
    if kind == "inward":
        return points, -normals, back
    if kind == "long normals":
        return points, normals * rng.uniform(0.1, 9, (len(points), 1)), back
    if kind == "density":
        low = points[:, 1] < np.quantile(points[:, 1], rng.uniform(0.2, 0.6))
        kept = ~low | (rng.random(len(points)) < rng.uniform(0.05, 0.3))
        return points[kept], normals[kept], back
    if kind == "zeros":
        count = int(rng.integers(3, 2 * len(points)))
        order = rng.permutation(len(points) + count)
        zeros = np.zeros((count, 3))
        return np.concatenate([points, zeros])[order], np.concatenate([normals, zeros])[order], back
    if kind == "board":
        low = points[points[:, 1] < points[:, 1].min() + 0.1]
        size = np.maximum(np.ptp(low, axis=0) + 0.05, 0.32)
        board = creation.box((size[0], 0.05, size[2])).sample(int(rng.integers(200, 1500)))
        middle = (low.min(axis=0) + low.max(axis=0)) / 2
        return np.concatenate([points, board + np.array([middle[0], low[:, 1].min() - 0.026, middle[2]])]), None, back
    if kind == "heading":
        rotation = Rotation.from_rotvec([0, rng.uniform(-np.pi, np.pi), 0]).as_matrix()
        back[:3, :3] = rotation.T
        return points @ rotation.T, normals @ rotation.T, back
    assert kind == "clutter"
    center, direction = (
        np.median(points, axis=0),
        Rotation.from_rotvec([0, rng.uniform(-np.pi, np.pi), 0]).apply([1, 0, 0]),
    )
    ball = creation.icosphere(subdivisions=3, radius=rng.uniform(0.05, 0.12)).sample(int(rng.integers(60, 500)))
    places = (ball + center + step * direction for step in np.arange(0.1, 3, 0.02))
    thing = next(place for place in places if proximity.nearest_point(place, points)[0].min() > 0.08)
    return np.concatenate([points, thing]), None, back


KINDS = (
    "rows",
    "offset",
    "unit",
    "flipped block",
    "inward",
    "long normals",
    "zeros",
    "density",
    "heading",
    "clutter",
    "board",
)


def check(kind: str, seed: int) -> None:
    points, normals, back = spoil(kind, np.random.default_rng(seed))
    scan = scan_of_arrays(points, normals) if kind == "zeros" else Scan("spoilt", points, normals)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScanWarning)
        if kind in ("clutter", "board"):
            (scan,) = space().remove_clutter([scan])
        (fit,) = space().fit_scans([scan])
        fit = space().assess(fit, scan)
    if fit.origin is not None:
        back = back.copy()
        back[:3, 3] = fit.origin - (points.mean(axis=0) - clean()[0].points.astype(np.float64).mean(axis=0))
    mesh = space().mesh(fit).apply_transform(back)
    assert error(mesh) < 1.5 * error(clean()[2]) + GRACE or fit.findings, (kind, seed, error(mesh))


def test_a_fit_of_a_clean_scan_is_good_and_raises_no_warning() -> None:
    _, fit, _ = clean()
    assert fit.verdict == "good"
    assert fit.in_distribution
    assert not fit.low_confidence
    assert fit.findings == ()
    assert fit.quality is not None
    assert 1.4 < fit.quality.stature < 1.9


def test_what_was_found_is_in_the_fit_and_a_warning() -> None:
    scan = example_scan()
    assert scan.normals is not None
    with pytest.warns(ScanWarning, match=r"point inward.*\[normals-turned\]") as caught:
        fit = space().fit(scan.points, -scan.normals)
    assert [found.code for found in fit.findings] == ["normals-turned"]
    (warning,) = [one.message for one in caught if isinstance(one.message, ScanWarning)]
    assert warning.finding == fit.findings[0]
    np.testing.assert_allclose(space().mesh(fit).vertices, clean()[2].vertices, atol=1e-4)


def test_a_body_of_no_adult_size_is_said_with_the_factor() -> None:
    scan = example_scan()
    with pytest.warns(ScanWarning, match="m tall, which is unlikely"):
        fit = space().fit(0.6 * scan.points, scan.normals)
    (found,) = [found for found in fit.findings if found.code == "unlikely-stature"]
    assert isinstance(found, Finding)
    assert found.values["stature"] == pytest.approx(0.6 * clean()[1].quality.stature, rel=0.1)
    assert found.values["factor"] == pytest.approx(1.7 / found.values["stature"], rel=1e-2)


@given(st.floats(0.0, 1.0), st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_flipped_normals_are_mended_or_few(share: float, seed: int) -> None:
    scan, rng = example_scan(), np.random.default_rng(seed)
    assert scan.normals is not None
    flipped = rng.random(len(scan)) < share
    mended = check_scan(replace(scan, normals=np.where(flipped[:, None], -scan.normals, scan.normals)))
    assert mended.normals is not None
    assert ((mended.normals * scan.normals).sum(axis=1) < 0).mean() < 0.07
    assert mended.findings or flipped.mean() < 0.07


@pytest.mark.slow
@given(st.sampled_from(KINDS), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_spoilt_scan_is_fitted_as_well_or_noticed(kind: str, seed: int) -> None:
    check(kind, seed)


def test_zeros_of_a_camera_among_points_from_python_are_dropped() -> None:
    points, normals, _ = spoil("zeros", np.random.default_rng(1))
    scan = scan_of_arrays(points, normals)
    assert len(scan) == len(clean()[0])
    assert [found.code for found in scan.findings] == ["zero-points-dropped"]


def test_a_thing_beside_a_person_is_left_out() -> None:
    check("clutter", 1)
