"""Synthetic people: who is drawn, in which poses, and how the data set is laid out."""

import json
import math
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from shapespace.io.atomic import replacing
from shapespace.io.scan_files import write_scan
from shapespace.synthetic.body import Body
from shapespace.synthetic.poses import PosedBody, PoseLibrary, sample_pose
from shapespace.synthetic.scanner import VirtualScanner

Vertices = Float[np.ndarray, "v 3"]


TRAIN, UNSEEN_POSES, UNSEEN_PEOPLE = "train", "unseen_poses", "unseen_people"


LIMITS = "limits"
"""The sequence of the poses within joint limits; every other one has the name of its motion clip."""


REGISTRATIONS = "registrations.hdf5"


@dataclass(frozen=True)
class SynthesisConfig:
    """What is drawn: all that the bytes of the data set depend on."""

    people: int
    poses: int
    test_people: int
    poses_per_test_person: int
    test_poses: int
    motion_fraction: float
    seed: int


@dataclass(frozen=True)
class Capture:
    """One scan to be made: the `index`-th pose of a subject."""

    subject: int
    index: int
    sequence: str
    frame: int
    split: str

    @property
    def path(self) -> Path:
        """Place of the scan's file within the data set."""
        return Path("scans") / person(self.subject) / self.sequence / f"{self.sequence}.{self.frame:06d}.ply"


def check(plan: SynthesisConfig, jobs: int | None) -> None:
    """Refuse numbers that make no data set."""
    for option, least in {"people": 1, "poses": 1, "test_people": 0, "test_people_poses": 1, "test_poses": 0}.items():
        if getattr(plan, option) < least:
            flag = "--" + option.replace("_", "-")
            raise ValueError(f"{flag} is {getattr(plan, option)}, and there must be at least {least}. Raise it.")
    if plan.test_poses >= plan.poses:
        raise ValueError(
            f"--test-poses is {plan.test_poses} of --poses {plan.poses}: no pose is left to train on. "
            "Lower --test-poses or raise --poses."
        )
    if not 0 <= plan.motion_fraction <= 1:
        raise ValueError(
            f"--motion is {plan.motion_fraction:g}, and a share lies between 0 and 1. Give 0.5 for half of the poses."
        )
    if plan.seed < 0:
        raise ValueError(f"--seed is {plan.seed}, and seeds are not negative. Give 0 or more.")
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs is {jobs}, and it takes at least one process. Give 1 or more.")


def claim(out: Path, plan: SynthesisConfig) -> None:
    """Write synthesis.json, or refuse a folder that holds something else."""
    path, wanted = out / "synthesis.json", {"version": version("shapespace"), **asdict(plan)}
    if path.exists():
        found = json.loads(path.read_text())
        other = [f"{key} {found.get(key)} instead of {wanted[key]}" for key in wanted if found.get(key) != wanted[key]]
        if other:
            raise ValueError(
                f"{out} holds a data set made otherwise ({', '.join(other)}; see {path.name}). "
                "Choose another folder, or remove this one."
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} holds something that is no synthetic data set. Choose a new or an empty folder.")
    else:
        write_json(path, wanted)


def read_synthesis(out: Path) -> SynthesisConfig:
    """What was drawn for a data set that is there."""
    path = out / "synthesis.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{out} is no synthetic data set: it has no {path.name}. Make one: shapespace synthesize."
        )
    held = json.loads(path.read_text())
    return SynthesisConfig(**{field.name: held[field.name] for field in fields(SynthesisConfig)})


def list_captures(plan: SynthesisConfig) -> Iterator[Capture]:
    """Every scan of the data set, subject by subject; the last poses of the people to train on are held out."""
    clips = PoseLibrary.load(Body.load()).clips
    for subject in range(plan.people + plan.test_people):
        known = subject < plan.people
        count = plan.poses if known else plan.poses_per_test_person
        frames: Counter[str] = Counter()
        for index, sequence in enumerate(sequences(plan, subject, clips, count)):
            held_out = UNSEEN_POSES if index >= plan.poses - plan.test_poses else TRAIN
            yield Capture(subject, index, sequence, frames[sequence], held_out if known else UNSEEN_PEOPLE)
            frames[sequence] += 1


def sequences(plan: SynthesisConfig, subject: int, clips: tuple[str, ...], count: int) -> Iterator[str]:
    """Kinds of a subject's poses: the wanted share of motions, evenly spread, through the clips in random order."""
    rng = rng_for(plan.seed, subject, "kinds")
    phase, order = rng.random(), rng.permutation(len(clips))
    for index in range(count):
        before, after = (math.floor(step * plan.motion_fraction + phase) for step in (index, index + 1))
        yield clips[order[before % len(clips)]] if after > before else LIMITS


def rng_for(seed: int, subject: int, purpose: Literal["shape", "kinds", "pose"], index: int = 0) -> np.random.Generator:
    """Random numbers of their own for every subject, purpose and pose: no draw depends on another."""
    key = (subject, ("shape", "kinds", "pose").index(purpose), index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def make(out: Path, captures: list[Capture], seed: int, jobs: int) -> None:
    """Make the scans that are missing, and the registrations of all."""
    if (out / REGISTRATIONS).exists() and all((out / capture.path).exists() for capture in captures):
        return
    with ExitStack() as stack:
        each: Callable[..., Iterator[Vertices]] = map
        if jobs > 1:
            pool = ProcessPoolExecutor(jobs, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
            stack.callback(pool.shutdown, cancel_futures=True)
            each = pool.map
        made = zip(captures, each(partial(make_one, out, seed), captures), strict=True)
        file = stack.enter_context(h5py.File(stack.enter_context(replacing(out / REGISTRATIONS)), "w", locking=False))
        file["faces"] = Body.load().faces
        bar = tqdm(made, total=len(captures), desc="scanning", unit="scan")
        for subject, group in groupby(bar, key=lambda pair: pair[0].subject):
            truth: dict[str, list[Vertices]] = defaultdict(list)
            for capture, vertices in group:
                truth[capture.sequence].append(vertices)
            for sequence, frames in truth.items():
                file[f"{person(subject)}_{sequence}"] = np.stack(frames, axis=-1)


def make_one(out: Path, seed: int, capture: Capture) -> Vertices:
    """Scan one person in one pose, unless the scan is there; give the true vertices."""
    _, posed, rng = posed_body(seed, capture)
    path = out / capture.path
    if not path.exists():
        write_scan(path, VirtualScanner().scan(posed.vertices, Body.load().faces, rng))
    return posed.vertices


def posed_body(seed: int, capture: Capture) -> tuple[Float[np.ndarray, "k"], PosedBody, np.random.Generator]:
    """Coefficients of the person, the posed body, and the random numbers that are left for its scan."""
    body = Body.load()
    poses = PoseLibrary.load(body)
    coefficients = body.sample_shape(rng_for(seed, capture.subject, "shape"))
    rng = rng_for(seed, capture.subject, "pose", capture.index)
    draw = poses.sample_in_limits if capture.sequence == LIMITS else partial(poses.sample_clip, capture.sequence)
    return coefficients, sample_pose(body, coefficients, draw, rng), rng


def write_splits(out: Path, captures: list[Capture]) -> None:
    """Write a split file of the kind that IGR and SAL use for each split that has scans."""
    splits: dict[str, dict[str, dict[str, list[str]]]] = {}
    for capture in captures:
        sequence = splits.setdefault(capture.split, {}).setdefault(person(capture.subject), {})
        sequence.setdefault(capture.sequence, []).append(capture.path.stem)
    for split, people in splits.items():
        write_json(out / "splits" / f"{split}.json", {"scans": people})


def write_json(path: Path, content: object) -> None:
    """Write readable JSON, complete or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n")


def person(subject: int) -> str:
    """Name of a subject."""
    return f"{subject:02d}"
