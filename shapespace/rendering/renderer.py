"""Pictures without a display: a small ray-cast shader, contact sheets, charts, films, and interpolations as one GLB.

World lengths are metres, y is up, and people face +z; the camera looks from the front. A mesh is drawn in its own
vertex colours if it has any (see `paint_distance`), else in clay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.ndimage import gaussian_filter
from trimesh import Trimesh, creation

from shapespace.geometry.proximity import nearest_point
from shapespace.geometry.raycast import Raycaster
from shapespace.geometry.scan import Scan
from shapespace.rendering.colors import vertex_colors

RGBImage = UInt8[np.ndarray, "h w 3"]

CLAY = (0.86, 0.70, 0.60)
PAPER = (0.965, 0.960, 0.950)
LIGHT_DIRECTION = np.array([-0.45, 0.65, 0.62])  # towards the light: before, above, and at the left
SHADOW_TINT = (0.92, 1.0, 1.06)  # exponents of the light in red, green, blue: shadows are warmer than lights
OVERSAMPLING = 2  # rays per pixel, along each axis
SHADOW_HEIGHT = 0.8  # metres: what is this far above the floor shades it to 1 / e
MAX_POINT_MARKERS = 20_000


# -------------------------------------------------------------------------------------------------------- one picture


def render(meshes: Sequence[Trimesh], *, size: int = 512, azimuth: float = 25.0, elevation: float = 10.0) -> RGBImage:
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
    figures, axes = stand_on_floor(meshes), camera_axes(azimuth, elevation)
    window = Window.around([(figures, axes)], size)
    return draw_row(figures, axes, window)


def thumbnail(mesh: Trimesh, size: int) -> UInt8[np.ndarray, "s s 3"]:
    """A mesh on a square of so many pixels."""
    return np.asarray(ImageOps.pad(Image.fromarray(render([mesh], size=size)), (size, size), color=paper_color()))


def scan_to_mesh(scan: Scan) -> Trimesh:
    """A scan as something to draw: its faces if it has any, else a bead on each point (of 20,000 at most)."""
    if scan.faces is not None:
        return Trimesh(scan.points, scan.faces, process=False)
    points = scan.points[:: -(-len(scan) // MAX_POINT_MARKERS)].astype(np.float64)
    apart, _ = nearest_point(points[::2], points[1::2])
    radius = max(0.7 * float(np.median(apart)), 0.002)
    bead = creation.icosahedron()
    vertices = points[:, None] + radius * np.asarray(bead.vertices)
    faces = np.asarray(bead.faces) + len(bead.vertices) * np.arange(len(points))[:, None, None]
    return Trimesh(vertices.reshape(-1, 3), faces.reshape(-1, 3), process=False)


@dataclass(frozen=True)
class Figure:
    """A mesh moved to stand at the origin of the floor y = 0; colours from 0 to 1."""

    vertices: Float[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "m 3"]
    colours: Float[np.ndarray, "n 3"]


@dataclass(frozen=True)
class Window:
    """What one cell shows: `pixel` metres per pixel, around a vertical line through the figure's middle."""

    pixel: float
    high: float
    columns: int
    rows: int

    @classmethod
    def around(cls, shots: Sequence["Shot"], size: int) -> "Window":
        """The window of `size` pixels height that shows any figure of any shot whole."""
        flat = [figure.vertices @ axes[:2].T for figures, axes in shots for figure in figures]
        seen = np.concatenate([*flat, np.array([[0.1, 0.0]])])
        half, low, high = np.abs(seen[:, 0]).max(), seen[:, 1].min(), seen[:, 1].max()
        margin = 0.04 * max(high - low, 0.1)
        pixel = (high - low + 2 * margin) / size
        return cls(pixel, high + margin, 2 * int(np.ceil((half + margin) / pixel)), size)

    def refined(self, factor: int) -> "Window":
        """The same with `factor` times as many rows and columns."""
        return Window(self.pixel / factor, self.high, self.columns * factor, self.rows * factor)

    def centres(self) -> tuple[Float[np.ndarray, "w"], Float[np.ndarray, "h"]]:
        """Where the pixels lie: to the right of the middle, and up (from the top row on)."""
        across = (np.arange(self.columns) + 0.5 - self.columns / 2) * self.pixel
        return across, self.high - (np.arange(self.rows) + 0.5) * self.pixel


Shot = tuple[Sequence[Figure], Float[np.ndarray, "3 3"]]  # what is seen, and the camera's axes


def camera_axes(azimuth: float, elevation: float) -> Float[np.ndarray, "3 3"]:
    """Rows: the camera's right, its up, and the direction towards the viewer."""
    a, e = np.radians([azimuth, elevation])
    back = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
    right = np.array([np.cos(a), 0.0, -np.sin(a)])
    return np.stack([right, np.cross(back, right), back])


def stand_on_floor(meshes: Sequence[Trimesh]) -> list[Figure]:
    """Bring each mesh to the middle, keeping heights above the floor that the lowest of them sets."""
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


# --------------------------------------------------------------------------------------------------------- the shader


def draw_row(figures: Sequence[Figure], axes: Float[np.ndarray, "3 3"], window: Window) -> RGBImage:
    return np.concatenate([_draw(figure, axes, window) for figure in figures], axis=1)


def _draw(figure: Figure, axes: Float[np.ndarray, "3 3"], window: Window) -> RGBImage:
    """One cell: the figure over the paper with its shadow."""
    if not len(figure.faces):
        return no_surface(window)
    paper = np.tile(np.array(PAPER), (window.rows, window.columns, 1))
    seen = figure.vertices @ axes.T  # to the right, up, towards the viewer
    rays = Raycaster(seen, figure.faces)
    drawn = _shaded(figure, seen, rays, axes, window)
    paper *= 1 - 0.35 * _shadow(figure, rays, axes, window)[..., None]
    return _bytes(drawn[..., :3] + (1 - drawn[..., 3:]) * paper)


def _shaded(
    figure: Figure,
    seen: Float[np.ndarray, "n 3"],
    rays: Raycaster,
    axes: Float[np.ndarray, "3 3"],
    window: Window,
) -> Float[np.ndarray, "h w 4"]:
    """Red, green, blue (each times cover) and cover of each pixel: means over its rays."""
    fine = window.refined(OVERSAMPLING)
    row, column, face, points = _cast(seen, rays, fine)
    corners = figure.faces[face]
    weights = _barycentric(points, seen[:, :2][corners])
    normals = np.einsum("kc,kcd->kd", weights, (vertex_normals(figure) @ axes.T)[corners])
    normals *= np.where(_facing(seen, corners), 1.0, -1.0)[:, None]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    colours = np.einsum("kc,kcd->kd", weights, figure.colours[corners])
    depth = np.einsum("kc,kc->k", weights, seen[:, 2][corners])
    pixel = row // OVERSAMPLING * window.columns + column // OVERSAMPLING
    light = _light(normals, axes) * (1 - _crease(depth, pixel, seen[:, 2].min(), window))
    shown = np.column_stack([(colours * light[:, None] ** SHADOW_TINT).clip(0, 1), np.ones(len(face))])
    return _pooled(shown, pixel, window) / OVERSAMPLING**2


def _cast(
    seen: Float[np.ndarray, "n 3"], rays: Raycaster, window: Window
) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"], Int[np.ndarray, "k"], Float[np.ndarray, "k 2"]]:
    """For the pixels that see the figure: row, column, face, and the point of the picture plane (metres)."""
    across, up = window.centres()
    columns = np.flatnonzero((across >= seen[:, 0].min()) & (across <= seen[:, 0].max()))
    rows = np.flatnonzero((up >= seen[:, 1].min()) & (up <= seen[:, 1].max()))
    origins = np.empty((len(rows), len(columns), 3), dtype=np.float32)
    origins[..., 0], origins[..., 1] = across[columns], up[rows, None]
    origins[..., 2] = seen[:, 2].max() + 0.1
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
    lit = 0.22 + 0.30 * ahead + 0.50 * (normals @ LIGHT_DIRECTION).clip(0, 1) + 0.24 * sky
    half = LIGHT_DIRECTION + np.array([0.0, 0.0, 1.0])
    gloss = 0.08 * (normals @ half / np.linalg.norm(half)).clip(0, 1) ** 24
    return np.asarray((lit + gloss) * (0.68 + 0.32 * ahead**0.4))


def _crease(
    depth: Float[np.ndarray, "k"], pixel: Int[np.ndarray, "k"], far: float, window: Window
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


def _shadow(
    figure: Figure, rays: Raycaster, axes: Float[np.ndarray, "3 3"], window: Window
) -> Float[np.ndarray, "h w"]:
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
    height, _ = rays.first_hit(floor + 1e-4 * overhead, overhead)
    shadow[np.ix_(rows, columns)] = np.exp(-height / SHADOW_HEIGHT).reshape(len(rows), len(columns))
    return gaussian_filter(shadow, 0.012 * window.rows)


def vertex_normals(figure: Figure) -> Float[np.ndarray, "n 3"]:
    """Unit normals, averaged over the faces by area; up where there are none."""
    corners = figure.vertices[figure.faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat, count = figure.faces.reshape(-1), len(figure.vertices)
    summed = np.stack([np.bincount(flat, np.repeat(cross[:, k], 3), count) for k in range(3)], axis=1)
    lengths = np.linalg.norm(summed, axis=1, keepdims=True)
    return np.where(lengths > 0, summed / lengths.clip(1e-30), [0.0, 1.0, 0.0])


def _bytes(image: Float[np.ndarray, "h w 3"]) -> RGBImage:
    return (255 * image.clip(0, 1) + 0.5).astype(np.uint8)


# ------------------------------------------------------------------------------------------------- sheets and charts


# --------------------------------------------------------------------------------------------------------------- films


# ---------------------------------------------------------------------------------------------------------- animation


INK, PALE = (52, 50, 48), (160, 156, 150)


def no_surface(window: Window) -> RGBImage:
    image = blank(window.columns, window.rows)
    middle = (window.columns // 2, window.rows // 2)
    ImageDraw.Draw(image).text(middle, "no surface", fill=PALE, font=font(14), anchor="mm")
    return np.asarray(image)


def blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), paper_color())


def paper_color() -> tuple[int, int, int]:
    red, green, blue = _bytes(np.array(PAPER).reshape(1, 1, 3)).reshape(3).tolist()
    return red, green, blue


def font(size: int) -> Any:
    return ImageFont.load_default(size=size)
