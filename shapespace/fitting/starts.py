"""Codes from which a fit starts: scored cheaply before they are refined, or searched where a first fit has failed.

Cheap is a sphere for each part: the distance between the points of a scan and the spheres, both ways.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shapespace.fitting.residuals import orient_normals, resample
from shapespace.geometry import proximity
from shapespace.geometry.articulation import PartPoses, PartTree, RelativePoses, compose, relative
from shapespace.geometry.scan import Scan
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.base import SDFModel
from shapespace.models.code import Code
from shapespace.nn.hypernetwork import pose_weights, rotation_to_6d

SCORED_POINTS = 256  # points of a scan that compare codes
SEARCH_POINTS = 512  # the same in the search; with 128 it found four of the nine lost limbs below, with 256 six
SCORED_CODES = 8  # training codes whose field is evaluated, at least; those whose spheres are the nearest
MAX_DISTANCE = 0.1  # model units, towards which the distance of a far point goes: it may be clutter
OUTSIDE_POINTS = 8192  # points of a scan that tell which parts are outside of it
OUTSIDE_GAP = 0.02  # model units between the sphere of such a part and the scan, at least
OUTSIDE_COSINE = 0.3  # of the angle between the normal and the direction to such a part, at least
NEIGHBORS, BORDER_SHIFT = 24, 0.3  # half a disk shifts the mean by 0.42 of its radius
CHUNK = 2**18  # distances that are computed at once: about as many as a core has in its caches
SPHERE = 0.6  # radius of the sphere that stands for a part, over the part's radius: about where its surface is

# Search, chosen on nine of 198 scans of tuning people, whose first fit lost a limb or a hand: seven are found.
STEPS = 60  # of Adam, and half as many after an exchange
LEARNING_RATE = 0.3  # in standard deviations of the codes
PRIOR = 4e-5  # weight of the squared deviations beside the distances (model units)
FIRST_MAX_DISTANCE = 0.3  # `MAX_DISTANCE` at the first step: far limbs are attracted
ROUNDS = 2  # exchanges of limbs
KEPT, CHANGED, FOUND = 6, 16, 8  # codes before and after an exchange, and after the search
DONORS = 64  # training bodies whose limbs are tried
MIN_LIMB, MAX_LIMB = 1 / 16, 1 / 4  # parts of a limb, over all parts
APART = 0.02  # mean distance of the parts of two bodies that are not the same (model units)
POSE_STD = 0.01  # of a number of a pose from that of a code


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


@torch.no_grad()
def search_codes(
    model: ArticulatedSDF, scan: Scan, encoded: Float[Tensor, "k"], count: int, seed: int
) -> Float[Tensor, "s k"]:
    """Codes from which a scan (model frame) is fitted again, whose first fit has lost a limb.

    The codes of the encoder, of the mean and of the `count` nearest training bodies descend on the distance of their
    spheres. Then the best ones get limbs of other training bodies, and descend again. Returns the best by the field and
    the spheres that are not nearly the same.
    """
    points = _points(model, scan, seed, SEARCH_POINTS)
    table: Tensor | None = model.codes_parameter
    if table is None or not len(table):
        table = model.prior.sample(count, torch.Generator().manual_seed(seed))
    bodies = model.hypernetwork(table)
    nearest = sphere_distance(model, points, bodies.center).argsort()[:count]
    codes = _descend(model, points, torch.cat([encoded[None], model.prior.mean[None], table[nearest]]), STEPS)
    chosen = torch.linspace(0, len(table) - 1, min(DONORS, len(table))).long()
    donors = PartPoses(bodies.center[chosen], bodies.rotation[chosen])
    for _ in range(ROUNDS):
        center = model.hypernetwork(codes).center
        codes = codes[_best_apart(sphere_distance(model, points, center), center, KEPT)]
        changed = _exchange_limbs(model, points, codes, donors)
        codes = torch.cat([codes, _descend(model, points, changed, STEPS // 2, MAX_DISTANCE)])
    center = model.hypernetwork(codes).center
    distance = _field_distance(model, points, codes) + sphere_distance(model, points, center)
    best = torch.tensor(_best_apart(distance, center, FOUND), device=codes.device)
    return codes[best[torch.arange(FOUND, device=best.device) % len(best)]]


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


def _points(model: SDFModel, scan: Scan, seed: int, count: int = SCORED_POINTS) -> Float[Tensor, "n 3"]:
    return torch.from_numpy(resample(scan, count, seed).points).float().to(model.prior.mean)


def _field_distance(
    model: ArticulatedSDF, points: Float[Tensor, "n 3"], codes: Float[Tensor, "b z"]
) -> Float[Tensor, "b"]:
    """Mean |f| at the points of a scan for each code."""
    values = model.field(points.expand(len(codes), -1, -1), Code((codes,))).abs()
    return values.clamp(max=MAX_DISTANCE).mean(dim=1)


def _descend(
    model: ArticulatedSDF,
    points: Float[Tensor, "n 3"],
    codes: Float[Tensor, "b z"],
    steps: int,
    max_distance: float = FIRST_MAX_DISTANCE,
) -> Float[Tensor, "b z"]:
    """Codes after steps of Adam on the distance of their spheres; `max_distance` goes to a third meanwhile."""
    mean, factor = model.prior.mean, torch.linalg.cholesky(model.prior.covariance.double())
    white = torch.linalg.solve_triangular(factor, (codes - mean).T.double(), upper=False).T.to(codes)
    factor = factor.to(codes)
    with torch.enable_grad():
        white.requires_grad_()
        optimizer = torch.optim.Adam([white], lr=LEARNING_RATE)
        for step in range(steps):
            share = step / steps
            optimizer.param_groups[0]["lr"] = 0.5 * LEARNING_RATE * (1 + math.cos(math.pi * share))
            center = model.hypernetwork.poses(mean + white @ factor.T)[..., :3]
            distance = sphere_distance(model, points, center, max_distance * 3**-share)
            loss = (distance + PRIOR * white.square().sum(dim=1)).sum()
            (white.grad,) = torch.autograd.grad(loss, white)
            optimizer.step()
    return mean + white.detach() @ factor.T


def _best_apart(distance: Float[Tensor, "b"], center: Float[Tensor, "b k 3"], count: int) -> list[int]:
    """Rows of up to `count` bodies with the least distance, none of which is nearly another one."""
    chosen, left = list[int](), distance.argsort()
    while len(left) and len(chosen) < count:
        best = left[0]
        chosen.append(int(best))
        left = left[(center[left] - center[best]).norm(dim=-1).mean(dim=-1) > APART]
    return chosen


def _exchange_limbs(
    model: ArticulatedSDF, points: Float[Tensor, "n 3"], codes: Float[Tensor, "b z"], donors: PartPoses
) -> Float[Tensor, "c z"]:
    """The best codes of bodies one of whose limbs has the joint angles of a donor, or that are as they were."""
    tree, states = model.part_tree(), model.hypernetwork(codes)
    own = relative(tree, PartPoses(states.center.cpu(), states.rotation.cpu()))
    turns = relative(tree, PartPoses(donors.center.cpu(), donors.rotation.cpu())).rotation
    limbs = _limbs(tree)
    found = list[tuple[Tensor, ...]]()
    for row in range(len(codes)):
        exchanged = torch.where(limbs[:, None, :, None, None], turns, own.rotation[row]).flatten(0, 1)
        rotation = torch.cat([own.rotation[row : row + 1], exchanged])
        poses = compose(tree, RelativePoses(rotation, own.joint[row].expand(len(rotation), -1, -1)))
        center, rotation = poses.center.to(points), poses.rotation.to(points)
        distance = sphere_distance(model, points[::2], center)
        best = _best_apart(distance, center, CHANGED)
        found.append((distance[best], center[best], rotation[best], codes[row].expand(len(best), -1)))
    distance, center, rotation, start = (torch.cat(tensors) for tensors in zip(*found, strict=True))
    best = _best_apart(distance, center, CHANGED)
    return _codes_of_poses(model, PartPoses(center[best], rotation[best]), start[best])


def _limbs(tree: PartTree) -> Tensor:
    """Masks (limbs, parts) of the subtrees that are neither a detail nor most of the body."""
    below = torch.stack([tree.descendants(part) for part in range(len(tree.parents))])
    share = below.float().mean(dim=1)
    return below[(share >= MIN_LIMB) & (share <= MAX_LIMB)]


def _codes_of_poses(
    model: ArticulatedSDF, poses: PartPoses, start: Float[Tensor, "b z"], steps: int = 2
) -> Float[Tensor, "b z"]:
    """Codes of least deviation from poses and from the prior, by Newton's steps with the linear components."""
    network, prior = model.hypernetwork, model.prior
    scale = pose_weights(start).repeat(network.num_parts) / POSE_STD
    rows, precision = network.weights() * scale, prior.precision()
    factor = torch.linalg.cholesky((rows @ rows.T + precision).double())
    target = torch.cat([poses.center, rotation_to_6d(poses.rotation)], dim=-1)
    for _ in range(steps):
        residual = (target - network.poses(start)).flatten(1) * scale
        right = residual @ rows.T - (start - prior.mean) @ precision
        start = start + torch.cholesky_solve(right.T.double(), factor).T.to(start)
    return start
