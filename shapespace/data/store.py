"""ScanStore: all scans of a dataset in one HDF5 file, read in random blocks of points.

Layout: a group `subject/sequence/frame` for each scan with `points` and, where there are any, `normals` or `lines`
(unoriented normals), and `sensors`: float32, contiguous, in the model frame, shuffled once. Its attributes are the
center (`centre`), the scale, the provenance, and whether the normals were estimated. The ground truth, where there is
one, is `truth` (vertices, meters); its faces are in `_topologies`, once for all scans that share them. `_names`,
`_splits` and `_bad` (rejected scans) are text; the attributes of the file are the settings of `preprocess`.
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
from shapespace.io.errors import BadFileError, damage_as_error, did_you_mean
from shapespace.io.hdf5 import MAX_READ, check_stored, get_attribute, get_member, has_member

FORMAT = 1


@runtime_checkable
class ScanSource(Protocol):
    """Scans of a training: a `ScanStore` or an `InMemoryStore`."""

    path: Path
    scale: float
    metadata: dict[str, Any]

    def sample(self, name: str, count: int, rng: np.random.Generator) -> Scan:
        """Draw `count` points of a scan, in the model frame."""

    def frame(self, name: str) -> Frame:
        """Frame of the scan: model to world."""

    def has_ground_truth(self, name: str) -> bool:
        """Whether the scan has a ground truth."""

    def ground_truth(self, name: str) -> Trimesh | None:
        """Ground truth (meters, y up), or None."""


class InMemoryStore:
    """Scans in memory, with the interface of a store and without ground truth."""

    def __init__(self, scans: Mapping[str, Scan], *, scale: float, metadata: dict[str, Any]) -> None:
        """Take scans without faces by name, in meters; `scale` is meters per model unit."""
        self.path, self.scale, self.metadata = Path("memory"), scale, metadata
        self._frames = {name: scan.frame(scale) for name, scan in scans.items()}
        self._scans = {name: scan.to_model(self._frames[name]) for name, scan in scans.items()}

    def sample(self, name: str, count: int, rng: np.random.Generator) -> Scan:
        """Draw `count` points independently, in the model frame."""
        scan = self._scans[name]
        return scan.select(rng.integers(len(scan), size=count))

    def frame(self, name: str) -> Frame:
        """Frame of the scan: model to world."""
        return self._frames[name]

    def has_ground_truth(self, name: str) -> bool:
        """Return False."""
        return False

    def ground_truth(self, name: str) -> Trimesh | None:
        """Return None."""
        return None


class ScanStore:
    """Preprocessed dataset, read in random blocks of points.

    Each process opens its own file handle, so a store can be pickled and forked.

    Args:
        path: The HDF5 file that `shapespace preprocess` wrote.

    Attributes:
        names: Names of all scans, `subject/sequence/frame`, sorted.
        scale: Meters per model unit.
        splits: Names of scans by the name of the split.
        metadata: Settings of `preprocess`, with the keys of the file: `recipe` (the dataset), `source`, `licence`,
            `unit`, `up`, `seed` and so on.
        rejected: Reason for each scan that was rejected.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is damaged, or not a store of this format.

    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._pid = -1
        self._located: dict[str, dict[str, _Rows]] = {}  # locations of the arrays of the scans that were sampled
        with _open(self.path) as file, damage_as_error(self.path, _remedy(self.path), kind="store"):
            self.names: list[str] = _texts(get_member(file, "_names"))
            self._name_set = frozenset(self.names)
            splits = get_member(file, "_splits")
            self.splits: dict[str, list[str]] = {split: _texts(get_member(splits, split)) for split in splits}
            self.metadata: dict[str, Any] = dict(json.loads(get_attribute(file, "about")))
            self.rejected: dict[str, str] = dict(json.loads(text) for text in _texts(get_member(file, "_bad")))
            self.scale = float(get_attribute(file, "scale"))
            if not 0 < self.scale < float("inf"):
                raise ValueError(f"scale is {self.scale}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_pid": -1, "_located": {}}

    def __len__(self) -> int:
        return len(self.names)

    def __enter__(self) -> "ScanStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the next access opens it again."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file, self._located = None, {}

    def scan_names(self, split: str | None) -> list[str]:
        """Names of the scans of a split.

        `split` is one of `splits`, the path of a split file (JSON), or None for all scans.

        Raises:
            ValueError: The split is unknown, or it names scans that are not in the store.

        """
        if split is None:
            return list(self.names)
        if split in self.splits:
            return list(self.splits[split])
        if not split.endswith(".json"):
            raise ValueError(
                f"{self.path}: no split {split!r}. {did_you_mean(split, sorted(self.splits))} A path that ends in "
                ".json is read as a split file."
            )
        names = read_split(Path(split))
        absent = sorted(set(names).difference(self.names))
        if absent:
            raise ValueError(
                f"{split}: {len(absent):,} of {len(names):,} scans are not in {self.path}, for example {absent[0]}. "
                "Preprocess them too, or choose another split."
            )
        return names

    def frame(self, name: str) -> Frame:
        """Frame of the scan: model to world."""
        with self._scan(name) as group:
            center = np.asarray(get_attribute(group, "centre"), dtype=np.float32).reshape(3)
            return Frame(torch.from_numpy(center), torch.tensor(np.float32(get_attribute(group, "scale"))))

    def count(self, name: str) -> int:
        """Number of stored points of the scan."""
        with self._scan(name) as group:
            return len(_rows(group, "points"))

    def has_normals(self, name: str) -> bool:
        """Whether the normals are from the file (normals or faces), not estimated."""
        with self._scan(name) as group:
            return has_member(group, "normals") and not (
                "estimated" in group.attrs and get_attribute(group, "estimated")
            )

    def has_ground_truth(self, name: str) -> bool:
        """Whether the scan has a ground truth."""
        with self._scan(name) as group:
            return has_member(group, "truth")

    def provenance(self, name: str) -> dict[str, Any]:
        """Source of the scan: `file`, its `bytes`, `sha256` of the points as read, and a `note`."""
        with self._scan(name) as group:
            return {key: get_attribute(group, key) for key in ("file", "bytes", "sha256", "note")}

    def findings(self, name: str) -> list[dict[str, Any]]:
        """Findings about the scan when it was preprocessed, as in `fits.json`; none in stores of older versions."""
        with self._scan(name) as group:
            found = json.loads(str(get_attribute(group, "findings"))) if "findings" in group.attrs else []
        if not isinstance(found, list) or not all(isinstance(one, dict) and "code" in one for one in found):
            raise ValueError(f"{self.path}: the findings of {name} are damaged. Preprocess the scans again.")
        return found

    def sample(self, name: str, count: int, rng: np.random.Generator) -> Scan:
        """Draw `count` points in the model frame, with normals and sensors if stored.

        The stored points are shuffled, so one block from a random offset, wrapping around the end, is a random subset
        and one read. A scan with fewer points returns all of them, repeated until there are `count`.

        The locations of the arrays in the file are cached for each scan: to find and check them with HDF5 takes a
        hundred times as long as to read them.
        """
        handle = self._opened().id.get_vfd_handle()
        if name not in self._located:
            with self._scan(name) as group:
                points = _locate(group, "points")
                others = [key for key in ("normals", "sensors", "lines") if has_member(group, key)]
                self._located[name] = {"points": points} | {key: _locate(group, key, points.length) for key in others}
        rows = self._located[name]
        start = int(rng.integers(rows["points"].length))
        with damage_as_error(self.path, _remedy(self.path), kind="store"):
            drawn = {key: place.block(handle, start, count) for key, place in rows.items()}
        return Scan(name, drawn["points"], drawn.get("normals"), drawn.get("sensors"), None, drawn.get("lines"))

    def scan(self, name: str) -> Scan:
        """Read all stored points of a scan, in meters, y up; their mean is the center of its frame."""
        return self.sample(name, self.count(name), np.random.default_rng(0)).to_world(self.frame(name))

    def ground_truth(self, name: str) -> Trimesh | None:
        """Read the ground truth (meters, y up); None if there is none."""
        with self._scan(name) as group:
            if not has_member(group, "truth"):
                return None
            vertices = _rows(group, "truth")
            faces = check_stored(get_member(group.file, f"_topologies/{get_attribute(vertices, 'topology')}"))[:]
            if faces.dtype.kind != "i" or faces.shape[1:] != (3,) or faces.min() < 0 or faces.max() >= len(vertices):
                raise ValueError(f"the ground truth of {name} has invalid faces")
            return Trimesh(vertices[:], faces, process=False)

    @contextmanager
    def _scan(self, name: str) -> Iterator[h5py.Group]:
        """Yield the group of the scan; errors of HDF5 become one `BadFileError`."""
        file = self._opened()
        if name not in self._name_set:
            raise ValueError(f"{self.path}: no scan {name!r}. {did_you_mean(name, self.names)}")
        with damage_as_error(self.path, _remedy(self.path), kind="store"):
            yield get_member(file, name)

    def _opened(self) -> h5py.File:
        """File handle of this process."""
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid, self._located = _open(self.path), os.getpid(), {}
        return self._file


class _Rows(NamedTuple):
    """Location of an array, float32 (length, 3), contiguous from a byte offset of the file."""

    offset: int
    length: int

    def block(self, handle: int, start: int, count: int) -> Float[np.ndarray, "count 3"]:
        """Read `count` rows from `start` on, wrapping around the end."""
        if count > self.length:
            return self._read(handle, 0, self.length)[(start + np.arange(count)) % self.length]
        head = self._read(handle, start, min(count, self.length - start))
        return head if len(head) == count else np.concatenate([head, self._read(handle, 0, count - len(head))])

    def _read(self, handle: int, start: int, count: int) -> Float[np.ndarray, "count 3"]:
        row = 3 * np.dtype(np.float32).itemsize
        rows = np.empty((count, 3), dtype=np.float32)
        if os.preadv(handle, [rows.data], self.offset + start * row) != rows.nbytes:
            raise ValueError("the file ends before its arrays")
        return rows


def _rows(group: h5py.Group, key: str, count: int | None = None) -> h5py.Dataset:
    """Dataset of vectors, checked: float32 (n, 3) with n > 0, and n = `count` if given."""
    data = check_stored(get_member(group, key))
    if data.dtype != np.float32 or data.ndim != 2 or data.shape[1] != 3 or not len(data):
        raise ValueError(f"{data.name} is an array of {data.dtype} {data.shape}, not float32 (n, 3)")
    if count is not None and len(data) != count:
        raise ValueError(f"{data.name} has {len(data):,} rows for {count:,} points")
    return data


def _locate(group: h5py.Group, key: str, count: int | None = None) -> _Rows:
    data = _rows(group, key, count)
    offset = data.id.get_offset()
    if offset is None:
        raise ValueError(f"{data.name} is not contiguous")
    return _Rows(offset, len(data))


def _open(path: Path) -> h5py.File:
    """Open a store for reading, after a check of its format."""
    if not path.exists():
        part = path.with_name(path.name + ".part")
        unfinished = f"Preprocessing was interrupted ({part} exists): run the same command again."
        create = f"Create it: shapespace preprocess DATASET ROOT {path}"
        raise FileNotFoundError(f"{path}: no such store. {unfinished if part.exists() else create}")
    remedy = _remedy(path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise BadFileError(f"{path}: not a valid HDF5 file ({error}). {remedy}") from error
    try:
        with damage_as_error(path, remedy, kind="store"):
            version = get_attribute(file, "format") if "format" in file.attrs else None
            complete = all(has_member(file, key) for key in ("_names", "_splits", "_bad"))
    except ValueError:
        file.close()
        raise
    if version != FORMAT or not complete:
        file.close()
        problem = f"store of format {version}" if version is not None else "HDF5 file, but not a store"
        raise ValueError(f"{path}: {problem}; format {FORMAT} is required. {remedy}")
    return file


def _remedy(path: Path) -> str:
    return f"Rebuild it: shapespace preprocess DATASET ROOT {path} --overwrite"


def _texts(data: h5py.Dataset) -> list[str]:
    """All texts, 64 at a time: many entries can refer to one long text in the file."""
    texts: list[str] = []
    left = MAX_READ // 10
    for start in range(0, len(check_stored(data)), 64):
        texts += [text.decode() for text in data[start : start + 64]]
        left -= sum(map(len, texts[-64:]))
        if left < 0:
            raise ValueError(f"{data.name} contains more than {MAX_READ // 10:,} characters")
    return texts
