"""Datasets of synthetic people: virtual scans in D-FAUST's layout, registrations and splits."""

import json
import math
import os
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
from typing import Literal, get_args

import h5py
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from shapespace.io.atomic import replacing
from shapespace.io.migration import upgrade_synthesis
from shapespace.io.scan_files import write_scan
from shapespace.synthetic.appearance import Person, sample_bare, sample_dressed
from shapespace.synthetic.body import Body
from shapespace.synthetic.poses import PosedBody, PoseLibrary, sample_pose
from shapespace.synthetic.scanner import SCANNERS
from shapespace.synthetic.wide_poses import WidePoses, describe_pose

Vertices = Float[np.ndarray, "v 3"]

Purpose = Literal["shape", "kinds", "pose", "scanner"]

TRAIN, UNSEEN_POSES, UNSEEN_PEOPLE = "train", "unseen_poses", "unseen_people"

LIMITS, WIDE = "limits", "wide"
"""Sequences of the poses within joint limits and of those of `WidePoses`; the others are named after motion clips."""

PoseRange = Literal["limits", "wide"]
Appearance = Literal["bare", "varied"]
Scanners = Literal["ring", "varied"]

SETTINGS = "synthesis.json"
CAPTURES = "captures.json"
REGISTRATIONS = "registrations.hdf5"


@dataclass(frozen=True)
class SynthesisConfig:
    """Settings of a synthetic dataset: all that its bytes depend on. See `shapespace synthesize --help`."""

    people: int
    poses: int
    test_people: int
    poses_per_test_person: int
    test_poses: int
    motion_fraction: float
    seed: int
    poses_from: PoseRange = "limits"
    appearance: Appearance = "bare"
    scanners: Scanners = "ring"

    def __post_init__(self) -> None:
        """Raise `ValueError` for values out of range; options are named as `shapespace synthesize` spells them."""
        minima = {"people": 1, "poses": 1, "test_people": 0, "poses_per_test_person": 1, "test_poses": 0, "seed": 0}
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} {getattr(self, name)}: must be at least {minimum}.")
        if self.test_poses >= self.poses:
            raise ValueError(
                f"--test-poses {self.test_poses} of --poses {self.poses}: no pose remains for training. "
                "Lower --test-poses or raise --poses."
            )
        if not 0 <= self.motion_fraction <= 1:
            raise ValueError(f"--motion-fraction {self.motion_fraction:g}: must be between 0 and 1.")


@dataclass(frozen=True)
class Capture:
    """One scan to make: pose number `index` of a subject."""

    subject: int
    index: int
    sequence: str
    frame: int
    split: str

    @property
    def path(self) -> Path:
        """Path of the scan, relative to the folder of the dataset."""
        return Path("scans") / person(self.subject) / self.sequence / f"{self.sequence}.{self.frame:06d}.ply"

    @property
    def name(self) -> str:
        """Name of the scan in a store."""
        return f"{person(self.subject)}/{self.sequence}/{self.frame:06d}"


def synthesize(config: SynthesisConfig, out: Path, jobs: int | None = None) -> list[Capture]:
    """Write the scans, registrations and splits of a dataset, and return its captures.

    Existing scans are kept, so that an interrupted run can be repeated. The bytes do not depend on `jobs`, the number
    of processes (default: one per CPU core). Raises `ValueError` if the folder holds anything else.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs {jobs}: must be at least 1.")
    _write_settings(out, config)
    captures = list(list_captures(config))
    _write_scans(out, captures, config, jobs or os.cpu_count() or 1)
    _write_splits(out, captures)
    return captures


def read_synthesis(out: Path) -> SynthesisConfig:
    """Settings of an existing dataset.

    Raises `FileNotFoundError` for a folder without `synthesis.json`.
    """
    path = out / SETTINGS
    if not path.exists():
        raise FileNotFoundError(
            f"{out}: not a synthetic dataset (it has no {SETTINGS}). Make one with shapespace synthesize."
        )
    stored = upgrade_synthesis(json.loads(path.read_text()))
    return SynthesisConfig(**{field.name: stored[field.name] for field in fields(SynthesisConfig)})


def list_captures(config: SynthesisConfig) -> Iterator[Capture]:
    """All captures of a dataset, by subject; the last poses of the training people are test poses."""
    clips = PoseLibrary.load(Body.load()).clips
    for subject in range(config.people + config.test_people):
        is_training = subject < config.people
        count = config.poses if is_training else config.poses_per_test_person
        frames: Counter[str] = Counter()
        for index, sequence in enumerate(list_sequences(config, subject, clips, count)):
            split = UNSEEN_POSES if index >= config.poses - config.test_poses else TRAIN
            yield Capture(subject, index, sequence, frames[sequence], split if is_training else UNSEEN_PEOPLE)
            frames[sequence] += 1


def list_sequences(config: SynthesisConfig, subject: int, clips: tuple[str, ...], count: int) -> Iterator[str]:
    """Sequences of a subject's poses: motion clips, evenly spread and in random order, and drawn poses."""
    rng = rng_for(config.seed, subject, "kinds")
    phase, order = rng.random(), rng.permutation(len(clips))
    drawn = LIMITS if config.poses_from == "limits" else WIDE
    for index in range(count):
        before, after = (math.floor(step * config.motion_fraction + phase) for step in (index, index + 1))
        yield clips[order[before % len(clips)]] if after > before else drawn


def rng_for(seed: int, subject: int, purpose: Purpose, index: int = 0) -> np.random.Generator:
    """Independent random generator of a subject, purpose and pose."""
    key = (subject, get_args(Purpose).index(purpose), index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def sample_person(config: SynthesisConfig, subject: int) -> Person:
    """Draw a subject of a dataset."""
    sample = sample_bare if config.appearance == "bare" else sample_dressed
    return sample(rng_for(config.seed, subject, "shape"))


def posed_body(config: SynthesisConfig, capture: Capture) -> tuple[Person, PosedBody, np.random.Generator]:
    """Draw the person and the posed body of a capture; the random generator is that of its scan."""
    body = Body.load()
    poses = PoseLibrary.load(body)
    whole = sample_person(config, capture.subject)
    rng = rng_for(config.seed, capture.subject, "pose", capture.index)
    wide = WidePoses(body, poses) if config.poses_from == "wide" else None
    if capture.sequence == LIMITS:
        sample = poses.sample_in_limits
    elif wide is None:
        sample = partial(poses.sample_clip, capture.sequence)
    else:
        sample = wide.sample if capture.sequence == WIDE else partial(wide.sample_clip, capture.sequence)
    return whole, sample_pose(body, whole.skin, sample, rng), rng


def choose_scanner(config: SynthesisConfig, capture: Capture) -> str:
    """Name in `SCANNERS` of the scanner of a capture."""
    if config.scanners == "ring":
        return "ring"
    names = tuple(SCANNERS)
    return names[int(rng_for(config.seed, capture.subject, "scanner", capture.index).integers(len(names)))]


def describe_capture(
    config: SynthesisConfig, capture: Capture, whole: Person, posed: PosedBody
) -> dict[str, str | float]:
    """What a scan shows: kind of the pose, scanner, hair, clothes, stature at rest (meters)."""
    body = Body.load()
    at_rest = whole.skin(np.tile(np.eye(3), (len(body.joints), 1, 1)))
    return {
        "split": capture.split,
        "pose": describe_pose(body, posed.rotations),
        "scanner": choose_scanner(config, capture),
        "hair": whole.hair,
        "clothes": whole.clothes,
        "stature": round(float(np.ptp(at_rest[:, 1])), 3),
    }


def person(subject: int) -> str:
    """Name of a subject."""
    return f"{subject:02d}"


def write_json(path: Path, content: object) -> None:
    """Write indented JSON atomically."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n")


def _write_settings(out: Path, config: SynthesisConfig) -> None:
    """Write `synthesis.json`, or raise `ValueError` for a folder that holds anything else."""
    path, settings = out / SETTINGS, {"version": version("shapespace"), **asdict(config)}
    if path.exists():
        stored = upgrade_synthesis(json.loads(path.read_text()))
        other = [f"{key} {stored.get(key)}, not {new}" for key, new in settings.items() if stored.get(key) != new]
        if other:
            raise ValueError(
                f"{out}: holds a dataset with other settings ({'; '.join(other)}). Choose another folder with OUT, or "
                "remove this one."
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: not a synthetic dataset, and not empty. Choose a new or an empty folder.")
    else:
        write_json(path, settings)


def _write_scans(out: Path, captures: list[Capture], config: SynthesisConfig, jobs: int) -> None:
    """Write the missing scans, and the registrations and descriptions of all."""
    if all((out / name).exists() for name in (REGISTRATIONS, CAPTURES)) and all(
        (out / capture.path).exists() for capture in captures
    ):
        return
    with ExitStack() as stack:
        each: Callable[..., Iterator[tuple[Vertices, dict[str, str | float]]]] = map
        if jobs > 1:
            pool = ProcessPoolExecutor(jobs, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
            stack.callback(pool.shutdown, cancel_futures=True)
            each = pool.map
        made = zip(captures, each(partial(_write_scan, out, config), captures), strict=True)
        file = stack.enter_context(h5py.File(stack.enter_context(replacing(out / REGISTRATIONS)), "w", locking=False))
        file["faces"] = Body.load().faces
        described = {}
        bar = tqdm(made, total=len(captures), desc="scanning", unit="scan")
        for subject, group in groupby(bar, key=lambda pair: pair[0].subject):
            registrations: dict[str, list[Vertices]] = defaultdict(list)
            for capture, (vertices, shows) in group:
                registrations[capture.sequence].append(vertices)
                described[capture.name] = shows
            for sequence, frames in registrations.items():
                file[f"{person(subject)}_{sequence}"] = np.stack(frames, axis=-1)
        write_json(out / CAPTURES, described)


def _write_scan(out: Path, config: SynthesisConfig, capture: Capture) -> tuple[Vertices, dict[str, str | float]]:
    """Write the scan of a capture unless it exists; return the vertices of the posed body, and what the scan shows."""
    whole, posed, rng = posed_body(config, capture)
    path = out / capture.path
    if not path.exists():
        write_scan(path, SCANNERS[choose_scanner(config, capture)].scan(posed.vertices, Body.load().faces, rng))
    return posed.vertices, describe_capture(config, capture, whole, posed)


def _write_splits(out: Path, captures: list[Capture]) -> None:
    """Write a split file, in the format of IGR and SAL, for each split that has scans."""
    splits: dict[str, dict[str, dict[str, list[str]]]] = {}
    for capture in captures:
        sequence = splits.setdefault(capture.split, {}).setdefault(person(capture.subject), {})
        sequence.setdefault(capture.sequence, []).append(capture.path.stem)
    for split, people in splits.items():
        write_json(out / "splits" / f"{split}.json", {"scans": people})
