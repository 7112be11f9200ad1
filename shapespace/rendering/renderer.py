"""Pictures without a display: a small ray-cast shader, contact sheets, charts, films, and interpolations as one GLB.

World lengths are metres, y is up, and people face +z; the camera looks from the front. A mesh is drawn in its own
vertex colours if it has any (see `paint_distance`), else in clay.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.ndimage import gaussian_filter
from tqdm import tqdm
from trimesh import Scene, Trimesh, creation
from trimesh.exchange.gltf import export_glb
from trimesh.visual import ColorVisuals

from shapespace.geometry.proximity import to_mesh, to_points
from shapespace.geometry.raycast import Rays
from shapespace.geometry.scan import Scan
from shapespace.io.atomic import replacing

Picture = UInt8[np.ndarray, "h w 3"]
Values = Sequence[float] | Float[np.ndarray, "_"]

CLAY = (0.86, 0.70, 0.60)
PAPER = (0.965, 0.960, 0.950)
INK, PALE = (52, 50, 48), (160, 156, 150)
ERROR_RAMP = ((232, 230, 225), (246, 217, 139), (240, 152, 63), (207, 59, 46), (94, 15, 43))  # zero to limit and beyond
KEY = np.array([-0.45, 0.65, 0.62])  # towards the light: before, above, and at the left
WARMTH = (0.92, 1.0, 1.06)  # exponents of the light in red, green, blue: shadows are warmer than lights
OVERSAMPLING = 2  # rays per pixel, along each axis
SHADOW_HEIGHT = 0.8  # metres: what is this far above the floor shades it to 1 / e
MAX_BEADS = 20_000


# -------------------------------------------------------------------------------------------------------- one picture


def render(meshes: Sequence[Trimesh], *, size: int = 512, azimuth: float = 25.0, elevation: float = 10.0) -> Picture:
    """Draw meshes side by side on one floor, in one scale, seen by an orthographic camera.

    Args:
        meshes: From left to right. Faces may be an unordered soup of either orientation. In the place of one without
            faces stands "no surface".
        size: Height in pixels; the width follows.
        azimuth: Degrees from the front towards the person's left side (world +x).
        elevation: Degrees above the horizon.

    Raises:
        ValueError: There are no meshes.

    """
    if not meshes:
        raise ValueError("a picture was asked of no meshes. Give it at least one.")
    figures, axes = _stand(meshes), _axes(azimuth, elevation)
    window = _Window.around([(figures, axes)], size)
    return _row(figures, axes, window)


def thumbnail(mesh: Trimesh, size: int) -> UInt8[np.ndarray, "s s 3"]:
    """A mesh on a square of so many pixels."""
    return np.asarray(ImageOps.pad(Image.fromarray(render([mesh], size=size)), (size, size), color=_paper_colour()))


def paint_distance(mesh: Trimesh, other: Trimesh, *, limit: float = 20.0) -> Trimesh:
    """Copy a mesh, coloured by the exact distance of its vertices to another: pale at 0, dark from `limit` mm on."""
    distance, _, _ = to_mesh(np.asarray(mesh.vertices, dtype=np.float64), other)
    return paint(mesh, distance, limit=limit)


def paint(mesh: Trimesh, lengths: Float[np.ndarray, "v"], *, limit: float = 20.0) -> Trimesh:
    """Copy a mesh, coloured by a length in metres at each vertex: pale at 0, dark from `limit` mm on.

    The copy also holds the lengths, as its vertex attribute `quality`.
    """
    painted = Trimesh(mesh.vertices, mesh.faces, process=False, vertex_colors=colours(lengths, limit=limit))
    painted.vertex_attributes["quality"] = lengths
    return painted


def paint_quality(mesh: Trimesh, *, limit: float = 20.0) -> Trimesh:
    """Copy a mesh, coloured by the lengths that it holds as its vertex attribute `quality`; itself if it holds none."""
    held = mesh.vertex_attributes.get("quality")
    return mesh if held is None else paint(mesh, np.asarray(held, dtype=np.float64).reshape(-1), limit=limit)


def colours(lengths: Float[np.ndarray, "n"], *, limit: float = 20.0) -> UInt8[np.ndarray, "n 3"]:
    """Colours of lengths in metres: pale at 0, dark from `limit` mm on."""
    return _ramp(1e3 * lengths / limit)


def signed_colours(values: Float[np.ndarray, "*n"], *, limit: float) -> UInt8[np.ndarray, "*n 3"]:
    """Colours of a field: purple inside, orange outside, pale at 0, and full from `limit` (of the field) on."""
    mapped = colormaps["PuOr_r"](0.5 + 0.5 * np.clip(values / limit, -1, 1))
    return (255 * mapped[..., :3] + 0.5).astype(np.uint8)


def mesh_of_scan(scan: Scan) -> Trimesh:
    """A scan as something to draw: its faces if it has any, else a bead on each point (of 20,000 at most)."""
    if scan.faces is not None:
        return Trimesh(scan.points, scan.faces, process=False)
    points = scan.points[:: -(-len(scan) // MAX_BEADS)].astype(np.float64)
    apart, _ = to_points(points[::2], points[1::2])
    radius = max(0.7 * float(np.median(apart)), 0.002)
    bead = creation.icosahedron()
    vertices = points[:, None] + radius * np.asarray(bead.vertices)
    faces = np.asarray(bead.faces) + len(bead.vertices) * np.arange(len(points))[:, None, None]
    return Trimesh(vertices.reshape(-1, 3), faces.reshape(-1, 3), process=False)


@dataclass(frozen=True)
class _Figure:
    """A mesh moved to stand at the origin of the floor y = 0; colours from 0 to 1."""

    vertices: Float[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "m 3"]
    colours: Float[np.ndarray, "n 3"]


@dataclass(frozen=True)
class _Window:
    """What one cell shows: `pixel` metres per pixel, around a vertical line through the figure's middle."""

    pixel: float
    high: float
    columns: int
    rows: int

    @classmethod
    def around(cls, shots: Sequence["_Shot"], size: int) -> "_Window":
        """The window of `size` pixels height that shows any figure of any shot whole."""
        flat = [figure.vertices @ axes[:2].T for figures, axes in shots for figure in figures]
        seen = np.concatenate([*flat, np.array([[0.1, 0.0]])])
        half, low, high = np.abs(seen[:, 0]).max(), seen[:, 1].min(), seen[:, 1].max()
        margin = 0.04 * max(high - low, 0.1)
        pixel = (high - low + 2 * margin) / size
        return cls(pixel, high + margin, 2 * int(np.ceil((half + margin) / pixel)), size)

    def refined(self, factor: int) -> "_Window":
        """The same with `factor` times as many rows and columns."""
        return _Window(self.pixel / factor, self.high, self.columns * factor, self.rows * factor)

    def centres(self) -> tuple[Float[np.ndarray, "w"], Float[np.ndarray, "h"]]:
        """Where the pixels lie: to the right of the middle, and up (from the top row on)."""
        across = (np.arange(self.columns) + 0.5 - self.columns / 2) * self.pixel
        return across, self.high - (np.arange(self.rows) + 0.5) * self.pixel


_Shot = tuple[Sequence[_Figure], Float[np.ndarray, "3 3"]]  # what is seen, and the camera's axes


def _axes(azimuth: float, elevation: float) -> Float[np.ndarray, "3 3"]:
    """Rows: the camera's right, its up, and the direction towards the viewer."""
    a, e = np.radians([azimuth, elevation])
    back = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
    right = np.array([np.cos(a), 0.0, -np.sin(a)])
    return np.stack([right, np.cross(back, right), back])


def _stand(meshes: Sequence[Trimesh]) -> list[_Figure]:
    """Bring each mesh to the middle, keeping heights above the floor that the lowest of them sets."""
    floor = min((float(mesh.vertices[:, 1].min()) for mesh in meshes if len(mesh.faces)), default=0.0)
    return [_figure(mesh, floor) for mesh in meshes]


def _figure(mesh: Trimesh, floor: float) -> _Figure:
    faces = np.asarray(mesh.faces)
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    if not len(faces):
        return _Figure(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64), np.zeros((0, 3)))
    middle = 0.5 * (vertices.min(axis=0) + vertices.max(axis=0))
    middle[1] = floor
    own = own_colours(mesh)
    return _Figure(vertices - middle, faces, np.tile(CLAY, (len(vertices), 1)) if own is None else own[:, :3] / 255.0)


def own_colours(mesh: Trimesh) -> UInt8[np.ndarray, "n 4"] | None:
    """The colours of a mesh that has any."""
    visual = mesh.visual
    if not isinstance(visual, ColorVisuals) or visual.kind is None:
        return None
    return np.asarray(visual.vertex_colors)


# --------------------------------------------------------------------------------------------------------- the shader


def _row(figures: Sequence[_Figure], axes: Float[np.ndarray, "3 3"], window: _Window) -> Picture:
    return np.concatenate([_draw(figure, axes, window) for figure in figures], axis=1)


def _draw(figure: _Figure, axes: Float[np.ndarray, "3 3"], window: _Window) -> Picture:
    """One cell: the figure over the paper with its shadow."""
    if not len(figure.faces):
        return _absent(window)
    paper = np.tile(np.array(PAPER), (window.rows, window.columns, 1))
    seen = figure.vertices @ axes.T  # to the right, up, towards the viewer
    rays = Rays(seen, figure.faces)
    drawn = _shaded(figure, seen, rays, axes, window)
    paper *= 1 - 0.35 * _shadow(figure, rays, axes, window)[..., None]
    return _bytes(drawn[..., :3] + (1 - drawn[..., 3:]) * paper)


def _shaded(
    figure: _Figure,
    seen: Float[np.ndarray, "n 3"],
    rays: Rays,
    axes: Float[np.ndarray, "3 3"],
    window: _Window,
) -> Float[np.ndarray, "h w 4"]:
    """Red, green, blue (each times cover) and cover of each pixel: means over its rays."""
    fine = window.refined(OVERSAMPLING)
    row, column, face, points = _cast(seen, rays, fine)
    corners = figure.faces[face]
    weights = _barycentric(points, seen[:, :2][corners])
    normals = np.einsum("kc,kcd->kd", weights, (_vertex_normals(figure) @ axes.T)[corners])
    normals *= np.where(_facing(seen, corners), 1.0, -1.0)[:, None]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    colours = np.einsum("kc,kcd->kd", weights, figure.colours[corners])
    depth = np.einsum("kc,kc->k", weights, seen[:, 2][corners])
    pixel = row // OVERSAMPLING * window.columns + column // OVERSAMPLING
    light = _light(normals, axes) * (1 - _crease(depth, pixel, seen[:, 2].min(), window))
    shown = np.column_stack([(colours * light[:, None] ** WARMTH).clip(0, 1), np.ones(len(face))])
    return _pooled(shown, pixel, window) / OVERSAMPLING**2


def _cast(
    seen: Float[np.ndarray, "n 3"], rays: Rays, window: _Window
) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"], Int[np.ndarray, "k"], Float[np.ndarray, "k 2"]]:
    """For the pixels that see the figure: row, column, face, and the point of the picture plane (metres)."""
    across, up = window.centres()
    columns = np.flatnonzero((across >= seen[:, 0].min()) & (across <= seen[:, 0].max()))
    rows = np.flatnonzero((up >= seen[:, 1].min()) & (up <= seen[:, 1].max()))
    origins = np.empty((len(rows), len(columns), 3), dtype=np.float32)
    origins[..., 0], origins[..., 1] = across[columns], up[rows, None]
    origins[..., 2] = seen[:, 2].max() + 0.1
    ahead = np.tile(np.array([0, 0, -1], dtype=np.float32), (origins.size // 3, 1))
    _, first = rays.first(origins.reshape(-1, 3), ahead)
    hit = np.flatnonzero(first >= 0)
    row, column = rows[hit // max(len(columns), 1)], columns[hit % max(len(columns), 1)]
    return row, column, first[hit].astype(np.int64), np.stack([across[column], up[row]], axis=1)


def _pooled(
    values: Float[np.ndarray, "k c"], pixel: Int[np.ndarray, "k"], window: _Window
) -> Float[np.ndarray, "h w c"]:
    """Sums over the rays of each pixel."""
    count = window.rows * window.columns
    sums = [np.bincount(pixel, channel, count) for channel in values.T]
    return np.stack(sums, axis=-1).reshape(window.rows, window.columns, -1)


def _barycentric(points: Float[np.ndarray, "k 2"], corners: Float[np.ndarray, "k 3 2"]) -> Float[np.ndarray, "k 3"]:
    """Weights of the corners of a plane triangle at a point of it; kept inside against rounding."""
    a, b, c = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    p = points - a
    doubled = b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0]
    doubled = np.where(np.abs(doubled) < 1e-20, 1e-20, doubled)
    v = (p[:, 0] * c[:, 1] - p[:, 1] * c[:, 0]) / doubled
    w = (b[:, 0] * p[:, 1] - b[:, 1] * p[:, 0]) / doubled
    weights = np.stack([1 - v - w, v, w], axis=1).clip(0, 1)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _facing(seen: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "k 3"]) -> Bool[np.ndarray, "k"]:
    """Whether the corners run counter-clockwise for the viewer."""
    a = seen[faces[:, 0], :2]
    b, c = seen[faces[:, 1], :2] - a, seen[faces[:, 2], :2] - a
    return np.asarray(b[:, 0] * c[:, 1] >= b[:, 1] * c[:, 0], dtype=np.bool_)


def _light(normals: Float[np.ndarray, "k 3"], axes: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "k"]:
    """Key light over the viewer's left shoulder, head light, sky, and a darker rim; normals in the camera's axes."""
    ahead = normals[:, 2].clip(0, 1)
    sky = 0.5 + 0.5 * normals @ axes[:, 1]  # the world's up, seen by the camera
    lit = 0.22 + 0.30 * ahead + 0.50 * (normals @ KEY).clip(0, 1) + 0.24 * sky
    half = KEY + np.array([0.0, 0.0, 1.0])
    gloss = 0.08 * (normals @ half / np.linalg.norm(half)).clip(0, 1) ** 24
    return np.asarray((lit + gloss) * (0.68 + 0.32 * ahead**0.4))


def _crease(
    depth: Float[np.ndarray, "k"], pixel: Int[np.ndarray, "k"], far: float, window: _Window
) -> Float[np.ndarray, "k"]:
    """Darkening, 0 to 1, of what lies behind its neighbours on the picture; `depth` grows towards the viewer.

    Depth darkening (Luft, Colditz, Deussen: Image Enhancement by Unsharp Masking the Depth Buffer, SIGGRAPH 2006).
    """
    cover = _pooled(np.ones((len(depth), 1)), pixel, window)[..., 0]
    mean = _pooled(depth[:, None], pixel, window)[..., 0] / cover.clip(1)
    around = gaussian_filter(np.where(cover > 0, mean, far), 0.008 * window.rows)
    height = window.pixel * window.rows
    behind = (around.reshape(-1)[pixel] - depth) / (0.04 * height)
    return np.asarray(0.5 * behind.clip(0, 1))


def _shadow(figure: _Figure, rays: Rays, axes: Float[np.ndarray, "3 3"], window: _Window) -> Float[np.ndarray, "h w"]:
    """How dark the floor is, 0 to 1, under what hangs low above it; nothing for a camera that does not look down."""
    shadow = np.zeros((window.rows, window.columns))
    if axes[2, 1] < 0.05:
        return shadow
    cast = (figure.vertices * [1.0, 0.0, 1.0]) @ axes[:2].T
    across, up = window.centres()
    columns = np.flatnonzero((across >= cast[:, 0].min()) & (across <= cast[:, 0].max()))
    rows = np.flatnonzero((up >= cast[:, 1].min()) & (up <= cast[:, 1].max()))
    plane = np.stack(np.broadcast_arrays(across[columns], up[rows, None]), axis=-1).reshape(-1, 2)
    # The point of the floor (world height 0) behind a point of the picture, in the camera's axes.
    floor = np.column_stack([plane, -plane[:, 1] * axes[1, 1] / axes[2, 1]])
    overhead = np.tile(axes[:, 1], (len(floor), 1))  # the world's up
    height, _ = rays.first(floor + 1e-4 * overhead, overhead)
    shadow[np.ix_(rows, columns)] = np.exp(-height / SHADOW_HEIGHT).reshape(len(rows), len(columns))
    return gaussian_filter(shadow, 0.012 * window.rows)


def _vertex_normals(figure: _Figure) -> Float[np.ndarray, "n 3"]:
    """Unit normals, averaged over the faces by area; up where there are none."""
    corners = figure.vertices[figure.faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat, count = figure.faces.reshape(-1), len(figure.vertices)
    summed = np.stack([np.bincount(flat, np.repeat(cross[:, k], 3), count) for k in range(3)], axis=1)
    lengths = np.linalg.norm(summed, axis=1, keepdims=True)
    return np.where(lengths > 0, summed / lengths.clip(1e-30), [0.0, 1.0, 0.0])


def _bytes(image: Float[np.ndarray, "h w 3"]) -> Picture:
    return (255 * image.clip(0, 1) + 0.5).astype(np.uint8)


def _ramp(share: Float[np.ndarray, "n"]) -> UInt8[np.ndarray, "n 3"]:
    """Colours of `ERROR_RAMP` for values from 0 to 1 and beyond."""
    stops = np.linspace(0, 1, len(ERROR_RAMP))
    channels = [np.interp(share, stops, channel) for channel in np.array(ERROR_RAMP).T]
    return (np.stack(channels, axis=1) + 0.5).astype(np.uint8)


# ------------------------------------------------------------------------------------------------- sheets and charts


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
    """Write rows of meshes, each under its label, as one PNG in one scale.

    Args:
        rows: Label and meshes, left to right; each row has its own floor.
        path: The PNG.
        titles: Words over the columns of the first row.
        size: Height of a row in pixels.
        azimuth: See `render`.
        elevation: See `render`.
        limit: Add the legend of `paint_distance` with this limit (mm).
        curves: Add a `chart` of these.

    Raises:
        ValueError: There is nothing to draw.

    """
    if not any(meshes for _, meshes in rows):
        raise ValueError(f"{path}: a contact sheet was given no meshes in {len(rows)} rows. Give it at least one.")
    axes = _axes(azimuth, elevation)
    figures = [_stand(meshes) for _, meshes in rows]
    window = _Window.around([(row, axes) for row in figures], size)
    blocks: list[Image.Image] = []
    for (label, _), row in zip(rows, figures, strict=True):
        blocks.append(_line(label))
        if titles and len(blocks) == 1:
            blocks.append(_titles(titles, window.columns))
        if row:
            blocks.append(Image.fromarray(_row(row, axes, window)))
    if limit is not None:
        blocks.append(Image.fromarray(legend(limit)))
    if curves:
        width = max(block.width for block in blocks) // len(curves)
        blocks.append(Image.fromarray(chart(curves, width=min(max(width, 380), 640))))
    with replacing(path) as part:
        _stacked(blocks).save(part, format="PNG")


def chart(curves: Mapping[str, Values], *, width: int = 380, height: int = 170) -> Picture:
    """Draw curves along a path, side by side, each under its name and on its own scale; NaN leaves a gap.

    A curve that hardly changes looks flat: its scale spans at least 4 % of its mean.
    """
    panels = [_curve(name, np.array(values, dtype=np.float64), width, height) for name, values in curves.items()]
    return np.concatenate(panels, axis=1)


def _curve(name: str, values: Float[np.ndarray, "k"], width: int, height: int) -> Picture:
    left, right, top, bottom = 64, width - 24, 34, height - 26
    known = np.flatnonzero(np.isfinite(values))
    finite = values[known] if len(known) else np.zeros(1)
    reach = max(np.ptp(finite), 0.04 * abs(finite.mean()), 1e-3)
    low = 0.5 * (finite.min() + finite.max() - reach)
    x = left + (right - left) * np.arange(len(values)) / max(len(values) - 1, 1)
    y = bottom - (bottom - top) * (values - low) / reach
    large = _paper(4 * width, 4 * height)  # drawn large and reduced: soft lines
    pen = ImageDraw.Draw(large)
    for level in (top, bottom):
        pen.line([(4 * left, 4 * level), (4 * right, 4 * level)], fill=PALE, width=3)
    for k in known:
        if k + 1 < len(values) and np.isfinite(values[k + 1]):
            pen.line([(4 * x[k], 4 * y[k]), (4 * x[k + 1], 4 * y[k + 1])], fill=ERROR_RAMP[3], width=8)
        pen.ellipse([4 * x[k] - 12, 4 * y[k] - 12, 4 * x[k] + 12, 4 * y[k] + 12], fill=ERROR_RAMP[3])
    small = large.resize((width, height), Image.Resampling.BOX)
    pen = ImageDraw.Draw(small)
    pen.text((left, 6), _plain(name), fill=INK, font=_font(14))
    decimals = max(0, 1 - int(np.floor(np.log10(reach))))
    for level, value in ((top, low + reach), (bottom, low)):
        pen.text((left - 8, level), f"{value:.{decimals}f}", fill=INK, font=_font(12), anchor="rm")
    pen.text((left, height - 20), "start", fill=PALE, font=_font(12))
    pen.text((right, height - 20), "end", fill=PALE, font=_font(12), anchor="ra")
    return np.asarray(small)


def legend(limit: float) -> Picture:
    """Draw the colours of `colours`, and so of `paint_distance`, from 0 to `limit` mm."""
    image = _paper(380, 46)
    bar = _ramp(np.linspace(0, 1, 240))
    image.paste(Image.fromarray(np.tile(bar, (12, 1, 1))), (8, 6))
    pen = ImageDraw.Draw(image)
    for share, word in ((0.0, "0"), (0.5, f"{limit / 2:g}"), (1.0, f"{limit:g} mm and more")):
        pen.text((8 + 240 * share, 24), word, fill=INK, font=_font(13), anchor="la" if share in (0, 1) else "ma")
    return np.asarray(image)


def _titles(titles: Sequence[str], cell: int) -> Image.Image:
    image = _paper(cell * len(titles), 24)
    for k, title in enumerate(titles):
        ImageDraw.Draw(image).text(((k + 0.5) * cell, 4), _plain(title), fill=INK, font=_font(15), anchor="ma")
    return image


def _line(words: str) -> Image.Image:
    font = _font(16)
    image = _paper(int(font.getlength(_plain(words))) + 16, 28)
    ImageDraw.Draw(image).text((8, 6), _plain(words), fill=INK, font=font)
    return image


def _stacked(blocks: Sequence[Image.Image], margin: int = 20) -> Image.Image:
    """Blocks under one another, to the left, on paper."""
    width = max(block.width for block in blocks) + 2 * margin
    page = _paper(width, sum(block.height for block in blocks) + 2 * margin)
    top = margin
    for block in blocks:
        page.paste(block, (margin, top))
        top += block.height
    return page


def _absent(window: _Window) -> Picture:
    image = _paper(window.columns, window.rows)
    middle = (window.columns // 2, window.rows // 2)
    ImageDraw.Draw(image).text(middle, "no surface", fill=PALE, font=_font(14), anchor="mm")
    return np.asarray(image)


def _paper(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), _paper_colour())


def _paper_colour() -> tuple[int, int, int]:
    red, green, blue = _bytes(np.array(PAPER).reshape(1, 1, 3)).reshape(3).tolist()
    return red, green, blue


def _plain(words: str) -> str:
    """Words in the letters that the built-in font has: m² becomes m2, é becomes e."""
    return unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()


def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


# --------------------------------------------------------------------------------------------------------------- films


def film(
    scenes: Sequence[Sequence[Trimesh]],
    path: str | PathLike[str],
    *,
    seconds: float = 4.0,
    turn: float = 360.0,
    size: int = 320,
    azimuth: float = 25.0,
    elevation: float = 10.0,
) -> None:
    """Write scenes one after the other as a film that begins again at its end, while the camera goes around them.

    Args:
        scenes: Meshes side by side, for each moment; all in one scale. One scene, repeated, gives a turntable.
        path: .gif, .webp, .apng or .mp4 (the last needs the extra `video`).
        seconds: How long it takes.
        turn: Degrees by which the camera goes around, to its left, over the whole film.
        size: Height in pixels.
        azimuth: Of the first moment; see `render`.
        elevation: See `render`.

    Raises:
        ValueError: There are no scenes, or one of another number of meshes; or the suffix is another one.
        ModuleNotFoundError: MP4 is asked for and its writer is not installed.

    """
    path = Path(path)
    if path.suffix.lower() not in FILMS:
        raise ValueError(f"cannot write a film as {path}: give a name that ends in one of {', '.join(FILMS)}.")
    if not scenes or not scenes[0] or len({len(scene) for scene in scenes}) > 1:
        raise ValueError(f"{path}: scenes of {sorted({len(scene) for scene in scenes})} meshes make no film: give as "
                         "many for each moment, one at least.")  # fmt: skip
    write = FILMS[path.suffix.lower()]
    if write is _mp4:
        _ffmpeg()  # nobody should hear so after the work
    angles = azimuth + turn * np.arange(len(scenes)) / len(scenes)
    shots: list[_Shot] = [
        (_stand(scene), _axes(float(angle), elevation)) for scene, angle in zip(scenes, angles, strict=True)
    ]
    window = _Window.around(shots, size)
    frames = [_row(*shot, window) for shot in tqdm(shots, desc="film", unit="frame")]
    with replacing(path) as part:
        write([Image.fromarray(frame) for frame in frames], part, seconds / len(frames))


def _gif(frames: Sequence[Image.Image], path: Path, seconds: float) -> None:
    """With one palette for all frames, so that what stands still is not stored again."""
    few = frames[:: -(-len(frames) // 8)]
    joined = Image.fromarray(np.concatenate([np.asarray(frame) for frame in few]))
    palette = joined.quantize(128, method=Image.Quantize.MEDIANCUT)
    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    _pillow("GIF", flat, path, seconds)


def _pillow(form: str, frames: Sequence[Image.Image], path: Path, seconds: float, **options: Any) -> None:
    frames[0].save(
        path, format=form, save_all=True, append_images=frames[1:], duration=round(1000 * seconds), loop=0, **options
    )


def _mp4(frames: Sequence[Image.Image], path: Path, seconds: float) -> None:
    width, height = (side + side % 2 for side in frames[0].size)  # H.264 halves its colours
    told = ["-f", "mp4", "-movflags", "+faststart"]
    size = (width, height)
    writer = _ffmpeg().write_frames(str(path), size, fps=1 / seconds, macro_block_size=2, quality=7, output_params=told)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(ImageOps.pad(frame, size, color=_paper_colour())).tobytes())
    writer.close()


def _ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "MP4 needs a writer that is not installed: pip install 'shapespace[video]', or write .gif or .webp."
        ) from None
    return imageio_ffmpeg


FILMS: Mapping[str, Callable[[Sequence[Image.Image], Path, float], None]] = {
    ".gif": _gif,
    ".webp": partial(_pillow, "WEBP", quality=80, method=4),
    ".apng": partial(_pillow, "PNG"),
    ".mp4": _mp4,
}


# ---------------------------------------------------------------------------------------------------------- animation


def animated_glb(
    meshes: Sequence[Trimesh], path: str | PathLike[str], *, seconds: float = 3.0, back: bool = True
) -> None:
    """Write meshes as one GLB that shows them in turn, again and again; `seconds` from the first to the last.

    With `back` the same way is gone back each time.

    Interpolated surfaces differ in their faces, so that morph targets cannot hold them. Each is a node of its own,
    whose scale a STEP animation switches between 1 and 0 (the glTF 2.0 specification recommends scale 0 to hide a
    node). At rest only the first has scale 1: viewers that do not animate show that one.

    Raises:
        ValueError: There are no meshes, or one has no faces.

    """
    if not meshes:
        raise ValueError(f"{path}: an animation was given no meshes. Give it at least one.")
    scene = Scene()
    for k, mesh in enumerate(meshes):
        if not len(mesh.faces):
            raise ValueError(f"{path}: frame {k} of {len(meshes)} has no faces. Leave it out, or mesh it again.")
        scene.add_geometry(_smooth(mesh), node_name=_frame(k), geom_name=_frame(k))

    def finish(buffers: Any, tree: dict[str, Any]) -> None:
        _add_materials(tree)
        _add_animation(buffers, tree, len(meshes), seconds, back=back)

    with replacing(path) as part:
        part.write_bytes(_glb(scene, finish))


def painted_glb(mesh: Trimesh) -> bytes:
    """A mesh as GLB, smooth and dull, in its own colours of vertices or in clay: as `animated_glb` has its frames."""
    return _glb(Scene([_smooth(mesh)]), lambda _, tree: _add_materials(tree))


def _glb(scene: Scene, finish: Callable[[Any, dict[str, Any]], None]) -> bytes:
    data: bytes = export_glb(  # type: ignore[no-untyped-call]
        scene, include_normals=True, unitize_normals=False, buffer_postprocessor=finish
    )
    return data


def _frame(k: int) -> str:
    return f"frame_{k:04d}"


def _smooth(mesh: Trimesh) -> Trimesh:
    """A copy with the used vertices only, unit vertex normals, and the vertex colours, linear as glTF has them."""
    used, faces = np.unique(np.asarray(mesh.faces), return_inverse=True)
    own = own_colours(mesh)
    figure = _Figure(np.asarray(mesh.vertices, dtype=np.float64)[used], faces.reshape(-1, 3), np.zeros((len(used), 3)))
    return Trimesh(
        figure.vertices,
        figure.faces,
        vertex_normals=_vertex_normals(figure),
        vertex_colors=None if own is None else _linear(own[used]),
        process=False,
    )


def _linear(colours: UInt8[np.ndarray, "n 4"]) -> UInt8[np.ndarray, "n 4"]:
    """Colours of the screen (sRGB) as amounts of light: a viewer of GLB turns them back, and would show paler ones."""
    bright = np.rint(255 * (colours[:, :3] / 255) ** 2.2).astype(np.uint8)
    return np.concatenate([bright, colours[:, 3:]], axis=1)


def _add_materials(tree: dict[str, Any]) -> None:
    """Give each mesh a dull two-sided material: clay, or white under vertex colours (factors are linear, not sRGB)."""
    materials: list[dict[str, Any]] = []
    for mesh in tree["meshes"]:
        for primitive in mesh["primitives"]:
            painted = "COLOR_0" in primitive["attributes"]
            colour = [1.0, 1.0, 1.0] if painted else [round(channel**2.2, 4) for channel in CLAY]
            surface = {"baseColorFactor": [*colour, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.8}
            material = {"name": "painted" if painted else "clay", "pbrMetallicRoughness": surface, "doubleSided": True}
            if material not in materials:
                materials.append(material)
            primitive["material"] = materials.index(material)
    tree["materials"] = materials


def _add_animation(buffers: Any, tree: dict[str, Any], count: int, seconds: float, *, back: bool) -> None:
    """Hide all nodes but the first, and animate their scales: frame k from its moments to the next ones."""
    nodes = {node.get("name"): index for index, node in enumerate(tree["nodes"])}
    for k in range(count):
        tree["nodes"][nodes[_frame(k)]]["scale"] = [1.0 if k == 0 else 0.0] * 3
    if count == 1:
        return
    order = [*range(count), *(range(count - 2, 0, -1) if back else ())]
    moments = np.arange(len(order) + 1, dtype=np.float32) * (seconds / (count - 1))
    samplers, channels = [], []
    for k in range(count):
        shown = np.array([frame == k for frame in order] + [order[-1] == k])
        keys = np.flatnonzero([True, *(shown[1:] != shown[:-1])[:-1], True])
        scales = np.repeat(shown[keys, None].astype(np.float32), 3, axis=1)
        times = _accessor(buffers, tree, f"times {k}", moments[keys], "SCALAR")
        values = _accessor(buffers, tree, f"scales {k}", scales, "VEC3")
        samplers.append({"input": times, "output": values, "interpolation": "STEP"})
        channels.append({"sampler": k, "target": {"node": nodes[_frame(k)], "path": "scale"}})
    tree["animations"] = [{"name": "interpolation", "samplers": samplers, "channels": channels}]


def _accessor(buffers: Any, tree: dict[str, Any], key: str, values: np.ndarray, kind: str) -> int:
    """Add little-endian float32 values to the file, and return the index of their accessor."""
    table = values.reshape(len(values), -1).astype("<f4")
    buffers[key] = table.tobytes()
    tree["accessors"][key] = {
        "bufferView": len(buffers) - 1,
        "componentType": 5126,
        "count": len(table),
        "type": kind,
        "min": table.min(axis=0).tolist(),
        "max": table.max(axis=0).tolist(),
    }
    return len(tree["accessors"]) - 1
