"""Ways from one code to another that look at the shapes between: the shortest one on the surface."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shapespace.models import code
from shapespace.models.base import SDFModel, ShapeModel
from shapespace.models.code import Code

InterpolationPath = Literal["linear", "slerp", "geodesic"]


@dataclass(frozen=True)
class GeodesicOptions:
    """Gauss-Newton on the codes of a path."""

    points: int = 512
    """Points on the surface of each shape."""
    rounds: int = 4
    """How often points are taken anew from the shapes of the path."""
    steps: int = 3
    """Gauss-Newton steps in each round."""
    resolution: int = 48
    """Cells of the grid on which a shape's surface is looked for."""
    seed: int = 0


def interpolate(
    model: ShapeModel, a: Code, b: Code, steps: int, path: InterpolationPath, options: GeodesicOptions | None = None
) -> Code:
    """`steps` codes from a to b, both ends included, along one of the paths.

    Raises `ValueError` if the shortest is asked of a model whose field is no signed distance of a vector.
    """
    if path != "geodesic":
        return code.between(a, b, steps, path)
    if not isinstance(model, SDFModel):
        raise ValueError("the shortest path needs signed distances and codes that are vectors: take linear.")
    return geodesic(model, a, b, steps, options)


@torch.no_grad()
def geodesic(model: SDFModel, a: Code, b: Code, steps: int, options: GeodesicOptions | None = None) -> Code:
    """The path along which surfaces move least: a discrete geodesic of the metric that the decoder pulls back.

    A shape's neighbour in the direction dz has its surface moved by -J dz along the normal, where J is the Jacobian of
    a signed distance in the code. The length of a path is measured by these moves, and its energy
    `sum_i mean_x (f(x, z_i+1) - f(x, z_i))^2`, x on either surface, is lowered from the straight path by Gauss-Newton
    with the ends fixed; least energy also means even speed. Discrete geodesics: Rumpf & Wirth, Variational time
    discretization of geodesic calculus (IMA J. Numer. Anal. 2015); of latent spaces: Arvanitidis et al. (ICLR 2018).
    """
    options = options or GeodesicOptions()
    flat = code.between(a, b, steps, "linear").flat
    rng = np.random.default_rng(options.seed)
    for _ in range(options.rounds if steps > 2 else 0):
        x = _surfaces(model, a.unflatten(flat), options, rng)
        energy, gradient, hessian = _energy(model, a, flat, x)
        damping = 1e-3
        for _ in range(options.steps):
            damped = hessian + damping * torch.diag(hessian.diagonal())
            step = -torch.linalg.solve(damped, gradient)
            moved = flat.clone()
            moved[1:-1] += step.view(len(flat) - 2, -1)
            tried = _energy(model, a, moved, x)
            if tried[0] < energy:
                flat, (energy, gradient, hessian), damping = moved, tried, damping / 5
            else:
                damping *= 10
    return a.unflatten(flat)


def _surfaces(
    model: SDFModel, path: Code, options: GeodesicOptions, rng: np.random.Generator
) -> Float[Tensor, "s q 3"]:
    """Points on the surface of each segment's two shapes."""
    drawn = [
        np.asarray(mesh.vertices)[rng.integers(len(mesh.vertices), size=options.points)]
        for mesh in model.extract_surface(path, resolution=options.resolution)
    ]
    on = torch.from_numpy(np.stack(drawn)).float()
    return torch.cat([on[:-1], on[1:]], dim=1)


def _energy(
    model: SDFModel, kind: Code, flat: Float[Tensor, "n k"], x: Float[Tensor, "s q 3"]
) -> tuple[Tensor, Float[Tensor, "m"], Float[Tensor, "m m"]]:
    """Energy of the path, and its gradient and Gauss-Newton matrix with respect to the codes between the ends."""
    count, k = flat.shape
    start, end = model.linearize(x, kind.unflatten(flat[:-1])), model.linearize(x, kind.unflatten(flat[1:]))
    moved = (end.value - start.value) / x.shape[1] ** 0.5
    jacobians = -start.jacobian / x.shape[1] ** 0.5, end.jacobian / x.shape[1] ** 0.5
    gradient, hessian = flat.new_zeros(count, k), flat.new_zeros(count, k, count, k)
    for segment in range(count - 1):
        both = torch.cat([part[segment] for part in jacobians], dim=1)
        gradient[segment : segment + 2] += (both.T @ moved[segment]).view(2, k)
        hessian[segment : segment + 2, :, segment : segment + 2] += (both.T @ both).view(2, k, 2, k)
    inner = slice(1, -1)
    return moved.square().sum(), gradient[inner].flatten(), hessian[inner, :, inner].reshape((count - 2) * k, -1)
