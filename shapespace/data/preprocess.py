"""Packing: read every scan of a data set once, draw its points, and write them into a store.

One scan at a time is held in memory (a few with several processes). The file grows as `OUT.part` and is put in place
when it is complete; a killed run is continued by the same line. Several processes, on one machine or on many, may share
the scans out: each packs its part, `OUT.2of4`, and the last one, or a line alone, copies the parts together.
"""

import hashlib
import json
import os
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

from shapespace.data.scan_dataset import ScanDataset, ScanEntry, read_split
from shapespace.data.store import ScanStore
from shapespace.data.store_writer import (
    PreparedScan,
    copy_shard,
    describe_difference,
    input_size,
    open_part,
    remove_unwanted,
    shard_files,
    write_index,
    write_scan_group,
)
from shapespace.geometry import proximity
from shapespace.geometry.scan import MIN_POINTS
from shapespace.io.checks import Normals

MAX_OUTSIDE = 0.01  # of a scan's points may lie outside the model cube: raw scans have stray ones
MAX_GROUND_TRUTH_DISTANCE = (
    0.04  # model units (5 cm for people): a true surface further away than this belongs to another frame
)


@dataclass(frozen=True)
class PreprocessResult:
    """What packing left: the store, what is in it, and which scans were refused and why.

    `fresh` is False if the store was there already, made by the same line.
    """

    path: Path
    scans: int
    points: int
    ground_truths: int
    size: int
    rejected: dict[str, str]
    notes: tuple[str, ...]
    created: bool


@dataclass(frozen=True)
class ScanPreparer:
    """Read and draw one scan; a noun because it travels to other processes."""

    recipe: ScanDataset
    root: Path
    points: int
    normals: Normals
    seed: int

    def __call__(self, entry: ScanEntry) -> PreparedScan | str:
        """Prepare the scan, or say in a sentence why it cannot be used."""
        try:
            return self._prepare(entry)
        except (ValueError, OSError) as error:
            return str(error)

    def _prepare(self, entry: ScanEntry) -> PreparedScan:
        whole = self.recipe.read_scan(entry, self.normals)
        self.recipe.check_size(whole)
        drawn = whole.sample(self.points, _generator(self.seed, entry.name))
        if self.normals == "drop":
            drawn = replace(drawn, normals=None)
        frame = whole.frame(self.recipe.scale)
        estimated = drawn.normals is None
        scan = drawn.estimate_normals().to_model(frame)
        outside = float((np.abs(scan.points).max(axis=1) > 1).mean())
        if outside > MAX_OUTSIDE:
            larger = self.recipe.scale * float(np.percentile(np.abs(scan.points), 99.5)) * 1.1
            raise ValueError(
                f"scan {entry.name} has {outside:.0%} of its points outside [-1, 1]^3 when one model unit is "
                f"{self.recipe.scale:g} m. Say --scale {larger:.3g}, the same for the whole data set."
            )
        truth, note = self.recipe.ground_truth(self.root, entry.name), ""
        if truth is not None:
            away, _, _ = proximity.closest_point(drawn.points[:500].astype(np.float64), truth)
            if np.median(away) > MAX_GROUND_TRUTH_DISTANCE * self.recipe.scale:
                note = f"{entry.name}: its true surface lies {np.median(away):.2f} m away, so it was left out"
                truth = None
        digest = hashlib.sha256(whole.points.tobytes()).hexdigest()
        return PreparedScan(entry, scan, frame, digest, truth, note, estimated)


def preprocess(
    dataset: ScanDataset,
    root: Path,
    out: Path,
    *,
    points: int = 250_000,
    splits: Sequence[Path] = (),
    normals: Normals = "auto",
    max_rejected: int = 0,
    jobs: int = 1,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
    shard: tuple[int, int] | None = None,
) -> PreprocessResult:
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
    _check_numbers(points=(points, MIN_POINTS), jobs=(jobs, 1), max_bad=(max_rejected, 0), seed=(seed, 0))
    entries, wanted, bad = _assign_splits(dataset, root, splits)
    about = _about(dataset, points, normals, seed, wanted)
    if out.exists() and not overwrite:
        return _already(out, about, entries, bad, max_rejected)
    work, pieces = ScanPreparer(dataset, root, points, normals, seed), shard_files(out)
    if shard is not None:
        index, count = shard
        piece = out.with_name(f"{out.name}.{index + 1}of{count}")
        if overwrite or not piece.exists():
            _preprocess(piece, work, entries[index::count], about, wanted, {}, [], jobs, overwrite, progress)
        pieces = [out.with_name(f"{out.name}.{number + 1}of{count}") for number in range(count)]
        if not all(each.exists() for each in pieces):
            return _report(piece, fresh=True)
    try:
        bad = _preprocess(out, work, entries, about, wanted, bad, pieces, jobs, overwrite, progress, max_rejected)
    except BlockingIOError:
        if shard is None:
            raise
        return _report(piece if piece.exists() else out, fresh=True)  # another shard puts the parts together
    for each in pieces:
        each.unlink(missing_ok=True)
    return _report(out, fresh=True)


def _preprocess(
    out: Path,
    work: ScanPreparer,
    entries: list[ScanEntry],
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
    with open_part(part, about, overwrite) as file:
        for piece in pieces:
            copy_shard(piece, file, entries, about, overwrite)
        bad = bad | _fill(file, work, entries, jobs, progress)
        names = [entry.name for entry in entries if entry.name not in bad]
        write_index(file, names, wanted, bad)
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


def _assign_splits(
    recipe: ScanDataset, root: Path, files: Sequence[Path]
) -> tuple[list[ScanEntry], dict[str, list[str]], dict[str, str]]:
    """Settle which scans to pack, what the splits are, and which scans are wanted but not there."""
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}. {recipe.instructions}")
    entries = recipe.list_scans(root)
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


def _about(recipe: ScanDataset, points: int, normals: str, seed: int, wanted: dict[str, list[str]]) -> dict[str, Any]:
    """Everything a store was made from but its files."""
    return {
        "recipe": recipe.name,
        "source": recipe.source,
        "licence": recipe.license,
        "unit": recipe.unit,
        "up": recipe.up,
        "scale": recipe.scale,
        "points": points,
        "normals": normals,
        "seed": seed,
        "splits": hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16],
        "version": version("shapespace"),
    }


def _already(
    out: Path, about: dict[str, Any], entries: list[ScanEntry], absent: dict[str, str], max_bad: int
) -> PreprocessResult:
    """Report on the store that is there, if the same line made it from the same files."""
    remedy = "Say --overwrite to replace it, or choose another name."
    with ScanStore(out) as store:
        difference = describe_difference(store.metadata, about)
        if difference:
            raise ValueError(f"{out} was packed with other arguments: {difference}. {remedy}")
        changed = {entry.name for entry in entries}.union(absent).symmetric_difference([*store.names, *store.rejected])
        there = [entry for entry in entries if entry.name not in store.rejected and entry.name not in changed]
        changed |= {entry.name for entry in there if store.provenance(entry.name)["bytes"] != input_size(entry)}
        if changed:
            raise ValueError(
                f"{out} was packed from other files: {len(changed):,} scans differ, {min(changed)} for one. {remedy}"
            )
        _refuse(store.rejected, len(store) + len(store.rejected), max_bad)
    return _report(out, fresh=False)


def _report(out: Path, fresh: bool) -> PreprocessResult:
    """Count what the store holds."""
    with ScanStore(out) as store:
        points = sum(store.count(name) for name in store.names)
        truths = sum(store.has_ground_truth(name) for name in store.names)
        notes = [store.provenance(name)["note"] for name in store.names]
        size = out.stat().st_size
        return PreprocessResult(
            out, len(store), points, truths, size, store.rejected, tuple(filter(None, notes)), fresh
        )


def _refuse(bad: dict[str, str], total: int, max_bad: int) -> None:
    """Fail if more scans are unusable than `max_bad` allows, or all of them."""
    listed = "\n  ".join([*list(bad.values())[:5], *([f"and {len(bad) - 5:,} more"] if len(bad) > 5 else [])])
    if len(bad) == total:
        raise ValueError(f"none of the {total:,} scans can be used:\n  {listed}")
    if len(bad) > max_bad:
        raise ValueError(
            f"{len(bad):,} of {total:,} scans cannot be used, and --max-rejected is {max_bad}. Mend or remove them and give "
            f"the same line again (the good ones are kept), or say --max-rejected {len(bad)}:\n  {listed}"
        )


# ------------------------------------------------------------------------------------------------------------- reading


def _generator(seed: int, name: str) -> np.random.Generator:
    """Make a generator that depends on the seed and the scan's name only, not on what was drawn before."""
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, dtype=np.uint32).tolist()])


def _prepared(
    work: ScanPreparer, entries: list[ScanEntry], jobs: int
) -> Iterator[tuple[ScanEntry, PreparedScan | str]]:
    """Prepare scans in the order of `entries`, with at most two waiting for each process."""
    if jobs == 1 or len(entries) < 2:
        yield from ((entry, work(entry)) for entry in entries)
        return
    waiting: deque[tuple[ScanEntry, Future[PreparedScan | str]]] = deque()
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


# ------------------------------------------------------------------------------------------------------------- writing


def _fill(file: h5py.File, work: ScanPreparer, entries: list[ScanEntry], jobs: int, progress: bool) -> dict[str, str]:
    """Write the scans that are not in the file yet; give those that cannot be used, and why."""
    bad = {}
    done = remove_unwanted(file, entries)
    todo = [entry for entry in entries if entry.name not in done]
    with tqdm(total=len(entries), initial=len(done), unit="scan", disable=not progress) as bar:
        for entry, ready in _prepared(work, todo, jobs):
            bar.update()
            if not isinstance(ready, str):
                write_scan_group(file, ready, work.root)
                continue
            bad[entry.name] = ready
            if progress:
                tqdm.write(f"skipped {entry.name}: {ready}", file=sys.stderr)
    return bad
