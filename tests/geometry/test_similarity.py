"""Rigid motions with their derivatives, as frames, and the rotations to start from."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from shapespace.fitting import tridiagonal
from shapespace.geometry import similarity
from shapespace.geometry.frame import Frame


def some(rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(rows, 5, 3, generator=generator)
    return points, 0.4 * torch.randn(rows, 7, generator=generator)


def test_derivatives_equal_autograd_s() -> None:
    points, poses = some()
    poses.requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5])

    def field(y: torch.Tensor) -> torch.Tensor:
        return (y * weights).sum(dim=2).sin()

    moved, left = similarity.apply(points, poses)
    value = field(moved)
    gradient = moved.detach().requires_grad_()
    (slope,) = torch.autograd.grad(field(gradient).sum(), gradient)
    derivative = similarity.jacobian(slope, moved, poses, left)
    for row in range(2):
        for point in range(5):
            (by,) = torch.autograd.grad(value[row, point], poses, retain_graph=True)
            torch.testing.assert_close(derivative[row, point].detach(), by[row], atol=1e-5, rtol=1e-4)


def test_no_motion_is_none() -> None:
    points, poses = some()
    moved, left = similarity.apply(points, torch.zeros_like(poses))
    torch.testing.assert_close(moved, points)
    torch.testing.assert_close(left, torch.eye(3).expand(2, 3, 3))


def test_a_pose_as_a_frame_moves_alike_and_back() -> None:
    points, poses = some()
    moved, _ = similarity.apply(points, poses)
    for row in range(2):
        frame = similarity.frame_of(poses[row])
        torch.testing.assert_close(frame.to_model(points[row]), moved[row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(frame.to_world(moved[row]), points[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("turns", [(True, True), (True, False), (False, True), (False, False)])
def test_frames_follow_each_other(turns: tuple[bool, bool]) -> None:
    points, poses = some()
    first, second = (similarity.frame_of(row) for row in poses)
    frames = [
        frame if turn else Frame(frame.center, frame.scale) for frame, turn in zip((first, second), turns, strict=True)
    ]
    both = frames[0].compose(frames[1])
    torch.testing.assert_close(both.to_model(points[0]), frames[1].to_model(frames[0].to_model(points[0])))
    torch.testing.assert_close(both.to_world(points[0]), frames[0].to_world(frames[1].to_world(points[0])))
    assert (both.rotation is None) == (turns == (False, False))


def test_directions_turn_and_do_not_move() -> None:
    points, poses = some()
    frame = similarity.frame_of(poses[0])
    apart = frame.to_model(points[0][1:]) - frame.to_model(points[0][:1])
    torch.testing.assert_close(frame.rotate(points[0][1:] - points[0][:1]), apart * frame.scale, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(frame.rotate_back(frame.rotate(points[0])), points[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("unknown", "count", "reach"), [(None, 1, 180), ("yaw", 8, 22.5), ("full", 60, 45)])
def test_starts_are_rotations_and_near_to_any_other(
    unknown: similarity.UnknownRotation | None, count: int, reach: float
) -> None:
    starts = similarity.rotation_grid(unknown)
    assert starts.shape == (count, 3, 3)
    np.testing.assert_allclose(np.linalg.det(starts), 1)
    if unknown == "yaw":
        others = Rotation.from_rotvec([[0, angle, 0] for angle in np.linspace(0, 6, 50)])
    else:
        others = Rotation.random(200, random_state=0)
    nearest = [min((Rotation.from_matrix(starts) * other.inv()).magnitude()) for other in others]
    assert np.degrees(max(nearest)) < reach + 0.01


@pytest.mark.parametrize(("unknown", "count"), [("yaw", 3), ("full", 13)])
def test_neighbors_are_still_or_turned_by_the_angle_evenly_about_the_axes(
    unknown: similarity.UnknownRotation, count: int
) -> None:
    vectors = Rotation.from_matrix(similarity.rotation_neighborhood(unknown, 24.0)).as_rotvec(degrees=True)
    assert vectors.shape == (count, 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [0] + [24] * (count - 1), atol=1e-9)
    np.testing.assert_allclose(vectors.sum(axis=0), 0, atol=1e-9)
    cosines = (vectors[1:] @ vectors[1:].T / 24**2)[~np.eye(count - 1, dtype=bool)]
    if unknown == "yaw":
        np.testing.assert_allclose(vectors[1], [0, 24, 0], atol=1e-9)
    else:
        np.testing.assert_allclose(np.unique(cosines.round(9)), [-1, -(5**-0.5), 5**-0.5], atol=1e-8)


@pytest.mark.parametrize("turns", [(True, True), (True, False), (False, False)])
def test_between_two_frames_both_ends_are_met_and_the_middle_is_half_turned(turns: tuple[bool, bool]) -> None:
    points, poses = some()
    frames = [similarity.frame_of(row) for row in poses]
    a, b = (frame if turn else Frame(frame.center, frame.scale) for frame, turn in zip(frames, turns, strict=True))
    for share, end in ((0.0, a), (1.0, b)):
        torch.testing.assert_close(
            similarity.interpolate_frames(a, b, share).to_world(points[0]), end.to_world(points[0])
        )
    middle = similarity.interpolate_frames(a, b, 0.5)
    torch.testing.assert_close(middle.center, (a.center + b.center) / 2)
    if middle.rotation is None:
        assert turns == (False, False)
        return
    halves = [torch.eye(3) if end.rotation is None else end.rotation for end in (a, b)]
    torch.testing.assert_close(middle.rotation @ halves[0].T, halves[1] @ middle.rotation.T, atol=1e-5, rtol=1e-5)


def frame(center: list[float], turn: list[float], scale: float = 1.25) -> Frame:
    return Frame(
        torch.tensor(center), torch.tensor(scale), torch.from_numpy(Rotation.from_rotvec(turn).as_matrix()).float()
    )


def test_even_motion_does_not_bend() -> None:
    """Straight ahead in the world, turning at an even speed, growing by the same share each time."""
    path = [frame([0.3 * t, 0.1, -0.2 * t], [0.0, 0.7 * t, 0.0], 1.25 * 1.01**t) for t in range(5)]
    torch.testing.assert_close(
        similarity.second_differences(path), torch.zeros(3, 7, dtype=torch.float64), atol=1e-5, rtol=0
    )
    path[2] = Frame(path[2].center, path[2].scale)
    assert similarity.second_differences(path).abs().max() > 1


def test_frames_that_are_moved_by_poses_bend_by_the_second_differences_of_these() -> None:
    rng = np.random.default_rng(0)
    path = [frame((0.02 * rng.normal(size=3)).tolist(), [0.0, 0.01 * t * t, 1.0], 1.25 * 1.005**t) for t in range(5)]
    poses = torch.from_numpy(1e-2 * rng.normal(size=(5, similarity.NUM_PARAMETERS))).float()
    moved = [frame.compose(similarity.frame_of(by)) for frame, by in zip(path, poses, strict=True)]
    expected = tridiagonal.second_differences(5) @ poses.double()
    assert expected.abs().max() > 0.03
    torch.testing.assert_close(
        similarity.second_differences(moved) - similarity.second_differences(path), expected, atol=3e-3, rtol=0
    )
