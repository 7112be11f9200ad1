"""Locks, atomic files, full disks and folders without permission: every failure ends in a message."""

import errno
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import pytest

from shapespace.data.store import ScanStore
from shapespace.io import atomic
from shapespace.io.atomic import claimed, flush_to_disk, replacing
from shapespace.tools import fit, preprocess, train
from shapespace.tools.__main__ import cli, main

pytestmark = pytest.mark.usefixtures("first_fit_only")


def in_a_child(work: Callable[[], object]) -> int:
    """Exit code of a forked process that does the work; 1 if it raises."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        work()
    except BaseException as error:
        os._exit(3 if isinstance(error, BlockingIOError) else 1)
    os._exit(0)


def test_a_part_file_of_a_killed_process_is_overwritten(tmp_path: Path) -> None:
    def killed() -> None:
        with replacing(tmp_path / "file") as part:
            part.write_text("half of a long")
            os.kill(os.getpid(), 9)

    assert in_a_child(killed) == -9
    assert [path.name for path in tmp_path.iterdir()] == ["file.part"]
    with replacing(tmp_path / "file") as part:
        part.write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "new"}


def test_two_processes_cannot_write_the_same_file(tmp_path: Path) -> None:
    def other() -> None:
        with replacing(tmp_path / "file") as part:
            part.write_text("other")

    with replacing(tmp_path / "file") as part:
        part.write_text("first")
        assert in_a_child(other) == 3
        with pytest.raises(BlockingIOError, match=r"/file: another process is writing it\. Wait until"):
            other()
    assert (tmp_path / "file").read_text() == "first"
    assert in_a_child(other) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "other"}


def test_a_folder_is_locked_by_one_process_or_shared_by_many(tmp_path: Path) -> None:
    def alone() -> None:
        with claimed(tmp_path):
            pass

    def among_others() -> None:
        with claimed(tmp_path, shared=True):
            pass

    with claimed(tmp_path):
        assert (in_a_child(alone), in_a_child(among_others)) == (3, 3)
    with claimed(tmp_path, shared=True):
        assert (in_a_child(alone), in_a_child(among_others)) == (3, 0)
    with claimed(tmp_path):  # a child that outlives it has no lock
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.read(reading, 1)
            os._exit(0)
    assert in_a_child(alone) == 0
    os.write(writing, b"x")
    os.waitpid(child, 0)


def test_a_run_is_trained_by_one_process(learned: Path, fails: Callable[..., str]) -> None:
    with claimed(learned):
        assert re.search(rf"{learned}: another process is writing it\. Wait until", fails("train", "--resume", learned))


def test_a_failed_block_leaves_no_file(tmp_path: Path) -> None:
    def failing() -> None:
        with replacing(tmp_path / "made" / "file") as part:
            part.write_text("half")
            raise OSError(errno.EIO, "the cable is out")

    with pytest.raises(OSError, match="the cable is out") as caught:
        failing()
    assert caught.value.filename == str(tmp_path / "made" / "file")
    assert not list((tmp_path / "made").iterdir())


@pytest.fixture
def disk_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, int]]:
    """Flushes and renames below `tmp_path`, in their order: what, path (of a rename, the new one), bytes."""
    calls: list[tuple[str, Path, int]] = []
    fsync, rename = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        status = os.fstat(descriptor)
        (path,) = (one for one in [tmp_path, *tmp_path.rglob("*")] if os.path.samestat(one.stat(), status))
        fsync(descriptor)
        calls.append(("flush", path, status.st_size))

    def renamed(part: Path, path: Path) -> None:
        calls.append(("rename", path, part.stat().st_size))
        rename(part, path)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    return calls


def test_content_is_on_the_disk_before_the_name_and_the_name_at_the_end(
    tmp_path: Path, disk_calls: list[tuple[str, Path, int]]
) -> None:
    with replacing(tmp_path / "one" / "two" / "file") as part:
        part.write_text("new")
        assert [call[:2] for call in disk_calls] == [("flush", tmp_path / "one"), ("flush", tmp_path)]
        disk_calls.clear()
    folder = tmp_path / "one" / "two"
    first, second, third = disk_calls
    assert first == ("flush", folder / "file.part", 3)
    assert second == ("rename", folder / "file", 3)
    assert third[:2] == ("flush", folder)


def test_a_file_system_without_flushes_is_tolerated_and_a_broken_disk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(text: str) -> None:
        with replacing(tmp_path / "file") as part:
            part.write_text(text)

    def fail(number: int) -> Callable[[int], None]:
        def fsync(_: int) -> None:
            raise OSError(number, os.strerror(number))

        return fsync

    monkeypatch.setattr(os, "fsync", fail(errno.EINVAL))
    write("old")
    monkeypatch.setattr(os, "fsync", fail(errno.EIO))
    with pytest.raises(OSError, match="nput/output error"):
        write("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}


def test_a_system_without_file_locks_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with pytest.raises(ModuleNotFoundError, match=r"runs on Linux and macOS\. On Windows, install it in WSL"):
        runpy.run_path(atomic.__file__)


def test_windows_flushes_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_size))
    monkeypatch.setattr(os, "name", "nt")
    flush_to_disk(tmp_path)
    flush_to_disk(file)
    monkeypatch.undo()
    assert flushed == [1]


def test_stores_checkpoints_and_fits_are_flushed_before_they_are_renamed(
    people: Path, learned: Path, tmp_path: Path, disk_calls: list[tuple[str, Path, int]]
) -> None:
    store, run, fitted = tmp_path / "new" / "people.h5", tmp_path / "run", tmp_path / "fitted"
    cli(preprocess.main, ["synthetic", str(people), str(store), "--points", "600", "--jobs", "1"])
    parts = [size for what, path, size in disk_calls if what == "flush" and path.name == "people.h5.part"]
    assert len(parts) == 9 + 1  # each scan before it counts as complete, and the whole
    assert sorted(parts) == parts
    cli(train.main, [str(store), *TRAINING, "--out", str(run)])
    words = [str(learned), "--store", str(store), "--split", "unseen_poses", "--resolution", "16", "--out", str(fitted)]
    cli(fit.main, [*words, *map(str, QUICK)])
    files = [store, run / "config.yaml", run / "checkpoint.pt", run / "model.safetensors"]
    files += [fitted / "codes.safetensors", fitted / "fits.json", *fitted.glob("*.ply")]
    assert len(files) == 8
    for file in files:
        last = max(at for at, call in enumerate(disk_calls) if call[:2] == ("rename", file))
        size = file.stat().st_size
        assert disk_calls[last] == ("rename", file, size)
        assert disk_calls[last - 1] == ("flush", file.with_name(file.name + ".part"), size)
        assert disk_calls[last + 1][:2] == ("flush", file.parent)
    for folder in (store.parent, run, fitted):
        made = [at for at, call in enumerate(disk_calls) if call[:2] == ("flush", folder)]
        assert ("flush", tmp_path) in [call[:2] for call in disk_calls[: made[0]]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """File system of four megabytes; needs root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with exit code 2; its message."""

    def called(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["shapespace", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    return called


QUICK = ("--lm.max-steps", 5, "--lm.num-points", 256)


def fill(disk: Path, left: int) -> Path:
    """Write a file that leaves this many bytes of the disk."""
    free = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - left))
    return disk / "filler"


TRAINING = (
    "--config",
    "tiny",
    "--device",
    "cpu",
    "--projector-codes",
    "0",
    "--optim.max-steps",
    "10",
    "--save_every",
    "5",
)


def test_a_full_disk_stops_a_training_and_its_checkpoint_stays(
    small_disk: Path, store: Path, fails: Callable[..., str]
) -> None:
    cli(train.main, [str(store), *TRAINING, "--out", str(small_disk / "run")])
    before = {name: (small_disk / "run" / name).read_bytes() for name in ("checkpoint.pt", "model.safetensors")}
    filler = fill(small_disk, 8192)
    assert re.search("the disk is full. Make room", fails("train", "--resume", small_disk / "run"))
    assert {name: (small_disk / "run" / name).read_bytes() for name in before} == before
    assert not list(small_disk.rglob("*.part"))
    filler.unlink()
    cli(train.main, ["--resume", str(small_disk / "run")])


def test_a_full_disk_stops_preprocess_and_the_same_command_continues(
    small_disk: Path, people: Path, fails: Callable[..., str]
) -> None:
    line = ["preprocess", "synthetic", people, small_disk / "people.h5", "--points", 1000]
    filler = fill(small_disk, 400_000)
    assert re.search("the disk is full. Make room", fails(*line))
    assert not (small_disk / "people.h5").exists()
    filler.unlink()
    cli(preprocess.main, [str(word) for word in line[1:]])
    assert len(ScanStore(small_disk / "people.h5")) == 9


def test_a_damaged_partial_store_is_started_again(
    people: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """HDF5 changes its tables in place: a process that is killed meanwhile leaves a file that cannot be continued."""
    part = tmp_path / "people.h5.part"
    with h5py.File(store) as file:
        offset = h5py.h5o.get_info(file["p001/poses/000001"].id).addr
    content = bytearray(store.read_bytes())
    content[offset : offset + 8] = bytes(8)  # the header of a scan
    part.write_bytes(content)
    cli(preprocess.main, ["synthetic", str(people), str(tmp_path / "people.h5"), "--points", "600"])
    assert f"note: {part}: damaged by an interruption, starting again" in capsys.readouterr().err
    with ScanStore(tmp_path / "people.h5") as opened:
        assert len(opened) == 9
    assert not part.exists()


def test_a_full_disk_stops_a_fit(small_disk: Path, store: Path, learned: Path, fails: Callable[..., str]) -> None:
    filler = fill(small_disk, 8192)
    line = [
        "fit",
        learned,
        "--store",
        store,
        "--split",
        "unseen_poses",
        *QUICK,
        "--resolution",
        24,
        "--out",
        small_disk / "f",
    ]
    assert re.search("/f/.*: the disk is full. Make room", fails(*line))
    assert not list(small_disk.rglob("*.part"))
    filler.unlink()
    cli(fit.main, [str(word) for word in line[1:]])
    assert len(json.loads((small_disk / "f" / "fits.json").read_text())) == 2


def test_a_folder_without_permission_gets_a_message(
    small_disk: Path, store: Path, learned: Path, people: Path, fails: Callable[..., str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for line in (
        ["preprocess", "synthetic", people, small_disk / "people.h5"],
        ["train", store, "--config", "tiny", "--out", small_disk / "run"],
        ["fit", learned, "--store", store, "--split", "unseen_poses", "--resolution", 16, "--out", small_disk / "fit"],
        ["evaluate", learned, store, "--resolution", 16, "--out", small_disk / "scores"],
    ):
        assert re.search(r"/disk/.*no permission to read or write it", fails(*line))


def test_missing_files_are_named(
    people: Path, store: Path, learned: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    shutil.copytree(people, tmp_path / "people")
    gone = next((tmp_path / "people").rglob("*.ply"))
    gone.unlink()
    line = ["preprocess", "synthetic", tmp_path / "people", tmp_path / "people.h5", "--split"]
    assert re.search(
        "named by the split train, and no file under", fails(*line, tmp_path / "people" / "splits" / "train.json")
    )
    assert re.search("gone.h5: no such store. Create it", fails("train", "--out", tmp_path / "r", tmp_path / "gone.h5"))
    moved = tmp_path / "moved.h5"
    shutil.copy(store, moved)
    cli(train.main, [str(moved), *TRAINING, "--out", str(tmp_path / "run")])
    moved.unlink()
    assert re.search(r"moved\.h5: no such store\. Create it", fails("train", "--resume", tmp_path / "run"))
