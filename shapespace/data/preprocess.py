"""Packing: read every scan of a data set once, draw its points, and write them into a store.

One scan at a time is held in memory (a few with several processes). The file grows as `OUT.part` and is put in place
when it is complete; a killed run is continued by the same line. Several processes, on one machine or on many, may share
the scans out: each packs its part, `OUT.2of4`, and the last one, or a line alone, copies the parts together.
"""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from tqdm import tqdm
from trimesh import Trimesh

from shapespace.data.scan_dataset import Entry, Recipe, read_split
from shapespace.data.store import FORMAT, Store
from shapespace.geometry import proximity as nearest
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.io.hdf5 import has, held, readable
from shapespace.io.scan_files import MIN_POINTS, Normals

OUTSIDE = 0.01  # of a scan's points may lie outside the model cube: raw scans have stray ones
FAR = 0.04  # model units (5 cm for people): a true surface further away than this belongs to another frame


@dataclass(frozen=True)
class Packed:
    """What packing left: the store, what is in it, and which scans were refused and why.

    `fresh` is False if the store was there already, made by the same line.
    """

    path: Path
    scans: int
    points: int
    truths: int
    size: int
    bad: dict[str, str]
    notes: tuple[str, ...]
    fresh: bool


@dataclass(frozen=True)
class _Ready:
    """One scan, drawn and in its model frame."""

    entry: Entry
    scan: Scan
    frame: Frame
    digest: str
    truth: Trimesh | None
    note: str
    estimated: bool


@dataclass(frozen=True)
class _Work:
    """Read and draw one scan; a noun because it travels to other processes."""

    recipe: Recipe
    root: Path
    points: int
    normals: Normals
    seed: int

    def __call__(self, entry: Entry) -> _Ready | str:
        """Prepare the scan, or say in a sentence why it cannot be used."""
        try:
            return self._prepare(entry)
        except (ValueError, OSError) as error:
            return str(error)

    def _prepare(self, entry: Entry) -> _Ready:
        whole = self.recipe.read(entry, self.normals)
        self.recipe.check_size(whole)
        drawn = whole.sample(self.points, _generator(self.seed, entry.name))
        if self.normals == "drop":
            drawn = replace(drawn, normals=None)
        frame = whole.frame(self.recipe.scale)
        estimated = drawn.normals is None
        scan = drawn.with_normals().to_model(frame)
        outside = float((np.abs(scan.points).max(axis=1) > 1).mean())
        if outside > OUTSIDE:
            larger = self.recipe.scale * float(np.percentile(np.abs(scan.points), 99.5)) * 1.1
            raise ValueError(
                f"scan {entry.name} has {outside:.0%} of its points outside [-1, 1]^3 when one model unit is "
                f"{self.recipe.scale:g} m. Say --scale {larger:.3g}, the same for the whole data set."
            )
        truth, note = self.recipe.truth(self.root, entry.name), ""
        if truth is not None:
            away, _, _ = nearest.to_mesh(drawn.points[:500].astype(np.float64), truth)
            if np.median(away) > FAR * self.recipe.scale:
                note = f"{entry.name}: its true surface lies {np.median(away):.2f} m away, so it was left out"
                truth = None
        digest = hashlib.sha256(whole.points.tobytes()).hexdigest()
        return _Ready(entry, scan, frame, digest, truth, note, estimated)


def pack(
    recipe: Recipe,
    root: Path,
    out: Path,
    *,
    points: int = 250_000,
    splits: Sequence[Path] = (),
    normals: Normals = "auto",
    max_bad: int = 0,
    jobs: int = 1,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
    shard: tuple[int, int] | None = None,
) -> Packed:
    """Pack the scans under `root` into the store `out`.

    The default of 250,000 points, spread over the area of the faces and centred at their mean, is IGR's preparation of
    raw human scans. The same arguments give the same points, whatever `jobs` is.

    Args:
        recipe: How the data set is read.
        root: Its folder.
        out: The HDF5 file to make.
        points: Points drawn from each scan; a scan without faces gives its own points, at most so many.
        splits: Split files; only the scans that they name are packed. Without them, all scans are, and the split
            files in `root/splits` are kept.
        normals: As in `read_scan`; `drop` leaves out face normals as well. Those that are missing are estimated.
        max_bad: How many unusable scans to bear with.
        jobs: Processes that read.
        seed: Seeds the drawing of points, together with each scan's name.
        overwrite: Replace a store that is there, or one that was begun with other arguments.
        progress: Show a bar, and name unusable scans as they come, on stderr.
        shard: Which of how many parts to pack, counted from 0: of (1, 4) the second scan, the sixth, and so on. If all
            parts are there then, the store is made of them; else the report is on the part. Without a shard, parts
            that are there are used, and what they lack is read.

    Raises:
        FileNotFoundError: The data are not there.
        ValueError: An argument does not fit, `out` holds something else, or more than `max_bad` scans are unusable.
        OSError: Another process is packing the same.

    """
    _check_numbers(points=(points, MIN_POINTS), jobs=(jobs, 1), max_bad=(max_bad, 0), seed=(seed, 0))
    entries, wanted, bad = _plan(recipe, root, splits)
    about = _about(recipe, points, normals, seed, wanted)
    if out.exists() and not overwrite:
        return _already(out, about, entries, bad, max_bad)
    work, pieces = _Work(recipe, root, points, normals, seed), _pieces(out)
    if shard is not None:
        index, count = shard
        piece = out.with_name(f"{out.name}.{index + 1}of{count}")
        if overwrite or not piece.exists():
            _pack(piece, work, entries[index::count], about, wanted, {}, [], jobs, overwrite, progress)
        pieces = [out.with_name(f"{out.name}.{number + 1}of{count}") for number in range(count)]
        if not all(each.exists() for each in pieces):
            return _report(piece, fresh=True)
    try:
        bad = _pack(out, work, entries, about, wanted, bad, pieces, jobs, overwrite, progress, max_bad)
    except BlockingIOError:
        if shard is None:
            raise
        return _report(piece if piece.exists() else out, fresh=True)  # another shard puts the parts together
    for each in pieces:
        each.unlink(missing_ok=True)
    return _report(out, fresh=True)


def _pack(
    out: Path,
    work: _Work,
    entries: list[Entry],
    about: dict[str, Any],
    wanted: dict[str, list[str]],
    bad: dict[str, str],
    pieces: Sequence[Path],
    jobs: int,
    overwrite: bool,
    progress: bool,
    max_bad: int | None = None,
) -> dict[str, str]:
    """Pack the scans into `out` and name the bad ones, all borne without `max_bad`; what is in `pieces` is copied."""
    part = out.with_name(out.name + ".part")
    with _open_part(part, about, overwrite) as file:
        for piece in pieces:
            _copy(piece, file, entries, about, overwrite)
        bad = bad | _fill(file, work, entries, jobs, progress)
        names = [entry.name for entry in entries if entry.name not in bad]
        _finish(file, names, wanted, bad)
    if max_bad is not None:
        if not names:
            part.unlink()
        _refuse(bad, len(names) + len(bad), max_bad)
    os.replace(part, out)
    return bad


# ------------------------------------------------------------------------------------------------------------ planning


def _check_numbers(**numbers: tuple[int, int]) -> None:
    for name, (value, least) in numbers.items():
        if value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value:,}. Give {least:,} or more.")


def _plan(
    recipe: Recipe, root: Path, files: Sequence[Path]
) -> tuple[list[Entry], dict[str, list[str]], dict[str, str]]:
    """Settle which scans to pack, what the splits are, and which scans are wanted but not there."""
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}. {recipe.get}")
    entries = recipe.find(root)
    if not files:
        return entries, recipe.splits(root), {}
    wanted = {path.stem: read_split(path) for path in files}
    asked = {name: split for split, names in wanted.items() for name in names}
    found = {entry.name for entry in entries}
    bad = {
        name: f"the split {split} names it, and there is no file for it under {root}. Get it, or shorten the split."
        for name, split in sorted(asked.items())
        if name not in found
    }
    chosen = [entry for entry in entries if entry.name in asked]
    if not chosen:
        raise ValueError(
            f"none of the {len(asked):,} scans of {', '.join(wanted)} is under {root}: the splits say {min(asked)}, "
            f"and the data say {min(found)}. Are they of the same data set?"
        )
    return chosen, wanted, bad


def _about(recipe: Recipe, points: int, normals: str, seed: int, wanted: dict[str, list[str]]) -> dict[str, Any]:
    """Everything a store was made from but its files."""
    kept = ("source", "licence", "unit", "up", "scale")
    return {
        "recipe": recipe.name,
        **{key: getattr(recipe, key) for key in kept},
        "points": points,
        "normals": normals,
        "seed": seed,
        "splits": hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16],
        "version": version("shapespace"),
    }


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Word how two `about` differ; the version does not count."""
    keys = [key for key in new if key != "version" and old.get(key) != new[key]]
    return ", ".join(f"{key} {old.get(key)} there, {new[key]} now" for key in keys)


def _already(out: Path, about: dict[str, Any], entries: list[Entry], absent: dict[str, str], max_bad: int) -> Packed:
    """Report on the store that is there, if the same line made it from the same files."""
    remedy = "Say --overwrite to replace it, or choose another name."
    with Store(out) as store:
        difference = _difference(store.about, about)
        if difference:
            raise ValueError(f"{out} was packed with other arguments: {difference}. {remedy}")
        changed = {entry.name for entry in entries}.union(absent).symmetric_difference([*store.names, *store.bad])
        there = [entry for entry in entries if entry.name not in store.bad and entry.name not in changed]
        changed |= {entry.name for entry in there if store.origin(entry.name)["bytes"] != _size(entry)}
        if changed:
            raise ValueError(
                f"{out} was packed from other files: {len(changed):,} scans differ, {min(changed)} for one. {remedy}"
            )
        _refuse(store.bad, len(store) + len(store.bad), max_bad)
    return _report(out, fresh=False)


def _report(out: Path, fresh: bool) -> Packed:
    """Count what the store holds."""
    with Store(out) as store:
        points = sum(store.count(name) for name in store.names)
        truths = sum(store.has_truth(name) for name in store.names)
        notes = [store.origin(name)["note"] for name in store.names]
        size = out.stat().st_size
        return Packed(out, len(store), points, truths, size, store.bad, tuple(filter(None, notes)), fresh)


def _refuse(bad: dict[str, str], total: int, max_bad: int) -> None:
    """Fail if more scans are unusable than `max_bad` allows, or all of them."""
    listed = "\n  ".join([*list(bad.values())[:5], *([f"and {len(bad) - 5:,} more"] if len(bad) > 5 else [])])
    if len(bad) == total:
        raise ValueError(f"none of the {total:,} scans can be used:\n  {listed}")
    if len(bad) > max_bad:
        raise ValueError(
            f"{len(bad):,} of {total:,} scans cannot be used, and --max-bad is {max_bad}. Mend or remove them and give "
            f"the same line again (the good ones are kept), or say --max-bad {len(bad)}:\n  {listed}"
        )


# ------------------------------------------------------------------------------------------------------------- reading


def _generator(seed: int, name: str) -> np.random.Generator:
    """Make a generator that depends on the seed and the scan's name only, not on what was drawn before."""
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, dtype=np.uint32).tolist()])


def _prepared(work: _Work, entries: list[Entry], jobs: int) -> Iterator[tuple[Entry, _Ready | str]]:
    """Prepare scans in the order of `entries`, with at most two waiting for each process."""
    if jobs == 1 or len(entries) < 2:
        yield from ((entry, work(entry)) for entry in entries)
        return
    waiting: deque[tuple[Entry, Future[_Ready | str]]] = deque()
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for entry in entries:
                waiting.append((entry, pool.submit(work, entry)))
                if len(waiting) > 2 * jobs:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise OSError(
                f"one of the {jobs} reading processes died, probably for want of memory. Give the same line with fewer "
                "--jobs: it goes on from there."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


# -------------------------------------------------------------------------------------------------------------- pieces


def _pieces(out: Path) -> list[Path]:
    """The parts of a store that lie beside it."""
    named = re.compile(re.escape(out.name) + r"\.\d+of\d+")
    return sorted(path for path in out.parent.glob(f"{glob.escape(out.name)}.*of*") if named.fullmatch(path.name))


def _copy(piece: Path, file: h5py.File, entries: list[Entry], about: dict[str, Any], overwrite: bool) -> None:
    """Take over from a part, if it is there, the scans that the file has not yet."""
    if not piece.exists():
        return
    store, remedy = Store(piece), "Remove it, and give the line again that packs it."
    difference = _difference(store.about, about)
    if difference and not overwrite:
        raise ValueError(f"{piece} was packed with other arguments: {difference}. {remedy}")
    names = set() if difference else set(store.names)
    with h5py.File(piece, "r") as source, readable(piece, remedy):
        for entry in entries:
            if entry.name in names and entry.name not in file:
                _copy_scan(held(source, entry.name), file, entry.name)
    file.flush()


def _copy_scan(scan: h5py.Group, file: h5py.File, name: str) -> None:
    if has(scan, "truth"):
        topology = f"_topologies/{scan['truth'].attrs['topology']}"
        if topology not in file:
            scan.file.copy(topology, file, topology)
    scan.file.copy(scan, file, name)


# ------------------------------------------------------------------------------------------------------------- writing


def _size(entry: Entry) -> int:
    return entry.path.stat().st_size


def _open_part(part: Path, about: dict[str, Any], overwrite: bool) -> h5py.File:
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
            difference = _difference(old, about)
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


def _fill(file: h5py.File, work: _Work, entries: list[Entry], jobs: int, progress: bool) -> dict[str, str]:
    """Write the scans that are not in the file yet; give those that cannot be used, and why."""
    bad = {}
    done = _clean(file, entries)
    todo = [entry for entry in entries if entry.name not in done]
    with tqdm(total=len(entries), initial=len(done), unit="scan", disable=not progress) as bar:
        for entry, ready in _prepared(work, todo, jobs):
            bar.update()
            if not isinstance(ready, str):
                _write(file, ready, work.root)
                continue
            bad[entry.name] = ready
            if progress:
                tqdm.write(f"skipped {entry.name}: {ready}", file=sys.stderr)
    return bad


def _clean(file: h5py.File, entries: list[Entry]) -> set[str]:
    """Drop what a killed run left half written or what no longer is as it was read; name the scans that stay."""
    sizes = {entry.name: _size(entry) for entry in entries}
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


def _write(file: h5py.File, ready: _Ready, root: Path) -> None:
    """Write one scan; the mark `complete` comes last."""
    _check_room(Path(file.filename), ready)
    group = file.create_group(ready.entry.name)
    for key in ("points", "normals", "lines", "sensors"):
        values = getattr(ready.scan, key)
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
        centre=ready.frame.centre.numpy(),
        scale=ready.frame.scale.numpy(),
        file=os.path.relpath(ready.entry.path, root),
        bytes=_size(ready.entry),
        sha256=ready.digest,
        note=ready.note,
        estimated=ready.estimated,
    )
    file.flush()
    group.attrs["complete"] = True
    file.flush()


def _check_room(part: Path, ready: _Ready) -> None:
    """Fail before HDF5 does: a file that it could not write to the end cannot be gone on with.

    Raises `OSError` if the disk has less room than the scan may take.
    """
    truth = () if ready.truth is None else (ready.truth.vertices, ready.truth.faces)
    arrays = (ready.scan.points, ready.scan.normals, ready.scan.lines, ready.scan.sensors, *truth)
    if shutil.disk_usage(part.parent).free < sum(array.nbytes for array in arrays if array is not None) + _MARGIN:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))


_MARGIN = 1 << 18  # bytes of the file's own that go with a scan, and with the names at the end


def _finish(file: h5py.File, names: list[str], wanted: dict[str, list[str]], bad: dict[str, str]) -> None:
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
