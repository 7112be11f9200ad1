"""Read the scores of runs: every `scores.json` and `motion.json` at or below given folders."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from shapespace.io.migration import FORMATS, check_format, upgrade_motion, upgrade_scores
from shapespace.training.run import Run


@dataclass(frozen=True)
class ScoredRun:
    """Scores of one run by one method, read from a `scores.json`; what the file lacks is None."""

    path: Path
    home: Path | None
    """Folder of the run; None for a model without one, such as those of the package."""
    run: str
    family: str | None
    method: str
    training_minutes: float | None
    steps: int | None
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    def median(self, split: str, metric: str, column: str) -> float | None:
        """Median over the scans of a split that have a predicted surface."""
        value = self.summary.get(split, {}).get(metric, {}).get(column, {}).get("median")
        return None if value is None else float(value)

    def names(self, split: str) -> frozenset[str]:
        """Names of the scans of a split."""
        return frozenset(row["name"] for row in self.rows if row["split"] == split)

    def failed(self, split: str) -> int:
        """Number of scans of a split without a predicted surface, by metric `surface_distance`."""
        columns = self.summary.get(split, {}).get("surface_distance", {})
        return max((int(statistics["failed"]) for statistics in columns.values()), default=0)

    def errors(self, split: str, column: str) -> list[float | None]:
        """Errors (mm) of all scans of a split, by metric `surface_distance`."""
        rows = (row for row in self.rows if row["split"] == split and "surface_distance" in row)
        return [row["surface_distance"].get(column) for row in rows]


@dataclass(frozen=True)
class MotionScores:
    """Scores of the interpolation paths of one run, read from a `motion.json`."""

    path: Path
    home: Path | None
    """Folder of the run; None for a model without one, such as those of the package."""
    run: str
    family: str | None
    method: str
    settings: Mapping[str, Any]
    medians: Mapping[str, Mapping[str, float | int | None]]
    """Columns (and `failed`) of every path; the true motion is the path `truth`."""


def load_scores(folders: Sequence[Path]) -> tuple[list[ScoredRun], list[MotionScores]]:
    """Read all scores at or below these folders, in their order; a run without scores gives none.

    Raises `FileNotFoundError` for a folder that is no run and has no scores, and `ValueError` for an invalid file.
    """
    scored: dict[Path, ScoredRun] = {}
    paths: dict[Path, MotionScores] = {}
    for folder in folders:
        files = find_files(folder, "scores.json")
        if not files and not Run(folder).config.is_file():
            reason = "no scores.json in it or below it" if folder.is_dir() else "no such folder"
            raise FileNotFoundError(f"{folder}: {reason}. Score the run first: shapespace evaluate {folder} STORE")
        scored |= {file.resolve(): _read_scores(file) for file in files}
        paths |= {file.resolve(): _read_motion(file) for file in find_files(folder, "motion.json")}
    names = run_names(folders, [*scored.values(), *paths.values()])
    named = [one if one.home is None else replace(one, run=names[one.home]) for one in scored.values()]
    return _with_unique_names(named), [
        one if one.home is None else replace(one, run=names[one.home]) for one in paths.values()
    ]


def run_names(folders: Sequence[Path], scores: Sequence[ScoredRun | MotionScores]) -> dict[Path, str]:
    """Folders of the runs among these folders and around these scores, with their names.

    The name is that of the folder, with as many parent folders as are needed to make it unique.
    """
    given = [folder.resolve() for folder in folders if Run(folder).config.is_file()]
    homes = [*given, *(one.home for one in scores if one.home)]
    names = {}
    for home in dict.fromkeys(homes):
        namesakes = {other for other in homes if other.name == home.name}
        depth = next(k for k in count(1) if len({other.parts[-k:] for other in namesakes}) == len(namesakes))
        names[home] = "/".join(home.parts[-depth:])
    return names


def find_files(folder: Path, name: str) -> list[Path]:
    """Files of this name in a folder and below it, the nearest first."""
    return sorted(folder.rglob(name), key=lambda file: (len(file.parts), file))


def _read_scores(file: Path) -> ScoredRun:
    content = read_result(file, "scores", upgrade_scores, "shapespace evaluate")
    _require(file, content, ("settings", "metrics", "summary", "rows"), ("method",), "shapespace evaluate")
    settings = content["settings"]
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
        metrics=content["metrics"],
        summary=content["summary"],
        rows=content["rows"],
    )


def _read_motion(file: Path) -> MotionScores:
    content = read_result(file, "motion", upgrade_motion, "shapespace evaluate-paths")
    required = ("run", "family", "method", "split", "pairs")
    _require(file, content, ("settings", "medians"), required, "shapespace evaluate-paths")
    settings, medians = content["settings"], content["medians"]
    return MotionScores(
        file, _home(file, settings), settings["run"], settings["family"], settings["method"], settings, medians
    )


def read_result(
    file: Path, kind: str, upgrade: Callable[[Mapping[str, Any]], dict[str, Any]], command: str
) -> dict[str, Any]:
    """Parse a JSON file of this kind (a key of `FORMATS`); a file of an earlier format is upgraded.

    Raises `ValueError` for invalid JSON or an unknown format; `command` is the command that writes such files.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not valid JSON ({error}). Write it again: {command}") from None
    content = content if isinstance(content, dict) else {}
    number = content.get("format", 1)
    if isinstance(number, str):  # a path.json of format 1 has the format of its meshes here
        number = 1
    check_format(kind, number, file, f"write it again: {command}")
    return upgrade(content) if number < FORMATS[kind] else content


def _require(
    file: Path, content: Mapping[str, Any], keys: Iterable[str], settings: Iterable[str], command: str
) -> None:
    missing = [key for key in keys if not content.get(key)]
    missing = missing or [key for key in settings if key not in content["settings"]]
    if missing:
        raise ValueError(f"{file}: {missing[0]} is missing. Write it again ({command}), or remove it.")


def _home(file: Path, settings: Mapping[str, Any]) -> Path | None:
    """Folder of the run around a file; None if the file records that its model has no run."""
    if settings.get("training_steps", 0) is None:
        return None
    return next((folder for folder in file.resolve().parents if Run(folder).config.is_file()), None)


def _with_unique_names(scored: Sequence[ScoredRun]) -> list[ScoredRun]:
    """Append the folder of the scores to the names that several scores by one method share."""
    times = Counter((one.run, one.method) for one in scored)

    def name(one: ScoredRun) -> str:
        folder = one.path.resolve().parent
        where = Path(folder.name) if one.home is None else folder.relative_to(one.home)
        return f"{one.run}/{where}" if where.parts and times[one.run, one.method] > 1 else one.run

    return [replace(one, run=name(one)) for one in scored]
