"""D-FAUST's folder layout, which our synthetic scans share: raw scans as PLY, true surfaces as whole sequences.

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
from shapespace.io.hdf5 import MAX_READ, damage_as_error, get_member
from shapespace.io.units import to_world


def find_scans(recipe: ScanDataset, root: Path) -> list[ScanEntry]:
    """List ROOT/scans/<subject>/<sequence>/*.ply, or the same without `scans`."""
    base = _scans(root)
    found = check_entries(
        ScanEntry(f"{folder.parent.name}/{folder.name}/{frame}", path)
        for folder in sorted(base.glob("*/*/"))
        for frame, path in _frames(folder).items()
    )
    if not found:
        raise recipe.missing(base / "<subject>/<sequence>/*.ply")
    return found


def scanned_frames(root: Path, subject: str, sequence: str) -> list[str]:
    """List the frames of a sequence of scans, in order."""
    return list(_frames(_scans(root) / subject / sequence))


def find_registrations(recipe: ScanDataset, root: Path) -> list[ScanEntry]:
    """List every frame of ROOT/registrations*.hdf5, named by its place in the sequence."""
    found = check_entries(
        ScanEntry(f"{key.replace('_', '/', 1)}/{index:06d}", path, index)
        for path in _files(root)
        for key, count in _sequences(path)
        for index in range(count)
    )
    if not found:
        raise recipe.missing(root / "registrations*.hdf5")
    return found


def registered_frames(root: Path, subject: str, sequence: str) -> int:
    """Count the registrations of a sequence."""
    key = f"{subject}_{sequence}"
    return sum(count for path in _files(root) for other, count in _sequences(path) if other == key)


def read_registration(recipe: ScanDataset, root: Path, subject: str, sequence: str, index: int) -> Trimesh | None:
    """Read one frame of a sequence (metres, y up); None if there is no such frame."""
    key = f"{subject}_{sequence}"
    for path in _files(root):
        with _open(path) as file, damage_as_error(path, REMEDY):
            if key in file and 0 <= index < get_member(file, key).shape[2]:
                vertices = to_world(file[key][:, :, index].astype(np.float32), unit=recipe.unit, up=recipe.up)
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
        raise ValueError(f"{path} is damaged or no HDF5 file ({error}). {REMEDY}") from error
    try:
        with damage_as_error(path, REMEDY):
            shapes = {key: get_member(file, key).shape for key in file}
            most = max((math.prod(shape[:2]) for shape in shapes.values()), default=0)  # of these, one frame is read
            if most > MAX_READ // 8:
                raise ValueError(f"it declares frames of {most:,} numbers")
        if "faces" not in shapes or any(len(shapes[key]) != 3 for key in shapes.keys() - {"faces"}):
            raise ValueError(f"{path} does not hold `faces` and sequences of shape (V, 3, T). {REMEDY}")
    except ValueError:
        file.close()
        raise
    return file


REMEDY = "Copy or download it again."
