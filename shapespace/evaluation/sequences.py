"""Score sequence fits against true motion: frames fitted alone and jointly, and missing frames."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm
from trimesh import Trimesh

from shapespace.evaluation import metrics
from shapespace.evaluation.corruptions import CORRUPTIONS
from shapespace.evaluation.motion import acceleration_error, signed_offsets
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.result import Fit
from shapespace.fitting.sequence import SequenceOptions
from shapespace.geometry.scan import Scan
from shapespace.space import ShapeSpace
from shapespace.synthetic.body import Body
from shapespace.synthetic.people import SynthesisConfig, list_captures, person, sample_person
from shapespace.synthetic.poses import PoseLibrary
from shapespace.synthetic.scanner import VirtualScanner

COLUMNS = ("completeness", "accuracy", "acceleration_error")
ALONE, JOINT = "fitted alone", "fitted jointly"
MIDPOINT, INTERPOLATED = "missing: halfway between the neighbors' fits", "missing: interpolated by the joint fit"
_MISSING_EVERY, _FIRST_MISSING = 5, 2  # one frame in five is missing, never an end


@dataclass(frozen=True)
class Motion:
    """True bodies of consecutive frames of a motion clip, by one person."""

    subject: int
    clip: str
    ground_truth: list[Trimesh]

    @property
    def name(self) -> str:
        """Person and clip."""
        return f"{person(self.subject)}/{self.clip}"


def sample_motions(synthesis: SynthesisConfig, split: str, people: int, frames: int, seed: int) -> Iterator[Motion]:
    """One motion for each of the first people of a split: a different clip each, from a random first frame.

    Raises:
        ValueError: The number of frames is too small for a missing frame, or larger than a clip; the split is empty.

    """
    body = Body.load()
    poses = PoseLibrary.load(body)
    if not _MISSING_EVERY <= frames <= poses.length:
        raise ValueError(
            f"--frames {frames}: must be between {_MISSING_EVERY} and {poses.length}, the length of a clip."
        )
    subjects = sorted({capture.subject for capture in list_captures(synthesis) if capture.split == split})
    if not subjects:
        raise ValueError(f"--split {split}: no person of this dataset is in it. Choose another --split.")
    for index, subject in enumerate(subjects[:people]):
        rng = np.random.default_rng([seed, subject])
        clip, first = poses.clips[index % len(poses.clips)], int(rng.integers(poses.length - frames + 1))
        whole = sample_person(synthesis, subject)
        rotations = [poses.at(clip, float(first + step)) for step in range(frames)]
        ground_truth = [Trimesh(whole.skin(pose), body.faces, process=False) for pose in rotations]
        yield Motion(subject, clip, ground_truth)


def corrupt_motion(motion: Motion, case: str, seed: int) -> list[Scan]:
    """Virtual scans of the frames, corrupted as in the case."""
    scans = []
    for time, ground_truth in enumerate(motion.ground_truth):
        rng = np.random.default_rng([seed, motion.subject, time])
        scan = VirtualScanner().scan(
            np.asarray(ground_truth.vertices), np.asarray(ground_truth.faces), rng, f"{motion.name}/{time:06d}"
        )
        scans.append(CORRUPTIONS[case].apply(scan, ground_truth, rng)[0])
    return scans


def score_motion(
    space: ShapeSpace,
    motion: Motion,
    case: str,
    lm: LMOptions,
    options: SequenceOptions,
    *,
    resolution: int,
    seed: int,
) -> list[dict[str, Any]]:
    """A row for the frames fitted alone and jointly, and for the missing frames interpolated in both ways."""
    scans = corrupt_motion(motion, case, seed)
    alone = space.fit_scans(scans, method="lm", lm=lm, seed=seed)
    joint = space.fit_jointly(scans, alone, options, lm=lm, seed=seed)
    missing = range(_FIRST_MISSING, len(scans) - 1, _MISSING_EVERY)
    incomplete = [None if time in missing else fit for time, fit in enumerate(alone)]
    interpolated = space.fit_jointly(scans, incomplete, options, lm=lm, seed=seed)
    midpoints = [space.interpolate_codes(alone[time - 1], alone[time + 1], 3)[1] for time in missing]
    names = {"motion": motion.name, "case": case}
    rows = [
        {**names, "fit": kind, **_scores(space, fits, motion.ground_truth, resolution), "seconds": fits[0].seconds}
        for kind, fits in ((ALONE, alone), (JOINT, joint))
    ]
    ground_truth = [motion.ground_truth[time] for time in missing]
    for kind, fits in ((MIDPOINT, midpoints), (INTERPOLATED, [interpolated[time] for time in missing])):
        row = _scores(space, fits, ground_truth, resolution)
        rows.append({**names, "fit": kind, **row, "acceleration_error": float("nan"), "seconds": float("nan")})
    return rows


def _scores(space: ShapeSpace, fits: Sequence[Fit], ground_truth: Sequence[Trimesh], resolution: int) -> metrics.Row:
    """Means of `surface_distance` over the frames, in place, and the acceleration error of three frames or more."""
    meshes = [space.mesh(fit, resolution=resolution) for fit in tqdm(fits, desc="mesh", unit="frame")]
    pairs = list(zip(meshes, ground_truth, strict=True))
    rows = [metrics.score(["surface_distance"], *pair)["surface_distance"] for pair in pairs]
    means = {column: float(np.mean([row[column] for row in rows])) for column in COLUMNS[:2]}
    acceleration = acceleration_error([signed_offsets(*pair) for pair in pairs]) if len(pairs) > 2 else float("nan")
    return {**means, "acceleration_error": acceleration}


def sequence_table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Lines of a table with the means over the motions, case by case; the first line holds the headers."""
    lines = [["case", "frames", *(column.replace("_", " ") for column in COLUMNS), "seconds"]]
    for case in dict.fromkeys(row["case"] for row in rows):
        for kind in (ALONE, JOINT, MIDPOINT, INTERPOLATED):
            chosen = [row for row in rows if (row["case"], row["fit"]) == (case, kind)]
            means = [float(np.mean([row[column] for row in chosen])) for column in (*COLUMNS, "seconds")]
            lines.append([case, kind, *("" if np.isnan(mean) else f"{mean:.2f}" for mean in means)])
    return lines
