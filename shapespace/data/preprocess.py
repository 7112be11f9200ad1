"""Preprocess a raw dataset: sample the points of every scan and write them into a store.

One scan at a time is in memory (a few with several processes). The file is written as `OUT.part` and renamed when it is
complete; the same command continues an interrupted run. Several processes, on one machine or many, can share the scans:
each writes a shard, `OUT.2of4`, and the last one, or a run without a shard, merges the shards.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
from tqdm import tqdm

from shapespace.data.preparation import GroundTruth, ScanPreparer, prepare_scans
from shapespace.data.scan_dataset import ScanDataset, ScanEntry, read_split
from shapespace.data.store import ScanStore
from shapespace.data.store_writer import (
    copy_shard,
    describe_difference,
    input_size,
    open_part,
    remove_outdated,
    shard_files,
    write_index,
    write_scan_group,
)
from shapespace.geometry.scan import MIN_POINTS
from shapespace.io.atomic import replace_flushed
from shapespace.io.checks import Normals

_MAX_LISTED = 5  # rejected scans in an error


@dataclass(frozen=True)
class PreprocessOptions:
    """Settings of `preprocess`."""

    points: int = 250_000
    """Number of points per scan, sampled over the area of the faces (250,000: IGR's preparation of raw scans); a scan
    without faces gives at most its own points."""
    splits: Sequence[Path] = ()
    """Split files: only the scans that they name are read. By default all scans, with the splits in `root/splits`."""
    normals: Normals = "auto"
    """As in `read_scan`; `drop` ignores face normals too. Missing normals are estimated."""
    ground_truth: GroundTruth = "auto"
    """`drop` leaves out the ground truth that the dataset has, for a training on raw scans alone."""
    strict: bool = False
    """Reject scans with findings (`geometry.findings`)."""
    max_rejected: int = 0
    """Number of rejected scans to tolerate before failing."""
    jobs: int = 1
    """Number of reading processes; the result does not depend on it."""
    seed: int = 0
    """Seed of the sampling, together with the name of each scan."""
    overwrite: bool = False
    """Replace a store, or an unfinished one of other settings."""
    progress: bool = False
    """Show a progress bar and the rejected scans on stderr."""
    shard: tuple[int, int] | None = None
    """Index (from 0) and number of shards: (1, 4) reads the second scan, the sixth, and so on. When all shards are
    finished, they are merged into the store. Without a shard, finished shards are used and the other scans are read."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for numbers out of range."""
        for name, least in (("points", MIN_POINTS), ("jobs", 1), ("max_rejected", 0), ("seed", 0)):
            if getattr(self, name) < least:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} {getattr(self, name)}: must be at least {least}.")


@dataclass(frozen=True)
class PreprocessResult:
    """Contents of the store (or the shard) that `preprocess` wrote, and rejected scans.

    `size` is in bytes; `rejected` is the reason for each rejected scan; `created` is false if the same command had
    already written the store.
    """

    path: Path
    scans: int
    points: int
    ground_truths: int
    size: int
    rejected: dict[str, str]
    notes: tuple[str, ...]
    findings: dict[str, list[str]]
    """Codes of the findings about each scan that has any."""
    sentences: dict[str, str]
    """Sentence of each code, for the first scan that has it."""
    created: bool


def preprocess(
    dataset: ScanDataset, root: Path, out: Path, options: PreprocessOptions = PreprocessOptions()
) -> PreprocessResult:
    """Write the scans of a dataset under the folder `root` into the HDF5 store `out`.

    Raises:
        FileNotFoundError: The data are missing.
        ValueError: `out` is another file, or more than `max_rejected` scans are unusable.
        OSError: Another process is writing the store, the disk is full, or a reading process died.

    """
    plan = _make_plan(dataset, root, options)
    if out.exists() and not options.overwrite:
        return _check_strict(_check_existing(out, plan, options), options)
    shards = shard_files(out)
    if options.shard is not None:
        index, count = options.shard
        shard = _shard_path(out, index, count)
        if options.overwrite or not shard.exists():
            _write_store(shard, replace(plan, entries=plan.entries[index::count], absent={}), options)
        shards = [_shard_path(out, other, count) for other in range(count)]
        if not all(path.exists() for path in shards):
            return _summarize(shard, created=True)
    try:
        _write_store(out, plan, options, shards, max_rejected=options.max_rejected)
    except BlockingIOError:
        if options.shard is None:
            raise
        return _summarize(shard if shard.exists() else out, created=True)  # another process merges the shards
    for path in shards:
        path.unlink(missing_ok=True)
    return _summarize(out, created=True)


def _shard_path(out: Path, index: int, count: int) -> Path:
    return out.with_name(f"{out.name}.{index + 1}of{count}")


# ------------------------------------------------------------------------------------------------------------ planning


@dataclass(frozen=True)
class _Plan:
    """Scans to read, splits, scans of the splits without a file, metadata of the store."""

    dataset: ScanDataset
    root: Path
    entries: list[ScanEntry]
    splits: dict[str, list[str]]
    absent: dict[str, str]
    metadata: dict[str, Any]


def _make_plan(dataset: ScanDataset, root: Path, options: PreprocessOptions) -> _Plan:
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. {dataset.instructions}")
    entries = dataset.list_scans(root)
    absent: dict[str, str] = {}
    if options.splits:
        splits = {path.stem: read_split(path) for path in options.splits}
        entries, absent = _select_by_splits(entries, splits, root)
    else:
        splits = dataset.splits(root)
    return _Plan(dataset, root, entries, splits, absent, _metadata(dataset, options, splits))


def _select_by_splits(
    entries: list[ScanEntry], splits: dict[str, list[str]], root: Path
) -> tuple[list[ScanEntry], dict[str, str]]:
    """Scans that the splits name, and an error for each named scan without a file."""
    split_of = {name: split for split, names in splits.items() for name in names}
    available = {entry.name for entry in entries}
    absent = {
        name: f"scan {name}: named by the split {split}, and no file under {root}. Add the file or edit the split."
        for name, split in sorted(split_of.items())
        if name not in available
    }
    chosen = [entry for entry in entries if entry.name in split_of]
    if not chosen:
        raise ValueError(
            f"{root}: none of the {len(split_of):,} scans of {', '.join(splits)}; the splits name {min(split_of)}, the "
            f"files give {min(available)}. Pass the split files of this dataset."
        )
    return chosen, absent


def _metadata(dataset: ScanDataset, options: PreprocessOptions, splits: dict[str, list[str]]) -> dict[str, Any]:
    """Settings of a store, all but its files; the keys are those of the file format."""
    return {
        "recipe": dataset.name,
        "source": dataset.source,
        "licence": dataset.license,
        "unit": dataset.unit,
        "up": dataset.up,
        "scale": dataset.scale,
        "points": options.points,
        "normals": options.normals,
        "seed": options.seed,
        "splits": hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()[:16],
        "version": version("shapespace"),
        **({} if options.ground_truth == "auto" else {"ground_truth": options.ground_truth}),
    }


def _check_existing(out: Path, plan: _Plan, options: PreprocessOptions) -> PreprocessResult:
    """Summarize the existing store if it has the same settings and files."""
    remedy = "Pass --overwrite to replace it, or choose another path."
    with ScanStore(out) as store:
        difference = describe_difference(store.metadata, plan.metadata)
        if difference:
            raise ValueError(f"{out}: made with other settings ({difference}). {remedy}")
        wanted = {entry.name for entry in plan.entries}.union(plan.absent)
        changed = wanted.symmetric_difference([*store.names, *store.rejected])
        present = [entry for entry in plan.entries if entry.name not in store.rejected and entry.name not in changed]
        changed |= {entry.name for entry in present if store.provenance(entry.name)["bytes"] != input_size(entry)}
        if changed:
            raise ValueError(
                f"{out}: made from other files, {len(changed):,} scans differ, for example {min(changed)}. {remedy}"
            )
        _check_rejected(store.rejected, len(store) + len(store.rejected), options.max_rejected)
    return _summarize(out, created=False)


def _check_strict(result: PreprocessResult, options: PreprocessOptions) -> PreprocessResult:
    """Refuse an existing store with findings, if the options are strict."""
    if options.strict and result.findings:
        some = "; ".join(f"{name} ({', '.join(codes)})" for name, codes in list(result.findings.items())[:_MAX_LISTED])
        raise ValueError(
            f"{result.path}: {len(result.findings):,} of {result.scans:,} scans have findings: {some}. Remove these "
            "files and pass --overwrite, or remove --strict."
        )
    return result


# ------------------------------------------------------------------------------------------------------------- writing


def _write_store(
    out: Path,
    plan: _Plan,
    options: PreprocessOptions,
    shards: Sequence[Path] = (),
    *,
    max_rejected: int | None = None,
) -> None:
    """Write the scans of the plan into `out`; those of finished shards are copied.

    Without `max_rejected` any number of scans can be rejected.
    """
    part = out.with_name(out.name + ".part")
    with open_part(part, plan.metadata, options.overwrite) as file:
        for shard in shards:
            copy_shard(shard, file, plan.entries, plan.metadata, options.overwrite)
        rejected = plan.absent | _write_missing(file, plan, options)
        names = [entry.name for entry in plan.entries if entry.name not in rejected]
        write_index(file, names, plan.splits, rejected)
    if max_rejected is not None:
        if not names:
            part.unlink()
        _check_rejected(rejected, len(names) + len(rejected), max_rejected)
    replace_flushed(part, out)


def _write_missing(file: h5py.File, plan: _Plan, options: PreprocessOptions) -> dict[str, str]:
    """Write the scans that the file does not contain yet; the rejected ones with the reasons."""
    rejected = {}
    prepare = ScanPreparer(
        plan.dataset, plan.root, options.points, options.normals, options.ground_truth, options.seed, options.strict
    )
    done = remove_outdated(file, plan.entries)
    todo = [entry for entry in plan.entries if entry.name not in done]
    with tqdm(total=len(plan.entries), initial=len(done), unit="scan", disable=not options.progress) as bar:
        for entry, prepared in prepare_scans(prepare, todo, options.jobs):
            bar.update()
            if not isinstance(prepared, str):
                write_scan_group(file, prepared, plan.root)
                continue
            rejected[entry.name] = prepared
            if options.progress:
                tqdm.write(f"rejected {entry.name}: {prepared}", file=sys.stderr)
    return rejected


def _check_rejected(rejected: dict[str, str], total: int, max_rejected: int) -> None:
    """Raise `ValueError` if more than `max_rejected` scans were rejected, or all of them."""
    more = len(rejected) - _MAX_LISTED
    lines = [*list(rejected.values())[:_MAX_LISTED], *([f"and {more:,} more"] if more > 0 else [])]
    listed = "\n  ".join(lines)
    if len(rejected) == total:
        raise ValueError(f"all {total:,} scans were rejected:\n  {listed}")
    if len(rejected) > max_rejected:
        raise ValueError(
            f"{len(rejected):,} of {total:,} scans were rejected (--max-rejected {max_rejected}). Fix or remove them "
            f"and rerun (finished scans are kept), or pass --max-rejected {len(rejected)}:\n  {listed}"
        )


def _summarize(out: Path, created: bool) -> PreprocessResult:
    """Count the contents of a store."""
    with ScanStore(out) as store:
        notes = (store.provenance(name)["note"] for name in store.names)
        found = {name: some for name in store.names if (some := store.findings(name))}
        sentences = dict[str, str]()
        for one in (one for some in found.values() for one in some):
            sentences.setdefault(str(one["code"]), str(one.get("message", "")))
        return PreprocessResult(
            path=out,
            scans=len(store),
            points=sum(store.count(name) for name in store.names),
            ground_truths=sum(store.has_ground_truth(name) for name in store.names),
            size=out.stat().st_size,
            rejected=store.rejected,
            notes=tuple(filter(None, notes)),
            findings={name: [str(one["code"]) for one in some] for name, some in found.items()},
            sentences=sentences,
            created=created,
        )
