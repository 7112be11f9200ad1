"""Rotations, the principal components of poses, and the Jacobian of the states of all parts."""

import pytest
import torch
from torch import Tensor

from shapespace.nn.hypernetwork import (
    LEARNING_RATE_OF_COMPONENTS,
    ROTATION_WEIGHT,
    PartHypernetwork,
    rotation_from_6d,
    rotation_to_6d,
    rotation_vector_jacobian,
)
from shapespace.nn.mlp_reference import reference_of_parts
from shapespace.nn.part_mlp import PartMLP, PartStates


def network(code_dim: int = 7, num_parts: int = 5) -> PartHypernetwork:
    torch.manual_seed(0)
    net = PartHypernetwork(code_dim=code_dim, num_parts=num_parts, local_dim=4, width=12).double()
    with torch.no_grad():  # away from the initialization, where the MLP's share of the pose is zero
        for part in (net.pose.out.weight, net.pose.out.bias, net.components, net.correction):
            part.normal_(0, 0.2)
    return net


def poses_of(scans: int, num_parts: int = 5, *, rank: int | None = None) -> Tensor:
    """Poses (n, k, 9); of a rank, if given, about their mean."""
    generator = torch.Generator().manual_seed(1)
    center = torch.randn(scans, num_parts, 3, generator=generator, dtype=torch.float64)
    rotation = rotation_from_6d(torch.randn(scans, num_parts, 6, generator=generator, dtype=torch.float64))
    poses = torch.cat([0.4 * center, rotation_to_6d(rotation)], dim=-1)
    if rank is not None:
        mixed = torch.randn(scans, rank, generator=generator, dtype=torch.float64)
        poses = poses[0] + 0.1 * torch.einsum("nr,rkp->nkp", mixed, poses[:rank])
    return poses


def scaled(poses: Tensor) -> Tensor:
    """What the components are the principal ones of."""
    weight = torch.ones(9, dtype=poses.dtype)
    weight[3:] = ROTATION_WEIGHT
    return ((poses - poses.mean(dim=0)) * weight).flatten(1)


def exponential(vector: Tensor) -> Tensor:
    """Rotation about a vector (..., 3) by its length."""
    x, y, z = vector.unbind(dim=-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(cross)


def test_six_numbers_give_a_rotation_and_come_back() -> None:
    rotation = rotation_from_6d(torch.randn(4, 50, 6, dtype=torch.float64))
    identity = torch.eye(3, dtype=torch.float64).expand_as(rotation)
    torch.testing.assert_close(rotation.mT @ rotation, identity, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(4, 50, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(rotation_from_6d(rotation_to_6d(rotation)), rotation, atol=1e-12, rtol=0)


def test_a_rotation_has_its_first_column_along_the_first_three_numbers() -> None:
    d6 = torch.randn(50, 6, dtype=torch.float64)
    rotation = rotation_from_6d(d6)
    torch.testing.assert_close(rotation[:, :, 0] * d6[:, :3].norm(dim=1, keepdim=True), d6[:, :3], atol=1e-12, rtol=0)
    assert ((rotation[:, :, 1] * d6[:, 3:]).sum(dim=1) > 0).all()
    torch.testing.assert_close((rotation[:, :, 2] * d6[:, 3:]).sum(dim=1), torch.zeros(50).double(), atol=1e-12, rtol=0)


def test_the_rotation_vector_follows_the_six_numbers() -> None:
    """A small change of the numbers turns the rotation by the vector that the Jacobian gives, to second order."""
    d6, change = torch.randn(2, 50, 6, dtype=torch.float64).unbind()
    jacobian, before = rotation_vector_jacobian(d6), rotation_from_6d(d6)
    errors = []
    for step in (1e-3, 1e-4):
        predicted = exponential((jacobian @ (step * change)[:, :, None])[:, :, 0]) @ before
        errors.append((rotation_from_6d(d6 + step * change) - predicted).flatten(1).norm(dim=1))
    assert (errors[1] < 0.02 * errors[0] + 1e-12).all()


def test_the_jacobian_equals_autograd() -> None:
    net, code = network(), torch.randn(3, 7, dtype=torch.float64)
    found = net.jacobian(code)
    assert found.shape == (3, 5, 10, 7)

    def numbers(code: Tensor) -> Tensor:
        center, rotation, local = net(code[None])
        return torch.cat([center, rotation.flatten(2), local], dim=-1)[0]

    for row in range(3):
        exact = torch.autograd.functional.jacobian(numbers, code[row])
        torch.testing.assert_close(found[row, :, :3], exact[:, :3], atol=1e-12, rtol=0)
        torch.testing.assert_close(found[row, :, 6:], exact[:, 12:], atol=1e-12, rtol=0)
        # dR = [w]x R: the vector is half of the antisymmetric part of dR R^T
        spin = exact[:, 3:12].unflatten(1, (3, 3)).movedim(-1, 1) @ net(code).rotation[row][:, None].mT
        vector = torch.stack([spin[..., 2, 1], spin[..., 0, 2], spin[..., 1, 0]], dim=2).detach()
        torch.testing.assert_close(found[row, :, 3:6].mT, vector, atol=1e-12, rtol=0)


def test_the_field_follows_the_code_as_both_jacobians_say() -> None:
    """Sum over the blended parts of the Jacobian in a part's state times that of the state in the code."""
    hyper = network(num_parts=6)
    net = PartMLP(num_parts=6, local_dim=4, width=8, depth=2).double()
    net.shift.data.normal_()
    net.radius.uniform_(0.3, 0.6)
    code, x = torch.randn(1, 7, dtype=torch.float64), 0.5 * torch.randn(1, 9, 3, dtype=torch.float64)
    found, by_code = net.linearize(x, hyper(code)), hyper.jacobian(code)
    mine = torch.einsum("qnp,qnpz->qz", found.jacobian[0], by_code[0][found.part[0]])
    exact = torch.autograd.functional.jacobian(lambda z: reference_of_parts(net)(x, hyper(z))[0], code)[:, 0]
    torch.testing.assert_close(mine, exact, atol=1e-9, rtol=0)


def test_codes_of_enough_components_give_the_poses_back() -> None:
    for poses, code_dim in ((poses_of(12), 20), (poses_of(40, rank=6), 6)):
        net = PartHypernetwork(code_dim=code_dim, num_parts=5, local_dim=4, width=12)
        codes = net.initialize(poses.float())
        center, rotation, local = net(codes)
        torch.testing.assert_close(center, poses[..., :3].float(), atol=1e-4, rtol=0)
        torch.testing.assert_close(rotation, rotation_from_6d(poses[..., 3:]).float(), atol=1e-4, rtol=0)
        assert local.shape == (len(poses), 5, 4)


def test_fewer_components_give_the_best_approximation() -> None:
    """No linear map from codes of this size is nearer to the weighted poses (Eckart and Young)."""
    poses = poses_of(30)
    net = PartHypernetwork(code_dim=8, num_parts=5, local_dim=4, width=12).double()
    codes = net.initialize(poses)
    singular = torch.linalg.svdvals(scaled(poses))
    error = scaled(poses) - scaled(net.poses(codes))
    torch.testing.assert_close(error.square().sum(), singular[8:].square().sum())
    torch.testing.assert_close(codes.mean(dim=0), torch.zeros(8, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_number_of_a_code_varies_with_its_component() -> None:
    """By the standard deviation of the component over that of the first; unused numbers are zero."""
    poses = poses_of(40, rank=6)
    net = PartHypernetwork(code_dim=10, num_parts=5, local_dim=4, width=12).double()
    codes = net.initialize(poses)
    singular = torch.linalg.svdvals(scaled(poses))[:6]
    torch.testing.assert_close(codes[:, :6].square().mean(dim=0), singular / singular[0], atol=1e-6, rtol=1e-6)
    assert not codes[:, 6:].any()
    assert not net.components[6:].any()


def test_the_zero_code_has_the_mean_pose() -> None:
    poses = poses_of(12)
    net = PartHypernetwork(code_dim=4, num_parts=5, local_dim=3, width=12).double()
    identity = net(torch.zeros(1, 4, dtype=torch.float64)).rotation[0]
    torch.testing.assert_close(identity, torch.eye(3, dtype=torch.float64).expand(5, 3, 3), atol=1e-12, rtol=0)
    net.initialize(poses)
    torch.testing.assert_close(net.poses(torch.zeros(1, 4, dtype=torch.float64))[0], poses.mean(dim=0))


def test_components_learn_more_slowly_than_the_mlp() -> None:
    net, code = network(), torch.randn(3, 7, dtype=torch.float64)
    net.poses(code).square().sum().backward()
    by_weights = torch.autograd.functional.jacobian(
        lambda weights: (net.mean + (code @ weights).view(3, 5, 9) + net.pose(code).view(3, 5, 9)).square().sum(),
        net.weights().detach(),
    )
    torch.testing.assert_close(net.correction.grad, LEARNING_RATE_OF_COMPONENTS * by_weights)
    assert not any(name == "components" for name, _ in net.named_parameters())


def test_states_of_chosen_bodies() -> None:
    states = network()(torch.randn(4, 7, dtype=torch.float64))
    for rows in (slice(1, 3), torch.tensor([2, 0])):
        for chosen in (states[rows], states.select(rows)):
            assert isinstance(chosen, PartStates)
            for one, whole in zip(chosen, states, strict=True):
                assert torch.equal(one, whole[rows])


@pytest.mark.parametrize("bodies", [0, 1, 3])
def test_any_number_of_bodies(bodies: int) -> None:
    net, code = network(), torch.randn(bodies, 7, dtype=torch.float64)
    assert net(code).rotation.shape == (bodies, 5, 3, 3)
    assert net.jacobian(code).shape == (bodies, 5, 10, 7)
