"""Compare trained runs, or show a single one, as an HTML page and as Markdown.

    shapespace report runs/people runs/occupancy --out compared
    shapespace report runs/people > people.md

Reads the output of the other commands at or below each RUN: `scores.json`, `motion.json`, `path.json`, settings and
training log. A page of one run shows everything; a page of several shows differences. Missing outputs are listed with
the commands that make them. Scores by several methods go to separate folders:
shapespace evaluate RUN STORE --method encode --out RUN/encode.

Prints Markdown. Writes `report.md`, `report.html` (self-contained, works offline), `curves.png` and `training.png`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from shapespace.evaluation.stored_scores import load_scores
from shapespace.fitting.result import load_fits
from shapespace.io.atomic import replacing
from shapespace.io.checkpoints import load_tensors
from shapespace.rendering import plots
from shapespace.report import comparison, page, run_page
from shapespace.report.page import Notes, Section
from shapespace.space import ShapeSpace
from shapespace.tools._outputs import write_interpolation
from shapespace.training.run import Run


def main(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional], *, out: Path | None = None, interpolate: bool = True
) -> None:
    """Compare runs.

    Args:
        runs: Folders of runs, or folders with scores.
        out: Output folder; by default the run if there is one, else `report`.
        interpolate: Interpolate between the first two fits of a single run that has no interpolation yet, into its
            folder `interpolation`.

    """
    if not runs:
        raise ValueError("no runs given: name folders that `shapespace evaluate` has scored.")
    scored, paths = load_scores(runs)
    interpolations = run_page.load_interpolations(runs)
    if interpolate and len(runs) == 1 and not interpolations and _interpolate_first_fits(Run(runs[0])):
        interpolations = run_page.load_interpolations(runs)
    infos = run_page.load_runs(runs, scored, paths)
    names = list(dict.fromkeys([*(one.name for one in infos), *(one.run for one in scored)]))
    alone = len(infos or names) == 1  # other models that are scored in the folder of a run belong to its page
    folder = out or (runs[0] if len(runs) == 1 else Path("report"))
    folder.mkdir(parents=True, exist_ok=True)
    errors = _draw(plots.error_curves, comparison.error_panels(scored), folder / comparison.CURVES)
    training = _draw(plots.training_curves, run_page.training_panels(infos), folder / run_page.CURVES)
    sections = [
        *comparison.score_sections(scored, paths, errors),
        *run_page.mesh_sections(scored, interpolations, alone=alone),
        *run_page.training_sections(training),
        *comparison.detail_sections(scored, alone=alone),
        *run_page.provenance_sections(infos, scored),
    ]
    if missing := run_page.missing_outputs(infos, scored, interpolations):
        sections.insert(0, Section("Missing outputs", [Notes(missing)]))
    title = f"Run {names[0]}" if alone else f"Comparison of runs: {', '.join(names)}"
    texts = {"report.md": page.markdown(title, sections), "report.html": page.html(title, sections)}
    for name, text in texts.items():
        with replacing(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    print(texts["report.md"])
    print(f"page in {folder / 'report.html'}, as Markdown in {folder / 'report.md'}")


def _draw(draw: Callable[..., Any], panels: dict[str, Any], file: Path) -> str | None:
    """Draw panels into a PNG file; return them as SVG, or None without panels."""
    if not panels:
        return None
    figure = draw(panels)
    plots.write_png(figure, file)
    return plots.svg(figure)


def _interpolate_first_fits(run: Run) -> bool:
    """Interpolate between the first two fits of `evaluate`; False if that is not possible."""
    codes = run.folder / "codes.safetensors"
    if not (codes.is_file() and run.weights.is_file()):
        return False
    names = load_tensors(codes, "codes")[1]["names"]
    if len(names) < 2:
        return False
    try:
        space = ShapeSpace.load(run.folder)
        a, b = load_fits(codes, space.model)[:2]
        write_interpolation(space, a, b, run.folder / "interpolation", resolution=96)
    except ValueError as error:
        print(f"note: no interpolation from {names[0]} to {names[1]}: {error}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
