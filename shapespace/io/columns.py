"""Meaning of the columns of tables and arrays: by their names, or by their values where they have none."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from shapespace.geometry.findings import Finding
from shapespace.io.errors import BadFileError
from shapespace.io.raw_scan import RawScan

_MAX_COLUMNS = 64  # more are no table of points
MAX_CHANNELS = 12  # columns of an array that is points and not an image
_LENGTH_SPREAD = 0.05  # of the lengths of normals about their median: they may be rounded, or scaled by one factor
_BOTH_SIGNS = 0.1  # a component of normals is below and above this somewhere
_UNIT = r"[\s_]*(?:\[.*\]|\(.*\)|mm|cm|m|meters?)?"
_POINT_NAME = re.compile(rf"(?:points?|pos|position|coords?|coordinate|p|v|vertex)?[\s_.:]*([xyz012]){_UNIT}")
_NORMAL_NAME = re.compile(r"(?:n|norm|normals?)[\s_.:]*([xyz012])")
_AXES = {"x": 0, "y": 1, "z": 2, "0": 0, "1": 1, "2": 2}
_SURVEY_NAMES = {"easting": 0, "northing": 1, "height": 2, "elevation": 2, "altitude": 2}


def find_named(names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Columns of x, y, z and of nx, ny, nz by their names; an empty list for what is not complete."""
    points, normals = dict[int, int](), dict[int, int]()
    for column, name in enumerate(names):
        word = _word(name)
        normal = _NORMAL_NAME.fullmatch(word)
        point = None if word.isdigit() else _POINT_NAME.fullmatch(word)
        if normal:
            normals.setdefault(_AXES[normal.group(1)], column)
        elif point:
            points.setdefault(_AXES[point.group(1)], column)
        elif word in _SURVEY_NAMES:
            points.setdefault(_SURVEY_NAMES[word], column)
    complete = ([found[axis] for axis in range(3)] if len(found) == 3 else [] for found in (points, normals))
    return next(complete), next(complete)


def _word(name: str) -> str:
    """Name of a column without quotes and marks of comments, in lower case."""
    return name.strip().strip("\"'#/%").strip().lower()


def split_columns(path: Path, table: Shaped[np.ndarray, "..."], names: Sequence[str] = ()) -> RawScan:
    """Split a table into points and normals.

    With names, x, y, z and nx, ny, nz are taken. Without them the first three columns are points, and three of the
    others are normals if their lengths agree and some are negative; 2 columns, and 4 with unit normals in the plane,
    are points of the plane z = 0. A first column that counts the rows is skipped, as are the row and the column in the
    image of a scanner. The rest is ignored, with a finding.
    """
    if table.ndim == 3 and 3 <= table.shape[2] <= MAX_CHANNELS:
        table = table.reshape(-1, table.shape[2])  # an organized cloud: rows and columns of an image
    if table.dtype.kind not in "fiuV":
        raise BadFileError(f"{path}: array of {table.dtype} {table.shape}. Save an array of numbers of shape (n, 3).")
    if table.ndim != 2 or not 2 <= table.shape[1] <= _MAX_COLUMNS or table.dtype.kind == "V":
        raise BadFileError(
            f"{path}: array of shape {table.shape}. Save (n, 3) points or (n, 6) points with normals; (n, 2) or (n, 4) "
            "in the plane."
        )
    points, normals = find_named(names)
    if points:
        words = [_word(name) for name in names]
        confidence = table[:, words.index("confidence")] if "confidence" in words else None
        return RawScan(table[:, points], normals=table[:, normals] if normals else None, confidence=confidence)
    if table.shape[1] == 2 or (table.shape[1] == 4 and are_normals(table[:, 2:])):
        normals_2d = _in_space(table[:, 2:]) if table.shape[1] == 4 else None
        return RawScan(_in_space(table[:, :2]), normals=normals_2d)
    first = 2 if _has_grid_indices(table) else int(table.shape[1] > 3 and _counts_rows(table[:, 0]))
    starts = range(first + 3, table.shape[1] - 2)
    start = next((start for start in starts if are_normals(table[:, start : start + 3])), None)
    used = {*range(first, first + 3), *(() if start is None else range(start, start + 3))}
    rest = [column for column in range(table.shape[1]) if column not in used]
    return RawScan(
        table[:, first : first + 3],
        normals=None if start is None else table[:, start : start + 3],
        findings=_findings(table, rest),
    )


def are_normals(vectors: Float[np.ndarray, "n k"]) -> bool:
    """Whether vectors have one length and point to many sides; colors and other measurements do not.

    In space all components but one have both signs: those of a scan from one side too. In the plane both have: a
    coordinate beside a column of ones is no normal.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    measured = np.isfinite(lengths) & (lengths > 0)
    if 2 * measured.sum() < len(vectors) or not measured.any():
        return False
    units = vectors[measured] / lengths[measured, None]
    both_signs = (units.min(axis=0) < -_BOTH_SIGNS) & (units.max(axis=0) > _BOTH_SIGNS)
    spread = np.abs(lengths[measured] / np.median(lengths[measured]) - 1)
    return bool(both_signs.sum() >= min(vectors.shape[1], 2) and (spread < _LENGTH_SPREAD).mean() > 0.95)


def _counts_rows(column: Float[np.ndarray, "n"]) -> bool:
    return len(column) > 2 and column[0] in (0, 1) and bool((np.diff(column) == 1).all())


def _has_grid_indices(table: Float[np.ndarray, "n k"]) -> bool:
    """Whether two whole numbers are before the points: row and column in the image of a scanner."""
    if table.shape[1] < 5 or len(table) < 3:
        return False
    with np.errstate(invalid="ignore"):
        is_whole = (table[:, :5] == np.floor(table[:, :5])).mean(axis=0) == 1
        is_grid = bool(is_whole[:2].all() and not is_whole[2:].any() and (table[:, :2] >= 0).all())
    return is_grid and not (table.shape[1] > 5 and are_normals(table[:, 3:6]))


def _findings(table: Float[np.ndarray, "n k"], rest: list[int]) -> tuple[Finding, ...]:
    """Findings about the columns that are ignored."""
    if not rest:
        return ()
    shown = ", ".join(str(column + 1) for column in rest)
    others = table[:, rest]
    with np.errstate(invalid="ignore"):
        is_color = len(rest) in (3, 4) and bool((others >= 0).all()) and bool((others <= 255).all())
    return (Finding("colors-dropped" if is_color else "columns-dropped", {"columns": shown}),)


def _in_space(columns: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
    """Add a third column of zeros."""
    return np.pad(columns, ((0, 0), (0, 1)))
