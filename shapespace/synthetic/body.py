"""The frozen human body: shapes, poses, skinning. `tools/freeze_body.py` made it, and says from what.

Metres, y up, face towards +z, +x the body's left.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

TRUNCATION = 2.5
"""Standard deviations within which shapes are drawn."""


_PARTS = {"hands": ("wrist", "metacarpal", "finger"), "feet": ("foot", "toe")}
"""Joints of the parts that are scored apart, by how their names begin."""


@dataclass(frozen=True)
class Body:
    """A skinned body whose shape is a linear combination of principal components.

    `mean` and `components` hold the rest vertices and, behind them, the heads of the joints. Each component is scaled
    by its standard deviation, so that coefficients are standard normal. Parents stand before their children.
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
        """Read the body in the package's assets."""
        held = _asset("body.npz")
        weight = held["weight"].astype(np.float64)
        return cls(
            mean=held["mean"].astype(np.float64),
            components=held["components"].astype(np.float64),
            faces=held["faces"].astype(np.int32),
            joints=tuple(str(name) for name in held["joints"]),
            parents=tuple(int(parent) for parent in held["parents"]),
            weight_joint=held["weight_joint"].astype(np.int64),
            weight=weight / weight.sum(axis=1, keepdims=True),
        )

    def sample_shape(self, rng: np.random.Generator) -> Float[np.ndarray, "k"]:
        """Coefficients of a random adult: standard normal, each within `TRUNCATION`."""
        drawn = rng.standard_normal(len(self.components))
        while (outside := np.abs(drawn) > TRUNCATION).any():
            drawn[outside] = rng.standard_normal(int(outside.sum()))
        return drawn

    def rest_pose(
        self, coefficients: Float[np.ndarray, "k"]
    ) -> tuple[Float[np.ndarray, "v 3"], Float[np.ndarray, "j 3"]]:
        """Vertices and joint heads in the rest pose (arms and legs slightly spread)."""
        everything = self.mean + np.einsum("k,knd->nd", coefficients, self.components)
        return everything[: -len(self.joints)], everything[-len(self.joints) :]

    def skin(
        self, coefficients: Float[np.ndarray, "k"], rotations: Float[np.ndarray, "j 3 3"]
    ) -> Float[np.ndarray, "v 3"]:
        """Vertices (float32) by linear blend skinning: the lowest stands on y = 0, the root above x = z = 0.

        Each joint's rotation is relative to its parent, about the world's axes at rest; identities are the rest pose.
        """
        vertices, heads = self.rest_pose(coefficients)
        turned, moved = self.forward(heads, rotations)
        # A vertex v that follows joint j goes to turned_j (v - head_j) + moved_j = turned_j v + offset_j.
        offset = moved - np.einsum("jab,jb->ja", turned, heads)
        affine = np.concatenate([turned, offset[:, :, None]], axis=2)
        blended = np.einsum("vk,vkab->vab", self.weight, affine[self.weight_joint])
        posed = np.einsum("vab,vb->va", blended[:, :, :3], vertices) + blended[:, :, 3]
        floor = np.array([moved[0, 0], posed[:, 1].min(), moved[0, 2]])
        return np.asarray(posed - floor, dtype=np.float32)

    def parts(self) -> dict[str, Bool[np.ndarray, "v"]]:
        """Vertices of the hands, of the feet (toes included), and the rest: by the joint that moves each one most."""
        main = self.weight_joint[np.arange(len(self.weight)), self.weight.argmax(axis=1)]
        of = {
            part: np.array([joint.startswith(heads) for joint in self.joints])[main] for part, heads in _PARTS.items()
        }
        return {**of, "rest": ~np.logical_or.reduce(list(of.values()))}

    def forward(
        self, heads: Float[np.ndarray, "j 3"], rotations: Float[np.ndarray, "j 3 3"]
    ) -> tuple[Float[np.ndarray, "j 3 3"], Float[np.ndarray, "j 3"]]:
        """Forward kinematics: rotation of each joint in the world, and the place of its head."""
        turned, moved = np.array(rotations, dtype=np.float64), np.array(heads, dtype=np.float64)
        for joint, parent in enumerate(self.parents):
            if parent >= 0:
                turned[joint] = turned[parent] @ rotations[joint]
                moved[joint] = moved[parent] + turned[parent] @ (heads[joint] - heads[parent])
        return turned, moved


def _asset(name: str) -> Any:
    with (files("shapespace.datasets") / "assets" / name).open("rb") as stream, np.load(stream) as held:
        return dict(held)
