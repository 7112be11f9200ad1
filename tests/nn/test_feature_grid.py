"""Feature grids and planes against the interpolation of torch, and against loops."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from shapespace.nn.feature_grid import LocalPointNet, UNet, cell_index, interpolate, scatter_max, scatter_mean


@pytest.mark.parametrize("dimensions", [2, 3])
def test_interpolate_equals_grid_sample(dimensions: int) -> None:
    torch.manual_seed(0)
    grid = torch.randn(2, 4, *(5, 6, 7)[:dimensions], dtype=torch.float64)
    x = torch.rand(2, 30, dimensions, dtype=torch.float64) * 2.4 - 1.2  # some of it outside
    turned = x.flip(-1).view(2, *(1,) * (dimensions - 1), 30, dimensions)  # torch has the last axis first
    expected = grid_sample(grid, turned, align_corners=True, padding_mode="border")
    torch.testing.assert_close(interpolate(grid, x), expected.view(2, 4, 30).transpose(1, 2), atol=1e-12, rtol=0)


def test_interpolate_is_twice_differentiable() -> None:
    torch.manual_seed(0)
    grid = torch.randn(1, 2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    x = (torch.rand(1, 3, 3, dtype=torch.float64) * 1.6 - 0.8).requires_grad_()

    def slope(grid: Tensor, x: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(interpolate(grid, x).square().sum(), x, create_graph=True)
        return found

    assert torch.autograd.gradcheck(slope, (grid, x))


def test_a_node_has_its_own_features_and_its_own_cell() -> None:
    grid = torch.arange(27.0).view(1, 1, 3, 3, 3)
    nodes = torch.tensor([[[-1.0, 0, 1], [1, 1, 1], [0, -1, 0]]])
    assert interpolate(grid, nodes)[0, :, 0].tolist() == [5, 26, 10]
    assert cell_index(nodes, 3)[0].tolist() == [5, 26, 10]


def test_means_and_maxima_of_cells_equal_loops() -> None:
    torch.manual_seed(0)
    features, cell = torch.randn(2, 40, 3), torch.randint(6, (2, 40))
    cell[cell == 4] = 5  # an empty cell
    mean, top = scatter_mean(features, cell, 6), scatter_max(features, cell, 6)
    for scan in range(2):
        for index in range(6):
            members = features[scan, cell[scan] == index]
            expected = members.mean(dim=0) if len(members) else torch.zeros(3)
            torch.testing.assert_close(mean[scan, :, index], expected)
        for point in range(40):
            torch.testing.assert_close(top[scan, point], features[scan, cell[scan] == cell[scan, point]].amax(dim=0))


def test_points_depend_on_their_cell_only() -> None:
    torch.manual_seed(0)
    net, points = LocalPointNet(features=4, width=8), torch.randn(1, 6, 3)
    for block in net.blocks:  # type: ignore[union-attr]
        torch.nn.init.normal_(block.second.weight)
    cell = torch.tensor([[0, 0, 0, 1, 1, 1]])
    before = net(points, [(cell, 2)])
    points[0, 5] += 1
    changed = (net(points, [(cell, 2)]) != before).any(dim=-1)[0]
    assert not changed[:3].any()
    assert changed[3:].any()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_unet_keeps_size_and_has_a_large_receptive_field(dimensions: int) -> None:
    torch.manual_seed(0)
    net = UNet(dimensions=dimensions, channels=3, width=4, depth=3)
    grid = torch.randn(1, 3, *(16,) * dimensions)
    before = net(grid)
    assert before.shape == grid.shape
    corner = (0, slice(None), *(0,) * dimensions)
    grid[corner] += 10
    away = (0, slice(None), *(9,) * dimensions)
    assert (net(grid)[away] != before[away]).any()
