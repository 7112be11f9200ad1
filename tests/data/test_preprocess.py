import json
import multiprocessing
import os
import re
import signal
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import trimesh

from shapespace.data.preprocess import PreprocessOptions, PreprocessResult, preprocess
from shapespace.data.store import ScanStore
from shapespace.datasets import DATASETS, get_dataset
from shapespace.datasets.synthetic import Synthetic

FORK = multiprocessing.get_context("fork")


def content(path: Path) -> dict[str, Any]:
    """All that a store holds, in an order of its own."""
    contents: dict[str, Any] = {}

    def visit(name: str, item: h5py.HLObject) -> None:
        value = item[()].tobytes() if isinstance(item, h5py.Dataset) and item.dtype != object else None
        texts = item[()].tolist() if isinstance(item, h5py.Dataset) and item.dtype == object else None
        contents[name] = (value, texts, {key: np.asarray(attribute).tolist() for key, attribute in item.attrs.items()})

    with h5py.File(path) as file:
        file.visititems(visit)
        contents["/"] = dict(file.attrs)
    return contents


@pytest.fixture
def do(synthetic_root, tmp_path) -> Callable[..., PreprocessResult]:
    def run(name: str = "s.h5", **options: Any) -> PreprocessResult:
        return preprocess(Synthetic(), synthetic_root, tmp_path / name, PreprocessOptions(**{"points": 300} | options))

    return run


@pytest.fixture
def path_of(synthetic_root) -> Callable[[int, int], Path]:
    return lambda person, frame: synthetic_root / f"scans/p{person:03d}/poses/poses.{frame:06d}.ply"


def stop_at(monkeypatch, count: int, action: Callable[[], None]) -> list[str]:
    """Let the `count`-th reading of a scan do something else; the list fills with the names of what was read."""
    read, names = Synthetic.read_scan, []

    def counted(self, entry, normals="auto"):
        names.append(entry.name)
        if len(names) == count:
            action()
        return read(self, entry, normals)

    monkeypatch.setattr(Synthetic, "read_scan", counted)
    return names


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def test_the_report_counts_what_the_store_holds(do):
    packed = do()
    assert (packed.scans, packed.points, packed.ground_truths, packed.rejected, packed.notes) == (9, 2700, 9, {}, ())
    assert packed.created
    assert packed.size == packed.path.stat().st_size
    assert not packed.path.with_name("s.h5.part").exists()


def test_points_depend_on_the_seed_and_the_name(do):
    one, again, other = do("one.h5").path, do("again.h5").path, content(do("other.h5", seed=1).path)
    assert one.read_bytes() == again.read_bytes()
    one = content(one)
    assert one["p000/poses/000000/points"] != other["p000/poses/000000/points"]
    assert one["p000/poses/000000/points"] != one["p000/poses/000001/points"]


# -------------------------------------------------------------------------------------------------------- interruptions


def test_an_interrupted_run_goes_on_where_it_stood(do, monkeypatch, tmp_path):
    whole = content(do("whole.h5").path)
    names = stop_at(monkeypatch, 5, raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        do()
    assert not (tmp_path / "s.h5").exists()
    assert content(do().path) == whole
    assert names == [*ScanStore(tmp_path / "s.h5").names[:5], *ScanStore(tmp_path / "s.h5").names[4:]]


@pytest.mark.parametrize("point", ["before the mark", "in the middle of a scan"])
def test_a_killed_run_goes_on_where_it_stood(do, monkeypatch, tmp_path, point):
    whole = content(do("whole.h5").path)

    def run() -> None:
        if point == "before the mark":
            stop_at(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGKILL))
        else:
            create, made = h5py.Group.create_dataset, []

            def deadly(self, name, *arguments, **options):
                made.append(name)
                if len(made) == 15:
                    os.kill(os.getpid(), signal.SIGKILL)
                return create(self, name, *arguments, **options)

            monkeypatch.setattr(h5py.Group, "create_dataset", deadly)
        do()

    process = FORK.Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "s.h5.part").exists()
    names = stop_at(monkeypatch, 0, raise_interrupt)
    assert content(do().path) == whole
    assert len(names) == (5 if point == "before the mark" else 6)


def test_a_scan_without_the_mark_or_of_a_changed_file_is_read_again(do, monkeypatch, tmp_path, path_of):
    stop_at(monkeypatch, 6, raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        do()
    monkeypatch.undo()
    with h5py.File(tmp_path / "s.h5.part", "r+") as file:
        file["p000/poses/000001/points"][:] = 0
        del file["p000/poses/000001"].attrs["complete"]
    path_of(0, 2).write_bytes(path_of(2, 2).read_bytes())
    names = stop_at(monkeypatch, 0, raise_interrupt)
    resumed = content(do().path)
    assert names[:2] == ["p000/poses/000001", "p000/poses/000002"]
    assert len(names) == 6
    monkeypatch.undo()
    assert content(do("anew.h5").path) == resumed


def test_a_reading_process_that_dies_is_said_and_the_rest_goes_on(do, monkeypatch, tmp_path):
    whole = content(do("whole.h5").path)

    class Dying(ThreadPoolExecutor):
        def __init__(self, jobs, context, **options):
            super().__init__(1)
            self.left = 5

        def submit(self, work, entry):
            self.left -= 1
            if self.left < 0:
                raise BrokenProcessPool
            return super().submit(work, entry)

    with monkeypatch.context() as patched:
        patched.setattr("shapespace.data.preparation.ProcessPoolExecutor", Dying)
        with pytest.raises(
            OSError, match=r"--jobs 2: a reading process died, .*Run the same command with fewer --jobs"
        ):
            do(jobs=2)
    assert (tmp_path / "s.h5.part").exists()
    assert content(do().path) == whole


def test_an_unreadable_part_is_begun_anew(do, tmp_path):
    (tmp_path / "s.h5.part").write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    assert do().scans == 9


def test_a_part_of_other_arguments_is_not_continued(do, monkeypatch, tmp_path):
    stop_at(monkeypatch, 3, raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        do()
    with pytest.raises(
        ValueError, match=r"s\.h5\.part: begun with other settings \(points was 300, is now 200\)\. Use"
    ):
        do(points=200)
    assert do(points=200, overwrite=True).points == 9 * 200


def test_two_processes_do_not_write_one_part(do, tmp_path):
    ready, done = FORK.Event(), FORK.Event()

    def hold() -> None:
        with h5py.File(tmp_path / "s.h5.part", "w"):
            ready.set()
            done.wait(20)

    process = FORK.Process(target=hold)
    process.start()
    ready.wait(20)
    with pytest.raises(OSError, match=r"s\.h5\.part: another process is writing it\. Wait until it ends, or choose"):
        do()
    done.set()
    process.join()


# -------------------------------------------------------------------------------------------------------------- again


def test_the_same_line_again_reads_nothing(do, monkeypatch):
    first = do()
    names = stop_at(monkeypatch, 0, raise_interrupt)
    assert do() == replace(first, created=False)
    assert names == []


def test_another_line_does_not_replace_a_store_unasked(do, path_of):
    do()
    with pytest.raises(
        ValueError, match=r"s\.h5: made with other settings \(seed was 0, is now 3\)\. Pass --overwrite"
    ):
        do(seed=3)
    path_of(1, 1).write_bytes(path_of(2, 2).read_bytes())
    with pytest.raises(
        ValueError, match=r"from other files, 1 scans differ, for example p001/poses/000001\. Pass --overwrite"
    ):
        do()
    path_of(2, 2).unlink()
    with pytest.raises(ValueError, match=r"from other files, 2 scans differ"):
        do()
    assert do(overwrite=True).scans == 8


def test_something_else_of_that_name_is_not_replaced_unasked(do, tmp_path):
    (tmp_path / "s.h5").write_text("my novel")
    with pytest.raises(ValueError, match=r"s\.h5: not a valid HDF5 file"):
        do()
    assert (tmp_path / "s.h5").read_text() == "my novel"


# ---------------------------------------------------------------------------------------------------------- bad scans


def corrupt(path_of) -> None:
    path_of(0, 1).write_bytes(path_of(0, 1).read_bytes()[:-100])
    path_of(2, 0).write_bytes(b"")


def test_bad_scans_are_named_and_the_good_ones_kept(do, path_of, monkeypatch, tmp_path):
    good = {(person, frame): path_of(person, frame).read_bytes() for person, frame in ((0, 1), (2, 0))}
    whole = content(do("whole.h5").path)
    corrupt(path_of)
    with pytest.raises(
        ValueError, match=r"2 of 9 scans were rejected \(--max-rejected 0\)\. Fix .* --max-rejected 2"
    ) as error:
        do()
    assert re.search(r"poses\.000001\.ply: truncated", str(error.value))
    assert re.search(r"p002.*poses\.000000\.ply: empty", str(error.value))
    assert not (tmp_path / "s.h5").exists()
    for place, data in good.items():
        path_of(*place).write_bytes(data)
    names = stop_at(monkeypatch, 0, raise_interrupt)
    assert content(do().path) == whole
    assert names == ["p000/poses/000001", "p002/poses/000000"]


def test_bad_scans_within_the_bound_are_left_out_of_names_and_splits(do, path_of):
    corrupt(path_of)
    packed = do(max_rejected=2)
    assert (packed.scans, list(packed.rejected)) == (7, ["p000/poses/000001", "p002/poses/000000"])
    store = ScanStore(packed.path)
    assert store.rejected == packed.rejected
    assert not set(packed.rejected) & {*store.names, *store.splits["train"], *store.splits["unseen_people"]}
    assert len(store.splits["train"]) == 3
    assert do(max_rejected=2) == replace(packed, created=False)
    with pytest.raises(ValueError, match=r"2 of 9 scans were rejected \(--max-rejected 1\)"):
        do(max_rejected=1)


def test_if_no_scan_is_good_nothing_is_left(synthetic_root, tmp_path):
    with pytest.raises(ValueError, match=r"all 9 scans were rejected:\n(  scan .*\n){5}  and 4 more$") as error:
        preprocess(
            Synthetic(unit=0.001), synthetic_root, tmp_path / "s.h5", PreprocessOptions(points=300, max_rejected=100)
        )
    assert "If the files are in m, pass --unit m, or multiply" in str(error.value)
    assert not list(tmp_path.glob("s.h5*"))


def test_a_scale_that_is_too_small_is_fixed_by_the_one_that_is_named(synthetic_root, tmp_path):
    dataset = Synthetic(scale=0.8)
    with pytest.raises(ValueError, match=r": \d+% of the points are outside .* Pass --scale [\d.]+") as error:
        preprocess(dataset, synthetic_root, tmp_path / "s.h5", PreprocessOptions(points=300))
    named = max(float(scale) for scale in re.findall(r"--scale ([\d.]+\d)", str(error.value)))
    assert 0.8 < named < 1.25
    assert (
        preprocess(
            replace(dataset, scale=named), synthetic_root, tmp_path / "t.h5", PreprocessOptions(points=300)
        ).scans
        == 9
    )


# ----------------------------------------------------------------------------------------------- splits, truth, normals


def test_only_the_scans_of_the_split_files_are_packed(do, synthetic_root):
    files = [synthetic_root / "splits" / f"{split}.json" for split in ("unseen_poses", "unseen_people")]
    packed = do(splits=files)
    store = ScanStore(packed.path)
    assert set(store.splits) == {"unseen_poses", "unseen_people"}
    assert store.names == sorted(store.splits["unseen_poses"] + store.splits["unseen_people"])


def test_a_split_that_names_what_is_not_there_counts_as_bad(do, synthetic_root, tmp_path):
    split = tmp_path / "mine.json"
    split.write_text(json.dumps(["p000/poses/000000", "p000/poses/000007"]))
    with pytest.raises(ValueError, match=r"1 of 2 .*\n  scan p000/poses/000007: named by the split mine, and no file"):
        do(splits=[split])
    packed = do(splits=[split], max_rejected=1)
    assert list(packed.rejected) == ["p000/poses/000007"]
    assert do(splits=[split], max_rejected=1) == replace(packed, created=False)
    split.write_text(json.dumps(["50002/hips/000001"]))
    with pytest.raises(
        ValueError, match=r"none of the 1 scans of mine; the splits name 50002/hips/000001, the files give p0"
    ):
        do(splits=[split])


def test_a_true_surface_that_lies_elsewhere_is_left_out_and_said(do, synthetic_root):
    with h5py.File(synthetic_root / "registrations.hdf5", "r+") as file:
        file["p001_poses"][:, 0, 1] += 0.3
    packed = do()
    assert do() == replace(packed, created=False)
    assert packed.ground_truths == 8
    assert len(packed.notes) == 1
    assert re.fullmatch(r"p001/poses/000001: ground truth omitted, it is 0\.\d\d m away from the scan", packed.notes[0])
    assert not ScanStore(packed.path).has_ground_truth("p001/poses/000001")


def test_normals_are_kept_where_there_are_any_required_or_dropped(tmp_path, make_body):
    root = tmp_path / "scans"
    (root / "a").mkdir(parents=True)
    body = make_body()
    body.export(root / "a" / "1.ply")
    np.save(root / "a" / "2.npy", np.hstack([body.vertices, body.vertex_normals]))
    np.save(root / "a" / "3.npy", body.vertices)
    kept = ScanStore(preprocess(DATASETS["folder"], root, tmp_path / "s.h5", PreprocessOptions(points=300)).path)
    assert [kept.has_normals(name) for name in kept.names] == [True, True, False]
    dropped = ScanStore(
        preprocess(DATASETS["folder"], root, tmp_path / "d.h5", PreprocessOptions(points=300, normals="drop")).path
    )
    assert not any(dropped.has_normals(name) for name in dropped.names)
    lined = dropped.sample(dropped.names[1], 300, np.random.default_rng(0))
    vectors = lined.normals if lined.normals is not None else lined.unoriented_normals
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    with pytest.raises(ValueError, match=r"1 of 3 scans .*\n.*3\.npy: 972 points without faces or normals"):
        preprocess(DATASETS["folder"], root, tmp_path / "r.h5", PreprocessOptions(points=300, normals="require"))


def test_ground_truth_is_left_out_on_request(tmp_path, dfaust_root):
    options = PreprocessOptions(points=300)
    with ScanStore(preprocess(DATASETS["dfaust"], dfaust_root, tmp_path / "s.h5", options).path) as store:
        assert any(store.has_ground_truth(name) for name in store.names)
    options = replace(options, ground_truth="drop")
    result = preprocess(DATASETS["dfaust"], dfaust_root, tmp_path / "d.h5", options)
    with ScanStore(result.path) as store:
        assert not any(store.has_ground_truth(name) for name in store.names)
    assert result.ground_truths == 0
    with pytest.raises(ValueError, match=r"made with other settings \(.*ground_truth"):
        preprocess(DATASETS["dfaust"], dfaust_root, tmp_path / "s.h5", options)


@pytest.mark.parametrize(
    ("dataset", "root"), [("dfaust", "dfaust_root"), ("faust", "faust_root"), ("cape-raw", "cape_root")]
)
def test_the_other_data_sets_are_packed_too(request, tmp_path, dataset, root):
    packed = preprocess(
        get_dataset(dataset), request.getfixturevalue(root), tmp_path / "s.h5", PreprocessOptions(points=300)
    )
    store = ScanStore(packed.path)
    assert packed.ground_truths == sum(not name.startswith("unknown") for name in store.names) >= 6
    assert all(
        0.6 < np.abs(store.sample(name, 300, np.random.default_rng(0)).points[:, 1]).max() <= 1 for name in store.names
    )


# --------------------------------------------------------------------------------------------------- arguments, memory


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 10}, "--points 10: must be at least 100"),
        ({"jobs": 0}, "--jobs 0: must be at least 1"),
        ({"max_rejected": -1}, "--max-rejected -1: must be at least 0"),
        ({"seed": -1}, "--seed -1: must be at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused(do, tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        do(**options)
    assert not list(tmp_path.glob("s.h5*"))


def test_a_missing_root_says_what_to_get(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder\. Download the scans of D-FAUST"):
        preprocess(get_dataset("dfaust"), tmp_path / "nowhere", tmp_path / "s.h5")


def test_memory_does_not_grow_with_the_number_of_scans(synthetic_root, tmp_path, make_raw, make_body):
    def peak(person: str) -> int:
        split = tmp_path / f"{person}.json"
        names = [f"p{index:03d}/poses/{frame:06d}" for index in range(3) for frame in range(3)]
        split.write_text(json.dumps(names[:2] if person == "few" else names))
        tracemalloc.start()
        preprocess(
            Synthetic(), synthetic_root, tmp_path / f"{person}.h5", PreprocessOptions(points=50_000, splits=[split])
        )
        largest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return largest

    peak("few")  # imports and caches
    (tmp_path / "few.h5").unlink()
    assert peak("all") < 1.1 * peak("few")


def test_shards_make_the_store_of_a_line_alone(do, tmp_path, path_of):
    whole = do("whole.h5")
    for shard in ((0, 3), (2, 3)):
        part = do(shard=shard)
        assert (part.path, part.scans) == (tmp_path / f"s.h5.{shard[0] + 1}of3", 3)
        assert not (tmp_path / "s.h5").exists()
    assert do(shard=(2, 3)).path == tmp_path / "s.h5.3of3"  # a part that is there is not packed again
    packed = do(shard=(1, 3))
    assert packed.path == tmp_path / "s.h5"
    assert content(tmp_path / "s.h5") == content(whole.path)
    assert {path.name for path in tmp_path.glob("*.h5*")} == {"s.h5", "whole.h5"}
    assert do(shard=(0, 3)).created is False


def test_a_line_alone_uses_the_shards_that_are_there_and_reads_the_rest(do, monkeypatch, tmp_path, path_of):
    whole = do("whole.h5")
    do(shard=(0, 3))
    changed = path_of(0, 0)  # of that shard; read again
    changed.write_bytes(changed.read_bytes().replace(b" 1.0\n", b" 1.0\ncomment again\n", 1))
    names = stop_at(monkeypatch, -1, raise_interrupt)
    do()
    assert len(names) == 7
    old, new = content(whole.path), content(tmp_path / "s.h5")
    assert {name for name in old if old[name] != new[name]} == {"p000/poses/000000"}  # its `bytes`
    assert old.keys() == new.keys()


def test_a_killed_shard_goes_on_and_bad_scans_count_when_all_are_there(do, monkeypatch, tmp_path, path_of):
    path_of(1, 1).write_bytes(b"ply")
    with monkeypatch.context() as patch:
        stop_at(patch, 2, raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            do(shard=(0, 2))
    names = stop_at(monkeypatch, -1, raise_interrupt)
    do(shard=(0, 2))
    assert len(names) == 4
    with pytest.raises(ValueError, match=r"1 of 9 scans were rejected \(--max-rejected 0\)"):
        do(shard=(1, 2))
    assert do(shard=(1, 2), max_rejected=1).scans == 8


def test_shards_of_other_arguments_are_not_mixed(do, tmp_path):
    do(shard=(0, 2))
    with pytest.raises(ValueError, match=r"s\.h5\.1of2: made with other settings \(points was 300, is now 200\)\. R"):
        do(shard=(1, 2), points=200)
    do(shard=(1, 2), points=200, overwrite=True)
    assert ScanStore(tmp_path / "s.h5").metadata["points"] == 200


def test_a_shard_leaves_the_store_to_the_one_that_is_at_it(do, tmp_path):
    ready, done = FORK.Event(), FORK.Event()

    def hold() -> None:
        with h5py.File(tmp_path / "s.h5.part", "w"):
            ready.set()
            done.wait(20)

    do(shard=(0, 2))
    process = FORK.Process(target=hold)
    process.start()
    ready.wait(20)
    assert do(shard=(1, 2)).path == tmp_path / "s.h5.2of2"
    done.set()
    process.join()


def test_a_scale_that_is_too_small_for_giants_is_doubted_first(synthetic_root, tmp_path):
    dataset = Synthetic(unit=1.7)  # people of 2.6 m and more
    with pytest.raises(
        ValueError, match=r"outside .* It is 2\.\d+ m large, .* Check --unit.* If it is right, pass --s"
    ):
        preprocess(dataset, synthetic_root, tmp_path / "s.h5", PreprocessOptions(points=300))


def test_what_is_no_person_is_named_and_strictly_rejected(synthetic_root, tmp_path, path_of, make_body, make_raw):
    ball = trimesh.creation.icosphere(radius=0.15).apply_translation((1.0, 0.5, 0.0))
    floor = trimesh.creation.box((1.6, 0.02, 1.6)).apply_translation((0, -0.011, 0)).subdivide_loop(3)
    body = make_body(1.0, -0.8)
    for frame, thing in ((0, ball), (1, floor)):
        make_raw(trimesh.util.concatenate([body, thing]), 3).export(path_of(1, frame))
    packed = preprocess(
        Synthetic(scale=1.6), synthetic_root, tmp_path / "s.h5", PreprocessOptions(points=500, ground_truth="drop")
    )
    assert packed.findings == {"p001/poses/000000": ["parts-found"], "p001/poses/000001": ["planes-found"]}
    strict = PreprocessOptions(points=500, ground_truth="drop", max_rejected=2, strict=True)
    rejected = preprocess(Synthetic(scale=1.6), synthetic_root, tmp_path / "strict.h5", strict).rejected
    assert rejected.keys() == packed.findings.keys()
    assert "cut it from the file" in rejected["p001/poses/000000"]
