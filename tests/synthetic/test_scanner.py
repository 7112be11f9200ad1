"""Virtual scans: close to the surface, facing their cameras, with holes."""

from dataclasses import replace

import numpy as np
import pytest
import trimesh

from shapespace.geometry import proximity
from shapespace.geometry.scan import Scan
from shapespace.synthetic.body import Body
from shapespace.synthetic.scanner import VirtualScanner


@pytest.fixture(scope="module")
def person() -> trimesh.Trimesh:
    body = Body.load()
    rotations = np.tile(np.eye(3), (len(body.joints), 1, 1))
    return trimesh.Trimesh(body.skin(np.zeros(len(body.components)), rotations), body.faces, process=False)


def scanned(mesh: trimesh.Trimesh, scanner: VirtualScanner, seed: int = 0) -> Scan:
    return scanner.scan(
        np.asarray(mesh.vertices), np.asarray(mesh.faces), np.random.default_rng(seed), name="00/limits/0"
    )


@pytest.fixture(scope="module")
def scan(person: trimesh.Trimesh) -> Scan:
    return scanned(person, VirtualScanner())


def test_points_are_near_the_surface(person: trimesh.Trimesh, scan: Scan) -> None:
    distance, _, _ = proximity.closest_point(scan.points, person)
    assert 0.0004 < distance.mean() < 0.0008
    assert distance.max() < 0.015
    assert scan.name == "00/limits/0"
    assert 30_000 < len(scan) < 100_000
    assert scan.points.dtype == np.float32


def test_without_noise_points_are_on_the_surface(person: trimesh.Trimesh) -> None:
    distance, _, _ = proximity.closest_point(scanned(person, VirtualScanner(noise_std=0.0)).points, person)
    assert distance.max() < 1e-5


def test_every_face_is_wound_towards_its_camera(scan: Scan) -> None:
    assert scan.faces is not None
    assert scan.sensors is not None
    corners = scan.points[scan.faces].astype(np.float64)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    sensors = scan.sensors[scan.faces]
    assert (sensors == sensors[:, :1]).all()  # patches of different cameras are not merged
    assert (np.einsum("nd,nd->n", sensors[:, 0] - corners.mean(axis=1), normal) > 0).all()
    assert np.array_equal(np.unique(scan.faces), np.arange(len(scan)))


def test_cameras_stand_around_the_body(person: trimesh.Trimesh, scan: Scan) -> None:
    assert scan.sensors is not None
    sensors = np.unique(scan.sensors, axis=0)
    away = sensors - person.bounds.mean(axis=0)
    assert len(sensors) == 16
    np.testing.assert_allclose(np.linalg.norm(away, axis=1), 2.6, atol=1e-6)
    elevation = np.rad2deg(np.arcsin(away[:, 1] / 2.6))
    np.testing.assert_allclose(np.sort(elevation), [-8.0] * 8 + [25.0] * 8, atol=1e-4)
    azimuth = np.rad2deg(np.arctan2(away[:, 0], away[:, 2])).round(3) % 360
    assert np.array_equal(np.unique(azimuth), np.arange(0.0, 360.0, 45.0))


def test_no_triangle_spans_a_jump_in_depth(scan: Scan) -> None:
    assert scan.faces is not None
    assert scan.sensors is not None
    depth = np.linalg.norm(scan.points.astype(np.float64) - scan.sensors, axis=1)[scan.faces]
    span = np.ptp(depth, axis=1)
    assert 0.025 < span.max() < 0.03 + 1e-6


def test_some_of_the_surface_is_unseen(person: trimesh.Trimesh, scan: Scan) -> None:
    samples = trimesh.sample.sample_surface(person, 10_000, seed=0)[0]
    distance, _, _ = proximity.closest_point(samples, trimesh.Trimesh(scan.points, scan.faces, process=False))
    assert 0.005 < (distance > 0.01).mean() < 0.08


def test_nothing_is_measured_beyond_the_maximum_incidence() -> None:
    ball = trimesh.creation.icosphere(subdivisions=6, radius=0.5)
    scanner = VirtualScanner(noise_std=0.0, num_holes=0, max_depth_jump=1.0, max_incidence=60.0)
    scan = scanned(ball, scanner)
    assert scan.sensors is not None
    view = scan.sensors - scan.points
    cosine = np.einsum("nd,nd->n", view / np.linalg.norm(view, axis=1, keepdims=True), scan.points / 0.5)
    assert np.rad2deg(np.arccos(cosine)).max() == pytest.approx(60.0, abs=1.0)


def test_noise_is_along_the_ray_and_grows_with_incidence() -> None:
    ball = trimesh.creation.icosphere(subdivisions=6, radius=0.5)
    noisy, exact = (
        scanned(ball, VirtualScanner(noise_std=noise, num_holes=0, max_depth_jump=1.0)) for noise in (0.0008, 0.0)
    )
    assert noisy.sensors is not None
    assert len(noisy) == len(exact)
    ray = exact.points.astype(np.float64) - noisy.sensors
    depth = np.linalg.norm(ray, axis=1)
    shift = noisy.points - exact.points
    along = np.einsum("nd,nd->n", shift, ray) / depth
    assert np.abs(shift - along[:, None] * ray / depth[:, None]).max() < 2e-6
    cosine = -np.einsum("nd,nd->n", ray / depth[:, None], exact.points / 0.5)
    assert (along * cosine).std() == pytest.approx(0.0008, rel=0.03)
    assert abs(along.mean()) < 5e-5


def test_holes_remove_points(person: trimesh.Trimesh) -> None:
    whole = scanned(person, VirtualScanner(num_holes=0))
    assert 0.8 * len(whole) < len(scanned(person, VirtualScanner())) < 0.99 * len(whole)


def test_finer_cameras_see_more(person: trimesh.Trimesh, scan: Scan) -> None:
    coarse = scanned(person, replace(VirtualScanner(), columns=80, rows=120))
    assert len(coarse) < 0.3 * len(scan)


def test_same_seed_same_scan(person: trimesh.Trimesh, scan: Scan) -> None:
    again, other = scanned(person, VirtualScanner()), scanned(person, VirtualScanner(), seed=1)
    assert again.points.tobytes() == scan.points.tobytes()
    assert again.faces is not None
    assert scan.faces is not None
    assert again.faces.tobytes() == scan.faces.tobytes()
    assert other.points.tobytes() != scan.points.tobytes()
