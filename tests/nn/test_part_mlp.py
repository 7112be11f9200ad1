"""The networks of the parts against their reference by autograd, and against fields that are known."""

import math

import pytest
import torch
from torch import Tensor

from shapespace.nn import part_layers, part_mlp
from shapespace.nn.hypernetwork import rotation_from_6d
from shapespace.nn.mlp_reference import reference_of_parts
from shapespace.nn.part_layers import softplus, softplus_and_complement
from shapespace.nn.part_mlp import BLEND_SHARPNESS, NEAREST, PartMLP, PartStates, nearest_parts

SIZES = [(9, 3), (9, 1), (3, 2), (1, 4)]  # parts, hidden layers; fewer than four parts are all blended


def network(num_parts: int = 9, depth: int = 3, *, width: int = 16, beta: float = 30.0) -> PartMLP:
    torch.manual_seed(0)
    net = PartMLP(num_parts=num_parts, local_dim=5, width=width, depth=depth, beta=beta).double()
    for parameter in net.parameters():  # away from the initialization, where half of the terms vanish
        parameter.data += 0.1 * torch.randn_like(parameter)
    net.radius.uniform_(0.3, 0.6)
    return net


def inputs(num_parts: int = 9, *, bodies: int = 2, points: int = 11) -> tuple[Tensor, PartStates]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rotation = rotation_from_6d(normal(bodies, num_parts, 6))
    states = PartStates(0.4 * normal(bodies, num_parts, 3), rotation, normal(bodies, num_parts, 5))
    return 0.5 * normal(bodies, points, 3), states


def turned(states: PartStates, vector: Tensor) -> PartStates:
    """Parts turned about their centers by rotation vectors (b, k, 3)."""
    x, y, z = vector.unbind(dim=-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    return states._replace(rotation=torch.linalg.matrix_exp(cross) @ states.rotation)


def loss_of(value: Tensor, gradient: Tensor) -> Tensor:
    return value.abs().mean() + (gradient.norm(dim=-1) - 1).square().mean() + (gradient[..., 0] - 0.3).abs().mean()


@pytest.mark.parametrize(("num_parts", "depth"), SIZES)
def test_value_and_gradient_equal_the_reference(num_parts: int, depth: int) -> None:
    net, (x, states) = network(num_parts, depth), inputs(num_parts)
    expected, slope = reference_of_parts(net).value_and_gradient(x, states)
    value, gradient = net.value_and_gradient(x, states)
    torch.testing.assert_close(value, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(gradient, slope, atol=1e-9, rtol=0)
    torch.testing.assert_close(net(x, states), expected, atol=1e-10, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(net(x, states), expected.detach(), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("num_parts", "depth"), SIZES)
def test_gradients_of_a_training_loss_equal_double_backward(num_parts: int, depth: int) -> None:
    """In weights, places and states, of a loss that contains value and gradient."""
    net, (x, states) = network(num_parts, depth), inputs(num_parts)
    learned = [*net.parameters(), x.requires_grad_(), *(part.requires_grad_() for part in states)]
    loss = loss_of(*reference_of_parts(net).value_and_gradient(x, states))
    expected = torch.autograd.grad(loss, learned, materialize_grads=True)
    found = torch.autograd.grad(loss_of(*net.value_and_gradient(x, states)), learned)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize(("num_parts", "depth"), SIZES)
def test_gradients_of_the_value_alone_equal_autograd(num_parts: int, depth: int) -> None:
    net, (x, states) = network(num_parts, depth), inputs(num_parts)
    learned = [*net.parameters(), x.requires_grad_(), *(part.requires_grad_() for part in states)]
    loss = reference_of_parts(net)(x, states).square().mean()
    expected = torch.autograd.grad(loss, learned, materialize_grads=True)
    found = torch.autograd.grad(net(x, states).square().mean(), learned)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)


def test_frozen_weights_leave_the_gradients_of_the_states() -> None:
    net, (x, states) = network(), inputs()
    inside = [x.requires_grad_(), *(part.requires_grad_() for part in states)]
    expected = torch.autograd.grad(loss_of(*net.value_and_gradient(x, states)), inside)
    found = torch.autograd.grad(loss_of(*net.requires_grad_(False).value_and_gradient(x, states)), inside)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_detached_poses_have_no_gradient_and_the_local_codes_have_theirs() -> None:
    net, (x, states) = network(), inputs()
    for part in states:
        part.requires_grad_()
    (expected,) = torch.autograd.grad(loss_of(*net.value_and_gradient(x, states)), [states.local_code])
    loss_of(*net.value_and_gradient(x, states.detach_pose())).backward()
    assert states.center.grad is None
    assert states.rotation.grad is None
    torch.testing.assert_close(states.local_code.grad, expected, atol=1e-12, rtol=0)


def test_all_derivatives_equal_finite_differences() -> None:
    net, (x, states) = network(4, 2, width=3, beta=4.0), inputs(4, points=3)
    names, weights = zip(*net.named_parameters(), strict=True)
    center, _, local_code = states
    vector = torch.zeros_like(center)

    def field(x: Tensor, center: Tensor, vector: Tensor, local_code: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        moved = turned(states._replace(center=center, local_code=local_code), vector)
        replaced = {f"net.{name}": weight for name, weight in zip(names, weights, strict=True)}
        return torch.func.functional_call(caller, replaced, (x, moved))

    class Caller(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, states: PartStates) -> tuple[Tensor, Tensor]:
            return self.net.value_and_gradient(x, states)

    caller = Caller()
    tensors = [part.detach().clone().requires_grad_() for part in (x, center, vector, local_code, *weights)]
    assert torch.autograd.gradcheck(field, tensors)


def test_float32_holds_to_5e_6() -> None:
    net, (x, states) = network(width=64), inputs(points=50)
    single, few = network(width=64).float(), PartStates(*(part.float() for part in states))

    def results(net: PartMLP, x: Tensor, states: PartStates) -> list[Tensor]:
        value, gradient = net.value_and_gradient(x, states)
        by_weights = torch.autograd.grad(loss_of(value, gradient), list(net.parameters()))
        expansion = net.linearize(x, states)
        return [value, gradient, expansion.jacobian, *by_weights]

    for exact, rounded in zip(results(net, x, states), results(single, x.float(), few), strict=True):
        assert rounded.dtype == torch.float32
        assert (exact - rounded).norm() < 5e-6 * exact.norm()


@pytest.mark.parametrize(("num_parts", "depth"), SIZES)
def test_linearize_equals_autograd(num_parts: int, depth: int) -> None:
    """The Jacobian in center, rotation vector and local code of every part: zero for those that are not blended."""
    net, (x, states) = network(num_parts, depth), inputs(num_parts)
    found = net.linearize(x, states)
    vector = torch.zeros_like(states.center)
    inside = [x, states.center, vector, states.local_code]
    for tensor in inside:
        tensor.requires_grad_()
    value = reference_of_parts(net)(x, turned(states, vector))
    torch.testing.assert_close(found.value, value.detach(), atol=1e-10, rtol=0)
    assert found.part.shape == (*x.shape[:2], min(NEAREST, num_parts))
    whole = found.jacobian.new_zeros(*x.shape[:2], num_parts, found.jacobian.shape[-1])
    whole.scatter_(2, found.part[..., None].expand_as(found.jacobian), found.jacobian)
    for point in range(x.shape[1]):
        by_x, *by_states = torch.autograd.grad(value[:, point].sum(), inside, retain_graph=True)
        torch.testing.assert_close(found.gradient[:, point], by_x[:, point], atol=1e-9, rtol=0)
        torch.testing.assert_close(whole[:, point], torch.cat(by_states, dim=-1), atol=1e-9, rtol=0)


def test_a_rigid_motion_of_everything_leaves_values_and_turns_gradients() -> None:
    net, (x, states) = network(), inputs()
    turn, shift = rotation_from_6d(torch.randn(6, dtype=torch.float64)), torch.randn(3, dtype=torch.float64)
    moved = states._replace(center=states.center @ turn.T + shift, rotation=turn @ states.rotation)
    value, gradient = net.value_and_gradient(x, states)
    other, slope = net.value_and_gradient(x @ turn.T + shift, moved)
    torch.testing.assert_close(other, value, atol=1e-10, rtol=0)
    torch.testing.assert_close(slope, gradient @ turn.T, atol=1e-10, rtol=0)


def test_a_larger_body_has_larger_distances() -> None:
    net, (x, states) = network(), inputs()
    value, gradient = net.value_and_gradient(x, states)
    net.radius.mul_(2.5)
    other, slope = net.value_and_gradient(2.5 * x, states._replace(center=2.5 * states.center))
    torch.testing.assert_close(other, 2.5 * value, atol=1e-10, rtol=0)
    torch.testing.assert_close(slope, gradient, atol=1e-10, rtol=0)


@pytest.mark.parametrize("bias", [5.0, 50.0])  # times beta 20: exp overflows above 88 in float32, 709 in float64
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_blend_of_two_planes_is_known(bias: float, dtype: torch.dtype) -> None:
    """Softplus is the identity at large inputs, so that the parts are planes through their centers."""
    net = PartMLP(num_parts=2, local_dim=1, width=3, depth=2, beta=20.0).to(dtype)
    normals = torch.tensor([[0.0, 1.0, 0.0], [0.6, 0.0, 0.8]], dtype=dtype)
    with torch.no_grad():
        net.point_in.copy_(torch.eye(3))
        net.hidden.copy_(torch.eye(3))
        net.bias.copy_(torch.tensor([bias, 0.0])[:, None, None])
        net.shift.zero_()
        net.out.copy_(normals)
        net.out_bias.copy_(-bias * normals.sum(dim=1))
    net.radius.copy_(torch.tensor([0.5, 0.25]))
    center = torch.tensor([[[0.1, 0.0, 0.0], [0.0, 0.3, 0.0]]], dtype=dtype)
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=dtype)  # x to y, y to -x
    states = PartStates(center, torch.stack([torch.eye(3, dtype=dtype), turn])[None], torch.zeros(1, 2, 1).to(dtype))
    x = (torch.rand(1, 40, 3, generator=torch.Generator().manual_seed(2)) - 0.5).to(dtype).requires_grad_()

    offset = x[:, :, None] - center[:, None]
    planes = torch.stack(
        [offset[:, :, 0] @ normals[0], offset[:, :, 1] @ torch.tensor([0.0, 0.6, 0.8], dtype=dtype)], -1
    )
    weight = (-BLEND_SHARPNESS * offset.square().sum(dim=-1) / net.radius.square()).softmax(dim=-1)
    expected = (weight * planes).sum(dim=-1)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    value, gradient = net.value_and_gradient(x.detach(), states)
    tolerance = 1e-5 * bias if dtype == torch.float32 else 1e-12 * bias  # the planes are differences of large numbers
    torch.testing.assert_close(value, expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(gradient, slope, atol=tolerance * 10, rtol=0)
    torch.testing.assert_close(net.linearize(x.detach(), states).value, expected, atol=tolerance, rtol=0)


def test_starts_as_balls_about_the_centers() -> None:
    """On average over parts and directions: negative inside, positive outside, and rising with the distance."""
    torch.manual_seed(0)
    net = PartMLP(num_parts=40, local_dim=4)
    net.radius.fill_(0.2)
    center = 100.0 * torch.arange(40.0)[None, :, None].expand(1, 40, 3)  # each alone
    states = PartStates(center, torch.eye(3).expand(1, 40, 3, 3), torch.zeros(1, 40, 4))
    direction = torch.nn.functional.normalize(torch.randn(50, 1, 3), dim=-1)
    distances = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
    means = [net((center + r * direction).view(1, -1, 3), states).mean().item() for r in distances]
    assert means == sorted(means)
    assert means[0] < 0
    assert means[3] > 0


def test_bodies_of_a_batch_equal_single_bodies() -> None:
    net, (x, states) = network(), inputs(bodies=3)
    value, gradient = net.value_and_gradient(x, states)
    expansion = net.linearize(x, states)
    for row in range(3):
        one, own = x[row : row + 1], states[row : row + 1]
        for found, expected in zip(net.value_and_gradient(one, own), (value, gradient), strict=True):
            torch.testing.assert_close(found[0], expected[row], atol=1e-12, rtol=0)
        for found, expected in zip(net.linearize(one, own), expansion, strict=True):
            torch.testing.assert_close(found[0], expected[row], atol=1e-12, rtol=0)


def test_the_order_of_the_points_is_irrelevant() -> None:
    net, (x, states) = network(), inputs(points=50)
    order = torch.randperm(50)
    value, gradient = net.value_and_gradient(x, states)
    other, slope = net.value_and_gradient(x[:, order], states)
    torch.testing.assert_close(other, value[:, order], atol=1e-12, rtol=0)
    torch.testing.assert_close(slope, gradient[:, order], atol=1e-12, rtol=0)


def test_parts_without_points_have_no_gradient() -> None:
    net, (x, states) = network(), inputs()
    states.center[:, 4:] += 100.0
    assert set(net.linearize(x, states).part.flatten().tolist()) == {0, 1, 2, 3}
    loss = loss_of(*net.value_and_gradient(x, states))
    expected = torch.autograd.grad(
        loss_of(*reference_of_parts(net).value_and_gradient(x, states)), list(net.parameters())
    )
    for found, other in zip(torch.autograd.grad(loss, list(net.parameters())), expected, strict=True):
        torch.testing.assert_close(found, other, atol=1e-9, rtol=1e-7)
        parts = found.movedim(found.shape.index(9), 0)
        assert not parts[4:].any()
        assert parts[1].any()


def test_no_points_and_no_bodies() -> None:
    net, (x, states) = network(), inputs()
    for points, own in ((x[:, :0], states), (x[:0], states[:0])):
        value, gradient = net.value_and_gradient(points, own)
        assert value.shape == points.shape[:2]
        assert gradient.shape == points.shape
        (value.sum() + gradient.sum()).backward()
        with torch.no_grad():
            assert net(points, own).shape == points.shape[:2]
        expansion = net.linearize(points, own)
        assert expansion.jacobian.shape == (*points.shape[:2], NEAREST, 11)
        assert expansion.part.shape == (*points.shape[:2], NEAREST)


@pytest.mark.parametrize("threads", [1, 2])
def test_chunks_slabs_and_threads_change_nothing(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net, (x, states) = network(), inputs(points=101)

    def results() -> list[Tensor]:
        with torch.no_grad():
            value = net(x, states)
        by_weights = torch.autograd.grad(loss_of(*net.value_and_gradient(x, states)), list(net.parameters()))
        return [value, *net.linearize(x, states), *by_weights]

    expected, before = results(), torch.get_num_threads()
    monkeypatch.setattr(part_mlp, "CHUNK", 25)
    monkeypatch.setattr(part_mlp, "MIN_CHUNK", 10)
    monkeypatch.setattr(part_mlp, "CACHED", 100)
    monkeypatch.setattr(part_layers, "SLAB", 60)
    torch.set_num_threads(threads)
    try:
        for found, other in zip(results(), expected, strict=True):
            torch.testing.assert_close(found, other, atol=1e-12, rtol=1e-12)
    finally:
        torch.set_num_threads(before)


def test_the_nearest_parts_are_those_of_a_sort() -> None:
    generator = torch.Generator().manual_seed(3)
    for parts in (1, 2, 3, 5, 76, 200):
        x, center = torch.rand(2, 300, 3, generator=generator), torch.rand(2, parts, 3, generator=generator)
        radius = 0.1 + torch.rand(parts, generator=generator)
        distance = torch.cdist(x.double(), center.double()) / radius
        nearest = distance.sort(dim=-1)
        found = nearest_parts(x, center, radius).permute(1, 2, 0)
        assert found.shape == (2, 300, min(NEAREST, parts))
        ratio = distance.gather(2, found) / nearest.values[..., :NEAREST]
        assert (ratio - 1).abs().max() < 1e-4  # the last bits of distances are left out
        assert (found == nearest.indices[..., :NEAREST]).float().mean() > 0.995
        assert (found.sort(dim=-1).values.diff(dim=-1) > 0).all()  # each part once


def test_points_at_infinity_do_not_harm_others() -> None:
    net, (x, states) = network(), inputs()
    expected = net(x[:, 1:], states)
    for bad in (math.inf, -math.inf, math.nan, 1e30):
        x[:, 0] = bad
        torch.testing.assert_close(net(x, states)[:, 1:], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_in_units_of_ln_2(dtype: torch.dtype) -> None:
    """Against the formula in more digits, with and without a number at which a power overflows."""
    small = torch.linspace(-200.0, 126.0, 500, dtype=dtype)
    for y in (small, torch.cat([small, torch.tensor([127.0, 200.0, 2000.0, 1e30], dtype=dtype)])):
        exact = torch.logaddexp(torch.zeros(()).double(), y.double() * math.log(2)) / math.log(2)
        value, s = softplus_and_complement(y[None].clone())
        tolerance = 1e-6 if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(value[0].double(), exact, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(s[0].double(), torch.sigmoid(-y.double() * math.log(2)), atol=tolerance, rtol=0)
        assert torch.equal(softplus(y[None].clone()), value)


def test_the_field_at_a_center_is_that_of_its_part_alone_if_the_others_are_far() -> None:
    net, (_, states) = network(), inputs()
    states.center[:, 1:] += 50.0
    value = net(states.center[:, :1], states)
    own = network(1)
    for name, parameter in own.named_parameters():
        whole = dict(net.named_parameters())[name]
        parameter.data = whole.narrow(whole.shape.index(9), 0, 1).clone()
    own.radius.copy_(net.radius[:1])
    alone = own(states.center[:, :1], PartStates(*(part[:, :1] for part in states)))
    torch.testing.assert_close(value, alone, atol=1e-12, rtol=0)
    assert (value[0] - value[1]).abs().item() > 1e-3  # the local codes differ
