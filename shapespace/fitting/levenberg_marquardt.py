"""Batched Levenberg-Marquardt on any residuals."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Alignment = Literal["fixed", "local", "yaw", "full"]


@dataclass(frozen=True)
class LMOptions:
    """Levenberg-Marquardt on the code. Lengths are model units."""

    num_points: int = 2048
    """Points drawn from the scan."""
    max_steps: int = 20
    """Largest number of steps."""
    normal_offset: float = 0.02
    """f is also asked to be +-offset at this distance along the normals, on either side of the scan. Scans without get
    estimated ones; where outside cannot be told by the points, it is where the field rises after the trial steps."""
    huber_delta: float = 0.005
    """Residuals beyond this count linearly (Huber 1964)."""
    noise_std: float = 0.005
    """Standard deviation of one residual: what a scan's word weighs against the prior's."""
    effective_samples: float = 2000.0
    """How many independent residuals the points are worth: neighbours tell the same thing."""
    free_space_points: int = 1024
    """With sensors, points on their rays that are asked to be outside."""
    free_space_ratio: float = 0.3
    """Share of the distance to the nearest point of the scan that f is asked to have there, at least. A whole scan
    would allow 1; where nothing was seen the surface may be nearer."""
    ftol: float = 1e-3
    """Stop when a step lowers the cost by less than this share."""
    trial_steps: int = 4
    """Steps, with a quarter of the points, after which only the best start of each scan goes on."""
    alignment: Alignment = "local"
    """How the scan lies: as the training scans do (given); nearly so (near), as scans of a part of a person do, whose
    middle is not the person's; upright, facing anywhere (heading); or in any way (rotation). What is not given is found
    together with the code."""
    rotation_std: float = 0.15
    """Standard deviation of the turn about each axis that is found beside a start, in radians."""
    translation_std: float = 0.15
    """Standard deviation of the shift along each axis."""
    scale_std: float = 0.01
    """Standard deviation of the change of size, as a share: stature is in the code."""
    max_candidates: int = 4
    """Where the rotation is unknown, starts that are tried at most: those in which the encoder's code fits best."""
    max_starts: int = 3
    """How many of them go on at most, after the trial; the one that fits best at the end is taken."""
    max_cost_ratio: float = 2.0
    """Starts that fit this many times worse than the best one are given up."""

    def coarse(self) -> "LMOptions":
        """The same with a quarter of the points: they tell starts apart."""
        return replace(self, num_points=max(1, self.num_points // 4), free_space_points=self.free_space_points // 4)


class LMState(NamedTuple):
    """Points of a search with the cost of each, its gradient and its Gauss-Newton matrix."""

    x: Float[Tensor, "r k"]
    cost: Float[Tensor, "r"]
    gradient: Float[Tensor, "r k"]
    hessian: Float[Tensor, "r k k"]


Objective = Callable[[Int[Tensor, "s"], Float[Tensor, "s k"]], LMState]
"""The state at given points of some rows of the batch."""

Solve = Callable[[Float[Tensor, "s k k"], Float[Tensor, "s k"]], Float[Tensor, "s k"]]
"""The solution of each damped system: matrices (symmetric, positive definite) and right-hand sides."""


def dense_cholesky(matrix: Float[Tensor, "s k k"], right: Float[Tensor, "s k"]) -> Float[Tensor, "s k"]:
    """Solve dense systems by a Cholesky factorization."""
    return torch.cholesky_solve(right[..., None], torch.linalg.cholesky(matrix))[..., 0]


def levenberg_marquardt(
    objective: Objective,
    start: Float[Tensor, "r k"],
    *,
    max_steps: int,
    ftol: float,
    solve: Solve = dense_cholesky,
) -> LMState:
    """Levenberg-Marquardt with the gain-ratio rule for the damping (Madsen, Nielsen & Tingleff 2004, section 3.2).

    Rows of the batch are independent; each stops when a step lowers its cost by less than `ftol` of it.
    """
    rows = torch.arange(len(start), device=start.device)
    state = objective(rows, start)
    damping, growth = torch.full_like(state.cost, 1e-2), torch.full_like(state.cost, 2.0)
    for _ in range(max_steps):
        now, lift = LMState(*(part[rows] for part in state)), damping[rows]
        diagonal = now.hessian.diagonal(dim1=-2, dim2=-1)
        step = -solve(now.hessian + torch.diag_embed(lift[:, None] * diagonal), now.gradient)
        promised = 0.5 * (step * (lift[:, None] * diagonal * step - now.gradient)).sum(dim=-1)
        trial = objective(rows, now.x + step)
        gained = now.cost - trial.cost
        ratio = gained / promised.clamp(min=1e-12)
        better = gained > 0
        for whole, part in zip(state, trial, strict=True):
            whole[rows[better]] = part[better]
        damping[rows] = torch.where(better, lift * (1 - (2 * ratio - 1) ** 3).clamp(min=1 / 3), lift * growth[rows])
        growth[rows] = torch.where(better, 2.0, growth[rows] * 2)
        arrived = (better & (gained < ftol * now.cost)) | (growth[rows] > 64)
        rows = rows[~arrived]
        if len(rows) == 0:
            break
    return state
