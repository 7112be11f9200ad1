"""Folder layout of D-FAUST and of the synthetic people.

ROOT/scans/<subject>/<sequence>/<sequence>.<frame>.ply
ROOT/registrations*.hdf5    `faces` (F, 3), and `<subject>_<sequence>` of shape (V, 3, T) for each sequence
"""

import math
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from trimesh import Trimesh

from shapespace.data.scan_dataset import ScanDataset, ScanEntry, check_entries, frame_number
from shapespace.io.errors import BadFileError, damage_as_error
from shapespace.io.hdf5 import MAX_READ, get_member
from shapespace.io.units import to_world

_REMEDY = "Copy or download it again."


def find_scans(dataset: ScanDataset, root: Path) -> list[ScanEntry]:
    """List ROOT/scans/<subject>/<sequence>/*.ply, or ROOT/<subject>/<sequence>/*.ply."""
    base = _scans(root)
    entries = check_entries(
        ScanEntry(f"{folder.parent.name}/{folder.name}/{frame}", path)
        for folder in sorted(base.glob("*/*/"))
        for frame, path in _frames(folder).items()
    )
    if not entries:
        raise dataset.missing(base / "<subject>/<sequence>/*.ply")
    return entries


def scanned_frames(root: Path, subject: str, sequence: str) -> list[str]:
    """Frame numbers of the scans of a sequence, sorted."""
    return list(_frames(_scans(root) / subject / sequence))


def find_registrations(dataset: ScanDataset, root: Path) -> list[ScanEntry]:
    """List all frames of ROOT/registrations*.hdf5; the index is the frame number."""
    entries = check_entries(
        ScanEntry(f"{key.replace('_', '/', 1)}/{index:06d}", path, index)
        for path in _files(root)
        for key, count in _sequences(path)
        for index in range(count)
    )
    if not entries:
        raise dataset.missing(root / "registrations*.hdf5")
    return entries


def registered_frames(root: Path, subject: str, sequence: str) -> int:
    """Number of registrations of a sequence."""
    key = f"{subject}_{sequence}"
    return sum(count for path in _files(root) for other, count in _sequences(path) if other == key)


def read_registration(dataset: ScanDataset, root: Path, subject: str, sequence: str, index: int) -> Trimesh | None:
    """Read one frame of a sequence (meters, y up); None if there is no such frame."""
    key = f"{subject}_{sequence}"
    for path in _files(root):
        with _open(path) as file, damage_as_error(path, _REMEDY):
            if key in file and 0 <= index < get_member(file, key).shape[2]:
                vertices = to_world(file[key][:, :, index].astype(np.float32), unit=dataset.unit, up=dataset.up)
                return Trimesh(vertices, file["faces"][:].astype(np.int32), process=False)
    return None


def _scans(root: Path) -> Path:
    return root / "scans" if (root / "scans").is_dir() else root


def _frames(folder: Path) -> dict[str, Path]:
    return {frame_number(str(path.with_suffix(""))): path for path in sorted(folder.glob("[!.]*.ply"))}


def _files(root: Path) -> list[Path]:
    return sorted(root.glob("registrations*.hdf5"))


def _sequences(path: Path) -> Iterator[tuple[str, int]]:
    with _open(path) as file:
        for key in sorted(set(file) - {"faces"}):
            yield key, file[key].shape[2]


def _open(path: Path) -> h5py.File:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise BadFileError(f"{path}: not a valid HDF5 file ({error}). {_REMEDY}") from error
    try:
        with damage_as_error(path, _REMEDY):
            shapes = {key: get_member(file, key).shape for key in file}
            largest = max((math.prod(shape[:2]) for shape in shapes.values()), default=0)  # numbers in one frame
            if largest > MAX_READ // 8:
                raise ValueError(f"a frame declares {largest:,} numbers")
        if "faces" not in shapes or any(len(shapes[key]) != 3 for key in shapes.keys() - {"faces"}):
            raise ValueError(f"{path}: no `faces`, or sequences that are not of shape (V, 3, T). {_REMEDY}")
    except ValueError:
        file.close()
        raise
    return file
