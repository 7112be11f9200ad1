"""Poses of synthetic people: joint limits, motion clips, self-penetration."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from shapespace.geometry.raycast import Raycaster
from shapespace.synthetic.body import Body, _asset

HEADING = 20.0
"""Degrees by which a person may stand turned to either side."""


PENETRATION = 0.02
"""Share of the surface that may lie inside the body: `draw_pose` refuses poses above it."""


TRIES = 50
"""Poses that `draw_pose` draws before it takes the one that penetrates least."""


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
"""Joint limits in degrees: about x (positive bends the spine forward and takes a leg or shank back), y (up; positive
turns to the left) and z (positive raises the left arm and spreads the left leg), applied in this order, all about the
world's axes at rest. The right side mirrors y and z."""


ELBOW = (-15.0, 95.0)
"""Limits of the elbow in degrees, about the normal of the arm's plane at rest, where it is bent by some 40 degrees."""


@dataclass(frozen=True)
class PoseLibrary:
    """Poses of a body: within joint limits, or out of motion clips. All are rotations (j, 3, 3) for `Body.pose`."""

    joints: tuple[str, ...]
    elbow_axes: Float[np.ndarray, "2 3"]
    clips: tuple[str, ...]
    clip_joints: tuple[str, ...]
    clip_rotations: Float[np.ndarray, "c t m 4"]

    @classmethod
    def load(cls, body: Body) -> "PoseLibrary":
        """Read the motion clips in the package's assets, for the joints of the body."""
        held = _asset("poses.npz")
        heads = dict(zip(body.joints, body.mean[-len(body.joints) :], strict=True))
        return cls(
            joints=body.joints,
            elbow_axes=np.stack([_elbow_axis(heads, side) for side in "LR"]),
            clips=tuple(str(name) for name in held["clips"]),
            clip_joints=tuple(str(name) for name in held["joints"]),
            clip_rotations=held["rotations"].astype(np.float64),
        )

    def sample_in_limits(self, rng: np.random.Generator) -> Float[np.ndarray, "j 3 3"]:
        """Draw every joint evenly within its limits, each for itself."""
        low, high = _both_sides()
        angles = {joint: rng.uniform(low[joint], high[joint]) for joint in low}
        local = {joint: Rotation.from_euler("xyz", angle, degrees=True) for joint, angle in angles.items()}
        for side, axis in zip("LR", self.elbow_axes, strict=True):
            local[f"lowerarm01.{side}"] = Rotation.from_rotvec(axis * rng.uniform(*ELBOW), degrees=True)
        local["root"] = _heading(rng)
        return self._full(local)

    def sample_clip(self, clip: str, rng: np.random.Generator) -> Float[np.ndarray, "j 3 3"]:
        """Draw a moment of the clip, evenly in time, and a heading."""
        return self.at(clip, rng.uniform(0, self.length - 1), _heading(rng))

    @property
    def length(self) -> int:
        """Frames of each clip."""
        return self.clip_rotations.shape[1]

    def at(self, clip: str, time: float, heading: Rotation | None = None) -> Float[np.ndarray, "j 3 3"]:
        """Pose of the clip at a time in frames, 0 to `length` - 1; between two frames their rotations are blended."""
        frames = self.clip_rotations[self._clip(clip)]
        before = min(int(time), len(frames) - 2)
        share = time - before
        # Quaternions of neighbouring frames have one sign and lie close: the chord is as good as the arc.
        blended = (1 - share) * frames[before] + share * frames[before + 1]
        local = dict(zip(self.clip_joints, Rotation.from_quat(blended), strict=True))
        if heading is not None:
            local["root"] = heading * local["root"]
        return self._full(local)

    def _clip(self, clip: str) -> int:
        if clip not in self.clips:
            raise ValueError(f"there is no motion clip {clip!r} in the pose library. It has: {', '.join(self.clips)}.")
        return self.clips.index(clip)

    def _full(self, local: dict[str, Rotation]) -> Float[np.ndarray, "j 3 3"]:
        rotations = np.tile(np.eye(3), (len(self.joints), 1, 1))
        for joint, rotation in local.items():
            rotations[self.joints.index(joint)] = rotation.as_matrix()
        return rotations


class PosedBody(NamedTuple):
    """A body in a pose: vertices in metres, and the joints' rotations."""

    vertices: Float[np.ndarray, "v 3"]
    rotations: Float[np.ndarray, "j 3 3"]


def sample_pose(
    body: Body,
    coefficients: Float[np.ndarray, "k"],
    draw: Callable[[np.random.Generator], Float[np.ndarray, "j 3 3"]],
    rng: np.random.Generator,
) -> PosedBody:
    """First pose drawn whose penetration is at most `PENETRATION`.

    Where `TRIES` poses do not hold it (a wide body in a narrow motion), the one that penetrates least.
    """
    best, least = PosedBody(np.empty((0, 3), dtype=np.float32), np.empty((0, 3, 3))), np.inf
    for _ in range(TRIES):
        rotations = draw(rng)
        vertices = body.skin(coefficients, rotations)
        share = self_penetration(vertices, body.faces)
        if share < least:
            best, least = PosedBody(vertices, rotations), share
        if least <= PENETRATION:
            break
    return best


def interpolate_pose(
    a: Float[np.ndarray, "j 3 3"], b: Float[np.ndarray, "j 3 3"], share: float
) -> Float[np.ndarray, "j 3 3"]:
    """Pose between two: every joint turns from a to b at an even speed, by the shortest way (Shoemake 1985)."""
    start, way = Rotation.from_matrix(a), Rotation.from_matrix(np.swapaxes(a, 1, 2) @ b).as_rotvec()
    return np.asarray((start * Rotation.from_rotvec(share * way)).as_matrix())


def self_penetration(vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]) -> float:
    """Share of a closed surface's area that lies inside the body.

    A ray starts a little above each vertex, along its normal. If it meets the first surface from behind, it started
    inside. The winding number says the same in twice the time; where layers nest deeper, it finds a little more.
    """
    corners = vertices[faces].astype(np.float64)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(cross, axis=1)
    normal, share = np.zeros(vertices.shape), np.zeros(len(vertices))
    for corner in range(3):
        np.add.at(normal, faces[:, corner], cross)
        np.add.at(share, faces[:, corner], area)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-12)
    _, face = Raycaster(vertices, faces).first_hit(vertices + 1e-4 * normal, normal)
    inside = (face >= 0) & (np.einsum("vd,vd->v", cross[face], normal) > 0)
    return float(share[inside].sum() / share.sum())


def _both_sides() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Lower and upper limits of every joint: the right side is the mirror image of the left."""
    low = {joint: np.array(limits)[:, 0] for joint, limits in LIMITS.items()}
    high = {joint: np.array(limits)[:, 1] for joint, limits in LIMITS.items()}
    for joint in [joint for joint in LIMITS if joint.endswith(".L")]:
        mirror, right = np.array([1, -1, -1]), joint.replace(".L", ".R")
        low[right], high[right] = np.sort([mirror * low[joint], mirror * high[joint]], axis=0)
    return low, high


def _elbow_axis(heads: dict[str, np.ndarray], side: str) -> np.ndarray:
    """Find the unit axis about which a positive angle bends the elbow: cross(upper arm, forearm) at rest."""
    shoulder, elbow, wrist = (heads[f"{joint}.{side}"] for joint in ("upperarm01", "lowerarm01", "wrist"))
    axis = np.cross(elbow - shoulder, wrist - elbow)
    return np.asarray(axis / np.linalg.norm(axis))


def _heading(rng: np.random.Generator) -> Rotation:
    return Rotation.from_rotvec([0.0, rng.uniform(-HEADING, HEADING), 0.0], degrees=True)
