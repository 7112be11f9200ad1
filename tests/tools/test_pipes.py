"""Scans from files and standard input, in any unit; meshes to files and standard output; quality of fits."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from shapespace.geometry.scan import Scan
from shapespace.io.scan_files import read_bytes, read_scan, write_scan
from shapespace.tools.__main__ import main
from shapespace.tools._outputs import warn_about_fits

pytestmark = pytest.mark.usefixtures("first_fit_only")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model: it has a surface."""
    from shapespace import ShapeSpace
    from shapespace.models import igr

    torch.manual_seed(0)
    sizes = igr.IGRConfig(code_dim=4, width=24, depth=3, skip=1, init_radius=0.5, encoder_points=128)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    ShapeSpace(igr.build_igr(sizes).eval(), sizes, scale=1.25, metadata={"weights": {}}).save(path)
    return path


def person() -> Scan:
    normals = np.random.default_rng(0).normal(size=(500, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return Scan("p", (normals * (0.3, 0.85, 0.2) + (4, 5, 6)).astype(np.float32), normals.astype(np.float32))


def call(folder: Path, *words: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run in a separate process, with real pipes."""
    line = [sys.executable, "-m", "shapespace.tools", *map(str, words)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, cwd=folder, input=given, capture_output=True, check=False, env=env)


@pytest.fixture
def inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Call in this process, which saves the imports: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def called(*words: object, given: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shapespace", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return called


@pytest.mark.parametrize("verb", ["fit", "encode"])
def test_a_scan_goes_in_and_its_mesh_alone_comes_out(
    verb: str, model: Path, tmp_path: Path, inside: Callable[..., tuple[int, str, str]]
) -> None:
    write_scan(tmp_path / "scan.ply", person(), unit=0.01, up="z")
    options = ("--unit", "cm", "--up", "z", "--resolution", 32)
    done = call(tmp_path, verb, model, "-", *options, given=(tmp_path / "scan.ply").read_bytes())
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["scan.ply"]
    assert done.stdout.startswith(b"ply\n")
    mesh = trimesh.load(io.BytesIO(done.stdout), file_type="ply", process=False)
    assert len(mesh.faces) > 100
    np.testing.assert_allclose(
        mesh.bounds.mean(axis=0), [400, -600, 500], atol=60
    )  # at the position of the scan, in its unit
    code, _, err = inside(verb, model, "scan.ply", *options, "--out", "folder")
    assert code == 0, err
    mesh_file = trimesh.load(tmp_path / "folder" / "scan.ply", process=False)
    np.testing.assert_array_equal(mesh_file.faces, mesh.faces)
    np.testing.assert_allclose(mesh_file.vertices, mesh.vertices, atol=1e-2)


def test_standard_input_goes_to_a_folder_if_one_is_named(
    model: Path, tmp_path: Path, inside: Callable[..., tuple[int, str, str]]
) -> None:
    write_scan(tmp_path / "scan.ply", person())
    words = ("fit", model, "-", "scan.ply", "--out", "both", "--resolution", 16)
    code, out, err = inside(*words, given=(tmp_path / "scan.ply").read_bytes())
    assert code == 0, err
    assert {path.name for path in (tmp_path / "both").glob("*.ply")} == {"stdin.ply", "scan.ply"}
    assert "2 meshes in both" in out


@pytest.mark.parametrize(
    ("words", "given", "sentence"),
    [
        ((), b"", "standard input: empty"),
        ((), b"ply\nformat binary_little_endian 1.0\n", "standard input: truncated inside the header"),
        ((), b"what is this", "standard input: truncated inside the header, or not a PLY file"),
        (("--resolution", "0"), b"", "standard output takes one mesh, not 1 scans with --resolution 0"),
        (("scan.ply", "--out", "-"), b"", "standard output takes one mesh, not 2 scans"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_comes_out(
    words: tuple[str, ...],
    given: bytes,
    sentence: str,
    model: Path,
    tmp_path: Path,
    inside: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, err = inside("fit", model, "-", *words, given=given)
    assert (code, out) == (2, "")
    assert err.startswith("shapespace fit: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["fit", "encode"])
def test_results_are_not_written_over_each_other(
    verb: str, model: Path, tmp_path: Path, inside: Callable[..., tuple[int, str, str]]
) -> None:
    for name in ("p.ply", "q.ply"):
        write_scan(tmp_path / name, person())
    np.save(tmp_path / "p.npy", person().points)
    code, _, err = inside(verb, model, "p.ply", "q.ply", "p.npy")
    assert code == 2
    assert "2 scans (p, p) have the same output file p.ply" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.npy", "p.ply", "q.ply"]


def test_no_mesh_goes_to_a_terminal(
    model: Path, inside: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, err = inside("fit", model, "-")
    assert (code, out) == (2, "")
    assert "standard output is a terminal, and the mesh is binary PLY. Add > mesh.ply" in err


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".off", ".stl", ".glb", ".npy", ".npz", ".xyz"])
def test_the_format_is_that_of_the_first_bytes(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"scan{suffix}"
    ball = trimesh.creation.icosphere(subdivisions=2)
    if suffix == ".npy":
        np.save(path, ball.vertices)
    elif suffix == ".npz":
        np.savez(path, points=ball.vertices)
    elif suffix == ".xyz":
        np.savetxt(path, ball.vertices, header="x y z")
    else:
        ball.export(path, **({"file_type": "stl_ascii"} if suffix == ".stl" else {}))
    whole, piped = read_scan(path), read_bytes(path.read_bytes())
    assert piped.name == "stdin"
    np.testing.assert_array_equal(piped.points, whole.points)
    assert (piped.faces is None) == (whole.faces is None)


def test_a_depth_image_alone_has_no_camera(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.fromarray(np.full((20, 20), 2000, np.uint16)).save(image, format="PNG")
    with pytest.raises(ValueError, match=r"^standard input: depth image without a camera"):
        read_bytes(image.getvalue())


def test_depth_images_are_fitted_like_any_other_scan(
    model: Path, tmp_path: Path, inside: Callable[..., tuple[int, str, str]]
) -> None:
    """A plate of a person's size two meters off, with the camera of an Open3D recording."""
    values = np.zeros((200, 160), np.uint16)
    values[20:180, 60:100] = 2000
    (tmp_path / "depth").mkdir()
    for name in ("00000", "00001"):
        Image.fromarray(values).save(tmp_path / "depth" / f"{name}.png")
    matrix = [200, 0, 0, 0, 200, 0, 80, 100, 1]
    (tmp_path / "intrinsic.json").write_text(json.dumps({"width": 160, "height": 200, "intrinsic_matrix": matrix}))
    code, _, err = inside("fit", model, "depth/00000.png", "depth/00001.png", "--resolution", 16)
    assert code == 0, err
    assert {path.name for path in (tmp_path / "fitted").glob("*.ply")} == {"00000.ply", "00001.ply"}
    code, out, err = inside("preprocess", "folder", ".", "s.h5", "--pattern", "depth/{frame}.png", "--points", 1000)
    assert code == 0, err
    assert "2 scans, 2,000 points" in out
    code, _, err = inside("fit", model, "depth/00000.png", "--max-depth-jump", "nan")
    assert code == 2
    assert ": 0 surface points" in err
    for limit in (("--max-depth", 1.9), ("--min-depth", 2.1)):
        code, _, err = inside("fit", model, "depth/00000.png", *limit)
        assert code == 2
        assert "(6,400 of them outside the depth limits)" in err


@pytest.mark.parametrize(("unit", "meters"), [("mm", 0.001), ("in", 0.0254), ("m", 1.0)])
def test_the_unit_is_guessed_and_reported_and_meshes_are_written_in_it(
    unit: str, meters: float, model: Path, tmp_path: Path, inside: Callable[..., tuple[int, str, str]]
) -> None:
    write_scan(tmp_path / "scan.ply", person(), unit=meters)
    code, _, err = inside("fit", model, "scan.ply", "--out", "a", "--resolution", 16)
    assert code == 0, err
    assert ("note: unit of scan guessed as" in err) == (unit != "m")
    (record,) = json.loads((tmp_path / "a" / "fits.json").read_text())
    units = [found["unit"] for found in record["findings"] if found["code"] == "unit-guessed"]
    assert units == ([unit] if unit != "m" else [])
    mesh = trimesh.load(tmp_path / "a" / "scan.ply", process=False)
    np.testing.assert_allclose(mesh.bounds.mean(axis=0) * meters, [4, 5, 6], atol=0.6)
    other = {"mm": "cm", "in": "mm", "m": "mm"}[unit]
    code, _, err = inside("fit", model, "scan.ply", "--out", "b", "--resolution", 16, "--unit", other)
    assert code == 2  # overruled, and so refused
    assert " m, expected " in err


def test_out_of_distribution_scans_are_named_and_strictly_an_error(
    model: Path, tmp_path: Path, inside: Callable[..., tuple[int, str, str]]
) -> None:
    from shapespace import ShapeSpace

    narrow = ShapeSpace.load(model)
    assert narrow.model.prior is not None
    narrow.model.prior.mean += 1
    narrow.model.prior.covariance *= 1e-4  # now every code is out of distribution
    narrow.save(tmp_path / "narrow.safetensors")
    write_scan(tmp_path / "scan.ply", person())
    words = ("narrow.safetensors", "scan.ply", "--resolution", 16)
    code, _, err = inside("encode", *words, "--out", "encoded")
    assert code == 0
    assert "1 of 1 scans are out of distribution: scan (" in err
    fine = ("--lm.effective-samples", 0.01, "--strict", "--out", "fine")
    code, _, _ = inside("fit", model, "scan.ply", "--resolution", 16, *fine)
    assert code == 0
    far = ("--lm.max-steps", 5, "--lm.effective-samples", 1e9, "--lm.normal-offset", 0.02)
    code, _, err = inside("fit", *words, *far, "--strict", "--out", "strict")
    assert code == 2
    assert "are out of distribution: scan (" in err
    assert (tmp_path / "strict" / "scan.ply").exists()
    (record,) = json.loads((tmp_path / "strict" / "fits.json").read_text())
    assert record["ood_score"] > 8
    assert not record["in_distribution"]
    assert not record["low_confidence"]
    assert 0 <= record["coverage"] <= 1


def test_low_confidence_fits_are_named_and_strictly_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    confident = {"name": "whole", "in_distribution": True, "low_confidence": False, "ood_score": 5.0, "coverage": 0.9}
    unsure = {"name": "front", "in_distribution": True, "low_confidence": True, "ood_score": 5.0, "coverage": 0.31}
    outside = {"name": "chair", "in_distribution": False, "low_confidence": False, "ood_score": 9.8, "coverage": 0.7}
    warn_about_fits([confident], strict=True)
    assert capsys.readouterr().err == ""
    warn_about_fits([confident, unsure])
    printed = capsys.readouterr().err
    assert printed.startswith("note: 1 of 2 fits have low confidence: ")
    assert "front (31%)" in printed
    with pytest.raises(
        ValueError, match=r"distribution: chair \(9\.8\).*low confidence.*front \(31%\).* are written\."
    ):
        warn_about_fits([confident, unsure, outside], strict=True)


def test_uncertainty_is_in_the_mesh_in_the_unit_of_the_file(
    model: Path, tmp_path: Path, inside: Callable[..., tuple[int, str, str]]
) -> None:
    write_scan(tmp_path / "scan.ply", person(), unit=0.01)
    code, _, err = inside("fit", model, "scan.ply", "--resolution", 16, "--uncertainty", "--out", "sure")
    assert code == 0, err
    mesh = trimesh.load(tmp_path / "sure" / "scan.ply", process=False)
    assert mesh.visual.kind == "vertex"
    quality = mesh.metadata["_ply_raw"]["vertex"]["data"]["quality"]
    assert quality.shape == (len(mesh.vertices),)
    assert 0 < np.median(quality) < 100  # centimeters


def test_samples_are_written_beside_the_fit(
    model: Path, tmp_path: Path, inside: Callable[..., tuple[int, str, str]]
) -> None:
    write_scan(tmp_path / "scan.ply", person(), unit=0.01)
    code, out, err = inside("fit", model, "scan.ply", "--resolution", 16, "--posterior-samples", 2, "--out", "some")
    assert code == 0, err
    assert "3 meshes in some" in out
    names = [f"scan{which}.ply" for which in ("", ".sample0", ".sample1")]
    meshes = [trimesh.load(tmp_path / "some" / name, process=False) for name in names]
    for mesh in meshes:
        np.testing.assert_allclose(mesh.bounds.mean(axis=0), [400, 500, 600], atol=60)
    assert len({mesh.vertices.tobytes() for mesh in meshes}) == 3
    code, _, err = inside("encode", model, "scan.ply", "--resolution", 16, "--posterior-samples", 2, "--out", "none")
    assert code == 2
    assert "the fit has no covariance. Fit by Levenberg-Marquardt" in err
    code, _, err = inside("fit", model, "-", "--resolution", 16, "--posterior-samples", 2, given=b"")
    assert code == 2
    assert "takes one mesh, not 1 scans with --resolution 16 and --posterior-samples 2" in err


def test_a_scan_of_a_map_grid_is_fitted_and_written_at_its_place(
    model: Path, tmp_path: Path, inside: Callable[..., tuple[int, str, str]]
) -> None:
    place = np.array([500_000.0, 4_649_776.0, 120.0])
    np.save(tmp_path / "far.npy", person().points + place)
    np.save(tmp_path / "near.npy", person().points)
    code, _, err = inside("fit", model, "far.npy", "near.npy", "--out", "a", "--resolution", 16, "--lm.num-points", 256)
    assert code == 0, err
    assert "[origin-moved]" in err
    far, near = (trimesh.load(tmp_path / "a" / f"{name}.ply", process=False) for name in ("far", "near"))
    np.testing.assert_allclose(far.vertices - place, near.vertices, atol=0.03)
    records = {record["name"]: record for record in json.loads((tmp_path / "a" / "fits.json").read_text())}
    moved = np.subtract(records["far"]["model_to_file"]["translation"], records["near"]["model_to_file"]["translation"])
    np.testing.assert_allclose(moved, place, atol=0.03)
    # The person of these tests is an ellipsoid: about the fit there is more to find.
    codes = {name: [found["code"] for found in record["findings"]] for name, record in records.items()}
    assert codes["far"] == ["origin-moved", *codes["near"]]
    code, _, err = inside("mesh", model, "a/codes.safetensors", "--out", "b", "--resolution", 16)
    assert code == 0, err
    again = trimesh.load(tmp_path / "b" / "far.ply", process=False)
    np.testing.assert_allclose(again.vertices, far.vertices, atol=1e-5, rtol=0)


def test_a_floor_is_removed_and_reported(
    model: Path, tmp_path: Path, inside: Callable[..., tuple[int, str, str]]
) -> None:
    rng = np.random.default_rng(0)
    x, z = rng.uniform(-1, 1, (2, 4000))
    round_about = rng.normal(size=(3000, 3))
    body = round_about / np.linalg.norm(round_about, axis=1, keepdims=True) * (0.3, 0.85, 0.2) + (4, 5, 6)
    ground = np.stack([x + 4, np.full(4000, 5 - 0.85), z + 6], axis=1)
    write_scan(tmp_path / "scan.ply", Scan("", np.concatenate([body, ground]).astype(np.float32)))
    meshes = {}
    for clutter, noted in (("remove", True), ("keep", False)):
        words = ("scan.ply", "--resolution", 16, "--clutter", clutter, "--lm.normal-offset", 0.02, "--out", clutter)
        code, _, err = inside("fit", model, *words)
        assert code == 0, err
        assert ("note: removed 5" in err) == noted  # 4,000 of 7,000
        assert ("[clutter-removed]" in err) == noted
        (record,) = json.loads((tmp_path / clutter / "fits.json").read_text())
        assert ("clutter-removed" in [found["code"] for found in record["findings"]]) == noted
        meshes[clutter] = trimesh.load(tmp_path / clutter / "scan.ply", process=False)
    away = {name: abs(mesh.bounds.mean(axis=0)[1] - 5) for name, mesh in meshes.items()}
    assert away["remove"] < 0.1 < away["keep"]


def test_frames_of_a_motion_are_fitted_jointly_and_missing_ones_are_interpolated(
    model: Path, tmp_path: Path, inside: Callable[..., tuple[int, str, str]]
) -> None:
    """Frame 2 of 0 to 5 is missing, frame 3 is empty, and all move along x; centimeters."""
    (tmp_path / "walk").mkdir()
    for time in (0, 1, 4, 5):
        still = person()
        walked = replace(still, points=still.points + np.float32([0.1 * time, 0, 0]))
        write_scan(tmp_path / "walk" / f"f{time:03d}.ply", walked, unit=0.01)
    (tmp_path / "walk" / "f003.ply").write_bytes(b"")
    files = sorted((tmp_path / "walk").iterdir(), reverse=True)
    words = (
        "fit",
        model,
        *files,
        "--as-sequence",
        "--resolution",
        16,
        "--lm.num-points",
        256,
        "--lm.effective-samples",
        0.01,
    )
    code, out, err = inside(*words, "--out", "walked")
    assert code == 0, err
    assert "note: f003 is interpolated: " in err
    assert f"2 of 6 frames interpolated, animation in {Path('walked') / 'sequence.glb'}" in out
    records = json.loads((tmp_path / "walked" / "fits.json").read_text())
    names = [f"f{time:03d}" for time in range(6)]
    assert [record["name"] for record in records] == names
    assert [record["name"] for record in records if record.get("interpolated")] == ["f002", "f003"]
    assert all("coverage" not in record for record in records if record.get("interpolated"))
    middles = [
        trimesh.load(tmp_path / "walked" / f"{name}.ply", process=False).bounds.mean(axis=0)[0] for name in names
    ]
    np.testing.assert_allclose(np.diff(middles), 10, atol=6)
    film = (tmp_path / "walked" / "sequence.glb").read_bytes()
    meshes = json.loads(film[20 : 20 + int.from_bytes(film[12:16], "little")])["meshes"]
    # equal faces in all frames are one mesh with morph targets
    assert len(meshes) == 6 or len(meshes[0]["primitives"][0]["targets"]) == 5
    code, _, err = inside(*words, "--method", "adam")
    assert code == 2
    assert "--as-sequence fits by Levenberg-Marquardt, not by adam. Remove --method." in err
    code, _, err = inside(*words, "--shard", "1/2")
    assert code == 2
    assert "--shard 1/2: the frames of --as-sequence are fitted together. Remove --shard." in err


def test_the_record_has_the_transform_from_model_to_file(
    model: Path, tmp_path: Path, inside: Callable[..., tuple[int, str, str]]
) -> None:
    from shapespace import ShapeSpace
    from shapespace.fitting.result import load_fits

    write_scan(tmp_path / "scan.ply", person(), unit=0.01, up="z")
    options = ("--unit", "cm", "--up", "z", "--lm.effective-samples", 1.0, "--resolution", 16)
    code, _, err = inside("fit", model, "scan.ply", *options, "--out", "placed")
    assert code == 0, err
    (record,) = json.loads((tmp_path / "placed" / "fits.json").read_text())
    transform, space = record["model_to_file"], ShapeSpace.load(model)
    (fit,) = load_fits(tmp_path / "placed" / "codes.safetensors", space.model)
    assert fit.frame.rotation is not None  # fitted with the code
    vertices = space.mesh(fit.code, resolution=16).vertices / space.scale  # about the origin, in model units
    moved = transform["scale"] * vertices @ np.array(transform["rotation"]).T + transform["translation"]
    np.testing.assert_allclose(moved, trimesh.load(tmp_path / "placed" / "scan.ply", process=False).vertices, atol=1e-2)
