"""Trained runs of any family side by side, or one alone: errors, curves, fits to turn, as one page and in the terminal.

    shapespace report runs/people runs/occupancy --out compared
    shapespace report runs/people > people.md

Reads what the other verbs left: every `scores.json`, `motion.json` and `path.json` at or below each RUN, its settings
and how it learned. Of one run it shows everything, of several what tells them apart; what a run has not got is said,
with the line that makes it. Score a run by several methods into folders of its own: shapespace evaluate RUN STORE
--method encode --out RUN/encode.
Prints Markdown, and writes it as `report.md`, with `report.html`, which needs no other file and no network, and the
curves as `curves.png` and `training.png`.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import tyro

from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.io.atomic import replacing
from shapespace.io.checkpoints import load_tensors
from shapespace.rendering import plots
from shapespace.report import comparison, page, run_page
from shapespace.report.page import Notes, Section
from shapespace.tools import interpolate as tool
from shapespace.tools._inputs import ScanInput
from shapespace.training.run import Run


def main(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional], *, out: Path | None = None, interpolate: bool = True
) -> None:
    """Compare runs.

    Args:
        runs: Folders of runs, or folders that hold scores.
        out: Folder for the page; the run itself if it is one, else `report`.
        interpolate: Go from the first fit of a single run to its second, if it has no path yet, and leave that in its
            folder `interpolation`, as the verb interpolate would.

    """
    if not runs:
        raise ValueError("no runs given: name the folders that `shapespace evaluate` has scored.")
    scored, moved = comparison.load_scores(runs)
    paths = run_page.load_interpolations(runs)
    if interpolate and len(runs) == 1 and not paths and _goes(Run(runs[0])):
        paths = run_page.load_interpolations(runs)
    learned = run_page.load_runs(runs, scored, moved)
    names = list(dict.fromkeys([*(one.name for one in learned), *(one.run for one in scored)]))
    alone = len(learned or names) == 1  # with what was scored in its folder, as other spaces on the same scans
    folder = out or (runs[0] if len(runs) == 1 else Path("report"))
    folder.mkdir(parents=True, exist_ok=True)
    errors = _drawn(plots.error_curves, comparison.panels(scored), folder / comparison.CURVES)
    training = _drawn(plots.training_curves, run_page.panels(learned), folder / run_page.CURVES)
    sections = [*comparison.sections(scored, moved, errors), *run_page.seen(scored, paths, alone=alone)]
    sections += [
        *run_page.learning(training),
        *comparison.details(scored, alone=alone),
        *run_page.origin(learned, scored),
    ]
    if absent := run_page.missing(learned, scored, paths):
        sections.insert(0, Section("What is missing", [Notes(absent)]))
    title = f"Run {names[0]}" if alone else f"Runs compared: {', '.join(names)}"
    texts = {"report.md": page.markdown(title, sections), "report.html": page.html(title, sections)}
    for name, text in texts.items():
        with replacing(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    print(texts["report.md"])
    print(f"The page is {folder / 'report.html'}, the same in Markdown {folder / 'report.md'}.")


def _drawn(draw: Callable[..., Any], panels: dict[str, Any], file: Path) -> str | None:
    """The panels as an element of the page, and as a file beside it."""
    if not panels:
        return None
    figure = draw(panels)
    plots.write_png(figure, file)
    return plots.svg(figure)


def _goes(run: Run) -> bool:
    """Whether a path could be made between the first two fits that `evaluate` left."""
    codes = run.folder / "codes.safetensors"
    if not (codes.is_file() and run.weights.is_file()):
        return False
    names: Sequence[str] = load_tensors(codes, "codes")[1]["names"]
    if len(names) < 2:
        return False
    a, b = (f"{codes}:{name}" for name in names[:2])
    try:
        with redirect_stdout(sys.stderr):  # ours is the page's
            tool.main(
                run.folder, a, b, source=ScanInput(), lm=LMOptions(), out=run.folder / "interpolation", resolution=96
            )
    except ValueError as error:
        print(f"note: no path from {names[0]} to {names[1]}: {error}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
