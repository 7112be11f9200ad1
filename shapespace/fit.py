"""Test-time fitting: the code of a scan that training never saw, with the weights asleep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from shapespace.data.loader import collate
from shapespace.data.scan import Scan
from shapespace.geometry import nearest
from shapespace.losses import weigh
from shapespace.models.base import FieldModel
from shapespace.models.code import Code, join

Start = Literal["encoder", "mean"]


@dataclass(frozen=True)
class LMOptions:
    """Levenberg-Marquardt on the code. Lengths are model units."""

    points: int = 2048
    """Points drawn from the scan."""
    steps: int = 20
    """Largest number of steps."""
    offset: float = 0.02
    """With normals, f is also asked to be +-offset at this distance on either side of the scan."""
    huber: float = 0.005
    """Residuals beyond this count linearly (Huber 1964)."""
    noise: float = 0.005
    """Standard deviation of one residual: what a scan's word weighs against the prior's."""
    evidence: float = 2000.0
    """How many independent residuals the points are worth: neighbours tell the same thing."""
    free: int = 1024
    """With sensors, points on their rays that are asked to be outside."""
    clear: float = 0.3
    """Share of the distance to the nearest point of the scan that f is asked to have there, at least. A whole scan
    would allow 1; where nothing was seen the surface may be nearer."""
    gain: float = 1e-3
    """Stop when a step lowers the cost by less than this share."""
    trial: int = 4
    """Steps after which only the best start of each scan goes on."""


@dataclass(frozen=True)
class AdamOptions:
    """The paper's protocol: Adam on the code, the training's own loss (IGR, section 6 and appendix)."""

    points: int = 16_384
    """Points drawn from the scan at every step."""
    steps: int = 800
    """Number of steps."""
    lr: float = 5e-3
    """Learning rate; a tenth of it from half-way."""
    sigma: float = 0.01
    """Standard deviation of the points around the scan."""
    half: float = 1.8
    """Half the edge of the box of the other off-surface points."""
    start: Literal["random", "encoder", "mean"] = "random"
    """N(0, 1 / 256) as the paper's, the encoder's code, or the mean of the training codes."""


@dataclass(frozen=True)
class Fitted:
    """Codes of one batch of scans, and how well they fit."""

    code: Code
    covariance: Float[Tensor, "b k k"] | None
    """Of the flat codes, by Laplace's approximation at the minimum; none for first-order fits."""
    residual: Float[Tensor, "b n"]
    """|f| at points of the scan that the fit was not shown, in model units."""


def encode(model: FieldModel, scans: Sequence[Scan], *, points: int = 4096, seed: int = 0) -> Code:
    """Codes of scans (model frame) in one forward pass of the encoder."""
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        return join([model.encode(collate([_draw(scan, points, seed)]).to(device)) for scan in scans])


def fit_lm(
    model: FieldModel, scans: Sequence[Scan], options: LMOptions | None = None, *, seed: int = 0, chunk: int = 4
) -> Fitted:
    """Fit the codes of scans (model frame) by Levenberg-Marquardt, `chunk` scans at a time.

    Each scan starts from its encoder's code and from the mean of the training codes; the better goes on.
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
    model: FieldModel,
    scans: Sequence[Scan],
    weights: Mapping[str, float],
    options: AdamOptions | None = None,
    *,
    seed: int = 0,
) -> Fitted:
    """Fit the codes of scans (model frame) as the paper does, one scan at a time."""
    options = options or AdamOptions()
    return _joined([_fit_adam_one(model, scan, weights, options, seed) for scan in scans])


def _fit_adam_one(
    model: FieldModel, scan: Scan, weights: Mapping[str, float], options: AdamOptions, seed: int
) -> Fitted:
    model.eval()
    device = next(model.parameters()).device
    start = encode(model, [scan], seed=seed)
    if options.start == "random":
        noise = torch.randn(start.flat.shape, generator=torch.Generator().manual_seed(seed)) / 256
        start = start.like(noise.to(device))
    elif options.start == "mean":
        start = start.like(model.prior.mean[None])
    silent = ["lesson"] if scan.normals is not None else ["lesson", "normal", "tangent"]
    weights = {**weights, **dict.fromkeys(silent, 0.0)}
    flat = start.flat.clone().requires_grad_()
    optimiser = torch.optim.Adam([flat], lr=options.lr)
    for step in tqdm(range(options.steps), desc=f"fit {scan.name}", unit="step"):
        if step == options.steps // 2:
            optimiser.param_groups[0]["lr"] = options.lr / 10
        drawn = _draw(scan, options.points, hash((seed, step)) % 2**32)
        batch = collate([drawn], sigma=options.sigma, half=options.half, seed=hash((seed, step)) % 2**32).to(device)
        loss = weigh(model.terms(batch, start.like(flat)), weights)
        (flat.grad,) = torch.autograd.grad(loss, flat)
        optimiser.step()
    code = start.like(flat.detach())
    return Fitted(code, None, _residual(model, [scan], code, seed))


def _fit_lm_chunk(model: FieldModel, scans: Sequence[Scan], options: LMOptions, seed: int) -> Fitted:
    model.eval()
    encoded = encode(model, scans, seed=seed)
    problem = _Problem(model, scans, encoded, options, seed)
    starts = [encoded.flat, model.prior.mean.expand_as(encoded.flat)]
    states = [_descend(problem, start, options.trial, options) for start in starts]
    costs = torch.stack([state.cost for state in states])
    best = costs.argmin(dim=0)
    flat = torch.stack([state.flat for state in states])[best, torch.arange(len(scans), device=best.device)]
    state = _descend(problem, flat, options.steps - options.trial, options)
    code = encoded.like(state.flat)
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(state.hessian))
    return Fitted(code, covariance, _residual(model, scans, code, seed))


@dataclass(frozen=True)
class _State:
    flat: Float[Tensor, "b k"]
    cost: Float[Tensor, "b"]
    gradient: Float[Tensor, "b k"]
    hessian: Float[Tensor, "b k k"]


class _Problem:
    """Residuals of a batch of scans as a function of their codes: cost, gradient and Gauss-Newton matrix."""

    def __init__(self, model: FieldModel, scans: Sequence[Scan], codes: Code, options: LMOptions, seed: int) -> None:
        device = codes.flat.device
        self.model, self.codes, self.options = model, codes, options
        rows = [_constraints(_draw(scan, options.points, seed), options, seed) for scan in scans]
        self.x = [x.to(device) for x, _, _ in rows]
        self.target = [target.to(device) for _, target, _ in rows]
        self.free = [free.to(device) for _, _, free in rows]
        self.precision = model.prior.precision()

    def __call__(self, flat: Float[Tensor, "b k"]) -> _State:
        pieces = [self._one(index, row) for index, row in enumerate(flat)]
        return _State(flat, *(torch.stack(piece) for piece in zip(*pieces, strict=True)))

    def _one(self, index: int, row: Float[Tensor, "k"]) -> tuple[Tensor, Tensor, Tensor]:
        """IRLS with Huber's weights for the scan, a hinge for free space, and the prior of the codes."""
        options = self.options
        field = self.model.linearise(self.x[index][None], self.codes.like(row[None]))
        residual = field.value[0] - self.target[index]
        content = self.free[index] & (residual > 0)  # free space asks for f >= target only
        size = residual.abs()
        weight = (options.huber / size.clamp(min=options.huber)).masked_fill(content, 0.0)
        loss = torch.where(size < options.huber, 0.5 * size.square(), options.huber * (size - 0.5 * options.huber))
        share = options.evidence / options.points / options.noise**2
        jacobian = field.jacobian[0]
        away = row - self.model.prior.mean
        pull = self.precision @ away
        cost = share * loss.masked_fill(content, 0.0).sum() + 0.5 * away @ pull
        gradient = share * (jacobian.T @ (weight * residual)) + pull
        hessian = share * (jacobian.T @ (weight[:, None] * jacobian)) + self.precision
        return cost, gradient, hessian


def _descend(problem: _Problem, flat: Float[Tensor, "b k"], steps: int, options: LMOptions) -> _State:
    """Levenberg-Marquardt with the gain-ratio rule for the damping (Madsen, Nielsen & Tingleff 2004, section 3.2)."""
    state = problem(flat)
    damping = torch.full_like(state.cost, 1e-2)
    growth = torch.full_like(state.cost, 2.0)
    for _ in range(steps):
        diagonal = state.hessian.diagonal(dim1=-2, dim2=-1)
        damped = state.hessian + torch.diag_embed(damping[:, None] * diagonal)
        step = -torch.cholesky_solve(state.gradient[..., None], torch.linalg.cholesky(damped))[..., 0]
        promised = 0.5 * (step * (damping[:, None] * diagonal * step - state.gradient)).sum(dim=-1)
        trial = problem(state.flat + step)
        gained = state.cost - trial.cost
        ratio = gained / promised.clamp(min=1e-12)
        better = gained > 0
        damping = torch.where(better, damping * (1 - (2 * ratio - 1) ** 3).clamp(min=1 / 3), damping * growth)
        growth = torch.where(better, torch.full_like(growth, 2.0), growth * 2)
        enough = better & (gained < options.gain * state.cost)
        state = _State(
            torch.where(better[:, None], trial.flat, state.flat),
            torch.where(better, trial.cost, state.cost),
            torch.where(better[:, None], trial.gradient, state.gradient),
            torch.where(better[:, None, None], trial.hessian, state.hessian),
        )
        if bool((enough | (growth > 64)).all()):
            break
    return state


def _constraints(scan: Scan, options: LMOptions, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where f is asked for what: points (q, 3), targets (q), and whether only f >= target is asked (q)."""
    x, target = [scan.points], [np.zeros(len(scan))]
    if scan.normals is not None:
        for offset in (options.offset, -options.offset):
            x.append(scan.points + offset * scan.normals)
            target.append(np.full(len(scan), offset))
    on = sum(len(part) for part in x)
    if scan.sensors is not None and options.free:
        rng = np.random.default_rng(seed)
        chosen = rng.integers(len(scan), size=options.free)
        ray = scan.sensors[chosen] - scan.points[chosen]
        length = np.linalg.norm(ray, axis=1, keepdims=True).clip(1e-9)
        along = np.minimum(rng.uniform(options.offset, 0.5, (len(chosen), 1)), length)
        seen_through = scan.points[chosen] + along * ray / length
        distance, _ = nearest.to_points(seen_through, scan.points)
        x.append(seen_through)
        target.append(options.clear * distance)
    points = torch.from_numpy(np.concatenate(x)).float()
    free = torch.arange(len(points)) >= on
    return points, torch.from_numpy(np.concatenate(target)).float(), free


def _residual(model: FieldModel, scans: Sequence[Scan], code: Code, seed: int) -> Float[Tensor, "b n"]:
    """|f| at fresh points."""
    device = code.flat.device
    batch = torch.from_numpy(np.stack([_draw(scan, 2048, seed + 1).points for scan in scans])).float().to(device)
    with torch.no_grad():
        return model.field(batch, code).abs()


def _draw(scan: Scan, count: int, seed: int) -> Scan:
    """`count` points of the scan, some of them repeated if it has fewer."""
    rng = np.random.default_rng(seed)
    if scan.faces is not None:
        return scan.sample(count, rng)
    if len(scan) >= count:
        return scan.take(rng.permutation(len(scan))[:count])
    return scan.take(rng.permutation(np.arange(count) % len(scan)))


def _joined(parts: Sequence[Fitted]) -> Fitted:
    covariances = [part.covariance for part in parts if part.covariance is not None]
    return Fitted(
        join([part.code for part in parts]),
        torch.cat(covariances) if len(covariances) == len(parts) else None,
        torch.cat([part.residual for part in parts]),
    )
