"""Sequences against true motion: frames fitted alone and jointly, and frames that are missing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm
from trimesh import Trimesh

from shapespace.evaluation import metrics
from shapespace.evaluation import motion as evaluate
from shapespace.evaluation.corruptions import CORRUPTIONS
from shapespace.evaluation.scores import markdown_table
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.result import Fit
from shapespace.fitting.sequence import SequenceOptions
from shapespace.geometry.scan import Scan
from shapespace.space import ShapeSpace
from shapespace.synthetic.body import Body
from shapespace.synthetic.people import SynthesisConfig, list_captures, person, rng_for
from shapespace.synthetic.poses import PoseLibrary
from shapespace.synthetic.scanner import VirtualScanner

COLUMNS = ("completeness", "accuracy", "flicker")
ALONE, JOINTLY, BETWEEN, BRIDGED = "alone", "jointly", "missing: between neighbours", "missing: bridged"
_EVERY, _FIRST = 5, 2  # one frame of five is missing, and neither end


@dataclass(frozen=True)
class Motion:
    """Consecutive frames of a clip, as one person makes them."""

    subject: int
    clip: str
    ground_truth: list[Trimesh]

    @property
    def name(self) -> str:
        """Person and clip."""
        return f"{person(self.subject)}/{self.clip}"


def sample_motions(plan: SynthesisConfig, split: str, people: int, frames: int, seed: int) -> Iterator[Motion]:
    """One motion for each of the first people of a split: another clip for each, from a frame that is drawn.

    Raises `ValueError` for fewer frames than can lose one between others, or more than a clip has.
    """
    body = Body.load()
    poses = PoseLibrary.load(body)
    if not _EVERY <= frames <= poses.length:
        raise ValueError(f"--frames {frames}: a clip has {poses.length} frames, and at least {_EVERY} are needed.")
    there = sorted({capture.subject for capture in list_captures(plan) if capture.split == split})
    if not there:
        raise ValueError(f"nobody is in split {split!r} of this data set: choose another --split.")
    for index, subject in enumerate(there[:people]):
        rng = np.random.default_rng([seed, subject])
        clip, first = poses.clips[index % len(poses.clips)], int(rng.integers(poses.length - frames + 1))
        coefficients = body.sample_shape(rng_for(plan.seed, subject, "shape"))
        moments = [poses.at(clip, float(first + step)) for step in range(frames)]
        truth = [Trimesh(body.skin(coefficients, moment), body.faces, process=False) for moment in moments]
        yield Motion(subject, clip, truth)


def corrupt_motion(motion: Motion, case: str, seed: int) -> list[Scan]:
    """The frames, scanned and spoilt as the case has it."""
    scans = []
    for time, truth in enumerate(motion.ground_truth):
        rng = np.random.default_rng([seed, motion.subject, time])
        scan = VirtualScanner().scan(
            np.asarray(truth.vertices), np.asarray(truth.faces), rng, f"{motion.name}/{time:06d}"
        )
        scans.append(CORRUPTIONS[case].apply(scan, truth, rng)[0])
    return scans


def score(
    space: ShapeSpace,
    motion: Motion,
    case: str,
    lm: LMOptions,
    options: SequenceOptions,
    resolution: int,
    seed: int,
) -> list[dict[str, Any]]:
    """A row for each way to fit the frames, and for each way to tell those that are missing."""
    scans = corrupt_motion(motion, case, seed)
    alone = space.fit_scans(scans, method="lm", lm=lm, seed=seed)
    joint = space.fit_jointly(scans, alone, options, lm=lm, seed=seed)
    missing = range(_FIRST, len(scans) - 1, _EVERY)
    some = [None if time in missing else fit for time, fit in enumerate(alone)]
    bridged = space.fit_jointly(scans, some, options, lm=lm, seed=seed)
    between = [space.interpolate_codes(alone[time - 1], alone[time + 1], 3)[1] for time in missing]
    told = {"motion": motion.name, "case": case}
    rows = [
        {**told, "way": way, **_scores(space, fits, motion.ground_truth, resolution), "seconds": fits[0].seconds}
        for way, fits in ((ALONE, alone), (JOINTLY, joint))
    ]
    truth = [motion.ground_truth[time] for time in missing]
    for way, fits in ((BETWEEN, between), (BRIDGED, [bridged[time] for time in missing])):
        row = _scores(space, fits, truth, resolution)
        rows.append({**told, "way": way, **row, "flicker": float("nan"), "seconds": float("nan")})
    return rows


def _scores(space: ShapeSpace, fits: Sequence[Fit], truth: Sequence[Trimesh], resolution: int) -> metrics.Row:
    """Means over the frames of protocol `surface`, in place, and how much the surface trembles."""
    meshes = [space.mesh(fit, resolution=resolution) for fit in tqdm(fits, desc="mesh", unit="frame")]
    pairs = list(zip(meshes, truth, strict=True))
    each = [metrics.score(["surface"], *pair)["surface"] for pair in pairs]
    means = {column: float(np.mean([row[column] for row in each])) for column in COLUMNS[:2]}
    trembling = (
        evaluate.acceleration_error([evaluate.signed_offsets(*pair) for pair in pairs])
        if len(pairs) > 2
        else float("nan")
    )
    return {**means, "flicker": trembling}


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of the means over motions, case by case."""
    lines = [["case", "frames", *COLUMNS, "seconds"]]
    for case in dict.fromkeys(row["case"] for row in rows):
        for way in (ALONE, JOINTLY, BETWEEN, BRIDGED):
            some = [row for row in rows if (row["case"], row["way"]) == (case, way)]
            means = [float(np.mean([row[column] for row in some])) for column in (*COLUMNS, "seconds")]
            lines.append([case, way, *("" if np.isnan(mean) else f"{mean:.2f}" for mean in means)])
    return markdown_table(lines, 2)
