"""Interpolate between two shapes.

    shapespace interpolate runs/people standing.ply sitting.ply --out interpolated
    shapespace interpolate runs/people 03/walk/000001 03/jump/000002 --store data/people.h5 --steps 12
    shapespace interpolate runs/people fitted/codes.safetensors:a fitted/codes.safetensors:b --path slerp
    shapespace interpolate runs/people standing.ply sitting.ply --transfer-pose
    shapespace interpolate runs/people standing.ply sitting.ply --surface field --resolution 256

If the model has parts, they turn about their joints; otherwise the code goes straight. With --transfer-pose the person
of the first shape takes the pose of the second, at its place.

An end is a scan file, `example`, a name in a store (these are fitted first), or a code, `codes.safetensors:NAME`.
Writes the meshes, an animated GLB (one mesh that moves, if the model has a template), a contact sheet with curves of
area and volume (PNG), and `path.json` with the curves and SA-sigma.
"""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.result import Fit, load_fits
from shapespace.fitting.surface import Surface
from shapespace.interpolation import InterpolationPath, choose_path, has_parts
from shapespace.io.errors import did_you_mean
from shapespace.models import registry
from shapespace.space import ShapeSpace
from shapespace.tools._inputs import ScanInput, read_scans
from shapespace.tools._outputs import choose_surface, write_interpolation


def main(
    run: Annotated[Path, tyro.conf.Positional],
    a: Annotated[str, tyro.conf.Positional],
    b: Annotated[str, tyro.conf.Positional],
    *,
    source: Annotated[ScanInput, tyro.conf.arg(name="")],
    lm: LMOptions,
    steps: int = 9,
    path: InterpolationPath = "auto",
    transfer_pose: bool = False,
    out: Path = Path("interpolation"),
    resolution: int = 128,
    surface: Surface = "auto",
    format: Literal["ply", "obj"] = "obj",
    seed: int = 0,
) -> None:
    """Interpolate between two shapes.

    Args:
        run: Folder of a run, a model's .safetensors file, or the name of a packaged model.
        a: First shape.
        b: Last shape.
        source: How to read scans.
        lm: Settings of the fits.
        steps: Number of shapes, both ends included.
        path: Along the joints (parts), straight between the codes (linear), spherical linear interpolation (slerp), or
            with the least motion of the surface (geodesic); auto is parts if the model has parts, otherwise linear.
        transfer_pose: Whether the last shape is the person of the first in the pose of the second.
        out: Folder for all results.
        resolution: Cells of the grid along the model cube's edge, of meshes of the field.
        surface: What is meshed: the model's template, registered to the shapes (equal faces for all), or its field;
            auto is the template if the model has one.
        format: Format of the meshes.
        seed: Seed of the points that are drawn from the scans.

    """
    space = ShapeSpace.load(run)
    if transfer_pose and not has_parts(space.model):
        family = registry.family_name(space.config)
        raise ValueError(f"--transfer-pose: family {family} has no parts. Use a space of the articulated family.")
    surface = choose_surface(space, surface)
    path = choose_path(space.model, path)
    (start, end), source = _ends(space, (a, b), source, lm, seed)
    if transfer_pose:
        end = space.transfer_pose(end, start)
    write_interpolation(
        space,
        start,
        end,
        out,
        steps=steps,
        path=path,
        resolution=resolution,
        surface=surface,
        format=format,
        unit=source.meters,
        up=source.up,
    )


def _ends(
    space: ShapeSpace, words: tuple[str, str], source: ScanInput, lm: LMOptions, seed: int
) -> tuple[list[Fit], ScanInput]:
    """The two ends, read from a file of codes or fitted together, and how their scans were read."""
    read = [_read_code(space, word) for word in words]
    named = [word for word, fit in zip(words, read, strict=True) if fit is None]
    scans, source = read_scans(named, source, empty=True)
    fitted = iter(space.fit_scans(scans, lm=lm, seed=seed) if scans else [])
    return [next(fitted) if fit is None else fit for fit in read], source


def _read_code(space: ShapeSpace, word: str) -> Fit | None:
    """The code that a word names, or None if the word names a scan."""
    file, separator, name = word.rpartition(".safetensors:")
    if not separator:
        return None
    path = Path(f"{file}.safetensors")
    fits = {fit.name: fit for fit in load_fits(path, space.model)}
    if name not in fits:
        raise ValueError(f"{path}: no code {name!r}. {did_you_mean(name, sorted(fits))}")
    return fits[name]


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
