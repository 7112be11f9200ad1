"""Trained runs of any family side by side, or one alone: errors, curves and costs, as one page and in the terminal.

    shapespace report runs/people runs/occupancy --out compared
    shapespace report runs/people > people.md

Reads what the other verbs left: every `scores.json` and `motion.json` at or below each RUN, and how long it trained.
Score a run by several methods into folders of its own: shapespace evaluate RUN STORE --method encode --out RUN/encode.
Prints Markdown, and writes it as `report.md`, with `report.html`, which needs no other file, and the curves as
`curves.png`.
"""

from pathlib import Path
from typing import Annotated

import tyro

from shapespace import compare, page, plots
from shapespace.atomic import replacing


def main(runs: Annotated[tuple[Path, ...], tyro.conf.Positional], *, out: Path | None = None) -> None:
    """Compare runs.

    Args:
        runs: Folders of runs, or folders that hold scores.
        out: Folder for the page; the run itself if it is one, else `report`.

    """
    if not runs:
        raise ValueError("no runs given: name the folders that `shapespace evaluate` has scored.")
    scored, moved = compare.gather(runs)
    folder = out or (runs[0] if len(runs) == 1 else Path("report"))
    folder.mkdir(parents=True, exist_ok=True)
    drawing = None
    if panels := compare.panels(scored):
        figure = plots.error_curves(panels)
        plots.write_png(figure, folder / compare.CURVES)
        drawing = plots.svg(figure)
    sections = compare.sections(scored, moved, drawing)
    names = list(dict.fromkeys(one.run for one in scored))
    title = f"Run {names[0]}" if len(names) == 1 else f"Runs compared: {', '.join(names)}"
    texts = {"report.md": page.markdown(title, sections), "report.html": page.html(title, sections)}
    for name, text in texts.items():
        with replacing(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    print(texts["report.md"])
    print(f"The page is {folder / 'report.html'}, the same in Markdown {folder / 'report.md'}.")


if __name__ == "__main__":
    from shapespace.tools.__main__ import run as run_tool

    run_tool(main)
