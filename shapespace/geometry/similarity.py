"""Similarity transforms with derivatives, rotation grids, and interpolation of frames."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor

from shapespace.geometry.frame import Frame

NUM_PARAMETERS = 7  # of a similarity transform: rotation vector (radians), translation, logarithm of the scale

UnknownRotation = Literal["yaw", "full"]


def apply(
    points: Float[Tensor, "r q 3"], transform: Float[Tensor, "r 7"]
) -> tuple[Float[Tensor, "r q 3"], Float[Tensor, "r 3 3"]]:
    """Points y = e^s exp(w) x + t for transforms (w, t, s), and the matrix that `jacobian` needs."""
    rotation, translation, log_scale = transform[:, :3], transform[:, None, 3:6], transform[:, None, 6:]
    turned = points @ torch.linalg.matrix_exp(cross_matrix(rotation)).mT
    return log_scale.exp() * turned + translation, left_jacobian(rotation)


def jacobian(
    gradient: Float[Tensor, "r q 3"],
    moved: Float[Tensor, "r q 3"],
    transform: Float[Tensor, "r 7"],
    left: Float[Tensor, "r 3 3"],
) -> Float[Tensor, "r q 7"]:
    """Derivatives of f(y) with respect to the transform that moved x to y, from the gradient of f at y.

    `left` is the `left_jacobian` of its rotation.
    """
    offset = moved - transform[:, None, 3:6]
    rotational = torch.linalg.cross(offset, gradient) @ left
    return torch.cat([rotational, gradient, (gradient * offset).sum(dim=2, keepdim=True)], dim=2)


def frame_of(transform: Float[Tensor, "7"]) -> Frame:
    """Frame of the same transform."""
    rotation, scale = torch.linalg.matrix_exp(cross_matrix(transform[None, :3]))[0], (-transform[6]).exp()
    return Frame(-scale * (rotation.T @ transform[3:6]), scale, rotation)


def interpolate_frames(a: Frame, b: Frame, share: float) -> Frame:
    """Frame between a (0) and b (1): center and scale linearly, rotation at constant angular speed (slerp)."""
    center, scale = torch.lerp(a.center, b.center, share), torch.lerp(a.scale, b.scale, share)
    if a.rotation is None and b.rotation is None:
        return Frame(center, scale)
    ends = [torch.eye(3) if frame.rotation is None else frame.rotation for frame in (a, b)]
    rotation = Slerp([0, 1], Rotation.from_matrix(torch.stack(ends).numpy()))(share)
    return Frame(center, scale, torch.from_numpy(rotation.as_matrix()).to(center))


def second_differences(frames: Sequence[Frame]) -> Float[Tensor, "m 7"]:
    """Second differences of frames over time, for all frames but the first and the last, as transforms (float64).

    To first order, frames followed by small transforms p have these plus the second differences of p.
    """
    identity = torch.eye(3)
    rotations = Rotation.from_matrix(
        [(identity if frame.rotation is None else frame.rotation).numpy() for frame in frames]
    )
    steps = (rotations[1:] * rotations[:-1].inv()).as_rotvec()
    centers = np.stack([frame.center.double().numpy() for frame in frames])
    scales = np.array([float(frame.scale) for frame in frames])
    moved = rotations[1:-1].apply(np.diff(centers, 2, axis=0)) / scales[1:-1, None]
    return torch.from_numpy(np.concatenate([np.diff(steps, axis=0), -moved, -np.diff(np.log(scales), 2)[:, None]], 1))


def rotation_grid(unknown: UnknownRotation | None) -> Float[np.ndarray, "k 3 3"]:
    """Rotations that cover the unknown ones to within 45 degrees: 8 about y, or the 60 of an icosahedron.

    The identity alone if nothing is unknown.
    """
    if unknown is None:
        return np.eye(3)[None]
    if unknown == "yaw":
        return Rotation.from_rotvec([[0, angle, 0] for angle in np.arange(8) * np.pi / 4]).as_matrix()
    return Rotation.create_group("I").as_matrix()


def rotation_neighborhood(unknown: UnknownRotation, angle: float) -> Float[np.ndarray, "k 3 3"]:
    """The identity, and rotations by +-`angle` degrees: about y, or about the six axes of an icosahedron."""
    axes = np.array([[0.0, 1.0, 0.0]])
    if unknown == "full":
        golden = (1 + 5**0.5) / 2
        corners = np.array([[0, 1, golden], [0, 1, -golden]]) / np.hypot(1, golden)
        axes = np.concatenate([np.roll(corners, shift, axis=1) for shift in range(3)])
    return Rotation.from_rotvec(np.deg2rad(angle) * np.concatenate([np.zeros((1, 3)), axes, -axes])).as_matrix()


def left_jacobian(vectors: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """Left Jacobian of the rotation group (Solà, Deray & Atchuthan, A micro Lie theory, 2018, eq. 145)."""
    cross = cross_matrix(vectors)
    angle = vectors.norm(dim=-1).clamp(min=1e-4)[..., None, None]
    return (
        torch.eye(3, device=vectors.device)
        + (1 - angle.cos()) / angle.square() * cross
        + (angle - angle.sin()) / angle**3 * cross @ cross
    )


def cross_matrix(vectors: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """Matrices of the cross products with the vectors from the left."""
    x, y, z = vectors.unbind(dim=-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))


def heading(frame: Frame) -> float:
    """Rotation of a frame about the vertical axis, in degrees from -180 to 180."""
    if frame.rotation is None:
        return 0.0
    forward = frame.rotation[:, 2]
    return float(np.rad2deg(np.arctan2(float(forward[0]), float(forward[2]))))
