"""Fit the codes of scans that training never saw, and mesh them where the scans lie.

    shapespace fit runs/people scan.ply another.obj --out fitted
    shapespace fit runs/people --store data/people.h5 --split unseen_people --out fitted
    shapespace fit humans scan.ply --method refine --out fitted         (then adapt the weights: detail, half a minute)
    shapespace fit runs/people scan.ply --method adam --out fitted      (the paper's protocol: minutes a scan)
    shapespace fit humans view.png --posterior-samples 4 --out fitted             (and what else may be on the side nobody saw)
    shapespace fit humans --store data/people.h5 --split unseen_people --shard 2/4         (its part; see docs/trust.md)
    shapespace fit humans - < scan.ply > mesh.ply                       (a scan from standard input, its mesh to output)
    shapespace fit humans view.png --out fitted                         (a depth image; its camera is view.json)
    shapespace fit humans walk/*.ply --as-sequence --out walked            (the frames of a motion, jointly)

Writes `codes.safetensors` (codes, places, covariances), `fits.json` (a verdict on each scan: residuals, how odd its
code is, how much of the surface it saw; and seconds) and one PLY for each scan, in its unit and with its up axis; for
a sequence also `sequence.glb`, an animation. The same line goes on from where it was killed; a sequence begins anew.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shapespace.fitting.clutter import Clutter
from shapespace.fitting.fit import AdamOptions
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.refine import RefineOptions
from shapespace.fitting.sequence import SequenceOptions, order_frames
from shapespace.space import ShapeSpace
from shapespace.tools._inputs import PIPE, NamedScan, ScanInput, named_scans, remove_clutter
from shapespace.tools._outputs import (
    MeshOptions,
    check_unique_names,
    output_path,
    warn_about_fits,
    write_meshes,
    write_results,
)
from shapespace.tools._resume import Chunk, resumable


def main(
    run: Annotated[Path, tyro.conf.Positional],
    scans: Annotated[list[str], tyro.conf.Positional],
    *,
    source: Annotated[ScanInput, tyro.conf.arg(name="")],
    meshing: Annotated[MeshOptions, tyro.conf.arg(name="")],
    lm: LMOptions,
    adam: AdamOptions,
    refine: RefineOptions,
    sequence: SequenceOptions,
    out: Path | None = None,
    method: Literal["auto", "lm", "adam", "refine"] = "auto",
    clutter: Clutter = "remove",
    as_sequence: bool = False,
    strict: bool = False,
    seed: int = 0,
    shard: str | None = None,
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
        strict: End with an error if a scan does not look like those that the space was learned from, or if a fit is
            unsure: its scan saw too little for so odd a code.
        seed: Of the points that are drawn from each scan.
        shard: Which share of the scans this process fits, as 2/4: the second of four. Whichever of them is the last
            to end writes the result.

    """
    if as_sequence and method not in ("auto", "lm"):
        raise ValueError(
            f"--as-sequence fits by Levenberg-Marquardt, and --method {method} is asked for: leave it out."
        )
    if shard is not None and as_sequence:
        raise ValueError(f"--shard {shard} shares out many scans, and the frames of a --as-sequence are fitted as one.")
    where = output_path(out, scans, "fitted", meshing)
    if shard is not None and where == Path(PIPE):
        raise ValueError(f"--shard {shard} shares out many scans, and standard output takes one: say --out FOLDER.")
    space = ShapeSpace.load(run)
    given, source = named_scans(scans, source, bridge=as_sequence)
    check_unique_names([scan.name for scan in given])

    def work(some: Sequence[NamedScan]) -> Chunk:
        read = [scan.read() for scan in some]
        read = remove_clutter(space, order_frames(read) if as_sequence else read, clutter, lm, seed)
        if as_sequence:
            fits = space.fit_sequence(read, sequence, lm=lm, seed=seed)
        else:
            fits = space.fit_scans(read, method="lm" if method == "refine" else method, lm=lm, adam=adam, seed=seed)
        refined = space.refine(read, fits, refine, seed=seed) if method == "refine" else None
        fps = sequence.fps if as_sequence else None
        return Chunk(fits, write_meshes(fits, read, space, where, source, meshing, refined, fps, seed=seed))

    about = {
        "verb": "fit",
        "model": space.model.fingerprint(),
        "scans": [(scan.name, scan.digest()) for scan in given],
        "options": (source, meshing, method, lm, adam, refine, clutter, seed),
    }
    at_once = as_sequence or where == Path(PIPE)
    with nullcontext(work(given)) if at_once else resumable(where, about, given, work, space, shard) as whole:
        if whole is not None:
            write_results(whole.fits, whole.metadata, space, where, meshing)
    if whole is not None:
        warn_about_fits(whole.metadata, strict=strict)


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
