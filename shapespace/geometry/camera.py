"""Depth images: what pinhole cameras measured, as one scan."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from trimesh import Trimesh

from shapespace.geometry.scan import Scan

JUMP = 0.03  # metres between neighbouring pixels: more than a grazing body shows, less than an arm is from the trunk

_UPRIGHT = np.diag([1.0, -1.0, -1.0, 1.0])  # from x right, y down, z ahead to x right, y up, z behind


_OTHER_NAMES = {"fx": "fl_x", "fy": "fl_y", "width": "w", "height": "h"}  # what nerfstudio says
_LENS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "coeffs", "distortion", "dist_coeffs")


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

    @classmethod
    def described(cls, about: Mapping[str, Any]) -> "Camera":
        """The camera that a JSON describes: by `fx` and so on, as Open3D, or as nerfstudio's transforms.json.

        Raises:
            ValueError: It does not, or it describes none that has a pinhole and a rigid place.

        """
        width, height = (_number(about, key) for key in ("width", "height"))
        fx, fy, cx, cy = _intrinsics(about)
        if not all(0 < size < 20 * focal for size, focal in ((width, fx), (height, fy))):
            raise ValueError(
                f"focal lengths of {fx:g} and {fy:g} pixels do not go with an image of {width:g} x {height:g}. Give "
                "them in pixels of this image."
            )
        bent = [key for key in _LENS if about.get(key) and (_array(about[key]).any() or not _array(about[key]).size)]
        if bent:
            raise ValueError(
                f"the lens distorts ({', '.join(bent)}), and depth images are read as those of a pinhole. Undistort "
                "them first (OpenCV: cv2.undistort), and set these to 0."
            )
        return cls(int(width), int(height), fx, fy, cx, cy, _pose(about), *_limits(about))

    def placed(self, turn: Float[np.ndarray, "3 3"], unit: float) -> "Camera":
        """The camera in our world (metres, y up), by the turn from its own one and metres per unit of that.

        Without a place it stands at the origin, level, and looks along -z, so that people who look at it face +z.
        """
        pose = _UPRIGHT
        if self.to_world is not None:
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = turn @ self.to_world[:3, :3], unit * turn @ self.to_world[:3, 3]
        return replace(self, to_world=pose)

    def within(self, near: float, far: float) -> "Camera":
        """The camera with limits (metres) beside its own: the narrower ones hold."""
        return replace(self, near=float(np.maximum(self.near, near)), far=float(np.minimum(self.far, far)))


def metres_per_value(about: Mapping[str, Any], *, whole: bool) -> float:
    """What a value of a depth image means: a millimetre if it is a `whole` number, else a metre, or what is said.

    Raises:
        ValueError: It is said in a word that different programs understand differently.

    """
    if "depth_unit_scale_factor" in about:
        return _number(about, "depth_unit_scale_factor")
    if "depth_scale" in about:
        raise ValueError(
            "depth_scale is what some programs multiply by and others divide by. Call it depth_unit_scale_factor, "
            "metres per value of the image: 0.001 for millimetres."
        )
    return 0.001 if whole else 1.0


def _intrinsics(about: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Focal lengths and principal point in pixels: by name, or as Open3D's or OpenCV's matrix."""
    if "intrinsic_matrix" not in about:
        fx, fy, cx, cy = (_number(about, key) for key in ("fx", "fy", "cx", "cy"))
        corner = 0.5 if "fl_x" in about else 0.0  # nerfstudio counts from the corner of the first pixel
        return fx, fy, cx - corner, cy - corner
    matrix = _array(about["intrinsic_matrix"])
    if matrix.size == 9:
        matrix = matrix.reshape(3, 3)
        if list(matrix[2]) != [0, 0, 1]:  # Open3D writes it column by column
            matrix = matrix.T
    if matrix.shape != (3, 3) or list(matrix[2]) != [0, 0, 1] or matrix[0, 1] or matrix[1, 0]:
        raise ValueError("intrinsic_matrix is not fx 0 cx, 0 fy cy, 0 0 1. Write it so, or column by column.")
    return float(matrix[0, 0]), float(matrix[1, 1]), float(matrix[0, 2]), float(matrix[1, 2])


def _pose(about: Mapping[str, Any]) -> Float[np.ndarray, "4 4"] | None:
    """Camera to world, or None if nothing is said."""
    key = next((key for key in ("camera_to_world", "transform_matrix") if key in about), None)
    if key is None:
        return None
    pose = _array(about[key])
    turn = pose[:3, :3] if pose.shape == (4, 4) and np.allclose(pose[3], [0, 0, 0, 1]) else np.zeros((3, 3))
    if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-3) or np.linalg.det(turn) < 0:
        raise ValueError(
            f"{key} is no rigid motion. Give four rows of four numbers: a rotation without scale or mirror, beside it "
            "the camera's place, and 0 0 0 1 below."
        )
    return pose @ _UPRIGHT if key == "transform_matrix" else pose  # nerfstudio: y up, z behind the camera


def _limits(about: Mapping[str, Any]) -> tuple[float, float]:
    """Near and far, in metres; 0 and infinity where nothing is said."""
    near, far = about.get("near", 0.0), about.get("far", np.inf)
    numbers = all(isinstance(limit, int | float) and not isinstance(limit, bool) for limit in (near, far))
    if not numbers or not 0 <= near < far:
        raise ValueError(
            f"near and far are {json.dumps(near)[:40]} and {json.dumps(far)[:40]}. Give them in metres along the "
            "optical axis, near below far, or leave them out."
        )
    return float(near), float(far)


def _array(value: Any) -> Float[np.ndarray, "..."]:
    """Finite numbers, or an empty array where there is anything else."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return np.empty(0)
    return array if np.isfinite(array).all() and np.abs(array).max(initial=0) < 1e9 else np.empty(0)


def _number(about: Mapping[str, Any], key: str) -> float:
    """A number that must be there, under its name or nerfstudio's."""
    name = key if key in about else _OTHER_NAMES.get(key, key)
    value = about.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        said = f"{name} is {json.dumps(value)[:40]}" if name in about else f"it says nothing of {key}"
        raise ValueError(f"{said}. Give fx, fy, cx, cy, width and height of the camera as numbers of pixels.")
    return float(value)


@dataclass(frozen=True)
class View:
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

    def scan(self, jump: float = JUMP) -> Scan:
        """The surface that spans neighbouring pixels no further apart in depth than `jump` (metres); float64.

        Normals are the means of those of the triangles around a point, so that all face the camera. Pixels that belong
        to no triangle, as at the edge of an outline, are left out.
        """
        used, faces = triangulate(self.seen, self.depth, jump)
        points = self.unproject(used)
        with np.errstate(over="ignore", invalid="ignore"):
            normals = np.array(Trimesh(points, faces, process=False).vertex_normals).reshape(-1, 3)
        return Scan("", points, normals, np.tile(self.pose[:3, 3], (len(points), 1)), faces)


def joined(views: Sequence[View], name: str = "", *, jump: float = JUMP) -> Scan:
    """What several cameras saw at one time, as one scan: a patch for each, unmerged; see `View.scan`."""
    parts = [view.scan(jump) for view in views]
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
    seen: Bool[np.ndarray, "*c rows columns"], depth: Float[np.ndarray, "*c rows columns"], jump: float
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
    triangles = triangles[np.ptp(depth.reshape(-1)[triangles], axis=1) <= jump]
    used = np.zeros(seen.size, dtype=np.bool_)
    used[triangles] = True
    return np.flatnonzero(used), (np.cumsum(used, dtype=np.int32) - 1)[triangles].astype(np.int32)
