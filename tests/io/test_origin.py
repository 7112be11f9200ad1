"""Scans far from the origin of their file keep their precision, on the way in and out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from shapespace.geometry.scan import Scan
from shapespace.io.scan_files import read_mesh, read_scan, read_scans, write_mesh, write_scan

RNG = np.random.default_rng(0)
BODY = RNG.normal(size=(800, 3)) * (0.2, 0.4, 0.1)
PLACE = np.array([500_123.4, 4_649_776.2, 121.3])


@pytest.mark.parametrize("up", ["y", "z", "-x"])
@pytest.mark.parametrize("unit", [1.0, 0.001])
def test_points_keep_their_distances_and_their_place(tmp_path: Path, up: str, unit: float) -> None:
    points = BODY / unit + PLACE / unit
    np.save(tmp_path / "far.npy", points)
    np.save(tmp_path / "near.npy", BODY / unit)
    scan, near = (read_scan(tmp_path / f"{name}.npy", unit=unit, up=up) for name in ("far", "near"))
    assert near.origin is None
    assert scan.points.dtype == np.float32
    assert np.abs(scan.points).max() < 3
    np.testing.assert_allclose(scan.points - scan.points[0], near.points - near.points[0], atol=2e-6)
    assert [found.code for found in scan.findings] == ["origin-moved"]
    write_scan(tmp_path / "back.ply", scan, unit=unit, up=up)
    back = trimesh.load(tmp_path / "back.ply", process=False).vertices
    np.testing.assert_allclose(back, points, atol=2e-6 / unit, rtol=0)


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb"])
@pytest.mark.parametrize("up", ["y", "z"])
def test_meshes_are_written_at_the_place_of_the_scan(tmp_path: Path, suffix: str, up: str) -> None:
    ball = trimesh.creation.icosphere(3)
    np.savez(tmp_path / "far.npz", points=ball.vertices + PLACE, faces=ball.faces)
    scan = read_scan(tmp_path / "far.npz", up=up)
    quality = np.linspace(0, 1, len(scan))
    mesh = trimesh.Trimesh(scan.points, scan.faces, process=False)
    mesh.vertex_attributes["quality"] = quality
    path = tmp_path / f"mesh{suffix}"
    write_mesh(path, mesh, up=up, origin=scan.origin)
    np.testing.assert_allclose(read_mesh(path).vertices, ball.vertices + PLACE, atol=1e-6, rtol=0)
    np.testing.assert_array_equal(read_mesh(path).faces, ball.faces)
    again = read_scan(path, up=up)
    np.testing.assert_allclose(again.points + again.origin, scan.points + scan.origin, atol=1e-6, rtol=0)
    if suffix == ".ply":
        np.testing.assert_allclose(read_mesh(path).vertex_attributes["quality"], quality, atol=1e-6)


def test_the_frames_of_a_motion_share_one_origin(tmp_path: Path) -> None:
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", BODY + PLACE + (1.7 * index, 0, 0))
    for unit in ("auto", "m"):
        scans, _ = read_scans([tmp_path / f"{index}.npy" for index in range(3)], unit=unit)
        for index, scan in enumerate(scans):
            np.testing.assert_array_equal(scan.origin, scans[0].origin)
            np.testing.assert_allclose(scan.points - scans[0].points, np.tile([1.7 * index, 0, 0], (800, 1)), atol=2e-6)


def test_the_unit_is_guessed_far_away(tmp_path: Path) -> None:
    np.save(tmp_path / "far.npy", 1000 * (BODY + PLACE))
    (scan,), unit = read_scans([tmp_path / "far.npy"])
    assert unit.name == "mm"
    np.testing.assert_allclose(scan.points + scan.origin, BODY + PLACE, atol=2e-6, rtol=0)


def test_float32_that_is_too_coarse_is_a_finding(tmp_path: Path) -> None:
    np.save(tmp_path / "far.npy", (BODY + PLACE).astype(np.float32))
    scan = read_scan(tmp_path / "far.npy")
    assert [found.code for found in scan.findings] == ["origin-moved", "coarse-coordinates"]
    assert scan.findings[1].values["step"] == 0.5


def test_sensors_move_with_the_points(tmp_path: Path) -> None:
    np.savez(tmp_path / "far.npz", points=BODY + PLACE, sensors=np.tile(PLACE + np.array([0, 0, 3]), (800, 1)))
    scan = read_scan(tmp_path / "far.npz")
    np.testing.assert_allclose(scan.sensors - scan.points, np.array([0, 0, 3]) - BODY, atol=2e-6)


def test_parts_and_samples_of_a_scan_keep_origin_and_findings(tmp_path: Path) -> None:
    np.save(tmp_path / "far.npy", BODY + PLACE)
    scan = read_scan(tmp_path / "far.npy")
    frame = scan.frame(1.25)
    others = (scan.sample(50, RNG), scan.select(np.arange(7)), scan.mask(np.arange(800) < 9), scan.to_model(frame))
    for other in others:
        np.testing.assert_array_equal(other.origin, scan.origin)
        assert other.findings == scan.findings


def test_fits_store_the_origin_and_meshes_of_codes_are_written_there(tmp_path: Path) -> None:
    from shapespace import ShapeSpace
    from shapespace.fitting.result import load_fits, save_fits
    from shapespace.models import igr

    torch.manual_seed(0)
    sizes = igr.IGRConfig(code_dim=4, width=24, depth=3, skip=1, init_radius=0.5, encoder_points=128)
    space = ShapeSpace(igr.build_igr(sizes).eval(), sizes, scale=1.25, metadata={"weights": {}})
    near, far = Scan("near", BODY.astype(np.float32)), Scan("far", BODY.astype(np.float32), origin=PLACE)
    fits = space.encode_scans([near, far])
    assert fits[0].origin is None
    np.testing.assert_array_equal(fits[1].origin, PLACE)
    save_fits(tmp_path / "codes.safetensors", fits, space.model)
    back = load_fits(tmp_path / "codes.safetensors", space.model)
    assert back[0].origin is None
    np.testing.assert_array_equal(back[1].origin, PLACE)
    moved = back[1].relative_to(PLACE + np.array([1, 2, 3]))
    np.testing.assert_allclose(moved.frame.center - back[1].frame.center, [-1, -2, -3], atol=1e-6)
    behind = replace(back[1], origin=PLACE + np.array([0, 0, 2]))
    between = space.interpolate_codes(back[1], behind, 3)
    np.testing.assert_array_equal(between[0].origin, PLACE)
    np.testing.assert_allclose(between[1].frame.center - between[0].frame.center, [0, 0, 1], atol=1e-5)
