"""Fit the codes of unseen scans, and mesh them at the positions of the scans.

    shapespace fit runs/people scan.ply another.obj --out fitted
    shapespace fit runs/people --store data/people.h5 --split unseen_people --out fitted
    shapespace fit humans scan.ply --method refine --out fitted         (also adapt the weights: detail, half a minute)
    shapespace fit runs/people scan.ply --method adam --out fitted      (the paper's method: minutes for each scan)
    shapespace fit humans view.png --posterior-samples 4 --out fitted   (and four other bodies that the scan may show)
    shapespace fit humans --store data/people.h5 --split unseen_people --shard 2/4      (the second of four shares)
    shapespace fit humans - < scan.ply > mesh.ply                       (standard input to standard output)
    shapespace fit humans view.png --out fitted                         (a depth image; its camera is view.json)
    shapespace fit humans walk/*.ply --as-sequence --out walked         (the frames of a motion, jointly)
    shapespace fit runs/people scan.ply --surface field --resolution 256 --out fitted (marching cubes, no template)

Writes `codes.safetensors` (codes, frames, covariances), `fits.json` (quality of each fit: residuals,
out-of-distribution score, coverage of the surface by the scan; and seconds) and one PLY for each scan, in its unit and
with its up axis; for a sequence also `sequence.glb`, an animation. After an interruption the same command continues; a
sequence starts again.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from shapespace.fitting.clutter import Clutter
from shapespace.fitting.fit import AdamOptions
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.refine import RefineOptions
from shapespace.fitting.sequence import SequenceOptions, order_frames
from shapespace.io.scan_files import MeshFormat
from shapespace.space import ShapeSpace
from shapespace.tools._inputs import PIPE, NamedScan, ScanInput, named_scans, remove_clutter, report_new_findings
from shapespace.tools._outputs import (
    MeshOptions,
    check_unique_names,
    choose_surface,
    output_path,
    warn_about_fits,
    write_meshes,
    write_results,
)
from shapespace.tools._resume import Chunk, given_shard, resumable


@dataclass(frozen=True)
class FitOptions:
    """How to fit the scans."""

    method: Literal["auto", "lm", "adam", "refine"] = "auto"
    """Levenberg-Marquardt on the code (lm), IGR's Adam (adam), or lm and then the weights adapted to each scan
    (refine); auto is lm where the family supports it, and otherwise Adam from the encoder's code."""
    clutter: Clutter = "remove"
    """Removal of planes that bound a scan (floor, walls), of parts apart from the person and of isolated points, before
    the fit."""
    as_sequence: bool = False
    """Joint fit of the scans as frames of one motion, in natural order of their names. Frames that are missing, cannot
    be read or are out of distribution are interpolated."""
    seed: int = 0
    """Seed of the points that are drawn from each scan."""
    lm: LMOptions = field(default_factory=LMOptions)
    """Settings of --method lm."""
    adam: AdamOptions = field(default_factory=AdamOptions)
    """Settings of --method adam."""
    refine: RefineOptions = field(default_factory=RefineOptions)
    """Settings of --method refine."""
    sequence: SequenceOptions = field(default_factory=SequenceOptions)
    """Settings of --as-sequence."""


@dataclass(frozen=True)
class FitScans:
    """Fit scans with the same settings, and write their meshes."""

    space: ShapeSpace
    out: Path
    source: ScanInput
    meshing: MeshOptions
    options: FitOptions
    format: MeshFormat = "ply"

    def __call__(self, scans: Sequence[NamedScan]) -> Chunk:
        """Fits and records of some scans."""
        options, space = self.options, self.space
        read = [scan.read() for scan in scans]
        read = order_frames(read) if options.as_sequence else read
        read = remove_clutter(space, read, options.clutter, options.lm, options.seed)
        if options.as_sequence:
            fits = space.fit_sequence(read, options.sequence, lm=options.lm, seed=options.seed)
        else:
            method = "lm" if options.method == "refine" else options.method
            fits = space.fit_scans(
                read,
                method=method,
                lm=options.lm,
                adam=options.adam,
                seed=options.seed,
                outliers=options.clutter,
            )
        report_new_findings(read, fits)
        refined = space.refine(read, fits, options.refine, seed=options.seed) if options.method == "refine" else None
        fps = options.sequence.fps if options.as_sequence else None
        records = write_meshes(
            fits,
            read,
            space,
            self.out,
            self.source,
            self.meshing,
            refined,
            fps,
            seed=options.seed,
            format=self.format,
        )
        return Chunk(fits, records)

    def run(self, scans: Sequence[NamedScan], shard: str | None) -> AbstractContextManager[Chunk | None]:
        """All results as `resumable` gives them; frames of a sequence, and a scan to standard output, at once."""
        if self.options.as_sequence or self.out == Path(PIPE):
            return nullcontext(self(scans))
        return resumable(self.out, self.settings(scans), scans, self, self.space, shard)

    def settings(self, scans: Sequence[NamedScan]) -> dict[str, Any]:
        """All that the results depend on."""
        return {
            "verb": "fit",
            "model": self.space.model.fingerprint(),
            "scans": [(scan.name, scan.digest()) for scan in scans],
            "options": (self.source, self.meshing, self.options, self.format),
        }


def main(
    run: Annotated[Path, tyro.conf.Positional],
    scans: Annotated[list[str], tyro.conf.Positional],
    *,
    source: Annotated[ScanInput, tyro.conf.arg(name="")],
    meshing: Annotated[MeshOptions, tyro.conf.arg(name="")],
    options: Annotated[FitOptions, tyro.conf.arg(name="")],
    out: Path | None = None,
    strict: bool = False,
    shard: str | None = None,
) -> None:
    """Fit scans.

    Args:
        run: Folder of a run, a model's .safetensors file, or the name of a packaged model.
        scans: Scan files, `example`, - for standard input, or names in a store.
        source: How to read the scans.
        meshing: How to mesh the fits.
        options: How to fit the scans.
        out: Folder for codes, meshes and fits.json, or - for one mesh on standard output; by default `fitted`, or - for
            a scan from standard input.
        strict: Exit code 2 if a scan is out of distribution or a fit has low confidence; all results are written first.
        shard: Share of the scans for this process: 2/4 is the second of four; under torchrun it is given by the rank.
            The last shard writes the result.

    """
    shard = given_shard(shard)
    where = output_path(out, scans, "fitted", meshing)
    check_options(options, shard, where)
    space = ShapeSpace.load(run)
    choose_surface(space, meshing.surface, options.method)
    named, source = named_scans(scans, source, interpolate=options.as_sequence)
    check_unique_names([scan.name for scan in named])
    with FitScans(space, where, source, meshing, options).run(named, shard) as result:
        if result is not None:
            write_results(result.fits, result.metadata, space, where, meshing)
    if result is not None:
        warn_about_fits(result.metadata, strict=strict)


def check_options(options: FitOptions, shard: str | None, out: Path) -> None:
    """Refuse options that contradict --as-sequence, and shards to standard output."""
    if shard is not None and out == Path(PIPE):
        raise ValueError(f"--shard {shard}: standard output takes one scan. Pass --out FOLDER.")
    if options.as_sequence and options.method not in ("auto", "lm"):
        raise ValueError(f"--as-sequence fits by Levenberg-Marquardt, not by {options.method}. Remove --method.")
    if options.as_sequence and shard is not None:
        raise ValueError(f"--shard {shard}: the frames of --as-sequence are fitted together. Remove --shard.")


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
