"""A recipe: what there is to know about one data set in order to read it. Data are read, never shipped."""

import difflib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from trimesh import Trimesh

from shapespace.geometry.scan import Scan
from shapespace.io.scan_files import UNITS, Normals, Up


@dataclass(frozen=True)
class Entry:
    """One scan of a data set: its name `subject/sequence/frame`, and its file (`index`: which item inside the file)."""

    name: str
    path: Path
    index: int | None = None


@dataclass(frozen=True)
class Recipe(ABC):
    """A data set's card: how to find, read and split its scans.

    `unit` is metres per file unit and `up` the file's axis that points up. `scale` is metres per model unit, one for
    the whole data set: by default 1.25, with which people (arms up or out, centred at the mean of their points) lie
    inside [-1, 1]^3. `get` is the sentence that says which file to get from where, and where to put it.
    """

    name: str
    source: str
    licence: str
    get: str
    unit: float = 1.0
    up: Up = "y"
    scale: float = 1.25

    @abstractmethod
    def find(self, root: Path) -> list[Entry]:
        """List the scans under `root`, sorted by name; FileNotFoundError with `get` if there are none."""

    @abstractmethod
    def read(self, entry: Entry, normals: Normals = "auto") -> Scan:
        """Read one scan: metres, y up."""

    @abstractmethod
    def truth(self, root: Path, name: str) -> Trimesh | None:
        """Read the true surface of a scan (metres, y up), or None where there is none."""

    def splits(self, root: Path) -> dict[str, list[str]]:
        """Read the split files `splits/*.json` under `root`: names of scans by the name of the split."""
        return {path.stem: read_split(path) for path in sorted((root / "splits").glob("*.json"))}

    def check_size(self, scan: Scan) -> None:
        """Refuse a scan whose size is not that of what `scale` was chosen for."""
        check_size(scan, scale=self.scale, unit=self.unit)

    def missing(self, what: Path, seen: str = "") -> FileNotFoundError:
        """Make the error for data that are not there: what was seen instead, what to get, and where to put it."""
        return FileNotFoundError(f"there is nothing like {what}. {seen + ' ' if seen else ''}{self.get}")


def check_size(scan: Scan, *, scale: float, unit: float = 1.0) -> None:
    """Refuse a scan (metres) whose size is not that of what `scale` was chosen for; the likely cause is its unit.

    The size is the largest extent of all but the lowest and highest 1 % of the points, because raw scans have
    stray ones. It must lie between 0.24 and 2.4 model units: 0.3 to 3 m for people. `unit` is metres per file unit.
    """
    size = _size(scan)
    least, most = 0.24 * scale, 2.4 * scale
    if least <= size <= most:
        return
    sizes = {name: size / unit * metres for name, metres in UNITS.items()}
    likely = min(sizes, key=lambda name: abs(np.log(max(sizes[name], 1e-30) / (1.36 * scale))))
    if least <= sizes[likely] <= most:
        remedy = f"Are the files in {likely}? Then say --unit {likely}."
    else:
        remedy = "Is it the right file? If it is no person, give its size by --scale."
    shown = f"{size:,.0f}" if size > 10 else f"{size:.3g}"
    raise ValueError(f"scan {scan.name} is {shown} m large, and {least:.2g} to {most:.2g} m is expected. {remedy}")


UnitName = Literal["m", "cm", "mm", "in"]


class Unit(NamedTuple):
    """A unit by its name, and the probability that it is the one, if it is one of these and the scans are people."""

    name: UnitName
    confidence: float


def guess_unit(scans: Sequence[Scan]) -> Unit:
    """The unit of scans (as their files have them) by how large people are, all of them in one unit.

    The size of a scan (see `check_size`) is taken for that of a person: 1.5 m, give or take a quarter, whether they
    stand, bend, or were seen in part. Where nobody is so large in any unit, it is metres, with no confidence at all.
    """
    sizes = np.array([_size(scan) for scan in scans])
    off = {name: np.log(np.maximum(sizes, 1e-30) * metres / 1.5) / 0.25 for name, metres in UNITS.items()}
    score = {name: -0.5 * float(np.square(each).mean()) for name, each in off.items()}
    best = max(get_args(UnitName), key=lambda name: score[name])
    if score[best] < -0.5 * 4**2:
        return Unit("m", 0.0)
    return Unit(best, 1 / sum(float(np.exp(other - score[best])) for other in score.values()))


def _size(scan: Scan) -> float:
    """The largest extent of all but the lowest and highest 1 % of the points."""
    low, high = np.percentile(scan.points, [1, 99], axis=0)
    return float((high - low).max())


def frame_of(stem: str) -> str:
    """Find the frame in `<sequence>.<digits>` or `<anything>_<digits>`, folders or none before it: the digits."""
    digits = re.search(r"(\d+)$", stem)
    if not digits:
        raise ValueError(
            f"{stem!r} does not end in a frame number. Name the files <sequence>.<digits>, as in hips.000042."
        )
    return digits.group()


def checked(entries: Iterable[Entry]) -> list[Entry]:
    """Sort entries by name, and refuse names that are no `subject/sequence/frame` or that come twice."""
    found: dict[str, Entry] = {}
    for entry in entries:
        parts = entry.name.split("/")
        if len(parts) != 3 or not all(part.strip(".") for part in parts) or entry.name.startswith("_"):
            raise ValueError(
                f"{entry.path} would get the name {entry.name!r}, which is not subject/sequence/frame. "
                "Rename it, or say --pattern with {subject}, {sequence} and {frame}."
            )
        if entry.name in found and found[entry.name] != entry:
            raise ValueError(
                f"{found[entry.name].path} and {entry.path} would both be named {entry.name}. "
                "Rename one, or say a --pattern that tells them apart."
            )
        found[entry.name] = entry
    return [found[name] for name in sorted(found)]


def read_split(path: Path) -> list[str]:
    """Read a split file: names `subject/sequence/frame` in the order of the file.

    Either the JSON of IGR and SAL, `{"scans": {subject: {sequence: [file stem, ...]}}}`, as it is (the stem
    `light_hopping_stiff.000394` of subject 50026 becomes `50026/light_hopping_stiff/000394`), or a list of names.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no split file {path}. Give a JSON as IGR and SAL have them.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = content if isinstance(content, list) else _nested_names(content)
        good = bool(names) and all(isinstance(name, str) and name.count("/") == 2 for name in names)
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        good = False
    if not good:
        raise ValueError(
            f"{path} is not a split file. It must hold a JSON list of names subject/sequence/frame, or "
            '{"scans": {subject: {sequence: [file stem, ...]}}} as IGR and SAL have it.'
        )
    return list(dict.fromkeys(names))


def _nested_names(content: Any) -> list[str]:
    return [
        f"{subject}/{sequence}/{frame_of(stem)}"
        for subject, sequences in content["scans"].items()
        for sequence, stems in sequences.items()
        for stem in stems
    ]


def suggest(name: str, known: Sequence[str]) -> str:
    """Word the second half of an error about an unknown name: the nearest known one, or some of what there is."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"Did you mean {close[0]}?"
    shown = ", ".join(list(known)[:8]) + (", ..." if len(known) > 8 else "")
    return f"There are {len(known):,}: {shown}." if known else "There are none."
