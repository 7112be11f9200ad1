"""Codes from which a fit starts, scored cheaply before they are refined."""

import torch
from jaxtyping import Float
from torch import Tensor

from shapespace.fitting.residuals import resample
from shapespace.geometry.scan import Scan
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.base import SDFModel
from shapespace.models.code import Code

SCORED_POINTS = 256  # points of a scan that compare codes
SCORED_CODES = 8  # training codes whose field is evaluated, at least; those whose spheres are the nearest
MAX_DISTANCE = 0.1  # model units, at which the distance of a point counts no more: it may be clutter
SPHERE = 0.6  # radius of the sphere that stands for a part, over the part's radius: about where its surface is


@torch.no_grad()
def start_codes(
    model: SDFModel, scan: Scan, encoded: Float[Tensor, "k"], count: int, seed: int
) -> Float[Tensor, "s k"]:
    """Codes from which a fit of a scan (model frame) starts: that of the encoder, and others.

    The others are the mean of the training codes; for a model with parts, the best `count - 1` of the mean and the
    training codes whose parts explain the scan best, by the field at some of its points.
    """
    mean = model.prior.mean
    if not isinstance(model, ArticulatedSDF) or (table := model.codes_parameter) is None or not len(table):
        return torch.stack([encoded, mean])
    points = torch.from_numpy(resample(scan, SCORED_POINTS, seed).points).float().to(mean)
    nearest = _sphere_scores(model, points).argsort()[: max(SCORED_CODES, 2 * count)]
    others = torch.cat([mean[None], table[nearest]])
    values = model.field(points.expand(len(others), -1, -1), Code((others,))).abs()
    best = values.clamp(max=MAX_DISTANCE).mean(dim=1).argsort()[: count - 1]
    return torch.cat([encoded[None], others[best]])


def _sphere_scores(model: ArticulatedSDF, points: Float[Tensor, "n 3"]) -> Float[Tensor, "c"]:
    """Mean distance between a scan and each training body, both ways, with a sphere for each part."""
    centers, scores = model.training_states().center, []
    for some in centers.split(64):
        gap = torch.cdist(points, some.flatten(0, 1)).view(len(points), *some.shape[:2])
        gap = (gap - SPHERE * model.decoder.radius).abs_()
        found = gap.amin(dim=2).clamp(max=MAX_DISTANCE).mean(dim=0)
        covered = gap.amin(dim=0).clamp(max=MAX_DISTANCE).mean(dim=1)
        scores.append(found + covered)
    return torch.cat(scores)
