"""Files of format 1, written before the names changed: they open, and what is saved again has the present format."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from shapespace.data.store import ScanStore
from shapespace.evaluation.stored_scores import load_scores
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.result import load_fits, save_fits
from shapespace.io import migration
from shapespace.io.checkpoints import read_checkpoint, read_metadata
from shapespace.io.migration import FORMATS, NAMES, VALUES, upgrade_training
from shapespace.models.base import FieldModel
from shapespace.models.code import Code
from shapespace.report.comparison import error_table
from shapespace.report.run_page import load_interpolations
from shapespace.space import ShapeSpace
from shapespace.synthetic.people import SynthesisConfig, read_synthesis
from shapespace.tools import report, train
from shapespace.tools.__main__ import cli
from shapespace.tools._config import config_of_settings, load_config, load_yaml
from shapespace.training.config import LossWeights
from shapespace.training.run import Run

OLD = Path(__file__).parents[1] / "data" / "format1"
EXPECTED = json.loads((OLD / "expected.json").read_text())


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files as they were beside each other: the settings of the run name the store `people.h5`."""
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    shutil.copy(OLD / "store.h5", folder / "people.h5")
    monkeypatch.chdir(folder)
    return folder


def field_at(space: ShapeSpace, code: torch.Tensor) -> list[float]:
    assert isinstance(space.model, FieldModel)
    with torch.no_grad():
        return space.model.field(torch.tensor([EXPECTED["points"]]), Code((code,)))[0].tolist()  # type: ignore[no-any-return]


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["shapespace"])  # type: ignore[no-any-return]


# --------------------------------------------------------------------------------------------------- models and codes


def test_a_model_and_its_codes_give_the_same_field_and_fingerprint(tmp_path: Path) -> None:
    space = ShapeSpace.load(OLD / "run")
    assert space.model.fingerprint() == EXPECTED["fingerprint"]
    (fit,) = load_fits(OLD / "codes.safetensors", space.model)
    assert fit.name == "p002/poses/000000"
    assert field_at(space, fit.code.parts[0]) == pytest.approx(EXPECTED["field"], abs=1e-6)

    assert header(OLD / "run" / "model.safetensors")["format"] == 1
    space.save(tmp_path / "model.safetensors")
    assert header(tmp_path / "model.safetensors")["format"] == FORMATS["model"] == 2
    again = ShapeSpace.load(tmp_path / "model.safetensors")
    assert (again.config, again.metadata, again.scale) == (space.config, space.metadata, space.scale)
    assert again.model.fingerprint() == EXPECTED["fingerprint"]
    save_fits(tmp_path / "codes.safetensors", [fit], again.model)
    assert header(tmp_path / "codes.safetensors")["format"] == FORMATS["codes"] == 1
    (same,) = load_fits(tmp_path / "codes.safetensors", again.model)
    assert torch.equal(same.code.flat, fit.code.flat)
    assert torch.equal(same.frame.center, fit.frame.center)


def test_the_header_of_a_model_has_the_present_names() -> None:
    metadata = read_metadata(OLD / "run" / "model.safetensors", "model")
    assert set(metadata) == {"format", "kind", "family", "config", "scale", "metadata"}
    assert metadata["config"]["encoder"] == "distilled"
    weights = metadata["metadata"]["weights"]
    assert set(weights) <= set(vars(LossWeights()))
    assert (weights["tangent_plane"], weights["unsigned_distance"], weights["distillation"]) == (3.0, 1.0, 0.1)


def test_the_first_packaged_humans_is_of_format_1_and_the_same() -> None:
    space = ShapeSpace.load("humans_v1")
    assert space.model.fingerprint() == EXPECTED["humans_fingerprint"]
    assert space.model.prior is not None
    assert field_at(space, space.model.prior.mean[None]) == pytest.approx(EXPECTED["humans_field"], abs=1e-6)


# ------------------------------------------------------------------------------------------------------ runs and stores


def test_a_run_resumes_from_its_checkpoint(old: Path) -> None:
    run = Run(old / "run")
    before = run.load_checkpoint()
    (state,) = before["optimizer"]["parts"][1]["state"].values()
    assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
    settings = run.settings()
    settings["optim"]["max_steps"] = 25
    run.config.write_text(yaml.safe_dump(settings))
    cli(train.main, ["--resume", "run"], "train")
    after = torch.load(run.checkpoint, weights_only=True)
    assert (before["step"], after["step"], after["format"]) == (20, 25, FORMATS["checkpoint"])
    (moved,) = after["optimizer"]["parts"][1]["state"].values()
    assert (moved["step"] > state["step"]).any()
    assert after["model"].keys() == before["model"].keys()
    assert header(run.weights)["format"] == FORMATS["model"]


def test_a_checkpoint_without_a_number_is_of_format_1(old: Path) -> None:
    path = old / "run" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    del state["format"]
    torch.save(state, path)
    assert read_checkpoint(path, "optimizer")["format"] == FORMATS["checkpoint"]


def test_a_store_is_read_and_a_scan_of_it_is_fitted(old: Path) -> None:
    store, space = ScanStore(old / "store.h5"), ShapeSpace.load(old / "run")
    name = store.scan_names("train")[0]
    assert store.ground_truth(name) is not None
    (fit,) = space.fit_scans([store.scan(name)], lm=LMOptions(max_steps=2, num_points=64, free_space_points=32))
    assert fit.name == name
    assert np.isfinite(fit.residuals).all()


# ------------------------------------------------------------------------------------------------------------ settings


def test_the_settings_of_a_run_are_read_with_one_note(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(old / "run")
    config = config_of_settings({key: value for key, value in run.settings().items() if key not in ("store", "split")})
    assert config.model.encoder == "distilled"
    assert (config.batch.gradient_stride, config.optim.max_epochs, config.weights.distillation) == (2, 400.0, 0.1)
    assert run.family() == "igr"
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith(f"note: {run.config} uses earlier names: model.code (now model.code_dim), ")
    for changed in ("batch.sloped (now batch.gradient_stride)", "model.encoder: taught (now model.encoder: distilled)"):
        assert changed in note


def test_a_config_of_a_user_is_its_present_spelling(capsys: pytest.CaptureFixture[str]) -> None:
    """training.yaml has no family: it is of igr."""
    file = OLD / "training.yaml"
    present = {
        "model": {
            "code_dim": 4,
            "width": 32,
            "depth": 3,
            "skip": 1,
            "init_radius": 0.5,
            "encoder": "distilled",
            "encoder_points": 64,
            "encoder_width": 16,
            "encoder_features": 32,
        },
        "batch": {"scans": 2, "points": 128, "surface_points": 32, "half_extent": 1.0, "gradient_stride": 2},
        "optim": {
            "max_steps": 80,
            "max_epochs": 400,
            "lr": 2e-3,
            "lr_codes": 4e-2,
            "lr_muon": 1e-2,
            "schedule": "cosine",
            "warmup_steps": 5,
        },
        "weights": {
            "surface": 3,
            "normal": 0.3,
            "eikonal": 0.1,
            "tangent_plane": 3,
            "unsigned_distance": 1,
            "distillation": 0.1,
            "code_reg": 1e-4,
        },
        "log_every": 5,
        "save_every": 20,
        "projector_codes": 0,
    }
    assert load_yaml(str(file)) == present
    assert load_config(str(file)) == config_of_settings(present)
    err = capsys.readouterr().err
    assert err.count("note: ") == 1
    assert str(file) in err


def test_present_settings_are_read_without_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    settings = asdict(load_config("igr"))
    assert upgrade_training(settings, "mine") == settings
    assert capsys.readouterr().err == ""


def test_a_setting_by_both_names_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mine: both optim\.steps and optim\.max_steps, .* Remove optim\.steps\."):
        upgrade_training({"optim": {"steps": 1, "max_steps": 2}}, "mine")


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")


def test_every_present_name_of_the_table_is_a_setting_and_no_old_one_is() -> None:
    configs = ("igr", "occupancy", "convolutional", "multiscale", "voxel", "atlas")
    known = {leaf for name in configs for leaf in _leaves(asdict(load_config(name)))}
    assert set(NAMES["training"].values()) <= known
    assert not set(NAMES["training"]) & known
    assert set(VALUES["training"]) <= known
    assert set(NAMES["lm"].values()) <= set(vars(LMOptions()))
    assert not set(NAMES["lm"]) & set(vars(LMOptions()))


# ------------------------------------------------------------------------------------------------------------- results


def test_the_report_shows_old_scores_under_present_names(old: Path) -> None:
    (old / "run" / "scores.json").write_bytes((old / "scores.json").read_bytes())
    cli(report.main, ["run", "--out", "page", "--no-interpolate"], "report")
    page = (old / "page" / "report.md").read_text()
    assert "176.24" in page  # completeness of the unseen pose
    assert "22.49" in page  # its accuracy
    assert "found" not in page.split("## Settings")[0].lower().replace("no surface was found", "")


def test_old_scores_are_read_under_present_names(old: Path) -> None:
    (one,), _ = load_scores([old])
    assert one.median("unseen_poses", "surface_distance", "completeness") == pytest.approx(176.2388765)
    assert one.median("unseen_poses", "surface_distance", "accuracy") == pytest.approx(22.4922780)
    assert set(one.metrics) == {"surface_distance", "normal_consistency"}
    assert one.settings["training_steps"] == 20
    assert one.settings["num_parameters"] == 3953
    assert one.settings["parameter_bytes"] == 15812
    assert one.settings["code_dim"] == 4
    assert one.steps == 20
    assert "493.07" in str(error_table([one], "unseen_people").lines)


def test_an_old_path_is_read(old: Path) -> None:
    for index in range(3):
        (old / f"{index:03d}.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (path,) = load_interpolations([old])
    assert (path.kind, len(path.meshes)) == ("linear", 3)
    upgraded = migration.upgrade_path({"path": "shortest", "format": "ply"})
    assert upgraded == {"path": "geodesic", "mesh_format": "ply", "format": FORMATS["path"]}


def test_an_old_motion_is_upgraded() -> None:
    old = {
        "settings": {"trained_steps": 3, "code_numbers": 4},
        "medians": {"spherical": {"truth_to_found": 1.0, "sa_sigma": 2.0}, "truth": {"sa_sigma": 1.0}},
        "rows": [{"a": "x", "b": "y", "path": "shortest", "found_to_truth": 3.0}],
    }
    assert migration.upgrade_motion(old) == {
        "format": FORMATS["motion"],
        "settings": {"training_steps": 3, "code_dim": 4},
        "medians": {"slerp": {"completeness": 1.0, "sa_sigma": 2.0}, "truth": {"sa_sigma": 1.0}},
        "rows": [{"a": "x", "b": "y", "path": "geodesic", "accuracy": 3.0}],
    }


def test_old_tables_are_upgraded() -> None:
    robust = migration.upgrade_table(json.loads((OLD / "robust.json").read_text()), "robustness")
    assert [row["case"] for row in robust["rows"]] == ["complete", "sparse", "single_view"]
    assert robust["rows"][1]["completeness"] == pytest.approx(68.884035)
    assert robust["rows"][0]["ood_score"] == pytest.approx(1434.678467)
    assert LMOptions(**robust["settings"]["lm"]).alignment == "local"
    assert robust["format"] == FORMATS["robustness"]

    ablation = migration.upgrade_table(json.loads((OLD / "ablation.json").read_text()), "ablation")
    (row,) = ablation["rows"]
    assert row["variant"] == "small.yaml"
    assert row["medians"]["unseen_poses"]["accuracy"] == [pytest.approx(649.8311193)]


def test_the_settings_of_an_old_dataset_are_read(old: Path) -> None:
    assert read_synthesis(old) == SynthesisConfig(
        people=1, poses=2, test_people=1, poses_per_test_person=1, test_poses=1, motion_fraction=0.5, seed=3
    )


def test_old_tags_of_a_training_are_read_under_the_present_ones(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    run = Run(tmp_path)
    with SummaryWriter(str(run.tensorboard)) as writer:
        writer.add_scalar("terms/surface", 2.0, 20)
        writer.add_scalar("wait", 0.5, 20)
        writer.add_scalar("loss", 3.0, 20)
    with SummaryWriter(str(run.tensorboard), purge_step=40, filename_suffix=".2") as writer:  # resumed by this version
        writer.add_scalar("loss/surface", 1.0, 40)
        writer.add_scalar("time/data_wait", 0.25, 40)
    curves = run.training_log().curves
    assert curves["loss/surface"].tolist() == [[20, 2.0], [40, 1.0]]
    assert curves["time/data_wait"].tolist() == [[20, 0.5], [40, 0.25]]
    assert set(curves) == {"loss", "loss/surface", "time/data_wait"}
    assert migration.upgrade_tag("codes/numbers") == "codes/values"
    assert migration.upgrade_tag("codes/lengths") == "codes/norms"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("number", [0, 3, 2.0, "2", None, True])
def test_unknown_formats_are_refused(kind: str, number: object) -> None:
    with pytest.raises(ValueError, match=rf"^a\.file: format {number} of {kind} files is unknown, this version reads "):
        migration.check_format(kind, number, "a.file", "write it again")


def test_values_of_a_hostile_header_are_left_to_the_checks_behind_it() -> None:
    assert migration.upgrade_model({"sizes": 3, "about": [1]}) == {"config": 3, "metadata": [1], "format": 2}
    assert migration.upgrade_checkpoint({"optimiser": {"parts": [1, {"state": [2]}]}})["optimizer"] == {
        "parts": [1, {"state": [2]}]
    }
    assert migration.upgrade_scores({"protocols": [], "rows": [1], "summary": {"a": 2}})["rows"] == [1]
