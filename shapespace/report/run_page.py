"""What a run tells of itself: how it learned, its fits and a path of it to look at, its settings, data and machine.

`compare` has the numbers, this the rest of the same page: for one run everything, for several what tells them apart.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimesh import Trimesh

from shapespace.evaluation.scores import best_median_worst, mesh_file
from shapespace.io import scan_files, units
from shapespace.rendering import colors
from shapespace.report.comparison import COLUMNS, MotionScores, ScoredRun, find_files, label, runs, splits
from shapespace.report.mesh_view import MOST_FACES, MeshFigure, MeshViews
from shapespace.report.page import Chart, Notes, Part, Section, Table, Text
from shapespace.training.run import Run, TrainingLog

CURVES = "training.png"  # beside the page
LIMIT = 20.0  # mm: where the colours of errors end
ROOM = 9e6  # bytes of the page that all its meshes may take
FACE_BYTES = 15  # that one face takes there, with its share of the vertices


@dataclass(frozen=True)
class RunInfo:
    """A run, apart from its scores."""

    name: str
    home: Path
    settings: Mapping[str, Any]
    metadata: Mapping[str, Any]
    """What stands beside the weights; nothing where there are none."""
    training_log: TrainingLog


@dataclass(frozen=True)
class InterpolationResult:
    """Shapes on a path between two codes, as `shapespace interpolate` left them."""

    file: Path
    a: str
    b: str
    kind: str
    meshes: Sequence[Path]
    unit: float
    up: units.Up

    def read(self) -> list[Trimesh]:
        """The shapes, metres, y up."""
        return [scan_files.read_mesh(file, unit=self.unit, up=self.up) for file in self.meshes]


def load_runs(folders: Sequence[Path], scored: Sequence[ScoredRun], moved: Sequence[MotionScores]) -> list[RunInfo]:
    """The runs among these folders and around these scores.

    Raises `ValueError` for settings or a model that cannot be read.
    """
    found = []
    for home, name in runs(folders, scored, moved).items():
        run = Run(home)
        found.append(RunInfo(name, home, run.settings(), run.metadata(), run.training_log()))
    return found


def load_interpolations(folders: Sequence[Path]) -> list[InterpolationResult]:
    """The paths at or below these folders whose shapes are there.

    Raises `ValueError` for a path.json that `shapespace interpolate` did not write.
    """
    return [
        _walk(file) for file in dict.fromkeys(file for folder in folders for file in find_files(folder, "path.json"))
    ]


def _walk(file: Path) -> InterpolationResult:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        count, form = len(told["area_m2"]), told.get("format")
        unit, up = float(told.get("unit", 1.0)), told.get("up", "y")
        found = (str(told["a"]), str(told["b"]), str(told["path"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} tells of no path ({error!r}): write it again, shapespace interpolate.") from None
    form = form or ("obj" if (file.parent / "000.obj").is_file() else "ply")
    if form not in ("ply", "obj"):
        raise ValueError(f"{file} tells of meshes of format {form!r}, not ply or obj: write it again.")
    meshes = [file.parent / f"{index:03d}.{form}" for index in range(count)]
    return InterpolationResult(file, *found, [mesh for mesh in meshes if mesh.is_file()], unit, up)


# ------------------------------------------------------------------------------------------------------------ sections


def seen(scored: Sequence[ScoredRun], walks: Sequence[InterpolationResult], *, alone: bool) -> list[Section]:
    """Fits and paths, to be turned: the fits of a run `alone` from best to worst, those of several side by side."""
    page = fits(scored) if alone else side_by_side(scored)
    if page:
        page[-1] = replace(page[-1], parts=[*page[-1].parts, Text(FITS)])
    return [*page, *([Section("From one shape to another", [_moving(walks), Text(WALK)])] if walks else [])]


def learning(curves: str | None) -> list[Section]:
    """How the runs learned; `curves` is the drawing of `panels` as an element of the page, if there is one."""
    return [] if curves is None else [Section("Training", [Chart(curves, CURVES, TRAINING)])]


def origin(trained: Sequence[RunInfo], scored: Sequence[ScoredRun]) -> list[Section]:
    """Settings, data and machine."""
    return [settings(trained), data(trained), machines(trained, scored)] if trained else []


def missing(trained: Sequence[RunInfo], scored: Sequence[ScoredRun], walks: Sequence[InterpolationResult]) -> list[str]:
    """What the page would show if it were there, and the line that makes it."""
    found = []
    for one in trained:
        here = shlex.quote(str(one.home))
        if not one.metadata:
            found.append(f"{one.name} has no model yet: shapespace train --resume {here}")
        if all(each.home != one.home for each in scored):
            store = shlex.quote(str(one.settings.get("store", "STORE")))
            found.append(f"{one.name} was not scored: shapespace evaluate {here} {store}")
        if not one.training_log.curves:
            found.append(
                f"{one.name} has no records of its training (TensorBoard's events): its folder was copied in part."
            )
    if len(trained) == 1 and not walks:
        here = shlex.quote(str(trained[0].home))
        there = shlex.quote(str(trained[0].home / "interpolation"))
        found.append(f"No path between two shapes: shapespace interpolate {here} A B --out {there}")
    return found


def panels(trained: Sequence[RunInfo]) -> dict[str, dict[str, Any]]:
    """The scalars of the trainings: a panel for each, in it the runs."""
    tags = dict.fromkeys(tag for one in trained for tag in one.training_log.curves)
    return {
        tag.removeprefix("terms/"): {
            one.name: one.training_log.curves[tag] for one in trained if tag in one.training_log.curves
        }
        for tag in tags
    }


def fits(scored: Sequence[ScoredRun]) -> list[Section]:
    """The best, the median and the worst scan of each split, by each method."""
    chosen = [
        (f"Fits: {split}" if len(scored) == 1 else f"Fits: {split}, {label(one)}", one, split)
        for split in splits(scored)
        for one in scored
        if one.names(split)
    ]
    faces = _faces(3 * len(chosen))
    return [
        Section(
            title, _shown([(word, one, split, row) for word, row in best_median_worst(one.rows, split).items()], faces)
        )
        for title, one, split in chosen
    ]


def side_by_side(scored: Sequence[ScoredRun]) -> list[Section]:
    """One scan of each split, fitted by every run and method: the one that is the median of the first."""
    page = []
    for split in splits(scored):
        them = [one for one in scored if one.names(split)]
        if "median" not in (first := best_median_worst(them[0].rows, split)):
            continue
        name = first["median"]["name"]
        held = [(one, row) for one in them for row in one.rows if (row["split"], row["name"]) == (split, name)]
        chosen = [(label(one), one, split, row) for one, row in held]
        page.append(Section(f"One scan of {split}: {name}", _shown(chosen, _faces(len(scored) * len(splits(scored))))))
    return page


def _shown(chosen: Sequence[tuple[str, ScoredRun, str, Mapping[str, Any]]], faces: int) -> list[Part]:
    """Fits in the colours of their errors; what cannot be shown is said."""
    figures, coloured, absent = [], [], [] if chosen else ["No surface was found for any scan."]
    for word, one, split, row in chosen:
        file = mesh_file(one.path.parent, split, row["name"])
        if not file.is_file():
            absent.append(f"{word}: no surface was found, or its mesh is gone ({file.name}).")
            continue
        mesh = scan_files.read_mesh(file)
        coloured.append("quality" in mesh.vertex_attributes)
        figures.append(MeshFigure([colors.color_by_quality(mesh, limit=LIMIT)], f"{word}: {row['name']}{_errors(row)}"))
    parts: list[Part] = [MeshViews(figures, LIMIT if any(coloured) else None, faces=faces)] if figures else []
    if not all(coloured):
        absent.append("Meshes in clay hold no errors: they were written by an earlier version. Score them again.")
    return [*parts, Notes(absent)] if absent else parts


def _errors(row: Mapping[str, Any]) -> str:
    told = row.get("surface", {})
    return "".join(
        f", {words} {told[column]:.2f} mm" for column, words in COLUMNS.items() if told.get(column) is not None
    )


def _moving(walks: Sequence[InterpolationResult]) -> MeshViews:
    faces = _faces(sum(len(walk.meshes) for walk in walks), share=0.4)
    figures = [MeshFigure(walk.read(), f"{walk.a} to {walk.b}, {walk.kind}") for walk in walks if walk.meshes]
    return MeshViews(figures, faces=faces)


def _faces(meshes: int, share: float = 0.6) -> int:
    """How many faces each of so many meshes may have."""
    return min(MOST_FACES, int(share * ROOM / FACE_BYTES / max(meshes, 1)))


def settings(trained: Sequence[RunInfo]) -> Section:
    """What was set: everything for one run; for several, what differs."""
    flat = [_flat(one.settings) for one in trained]
    lines = []
    for key in dict.fromkeys(key for each in flat for key in each):
        values = [each.get(key, "-") for each in flat]
        if len(trained) == 1 or len(set(values)) > 1:
            lines.append([key, *values])
    names = ["value"] if len(trained) == 1 else [one.name for one in trained]
    about = "Settings" if len(trained) == 1 else "Settings that differ"
    return Section(about, [Table(["setting", *names], lines, words=1)] if lines else [Text("None.")])


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat


def data(trained: Sequence[RunInfo]) -> Section:
    """What it learned from, by the model's own description."""
    keys = dict.fromkeys(key for one in trained for key in one.metadata.get("metadata", {}).get("data", {}))
    lines = [
        [key, *(str(one.metadata.get("metadata", {}).get("data", {}).get(key, "-")) for one in trained)] for key in keys
    ]
    lines.append(["training scans", *(str(one.metadata.get("metadata", {}).get("scans", "-")) for one in trained)])
    return Section("Data", [Table(["", *(one.name for one in trained)], lines, words=1 + len(trained))])


def machines(trained: Sequence[RunInfo], scored: Sequence[ScoredRun]) -> Section:
    """Where it was trained and scored."""
    lines = [
        f"{one.name} was trained on: {'; '.join(dict.fromkeys(one.training_log.machines)) or 'not told'}."
        for one in trained
    ]
    lines += [f"{label(one)} was scored on: {one.settings.get('machine') or 'not told'}." for one in scored]
    return Section("Machine", [Notes(lines)])


FITS = (
    "Colours are the distance of each point of a fit to the true surface. Best and worst are by the sum of the columns "
    "of the first protocol. Meshes are reduced to fit into the page; the whole ones lie beside the scores."
)
WALK = "Shapes on a path between two codes, evenly spaced; the path's own meshes lie beside its path.json."
TRAINING = (
    "What the training recorded, over its steps: the loss, its terms without their weights, the learning rate, and "
    "the share of the time spent waiting for batches. "
    "Curves of many records are means over stretches."
)
