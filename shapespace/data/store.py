"""The store: all scans of a data set in one HDF5 file, ready to be drawn from.

Layout: a group `subject/sequence/frame` for each scan with `points` (and `normals` or `lines`, `sensors` where there
are any), float32, contiguous, in the model frame, shuffled once; its attributes hold the centre, the scale, the origin,
and whether the normals were estimated. The true surface, where there is one, is `truth` (vertices, metres) with its
faces in `_topologies`, once for all scans that share them. `_names`, `_splits` and `_bad` hold text; the attributes of
the file hold what it was made from.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import h5py
import numpy as np
import torch
from jaxtyping import Float
from trimesh import Trimesh

from shapespace.data.recipe import read_split, suggest
from shapespace.data.scan import Scan
from shapespace.geometry.frame import Frame

FORMAT = 1


@runtime_checkable
class Source(Protocol):
    """What a training asks of its scans, wherever they are; see `Store`."""

    path: Path
    scale: float
    about: dict[str, Any]

    def sample(self, name: str, count: int, rng: np.random.Generator) -> Scan:
        """Draw points of a scan, in the model frame."""

    def frame(self, name: str) -> Frame:
        """Where the scan lies in the world."""

    def has_truth(self, name: str) -> bool:
        """Whether the scan has a true surface."""

    def truth(self, name: str) -> Trimesh | None:
        """The true surface, or None."""


class InMemory:
    """A few scans that need no packing, where a store is asked for. They have no true surfaces."""

    def __init__(self, scans: Mapping[str, Scan], *, scale: float, about: dict[str, Any]) -> None:
        """Scans without faces, by name, in metres; `scale` is metres of one model unit."""
        self.path, self.scale, self.about = Path("memory"), scale, about
        self._frames = {name: scan.frame(scale) for name, scan in scans.items()}
        self._scans = {name: scan.to_model(self._frames[name]) for name, scan in scans.items()}

    def sample(self, name: str, count: int, rng: np.random.Generator) -> Scan:
        """Draw `count` points, each by itself, in the model frame."""
        scan = self._scans[name]
        return scan.take(rng.integers(len(scan), size=count))

    def frame(self, name: str) -> Frame:
        """Where the scan lies in the world."""
        return self._frames[name]

    def has_truth(self, name: str) -> bool:
        """Never."""
        return False

    def truth(self, name: str) -> Trimesh | None:
        """None."""
        return None


class Store:
    """A packed data set, read in blocks; opened anew in each process that uses it, so it may be pickled or forked.

    Args:
        path: The HDF5 file that `shapespace preprocess` made.

    Attributes:
        names: All scans, `subject/sequence/frame`, sorted.
        scale: Metres per model unit.
        splits: Names of scans by the name of the split.
        about: What the store was made from: recipe, source, licence, unit, up, seed and so on.
        bad: Scans that could not be packed, and why.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or no store of this format.

    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._pid = -1
        with _open(self.path) as file:
            self.names: list[str] = _texts(file["_names"])
            self.splits: dict[str, list[str]] = {split: _texts(names) for split, names in file["_splits"].items()}
            self.about: dict[str, Any] = json.loads(file.attrs["about"])
            self.bad: dict[str, str] = dict(json.loads(text) for text in _texts(file["_bad"]))
            self.scale = float(file.attrs["scale"])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_pid": -1}

    def __len__(self) -> int:
        return len(self.names)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; it opens again when needed."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file = None

    def select(self, split: str | None) -> list[str]:
        """Name the scans of a split: one of `splits`, the path of a split file (JSON), or None for all scans.

        Raises:
            ValueError: There is no such split, or it names scans that the store does not hold.

        """
        if split is None:
            return list(self.names)
        if split in self.splits:
            return list(self.splits[split])
        if not split.endswith(".json"):
            raise ValueError(
                f"{self.path} has no split {split!r}. {suggest(split, sorted(self.splits))} "
                "A path that ends in .json is read as a split file."
            )
        names = read_split(Path(split))
        absent = sorted(set(names).difference(self.names))
        if absent:
            raise ValueError(
                f"{len(absent):,} of {len(names):,} scans of {split} are not in {self.path}, {absent[0]} for one. "
                "Pack them too, or choose another split."
            )
        return names

    def frame(self, name: str) -> Frame:
        """Where the scan lies in the world."""
        attributes = self._scan(name).attrs
        return Frame(torch.tensor(attributes["centre"]), torch.tensor(np.float32(attributes["scale"])))

    def count(self, name: str) -> int:
        """How many points the scan has in the store."""
        return len(self._scan(name)["points"])

    def has_normals(self, name: str) -> bool:
        """Whether the scan came with normals or faces; those of other scans are estimated from their points."""
        group = self._scan(name)
        return "normals" in group and not group.attrs.get("estimated", False)

    def has_truth(self, name: str) -> bool:
        """Whether the scan has a true surface."""
        return "truth" in self._scan(name)

    def origin(self, name: str) -> dict[str, Any]:
        """Where the scan comes from: `file` under the root, its `bytes`, `sha256` of the points read, and a `note`."""
        attributes = self._scan(name).attrs
        return {key: attributes[key] for key in ("file", "bytes", "sha256", "note")}

    def sample(self, name: str, count: int, rng: np.random.Generator) -> Scan:
        """Draw `count` points (with normals or lines, and sensors where there are any), in the model frame.

        The points were shuffled when packed, so one block from a random place, wrapping around the end, is a random
        subset and one read. A scan of fewer points gives all of them, repeated until there are `count`.
        """
        group = self._scan(name)
        total = len(group["points"])
        start = int(rng.integers(total))

        def draw(key: str) -> Float[np.ndarray, "count 3"] | None:
            return _block(group[key], start, count) if key in group else None

        return Scan(name, _block(group["points"], start, count), draw("normals"), draw("sensors"), lines=draw("lines"))

    def truth(self, name: str) -> Trimesh | None:
        """Read the true surface (metres, y up), or None where there is none."""
        group = self._scan(name)
        if "truth" not in group:
            return None
        faces = group.file["_topologies"][group["truth"].attrs["topology"]]
        return Trimesh(group["truth"][:], faces[:], process=False)

    def _scan(self, name: str) -> h5py.Group:
        """Find the scan's group, through a file handle of this process."""
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = _open(self.path), os.getpid()
        if name.count("/") != 2 or name.startswith("_") or name not in self._file:
            raise ValueError(f"{self.path} has no scan {name!r}. {suggest(name, self.names)}")
        return self._file[name]


def _block(data: h5py.Dataset, start: int, count: int) -> Float[np.ndarray, "count 3"]:
    """Rows start, start + 1, ... of `data`, going on at its beginning when its end is reached."""
    total = len(data)
    if count > total:
        return np.asarray(data[:][(start + np.arange(count)) % total])
    head: np.ndarray = data[start : start + count]
    return head if len(head) == count else np.concatenate([head, data[: count - len(head)]])


def _open(path: Path) -> h5py.File:
    """Open a store for reading, or say what is wrong with it and how to rebuild it."""
    if not path.exists():
        part = path.with_name(path.name + ".part")
        hint = f"Its packing was not finished ({part} is there): give the same line again." if part.exists() else ""
        raise FileNotFoundError(
            f"there is no store {path}. {hint or f'Make it: shapespace preprocess RECIPE ROOT {path}'}"
        )
    rebuild = f"Rebuild it: shapespace preprocess RECIPE ROOT {path} --overwrite"
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is damaged or no HDF5 file ({error}). {rebuild}") from error
    version = file.attrs.get("format")
    if version != FORMAT or any(key not in file for key in ("_names", "_splits", "_bad")):
        file.close()
        what = f"is a store of format {version}" if version is not None else "is an HDF5 file, but no store"
        raise ValueError(f"{path} {what}, and format {FORMAT} is needed. {rebuild}")
    return file


def _texts(data: h5py.Dataset) -> list[str]:
    return [text.decode() for text in data[:]]
