"""Scores for programs and for people: `scores.json`, `scores.csv`, `scores.md`, and a table for the terminal."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from trimesh import Trimesh

from shapespace.data.store import ScanStore
from shapespace.evaluation import metrics
from shapespace.io.atomic import replacing
from shapespace.io.scan_files import file_name

STATISTICS = ("median", "mean", "p5", "p95")


@dataclass(frozen=True)
class ScoreReport:
    """Rows of scores with what is needed to read them.

    `rows` are `{"name", "split", protocol: {column: value}}`, NaN where nothing was found; `summary` is
    `{split: {protocol: {column: {"mean", "median", "p5", "p95", "count", "failed"}}}}`; `protocols` describes each
    protocol in a sentence, `units` gives the unit of each of its columns; `settings` is what the numbers depend on
    besides (run, resolution, method, seed, largest component or not).
    """

    metrics: Mapping[str, str]
    units: Mapping[str, Mapping[str, str]]
    rows: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float | int]]]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> list[Path]:
        """Write `scores.json`, `scores.csv` and `scores.md`, each complete or not at all, and return their paths."""
        texts = {"scores.json": self.json(), "scores.csv": self.csv(), "scores.md": self.markdown()}
        for name, text in texts.items():
            with replacing(folder / name) as part:
                part.write_text(text, encoding="utf-8", newline="")
        return [folder / name for name in texts]

    def json(self) -> str:
        """Everything, as JSON; numbers that are not finite are null."""
        protocols = {
            name: {"description": sentence, "units": dict(self.units.get(name, {}))}
            for name, sentence in self.metrics.items()
        }
        whole = {"protocols": protocols, "settings": self.settings, "summary": self.summary, "rows": self.rows}
        return json.dumps(to_json(whole), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    def csv(self) -> str:
        """One line per scan under a header such as `surface.completeness [mm]`; empty where there is no value."""
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
        """Summarise for a terminal: a block per split, a line per column of each protocol."""
        blocks = []
        for split, protocols in self.summary.items():
            lines = [[split, *STATISTICS, "scans"]]
            for name, columns in protocols.items():
                lines += [[f"  {name}.{self._title(name, c)}", *format_statistics(s)] for c, s in columns.items()]
            blocks.append(_aligned(lines))
        return "\n\n".join(blocks)

    def show(self) -> None:
        """Print the table."""
        print(self.table())

    def markdown(self) -> str:
        """Summarise as a page: a table per split, what failed, how the numbers were made."""
        parts = ["# Scores"]
        for split, protocols in self.summary.items():
            lines = [["protocol", "column", "unit", *STATISTICS, "scans"]]
            for name, columns in protocols.items():
                units = self.units.get(name, {})
                lines += [[name, c, units.get(c, ""), *format_statistics(s)] for c, s in columns.items()]
            parts.append(f"## {split}\n\n{markdown_table(lines)}")
        failed = [f"- {row['name']} ({row['split']})" for row in self.rows if _has_failed(row)]
        if failed:
            parts.append("## No surface found\n\nThese scans are in no mean, median or percentile above.\n")
            parts[-1] += "\n" + "\n".join(failed)
        described = [f"- **{name}**: {sentence}" for name, sentence in self.metrics.items()]
        parts.append("## Protocols\n\n" + "\n".join(described))
        if self.settings:
            parts.append("## Settings\n\n" + "\n".join(f"- {key}: {_word(v)}" for key, v in self.settings.items()))
        parts.append("p5 and p95 are the 5th and 95th percentiles over the scans; `scans` counts those with a value.")
        return "\n\n".join(parts) + "\n"

    def _title(self, name: str, column: str) -> str:
        unit = self.units.get(name, {}).get(column)
        return f"{column} [{unit}]" if unit else column


def mesh_file(folder: Path, split: str, name: str) -> Path:
    """Where the mesh of a scan lies that was scored, beside the scores in `folder`."""
    return folder / "meshes" / file_name(split) / f"{file_name(name)}.ply"


def best_median_worst(rows: Sequence[Mapping[str, Any]], split: str) -> dict[str, Mapping[str, Any]]:
    """The rows of the best, the median and the worst scan of a split; empty where nothing was found.

    They are ordered by the sum of the columns of their first protocol.
    """
    found = sorted((row for row in rows if row["split"] == split and _total(row) < math.inf), key=_total)
    return {"best": found[0], "median": found[len(found) // 2], "worst": found[-1]} if found else {}


def _total(row: Mapping[str, Any]) -> float:
    """Infinite where nothing was found: NaN, or null in a file."""
    columns = next((value for key, value in row.items() if key not in ("name", "split")), {"nothing": None})
    total = sum(math.nan if value is None else float(value) for value in columns.values())
    return math.inf if math.isnan(total) else total


def _values(row: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """The scores of a row, one after the other, as (protocol, column, value)."""
    protocols = [key for key in row if key not in ("name", "split")]
    return [(name, column, value) for name in protocols for column, value in row[name].items()]


def _has_failed(row: Mapping[str, Any]) -> bool:
    return any(math.isnan(value) for _, _, value in _values(row))


def to_json(value: Any) -> Any:
    """The same in JSON's own types: no NaN, no numpy, no paths."""
    if isinstance(value, Mapping):
        return {str(key): to_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(each) for each in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # a numpy or torch number
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def format_statistics(statistics: Mapping[str, Any]) -> list[str]:
    """`STATISTICS`, all with the decimals that give the median three digits, and how many scans they are of."""
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
    """Columns of equal width: words to the left, numbers to the right."""
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    padded = (
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    )
    return "\n".join("  ".join(cells) for cells in padded)


def markdown_table(lines: Sequence[Sequence[str]], words: int = 3) -> str:
    """A Markdown table whose source is aligned too; the first columns are words, the others numbers."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(len(line[k]) for line in cells)) for k in range(len(cells[0]))]
    rule = ["-" * width if k < words else "-" * (width - 1) + ":" for k, width in enumerate(widths)]
    padded = [
        [c.ljust(w) if k < words else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True))]
        for line in cells
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def _word(value: Any) -> str:
    word = to_json(value)
    return word if isinstance(word, str) else json.dumps(word, ensure_ascii=False)


SCAN_POINTS = 50_000  # of the packed scan, to tell which of the true surface was seen


def score_meshes(
    predicted: Iterable[tuple[str, str, Trimesh | None]], store: ScanStore, names: Sequence[str], *, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield a row of scores for each of `found`: split, name in the store, mesh in metres (None: no surface was found).

    Raises `ValueError` for a protocol that there is not, and for a scan without a true surface.
    """
    for split, name, mesh in predicted:
        truth = store.ground_truth(name)
        if truth is None:
            raise ValueError(
                f"scan {name} has no true surface in {store.path}: scores need registrations beside the scans. "
                "Pack them together (see the recipe), or evaluate another split."
            )
        packed = store.sample(name, min(SCAN_POINTS, store.count(name)), np.random.default_rng(seed))
        scores = metrics.score(names, mesh, truth, packed.to_world(store.frame(name)), seed=seed)
        yield {"name": name, "split": split, **scores}


def make_score_report(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], settings: Mapping[str, Any]
) -> ScoreReport:
    """The rows with their summary, and what is needed to read them."""
    chosen = {name: metrics.get_metric(name) for name in names}
    return ScoreReport(
        metrics={name: protocol.description for name, protocol in chosen.items()},
        units={name: protocol.all_units for name, protocol in chosen.items()},
        rows=rows,
        summary=metrics.summarize(rows),
        settings=settings,
    )
