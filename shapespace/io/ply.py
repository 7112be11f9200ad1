"""Reader of PLY: any elements, any lists, binary or text.

The common readers fail on valid files: trimesh on polygons of different size, on bytes after the last element and on
text whose rows span lines, plyfile on the latter and on comments that are not ASCII.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from shapespace.geometry.findings import Finding
from shapespace.io.errors import BadFileError
from shapespace.io.raw_scan import NOT_A_NUMBER_BYTES, RawScan
from shapespace.io.splats import splats_of_columns

_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    "int64": "i8",
    "uint64": "u8",
    "float16": "f2",
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_ENCODINGS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_HEADER_CHUNK, _MAX_HEADER = 65_536, 10_000_000  # bytes
_TEXT_SAMPLE = 256  # bytes of a body that are text or not
_TEXT = re.compile(rb"[\d+\-.eE\s]*")


@dataclass
class _Property:
    name: str
    kind: str
    """NumPy type of a value."""
    count_kind: str = ""
    """NumPy type of the length of a list; empty for a scalar."""


@dataclass
class _Element:
    name: str
    count: int
    properties: list[_Property] = field(default_factory=list)


@dataclass
class _Lists:
    """Lists of different length: values one after the other, and the length of each list."""

    values: np.ndarray
    counts: Int[np.ndarray, "n"]


Columns = dict[str, "np.ndarray | _Lists"]


def read_ply(path: Path) -> RawScan:
    """Vertices, faces as triangles, normals, `quality`, and the sensor of each vertex (see `write_scan`)."""
    encoding, elements, start = _read_header(path)
    content: dict[str, Columns] = {}
    body = _Text(path, start) if encoding == "ascii" else _Binary(path, start, _ENCODINGS[encoding])
    least = sum(element.count * body.least_size(element) for element in elements)
    if least > body.end - body.place:
        declared, present, what = body.sizes(least)
        raise BadFileError(
            f"{path}: truncated. The header declares at least {declared:,} {what} and the file has {present:,}: "
            "copy it again."
        )
    for element in elements:
        if element.name in content:
            raise ValueError(f"two elements {element.name}")
        content[element.name] = _read_element(body, element)
    findings = body.trailing(path, elements)
    vertex = content.get("vertex", {})
    if not sum(element.count for element in elements if element.name == "vertex"):
        raise BadFileError(f"{path}: the header declares no vertices. Copy it again.")
    if "packed_position" in vertex:
        raise BadFileError(
            f"{path}: compressed Gaussian splats (packed_position). Export them as uncompressed PLY (SuperSplat, or "
            "splat-transform)."
        )
    if not {"x", "y", "z"} <= vertex.keys():
        raise BadFileError(f"{path}: vertices with {', '.join(vertex)[:80]}, without x, y and z. Export it again.")
    points = _matrix(vertex, "x", "y", "z")
    normals = _matrix(vertex, "nx", "ny", "nz") if {"nx", "ny", "nz"} <= vertex.keys() else None
    scan = RawScan(points, _faces(content), normals, findings=findings)
    if "sensor" in vertex and "sensor" in content:
        scan.sensors = _matrix(content["sensor"], "x", "y", "z")[_column(vertex, "sensor").astype(np.int64)]
    if "quality" in vertex:
        scan.quality = _column(vertex, "quality")
    if "confidence" in vertex:
        scan.confidence = _column(vertex, "confidence")
    if {"opacity", "f_dc_0"} <= vertex.keys():
        return splats_of_columns(scan, 1 / (1 + np.exp(-_column(vertex, "opacity").astype(np.float64))))
    return scan


def _read_header(path: Path) -> tuple[str, list[_Element], int]:
    """Encoding, elements, and the place of the first byte after the header."""
    with path.open("rb") as file:
        head = file.read(_HEADER_CHUNK)
        first = re.match(rb"(?:\xef\xbb\xbf)?ply[ \t]*(\r\n|\n|\r)", head)  # some editors begin text with a mark
        newline = first.group(1) if first else b""
        while first and newline + b"end_header" not in head and len(head) < _MAX_HEADER:
            more = file.read(_HEADER_CHUNK)
            if not more:
                break
            head += more
        head += file.read(_HEADER_CHUNK)  # the end of the last line
    end = re.search(newline + rb"end_header[ \t]*(?:" + newline + rb"|\Z)", head) if first else None
    if first is None or end is None:
        raise BadFileError(f"{path}: truncated inside the header, or not a PLY file. Copy it again.")
    encoding, elements = "", list[_Element]()
    for line in head[: end.start()].split(newline)[1:]:
        words = line.decode("latin-1").split()
        if words[:1] == ["format"]:
            encoding = words[1]
        elif words[:1] == ["element"]:
            elements.append(_Element(words[1], int(words[2])))
            if elements[-1].count < 0:
                raise ValueError(f"element {words[1]} with {words[2]} rows")
        elif words[:2] == ["property", "list"]:
            elements[-1].properties.append(_Property(words[4].lower(), _TYPES[words[3]], _TYPES[words[2]]))
        elif words[:1] == ["property"]:
            elements[-1].properties.append(_Property(words[2].lower(), _TYPES[words[1]]))
    if encoding not in _ENCODINGS:
        raise ValueError(f"format {encoding or 'missing'}")
    for element in elements:
        if element.count and not element.properties:
            raise ValueError(f"element {element.name} has rows and no properties")
    return encoding, elements, end.end()


class _Binary:
    """Body of a binary file; places are bytes."""

    def __init__(self, path: Path, start: int, order: str) -> None:
        self.data = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
        self.start, self.place, self.end, self.order = start, start, len(self.data), order
        some = bytes(self.data[start : start + _TEXT_SAMPLE])
        if len(some) == _TEXT_SAMPLE and _TEXT.fullmatch(some):
            raise BadFileError(
                f"{path}: the header declares binary data and text follows. Write `format ascii 1.0` in its second "
                "line, or export it again."
            )

    def size(self, kind: str) -> int:
        return int(kind[1])

    def least_size(self, element: _Element) -> int:
        """Least size of a row; a list of corners has at least three."""
        size = 0
        for item in element.properties:
            corners = 3 if element.name == "face" and item.name.startswith("vertex_ind") else 0
            size += (
                self.size(item.count_kind) + corners * self.size(item.kind) if item.count_kind else self.size(item.kind)
            )
        return size

    def sizes(self, least: int) -> tuple[int, int, str]:
        return self.start + least, self.end, "bytes"

    def values(self, places: Int[np.ndarray, "n"], kind: str, length: int = 1) -> np.ndarray:
        """`length` values at each place, (n, length)."""
        width = length * self.size(kind)
        if len(places) and places[-1] + width > self.end:
            raise ValueError("it ends inside a row")
        step = int(places[1] - places[0]) if len(places) > 1 else width
        if len(places) > 1 and step >= width and (np.diff(places) == step).all():  # rows of one size: no copy of places
            rows = np.lib.stride_tricks.as_strided(self.data[places[0] :], (len(places), width), (step, 1))
        else:
            rows = self.data[places[:, None] + np.arange(width)]
        return np.ascontiguousarray(rows).view(self.order + kind)

    def count(self, place: int, kind: str) -> int:
        raw = bytes(self.data[place : place + self.size(kind)])
        return int(np.frombuffer(raw, self.order + kind)[0])

    def trailing(self, path: Path, elements: list[_Element]) -> tuple[Finding, ...]:
        rest = self.end - self.place
        return (Finding("trailing-data-ignored", {"count": rest}),) if rest > 2 else ()  # one line end is usual


class _Text:
    """Body of a text file; places are numbers, wherever the lines end."""

    def __init__(self, path: Path, start: int) -> None:
        self.body = path.read_bytes()[start:]
        text = NOT_A_NUMBER_BYTES.sub(b"nan", self.body) if b"#" in self.body or b"(" in self.body else self.body
        self.data = np.fromstring(text, np.float64, sep=" ")
        self.place, self.end = 0, len(self.data)

    def size(self, kind: str) -> int:
        return 1

    def least_size(self, element: _Element) -> int:
        return len(element.properties)

    def sizes(self, least: int) -> tuple[int, int, str]:
        return least, self.end, "numbers"

    def values(self, places: Int[np.ndarray, "n"], kind: str, length: int = 1) -> np.ndarray:
        if len(places) and places[-1] + length > self.end:
            raise ValueError("it ends inside a row")
        rows = self.data[places[:, None] + np.arange(length)]
        return rows.astype(kind) if kind[0] in "iu" else rows

    def count(self, place: int, kind: str) -> int:
        return int(self.data[place])

    def trailing(self, path: Path, elements: list[_Element]) -> tuple[Finding, ...]:
        """Numbers that no element declares: harmless after the last row, an error if each row has too many."""
        rest = self.end - self.place
        if not rest:
            return ()
        first = next((line for line in self.body.splitlines() if line.strip()), b"")
        scalars = len(elements[0].properties) if elements else 0
        if not any(item.count_kind for item in elements[0].properties) and len(first.split()) > scalars:
            raise BadFileError(
                f"{path}: rows of {len(first.split())} numbers, but the header declares {scalars} properties. "
                "Export it again."
            )
        return (Finding("trailing-data-ignored", {"count": rest}),)


def _read_element(body: _Binary | _Text, element: _Element) -> Columns:
    """Columns of an element, and the place of the next one."""
    lists = [item for item in element.properties if item.count_kind]
    counts = _list_lengths(body, element) if lists and element.count else {}
    row_size: Any = 0
    for item in element.properties:
        row_size = row_size + (
            body.size(item.count_kind) + counts.get(item.name, 0) * body.size(item.kind)
            if item.count_kind
            else body.size(item.kind)
        )
    if isinstance(row_size, np.ndarray):
        ends = body.place + np.cumsum(row_size)
        starts = ends - row_size
        after = int(ends[-1])
    else:
        starts = body.place + int(row_size) * np.arange(element.count, dtype=np.int64)
        after = body.place + int(row_size) * element.count
    if after > body.end:
        raise ValueError(f"it ends inside the element {element.name}")
    columns: Columns = {}
    place = starts
    for item in element.properties:
        if not item.count_kind:
            columns[item.name] = body.values(place, item.kind)[:, 0]
            place = place + body.size(item.kind)
            continue
        lengths = counts.get(item.name, np.zeros(0, np.int64))
        place = place + body.size(item.count_kind)
        columns[item.name] = _gather(body, place, np.broadcast_to(lengths, place.shape), item.kind)
        place = place + lengths * body.size(item.kind)
    body.place = after
    return columns


def _list_lengths(body: _Binary | _Text, element: _Element) -> dict[str, Any]:
    """Length of each list: one number if all rows have the same, else an array."""
    first, place = {}, body.place
    for item in element.properties:
        if item.count_kind:
            first[item.name] = _checked_count(body, place, item, element)
            place += body.size(item.count_kind) + first[item.name] * body.size(item.kind)
        else:
            place += body.size(item.kind)
    size, is_uniform = place - body.place, place <= body.end and element.count * (place - body.place) <= body.end
    place = body.place
    for item in element.properties:
        if item.count_kind and is_uniform and place + (element.count - 1) * size < body.end:
            rows = place + size * np.arange(element.count, dtype=np.int64)
            is_uniform = int(rows[-1]) + body.size(item.count_kind) <= body.end and bool(
                (body.values(rows, item.count_kind)[:, 0] == first[item.name]).all()
            )
            place += body.size(item.count_kind) + first[item.name] * body.size(item.kind)
        elif not item.count_kind:
            place += body.size(item.kind)
        else:
            is_uniform = False
    if is_uniform:
        return dict(first)
    lengths: dict[str, list[int]] = {name: [] for name in first}
    place = body.place
    for _ in range(element.count):
        for item in element.properties:
            if item.count_kind:
                count = _checked_count(body, place, item, element)
                lengths[item.name].append(count)
                place += body.size(item.count_kind) + count * body.size(item.kind)
            else:
                place += body.size(item.kind)
    return {name: np.array(counts, dtype=np.int64) for name, counts in lengths.items()}


def _checked_count(body: _Binary | _Text, place: int, item: _Property, element: _Element) -> int:
    if place + body.size(item.count_kind) > body.end:
        raise ValueError(f"it ends inside the element {element.name}")
    count = body.count(place, item.count_kind)
    if count < 0 or place + count * body.size(item.kind) > body.end:
        raise ValueError(f"a list of {count:,} values in {element.name}, and the file ends before")
    return count


def _gather(body: _Binary | _Text, places: Int[np.ndarray, "n"], lengths: Int[np.ndarray, "n"], kind: str) -> _Lists:
    """Values of lists at these places."""
    if len(lengths) and (lengths == lengths[0]).all():
        length = int(lengths[0])
        values = body.values(places, kind, length).reshape(-1) if length else np.zeros(0, kind)
        return _Lists(values, np.asarray(lengths))
    ends = np.cumsum(lengths)
    values = np.zeros(int(ends[-1]) if len(ends) else 0, kind)
    for length in np.unique(lengths[lengths > 0]):
        rows = np.flatnonzero(lengths == length)
        into = (ends[rows] - length)[:, None] + np.arange(length)
        values[into] = body.values(places[rows], kind, int(length))
    return _Lists(values, np.asarray(lengths))


def _column(columns: Columns, name: str) -> np.ndarray:
    column = columns[name]
    if isinstance(column, _Lists):
        raise ValueError(f"property {name} is a list")
    return column


def _matrix(columns: Columns, *names: str) -> Float[np.ndarray, "n 3"]:
    """Three columns in one array of their common type."""
    return np.column_stack([_column(columns, name) for name in names]).astype(
        np.result_type(*(_column(columns, name).dtype for name in names)).newbyteorder("=")
    )


def _faces(content: dict[str, Columns]) -> np.ndarray | None:
    """Triangles (or quads, if there are only those) of the elements `face` and `tristrips`."""
    for element, convert in (("face", fans), ("tristrips", _strips)):
        columns = content.get(element, {})
        lists = next((values for name, values in columns.items() if name.startswith("vertex_ind")), None)
        if isinstance(lists, _Lists) and len(lists.counts):
            return convert(lists.values, lists.counts)
    return None


def fans(corners: np.ndarray, counts: Int[np.ndarray, "n"]) -> np.ndarray:
    """Polygons, one after the other, as triangles (m, 3) in fans; (m, 4) if all are quads. Less than three: none."""
    corners = corners.astype(np.int64, copy=False) if corners.dtype != np.uint64 else corners
    if len(counts) and counts[0] in (3, 4) and (counts == counts[0]).all():
        return corners.reshape(-1, int(counts[0]))
    starts = np.cumsum(counts) - counts
    num = np.maximum(counts - 2, 0)
    polygon = np.repeat(np.arange(len(counts)), num)
    second = np.arange(len(polygon)) - np.repeat(np.cumsum(num) - num, num) + 1
    first = starts[polygon]
    return np.stack([corners[first], corners[first + second], corners[first + second + 1]], axis=1)


def _strips(corners: np.ndarray, counts: Int[np.ndarray, "n"]) -> np.ndarray:
    """Triangle strips; -1 begins a new strip, and every other triangle is turned."""
    triangles = []
    for strip in np.split(corners.astype(np.int64), np.cumsum(counts)[:-1]):
        for run in np.split(strip, np.flatnonzero(strip < 0)):
            run = run[run >= 0]
            rows = np.stack([run[:-2], run[1:-1], run[2:]], axis=1) if len(run) > 2 else np.zeros((0, 3), np.int64)
            rows[1::2] = rows[1::2, [1, 0, 2]]
            triangles.append(rows[(rows[:, 0] != rows[:, 1]) & (rows[:, 1] != rows[:, 2]) & (rows[:, 0] != rows[:, 2])])
    return np.concatenate(triangles)
