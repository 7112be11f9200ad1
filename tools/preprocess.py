"""Write the scans of a dataset into one HDF5 store, from which training, fitting and evaluation read.

    shapespace preprocess DATASET ROOT OUT.h5
    shapespace preprocess synthetic data/scans data/scans.h5
    shapespace preprocess dfaust D-FAUST dfaust.h5 --split train_all.json test_all.json --jobs 8 --max-rejected 10
    shapespace preprocess folder my_scans my_scans.h5 --unit mm --up z --pattern "{subject}/{sequence}/{frame}.obj"

After an interruption the same command continues; a complete store is left unchanged. Processes on one machine, or on
several that see the same folders, can share the scans:

    shapespace preprocess dfaust D-FAUST dfaust.h5 --shard 2/4          (the second of four shares)
    torchrun --nproc-per-node 4 -m shapespace.tools.preprocess dfaust D-FAUST dfaust.h5
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from shapespace.data.preparation import GroundTruth
from shapespace.data.preprocess import PreprocessOptions, preprocess
from shapespace.data.scan_dataset import ScanDataset
from shapespace.datasets import get_dataset
from shapespace.datasets.folder import Folder
from shapespace.io.checks import Normals
from shapespace.io.units import UNITS, UnitName, Up
from shapespace.tools._resume import given_shard, parse_shard


@dataclass(frozen=True)
class FileOptions:
    """What the files of the dataset are like."""

    unit: UnitName | None = None
    """Unit of the files; by default that of the dataset."""
    up: Up | None = None
    """Up axis of the files; by default that of the dataset."""
    scale: float | None = None
    """Length of one model unit for the whole dataset (m); by default 1.25, for people."""
    pattern: str | None = None
    """Paths below ROOT, as in "{subject}/{sequence}/{frame}.ply"; only for the dataset folder."""


def main(
    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")],
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ROOT")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.h5")],
    *,
    files: Annotated[FileOptions, tyro.conf.arg(name="")],
    points: int = 250_000,
    split: tuple[Path, ...] = (),
    normals: Normals = "auto",
    ground_truth: GroundTruth = "auto",
    strict: bool = False,
    max_rejected: int = 0,
    jobs: int = 1,
    seed: int = 0,
    overwrite: bool = False,
    shard: str | None = None,
) -> None:
    """Write the scans of a dataset into one HDF5 store.

    Args:
        dataset: Layout of the dataset: dfaust, dfaust-registrations, faust, faust-registrations, cape, cape-raw,
            synthetic, or folder (any files).
        root: Folder of the dataset.
        out: Store to write.
        files: What the files are like.
        points: Points drawn from each scan.
        split: Split files (JSON of IGR and SAL); only the scans that they name are read.
        normals: Use of the files' normals: auto uses them and estimates missing ones, require rejects scans without,
            drop estimates all.
        ground_truth: Registrations that the dataset has: store them (auto), or leave them out (drop), for a training on
            raw scans alone.
        strict: Reject scans with findings (docs/reference/findings.md), such as normals that point inward.
        max_rejected: Number of rejected scans to tolerate before failing.
        jobs: Number of processes that read scans.
        seed: Seed of the points that are drawn.
        overwrite: Replacement of an existing store.
        shard: Share of the scans for this process, as 2/4; under torchrun it is given by the rank. The last shard makes
            the store; so does the same command without --shard.

    """
    shard = given_shard(shard)
    options = PreprocessOptions(
        points=points,
        splits=split,
        normals=normals,
        ground_truth=ground_truth,
        strict=strict,
        max_rejected=max_rejected,
        jobs=jobs,
        seed=seed,
        overwrite=overwrite,
        progress=True,
        shard=None if shard is None else parse_shard(shard),
    )
    result = preprocess(_with_options(get_dataset(dataset), files), root, out, options)
    for note in result.notes:
        print(f"note: {note}.")
    if result.findings:
        width = max(map(len, result.findings))
        print(f"findings about {len(result.findings):,} of {result.scans:,} scans (--strict rejects them):")
        for name, codes in result.findings.items():
            print(f"  {name:<{width}}  {', '.join(codes)}")
        for code, sentence in result.sentences.items():
            print(f"note: {sentence} [{code}]")
    if result.rejected:
        print(f"rejected {len(result.rejected):,} scans: {', '.join(list(result.rejected)[:5])}")
    if result.path != out:
        print(
            f"shard {shard} in {result.path}. The last shard makes the store; so does the same command without --shard."
        )
        return
    print(f"{result.ground_truths:,} of {result.scans:,} scans have ground truth.")
    state = "store" if result.created else "store, complete already"
    print(f"{state}: {result.path} ({result.scans:,} scans, {result.points:,} points, {result.size:,} bytes)")


def _with_options(dataset: ScanDataset, files: FileOptions) -> ScanDataset:
    """The dataset with the given unit, up axis, scale and pattern."""
    if files.pattern is not None:
        if not isinstance(dataset, Folder):
            raise ValueError(f"--pattern {files.pattern}: not for the dataset {dataset.name}. Use the dataset folder.")
        dataset = replace(dataset, pattern=files.pattern)
    if files.scale is not None and not 0 < files.scale < float("inf"):
        raise ValueError(f"--scale {files.scale}: must be a positive number of meters. For people use 1.25.")
    return replace(
        dataset,
        unit=dataset.unit if files.unit is None else UNITS[files.unit],
        up=dataset.up if files.up is None else files.up,
        scale=dataset.scale if files.scale is None else files.scale,
    )


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
