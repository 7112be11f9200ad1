"""Register the template of an articulated model to scans: vertices that correspond, and joint centers.

    shapespace register runs/people scan.ply another.obj --out registered
    shapespace register runs/people --store data/people.h5 --split unseen_people --out registered
    shapespace register runs/people fitted/codes.safetensors --format obj       (codes of `fit`, without another fit)
    shapespace register runs/people walk/*.ply --as-sequence --out walked       (the frames of a motion, jointly)

Scans are fitted as `shapespace fit` does. Writes the template on each scan, in its unit and with its up axis (vertices
and faces in one order for all scans), and `joints.json` with the joint centers of each, {scan: {joint: [x, y, z]}}; for
fitted scans also `codes.safetensors` and `fits.json`, for a sequence `sequence.glb`, one mesh with morph targets. After
an interruption the same command continues.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from shapespace.fitting.result import Fit, load_fits
from shapespace.io import scan_files, units
from shapespace.io.atomic import replacing
from shapespace.io.scan_files import MeshFormat, file_name
from shapespace.space import ShapeSpace
from shapespace.tools._inputs import PIPE, ScanInput, named_scans
from shapespace.tools._outputs import (
    MeshOptions,
    check_unique_names,
    choose_surface,
    output_path,
    warn_about_fits,
    write_results,
)
from shapespace.tools.fit import FitOptions, FitScans, check_options

CODES = ".safetensors"
MESHING = MeshOptions(surface="template")


def main(
    run: Annotated[Path, tyro.conf.Positional],
    scans: Annotated[list[str], tyro.conf.Positional],
    *,
    source: Annotated[ScanInput, tyro.conf.arg(name="")],
    options: Annotated[FitOptions, tyro.conf.arg(name="")],
    out: Path | None = None,
    format: MeshFormat = "ply",
    strict: bool = False,
    shard: str | None = None,
) -> None:
    """Register scans.

    Args:
        run: Folder of a run, a model's .safetensors file, or the name of a packaged model.
        scans: Scan files, `example`, - for standard input, names in a store, or files codes.safetensors of `fit` and
            `encode`, whose codes are taken as they are.
        source: How to read the scans.
        options: How to fit the scans.
        out: Folder for all results, or - for one mesh on standard output; by default `registered`, or - for a scan from
            standard input.
        format: Format of the meshes.
        strict: Exit code 2 if a scan is out of distribution or a fit has low confidence; all results are written first.
        shard: Share of the scans for this process: 2/4 is the second of four. The last shard writes the result.

    """
    where = output_path(out, scans, "registered", MESHING)
    check_options(options, shard, where)
    files = [word for word in scans if word.endswith(CODES)]
    if files and where == Path(PIPE):
        raise ValueError(f"{files[0]}: standard output takes a scan, not codes. Pass --out FOLDER.")
    space = ShapeSpace.load(run)
    choose_surface(space, "template", options.method)
    coded = [fit for file in files for fit in load_fits(Path(file), space.model)]
    others = [word for word in scans if word not in files]
    named, source = named_scans(others, source, empty=bool(coded), interpolate=options.as_sequence)
    check_unique_names([*(fit.name for fit in coded), *(scan.name for scan in named)])
    fitted: Sequence[Fit] = []
    with ExitStack() as stack:
        if named:
            work = FitScans(space, where, source, MESHING, options, format)
            result = stack.enter_context(work.run(named, shard))
            if result is None:
                return
            fitted = result.fits
            write_results(fitted, result.metadata, space, where, MESHING)
        if where != Path(PIPE):
            _write_registered(coded, space, where, source, format)
            _write_joints([*coded, *fitted], space, where, source)
    if named and result is not None:
        warn_about_fits(result.metadata, strict=strict)


def _write_registered(fits: Sequence[Fit], space: ShapeSpace, out: Path, source: ScanInput, format: MeshFormat) -> None:
    """Write the registered template of each code."""
    for fit in tqdm(fits, desc="mesh", unit="scan", disable=len(fits) < 2):
        path = out / f"{file_name(fit.name)}.{format}"
        scan_files.write_mesh(path, space.register(fit), unit=source.meters, up=source.up, origin=fit.origin)
    if fits:
        print(f"{len(fits)} meshes in {out}")


def _write_joints(fits: Sequence[Fit], space: ShapeSpace, out: Path, source: ScanInput) -> None:
    """Write the joint centers of all shapes in the unit and with the up axis of the files."""
    centers = {fit.name: space.joints(fit) for fit in fits}
    if not any(centers.values()):
        print("note: no joint centers: the template is not that of the synthetic body.", file=sys.stderr)
        return
    content = {
        fit.name: {joint: _to_file(center, source, fit) for joint, center in centers[fit.name].items()} for fit in fits
    }
    with replacing(out / "joints.json") as part:
        part.write_text(json.dumps(content, indent=1))
    print(f"joint centers of {len(fits)} shapes in {out / 'joints.json'}")


def _to_file(center: np.ndarray, source: ScanInput, fit: Fit) -> list[float]:
    (point,) = units.from_world(center.astype(np.float64)[None], unit=source.meters, up=source.up, origin=fit.origin)
    return [round(float(value), 6) for value in point]


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
