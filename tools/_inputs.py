"""Scans that a command line names: files, standard input (-), names in a store, or a split of a store."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from shapespace.data.store import ScanStore
from shapespace.fitting.clutter import Clutter
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.geometry.camera import MAX_DEPTH_JUMP
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.io import scan_files, units
from shapespace.io.units import UnitName, guess_unit
from shapespace.space import ShapeSpace

PIPE = "-"
_SURE = 0.99


@dataclass(frozen=True)
class ScanInput:
    """How to read what the command line names."""

    store: Path | None = None
    """A store, for scans given by name (subject/sequence/frame) or by split."""
    split: str | None = None
    """All scans of this split of the store."""
    unit: Literal["auto"] | UnitName = "auto"
    """Unit of the files; auto goes by the size of people, and says so where it is not metres. With depth images, which
    are metric, it is that of the places of their cameras (auto: metres). Meshes come back in it."""
    up: units.Up = "y"
    """Axis of the files that points up: x, y, z or their negatives. Meshes come back so."""
    max_depth_jump: float = MAX_DEPTH_JUMP
    """Metres: neighbouring pixels of a depth image that differ by more are not one surface."""
    min_depth: float = 0.0
    """Metres along the optical axis: what a depth image has nearer than this is ignored."""
    max_depth: float = float("inf")
    """Metres along the optical axis: what a depth image has farther than this, as a wall, is ignored."""

    @property
    def metres(self) -> float:
        """Metres of one unit; of one that is not settled, a metre."""
        return 1.0 if self.unit == "auto" else units.UNITS[self.unit]


class Gathered(NamedTuple):
    """Scans in metres, y up, and how they were read: the unit is settled."""

    scans: list[Scan]
    source: ScanInput


def remove_clutter(
    space: ShapeSpace, scans: list[Scan], clutter: Clutter, lm: LMOptions | None, seed: int
) -> list[Scan]:
    """The scans without floor, walls and what stands apart, if that is to be removed; what was left out is said."""
    if clutter == "keep":
        return scans
    alone = space.remove_clutter(scans, lm=lm, seed=seed)
    left = [(len(new) / len(old), new.name) for new, old in zip(alone, scans, strict=True) if new is not old]
    if left:
        told = ", ".join(f"{1 - share:.0%} of {name or 'the scan'}" for share, name in left[:5])
        print(
            f"note: left out {told}{', ...' if len(left) > 5 else ''}: floor, walls, or what stands apart from the "
            "person; --clutter keep leaves it in.",
            file=sys.stderr,
        )
    return alone


@dataclass(frozen=True)
class NamedScan:
    """A scan that the command line names; one of a store is read when it is asked for."""

    name: str
    held: Scan | ScanStore

    def read(self) -> Scan:
        """The scan, in metres, y up."""
        return self.held if isinstance(self.held, Scan) else from_store(self.held, self.name)

    def digest(self) -> str:
        """What changes with its points."""
        if isinstance(self.held, ScanStore):
            return str(self.held.provenance(self.name)["sha256"])
        return hashlib.sha256(self.held.points.tobytes()).hexdigest()


def read_scans(inputs: Sequence[str], source: ScanInput, *, empty: bool = False) -> Gathered:
    """Read all that is named. Raises `ValueError` if there are no scans, unless they may be `empty`."""
    scans, source = named_scans(inputs, source, empty=empty)
    return Gathered([scan.read() for scan in scans], source)


def named_scans(
    inputs: Sequence[str], source: ScanInput, *, empty: bool = False, bridge: bool = False
) -> tuple[list[NamedScan], ScanInput]:
    """All that is named, and how it is read; those of a store wait there. Raises as `gather` does.

    Files that hold no usable scan are an error; if they are frames that others `bridge`, they come without points, and
    that is said.
    """
    store = None if source.store is None else ScanStore(source.store)
    if source.split is not None and store is None:
        raise ValueError(f"--split {source.split} needs the store that has it: add --store FILE.")
    names = dict(zip(inputs, _names(inputs), strict=True))
    files_named = [word for word in inputs if store is None or word == PIPE or Path(word).is_file()]
    read = {word: _read(word, names[word], source, bridge=bridge) for word in files_named}
    if source.unit == "auto":
        source = replace(source, unit=_guessed([scan for scan in read.values() if len(scan)]))
        read = {word: scan.to_world(_in_metres(source.metres)) for word, scan in read.items()}
    scans = [
        NamedScan(read[word].name, read[word]) if store is None or word in read else NamedScan(word, store)
        for word in inputs
    ]
    if store is not None and source.split is not None:
        scans += [NamedScan(name, store) for name in store.scan_names(source.split)]
    for scan in scans:
        scan.digest()  # a name that the store has not is told at once
    if not scans and not empty:
        raise ValueError(
            "no scans given: name files, or names in a store (--store FILE), or --store FILE --split NAME."
        )
    return scans, source


def _guessed(scans: Sequence[Scan]) -> UnitName:
    """The unit of the files by the size of people, said aloud where it is no metre or might be another."""
    if not scans:
        return "m"
    unit, confidence = guess_unit(scans)
    if confidence and (unit != "m" or confidence < _SURE):  # without any, the fit says what is wrong with the size
        which = scans[0].name if len(scans) == 1 else f"the {len(scans)} scans"
        print(
            f"note: {which} taken to be in {unit} (confidence {confidence:.0%}); say --unit to overrule.",
            file=sys.stderr,
        )
    return unit


def _in_metres(unit: float) -> Frame:
    return Frame(torch.zeros(3), torch.tensor(unit))


def from_store(store: ScanStore, name: str) -> Scan:
    """A packed scan, back in metres; all of it, so that its mean is the one it was packed with."""
    packed = store.sample(name, store.count(name), np.random.default_rng(0))
    return packed.to_world(store.frame(name))


def _read(word: str, name: str, source: ScanInput, *, bridge: bool = False) -> Scan:
    """A file, or standard input, in metres; if their unit is still to be guessed, in that."""
    if bridge:
        try:
            return _read(word, name, source)
        except ValueError as unusable:
            print(f"note: {name} is bridged: {unusable}", file=sys.stderr)
            return Scan(name, np.empty((0, 3), np.float32))
    if word == PIPE:
        return scan_files.read_bytes(sys.stdin.buffer.read(), unit=source.metres, up=source.up)
    return scan_files.read_scan(
        word,
        name=name,
        unit=source.metres,
        up=source.up,
        max_depth_jump=source.max_depth_jump,
        min_depth=source.min_depth,
        max_depth=source.max_depth,
    )


def _names(words: Sequence[str]) -> list[str]:
    """Names of files: their stems, with as many folders before them as it takes to tell them apart."""
    paths = [Path(word).with_suffix("").parts for word in words]
    depth = 1
    while len({path[-depth:] for path in paths}) < len(set(paths)):
        depth += 1
    return ["/".join(path[-depth:]) for path in paths]
