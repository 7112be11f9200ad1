"""Poses of synthetic people: joint limits, motion clips, interpolation, self-penetration."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from shapespace.geometry.proximity import area_vectors, vertex_normals
from shapespace.geometry.raycast import Raycaster
from shapespace.synthetic.body import Body, read_asset

MAX_HEADING = 20.0
"""Limit of the heading to either side (degrees)."""

MAX_PENETRATION = 0.02
"""Largest share of the surface inside the body that `sample_pose` accepts."""

MAX_TRIES = 50
"""Number of poses that `sample_pose` tries; after that it takes the one with the least penetration."""

_SPINE = ((-3.0, 5.0), (-4.0, 4.0), (-3.0, 3.0))
_NECK = ((-8.0, 8.0), (-12.0, 12.0), (-5.0, 5.0))

LIMITS = {
    **dict.fromkeys(("spine05", "spine04", "spine03", "spine02", "spine01"), _SPINE),
    **dict.fromkeys(("neck01", "neck02", "head"), _NECK),
    "upperarm01.L": ((-20.0, 20.0), (-60.0, 20.0), (-25.0, 70.0)),
    "wrist.L": ((-20.0, 20.0), (-20.0, 20.0), (-15.0, 15.0)),
    "upperleg01.L": ((-70.0, 15.0), (-10.0, 15.0), (-5.0, 25.0)),
    "lowerleg01.L": ((0.0, 80.0), (0.0, 0.0), (0.0, 0.0)),
    "foot.L": ((-15.0, 15.0), (0.0, 0.0), (-8.0, 8.0)),
}
"""Joint limits (degrees) about x (positive: spine forward, leg or shank backward), y (up; positive: to the left) and z
(positive: left arm up, left leg outward), applied in this order, about the world axes at rest. The right side mirrors
y and z."""

ELBOW = (-15.0, 95.0)
"""Limits of the elbow (degrees) about the normal of the plane of the arm at rest, where it is bent by about 40."""


@dataclass(frozen=True)
class PoseLibrary:
    """Poses of a body, within joint limits or from motion clips, as rotations (j, 3, 3) for `Body.skin`."""

    joints: tuple[str, ...]
    elbow_axes: Float[np.ndarray, "2 3"]
    clips: tuple[str, ...]
    clip_joints: tuple[str, ...]
    clip_rotations: Float[np.ndarray, "c t m 4"]

    @classmethod
    def load(cls, body: Body) -> "PoseLibrary":
        """Read the motion clips of the package's assets, for the joints of the body."""
        stored = read_asset("poses.npz")
        heads = dict(zip(body.joints, body.mean[-len(body.joints) :], strict=True))
        return cls(
            joints=body.joints,
            elbow_axes=np.stack([_elbow_axis(heads, side) for side in "LR"]),
            clips=tuple(str(name) for name in stored["clips"]),
            clip_joints=tuple(str(name) for name in stored["joints"]),
            clip_rotations=stored["rotations"].astype(np.float64),
        )

    def sample_in_limits(self, rng: np.random.Generator) -> Float[np.ndarray, "j 3 3"]:
        """Random pose: every joint uniformly and independently within its limits."""
        low, high = _both_sides()
        angles = {joint: rng.uniform(low[joint], high[joint]) for joint in low}
        local = {joint: Rotation.from_euler("xyz", angle, degrees=True) for joint, angle in angles.items()}
        for side, axis in zip("LR", self.elbow_axes, strict=True):
            local[f"lowerarm01.{side}"] = Rotation.from_rotvec(axis * rng.uniform(*ELBOW), degrees=True)
        local["root"] = draw_heading(rng)
        return rotate_joints(self.joints, local)

    def sample_clip(self, clip: str, rng: np.random.Generator) -> Float[np.ndarray, "j 3 3"]:
        """Random pose of a clip: uniform time and uniform heading."""
        return self.at(clip, rng.uniform(0, self.length - 1), draw_heading(rng))

    @property
    def length(self) -> int:
        """Number of frames of each clip."""
        return self.clip_rotations.shape[1]

    def at(self, clip: str, time: float, heading: Rotation | None = None) -> Float[np.ndarray, "j 3 3"]:
        """Pose of a clip at a time (frames, 0 to `length` - 1), linear between frames; `heading` turns the root."""
        frames = self.clip_rotations[self._clip_index(clip)]
        before = min(int(time), len(frames) - 2)
        share = time - before
        # Quaternions of neighboring frames are close and have equal signs: linear interpolation is accurate.
        blended = (1 - share) * frames[before] + share * frames[before + 1]
        local = dict(zip(self.clip_joints, Rotation.from_quat(blended), strict=True))
        if heading is not None:
            local["root"] = heading * local["root"]
        return rotate_joints(self.joints, local)

    def _clip_index(self, clip: str) -> int:
        if clip not in self.clips:
            raise ValueError(f"pose library: no motion clip {clip!r}. Available clips: {', '.join(self.clips)}.")
        return self.clips.index(clip)


class PosedBody(NamedTuple):
    """Body in a pose: vertices (meters) and rotations of the joints."""

    vertices: Float[np.ndarray, "v 3"]
    rotations: Float[np.ndarray, "j 3 3"]


def sample_pose(
    body: Body,
    skin: Callable[[Float[np.ndarray, "j 3 3"]], Float[np.ndarray, "v 3"]],
    sample: Callable[[np.random.Generator], Float[np.ndarray, "j 3 3"]],
    rng: np.random.Generator,
) -> PosedBody:
    """First sampled pose with at most `MAX_PENETRATION`, of the person whom `skin` poses.

    If none of `MAX_TRIES` poses qualifies (a wide body in a narrow motion), the one with the least penetration.
    """
    best, least = PosedBody(np.empty((0, 3), dtype=np.float32), np.empty((0, 3, 3))), np.inf
    for _ in range(MAX_TRIES):
        rotations = sample(rng)
        vertices = skin(rotations)
        share = self_penetration(vertices, body.faces)
        if share < least:
            best, least = PosedBody(vertices, rotations), share
        if least <= MAX_PENETRATION:
            break
    return best


def rotate_joints(joints: tuple[str, ...], local: dict[str, Rotation]) -> Float[np.ndarray, "j 3 3"]:
    """Rotations of all joints from those of some; the others keep the rest pose."""
    rotations = np.tile(np.eye(3), (len(joints), 1, 1))
    for joint, rotation in local.items():
        rotations[joints.index(joint)] = rotation.as_matrix()
    return rotations


def interpolate_pose(
    a: Float[np.ndarray, "j 3 3"], b: Float[np.ndarray, "j 3 3"], share: float
) -> Float[np.ndarray, "j 3 3"]:
    """Pose between a (0) and b (1): spherical linear interpolation of each joint (slerp, Shoemake 1985)."""
    start, difference = Rotation.from_matrix(a), Rotation.from_matrix(np.swapaxes(a, 1, 2) @ b).as_rotvec()
    return np.asarray((start * Rotation.from_rotvec(share * difference)).as_matrix())


def self_penetration(vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]) -> float:
    """Share of the area of a closed surface that is inside the body.

    A ray starts slightly above each vertex, along its normal: its origin is inside if it hits the first surface from
    behind. The winding number gives the same in twice the time, and slightly more where several layers nest.
    """
    cross = area_vectors(vertices.astype(np.float64), faces)
    normal, share = vertex_normals(vertices, faces), np.zeros(len(vertices))
    for corner in range(3):
        np.add.at(share, faces[:, corner], np.linalg.norm(cross, axis=1))
    _, face = Raycaster(vertices, faces).first_hit(vertices + 1e-4 * normal, normal)
    inside = (face >= 0) & (np.einsum("vd,vd->v", cross[face], normal) > 0)
    return float(share[inside].sum() / share.sum())


def _both_sides() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Lower and upper limits of every joint; the right side mirrors the left."""
    low = {joint: np.array(limits)[:, 0] for joint, limits in LIMITS.items()}
    high = {joint: np.array(limits)[:, 1] for joint, limits in LIMITS.items()}
    for joint in [joint for joint in LIMITS if joint.endswith(".L")]:
        mirror, right = np.array([1, -1, -1]), joint.replace(".L", ".R")
        low[right], high[right] = np.sort([mirror * low[joint], mirror * high[joint]], axis=0)
    return low, high


def _elbow_axis(heads: dict[str, np.ndarray], side: str) -> np.ndarray:
    """Unit axis about which a positive angle bends the elbow: cross(upper arm, forearm) at rest."""
    shoulder, elbow, wrist = (heads[f"{joint}.{side}"] for joint in ("upperarm01", "lowerarm01", "wrist"))
    axis = np.cross(elbow - shoulder, wrist - elbow)
    return np.asarray(axis / np.linalg.norm(axis))


def draw_heading(rng: np.random.Generator) -> Rotation:
    """Rotation about the vertical, uniform within `MAX_HEADING` to either side."""
    return Rotation.from_rotvec([0.0, rng.uniform(-MAX_HEADING, MAX_HEADING), 0.0], degrees=True)
