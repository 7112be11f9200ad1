"""Base class of raw datasets: where the scans are and how they are read. Nothing is downloaded."""

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
    """Name `subject/sequence/frame` and file of a scan; `index` is the item inside the file."""

    name: str
    path: Path
    index: int | None = None


@dataclass(frozen=True)
class ScanDataset(ABC):
    """Raw dataset: how its scans are found, read and split.

    `unit` is meters per file unit, `up` the axis of the files that points up, and `scale` meters per model unit, one
    for the whole dataset. With the default of 1.25, people (arms up or out, centered at the mean of their points) are
    inside [-1, 1]^3. `instructions` is one sentence: which files to get from where, and where to place them.
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
        """List the scans under `root`, sorted by name.

        Raises:
            FileNotFoundError: There are none; the message ends with `instructions`.

        """

    @abstractmethod
    def read_scan(self, entry: ScanEntry, normals: Normals = "auto") -> Scan:
        """Read one scan, in meters, y up."""

    @abstractmethod
    def ground_truth(self, root: Path, name: str) -> Trimesh | None:
        """Read the ground truth of a scan (meters, y up); None if there is none."""

    def splits(self, root: Path) -> dict[str, list[str]]:
        """Names of scans by the name of the split, from the files `splits/*.json` under `root`."""
        return {path.stem: read_split(path) for path in sorted((root / "splits").glob("*.json"))}

    def check_size(self, scan: Scan) -> None:
        """Refuse a scan of implausible size, see `units.check_size`."""
        remedy = "If it is no person, pass --scale with the meters per model unit."
        check_size(scan, scale=self.scale, unit=self.unit, remedy=remedy)

    def missing(self, pattern: Path, hint: str = "") -> FileNotFoundError:
        """Error for missing data: the pattern of the files, a hint, and the instructions."""
        return FileNotFoundError(f"{pattern}: no such files. {hint + ' ' if hint else ''}{self.instructions}")


def frame_number(stem: str) -> str:
    """Trailing digits of a file stem, as in `<sequence>.<digits>` or `<anything>_<digits>`.

    Raises:
        ValueError: The stem does not end in a digit.

    """
    digits = re.search(r"(\d+)$", stem)
    if not digits:
        raise ValueError(
            f"{stem}: no frame number at the end. Name the files <sequence>.<digits>, for example hips.000042."
        )
    return digits.group()


def check_entries(entries: Iterable[ScanEntry]) -> list[ScanEntry]:
    """Sort entries by name.

    Raises:
        ValueError: A name is not `subject/sequence/frame`, or two files have the same name.

    """
    checked: dict[str, ScanEntry] = {}
    for entry in entries:
        parts = entry.name.split("/")
        if len(parts) != 3 or not all(part.strip(".") for part in parts) or entry.name.startswith("_"):
            raise ValueError(
                f"{entry.path}: the name {entry.name!r} is not subject/sequence/frame. "
                "Rename the file, or pass --pattern with {subject}, {sequence} and {frame}."
            )
        if entry.name in checked and checked[entry.name] != entry:
            raise ValueError(
                f"{checked[entry.name].path} and {entry.path}: both have the name {entry.name}. "
                "Rename one, or pass a --pattern that distinguishes them."
            )
        checked[entry.name] = entry
    return [checked[name] for name in sorted(checked)]


def read_split(path: Path) -> list[str]:
    """Names `subject/sequence/frame` in a split file, in the order of the file.

    The file is a list of names or the JSON of IGR and SAL, `{"scans": {subject: {sequence: [file stem, ...]}}}`: the
    stem `light_hopping_stiff.000394` of subject 50026 becomes `50026/light_hopping_stiff/000394`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file has another content.

    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such split file. Pass a JSON list of names, or a split file of IGR or SAL."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = content if isinstance(content, list) else _nested_names(content)
        valid = bool(names) and all(isinstance(name, str) and name.count("/") == 2 for name in names)
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        valid = False
    if not valid:
        raise ValueError(
            f"{path}: not a split file. Write a JSON list of names subject/sequence/frame, or "
            '{"scans": {subject: {sequence: [file stem, ...]}}} as IGR and SAL do.'
        )
    return list(dict.fromkeys(names))


def _nested_names(content: Any) -> list[str]:
    return [
        f"{subject}/{sequence}/{frame_number(stem)}"
        for subject, sequences in content["scans"].items()
        for sequence, stems in sequences.items()
        for stem in stems
    ]
