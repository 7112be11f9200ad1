"""The frames of a motion fitted jointly: neighbours help each other, and what is missing is bridged.

Each frame has been fitted alone. Then the sum of all frames' own costs (`fit.Problem`) and of the squared second
differences of codes and poses along time is lowered by Gauss-Newton; frames without points have no cost of their own.
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
from shapespace.fitting.levenberg_marquardt import LMOptions, LMState, levenberg_marquardt
from shapespace.fitting.quality import OOD_THRESHOLD, ood_score
from shapespace.fitting.residuals import FitProblem, estimate_normals, orient_normals, resample, residuals
from shapespace.geometry import similarity
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.models.base import SDFModel
from shapespace.models.code import Code, concatenate

_BETTER = 0.02  # share of its cost by which a scan must be explained better to be fitted from a neighbour's code
_LONGEST = 10  # frames that may be missing in a row: a motion is told by its neighbours for a fraction of a second


@dataclass(frozen=True)
class SequenceOptions:
    """What ties the frames of a sequence to each other."""

    acceleration_std: float = 0.1
    """Standard deviation of a second difference along time, in units of the deviations of the codes of training scans
    and of the poses of `LMOptions`: smaller is smoother."""
    max_steps: int = 4
    """Largest number of Gauss-Newton steps of the whole sequence."""
    fps: float = 25.0
    """Frames of the animation for each second."""

    def __post_init__(self) -> None:
        """Refuse what ties nothing and shows nothing."""
        for name in ("bend", "fps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name):g}, and must be above 0: leave it out for the usual.")


class SequenceFit(NamedTuple):
    """Codes of the frames of a sequence, where they lie, and which have no scan of their own that counted."""

    code: Code
    covariance: Float[Tensor, "n c c"]
    """Of each frame's flat code, given all frames."""
    frames: list[Frame]
    residual: list[Float[Tensor, "m"]]
    """|f| at points of each scan, in model units; none for those that were bridged."""
    interpolated: list[bool]


def order_frames(scans: Sequence[Scan]) -> list[Scan]:
    """The scans in natural order of their names, with a scan without points for each number that is missing.

    Numbers are missed if all names are one word and a number behind it, by the smallest step between two of them.
    Raises `ValueError` where more than ten are missing in a row.
    """

    def key(scan: Scan) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", scan.name)]

    ordered = sorted(scans, key=key)
    told = [re.fullmatch(r"(.*?)(\d+)", scan.name) for scan in ordered]
    if len({None if name is None else name[1] for name in told}) != 1 or told[0] is None:
        return ordered
    numbers = [int(name[2]) for name in told if name is not None]
    step = max(1, min(np.diff(numbers), default=1))
    found = ordered[:1]
    for before, after, scan in zip(numbers, numbers[1:], ordered[1:], strict=False):
        lost = list(range(before + step, after, step))
        if len(lost) > _LONGEST:
            raise ValueError(
                f"{len(lost)} frames are missing between {found[-1].name} and {scan.name}, and at most {_LONGEST} in a "
                "row can be bridged: fit what lies before and behind apart."
            )
        width = len(told[0][2])
        found += [Scan(f"{told[0][1]}{number:0{width}d}", np.empty((0, 3), np.float32)) for number in lost]
        found.append(scan)
    return found


def fit_jointly(
    model: SDFModel,
    scans: Sequence[Scan],
    codes: Sequence[Code | None],
    frames: Sequence[Frame | None],
    lm: LMOptions,
    options: SequenceOptions,
    *,
    seed: int = 0,
) -> SequenceFit:
    """Fit the frames of a sequence (scans in metres) jointly, from the code and frame of each that was fitted alone.

    Frames without a code, and those whose code is odd even if it begins with a neighbour's, are bridged. Raises
    `ValueError` if fewer than two others are left, or fewer than three frames are given.
    """
    alone = {
        index: FrameFit(estimate_normals(scan, seed), code, frame)
        for index, (scan, code, frame) in enumerate(zip(scans, codes, frames, strict=True))
        if code is not None and frame is not None
    }
    _check(len(alone), len(scans))
    alone = retry_from_neighbors(model, alone, lm, seed)
    seen = {index: moment for index, moment in alone.items() if ood_score(moment.code, model.prior) <= OOD_THRESHOLD}
    _check(len(seen), len(scans))
    whole = [seen[index] if index in seen else _between(seen, index) for index in range(len(scans))]
    rows = sorted(seen)
    problem = _problem(model, [whole[index] for index in rows], lm, seed)
    flat, covariance = solve_sequence(problem, rows, whole, lm, options)
    found, poses = problem.split(flat)
    code = problem.codes.unflatten(found)
    placed = [moment.frame for moment in whole]
    if problem.posed:
        placed = [frame.compose(similarity.frame_of(by)) for frame, by in zip(placed, poses.cpu(), strict=True)]
    off = [
        residuals(model, [moment.scan.to_model(frame)], code[index], seed)[0] if index in seen else flat.new_zeros(0)
        for index, (moment, frame) in enumerate(zip(whole, placed, strict=True))
    ]
    return SequenceFit(code, covariance, placed, off, [index not in seen for index in range(len(scans))])


def _check(seen: int, frames: int) -> None:
    """Refuse what is no sequence."""
    if seen < 2 or frames < 3:
        raise ValueError(
            f"{seen} of {frames} frames could be fitted and look like those that the space was learned from: a "
            "sequence needs at least three frames, and two of them fitted. Fit the scans alone, without --sequence."
        )


class FrameFit(NamedTuple):
    """A scan (metres), its code (of one), and where it lies."""

    scan: Scan
    code: Code
    frame: Frame


def _problem(model: SDFModel, moments: Sequence[FrameFit], lm: LMOptions, seed: int) -> FitProblem:
    placed = [resample(moment.scan, lm.num_points, seed).to_model(moment.frame) for moment in moments]
    known = [orient_normals(model, scan, moment.code) for scan, moment in zip(placed, moments, strict=True)]
    return FitProblem(model, known, concatenate([moment.code for moment in moments]), lm, seed)


def _descended(
    model: SDFModel, moments: Sequence[FrameFit], steps: int, lm: LMOptions, seed: int
) -> tuple[list[FrameFit], list[float]]:
    """Each of the moments after so many steps of its own, and what it costs."""
    problem = _problem(model, moments, lm, seed)
    rows = torch.arange(len(moments), device=problem.x.device)
    state = levenberg_marquardt(
        problem.objective(rows), problem.with_identity(problem.codes.flat), max_steps=steps, ftol=lm.ftol
    )
    codes, poses = problem.split(state.x)
    after = [
        moment._replace(
            code=problem.codes.unflatten(codes[row : row + 1]),
            frame=moment.frame.compose(similarity.frame_of(poses[row].cpu())) if problem.posed else moment.frame,
        )
        for row, moment in enumerate(moments)
    ]
    return after, state.cost.tolist()


def retry_from_neighbors(model: SDFModel, alone: dict[int, FrameFit], lm: LMOptions, seed: int) -> dict[int, FrameFit]:
    """The moments; where a neighbour's code and pose lead to a fit that explains a scan better, that fit."""
    order = sorted(alone)
    tried = [(index, other) for place, index in enumerate(order) for other in order[max(place - 1, 0) : place + 2]]
    starts = [neighbor_start(alone[index], alone[other]) for index, other in tried]
    _, cost = _descended(model, starts, lm.trial_steps, lm.coarse(), seed)
    best: dict[int, int] = {}
    for row, (index, other) in enumerate(tried):
        own = cost[tried.index((index, index))]
        if other != index and cost[row] < (cost[best[index]] if index in best else (1 - _BETTER) * own):
            best[index] = row
    if not best:
        return alone
    both = [alone[index] for index in best] + [starts[row] for row in best.values()]
    after, cost = _descended(model, both, lm.max_steps, lm, seed)
    other = len(best)
    return {**alone, **{i: after[k + other * (cost[k + other] < cost[k])] for k, i in enumerate(best)}}


def neighbor_start(own: FrameFit, other: FrameFit) -> FrameFit:
    """The scan of one with code and pose of the other: it lies to the middle of its points as the other to its own."""
    middle, of_other = (moment.scan.frame(1.0).center for moment in (own, other))
    return FrameFit(own.scan, other.code, replace(other.frame, center=other.frame.center + middle - of_other))


def _between(seen: Mapping[int, FrameFit], index: int) -> FrameFit:
    """No scan, on the straight way between the nearest moments before and behind; outside, with the nearest."""
    before = max((other for other in seen if other < index), default=min(seen))
    behind = min((other for other in seen if other > index), default=max(seen))
    share = (index - before) / (behind - before) if behind > index > before else float(index > behind)
    a, b = seen[before], seen[behind]
    code = a.code.unflatten(torch.lerp(a.code.flat, b.code.flat, share))
    return FrameFit(
        Scan("", np.empty((0, 3), np.float32)), code, similarity.interpolate_frames(a.frame, b.frame, share)
    )


def solve_sequence(
    problem: FitProblem, rows: Sequence[int], whole: Sequence[FrameFit], lm: LMOptions, options: SequenceOptions
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n c c"]]:
    """Codes and poses of all moments at the least joint cost, and covariances of the codes.

    `problem` knows the moments of `rows`; with bends b = D x + o of all unknowns x, the joint cost is the sum of theirs
    and of b^T S b / 2 over time, S the precision of the prior over the square of `options.bend`.
    """
    device = problem.x.device
    every = torch.arange(len(rows), device=device)
    x = problem.with_identity(concatenate([moment.code for moment in whole]).flat).double().cpu()
    stiffness = problem.precision.double().cpu() / options.acceleration_std**2
    second = tridiagonal.second_differences(len(whole))
    offset = torch.zeros(len(second), x.shape[1], dtype=torch.float64)
    if problem.posed:
        offset[:, -similarity.SIZE :] = similarity.second_differences([moment.frame for moment in whole])

    def joint(x: Float[Tensor, "n k"]) -> tuple[LMState, Float[Tensor, "m k"], float]:
        state, bends = problem(every, x[rows].float().to(device)), second @ x + offset
        return state, bends, float(state.cost.double().sum()) + 0.5 * float((bends @ stiffness * bends).sum())

    def normal(state: LMState, bends: Float[Tensor, "m k"]) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k k"]]:
        own, down = x.new_zeros(len(x), *stiffness.shape), -second.T @ bends @ stiffness
        own[rows] = state.hessian.double().cpu()
        down[rows] -= state.gradient.double().cpu()
        return tridiagonal.solve_block_tridiagonal(own, stiffness, down)

    state, bends, cost = joint(x)
    for _ in range(options.max_steps):
        step, _ = normal(state, bends)
        trials = ((size, joint(x + size * step)) for size in (1.0, 0.5, 0.25))
        size, lower = next(((size, trial) for size, trial in trials if trial[2] < cost), (0.0, (state, bends, cost)))
        x, gained = x + size * step, cost - lower[2]
        state, bends, cost = lower
        if gained < lm.ftol * cost:
            break
    _, spread = normal(state, bends)
    codes = problem.codes.flat.shape[1]
    return x.float().to(device), spread[:, :codes, :codes].float()
