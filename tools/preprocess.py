"""Pack a data set of scans into one HDF5 store, from which training, fitting and evaluation draw.

    shapespace preprocess RECIPE ROOT OUT.h5
    shapespace preprocess synthetic data/scans data/scans.h5
    shapespace preprocess dfaust D-FAUST dfaust.h5 --split train_all.json test_all.json --jobs 8 --max-rejected 10
    shapespace preprocess folder my_scans my_scans.h5 --unit mm --up z --pattern "{subject}/{sequence}/{frame}.obj"

A killed run is continued by the same line; a store that is there and complete is left as it is. Many processes, on one
machine or on several that see the same folders, share the scans out:

    shapespace preprocess dfaust D-FAUST dfaust.h5 --shard 2/4          (the second of four; see docs/trust.md)
    torchrun --nproc-per-node 4 -m shapespace.tools.preprocess dfaust D-FAUST dfaust.h5
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shapespace.data.preprocess import preprocess
from shapespace.data.scan_dataset import ScanDataset
from shapespace.datasets import get_dataset
from shapespace.datasets.folder import Folder
from shapespace.io.checks import Normals
from shapespace.io.units import UNITS, Up
from shapespace.tools._resume import parse_shard


def main(
    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ROOT")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.h5")],
    points: int = 250_000,
    unit: Literal["m", "cm", "mm", "in"] | None = None,
    up: Up | None = None,
    scale: float | None = None,
    split: tuple[Path, ...] = (),
    pattern: str | None = None,
    normals: Normals = "auto",
    max_rejected: int = 0,
    jobs: int = 1,
    seed: int = 0,
    overwrite: bool = False,
    shard: str | None = None,
) -> None:
    """Pack a data set of scans into one HDF5 store.

    Args:
        recipe: How the data set is laid out: dfaust, dfaust-registrations, faust, faust-registrations, cape, cape-raw,
            synthetic, or folder (any files).
        root: The folder of the data set.
        out: The store to make.
        points: Points drawn from each scan.
        unit: The unit of the files; the recipe's own by default.
        up: The axis of the files that points up; the recipe's own by default.
        scale: Metres of one model unit, one for the whole data set; 1.25, which suits people, by default.
        split: Split files (the JSON of IGR and SAL): only the scans that they name are packed.
        pattern: For the recipe folder: how paths below ROOT are made, as in "{subject}/{sequence}/{frame}.ply".
        normals: `require` refuses scans of which no normals can be had, `drop` leaves them out,
            and they are estimated from the points, as for scans that have none.
        max_bad: How many unusable scans to bear with; more make the command fail.
        jobs: Processes that read scans.
        seed: Seeds the drawing of points.
        overwrite: Replace a store that is there.
        shard: Which share of the scans to pack, as 2/4; under torchrun it follows from the rank. Whichever is the last
            makes the store of all shares; so does the line without --shard, which packs what is missing.

    """
    if shard is None and "RANK" in os.environ:
        shard = f"{int(os.environ['RANK']) + 1}/{os.environ['WORLD_SIZE']}"
    chosen = _adapted(get_dataset(dataset), unit, up, scale, pattern)
    packed = preprocess(
        chosen,
        root,
        out,
        points=points,
        splits=split,
        normals=normals,
        max_rejected=max_rejected,
        jobs=jobs,
        seed=seed,
        overwrite=overwrite,
        progress=True,
        shard=None if shard is None else parse_shard(shard),
    )
    for line in packed.notes:
        print(f"note: {line}.")
    if packed.rejected:
        print(f"skipped {len(packed.rejected):,} unusable scans: {', '.join(list(packed.rejected)[:5])}")
    if packed.path != out:
        print(f"shard {shard} is in {packed.path}: the last one makes the store, or the line without --shard")
        return
    print(f"{packed.ground_truths:,} of {packed.scans:,} scans have a true surface.")
    made = "store" if packed.created else "store, there already, nothing to do"
    print(f"{made}: {packed.path} ({packed.scans:,} scans, {packed.points:,} points, {packed.size:,} bytes)")


def _adapted(
    recipe: ScanDataset, unit: str | None, up: Up | None, scale: float | None, pattern: str | None
) -> ScanDataset:
    """Apply what the user said about the files to the recipe."""
    if pattern is not None:
        if not isinstance(recipe, Folder):
            raise ValueError(f"--pattern {pattern} does not go with the recipe {recipe.name}: only folder has one.")
        recipe = replace(recipe, pattern=pattern)
    if scale is not None and not 0 < scale < float("inf"):
        raise ValueError(f"--scale is {scale}. Give the metres of one model unit, such as 1.25 for people.")
    return replace(
        recipe,
        unit=recipe.unit if unit is None else UNITS[unit],
        up=recipe.up if up is None else up,
        scale=recipe.scale if scale is None else scale,
    )


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
