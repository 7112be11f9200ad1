"""Human body model: shape space, skinning and body parts; meters, y up, facing +z, +x to the body's left.

Made by `tools/freeze_body.py`; sources and licenses are in `datasets/assets/LICENSES.md`.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from shapespace.geometry.raycast import Raycaster

TRUNCATION = 2.5
"""Limit of sampled shape coefficients, in standard deviations."""

FACE_DEPTH = 0.04
"""Meters from the joint of the head to the face (forward)."""

_PARTS = {"hands": ("wrist", "metacarpal", "finger"), "feet": ("foot", "toe")}
"""Prefixes of the joint names of the parts that are scored separately."""


@dataclass(frozen=True)
class Body:
    """Skinned body whose shape is a linear combination of principal components.

    `mean` and `components` hold the vertices in the rest pose, followed by the heads of the joints. Each component is
    scaled by its standard deviation, so that coefficients are standard normal. Parents come before their children.
    """

    mean: Float[np.ndarray, "n 3"]
    components: Float[np.ndarray, "k n 3"]
    faces: Int[np.ndarray, "f 3"]
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    weight_joint: Int[np.ndarray, "v 4"]
    weight: Float[np.ndarray, "v 4"]

    @classmethod
    @cache
    def load(cls) -> "Body":
        """Read the body of the package's assets."""
        stored = read_asset("body.npz")
        weight = stored["weight"].astype(np.float64)
        return cls(
            mean=stored["mean"].astype(np.float64),
            components=stored["components"].astype(np.float64),
            faces=stored["faces"].astype(np.int32),
            joints=tuple(str(name) for name in stored["joints"]),
            parents=tuple(int(parent) for parent in stored["parents"]),
            weight_joint=stored["weight_joint"].astype(np.int64),
            weight=weight / weight.sum(axis=1, keepdims=True),
        )

    def sample_shape(self, rng: np.random.Generator) -> Float[np.ndarray, "k"]:
        """Random coefficients of an adult: standard normal, truncated at `TRUNCATION`."""
        coefficients = rng.standard_normal(len(self.components))
        while (outside := np.abs(coefficients) > TRUNCATION).any():
            coefficients[outside] = rng.standard_normal(int(outside.sum()))
        return coefficients

    def rest_pose(
        self, coefficients: Float[np.ndarray, "k"]
    ) -> tuple[Float[np.ndarray, "v 3"], Float[np.ndarray, "j 3"]]:
        """Vertices and joint heads in the rest pose (arms and legs slightly spread)."""
        combined = self.mean + np.einsum("k,knd->nd", coefficients, self.components)
        return combined[: -len(self.joints)], combined[-len(self.joints) :]

    def skin(
        self,
        coefficients: Float[np.ndarray, "k"],
        rotations: Float[np.ndarray, "j 3 3"],
        offsets: Float[np.ndarray, "v 3"] | None = None,
    ) -> Float[np.ndarray, "v 3"]:
        """Vertices (float32) by linear blend skinning: the lowest at y = 0, the root at x = z = 0.

        The rotation of each joint is relative to its parent, about the world axes at rest; identities: rest pose.
        `offsets` displace the vertices at rest (hair, clothes).
        """
        vertices, heads = self.rest_pose(coefficients)
        vertices = vertices if offsets is None else vertices + offsets
        global_rotations, positions = self.forward(heads, rotations)
        # Joint j moves a vertex v to R_j (v - head_j) + position_j = R_j v + offset_j.
        offset = positions - np.einsum("jab,jb->ja", global_rotations, heads)
        affine = np.concatenate([global_rotations, offset[:, :, None]], axis=2)
        blended = np.einsum("vk,vkab->vab", self.weight, affine[self.weight_joint])
        posed = np.einsum("vab,vb->va", blended[:, :, :3], vertices) + blended[:, :, 3]
        floor = np.array([positions[0, 0], posed[:, 1].min(), positions[0, 2]])
        return np.asarray(posed - floor, dtype=np.float32)

    def parts(self) -> dict[str, Bool[np.ndarray, "v"]]:
        """Vertex masks of the hands, the feet (with toes) and the rest, by the joint of the largest skinning weight."""
        main = self.weight_joint[np.arange(len(self.weight)), self.weight.argmax(axis=1)]
        masks = {
            part: np.array([joint.startswith(names) for joint in self.joints])[main] for part, names in _PARTS.items()
        }
        return {**masks, "rest": ~np.logical_or.reduce(list(masks.values()))}

    def face(self) -> Bool[np.ndarray, "v"]:
        """Mask of the face: the head in front of its joint, as far as it is seen from the front, left or right.

        It leaves out the inside of the mouth. Its vertices count as rest, too.
        """
        main = self.weight_joint[np.arange(len(self.weight)), self.weight.argmax(axis=1)]
        is_head = np.array([joint.startswith(("head", "eye")) for joint in self.joints])[main]
        rest, joint = self.mean[: -len(self.joints)], self.mean[-len(self.joints) :][self.joints.index("head")]
        front = np.flatnonzero(is_head & (rest[:, 2] > joint[2] + FACE_DEPTH))
        raycaster, seen = Raycaster(rest, self.faces), np.zeros(len(rest), dtype=np.bool_)
        for view in ((0.0, 0.0, 1.0), (0.7, 0.0, 0.7), (-0.7, 0.0, 0.7)):
            towards = np.tile(np.array(view) / np.linalg.norm(view), (len(front), 1))
            _, face = raycaster.first_hit(rest[front] + 1e-4 * towards, towards)
            seen[front[face < 0]] = True
        return seen

    def forward(
        self, heads: Float[np.ndarray, "j 3"], rotations: Float[np.ndarray, "j 3 3"]
    ) -> tuple[Float[np.ndarray, "j 3 3"], Float[np.ndarray, "j 3"]]:
        """Forward kinematics: global rotation of each joint, and position of its head."""
        global_rotations, positions = np.array(rotations, dtype=np.float64), np.array(heads, dtype=np.float64)
        for joint, parent in enumerate(self.parents):
            if parent >= 0:
                global_rotations[joint] = global_rotations[parent] @ rotations[joint]
                positions[joint] = positions[parent] + global_rotations[parent] @ (heads[joint] - heads[parent])
        return global_rotations, positions


def read_asset(name: str) -> Any:
    """Arrays of an NPZ file of the package's assets."""
    with (files("shapespace.datasets") / "assets" / name).open("rb") as stream, np.load(stream) as arrays:
        return dict(arrays)
