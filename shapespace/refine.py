"""Refining: the code of a scan is fitted, then the decoder itself is adapted to this one scan.

The scan is trusted where it has points. Everywhere else the adapted field is held at what the fit said, so that the
completion stays; and points that the adaptation is not shown say which of its steps was best.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shapespace.data.loader import Batch, collate
from shapespace.data.scan import Scan
from shapespace.fit import draw, oriented
from shapespace.geometry import nearest
from shapespace.losses import weigh
from shapespace.models.base import FieldModel
from shapespace.models.code import Code
from shapespace.objective import Terms, in_pieces
from shapespace.optim import optimisers
from shapespace.train import cosine


@dataclass(frozen=True)
class RefineOptions:
    """The training's optimisers on the decoder, for one scan. Lengths are model units."""

    known: int = 50_000
    """Points that are taken from the scan, at most."""
    points: int = 2048
    """Points of these that are drawn at every step, and as many around them."""
    steps: int = 300
    """Number of steps."""
    lr: float = 5e-4
    """Adam's learning rate; both fall along half a cosine."""
    lr_hidden: float = 1e-3
    """Muon's, for the products between hidden layers."""
    sigma: float = 0.01
    """Standard deviation of the points around the scan."""
    reach: float = 0.03
    """How far from its points the scan is trusted, at least; beyond, the field stays as it was fitted."""
    stay: float = 3.0
    """Weight of the mean change of the field beyond that reach."""
    held: float = 0.1
    """Share of the scan that is kept apart to say which weights to take."""
    look: int = 20
    """Steps between two looks at that share."""


def refine(
    model: FieldModel,
    scan: Scan,
    code: Code,
    weights: Mapping[str, float],
    options: RefineOptions | None = None,
    *,
    seed: int = 0,
) -> FieldModel:
    """A copy of the model, adapted to one scan (model frame) whose code (a batch of one) was fitted.

    `weights` are those of the training's terms; terms about the code or far from the scan are left out. A scan without
    normals gets estimated ones; where outside cannot be told by the points, it is where the fitted field rises.
    """
    options = options or RefineOptions()
    rng = np.random.default_rng(seed)
    scan = oriented(model, scan.sample(options.known, rng).with_normals(), code)
    order = rng.permutation(len(scan))
    shown, held = np.split(order, [len(scan) - max(1, round(options.held * len(scan)))])
    check = torch.from_numpy(scan.points[held[:4096]]).float()[None]
    told = scan.take(shown)
    silent = _silent(model, scan, code, options.reach, rng)

    refined = copy.deepcopy(model).eval()
    learned = [p for name, p in refined.named_parameters() if not name.startswith("encoder.")]
    optimiser = optimisers(refined, lr=options.lr, lr_codes=0.0, lr_hidden=options.lr_hidden)
    rates, schedule = [group["lr"] for group in optimiser.param_groups], cosine(warmup=10)
    weights = {**weights, "far": 0.0, "code": 0.0, "lesson": 0.0, "stay": options.stay}

    def loss(batch: Batch, of: Code) -> tuple[Tensor, Terms]:
        terms = refined.terms(batch, of)
        with torch.no_grad():
            before = model.field(batch.box, of)
        terms["stay"] = (refined.field(batch.box, of) - before).abs().mean()
        return weigh(terms, weights), terms

    best, kept = float("inf"), refined.state_dict()
    for step in range(options.steps + 1):
        if step % options.look == 0:
            with torch.no_grad():
                error = float(refined.field(check, code).abs().mean())
            if error < best:
                best, kept = error, copy.deepcopy(refined.state_dict())
        if step == options.steps:
            break
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step, step / options.steps)
        batch = collate(
            [draw(told, options.points, int(rng.integers(2**32)))], sigma=options.sigma, sloped=4, seed=step
        )
        anchors = silent[torch.from_numpy(rng.integers(len(silent), size=options.points // 4))][None]
        gradients = in_pieces(loss, replace(batch, box=anchors), code, learned).gradients[len(code.tensors) :]
        for parameter, gradient in zip(learned, gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
    refined.load_state_dict(kept)
    return refined


def _silent(model: FieldModel, scan: Scan, code: Code, reach: float, rng: np.random.Generator) -> Float[Tensor, "n 3"]:
    """Points of which the scan says nothing: around the fitted surface, where it was not seen, and in the box.

    They lie farther from the scan than `reach`, and the farther the worse its nearest point is fitted: where the fit is
    wrong, the wrong surface must not be held.
    """
    (mesh,) = model.surface(code, resolution=64)
    around = np.asarray(mesh.vertices)[rng.integers(len(mesh.vertices), size=40_000)]
    around = around + rng.normal(scale=reach, size=around.shape)
    points = np.concatenate([around, rng.uniform(-1, 1, (10_000, 3))])
    distance, index = nearest.to_points(points, scan.points.astype(np.float64))
    with torch.no_grad():
        off = model.field(torch.from_numpy(scan.points[index]).float()[None], code)[0].abs().numpy()
    return torch.from_numpy(points[distance > reach + 3 * off]).float()
