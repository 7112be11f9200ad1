"""Refining: the code of a scan is fitted, then the decoder itself is adapted to this one scan.

Near its points the scan says what the field is, everywhere else the fit does: so the completion stays, and nothing
grows between them. What the network is too smooth for comes from the points themselves. Some of them are shown to
neither: they say which of the adaptation's steps was best, and how wide the rest is to be smoothed.

A scan without holes tells the distance everywhere (`reach` inf). Then half of the places are drawn where the field is
wrong, and at the end the last layer, in which the field is linear, is solved for.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shapespace.data.loader import Batch, collate
from shapespace.fitting.residuals import orient_normals, resample
from shapespace.geometry import proximity
from shapespace.geometry.mls import MovingLeastSquares
from shapespace.geometry.scan import Scan
from shapespace.models.base import SDFModel
from shapespace.models.code import Code
from shapespace.models.igr import IGR
from shapespace.nn.mlp import Linearization
from shapespace.training.objective import Objective, chunked_gradients
from shapespace.training.optimizers import cosine, make_optimizers

_WIDTHS = 0.03, 0.09  # standard deviations of the places around scan and fit, in model units
_ASKED = 8192  # places at which a field that is told everywhere is asked, at each look, where it is wrong
_CLOSE = 0.01  # model units: errors are taken relative to the distance, but for places closer than this
_PLANES = 24  # of the nearest points, of which an edge may lie between
_ROUNDS = 4  # over these planes, by which their corner is found
_SOLVES = 6  # of least squares, by which the sum of absolute errors is at its least but for a hundredth
_PRIOR = 0.05  # what the model's field weighs beside the points, each of which weighs 1 where it lies


@dataclass(frozen=True)
class RefineOptions:
    """The training's optimisers on the decoder, for one scan. Lengths are model units."""

    max_points: int = 50_000
    """Points that are taken from the scan, at most."""
    points: int = 512
    """Points of these that are drawn at every step, and as many around them."""
    field_points: int = 512
    """Places further off, at which scan or fit tells the distance, that are drawn at every step."""
    steps: int = 300
    """Number of steps."""
    lr: float = 1e-3
    """Adam's learning rate; both fall along half a cosine."""
    lr_muon: float = 6e-3
    """Muon's, for the products between hidden layers."""
    near_std: float = 0.01
    """Standard deviation of the points around the scan."""
    trust_distance: float = 0.03
    """How far from its points the scan is trusted, at least; beyond, the field stays as it was fitted. `inf` for scans
    without holes: their points tell the distance everywhere."""
    signed_distance_weight: float = 1.0
    """Weight of the mean difference from what scan or fit say about the field around."""
    validation_fraction: float = 0.1
    """Share of the scan that is kept apart to say which weights to take, and which width."""
    eval_every: int = 20
    """Steps between two looks at that share."""


def refine(
    model: SDFModel,
    scan: Scan,
    code: Code,
    weights: Mapping[str, float],
    options: RefineOptions | None = None,
    *,
    seed: int = 0,
) -> SDFModel:
    """A copy of the model, adapted to one scan (model frame) whose code (a batch of one) was fitted, with its detail.

    `weights` are those of the training's terms, but for those about the code. A scan without normals gets estimated
    ones; where outside cannot be told by the points, it is where the fitted field rises.
    """
    options = options or RefineOptions()
    rng = np.random.default_rng(seed)
    scan = orient_normals(model, scan.sample(options.max_points, rng).estimate_normals(), code)
    order = rng.permutation(len(scan))
    shown, held = np.split(order, [len(scan) - max(1, round(options.validation_fraction * len(scan)))])
    check = torch.from_numpy(scan.points[held[:4096]]).float()[None]
    told = scan.select(shown)
    places, targets = field_targets(model, told, code, options.trust_distance, rng)

    refined = copy.deepcopy(model).eval()
    learned = [p for name, p in refined.named_parameters() if not name.startswith("encoder.")]
    optimiser = make_optimizers(refined, lr=options.lr, lr_codes=0.0, lr_muon=options.lr_muon)
    rates, schedule = [group["lr"] for group in optimiser.param_groups], cosine(warmup_steps=10)
    loss = Objective(
        refined,
        {
            **weights,
            "unsigned_distance": 0.0,
            "signed_distance": options.signed_distance_weight,
            "code_reg": 0.0,
            "distillation": 0.0,
        },
    ).loss

    everywhere = not np.isfinite(options.trust_distance)

    best, kept = float("inf"), refined.state_dict()
    for step in range(options.steps + 1):
        if step % options.eval_every == 0:
            with torch.no_grad():
                error = float(refined.field(check, code).abs().mean())
            if error < best:
                best, kept = error, copy.deepcopy(refined.state_dict())
            wrong = error_weights(refined, code, places, targets, rng) if everywhere else None
        if step == options.steps:
            break
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step, step / options.steps)
        seen = resample(told, options.points, int(rng.integers(2**32)))
        batch = collate([seen], near_std=options.near_std, gradient_stride=4, seed=step)
        some = torch.from_numpy(rng.integers(len(places), size=options.field_points))
        if wrong is not None:  # half of them, each as often as it is wrong
            some[::2] = torch.from_numpy(rng.choice(wrong.places, size=len(some[::2]), p=wrong.share))
        batch = replace(batch, uniform_points=places[some][None], target_sdf=targets[some][None])
        gradients = chunked_gradients(loss, batch, code, learned).gradients[len(code.tensors) :]
        for parameter, gradient in zip(learned, gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
    refined.load_state_dict(kept)
    if everywhere and isinstance(refined, IGR):
        solve_last_layer(refined, code, places, targets)
    return _with_detail(refined, told, code, check)


class ErrorWeights(NamedTuple):
    """Some of the places, and their shares of the relative error."""

    places: Int[np.ndarray, "n"]
    share: Float[np.ndarray, "n"]


@torch.no_grad()
def error_weights(
    model: SDFModel,
    code: Code,
    places: Float[Tensor, "n 3"],
    targets: Float[Tensor, "n"],
    rng: np.random.Generator,
) -> ErrorWeights:
    asked = rng.integers(len(places), size=_ASKED)
    off = (model.field(places[asked][None], code)[0] - targets[asked]).abs() / (targets[asked].abs() + _CLOSE)
    share = off.double().numpy() + 1e-12
    return ErrorWeights(asked, share / share.sum())


@torch.no_grad()
def solve_last_layer(model: IGR, code: Code, places: Float[Tensor, "n 3"], targets: Float[Tensor, "n"]) -> None:
    """Give the last layer the weights of the least mean |f - d| / (|d| + close), the rest of the network as it is.

    Iteratively reweighted least squares; of the weights on the way, those that it began with included, the best.
    """
    out, vector = model.decoder.out, code.parts[0]
    pieces = [model.decoder.features(piece[None], vector)[0] for piece in places.split(4096)]
    read = torch.cat([torch.cat(pieces), torch.ones(len(places), 1)], dim=1).double()
    scale = 1 / (targets.abs() + _CLOSE)
    weights = torch.cat([out.weight[0], out.bias]).double()
    best, least = weights, float("inf")
    for _ in range(_SOLVES + 1):
        off = (read @ weights - targets).abs()
        if (error := float((off * scale).mean())) < least:
            best, least = weights, error
        weighted = read * (scale / (off + 1e-5))[:, None]
        normal = weighted.T @ read
        normal += 1e-9 * normal.diagonal().mean() * torch.eye(len(normal), dtype=torch.float64)
        weights = torch.linalg.solve(normal, weighted.T @ targets.double())
    out.weight[0], out.bias[0] = best[:-1].float(), best[-1].float()


class DetailedModel(SDFModel):
    """An adapted model, with what is left between it and the scan taken from the points themselves.

    Where there are points, the field is their moving least squares, and it passes into the model's where they end.
    """

    def __init__(self, model: SDFModel, scan: Scan, width: float) -> None:
        """`width` is that of the weights, in model units; the scan has normals."""
        super().__init__()
        assert scan.normals is not None
        self.model, self.prior, self.level = model, model.prior, model.level
        self.scan = MovingLeastSquares(scan.points, scan.normals, width)

    def encode(self, batch: Batch) -> Code:
        """As the model does."""
        return self.model.encode(batch)

    def loss_terms(self, batch: Batch, code: Code) -> dict[str, Tensor]:
        """Those of the model."""
        return self.model.loss_terms(batch, code)

    def linearize(self, x: Float[Tensor, "b q 3"], code: Code) -> Linearization:
        """That of the model: the detail moves the surface by a millimetre or two."""
        return self.model.linearize(x, code)

    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        """The model's field, and the scan's heights where it has points; no graph."""
        smooth = self.model.field(x, code).detach()
        found = self.scan(x.detach().cpu().double().flatten(0, 1).numpy())
        height, weight = (torch.from_numpy(each).to(smooth).view_as(smooth) for each in found)
        return torch.where(weight > 0, (height + _PRIOR * smooth) / (weight + _PRIOR), smooth)


def _with_detail(model: SDFModel, scan: Scan, code: Code, held: Float[Tensor, "1 n 3"]) -> SDFModel:
    """The width, in units of the distance to a point's sixth neighbour, under which the held points are met best.

    Where none meets them better than the model does (few points, or noisy ones), there is no detail.
    """
    spacing = proximity.median_spacing(scan.points, neighbor=6)
    candidates = [model, *(DetailedModel(model, scan, factor * spacing) for factor in (0.5, 0.7, 1.0, 1.4))]
    with torch.no_grad():
        return min(candidates, key=lambda made: float(made.field(held, code).abs().mean()))


def field_targets(
    model: SDFModel, scan: Scan, code: Code, reach: float, rng: np.random.Generator
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n"]]:
    """Places around the scan, around the fitted surface and in the box, and what the field should be there.

    Close to the scan, and the less close the better its nearest point is fitted, it is what the scan says: where the
    fit is wrong, the wrong surface must not be held. Farther away it is what the fit says. Places beside the rim of a
    hole belong to neither, and are left out; a whole surface has none.
    """
    known, normals = scan.points.astype(np.float64), scan.normals
    assert normals is not None  # given, or estimated and turned

    def spread(points: Float[np.ndarray, "n 3"], count: int, width: float) -> Float[np.ndarray, "m 3"]:
        return points[rng.integers(len(points), size=count)] + rng.normal(scale=width, size=(count, 3))

    close, anywhere = [known], 40_000
    if np.isfinite(reach):
        close += [np.asarray(mesh.vertices) for mesh in model.extract_surface(code, resolution=64)]
    else:  # the scan alone has a say, everywhere
        anywhere *= 3
    places = np.concatenate(
        [*(spread(points, 40_000, width) for points in close for width in _WIDTHS), rng.uniform(-1, 1, (anywhere, 3))]
    )
    whole = not np.isfinite(reach)
    distance, index, height = signed_distance_to_points(places, known, normals, whole=whole)
    with torch.no_grad():
        off = model.field(torch.from_numpy(scan.points[index]).float()[None], code)[0].abs().numpy()
        fitted = model.field(torch.from_numpy(places).float()[None], code)[0].numpy()
    near = distance < reach + 3 * off
    target = np.where(near, distance, fitted)
    kept = ~near | whole | (np.abs(height) > 0.8 * np.abs(distance))
    return torch.from_numpy(places[kept]).float(), torch.from_numpy(target[kept]).float()


def signed_distance_to_points(
    places: Float[np.ndarray, "q 3"],
    points: Float[np.ndarray, "n 3"],
    normals: Float[np.ndarray, "n 3"],
    *,
    whole: bool,
) -> tuple[Float[np.ndarray, "q"], np.ndarray, Float[np.ndarray, "q"]]:
    """Signed distance to a surface of which these points are known, the nearest of them, and the height above it.

    Over a point, the surface is its tangent plane, as far as its neighbours are away; the distance to the point itself
    would be too long between points. Beyond, the point is what is nearest; or, of a surface that is known as a `whole`,
    the place where the planes of the points around meet: there is an edge, where it could be the rim of a hole. There
    the side is that of the points around together, each the less the farther: beyond a sharp edge the nearest may be of
    the face that looks away.
    """
    away, index = proximity.nearest_point(places, points)
    height = ((places - points[index]) * normals[index]).sum(axis=1)
    gap = proximity.median_spacing(points, neighbor=6)
    over = np.square(away) - np.square(height) < gap**2
    side, distance = np.where(height < 0, -1.0, 1.0), np.where(over, np.abs(height), away)
    if whole:
        beyond = np.flatnonzero(~over)
        around = proximity.k_nearest(places[beyond], points, _PLANES)
        apart = places[beyond, None] - points[around]
        farther = np.linalg.norm(apart, axis=2) - away[beyond, None]
        heights = (apart * normals[around]).sum(axis=2) * np.maximum(1 - farther / gap, 0)
        side[beyond] = np.where(heights.sum(axis=1) < 0, -1.0, 1.0)
        met = distance_to_halfspaces(places[beyond], points[around], normals[around] * side[beyond, None, None])
        distance[beyond] = np.clip(met, away[beyond] - gap, away[beyond])
    return side * distance, index, height


def distance_to_halfspaces(
    places: Float[np.ndarray, "q 3"], points: Float[np.ndarray, "q k 3"], normals: Float[np.ndarray, "q k 3"]
) -> Float[np.ndarray, "q"]:
    """Distance of each place to what lies below all of its k planes, by Hildreth's method (1957)."""
    below = (normals * points).sum(axis=2)
    foot, pushed = places.copy(), np.zeros(below.shape)
    for _ in range(_ROUNDS):
        for plane in range(below.shape[1]):
            step = np.minimum(pushed[:, plane], below[:, plane] - (normals[:, plane] * foot).sum(axis=1))
            pushed[:, plane] -= step
            foot += step[:, None] * normals[:, plane]
    return np.linalg.norm(places - foot, axis=1)
