"""Loss terms, their weighted sum, and a plane fitted by them."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from shapespace.nn import losses


def test_terms_are_zero_for_a_distance_and_known_for_others() -> None:
    normals = torch.nn.functional.normalize(torch.randn(2, 9, 3), dim=-1)
    assert losses.surface(torch.zeros(2, 9)) == 0
    assert losses.normal(normals, normals) == 0
    torch.testing.assert_close(losses.normal(-normals, normals), torch.tensor(2.0))
    torch.testing.assert_close(losses.eikonal(normals), torch.tensor(0.0))
    torch.testing.assert_close(losses.eikonal(3 * normals), torch.tensor(4.0))


def test_tangent_plane_and_unsigned_distance_are_zero_for_the_distance_to_a_plane() -> None:
    points = torch.randn(2, 500, 3) * torch.tensor([3.0, 0.0, 3.0])
    normals = torch.tensor([0.0, 1.0, 0.0]).expand_as(points)
    near = points + 0.1 * torch.randn_like(points)
    torch.testing.assert_close(losses.tangent_plane(near[..., 1], near, points, normals), torch.tensor(0.0))
    torch.testing.assert_close(losses.tangent_plane(near[..., 1] + 0.2, near, points, normals), torch.tensor(0.2))
    box = points[:, :50] + torch.tensor([0.0, -0.7, 0.0])
    for sign in (1, -1):
        torch.testing.assert_close(
            losses.unsigned_distance(sign * box[..., 1], box, points), torch.tensor(0.0), atol=1e-3, rtol=0
        )
    torch.testing.assert_close(
        losses.unsigned_distance(box[..., 1] * 2, box, points), torch.tensor(0.7), atol=1e-3, rtol=0
    )


def test_chamfer_equals_kd_trees() -> None:
    torch.manual_seed(0)
    predicted, points = torch.randn(2, 40, 3), torch.randn(2, 60, 3)
    expected = []
    for a, b in zip(predicted.numpy(), points.numpy(), strict=True):
        there, back = cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]
        expected.append((there**2).mean() + (back**2).mean())
    assert losses.chamfer(predicted, points).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_occupancy_is_the_mean_logarithm_of_the_labels_probability() -> None:
    logit, inside = torch.tensor([[2.0, -1.0, 0.0]]), torch.tensor([[True, True, False]])
    likely = torch.sigmoid(torch.tensor([2.0, -1.0, 0.0]))
    expected = -torch.stack([likely[0].log(), likely[1].log(), (1 - likely[2]).log()]).mean()
    torch.testing.assert_close(losses.occupancy(logit, inside), expected)


def test_weighted_sum_is_the_weighted_sum() -> None:
    terms = {"surface": torch.tensor(2.0), "eikonal": torch.tensor(3.0), "code_reg": torch.tensor(7.0)}
    assert losses.weighted_sum(terms, {"surface": 1.0, "eikonal": 0.5, "code_reg": 0.0, "normal": 0.0}) == 3.5


def test_terms_without_weight_and_weights_without_term_are_refused() -> None:
    one = torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"no weight for these loss terms: eikonal\. Set --weights\.eikonal"):
        losses.weighted_sum({"surface": one, "eikonal": one}, {"surface": 1.0})
    with pytest.raises(
        ValueError,
        match=r"no loss term for these weights: normal, tangent_plane \(terms of this batch: eikonal\). The scans have "
        r"no normals: preprocess them again, or set --weights.normal 0 --weights.tangent-plane 0",
    ):
        losses.weighted_sum({"eikonal": one}, {"eikonal": 1.0, "normal": 1.0, "tangent_plane": 1.0})
    with pytest.raises(ValueError, match=r"no loss term for these weights: normal .* Set --weights.normal 0\.$"):
        losses.weighted_sum({"surface": one}, {"surface": 1.0, "normal": 1.0})
    with pytest.raises(ValueError, match="every loss weight is zero"):
        losses.weighted_sum({"surface": one}, {"surface": 0.0})


def fit_plane(points: Tensor, slope: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Minimize the loss of the linear model `slope x + bias` from a start."""
    slope, bias = slope.requires_grad_(), bias.requires_grad_()
    optimizer = torch.optim.LBFGS([slope, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        terms = {
            "surface": (points @ slope + bias).square().mean(),
            "eikonal": losses.eikonal(slope.expand(1, 1, 3)),
        }
        total = losses.weighted_sum(terms, {"surface": 1.0, "eikonal": 0.1})
        total.backward()
        return total

    optimizer.step(loss)
    return slope.detach(), bias.detach()


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_plane_reproduction(noise: float) -> None:
    """A linear model on points of a plane becomes its signed distance from almost every start (IGR, theorem 1)."""
    generator = torch.Generator().manual_seed(3)
    normal = torch.nn.functional.normalize(torch.tensor([1.0, -2.0, 0.5]), dim=0)
    offset = 0.3
    points = torch.randn(400, 3, generator=generator)
    points = points - (points @ normal - offset)[:, None] * normal
    points = points + noise * torch.randn(points.shape, generator=generator)
    for _ in range(5):
        slope, bias = torch.randn(3, generator=generator), torch.randn((), generator=generator)
        slope, bias = fit_plane(points, slope, bias)
        sign = torch.sign(slope @ normal)
        torch.testing.assert_close(slope * sign, normal, atol=5e-3, rtol=0)
        torch.testing.assert_close(bias * sign, torch.tensor(-offset), atol=5e-3, rtol=0)


def test_unoriented_normals_are_oriented_to_where_the_field_increases() -> None:
    gradient = torch.tensor([[[0.0, 1.0, 0.2], [0.9, 0.0, 0.0]]])
    unoriented = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    assert torch.equal(losses.orient_normals(unoriented, gradient), torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]]))
