"""Interpolation paths of every family: encoded ends, supported paths, open and missing surfaces."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from shapespace import ShapeSpace
from shapespace.data.registration import make_template, part_poses
from shapespace.evaluation.motion import (
    Pair,
    center_error,
    choose_transfers,
    column_medians,
    path_medians,
    score_path,
    score_transfers,
    supported_paths,
    true_transfer,
)
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.result import Fit
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.models import articulated, atlas, igr, registry, voxel
from shapespace.models.code import Code
from shapespace.nn.hypernetwork import rotation_to_6d
from shapespace.synthetic.body import Body
from shapespace.synthetic.people import Capture, list_captures, posed_body, read_synthesis
from shapespace.synthetic.poses import PoseLibrary
from shapespace.tools import evaluate_paths, synthesize
from shapespace.tools._outputs import fit_provenance, model_provenance, timed

PARTS = 30
SIZES = {
    "igr": igr.IGRConfig(code_dim=4, width=24, depth=3, skip=1, init_radius=0.5, encoder_points=128),
    "voxel": voxel.VoxelConfig(grid=8),
    "atlas": atlas.AtlasConfig(code_dim=4, width=16, patches=2),
}


def space(family: str, scans: int = 3) -> ShapeSpace:
    torch.manual_seed(0)
    sizes = SIZES[family]
    return ShapeSpace(registry.build_model(sizes, num_scans=scans).eval(), sizes, scale=1.25, metadata={"weights": {}})


@cache
def of_parts() -> ShapeSpace:
    """Articulated space whose template is the synthetic body in parts; its codes are those of 20 bodies."""
    torch.manual_seed(0)
    config = articulated.ArticulatedConfig(
        code_dim=8, num_parts=PARTS, local_dim=2, width=8, depth=2, hyper_width=8, encoder_points=64,
        encoder_width=8, encoder_features=8,
    )  # fmt: skip
    model = articulated.build_articulated(config, num_scans=20).eval()
    body, scale = Body.load(), 1.25
    rest = (body.mean[: -len(body.joints)] - body.mean[: -len(body.joints)].mean(axis=0)) / scale
    template = make_template(torch.from_numpy(rest).float(), torch.from_numpy(body.faces).long(), PARTS)
    model.template.set(template)
    model.decoder.radius.copy_(template.radius)
    poses = [part_poses(template, torch.from_numpy(vertices / scale).float()) for vertices in some_bodies(20)]
    center, rotation = (torch.stack(each) for each in zip(*poses, strict=True))
    center = center - center.mean(dim=1, keepdim=True)
    codes = model.hypernetwork.initialize(torch.cat([center, rotation_to_6d(rotation)], dim=-1))
    model.summarize(codes)
    with torch.no_grad():
        assert model.codes_parameter is not None
        model.codes_parameter.copy_(codes)
    return ShapeSpace(model, config, scale=scale, metadata={"weights": {}})


def some_bodies(count: int) -> list[np.ndarray]:
    """Vertices (meters) of random synthetic bodies."""
    body, rng = Body.load(), np.random.default_rng(0)
    library = PoseLibrary.load(body)
    return [body.skin(body.sample_shape(rng), library.sample_in_limits(rng)) for _ in range(count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "people"
    synthesize.main(folder, people=1, poses=2, test_people=2, poses_per_test_person=2, jobs=1)
    return folder


def test_the_settings_name_run_method_and_split(data: Path, tmp_path: Path) -> None:
    space("atlas").save(tmp_path / "run" / "model.safetensors")
    options = {"method": "encode", "pairs": 1, "steps": 3, "resolution": 24, "paths": ("geodesic", "linear")}
    evaluate_paths.main(str(tmp_path / "run"), data, lm=LMOptions(), **options)  # type: ignore[arg-type]
    content = json.loads((tmp_path / "run" / "motion" / "motion.json").read_text())
    settings = content["settings"]
    assert content["format"] == 2
    assert (settings["run"], settings["family"], settings["method"]) == ("run", "atlas", "encode")
    assert (settings["data"], settings["split"]) == ("people", "unseen_people")
    assert (settings["pairs"], settings["steps"]) == (1, 3)
    assert list(content["medians"]) == ["linear", "truth"]  # an atlas has no geodesic path
    assert content["medians"]["linear"]["completeness"] > 0
    assert content["medians"]["linear"]["volume_error"] is None  # an atlas is open
    assert (tmp_path / "run" / "motion" / "motion.png").is_file()
    with pytest.raises(ValueError, match=r"--steps 2: no shape between the ends\. Use at least 3\."):
        evaluate_paths.main(str(tmp_path / "run"), data, lm=LMOptions(), steps=2)
    with pytest.raises(ValueError, match=r"--split none: no person has two poses\..* --poses-per-test-person 2"):
        evaluate_paths.main(str(tmp_path / "run"), data, lm=LMOptions(), split="none")


def test_unsupported_paths_are_left_out_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert supported_paths(("linear", "geodesic"), space("igr")) == ["linear", "geodesic"]
    assert supported_paths(("auto", "linear", "slerp", "geodesic"), space("igr")) == ["linear", "slerp", "geodesic"]
    assert capsys.readouterr().out == ""
    assert supported_paths(("slerp", "geodesic", "linear"), space("voxel")) == ["slerp", "linear"]
    assert "note: family voxel has no geodesic path, which needs a signed distance with" in capsys.readouterr().out
    assert supported_paths(("parts", "linear"), space("igr")) == ["linear"]
    assert "note: family igr has no parts path, which needs a template with parts; it is" in capsys.readouterr().out
    assert supported_paths(("auto", "linear", "parts"), of_parts()) == ["parts", "linear"]
    with pytest.raises(ValueError, match=r"--paths geodesic parts: family atlas has no geodesic path, .*parts path"):
        supported_paths(("geodesic", "parts"), space("atlas"))


def test_poses_on_other_people_are_scored_beside_the_paths(data: Path, tmp_path: Path) -> None:
    of_parts().save(tmp_path / "run" / "model.safetensors")
    options = {"method": "encode", "pairs": 2, "steps": 3, "resolution": 16, "paths": ("auto",)}
    evaluate_paths.main(str(tmp_path / "run"), data, lm=LMOptions(), **options)  # type: ignore[arg-type]
    content = json.loads((tmp_path / "run" / "motion" / "motion.json").read_text())
    assert list(content["medians"]) == ["parts", "truth"]
    assert [row.keys() for row in content["transfers"]] == [content["transfer_medians"].keys() | {"pose", "person"}] * 2
    people = [[Path(row[end]).parts[1] for end in ("pose", "person")] for row in content["transfers"]]
    assert people == [["01", "02"], ["02", "01"]]


def captures(*subjects: int) -> list[Pair]:
    return [(Capture(subject, 0, "limits", 0, "s"), Capture(subject, 1, "limits", 1, "s")) for subject in subjects]


def test_the_last_pose_of_a_pair_goes_to_the_next_other_person() -> None:
    chosen = choose_transfers(captures(3, 3, 5))
    assert [(pose.subject, pose.index, person.subject, person.index) for pose, person in chosen] == [
        (3, 1, 5, 0),
        (3, 1, 5, 0),
        (5, 1, 3, 0),
    ]
    assert choose_transfers(captures(3, 3)) == []


def test_the_true_transfer_has_the_pose_of_one_and_the_shape_of_the_other(data: Path) -> None:
    synthesis = read_synthesis(data)
    pose = next(list_captures(synthesis))
    person = next(capture for capture in list_captures(synthesis) if capture.subject != pose.subject)
    for own in (pose, person):
        _, posed, _ = posed_body(synthesis, own)
        np.testing.assert_allclose(true_transfer(synthesis, own, own).vertices, posed.vertices, atol=1e-6)
    mixed = true_transfer(synthesis, pose, person)
    whole, _, _ = posed_body(synthesis, person)
    _, posed, _ = posed_body(synthesis, pose)
    np.testing.assert_allclose(mixed.vertices, whole.skin(posed.rotations), atol=1e-6)


def true_fit(one: ShapeSpace, body: trimesh.Trimesh, name: str) -> Fit:
    """The true parts of a body of the template's topology, as a fit."""
    assert isinstance(one.model, articulated.ArticulatedSDF)
    place = body.vertices.mean(axis=0)
    posed = torch.from_numpy((body.vertices - place) / one.scale).float()
    center, rotation = part_poses(one.model.template.part_template(), posed)
    code = Code((torch.zeros(1, 8), center[None], rotation[None], torch.zeros(1, PARTS, 2)))
    return Fit(code, Frame(torch.from_numpy(place).float(), torch.tensor(one.scale)), np.empty(0), name=name)


def test_a_pose_on_the_same_person_is_near_the_truth() -> None:
    """The true parts of bodies stand in for fits."""
    one, body, rng = of_parts(), Body.load(), np.random.default_rng(1)
    library, coefficients = PoseLibrary.load(body), body.sample_shape(rng)
    truth, before = (
        trimesh.Trimesh(body.skin(coefficients, library.sample_in_limits(rng)), body.faces, process=False)
        for _ in range(2)
    )
    pose, person = true_fit(one, truth, "pose"), true_fit(one, before, "person")
    assert center_error(one, pose, truth) < 1e-3
    (row,) = score_transfers(one, [(pose, person)], [truth])
    assert (row["pose"], row["person"]) == ("pose", "person")
    assert row["completeness"] > 0
    assert row["center_error"] == center_error(one, one.transfer_pose(pose, person), truth)
    assert row["center_error"] < 0.25 * center_error(one, person, truth)
    assert np.isnan(center_error(one, pose, trimesh.creation.icosphere()))
    assert np.isnan(center_error(space("igr"), pose, truth))


def test_medians_of_columns_leave_out_names_and_missing_values() -> None:
    rows = [{"pose": "a", "completeness": value, "center_error": 1.0} for value in (3.0, float("nan"), 5.0)]
    assert column_medians(rows) == {"completeness": 4.0, "center_error": 1.0}
    assert np.isnan(column_medians(rows[1:2])["completeness"])


def test_open_and_missing_surfaces_have_no_volume() -> None:
    ground_truth = [trimesh.creation.icosphere(radius=r) for r in (1.0, 1.1, 1.2)]
    row = score_path(ground_truth, ground_truth)
    assert row["completeness"] == pytest.approx(0, abs=1e-3)
    assert row["volume_error"] == pytest.approx(0)
    opened = [trimesh.Trimesh(mesh.vertices, mesh.faces[1:], process=False) for mesh in ground_truth]
    row = score_path(opened, ground_truth)
    assert np.isnan(row["volume_error"])
    assert row["sa_sigma"] > 0
    missing = score_path(None, ground_truth)
    assert missing.keys() == row.keys()
    assert np.isnan(list(missing.values())).all()


def test_a_body_elsewhere_has_no_error_and_what_is_inside_moves_nothing() -> None:
    body = trimesh.creation.box(extents=(0.5, 1.7, 0.3)).subdivide().subdivide()
    moved = trimesh.Trimesh(body.vertices + np.array([0.3, -0.2, 0.1]), body.faces, process=False)
    inside = trimesh.creation.icosphere(radius=0.1)
    inside.apply_translation([0, 0.7, 0])
    truth = trimesh.util.concatenate([body, inside])
    row = score_path([moved] * 3, [body] * 3)
    assert (row["completeness"], row["accuracy"]) == pytest.approx((0, 0), abs=1e-3)
    assert score_path([moved] * 3, [truth] * 3)["accuracy"] == pytest.approx(0, abs=1e-3)


def test_missing_paths_are_in_no_median_and_are_counted() -> None:
    nan = float("nan")
    rows = [{"a": "", "b": "", "path": "linear", "completeness": e, "sa_sigma": e} for e in (1.0, nan, 3.0)]
    assert path_medians(rows) == {"linear": {"completeness": 2, "sa_sigma": 2, "failed": 1}}


def test_the_record_counts_what_new_scans_need(tmp_path: Path) -> None:
    for scans in (1, 50):
        one = space("voxel", scans)
        one.save(tmp_path / str(scans) / "model.safetensors")
        told = model_provenance(tmp_path / str(scans), one)
        assert (told["num_parameters"], told["parameter_bytes"]) == (0, 0)  # a grid of its own for each, and no more
        assert (told["run"], told["family"], told["training_steps"]) == (str(scans), "voxel", None)
    one = space("atlas")
    told = model_provenance(Path("humans"), one)
    floats = sum(tensor.numel() for tensor in one.model.state_dict().values())
    assert (told["run"], told["num_parameters"]) == ("humans", floats)
    torch.save({"step": 7, "seconds": 60.0}, tmp_path / "1" / "checkpoint.pt")
    told = model_provenance(tmp_path / "1" / "model.safetensors", space("voxel", 1))
    assert (told["run"], told["training_steps"], told["training_seconds"]) == ("1", 7, 60)


def test_auto_is_recorded_as_what_it_came_to() -> None:
    one = space("igr")
    fit = one.encode_scans([motion_scan()])[0]
    fitted = Fit(fit.code, fit.frame, fit.residuals, np.eye(4), seconds=1.5)
    assert fit_provenance("encode", [fit], [fit])["fit_seconds"] is None
    assert fit_provenance("auto", [fit], [fit])["method"] == "adam"
    assert fit_provenance("auto", [fit], [fitted]) | {"encode_seconds": 0} == {
        "method": "lm",
        "encode_seconds": 0,
        "fit_seconds": 1.5,
        "code_dim": 4,
    }
    assert fit_provenance("refine", [fit], [fitted])["method"] == "refine"


def motion_scan() -> Scan:
    points = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    return Scan("s", points / np.linalg.norm(points, axis=1, keepdims=True))


def test_items_come_as_they_were_and_leave_their_seconds() -> None:
    seconds: list[float] = []
    assert list(timed((k * k for k in range(4)), seconds)) == [0, 1, 4, 9]
    assert len(seconds) == 4
    assert min(seconds) >= 0
