"""Make a dataset of synthetic people: raw virtual scans, their registrations, and splits.

    shapespace synthesize OUT --people 12 --poses 10 --test-poses 1 --test-people 4 --seed 7

The layout is that of D-FAUST: OUT/scans/SUBJECT/SEQUENCE/SEQUENCE.FRAME.ply, OUT/registrations.hdf5, OUT/splits/*.json.
A sequence is `limits` or `wide` (drawn poses: `--poses-from`) or a motion clip (walk, run, ...). OUT/captures.json says
of every scan what it shows: kind of the pose, scanner, hair, clothes, stature. The same seed gives the same bytes for
any number of processes. Run the same command again to continue an interrupted run.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated

import tyro

from shapespace.synthetic.people import Appearance, PoseRange, Scanners, SynthesisConfig, synthesize


def main(
    out: Annotated[Path, tyro.conf.Positional],
    people: int = 12,
    poses: int = 10,
    test_people: int = 4,
    poses_per_test_person: int = 3,
    test_poses: int = 1,
    motion_fraction: float = 0.5,
    poses_from: PoseRange = "limits",
    appearance: Appearance = "bare",
    scanners: Scanners = "ring",
    seed: int = 0,
    jobs: int | None = None,
) -> None:
    """Make a dataset of synthetic people: raw virtual scans, their registrations, and splits.

    Args:
        out: Folder of the dataset.
        people: Number of people in training.
        poses: Poses of each of them, test poses included.
        test_people: Number of further people (split unseen_people).
        poses_per_test_person: Poses of each of these.
        test_poses: Test poses of each person in training (split unseen_poses).
        motion_fraction: Fraction of the poses from motion clips; the others are drawn (`--poses-from`).
        poses_from: Draw poses within narrow joint limits, or wide: arms to the vertical, folded and at the head, bent
            trunks, crouches, fingers that move (then the hands of motion clips move, too).
        appearance: People bare, or varied: more builds and sizes, asymmetry, hair and tight clothes.
        scanners: A ring of 16 depth cameras, or varied: six kinds of scanners, one drawn for each scan.
        seed: Seed of all random numbers.
        jobs: Number of processes; one per CPU core if not given.

    """
    config = SynthesisConfig(
        people,
        poses,
        test_people,
        poses_per_test_person,
        test_poses,
        motion_fraction,
        seed,
        poses_from,
        appearance,
        scanners,
    )
    captures = synthesize(config, out, jobs)
    counts = Counter(capture.split for capture in captures)
    print(f"{len(captures)} scans: " + ", ".join(f"{count} {split}" for split, count in counts.items()))
    print(out)


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
