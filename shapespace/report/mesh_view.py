"""Interactive meshes in an HTML page, drawn by `mesh_view.js` with plain WebGL.

A mesh of 12,000 faces takes 190 kB: positions are quantized to 16 bits and colors to 8, and larger meshes are
decimated. three.js (0.180, minified) would add 720 kB to every page, and a recording of viser 4.5 MB. Without WebGL or
scripts a rendered image is shown instead.
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

MAX_FACES = 12_000  # arbitrary: 190 kB of the page
MAX_VERTICES = 2**16  # indices of vertices have 16 bits
STEPS = 2**16 - 1  # quantization steps of a position along the longest edge of the bounding box
_HEADER = struct.Struct("<3I4f")


def pack(mesh: Trimesh, *, faces: int = MAX_FACES) -> str:
    """Encode a mesh with its vertex colors for `mesh_view.js` (base64), decimated to at most `faces` faces.

    The quantization error is at most half a step, 1/131,070 of the longest edge of the bounding box: 0.02 mm for a
    body.

    Raises `ValueError` for a mesh without faces, or with vertices that are not finite.
    """
    positions, corners, source = _decimate(mesh, faces)
    low = positions.min(axis=0).astype("<f4")
    step = np.float32(max(float(np.ptp(positions, axis=0).max()), 1e-9) / STEPS)
    grid = ((positions - low.astype(np.float64)) / float(step)).round().clip(0, STEPS).astype("<u2")
    own = colors.vertex_colors(mesh)
    rgb = b"" if own is None else np.ascontiguousarray(own[source, :3]).tobytes()
    head = _HEADER.pack(len(grid), len(corners), own is not None, *low.tolist(), float(step))
    return base64.b64encode(head + grid.tobytes() + corners.astype("<u2").tobytes() + rgb).decode()


def unpack(packed: str) -> Trimesh:
    """Inverse of `pack`; `mesh_view.js` does the same."""
    data = base64.b64decode(packed, validate=True)
    vertices, faces, has_colors, *rest = _HEADER.unpack_from(data)
    grid = np.frombuffer(data, "<u2", 3 * vertices, _HEADER.size).reshape(-1, 3)
    after = _HEADER.size + grid.nbytes
    corners = np.frombuffer(data, "<u2", 3 * faces, after).reshape(-1, 3)
    rgb = np.frombuffer(data, "u1", 3 * vertices, after + corners.nbytes).reshape(-1, 3) if has_colors else None
    positions = np.array(rest[:3]) + rest[3] * grid.astype(np.float64)
    return Trimesh(positions, corners.astype(np.int64), vertex_colors=rgb, process=False)


def _decimate(
    mesh: Trimesh, max_faces: int
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], Int[np.ndarray, "v"]]:
    """Vertices and faces of the decimated mesh, and the index of each vertex in the mesh.

    Decimation by quadrics (Garland & Heckbert, SIGGRAPH 1997); vertex clustering on a grid for non-manifold meshes.
    """
    used, flat = np.unique(np.asarray(mesh.faces), return_inverse=True)
    positions, corners = np.asarray(mesh.vertices, dtype=np.float64)[used], flat.reshape(-1, 3)
    if not len(corners) or not np.isfinite(positions).all():
        reason = "no faces" if not len(corners) else "vertices that are not finite"
        raise ValueError(f"mesh for a page: it has {reason}. Leave it out, or mesh it again.")
    if len(corners) <= max_faces and len(positions) <= MAX_VERTICES:
        return positions, corners, used
    fewer, joined, _, source = igl.qslim(positions, corners.astype(np.int64), max_faces)
    if 0 < len(joined) <= max_faces and len(fewer) <= MAX_VERTICES:
        return np.asarray(fewer), np.asarray(joined, dtype=np.int64), used[source]
    cells = 512
    while True:
        grid = (
            (positions - positions.min(axis=0)) / max(float(np.ptp(positions, axis=0).max()), 1e-12) * cells
        ).astype(int)
        _, first, merged = np.unique(grid, axis=0, return_index=True, return_inverse=True)
        joined = merged.reshape(-1)[corners]
        a, b, c = joined.T
        joined = joined[(a != b) & (b != c) & (c != a)]
        if cells == 1 or (len(joined) <= max_faces and len(first) <= MAX_VERTICES):
            return positions[first], joined, used[first]
        cells //= 2


@dataclass(frozen=True)
class MeshFigure:
    """Mesh or animation with a caption."""

    frames: Sequence[Trimesh]
    caption: str
    seconds: float = 3.0
    """Time from the first frame to the last (s)."""


@dataclass(frozen=True)
class MeshViews(Part):
    """Meshes side by side that share one camera."""

    figures: Sequence[MeshFigure]
    limit: float | None = None
    """Upper end of the error colors (mm); None for no legend."""
    faces: int = MAX_FACES
    """Maximum number of faces of each mesh."""
    size: int = 300
    """Size of the images that are shown without WebGL (pixels)."""
    script: ClassVar[str] = (resources.files("shapespace.report") / "mesh_view.js").read_text(encoding="utf-8")

    def html(self) -> str:
        """Row of canvases."""
        figures = "\n".join(self._figure(figure) for figure in self.figures)
        legend = "" if self.limit is None else f"{_legend(self.limit)}\n"
        return f'<div class="mesh-views">\n{figures}\n</div>\n{legend}<p class="hint">{HINT}</p>'

    def markdown(self) -> str:
        """List of the captions; Markdown has no interactive meshes."""
        return "\n".join(f"- {escape_markdown(figure.caption)}" for figure in self.figures)

    def _figure(self, figure: MeshFigure) -> str:
        frames = " ".join(pack(frame, faces=self.faces) for frame in figure.frames)
        clay = " ".join(f"{255 * channel:.0f}" for channel in renderer.CLAY)
        caption = escape(figure.caption, quote=True)
        still = f'<img alt="{caption}" src="data:image/png;base64,{_png(figure.frames[0], self.size)}">'
        canvas = (
            f'<canvas hidden tabindex="0" role="img" aria-label="{caption}" data-clay="{clay}" '
            f'data-seconds="{figure.seconds:g}" data-frames="{frames}"></canvas>'
        )
        bar = ""
        if len(figure.frames) > 1:
            bar = (
                '<div class="play" hidden><button type="button">Play</button><input type="range" min="0" '
                f'max="{len(figure.frames) - 1}" value="0" step="1" aria-label="frame"></div>'
            )
        return (
            f'<figure class="mesh-view">{still}{canvas}{bar}<figcaption>{escape(figure.caption)}</figcaption></figure>'
        )


HINT = "Drag to rotate. Click and scroll, or use two fingers, to zoom. Double-click to reset the view."


def _legend(limit: float) -> str:
    """Color scale of errors from 0 to `limit` mm."""
    return (
        f'<div class="legend"><div class="gradient" style="background: {colors.css_ramp()}"></div>'
        f"<span>0</span><span>{limit / 2:g}</span><span>{limit:g} mm or more</span></div>"
    )


def _png(mesh: Trimesh, size: int) -> str:
    data = io.BytesIO()
    Image.fromarray(renderer.render([mesh], size=size)).save(data, format="PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode()
