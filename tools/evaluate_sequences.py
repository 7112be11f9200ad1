"""Score sequence fits against the true motion of synthetic people.

    shapespace evaluate-sequences humans data/people --frames 12 --people 2
    shapespace evaluate-sequences humans data/people --cases single_view noise --sequence.acceleration-std 0.1

DATA is a folder that `shapespace synthesize` wrote. Consecutive frames of a motion clip, performed by people of the
split, are scanned, corrupted (cases of `robustness`), and fitted alone and jointly, then jointly with one frame in five
missing. Scores are `surface_distance`, in place, and the acceleration error. Writes `sequences.json` and
`sequences.md`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro

from shapespace.evaluation import sequences
from shapespace.evaluation.robustness import check_cases
from shapespace.evaluation.scores import write_table
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.sequence import SequenceOptions
from shapespace.space import ShapeSpace
from shapespace.synthetic.people import read_synthesis
from shapespace.tools._outputs import model_folder, model_provenance


def main(
    run: Annotated[str, tyro.conf.Positional],
    data: Annotated[Path, tyro.conf.Positional],
    *,
    lm: LMOptions,
    sequence: SequenceOptions,
    split: str = "unseen_people",
    frames: int = 12,
    people: int = 2,
    cases: tuple[str, ...] = ("complete", "single_view"),
    resolution: int = 96,
    out: Path | None = None,
    seed: int = 0,
) -> None:
    """Score sequence fits.

    Args:
        run: Folder of a run, model file (.safetensors), or name of a packaged model.
        data: Folder that `shapespace synthesize` wrote.
        lm: Settings of the fits of single frames.
        sequence: Settings of the joint fits.
        split: Split with the people.
        frames: Consecutive frames of each motion.
        people: Number of people, with one motion each.
        cases: Corruptions of the scans.
        resolution: Grid cells along an edge of the model cube.
        out: Folder for sequences.json and sequences.md; `motion` in the folder of the model by default.
        seed: Seed of the motions, the scans and the fits.

    """
    check_cases(cases)
    space, synthesis, folder = (
        ShapeSpace.load(run),
        read_synthesis(data),
        out or model_folder(Path(run), Path()) / "motion",
    )
    motions = list(sequences.sample_motions(synthesis, split, people, frames, seed))
    rows = [
        row
        for case in cases
        for motion in motions
        for row in sequences.score_motion(space, motion, case, lm, sequence, resolution=resolution, seed=seed)
    ]
    settings = {**model_provenance(Path(run), space), "lm": asdict(lm), "sequence": asdict(sequence)}
    settings |= {"data": data.resolve().name, "split": split, "frames": frames, "resolution": resolution, "seed": seed}
    note = f"Means over {len(motions)} motions, mm; seconds of one frame."
    page = write_table(
        folder, "sequences", rows, sequences.sequence_table(rows), note, settings=settings, text_columns=2
    )
    print(f"{page}\ntable in {folder / 'sequences.md'}, rows in {folder / 'sequences.json'}")


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
