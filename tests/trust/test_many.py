"""Training on ten thousand scans: it starts at once, its memory does not grow, and it records its waiting time."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shapespace.data.preprocess import PreprocessOptions, preprocess
from shapespace.data.store import ScanStore
from shapespace.datasets.synthetic import Synthetic
from shapespace.space import ShapeSpace
from shapespace.tools._config import config_class, expand_config_option
from shapespace.training.run import Run
from shapespace.training.train import DataTimer

POINTS = 250_000
SHARED = 20  # sets of points of all scans; separate ones would take 60 GB


def _many(path: Path, count: int) -> None:
    """Add many scans to a store of a few: groups with their own names, whose points are hard links."""
    with h5py.File(path, "r+") as file:
        given = [name.decode() for name in file["_names"][:]]
        scans = {name: file[name] for name in given}
        rng = np.random.default_rng(0)
        points = []
        for index in range(SHARED):
            source = scans[given[index % len(given)]]
            rows = rng.integers(len(source["points"]), size=POINTS)
            own = file.create_group(f"_shared/{index}")
            for key in ("points", "normals"):
                own[key] = source[key][:][rows]
            points.append(own)
        names = [f"m{index // 100:04d}/many/{index:06d}" for index in range(count)]
        for index, name in enumerate(names):
            scan = file.create_group(name)
            for key in ("points", "normals"):
                scan[key] = points[index % SHARED][key]
            scan.attrs.update(dict(scans[given[0]].attrs))
        del file["_names"], file["_splits"]
        file["_names"] = np.array([name.encode() for name in names], dtype=h5py.string_dtype())
        file.create_group("_splits")


def _resident() -> int:
    """Anonymous memory of this process (bytes)."""
    words = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(words["RssAnon"].split()[0]) * 1024


def _train(path: Path, folder: Path, steps: int, early: int, late: int, answer: Any) -> None:
    torch.set_num_threads(1)  # the threads of the parent do not exist here
    began, seen = time.perf_counter(), {}
    step = ScanStore.sample
    reads = 0

    def counted(self: ScanStore, name: str, count: int, rng: np.random.Generator) -> Any:
        nonlocal reads
        reads += 1
        if reads in (16 * 3 + 1, 16 * early + 1, 16 * late + 1):  # the third batch is read after the first step
            seen[reads // 16] = (time.perf_counter() - began, _resident())
        return step(self, name, count, rng)

    ScanStore.sample = counted  # type: ignore[method-assign]
    words = expand_config_option(
        ["--config", "igr", "--device", "cpu", "--projector-codes", "0", "--optim.max-steps", str(steps)]
    )
    words += ["--log_every", "50", "--save_every", "100000"]
    store = ScanStore(path)
    run = Run(folder)
    run.create({})
    ShapeSpace.train(store, store.scan_names(None), run, tyro.cli(config_class(words), args=words))
    answer.send(seen)


def test_a_training_on_many_scans_starts_at_once_and_its_memory_does_not_grow(
    synthetic_root: Path, tmp_path: Path, rounds: Callable[[int, int], int], tried: Callable[..., None]
) -> None:
    count, steps = rounds(0, 10_000), 210
    early, late = 100, 200  # earlier steps allocate memory for the first time
    if not count:
        pytest.skip("takes minutes: make trust")
    path = preprocess(Synthetic(), synthetic_root, tmp_path / "s.h5", PreprocessOptions(points=1000)).path
    _many(path, count)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_train, args=(path, tmp_path / "run", steps, early, late, there)
    )
    process.start()
    there.close()
    seen = here.recv()
    process.join()
    path.unlink()
    (first, _), (_, before), (_, after) = (seen[at] for at in (3, early, late))
    events = EventAccumulator(str(Run(tmp_path / "run").tensorboard))
    events.Reload()
    waits = [event.value for event in events.Scalars("time/data_wait")]
    passed = [first < 30, after < before + 20e6, max(waits) < 0.05]
    waited = f"at most {max(waits):.1%} of the time waiting for data"
    growth = f"{(after - before) / 1e6:+.1f} MB from step {early} to {late}"
    tried(
        f"training on {count:,} scans", len(passed), sum(passed), f"first step after {first:.1f} s, {growth}, {waited}"
    )


def test_the_waiting_time_is_the_share_of_time_without_a_batch() -> None:
    def slow() -> Any:
        for _ in range(3):
            time.sleep(0.05)
            yield "batch"

    waited = DataTimer(slow())
    for _ in waited:
        time.sleep(0.05)
    assert waited.share() == pytest.approx(0.5, abs=0.2)
    assert waited.share() == pytest.approx(0, abs=0.05)
