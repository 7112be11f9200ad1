"""Rotations of parts, and poses along the tree of the parts."""

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from shapespace.geometry import articulation


def rotations(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(Rotation.random(count, rng=seed).as_matrix()).to(dtype)


def test_two_columns_give_the_rotation_back() -> None:
    truth = rotations(50).view(5, 10, 3, 3)
    columns = articulation.rotation_to_6d(truth)
    torch.testing.assert_close(columns, torch.cat([truth[..., 0], truth[..., 1]], dim=-1))
    torch.testing.assert_close(articulation.rotation_from_6d(columns), truth)


def test_any_two_columns_give_a_rotation_that_keeps_the_direction_of_the_first_and_the_plane_of_both() -> None:
    columns = torch.randn(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = articulation.rotation_from_6d(columns)
    torch.testing.assert_close(rotation.mT @ rotation, torch.eye(3, dtype=torch.float64).expand(200, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(200, dtype=torch.float64))
    in_frame = (rotation.mT @ torch.stack([columns[:, :3], columns[:, 3:]], dim=-1)).numpy()
    assert abs(in_frame[:, [1, 2, 2], [0, 0, 1]]).max() < 1e-12
    assert in_frame[:, [0, 1], [0, 1]].min() > 0


def some_points(count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, generator=generator) + 2, torch.rand(count, generator=generator)


@pytest.mark.parametrize("flat", [False, True])
def test_procrustes_recovers_rotation_and_center(flat: bool) -> None:
    reference, weights = some_points()
    if flat:
        reference = reference * torch.tensor([1.0, 1.0, 0.0])
    truth, centers = rotations(20), torch.randn(20, 3, generator=torch.Generator().manual_seed(2))
    mean = (weights / weights.sum()) @ reference
    posed = (reference - mean) @ truth.mT + centers[:, None]
    rotation, center = articulation.procrustes(reference, posed, weights)
    torch.testing.assert_close(rotation, truth, atol=2e-6, rtol=0)
    torch.testing.assert_close(center, centers, atol=2e-6, rtol=0)


def test_procrustes_with_noise_equals_weighted_alignment_by_scipy() -> None:
    reference, weights = some_points()
    noise = 0.3 * torch.randn(10, *reference.shape, generator=torch.Generator().manual_seed(3))
    posed = reference @ rotations(10).mT + noise
    rotation, center = articulation.procrustes(reference, posed, weights)
    share = (weights / weights.sum()).numpy()
    for row in range(10):
        mean = share @ posed[row].numpy()
        plain, _ = Rotation.align_vectors(
            posed[row].numpy() - mean, reference.numpy() - share @ reference.numpy(), share
        )
        torch.testing.assert_close(rotation[row].double(), torch.from_numpy(plain.as_matrix()), atol=1e-5, rtol=0)
        torch.testing.assert_close(center[row].double(), torch.from_numpy(mean).double(), atol=1e-5, rtol=0)


def test_points_of_no_weight_do_not_count() -> None:
    reference, weights = some_points()
    weights[10:] = 0
    posed = (reference @ rotations(3).mT).contiguous()
    before = articulation.procrustes(reference, posed, weights)
    posed[:, 10:] += 5
    torch.testing.assert_close(articulation.procrustes(reference, posed, weights), before)


def test_procrustes_of_a_mirror_image_is_the_best_rotation() -> None:
    """No rotation of a fine set of turns about any axis fits better, and the result is a rotation."""
    reference, weights = some_points()
    posed = (reference * torch.tensor([-1.0, 1.0, 1.0]))[None]
    rotation, center = articulation.procrustes(reference, posed, weights)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(1))
    centered = reference - (weights / weights.sum()) @ reference

    def misfit(turned: Tensor) -> Tensor:
        return (weights * (centered @ turned.mT + center[0] - posed[0]).square().sum(dim=-1)).sum(dim=-1)

    assert misfit(rotation)[0] <= misfit(rotations(5000)).min()


def test_procrustes_of_points_on_a_line_or_in_one_point_is_a_rotation() -> None:
    reference, weights = some_points()
    for shrink in (torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3)):
        rotation, _ = articulation.procrustes(reference * shrink, (reference * shrink) @ rotations(4).mT, weights)
        torch.testing.assert_close(rotation.mT @ rotation, torch.eye(3).expand(4, 3, 3), atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(4))


@pytest.mark.parametrize("weights", [[0.0, 0.0, 0.0], [1.0, 1.0, -0.5]])
def test_procrustes_refuses_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match=r"procrustes: weights from .* Give weights that are not negative"):
        articulation.procrustes(torch.eye(3), torch.eye(3)[None], torch.tensor(weights))
