"""Curves of errors, drawn by matplotlib without a display; it is imported where it is needed, for it takes a second."""

import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from shapespace.io.atomic import replacing
from shapespace.io.scan_files import _write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Errors = Sequence[float | None]  # mm, one for each scan; none where no surface was found
RunAndMethod = tuple[str, str]  # a run and a method
Panel = Mapping[RunAndMethod, Errors]

INK, RULE = "#2b2a28", "#a09b94"  # INK takes the colour of the page's text where the drawing is part of one
COLORS = ("#2f7fb8", "#d2622a", "#3f9b6b", "#b9639a", "#c99a1e", "#6f6bb5", "#8a8578", "#40a5b0")
DASHES: dict[str, str | tuple[int, tuple[float, ...]]] = {
    "encode": (0, (4.0, 1.5)),
    "adam": (0, (9.0, 1.0)),
    "refine": (0, (1.0, 1.2)),
    "poisson": (0, (6.0, 1.5, 1.0, 1.5)),
}
STYLE: dict[Any, object] = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "shapespace",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def cumulative(errors: Errors) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """Where the share of scans with an error of at most x rises, and to what: from (0, 0) to that of all found ones.

    It ends below 1 where no surface was found for some of the scans.
    """
    found = np.sort(np.array([error for error in errors if error is not None], dtype=np.float64))
    return np.concatenate([[0.0], found]), np.arange(len(found) + 1) / max(len(errors), 1)


def axis_limit(panels: Iterable[Panel]) -> float:
    """How far the errors are shown (mm): to the largest of all, or only to three times the largest median."""
    curves = (cumulative(errors)[0][1:] for panel in panels for errors in panel.values())
    found = [errors for errors in curves if len(errors)]
    largest = max((float(errors.max()) for errors in found), default=1.0)
    median = max((float(np.median(errors)) for errors in found), default=1.0)
    return 1.02 * min(largest, 3 * median) or 1.0


def error_curves(panels: Mapping[str, Panel], *, columns: int = 2) -> "Figure":
    """Draw a panel under each name, row by row, with a curve for each run (its colour) and method (its dashes)."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    runs = list(dict.fromkeys(run for panel in panels.values() for run, _ in panel))
    rows = -(-len(panels) // columns)
    limits = [axis_limit(list(panels.values())[column::columns]) for column in range(columns)]
    with rc_context(STYLE):
        figure = Figure(layout="constrained")
        axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
        drawn: dict[RunAndMethod, Line2D] = {}
        for index, (title, panel) in enumerate(panels.items()):
            _frame(axes[index], title, limits[index % columns])
            for way, errors in panel.items():
                drawn[way] = _curve(axes[index], way, errors, COLORS[runs.index(way[0]) % len(COLORS)])
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        ways = sorted(drawn, key=lambda way: runs.index(way[0]))
        labels = [f" {run}, {method}" for run, method in ways]  # matplotlib hides what begins with an underscore
        beside = -(-len(ways) // (12 * rows))
        figure.legend([drawn[way] for way in ways], labels, loc="outside right upper", frameon=False, ncols=beside)
        figure.supxlabel("error x, mm", fontsize=9)
        figure.supylabel("share of scans with an error up to x", fontsize=9)
        longest = max(len(label) for label in labels)
        figure.set_size_inches(3.4 * columns + (0.8 + 0.075 * longest) * beside, 2.7 * rows)
    return figure


def _frame(axis: "Axes", title: str, limit: float) -> None:
    axis.set_title(title, loc="left", fontsize=9)
    axis.set(xlim=(0, limit), ylim=(0, 1.02), yticks=[0, 0.25, 0.5, 0.75, 1])
    axis.grid(color=RULE, alpha=0.35, linewidth=0.6)


def _curve(axis: "Axes", way: RunAndMethod, errors: Errors, colour: str) -> "Line2D":
    """A staircase that goes on to the right edge."""
    x, share = cumulative(errors)
    x, share = np.append(x, max(x[-1], axis.get_xlim()[1])), np.append(share, share[-1])
    dashes = DASHES.get(way[1], "-")
    return axis.plot(x, share, drawstyle="steps-post", color=colour, linestyle=dashes, linewidth=1.6)[0]


def training_curves(panels: Mapping[str, Mapping[str, Float[np.ndarray, "n 2"]]], *, columns: int = 3) -> "Figure":
    """Draw a panel under each name: steps and values of each run, in its colour; logarithmic where values allow it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    runs = list(dict.fromkeys(run for panel in panels.values() for run in panel))
    rows = -(-len(panels) // columns)
    with rc_context(STYLE):
        figure = Figure(layout="constrained", figsize=(3.3 * columns, 2.2 * rows + 0.2))
        axes = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
        drawn: dict[str, Line2D] = {}
        for axis, (title, panel) in zip(axes, panels.items(), strict=False):
            axis.set_title(title, loc="left", fontsize=9)
            axis.grid(color=RULE, alpha=0.35, linewidth=0.6)
            for run, curve in panel.items():
                colour = COLORS[runs.index(run) % len(COLORS)]
                (drawn[run],) = axis.plot(*thinned(curve).T, color=colour, linewidth=1.2)
            if all(np.nanmin(curve[:, 1], initial=1.0) > 0 for curve in panel.values()):
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                axis.yaxis.set_minor_formatter(lambda value, _: "")
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        if len(runs) > 1:
            labels = [f" {run}" for run in drawn]  # matplotlib hides what begins with an underscore
            figure.legend(list(drawn.values()), labels, loc="outside lower center", frameon=False, ncols=4)
        figure.supxlabel("step", fontsize=9)
    return figure


def thinned(curve: Float[np.ndarray, "n 2"], most: int = 200) -> Float[np.ndarray, "k 2"]:
    """Means over stretches of equal length, so that at most so many are left."""
    if len(curve) <= most:
        return curve
    return np.array([stretch.mean(axis=0) for stretch in np.array_split(curve, most)])


def level_lines(
    values: Float[np.ndarray, "y x"], axes: Float[np.ndarray, "2 n"], points: Float[np.ndarray, "n 2"]
) -> "Figure":
    """Draw a field of the plane: its level lines, evenly spaced, the curve where it is zero, and the scan's points."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    levels, few = np.linspace(-1, 1, 41) * np.abs(values).max(), points[:: max(1, len(points) // 2000)]
    with rc_context(STYLE):
        figure = Figure(figsize=(6, 6), layout="constrained")
        axis = figure.subplots()
        axis.contourf(*axes, values, levels=levels, cmap="RdBu", alpha=0.55)
        axis.contour(*axes, values, levels=levels, colors=[RULE], linewidths=0.4, linestyles="solid")
        axis.contour(*axes, values, levels=[0], colors=[INK], linewidths=1.8)
        axis.plot(few[:, 0], few[:, 1], ".", markersize=2.5, color=COLORS[1])
        axis.set_aspect("equal")
    return figure


def write_png(figure: "Figure", path: Path) -> None:
    """Write it on white paper."""
    from matplotlib import rc_context

    with rc_context(STYLE), replacing(path) as part:
        figure.savefig(part, format="png", dpi=160, facecolor="white")


def svg(figure: "Figure") -> str:
    """Give it as an element of a page: no background, text in the page's colour, the same bytes every time."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :].strip()
    drawing = re.sub(r"\s*<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawing)  # HTML knows them
    used = set(re.findall(r"#([\w-]+)", drawing))
    drawing = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", drawing)
    return drawing.replace(INK, "currentColor")


def write_curves(path: str | os.PathLike[str], curves: Sequence[Float[np.ndarray, "k 2"]]) -> None:
    """Write polylines of the plane as SVG, in their own unit; y points up."""
    low, high = (kind([kind(curve, axis=0) for curve in curves], axis=0) for kind in (np.min, np.max))
    margin = 0.05 * float((high - low).max())
    x, y, width, height = (float(value) for value in (*(low - margin), *(high - low + 2 * margin)))
    ways = [" L".join(f"{a:.6g},{b:.6g}" for a, b in curve) for curve in curves]
    text = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{x:.6g} {-y - height:.6g} {width:.6g} {height:.6g}">',
        f'<g transform="scale(1 -1)" fill="none" stroke="black" stroke-width="{0.1 * margin:.3g}">',
        *(f'<path d="M{way}"/>' for way in ways),
        "</g>\n</svg>\n",
    ]
    _write(Path(path), "\n".join(text).encode())
