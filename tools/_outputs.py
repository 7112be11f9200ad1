"""What `encode` and `fit` leave: codes, a record, and meshes; or one mesh on standard output."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from tqdm import tqdm

from shapespace.atomic import replacing
from shapespace.data import files
from shapespace.space import Components, Fit, ShapeSpace, save_fits
from shapespace.tools._inputs import PIPE, Source, file_name


@dataclass(frozen=True)
class Meshing:
    """How to mesh what was found."""

    resolution: int = 128
    """Cells of the mesh's grid along the model cube's edge; 0 makes no meshes."""
    components: Components = "largest"
    """Keep the largest component of each mesh, or all."""


def destination(out: Path | None, scans: Sequence[str], folder: str, meshing: Meshing) -> Path:
    """Where results go: what was said, else standard output (-) for the scan of standard input, else the folder.

    Raises `ValueError` if standard output cannot take them; nobody should hear so after the work.
    """
    where = out if out is not None else Path(PIPE if list(scans) == [PIPE] else folder)
    if where != Path(PIPE):
        return where
    if len(scans) != 1 or not meshing.resolution:
        raise ValueError(
            f"standard output takes one mesh, and {len(scans)} scans with --resolution {meshing.resolution} are asked "
            "for. Say --out FOLDER."
        )
    if sys.stdout.isatty():
        raise ValueError("the mesh would go to the terminal, as a binary PLY. Add > mesh.ply, or --out FOLDER.")
    return where


def write(
    fits: Sequence[Fit],
    space: ShapeSpace,
    out: Path,
    source: Source,
    meshing: Meshing,
    refined: Iterable[ShapeSpace] | None = None,
) -> None:
    """Codes, the record of the fits, and the meshes, which lie where the scans do; one mesh alone if `out` is -.

    The codes are those of `space`; the meshes too, unless each scan has a `refined` space of its own.
    """
    unit, up = source.metres, source.up
    own = repeat(space) if refined is None else refined
    meshes = (
        its.mesh(fit, resolution=meshing.resolution, components=meshing.components)
        for fit, its in zip(fits, own, strict=False)
    )
    if out == Path(PIPE):
        sys.stdout.buffer.write(files.mesh_bytes(next(meshes), unit=unit, up=up))
        return
    out.mkdir(parents=True, exist_ok=True)
    save_fits(out / "codes.safetensors", fits, space)
    with replacing(out / "fits.json") as part:
        part.write_text(json.dumps([_record(fit) for fit in fits], indent=1))
    if meshing.resolution:
        for fit, mesh in zip(tqdm(fits, desc="mesh", unit="scan", disable=len(fits) < 2), meshes, strict=True):
            files.write_mesh(out / f"{file_name(fit.name)}.ply", mesh, unit=unit, up=up)
        print(f"{len(fits)} meshes in {out}")
    print(f"{len(fits)} codes in {out / 'codes.safetensors'}")


def _record(fit: Fit) -> dict[str, object]:
    row: dict[str, object] = {"name": fit.name, "seconds": round(fit.seconds, 3)}
    if len(fit.residuals):
        median, p95 = np.percentile(fit.residuals * 1000, [50, 95])
        row |= {"residual_median_mm": round(float(median), 3), "residual_p95_mm": round(float(p95), 3)}
    return row
