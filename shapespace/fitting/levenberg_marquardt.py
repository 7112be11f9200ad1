"""Levenberg-Marquardt for a batch of independent least-squares problems; the settings of a fit."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shapespace.fitting.block_cholesky import ROUNDING

INITIAL_DAMPING = 1e-2  # in units of the diagonal of the Hessian; arbitrary: the gain ratio adapts it in a few steps
TRIAL_JOINT_WEIGHT = 6.0
# Stiff joints first. Hands of five tuning people, in the worst fit: 58 mm without joints at the first level, 36 with a
# weight of 1 in all steps, 18 mm with 6; with 30 the median completeness was 3.0 instead of 2.6 mm.
MAX_GROWTH = 64  # a problem ends when six steps in a row raised its cost (the growth doubles from 2)

Alignment = Literal["fixed", "local", "yaw", "full"]
"""What is unknown about the pose of a scan: nothing, a small motion, the heading, or the whole rotation."""


@dataclass(frozen=True)
class PartOptions:
    """Settings of the second level of a fit: the parts, from the result of the first. Lengths are in model units."""

    num_points: int = 2048
    """Number of points that are drawn from the scan, more of them where parts are small."""
    normal_offset: float = 0.003
    """As for the first level; fingers and toes are thin, and here the surface is near."""
    max_steps: int = 12
    """Maximum number of steps."""
    border_std: float = 0.004
    """Standard deviation of the change of the gap between two neighboring parts at their border."""
    max_gap: float = 3.0
    """Largest gap at such a border that is left as the first level has it, in units of its standard deviation in
    training bodies; larger ones are closed to this length."""
    translation_std: float = 0.05
    """Standard deviation of the translation of a part from the first level."""
    rotation_std: float = 0.3
    """Standard deviation of the rotation of a part from the first level (radians, about each axis)."""
    local_std: float = 0.5
    """Standard deviation of the change of a local code, in those of the training scans."""
    ftol: float = 1e-2
    """Relative decrease of the cost below which the fit stops."""


@dataclass(frozen=True)
class DisplacementOptions:
    """Settings of the third level of a fit: the vertices of the registered template. Lengths are in model units."""

    num_points: int = 20_000
    """Maximum number of points that are drawn from the scan."""
    std: float = 0.0024
    """Standard deviation of the displacement of a vertex along its normal."""
    correlation_length: float = 0.08
    """Distance along the template at which two displacements have a correlation of 0.1."""
    noise_std: float = 0.002
    """Least standard deviation of the noise of a point; that of each scan is estimated."""
    max_distance: float = 0.012
    """Distance of a point from the surface at which its weight is a quarter."""
    rounds: int = 2
    """Number of times that the closest points on the surface are determined."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for values that are not positive."""
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"--lm.displacement.{name.replace('_', '-')} {value:g}: must be above 0.")


@dataclass(frozen=True)
class LMOptions:
    """Settings of a fit by Levenberg-Marquardt. Lengths are in model units."""

    num_points: int = 2048
    """Number of points that are drawn from the scan."""
    max_steps: int = 20
    """Maximum number of steps."""
    normal_offset: float = 0.01
    """Distance of the off-surface points along the normals, on both sides, where f is fitted to +-offset (Carr et al.
    2001). Scans without normals get estimated ones; if the points do not show which side is outside, it is the side
    on which the field increases after the trial steps."""
    huber_delta: float = 0.005
    """Residual above which the loss is linear (Huber 1964)."""
    noise_std: float = 0.005
    """Standard deviation of a residual; it sets the weight of the data against the code prior."""
    effective_samples: float = 2000.0
    """Effective number of independent residuals (neighboring points are correlated)."""
    free_space_points: int = 1024
    """Number of free-space points on the rays to the sensors, if the scan has sensors."""
    free_space_ratio: float = 0.3
    """Lower bound on f in free space, as a fraction of the distance to the nearest scan point. 1 is exact for complete
    scans; smaller values allow for unseen surface."""
    ftol: float = 1e-3
    """Relative decrease of the cost below which the fit stops."""
    num_starts: int = 1
    """Number of codes from which a scan's trial steps start, for families that have parts; others have two."""
    search_starts: int = 62
    """Number of training bodies from which the pose is searched if too much of a scan is far from its first fit, for
    families that have parts."""
    far_distance: float = 0.02
    """Distance from the surface beyond which a point of the scan is far."""
    max_far_share: float = 0.003
    """Share of far points above which the pose is searched."""
    max_outside_share: float = 0.005
    """Share of the parts of the fitted body, by the areas of their spheres, that are outside of the scan (in front of
    its surface) above which the pose is searched."""
    trial_steps: int = 4
    """Number of steps with a quarter of the points, after which the best starts of each scan are selected."""
    alignment: Alignment = "local"
    """Pose of the scan: as in training (fixed), a small correction of it (local: partial scans are not centered on the
    person), upright with any heading (yaw), or any rotation (full)."""
    rotation_std: float = 0.15
    """Standard deviation of the rotation from a start, about each axis, in radians."""
    translation_std: float = 0.15
    """Standard deviation of the translation along each axis."""
    scale_std: float = 0.01
    """Standard deviation of the relative change of scale (the code holds the stature)."""
    max_candidates: int = 4
    """Maximum number of rotations of a scan that are tried, with the alignments `yaw` and `full`."""
    max_starts: int = 3
    """Maximum number of them that are fitted after the trial steps; the one with the lowest cost is the result."""
    max_cost_ratio: float = 2.0
    """Drop starts whose cost exceeds the best one by this factor."""
    joint_weight: float = 1.0
    """Weight of the gaps between neighboring parts beside their spread in training bodies, at the first level of
    families that have parts; it is six times as large in the trial steps."""
    levels: Literal[1, 2, 3] = 3
    """Levels of a fit: the code alone (1), then the body parts (2), then the vertices of the registered template (3),
    for spaces that have them."""
    parts: PartOptions = field(default_factory=PartOptions)
    """Settings of the second level."""
    displacement: DisplacementOptions = field(default_factory=DisplacementOptions)
    """Settings of the third level."""

    def before_parts(self) -> "LMOptions":
        """The settings of the first level if the second follows: half of the points, and ten times `ftol`."""
        return replace(
            self,
            num_points=max(1, self.num_points // 2),
            free_space_points=self.free_space_points // 2,
            ftol=10 * self.ftol,
        )

    def before_displacement(self) -> "LMOptions":
        """The settings of the second level if the third follows, which makes up for the last of its steps."""
        return replace(self, parts=replace(self.parts, ftol=3 * self.parts.ftol))

    def coarse(self) -> "LMOptions":
        """The settings of the trial steps: a quarter of the points, and stiffer joints."""
        return replace(
            self,
            num_points=max(1, self.num_points // 4),
            free_space_points=self.free_space_points // 4,
            joint_weight=TRIAL_JOINT_WEIGHT * self.joint_weight,
        )


class LMState(NamedTuple):
    """Unknowns of a batch of problems, with the cost of each, its gradient and its Gauss-Newton matrix.

    The matrix has the form that the solver takes: (r, k, k) for `DenseCholesky`.
    """

    x: Float[Tensor, "r k"]
    cost: Float[Tensor, "r"]
    gradient: Float[Tensor, "r k"]
    hessian: Float[Tensor, "r ..."]


Objective = Callable[[Int[Tensor, "s"], Float[Tensor, "s k"]], LMState]
"""`objective(rows, x)`: the state of these problems of the batch at x."""


@runtime_checkable
class Solver(Protocol):
    """Linear algebra of the normal equations, for one form of their matrices."""

    def diagonal(self, hessian: Float[Tensor, "s ..."]) -> Float[Tensor, "s k"]:
        """The diagonal of each matrix."""

    def solve(
        self, hessian: Float[Tensor, "s ..."], added: Float[Tensor, "s k"], right: Float[Tensor, "s k"]
    ) -> Float[Tensor, "s k"]:
        """The solution of each system with `added` on its diagonal; matrices are symmetric and positive definite."""


class DenseCholesky:
    """Cholesky factorization of dense matrices; in float64 where float32 fails."""

    def diagonal(self, hessian: Float[Tensor, "s k k"]) -> Float[Tensor, "s k"]:
        """The diagonal of each matrix."""
        return hessian.diagonal(dim1=-2, dim2=-1)

    def solve(
        self, hessian: Float[Tensor, "s k k"], added: Float[Tensor, "s k"], right: Float[Tensor, "s k"]
    ) -> Float[Tensor, "s k"]:
        """The solution of each system with `added` on its diagonal."""
        factor = cholesky(hessian + torch.diag_embed(added))
        return torch.cholesky_solve(right[..., None].to(factor), factor)[..., 0].to(right)


DENSE = DenseCholesky()


def cholesky(matrix: Float[Tensor, "s k k"]) -> Float[Tensor, "s k k"]:
    """Cholesky factors, in float64 where float32 fails; raises `torch.linalg.LinAlgError` if nothing helps.

    Rounding makes the matrix of a code indefinite where numbers of the code have very different variances. Where
    float64 fails too, the rounding errors are added to the diagonal (`block_cholesky.ROUNDING`).
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not info.any():
        return factor
    exact = matrix.double()
    own = torch.diag_embed(exact.diagonal(dim1=-2, dim2=-1))
    for share in ROUNDING[:-1]:
        factor, info = torch.linalg.cholesky_ex(exact + share * own)
        if not info.any():
            return factor
    return torch.linalg.cholesky(exact + ROUNDING[-1] * own)


def levenberg_marquardt(
    objective: Objective,
    start: Float[Tensor, "r k"],
    *,
    max_steps: int,
    ftol: float,
    solver: Solver = DENSE,
) -> LMState:
    """Minimize each cost of the batch from its row of `start`; return the best state of each.

    A problem ends when a step lowers its cost by less than the fraction `ftol`, or after `max_steps`. The damping
    multiplies the diagonal of the Hessian and follows the gain ratio (Madsen, Nielsen & Tingleff 2004, section 3.2).
    """
    rows = torch.arange(len(start), device=start.device)
    state = objective(rows, start)
    dampings, growth = torch.full_like(state.cost, INITIAL_DAMPING), torch.full_like(state.cost, 2.0)
    for _ in range(max_steps):
        current, damping = LMState(*(part[rows] for part in state)), dampings[rows]
        diagonal = solver.diagonal(current.hessian)
        step = -solver.solve(current.hessian, damping[:, None] * diagonal, current.gradient)
        predicted = 0.5 * (step * (damping[:, None] * diagonal * step - current.gradient)).sum(dim=-1)
        trial = objective(rows, current.x + step)
        decrease = current.cost - trial.cost
        ratio = decrease / predicted.clamp(min=1e-12)
        accepted = decrease > 0
        for old, new in zip(state, trial, strict=True):
            old[rows[accepted]] = new[accepted]
        dampings[rows] = torch.where(
            accepted, damping * (1 - (2 * ratio - 1) ** 3).clamp(min=1 / 3), damping * growth[rows]
        )
        growth[rows] = torch.where(accepted, 2.0, growth[rows] * 2)
        converged = (accepted & (decrease < ftol * current.cost)) | (growth[rows] > MAX_GROWTH)
        rows = rows[~converged]
        if len(rows) == 0:
            break
    return state
