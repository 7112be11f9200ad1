"""Fit the frames of a motion jointly, and interpolate the frames that are missing.

Each frame is fitted alone first. Then Gauss-Newton minimizes the sum of the frames' own costs (`residuals.FitProblem`)
and of the squared second differences of codes and alignments along time. Frames without a scan have no cost of their
own.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shapespace.fitting import tridiagonal
from shapespace.fitting.displacement import Displacement, fit_local_levels
from shapespace.fitting.levenberg_marquardt import LMOptions, LMState, levenberg_marquardt
from shapespace.fitting.quality import ood_score
from shapespace.fitting.registration import Registration
from shapespace.fitting.residuals import FitProblem, estimate_normals, orient_normals, resample, residuals
from shapespace.geometry import similarity
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.base import SDFModel
from shapespace.models.code import Code

MIN_COST_DECREASE = 0.02  # relative decrease of the cost for which a frame is fitted from its neighbor's code
MAX_MISSING_FRAMES = 10  # in a row; arbitrary: neighbors predict a motion for a fraction of a second


@dataclass(frozen=True)
class SequenceOptions:
    """Settings of a joint fit."""

    acceleration_std: float = 0.1
    """Standard deviation of a second difference along time, in units of the standard deviations of the code prior and
    of the alignment in `LMOptions`. Smaller is smoother."""
    max_steps: int = 4
    """Maximum number of Gauss-Newton steps."""
    fps: float = 25.0
    """Frame rate of the animation (1/s)."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for values that are not positive."""
        for name in ("acceleration_std", "fps"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"--sequence.{name.replace('_', '-')} {value:g}: must be above 0.")


class SequenceFit(NamedTuple):
    """Result of a joint fit."""

    code: Code
    covariance: Float[Tensor, "n c c"]
    """Covariance of each frame's flat code, given all frames."""
    frames: list[Frame]
    residual: list[Float[Tensor, "m"]]
    """|f| at points of each scan, in model units; empty for interpolated frames."""
    interpolated: list[bool]
    part_covariance: list[Float[Tensor, "j p p"] | None]
    """Covariance of the unknowns of each frame's parts; None without a second level, and for interpolated frames."""
    displacement: Displacement | None
    """Displacements of the registered templates; None without a third level."""


def order_frames(scans: Sequence[Scan]) -> list[Scan]:
    """Sort scans by the numbers in their names, and insert a scan without points for each missing number.

    Numbers can be missing if all names are the same text and a number after it; the step is the smallest difference of
    two successive numbers. Raises `ValueError` if more than ten are missing in a row.
    """

    def key(scan: Scan) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", scan.name)]

    ordered = sorted(scans, key=key)
    names = [re.fullmatch(r"(.*?)(\d+)", scan.name) for scan in ordered]
    if len({None if name is None else name[1] for name in names}) != 1 or names[0] is None:
        return ordered
    numbers = [int(name[2]) for name in names if name is not None]
    step = max(1, min(np.diff(numbers), default=1))
    frames = ordered[:1]
    for before, after, scan in zip(numbers, numbers[1:], ordered[1:], strict=False):
        missing = list(range(before + step, after, step))
        if len(missing) > MAX_MISSING_FRAMES:
            raise ValueError(
                f"{len(missing)} frames are missing between {frames[-1].name} and {scan.name}, at most "
                f"{MAX_MISSING_FRAMES} in a row can be interpolated. Fit both sides of the gap separately."
            )
        width = len(names[0][2])
        frames += [Scan(f"{names[0][1]}{number:0{width}d}", np.empty((0, 3), np.float32)) for number in missing]
        frames.append(scan)
    return frames


class FrameFit(NamedTuple):
    """A scan (meters), its code (a batch of one) and its frame."""

    scan: Scan
    code: Code
    frame: Frame


def fit_jointly(
    model: SDFModel,
    scans: Sequence[Scan],
    codes: Sequence[Code | None],
    frames: Sequence[Frame | None],
    lm: LMOptions,
    options: SequenceOptions,
    *,
    registration: Registration | None = None,
    seed: int = 0,
) -> SequenceFit:
    """Fit the frames of a sequence jointly; scans in meters, codes and frames from the fits of each alone.

    Interpolated are frames without a code, and frames that are out of distribution even from the code of a neighbor.
    Raises `ValueError` for fewer than three frames, or fewer than two that are not interpolated.
    """
    alone = {
        index: FrameFit(estimate_normals(scan, seed), code, frame)
        for index, (scan, code, frame) in enumerate(zip(scans, codes, frames, strict=True))
        if code is not None and frame is not None
    }
    _check_count(len(alone), len(scans))
    alone = retry_from_neighbors(model, alone, lm, seed)
    prior = model.prior
    fitted = {index: fit for index, fit in alone.items() if ood_score(fit.code, prior) <= prior.ood_limit}
    _check_count(len(fitted), len(scans))
    sequence = [fitted[index] if index in fitted else _interpolated(fitted, index) for index in range(len(scans))]
    rows = sorted(fitted)
    problem = fit_problem(model, [sequence[index] for index in rows], lm, seed)
    flat, covariance = solve_sequence(problem, rows, sequence, lm, options)
    flat_codes, alignments = problem.split(flat)
    code = problem.codes.unflatten(flat_codes)
    result = [fit.frame for fit in sequence]
    if problem.has_alignment:
        result = [
            frame.compose(similarity.frame_of(alignment))
            for frame, alignment in zip(result, alignments.cpu(), strict=True)
        ]
    by_part: list[Float[Tensor, "j p p"] | None] = [None] * len(scans)
    displacement = None
    if lm.levels >= 2 and isinstance(model, ArticulatedSDF):
        moved = [fitted[index].scan.to_model(result[index]) for index in rows]
        local = fit_local_levels(model, moved, code[torch.tensor(rows)], registration, lm, seed)
        code = model.expand(code)
        for place, index in enumerate(rows):
            by_part[index] = local.part_covariance[place]
            for whole, own in zip(code.parts, local.code.parts, strict=True):
                whole[index] = own[place]
        if local.displacement is not None:
            displacement = Displacement(*(_at_all_frames(rows, tensor, len(scans)) for tensor in local.displacement))
    residual = [
        residuals(model, [fit.scan.to_model(frame)], code[index], seed)[0] if index in fitted else flat.new_zeros(0)
        for index, (fit, frame) in enumerate(zip(sequence, result, strict=True))
    ]
    interpolated = [index not in fitted for index in range(len(scans))]
    return SequenceFit(code, covariance, result, residual, interpolated, by_part, displacement)


def _check_count(fitted: int, frames: int) -> None:
    """Raise `ValueError` if there are too few frames for a joint fit."""
    if fitted < 2 or frames < 3:
        raise ValueError(
            f"{fitted} of {frames} frames have a fit in distribution. A sequence needs at least three frames, and two "
            "of them with such a fit: fit the scans without --as-sequence."
        )


def fit_problem(model: SDFModel, fits: Sequence[FrameFit], lm: LMOptions, seed: int) -> FitProblem:
    """The problem of frames from their codes and in their frames."""
    samples = [resample(fit.scan, lm.num_points, seed).to_model(fit.frame) for fit in fits]
    oriented = [orient_normals(model, scan, fit.code) for scan, fit in zip(samples, fits, strict=True)]
    return FitProblem(model, oriented, Code.concatenate([fit.code for fit in fits]), lm, seed)


def _continue_fits(
    model: SDFModel, fits: Sequence[FrameFit], steps: int, lm: LMOptions, seed: int
) -> tuple[list[FrameFit], list[float]]:
    """The fits after at most `steps` steps of each alone, and their costs."""
    problem = fit_problem(model, fits, lm, seed)
    rows = torch.arange(len(fits), device=problem.x.device)
    state = levenberg_marquardt(
        problem.objective(rows), problem.with_identity(problem.codes.flat), max_steps=steps, ftol=lm.ftol
    )
    codes, alignments = problem.split(state.x)
    continued = [
        fit._replace(
            code=problem.codes.unflatten(codes[row : row + 1]),
            frame=fit.frame.compose(similarity.frame_of(alignments[row].cpu())) if problem.has_alignment else fit.frame,
        )
        for row, fit in enumerate(fits)
    ]
    return continued, state.cost.tolist()


def retry_from_neighbors(model: SDFModel, alone: dict[int, FrameFit], lm: LMOptions, seed: int) -> dict[int, FrameFit]:
    """Fit each frame again from the code and alignment of a neighbor, where this lowers the cost by 2 % or more.

    The comparison is by the trial steps of a fit; the frames that gain are fitted to the end, from both starts.
    """
    order = sorted(alone)
    pairs = [(index, other) for place, index in enumerate(order) for other in order[max(place - 1, 0) : place + 2]]
    starts = [neighbor_start(alone[index], alone[other]) for index, other in pairs]
    _, cost = _continue_fits(model, starts, lm.trial_steps, lm.coarse(), seed)
    best: dict[int, int] = {}
    for row, (index, other) in enumerate(pairs):
        own = cost[pairs.index((index, index))]
        if other != index and cost[row] < (cost[best[index]] if index in best else (1 - MIN_COST_DECREASE) * own):
            best[index] = row
    if not best:
        return alone
    both = [alone[index] for index in best] + [starts[row] for row in best.values()]
    fits, cost = _continue_fits(model, both, lm.max_steps, lm, seed)
    offset = len(best)
    return {**alone, **{i: fits[k + offset * (cost[k + offset] < cost[k])] for k, i in enumerate(best)}}


def neighbor_start(own: FrameFit, other: FrameFit) -> FrameFit:
    """The scan of `own` with the code and frame of `other`, moved by the difference of the centers of their scans."""
    center, other_center = (fit.scan.frame(1.0).center for fit in (own, other))
    return FrameFit(own.scan, other.code, replace(other.frame, center=other.frame.center + center - other_center))


def _interpolated(fitted: Mapping[int, FrameFit], index: int) -> FrameFit:
    """A frame without a scan: linear between the nearest fits before and after it, or the nearest fit at the ends."""
    before = max((other for other in fitted if other < index), default=min(fitted))
    after = min((other for other in fitted if other > index), default=max(fitted))
    t = (index - before) / (after - before) if after > index > before else float(index > after)
    a, b = fitted[before], fitted[after]
    code = a.code.unflatten(torch.lerp(a.code.flat, b.code.flat, t))
    return FrameFit(Scan("", np.empty((0, 3), np.float32)), code, similarity.interpolate_frames(a.frame, b.frame, t))


def _at_all_frames(rows: Sequence[int], values: Float[Tensor, "m v"], count: int) -> Float[Tensor, "n v"]:
    """Values of some frames (at least two, in order) at all: linear between them, the nearest before and after."""
    known, frames = torch.tensor(rows), torch.arange(count)
    after = torch.searchsorted(known, frames).clamp(1, len(rows) - 1)
    share = ((frames - known[after - 1]) / (known[after] - known[after - 1])).clamp(0, 1)
    return torch.lerp(values[after - 1], values[after], share[:, None].to(values))


def solve_sequence(
    problem: FitProblem, rows: Sequence[int], sequence: Sequence[FrameFit], lm: LMOptions, options: SequenceOptions
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n c c"]]:
    """Unknowns of all frames at the minimum of the joint cost, and the covariances of the codes.

    `problem` has the frames of `rows`. With the second differences b = D x + o of all unknowns x, the joint cost is the
    sum of the frames' own costs and of b^T S b / 2 over time; S is the precision of the prior divided by
    `acceleration_std` squared, o the second differences of the frames themselves.
    """
    device = problem.x.device
    problem_rows = torch.arange(len(rows), device=device)
    x = problem.with_identity(Code.concatenate([fit.code for fit in sequence]).flat).double().cpu()
    stiffness = problem.precision.double().cpu() / options.acceleration_std**2
    operator = tridiagonal.second_differences(len(sequence))
    offset = torch.zeros(len(operator), x.shape[1], dtype=torch.float64)
    if problem.has_alignment:
        offset[:, -similarity.NUM_PARAMETERS :] = similarity.second_differences([fit.frame for fit in sequence])

    def joint_state(x: Float[Tensor, "n k"]) -> tuple[LMState, Float[Tensor, "m k"], float]:
        state, differences = problem(problem_rows, x[rows].float().to(device)), operator @ x + offset
        smoothness = 0.5 * float((differences @ stiffness * differences).sum())
        return state, differences, float(state.cost.double().sum()) + smoothness

    def gauss_newton(
        state: LMState, differences: Float[Tensor, "m k"]
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k k"]]:
        own, descent = x.new_zeros(len(x), *stiffness.shape), -operator.T @ differences @ stiffness
        own[rows] = state.hessian.double().cpu()
        descent[rows] -= state.gradient.double().cpu()
        return tridiagonal.solve_block_tridiagonal(own, stiffness, descent)

    state, differences, cost = joint_state(x)
    for _ in range(options.max_steps):
        step, _ = gauss_newton(state, differences)
        trials = ((size, joint_state(x + size * step)) for size in (1.0, 0.5, 0.25))
        size, lower = next(
            ((size, trial) for size, trial in trials if trial[2] < cost), (0.0, (state, differences, cost))
        )
        x, decrease = x + size * step, cost - lower[2]
        state, differences, cost = lower
        if decrease < lm.ftol * cost:
            break
    _, covariance = gauss_newton(state, differences)
    code_dim = problem.codes.flat.shape[1]
    return x.float().to(device), covariance[:, :code_dim, :code_dim].float()
