"""Fit the codes of unseen scans; the network weights are frozen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from shapespace.data.loader import collate, derive_seed
from shapespace.fitting.displacement import Displacement, fit_local_levels
from shapespace.fitting.levenberg_marquardt import LMOptions, cholesky, levenberg_marquardt
from shapespace.fitting.limb_search import search_codes
from shapespace.fitting.registration import Registration
from shapespace.fitting.residuals import (
    FitProblem,
    estimate_normals,
    orient_normals,
    resample,
    residuals,
    robust_loss,
)
from shapespace.fitting.starts import outside_share, start_codes
from shapespace.geometry import similarity
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.base import SDFModel, ShapeModel
from shapespace.models.code import Code
from shapespace.nn.parallel import parallel_map
from shapespace.training.objective import Objective, chunked_gradients

REFINEMENT_ANGLES = (24.0, 12.0)  # degrees: half the spacing of the grid of rotations, and a quarter of it
ENCODER_POINTS = 4096  # points of a scan that the encoder sees
ALIGNMENT_POINTS = 256  # points whose mean residual compares alignments of a scan

OUTSIDE_DISTANCE = 0.05  # model units from the scan at which a part that is outside of it counts
MOSTLY_FAR = 0.5  # share of a scan that is far from its fit: no limb is so large
MORE_STARTS = 4  # codes from which a scan is fitted whose first fit has lost a limb, before a search
SEARCHED_COST_RATIO = 1.15  # as `LMOptions.max_cost_ratio`, after a search: bodies that differ in small parts alone

CodeMethod = Literal["auto", "lm", "adam"]
"""Optimizer of the code; `auto`: `lm` for signed distances with a vector as the code, else `adam` from the encoder."""

FitMethod = Literal["auto", "lm", "adam", "encode", "refine"]
"""How a scan becomes a surface: an optimizer of the code, the encoder alone, or `lm` and then adapted weights."""


@dataclass(frozen=True)
class AdamOptions:
    """Adam on the code with the training loss (IGR, section 6 and appendix). Lengths are in model units."""

    points: int = 16_384
    """Number of points drawn from the scan at every step."""
    steps: int = 800
    """Number of steps."""
    lr: float = 5e-3
    """Learning rate; a tenth of it from half of the steps on."""
    near_std: float = 0.01
    """Standard deviation of the near-surface samples from the scan."""
    half_extent: float = 1.8
    """Half the edge of the box of the uniform samples."""
    init: Literal["random", "encoder", "mean"] = "random"
    """Initial code: N(0, (1 / 256)^2) as in IGR, the code of the encoder, or the mean of the training codes."""


ADAM_FROM_ENCODER = AdamOptions(points=2048, steps=200, lr=1e-2, half_extent=1.0, init="encoder")
"""Settings for codes that are grids, for which `random` is far from any training code."""


@dataclass(frozen=True)
class BatchFit:
    """Fitted codes of a batch of scans."""

    code: Code
    covariance: Float[Tensor, "b k k"] | None
    """Covariance of the code vectors by Laplace's approximation at the minimum; None for fits by Adam."""
    residual: Float[Tensor, "b n"]
    """|f| in model units at points of the scan that were not used by the fit; n = 0 if f is not a distance."""
    frames: Sequence[Frame | None]
    """Alignment of each scan: from the model frame in which it was given to that of its code; None if it is fixed."""
    part_covariance: Float[Tensor, "b j p p"] | None = None
    """Covariance of the unknowns of each part, given the code; None without a second level."""
    displacement: Displacement | None = None
    """Displacements of the registered templates; None without a third level."""


def encode(
    model: ShapeModel, scans: Sequence[Scan], *, points: int = ENCODER_POINTS, seed: int = 0, chunk: int = 16
) -> Code:
    """Encode scans (model frame, at least one): one forward pass of the encoder for each `chunk` of them."""
    model.eval()
    device = next(model.parameters()).device

    def encode_chunk(some: Sequence[Scan]) -> Code:
        return model.encode(collate([resample(scan, points, seed) for scan in some]).to(device))

    with torch.no_grad():
        return Code.concatenate(
            list(parallel_map(encode_chunk, [scans[first : first + chunk] for first in range(0, len(scans), chunk)]))
        )


def fit_lm(
    model: SDFModel,
    scans: Sequence[Scan],
    options: LMOptions | None = None,
    *,
    registration: Registration | None = None,
    seed: int = 0,
    chunk: int = 16,
) -> BatchFit:
    """Fit the codes of scans (model frame, at least one) by Levenberg-Marquardt, `chunk` scans at a time.

    Each scan has two starts, the code of its encoder and the mean of the training codes; with the alignments `yaw` and
    `full`, two for each candidate of `search_alignment`. After the trial steps the best starts are fitted to the end.
    Families that have parts have `num_starts` of them (`start_codes`), and searched ones (`search_codes`) for a scan
    that is far from its first fit. The third level needs the `registration` of the model's template.
    """
    options = options or LMOptions()
    parts = []
    with tqdm(total=len(scans), desc="fit", unit="scan", disable=len(scans) < 2) as bar:
        for first in range(0, len(scans), chunk):
            some = scans[first : first + chunk]
            parts.append(_fit_lm_chunk(model, some, options, registration, seed))
            bar.update(len(some))
    return _concatenate_fits(parts)


def fit_adam(
    model: ShapeModel,
    scans: Sequence[Scan],
    weights: Mapping[str, float],
    options: AdamOptions | None = None,
    *,
    seed: int = 0,
) -> BatchFit:
    """Fit the codes of scans (model frame, at least one) by Adam, one scan at a time; `weights` are the training's."""
    options = options or AdamOptions()
    return _concatenate_fits([_fit_adam_one(model, scan, weights, options, seed) for scan in scans])


def _fit_adam_one(
    model: ShapeModel, scan: Scan, weights: Mapping[str, float], options: AdamOptions, seed: int
) -> BatchFit:
    model.eval()
    device = next(model.parameters()).device
    start = encode(model, [scan], seed=seed)
    if options.init == "random":
        noise = torch.randn(start.flat.shape, generator=torch.Generator().manual_seed(seed)) / 256
        start = start.unflatten(noise.to(device))
    elif options.init == "mean":
        if model.prior is None:
            raise ValueError("--adam.init mean: codes that are grids have no mean. Use --adam.init encoder.")
        start = start.unflatten(model.prior.mean[None])
    scan = estimate_normals(scan, seed)
    weights = {**weights, "distillation": 0.0}
    flat = start.flat.clone().requires_grad_()
    optimizer = torch.optim.Adam([flat], lr=options.lr)
    loss = Objective(model, weights).loss
    with frozen(model):
        for step in tqdm(range(options.steps), desc=f"fit {scan.name}", unit="step"):
            if step == options.steps // 2:
                optimizer.param_groups[0]["lr"] = options.lr / 10
            drawn = derive_seed(seed, step)
            sample = resample(scan, options.points, drawn)
            batch = collate([sample], near_std=options.near_std, half_extent=options.half_extent, seed=drawn).to(device)
            gradients = chunked_gradients(loss, batch, start.unflatten(flat.detach()), ()).gradients
            flat.grad = torch.cat([part.flatten(1) for part in gradients if part is not None], dim=1)
            optimizer.step()
    code = start.unflatten(flat.detach())
    residual = residuals(model, [scan], code, seed) if isinstance(model, SDFModel) else flat.new_zeros(1, 0)
    return BatchFit(code, None, residual, [None])


@contextmanager
def frozen(model: ShapeModel) -> Iterator[None]:
    """Switch off the gradients of the weights within the block."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


class Start(NamedTuple):
    """A scan in the frame of one start of its fit; `scan_index` is its index in the batch."""

    scan_index: int
    scan: Scan
    frame: Frame | None

    def aligned(self, frame: Frame) -> "Start":
        """The same after one more frame."""
        return Start(
            self.scan_index, self.scan.to_model(frame), frame if self.frame is None else self.frame.compose(frame)
        )


def _fit_lm_chunk(
    model: SDFModel, scans: Sequence[Scan], options: LMOptions, registration: Registration | None, seed: int
) -> BatchFit:
    """Fit a few scans at once: candidates of their alignment, trial steps of all, the rest of the steps of the best."""
    model.eval()
    candidates = [Start(index, scan.infer_sensor(), None) for index, scan in enumerate(scans)]
    if options.alignment in ("yaw", "full"):
        candidates = [
            one.aligned(frame)
            for one in candidates
            for frame in search_alignment(model, one.scan, options.alignment, options, seed)
        ]
    count = options.max_starts if options.alignment in ("yaw", "full") else 1
    first = _first_level(Trials(model, candidates, options, seed, count))
    if isinstance(model, ArticulatedSDF):
        first = _retry(model, first, options, seed)
    moved = [one.scan for one in first.starts]
    code, part_covariance, displacement = first.code, None, None
    if isinstance(model, ArticulatedSDF) and options.levels >= 2:
        code, part_covariance, displacement = fit_local_levels(model, moved, code, registration, options, seed)
    residual = residuals(model, moved, code, seed)
    frames = [one.frame for one in first.starts]
    return BatchFit(code, first.covariance, residual, frames, part_covariance, displacement)


StartCodes = Callable[[Scan, Float[Tensor, "k"]], Float[Tensor, "s k"]]
"""Codes from which a scan is fitted; the second argument is that of the encoder."""


@dataclass(frozen=True)
class Trials:
    """What is tried in the first level of a fit."""

    model: SDFModel
    candidates: Sequence[Start]
    options: LMOptions
    seed: int
    count: int
    """Number of starts of each scan, the best after the trial steps, that are fitted to the end."""
    start_codes: StartCodes | None = None
    """By default those of `starts.start_codes`."""


class FirstLevel(NamedTuple):
    """Fitted codes, as many scans in the frames of their fits, and the covariance of each code."""

    code: Code
    starts: list[Start]
    cost: Float[Tensor, "b"]
    """What was minimized, and the loss of what is outside: a share of the body counts as this share of a scan."""
    covariance: Float[Tensor, "b k k"]
    outside: Float[Tensor, "b"]
    """`outside_share` of each fit; 0 for models without parts."""


def _first_level(trials: Trials) -> FirstLevel:
    """Fit the codes: trial steps of all candidates, then the best of each scan to the end."""
    model, options, seed = trials.model, trials.options, trials.seed
    starts, codes = _run_trials(trials)
    if options.levels >= 2 and isinstance(model, ArticulatedSDF):
        options = options.before_parts()
    starts = [one._replace(scan=estimate_normals(one.scan, seed)) for one in starts]
    samples = [resample(one.scan, options.num_points, seed) for one in starts]
    oriented = [orient_normals(model, scan, codes[index]) for index, scan in enumerate(samples)]
    problem = FitProblem(model, oriented, codes, options, seed)
    rows = torch.arange(len(starts), device=codes.flat.device)
    state = levenberg_marquardt(
        problem.objective(rows),
        problem.with_identity(codes.flat),
        max_steps=options.max_steps - options.trial_steps,
        ftol=options.ftol,
    )
    flat, alignments = problem.split(state.x)
    fitted = _align(starts, alignments) if problem.has_alignment else starts
    outside = flat.new_zeros(len(flat))
    if isinstance(model, ArticulatedSDF):
        code = codes.unflatten(flat)
        outside = flat.new_tensor([outside_share(model, one.scan, code[row], seed) for row, one in enumerate(fitted)])
    distance = flat.new_full((1,), OUTSIDE_DISTANCE)
    loss, _ = robust_loss(distance, distance < 0, options)
    cost = state.cost + options.num_points * loss * outside
    best = best_per_scan(cost, [one.scan_index for one in starts], 1)
    covariance = torch.cholesky_inverse(cholesky(state.hessian[best]))[:, : flat.shape[1], : flat.shape[1]].to(flat)
    return FirstLevel(codes.unflatten(flat[best]), [fitted[row] for row in best], cost[best], covariance, outside[best])


def _retry(model: ArticulatedSDF, first: FirstLevel, options: LMOptions, seed: int) -> FirstLevel:
    """Fit the scans again whose first fit has lost a limb: from more starts, then from searched codes.

    All start in the frame of the first fit: more starts that do not help would move it farther from the right one. A
    fit is replaced by one of lower cost. Costs decide, so fits from searched codes converge as if no second level
    followed, on the same points.
    """
    if not len(model.template.vertices):
        return first

    def searched(scan: Scan, encoded: Float[Tensor, "k"]) -> Float[Tensor, "s k"]:
        return search_codes(model, scan, encoded, options.search_starts, seed)

    starts = first.starts
    ftol = options.ftol if options.levels == 1 else options.ftol / 10  # which `before_parts` takes back
    converging = replace(options, ftol=ftol, max_cost_ratio=SEARCHED_COST_RATIO)
    stages: list[tuple[LMOptions, StartCodes | None]] = [(converging, searched)]
    if options.num_starts < MORE_STARTS:
        stages = [(replace(options, num_starts=MORE_STARTS), None), *stages]
    for changed, codes_of in stages:
        if rows := _lost_limbs(model, first, options, seed):
            second = _first_level(
                Trials(model, [starts[row] for row in rows], changed, seed, options.max_starts, codes_of)
            )
            first = _with_better(first, second, rows)
    return first


def _lost_limbs(model: ArticulatedSDF, fitted: FirstLevel, options: LMOptions, seed: int) -> list[int]:
    """Rows of the fits that have lost a limb.

    Either some of the scan is far from the surface, or a part of the body is where the scan shows that nothing is. A
    scan most of which is far is no person, or not one alone: no limb of it is searched.
    """
    far = residuals(model, [one.scan for one in fitted.starts], fitted.code, seed) > options.far_distance
    share = far.float().mean(dim=1)
    has_lost = (share > options.max_far_share) | (fitted.outside > options.max_outside_share)
    return (has_lost & (share < MOSTLY_FAR)).nonzero()[:, 0].tolist()


def _with_better(first: FirstLevel, second: FirstLevel, rows: list[int]) -> FirstLevel:
    """The first fits, in whose `rows` are the second ones where those cost less."""
    starts, (code, *rest) = list(first.starts), [part.clone() for part in (first.code.flat, *first[2:])]
    for row, (place, cost) in enumerate(zip(rows, second.cost, strict=True)):
        if cost < first.cost[place]:
            starts[place] = second.starts[row]
            for whole, own in zip((code, *rest), (second.code.flat, *second[2:]), strict=True):
                whole[place] = own[row]
    return FirstLevel(first.code.unflatten(code), starts, *rest)


def _run_trials(trials: Trials) -> tuple[list[Start], Code]:
    """The best of each scan after the trial steps from some codes, as they are aligned then; their codes."""
    model, candidates, options, seed = trials.model, trials.candidates, trials.options, trials.seed
    coarse = options.coarse()
    encoded = encode(model, [one.scan for one in candidates], seed=seed)
    codes_of = trials.start_codes or (lambda scan, code: start_codes(model, scan, code, options.num_starts, seed))
    starts_of = [codes_of(one.scan, code) for one, code in zip(candidates, encoded.flat, strict=True)]
    samples = [resample(one.scan, coarse.num_points, seed) for one in candidates]
    problem = FitProblem(model, samples, encoded, coarse, seed)
    rows = torch.tensor([row for row, own in enumerate(starts_of) for _ in own], device=encoded.flat.device)
    flat = torch.cat(starts_of)
    state = levenberg_marquardt(
        problem.objective(rows), problem.with_identity(flat), max_steps=options.trial_steps, ftol=options.ftol
    )
    scan_index = [candidates[row].scan_index for row in rows.tolist()]
    best = best_per_scan(state.cost, scan_index, trials.count, options.max_cost_ratio)
    flat, alignments = problem.split(state.x[best])
    starts = [candidates[row] for row in rows[best].tolist()]
    return _align(starts, alignments) if problem.has_alignment else starts, encoded.unflatten(flat)


def _align(starts: Sequence[Start], alignments: Float[Tensor, "r 7"]) -> list[Start]:
    return [
        one.aligned(similarity.frame_of(alignment))
        for one, alignment in zip(starts, alignments.cpu(), strict=True)  # frames stay on the CPU
    ]


def search_alignment(
    model: SDFModel, scan: Scan, unknown: similarity.UnknownRotation, options: LMOptions, seed: int
) -> list[Frame]:
    """Search the rotation of a scan by the residuals of its encoder's code; return the best candidates, best first.

    No step of a fit is made: even without one, a correct rotation fits several times better than a wrong one. The best
    rotations of a coarse grid are refined twice, each to the best of its neighbors.
    """
    sample = resample(scan, ENCODER_POINTS, seed)

    def mean_residuals(frames: Sequence[Frame]) -> Float[Tensor, "k"]:
        moved = [sample.to_model(frame) for frame in frames]
        return residuals(model, moved, encode(model, moved, seed=seed), seed, ALIGNMENT_POINTS).mean(dim=1)

    grid = as_frames(similarity.rotation_grid(unknown))
    candidates = [grid[row] for row in mean_residuals(grid).argsort()[: options.max_candidates].tolist()]
    for angle in REFINEMENT_ANGLES:
        neighborhoods = [
            [frame.compose(step) for step in as_frames(similarity.rotation_neighborhood(unknown, angle))]
            for frame in candidates
        ]
        candidates = [frames[int(mean_residuals(frames).argmin())] for frames in neighborhoods]
    cost = mean_residuals(candidates)
    best = best_per_scan(cost, [0] * len(candidates), options.max_candidates, options.max_cost_ratio)
    return [candidates[row] for row in best]


def as_frames(rotations: Float[np.ndarray, "k 3 3"]) -> list[Frame]:
    """Frames that only rotate."""
    return [Frame(torch.zeros(3), torch.tensor(1.0), rotation) for rotation in torch.from_numpy(rotations).float()]


def best_per_scan(
    cost: Float[Tensor, "r"], scan_index: Sequence[int], count: int, max_cost_ratio: float = np.inf
) -> list[int]:
    """Rows of the `count` lowest costs of each scan, scan after scan.

    Rows whose cost exceeds the lowest of their scan by the factor `max_cost_ratio` are left out.
    """
    rows = []
    for index in sorted(set(scan_index)):
        own = [row for row in cost.argsort().tolist() if scan_index[row] == index][:count]
        rows += [row for row in own if cost[row] <= max_cost_ratio * cost[own[0]]]
    return rows


def _concatenate_fits(parts: Sequence[BatchFit]) -> BatchFit:
    covariances = [part.covariance for part in parts if part.covariance is not None]
    by_part = [part.part_covariance for part in parts if part.part_covariance is not None]
    displacements = [part.displacement for part in parts if part.displacement is not None]
    return BatchFit(
        Code.concatenate([part.code for part in parts]),
        torch.cat(covariances) if len(covariances) == len(parts) else None,
        torch.cat([part.residual for part in parts]),
        [frame for part in parts for frame in part.frames],
        torch.cat(by_part) if len(by_part) == len(parts) else None,
        Displacement.concatenate(displacements) if len(displacements) == len(parts) else None,
    )
