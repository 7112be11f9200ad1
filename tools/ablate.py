"""Train variants of a recipe for the same time, with several seeds, score them on unseen scans, and print one table.

    shapespace ablate data/people.h5 --minutes 30 --variants igr "igr --batch.gradient-stride 1" "igr_paper --batch.scans 4"

A row is the name of a config (or the path of a YAML file) and the settings that differ from it, as `shapespace train`
takes them. Every training gets the same minutes on the same number of cores; with `--jobs 2` two go side by side, each
on its share of the cores. What is finished is kept under --out and not made again. Writes `ablation.json` and
`ablation.md`: medians over the scans by protocol `surface`, mean and range over the seeds.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from shapespace.evaluation.scores import markdown_table
from shapespace.io.atomic import replacing
from shapespace.training.run import Run

Method = Literal["lm", "adam", "encode", "refine"]
COLUMNS = ("completeness", "accuracy")


@dataclass(frozen=True)
class Trial:
    """One training of one row, and its scores by one or more methods."""

    variant: str
    seed: int
    folder: Path

    def scores(self, method: Method) -> Path:
        """Where its scores by this method lie."""
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
    out: Path = Path("runs/ablation"),
) -> None:
    """Compare variants.

    Args:
        store: A store with a split `train` and the splits to score.
        rows: Variants, each a config and its settings.
        minutes: Time of each training.
        seeds: Each row is trained once with each.
        methods: How unseen scans are fitted.
        splits: Scans to score.
        limit: Score only the first so many scans of each split.
        jobs: Trainings side by side; the cores are shared evenly among them.
        resolution: Cells of the mesh's grid along the model cube's edge.
        out: Folder for the runs and the table.

    """
    trials = [Trial(row, seed, out / f"{_slug(row)}-{seed}") for seed in seeds for row in variants]
    cores = max(1, torch.get_num_threads() // jobs)
    scoring = ["--resolution", resolution, "--splits", *splits, *([] if limit is None else ["--limit", limit])]

    def one(trial: Trial) -> None:
        _train(trial, store, minutes, cores)
        for method in methods:
            _evaluate(trial, store, method, scoring, cores)

    with ThreadPoolExecutor(jobs) as pool:
        for _ in tqdm(pool.map(one, trials), total=len(trials), desc="ablate", unit="training"):
            pass
    table = [
        _row(row, method, [t for t in trials if t.variant == row], splits) for row in variants for method in methods
    ]
    settings = {"store": store.name, "minutes": minutes, "cores": cores, "side by side": jobs, "seeds": seeds}
    with replacing(out / "ablation.json") as part:
        part.write_text(json.dumps({"settings": settings, "rows": table}, indent=1))
    page = _page(table, splits)
    with replacing(out / "ablation.md") as part:
        part.write_text(page)
    print(page)
    print(f"table in {out / 'ablation.md'}, runs in {out}")


def _train(trial: Trial, store: Path, minutes: float, cores: int) -> None:
    done = trial.folder / "trained"
    if done.exists():
        return
    config, *settings = shlex.split(trial.variant)
    if (trial.folder / "checkpoint.pt").exists():
        words = ["train", "--resume", trial.folder]
    else:
        words = ["train", store, "--config", config, "--split", "train", "--optim.max-steps", 10**9, *settings]
        words += ["--optim.max-minutes", minutes, "--seed", trial.seed, "--out", trial.folder]
    call(words, cores)
    done.touch()


def _evaluate(trial: Trial, store: Path, method: Method, scoring: list[Any], cores: int) -> None:
    if trial.scores(method).exists():
        return
    words = ["evaluate", trial.folder, store, "--method", method, *scoring, "--metrics", "surface"]
    call([*words, "--out", trial.scores(method).parent], cores)


def call(words: Sequence[Any], cores: int | None = None) -> str:
    """Run one verb in a process of its own, and give what it prints; silent unless it fails."""
    verb, *rest = map(str, words)
    environment = {**os.environ, **({} if cores is None else {"OMP_NUM_THREADS": str(cores)})}
    command = [sys.executable, "-m", f"shapespace.tools.{verb}", *rest]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"shapespace {shlex.join([verb, *rest])} failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def _row(row: str, method: Method, trials: list[Trial], splits: tuple[str, ...]) -> dict[str, Any]:
    """Medians of every seed, by split and column."""
    found = [json.loads(trial.scores(method).read_text()) for trial in trials]
    steps = [progress.steps for trial in trials if (progress := Run(trial.folder).progress())]
    medians = {
        split: {column: [f["summary"][split]["surface"][column]["median"] for f in found] for column in COLUMNS}
        for split in splits
    }
    failed = sum(f["summary"][split]["surface"][COLUMNS[0]]["failed"] for f in found for split in splits)
    return {"row": row, "method": method, "steps": steps, "medians": medians, "failed": failed}


def _page(table: list[dict[str, Any]], splits: tuple[str, ...]) -> str:
    heads = [f"{split} {column.replace('_to_', ' → ')}" for split in splits for column in COLUMNS]
    lines = [["recipe", "fit", "steps", *heads, "no surface"]]
    for row in table:
        cells = [_spread(row["medians"][split][column]) for split in splits for column in COLUMNS]
        steps = f"{np.mean(row['steps']):,.0f}"
        lines.append([f"`{row['row']}`", row["method"], steps, *cells, str(row["failed"])])
    return markdown_table(lines) + "\n\nProtocol `surface`, mm: median over the scans, mean (range) over the seeds.\n"


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "none"
    return f"{np.mean(known):.2f} ({min(known):.2f} to {max(known):.2f})"


def _slug(row: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", row.lower()).strip("-")


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
