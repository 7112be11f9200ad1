"""Ray-cast renderer of meshes, without a display.

World lengths are meters, y is up and people face +z; the camera looks from the front. A mesh is drawn in its vertex
colors if it has any (see `colors.color_by_distance`), else in clay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.ndimage import gaussian_filter
from trimesh import Trimesh, creation

from shapespace.geometry.proximity import area_vectors, nearest_point
from shapespace.geometry.raycast import Raycaster
from shapespace.geometry.scan import Scan
from shapespace.rendering.colors import vertex_colors

RGBImage = UInt8[np.ndarray, "h w 3"]

CLAY = (0.86, 0.70, 0.60)
PAPER = (0.965, 0.960, 0.950)
LIGHT_DIRECTION = np.array([-0.45, 0.65, 0.62])  # towards the light: in front, above, left
INK, PALE = (52, 50, 48), (160, 156, 150)  # of text and lines
SHADOW_TINT = (0.92, 1.0, 1.06)  # exponents of the light in red, green, blue: shadows are warmer than lit surface
OVERSAMPLING = 2  # rays per pixel along each axis
SHADOW_HEIGHT = 0.8  # meters above the floor at which a shadow has faded to 1 / e
MAX_POINT_MARKERS = 20_000


def render(meshes: Sequence[Trimesh], *, size: int = 512, azimuth: float = 25.0, elevation: float = 10.0) -> RGBImage:
    """Render meshes side by side on one floor, at one scale, with an orthographic camera.

    Args:
        meshes: From left to right. Faces may be an unordered soup of either orientation. A mesh without faces is shown
            as the text "no surface".
        size: Height (pixels); the width follows.
        azimuth: Camera angle from the front towards the person's left side, world +x (degrees).
        elevation: Camera angle above the horizon (degrees).

    Raises:
        ValueError: There are no meshes.

    """
    if not meshes:
        raise ValueError("render: no meshes given. Give at least one.")
    figures, axes = stand_on_floor(meshes), camera_axes(azimuth, elevation)
    window = Window.around([(figures, axes)], size)
    return draw_row(figures, axes, window)


def thumbnail(mesh: Trimesh, size: int) -> UInt8[np.ndarray, "s s 3"]:
    """Square picture of a mesh, `size` pixels wide."""
    return np.asarray(ImageOps.pad(Image.fromarray(render([mesh], size=size)), (size, size), color=paper_color()))


def scan_to_mesh(scan: Scan) -> Trimesh:
    """Mesh to draw a scan with: its faces, or an icosahedron on each point (at most `MAX_POINT_MARKERS`)."""
    if scan.faces is not None:
        return Trimesh(scan.points, scan.faces, process=False)
    points = scan.points[:: -(-len(scan) // MAX_POINT_MARKERS)].astype(np.float64)
    spacing, _ = nearest_point(points[::2], points[1::2])
    radius = max(0.7 * float(np.median(spacing)), 0.002)
    marker = creation.icosahedron()
    vertices = points[:, None] + radius * np.asarray(marker.vertices)
    faces = np.asarray(marker.faces) + len(marker.vertices) * np.arange(len(points))[:, None, None]
    return Trimesh(vertices.reshape(-1, 3), faces.reshape(-1, 3), process=False)


@dataclass(frozen=True)
class Figure:
    """Mesh that stands at the origin of the floor y = 0; colors from 0 to 1."""

    vertices: Float[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "m 3"]
    colors: Float[np.ndarray, "n 3"]


@dataclass(frozen=True)
class Window:
    """View of one cell: `pixel` meters per pixel, centered at the vertical axis of the figure; `high`: its top."""

    pixel: float
    high: float
    columns: int
    rows: int

    @classmethod
    def around(cls, shots: Sequence["Shot"], size: int) -> "Window":
        """Window, `size` pixels high, in which all figures of all shots fit."""
        flat = [figure.vertices @ axes[:2].T for figures, axes in shots for figure in figures]
        seen = np.concatenate([*flat, np.array([[0.1, 0.0]])])
        half, low, high = np.abs(seen[:, 0]).max(), seen[:, 1].min(), seen[:, 1].max()
        margin = 0.04 * max(high - low, 0.1)
        pixel = (high - low + 2 * margin) / size
        return cls(pixel, high + margin, 2 * int(np.ceil((half + margin) / pixel)), size)

    def refined(self, factor: int) -> "Window":
        """Window with `factor` times as many rows and columns."""
        return Window(self.pixel / factor, self.high, self.columns * factor, self.rows * factor)

    def centers(self) -> tuple[Float[np.ndarray, "w"], Float[np.ndarray, "h"]]:
        """Centers of the pixels (meters): to the right of the middle, and up, from the top row on."""
        across = (np.arange(self.columns) + 0.5 - self.columns / 2) * self.pixel
        return across, self.high - (np.arange(self.rows) + 0.5) * self.pixel


Shot = tuple[Sequence[Figure], Float[np.ndarray, "3 3"]]  # figures, and the axes of the camera


def camera_axes(azimuth: float, elevation: float) -> Float[np.ndarray, "3 3"]:
    """Axes of the camera as rows: right, up, and towards the viewer."""
    a, e = np.radians([azimuth, elevation])
    back = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
    right = np.array([np.cos(a), 0.0, -np.sin(a)])
    return np.stack([right, np.cross(back, right), back])


def stand_on_floor(meshes: Sequence[Trimesh]) -> list[Figure]:
    """Figures of meshes: each centered horizontally, on a common floor at the lowest vertex of all."""
    floor = min((float(mesh.vertices[:, 1].min()) for mesh in meshes if len(mesh.faces)), default=0.0)
    return [_figure(mesh, floor) for mesh in meshes]


def _figure(mesh: Trimesh, floor: float) -> Figure:
    faces = np.asarray(mesh.faces)
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    if not len(faces):
        return Figure(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64), np.zeros((0, 3)))
    middle = 0.5 * (vertices.min(axis=0) + vertices.max(axis=0))
    middle[1] = floor
    own = vertex_colors(mesh)
    return Figure(vertices - middle, faces, np.tile(CLAY, (len(vertices), 1)) if own is None else own[:, :3] / 255.0)


def draw_row(figures: Sequence[Figure], axes: Float[np.ndarray, "3 3"], window: Window) -> RGBImage:
    """Picture of figures side by side."""
    return np.concatenate([_draw(figure, axes, window) for figure in figures], axis=1)


def _draw(figure: Figure, axes: Float[np.ndarray, "3 3"], window: Window) -> RGBImage:
    """Picture of one figure with its shadow, on paper."""
    if not len(figure.faces):
        return no_surface(window)
    paper = np.tile(np.array(PAPER), (window.rows, window.columns, 1))
    projected = figure.vertices @ axes.T  # right, up, towards the viewer
    rays = Raycaster(projected, figure.faces)
    drawn = _shaded(figure, projected, rays, axes, window)
    paper *= 1 - 0.35 * _shadow(figure, rays, axes, window)[..., None]
    return _bytes(drawn[..., :3] + (1 - drawn[..., 3:]) * paper)


def _shaded(
    figure: Figure,
    projected: Float[np.ndarray, "n 3"],
    rays: Raycaster,
    axes: Float[np.ndarray, "3 3"],
    window: Window,
) -> Float[np.ndarray, "h w 4"]:
    """Red, green, blue (premultiplied by coverage) and coverage of each pixel: means over its rays."""
    fine = window.refined(OVERSAMPLING)
    row, column, face, points = _cast(projected, rays, fine)
    corners = figure.faces[face]
    weights = _barycentric(points, projected[:, :2][corners])
    normals = np.einsum("kc,kcd->kd", weights, (vertex_normals(figure) @ axes.T)[corners])
    normals *= np.where(_faces_viewer(projected, corners), 1.0, -1.0)[:, None]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    colors = np.einsum("kc,kcd->kd", weights, figure.colors[corners])
    depth = np.einsum("kc,kc->k", weights, projected[:, 2][corners])
    pixel = row // OVERSAMPLING * window.columns + column // OVERSAMPLING
    light = _light(normals, axes) * (1 - _crease(depth, pixel, projected[:, 2].min(), window))
    shown = np.column_stack([(colors * light[:, None] ** SHADOW_TINT).clip(0, 1), np.ones(len(face))])
    return _pooled(shown, pixel, window) / OVERSAMPLING**2


def _cast(
    projected: Float[np.ndarray, "n 3"], rays: Raycaster, window: Window
) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"], Int[np.ndarray, "k"], Float[np.ndarray, "k 2"]]:
    """Row, column, face, and point of the picture plane (meters) of each pixel whose ray hits the figure."""
    across, up = window.centers()
    columns = np.flatnonzero((across >= projected[:, 0].min()) & (across <= projected[:, 0].max()))
    rows = np.flatnonzero((up >= projected[:, 1].min()) & (up <= projected[:, 1].max()))
    origins = np.empty((len(rows), len(columns), 3), dtype=np.float32)
    origins[..., 0], origins[..., 1] = across[columns], up[rows, None]
    origins[..., 2] = projected[:, 2].max() + 0.1
    ahead = np.tile(np.array([0, 0, -1], dtype=np.float32), (origins.size // 3, 1))
    _, first = rays.first_hit(origins.reshape(-1, 3), ahead)
    hit = np.flatnonzero(first >= 0)
    row, column = rows[hit // max(len(columns), 1)], columns[hit % max(len(columns), 1)]
    return row, column, first[hit].astype(np.int64), np.stack([across[column], up[row]], axis=1)


def _pooled(
    values: Float[np.ndarray, "k c"], pixel: Int[np.ndarray, "k"], window: Window
) -> Float[np.ndarray, "h w c"]:
    """Sums over the rays of each pixel."""
    count = window.rows * window.columns
    sums = [np.bincount(pixel, channel, count) for channel in values.T]
    return np.stack(sums, axis=-1).reshape(window.rows, window.columns, -1)


def _barycentric(points: Float[np.ndarray, "k 2"], corners: Float[np.ndarray, "k 3 2"]) -> Float[np.ndarray, "k 3"]:
    """Barycentric coordinates of points in plane triangles; clipped to the triangle against rounding."""
    a, b, c = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    p = points - a
    doubled = b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0]
    doubled = np.where(np.abs(doubled) < 1e-20, 1e-20, doubled)
    v = (p[:, 0] * c[:, 1] - p[:, 1] * c[:, 0]) / doubled
    w = (b[:, 0] * p[:, 1] - b[:, 1] * p[:, 0]) / doubled
    weights = np.stack([1 - v - w, v, w], axis=1).clip(0, 1)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _faces_viewer(projected: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "k 3"]) -> Bool[np.ndarray, "k"]:
    """Whether the corners of faces run counterclockwise for the viewer."""
    a = projected[faces[:, 0], :2]
    b, c = projected[faces[:, 1], :2] - a, projected[faces[:, 2], :2] - a
    return np.asarray(b[:, 0] * c[:, 1] >= b[:, 1] * c[:, 0], dtype=np.bool_)


def _light(normals: Float[np.ndarray, "k 3"], axes: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "k"]:
    """Brightness from a key light (upper left), a head light, sky light and a darker rim; normals in camera axes."""
    ahead = normals[:, 2].clip(0, 1)
    sky = 0.5 + 0.5 * normals @ axes[:, 1]  # up in camera axes
    lit = 0.22 + 0.30 * ahead + 0.50 * (normals @ LIGHT_DIRECTION).clip(0, 1) + 0.24 * sky
    half = LIGHT_DIRECTION + np.array([0.0, 0.0, 1.0])
    gloss = 0.08 * (normals @ half / np.linalg.norm(half)).clip(0, 1) ** 24
    return np.asarray((lit + gloss) * (0.68 + 0.32 * ahead**0.4))


def _crease(
    depth: Float[np.ndarray, "k"], pixel: Int[np.ndarray, "k"], far: float, window: Window
) -> Float[np.ndarray, "k"]:
    """Depth darkening, 0 to 1, of points behind their surroundings in the picture; `depth` grows towards the viewer.

    Luft, Colditz & Deussen (Image Enhancement by Unsharp Masking the Depth Buffer, SIGGRAPH 2006).
    """
    cover = _pooled(np.ones((len(depth), 1)), pixel, window)[..., 0]
    mean = _pooled(depth[:, None], pixel, window)[..., 0] / cover.clip(1)
    around = gaussian_filter(np.where(cover > 0, mean, far), 0.008 * window.rows)
    height = window.pixel * window.rows
    behind = (around.reshape(-1)[pixel] - depth) / (0.04 * height)
    return np.asarray(0.5 * behind.clip(0, 1))


def _shadow(
    figure: Figure, rays: Raycaster, axes: Float[np.ndarray, "3 3"], window: Window
) -> Float[np.ndarray, "h w"]:
    """Darkness of the floor, 0 to 1, by the height of the figure above it; 0 if the camera does not look down."""
    shadow = np.zeros((window.rows, window.columns))
    if axes[2, 1] < 0.05:
        return shadow
    cast = (figure.vertices * [1.0, 0.0, 1.0]) @ axes[:2].T
    across, up = window.centers()
    columns = np.flatnonzero((across >= cast[:, 0].min()) & (across <= cast[:, 0].max()))
    rows = np.flatnonzero((up >= cast[:, 1].min()) & (up <= cast[:, 1].max()))
    plane = np.stack(np.broadcast_arrays(across[columns], up[rows, None]), axis=-1).reshape(-1, 2)
    # The point of the floor (world height 0) behind each pixel, in camera axes.
    floor = np.column_stack([plane, -plane[:, 1] * axes[1, 1] / axes[2, 1]])
    overhead = np.tile(axes[:, 1], (len(floor), 1))  # up
    height, _ = rays.first_hit(floor + 1e-4 * overhead, overhead)
    shadow[np.ix_(rows, columns)] = np.exp(-height / SHADOW_HEIGHT).reshape(len(rows), len(columns))
    return gaussian_filter(shadow, 0.012 * window.rows)


def vertex_normals(figure: Figure) -> Float[np.ndarray, "n 3"]:
    """Unit vertex normals: means over the faces, weighted by area; up for vertices without faces."""
    cross = area_vectors(figure.vertices, figure.faces)
    flat, count = figure.faces.reshape(-1), len(figure.vertices)
    summed = np.stack([np.bincount(flat, np.repeat(cross[:, k], 3), count) for k in range(3)], axis=1)
    lengths = np.linalg.norm(summed, axis=1, keepdims=True)
    return np.where(lengths > 0, summed / lengths.clip(1e-30), [0.0, 1.0, 0.0])


def _bytes(image: Float[np.ndarray, "h w 3"]) -> RGBImage:
    return (255 * image.clip(0, 1) + 0.5).astype(np.uint8)


def no_surface(window: Window) -> RGBImage:
    """Cell with the text "no surface"."""
    image = blank(window.columns, window.rows)
    middle = (window.columns // 2, window.rows // 2)
    ImageDraw.Draw(image).text(middle, "no surface", fill=PALE, font=font(14), anchor="mm")
    return np.asarray(image)


def blank(width: int, height: int) -> Image.Image:
    """Empty picture in the color of paper."""
    return Image.new("RGB", (width, height), paper_color())


def paper_color() -> tuple[int, int, int]:
    """Color of paper as RGB bytes."""
    red, green, blue = _bytes(np.array(PAPER).reshape(1, 1, 3)).reshape(3).tolist()
    return red, green, blue


def font(size: int) -> Any:
    """Built-in font of Pillow."""
    return ImageFont.load_default(size=size)
