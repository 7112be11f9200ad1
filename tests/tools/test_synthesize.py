"""Synthetic datasets: D-FAUST's layout, the same bytes for the same seed, disjoint training and test poses."""

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import trimesh

from shapespace.evaluation.groups import read_labels
from shapespace.geometry import proximity
from shapespace.io.scan_files import read_scan
from shapespace.synthetic.people import (
    LIMITS,
    WIDE,
    SynthesisConfig,
    list_captures,
    posed_body,
    read_synthesis,
)
from shapespace.synthetic.wide_poses import KINDS
from shapespace.tools.synthesize import main

TINY = {"people": 2, "poses": 3, "test_poses": 1, "test_people": 1, "poses_per_test_person": 1, "seed": 7}
CONFIG = SynthesisConfig(
    people=4, poses=10, test_people=2, poses_per_test_person=3, test_poses=1, motion_fraction=0.5, seed=0
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "tiny"
    main(out, **TINY, jobs=1)
    return out


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def listed(root: Path, split: str) -> list[str]:
    """Names subject/sequence/frame in a split file."""
    scans = json.loads((root / "splits" / f"{split}.json").read_text())["scans"]
    stems = [(subject, *stem.split(".")) for subject, runs in scans.items() for run in runs.values() for stem in run]
    return ["/".join(parts) for parts in stems]


def registration(root: Path, name: str) -> trimesh.Trimesh:
    subject, sequence, frame = name.split("/")
    with h5py.File(root / "registrations.hdf5") as file:
        return trimesh.Trimesh(file[f"{subject}_{sequence}"][:, :, int(frame)], file["faces"][:], process=False)


def test_layout(tiny: Path) -> None:
    names = {split: listed(tiny, split) for split in ("train", "unseen_poses", "unseen_people")}
    assert [len(split) for split in names.values()] == [4, 2, 1]
    everything = sorted(name for split in names.values() for name in split)
    assert len(set(everything)) == 7
    on_disk = sorted((tiny / "scans").rglob("*.ply"))
    assert sorted(f"{p.parts[-3]}/{p.parts[-2]}/{p.stem.split('.')[1]}" for p in on_disk) == everything
    assert all(path.name == f"{path.parent.name}.{path.stem.split('.')[1]}.ply" for path in on_disk)
    assert {name.split("/")[0] for name in names["train"]} == {name.split("/")[0] for name in names["unseen_poses"]}
    assert {name.split("/")[0] for name in names["unseen_people"]} == {"02"}
    with h5py.File(tiny / "registrations.hdf5") as file:
        frames = Counter(name.rpartition("/")[0].replace("/", "_") for name in everything)
        assert set(file) == {*frames, "faces"}
        assert all(file[key].shape == (13348, 3, count) for key, count in frames.items())
        assert all(file[key].dtype == np.float32 for key in frames)
        assert file["faces"].shape == (26692, 3)
    settings = json.loads((tiny / "synthesis.json").read_text())
    assert settings["seed"] == 7
    assert settings["people"] == 2
    assert not list(tiny.rglob("*.part"))


def test_scans_are_near_their_registrations(tiny: Path) -> None:
    for name in (*listed(tiny, "train"), *listed(tiny, "unseen_poses"), *listed(tiny, "unseen_people")):
        subject, sequence, frame = name.split("/")
        scan = read_scan(tiny / "scans" / subject / sequence / f"{sequence}.{frame}.ply")
        distance, _, _ = proximity.closest_point(scan.points[::20], registration(tiny, name))
        assert distance.mean() < 0.001
        assert scan.sensors is not None
        assert len(np.unique(scan.sensors, axis=0)) == 16
        assert registration(tiny, name).vertices[:, 1].min() == 0


def test_people_keep_their_shape_and_differ(tiny: Path) -> None:
    def limb_lengths(name: str) -> np.ndarray:
        return registration(tiny, name).edges_unique_length

    names = listed(tiny, "train")
    own = [name for name in names if name.startswith("00/")]
    other = next(name for name in names if name.startswith("01/"))
    same = np.median(np.abs(limb_lengths(own[0]) / limb_lengths(own[1]) - 1))
    different = np.median(np.abs(limb_lengths(own[0]) / limb_lengths(other) - 1))
    assert different > 4 * same


def test_no_test_pose_is_a_training_pose(tiny: Path) -> None:
    for name in listed(tiny, "unseen_poses"):
        for known in listed(tiny, "train"):
            across = registration(tiny, name).vertices - registration(tiny, known).vertices
            assert np.linalg.norm(across, axis=1).mean() > 0.02


def test_same_seed_same_bytes_whatever_the_processes(tiny: Path, tmp_path: Path) -> None:
    main(tmp_path / "pool", **TINY, jobs=2)
    assert contents(tmp_path / "pool") == contents(tiny)


def test_an_interrupted_run_continues(tiny: Path, tmp_path: Path) -> None:
    whole = contents(tiny)
    for name, data in whole.items():
        (tmp_path / "again" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "again" / name).write_bytes(data)
    scans = sorted((tmp_path / "again").rglob("*.ply"))
    before = {path: os.stat(path).st_mtime_ns for path in scans[1:]}
    for lost in (scans[0], tmp_path / "again" / "registrations.hdf5", *(tmp_path / "again" / "splits").iterdir()):
        lost.unlink()
    main(tmp_path / "again", **TINY, jobs=1)
    assert contents(tmp_path / "again") == whole
    assert {path: os.stat(path).st_mtime_ns for path in before} == before


def test_a_complete_dataset_is_not_changed(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: os.stat(path).st_mtime_ns for path in (tiny / "scans").rglob("*.ply")}
    before[tiny / "registrations.hdf5"] = os.stat(tiny / "registrations.hdf5").st_mtime_ns
    main(tiny, **TINY)
    assert {path: os.stat(path).st_mtime_ns for path in before} == before
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["7 scans: 4 train, 2 unseen_poses, 1 unseen_people", str(tiny)]
    assert "scanning" not in printed.err


def test_a_scan_depends_on_its_seed_subject_and_pose_only(tiny: Path, tmp_path: Path) -> None:
    main(tmp_path / "one", people=1, poses=1, test_poses=0, test_people=0, seed=7, jobs=1)
    main(tmp_path / "other", people=1, poses=1, test_poses=0, test_people=0, seed=8, jobs=1)
    path = next((tmp_path / "one").rglob("*.ply"))
    other = next((tmp_path / "other").rglob("*.ply"))
    assert path.read_bytes() == (tiny / path.relative_to(tmp_path / "one")).read_bytes()
    assert path.read_bytes() != other.read_bytes()
    assert [split.name for split in (tmp_path / "one" / "splits").iterdir()] == ["train.json"]


def test_frames_are_consecutive_and_motions_have_their_share() -> None:
    captures = list(list_captures(CONFIG))
    assert Counter(capture.split for capture in captures) == {"train": 36, "unseen_poses": 4, "unseen_people": 6}
    frames: dict[tuple[int, str], list[int]] = {}
    for capture in captures:
        frames.setdefault((capture.subject, capture.sequence), []).append(capture.frame)
    assert all(numbers == list(range(len(numbers))) for numbers in frames.values())
    for subject in range(CONFIG.people):
        kinds = [capture.sequence for capture in captures if capture.subject == subject]
        assert kinds.count(LIMITS) == 5
        motions = [kind for kind in kinds if kind != LIMITS]
        assert len(set(motions)) == len(motions)
    assert {c.sequence for c in list_captures(replace(CONFIG, motion_fraction=0.0))} == {LIMITS}
    assert LIMITS not in {c.sequence for c in list_captures(replace(CONFIG, motion_fraction=1.0))}


def test_varied_people_poses_and_scanners_are_described(tmp_path: Path) -> None:
    varied = {"poses_from": "wide", "appearance": "varied", "scanners": "varied"}
    options = {"people": 3, "poses": 2, "test_poses": 0, "test_people": 1, "poses_per_test_person": 2, "seed": 5}
    main(tmp_path / "data", **options, **varied, motion_fraction=0.5, jobs=1)
    described = read_labels(tmp_path / "data" / "captures.json")
    config = read_synthesis(tmp_path / "data")
    captures = {capture.name: capture for capture in list_captures(config)}
    assert (config.poses_from, config.appearance, config.scanners) == ("wide", "varied", "varied")
    assert set(described) == set(captures)
    assert WIDE in {capture.sequence for capture in captures.values()}
    assert LIMITS not in {capture.sequence for capture in captures.values()}
    assert len({shows["scanner"] for shows in described.values()}) > 2
    for name, shows in described.items():
        assert shows["pose"] in KINDS
        assert shows["split"] == captures[name].split
        posed = registration(tmp_path / "data", name)
        whole, again, _ = posed_body(config, captures[name])
        np.testing.assert_array_equal(posed.vertices, again.vertices)
        assert (shows["hair"], shows["clothes"]) == (whole.hair, whole.clothes)
        assert shows["stature"] > np.ptp(posed.vertices[:, 1]) - 0.35  # nobody grows but by raised arms
    by_person = {name.split("/")[0]: shows["stature"] for name, shows in described.items()}
    assert [shows["stature"] for shows in described.values()] == [by_person[name.split("/")[0]] for name in described]


def test_datasets_of_before_are_narrow_and_bare(tiny: Path, tmp_path: Path) -> None:
    settings = json.loads((tiny / "synthesis.json").read_text())
    older = {key: value for key, value in settings.items() if key not in ("poses_from", "appearance", "scanners")}
    (tmp_path / "synthesis.json").write_text(json.dumps(older))
    assert read_synthesis(tmp_path) == read_synthesis(tiny)
    assert {shows["scanner"] for shows in read_labels(tiny / "captures.json").values()} == {"ring"}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"people": 0}, r"^--people 0: must be at least 1\.$"),
        ({"poses": 0}, r"^--poses 0: must be at least 1\.$"),
        ({"test_people": -1}, r"^--test-people -1: must be at least 0\.$"),
        ({"poses_per_test_person": 0}, r"^--poses-per-test-person 0: must be at least 1\.$"),
        ({"test_poses": -1}, r"^--test-poses -1: must be at least 0\.$"),
        ({"poses": 3, "test_poses": 5}, r"--test-poses 5 of --poses 3: no pose remains for training\. Lower"),
        ({"poses": 3, "test_poses": 3}, r"--test-poses 3 of --poses 3: no pose remains"),
        ({"motion_fraction": 1.5}, r"^--motion-fraction 1\.5: must be between 0 and 1\.$"),
        ({"motion_fraction": float("nan")}, r"--motion-fraction nan: must be between 0 and 1"),
        ({"seed": -3}, r"^--seed -3: must be at least 0\.$"),
        ({"jobs": 0}, r"^--jobs 0: must be at least 1\.$"),
    ],
)
def test_invalid_settings_are_refused_before_anything_is_written(
    tmp_path: Path, wrong: dict[str, float], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        main(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_settings_is_refused(tiny: Path) -> None:
    before = contents(tiny)
    with pytest.raises(ValueError, match=r"other settings \(people 2, not 5; seed 7, not 9\)\. Choose another"):
        main(tiny, **{**TINY, "people": 5, "seed": 9})
    assert contents(tiny) == before


def test_settings_are_read_from_a_dataset_of_any_format(tiny: Path) -> None:
    assert read_synthesis(tiny) == SynthesisConfig(**TINY, motion_fraction=0.5)
    assert read_synthesis(Path(__file__).parents[1] / "data" / "format1") == SynthesisConfig(1, 2, 1, 1, 1, 0.5, 3)
    with pytest.raises(FileNotFoundError, match=r"not a synthetic dataset.*Make one with shapespace synthesize"):
        read_synthesis(tiny / "scans")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"not a synthetic dataset, and not empty\. Choose a new or an empty folder"):
        main(tmp_path)
    with pytest.raises(ValueError, match=r"not a synthetic dataset"):
        main(tmp_path / "holiday.jpg")
