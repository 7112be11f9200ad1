"""Contact sheets of meshes, charts of values along a path, and the legend of error colors."""

import unicodedata
from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw
from trimesh import Trimesh

from shapespace.io.atomic import replacing
from shapespace.rendering.colors import ERROR_RAMP, ramp
from shapespace.rendering.renderer import (
    INK,
    PALE,
    RGBImage,
    Window,
    blank,
    camera_axes,
    draw_row,
    font,
    stand_on_floor,
)

Values = Sequence[float] | Float[np.ndarray, "_"]


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Trimesh]]],
    path: str | PathLike[str],
    *,
    titles: Sequence[str] = (),
    size: int = 320,
    azimuth: float = 25.0,
    elevation: float = 10.0,
    limit: float | None = None,
    curves: Mapping[str, Values] | None = None,
) -> None:
    """Write rows of meshes, each under its label, as one PNG at one scale.

    Args:
        rows: Label and meshes, left to right; each row has its own floor.
        path: The PNG.
        titles: Titles of the columns, above the first row.
        size: Height of a row (pixels).
        azimuth: See `render`.
        elevation: See `render`.
        limit: End of the color map (mm); adds its `legend`.
        curves: Values along a path by name; adds a `chart`.

    Raises:
        ValueError: There is nothing to draw.

    """
    if not any(meshes for _, meshes in rows):
        raise ValueError(f"{path}: no meshes in the {len(rows)} rows of a contact sheet. Give at least one.")
    axes = camera_axes(azimuth, elevation)
    figures = [stand_on_floor(meshes) for _, meshes in rows]
    window = Window.around([(row, axes) for row in figures], size)
    blocks: list[Image.Image] = []
    for (label, _), row in zip(rows, figures, strict=True):
        blocks.append(_label(label))
        if titles and len(blocks) == 1:
            blocks.append(_titles(titles, window.columns))
        if row:
            blocks.append(Image.fromarray(draw_row(row, axes, window)))
    if limit is not None:
        blocks.append(Image.fromarray(legend(limit)))
    if curves:
        width = max(block.width for block in blocks) // len(curves)
        blocks.append(Image.fromarray(chart(curves, width=min(max(width, 380), 640))))
    with replacing(path) as part:
        _stack(blocks).save(part, format="PNG")


def chart(curves: Mapping[str, Values], *, width: int = 380, height: int = 170) -> RGBImage:
    """Chart of values along a path: a panel for each name, side by side, on its own scale; NaN leaves a gap.

    A scale spans at least 4 % of the mean of its values, so that nearly constant values look flat.
    """
    panels = [_curve(name, np.array(values, dtype=np.float64), width, height) for name, values in curves.items()]
    return np.concatenate(panels, axis=1)


def _curve(name: str, values: Float[np.ndarray, "k"], width: int, height: int) -> RGBImage:
    left, right, top, bottom = 64, width - 24, 34, height - 26
    known = np.flatnonzero(np.isfinite(values))
    finite = values[known] if len(known) else np.zeros(1)
    span = max(np.ptp(finite), 0.04 * abs(finite.mean()), 1e-3)
    low = 0.5 * (finite.min() + finite.max() - span)
    x = left + (right - left) * np.arange(len(values)) / max(len(values) - 1, 1)
    y = bottom - (bottom - top) * (values - low) / span
    large = blank(4 * width, 4 * height)  # drawn large and reduced: antialiasing
    pen = ImageDraw.Draw(large)
    for level in (top, bottom):
        pen.line([(4 * left, 4 * level), (4 * right, 4 * level)], fill=PALE, width=3)
    for k in known:
        if k + 1 < len(values) and np.isfinite(values[k + 1]):
            pen.line([(4 * x[k], 4 * y[k]), (4 * x[k + 1], 4 * y[k + 1])], fill=ERROR_RAMP[3], width=8)
        pen.ellipse([4 * x[k] - 12, 4 * y[k] - 12, 4 * x[k] + 12, 4 * y[k] + 12], fill=ERROR_RAMP[3])
    small = large.resize((width, height), Image.Resampling.BOX)
    pen = ImageDraw.Draw(small)
    pen.text((left, 6), _ascii(name), fill=INK, font=font(14))
    decimals = max(0, 1 - int(np.floor(np.log10(span))))
    for level, value in ((top, low + span), (bottom, low)):
        pen.text((left - 8, level), f"{value:.{decimals}f}", fill=INK, font=font(12), anchor="rm")
    pen.text((left, height - 20), "start", fill=PALE, font=font(12))
    pen.text((right, height - 20), "end", fill=PALE, font=font(12), anchor="ra")
    return np.asarray(small)


def legend(limit: float) -> RGBImage:
    """Legend of `colors.colors_of`, from 0 to `limit` mm."""
    image = blank(380, 46)
    bar = ramp(np.linspace(0, 1, 240))
    image.paste(Image.fromarray(np.tile(bar, (12, 1, 1))), (8, 6))
    pen = ImageDraw.Draw(image)
    for share, label in ((0.0, "0"), (0.5, f"{limit / 2:g}"), (1.0, f"{limit:g} mm or more")):
        pen.text((8 + 240 * share, 24), label, fill=INK, font=font(13), anchor="la" if share in (0, 1) else "ma")
    return np.asarray(image)


def _titles(titles: Sequence[str], cell: int) -> Image.Image:
    image = blank(cell * len(titles), 24)
    for k, title in enumerate(titles):
        ImageDraw.Draw(image).text(((k + 0.5) * cell, 4), _ascii(title), fill=INK, font=font(15), anchor="ma")
    return image


def _label(text: str) -> Image.Image:
    letters = font(16)
    image = blank(int(letters.getlength(_ascii(text))) + 16, 28)
    ImageDraw.Draw(image).text((8, 6), _ascii(text), fill=INK, font=letters)
    return image


def _stack(blocks: Sequence[Image.Image], margin: int = 20) -> Image.Image:
    """Stack pictures vertically, aligned to the left, on paper."""
    width = max(block.width for block in blocks) + 2 * margin
    page = blank(width, sum(block.height for block in blocks) + 2 * margin)
    top = margin
    for block in blocks:
        page.paste(block, (margin, top))
        top += block.height
    return page


def _ascii(text: str) -> str:
    """Text in the characters of the built-in font: m² becomes m2, é becomes e."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
