"""Interpolation of codes: linear, spherical, and geodesic on the surfaces."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shapespace.models.base import SDFModel, ShapeModel
from shapespace.models.code import Code

InterpolationPath = Literal["linear", "slerp", "geodesic"]


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


def interpolate(
    model: ShapeModel, a: Code, b: Code, steps: int, path: InterpolationPath, options: GeodesicOptions | None = None
) -> Code:
    """`steps` codes from a to b (batches of one), both ends included.

    Raises `ValueError` for fewer than two steps, an unknown path, and `geodesic` with a model that is not an SDF with a
    vector as its code.
    """
    if path not in get_args(InterpolationPath):
        raise ValueError(
            f"path {path!r} is not one of {', '.join(get_args(InterpolationPath))}. Set --path to one of them."
        )
    if path == "linear":
        return linear(a, b, steps)
    if path == "slerp":
        return slerp(a, b, steps)
    if not isinstance(model, SDFModel):
        raise ValueError(
            "--path geodesic: the model has no signed distance with a vector as the code. Use --path linear."
        )
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
