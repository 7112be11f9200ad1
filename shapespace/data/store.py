"""The store: all scans of a data set in one HDF5 file, ready to be drawn from.

Layout: a group `subject/sequence/frame` for each scan with `points` (and `normals` or `lines`, `sensors` where there
are any), float32, contiguous, in the model frame, shuffled once; its attributes hold the centre, the scale, the origin,
and whether the normals were estimated. The true surface, where there is one, is `truth` (vertices, metres) with its
faces in `_topologies`, once for all scans that share them. `_names`, `_splits` and `_bad` hold text; the attributes of
the file hold what it was made from.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import h5py
import numpy as np
import torch
from jaxtyping import Float
from trimesh import Trimesh

from shapespace.data.scan_dataset import read_split
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.io.errors import did_you_mean
from shapespace.io.hdf5 import MAX_READ, check_stored, damage_as_error, get_attribute, get_member, has_member

FORMAT = 1


@runtime_checkable
class ScanSource(Protocol):
    """What a training asks of its scans, wherever they are; see `Store`."""

    path: Path
    scale: float
    metadata: dict[str, Any]

    def sample(self, name: str, count: int, rng: np.random.Generator) -> Scan:
        """Draw points of a scan, in the model frame."""

    def frame(self, name: str) -> Frame:
        """Where the scan lies in the world."""

    def has_ground_truth(self, name: str) -> bool:
        """Whether the scan has a true surface."""

    def ground_truth(self, name: str) -> Trimesh | None:
        """The true surface, or None."""


class InMemoryStore:
    """A few scans that need no packing, where a store is asked for. They have no true surfaces."""

    def __init__(self, scans: Mapping[str, Scan], *, scale: float, metadata: dict[str, Any]) -> None:
        """Scans without faces, by name, in metres; `scale` is metres of one model unit."""
        self.path, self.scale, self.metadata = Path("memory"), scale, metadata
        self._frames = {name: scan.frame(scale) for name, scan in scans.items()}
        self._scans = {name: scan.to_model(self._frames[name]) for name, scan in scans.items()}

    def sample(self, name: str, count: int, rng: np.random.Generator) -> Scan:
        """Draw `count` points, each by itself, in the model frame."""
        scan = self._scans[name]
        return scan.select(rng.integers(len(scan), size=count))

    def frame(self, name: str) -> Frame:
        """Where the scan lies in the world."""
        return self._frames[name]

    def has_ground_truth(self, name: str) -> bool:
        """Never."""
        return False

    def ground_truth(self, name: str) -> Trimesh | None:
        """None."""
        return None


class ScanStore:
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
        self._drawn: dict[str, dict[str, _Rows]] = {}  # where the vectors of each scan lie that was drawn from
        with _open(self.path) as file, damage_as_error(self.path, _remedy(self.path)):
            self.names: list[str] = _texts(get_member(file, "_names"))
            self._known = frozenset(self.names)
            splits = get_member(file, "_splits")
            self.splits: dict[str, list[str]] = {split: _texts(get_member(splits, split)) for split in splits}
            self.metadata: dict[str, Any] = dict(json.loads(get_attribute(file, "about")))
            self.rejected: dict[str, str] = dict(json.loads(text) for text in _texts(get_member(file, "_bad")))
            self.scale = float(get_attribute(file, "scale"))
            if not 0 < self.scale < float("inf"):
                raise ValueError(f"its scale is {self.scale}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_pid": -1, "_drawn": {}}

    def __len__(self) -> int:
        return len(self.names)

    def __enter__(self) -> "ScanStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; it opens again when needed."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file, self._drawn = None, {}

    def scan_names(self, split: str | None) -> list[str]:
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
                f"{self.path} has no split {split!r}. {did_you_mean(split, sorted(self.splits))} "
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
        with self._scan(name) as group:
            centre = np.asarray(get_attribute(group, "centre"), dtype=np.float32).reshape(3)
            return Frame(torch.from_numpy(centre), torch.tensor(np.float32(get_attribute(group, "scale"))))

    def count(self, name: str) -> int:
        """How many points the scan has in the store."""
        with self._scan(name) as group:
            return len(_rows(group, "points"))

    def has_normals(self, name: str) -> bool:
        """Whether the scan came with normals or faces; those of other scans are estimated from their points."""
        with self._scan(name) as group:
            return has_member(group, "normals") and not (
                "estimated" in group.attrs and get_attribute(group, "estimated")
            )

    def has_ground_truth(self, name: str) -> bool:
        """Whether the scan has a true surface."""
        with self._scan(name) as group:
            return has_member(group, "truth")

    def provenance(self, name: str) -> dict[str, Any]:
        """Where the scan comes from: `file` under the root, its `bytes`, `sha256` of the points read, and a `note`."""
        with self._scan(name) as group:
            return {key: get_attribute(group, key) for key in ("file", "bytes", "sha256", "note")}

    def sample(self, name: str, count: int, rng: np.random.Generator) -> Scan:
        """Draw `count` points (with normals or lines, and sensors where there are any), in the model frame.

        The points were shuffled when packed, so one block from a random place, wrapping around the end, is a random
        subset and one read. A scan of fewer points gives all of them, repeated until there are `count`.

        HDF5 is asked once for each scan where its vectors lie, and they are read from there: finding and checking them
        takes a hundred times as long as reading them.
        """
        handle = self._opened().id.get_vfd_handle()
        if name not in self._drawn:
            with self._scan(name) as group:
                points = _where(group, "points")
                beside = [key for key in ("normals", "sensors", "lines") if has_member(group, key)]
                self._drawn[name] = {"points": points} | {key: _where(group, key, points.length) for key in beside}
        rows = self._drawn[name]
        start = int(rng.integers(rows["points"].length))
        with damage_as_error(self.path, _remedy(self.path)):
            drawn = {key: place.block(handle, start, count) for key, place in rows.items()}
        return Scan(name, drawn["points"], drawn.get("normals"), drawn.get("sensors"), None, drawn.get("lines"))

    def ground_truth(self, name: str) -> Trimesh | None:
        """Read the true surface (metres, y up), or None where there is none."""
        with self._scan(name) as group:
            if not has_member(group, "truth"):
                return None
            vertices = _rows(group, "truth")
            faces = check_stored(get_member(group.file, f"_topologies/{get_attribute(vertices, 'topology')}"))[:]
            if faces.dtype.kind != "i" or faces.shape[1:] != (3,) or faces.min() < 0 or faces.max() >= len(vertices):
                raise ValueError(f"the true surface of {name} has faces that are none")
            return Trimesh(vertices[:], faces, process=False)

    @contextmanager
    def _scan(self, name: str) -> Iterator[h5py.Group]:
        """Find the scan's group, through a file handle of this process; damage found there becomes a sentence."""
        file = self._opened()
        if name not in self._known:
            raise ValueError(f"{self.path} has no scan {name!r}. {did_you_mean(name, self.names)}")
        with damage_as_error(self.path, _remedy(self.path)):
            yield get_member(file, name)

    def _opened(self) -> h5py.File:
        """The file, through a handle of this process."""
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid, self._drawn = _open(self.path), os.getpid(), {}
        return self._file


class _Rows(NamedTuple):
    """Vectors of a scan, float32 (length, 3): from the byte `at` of the file on, one after another."""

    at: int
    length: int

    def block(self, handle: int, start: int, count: int) -> Float[np.ndarray, "count 3"]:
        """Rows start, start + 1, ... going on at the beginning when the end is reached."""
        if count > self.length:
            return self._read(handle, 0, self.length)[(start + np.arange(count)) % self.length]
        head = self._read(handle, start, min(count, self.length - start))
        return head if len(head) == count else np.concatenate([head, self._read(handle, 0, count - len(head))])

    def _read(self, handle: int, start: int, count: int) -> Float[np.ndarray, "count 3"]:
        row = 3 * np.dtype(np.float32).itemsize
        rows = np.empty((count, 3), dtype=np.float32)
        if os.preadv(handle, [rows.data], self.at + start * row) != rows.nbytes:
            raise ValueError("it ends before its vectors do")
        return rows


def _rows(group: h5py.Group, key: str, count: int | None = None) -> h5py.Dataset:
    """Vectors of a scan: float32 (n, 3), at least one, and `count` if so many there must be."""
    data = check_stored(get_member(group, key))
    if data.dtype != np.float32 or data.ndim != 2 or data.shape[1] != 3 or not len(data):
        raise ValueError(f"its {data.name} is an array of {data.dtype} {data.shape}, not float32 (n, 3)")
    if count is not None and len(data) != count:
        raise ValueError(f"its {data.name} has {len(data):,} rows for {count:,} points")
    return data


def _where(group: h5py.Group, key: str, count: int | None = None) -> _Rows:
    data = _rows(group, key, count)
    at = data.id.get_offset()
    if at is None:
        raise ValueError(f"its {data.name} does not lie in one piece")
    return _Rows(at, len(data))


def _open(path: Path) -> h5py.File:
    """Open a store for reading, or say what is wrong with it and how to rebuild it."""
    if not path.exists():
        part = path.with_name(path.name + ".part")
        hint = f"Its packing was not finished ({part} is there): give the same line again." if part.exists() else ""
        raise FileNotFoundError(
            f"there is no store {path}. {hint or f'Make it: shapespace preprocess RECIPE ROOT {path}'}"
        )
    rebuild = _remedy(path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is damaged or no HDF5 file ({error}). {rebuild}") from error
    try:
        with damage_as_error(path, rebuild):
            version = get_attribute(file, "format") if "format" in file.attrs else None
            whole = all(has_member(file, key) for key in ("_names", "_splits", "_bad"))
    except ValueError:
        file.close()
        raise
    if version != FORMAT or not whole:
        file.close()
        what = f"is a store of format {version}" if version is not None else "is an HDF5 file, but no store"
        raise ValueError(f"{path} {what}, and format {FORMAT} is needed. {rebuild}")
    return file


def _remedy(path: Path) -> str:
    return f"Rebuild it: shapespace preprocess RECIPE ROOT {path} --overwrite"


def _texts(data: h5py.Dataset) -> list[str]:
    """All texts, a few at a time: many of them may be one and the same text of the file."""
    texts: list[str] = []
    left = MAX_READ // 10
    for start in range(0, len(check_stored(data)), 64):
        texts += [text.decode() for text in data[start : start + 64]]
        left -= sum(map(len, texts[-64:]))
        if left < 0:
            raise ValueError(f"its {data.name} holds more than {MAX_READ // 10:,} letters")
    return texts
