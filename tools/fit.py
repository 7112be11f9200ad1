"""Fit the codes of scans that training never saw, and mesh them where the scans lie.

    shapespace fit runs/people scan.ply another.obj --out fitted
    shapespace fit runs/people --store data/people.h5 --split unseen_people --out fitted
    shapespace fit humans scan.ply --method refine --out fitted         (then adapt the weights: detail, half a minute)
    shapespace fit runs/people scan.ply --method adam --out fitted      (the paper's protocol: minutes a scan)
    shapespace fit humans view.png --samples 4 --out fitted             (and what else may be on the side nobody saw)
    shapespace fit humans - < scan.ply > mesh.ply                       (a scan from standard input, its mesh to output)
    shapespace fit humans view.png --out fitted                         (a depth image; its camera is view.json)
    shapespace fit humans walk/*.ply --sequence --out walked            (the frames of a motion, jointly)

Writes `codes.safetensors` (codes, places, covariances), `fits.json` (a verdict on each scan: residuals, how odd its
code is, how much of the surface it saw; and seconds) and one PLY for each scan, in its unit and with its up axis; for
a sequence also `sequence.glb`, an animation.
"""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from shapespace.fit import AdamOptions, LMOptions
from shapespace.refine import RefineOptions
from shapespace.sequence import SequenceOptions, in_time
from shapespace.space import ShapeSpace
from shapespace.tools._inputs import Clutter, Source, cleared, gather
from shapespace.tools._outputs import Meshing, destination, write


def main(
    run: Annotated[Path, tyro.conf.Positional],
    scans: Annotated[list[str], tyro.conf.Positional],
    *,
    source: Annotated[Source, tyro.conf.arg(name="")],
    meshing: Annotated[Meshing, tyro.conf.arg(name="")],
    lm: LMOptions,
    adam: AdamOptions,
    refine: RefineOptions,
    joint: SequenceOptions,
    out: Path | None = None,
    method: Literal["auto", "lm", "adam", "refine"] = "auto",
    clutter: Clutter = "remove",
    sequence: bool = False,
    strict: bool = False,
    seed: int = 0,
) -> None:
    """Fit scans.

    Args:
        run: Folder of a run, or a model's .safetensors file.
        scans: Scan files, - for standard input, or names in a store.
        source: How to read them.
        meshing: How to mesh what was found.
        lm: Settings of --method lm.
        adam: Settings of --method adam.
        refine: Settings of --method refine.
        joint: Settings of --sequence.
        out: Folder for codes, meshes and fits.json, or - for the mesh alone on standard output; `fitted` by default,
            and - for a scan from standard input.
        method: Levenberg-Marquardt on the code (lm), IGR's Adam (adam), or lm and then the weights adapted to each scan
            (refine); auto is lm where the family allows it, and otherwise Adam from the encoder's code.
        clutter: Whether planes that bound a scan (floor, walls) and parts that stand apart from the person are removed
            before the fit; scans without are fitted as they are.
        sequence: The scans are frames of one motion, in natural order of their names, and are fitted jointly. Frames
            whose number is missing, that cannot be read or that are like nobody are bridged.
        strict: End with an error if a scan does not look like those that the space was learned from.
        seed: Of the points that are drawn from each scan.

    """
    if sequence and method not in ("auto", "lm"):
        raise ValueError(f"--sequence fits by Levenberg-Marquardt, and --method {method} is asked for: leave it out.")
    where = destination(out, scans, "fitted", meshing)
    space = ShapeSpace.load(run)
    gathered, source = gather(scans, source, bridge=sequence)
    if sequence:
        gathered = in_time(gathered)
    gathered = cleared(space, gathered, clutter, lm, seed)
    if sequence:
        fits = space.fit_sequence(gathered, joint, lm=lm, seed=seed)
    else:
        fits = space.fit_scans(gathered, method="lm" if method == "refine" else method, lm=lm, adam=adam, seed=seed)
    refined = space.refine(gathered, fits, refine, seed=seed) if method == "refine" else None
    write(
        fits,
        gathered,
        space,
        where,
        source,
        meshing,
        refined,
        joint.fps if sequence else None,
        strict=strict,
        seed=seed,
    )


if __name__ == "__main__":
    from shapespace.tools.__main__ import run as run_tool

    run_tool(main)
