"""Tables, curves and warnings that compare scored runs. Runs are not ranked."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from shapespace.evaluation.motion import TRUE_MOTION
from shapespace.evaluation.scores import STATISTICS, format_statistics
from shapespace.evaluation.stored_scores import MotionScores, ScoredRun
from shapespace.rendering import plots
from shapespace.report.page import Chart, Notes, Section, Table, Text

COLUMNS = ("completeness", "accuracy")  # of metric surface_distance
PARTS = ("hands", "feet", "rest", "face")  # columns of metric part_distance
CURVES = "curves.png"  # beside the page
MAX_TIME_RATIO = 1.05  # arbitrary: training times that differ by more are reported
MEGABYTE = 1e6  # bytes


# ------------------------------------------------------------------------------------------------------------ warnings


def comparison_warnings(scored: Sequence[ScoredRun], paths: Sequence[MotionScores]) -> list[str]:
    """Sentences on differences that forbid or weaken a comparison, with the names of the runs."""
    warnings = []
    for key, what in (("store", "stores"), ("resolution", "mesh resolutions"), ("components", "components")):
        warnings += _difference(f"Different {what}", [(label(one), one.settings.get(key)) for one in scored])
    for split in split_names(scored):
        within = [one for one in scored if one.names(split)]
        counts = [(label(one), len(one.names(split))) for one in within]
        if len({one.names(split) for one in within}) > 1:
            same_number = [f"Different scans of {split}, equal in number."]
            warnings += _difference(f"Different numbers of scans of {split}", counts) or same_number
    for name in dict.fromkeys(name for one in scored for name in one.metrics):
        if len({one.metrics[name]["description"] for one in scored if name in one.metrics}) > 1:
            warnings.append(f"Metric {name} has different settings, or is of another version.")
    for key in ("data", "split", "pairs", "steps", "resolution"):
        values = [(label(one), one.settings.get(key)) for one in paths]
        warnings += _difference(f"Interpolated poses: different {key}", values)
    warnings = [f"{sentence} The errors cannot be compared." for sentence in warnings]
    minutes = {one.run: one.training_minutes for one in scored if one.training_minutes}
    if minutes and max(minutes.values()) > MAX_TIME_RATIO * min(minutes.values()):
        listed = ", ".join(f"{value:.1f} ({run})" for run, value in minutes.items())
        warnings.append(f"Different training times (minutes): {listed}.")
    return warnings


def split_names(scored: Sequence[ScoredRun]) -> list[str]:
    """All scored splits, in the order of the files."""
    return list(dict.fromkeys(split for one in scored for split in one.summary))


def label(one: ScoredRun | MotionScores) -> str:
    """Run and method in words."""
    return f"{one.run} by {one.method}"


def _difference(what: str, values: Iterable[tuple[str, Any]]) -> list[str]:
    """One sentence if the values differ; missing values (None) are ignored."""
    groups: dict[Any, list[str]] = {}
    for name, value in values:
        if value is not None:
            groups.setdefault(value, []).append(name)
    if len(groups) < 2:
        return []
    listed = (f"{value} ({', '.join(dict.fromkeys(names))})" for value, names in groups.items())
    return [f"{what}: {'; '.join(listed)}."]


# -------------------------------------------------------------------------------------------------------------- tables


def error_table(scored: Sequence[ScoredRun], split: str) -> Table:
    """Medians over the scans of a split (mm), a row for each run and method."""
    of_split = [one for one in scored if one.names(split)]
    parts = [part for part in PARTS if any(one.median(split, "part_distance", part) is not None for one in of_split)]
    lines = [
        [
            *_run_cells(one),
            *(_number(one.median(split, "surface_distance", column), 2) for column in COLUMNS),
            *(_number(one.median(split, "part_distance", part), 2) for part in parts),
            str(len(one.names(split))),
            str(one.failed(split)) if "surface_distance" in one.summary[split] else "-",
        ]
        for one in of_split
    ]
    return Table(["run", "family", "method", *COLUMNS, *parts, "scans", "no surface"], lines)


def path_table(paths: Sequence[MotionScores]) -> Table:
    """Medians over the pairs of poses (mm), a row for each run, method and interpolation path."""
    lines = [
        [
            *_run_cells(one),
            path,
            one.settings["split"],
            *(_number(medians.get(column), 2) for column in COLUMNS),
            str(one.settings["pairs"]),
            _number(medians.get("failed"), 0),
        ]
        for one in paths
        for path, medians in one.medians.items()
        if path != TRUE_MOTION
    ]
    return Table(["run", "family", "method", "path", "split", *COLUMNS, "pairs", "no surface"], lines, text_columns=5)


def cost_table(scored: Sequence[ScoredRun]) -> Table:
    """Training time, size of the model and seconds per scan, a row for each run and method."""
    refined = any(one.settings.get("refine_seconds") is not None for one in scored)
    seconds = ("encode", "fit", "refine", "mesh") if refined else ("encode", "fit", "mesh")
    head = ["training, min", "steps", "parameters", "parameters, MB", "code", *(f"{name}, s" for name in seconds)]
    lines = []
    for one in scored:
        value = one.settings.get
        size = value("parameter_bytes")
        cells = [_number(one.training_minutes, 1), _number(one.steps, 0), _number(value("num_parameters"), 0)]
        cells += [_number(None if size is None else size / MEGABYTE, 2), _number(value("code_dim"), 0)]
        lines.append([*_run_cells(one), *cells, *(_number(value(f"{name}_seconds"), 3) for name in seconds)])
    return Table(["run", "family", "method", *head], lines)


def median_table(scored: Sequence[ScoredRun], split: str) -> Table:
    """Medians over the scans of a split: a row for each column of each metric, a column for each run and method."""
    of_split = [one for one in scored if one.names(split)]
    columns = dict.fromkeys(
        (name, column) for one in of_split for name, values in one.summary[split].items() for column in values
    )
    lines = []
    for name, column in columns:
        units = (one.metrics.get(name, {}).get("units", {}).get(column) for one in of_split)
        unit = next((unit for unit in units if unit), "")
        lines.append([name, column, unit, *(_number(one.median(split, name, column), 3) for one in of_split)])
    return Table(["metric", "column", "unit", *(label(one) for one in of_split)], lines)


def percentile_table(scored: Sequence[ScoredRun], split: str) -> Table:
    """Statistics over the scans of a split, a row for each run, method and column of each metric."""
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
    return Table(["run", "metric", "column", "unit", *STATISTICS, "scans"], lines, text_columns=4)


def _run_cells(one: ScoredRun | MotionScores) -> list[str]:
    return [one.run, one.family or "-", one.method]


def _number(value: float | int | None, decimals: int) -> str:
    return "-" if value is None else f"{value:,.{decimals}f}"


# ------------------------------------------------------------------------------------------------------------ sections


def score_sections(scored: Sequence[ScoredRun], paths: Sequence[MotionScores], curves: str | None) -> list[Section]:
    """Warnings, errors and interpolated poses; `curves` is the SVG drawing of `error_panels`."""
    sections: list[Section] = []
    if not scored:
        return sections
    if warnings := comparison_warnings(scored, paths):
        sections.append(Section("Differences between the runs", [Notes(warnings, warning=True)]))
    sections += [Section(f"Errors: {split}", [error_table(scored, split)]) for split in split_names(scored)]
    sections[-1] = replace(sections[-1], parts=[*sections[-1].parts, Text(_error_caption(scored))])
    if curves is not None:
        sections.append(Section("Errors of all scans", [Chart(curves, CURVES, CURVE_CAPTION)]))
    if paths:
        sections.append(Section("Interpolated poses", [path_table(paths), Text(PATH_CAPTION)]))
    return sections


def detail_sections(scored: Sequence[ScoredRun], *, alone: bool) -> list[Section]:
    """Costs, every column of every metric, and how the scores were measured.

    The columns have percentiles for a run `alone`, and medians side by side for several runs.
    """
    if not scored:
        return []
    title, table = ("Percentiles", percentile_table) if alone else ("All medians", median_table)
    tables = [Section(f"{title}: {split}", [table(scored, split)]) for split in split_names(scored)]
    return [Section("Costs", [cost_table(scored), Text(COST_CAPTION)]), *tables, _measurement_section(scored)]


def error_panels(scored: Sequence[ScoredRun]) -> dict[str, plots.Panel]:
    """Errors (mm) of all scans by metric `surface_distance`: a panel for each split and column."""
    panels: dict[str, plots.Panel] = {}
    for split in split_names(scored):
        for column in COLUMNS:
            curves = {(one.run, one.method): one.errors(split, column) for one in scored}
            if curves := {key: errors for key, errors in curves.items() if errors}:
                panels[f"{split}, {column}"] = curves
    return panels


CURVE_CAPTION = (
    "Share of the scans with an error of at most x (metric surface_distance). Scans without a predicted surface are "
    "counted, so their curve ends below 1. Each axis ends at the largest error, or at three times the largest median."
)
PATH_CAPTION = (
    "Shapes between the codes of two poses of one person, compared with the true bodies between them. Metric "
    "surface_distance (mm): mean over the shapes between the ends, then median over the pairs. Both surfaces are "
    "centered."
)
COST_CAPTION = (
    "Seconds are means per scan on the machine that scored, and cannot be compared across machines. Parameters are "
    "those that new scans need; codes of training scans are not counted. MB are millions of bytes. Code is the "
    "dimension of the code."
)


def _error_caption(scored: Sequence[ScoredRun]) -> str:
    parts = any(
        one.names(split) and "part_distance" in one.summary[split] for one in scored for split in split_names(scored)
    )
    part_sentence = " Hands, feet and rest are metric part_distance (completeness)." if parts else ""
    return (
        "Medians over the scans (mm), metric surface_distance: completeness is the mean exact distance ground truth → "
        f"prediction, accuracy is prediction → ground truth.{part_sentence} Scans without a predicted surface are in "
        "no median. A dash means: not scored, or no surface."
    )


def _measurement_section(scored: Sequence[ScoredRun]) -> Section:
    """Settings of the scores, and the description of each metric."""

    def values(key: str) -> str:
        return ", ".join(dict.fromkeys(str(one.settings.get(key, "not recorded")) for one in scored))

    counts = []
    for split in split_names(scored):
        numbers = dict.fromkeys(len(one.names(split)) for one in scored if one.names(split))
        counts.append(f"{' or '.join(map(str, numbers))} of {split}")
    settings = [
        f"Store: {values('store')}. Scans: {', '.join(counts)}.",
        f"Meshes: resolution {values('resolution')}, components {values('components')}. Seed: {values('seed')}.",
    ]
    described = {name: metric["description"] for one in scored for name, metric in one.metrics.items()}
    sentences = [f"Metric {name}: {sentence}" for name, sentence in described.items()]
    return Section("How it was measured", [Notes([*settings, *sentences])])
