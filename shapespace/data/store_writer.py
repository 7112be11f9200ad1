"""Writing and merging of HDF5 stores."""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from trimesh import Trimesh

from shapespace.data.scan_dataset import ScanEntry
from shapespace.data.store import FORMAT, ScanStore
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.io.hdf5 import damage_as_error, get_member, has_member


@dataclass(frozen=True)
class PreparedScan:
    """One scan, drawn and in its model frame."""

    entry: ScanEntry
    scan: Scan
    frame: Frame
    digest: str
    truth: Trimesh | None
    note: str
    estimated: bool


def describe_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Word how two `about` differ; the version does not count."""
    keys = [key for key in new if key != "version" and old.get(key) != new[key]]
    return ", ".join(f"{key} {old.get(key)} there, {new[key]} now" for key in keys)


def shard_files(out: Path) -> list[Path]:
    """The parts of a store that lie beside it."""
    named = re.compile(re.escape(out.name) + r"\.\d+of\d+")
    return sorted(path for path in out.parent.glob(f"{glob.escape(out.name)}.*of*") if named.fullmatch(path.name))


def copy_shard(piece: Path, file: h5py.File, entries: list[ScanEntry], about: dict[str, Any], overwrite: bool) -> None:
    """Take over from a part, if it is there, the scans that the file has not yet."""
    if not piece.exists():
        return
    store, remedy = ScanStore(piece), "Remove it, and give the line again that packs it."
    difference = describe_difference(store.metadata, about)
    if difference and not overwrite:
        raise ValueError(f"{piece} was packed with other arguments: {difference}. {remedy}")
    names = set() if difference else set(store.names)
    with h5py.File(piece, "r") as source, damage_as_error(piece, remedy):
        for entry in entries:
            if entry.name in names and entry.name not in file:
                _copy_scan(get_member(source, entry.name), file, entry.name)
    file.flush()


def _copy_scan(scan: h5py.Group, file: h5py.File, name: str) -> None:
    if has_member(scan, "truth"):
        topology = f"_topologies/{scan['truth'].attrs['topology']}"
        if topology not in file:
            scan.file.copy(topology, file, topology)
    scan.file.copy(scan, file, name)


def open_part(part: Path, about: dict[str, Any], overwrite: bool) -> h5py.File:
    """Open the unfinished store to go on with it, or begin one."""
    part.parent.mkdir(parents=True, exist_ok=True)
    if part.exists():
        try:
            _walk(part)
            file = h5py.File(part, "r+")
            old = json.loads(file.attrs["about"])
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{part} is being written by another process. Wait for it, or choose another name."
            ) from error
        except (OSError, KeyError, ValueError, RuntimeError):  # killed while HDF5 wrote its tables: rare, and for good
            print(f"note: {part} was broken when its writing was cut off, and is begun anew", file=sys.stderr)
            part.unlink()
        else:
            difference = describe_difference(old, about)
            if not difference:
                return file
            file.close()
            if not overwrite:
                raise ValueError(
                    f"{part} was begun with other arguments: {difference}. Give the same to go on, or say --overwrite."
                )
            part.unlink()
    file = h5py.File(part, "w")
    file.attrs.update(format=FORMAT, about=json.dumps(about), **{key: about[key] for key in _PLAIN})
    file.create_group("_topologies")
    file.flush()
    return file


def _walk(part: Path) -> None:
    """Open everything in the file but the points; what HDF5 raises tells that its tables are broken."""
    with h5py.File(part, "r") as file:

        def visit(_: str, thing: h5py.Group | h5py.Dataset) -> None:
            dict(thing.attrs)

        file.visititems(visit)


_PLAIN = ("recipe", "source", "licence", "unit", "up", "scale")  # attributes that other programs may want to read


def remove_unwanted(file: h5py.File, entries: list[ScanEntry]) -> set[str]:
    """Drop what a killed run left half written or what no longer is as it was read; name the scans that stay."""
    sizes = {entry.name: input_size(entry) for entry in entries}
    done = set()
    for subject in [key for key in file if not key.startswith("_")]:
        for sequence in list(file[subject]):
            for frame in list(file[subject][sequence]):
                name = f"{subject}/{sequence}/{frame}"
                if file[name].attrs.get("complete") and file[name].attrs["bytes"] == sizes.get(name):
                    done.add(name)
                else:
                    del file[name]
    return done


def write_scan_group(file: h5py.File, ready: PreparedScan, root: Path) -> None:
    """Write one scan; the mark `complete` comes last."""
    _check_room(Path(file.filename), ready)
    group = file.create_group(ready.entry.name)
    scan = ready.scan
    for key, values in {
        "points": scan.points,
        "normals": scan.normals,
        "lines": scan.unoriented_normals,
        "sensors": scan.sensors,
    }.items():
        if values is not None:
            group.create_dataset(key, data=values.astype(np.float32))
    if ready.truth is not None:
        faces = np.asarray(ready.truth.faces, dtype=np.int32)
        topology = hashlib.sha256(faces.tobytes()).hexdigest()[:16]
        if topology not in file["_topologies"]:
            file["_topologies"].create_dataset(topology, data=faces)
        truth = group.create_dataset("truth", data=np.asarray(ready.truth.vertices, dtype=np.float32))
        truth.attrs["topology"] = topology
    group.attrs.update(
        centre=ready.frame.center.numpy(),
        scale=ready.frame.scale.numpy(),
        file=os.path.relpath(ready.entry.path, root),
        bytes=input_size(ready.entry),
        sha256=ready.digest,
        note=ready.note,
        estimated=ready.estimated,
    )
    file.flush()
    group.attrs["complete"] = True
    file.flush()


def _check_room(part: Path, ready: PreparedScan) -> None:
    """Fail before HDF5 does: a file that it could not write to the end cannot be gone on with.

    Raises `OSError` if the disk has less room than the scan may take.
    """
    truth = () if ready.truth is None else (ready.truth.vertices, ready.truth.faces)
    arrays = (ready.scan.points, ready.scan.normals, ready.scan.unoriented_normals, ready.scan.sensors, *truth)
    if shutil.disk_usage(part.parent).free < sum(array.nbytes for array in arrays if array is not None) + _MARGIN:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))


_MARGIN = 1 << 18  # bytes of the file's own that go with a scan, and with the names at the end


def write_index(file: h5py.File, names: list[str], wanted: dict[str, list[str]], bad: dict[str, str]) -> None:
    """Write the names, the splits (of scans that are there) and the refused scans."""
    for key in ("_names", "_splits", "_bad"):
        file.pop(key, None)
    file["_names"] = _texts(names)
    file["_bad"] = _texts([json.dumps(item) for item in sorted(bad.items())])
    there, splits = set(names), file.create_group("_splits")
    for split, members in wanted.items():
        kept = [name for name in members if name in there]
        if kept:
            splits[split] = _texts(kept)


def _texts(texts: list[str]) -> np.ndarray:
    return np.array([text.encode() for text in texts], dtype=h5py.string_dtype())


def input_size(entry: ScanEntry) -> int:
    return entry.path.stat().st_size
