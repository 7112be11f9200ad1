"""Move between two shapes of the space.

    shapespace interpolate runs/people standing.ply sitting.ply --out between
    shapespace interpolate runs/people 03/walk/000001 03/jump/000002 --store data/people.h5 --steps 12
    shapespace interpolate runs/people fitted/codes.safetensors:a fitted/codes.safetensors:b --path slerp

An end is a scan file, a name in a store (both are fitted first), or `codes.safetensors:NAME`. Writes the
meshes, one animated GLB, a contact sheet with the path's area and volume curves (PNG), and `path.json` with the
curves and SA-sigma.
"""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.result import Fit, load_fits
from shapespace.interpolation import InterpolationPath as CodePath
from shapespace.space import ShapeSpace
from shapespace.tools._inputs import ScanInput, read_scans
from shapespace.tools._outputs import write_interpolation


def main(
    run: Annotated[Path, tyro.conf.Positional],
    a: Annotated[str, tyro.conf.Positional],
    b: Annotated[str, tyro.conf.Positional],
    *,
    source: Annotated[ScanInput, tyro.conf.arg(name="")],
    lm: LMOptions,
    steps: int = 9,
    path: CodePath = "linear",
    out: Path = Path("interpolation"),
    resolution: int = 128,
    format: Literal["ply", "obj"] = "obj",
    seed: int = 0,
) -> None:
    """Interpolate.

    Args:
        run: Folder of a run, or a model's .safetensors file.
        a: Where the path begins.
        b: Where it ends.
        source: How to read scans.
        lm: Settings of the fits.
        steps: Shapes on the path, both ends included.
        path: Straight, along the great circle, or the way on which the surface moves least.
        out: Folder for everything.
        resolution: Cells of the mesh's grid along the model cube's edge.
        format: Format of the meshes.
        seed: Of the points that are drawn from the scans.

    """
    space = ShapeSpace.load(run)
    (start, end), source = _ends(space, (a, b), source, lm, seed)
    write_interpolation(
        space,
        start,
        end,
        out,
        steps=steps,
        path=path,
        resolution=resolution,
        format=format,
        unit=source.metres,
        up=source.up,
    )


def _ends(
    space: ShapeSpace, words: tuple[str, str], source: ScanInput, lm: LMOptions, seed: int
) -> tuple[list[Fit], ScanInput]:
    """The two ends, read from a file of codes, or fitted together; and how their scans were read."""
    read = [_read(space, word) for word in words]
    unknown = [word for word, fit in zip(words, read, strict=True) if fit is None]
    scans, source = read_scans(unknown, source, empty=True)
    fitted = iter(space.fit_scans(scans, lm=lm, seed=seed) if scans else [])
    return [next(fitted) if fit is None else fit for fit in read], source


def _read(space: ShapeSpace, word: str) -> Fit | None:
    file, mark, name = word.rpartition(".safetensors:")
    if not mark:
        return None
    path = Path(f"{file}.safetensors")
    fits = {fit.name: fit for fit in load_fits(path, space.model)}
    if name not in fits:
        raise ValueError(f"no code named {name!r} in {path}; there are {', '.join(sorted(fits))}.")
    return fits[name]


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
