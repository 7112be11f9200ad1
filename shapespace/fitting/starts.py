"""Codes from which a fit starts, scored cheaply before they are refined; and what a fit has outside of its scan.

Cheap is a sphere for each part: the distance between the points of a scan and the spheres, both ways.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shapespace.fitting.residuals import orient_normals, resample
from shapespace.geometry import proximity
from shapespace.geometry.scan import Scan
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.base import SDFModel
from shapespace.models.code import Code

SCORED_POINTS = 256  # points of a scan that compare codes
SCORED_CODES = 8  # training codes whose field is evaluated, at least; those whose spheres are the nearest
MAX_DISTANCE = 0.1  # model units, towards which the distance of a far point goes: it may be clutter
OUTSIDE_POINTS = 8192  # points of a scan that tell which parts are outside of it
OUTSIDE_GAP = 0.02  # model units between the sphere of such a part and the scan, at least
OUTSIDE_COSINE = 0.3  # of the angle between the normal and the direction to such a part, at least
NEIGHBORS, BORDER_SHIFT = 24, 0.3  # half a disk shifts the mean by 0.42 of its radius
CHUNK = 2**18  # distances that are computed at once: about as many as a core has in its caches
SPHERE = 0.6  # radius of the sphere that stands for a part, over the part's radius: about where its surface is


@torch.no_grad()
def start_codes(
    model: SDFModel, scan: Scan, encoded: Float[Tensor, "k"], count: int, seed: int
) -> Float[Tensor, "s k"]:
    """Codes from which a fit of a scan (model frame) starts: that of the encoder, and the mean of the training codes.

    For a model with parts, the others are the best `count - 1` of the mean and the training codes whose parts explain
    the scan best, by the field at some of its points. If there is one start only, it is the best of all of them.
    """
    mean = model.prior.mean
    if not isinstance(model, ArticulatedSDF) or (table := model.codes_parameter) is None or not len(table):
        return torch.stack([encoded, mean])
    points = _points(model, scan, seed)
    spheres = sphere_distance(model, points[::2], model.training_states().center)
    nearest = spheres.argsort()[: max(SCORED_CODES, 2 * count)]
    codes = torch.cat([encoded[None], mean[None], table[nearest]])
    best = _field_distance(model, points, codes).argsort()
    if count > 1:
        best = torch.cat([best.new_zeros(1), best[best > 0]])  # the encoder's first
    return codes[best[:count]]


def sphere_distance(
    model: ArticulatedSDF,
    points: Float[Tensor, "n 3"],
    center: Float[Tensor, "b k 3"],
    max_distance: float = MAX_DISTANCE,
) -> Float[Tensor, "b"]:
    """Mean distance between a scan and the spheres of bodies, from its points and from the spheres (model units).

    A distance d counts d m / (d + m), m being `max_distance`: what is far away counts little more than m.
    """
    distances = []
    for some in center.split(max(1, CHUNK // max(1, len(points) * center.shape[1]))):
        gap = torch.cdist(points, some.flatten(0, 1)).view(len(points), *some.shape[:2])
        gap = (gap - SPHERE * model.decoder.radius).abs()
        each = [nearest * max_distance / (nearest + max_distance) for nearest in (gap.amin(dim=2), gap.amin(dim=0))]
        distances.append(each[0].mean(dim=0) + each[1].mean(dim=1))
    return torch.cat(distances)


@torch.no_grad()
def outside_share(model: ArticulatedSDF, scan: Scan, code: Code, seed: int) -> float:
    """Share of the parts of a body (a batch of one) that are outside of its scan (model frame, with normals).

    It is by the areas of their spheres. A part is outside if it is in front of the nearest point of the scan, at a
    distance, and the scan goes on around this point: what was not scanned is behind the surface, or beyond its border.
    """
    count = OUTSIDE_POINTS if scan.faces is not None else min(OUTSIDE_POINTS, len(scan))
    sample = orient_normals(model, resample(scan, count, seed), code)
    assert sample.normals is not None
    center, radius = model.states(code).center[0].cpu().numpy(), model.decoder.radius.cpu().numpy()
    distance, nearest = proximity.nearest_point(center, sample.points)
    height = ((center - sample.points[nearest]) * sample.normals[nearest]).sum(axis=1)
    is_outside = (distance > SPHERE * radius + OUTSIDE_GAP) & (height > OUTSIDE_COSINE * distance)
    is_outside &= ~_at_border(sample.points[nearest], sample.points)
    return float(np.square(radius[is_outside]).sum() / np.square(radius).sum())


def _at_border(points: Float[np.ndarray, "n 3"], scan: Float[np.ndarray, "m 3"]) -> Bool[np.ndarray, "n"]:
    """Whether points of a scan are at its border: the mean of their neighbors is far to one side."""
    offset = scan[proximity.k_nearest(points, scan, NEIGHBORS)] - points[:, None]
    shift = np.linalg.norm(offset.mean(axis=1), axis=1)
    return shift > BORDER_SHIFT * np.linalg.norm(offset, axis=2).max(axis=1)


def _points(model: SDFModel, scan: Scan, seed: int) -> Float[Tensor, "n 3"]:
    return torch.from_numpy(resample(scan, SCORED_POINTS, seed).points).float().to(model.prior.mean)


def _field_distance(
    model: ArticulatedSDF, points: Float[Tensor, "n 3"], codes: Float[Tensor, "b z"]
) -> Float[Tensor, "b"]:
    """Mean |f| at the points of a scan for each code."""
    values = model.field(points.expand(len(codes), -1, -1), Code((codes,))).abs()
    return values.clamp(max=MAX_DISTANCE).mean(dim=1)
