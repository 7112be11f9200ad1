"""Interpolation paths of every family: encoded ends, supported paths, open and missing surfaces."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from shapespace import ShapeSpace
from shapespace.evaluation.motion import path_medians, score_path, supported_paths
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.result import Fit
from shapespace.geometry.scan import Scan
from shapespace.models import atlas, igr, registry, voxel
from shapespace.tools import evaluate_paths, synthesize
from shapespace.tools._outputs import fit_provenance, model_provenance, timed

SIZES = {
    "igr": igr.IGRConfig(code_dim=4, width=24, depth=3, skip=1, init_radius=0.5, encoder_points=128),
    "voxel": voxel.VoxelConfig(grid=8),
    "atlas": atlas.AtlasConfig(code_dim=4, width=16, patches=2),
}


def space(family: str, scans: int = 3) -> ShapeSpace:
    torch.manual_seed(0)
    sizes = SIZES[family]
    return ShapeSpace(registry.build_model(sizes, num_scans=scans).eval(), sizes, scale=1.25, metadata={"weights": {}})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "people"
    synthesize.main(folder, people=1, poses=2, test_people=1, poses_per_test_person=2, jobs=1)
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
    assert supported_paths(("slerp", "geodesic", "linear"), space("voxel")) == ["slerp", "linear"]
    assert "family voxel has no geodesic path, which needs an SDF" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"family atlas has no geodesic path, .*\. Use --paths linear\."):
        supported_paths(("geodesic",), space("atlas"))


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
