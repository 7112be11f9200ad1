"""Corrections of a code by PointNets in the frames of the parts."""

import torch
from torch import Tensor

from shapespace.geometry.articulation import rotation_matrices
from shapespace.nn.hypernetwork import PartHypernetwork
from shapespace.nn.part_mlp import PartStates
from shapespace.nn.part_pointnet import BEND, LAYER_1, LAYER_2, MIXED, NEIGHBORS, PartCorrections, PartPointNet

CODE, PARTS = 6, 5


def trained_net() -> PartPointNet:
    net = PartPointNet(code_dim=CODE, num_parts=PARTS)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.3)
    return net


def corrections(count: int = 1) -> PartCorrections:
    return PartCorrections(code_dim=CODE, num_parts=PARTS, count=count, num_points=40)


def bodies(count: int) -> tuple[Tensor, Tensor, PartStates, Tensor]:
    """Points, codes, states and radii."""
    rotation = rotation_matrices(torch.randn(count, PARTS, 3))
    states = PartStates(torch.randn(count, PARTS, 3), rotation, torch.randn(count, PARTS, 2))
    return torch.randn(count, 40, 3), torch.randn(count, CODE), states, 0.2 + torch.rand(PARTS)


def test_a_correction_is_that_of_loops_over_bodies_and_parts() -> None:
    torch.manual_seed(0)
    net, projection = trained_net(), 0.1 * torch.randn(PARTS * 9, CODE)
    points, code, states, radius = bodies(3)
    for body in range(3):
        features = torch.zeros(PARTS, LAYER_2)
        for part in range(PARTS):
            center, rotation = states.center[body, part], states.rotation[body, part]
            order = (points[body] - center).norm(dim=1).argsort()[:NEIGHBORS]
            local = torch.stack([rotation.T @ (p - center) / radius[part] for p in points[body, order]])
            local = local / (1 + BEND * local.norm(dim=1, keepdim=True))
            hidden = (local @ net.first[part] + net.first_bias[part]).relu()
            features[part] = (hidden @ net.second[part] + net.second_bias[part]).amax(dim=0)
        mixed = net.body(torch.cat([features.flatten(), code[body]])).relu()
        assert mixed.shape == (MIXED,)
        change = torch.zeros(PARTS, 9)
        for part in range(PARTS):
            rotation = states.rotation[body, part]
            motion = torch.cat([features[part], mixed]) @ net.motion[part] + net.motion_bias[part, 0]
            change[part, :3] = radius[part] * rotation @ motion[:3]
            turn = rotation @ motion[3:]
            change[part, 3:6] = 0.125 * torch.linalg.cross(turn, rotation[:, 0])
            change[part, 6:] = 0.125 * torch.linalg.cross(turn, rotation[:, 1])
        expected = code[body] + change.flatten() @ projection + net.direct(mixed)
        torch.testing.assert_close(net(points, code, states, radius, projection)[body], expected, atol=1e-5, rtol=1e-5)
    assert net.first.shape[-1] == LAYER_1


def test_the_code_stays_as_long_as_nothing_was_learned() -> None:
    torch.manual_seed(0)
    points, code, _, radius = bodies(2)
    hypernetwork = PartHypernetwork(code_dim=CODE, num_parts=PARTS, local_dim=2)
    nets = corrections(2)
    nets.set_projection(torch.randn(CODE, PARTS * 9), torch.eye(CODE))
    first, second = nets(points, code, hypernetwork, radius)
    assert torch.equal(first, code)
    assert torch.equal(second, code)
    assert corrections(0)(points, code, hypernetwork, radius) == []
    assert not corrections(0).state_dict()  # as files of models without corrections


def test_motions_of_the_components_give_their_codes() -> None:
    """A change of the poses that is exactly one of the code comes back as this change, but for the prior's pull."""
    torch.manual_seed(0)
    hypernetwork = PartHypernetwork(code_dim=CODE, num_parts=PARTS, local_dim=2)
    poses = torch.randn(30, PARTS, 9)
    codes = hypernetwork.initialize(poses)
    nets = corrections()
    nets.set_projection(hypernetwork.weights(), 1e-3 * torch.eye(CODE))
    scale = torch.cat([torch.ones(3), torch.full((6,), 0.125)])
    change = ((hypernetwork.poses(codes[1:2]) - hypernetwork.poses(codes[:1])) * scale).flatten(1)
    torch.testing.assert_close(change @ nets.projection, codes[1:2] - codes[:1], atol=1e-3, rtol=1e-3)
    nets.set_projection(hypernetwork.weights(), 1e9 * torch.eye(CODE))
    assert (change @ nets.projection).abs().max() < 1e-3


def test_other_codes_of_the_same_bodies_are_corrected_alike() -> None:
    torch.manual_seed(0)
    nets = corrections()
    nets.nets[0], nets.projection = trained_net(), 0.1 * torch.randn(PARTS * 9, CODE)
    points, code, states, radius = bodies(4)
    matrix, offset = torch.randn(CODE, CODE), torch.randn(CODE)
    before = nets.nets[0](points, code, states, radius, nets.projection)
    inverse = torch.linalg.inv(matrix)
    nets.replace_codes(matrix, inverse, -offset @ inverse)
    after = nets.nets[0](points, code @ matrix + offset, states, radius, nets.projection)
    torch.testing.assert_close(after, before @ matrix + offset, atol=1e-3, rtol=1e-3)
