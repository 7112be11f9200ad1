"""The blocks of Occupancy Networks."""

import torch

from shapespace.nn.resnet import ConditionalMLP, ConditionalNorm, ResidualBlock, ResidualPointNet


def test_a_block_is_its_shortcut_at_the_start() -> None:
    x = torch.randn(5, 4)
    block = ResidualBlock(4, 4)
    torch.testing.assert_close(block(x), x + block.second.bias)
    assert ResidualBlock(4, 7)(x).shape == (5, 7)


def test_the_code_sets_factor_and_shift_of_normalized_features() -> None:
    torch.manual_seed(0)
    norm = ConditionalNorm(code_dim=3, width=4)
    x, code = 5 * torch.randn(2, 1000, 4) + 2, torch.randn(2, 3)
    even = norm(x, code).flatten(0, 1)
    torch.testing.assert_close(even.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(even.var(dim=0), torch.ones(4), atol=2e-3, rtol=0)
    torch.nn.init.normal_(norm.shift.weight)
    moved = norm(x, code)
    expected = norm.shift(code)
    torch.testing.assert_close(moved[:, 0] - even.view(2, 1000, 4)[:, 0], expected, atol=1e-5, rtol=0)


def test_in_evaluation_a_shape_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    net = ConditionalMLP(code_dim=3, width=8, blocks=2)
    x, code = torch.randn(2, 50, 3), torch.randn(2, 3)
    for _ in range(3):
        net(x, code)  # running moments
    net.eval()
    torch.testing.assert_close(net(x, code)[:1], net(x[:1], code[:1]))


def test_a_pointnet_reads_its_first_points_in_any_order() -> None:
    torch.manual_seed(0)
    net, points = ResidualPointNet(code_dim=4, num_points=50, width=8), torch.randn(2, 80, 3)
    shuffled = torch.cat([points[:, torch.randperm(50)], 100 * torch.ones(2, 30, 3)], dim=1)
    torch.testing.assert_close(net(shuffled)[0], net(points)[0])
