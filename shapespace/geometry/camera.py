"""Pinhole cameras, depth images, and their conversion to scans."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from trimesh import Trimesh

from shapespace.geometry.findings import Finding
from shapespace.geometry.scan import Scan

MAX_DEPTH_JUMP = 0.03  # meters between neighboring pixels: above that of a slanted surface, below arm to trunk

# Background of a depth image. Arbitrary values, but for the area: a person covers at most 1 square meter.
BACKGROUND_GAP = 0.15  # meters without depths between the person and what is behind
MIN_BACKGROUND = 1.2  # square meters
MIN_FOREGROUND = 0.1  # square meters
_DEPTH_BIN = 0.01  # meters
_STRAY_SHARE = 0.003  # of the depths in the gap: pixels on edges are between both sides
_MAX_BINS = 10_000

UPRIGHT_CAMERA = np.diag([1.0, -1.0, -1.0, 1.0])  # from x right, y down, z forward to x right, y up, z backward


@dataclass(frozen=True)
class Camera:
    """Pinhole camera; sizes, focal lengths and principal point in pixels.

    The ray through the center of the pixel in column u and row v (from the top left, counted from 0) is
    ((u - cx) / fx, (v - cy) / fy, 1) in the axes of the camera: x right, y down, z forward, as in OpenCV, Open3D and
    RealSense. `to_world`: rigid transform from these axes to the world, if known. Depths below `near` or above `far`
    (meters) are ignored.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    to_world: Float[np.ndarray, "4 4"] | None = None
    near: float = 0.0
    far: float = np.inf

    def in_world(self, rotation: Float[np.ndarray, "3 3"], unit: float) -> "Camera":
        """The camera in meters and y up; `rotation` from its own world to this one, `unit`: meters of its unit.

        A camera without `to_world` is placed level at the origin and looks along -z: people who face it face +z.
        """
        to_world = UPRIGHT_CAMERA
        if self.to_world is not None:
            to_world = np.eye(4)
            to_world[:3, :3] = rotation @ self.to_world[:3, :3]
            to_world[:3, 3] = unit * rotation @ self.to_world[:3, 3]
        return replace(self, to_world=to_world)

    def with_limits(self, near: float, far: float) -> "Camera":
        """The camera with the narrower of its own limits and these (meters)."""
        return replace(self, near=float(np.maximum(self.near, near)), far=float(np.minimum(self.far, far)))


@dataclass(frozen=True)
class DepthImage:
    """Depth image and its camera, whose `to_world` must be set before points are computed.

    `depth`: along the optical axis, in meters; zero, negative or not finite where nothing was measured.
    """

    depth: Float[np.ndarray, "rows columns"]
    camera: Camera

    @property
    def to_world(self) -> Float[np.ndarray, "4 4"]:
        """Rigid transform from the axes of the camera to the world."""
        assert self.camera.to_world is not None, "the camera has no to_world: call Camera.in_world first"
        return self.camera.to_world

    @property
    def measured(self) -> Bool[np.ndarray, "rows columns"]:
        """Mask of the measured pixels, at any depth."""
        return np.isfinite(self.depth) & (self.depth > 0)

    @property
    def seen(self) -> Bool[np.ndarray, "rows columns"]:
        """Mask of the pixels measured within the limits of the camera."""
        return self.measured & (self.depth >= self.camera.near) & (self.depth <= self.camera.far)

    def unproject(self, pixels: Int[np.ndarray, "k"]) -> Float[np.ndarray, "k 3"]:
        """Points in the world at pixels (flat indices, row by row)."""
        row, column = np.divmod(pixels, self.depth.shape[1])
        z, camera = self.depth.reshape(-1)[pixels].astype(np.float64), self.camera
        with np.errstate(over="ignore", invalid="ignore"):  # the reader checks that the points are finite
            x, y = (column - camera.cx) / camera.fx * z, (row - camera.cy) / camera.fy * z
            return np.stack([x, y, z], axis=1) @ self.to_world[:3, :3].T + self.to_world[:3, 3]

    def to_scan(self, max_depth_jump: float = MAX_DEPTH_JUMP) -> Scan:
        """Surface between neighboring pixels whose depths differ by at most `max_depth_jump` (meters); float64.

        Normals are the means of those of the adjacent triangles, so that all face the camera. Pixels without a
        triangle, as at the edge of an outline, are dropped.
        """
        used, faces = triangulate(self.seen, self.depth, max_depth_jump)
        points = self.unproject(used)
        with np.errstate(over="ignore", invalid="ignore"):
            normals = np.array(Trimesh(points, faces, process=False).vertex_normals).reshape(-1, 3)
        return Scan("", points, normals, np.tile(self.to_world[:3, 3], (len(points), 1)), faces)


def merge_depth_images(images: Sequence[DepthImage], name: str = "", *, max_depth_jump: float = MAX_DEPTH_JUMP) -> Scan:
    """Scan with one patch for each image, unmerged; see `DepthImage.to_scan`."""
    parts = [image.to_scan(max_depth_jump) for image in images]
    starts = np.cumsum([0, *(len(part) for part in parts)])
    faces = [part.faces + start for part, start in zip(parts, starts, strict=False) if part.faces is not None]
    return Scan(
        name,
        np.concatenate([part.points for part in parts]),
        np.concatenate([part.normals for part in parts if part.normals is not None]),
        np.concatenate([part.sensors for part in parts if part.sensors is not None]),
        np.concatenate(faces),
    )


def triangulate(
    seen: Bool[np.ndarray, "*c rows columns"], depth: Float[np.ndarray, "*c rows columns"], max_depth_jump: float
) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "m 3"]]:
    """Two triangles in each square of neighboring pixels that are seen and within `max_depth_jump` in depth.

    Returns the pixels of the triangles (flat indices, rising), and the triangles as indices into these, wound so that
    normals face the camera.
    """
    pixel = np.arange(seen.size, dtype=np.int32).reshape(seen.shape)
    first, second = slice(0, -1), slice(1, None)
    a, b = pixel[..., first, first], pixel[..., first, second]
    c, d = pixel[..., second, first], pixel[..., second, second]
    triangles = np.stack([np.stack([a, c, b], -1), np.stack([b, c, d], -1)], axis=-2).reshape(-1, 3)
    triangles = triangles[seen.reshape(-1)[triangles].all(axis=1)]
    triangles = triangles[np.ptp(depth.reshape(-1)[triangles], axis=1) <= max_depth_jump]
    used = np.zeros(seen.size, dtype=np.bool_)
    used[triangles] = True
    return np.flatnonzero(used), (np.cumsum(used, dtype=np.int32) - 1)[triangles].astype(np.int32)


def find_background(images: Sequence[DepthImage]) -> Finding | None:
    """The finding about depths behind a gap that cover more than a person does; None if an image has no such depths.

    Its value `depth` (meters) is in the farthest of these gaps, so that what is nearer remains.
    """
    limits = [_background_limit(image) for image in images]
    found = [limit for limit in limits if limit is not None]
    if not found or len(found) < len(images):
        return None
    depth = round(max(found), 2)
    depths = np.concatenate([image.depth[image.seen] for image in images])
    return Finding("depth-background", {"share": round(float((depths > depth).mean()), 3), "depth": depth})


def _background_limit(image: DepthImage) -> float | None:
    """Middle of the farthest gap (meters) with a background behind it and something before it."""
    depth = image.depth[image.seen].astype(np.float64)
    if not len(depth) or depth.max() > _MAX_BINS * _DEPTH_BIN:
        return None
    # Each pixel covers the square of its depth over the focal lengths.
    index = (depth / _DEPTH_BIN).astype(int)
    area = np.cumsum(np.bincount(index, depth**2)) / (image.camera.fx * image.camera.fy)
    below = np.cumsum(np.bincount(index))
    width = round(BACKGROUND_GAP / _DEPTH_BIN)
    start = np.arange(max(len(below) - width, 0))  # a gap is the bins after its start
    between = below[start + width] - below[start]
    is_gap = between <= _STRAY_SHARE * len(depth)
    is_gap &= (area[start] > MIN_FOREGROUND) & (area[-1] - area[start + width] > MIN_BACKGROUND)
    if not is_gap.any():
        return None
    first = last = int(np.flatnonzero(is_gap)[-1])
    while first > 0 and is_gap[first - 1]:
        first -= 1
    return float((0.5 * (first + last + width) + 1) * _DEPTH_BIN)
