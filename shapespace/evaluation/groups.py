"""Scores by groups of scans: kind of pose, scanner, build, or whatever labels a dataset has."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shapespace.evaluation.metrics import summarize

ScanLabels = Mapping[str, Mapping[str, str | float]]
"""Labels of scans by their name: `{name: {label: value}}`, as in `captures.json`; numbers are divided into thirds."""


def read_labels(path: Path) -> ScanLabels:
    """Read labels of scans. Raises `ValueError` for a file of another kind."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error}). Labels are {{name: {{label: value}}}}.") from error
    named = isinstance(content, dict) and all(isinstance(its, dict) for its in content.values())
    if not named or not all(isinstance(value, (str, int, float)) for its in content.values() for value in its.values()):
        raise ValueError(f"{path}: holds no labels of scans, {{name: {{label: value}}}}; values are texts or numbers.")
    return dict(content)


def group_rows(rows: Sequence[Mapping[str, Any]], labels: ScanLabels) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """Rows of scores by label and value, `{label: {value: rows}}`; labels with one value only are left out.

    Raises:
        ValueError: A scan has no labels.

    """
    if missing := [str(row["name"]) for row in rows if row["name"] not in labels]:
        raise ValueError(f"{len(missing)} of {len(rows)} scans have no labels, for example {missing[0]}.")
    groups: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for label in dict.fromkeys(label for row in rows for label in labels[str(row["name"])]):
        own = [labels[str(row["name"])].get(label, "") for row in rows]
        if all(isinstance(value, (int, float)) for value in own):
            values, order = _thirds([float(value) for value in own])
        else:
            values = [str(value) for value in own]
            order = sorted(set(values))
        found = {value: [row for row, its in zip(rows, values, strict=True) if its == value] for value in order}
        if len(found) > 1:
            groups[label] = found
    return groups


def summarize_groups(rows: Sequence[Mapping[str, Any]], labels: ScanLabels) -> dict[str, Any]:
    """Statistics of each group, `{label: {value: {metric: {column: statistics}}}}` as those of `summarize`."""
    return {
        label: {value: summarize([{**row, "split": value} for row in own])[value] for value, own in values.items()}
        for label, values in group_rows(rows, labels).items()
    }


def group_lines(groups: Mapping[str, Any]) -> list[list[str]]:
    """Lines of a table of medians: a line for each group, a column for each of the metrics'; the first has headers."""
    columns = list(
        dict.fromkeys(
            (metric, column)
            for values in groups.values()
            for its in values.values()
            for metric in its
            for column in its[metric]
        )
    )
    lines = [["label", "value", *(column for _, column in columns), "scans"]]
    for label, values in groups.items():
        for value, its in values.items():
            statistics = [its.get(metric, {}).get(column) for metric, column in columns]
            count = max(int(each["count"] + each["failed"]) for each in statistics if each is not None)
            cells = [
                "-" if each is None or np.isnan(each["median"]) else f"{each['median']:.2f}" for each in statistics
            ]
            lines.append([label, value, *cells, str(count)])
    return lines


def _thirds(numbers: Sequence[float]) -> tuple[list[str], list[str]]:
    """The third to which each number belongs, named by its limits; the names from small to large."""
    parts = [part for part in np.array_split(np.sort(numbers), 3) if len(part)]
    names = [f"{part[0]:g} to {part[-1]:g}" for part in parts]
    ends = [part[-1] for part in parts]
    return [names[int(np.searchsorted(ends, number))] for number in numbers], list(dict.fromkeys(names))
