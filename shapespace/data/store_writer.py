"""Writing and merging of HDF5 scan stores, resumable after interruptions."""

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
from shapespace.geometry.findings import Finding
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.io.atomic import flush_to_disk, make_folder
from shapespace.io.errors import damage_as_error
from shapespace.io.hdf5 import get_member, has_member

# Attributes of the file, with their names on disk: for programs that read the store without the JSON in `about`.
_PLAIN_ATTRIBUTES = ("recipe", "source", "licence", "unit", "up", "scale")
_MARGIN = 1 << 18  # bytes of HDF5 tables per scan, and of the names at the end


@dataclass(frozen=True)
class PreparedScan:
    """A sampled scan in its model frame, ready to be written.

    `digest` is the hash of the points as read, `note` a remark for the report, and `estimated` is true if the normals
    were estimated from the points.
    """

    entry: ScanEntry
    scan: Scan
    frame: Frame
    digest: str
    ground_truth: Trimesh | None
    note: str
    estimated: bool
    findings: tuple[Finding, ...] = ()


def describe_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Text on the settings that differ, empty if none do; the version is not compared."""
    keys = [key for key in new if key != "version" and old.get(key) != new[key]]
    return ", ".join(f"{key} was {old.get(key)}, is now {new[key]}" for key in keys)


def shard_files(out: Path) -> list[Path]:
    """Finished shards beside the store."""
    named = re.compile(re.escape(out.name) + r"\.\d+of\d+")
    return sorted(path for path in out.parent.glob(f"{glob.escape(out.name)}.*of*") if named.fullmatch(path.name))


def copy_shard(
    shard: Path, file: h5py.File, entries: list[ScanEntry], metadata: dict[str, Any], overwrite: bool
) -> None:
    """Copy the scans of a shard that the file does not contain yet; a missing shard is ignored.

    Raises:
        ValueError: The shard is damaged, or was made with other settings and `overwrite` is false.

    """
    if not shard.exists():
        return
    store, remedy = ScanStore(shard), "Remove it and run the command of this shard again."
    difference = describe_difference(store.metadata, metadata)
    if difference and not overwrite:
        raise ValueError(f"{shard}: made with other settings ({difference}). {remedy}")
    names = set() if difference else set(store.names)
    with h5py.File(shard, "r") as source, damage_as_error(shard, remedy, kind="store"):
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


def open_part(part: Path, metadata: dict[str, Any], overwrite: bool) -> h5py.File:
    """Open the unfinished store to continue it, or create a new one.

    Raises:
        BlockingIOError: Another process is writing it.
        ValueError: It was begun with other settings and `overwrite` is false.

    """
    make_folder(part.parent)
    if part.exists():
        try:
            _walk(part)
            file = h5py.File(part, "r+")
            old = json.loads(file.attrs["about"])
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{part}: another process is writing it. Wait until it ends, or choose another path."
            ) from error
        except (OSError, KeyError, ValueError, RuntimeError):  # killed while HDF5 wrote its tables: not recoverable
            print(f"note: {part}: damaged by an interruption, starting again", file=sys.stderr)
            part.unlink()
        else:
            difference = describe_difference(old, metadata)
            if not difference:
                return file
            file.close()
            if not overwrite:
                raise ValueError(
                    f"{part}: begun with other settings ({difference}). Use the same settings, or pass --overwrite."
                )
            part.unlink()
    file = h5py.File(part, "w")
    plain = {key: metadata[key] for key in _PLAIN_ATTRIBUTES}
    file.attrs.update(format=FORMAT, about=json.dumps(metadata), **plain)
    file.create_group("_topologies")
    file.flush()
    return file


def _walk(part: Path) -> None:
    """Visit all groups, datasets and attributes; HDF5 raises if its tables are damaged."""
    with h5py.File(part, "r") as file:

        def visit(_: str, member: h5py.Group | h5py.Dataset) -> None:
            dict(member.attrs)

        file.visititems(visit)


def remove_outdated(file: h5py.File, entries: list[ScanEntry]) -> set[str]:
    """Delete scans that are incomplete, not in `entries`, or whose file has changed in size.

    Returns the names of the other scans.
    """
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


def write_scan_group(file: h5py.File, prepared: PreparedScan, root: Path) -> None:
    """Write one scan; its attribute `complete` is written last."""
    _check_room(Path(file.filename), prepared)
    group = file.create_group(prepared.entry.name)
    scan = prepared.scan
    for key, values in {
        "points": scan.points,
        "normals": scan.normals,
        "lines": scan.unoriented_normals,
        "sensors": scan.sensors,
    }.items():
        if values is not None:
            group.create_dataset(key, data=values.astype(np.float32))
    if prepared.ground_truth is not None:
        faces = np.asarray(prepared.ground_truth.faces, dtype=np.int32)
        topology = hashlib.sha256(faces.tobytes()).hexdigest()[:16]
        if topology not in file["_topologies"]:
            file["_topologies"].create_dataset(topology, data=faces)
        vertices = group.create_dataset("truth", data=np.asarray(prepared.ground_truth.vertices, dtype=np.float32))
        vertices.attrs["topology"] = topology
    group.attrs.update(
        centre=prepared.frame.center.numpy(),
        scale=prepared.frame.scale.numpy(),
        file=os.path.relpath(prepared.entry.path, root),
        bytes=input_size(prepared.entry),
        sha256=prepared.digest,
        note=prepared.note,
        estimated=prepared.estimated,
        findings=json.dumps([finding.record(prepared.entry.name) for finding in prepared.findings]),
    )
    file.flush()
    flush_to_disk(Path(file.filename))  # after a power failure, a complete scan has all its data
    group.attrs["complete"] = True
    file.flush()


def _check_room(part: Path, prepared: PreparedScan) -> None:
    """Raise `OSError` if the disk has less space than the scan needs.

    HDF5 must not run out of space itself: a file that it could not complete cannot be continued.
    """
    mesh = () if prepared.ground_truth is None else (prepared.ground_truth.vertices, prepared.ground_truth.faces)
    arrays = (
        prepared.scan.points,
        prepared.scan.normals,
        prepared.scan.unoriented_normals,
        prepared.scan.sensors,
        *mesh,
    )
    if shutil.disk_usage(part.parent).free < sum(array.nbytes for array in arrays if array is not None) + _MARGIN:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))


def write_index(file: h5py.File, names: list[str], splits: dict[str, list[str]], rejected: dict[str, str]) -> None:
    """Write the names, the splits of the stored scans, and the rejected scans with reasons."""
    for key in ("_names", "_splits", "_bad"):
        file.pop(key, None)
    file["_names"] = _texts(names)
    file["_bad"] = _texts([json.dumps(item) for item in sorted(rejected.items())])
    stored, group = set(names), file.create_group("_splits")
    for split, members in splits.items():
        present = [name for name in members if name in stored]
        if present:
            group[split] = _texts(present)


def _texts(texts: list[str]) -> np.ndarray:
    return np.array([text.encode() for text in texts], dtype=h5py.string_dtype())


def input_size(entry: ScanEntry) -> int:
    """Size of the file of a scan (bytes); a change means that the scan must be read again."""
    return entry.path.stat().st_size
