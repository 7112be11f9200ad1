"""Train variants of a config for the same time with several seeds, score them on unseen scans, and print one table.

    shapespace ablate people.h5 --minutes 30 --variants igr "igr --batch.gradient-stride 1" "igr_paper --batch.scans 4"

A variant is the name of a config (or a YAML file) with options of `shapespace train`. All trainings take the same
minutes on the same number of cores; with `--jobs 2` two run at the same time, each on half of the cores. An interrupted
command continues when it is given again. Writes `ablation.json` and `ablation.md`: medians over the scans by metric
`surface_distance`, mean and range over the seeds.
"""

import re
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from shapespace.evaluation.scores import write_table
from shapespace.evaluation.stored_scores import read_result
from shapespace.io.migration import upgrade_scores
from shapespace.tools._subprocess import run_command
from shapespace.training.run import Run

Method = Literal["lm", "adam", "encode", "refine"]
COLUMNS = ("completeness", "accuracy")
UNLIMITED_STEPS = 10**9  # the minutes end a training


@dataclass(frozen=True)
class Trial:
    """One training of a variant."""

    variant: str
    seed: int
    folder: Path

    def scores(self, method: Method) -> Path:
        """File of its scores by this method."""
        return self.folder / method / "scores.json"


def main(
    store: Annotated[Path, tyro.conf.Positional],
    *,
    variants: tuple[str, ...],
    minutes: float = 30.0,
    seeds: tuple[int, ...] = (0, 1, 2),
    methods: tuple[Method, ...] = ("lm",),
    splits: tuple[str, ...] = ("unseen_poses", "unseen_people"),
    limit: int | None = None,
    jobs: int = 1,
    resolution: int = 128,
    scoring: str = "",
    out: Path = Path("runs/ablation"),
) -> None:
    """Compare variants.

    Args:
        store: Store with a split `train` and the splits to score.
        variants: Variants, each a config and its options.
        minutes: Time of each training (min).
        seeds: Seeds of the trainings of each variant.
        methods: Fitting methods of unseen scans.
        splits: Splits to score.
        limit: Maximum number of scans of each split.
        jobs: Number of trainings at the same time; they share the cores.
        resolution: Grid cells of the meshes along an edge of the model cube.
        scoring: Further options of `shapespace evaluate`, in the form `--scoring="--lm.levels 2"`.
        out: Folder for the runs and the table.

    """
    trials = [Trial(variant, seed, out / f"{_slug(variant)}-{seed}") for seed in seeds for variant in variants]
    cores = max(1, torch.get_num_threads() // jobs)
    options = ["--resolution", resolution, "--splits", *splits, *([] if limit is None else ["--limit", limit])]
    options += shlex.split(scoring)

    def run(trial: Trial) -> None:
        _train(trial, store, minutes, cores)
        for method in methods:
            _evaluate(trial, store, method, options, cores)

    with ThreadPoolExecutor(jobs) as pool:
        for _ in tqdm(pool.map(run, trials), total=len(trials), desc="ablate", unit="training"):
            pass
    rows = [
        _row(variant, method, [trial for trial in trials if trial.variant == variant], splits)
        for variant in variants
        for method in methods
    ]
    settings = {"store": store.name, "minutes": minutes, "cores": cores, "side by side": jobs, "seeds": seeds}
    settings |= {"scoring": scoring} if scoring else {}
    note = "Metric `surface_distance` (mm): median over the scans, mean (range) over the seeds."
    print(write_table(out, "ablation", rows, _lines(rows, splits), note, settings=settings, text_columns=3))
    print(f"table in {out / 'ablation.md'}, runs in {out}")


def _train(trial: Trial, store: Path, minutes: float, cores: int) -> None:
    finished = trial.folder / "trained"
    if finished.exists():
        return
    config, *options = shlex.split(trial.variant)
    if (trial.folder / "checkpoint.pt").exists():
        words = ["train", "--resume", trial.folder]
    else:
        words = ["train", store, "--config", config, "--split", "train", "--optim.max-steps", UNLIMITED_STEPS, *options]
        words += ["--optim.max-minutes", minutes, "--seed", trial.seed, "--out", trial.folder]
    run_command(words, cores)
    finished.touch()


def _evaluate(trial: Trial, store: Path, method: Method, options: list[Any], cores: int) -> None:
    if trial.scores(method).exists():
        return
    words = ["evaluate", trial.folder, store, "--method", method, *options, "--metrics", "surface_distance"]
    run_command([*words, "--out", trial.scores(method).parent], cores)


def _row(variant: str, method: Method, trials: list[Trial], splits: tuple[str, ...]) -> dict[str, Any]:
    """Medians of all seeds, by split and column."""
    scores = [read_result(trial.scores(method), "scores", upgrade_scores, "shapespace evaluate") for trial in trials]
    steps = [progress.steps for trial in trials if (progress := Run(trial.folder).progress())]
    medians = {
        split: {
            column: [one["summary"][split]["surface_distance"][column]["median"] for one in scores]
            for column in COLUMNS
        }
        for split in splits
    }
    failed = sum(one["summary"][split]["surface_distance"][COLUMNS[0]]["failed"] for one in scores for split in splits)
    return {"variant": variant, "method": method, "steps": steps, "medians": medians, "failed": failed}


def _lines(rows: list[dict[str, Any]], splits: tuple[str, ...]) -> list[list[str]]:
    heads = [f"{split} {column}" for split in splits for column in COLUMNS]
    lines = [["variant", "method", "steps", *heads, "no surface"]]
    for row in rows:
        cells = [_mean_and_range(row["medians"][split][column]) for split in splits for column in COLUMNS]
        steps = f"{np.mean(row['steps']):,.0f}"
        lines.append([f"`{row['variant']}`", row["method"], steps, *cells, str(row["failed"])])
    return lines


def _mean_and_range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "none"
    return f"{np.mean(known):.2f} ({min(known):.2f} to {max(known):.2f})"


def _slug(variant: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", variant.lower()).strip("-")


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
