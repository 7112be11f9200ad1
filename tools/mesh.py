"""Mesh codes that `encode` or `fit` wrote, at any resolution and in any format.

shapespace mesh runs/people fitted/codes.safetensors --resolution 256 --format obj --out meshes
"""

from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from shapespace.fitting.result import load_fits
from shapespace.io import scan_files
from shapespace.io.scan_files import file_name
from shapespace.space import Components, ShapeSpace


def main(
    run: Annotated[Path, tyro.conf.Positional],
    codes: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path = Path("meshes"),
    resolution: int = 256,
    format: Literal["ply", "obj", "glb"] = "ply",
    components: Components = "largest",
) -> None:
    """Mesh codes.

    Args:
        run: Folder of a run, or a model's .safetensors file.
        codes: The codes.safetensors of `shapespace encode` or `shapespace fit`.
        out: Folder for the meshes; metres, y up.
        resolution: Cells of the grid along the model cube's edge.
        format: Format of the meshes.
        components: Keep the largest component of each mesh, or all.

    """
    space = ShapeSpace.load(run)
    fits = load_fits(codes, space.model)
    for fit in tqdm(fits, desc="mesh", unit="scan", disable=len(fits) < 2):
        mesh = space.mesh(fit, resolution=resolution, components=components)
        scan_files.write_mesh(out / f"{file_name(fit.name)}.{format}", mesh)
    print(f"{len(fits)} meshes in {out}")


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
