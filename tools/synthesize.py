"""Draw people and poses, scan them virtually, and write raw scans beside the true registrations.

    shapespace synthesize OUT --people 12 --poses 10 --test-poses 1 --test-people 4 --seed 7

The layout is that of D-FAUST: OUT/scans/SUBJECT/SEQUENCE/SEQUENCE.FRAME.ply, OUT/registrations.hdf5, OUT/splits/*.json.
A sequence is a kind of pose: `limits` (every joint drawn within its limits) or a motion clip (walk, run, ...). The same
seed gives the same bytes, whatever the number of processes. A run that was stopped goes on where it stood.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import tyro

from shapespace.synthetic.people import SynthesisConfig, check, claim, list_captures, make, write_splits


def main(
    out: Annotated[Path, tyro.conf.Positional],
    people: int = 12,
    poses: int = 10,
    test_people: int = 4,
    poses_per_test_person: int = 3,
    test_poses: int = 1,
    motion_fraction: float = 0.5,
    seed: int = 0,
    jobs: int | None = None,
) -> None:
    """Draw people and poses, scan them virtually, and write raw scans beside the true registrations.

    Args:
        out: folder of the data set.
        people: people to train on.
        poses: poses of each of them, those held out included.
        test_people: further people, held out wholly (split unseen_people).
        test_people_poses: poses of each of these.
        test_poses: poses held out of each person to train on (split unseen_poses).
        motion: share of poses that come from motion clips; the others are drawn within joint limits.
        seed: seed of everything that is drawn.
        jobs: processes; by default one per CPU core.

    """
    plan = SynthesisConfig(people, poses, test_people, poses_per_test_person, test_poses, motion_fraction, seed)
    check(plan, jobs)
    claim(out, plan)
    captures = list(list_captures(plan))
    make(out, captures, seed, jobs or os.cpu_count() or 1)
    write_splits(out, captures)
    counts = Counter(capture.split for capture in captures)
    print(f"{len(captures)} scans: " + ", ".join(f"{count} {split}" for split, count in counts.items()))
    print(out)


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
