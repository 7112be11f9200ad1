"""Slices: the field on a plane as an image, with level lines and the part of the mesh behind the plane."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from trimesh import Trimesh

from shapespace.fitting.result import Fit
from shapespace.geometry import isosurface
from shapespace.models.base import FieldModel
from shapespace.rendering import colors

LEVELS = (-100, -50, -20, 0, 20, 50, 100, 200)  # mm of signed distance: the level lines
COLOR_LIMIT = 300.0  # mm: end of the color scale, and where the image is fully transparent
FADE_START = 150.0  # mm: where the image begins to fade
CELLS = 96  # samples along an edge
MARGIN = 0.15  # meters around the mesh
ZERO_LINE_COLOR, LINE_COLOR = (0, 0, 0), (130, 126, 122)

Axis = Literal["x", "y", "z"]


@dataclass(frozen=True)
class SlicePlane:
    """A plane normal to an axis, `offset` meters from the center of the shape."""

    axis: Axis
    offset: float


@dataclass(frozen=True)
class Slice:
    """Image of the field on a plane, with level lines; lengths are meters, positions those of the mesh."""

    image: UInt8[np.ndarray, "h w 4"]
    """Red, green, blue, opacity; rows go down. It is transparent far outside, to show what is behind it."""
    center: Float[np.ndarray, "3"]
    right: Float[np.ndarray, "3"]
    up: Float[np.ndarray, "3"]
    side: float
    """Length of each edge."""
    lines: Float[np.ndarray, "s 2 3"]
    line_colors: UInt8[np.ndarray, "s 2 3"]
    behind: Trimesh
    """The part of the mesh on the low side of the plane; the other part would hide the slice."""


def slice_field(model: FieldModel, shape: Fit, mesh: Trimesh, plane: SlicePlane) -> Slice:
    """Sample the field on a square of the plane that is `MARGIN` wider than the mesh.

    Where the field is not defined, the image is transparent and there are no lines.
    """
    normal = "xyz".index(plane.axis)
    across, upward = {0: (2, 1), 1: (0, 2), 2: (0, 1)}[normal]
    low, high = mesh.bounds
    center = 0.5 * (low + high)
    center[normal] += plane.offset
    side = float((high - low)[[across, upward]].max()) + 2 * MARGIN
    right, up = np.eye(3)[across], np.eye(3)[upward]
    steps = side * (np.linspace(0, 1, CELLS) - 0.5)
    points = center + steps[None, :, None] * right + steps[:, None, None] * up
    x = shape.frame.to_model(torch.from_numpy(points.reshape(-1, 3)).float()).numpy()
    values = _values(model, shape, x).reshape(CELLS, CELLS)
    # A logit is not a length: only its level set has a meaning.
    limit, levels = (COLOR_LIMIT, LEVELS) if model.is_sdf else (float(np.abs(values).max()) or 1.0, (0,))
    if model.is_sdf:
        values = values * 1e3 * float(shape.frame.scale)
    segments, line_colors = _level_lines(values, steps, levels, center, right, up)
    opacity = ((limit - values) / (limit - FADE_START)).clip(0, 1) if model.is_sdf else np.ones_like(values)
    opacity = np.where(np.isnan(values), 0, opacity)
    shown = colors.signed_colors(np.nan_to_num(values, nan=limit), limit=limit)
    image = np.dstack([shown, (255 * opacity + 0.5).astype(np.uint8)])
    behind = mesh.copy()
    behind.update_faces((mesh.vertices[mesh.faces, normal] <= center[normal]).all(axis=1))
    return Slice(np.ascontiguousarray(image[::-1]), center, right, up, side, segments, line_colors, behind)


def _values(model: FieldModel, shape: Fit, x: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
    """Field less the level at points of the model frame; NaN outside the domain of the field."""
    values = isosurface.evaluate(lambda x: model.field(x[None], shape.code)[0] - model.level, x)
    with torch.no_grad():
        domain = model.domain(shape.code)
    if domain is None:
        return values
    return np.where(isosurface.evaluate(lambda x: domain.distance(x.to(domain.centers)), x) < 0, values, np.nan)


def _level_lines(
    values: Float[np.ndarray, "h w"],
    steps: Float[np.ndarray, "w"],
    levels: tuple[int, ...],
    center: Float[np.ndarray, "3"],
    right: Float[np.ndarray, "3"],
    up: Float[np.ndarray, "3"],
) -> tuple[Float[np.ndarray, "s 2 3"], UInt8[np.ndarray, "s 2 3"]]:
    """Segments of all level lines and the colors of their ends; the zero level is black."""
    segments, line_colors = [np.zeros((0, 2, 3))], [np.zeros((0, 2, 3), dtype=np.uint8)]
    if np.isnan(values).all():
        return segments[0], line_colors[0]
    for level in levels:
        lines = list[Float[np.ndarray, "k 2"]]()
        if np.nanmin(values) < level < np.nanmax(values):
            with suppress(ValueError):  # where a gap in the field has both sides of the level
                lines = isosurface.contours(values, np.stack([steps, steps]), level=float(level))
        for line in lines:
            corners = center + line[:, :1] * right + line[:, 1:] * up
            pairs = np.stack([corners[:-1], corners[1:]], axis=1)
            segments.append(pairs)
            color = ZERO_LINE_COLOR if level == 0 else LINE_COLOR
            line_colors.append(np.tile(np.array(color, dtype=np.uint8), (len(pairs), 2, 1)))
    return np.concatenate(segments), np.concatenate(line_colors)
