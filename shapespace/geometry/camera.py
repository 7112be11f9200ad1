"""Depth images: what pinhole cameras measured, as one scan."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from trimesh import Trimesh

from shapespace.geometry.scan import Scan

MAX_DEPTH_JUMP = (
    0.03  # metres between neighbouring pixels: more than a grazing body shows, less than an arm is from the trunk
)

UPRIGHT_CAMERA = np.diag([1.0, -1.0, -1.0, 1.0])  # from x right, y down, z ahead to x right, y up, z behind


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; sizes, focal lengths and principal point are in pixels.

    The ray through the middle of the pixel in column u, row v (from the top left, counted from 0) is
    ((u - cx) / fx, (v - cy) / fy, 1) in the camera's axes: x to the right, y down, z ahead, as OpenCV, Open3D and
    RealSense have them. `to_world` is the rigid motion from these axes to the world, if it is known. Depths below
    `near` or above `far` (metres) do not count as measured.
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

    def in_world(self, turn: Float[np.ndarray, "3 3"], unit: float) -> "Camera":
        """The camera in our world (metres, y up), by the turn from its own one and metres per unit of that.

        Without a place it stands at the origin, level, and looks along -z, so that people who look at it face +z.
        """
        pose = UPRIGHT_CAMERA
        if self.to_world is not None:
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = turn @ self.to_world[:3, :3], unit * turn @ self.to_world[:3, 3]
        return replace(self, to_world=pose)

    def with_limits(self, near: float, far: float) -> "Camera":
        """The camera with limits (metres) beside its own: the narrower ones hold."""
        return replace(self, near=float(np.maximum(self.near, near)), far=float(np.minimum(self.far, far)))


@dataclass(frozen=True)
class DepthImage:
    """One depth image and the camera that took it, which must be placed before anything is asked of it.

    `depth` is along the optical axis, in metres; 0, less, or not finite where nothing was measured.
    """

    depth: Float[np.ndarray, "rows columns"]
    camera: Camera

    @property
    def pose(self) -> Float[np.ndarray, "4 4"]:
        """From the camera's axes to the world."""
        assert self.camera.to_world is not None, "the camera is not placed: use Camera.placed"
        return self.camera.to_world

    @property
    def measured(self) -> Bool[np.ndarray, "rows columns"]:
        """Where something was measured, at whatever depth."""
        return np.isfinite(self.depth) & (self.depth > 0)

    @property
    def seen(self) -> Bool[np.ndarray, "rows columns"]:
        """Where something was measured within the camera's limits."""
        return self.measured & (self.depth >= self.camera.near) & (self.depth <= self.camera.far)

    def unproject(self, pixels: Int[np.ndarray, "k"]) -> Float[np.ndarray, "k 3"]:
        """Points in the world at pixels, which are counted along the rows."""
        row, column = np.divmod(pixels, self.depth.shape[1])
        z, camera = self.depth.reshape(-1)[pixels].astype(np.float64), self.camera
        with np.errstate(over="ignore", invalid="ignore"):  # whoever stores the points checks that they are finite
            x, y = (column - camera.cx) / camera.fx * z, (row - camera.cy) / camera.fy * z
            return np.stack([x, y, z], axis=1) @ self.pose[:3, :3].T + self.pose[:3, 3]

    def to_scan(self, max_depth_jump: float = MAX_DEPTH_JUMP) -> Scan:
        """The surface that spans neighbouring pixels no further apart in depth than `jump` (metres); float64.

        Normals are the means of those of the triangles around a point, so that all face the camera. Pixels that belong
        to no triangle, as at the edge of an outline, are left out.
        """
        used, faces = triangulate(self.seen, self.depth, max_depth_jump)
        points = self.unproject(used)
        with np.errstate(over="ignore", invalid="ignore"):
            normals = np.array(Trimesh(points, faces, process=False).vertex_normals).reshape(-1, 3)
        return Scan("", points, normals, np.tile(self.pose[:3, 3], (len(points), 1)), faces)


def merge_depth_images(images: Sequence[DepthImage], name: str = "", *, max_depth_jump: float = MAX_DEPTH_JUMP) -> Scan:
    """What several cameras saw at one time, as one scan: a patch for each, unmerged; see `View.scan`."""
    parts = [view.to_scan(max_depth_jump) for view in images]
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
    """Two triangles in each square of neighbouring pixels, where the corners are seen and within `jump` in depth.

    Give the pixels that the triangles use (flat indices, rising), and the triangles of these, wound so that normals
    face the camera.
    """
    place = np.arange(seen.size, dtype=np.int32).reshape(seen.shape)
    above, below = slice(0, -1), slice(1, None)
    a, b = place[..., above, above], place[..., above, below]
    c, d = place[..., below, above], place[..., below, below]
    triangles = np.stack([np.stack([a, c, b], -1), np.stack([b, c, d], -1)], axis=-2).reshape(-1, 3)
    triangles = triangles[seen.reshape(-1)[triangles].all(axis=1)]
    triangles = triangles[np.ptp(depth.reshape(-1)[triangles], axis=1) <= max_depth_jump]
    used = np.zeros(seen.size, dtype=np.bool_)
    used[triangles] = True
    return np.flatnonzero(used), (np.cumsum(used, dtype=np.int32) - 1)[triangles].astype(np.int32)
