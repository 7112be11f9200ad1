"""Score models and meshes against the ground truth of a store; write tables as JSON, CSV and Markdown."""

import csv
import io
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from trimesh import Trimesh

from shapespace.data.store import ScanStore
from shapespace.evaluation import metrics
from shapespace.evaluation.baselines import screened_poisson
from shapespace.evaluation.groups import ScanLabels, group_lines, summarize_groups
from shapespace.evaluation.metrics import METRICS
from shapespace.fitting.fit import AdamOptions, CodeMethod, FitMethod
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.refine import RefineOptions
from shapespace.fitting.result import Fit
from shapespace.fitting.surface import Components, Surface
from shapespace.geometry.scan import Scan
from shapespace.io.atomic import replacing
from shapespace.io.migration import FORMATS
from shapespace.io.scan_files import file_name
from shapespace.space import ShapeSpace

STATISTICS = ("median", "mean", "p5", "p95")
VISIBILITY_POINTS = 50_000  # points of a scan that decide which ground truth is visible


@dataclass(frozen=True)
class ScoreReport:
    """Rows of scores with their summary and settings.

    `rows` are `{"name", "split", metric: {column: value}}`, NaN where no surface was predicted; `summary` is
    `{split: {metric: {column: {"mean", "median", "p5", "p95", "count", "failed"}}}}`; `metrics` describes each metric
    in a sentence, `units` has the unit of each of its columns; `settings` is everything else that the numbers depend on
    (run, resolution, method, seed, components).
    """

    metrics: Mapping[str, str]
    units: Mapping[str, Mapping[str, str]]
    rows: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float | int]]]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, Any] = field(default_factory=dict)
    """Statistics by labels of the scans, see `groups.summarize_groups`."""

    def write(self, folder: Path) -> list[Path]:
        """Write `scores.json`, `scores.csv` and `scores.md`, each atomically, and return their paths."""
        texts = {"scores.json": self.json(), "scores.csv": self.csv(), "scores.md": self.markdown()}
        return [_write_text(folder / name, text) for name, text in texts.items()]

    def json(self) -> str:
        """Everything as JSON; numbers that are not finite are null."""
        described = {
            name: {"description": sentence, "units": dict(self.units.get(name, {}))}
            for name, sentence in self.metrics.items()
        }
        content = {"metrics": described, "settings": self.settings, "summary": self.summary, "groups": self.groups}
        return _results_json({**content, "rows": self.rows}, "scores")

    def csv(self) -> str:
        """One line per scan; headers such as `surface_distance.completeness [mm]`; empty cells for missing values."""
        columns = list(dict.fromkeys((name, column) for row in self.rows for name, column, _ in _values(row)))
        lines = [["name", "split", *(f"{name}.{self._title(name, column)}" for name, column in columns)]]
        for row in self.rows:
            values = {(name, column): float(value) for name, column, value in _values(row)}
            cells = [values.get(key, math.nan) for key in columns]
            lines.append([str(row["name"]), str(row["split"]), *("" if math.isnan(c) else repr(c) for c in cells)])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        return text.getvalue()

    def table(self) -> str:
        """Summary for a terminal: a block per split, a line per column of each metric."""
        blocks = []
        for split, metrics_of_split in self.summary.items():
            lines = [[split, *STATISTICS, "scans"]]
            for name, columns in metrics_of_split.items():
                lines += [[f"  {name}.{self._title(name, c)}", *format_statistics(s)] for c, s in columns.items()]
            blocks.append(_aligned(lines))
        if self.groups:
            blocks.append(_aligned(group_lines(self.groups)))
        return "\n\n".join(blocks)

    def show(self) -> None:
        """Print the table."""
        print(self.table())

    def markdown(self) -> str:
        """Summary as a page: a table per split, failed scans, metrics and settings."""
        parts = ["# Scores"]
        for split, metrics_of_split in self.summary.items():
            lines = [["metric", "column", "unit", *STATISTICS, "scans"]]
            for name, columns in metrics_of_split.items():
                units = self.units.get(name, {})
                lines += [[name, c, units.get(c, ""), *format_statistics(s)] for c, s in columns.items()]
            parts.append(f"## {split}\n\n{markdown_table(lines)}")
        if self.groups:
            parts.append(f"## Groups\n\nMedians.\n\n{markdown_table(group_lines(self.groups), 2)}")
        failed = [f"- {row['name']} ({row['split']})" for row in self.rows if _has_failed(row)]
        if failed:
            parts.append("## Failed scans\n\nNo surface was predicted. These scans are excluded from the statistics.\n")
            parts[-1] += "\n" + "\n".join(failed)
        described = [f"- **{name}**: {sentence}" for name, sentence in self.metrics.items()]
        parts.append("## Metrics\n\n" + "\n".join(described))
        if self.settings:
            parts.append("## Settings\n\n" + "\n".join(f"- {key}: {_text(v)}" for key, v in self.settings.items()))
        parts.append("p5 and p95 are the 5th and 95th percentiles over the scans; `scans` counts those with a value.")
        return "\n\n".join(parts) + "\n"

    def _title(self, name: str, column: str) -> str:
        unit = self.units.get(name, {}).get(column)
        return f"{column} [{unit}]" if unit else column


def mesh_file(folder: Path, split: str, name: str) -> Path:
    """Path of the mesh of a scored scan, below the folder of its scores."""
    return folder / "meshes" / file_name(split) / f"{file_name(name)}.ply"


def best_median_worst(rows: Sequence[Mapping[str, Any]], split: str) -> dict[str, Mapping[str, Any]]:
    """Rows of the best, the median and the worst scan of a split; empty if no surface was predicted.

    Scans are ordered by the mean of completeness and accuracy of the first metric, or by the mean of its columns if it
    has no such columns.
    """
    ranked = sorted((row for row in rows if row["split"] == split and _rank(row) < math.inf), key=_rank)
    return {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]} if ranked else {}


def _rank(row: Mapping[str, Any]) -> float:
    """Order of a row by its first metric, the best first; infinite without a value (NaN, or null in a file)."""
    name = next((key for key in row if key not in ("name", "split")), "")
    columns: Mapping[str, float | None] = row.get(name, {})
    metric = METRICS.get(name)
    ordered_by = [column for column in ("completeness", "accuracy") if column in columns]
    ordered_by = ordered_by or [column for column in columns if metric is None or column in metric.units]
    values = [math.nan if (value := columns[column]) is None else float(value) for column in ordered_by]
    if not values or math.isnan(sum(values)):
        return math.inf
    mean = sum(values) / len(values)
    return -mean if metric is not None and metric.higher_is_better else mean


def _values(row: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """The scores of a row as a list of (metric, column, value)."""
    names = [key for key in row if key not in ("name", "split")]
    return [(name, column, value) for name in names for column, value in row[name].items()]


def _has_failed(row: Mapping[str, Any]) -> bool:
    return any(math.isnan(value) for _, _, value in _values(row))


EvaluationMethod = FitMethod | Literal["poisson"]


@dataclass(frozen=True)
class EvaluationOptions:
    """How scans are fitted, meshed and scored; `poisson` is screened Poisson of each scan alone."""

    metrics: Sequence[str] = ("surface_distance", "normal_consistency", "fscore")
    method: EvaluationMethod = "auto"
    lm: LMOptions = field(default_factory=LMOptions)
    adam: AdamOptions = field(default_factory=AdamOptions)
    refine: RefineOptions = field(default_factory=RefineOptions)
    resolution: int = 128
    """Grid cells along an edge of the model cube, of meshes of the field."""
    components: Components = "largest"
    seed: int = 0
    surface: Surface = "auto"
    """What is meshed: the zero level set of the field, or the registered template (auto: if the model has one)."""


class ScoredScan(NamedTuple):
    """A scored scan: its row `{"name", "split", metric: {column: value}}`, and what the scores are of."""

    row: dict[str, Any]
    mesh: Trimesh | None
    """Prediction in meters; None if there is no surface."""
    fit: Fit | None
    """None for `poisson`."""
    seconds: dict[str, float]
    """Wall-clock time by step: `encode`, `refine` and `mesh`, where they exist; that of the fit is in `fit`."""


def evaluate(
    space: ShapeSpace, store: ScanStore, names: Sequence[tuple[str, str]], options: EvaluationOptions
) -> Iterator[ScoredScan]:
    """Fit, mesh and score scans of a store, given as (split, name); the codes of all are fitted first.

    Raises:
        ValueError: A metric is unknown, or a scan has no ground truth.

    """
    scans = [store.scan(name) for _, name in names]
    fits: Sequence[Fit | None] = [None] * len(scans)
    encode_seconds: Sequence[float | None] = [None] * len(scans)
    spaces: Iterable[ShapeSpace] = repeat(space, len(scans))
    if options.method != "poisson":
        encoded = space.encode_scans(scans, seed=options.seed)
        encode_seconds = [fit.seconds for fit in encoded]
        fits = fitted = encoded if options.method == "encode" else _fit_codes(space, scans, options)
        if options.method == "refine":
            spaces = space.refine(scans, fitted, options.refine, seed=options.seed)
    rest = zip(names, scans, fits, encode_seconds, _timed(spaces), strict=True)
    for (split, name), scan, fit, encode, (refined, refine_seconds) in rest:
        began = time.perf_counter()
        mesh = screened_poisson(scan) if fit is None else _mesh(refined, fit, options)
        seconds = {"mesh": time.perf_counter() - began}
        seconds |= {} if encode is None else {"encode": encode}
        seconds |= {"refine": refine_seconds} if options.method == "refine" else {}
        (row,) = score_meshes([(split, name, mesh)], store, options.metrics, seed=options.seed)
        yield ScoredScan(row, mesh, fit, seconds)


def _fit_codes(space: ShapeSpace, scans: Sequence[Scan], options: EvaluationOptions) -> list[Fit]:
    method: CodeMethod = "adam" if options.method == "adam" else "auto" if options.method == "auto" else "lm"
    return space.fit_scans(scans, method=method, lm=options.lm, adam=options.adam, seed=options.seed)


def _mesh(space: ShapeSpace, fit: Fit, options: EvaluationOptions) -> Trimesh | None:
    """The mesh of a fit, or None if the field has no surface: it is counted as failed."""
    try:
        return space.mesh(fit, resolution=options.resolution, components=options.components, surface=options.surface)
    except ValueError:
        return None


def _timed(spaces: Iterable[ShapeSpace]) -> Iterator[tuple[ShapeSpace, float]]:
    """Each space, with the seconds in which it was made."""
    began = time.perf_counter()
    for space in spaces:
        yield space, time.perf_counter() - began
        began = time.perf_counter()


def score_meshes(
    predicted: Iterable[tuple[str, str, Trimesh | None]], store: ScanStore, names: Sequence[str], *, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield the row of each (split, scan, mesh in meters or None) by the named metrics.

    Raises:
        ValueError: A metric is unknown, or a scan has no ground truth.

    """
    for split, name, mesh in predicted:
        ground_truth = require_ground_truth(store, name)
        sampled = store.sample(name, min(VISIBILITY_POINTS, store.count(name)), np.random.default_rng(seed))
        scores = metrics.score(names, mesh, ground_truth, sampled.to_world(store.frame(name)), seed=seed)
        yield {"name": name, "split": split, **scores}


def require_ground_truth(store: ScanStore, name: str) -> Trimesh:
    """Ground truth of a scan in meters. Raises `ValueError` if the store has none."""
    ground_truth = store.ground_truth(name)
    if ground_truth is None:
        raise ValueError(
            f"{store.path}: scan {name} has no ground truth. Preprocess the scans with their registrations, or choose "
            "another split."
        )
    return ground_truth


def make_score_report(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    settings: Mapping[str, Any],
    labels: ScanLabels | None = None,
) -> ScoreReport:
    """Report of rows by the named metrics, with their summary, and that of the groups by labels.

    Raises:
        ValueError: A scan has no labels.

    """
    chosen = {name: metrics.get_metric(name) for name in names}
    return ScoreReport(
        metrics={name: metric.description for name, metric in chosen.items()},
        units={name: metric.all_units for name, metric in chosen.items()},
        rows=rows,
        summary=metrics.summarize(rows),
        settings=settings,
        groups={} if labels is None else summarize_groups(rows, labels),
    )


# -------------------------------------------------------------------------------------------------- files and tables


def write_table(
    folder: Path,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    lines: Sequence[Sequence[str]],
    note: str = "",
    *,
    settings: Mapping[str, Any] | None = None,
    text_columns: int = 1,
) -> str:
    """Write a table as `NAME.json` (settings and rows) and `NAME.md` (lines and note), and return the Markdown.

    The first of the `lines` holds the headers; the first `text_columns` columns are aligned to the left.
    """
    page = markdown_table(lines, text_columns) + "\n" + (f"\n{note}\n" if note else "")
    write_results(folder, name, {"settings": settings or {}, "rows": rows}, page)
    return page


def write_results(folder: Path, name: str, content: Mapping[str, Any], page: str | None = None) -> None:
    """Write `NAME.json` with the number of its format and, if there is a page, `NAME.md`; each atomically."""
    _write_text(folder / f"{name}.json", _results_json(content, name))
    if page is not None:
        _write_text(folder / f"{name}.md", page)


def _results_json(content: Mapping[str, Any], kind: str) -> str:
    """JSON of results, with the number of the format of their kind; other tables have the format of scores."""
    number = FORMATS.get(kind, FORMATS["scores"])
    return json.dumps(to_json({"format": number, **content}), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _write_text(path: Path, text: str) -> Path:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="")
    return path


def to_json(value: Any) -> Any:
    """Convert to types of JSON: NaN and infinity become null, NumPy and torch scalars numbers, paths strings."""
    if isinstance(value, Mapping):
        return {str(key): to_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(each) for each in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # a NumPy or torch scalar
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def format_statistics(statistics: Mapping[str, Any]) -> list[str]:
    """Cells of `STATISTICS` (as many decimals as give the median three digits) and of the number of scans."""
    median = _finite(statistics["median"])
    decimals = 2 - math.floor(math.log10(abs(median))) if median else 2
    decimals = min(max(decimals, 1), 4)
    shown = [_finite(statistics[key]) for key in STATISTICS]
    count, failed = statistics["count"], statistics.get("failed", 0)
    scans = f"{count} of {count + failed}" if failed else str(count)
    return [*("-" if value is None else f"{value:.{decimals}f}" for value in shown), scans]


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width: the first aligned to the left, the others to the right."""
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    padded = (
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    )
    return "\n".join("  ".join(cells) for cells in padded)


def markdown_table(lines: Sequence[Sequence[str]], text_columns: int = 3) -> str:
    """Markdown table with an aligned source; the first columns are text, the others numbers."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(len(line[k]) for line in cells)) for k in range(len(cells[0]))]
    rule = ["-" * width if k < text_columns else "-" * (width - 1) + ":" for k, width in enumerate(widths)]
    padded = [
        [c.ljust(w) if k < text_columns else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True))]
        for line in cells
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def _text(value: Any) -> str:
    converted = to_json(value)
    return converted if isinstance(converted, str) else json.dumps(converted, ensure_ascii=False)
