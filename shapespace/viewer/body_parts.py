"""Bodies with parts in the viewer: the posed template as a fast mesh, colors by part, and joints that can be turned."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy.spatial.transform import Rotation
from torch import Tensor
from trimesh import Trimesh

from shapespace.fitting.result import Fit
from shapespace.fitting.surface import posed_mesh
from shapespace.geometry import articulation
from shapespace.geometry.articulation import PartPoses, PartTree
from shapespace.io.errors import did_you_mean
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.code import Code
from shapespace.nn.part_mlp import PartStates
from shapespace.rendering import colors
from shapespace.viewer.request import JointTurn

SIDES = (("left", "L"), ("right", "R"))
LIMB_JOINTS = {
    "shoulder": ("upperarm01", "finger3-2"),
    "elbow": ("lowerarm01", "finger3-2"),
    "wrist": ("wrist", "finger3-2"),
    "hip": ("upperleg01", "toe2-2"),
    "knee": ("lowerleg01", "toe2-2"),
    "ankle": ("foot", "toe2-2"),
}
FEET = ("toe2-2.L", "toe2-2.R")
MAIN_JOINTS: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "neck": ("neck01", (("eye.L", "eye.R"),)),
    "spine": ("spine03", (("eye.L", "finger3-2.L", "finger3-2.R"), FEET)),
    **{
        f"{side} {name}": (f"{joint}.{suffix}", ((f"{end}.{suffix}",),))
        for name, (joint, end) in LIMB_JOINTS.items()
        for side, suffix in SIDES
    },
}
"""Joints by the names of the page: the joint of the synthetic body, and groups of its joints that hang on it.

All joints of one of the groups hang on the part that turns.
"""


class Hinge(NamedTuple):
    """A part that turns about its joint with its parent; or, if it `rests`, all that does not hang on it turns."""

    part: int
    rests: bool = False


class BodyParts:
    """The parts of the bodies of a model with a template."""

    def __init__(self, model: ArticulatedSDF) -> None:
        self._model = model

    @cached_property
    def joints(self) -> dict[str, Hinge]:
        """Joints that can be turned, by name.

        They are `MAIN_JOINTS` where the template is that of the synthetic body, and otherwise all joints of the tree.
        """
        if not self._model.template.joint_names:
            return {f"part {part}": Hinge(part) for part in self._model.part_tree().order[1:].tolist()}
        return main_joints(self._model)

    @cached_property
    def colors(self) -> UInt8[np.ndarray, "k 3"]:
        """Color of each part."""
        return colors.part_colors(self._model.template.center.cpu().numpy())

    def template_mesh(self, shape: Fit) -> Trimesh:
        """The template in the pose and shape of a body, in meters at the position of its scan."""
        return posed_mesh(self._model, shape)

    def color(self, mesh: Trimesh, shape: Fit, *, is_template: bool) -> Trimesh:
        """Copy of a mesh of the body, colored by part: by the labels of the template, or by the nearest parts."""
        if is_template:
            labels = self._model.template.labels
        else:
            x = shape.frame.to_model(torch.from_numpy(np.array(mesh.vertices)).float())
            with torch.no_grad():
                center = self._model.states(shape.code).center
                labels = self._model.nearest_parts(x[None].to(center), center)[0, :, 0]
        return colors.color_by_part(mesh, labels.cpu().numpy(), self.colors)

    def turn(self, shape: Fit, turns: Sequence[JointTurn]) -> Fit:
        """The body with turned joints; all that hangs on a joint turns with it. The order of the turns has no effect.

        Raises `ValueError` for an unknown joint.
        """
        with torch.no_grad():
            vector, center, rotation, local_code = self._model.expand(shape.code).parts
        poses, tree = PartPoses(center.cpu(), rotation.cpu()), self._model.part_tree()
        for turn in turns:
            if turn.joint not in self.joints:
                raise ValueError(f"there is no joint {turn.joint!r}. {did_you_mean(turn.joint, list(self.joints))}")
            matrix = torch.from_numpy(Rotation.from_euler("xyz", turn.degrees, degrees=True).as_matrix()).float()
            hinge = self.joints[turn.joint]
            turned = turn_others if hinge.rests else articulation.turn_joint
            poses = turned(tree, poses, hinge.part, matrix)
        code = Code((vector, poses.center.to(center), poses.rotation.to(rotation), local_code))
        return replace(shape, code=code, residuals=np.empty(0), covariance=None, part_covariance=None)


def turn_others(tree: PartTree, poses: PartPoses, part: int, rotation: Float[Tensor, "3 3"]) -> PartPoses:
    """Turn all that does not hang on a part about its joint with its parent; the axes are those of the part's frame."""
    rests, own = tree.descendants(part), poses.rotation[..., part, :, :]
    world = (own @ rotation @ own.mT)[..., None, :, :]
    joint = articulation.joint_positions(tree, poses)[..., part, None, :]
    center = joint + (world @ (poses.center - joint)[..., None])[..., 0]
    return PartPoses(
        torch.where(rests[:, None], poses.center, center),
        torch.where(rests[:, None, None], poses.rotation, world @ poses.rotation),
    )


def main_joints(model: ArticulatedSDF) -> dict[str, Hinge]:
    """`MAIN_JOINTS`, each with the part whose joint is nearest at rest among those that carry what hangs on it.

    Where parts are so few that two names have one part, the nearer name stays. The legs rest.
    """
    template, tree = model.template, model.part_tree()
    center = template.center.cpu()
    rest = PartPoses(center, torch.eye(3).expand(len(center), 3, 3))
    places = articulation.joint_positions(tree, rest)
    states = PartStates(rest.center[None], rest.rotation[None], torch.zeros(1, len(center), 0))
    heads = dict(zip(template.joint_names, template.joint_skin.cpu().pose(states)[0], strict=True))
    own = dict(zip(template.joint_names, template.joint_parts[:, 0].tolist(), strict=True))
    carried = {part: tree.descendants(part) for part in tree.order[1:].tolist()}
    chosen: dict[int, tuple[float, str]] = {}
    for name, (joint, groups) in MAIN_JOINTS.items():
        parts = [
            part
            for part, mask in carried.items()
            if any(all(bool(mask[own[end]]) for end in group) for group in groups)
        ]
        if parts:
            away, part = min((float((places[part] - heads[joint]).norm()), part) for part in parts)
            if part not in chosen or away < chosen[part][0]:
                chosen[part] = away, name
    legs = [own[end] for end in FEET]
    hinges = {name: Hinge(part, bool(carried[part][legs].all())) for part, (_, name) in chosen.items()}
    return {name: hinges[name] for name in MAIN_JOINTS if name in hinges}
