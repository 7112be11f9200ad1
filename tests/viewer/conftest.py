"""Spaces of bodies with parts: a chain of four tubes, and the synthetic body; their fields are untrained."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from shapespace import ShapeSpace
from shapespace.data.registration import PartTemplate, make_template
from shapespace.geometry import articulation
from shapespace.geometry.articulation import PartPoses, RelativePoses
from shapespace.models.articulated import ArticulatedConfig, PartDensity, build_articulated, rest_of
from shapespace.models.template import drawn_joints
from shapespace.nn.hypernetwork import rotation_to_6d
from shapespace.synthetic.body import Body

BODIES = 30
CHAIN_HEIGHTS = np.linspace(-0.8, 0.8, 17)  # of the rings; each part has four of them, the last one five


def untrained(template: PartTemplate, poses: PartPoses) -> ShapeSpace:
    """A space whose codes are those of bodies in these poses."""
    torch.manual_seed(0)
    sizes = ArticulatedConfig(
        code_dim=6, num_parts=template.num_parts, local_dim=3, width=8, depth=2, hyper_width=8, encoder_points=32,
        encoder_width=8, encoder_features=8,
    )  # fmt: skip
    model = build_articulated(sizes).eval()
    model.template.set(template)
    model.template.reach.fill_(1.2)
    model.decoder.radius.copy_(template.radius)
    with torch.no_grad():
        model.summarize(
            model.hypernetwork.initialize(torch.cat([poses.center, rotation_to_6d(poses.rotation)], dim=-1))
        )
    return ShapeSpace(model, sizes, scale=1.25, metadata={"weights": {}})


@pytest.fixture(scope="session")
def chain_space() -> ShapeSpace:
    """Four tubes above each other, which turn about their joints by at most a radian."""
    angles = np.arange(8) * np.pi / 4
    rings = [[0.1 * np.cos(angle), y, 0.1 * np.sin(angle)] for y in CHAIN_HEIGHTS for angle in angles]
    first = np.arange(8 * (len(CHAIN_HEIGHTS) - 1)).reshape(-1, 8)
    a, b, c, d = (
        corner.ravel() for corner in (first, np.roll(first, -1, axis=1), first + 8, np.roll(first, -1, 1) + 8)
    )
    faces = np.concatenate([np.stack([a, c, b], axis=1), np.stack([b, c, d], axis=1)])
    labels = np.arange(len(CHAIN_HEIGHTS)).repeat(8).clip(max=15) // 4
    vertices = torch.tensor(rings, dtype=torch.float32)
    template = PartTemplate(vertices, torch.from_numpy(faces), torch.from_numpy(labels), torch.ones(len(rings)))
    mesh = template.vertices, template.faces, template.labels, template.center
    tree = articulation.part_tree(*(tensor.numpy() for tensor in mesh))
    turns = np.random.default_rng(3).uniform(-0.5, 0.5, size=(BODIES * 4, 3))
    rotation = torch.from_numpy(Rotation.from_rotvec(turns).as_matrix()).float().view(BODIES, 4, 3, 3)
    joint = tree.joint_in_parent * torch.linspace(0.8, 1.2, BODIES)[:, None, None]
    return untrained(template, articulation.compose(tree, RelativePoses(rotation, joint)))


@pytest.fixture(scope="session")
def person_space() -> ShapeSpace:
    """The synthetic body in its poses."""
    body = Body.load()
    mean, faces = torch.from_numpy(body.mean[: -len(body.joints)]).float(), torch.from_numpy(body.faces).long()
    vertices, weight = rest_of(mean, faces, PartDensity(hands=10.0, feet=2.0, head=2.5), 1.25)
    template = make_template(vertices, faces, 60, weight)
    states, _ = drawn_joints(template, BODIES, seed=0)
    return untrained(template, PartPoses(states.center, states.rotation))
