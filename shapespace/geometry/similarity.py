"""Small rigid motions and changes of size, with their derivatives; and rotations to start from."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor

from shapespace.geometry.frame import Frame

SIZE = 7  # numbers of a pose: a rotation vector (radians), a shift, the logarithm of a size

Unknown = Literal["yaw", "full"]


def apply(
    points: Float[Tensor, "r q 3"], pose: Float[Tensor, "r 7"]
) -> tuple[Float[Tensor, "r q 3"], Float[Tensor, "r 3 3"]]:
    """Points y = e^s exp(w) x + t, for a pose (w, t, s); and the matrix that `by_pose` needs beside them."""
    turn, shift, size = pose[:, :3], pose[:, None, 3:6], pose[:, None, 6:]
    cross = _cross(turn)
    angle = turn.norm(dim=1).clamp(min=1e-4)[:, None, None]
    left = (
        torch.eye(3, device=pose.device)
        + (1 - angle.cos()) / angle.square() * cross
        + (angle - angle.sin()) / angle**3 * cross @ cross
    )
    return size.exp() * (points @ torch.linalg.matrix_exp(cross).mT) + shift, left


def jacobian(
    gradient: Float[Tensor, "r q 3"],
    moved: Float[Tensor, "r q 3"],
    pose: Float[Tensor, "r 7"],
    left: Float[Tensor, "r 3 3"],
) -> Float[Tensor, "r q 7"]:
    """Derivatives of f(y) with respect to the pose that moved x to y, from the gradient of f there.

    By the left Jacobian of the rotation group (Solà, Deray & Atchuthan, A micro Lie theory, 2018, eq. 145).
    """
    about = moved - pose[:, None, 3:6]
    turning = torch.linalg.cross(about, gradient) @ left
    return torch.cat([turning, gradient, (gradient * about).sum(dim=2, keepdim=True)], dim=2)


def frame_of(pose: Float[Tensor, "7"]) -> Frame:
    """The same motion as a frame."""
    rotation, scale = torch.linalg.matrix_exp(_cross(pose[None, :3]))[0], (-pose[6]).exp()
    return Frame(-scale * (rotation.T @ pose[3:6]), scale, rotation)


def interpolate_frames(a: Frame, b: Frame, share: float) -> Frame:
    """A frame on the way from a to b: centre and scale along a straight line, the rotation at an even speed."""
    centre, scale = torch.lerp(a.center, b.center, share), torch.lerp(a.scale, b.scale, share)
    if a.rotation is None and b.rotation is None:
        return Frame(centre, scale)
    ends = [torch.eye(3) if frame.rotation is None else frame.rotation for frame in (a, b)]
    turn = Slerp([0, 1], Rotation.from_matrix(torch.stack(ends).numpy()))(share)
    return Frame(centre, scale, torch.from_numpy(turn.as_matrix()).to(centre))


def second_differences(frames: Sequence[Frame]) -> Float[Tensor, "m 7"]:
    """Second differences of frames along time, for all but both ends, in the numbers of a pose (float64).

    To first order, frames that are moved further by small poses p bend by this and the second differences of p.
    """
    still = torch.eye(3)
    turns = Rotation.from_matrix([(still if frame.rotation is None else frame.rotation).numpy() for frame in frames])
    steps = (turns[1:] * turns[:-1].inv()).as_rotvec()
    centres = np.stack([frame.center.double().numpy() for frame in frames])
    scales = np.array([float(frame.scale) for frame in frames])
    moved = turns[1:-1].apply(np.diff(centres, 2, axis=0)) / scales[1:-1, None]
    return torch.from_numpy(np.concatenate([np.diff(steps, axis=0), -moved, -np.diff(np.log(scales), 2)[:, None]], 1))


def rotation_grid(unknown: Unknown | None) -> Float[np.ndarray, "k 3 3"]:
    """Rotations no more than 45 degrees from any other one: 8 headings about y, or the 60 turns of an icosahedron."""
    if unknown is None:
        return np.eye(3)[None]
    if unknown == "yaw":
        return Rotation.from_rotvec([[0, angle, 0] for angle in np.arange(8) * np.pi / 4]).as_matrix()
    return Rotation.create_group("I").as_matrix()


def rotation_neighborhood(unknown: Unknown, angle: float) -> Float[np.ndarray, "k 3 3"]:
    """No rotation, and those by `angle` degrees to either side: about y, or about the six axes of an icosahedron."""
    axes = np.array([[0.0, 1.0, 0.0]])
    if unknown == "full":
        golden = (1 + 5**0.5) / 2
        corners = np.array([[0, 1, golden], [0, 1, -golden]]) / np.hypot(1, golden)
        axes = np.concatenate([np.roll(corners, shift, axis=1) for shift in range(3)])
    return Rotation.from_rotvec(np.deg2rad(angle) * np.concatenate([np.zeros((1, 3)), axes, -axes])).as_matrix()


def _cross(vectors: Float[Tensor, "r 3"]) -> Float[Tensor, "r 3 3"]:
    """The matrices that multiply by a cross product from the left."""
    x, y, z = vectors.unbind(dim=1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).view(-1, 3, 3)
