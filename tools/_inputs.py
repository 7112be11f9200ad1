"""Scans that a command line names: files, standard input (-), names in a store, or a split of a store."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from shapespace.data import files
from shapespace.data.depth import JUMP
from shapespace.data.scan import Scan
from shapespace.data.store import Store

PIPE = "-"


@dataclass(frozen=True)
class Source:
    """How to read what the command line names."""

    store: Path | None = None
    """A store, for scans given by name (subject/sequence/frame) or by split."""
    split: str | None = None
    """All scans of this split of the store."""
    unit: Literal["m", "cm", "mm", "in"] = "m"
    """Unit of the files; with depth images, of the places of their cameras. Meshes come back in it."""
    up: files.Up = "y"
    """Axis of the files that points up: x, y, z or their negatives. Meshes come back so."""
    jump: float = JUMP
    """Metres: neighbouring pixels of a depth image that differ by more are not one surface."""


def gather(inputs: Sequence[str], source: Source, *, empty: bool = False) -> list[Scan]:
    """The scans, in metres, y up. Raises `ValueError` if there are none, unless they may be `empty`."""
    store = None if source.store is None else Store(source.store)
    scans = [_scan(word, name, store, source) for word, name in zip(inputs, _names(inputs), strict=True)]
    if source.split is not None:
        if store is None:
            raise ValueError(f"--split {source.split} needs the store that has it: add --store FILE.")
        scans += [from_store(store, name) for name in store.select(source.split)]
    if not scans and not empty:
        raise ValueError(
            "no scans given: name files, or names in a store (--store FILE), or --store FILE --split NAME."
        )
    return scans


def from_store(store: Store, name: str) -> Scan:
    """A packed scan, back in metres; all of it, so that its mean is the one it was packed with."""
    packed = store.sample(name, store.count(name), np.random.default_rng(0))
    return packed.to_world(store.frame(name))


def _scan(word: str, name: str, store: Store | None, source: Source) -> Scan:
    if word == PIPE:
        return files.read_bytes(sys.stdin.buffer.read(), unit=files.UNITS[source.unit], up=source.up)
    if Path(word).is_file() or store is None:
        return files.read_scan(word, name=name, unit=files.UNITS[source.unit], up=source.up, jump=source.jump)
    return from_store(store, word)


def _names(words: Sequence[str]) -> list[str]:
    """Names of files: their stems, with as many folders before them as it takes to tell them apart."""
    paths = [Path(word).with_suffix("").parts for word in words]
    depth = 1
    while len({path[-depth:] for path in paths}) < len(set(paths)):
        depth += 1
    return ["/".join(path[-depth:]) for path in paths]


def file_name(name: str) -> str:
    """A scan's name as the stem of a file."""
    return name.replace("/", "_")
