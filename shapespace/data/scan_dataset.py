"""A recipe: what there is to know about one data set in order to read it. Data are read, never shipped."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimesh import Trimesh

from shapespace.geometry.scan import Scan
from shapespace.io.checks import Normals
from shapespace.io.units import Up, check_size


@dataclass(frozen=True)
class ScanEntry:
    """One scan of a data set: its name `subject/sequence/frame`, and its file (`index`: which item inside the file)."""

    name: str
    path: Path
    index: int | None = None


@dataclass(frozen=True)
class ScanDataset(ABC):
    """A data set's card: how to find, read and split its scans.

    `unit` is metres per file unit and `up` the file's axis that points up. `scale` is metres per model unit, one for
    the whole data set: by default 1.25, with which people (arms up or out, centred at the mean of their points) lie
    inside [-1, 1]^3. `get` is the sentence that says which file to get from where, and where to put it.
    """

    name: str
    source: str
    license: str
    instructions: str
    unit: float = 1.0
    up: Up = "y"
    scale: float = 1.25

    @abstractmethod
    def list_scans(self, root: Path) -> list[ScanEntry]:
        """List the scans under `root`, sorted by name; FileNotFoundError with `get` if there are none."""

    @abstractmethod
    def read_scan(self, entry: ScanEntry, normals: Normals = "auto") -> Scan:
        """Read one scan: metres, y up."""

    @abstractmethod
    def ground_truth(self, root: Path, name: str) -> Trimesh | None:
        """Read the true surface of a scan (metres, y up), or None where there is none."""

    def splits(self, root: Path) -> dict[str, list[str]]:
        """Read the split files `splits/*.json` under `root`: names of scans by the name of the split."""
        return {path.stem: read_split(path) for path in sorted((root / "splits").glob("*.json"))}

    def check_size(self, scan: Scan) -> None:
        """Refuse a scan whose size is not that of what `scale` was chosen for."""
        check_size(scan, scale=self.scale, unit=self.unit)

    def missing(self, what: Path, seen: str = "") -> FileNotFoundError:
        """Make the error for data that are not there: what was seen instead, what to get, and where to put it."""
        return FileNotFoundError(f"there is nothing like {what}. {seen + ' ' if seen else ''}{self.instructions}")


def frame_number(stem: str) -> str:
    """Find the frame in `<sequence>.<digits>` or `<anything>_<digits>`, folders or none before it: the digits."""
    digits = re.search(r"(\d+)$", stem)
    if not digits:
        raise ValueError(
            f"{stem!r} does not end in a frame number. Name the files <sequence>.<digits>, as in hips.000042."
        )
    return digits.group()


def check_entries(entries: Iterable[ScanEntry]) -> list[ScanEntry]:
    """Sort entries by name, and refuse names that are no `subject/sequence/frame` or that come twice."""
    found: dict[str, ScanEntry] = {}
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
        f"{subject}/{sequence}/{frame_number(stem)}"
        for subject, sequences in content["scans"].items()
        for sequence, stems in sequences.items()
        for stem in stems
    ]
