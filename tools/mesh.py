"""Mesh the codes that `encode` or `fit` wrote, at any resolution and in any format.

    shapespace mesh runs/people fitted/codes.safetensors --format obj --out meshes
    shapespace mesh runs/people fitted/codes.safetensors --surface field --resolution 512 --out meshes

Writes one mesh for each code, in meters, y up.
"""

from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from shapespace.fitting.result import load_fits
from shapespace.fitting.surface import Components, Surface
from shapespace.io import scan_files
from shapespace.io.scan_files import MeshFormat, file_name
from shapespace.space import ShapeSpace
from shapespace.tools._outputs import choose_surface


def main(
    run: Annotated[Path, tyro.conf.Positional],
    codes: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path = Path("meshes"),
    resolution: int = 256,
    format: MeshFormat = "ply",
    components: Components = "largest",
    surface: Surface = "auto",
) -> None:
    """Mesh codes.

    Args:
        run: Folder of a run, a model's .safetensors file, or the name of a packaged model.
        codes: File codes.safetensors that `encode` or `fit` wrote.
        out: Folder for the meshes.
        resolution: Cells of the grid along the model cube's edge, of meshes of the field.
        format: Format of the meshes.
        components: Components of each mesh of the field that are written: the largest, or all.
        surface: What is meshed: the model's template, registered to the shapes (equal faces for all), or its field;
            auto is the template if the model has one.

    """
    space = ShapeSpace.load(run)
    surface = choose_surface(space, surface)
    fits = load_fits(codes, space.model)
    for fit in tqdm(fits, desc="mesh", unit="scan", disable=len(fits) < 2):
        mesh = space.mesh(fit, resolution=resolution, components=components, surface=surface)
        scan_files.write_mesh(out / f"{file_name(fit.name)}.{format}", mesh, origin=fit.origin)
    print(f"{len(fits)} meshes in {out}")


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
