"""Encode scans: codes by one forward pass of the encoder, without optimization.

    shapespace encode runs/people scan.ply --out encoded
    shapespace encode runs/people --store data/people.h5 --split train --out encoded --resolution 0
    shapespace encode humans - < scan.ply > mesh.ply

Writes the same files as `shapespace fit`: `codes.safetensors`, `fits.json` and one PLY for each scan.
"""

from pathlib import Path
from typing import Annotated

import tyro

from shapespace.fitting.clutter import Clutter
from shapespace.space import ShapeSpace
from shapespace.tools._inputs import ScanInput, read_scans, remove_clutter, report_new_findings
from shapespace.tools._outputs import (
    MeshOptions,
    check_unique_names,
    choose_surface,
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
        run: Folder of a run, a model's .safetensors file, or the name of a packaged model.
        scans: Scan files, `example`, - for standard input, or names in a store.
        source: How to read the scans.
        meshing: How to mesh the codes.
        out: Folder for codes and meshes, or - for one mesh on standard output; by default `encoded`, or - for a scan
            from standard input.
        clutter: Removal of planes that bound a scan (floor, walls) and of parts apart from the person.
        seed: Seed of the points that are drawn from each scan.

    """
    where = output_path(out, scans, "encoded", meshing)
    space = ShapeSpace.load(run)
    choose_surface(space, meshing.surface)
    read, source = read_scans(scans, source)
    check_unique_names([scan.name for scan in read])
    read = remove_clutter(space, read, clutter, None, seed)
    fits = space.encode_scans(read, seed=seed)
    report_new_findings(read, fits)
    records = write_meshes(fits, read, space, where, source, meshing)
    write_results(fits, records, space, where, meshing)
    warn_about_fits(records, can_rotate=False)


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
