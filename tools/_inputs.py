"""Scans on the command line: files, standard input (-), names in a store, or a split of a store."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from shapespace.data.store import ScanStore
from shapespace.fitting.clutter import Clutter
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.geometry.camera import MAX_DEPTH_JUMP
from shapespace.geometry.scan import Scan
from shapespace.io import scan_files, units
from shapespace.io.units import UnitName
from shapespace.space import ShapeSpace
from shapespace.synthetic.example import example_file

PIPE = "-"
EXAMPLE = "example"
MAX_LISTED = 5  # names in a note
_CERTAIN = 0.99  # confidence from which on meters are not reported; arbitrary


@dataclass(frozen=True)
class ScanInput:
    """How to read the scans."""

    store: Path | None = None
    """Store of the scans that are given by name (subject/sequence/frame) or by --split."""
    split: str | None = None
    """Split of the store whose scans are all used."""
    unit: Literal["auto"] | UnitName = "auto"
    """Unit of the files and of the meshes that are written; auto guesses it from the size of a person. Depth images
    are metric: for them it is the unit of the camera positions (auto: m)."""
    up: units.Up = "y"
    """Up axis of the files and of the meshes that are written."""
    max_depth_jump: float = MAX_DEPTH_JUMP
    """Maximum depth difference of neighboring pixels on one surface in a depth image (m)."""
    min_depth: float = 0.0
    """Minimum depth along the optical axis of a depth image (m)."""
    max_depth: float = float("inf")
    """Maximum depth along the optical axis of a depth image (m)."""

    @property
    def meters(self) -> float:
        """Meters of one unit; 1 for `auto`."""
        return 1.0 if self.unit == "auto" else units.UNITS[self.unit]


class ReadScans(NamedTuple):
    """Scans in meters, y up, and how they were read; the unit is not `auto` any more."""

    scans: list[Scan]
    source: ScanInput


@dataclass(frozen=True)
class NamedScan:
    """A scan of the command line: already read, or in a store."""

    name: str
    source: Scan | ScanStore

    def read(self) -> Scan:
        """The scan in meters, y up."""
        return self.source if isinstance(self.source, Scan) else self.source.scan(self.name)

    def digest(self) -> str:
        """Hash of the points; raises `ValueError` for a name that the store does not have."""
        if isinstance(self.source, ScanStore):
            return str(self.source.provenance(self.name)["sha256"])
        return hashlib.sha256(self.source.points.tobytes()).hexdigest()


def read_scans(inputs: Sequence[str], source: ScanInput, *, empty: bool = False) -> ReadScans:
    """Read all scans. Raises `ValueError` if there are none, unless `empty`."""
    scans, source = named_scans(inputs, source, empty=empty)
    return ReadScans([scan.read() for scan in scans], source)


def named_scans(
    inputs: Sequence[str], source: ScanInput, *, empty: bool = False, interpolate: bool = False
) -> tuple[list[NamedScan], ScanInput]:
    """All scans, and how they are read; files are read now, scans of a store later. Raises as `read_scans` does.

    A file without a usable scan is an error. With `interpolate` it is a frame that will be interpolated: the scan has
    no points, and a note is printed.
    """
    store = None if source.store is None else ScanStore(source.store)
    if source.split is not None and store is None:
        raise ValueError(f"--split {source.split}: no store given. Add --store FILE.")
    inputs = [_path(word) for word in inputs] if store is None else inputs
    names = dict(zip(inputs, _stems(inputs), strict=True))
    files = [word for word in inputs if store is None or word == PIPE or Path(word).is_file()]
    read = {word: _read(word, names[word], source, interpolate=interpolate) for word in files}
    if source.unit == "auto":
        scans, unit = units.to_meters(list(read.values()))
        _report_unit([scan for scan in scans if len(scan)], unit)
        source, read = replace(source, unit=unit.name), dict(zip(read, scans, strict=True))
    named = [
        NamedScan(read[word].name, read[word]) if store is None or word in read else NamedScan(word, store)
        for word in inputs
    ]
    if store is not None and source.split is not None:
        named += [NamedScan(name, store) for name in store.scan_names(source.split)]
    for scan in named:
        scan.digest()  # so that an unknown name is an error before the work begins
    if not named and not empty:
        raise ValueError("no scans given. Pass files, names in a store (--store FILE), or --store FILE --split NAME.")
    return named, source


def remove_clutter(
    space: ShapeSpace, scans: list[Scan], clutter: Clutter, lm: LMOptions | None, seed: int
) -> list[Scan]:
    """The scans without floor, walls and separate parts, unless `clutter` is `keep`; a note names the removed share."""
    if clutter == "keep":
        return scans
    cleaned = space.remove_clutter(scans, lm=lm, seed=seed)
    changed = [(1 - len(new) / len(old), new.name) for new, old in zip(cleaned, scans, strict=True) if new is not old]
    if changed:
        shares = listed([f"{share:.0%} of {name or 'the scan'}" for share, name in changed])
        print(
            f"note: removed {shares} (floor, walls, or parts apart from the person). --clutter keep fits them too.",
            file=sys.stderr,
        )
    return cleaned


def listed(items: Sequence[str]) -> str:
    """The first items, separated by commas."""
    return ", ".join(items[:MAX_LISTED]) + (", ..." if len(items) > MAX_LISTED else "")


def _report_unit(scans: Sequence[Scan], unit: units.Unit) -> None:
    """Print a note if the unit is not meters or not certain; without confidence the fit reports the size."""
    if unit.confidence and (unit.name != "m" or unit.confidence < _CERTAIN):
        which = scans[0].name if len(scans) == 1 else f"the {len(scans)} scans"
        print(
            f"note: unit of {which} guessed as {unit.name} (confidence {unit.confidence:.0%}). --unit overrides it.",
            file=sys.stderr,
        )


def _read(word: str, name: str, source: ScanInput, *, interpolate: bool = False) -> Scan:
    """Read a file or standard input, in meters; with unit `auto`, in the unit of the file."""
    if interpolate:
        try:
            return _read(word, name, source)
        except ValueError as unusable:
            print(f"note: {name} is interpolated: {unusable}", file=sys.stderr)
            return Scan(name, np.empty((0, 3), np.float32))
    if word == PIPE:
        return scan_files.read_bytes(sys.stdin.buffer.read(), unit=source.meters, up=source.up)
    return scan_files.read_scan(
        word,
        name=name,
        unit=source.meters,
        up=source.up,
        max_depth_jump=source.max_depth_jump,
        min_depth=source.min_depth,
        max_depth=source.max_depth,
    )


def _path(word: str) -> str:
    """Path of a file; `example` is the packaged scan, unless there is a file of that name."""
    return str(example_file()) if word == EXAMPLE and not Path(word).exists() else word


def _stems(words: Sequence[str]) -> list[str]:
    """Names of files: their stems, with as many parent folders as are needed to make them unique."""
    paths = [Path(word).with_suffix("").parts for word in words]
    depth = 1
    while len({path[-depth:] for path in paths}) < len(set(paths)):
        depth += 1
    return ["/".join(path[-depth:]) for path in paths]
