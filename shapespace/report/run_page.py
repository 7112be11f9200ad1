"""Sections of a report on the runs: training curves, meshes of fits and interpolations, settings and hardware."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimesh import Trimesh

from shapespace.evaluation.scores import best_median_worst, mesh_file
from shapespace.evaluation.stored_scores import MotionScores, ScoredRun, find_files, read_result, run_names
from shapespace.io import scan_files, units
from shapespace.io.migration import upgrade_path
from shapespace.rendering import colors
from shapespace.report.comparison import COLUMNS, label, split_names
from shapespace.report.mesh_view import MAX_FACES, MeshFigure, MeshViews
from shapespace.report.page import Chart, Notes, Part, Section, Table, Text
from shapespace.training.run import Run, TrainingLog

CURVES = "training.png"  # beside the page
ERROR_LIMIT = 20.0  # mm, upper end of the error colors, as in `colors.color_by_distance`
MESH_BYTES = 9e6  # arbitrary: size of all meshes of a page
FACE_BYTES = 15  # of the page for a face with its share of the vertices, as packed by `mesh_view.pack`
SHARE_OF_FITS, SHARE_OF_INTERPOLATIONS = 0.6, 0.4  # of MESH_BYTES


@dataclass(frozen=True)
class RunInfo:
    """Settings, model metadata and training log of a run."""

    name: str
    home: Path
    settings: Mapping[str, Any]
    metadata: Mapping[str, Any]
    """Header of the model file; empty without a model."""
    training_log: TrainingLog


@dataclass(frozen=True)
class InterpolationResult:
    """Meshes on a path between two codes, as written by `shapespace interpolate`."""

    file: Path
    a: str
    b: str
    kind: str
    meshes: Sequence[Path]
    unit: float
    """Unit of the files (m)."""
    up: units.Up

    def read(self) -> list[Trimesh]:
        """Read the meshes (meters, y up)."""
        return [scan_files.read_mesh(file, unit=self.unit, up=self.up) for file in self.meshes]


def load_runs(folders: Sequence[Path], scored: Sequence[ScoredRun], paths: Sequence[MotionScores]) -> list[RunInfo]:
    """Read the runs among these folders and around these scores.

    Raises `ValueError` for settings or a model that cannot be read.
    """
    infos = []
    for home, name in run_names(folders, [*scored, *paths]).items():
        run = Run(home)
        infos.append(RunInfo(name, home, run.settings(), run.metadata(), run.training_log()))
    return infos


def load_interpolations(folders: Sequence[Path]) -> list[InterpolationResult]:
    """Read the interpolations at or below these folders.

    Raises `ValueError` for an invalid path.json.
    """
    files = dict.fromkeys(file for folder in folders for file in find_files(folder, "path.json"))
    return [_read_interpolation(file) for file in files]


def _read_interpolation(file: Path) -> InterpolationResult:
    command = "shapespace interpolate"
    content = read_result(file, "path", upgrade_path, command)
    try:
        count, form = len(content["area_m2"]), content.get("mesh_format")
        unit, up = float(content.get("unit", 1.0)), content.get("up", "y")
        names = (str(content["a"]), str(content["b"]), str(content["path"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not a valid interpolation ({error!r}). Write it again: {command}") from None
    form = form or ("obj" if (file.parent / "000.obj").is_file() else "ply")
    if form not in ("ply", "obj"):
        raise ValueError(f"{file}: mesh format {form!r} is neither ply nor obj. Write it again: {command}")
    meshes = [file.parent / f"{index:03d}.{form}" for index in range(count)]
    return InterpolationResult(file, *names, [mesh for mesh in meshes if mesh.is_file()], unit, up)


# ------------------------------------------------------------------------------------------------------------ sections


def mesh_sections(
    scored: Sequence[ScoredRun], interpolations: Sequence[InterpolationResult], *, alone: bool
) -> list[Section]:
    """Fits and interpolations as interactive meshes.

    A run `alone` shows its best, median and worst fits, several runs show their fits of the same scan.
    """
    sections = fit_sections(scored) if alone else side_by_side_sections(scored)
    if sections:
        sections[-1] = replace(sections[-1], parts=[*sections[-1].parts, Text(FIT_CAPTION)])
    if interpolations:
        parts = [_interpolation_views(interpolations), Text(INTERPOLATION_CAPTION)]
        sections = [*sections, Section("Interpolation", parts)]
    return sections


def training_sections(curves: str | None) -> list[Section]:
    """Training curves; `curves` is the SVG drawing of `training_panels`, None without curves."""
    return [] if curves is None else [Section("Training", [Chart(curves, CURVES, TRAINING_CAPTION)])]


def provenance_sections(runs: Sequence[RunInfo], scored: Sequence[ScoredRun]) -> list[Section]:
    """Settings, data and hardware."""
    return [settings_section(runs), data_section(runs), hardware_section(runs, scored)] if runs else []


def missing_outputs(
    runs: Sequence[RunInfo], scored: Sequence[ScoredRun], interpolations: Sequence[InterpolationResult]
) -> list[str]:
    """Outputs that the page would show, with the commands that make them."""
    missing = []
    for one in runs:
        folder = shlex.quote(str(one.home))
        if not one.metadata:
            missing.append(f"{one.name} has no model: shapespace train --resume {folder}")
        if all(each.home != one.home for each in scored):
            store = shlex.quote(str(one.settings.get("store", "STORE")))
            missing.append(f"{one.name} has no scores: shapespace evaluate {folder} {store}")
        if not one.training_log.curves:
            missing.append(f"{one.name} has no training curves: the folder `tensorboard` is missing or empty.")
    if len(runs) == 1 and not interpolations:
        folder = shlex.quote(str(runs[0].home))
        out = shlex.quote(str(runs[0].home / "interpolation"))
        missing.append(f"No interpolation: shapespace interpolate {folder} A B --out {out}")
    return missing


def training_panels(runs: Sequence[RunInfo]) -> dict[str, dict[str, Any]]:
    """Scalars of the trainings: a panel for each tag, in it a curve for each run."""
    tags = dict.fromkeys(tag for one in runs for tag in one.training_log.curves)
    return {
        tag.removeprefix("loss/"): {
            one.name: one.training_log.curves[tag] for one in runs if tag in one.training_log.curves
        }
        for tag in tags
    }


def fit_sections(scored: Sequence[ScoredRun]) -> list[Section]:
    """Best, median and worst scan of each split, for each run and method."""
    chosen = [
        (f"Fits: {split}" if len(scored) == 1 else f"Fits: {split}, {label(one)}", one, split)
        for split in split_names(scored)
        for one in scored
        if one.names(split)
    ]
    faces = _faces_per_mesh(3 * len(chosen))
    return [
        Section(
            title,
            _fit_views([(word, one, split, row) for word, row in best_median_worst(one.rows, split).items()], faces),
        )
        for title, one, split in chosen
    ]


def side_by_side_sections(scored: Sequence[ScoredRun]) -> list[Section]:
    """Fits of one scan of each split by all runs and methods: the median scan of the first run."""
    sections = []
    faces = _faces_per_mesh(len(scored) * len(split_names(scored)))
    for split in split_names(scored):
        of_split = [one for one in scored if one.names(split)]
        if "median" not in (first := best_median_worst(of_split[0].rows, split)):
            continue
        name = first["median"]["name"]
        rows = [(one, row) for one in of_split for row in one.rows if (row["split"], row["name"]) == (split, name)]
        chosen = [(label(one), one, split, row) for one, row in rows]
        sections.append(Section(f"One scan of {split}: {name}", _fit_views(chosen, faces)))
    return sections


def _fit_views(chosen: Sequence[tuple[str, ScoredRun, str, Mapping[str, Any]]], faces: int) -> list[Part]:
    """Fits colored by their errors, and a list of those that are missing."""
    figures, colored, notes = [], [], [] if chosen else ["No surface was predicted for any scan."]
    for word, one, split, row in chosen:
        file = mesh_file(one.path.parent, split, row["name"])
        if not file.is_file():
            notes.append(f"{word}: no surface was predicted, or the mesh {file.name} is missing.")
            continue
        mesh = scan_files.read_mesh(file)
        colored.append("quality" in mesh.vertex_attributes)
        caption = f"{word}: {row['name']}{_error_text(row)}"
        figures.append(MeshFigure([colors.color_by_quality(mesh, limit=ERROR_LIMIT)], caption))
    parts: list[Part] = [MeshViews(figures, ERROR_LIMIT if any(colored) else None, faces=faces)] if figures else []
    if not all(colored):
        notes.append("Gray meshes have no errors at their vertices. Score them again: shapespace evaluate")
    return [*parts, Notes(notes)] if notes else parts


def _error_text(row: Mapping[str, Any]) -> str:
    errors = row.get("surface_distance", {})
    return "".join(f", {column} {errors[column]:.2f} mm" for column in COLUMNS if errors.get(column) is not None)


def _interpolation_views(interpolations: Sequence[InterpolationResult]) -> MeshViews:
    faces = _faces_per_mesh(sum(len(one.meshes) for one in interpolations), share=SHARE_OF_INTERPOLATIONS)
    figures = [MeshFigure(one.read(), f"{one.a} to {one.b}, {one.kind}") for one in interpolations if one.meshes]
    return MeshViews(figures, faces=faces)


def _faces_per_mesh(meshes: int, share: float = SHARE_OF_FITS) -> int:
    """Maximum number of faces of each of so many meshes."""
    return min(MAX_FACES, int(share * MESH_BYTES / FACE_BYTES / max(meshes, 1)))


def settings_section(runs: Sequence[RunInfo]) -> Section:
    """All settings of one run, or the settings that differ between several runs."""
    flat = [_flatten(one.settings) for one in runs]
    lines = []
    for key in dict.fromkeys(key for each in flat for key in each):
        values = [each.get(key, "-") for each in flat]
        if len(runs) == 1 or len(set(values)) > 1:
            lines.append([key, *values])
    names = ["value"] if len(runs) == 1 else [one.name for one in runs]
    title = "Settings" if len(runs) == 1 else "Settings that differ"
    return Section(title, [Table(["setting", *names], lines, text_columns=1)] if lines else [Text("None.")])


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in settings.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat


def data_section(runs: Sequence[RunInfo]) -> Section:
    """Training data, from the metadata of the models."""
    described = [one.metadata.get("metadata", {}) for one in runs]
    keys = dict.fromkeys(key for each in described for key in each.get("data", {}))
    lines = [[key, *(str(each.get("data", {}).get(key, "-")) for each in described)] for key in keys]
    lines.append(["training scans", *(str(each.get("scans", "-")) for each in described)])
    return Section("Data", [Table(["", *(one.name for one in runs)], lines, text_columns=1 + len(runs))])


def hardware_section(runs: Sequence[RunInfo], scored: Sequence[ScoredRun]) -> Section:
    """Hardware of the trainings and of the scores."""
    lines = [
        f"{one.name} was trained on: {'; '.join(dict.fromkeys(one.training_log.machines)) or 'not recorded'}."
        for one in runs
    ]
    lines += [f"{label(one)} was scored on: {one.settings.get('machine') or 'not recorded'}." for one in scored]
    return Section("Hardware", [Notes(lines)])


FIT_CAPTION = (
    "Color is the distance of each point of a fit to the ground truth. The best, median and worst scans are ordered by "
    "the mean of completeness and accuracy. Meshes are decimated for the page; the full meshes are beside the scores."
)
INTERPOLATION_CAPTION = (
    "Meshes of codes at equal steps on a path between two codes, decimated for the page. The full meshes are beside "
    "the path.json."
)
TRAINING_CAPTION = (
    "Records of the training over its steps: the loss, its terms without their weights, the learning rate, and the "
    "share of time spent waiting for batches. Long curves are averaged over intervals."
)
