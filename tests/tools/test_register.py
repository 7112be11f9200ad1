"""Registered templates: in Python, of every command that meshes, of the verb `register`, and their scores."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from shapespace import ShapeSpace
from shapespace.data.registration import PartTemplate, vertex_areas
from shapespace.data.store import ScanStore
from shapespace.fitting.detail import DetailedModel
from shapespace.fitting.levenberg_marquardt import LMOptions, PartOptions
from shapespace.fitting.result import Fit, load_fits, save_fits
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.io.scan_files import read_mesh, read_scan, write_scan
from shapespace.io.units import from_world
from shapespace.models import igr
from shapespace.models.articulated import ArticulatedConfig, ArticulatedSDF, build_articulated
from shapespace.models.code import Code
from shapespace.models.template import rest_joints
from shapespace.synthetic.body import Body
from shapespace.tools.__main__ import cli
from shapespace.tools._outputs import model_provenance, write_interpolation
from shapespace.viewer.fitted_scans import FittedScan, ScanCollection
from shapespace.viewer.request import POSED, REGISTERED, ScanShape, ViewRequest
from shapespace.viewer.scene import SceneBuilder

SIZES = {"code_dim": 4, "num_parts": 8, "local_dim": 3, "width": 16, "depth": 3, "hyper_width": 16}
ENCODER = {"encoder_points": 96, "encoder_width": 32, "encoder_features": 32}
CONFIG = ArticulatedConfig(**SIZES, **ENCODER, loss_points=64)
MODEL = " ".join(f"--model.{key.replace('_', '-')} {value}" for key, value in {**SIZES, **ENCODER}.items())
TRAIN = (
    f"--config articulated {MODEL} --model.loss-points 64 --batch.scans 4 --batch.points 256 "
    "--batch.surface-points 128 --optim.warmup-steps 5 --optim.lr 5e-3 --optim.lr-muon 2e-2 --optim.max-steps 80"
)
LM = "--lm.num-points 256 --lm.max-steps 8 --lm.parts.num-points 256 --lm.parts.max-steps 4"
QUICK = f"{LM} --clutter keep"


def call(line: str) -> None:
    verb, *words = line.split()
    cli(import_module(f"shapespace.tools.{verb}").main, words, verb)


def fails(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Call a command that must fail with exit code 2; its sentence."""
    with pytest.raises(SystemExit) as stop:
        call(line)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, make_synthetic: Callable[[Path], Path]) -> Path:
    """A folder with a store, a run that was trained for seconds, and the scans of one person in millimeters, z up."""
    folder = tmp_path_factory.mktemp("registered")
    call(f"preprocess synthetic {make_synthetic(folder / 'people')} {folder / 'store.h5'} --points 3000")
    call(f"train {folder / 'store.h5'} --split train {TRAIN} --out {folder / 'run'}")
    for frame in range(3):
        scan = read_scan(folder / f"people/scans/p000/poses/poses.{frame:06d}.ply")
        write_scan(folder / f"walk/{frame}.ply", scan, unit=0.001, up="z")
    return folder


@pytest.fixture(scope="module")
def space(place: Path) -> ShapeSpace:
    return ShapeSpace.load(place / "run")


@pytest.fixture(scope="module")
def names(place: Path) -> list[str]:
    return ScanStore(place / "store.h5").scan_names("train")[:2]


@pytest.fixture(scope="module")
def fitted(place: Path, names: list[str]) -> Path:
    """Folder of two fits whose meshes are registered templates, with all that meshes can have."""
    given = f"{place / 'run'} {' '.join(names)} --store {place / 'store.h5'} {QUICK}"
    call(f"fit {given} --uncertainty --posterior-samples 2 --out {place / 'fitted'}")
    return place / "fitted"


@pytest.fixture(scope="module")
def fits(fitted: Path, space: ShapeSpace) -> list[Fit]:
    return load_fits(fitted / "codes.safetensors", space.model)


def body_template(parts: int = 8) -> PartTemplate:
    """The synthetic body at rest, in parts by height: a model unit is a meter."""
    body = Body.load()
    rest = body.mean[: -len(body.joints)]
    centered = torch.from_numpy(rest - rest.mean(axis=0)).float()
    height = centered[:, 1]
    labels = ((height - height.min()) / (height.max() - height.min()) * parts).long().clamp(max=parts - 1)
    faces = torch.from_numpy(body.faces).long()
    area = torch.from_numpy(vertex_areas(rest, body.faces.astype(np.int64))).float()
    return PartTemplate(centered, faces, labels, area)


@pytest.fixture(scope="module")
def person() -> tuple[ShapeSpace, Fit]:
    """An untrained space whose template is the synthetic body, and the body at rest, turned and moved."""
    torch.manual_seed(0)
    model, template = build_articulated(CONFIG).eval(), body_template()
    model.template.set(template)
    model.decoder.radius.copy_(template.radius)
    rotation = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    frame = Frame(torch.tensor([3.0, 1.0, -2.0]), torch.tensor(0.9), rotation)
    eye = torch.eye(3).expand(1, template.num_parts, 3, 3)
    code = Code((torch.zeros(1, 4), template.center[None], eye, torch.zeros(1, template.num_parts, 3)))
    return ShapeSpace(model, CONFIG, scale=1.0, metadata={"weights": {}}), Fit(code, frame, np.empty(0), name="rest")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without parts."""
    torch.manual_seed(0)
    config = igr.IGRConfig(code_dim=4, width=24, depth=3, skip=1, init_radius=0.5, encoder_points=128)
    path = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    ShapeSpace(igr.build_igr(config).eval(), config, scale=1.25, metadata={"weights": {}}).save(path)
    return path


def glb(path: Path) -> dict[str, Any]:
    """The JSON of a GLB."""
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[12:16])
    tree: dict[str, Any] = json.loads(data[20 : 20 + length])
    return tree


# --------------------------------------------------------------------------------------------------------------- Python


def test_the_template_lies_on_the_surface_of_each_scan(
    space: ShapeSpace, fits: list[Fit], names: list[str], place: Path
) -> None:
    assert isinstance(space.model, ArticulatedSDF)
    store, faces = ScanStore(place / "store.h5"), space.model.template.faces.numpy()
    for fit, name in zip(fits, names, strict=True):
        fit = replace(fit, displacement=None)  # onto the surface of the field, which does not have it
        mesh, truth = space.register(fit), store.ground_truth(name)
        assert truth is not None
        assert np.array_equal(mesh.faces, faces)
        assert np.array_equal(mesh.faces, truth.faces)
        assert np.linalg.norm(mesh.vertices - truth.vertices, axis=1).mean() < 0.03  # meters, at the scan's position
        inside = fit.frame.to_model(torch.from_numpy(mesh.vertices.copy()).float())[None]
        with torch.no_grad():
            distance = space.model.field(inside, fit.code)[0].abs() * fit.frame.scale
            posed = space.model.template(space.model.states(fit.code))
            before = space.model.field(posed, fit.code)[0].abs() * fit.frame.scale
        near = before < 0.005  # meters; the ellipsoids of these bodies have vertices within each other
        assert near.float().mean() > 0.25
        assert distance[near].median() < 0.7 * before[near].median()  # 0.55 with the joints in the fits
        again = space.mesh(fit, surface="template")
        assert np.array_equal(again.vertices, mesh.vertices)
        assert np.array_equal(again.faces, mesh.faces)


def test_the_template_follows_the_frame_and_a_code_is_at_the_origin(space: ShapeSpace, fits: list[Fit]) -> None:
    fit = fits[0]
    turned = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    frame = Frame(torch.tensor([1.0, -2.0, 3.0]), torch.tensor(0.5), turned)
    at_origin = space.register(fit.code)
    moved = space.register(replace(fit, frame=frame, displacement=None))
    expected = frame.to_world(torch.from_numpy(at_origin.vertices / space.scale).float())
    np.testing.assert_allclose(moved.vertices, expected.numpy(), atol=1e-6)
    assert space.registration is space.registration  # prepared once


def test_joints_of_the_body_at_rest_are_its_heads(person: tuple[ShapeSpace, Fit]) -> None:
    space, fit = person
    body = Body.load()
    middle = body.mean[: -len(body.joints)].mean(axis=0)
    heads = torch.from_numpy(body.mean[-len(body.joints) :] - middle).float()
    assert len(rest_joints(body_template()).parts) == len(body.joints)
    expected = fit.frame.to_world(heads).numpy()
    joints = space.joints(fit)
    assert list(joints) == list(body.joints)
    np.testing.assert_allclose(np.stack(list(joints.values())), expected, atol=1e-5)
    at_origin = np.stack(list(space.joints(fit.code).values()))
    np.testing.assert_allclose(at_origin, heads.numpy(), atol=1e-5)


def test_another_template_has_no_joints(space: ShapeSpace, fits: list[Fit]) -> None:
    assert space.joints(fits[0]) == {}


def test_spaces_without_a_template_say_so(plain: Path, space: ShapeSpace, fits: list[Fit]) -> None:
    other = ShapeSpace.load(plain)
    code = Code((torch.zeros(1, 4),))
    for ask in (other.register, other.joints, lambda shape: other.mesh(shape, surface="template")):
        with pytest.raises(ValueError, match="registered template: family igr has no parts"):
            ask(code)
    untrained = ShapeSpace(build_articulated(CONFIG).eval(), CONFIG, scale=1.0, metadata={})
    with pytest.raises(ValueError, match="the model has no template mesh"):
        untrained.register(code)
    assert isinstance(space.model, ArticulatedSDF)
    points = torch.nn.functional.normalize(torch.randn(200, 3), dim=1).numpy()
    detailed = DetailedModel(space.model, Scan("ball", points, points), 0.05)
    refined = ShapeSpace(detailed, space.config, scale=1.0, metadata={"refined": "p/walk/1"})
    with pytest.raises(ValueError, match="a space that is refined to p/walk/1 is in no template"):
        refined.register(fits[0])


# ------------------------------------------------------------------------------------------------------------- commands


def test_fit_writes_registered_templates_with_samples_and_uncertainty(
    fitted: Path, space: ShapeSpace, fits: list[Fit]
) -> None:
    for fit in fits:
        name = fit.name.replace("/", "_")
        mesh, expected = read_mesh(fitted / f"{name}.ply"), space.register(fit)
        np.testing.assert_allclose(mesh.vertices, expected.vertices, atol=1e-6)
        std = space.uncertainty(fit, expected)
        np.testing.assert_allclose(mesh.vertex_attributes["quality"], std, rtol=1e-3, atol=1e-6)
        assert np.ptp(std) > 0
        colors = trimesh.load(fitted / f"{name}.ply", process=False).visual.vertex_colors
        assert len(np.unique(colors, axis=0)) > 1
        for index, sample in enumerate(space.sample_posterior(fit, 2)):
            drawn = read_mesh(fitted / f"{name}.sample{index}.ply")
            assert np.array_equal(drawn.faces, expected.faces)
            np.testing.assert_allclose(drawn.vertices, space.register(sample).vertices, atol=1e-6)
    assert all(0.8 < record["coverage"] <= 1 for record in json.loads((fitted / "fits.json").read_text()))


@pytest.mark.usefixtures("first_fit_only")
@pytest.mark.parametrize("meshing", ["--surface template", "--surface field --resolution 16", "--resolution 0"])
def test_a_fit_has_one_verdict(place: Path, space: ShapeSpace, tmp_path: Path, meshing: str) -> None:
    """In Python, in fits.json and in the viewer, whatever is meshed; the scan is half a body."""
    whole = read_scan(place / "people/scans/p000/poses/poses.000000.ply")
    scan = whole.mask(whole.points[:, 2] > np.median(whole.points[:, 2]))
    write_scan(tmp_path / "half.ply", scan)
    scan = read_scan(tmp_path / "half.ply", name="half")
    call(f"fit {place / 'run'} {tmp_path / 'half.ply'} {QUICK} {meshing} --out {tmp_path / 'out'}")
    (record,) = json.loads((tmp_path / "out/fits.json").read_text())
    parts = PartOptions(num_points=256, max_steps=4)
    (fit,) = space.fit_scans([scan], lm=LMOptions(num_points=256, max_steps=8, parts=parts), outliers="keep")
    quality = space.assess(fit, scan).quality
    assert quality is not None
    assert 0.3 < quality.coverage < 0.9
    assert record["coverage"] == round(quality.coverage, 3)
    assert record["stature"] == round(quality.stature, 3)
    assert record["ood_score"] == round(quality.ood_score, 2)
    assert record["in_distribution"] == quality.in_distribution
    assert record["low_confidence"] == quality.low_confidence
    collection = ScanCollection(space, [scan])
    collection._fitted[scan.name] = FittedScan(scan, fit)
    for detail in (POSED, REGISTERED, 16):
        *_, scene = SceneBuilder(collection).build(ViewRequest(ScanShape(scan.name), detail=detail))
        assert scene.summary == (quality.summary, *(f"Note: {found['message']}" for found in record["findings"]))


def test_the_field_is_meshed_on_request(fitted: Path, space: ShapeSpace, fits: list[Fit], tmp_path: Path) -> None:
    codes = fitted / "codes.safetensors"
    call(f"mesh {fitted.parent / 'run'} {codes} --surface field --resolution 24 --out {tmp_path}")
    for fit in fits:
        expected = space.mesh(fit, surface="field", resolution=24)
        written = read_mesh(tmp_path / f"{fit.name.replace('/', '_')}.ply")
        np.testing.assert_allclose(written.vertices, expected.vertices, atol=1e-6)
        assert len(written.faces) != len(space.registration.faces)


@pytest.mark.parametrize("verb", ["mesh", "encode"])
def test_mesh_and_encode_write_the_template(
    verb: str, fitted: Path, space: ShapeSpace, names: list[str], place: Path, tmp_path: Path
) -> None:
    given = f"{fitted / 'codes.safetensors'}" if verb == "mesh" else f"{names[0]} --store {place / 'store.h5'}"
    call(f"{verb} {place / 'run'} {given} --out {tmp_path / 'out'}")
    codes = fitted / "codes.safetensors" if verb == "mesh" else tmp_path / "out" / "codes.safetensors"
    for fit in load_fits(codes, space.model):
        mesh = read_mesh(tmp_path / "out" / f"{fit.name.replace('/', '_')}.ply")
        np.testing.assert_allclose(mesh.vertices, space.register(fit).vertices, atol=1e-6)


def test_a_registered_sequence_is_one_mesh_with_morph_targets(
    place: Path, space: ShapeSpace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = " ".join(str(place / f"walk/{frame}.ply") for frame in range(3))
    given = f"{place / 'run'} {frames} --unit mm --up z {QUICK}"
    call(f"register {given} --as-sequence --format obj --out {tmp_path / 'out'}")
    (mesh,) = glb(tmp_path / "out" / "sequence.glb")["meshes"]
    (primitive,) = mesh["primitives"]
    assert len(primitive["targets"]) == 2
    fits = load_fits(tmp_path / "out" / "codes.safetensors", space.model)
    for fit in fits:
        written = read_mesh(tmp_path / "out" / f"{fit.name}.obj")
        expected = from_world(space.register(fit).vertices, unit=0.001, up="z")
        np.testing.assert_allclose(written.vertices, expected, atol=0.01)  # millimeters
        assert np.array_equal(written.faces, space.registration.faces.numpy())
    assert json.loads((tmp_path / "out" / "fits.json").read_text())[0]["name"] == "0"
    assert "no joint centers: the template is not that of the synthetic body" in capsys.readouterr().err
    assert not (tmp_path / "out" / "joints.json").exists()


def test_register_fits_as_fit_does_and_takes_codes_as_they_are(
    place: Path, fitted: Path, names: list[str], tmp_path: Path
) -> None:
    call(f"register {place / 'run'} {names[0]} --store {place / 'store.h5'} {QUICK} --out {tmp_path / 'fitted'}")
    call(f"register {place / 'run'} {fitted / 'codes.safetensors'} --out {tmp_path / 'coded'}")
    files = [f"{name.replace('/', '_')}.ply" for name in names]
    assert sorted(path.name for path in (tmp_path / "coded").iterdir()) == sorted(files)
    for name in files:
        expected = read_mesh(fitted / name).vertices
        np.testing.assert_allclose(read_mesh(tmp_path / "coded" / name).vertices, expected, atol=1e-6)
    own = read_mesh(tmp_path / "fitted" / files[0]).vertices
    expected = read_mesh(fitted / files[0]).vertices
    assert np.linalg.norm(own - expected, axis=1).max() < 1e-3  # fits of other batches differ by rounding
    assert {path.name for path in (tmp_path / "fitted").iterdir()} == {files[0], "codes.safetensors", "fits.json"}


def test_joints_are_written_in_the_unit_and_axes_of_the_files(person: tuple[ShapeSpace, Fit], tmp_path: Path) -> None:
    space, fit = person
    space.save(tmp_path / "body.safetensors")
    save_fits(tmp_path / "codes.safetensors", [fit, replace(fit, name="again")], space.model)
    given = f"{tmp_path / 'body.safetensors'} {tmp_path / 'codes.safetensors'} --unit cm --up z --format glb"
    call(f"register {given} --out {tmp_path / 'out'}")
    written = json.loads((tmp_path / "out" / "joints.json").read_text())
    assert list(written) == ["rest", "again"]
    for name, center in space.joints(fit).items():
        (expected,) = from_world(center[None].astype(np.float64), unit=0.01, up="z")
        for scan in written:
            np.testing.assert_allclose(written[scan][name], expected, atol=1e-4)  # centimeters
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["again.glb", "joints.json", "rest.glb"]
    (mesh,) = glb(tmp_path / "out" / "rest.glb")["meshes"]
    assert len(mesh["primitives"]) == 1


def test_an_interpolation_of_templates_is_one_mesh_that_moves(
    space: ShapeSpace, fits: list[Fit], fitted: Path, place: Path, names: list[str], tmp_path: Path
) -> None:
    write_interpolation(space, *fits, tmp_path / "straight", steps=3, path="linear")
    codes = fitted / "codes.safetensors"
    ends = f"{place / 'run'} {codes}:{names[0]} {codes}:{names[1]}"
    call(f"interpolate {ends} --steps 4 --out {tmp_path / 'parts'}")
    for folder, steps, path in (("straight", 3, "linear"), ("parts", 4, "parts")):
        (mesh,) = glb(tmp_path / folder / "interpolation.glb")["meshes"]
        assert len(mesh["primitives"][0]["targets"]) == steps - 1
        record = json.loads((tmp_path / folder / "path.json").read_text())
        assert (record["path"], record["surface"]) == (path, "template")
        first, last = (read_mesh(tmp_path / folder / f"{index:03d}.obj") for index in (0, steps - 1))
        for mesh, fit in ((first, fits[0]), (last, fits[1])):
            np.testing.assert_allclose(mesh.vertices, space.register(fit).vertices, atol=1e-4)


@pytest.mark.usefixtures("first_fit_only")
def test_evaluate_scores_the_template_vertex_by_vertex(place: Path, space: ShapeSpace, tmp_path: Path) -> None:
    metrics = "--metrics vertex_distance surface_distance"
    out = f"{metrics} --out {tmp_path / 'scored'}"
    call(f"evaluate {place / 'run'} {place / 'store.h5'} --splits train --limit 2 {LM} {out}")
    scores = json.loads((tmp_path / "scored" / "scores.json").read_text())
    assert scores["settings"]["surface"] == "template"
    store = ScanStore(place / "store.h5")
    fits = load_fits(tmp_path / "scored" / "codes.safetensors", space.model)
    for fit, row in zip(fits, scores["rows"], strict=True):
        truth = store.ground_truth(row["name"])
        assert truth is not None
        error = 1000 * np.linalg.norm(space.register(fit).vertices - truth.vertices, axis=1)
        expected = {"mean": error.mean(), "median": np.median(error), "p95": np.percentile(error, 95)}
        assert row["vertex_distance"] == pytest.approx(expected, rel=1e-4)
        assert row["surface_distance"]["completeness"] < row["vertex_distance"]["mean"]


# ------------------------------------------------------------------------------------------------------------ bad input

PLAIN = "registered template: family igr has no parts. Use a space of the articulated family"
MISTAKES = {
    "fit {plain} example --surface template": PLAIN,
    "encode {plain} example --surface template": PLAIN,
    "mesh {plain} nothing.safetensors --surface template": PLAIN,
    "interpolate {plain} example example --surface template": PLAIN,
    "evaluate {plain} {place}/store.h5 --surface template": PLAIN,
    "register {plain} example": PLAIN,
    "register {place}/run": "no scans given",
    "register {place}/run nothing.ply": "nothing.ply",
    "register {place}/run nothing.safetensors": "nothing.safetensors",
    "register {place}/run {plain}": "not a shapespace codes",
    "register {other} {place}/fitted/codes.safetensors": "the codes belong to model",
    "register {place}/run {place}/fitted/codes.safetensors --out -": "standard output takes a scan, not codes.",
    "register {place}/run {place}/fitted/codes.safetensors {place}/fitted/codes.safetensors": "have the same output",
    "register {place}/run example --method refine": "template: surfaces of --method refine are in no",
    "register {place}/run example --as-sequence --shard 1/2": "--shard 1/2: the frames of --as-sequence",
    "fit {place}/run example --surface template --method refine": "surfaces of --method refine are in no template",
    "evaluate {place}/run {place}/store.h5 --surface template --method poisson": "surfaces of --method poisson are in",
    "evaluate {plain} {place}/store.h5 --metrics vertex_distance": "vertex_distance: it scores registered templates",
    "evaluate {place}/run {place}/store.h5 --surface field --metrics vertex_distance": "surface here is the field",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_get_one_sentence_and_leave_no_files(
    line: str,
    place: Path,
    plain: Path,
    fitted: Path,
    person: tuple[ShapeSpace, Fit],
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fitted == place / "fitted"  # exists
    other = tmp_path_factory.mktemp("other") / "body.safetensors"
    if "{other}" in line:
        person[0].save(other)
    monkeypatch.chdir(tmp_path)
    assert MISTAKES[line] in fails(line.format(place=place, plain=plain, other=other), capsys)
    assert not list(tmp_path.iterdir())


def test_a_model_file_that_is_in_no_run_has_its_own_name(plain: Path, place: Path, space: ShapeSpace) -> None:
    assert model_provenance(plain, ShapeSpace.load(plain))["run"] == "plain"
    assert model_provenance(place / "run" / "model.safetensors", space)["run"] == "run"
