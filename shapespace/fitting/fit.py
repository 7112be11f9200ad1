"""Test-time fitting: the code of a scan that training never saw, with the weights asleep."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from shapespace.data.loader import collate
from shapespace.fitting.levenberg_marquardt import LMOptions, levenberg_marquardt
from shapespace.fitting.residuals import FitProblem, estimate_normals, orient_normals, resample, residuals
from shapespace.geometry import similarity
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.models.base import SDFModel, ShapeModel
from shapespace.models.code import Code, concatenate
from shapespace.nn.parallel import parallel_map
from shapespace.training.objective import Objective, chunked_gradients

_CLOSER = (24.0, 12.0)  # degrees: half-way from one start to the next, and half of that
_ENCODED, _ASKED = 4096, 256  # points of a scan that the encoder sees, and that tell poses apart


@dataclass(frozen=True)
class AdamOptions:
    """The paper's protocol: Adam on the code, the training's own loss (IGR, section 6 and appendix)."""

    points: int = 16_384
    """Points drawn from the scan at every step."""
    steps: int = 800
    """Number of steps."""
    lr: float = 5e-3
    """Learning rate; a tenth of it from half-way."""
    near_std: float = 0.01
    """Standard deviation of the points around the scan."""
    half_extent: float = 1.8
    """Half the edge of the box of the other off-surface points."""
    init: Literal["random", "encoder", "mean"] = "random"
    """N(0, 1 / 256) as the paper's, the encoder's code, or the mean of the training codes."""


# For families that the paper's protocol is not about: a random grid is far from any shape's.
ADAM_FROM_ENCODER = AdamOptions(points=2048, steps=200, lr=1e-2, half_extent=1.0, init="encoder")


@dataclass(frozen=True)
class BatchFit:
    """Codes of one batch of scans, and how well they fit."""

    code: Code
    covariance: Float[Tensor, "b k k"] | None
    """Of the flat codes, by Laplace's approximation at the minimum; none for first-order fits."""
    residual: Float[Tensor, "b n"]
    """|f| at points of the scan that the fit was not shown, in model units; none where f is no distance."""
    frames: Sequence[Frame | None]
    """How each scan was moved to lie as the training scans do; none where that was given."""


def encode(model: ShapeModel, scans: Sequence[Scan], *, points: int = _ENCODED, seed: int = 0, chunk: int = 16) -> Code:
    """Codes of scans (model frame) in one forward pass of the encoder for each `chunk` of them."""
    model.eval()
    device = next(model.parameters()).device

    def codes(some: Sequence[Scan]) -> Code:
        return model.encode(collate([resample(scan, points, seed) for scan in some]).to(device))

    with torch.no_grad():
        return concatenate(
            list(parallel_map(codes, [scans[first : first + chunk] for first in range(0, len(scans), chunk)]))
        )


def fit_lm(
    model: SDFModel, scans: Sequence[Scan], options: LMOptions | None = None, *, seed: int = 0, chunk: int = 16
) -> BatchFit:
    """Fit the codes of scans (model frame) by Levenberg-Marquardt, `chunk` scans at a time.

    Each scan starts from its encoder's code and from the mean of the training codes, in the likely ones of the poses
    that are asked for; the better go on. Starts, scans and pieces of scans are worked on side by side.
    """
    options = options or LMOptions()
    parts = []
    with tqdm(total=len(scans), desc="fit", unit="scan", disable=len(scans) < 2) as bar:
        for first in range(0, len(scans), chunk):
            some = scans[first : first + chunk]
            parts.append(_fit_lm_chunk(model, some, options, seed))
            bar.update(len(some))
    return _joined(parts)


def fit_adam(
    model: ShapeModel,
    scans: Sequence[Scan],
    weights: Mapping[str, float],
    options: AdamOptions | None = None,
    *,
    seed: int = 0,
) -> BatchFit:
    """Fit the codes of scans (model frame) as the paper does, one scan at a time."""
    options = options or AdamOptions()
    return _joined([_fit_adam_one(model, scan, weights, options, seed) for scan in scans])


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
            raise ValueError("codes that are grids have no mean to start from: start from the encoder.")
        start = start.unflatten(model.prior.mean[None])
    scan = estimate_normals(scan, seed)
    weights = {**weights, "distillation": 0.0}
    flat = start.flat.clone().requires_grad_()
    optimiser = torch.optim.Adam([flat], lr=options.lr)
    loss = Objective(model, weights).loss
    with frozen(model):
        for step in tqdm(range(options.steps), desc=f"fit {scan.name}", unit="step"):
            if step == options.steps // 2:
                optimiser.param_groups[0]["lr"] = options.lr / 10
            drawn = resample(scan, options.points, hash((seed, step)) % 2**32)
            batch = collate(
                [drawn], near_std=options.near_std, half_extent=options.half_extent, seed=hash((seed, step)) % 2**32
            ).to(device)
            by_code = chunked_gradients(loss, batch, start.unflatten(flat.detach()), ()).gradients
            flat.grad = torch.cat([part.flatten(1) for part in by_code if part is not None], dim=1)
            optimiser.step()
    code = start.unflatten(flat.detach())
    residual = residuals(model, [scan], code, seed) if isinstance(model, SDFModel) else flat.new_zeros(1, 0)
    return BatchFit(code, None, residual, [None])


@contextmanager
def frozen(model: ShapeModel) -> Iterator[None]:
    """No gradients for the weights."""
    awake = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in awake:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in awake:
            parameter.requires_grad_(True)


def _fit_lm_chunk(model: SDFModel, scans: Sequence[Scan], options: LMOptions, seed: int) -> BatchFit:
    model.eval()
    begun = [_Start(index, scan.infer_sensor(), None) for index, scan in enumerate(scans)]
    if options.alignment in ("yaw", "full"):
        begun = [
            one.placed(frame)
            for one in begun
            for frame in search_alignment(model, one.scan, options.alignment, options, seed)
        ]
    few = options.coarse()
    encoded = encode(model, [one.scan for one in begun], seed=seed)
    trial = FitProblem(model, [resample(one.scan, few.num_points, seed) for one in begun], encoded, few, seed)
    every = torch.arange(len(begun), device=encoded.flat.device)
    flat = torch.cat([encoded.flat, model.prior.mean.expand_as(encoded.flat)])
    tried = levenberg_marquardt(
        trial.objective(every.repeat(2)), trial.with_identity(flat), max_steps=options.trial_steps, ftol=options.ftol
    )

    count = options.max_starts if options.alignment in ("yaw", "full") else 1
    going = best_per_scan(
        tried.cost, [begun[row].of for row in every.repeat(2).tolist()], count, options.max_cost_ratio
    )
    codes, poses = trial.split(tried.x[going])
    kept = [begun[row % len(begun)] for row in going]
    if trial.posed:
        kept = [one.placed(similarity.frame_of(found)) for one, found in zip(kept, poses, strict=True)]
    start = encoded.unflatten(codes)
    drawn = [resample(estimate_normals(one.scan, seed), options.num_points, seed) for one in kept]
    known = [orient_normals(model, scan, start[index]) for index, scan in enumerate(drawn)]
    problem = FitProblem(model, known, start, options, seed)
    rows = torch.arange(len(kept), device=codes.device)
    state = levenberg_marquardt(
        problem.objective(rows),
        problem.with_identity(codes),
        max_steps=options.max_steps - options.trial_steps,
        ftol=options.ftol,
    )

    best = best_per_scan(state.cost, [one.of for one in kept], 1)
    codes, poses = problem.split(state.x[best])
    found = [kept[row] for row in best]
    if problem.posed:
        found = [one.placed(similarity.frame_of(by)) for one, by in zip(found, poses, strict=True)]
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(state.hessian[best]))[
        :, : codes.shape[1], : codes.shape[1]
    ]
    code = encoded.unflatten(codes)
    residual = residuals(model, [one.scan for one in found], code, seed)
    return BatchFit(code, covariance, residual, [one.frame for one in found])


class _Start(NamedTuple):
    """A scan, moved by a frame; `of` is its place among those that are to be fitted."""

    of: int
    scan: Scan
    frame: Frame | None

    def placed(self, frame: Frame) -> "_Start":
        """Moved once more."""
        return _Start(self.of, self.scan.to_model(frame), frame if self.frame is None else self.frame.compose(frame))


def search_alignment(
    model: SDFModel, scan: Scan, unknown: similarity.Unknown, options: LMOptions, seed: int
) -> list[Frame]:
    """How the scan may lie: frames in which its encoder's code fits it best, without a step of a fit.

    A right pose fits several times better than a wrong one even so. The likely ones among coarse starts go each its own
    way to the best of its neighbours.
    """
    thin = resample(scan, _ENCODED, seed)

    def misfit(frames: Sequence[Frame]) -> Float[Tensor, "k"]:
        moved = [thin.to_model(frame) for frame in frames]
        return residuals(model, moved, encode(model, moved, seed=seed), seed, _ASKED).mean(dim=1)

    starts = as_frames(similarity.rotation_grid(unknown))
    likely = [starts[row] for row in misfit(starts).argsort()[: options.max_candidates].tolist()]
    for angle in _CLOSER:
        nearby = [
            [frame.then(turn) for turn in as_frames(similarity.rotation_neighborhood(unknown, angle))]
            for frame in likely
        ]
        likely = [frames[int(misfit(frames).argmin())] for frames in nearby]
    return [
        likely[row]
        for row in best_per_scan(misfit(likely), [0] * len(likely), options.max_candidates, options.max_cost_ratio)
    ]


def as_frames(rotations: Float[np.ndarray, "k 3 3"]) -> list[Frame]:
    return [Frame(torch.zeros(3), torch.tensor(1.0), rotation) for rotation in torch.from_numpy(rotations).float()]


def best_per_scan(cost: Float[Tensor, "r"], of: Sequence[int], count: int, worse: float = np.inf) -> list[int]:
    """The rows that cost least, scan after scan: of each `count`, without those that cost `worse` times the best's."""
    rows = []
    for index in sorted(set(of)):
        own = [row for row in cost.argsort().tolist() if of[row] == index][:count]
        rows += [row for row in own if cost[row] <= worse * cost[own[0]]]
    return rows


def _joined(parts: Sequence[BatchFit]) -> BatchFit:
    covariances = [part.covariance for part in parts if part.covariance is not None]
    return BatchFit(
        concatenate([part.code for part in parts]),
        torch.cat(covariances) if len(covariances) == len(parts) else None,
        torch.cat([part.residual for part in parts]),
        [frame for part in parts for frame in part.frames],
    )
