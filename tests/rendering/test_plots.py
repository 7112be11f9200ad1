"""Cumulative curves, axis limits, and SVG for pages."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from shapespace.rendering import plots

PANELS = {
    "poses, there": {("a", "lm"): [3.0, 1.0, 2.0], ("_b$x$ <i>", "encode"): [None, 4.0]},
    "poses, back": {("a", "lm"): [1.0, 1.0, 50.0], ("_b$x$ <i>", "encode"): [None, None]},
    "people, there": {("a", "encode"): [5.0]},
}


@pytest.mark.parametrize("errors", [[3.0, 1.0, 2.0, 2.0], [0.0], list(np.random.default_rng(0).exponential(5, 99))])
def test_curves_rise_from_0_to_1_and_are_the_shares(errors: list[float]) -> None:
    x, share = plots.cumulative(errors)
    assert (x[0], share[0], share[-1]) == (0, 0, 1)
    assert (np.diff(x) >= 0).all()
    assert (np.diff(share) > 0).all()
    for bound in (0.5, 2.0, 10.0):  # the last step at or below the bound
        assert share[np.searchsorted(x, bound, side="right") - 1] == np.mean(np.array(errors) <= bound)


def test_scans_without_a_surface_keep_the_curve_below_1() -> None:
    x, share = plots.cumulative([None, 2.0, None, 1.0])
    assert x.tolist() == [0, 1, 2]
    assert share.tolist() == [0, 0.25, 0.5]
    assert [part.tolist() for part in plots.cumulative([None])] == [[0], [0]]
    assert [part.tolist() for part in plots.cumulative([])] == [[0], [0]]


def test_the_axis_ends_at_the_largest_error_or_soon_after_the_median() -> None:
    assert plots.axis_limit([{("a", "lm"): [1.0, 2.0, 3.0]}]) == pytest.approx(1.02 * 3)
    assert plots.axis_limit([{("a", "lm"): [1.0, 2.0, 300.0]}]) == pytest.approx(1.02 * 6)
    assert plots.axis_limit([{("a", "lm"): [None]}]) > 0
    assert plots.axis_limit([{("a", "lm"): [0.0]}]) > 0


def test_svg_has_a_complete_legend_and_reproducible_bytes() -> None:
    drawing = plots.svg(plots.error_curves(PANELS))
    assert drawing == plots.svg(plots.error_curves(PANELS))
    assert not re.search(r"https?:|<metadata|<!DOCTYPE|<\?xml", drawing)
    root = ElementTree.fromstring(drawing.replace("xlink:", ""))
    words = {"".join(text.itertext()).strip() for text in root.iter("text")}
    assert words >= {"a, lm", "a, encode", "_b$x$ <i>, encode", *PANELS}
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(set(ids)) == len(ids)
    links = re.findall(r'xlink:href="([^"]*)"|url\(([^)]*)\)', drawing)
    assert {(a or b).removeprefix("#") for a, b in links} <= set(ids)
    assert "currentColor" in drawing
    assert plots.INK not in drawing


def test_the_png_is_white_and_has_all_runs(tmp_path: Path) -> None:
    plots.write_png(plots.error_curves(PANELS), tmp_path / "curves.png")
    image = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
    assert (image[0] == 255).all()
    for color in plots.COLORS[:2]:  # both runs are there
        wanted = [int(color[k : k + 2], 16) for k in (1, 3, 5)]
        assert (image == wanted).all(axis=-1).any(), color


def test_methods_of_one_run_are_told_apart_by_their_dashes() -> None:
    panel: plots.Panel = {("a", method): [1.0] for method in ("lm", "adam", "encode", "refine", "poisson")}
    lines = plots.error_curves({"p": panel}).axes[0].lines
    assert len({line.get_color() for line in lines}) == 1
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == len(panel)
