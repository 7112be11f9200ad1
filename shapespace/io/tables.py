"""Tables of points as text: XYZ, TXT, CSV, TSV, ASC, PTS, and the scans of PTX."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from jaxtyping import Float

from shapespace.io.colmap import read_points_text
from shapespace.io.columns import find_named, split_columns
from shapespace.io.errors import BadFileError
from shapespace.io.raw_scan import NOT_A_NUMBER, RawScan

_MAX_NOTES = 20  # lines of words between numbers or after them
_PREAMBLE = 200  # lines in which a table must begin
_COMMENT = ("#", "//", "%", "!", ";")
_MISSING = {"", "-", "na", "n/a", "null", "none", "nil"}
_DECIMAL_COMMA = re.compile(r"[+-]?\d+(?:,\d+)?(?:[eE][+-]?\d+)?")
_PTS_NAMES = ["x", "y", "z", "intensity", "red", "green", "blue"]
_COLMAP = "POINT3D_ID"
_MIN_NUMERIC = 0.2  # share of numbers in a column that is no column of names or codes
_MAX_WRONG = 3  # numbers in an unknown spelling that are dropped with their rows
# Marks of thousands that are no separator of columns, and the minus sign of typography
_SPELLING = str.maketrans({"'": None, "\u2019": None, "\u00a0": None, "\u202f": None, "\u2212": "-"})
_THOUSANDS = re.compile(r"(?<=\d)\.(?=\d{3}(?:[.,]|\D|$))")


@dataclass
class _Dialect:
    """How the numbers of a line are written."""

    decimal_comma: bool = False
    comma_separates: bool = False

    def plain(self, line: str) -> str:
        """The line with blanks between its numbers and points in them."""
        line = line.translate(_SPELLING)
        line = line.replace('","', " ").replace(";", " ").replace("|", " ").replace('"', " ")
        if self.decimal_comma:
            return (_THOUSANDS.sub("", line) if "." in line else line).replace(",", ".")
        return line.replace(",", " ")

    def fields(self, line: str) -> list[str]:
        """The fields of a line; empty ones too, if something other than blanks separates them."""
        separator = "," if self.comma_separates else ";" if ";" in line else "\t" if "\t" in line else None
        words = [word.strip().strip('"') for word in line.translate(_SPELLING).strip("\r\n ").split(separator)]
        return [_THOUSANDS.sub("", word).replace(",", ".") if self.decimal_comma else word for word in words]


def read_table(path: Path) -> RawScan:
    """One point per line; a line of names before them, comments and a count of points are understood."""
    with path.open(encoding=_encoding(path), errors="replace") as file:
        head = [line.translate(_SPELLING) for line in islice(file, _PREAMBLE)]
        if path.stem.lower() == "points3d" or any(_COLMAP in line for line in head):
            return read_points_text(chain(head, file))
        if any(line.startswith(("# Camera list", "# Image list")) for line in head):
            raise BadFileError(f"{path}: cameras or images of COLMAP. Pass its points: fused.ply, or points3D.txt.")
        start, names = _find_start(path, head)
        dialect = _dialect(head[start:])
        first = _numbers(dialect.plain(head[start]))
        if len(first or []) == 1 and start + 1 < len(head):
            second = _numbers(dialect.plain(head[start + 1]))
            start += int(second is None or len(second) > 1)  # the number of points
        table = _parse(lambda: _lines(path, start), dialect)
    columns = dialect.fields(names) if names else _PTS_NAMES[: table.shape[1]] if path.suffix.lower() == ".pts" else []
    if len(columns) != table.shape[1]:
        columns = re.split(r"[\s,;|]+", names.strip(" \t\r\n#/%!")) if names else []
    return split_columns(path, table, columns if len(columns) == table.shape[1] else ())


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    return "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _lines(path: Path, start: int) -> Iterator[str]:
    """The lines with numbers, comments removed."""
    with path.open(encoding=_encoding(path), errors="replace") as file:
        for line in islice(file, start, None):
            if "#" in line or "(" in line:
                line = NOT_A_NUMBER.sub("nan", line)
                line = line.partition("#")[0]
            if "//" in line:
                line = line.partition("//")[0]
            if line.strip() and not line.lstrip().startswith(_COMMENT):
                yield line


def _find_start(path: Path, head: list[str]) -> tuple[int, str]:
    """Index of the first line of numbers, and the line above it that names x, y and z, if there is one."""
    names = ""
    for index, line in enumerate(head):
        words = NOT_A_NUMBER.sub("nan", line).strip()
        if words.lower().startswith("ncols"):
            raise BadFileError(f"{path}: a grid of heights (ncols, nrows) is no scan. Export it as points, x y z.")
        is_comment = words.startswith(_COMMENT)
        plain = re.sub(r'[,;|"]', " ", words).split()
        numeric = [_numbers(word) is not None for word in plain[:1000]]
        if plain and not is_comment and (all(numeric) or all(numeric[:3] if not names else [sum(numeric) > 2])):
            return index, names
        stripped = words.lstrip("#/%!; \t")
        for split in (r"[\s,;|]+", r"[,;|\t]", r";"):
            if find_named(re.split(split, stripped))[0]:
                names = stripped
                break
    raise ValueError("no row of numbers")


def _numbers(text: str) -> list[float] | None:
    """The numbers of a plain line; None if there is something else, or nothing."""
    try:
        numbers = [float(word) if word.lower() not in _MISSING else np.nan for word in text.split()[:1000]]
    except ValueError:
        return None
    return numbers or None


def _dialect(lines: list[str]) -> _Dialect:
    """Dialect of the first lines of numbers: whether a comma is the mark of a decimal or stands between columns."""
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith(_COMMENT)]
    with_comma = [line for line in lines if "," in line]
    if not with_comma:
        return _Dialect()
    if any(";" in line or "\t" in line for line in with_comma) and not any(
        re.search(r",\s", line) for line in with_comma
    ):
        return _Dialect(decimal_comma=True)
    quoted = all(line.count('"') >= 4 for line in with_comma)
    if quoted and all(re.search(r'"[+-]?\d+,\d+"', line) for line in with_comma):
        return _Dialect(decimal_comma=True)
    words = [word for line in with_comma for word in line.split()]
    decimal = len(words) > len(with_comma) and all(_DECIMAL_COMMA.fullmatch(word) for word in words)
    return _Dialect(decimal_comma=decimal, comma_separates=not decimal)


def _parse(lines: Callable[[], Iterator[str]], dialect: _Dialect) -> Float[np.ndarray, "n k"]:
    """Numbers of all lines; what is no number is NaN."""
    try:
        return np.loadtxt(map(dialect.plain, lines()), dtype=np.float64, ndmin=2, comments=None)
    except ValueError:
        return _parse_slowly(lines(), dialect)


def _parse_slowly(lines: Iterator[str], dialect: _Dialect) -> Float[np.ndarray, "n k"]:
    """The same for tables with missing fields, words, or counts of points between their parts."""
    rows, words, width, notes = list[list[float]](), 0, 0, 0
    wrong: dict[int, list[tuple[int, str]]] = {}  # by the column: row and spelling of what has digits and is no number
    for number, line in enumerate(lines):
        fields = dialect.fields(line)
        if len(fields) == 1 and (width > 1 or not rows) and fields[0].isdigit():
            continue  # PTS: the number of points of the next part
        if len(fields) == width + 1 and not fields[-1]:
            fields.pop()  # a comma at the end
        width = width or len(fields)
        if len(fields) != width and notes < _MAX_NOTES and not any(map(str.isdigit, "".join(fields))):
            notes += 1  # "END"
            continue
        if len(fields) != width:
            raise ValueError(f"row {number + 1:,} of the numbers has {len(fields)} columns, the first has {width}")
        row = []
        for column, field in enumerate(fields):
            try:
                row.append(float(field))
            except ValueError:
                row.append(np.nan)
                words += field.lower() not in _MISSING
                if any(map(str.isdigit, field)):
                    wrong.setdefault(column, []).append((number + 1, field))
        rows.append(row)
    if not rows or 2 * words > len(rows) * width:
        raise ValueError("rows of words")
    table = np.array(rows, dtype=np.float64)
    for column, found in wrong.items():
        is_numeric = np.isfinite(table[:, column]).mean() > _MIN_NUMERIC  # else it is a column of names
        if is_numeric and len(found) > _MAX_WRONG:
            raise ValueError(f"row {found[0][0]:,}, column {column + 1} is no number: {found[0][1][:30]}")
    return table[:, :-1] if width > 3 and np.isnan(table[:, -1]).all() else table


def read_ptx(path: Path) -> RawScan:
    """Scans of a terrestrial scanner: for each its size, its pose, and rows x y z intensity in its own axes.

    Points are placed by the pose, and each has the position of its scanner as its sensor. Rows of zeros are no
    measurement.
    """
    points, sensors = [], []
    with path.open(encoding="utf-8", errors="replace") as file:
        while columns := next((line for line in file if line.strip()), ""):
            rows = int(next(file))
            header = [[float(word) for word in next(file).split()] for _ in range(8)]
            pose = np.array(header[4:])  # rows: images of the axes, then the position
            if pose.shape != (4, 4) or not np.isfinite(pose).all():
                raise ValueError("a scan without a pose of 4 x 4 numbers")
            count = int(columns) * rows
            table = np.loadtxt(islice(file, count), dtype=np.float64, ndmin=2)
            if len(table) != count or count < 0:
                raise BadFileError(
                    f"{path}: truncated. A scan declares {count:,} points, {len(table):,} are readable: copy it again."
                )
            measured = table[table[:, :3].any(axis=1), :3]
            points.append(measured @ pose[:3, :3] + pose[3, :3])
            sensors.append(np.tile(pose[3, :3], (len(measured), 1)))
    return RawScan(np.concatenate(points), sensors=np.concatenate(sensors))
