"""Measure the accuracy of a shape space on corrupted scans.

    shapespace robustness humans data/people.h5 --split unseen_people
    shapespace robustness runs/people data/people.h5 --limit 4 --cases complete single_view rotated
    shapespace robustness humans data/people.h5 --non-people
    shapespace robustness humans data/people.h5 --random-cases 200

Scans of the store are corrupted, one corruption at a time (noise, outliers, few points, rotation, another unit,
furniture, one camera), fitted, and scored against the complete ground truth with `surface_distance`. `--non-people`
fits objects instead, `--random-cases` combines corruptions. Writes `robustness.json`, `robustness.md` and a picture of
the first scan in all cases.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro

from shapespace.data.store import ScanStore
from shapespace.evaluation import robustness
from shapespace.evaluation.corruptions import CORRUPTIONS
from shapespace.evaluation.robustness import RobustnessOptions, Table
from shapespace.evaluation.scores import markdown_table, write_results
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.rendering import sheet
from shapespace.space import ShapeSpace


def main(
    run: Annotated[str, tyro.conf.Positional],
    store: Annotated[Path, tyro.conf.Positional],
    *,
    lm: LMOptions,
    split: str | None = "unseen_people",
    limit: int | None = None,
    cases: tuple[str, ...] = (),
    non_people: bool = False,
    random_cases: int = 0,
    resolution: int = 96,
    out: Path = Path("robustness"),
    seed: int = 0,
) -> None:
    """Corrupt, fit and score.

    Args:
        run: Folder of a run, model file (.safetensors), or name of a packaged model.
        store: Store with ground truth.
        lm: Settings of the fits. Each case sets its own alignment; random cases use this one.
        split: Split of the store.
        limit: Number of scans; all by default.
        cases: Corruptions; all by default, none with --non-people or --random-cases.
        non_people: Also fit objects that are not people.
        random_cases: Number of random combinations of corruptions, written to a file and fitted as by `shapespace fit`.
        resolution: Grid cells along an edge of the model cube.
        out: Folder for the tables and the picture.
        seed: Seed of everything random.

    """
    robustness.check_cases(cases)
    space, scans = ShapeSpace.load(run), ScanStore(store)
    names = scans.scan_names(split)[:limit]
    chosen = list(cases or (() if non_people or random_cases else CORRUPTIONS))
    options = RobustnessOptions(lm, resolution, seed)
    results: dict[str, Any] = {"settings": {"lm": asdict(lm), "store": scans.path.name, "seed": seed}}
    tables: list[Table] = []
    if chosen:
        corrupted = robustness.run_corruptions(space, scans, names, chosen, options)
        rows = [("scan", corrupted.scans), ("fit", corrupted.predictions)]
        sheet.contact_sheet(rows, out / "robustness.png", titles=chosen)
        results["rows"] = corrupted.rows
        tables.append(robustness.corruption_table(corrupted.rows))
    if non_people:
        results["non_people"] = robustness.run_non_people(space, scans, names, options)
        tables.append(robustness.non_people_table(results["non_people"]))
    if random_cases:
        results["random_cases"] = robustness.run_random_cases(space, scans, names, random_cases, options)
        tables.append(robustness.random_case_table(results["random_cases"]))
    page = "\n".join(f"{markdown_table(table.lines, 1)}\n\n{table.note}\n" for table in tables)
    write_results(out, "robustness", results, page)
    picture = f", picture in {out / 'robustness.png'}" if chosen else ""
    print(f"{page}\ntables in {out / 'robustness.md'}, rows in {out / 'robustness.json'}{picture}")


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
