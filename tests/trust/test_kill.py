"""Commands that are killed at random and rerun until they finish: all files are valid, and the result is the same.

Processes are forked from a server that has imported everything, which saves seconds for each start.
"""

import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open

from shapespace.io import scan_files

CALL = """
from shapespace.tools import {verb}
from shapespace.tools import _resume
from shapespace.tools.__main__ import cli
_resume.CHUNK_SIZE = 2
from shapespace.fitting.fitter import ScanFitter
ScanFitter._placed_anew = lambda self, fit, *_: fit
{more}
cli({verb}.main, {words})
"""
PRELOADED = [f"shapespace.tools.{verb}" for verb in ("preprocess", "train", "fit", "evaluate")]
PRELOADED += ["torch.utils.tensorboard", "typeguard", "matplotlib.pyplot", "skimage.measure"]

QUICK = ("--lm.max-steps", 5, "--lm.num-points", 256, "--resolution", 16)

Words = list[object]


# In the call of a shard: names of the scans and chunks that it has written, one a line, and its messages.
LOGGED = """
import sys
from shapespace.data import preprocess as _preprocess
def _log(function, name):
    def call(*arguments):
        function(*arguments)
        with open({log!r}, "a") as file:
            file.write(name(*arguments) + "\\n")
    return call
_resume._save = _log(_resume._save, lambda file, *_: file.name)
_preprocess.write_scan_group = _log(_preprocess.write_scan_group, lambda _, prepared, *rest: prepared.entry.name)
sys.stderr = open({log!r} + ".err", "a")
"""


@dataclass(frozen=True)
class Verb:
    """Command that writes its result to a folder, and the part of the result that must be equal each time."""

    name: str
    line: Callable[[Path], Words]
    result: Callable[[Path], object]


@pytest.fixture(scope="module")
def started() -> Iterator[Callable[..., Any]]:
    """Start a verb in a forked process; `more` is run before the call."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    def start(verb: str, words: Words, more: str = "") -> Any:
        call = CALL.format(verb=verb, words=[str(word) for word in words], more=more)
        process = context.Process(target=exec, args=(call, {}), daemon=True)
        process.start()
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        warm = context.Process(target=exec, args=("", {}))
        warm.start()  # the server imports before the first measurement
        warm.join()
        yield start


@pytest.fixture(scope="module")
def forked(started: Callable[..., Any]) -> Callable[..., float | None]:
    """Run a verb in a forked process, killed after some seconds; its duration (s), or None if it was killed."""

    def called(verb: Verb, folder: Path, after: float | None = None) -> float | None:
        began = time.perf_counter()
        process = started(verb.name, verb.line(folder))
        process.join(after)
        if process.is_alive():
            process.kill()
            process.join()
            return None
        assert process.exitcode == 0, (verb.line(folder), process.exitcode)
        return time.perf_counter() - began

    return called


@pytest.fixture(scope="module")
def verbs(people: Path, store: Path, learned: Path) -> dict[str, Verb]:
    """Commands that write many files, or one file many times."""

    def training(out: Path) -> Words:
        if (out / "checkpoint.pt").exists():
            return ["--resume", out]
        settings = ["--config", "tiny", "--split", "train", "--device", "cpu", "--projector-codes", 0]
        return [store, *settings, "--optim.max-steps", 30, "--save_every", 3, "--log_every", 3, "--out", out]

    return {
        "preprocessing": Verb(
            "preprocess",
            lambda out: ["synthetic", people, out / "people.h5", "--points", 5000],
            lambda out: contents(out / "people.h5"),
        ),
        "training": Verb("train", training, lambda out: (out / "model.safetensors").read_bytes()),
        "fits": Verb(
            "fit",
            lambda out: [learned, "--store", store, "--split", "train", *QUICK, "--out", out],
            lambda out: [(out / "codes.safetensors").read_bytes(), rows(out / "fits.json"), meshes(out)],
        ),
        "scores": Verb(
            "evaluate",
            lambda out: [learned, store, "--splits", "train", "--metrics", "normal_consistency", *QUICK, "--out", out],
            lambda out: [(out / "codes.safetensors").read_bytes(), rows(out / "scores.json"), meshes(out)],
        ),
    }


def contents(path: Path) -> dict[str, Any]:
    """All data and attributes of a store."""
    content: dict[str, Any] = {}
    with h5py.File(path) as file:

        def visit(name: str, thing: h5py.Group | h5py.Dataset) -> None:
            content[name] = thing[()].tolist() if isinstance(thing, h5py.Dataset) else None
            content[f"{name}@"] = {key: np.asarray(value).tolist() for key, value in thing.attrs.items()}

        visit("/", file)
        file.visititems(visit)
    return content


def rows(path: Path) -> list[dict[str, Any]]:
    """Records of scans without their seconds."""
    content = json.loads(path.read_text())
    return [{**row, "seconds": None} for row in (content["rows"] if isinstance(content, dict) else content)]


def meshes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.ply")}


def broken(folder: Path) -> list[str]:
    """Files that cannot be read; `*.part` files are not checked."""
    readers: dict[str, Callable[[Path], object]] = {
        ".json": lambda path: json.loads(path.read_text()),
        ".safetensors": lambda path: [safe_open(path, "pt").get_tensor(key) for key in safe_open(path, "pt").keys()],  # noqa: SIM118
        ".pt": lambda path: torch.load(path, weights_only=True),
        ".ply": scan_files.read_mesh,
        ".h5": contents,
    }
    errors = []
    for path in folder.rglob("*"):
        try:
            readers.get(path.suffix, lambda path: None)(path)
        except Exception as error:
            errors.append(f"{path}: {error!r}")
    return errors


@pytest.mark.parametrize("what", ["preprocessing", "training", "fits", "scores"])
def test_a_command_killed_at_random_gives_the_same_result(
    what: str,
    verbs: dict[str, Verb],
    forked: Callable[..., float | None],
    rounds: Callable[[int, int], int],
    tried: Callable[..., None],
    tmp_path: Path,
) -> None:
    verb, rng, many = verbs[what], random.Random(what), rounds(2, 50)
    usual = forked(verb, tmp_path / "uninterrupted")
    assert usual is not None
    wanted = verb.result(tmp_path / "uninterrupted")

    killed, passed, finished, out = 0, 0, 0, tmp_path / "killed"
    while passed < many:
        took = forked(verb, out, rng.uniform(0.05, 1.3) * usual if killed < many else None)
        killed += took is None
        assert not broken(out)
        if took is not None:
            usual = min(usual, took)
            assert verb.result(out) == wanted
            assert not list(out.rglob("*.part"))
            assert not list(out.rglob("unfinished"))
            shutil.rmtree(out)
            finished, passed = finished + 1, killed  # all kills before this result
    rerun = f"{what}: SIGKILL at a random moment, then the same command"
    tried(rerun, many, passed, f"{finished} runs finished, equal")


@pytest.mark.parametrize("what", ["training", "fits"])
def test_the_same_command_gives_the_same_bits(
    what: str,
    verbs: dict[str, Verb],
    forked: Callable[..., float | None],
    rounds: Callable[[int, int], int],
    tried: Callable[..., None],
    tmp_path: Path,
) -> None:
    results = []
    for index in range(rounds(2, 10)):
        forked(verbs[what], tmp_path / str(index))
        results.append(verbs[what].result(tmp_path / str(index)))
    same = sum(result == results[0] for result in results)
    tried(f"{what}: the same command in another process", len(results), same, "the same bits")


@pytest.mark.parametrize("what", ["preprocessing", "fits"])
def test_two_shards_one_killed_at_random_lose_nothing_and_write_nothing_twice(
    what: str,
    verbs: dict[str, Verb],
    learned: Path,
    store: Path,
    started: Callable[..., Any],
    forked: Callable[..., float | None],
    rounds: Callable[[int, int], int],
    tried: Callable[..., None],
    tmp_path: Path,
) -> None:
    """Two processes share a folder; the one that is killed is started again, as a scheduler does."""
    scans = [f"p{person:03d}/poses/{frame:06d}" for person in range(3) for frame in range(3)]
    verb = verbs[what]
    if what == "fits":
        verb = replace(verb, line=lambda out: [learned, *scans, "--store", store, *QUICK, "--out", out])
    units = scans if what == "preprocessing" else [f"{number:05d}.json" for number in range(5)]
    usual = forked(verb, tmp_path / "one")
    assert usual is not None
    wanted, rng, many, passed, killed = verb.result(tmp_path / "one"), random.Random(what), rounds(1, 25), 0, 0
    for number in range(many):
        out, log = tmp_path / f"two{number}", tmp_path / f"log{number}"
        more = LOGGED.format(log=str(log))
        shards = [[*verb.line(out), "--shard", f"{index}/2"] for index in (1, 2)]
        workers = [started(verb.name, shard, more) for shard in shards]
        victim = rng.randrange(2)
        workers[victim].join(rng.uniform(0.05, 0.7) * usual)
        workers[victim].kill()
        for worker in workers:
            worker.join()
        assert workers[1 - victim].exitcode == 0
        killed += workers[victim].exitcode != 0
        assert not broken(out)
        if list(out.rglob("unfinished")) or not list(out.glob("*.h5" if what == "preprocessing" else "fits.json")):
            again = started(verb.name, shards[victim], more)
            again.join()
            assert again.exitcode == 0
        assert verb.result(out) == wanted
        assert not list(out.rglob("unfinished"))
        assert not list(out.glob("*of2*"))
        written = log.read_text().split()
        if "damaged by an interruption" not in Path(f"{log}.err").read_text():  # killed in the tables of HDF5
            assert len(written) == len(set(written))
        passed += set(written) <= set(units)
    tried(
        f"{what} by two shards, one killed at a random moment", many, passed, f"{killed} killed, equal to one process"
    )


def test_a_command_in_its_own_process_continues(
    learned: Path, store: Path, verbs: dict[str, Verb], rounds: Callable[[int, int], int], tmp_path: Path
) -> None:
    """Command line of a user, killed when a chunk is finished."""
    if not rounds(0, 1):
        pytest.skip("takes the start of three processes: make trust")
    scans = [f"p{person:03d}/poses/{frame:06d}" for person in range(3) for frame in range(3)] * 2  # two chunks
    line = [sys.executable, "-m", "shapespace.tools", "fit", learned, *scans, "--store", store, *QUICK, "--out"]
    one, two = ([str(word) for word in [*line, tmp_path / name]] for name in ("one", "two"))
    subprocess.run(one, check=True, capture_output=True)
    process = subprocess.Popen(two, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("two/unfinished/*/*.json")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    if not (tmp_path / "two" / "fits.json").exists():
        done = subprocess.run(two, check=True, capture_output=True, text=True)
        assert "chunks are finished already" in done.stderr
    assert verbs["fits"].result(tmp_path / "two") == verbs["fits"].result(tmp_path / "one")
