"""Encode scans: their codes by one forward pass, without optimisation.

    shapespace encode runs/people scan.ply --out encoded
    shapespace encode runs/people --store data/people.h5 --split train --out encoded --resolution 0

    shapespace encode humans - < scan.ply > mesh.ply

Writes what `shapespace fit` writes: `codes.safetensors`, `fits.json` and one PLY a scan.
"""

from pathlib import Path
from typing import Annotated

import tyro

from shapespace.fitting.clutter import Clutter
from shapespace.space import ShapeSpace
from shapespace.tools._inputs import ScanInput, read_scans, remove_clutter
from shapespace.tools._outputs import (
    MeshOptions,
    check_unique_names,
    output_path,
    warn_about_fits,
    write_meshes,
    write_results,
)


def main(
    run: Annotated[Path, tyro.conf.Positional],
    scans: Annotated[list[str], tyro.conf.Positional],
    *,
    source: Annotated[ScanInput, tyro.conf.arg(name="")],
    meshing: Annotated[MeshOptions, tyro.conf.arg(name="")],
    out: Path | None = None,
    clutter: Clutter = "remove",
    seed: int = 0,
) -> None:
    """Encode scans.

    Args:
        run: Folder of a run, or a model's .safetensors file.
        scans: Scan files, - for standard input, or names in a store.
        source: How to read them.
        meshing: How to mesh what was found.
        out: Folder for codes and meshes, or - for the mesh alone on standard output; `encoded` by default, and - for a
            scan from standard input.
        clutter: Whether planes that bound a scan (floor, walls) and parts that stand apart from the person are removed.
        seed: Of the points that are drawn from each scan.

    """
    where = output_path(out, scans, "encoded", meshing)
    space = ShapeSpace.load(run)
    gathered, source = read_scans(scans, source)
    check_unique_names([scan.name for scan in gathered])
    gathered = remove_clutter(space, gathered, clutter, None, seed)
    fits = space.encode_scans(gathered, seed=seed)
    records = write_meshes(fits, gathered, space, where, source, meshing)
    write_results(fits, records, space, where, meshing)
    warn_about_fits(records)


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
