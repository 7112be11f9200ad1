"""Chunked work: finished chunks are stored, and shards give the result of a single process."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from shapespace.io.atomic import claimed
from shapespace.io.checkpoints import load_tensors
from shapespace.space import ShapeSpace
from shapespace.tools import _resume, evaluate, fit
from shapespace.tools.__main__ import cli
from shapespace.tools._resume import Chunk, resumable

pytestmark = pytest.mark.usefixtures("first_fit_only")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_resume, "CHUNK_SIZE", 2)


@pytest.fixture(scope="module")
def space(learned: Path) -> ShapeSpace:
    return ShapeSpace.load(learned)


class Count:
    """Work that records its items, and fails at given ones."""

    def __init__(self, fails: Sequence[int] = ()) -> None:
        self.done: list[int] = []
        self.fails = fails

    def __call__(self, items: Sequence[int]) -> Chunk:
        if set(items) & set(self.fails):
            raise InterruptedError
        self.done += items
        return Chunk([], [{"square": item**2} for item in items])


def collect(out: Path, work: Count, space: ShapeSpace, shard: str | None = None, **settings: int) -> list[int] | None:
    with resumable(out, settings, range(7), work, space, shard) as whole:
        return None if whole is None else [row["square"] for row in whole.metadata]


SQUARES = [0, 1, 4, 9, 16, 25, 36]


def test_finished_chunks_are_stored(space: ShapeSpace, tmp_path: Path) -> None:
    first, second = Count(fails=[5]), Count()
    with pytest.raises(InterruptedError):
        collect(tmp_path, first, space)
    assert collect(tmp_path, second, space) == SQUARES
    assert (first.done, second.done) == ([0, 1, 2, 3], [4, 5, 6])
    assert not list(tmp_path.iterdir())


def test_a_command_without_finished_chunks_leaves_no_files(space: ShapeSpace, tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        collect(tmp_path / "out", Count(fails=[0]), space)
    assert not list(tmp_path.iterdir())


def test_other_settings_have_other_chunks(
    space: ShapeSpace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InterruptedError):
        collect(tmp_path, Count(fails=[5]), space, seed=0)
    other = Count()
    assert collect(tmp_path, other, space, seed=1) == SQUARES
    assert other.done == list(range(7))
    assert "chunks of commands with other settings" in capsys.readouterr().out
    assert collect(tmp_path, Count(), space, seed=0) == SQUARES
    assert not list(tmp_path.iterdir())


def test_chunks_are_kept_if_the_result_cannot_be_written(space: ShapeSpace, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), resumable(tmp_path, {}, range(7), Count(), space):
        raise OSError("full")
    again = Count()
    assert collect(tmp_path, again, space) == SQUARES
    assert again.done == []


def test_shards_share_the_work_and_the_last_one_writes_the_result(
    space: ShapeSpace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = Count(), Count(), Count()
    assert collect(tmp_path, first, space, "1/3") is None
    assert collect(tmp_path, third, space, "3/3") is None
    assert "shard 3/3 finished, 1 of 4 chunks are missing" in capsys.readouterr().out
    assert collect(tmp_path, second, space, "2/3") == SQUARES
    assert (first.done, second.done, third.done) == ([0, 1, 6], [2, 3], [4, 5])
    with pytest.raises(ValueError, match=r"--shard 4/3: not a valid shard\. Pass --shard 1/4"):
        collect(tmp_path, Count(), space, "4/3")
    with pytest.raises(ValueError, match="--shard half: not a valid shard"):
        collect(tmp_path, Count(), space, "half")


def test_a_running_command_is_locked_and_shards_run_together(space: ShapeSpace, tmp_path: Path) -> None:
    assert collect(tmp_path, Count(), space, "1/2") is None
    (folder,) = (tmp_path / "unfinished").iterdir()
    with claimed(folder, shared=True):  # another running shard
        with pytest.raises(BlockingIOError, match=r"/unfinished/.*: another process is writing it"):
            collect(tmp_path, Count(), space)
        assert collect(tmp_path, Count(), space, "2/2") is None
    last = Count()
    assert collect(tmp_path, last, space) == SQUARES
    assert last.done == []


VERBS: dict[str, tuple[Callable[..., None], Callable[[Path, Path], list[object]]]] = {
    "fit": (fit.main, lambda learned, store: [learned, "--store", store, "--split", "train", "--lm.max-steps", 5]),
    "evaluate": (
        evaluate.main,
        lambda learned, store: [
            learned,
            store,
            "--splits",
            "train",
            "--lm.max-steps",
            5,
            "--metrics",
            "normal_consistency",
        ],
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_shards_give_the_result_of_one_process(
    verb: str, learned: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, line = VERBS[verb]
    words = [str(word) for word in [*line(learned, store), "--lm.num-points", 256, "--resolution", 16, "--out"]]
    cli(tool, [*words, str(tmp_path / "one")])
    cli(tool, [*words, str(tmp_path / "two"), "--shard", "1/2"])
    assert not (tmp_path / "two" / "codes.safetensors").exists()
    monkeypatch.setenv("RANK", "1")  # as torchrun sets it for the second process
    monkeypatch.setenv("WORLD_SIZE", "2")
    cli(tool, [*words, str(tmp_path / "two")])
    one, two = ({file.relative_to(root): file for file in files(root)} for root in (tmp_path / "one", tmp_path / "two"))
    assert one.keys() == two.keys()
    for name, file in one.items():
        if name.suffix == ".json":
            assert _rows(json.loads(file.read_text())) == _rows(json.loads(two[name].read_text()))
        elif name.suffix in (".ply", ".safetensors"):
            assert file.read_bytes() == two[name].read_bytes(), name
    codes, header = load_tensors(tmp_path / "two" / "codes.safetensors", "codes")
    assert len(header["names"]) == len(codes["code.0"]) == 4
    assert torch.isfinite(codes["code.0"]).all()


def files(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*") if path.is_file())


def _rows(record: object) -> object:
    """Rows without seconds."""
    rows = record["rows"] if isinstance(record, dict) else record
    assert isinstance(rows, list)
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
