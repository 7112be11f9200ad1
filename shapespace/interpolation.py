"""Paths between codes: linear, spherical, geodesic on the surfaces, along joints; the pose of one body on another."""

from dataclasses import dataclass
from typing import Literal, TypeGuard, cast, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shapespace.geometry import articulation, similarity
from shapespace.geometry.articulation import PartPoses, PartTree, rotation_matrices, rotation_vectors
from shapespace.geometry.frame import Frame
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.base import SDFModel, ShapeModel
from shapespace.models.code import Code

InterpolationPath = Literal["auto", "linear", "slerp", "geodesic", "parts"]


@dataclass(frozen=True)
class GeodesicOptions:
    """Settings of the geodesic: Gauss-Newton on the codes between the ends."""

    points: int = 512
    """Number of points on the surface of each shape."""
    rounds: int = 4
    """Number of times that the points are drawn again from the shapes of the path."""
    steps: int = 3
    """Number of Gauss-Newton steps in each round."""
    resolution: int = 48
    """Cells along an edge of the grid from which the points are extracted."""
    seed: int = 0
    """Seed of the points."""


def has_parts(model: ShapeModel) -> TypeGuard[ArticulatedSDF]:
    """Whether the shapes of a model consist of parts with a tree."""
    return isinstance(model, ArticulatedSDF) and len(model.template.vertices) > 0


def choose_path(model: ShapeModel, path: str) -> InterpolationPath:
    """The path; for `auto`, `parts` if the model has parts, otherwise `linear`.

    Raises:
        ValueError: The path is unknown.

    """
    if path not in get_args(InterpolationPath):
        raise ValueError(
            f"path {path!r} is not one of {', '.join(get_args(InterpolationPath))}. Set --path to one of them."
        )
    chosen = path if path != "auto" else "parts" if has_parts(model) else "linear"
    return cast(InterpolationPath, chosen)


def missing_for(model: ShapeModel, path: InterpolationPath) -> str | None:
    """What a path needs that the model does not have; None: nothing."""
    if path == "geodesic" and not isinstance(model, SDFModel):
        return "signed distance with a vector as the code"
    if path == "geodesic" and isinstance(model, ArticulatedSDF):
        # Limbs that swing do not overlap: the least normal motion of the surface lets them vanish and grow again.
        return "single field, whose surface would move least"
    if path == "parts" and not has_parts(model):
        return "template with parts"
    return None


def interpolate(
    model: ShapeModel,
    a: Code,
    b: Code,
    steps: int,
    path: InterpolationPath,
    options: GeodesicOptions | None = None,
    frames: tuple[Frame, Frame] | None = None,
) -> Code:
    """`steps` codes from a to b (batches of one), both ends included.

    The path `parts` takes the bodies at the ends where their frames put them, by default the model's. The other paths
    are those of the code vector; parts that a fit moved keep their motions, blended along the path.

    Raises:
        ValueError: There are fewer than two steps, or the path is unknown or not for this model.

    """
    path = choose_path(model, path)
    if (missing := missing_for(model, path)) is not None:
        raise ValueError(f"--path {path}: the model has no {missing}. Use --path {choose_path(model, 'auto')}.")
    if path == "parts":
        assert has_parts(model)  # see `missing_for`
        return along_joints(model, a, b, steps, frames)
    if isinstance(model, ArticulatedSDF):
        whole = _interpolate_all(model, a.global_code, b.global_code, steps, path, options)
        return carry_parts(model, a, b, whole.vector)
    return _interpolate_all(model, a, b, steps, path, options)


def _interpolate_all(
    model: ShapeModel, a: Code, b: Code, steps: int, path: InterpolationPath, options: GeodesicOptions | None
) -> Code:
    """A path of all numbers of the codes."""
    if path == "linear":
        return linear(a, b, steps)
    if path == "slerp":
        return slerp(a, b, steps)
    assert isinstance(model, SDFModel)  # see `missing_for`
    return geodesic(model, a, b, steps, options)


def linear(a: Code, b: Code, steps: int) -> Code:
    """Linear interpolation (1 - t) a + t b at `steps` codes, both ends included."""
    if steps < 2:
        raise ValueError(f"--steps {steps}: a path has at least its two ends. Set --steps 2 or more.")
    t = torch.linspace(0, 1, steps, device=a.flat.device)[:, None]
    return a.unflatten(torch.lerp(a.flat, b.flat, t))


def slerp(a: Code, b: Code, steps: int) -> Code:
    """Spherical interpolation of the directions (Shoemake, SIGGRAPH 1985), linear interpolation of the norms.

    Codes between have the norms of codes, while those of `linear` are shorter. Between codes of the same or opposite
    direction, where the great circle is undefined, the path is linear.
    """
    straight = linear(a, b, steps)
    start, end = a.flat, b.flat
    t = torch.linspace(0, 1, steps, device=start.device)[:, None]
    norms = start.norm(), end.norm()
    cosine = (start * end).sum() / (norms[0] * norms[1]).clamp(min=1e-12)
    angle = cosine.clamp(-1, 1).arccos()
    if angle.sin() < 1e-4:
        return straight
    direction = (((1 - t) * angle).sin() * start / norms[0] + (t * angle).sin() * end / norms[1]) / angle.sin()
    return a.unflatten(direction * torch.lerp(norms[0], norms[1], t))


@torch.no_grad()
def geodesic(model: SDFModel, a: Code, b: Code, steps: int, options: GeodesicOptions | None = None) -> Code:
    """Path of `steps` codes along which the surfaces move least: a discrete geodesic of the decoder's metric.

    A change dz of the code moves the surface by -J dz along its normal, J the Jacobian of a signed distance in the
    code. The energy `sum_i mean_x (f(x, z_i+1) - f(x, z_i))^2`, x on the two surfaces of a segment, is minimized from
    the linear path by Gauss-Newton with fixed ends; the minimum has constant speed. Discrete geodesics: Rumpf & Wirth,
    Variational time discretization of geodesic calculus (IMA J. Numer. Anal. 2015). Latent spaces: Arvanitidis et al.
    (ICLR 2018).
    """
    options = options or GeodesicOptions()
    flat = linear(a, b, steps).flat
    rng = np.random.default_rng(options.seed)
    for _ in range(options.rounds if steps > 2 else 0):
        x = _surface_points(model, a.unflatten(flat), options, rng)
        energy, gradient, hessian = _energy(model, a, flat, x)
        damping = 1e-3
        for _ in range(options.steps):
            damped = hessian + damping * torch.diag(hessian.diagonal())
            step = -torch.linalg.solve(damped, gradient)
            moved = flat.clone()
            moved[1:-1] += step.view(len(flat) - 2, -1)
            trial = _energy(model, a, moved, x)
            if trial[0] < energy:
                flat, (energy, gradient, hessian), damping = moved, trial, damping / 5
            else:
                damping *= 10
    return a.unflatten(flat)


def _surface_points(
    model: SDFModel, path: Code, options: GeodesicOptions, rng: np.random.Generator
) -> Float[Tensor, "s q 3"]:
    """Points on the two surfaces of each segment of the path."""
    samples = [
        np.asarray(mesh.vertices)[rng.integers(len(mesh.vertices), size=options.points)]
        for mesh in model.extract_surface(path, resolution=options.resolution)
    ]
    points = torch.from_numpy(np.stack(samples)).float().to(path.flat.device)
    return torch.cat([points[:-1], points[1:]], dim=1)


def _energy(
    model: SDFModel, like: Code, flat: Float[Tensor, "n k"], x: Float[Tensor, "s q 3"]
) -> tuple[Tensor, Float[Tensor, "m"], Float[Tensor, "m m"]]:
    """Energy of the path `flat`, and its gradient and Gauss-Newton matrix in the codes between the ends."""
    count, k = flat.shape
    start, end = model.linearize(x, like.unflatten(flat[:-1])), model.linearize(x, like.unflatten(flat[1:]))
    residual = (end.value - start.value) / x.shape[1] ** 0.5
    jacobians = -start.jacobian / x.shape[1] ** 0.5, end.jacobian / x.shape[1] ** 0.5
    gradient, hessian = flat.new_zeros(count, k), flat.new_zeros(count, k, count, k)
    for segment in range(count - 1):
        both = torch.cat([jacobian[segment] for jacobian in jacobians], dim=1)
        gradient[segment : segment + 2] += (both.T @ residual[segment]).view(2, k)
        hessian[segment : segment + 2, :, segment : segment + 2] += (both.T @ both).view(2, k, 2, k)
    inner = slice(1, -1)
    return residual.square().sum(), gradient[inner].flatten(), hessian[inner, :, inner].reshape((count - 2) * k, -1)


# ---------------------------------------------------------------------------------------------------------------- parts


@torch.no_grad()
def along_joints(
    model: ArticulatedSDF, a: Code, b: Code, steps: int, frames: tuple[Frame, Frame] | None = None
) -> Code:
    """Path of `steps` codes along which each part turns evenly about its joint with its parent.

    Joints move straight in the frames of the parents; global and local codes are straight. With the frames of both ends
    (those between are `similarity.interpolate_frames`) the root moves straight and turns evenly in the world, otherwise
    in the model frame.
    """
    whole = linear(a.global_code, b.global_code, steps)
    start, end = model.expand(a), model.expand(b)
    share, tree = torch.linspace(0, 1, steps), model.part_tree()
    poses = articulation.interpolate_poses(tree, _poses(start), _poses(end), share)
    if frames is not None:
        between = [similarity.interpolate_frames(*frames, float(t)) for t in share]
        poses = _steady_root(tree, poses, between)
    local_code = torch.lerp(start.parts[3], end.parts[3], share.to(start.parts[3])[:, None, None])
    return _with_ends(start, Code((whole.vector, *_tensors(poses, like=start), local_code)), end)


@torch.no_grad()
def carry_parts(model: ArticulatedSDF, a: Code, b: Code, vectors: Float[Tensor, "s z"]) -> Code:
    """Codes with these vectors from a to b; the motions that parts of a fit have from those of their global code go on.

    Those of a are carried to each vector, and those of b, and blended: straight, rotations at constant speed.
    """
    if len(a.parts) == len(b.parts) == 1:
        return Code((vectors,))
    first, last = model.expand(a), model.expand(b)
    start, end = (
        model.states(
            model.replace_vector(Code(tuple(part.expand(len(vectors), *part.shape[1:]) for part in x.parts)), vectors)
        )
        for x in (first, last)
    )
    share = torch.linspace(0, 1, len(vectors), device=vectors.device)[:, None, None]
    rotation = start.rotation @ rotation_matrices(share * rotation_vectors(start.rotation.mT @ end.rotation))
    center, local_code = (
        torch.lerp(start.center, end.center, share),
        torch.lerp(start.local_code, end.local_code, share),
    )
    return _with_ends(first, Code((vectors, center, rotation, local_code)), last)


@torch.no_grad()
def transfer_pose(model: ShapeModel, pose: Code, person: Code) -> Code:
    """The second body in the pose of the first: rotations along the joints and place of the root of the first.

    Sizes (`articulation.transfer_pose`) and local codes are those of the second. The global code, on which the shape
    does not depend, is that of the first, whose parts are nearer.

    Raises:
        ValueError: The model has no parts.

    """
    if not has_parts(model):
        raise ValueError("pose transfer: the model has no template with parts. Use a space of the articulated family.")
    taken, sizes = model.expand(pose), model.expand(person)
    poses = articulation.transfer_pose(model.part_tree(), _poses(taken), _poses(sizes))
    moved = (tensor[None] for tensor in _tensors(poses, like=taken))
    return Code((taken.parts[0], *moved, sizes.parts[3]))


def _poses(code: Code) -> PartPoses:
    """Poses of the parts of one body, on the CPU like the tree."""
    return PartPoses(code.parts[1][0].cpu(), code.parts[2][0].cpu())


def _tensors(poses: PartPoses, like: Code) -> tuple[Tensor, Tensor]:
    return poses.center.to(like.parts[1]), poses.rotation.to(like.parts[2])


def _with_ends(first: Code, path: Code, last: Code) -> Code:
    """The path with exactly these ends."""
    return Code.concatenate([first, path[1:-1], last])


def _steady_root(tree: PartTree, poses: PartPoses, frames: list[Frame]) -> PartPoses:
    """The bodies, moved rigidly so that the root goes straight and turns evenly in the world.

    Where frames and bodies turn against each other, both turns by their shorter ways could add up to a full turn.
    """
    root, share = tree.root, torch.linspace(0, 1, len(frames))[:, None]
    to_model = torch.stack([torch.eye(3) if frame.rotation is None else frame.rotation for frame in frames])
    place = torch.cat([frame.to_world(own) for frame, own in zip(frames, poses.center[:, root, None], strict=True)])
    turned = to_model.mT @ poses.rotation[:, root]
    place = torch.lerp(place[0], place[-1], share)
    turned = turned[0] @ rotation_matrices(share * rotation_vectors(turned[0].mT @ turned[-1]))
    center = torch.stack([frame.to_model(own) for frame, own in zip(frames, place[:, None], strict=True)])
    motion = (to_model @ turned @ poses.rotation[:, root].mT)[:, None]
    offset = poses.center - poses.center[:, root, None]
    return PartPoses(center + (motion @ offset[..., None])[..., 0], motion @ poses.rotation)
