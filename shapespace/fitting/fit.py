"""Test-time fitting: the code of a scan that training never saw, with the weights asleep."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from shapespace.data.loader import collate
from shapespace.geometry import proximity as nearest
from shapespace.geometry import similarity as pose
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.models.base import DistanceModel, ShapeModel
from shapespace.models.code import Code, join
from shapespace.nn import losses
from shapespace.nn.mlp import Linearised
from shapespace.nn.parallel import PIECE, spread
from shapespace.training.objective import Objective, in_pieces

_FAR = 1e9  # a free point that is asked to be above minus this is content with any field
_ESTIMATED = 50_000  # points of a scan without normals that get some: two seconds
_CLOSER = (24.0, 12.0)  # degrees: half-way from one start to the next, and half of that
_ENCODED, _ASKED = 4096, 256  # points of a scan that the encoder sees, and that tell poses apart
_ROWS_ON_GPU = 16  # codes that are linearised at once: some 6 GB at 7,168 points each


Pose = Literal["given", "near", "heading", "rotation"]


@dataclass(frozen=True)
class LMOptions:
    """Levenberg-Marquardt on the code. Lengths are model units."""

    points: int = 2048
    """Points drawn from the scan."""
    steps: int = 20
    """Largest number of steps."""
    offset: float = 0.02
    """f is also asked to be +-offset at this distance along the normals, on either side of the scan. Scans without get
    estimated ones; where outside cannot be told by the points, it is where the field rises after the trial steps."""
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
    """Steps, with a quarter of the points, after which only the best start of each scan goes on."""
    pose: Pose = "near"
    """How the scan lies: as the training scans do (given); nearly so (near), as scans of a part of a person do, whose
    middle is not the person's; upright, facing anywhere (heading); or in any way (rotation). What is not given is found
    together with the code."""
    turn: float = 0.15
    """Standard deviation of the turn about each axis that is found beside a start, in radians."""
    shift: float = 0.15
    """Standard deviation of the shift along each axis."""
    size: float = 0.01
    """Standard deviation of the change of size, as a share: stature is in the code."""
    likely: int = 4
    """Where the rotation is unknown, starts that are tried at most: those in which the encoder's code fits best."""
    keep: int = 3
    """How many of them go on at most, after the trial; the one that fits best at the end is taken."""
    worse: float = 2.0
    """Starts that fit this many times worse than the best one are given up."""

    def on_trial(self) -> "LMOptions":
        """The same with a quarter of the points: they tell starts apart."""
        return replace(self, points=max(1, self.points // 4), free=self.free // 4)


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


# For families that the paper's protocol is not about: a random grid is far from any shape's.
FROM_ENCODER = AdamOptions(points=2048, steps=200, lr=1e-2, half=1.0, start="encoder")


@dataclass(frozen=True)
class Fitted:
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
        return model.encode(collate([draw(scan, points, seed) for scan in some]).to(device))

    with torch.no_grad():
        return join(list(spread(codes, [scans[first : first + chunk] for first in range(0, len(scans), chunk)])))


def fit_lm(
    model: DistanceModel, scans: Sequence[Scan], options: LMOptions | None = None, *, seed: int = 0, chunk: int = 16
) -> Fitted:
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
) -> Fitted:
    """Fit the codes of scans (model frame) as the paper does, one scan at a time."""
    options = options or AdamOptions()
    return _joined([_fit_adam_one(model, scan, weights, options, seed) for scan in scans])


def _fit_adam_one(
    model: ShapeModel, scan: Scan, weights: Mapping[str, float], options: AdamOptions, seed: int
) -> Fitted:
    model.eval()
    device = next(model.parameters()).device
    start = encode(model, [scan], seed=seed)
    if options.start == "random":
        noise = torch.randn(start.flat.shape, generator=torch.Generator().manual_seed(seed)) / 256
        start = start.like(noise.to(device))
    elif options.start == "mean":
        if model.prior is None:
            raise ValueError("codes that are grids have no mean to start from: start from the encoder.")
        start = start.like(model.prior.mean[None])
    scan = with_normals(scan, seed)
    weights = {**weights, "lesson": 0.0}
    flat = start.flat.clone().requires_grad_()
    optimiser = torch.optim.Adam([flat], lr=options.lr)
    loss = Objective(model, weights).of_code
    with _asleep(model):
        for step in tqdm(range(options.steps), desc=f"fit {scan.name}", unit="step"):
            if step == options.steps // 2:
                optimiser.param_groups[0]["lr"] = options.lr / 10
            drawn = draw(scan, options.points, hash((seed, step)) % 2**32)
            batch = collate([drawn], sigma=options.sigma, half=options.half, seed=hash((seed, step)) % 2**32).to(device)
            by_code = in_pieces(loss, batch, start.like(flat.detach()), ()).gradients
            flat.grad = torch.cat([part.flatten(1) for part in by_code if part is not None], dim=1)
            optimiser.step()
    code = start.like(flat.detach())
    residual = residuals(model, [scan], code, seed) if isinstance(model, DistanceModel) else flat.new_zeros(1, 0)
    return Fitted(code, None, residual, [None])


@contextmanager
def _asleep(model: ShapeModel) -> Iterator[None]:
    """No gradients for the weights."""
    awake = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in awake:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in awake:
            parameter.requires_grad_(True)


def _fit_lm_chunk(model: DistanceModel, scans: Sequence[Scan], options: LMOptions, seed: int) -> Fitted:
    model.eval()
    begun = [_Start(index, scan.with_sensors(), None) for index, scan in enumerate(scans)]
    if options.pose in ("heading", "rotation"):
        begun = [one.placed(frame) for one in begun for frame in _poses(model, one.scan, options.pose, options, seed)]
    few = options.on_trial()
    encoded = encode(model, [one.scan for one in begun], seed=seed)
    trial = Problem(model, [draw(one.scan, few.points, seed) for one in begun], encoded, few, seed)
    every = torch.arange(len(begun), device=encoded.flat.device)
    flat = torch.cat([encoded.flat, model.prior.mean.expand_as(encoded.flat)])
    tried = descend(trial, every.repeat(2), trial.at_rest(flat), options.trial, few)

    count = options.keep if options.pose in ("heading", "rotation") else 1
    going = _best(tried.cost, [begun[row].of for row in every.repeat(2).tolist()], count, options.worse)
    codes, poses = trial.split(tried.flat[going])
    kept = [begun[row % len(begun)] for row in going]
    if trial.posed:
        kept = [one.placed(pose.frame_of(found)) for one, found in zip(kept, poses, strict=True)]
    start = encoded.like(codes)
    drawn = [draw(with_normals(one.scan, seed), options.points, seed) for one in kept]
    known = [oriented(model, scan, start[index]) for index, scan in enumerate(drawn)]
    problem = Problem(model, known, start, options, seed)
    rows = torch.arange(len(kept), device=codes.device)
    state = descend(problem, rows, problem.at_rest(codes), options.steps - options.trial, options)

    best = _best(state.cost, [one.of for one in kept], 1)
    codes, poses = problem.split(state.flat[best])
    found = [kept[row] for row in best]
    if problem.posed:
        found = [one.placed(pose.frame_of(by)) for one, by in zip(found, poses, strict=True)]
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(state.hessian[best]))[
        :, : codes.shape[1], : codes.shape[1]
    ]
    code = encoded.like(codes)
    residual = residuals(model, [one.scan for one in found], code, seed)
    return Fitted(code, covariance, residual, [one.frame for one in found])


class _Start(NamedTuple):
    """A scan, moved by a frame; `of` is its place among those that are to be fitted."""

    of: int
    scan: Scan
    frame: Frame | None

    def placed(self, frame: Frame) -> "_Start":
        """Moved once more."""
        return _Start(self.of, self.scan.to_model(frame), frame if self.frame is None else self.frame.then(frame))


def _poses(model: DistanceModel, scan: Scan, unknown: pose.Unknown, options: LMOptions, seed: int) -> list[Frame]:
    """How the scan may lie: frames in which its encoder's code fits it best, without a step of a fit.

    A right pose fits several times better than a wrong one even so. The likely ones among coarse starts go each its own
    way to the best of its neighbours.
    """
    thin = draw(scan, _ENCODED, seed)

    def misfit(frames: Sequence[Frame]) -> Float[Tensor, "k"]:
        moved = [thin.to_model(frame) for frame in frames]
        return residuals(model, moved, encode(model, moved, seed=seed), seed, _ASKED).mean(dim=1)

    starts = _turns(pose.starts(unknown))
    likely = [starts[row] for row in misfit(starts).argsort()[: options.likely].tolist()]
    for angle in _CLOSER:
        nearby = [[frame.then(turn) for turn in _turns(pose.around(unknown, angle))] for frame in likely]
        likely = [frames[int(misfit(frames).argmin())] for frames in nearby]
    return [likely[row] for row in _best(misfit(likely), [0] * len(likely), options.likely, options.worse)]


def _turns(rotations: Float[np.ndarray, "k 3 3"]) -> list[Frame]:
    return [Frame(torch.zeros(3), torch.tensor(1.0), rotation) for rotation in torch.from_numpy(rotations).float()]


def _best(cost: Float[Tensor, "r"], of: Sequence[int], count: int, worse: float = np.inf) -> list[int]:
    """The rows that cost least, scan after scan: of each `count`, without those that cost `worse` times the best's."""
    rows = []
    for index in sorted(set(of)):
        own = [row for row in cost.argsort().tolist() if of[row] == index][:count]
        rows += [row for row in own if cost[row] <= worse * cost[own[0]]]
    return rows


class State(NamedTuple):
    """Codes with the cost of each, its gradient and its Gauss-Newton matrix."""

    flat: Float[Tensor, "r k"]
    cost: Float[Tensor, "r"]
    gradient: Float[Tensor, "r k"]
    hessian: Float[Tensor, "r k k"]


class Problem:
    """What is asked of the field at the points of each scan: cost, gradient and Gauss-Newton matrix for given codes.

    Scans are padded to the same number of points, with free space of which nothing is asked. Where the pose is not
    given, a row holds a code and the pose that moves the scan (`geometry.pose`).
    """

    def __init__(self, model: DistanceModel, scans: Sequence[Scan], codes: Code, options: LMOptions, seed: int) -> None:
        self.model, self.codes, self.options = model, codes, options
        asked = [_constraints(scan, options, seed) for scan in scans]
        x, target, free = (list(parts) for parts in zip(*asked, strict=True))
        self.counts = [len(points) for points in x]
        device = codes.flat.device
        self.x = pad_sequence(x, batch_first=True).to(device)
        self.target = pad_sequence(target, batch_first=True, padding_value=-_FAR).to(device)
        self.free = pad_sequence(free, batch_first=True, padding_value=True).to(device)
        self.posed = options.pose != "given"
        deviations = [options.turn] * 3 + [options.shift] * 3 + [options.size]
        self.mean = torch.cat([model.prior.mean, torch.zeros(pose.SIZE * self.posed, device=device)])
        firm = torch.tensor(deviations[: pose.SIZE * self.posed], device=device).square().reciprocal()
        self.precision = (
            torch.block_diag(model.prior.precision(), torch.diag(firm)) if self.posed else model.prior.precision()
        )

    def at_rest(self, codes: Float[Tensor, "r c"]) -> Float[Tensor, "r k"]:
        """Codes of scans that are not moved."""
        return pad(codes, (0, pose.SIZE * self.posed))

    def split(self, flat: Float[Tensor, "r k"]) -> tuple[Float[Tensor, "r c"], Float[Tensor, "r p"]]:
        """Codes, and poses (of no numbers where they are given)."""
        found = flat.split([flat.shape[1] - pose.SIZE * self.posed, pose.SIZE * self.posed], dim=1)
        return found[0], found[1]

    def __call__(self, scans: Int[Tensor, "r"], flat: Float[Tensor, "r k"]) -> State:
        """State of each code for its scan: the sum over the scan's points, and the prior of the codes."""
        away = flat - self.mean
        pull = away @ self.precision
        total = State(flat, 0.5 * (away * pull).sum(dim=1), pull, self.precision.repeat(len(flat), 1, 1))
        if flat.device.type == "cpu":
            pieces = [
                (slice(row, row + 1), slice(first, min(first + PIECE, self.counts[scan])))
                for row, scan in enumerate(scans.tolist())
                for first in range(0, self.counts[scan], PIECE)
            ]
        else:
            pieces = [(slice(row, row + _ROWS_ON_GPU), slice(None)) for row in range(0, len(flat), _ROWS_ON_GPU)]
        found = spread(lambda piece: self._part(scans[piece[0]], flat[piece[0]], piece[1]), pieces)
        for (rows, _), part in zip(pieces, found, strict=True):
            for whole, more in zip(total[1:], part, strict=True):
                whole[rows] += more
        return total

    def _part(
        self, scans: Int[Tensor, "r"], flat: Float[Tensor, "r k"], points: slice
    ) -> tuple[Float[Tensor, "r"], Float[Tensor, "r k"], Float[Tensor, "r k k"]]:
        """What some points say. IRLS with Huber's weights for the scan, a hinge for free space."""
        options = self.options
        field = self._linearise(self.x[scans, points], flat)
        residual = field.value - self.target[scans, points]
        content = self.free[scans, points] & (residual > 0)  # free space asks for f >= target only
        size = residual.abs()
        weight = (options.huber / size.clamp(min=options.huber)).masked_fill(content, 0.0)
        loss = torch.where(size < options.huber, 0.5 * size.square(), options.huber * (size - 0.5 * options.huber))
        share = options.evidence / options.points / options.noise**2
        weighted = field.jacobian * (share * weight)[..., None]
        return (
            share * loss.masked_fill(content, 0.0).sum(dim=1),
            (weighted.mT @ residual[..., None])[..., 0],
            weighted.mT @ field.jacobian,
        )

    def _linearise(self, x: Float[Tensor, "r q 3"], flat: Float[Tensor, "r k"]) -> Linearised:
        """The field at the points, moved by each row's pose; its Jacobian in all numbers of the row."""
        codes, poses = self.split(flat)
        if not self.posed:
            return self.model.linearise(x, self.codes.like(codes))
        moved, left = pose.move(x, poses)
        field = self.model.linearise(moved, self.codes.like(codes))
        by_pose = pose.by_pose(field.gradient, moved, poses, left)
        return field._replace(jacobian=torch.cat([field.jacobian, by_pose], dim=2))


def descend(
    problem: Problem, scans: Int[Tensor, "r"], flat: Float[Tensor, "r k"], steps: int, options: LMOptions
) -> State:
    """Levenberg-Marquardt with the gain-ratio rule for the damping (Madsen, Nielsen & Tingleff 2004, section 3.2).

    Every row goes its own way, and is left alone once it has arrived.
    """
    state = problem(scans, flat)
    damping, growth = torch.full_like(state.cost, 1e-2), torch.full_like(state.cost, 2.0)
    going = torch.arange(len(flat), device=flat.device)
    for _ in range(steps):
        now, lift = State(*(part[going] for part in state)), damping[going]
        diagonal = now.hessian.diagonal(dim1=-2, dim2=-1)
        damped = now.hessian + torch.diag_embed(lift[:, None] * diagonal)
        step = -torch.cholesky_solve(now.gradient[..., None], torch.linalg.cholesky(damped))[..., 0]
        promised = 0.5 * (step * (lift[:, None] * diagonal * step - now.gradient)).sum(dim=-1)
        trial = problem(scans[going], now.flat + step)
        gained = now.cost - trial.cost
        ratio = gained / promised.clamp(min=1e-12)
        better = gained > 0
        for whole, part in zip(state, trial, strict=True):
            whole[going[better]] = part[better]
        damping[going] = torch.where(better, lift * (1 - (2 * ratio - 1) ** 3).clamp(min=1 / 3), lift * growth[going])
        growth[going] = torch.where(better, 2.0, growth[going] * 2)
        arrived = (better & (gained < options.gain * now.cost)) | (growth[going] > 64)
        going = going[~arrived]
        if len(going) == 0:
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


def with_normals(scan: Scan, seed: int) -> Scan:
    """The scan with normals, its own or estimated; no more points are kept than estimating them should cost.

    Points that only one camera can have seen get that camera back too: it tells the space before a person from the
    space behind.
    """
    if scan.normals is not None or scan.faces is not None:
        return scan
    return scan.sample(_ESTIMATED, np.random.default_rng(seed)).with_sensors().with_normals()


def oriented(model: DistanceModel, scan: Scan, code: Code) -> Scan:
    """The scan (model frame), its lines turned into normals: each to the side on which the field of the code rises."""
    if scan.normals is not None or scan.lines is None:
        return scan
    points, lines = (torch.from_numpy(array).float()[None].to(code.flat.device) for array in (scan.points, scan.lines))
    return replace(scan, normals=losses.outward(lines, model.linearise(points, code).gradient)[0].cpu().numpy())


def residuals(
    model: DistanceModel, scans: Sequence[Scan], code: Code, seed: int, count: int = 2048
) -> Float[Tensor, "b n"]:
    """|f| at fresh points."""
    device = code.flat.device
    batch = torch.from_numpy(np.stack([draw(scan, count, seed + 1).points for scan in scans])).float().to(device)
    with torch.no_grad():
        return model.field(batch, code).abs()


def draw(scan: Scan, count: int, seed: int) -> Scan:
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
        [frame for part in parts for frame in part.frames],
    )
