"""The analytic network against its reference: concatenated input, softplus of torch, autograd."""

import pytest
import torch
from torch import Tensor

from shapespace.nn.mlp import PlanarMLP, SkipMLP, softplus_and_derivative
from shapespace.nn.mlp_reference import reference_of


def network(width: int = 24, depth: int = 5, skip: int = 3, *, modulated: bool = False) -> SkipMLP:
    torch.manual_seed(0)
    net = SkipMLP(code_dim=5, width=width, depth=depth, skip=skip, modulated=modulated).double()
    for parameter in net.parameters():  # away from the initialization, where half the terms vanish
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 7, 3, generator=generator, dtype=torch.float64) * 2 - 1
    return x, torch.randn(2, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("depth", "skip", "modulated"), [(5, 3, False), (5, 3, True), (4, 1, True), (3, 2, False)])
def test_value_and_gradient_equal_the_reference(depth: int, skip: int, modulated: bool) -> None:
    net, (x, code) = network(depth=depth, skip=skip, modulated=modulated), inputs()
    x.requires_grad_()
    expected = reference_of(net)(x, code)
    (derivative,) = torch.autograd.grad(expected.sum(), x)
    value, gradient = net.value_and_gradient(x, code)
    torch.testing.assert_close(value, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(gradient, derivative, atol=1e-9, rtol=0)
    torch.testing.assert_close(net(x, code), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("modulated", [False, True])
def test_weights_gradients_equal_double_backward(modulated: bool) -> None:
    net, (x, code) = network(modulated=modulated), inputs()

    def loss(value: Tensor, gradient: Tensor) -> Tensor:
        return value.abs().mean() + (gradient.norm(dim=-1) - 1).square().mean() + (gradient[..., 0] - 0.3).abs().mean()

    code.requires_grad_()
    learned = [*net.parameters(), code]
    expected = torch.autograd.grad(loss(*reference_of(net).value_and_gradient(x, code)), learned)
    found = torch.autograd.grad(loss(*net.value_and_gradient(x, code)), learned)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize(("depth", "skip", "modulated"), [(5, 3, False), (5, 3, True), (4, 1, True), (3, 2, False)])
def test_the_value_alone_has_the_gradients_of_the_reference(depth: int, skip: int, modulated: bool) -> None:
    net, (x, code) = network(depth=depth, skip=skip, modulated=modulated), inputs()
    x.requires_grad_()
    code.requires_grad_()
    learned = [*net.parameters(), x, code]
    expected = torch.autograd.grad(reference_of(net)(x, code).square().mean(), learned)
    found = torch.autograd.grad(net(x, code).square().mean(), learned)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)


def test_products_of_bfloat16_are_close_and_end_with_the_training() -> None:
    torch.manual_seed(0)
    net = SkipMLP(code_dim=5, width=64, depth=5, skip=3, init_radius=0.4)
    x, code = (part.float() for part in inputs())

    def gradients() -> Tensor:
        value, gradient = net.value_and_gradient(x, code)
        loss = value.abs().mean() + (gradient.norm(dim=-1) - 1).square().mean() + net(x, code).square().mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])

    exact, value = gradients(), net.eval()(x, code)
    net.matmul_dtype = torch.bfloat16
    assert torch.equal(net(x, code), value)  # evaluation mode: float32
    rounded, coarse = net.train() and gradients(), net(x, code)
    assert rounded.dtype == torch.float32
    assert 1e-4 < (rounded - exact).norm() / exact.norm() < 0.05  # rounded it is, and not by much
    assert (coarse - value).abs().max() < 0.02


@pytest.mark.parametrize(("depth", "skip", "modulated"), [(5, 3, False), (3, 1, True)])
def test_gradients_in_place_and_code_equal_finite_differences(depth: int, skip: int, modulated: bool) -> None:
    net, (x, code) = network(width=16, depth=depth, skip=skip, modulated=modulated), inputs()
    net.beta = 5.0  # softer: differences of a beta of 100 say little
    few = x[:, :2].clone().requires_grad_(), code.clone().requires_grad_()
    assert torch.autograd.gradcheck(net.value_and_gradient, few)


def test_float32_gradients_hold_to_1e_5() -> None:
    net, (x, code) = network(), inputs()
    single = network().float()

    def weight_gradients(model: SkipMLP, x: Tensor, code: Tensor) -> Tensor:
        value, gradient = model.value_and_gradient(x, code)
        loss = value.abs().mean() + (gradient.norm(dim=-1) - 1).square().mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).double()

    exact, rounded = weight_gradients(net, x, code), weight_gradients(single, x.float(), code.float())
    assert (exact - rounded).norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize("modulated", [False, True])
def test_linearize_equals_autograd(modulated: bool) -> None:
    net, (x, code) = network(modulated=modulated), inputs()
    found = net.linearize(x, code)
    code.requires_grad_()
    x.requires_grad_()
    value = reference_of(net)(x, code)
    torch.testing.assert_close(found.value, value.detach(), atol=1e-10, rtol=0)
    for point in range(x.shape[1]):
        by_x, by_code = torch.autograd.grad(value[:, point].sum(), (x, code), retain_graph=True)
        torch.testing.assert_close(found.gradient[:, point], by_x[:, point], atol=1e-9, rtol=0)
        torch.testing.assert_close(found.jacobian[:, point], by_code, atol=1e-9, rtol=0)


def test_the_field_is_linear_in_the_input_of_the_last_layer() -> None:
    net, x, code = (
        SkipMLP(code_dim=3, width=20, depth=4, skip=2, modulated=True),
        torch.rand(2, 7, 3),
        torch.randn(2, 3),
    )
    torch.testing.assert_close(net.out(net.features(x, code))[..., 0], net(x, code))
    flat = PlanarMLP(SkipMLP(code_dim=3, width=20, depth=4, skip=2, dims=2))
    torch.testing.assert_close(flat.out(flat.features(x, code))[..., 0], flat(x, code))


def test_a_modulated_network_begins_as_one_that_is_not() -> None:
    torch.manual_seed(0)
    net = SkipMLP(code_dim=5, width=24, depth=5, skip=3, modulated=True)
    plain = SkipMLP(code_dim=5, width=24, depth=5, skip=3)
    plain.load_state_dict({name: weight for name, weight in net.state_dict().items() if "code_hidden" not in name})
    x, code = (part.float() for part in inputs())
    assert net.modulated
    assert not plain.modulated
    assert torch.equal(net(x, code), plain(x, code))
    net(x, code).sum().backward()
    assert all(layer.weight.grad.norm() > 0 for layer in net.code_hidden.values())  # and leaves it


def test_softplus_holds_far_from_zero() -> None:
    """No overflow, no jump and the right derivative where the exponential saturates."""
    z = torch.tensor([-1e4, -3.0, -0.31, -0.3, -0.29, 0.0, 0.29, 0.3, 0.31, 3.0, 1e4])
    value, derivative = (found[0] for found in softplus_and_derivative(100 * z[None]))
    value = value / 100
    exact = torch.logaddexp(torch.zeros(()).double(), 100 * z.double()) / 100
    torch.testing.assert_close(value, exact.float(), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(derivative, torch.sigmoid(100 * z.double()).float(), atol=2e-7, rtol=0)


def test_starts_as_a_sphere() -> None:
    torch.manual_seed(0)
    net = SkipMLP(code_dim=16, width=256, depth=8, skip=4, init_radius=0.6)
    x = torch.randn(1, 500, 3)
    x = x / x.norm(dim=-1, keepdim=True) * torch.linspace(0.3, 1.2, 500)[None, :, None]
    error = net(x, torch.zeros(1, 16)) - (x.norm(dim=-1) - 0.6)
    assert error.abs().mean() < 0.15  # in the limit of infinite width it is zero (SAL, theorem 1)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="skip 8: must be a hidden layer from 1 to 7"):
        SkipMLP(code_dim=4, width=32, depth=8, skip=8)
    with pytest.raises(ValueError, match="width 64: must exceed the 64 \\+ 3 inputs"):
        SkipMLP(code_dim=64, width=64, depth=8, skip=4)
