"""Reconstruct the surface of one scan without a shape space (IGR, section 5); points in the plane give a curve.

    shapespace reconstruct scan.ply --out surface
    shapespace reconstruct points.xyz --normals drop --out surface      (ignore the normals of the file)
    shapespace reconstruct outline.csv --out curve                      (x, y or x, y, nx, ny)
    shapespace reconstruct scan.ply --config single_scan_paper --optim.max-minutes 10 --no-detail --out paper

The scan shows one object of any kind, in any unit; distant points reduce the resolution of the rest. Openings of the
scan are closed by the field. Writes `surface.ply` and `surface.png` (or `contour.svg` and `contour.png`), and the files
of a training. The default is `--config single_scan`. Notes about normals go to standard error.
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from shapespace.fitting.refine import RefineOptions
from shapespace.geometry.normals import is_flat
from shapespace.geometry.scan import Scan
from shapespace.io import checks, scan_files, units
from shapespace.reconstruct import DETAIL, Reconstruction, reconstruct
from shapespace.rendering import plots, renderer, sheet
from shapespace.training.config import TrainConfig
from shapespace.training.run import Run

CONFIG = "single_scan"


def main(
    points: Annotated[Path, tyro.conf.Positional],
    *,
    config: Annotated[TrainConfig[Any], tyro.conf.arg(name="")],
    refine: RefineOptions = DETAIL,
    up: units.Up = "y",
    normals: checks.Normals = "auto",
    detail: bool = True,
    resolution: int = 256,
    out: Path = Path("reconstructed"),
) -> None:
    """Reconstruct one surface.

    Args:
        points: File of the scan: points or a mesh, in space or in the plane.
        config: Settings of the training.
        refine: Settings of the detail.
        up: Up axis of the file and of the surface.
        normals: Use of the file's normals: auto uses them if present, require needs them, drop ignores them.
        detail: Refinement of the field on the points after the training; in space only.
        resolution: Cells of the grid along the edge of the cube around the scan.
        out: Folder for all results.

    """
    scan = scan_files.read_scan(points, name=points.stem, up=up, normals=normals)
    if normals == "drop":
        scan = replace(scan, normals=None)
    run = Run(out)
    run.create({"scan": str(points), **asdict(config)})
    options = refine if detail else None
    result = reconstruct(scan, run, config, options, seed=config.seed)
    for hint in result.hints:
        print(f"note: {hint}", file=sys.stderr)
    write = _write_curve if is_flat(scan.points) else _write_surface
    write(result, scan, out, up, resolution)


def _write_surface(result: Reconstruction, scan: Scan, out: Path, up: units.Up, resolution: int) -> None:
    mesh = result.mesh(resolution=resolution)
    scan_files.write_mesh(out / "surface.ply", mesh, up=up)
    titles = (f"{len(scan):,} points", "surface")
    sheet.contact_sheet([(scan.name, [renderer.scan_to_mesh(scan), mesh])], out / "surface.png", titles=titles)
    print(f"surface in {out / 'surface.ply'}, picture in {out / 'surface.png'}")


def _write_curve(result: Reconstruction, scan: Scan, out: Path, up: units.Up, resolution: int) -> None:
    values, axes = result.plane(resolution=2 * resolution)
    plots.write_curves(out / "contour.svg", result.contours(resolution=2 * resolution))
    plots.write_png(plots.level_lines(values, axes, np.asarray(scan.points[:, :2])), out / "contour.png")
    print(f"curve in {out / 'contour.svg'}, picture in {out / 'contour.png'}")


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
