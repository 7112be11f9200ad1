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
from shapespace.fitting.result import Fit
from shapespace.geometry.camera import MAX_DEPTH_JUMP
from shapespace.geometry.findings import Finding
from shapespace.geometry.scan import Scan
from shapespace.io import scan_files, units
from shapespace.io.checks import Normals
from shapespace.io.units import UnitName
from shapespace.space import ShapeSpace
from shapespace.synthetic.example import example_file

PIPE = "-"
EXAMPLE = "example"
MAX_LISTED = 5  # names in a note


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
    normals: Normals = "auto"
    """Normals of files without faces: used where there are any (auto), required, or ignored (drop)."""

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
    scans = list(read.values())
    if source.unit == "auto":
        scans, unit = units.to_meters(scans)
        source = replace(source, unit=unit.name)
    scans = units.share_origin(scans)
    report_findings([(scan.name, scan.findings) for scan in scans])
    read = dict(zip(read, scans, strict=True))
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
    """The scans without floor, walls and separate parts, unless `clutter` is `keep`; notes name the removed shares."""
    if clutter == "keep":
        return scans
    cleaned = space.remove_clutter(scans, lm=lm, seed=seed)
    report_findings([(new.name, new.findings[len(old.findings) :]) for new, old in zip(cleaned, scans, strict=True)])
    return cleaned


def listed(items: Sequence[str]) -> str:
    """The first items, separated by commas."""
    return ", ".join(items[:MAX_LISTED]) + (", ..." if len(items) > MAX_LISTED else "")


def report_findings(found: Sequence[tuple[str, Sequence[Finding]]]) -> None:
    """Print the findings of scans, by name, as notes with their codes; equal ones together, at most five of a code."""
    names: dict[str, list[tuple[Finding, list[str]]]] = {}
    for name, findings in found:
        for finding in findings:
            same = names.setdefault(finding.code, [])
            together = next((others for other, others in same if other == finding), None)
            if together is None:
                same.append((finding, [name or "the scan"]))
            else:
                together.append(name)
    for code, groups in names.items():
        for finding, group in groups[:MAX_LISTED]:
            print(f"note: {finding.message(listed(group))} [{code}]", file=sys.stderr)
        if len(groups) > MAX_LISTED:
            rest = sum(len(group) for _, group in groups[MAX_LISTED:])
            print(f"note: {rest} more scans with this finding [{code}]", file=sys.stderr)


def report_new_findings(scans: Sequence[Scan], fits: Sequence[Fit]) -> None:
    """Print the findings of fits that their scans did not have."""
    report_findings([(fit.name, fit.findings[len(scan.findings) :]) for scan, fit in zip(scans, fits, strict=False)])


def _read(word: str, name: str, source: ScanInput, *, interpolate: bool = False) -> Scan:
    """Read a file or standard input, in meters; with unit `auto`, in the unit of the file."""
    if interpolate:
        try:
            return _read(word, name, source)
        except ValueError as unusable:
            reason = Finding("frame-interpolated", {"reason": str(unusable)})
            return Scan(name, np.empty((0, 3), np.float32), findings=(reason,))
    if word == PIPE:
        data = sys.stdin.buffer.read()
        return scan_files.read_bytes(data, unit=source.meters, up=source.up, normals=source.normals)
    return scan_files.read_scan(
        word,
        name=name,
        unit=source.meters,
        up=source.up,
        normals=source.normals,
        max_depth_jump=source.max_depth_jump,
        min_depth=source.min_depth,
        max_depth=source.max_depth,
    )


def _path(word: str) -> str:
    """Path of a file; `example` is the packaged scan, unless there is a file of that name."""
    return str(example_file()) if word == EXAMPLE and not Path(word).exists() else word


def _stems(words: Sequence[str]) -> list[str]:
    """Names of files: their stems, with as many parent folders as are needed to make them unique."""
    paths = [(*Path(word).parts[:-1], scan_files.stem(word)) for word in words]
    depth = 1
    while len({path[-depth:] for path in paths}) < len(set(paths)):
        depth += 1
    return ["/".join(path[-depth:]) for path in paths]
