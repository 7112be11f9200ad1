"""Plots by matplotlib (imported on use: it takes a second), and curves as SVG."""

import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from shapespace.io.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Errors = Sequence[float | None]  # mm, one for each scan; None for scans without a surface
RunAndMethod = tuple[str, str]  # name of a run, name of a method
Panel = Mapping[RunAndMethod, Errors]

INK, RULE = "#2b2a28", "#a09b94"  # `svg` replaces INK by the text color of the page
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
    """Cumulative distribution of errors: x (mm), and the share of scans with an error of at most x.

    Starts at (0, 0), and ends below 1 if scans have no surface.
    """
    known = np.sort(np.array([error for error in errors if error is not None], dtype=np.float64))
    return np.concatenate([[0.0], known]), np.arange(len(known) + 1) / max(len(errors), 1)


def axis_limit(panels: Iterable[Panel]) -> float:
    """End of the error axis (mm): the largest error, but at most three times the largest median."""
    curves = (cumulative(errors)[0][1:] for panel in panels for errors in panel.values())
    known = [errors for errors in curves if len(errors)]
    largest = max((float(errors.max()) for errors in known), default=1.0)
    median = max((float(np.median(errors)) for errors in known), default=1.0)
    return 1.02 * min(largest, 3 * median) or 1.0


def error_curves(panels: Mapping[str, Panel], *, columns: int = 2) -> "Figure":
    """Cumulative errors: a panel for each name, row by row; runs differ by color, methods by dashes."""
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
            for key, errors in panel.items():
                drawn[key] = _curve(axes[index], key, errors, COLORS[runs.index(key[0]) % len(COLORS)])
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        keys = sorted(drawn, key=lambda key: runs.index(key[0]))
        labels = [f" {run}, {method}" for run, method in keys]  # matplotlib hides labels that begin with an underscore
        legend_columns = -(-len(keys) // (12 * rows))
        lines = [drawn[key] for key in keys]
        figure.legend(lines, labels, loc="outside right upper", frameon=False, ncols=legend_columns)
        figure.supxlabel("error x, mm", fontsize=9)
        figure.supylabel("share of scans with an error up to x", fontsize=9)
        longest = max(len(label) for label in labels)
        figure.set_size_inches(3.4 * columns + (0.8 + 0.075 * longest) * legend_columns, 2.7 * rows)
    return figure


def _frame(axis: "Axes", title: str, limit: float) -> None:
    axis.set_title(title, loc="left", fontsize=9)
    axis.set(xlim=(0, limit), ylim=(0, 1.02), yticks=[0, 0.25, 0.5, 0.75, 1])
    axis.grid(color=RULE, alpha=0.35, linewidth=0.6)


def _curve(axis: "Axes", key: RunAndMethod, errors: Errors, color: str) -> "Line2D":
    """Draw a step function that extends to the right edge."""
    x, share = cumulative(errors)
    x, share = np.append(x, max(x[-1], axis.get_xlim()[1])), np.append(share, share[-1])
    dashes = DASHES.get(key[1], "-")
    return axis.plot(x, share, drawstyle="steps-post", color=color, linestyle=dashes, linewidth=1.6)[0]


def training_curves(panels: Mapping[str, Mapping[str, Float[np.ndarray, "n 2"]]], *, columns: int = 3) -> "Figure":
    """Training curves: a panel of steps and values for each name; runs differ by color; log axis if all positive."""
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
                color = COLORS[runs.index(run) % len(COLORS)]
                (drawn[run],) = axis.plot(*bin_means(curve).T, color=color, linewidth=1.2)
            if all(np.nanmin(curve[:, 1], initial=1.0) > 0 for curve in panel.values()):
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                axis.yaxis.set_minor_formatter(lambda value, _: "")
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        if len(runs) > 1:
            labels = [f" {run}" for run in drawn]  # matplotlib hides labels that begin with an underscore
            figure.legend(list(drawn.values()), labels, loc="outside lower center", frameon=False, ncols=4)
        figure.supxlabel("step", fontsize=9)
    return figure


def bin_means(curve: Float[np.ndarray, "n 2"], max_points: int = 200) -> Float[np.ndarray, "k 2"]:
    """Means over bins of equal length, at most `max_points` of them."""
    if len(curve) <= max_points:
        return curve
    return np.array([part.mean(axis=0) for part in np.array_split(curve, max_points)])


def level_lines(
    values: Float[np.ndarray, "y x"], axes: Float[np.ndarray, "2 n"], points: Float[np.ndarray, "n 2"]
) -> "Figure":
    """Field of the plane: evenly spaced level lines, the zero level, and the points of the scan."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    levels, sample = np.linspace(-1, 1, 41) * np.abs(values).max(), points[:: max(1, len(points) // 2000)]
    with rc_context(STYLE):
        figure = Figure(figsize=(6, 6), layout="constrained")
        axis = figure.subplots()
        axis.contourf(*axes, values, levels=levels, cmap="RdBu", alpha=0.55)
        axis.contour(*axes, values, levels=levels, colors=[RULE], linewidths=0.4, linestyles="solid")
        axis.contour(*axes, values, levels=[0], colors=[INK], linewidths=1.8)
        axis.plot(sample[:, 0], sample[:, 1], ".", markersize=2.5, color=COLORS[1])
        axis.set_aspect("equal")
    return figure


def write_png(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG with a white background."""
    from matplotlib import rc_context

    with rc_context(STYLE), replacing(path) as part:
        figure.savefig(part, format="png", dpi=160, facecolor="white")


def svg(figure: "Figure") -> str:
    """SVG element of a figure for an HTML page: no background, text color of the page, reproducible bytes."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :].strip()
    drawing = re.sub(r"\s*<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawing)  # not needed inside HTML
    used = set(re.findall(r"#([\w-]+)", drawing))
    drawing = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", drawing)
    return drawing.replace(INK, "currentColor")


def write_curves(path: str | os.PathLike[str], curves: Sequence[Float[np.ndarray, "k 2"]]) -> None:
    """Write polylines of the plane as SVG, in their own unit, with y up."""
    low, high = (kind([kind(curve, axis=0) for curve in curves], axis=0) for kind in (np.min, np.max))
    margin = 0.05 * float((high - low).max())
    x, y, width, height = (float(value) for value in (*(low - margin), *(high - low + 2 * margin)))
    paths = [" L".join(f"{a:.6g},{b:.6g}" for a, b in curve) for curve in curves]
    text = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{x:.6g} {-y - height:.6g} {width:.6g} {height:.6g}">',
        f'<g transform="scale(1 -1)" fill="none" stroke="black" stroke-width="{0.1 * margin:.3g}">',
        *(f'<path d="M{line}"/>' for line in paths),
        "</g>\n</svg>\n",
    ]
    with replacing(path) as part:
        part.write_bytes("\n".join(text).encode())
