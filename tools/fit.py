"""Fit the codes of scans that training never saw, and mesh them where the scans lie.

    shapespace fit runs/people scan.ply another.obj --out fitted
    shapespace fit runs/people --store data/people.h5 --split unseen_people --out fitted
    shapespace fit runs/people scan.ply --method adam --out fitted      (the paper's protocol: minutes a scan)

Writes `codes.safetensors` (codes, places, covariances), `fits.json` (residuals and seconds of each scan) and one PLY a
scan, in the unit and with the up axis of the scan.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from tqdm import tqdm

from shapespace.atomic import replacing
from shapespace.data import files
from shapespace.fit import AdamOptions, LMOptions
from shapespace.space import Components, Fit, ShapeSpace, save_fits
from shapespace.tools._inputs import Source, file_name, gather


def main(
    run: Annotated[Path, tyro.conf.Positional],
    scans: Annotated[list[str], tyro.conf.Positional],
    *,
    source: Annotated[Source, tyro.conf.arg(name="")],
    lm: LMOptions,
    adam: AdamOptions,
    out: Path = Path("fitted"),
    method: Literal["lm", "adam"] = "lm",
    resolution: int = 128,
    components: Components = "largest",
    seed: int = 0,
) -> None:
    """Fit scans.

    Args:
        run: Folder of a run, or a model's .safetensors file.
        scans: Scan files, or names in a store.
        source: How to read them.
        lm: Settings of --method lm.
        adam: Settings of --method adam.
        out: Folder for codes, meshes and fits.json.
        method: Levenberg-Marquardt on the code, or the paper's Adam.
        resolution: Cells of the mesh's grid along the model cube's edge; 0 makes no meshes.
        components: Keep the largest component of each mesh, or all.
        seed: Of the points that are drawn from each scan.

    """
    space = ShapeSpace.load(run)
    fits = space.fit_scans(gather(scans, source), method=method, lm=lm, adam=adam, seed=seed)
    write(fits, space, out, source, resolution, components)


def write(
    fits: list[Fit], space: ShapeSpace, out: Path, source: Source, resolution: int, components: Components
) -> None:
    """Codes, the record of the fits, and the meshes."""
    out.mkdir(parents=True, exist_ok=True)
    save_fits(out / "codes.safetensors", fits, space)
    with replacing(out / "fits.json") as part:
        part.write_text(json.dumps([_record(fit) for fit in fits], indent=1))
    if resolution:
        for fit in tqdm(fits, desc="mesh", unit="scan", disable=len(fits) < 2):
            mesh = space.mesh(fit, resolution=resolution, components=components)
            files.write_mesh(out / f"{file_name(fit.name)}.ply", mesh, unit=files.UNITS[source.unit], up=source.up)
        print(f"{len(fits)} meshes in {out}")
    print(f"{len(fits)} codes in {out / 'codes.safetensors'}")


def _record(fit: Fit) -> dict[str, object]:
    row: dict[str, object] = {"name": fit.name, "seconds": round(fit.seconds, 3)}
    if len(fit.residuals):
        median, p95 = np.percentile(fit.residuals * 1000, [50, 95])
        row |= {"residual_median_mm": round(float(median), 3), "residual_p95_mm": round(float(p95), 3)}
    return row


if __name__ == "__main__":
    from shapespace.tools.__main__ import run as run_tool

    run_tool(main)
