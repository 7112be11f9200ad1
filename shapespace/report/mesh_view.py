"""Meshes in a page that one can turn, without any library: packed small, drawn by `mesh_view.js` through plain WebGL.

A mesh of 12,000 faces takes 190 kB of the page: places are whole numbers of 16 bits, colours of 8, and more faces than
these are merged away. three.js (0.180, minified) would add 720 kB and viser's recording 4.5 MB before the first mesh,
for light and a camera that take a page of code. Where there is no WebGL, or no script may run, a picture stands in the
mesh's place.
"""

import base64
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import ClassVar

import igl
import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from trimesh import Trimesh

from shapespace.rendering import colors, renderer
from shapespace.report.page import Part, escape_markdown

MOST_FACES = 12_000
MOST_VERTICES = 2**16  # what a face can name
STEPS = 2**16 - 1  # of a place, along the longest edge of the mesh's box
_HEAD = struct.Struct("<3I4f")


def pack(mesh: Trimesh, *, faces: int = MOST_FACES) -> str:
    """A mesh of at most so many faces as base64 of what `mesh_view.js` reads; its own vertex colours go with it.

    Places are off by at most half a step, 1/131,070 of the longest edge of its box: 0.02 mm for a body.

    Raises `ValueError` for a mesh without faces, or with places that are not finite.
    """
    places, corners, source = _reduced(mesh, faces)
    low = places.min(axis=0).astype("<f4")
    step = np.float32(max(float(np.ptp(places, axis=0).max()), 1e-9) / STEPS)
    grid = ((places - low.astype(np.float64)) / float(step)).round().clip(0, STEPS).astype("<u2")
    own = colors.vertex_colors(mesh)
    colours = b"" if own is None else np.ascontiguousarray(own[source, :3]).tobytes()
    head = _HEAD.pack(len(grid), len(corners), own is not None, *low.tolist(), float(step))
    return base64.b64encode(head + grid.tobytes() + corners.astype("<u2").tobytes() + colours).decode()


def unpack(packed: str) -> Trimesh:
    """The way back, as `mesh_view.js` goes it."""
    data = base64.b64decode(packed, validate=True)
    vertices, faces, coloured, *rest = _HEAD.unpack_from(data)
    grid = np.frombuffer(data, "<u2", 3 * vertices, _HEAD.size).reshape(-1, 3)
    after = _HEAD.size + grid.nbytes
    corners = np.frombuffer(data, "<u2", 3 * faces, after).reshape(-1, 3)
    colours = np.frombuffer(data, "u1", 3 * vertices, after + corners.nbytes).reshape(-1, 3) if coloured else None
    places = np.array(rest[:3]) + rest[3] * grid.astype(np.float64)
    return Trimesh(places, corners.astype(np.int64), vertex_colors=colours, process=False)


def _reduced(mesh: Trimesh, most: int) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], Int[np.ndarray, "v"]]:
    """Places, faces, and which vertex of the mesh each one was: by quadrics (Garland & Heckbert, SIGGRAPH 1997).

    What is no manifold, or falls to pieces, has its vertices merged in the cells of a grid instead.
    """
    used, flat = np.unique(np.asarray(mesh.faces), return_inverse=True)
    places, corners = np.asarray(mesh.vertices, dtype=np.float64)[used], flat.reshape(-1, 3)
    if not len(corners) or not np.isfinite(places).all():
        what = "no faces" if not len(corners) else "vertices that are not finite"
        raise ValueError(f"a mesh for a page has {what}: leave it out, or mesh it again.")
    if len(corners) <= most and len(places) <= MOST_VERTICES:
        return places, corners, used
    fewer, joined, _, source = igl.qslim(places, corners.astype(np.int64), most)
    if 0 < len(joined) <= most and len(fewer) <= MOST_VERTICES:
        return np.asarray(fewer), np.asarray(joined, dtype=np.int64), used[source]
    cells = 512
    while True:
        grid = ((places - places.min(axis=0)) / max(float(np.ptp(places, axis=0).max()), 1e-12) * cells).astype(int)
        _, first, merged = np.unique(grid, axis=0, return_index=True, return_inverse=True)
        joined = merged.reshape(-1)[corners]
        a, b, c = joined.T
        joined = joined[(a != b) & (b != c) & (c != a)]
        if cells == 1 or (len(joined) <= most and len(first) <= MOST_VERTICES):
            return places[first], joined, used[first]
        cells //= 2


@dataclass(frozen=True)
class MeshFigure:
    """A mesh, or several in turn, with a caption."""

    frames: Sequence[Trimesh]
    caption: str
    seconds: float = 3.0
    """From the first frame to the last."""


@dataclass(frozen=True)
class MeshViews(Part):
    """Meshes side by side, turned together; `limit` is where the colours of errors end (mm), none for no legend."""

    figures: Sequence[MeshFigure]
    limit: float | None = None
    faces: int = MOST_FACES
    """Most faces of each mesh."""
    size: int = 300
    """Pixels of the pictures that stand in where there is no WebGL."""
    script: ClassVar[str] = (resources.files("shapespace.report") / "mesh_view.js").read_text(encoding="utf-8")

    def html(self) -> str:
        """A row of canvases."""
        figures = "\n".join(self._figure(figure) for figure in self.figures)
        legend = "" if self.limit is None else f"{_legend(self.limit)}\n"
        return f'<div class="turnables">\n{figures}\n</div>\n{legend}<p class="hint">{HINT}</p>'

    def markdown(self) -> str:
        """Their captions: Markdown cannot turn."""
        return "\n".join(f"- {escape_markdown(figure.caption)}" for figure in self.figures)

    def _figure(self, figure: MeshFigure) -> str:
        frames = " ".join(pack(frame, faces=self.faces) for frame in figure.frames)
        clay = " ".join(f"{255 * channel:.0f}" for channel in renderer.CLAY)
        words = escape(figure.caption, quote=True)
        still = f'<img alt="{words}" src="data:image/png;base64,{_png(figure.frames[0], self.size)}">'
        canvas = (
            f'<canvas hidden tabindex="0" role="img" aria-label="{words}" data-clay="{clay}" '
            f'data-seconds="{figure.seconds:g}" data-frames="{frames}"></canvas>'
        )
        bar = ""
        if len(figure.frames) > 1:
            bar = (
                '<div class="play" hidden><button type="button">Play</button><input type="range" min="0" '
                f'max="{len(figure.frames) - 1}" value="0" step="1" aria-label="frame"></div>'
            )
        return (
            f'<figure class="turnable">{still}{canvas}{bar}<figcaption>{escape(figure.caption)}</figcaption></figure>'
        )


HINT = "Drag to turn; click and use the wheel, or two fingers, to come nearer; double-click to go back."


def _legend(limit: float) -> str:
    """The colours of errors from 0 to `limit` mm."""
    return (
        f'<div class="legend"><div class="ramp" style="background: {ramp()}"></div>'
        f"<span>0</span><span>{limit / 2:g}</span><span>{limit:g} mm and more</span></div>"
    )


def ramp() -> str:
    """The colours of errors, as CSS has it."""
    return f"linear-gradient(to right, {', '.join('#' + bytes(colour).hex() for colour in colors.ERROR_RAMP)})"


def _png(mesh: Trimesh, size: int) -> str:
    data = io.BytesIO()
    Image.fromarray(renderer.render([mesh], size=size)).save(data, format="PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode()
