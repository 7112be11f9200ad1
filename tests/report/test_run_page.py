"""Sections on runs: fits, interpolations, training curves, settings; missing outputs with their commands."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
import yaml
from torch.utils.tensorboard import SummaryWriter

from shapespace.evaluation import metrics
from shapespace.evaluation.scores import ScoreReport, mesh_file
from shapespace.evaluation.stored_scores import load_scores
from shapespace.io import scan_files
from shapespace.io.checkpoints import save_tensors
from shapespace.rendering import colors
from shapespace.report import comparison, page, run_page
from shapespace.training.run import Run

ERRORS = {"p/a": 3.0, "p/b": 1.0, "p/c": 2.0, "p/d": float("nan"), "p/e": 9.0}


def score(folder: Path, errors: dict[str, float] = ERRORS, *, quality: bool = True, method: str = "lm") -> None:
    """Scores of one split, with the mesh of every scan that has one: a ball whose error is 10 mm everywhere."""
    rows: list[dict[str, Any]] = []
    for name, error in errors.items():
        rows.append({"name": name, "split": "test", "surface_distance": {"completeness": error, "accuracy": 2 * error}})
        ball = trimesh.creation.icosphere(subdivisions=2, radius=0.5)
        if np.isfinite(error):
            colored = colors.color_by_value(ball, np.full(len(ball.vertices), 0.010)) if quality else ball
            scan_files.write_mesh(mesh_file(folder, "test", name), colored)
    surface = metrics.METRICS["surface_distance"]
    units = {"surface_distance": {"completeness": "mm", "accuracy": "mm"}}
    settings = {"store": "s.h5", "method": method, "family": "igr", "machine": "an abacus"}
    ScoreReport({"surface_distance": surface.description}, units, rows, metrics.summarize(rows), settings).write(folder)


def train(folder: Path, *, seed: int = 0, events: bool = True) -> Path:
    """A run, without scores."""
    folder.mkdir(parents=True)
    settings = {"store": "my data.h5", "family": "igr", "seed": seed, "optim": {"lr": 0.001, "lr_codes": None}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    metadata = {"kind": "model", "family": "igr", "metadata": {"data": {"recipe": "<i>", "unit": 1.0}, "scans": 7}}
    save_tensors(folder / "model.safetensors", {"w": torch.zeros(1)}, metadata)
    if events:
        record(folder, range(10, 70, 10))
    return folder


def record(folder: Path, steps: range, start: int = 0, machine: str = "an abacus") -> None:
    with SummaryWriter(str(Run(folder).tensorboard), purge_step=start) as writer:
        writer.add_text("machine", machine, start)
        for step in steps:
            writer.add_scalar("loss", 100.0 / step, step)
            writer.add_scalar("loss/surface", -float(step), step)


def interpolate(folder: Path, **values: Any) -> None:
    for index, radius in enumerate((0.5, 0.6, 0.7)):
        mesh = trimesh.creation.icosphere(subdivisions=1, radius=radius)
        scan_files.write_mesh(folder / f"{index:03d}.obj", mesh, unit=values.get("unit", 1.0), up=values.get("up", "y"))
    content = {"format": 2, "a": "<one>", "b": "two", "path": "linear", "area_m2": [1, 2, 3], "mesh_format": "obj"}
    (folder / "path.json").write_text(json.dumps(content | values))


def figures(sections: list[page.Section]) -> list[Any]:
    return [figure for each in sections for part in each.parts for figure in getattr(part, "figures", [])]


def as_markdown(sections: list[page.Section]) -> str:
    return page.markdown("t", sections)


def test_best_median_and_worst_are_shown_with_their_numbers(tmp_path: Path) -> None:
    score(tmp_path)
    scored, _ = load_scores([tmp_path])
    (section,) = run_page.fit_sections(scored)
    assert [figure.caption for figure in figures([section])] == [
        "best: p/b, completeness 1.00 mm, accuracy 2.00 mm",
        "median: p/a, completeness 3.00 mm, accuracy 6.00 mm",
        "worst: p/e, completeness 9.00 mm, accuracy 18.00 mm",
    ]
    shown = np.asarray(figures([section])[0].frames[0].visual.vertex_colors)[:, :3]
    assert (shown == colors.ERROR_RAMP[2]).all()  # 10 mm of 20
    assert section.parts[0].limit == 20  # type: ignore[attr-defined]


def test_meshes_without_errors_are_gray_without_a_legend_and_missing_ones_are_named(tmp_path: Path) -> None:
    score(tmp_path, quality=False)
    mesh_file(tmp_path, "test", "p/e").unlink()
    (section,) = run_page.fit_sections(load_scores([tmp_path])[0])
    assert len(figures([section])) == 2
    assert section.parts[0].limit is None  # type: ignore[attr-defined]
    assert "worst: no surface was predicted, or the mesh p_e.ply is missing" in as_markdown([section])
    assert "Gray meshes have no errors" in as_markdown([section])


def test_without_predicted_surfaces_no_mesh_is_shown(tmp_path: Path) -> None:
    score(tmp_path, {"p/a": float("nan")})
    (section,) = run_page.fit_sections(load_scores([tmp_path])[0])
    assert not figures([section])
    assert "No surface was predicted for any scan." in as_markdown([section])


def test_several_runs_show_the_same_scan(tmp_path: Path) -> None:
    score(train(tmp_path / "a"))
    score(train(tmp_path / "b"), {name: 10 * error for name, error in reversed(ERRORS.items())})
    (section,) = run_page.side_by_side_sections(load_scores([tmp_path / "a", tmp_path / "b"])[0])
    assert section.title == "One scan of test: p/a"
    assert [figure.caption[:40] for figure in figures([section])] == [
        "a by lm: p/a, completeness 3.00 mm, accu",
        "b by lm: p/a, completeness 30.00 mm, acc",
    ]


def test_curves_and_hardware_are_read_without_undone_steps(tmp_path: Path) -> None:
    run = train(tmp_path / "a")
    record(run, range(50, 90, 10), start=45, machine="a slide rule")
    log = Run(run).training_log()
    assert log.curves["loss"][:, 0].tolist() == [10, 20, 30, 40, 50, 60, 70, 80]
    assert log.curves["loss"][:, 1] == pytest.approx(100 / log.curves["loss"][:, 0])
    assert log.machines == ["an abacus", "a slide rule"]
    (one,) = run_page.load_runs([run], [], [])
    assert list(run_page.training_panels([one])) == ["loss", "surface"]


def test_a_run_shows_its_settings_data_and_hardware(tmp_path: Path) -> None:
    run = train(tmp_path / "a")
    score(run)
    scored, moved = load_scores([run])
    provenance = run_page.provenance_sections(run_page.load_runs([run], scored, moved), scored)
    settings = dict(provenance[0].parts[0].lines)  # type: ignore[attr-defined]
    assert settings == {"store": "my data.h5", "family": "igr", "seed": "0", "optim.lr": "0.001"} | {
        "optim.lr_codes": "None"
    }
    text = as_markdown(provenance)
    assert re.search(r"recipe +\| \\<i>", text)
    assert re.search(r"training scans +\| 7", text)
    assert "a was trained on: an abacus." in text
    assert "a by lm was scored on: an abacus." in text


def test_several_runs_show_settings_that_differ(tmp_path: Path) -> None:
    runs = [train(tmp_path / "a"), train(tmp_path / "b", seed=1)]
    table = run_page.settings_section(run_page.load_runs(runs, [], [])).parts[0]
    assert (table.head, table.lines) == (["setting", "a", "b"], [["seed", "0", "1"]])  # type: ignore[attr-defined]


@pytest.mark.parametrize(("unit", "up"), [(1.0, "y"), (0.001, "z")])
def test_a_path_is_read_as_it_was_written(unit: float, up: str, tmp_path: Path) -> None:
    interpolate(tmp_path / "interpolation", unit=unit, up=up)
    (interpolation,) = run_page.load_interpolations([tmp_path, tmp_path / "interpolation"])
    shapes = interpolation.read()
    assert [np.ptp(mesh.vertices, axis=0).max() for mesh in shapes] == pytest.approx([1.0, 1.2, 1.4], rel=1e-4)
    (figure,) = figures(run_page.mesh_sections([], [interpolation], alone=True))
    assert (len(figure.frames), figure.caption) == (3, "<one> to two, linear")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"area_m2": 3}'])
def test_an_invalid_interpolation_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "path.json").write_text(text)
    with pytest.raises(ValueError, match=r"path\.json: not .*valid .*\. Write it again: shapespace interpolate"):
        run_page.load_interpolations([tmp_path])


def test_missing_outputs_are_listed_with_their_commands(tmp_path: Path) -> None:
    run = train(tmp_path / "a run", events=False)
    (run / "model.safetensors").unlink()
    missing = run_page.missing_outputs(run_page.load_runs([run], *load_scores([run])), [], [])
    assert missing == [
        f"a run has no model: shapespace train --resume '{run}'",
        f"a run has no scores: shapespace evaluate '{run}' 'my data.h5'",
        "a run has no training curves: the folder `tensorboard` is missing or empty.",
        f"No interpolation: shapespace interpolate '{run}' A B --out '{run}/interpolation'",
    ]
    run = train(tmp_path / "b")
    score(run)
    interpolate(run / "interpolation")
    scored, moved = load_scores([run])
    assert (
        run_page.missing_outputs(run_page.load_runs([run], scored, moved), scored, run_page.load_interpolations([run]))
        == []
    )


@pytest.mark.parametrize(("text", "sentence"), [("a: [", "is not YAML"), ("- 1", "holds a list, not settings")])
def test_invalid_settings_are_named(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.yaml {sentence}"):
        run_page.load_runs([tmp_path], [], [])


def test_percentiles_are_those_of_the_scores(tmp_path: Path) -> None:
    score(tmp_path)
    scored, _ = load_scores([tmp_path])
    table = comparison.percentile_table(scored, "test")
    assert table.head[4:] == ["median", "mean", "p5", "p95", "scans"]
    values = np.array([1.0, 2.0, 3.0, 9.0])
    wanted = [np.median(values), values.mean(), *np.percentile(values, [5, 95])]
    assert [float(cell) for cell in table.lines[0][4:8]] == pytest.approx(wanted, abs=0.005)
    assert table.lines[0][8] == "4 of 5"


def test_all_meshes_of_a_page_fit_into_it() -> None:
    assert run_page._faces_per_mesh(1) == 12_000
    for count in (1, 60, 1000):
        assert count * run_page._faces_per_mesh(count) * run_page.FACE_BYTES <= run_page.MESH_BYTES


def test_an_interpolation_of_format_1_is_read(tmp_path: Path) -> None:
    interpolate(tmp_path)
    shutil.copy(Path(__file__).parents[1] / "data" / "format1" / "path.json", tmp_path)
    (one,) = run_page.load_interpolations([tmp_path])
    assert (one.a, one.b, one.kind) == ("p000/poses/000000", "p000/poses/000001", "linear")
    assert [mesh.name for mesh in one.meshes] == ["000.obj", "001.obj", "002.obj"]
    assert (one.unit, one.up) == (1.0, "y")


def test_training_curves_of_format_1_have_the_present_names(tmp_path: Path) -> None:
    run = train(tmp_path / "a", events=False)
    with SummaryWriter(str(Run(run).tensorboard)) as writer:
        for tag in ("loss", "terms/surface", "wait"):
            writer.add_scalar(tag, 1.0, 10)
    assert list(run_page.training_panels(run_page.load_runs([run], [], []))) == ["loss", "surface", "time/data_wait"]
