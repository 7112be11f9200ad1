"""Trained runs side by side: what the verbs left in their folders, gathered to tables, curves and words of care.

A `scores.json` is one run by one method (`shapespace evaluate`), a `motion.json` the paths of one run (`shapespace
motion`); what the training took stands in them or in the checkpoint of the run around them. Nothing is ranked.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from shapespace.evaluation.scores import STATISTICS, format_statistics
from shapespace.rendering import plots
from shapespace.report.page import Chart, Notes, Section, Table, Text
from shapespace.training.run import Run

COLUMNS = {"completeness": "truth → found", "accuracy": "found → truth"}  # of protocol surface
PARTS = ("hands", "feet", "rest")  # of protocol parts
CURVES = "curves.png"  # beside the page
UNEQUAL = 1.05  # trainings whose times differ by more than this factor were not of the same length
MEGABYTE = 1e6


@dataclass(frozen=True)
class ScoredRun:
    """One `scores.json`. What it does not tell is none."""

    path: Path
    home: Path | None
    """The folder of the run; none for a model that was never a run, as those of the package."""
    run: str
    family: str | None
    method: str
    training_minutes: float | None
    """Of training."""
    steps: int | None
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    def median(self, split: str, protocol: str, column: str) -> float | None:
        """Over the scans of a split for which a surface was found."""
        statistics = self.summary.get(split, {}).get(protocol, {}).get(column, {})
        value = statistics.get("median")
        return None if value is None else float(value)

    def names(self, split: str) -> frozenset[str]:
        """The scans of a split."""
        return frozenset(row["name"] for row in self.rows if row["split"] == split)

    def failed(self, split: str) -> int:
        """Scans of a split for which no surface was found, by protocol `surface`."""
        columns = self.summary.get(split, {}).get("surface", {})
        return max((int(statistics["failed"]) for statistics in columns.values()), default=0)

    def errors(self, split: str, column: str) -> list[float | None]:
        """Of every scan of a split, by protocol `surface`, mm."""
        rows = (row for row in self.rows if row["split"] == split and "surface" in row)
        return [row["surface"].get(column) for row in rows]


@dataclass(frozen=True)
class MotionScores:
    """One `motion.json`."""

    path: Path
    home: Path | None
    """The folder of the run; none for a model that was never a run, as those of the package."""
    run: str
    family: str | None
    method: str
    settings: Mapping[str, Any]
    medians: Mapping[str, Mapping[str, float | int | None]]
    """Of every path (its columns, and `failed`), and of the true motion as path `truth`."""


# -------------------------------------------------------------------------------------------------------------- gather


def load_scores(folders: Sequence[Path]) -> tuple[list[ScoredRun], list[MotionScores]]:
    """Everything that was scored at or below these folders, in their order; of a run that was not, nothing.

    Raises `FileNotFoundError` for a folder that is no run and has no scores, and `ValueError` for a file that is not
    what its name says.
    """
    scored: dict[Path, ScoredRun] = {}
    moved: dict[Path, MotionScores] = {}
    for folder in folders:
        files = find_files(folder, "scores.json")
        if not files and not Run(folder).config.is_file():
            what = "has no scores.json, nor has a folder below it" if folder.is_dir() else "is no folder"
            raise FileNotFoundError(f"{folder} {what}: score the run first, shapespace evaluate {folder} STORE.")
        scored |= {file.resolve(): _read_scores(file) for file in files}
        moved |= {file.resolve(): _read_motion(file) for file in find_files(folder, "motion.json")}
    names = runs(folders, list(scored.values()), list(moved.values()))
    apart = _told_apart([replace(one, run=_called(one, names)) for one in scored.values()])
    return apart, [replace(one, run=_called(one, names)) for one in moved.values()]


def runs(folders: Sequence[Path], scored: Sequence[ScoredRun], moved: Sequence[MotionScores]) -> dict[Path, str]:
    """The runs among these folders and around these files, and how they are called.

    A run is called as its folder is, with as many folders before it as it takes to tell namesakes apart.
    """
    given = [folder.resolve() for folder in folders if Run(folder).config.is_file()]
    found: list[ScoredRun | MotionScores] = [*scored, *moved]
    homes = [*given, *(one.home for one in found if one.home)]
    names = {}
    for home in dict.fromkeys(homes):
        namesakes = {other for other in homes if other.name == home.name}
        depth = next(k for k in count(1) if len({other.parts[-k:] for other in namesakes}) == len(namesakes))
        names[home] = "/".join(home.parts[-depth:])
    return names


def _called(one: ScoredRun | MotionScores, names: Mapping[Path, str]) -> str:
    return one.run if one.home is None else names[one.home]


def find_files(folder: Path, name: str) -> list[Path]:
    """The files of that name in a folder and in those below it, the nearest first."""
    return sorted(folder.rglob(name), key=lambda file: (len(file.parts), file))


def _read_scores(file: Path) -> ScoredRun:
    held = _read(file, ("settings", "protocols", "summary", "rows"), ("method",), verb="evaluate")
    settings = held["settings"]
    seconds, steps, home = settings.get("training_seconds"), settings.get("training_steps"), _home(file, settings)
    if home and "training_steps" not in settings and (progress := Run(home).progress()):
        seconds, steps = progress.seconds, progress.steps
    return ScoredRun(
        path=file,
        home=home,
        run=str(settings.get("run") or file.resolve().parent.name),
        family=Run(home).family() if home and "family" not in settings else settings.get("family"),
        method=settings["method"],
        training_minutes=None if seconds is None else seconds / 60,
        steps=steps,
        settings=settings,
        metrics=held["protocols"],
        summary=held["summary"],
        rows=held["rows"],
    )


def _read_motion(file: Path) -> MotionScores:
    held = _read(file, ("settings", "medians"), ("run", "family", "method", "split", "pairs"), verb="motion")
    settings, medians = held["settings"], held["medians"]
    return MotionScores(
        file, _home(file, settings), settings["run"], settings["family"], settings["method"], settings, medians
    )


def _read(file: Path, keys: Iterable[str], settings: Iterable[str], *, verb: str) -> dict[str, Any]:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON ({error}): write it again, shapespace {verb}.") from None
    told: dict[str, Any] = held if isinstance(held, dict) else {}
    missing = [key for key in keys if not told.get(key)]
    missing = missing or [key for key in settings if key not in told["settings"]]
    if missing:
        raise ValueError(f"{file} does not tell its {missing[0]}: write it again, shapespace {verb}, or remove it.")
    return told


def _home(file: Path, settings: Mapping[str, Any]) -> Path | None:
    """The folder of the run around a file, unless the file says that its model was of no run."""
    if settings.get("training_steps", 0) is None:
        return None
    return next((folder for folder in file.resolve().parents if Run(folder).config.is_file()), None)


def _told_apart(scored: Sequence[ScoredRun]) -> list[ScoredRun]:
    """The same, those of one run by one method being called as the folders in which they lie."""
    times = Counter((one.run, one.method) for one in scored)

    def name(one: ScoredRun) -> str:
        folder = one.path.resolve().parent
        where = Path(folder.name) if one.home is None else folder.relative_to(one.home)
        return f"{one.run}/{where}" if where.parts and times[one.run, one.method] > 1 else one.run

    return [replace(one, run=name(one)) for one in scored]


# ---------------------------------------------------------------------------------------------------------------- care


def comparison_warnings(scored: Sequence[ScoredRun], moved: Sequence[MotionScores]) -> list[str]:
    """What forbids or weakens a comparison, in sentences that name the runs."""
    found = []
    for key, what in (("store", "stores"), ("resolution", "resolutions of the meshes"), ("components", "components")):
        found += _differing(f"Different {what}", [(label(one), one.settings.get(key)) for one in scored])
    for split in splits(scored):
        within = [one for one in scored if one.names(split)]
        counts = [(label(one), len(one.names(split))) for one in within]
        if len({one.names(split) for one in within}) > 1:
            other = [f"As many scans of {split}, but not the same ones."]
            found += _differing(f"Different numbers of scans of {split}", counts) or other
    for name in dict.fromkeys(name for one in scored for name in one.metrics):
        if len({one.metrics[name]["description"] for one in scored if name in one.metrics}) > 1:
            found.append(f"Protocol {name} was not measured in the same way (other settings, or another version).")
    for key in ("data", "split", "pairs", "steps", "resolution"):
        values = [(label(one), one.settings.get(key)) for one in moved]
        found += _differing(f"Interpolated poses: different {key}", values)
    found = [f"{sentence} The errors cannot be compared." for sentence in found]
    minutes = {one.run: one.training_minutes for one in scored if one.training_minutes}
    if minutes and max(minutes.values()) > UNEQUAL * min(minutes.values()):
        told = ", ".join(f"{value:.1f} ({run})" for run, value in minutes.items())
        found.append(f"Trained for different times, minutes: {told}.")
    return found


def splits(scored: Sequence[ScoredRun]) -> list[str]:
    """All splits that were scored, in the order in which they come."""
    return list(dict.fromkeys(split for one in scored for split in one.summary))


def _differing(what: str, values: Iterable[tuple[str, Any]]) -> list[str]:
    """A sentence if the values are not all the same; who does not tell a value is not asked."""
    groups: dict[Any, list[str]] = {}
    for label, value in values:
        if value is not None:
            groups.setdefault(value, []).append(label)
    if len(groups) < 2:
        return []
    listed = (f"{value} ({', '.join(dict.fromkeys(labels))})" for value, labels in groups.items())
    return [f"{what}: {'; '.join(listed)}."]


def label(one: ScoredRun | MotionScores) -> str:
    """A run and a method, in words."""
    return f"{one.run} by {one.method}"


# -------------------------------------------------------------------------------------------------------------- tables


def errors(scored: Sequence[ScoredRun], split: str) -> Table:
    """A line for each run and method: medians over the scans of a split, mm."""
    them = [one for one in scored if one.names(split)]
    parts = [part for part in PARTS if any(one.median(split, "parts", part) is not None for one in them)]
    lines = [
        [
            *_who(one),
            *(_number(one.median(split, "surface", column), 2) for column in COLUMNS),
            *(_number(one.median(split, "parts", part), 2) for part in parts),
            str(len(one.names(split))),
            str(one.failed(split)) if "surface" in one.summary[split] else "-",
        ]
        for one in them
    ]
    return Table(["run", "family", "method", *COLUMNS.values(), *parts, "scans", "no surface"], lines)


def motions(moved: Sequence[MotionScores]) -> Table:
    """A line for each run, method and path: medians over the pairs of poses, mm."""
    lines = [
        [
            *_who(one),
            path,
            one.settings["split"],
            *(_number(medians.get(column), 2) for column in COLUMNS),
            str(one.settings["pairs"]),
            _number(medians.get("failed"), 0),
        ]
        for one in moved
        for path, medians in one.medians.items()
        if path != "truth"
    ]
    return Table(["run", "family", "method", "path", "split", *COLUMNS.values(), "pairs", "no surface"], lines, words=5)


def costs(scored: Sequence[ScoredRun]) -> Table:
    """A line for each run and method: what was spent, and what must be kept."""
    refined = any(one.settings.get("refine_seconds") is not None for one in scored)
    seconds = ("encode", "fit", "refine", "mesh") if refined else ("encode", "fit", "mesh")
    head = ["minutes trained", "steps", "weights", "weights, MB", "code", *(f"{name}, s" for name in seconds)]
    lines = []
    for one in scored:
        told = one.settings.get
        size = told("parameter_bytes")
        cells = [_number(one.training_minutes, 1), _number(one.steps, 0), _number(told("num_parameters"), 0)]
        cells += [_number(None if size is None else size / MEGABYTE, 2), _number(told("code_dim"), 0)]
        lines.append([*_who(one), *cells, *(_number(told(f"{name}_seconds"), 3) for name in seconds)])
    return Table(["run", "family", "method", *head], lines)


def everything(scored: Sequence[ScoredRun], split: str) -> Table:
    """A line for each column of each protocol, a column for each run and method: medians over the scans of a split."""
    them = [one for one in scored if one.names(split)]
    columns = dict.fromkeys(
        (name, column) for one in them for name, its in one.summary[split].items() for column in its
    )
    lines = []
    for name, column in columns:
        units = (one.metrics.get(name, {}).get("units", {}).get(column) for one in them)
        unit = next((unit for unit in units if unit), "")
        lines.append([name, column, unit, *(_number(one.median(split, name, column), 3) for one in them)])
    return Table(["protocol", "column", "unit", *(label(one) for one in them)], lines)


def percentiles(scored: Sequence[ScoredRun], split: str) -> Table:
    """A line for each run, method and column of each protocol: statistics over the scans of a split."""
    lines = [
        [
            label(one),
            name,
            column,
            one.metrics.get(name, {}).get("units", {}).get(column, ""),
            *format_statistics(statistics),
        ]
        for one in scored
        for name, columns in one.summary.get(split, {}).items()
        for column, statistics in columns.items()
    ]
    return Table(["run", "protocol", "column", "unit", *STATISTICS, "scans"], lines, words=4)


def _who(one: ScoredRun | MotionScores) -> list[str]:
    return [one.run, one.family or "-", one.method]


def _number(value: float | int | None, decimals: int) -> str:
    return "-" if value is None else f"{value:,.{decimals}f}"


# ------------------------------------------------------------------------------------------------------------ sections


def sections(scored: Sequence[ScoredRun], moved: Sequence[MotionScores], curves: str | None) -> list[Section]:
    """What the scores say; `curves` is the drawing of `panels` as an element of it, if there is one."""
    page: list[Section] = []
    if not scored:
        return page
    if care := comparison_warnings(scored, moved):
        page.append(Section("Before comparing", [Notes(care, warning=True)]))
    page += [Section(f"Errors: {split}", [errors(scored, split)]) for split in splits(scored)]
    page[-1] = replace(page[-1], parts=[*page[-1].parts, Text(_explained(scored))])
    if curves is not None:
        page.append(Section("Errors of all scans", [Chart(curves, CURVES, CAPTION)]))
    if moved:
        page.append(Section("Interpolated poses", [motions(moved), Text(MOTION)]))
    return page


def details(scored: Sequence[ScoredRun], *, alone: bool) -> list[Section]:
    """What the scores say besides: costs, every column of every protocol, and how the numbers were made.

    Of a run `alone` every column has percentiles, of several medians side by side.
    """
    if not scored:
        return []
    title, table = ("Percentiles", percentiles) if alone else ("All medians", everything)
    tables = [Section(f"{title}: {split}", [table(scored, split)]) for split in splits(scored)]
    return [Section("Costs", [costs(scored), Text(COSTS)]), *tables, _measured(scored)]


def panels(scored: Sequence[ScoredRun]) -> dict[str, plots.Panel]:
    """The errors of all scans by protocol `surface`: a panel for each split and way, in it the runs and methods."""
    found: dict[str, plots.Panel] = {}
    for split in splits(scored):
        for column, words in COLUMNS.items():
            curves = {(one.run, one.method): one.errors(split, column) for one in scored}
            if curves := {way: errors for way, errors in curves.items() if errors}:
                found[f"{split}, {words}"] = curves
    return found


CAPTION = (
    "Share of the scans whose error is at most x, by protocol surface. Scans for which no surface was found count, so "
    "that their curve ends below 1. An axis ends at the largest error, or at three times the largest median."
)
MOTION = (
    "Shapes between the codes of two poses of one person, against the true bodies between them: columns of protocol "
    "surface, mm, mean over the shapes between the ends, median over the pairs; both centred."
)
COSTS = (
    "Seconds are means per scan on the machine that scored, and of no use across machines. Weights are what must be "
    "kept for new scans: the codes of the training scans are not counted. MB are millions of bytes. The code is the "
    "count of its numbers."
)


def _explained(scored: Sequence[ScoredRun]) -> str:
    parts = any(one.names(split) and "parts" in one.summary[split] for one in scored for split in splits(scored))
    about = " Hands, feet and the rest are protocol parts, truth → found." if parts else ""
    return (
        "Medians over the scans, in mm, by protocol surface (mean exact distance from points of one surface to the "
        f"other, each way alone).{about} Scans for which no surface was found are in no median; a dash says that it "
        "was not scored, or that nothing was found."
    )


def _measured(scored: Sequence[ScoredRun]) -> Section:
    """Settings, and what each protocol is."""

    def told(key: str) -> str:
        values = dict.fromkeys(str(one.settings.get(key, "not told")) for one in scored)
        return ", ".join(values)

    counts = []
    for split in splits(scored):
        sizes = dict.fromkeys(len(one.names(split)) for one in scored if one.names(split))
        counts.append(f"{' or '.join(map(str, sizes))} of {split}")
    settings = [
        f"Store: {told('store')}. Scans: {', '.join(counts)}.",
        f"Meshes: resolution {told('resolution')}, components {told('components')}. Seed: {told('seed')}.",
    ]
    described = {name: about["description"] for one in scored for name, about in one.metrics.items()}
    sentences = [f"Protocol {name}: {sentence}" for name, sentence in described.items()]
    return Section("How it was measured", [Notes([*settings, *sentences])])
