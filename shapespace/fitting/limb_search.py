"""Search of codes for a scan whose first fit has lost a limb.

Bodies are compared with the scan by points of their posed templates (`TemplateDistance`), descend on this distance, and
exchange limbs with training bodies.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from shapespace.fitting.residuals import resample
from shapespace.fitting.starts import MAX_DISTANCE, sphere_distance
from shapespace.geometry.articulation import PartPoses, PartTree, RelativePoses, compose, relative
from shapespace.geometry.proximity import vertex_normals
from shapespace.geometry.scan import Scan
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.template import Skin
from shapespace.nn.hypernetwork import pose_weights, rotation_to_6d
from shapespace.nn.part_mlp import PartStates

# Distance between a scan and a posed template. Lengths are in model units.
SCAN_POINTS = 512  # points of the scan for which the closest of the template is searched
DENSE_SCAN_POINTS = 8192  # points of the scan among which the closest to a point of the template is searched
POINTS_OF_PART = 5  # points of the template on each part
TEMPLATE_SPACING, SCAN_SPACING = 0.05, 0.012  # distances along the surface up to which sparse points are one surface
NORMAL_LENGTH = 0.04  # by which normals are scaled beside the places, for the closest points
NORMAL_WEIGHT = 0.01  # of 1 - cosine of the normals
MATCH_STEPS = 3  # of a descent with the same closest points
MATCH_EXCESS = 0.5  # share by which its points of the scan may be farther than the closest; 12 % are not the closest

# Search. The distance of spheres that stand for the parts finds the nearest training bodies, but descents on it fit the
# spheres: wrong bodies came to half of the distance of the true one.
STEPS = 60  # of Adam, and half as many after an exchange
LEARNING_RATE = 0.3  # in standard deviations of the codes
PRIOR = 4e-6  # weight of the squared deviations beside the distances
FIRST_MAX_DISTANCE = 0.3  # `MAX_DISTANCE` at the first step: far limbs are attracted
ROUNDS = 2  # exchanges of limbs
KEPT, CHANGED, FOUND = 6, 16, 8  # codes before and after an exchange, and after the search, at most
DONORS = 32  # training bodies whose limbs are tried
EXCHANGES = 128  # exchanged limbs of a body that are compared by the template, the nearest by their spheres
MIN_LIMB, MAX_LIMB = 1 / 16, 1 / 4  # parts of a limb, over all parts
APART = 0.02  # mean distance of the parts of two bodies that are not the same
POSE_STD = 0.01  # of a number of a pose from that of a code
CHUNK = 8  # bodies that are compared at once: about as many as a core has in its caches


@torch.no_grad()
def search_codes(
    model: ArticulatedSDF, scan: Scan, encoded: Float[Tensor, "k"], count: int, seed: int
) -> Float[Tensor, "s k"]:
    """Codes from which a scan (model frame) is fitted again, whose first fit has lost a limb.

    The codes of the encoder, of the mean and of the `count` nearest training bodies descend on the distance of their
    templates. Then the best ones get limbs of other training bodies, and descend again. Returns the best that are not
    nearly the same.
    """
    distance = TemplateDistance(model, scan, seed)
    table: Tensor | None = model.codes_parameter
    if table is None or not len(table):
        table = model.prior.sample(count, torch.Generator().manual_seed(seed))
    bodies = model.hypernetwork(table)
    nearest = sphere_distance(model, distance.points, bodies.center).argsort()[:count]
    start = torch.cat([encoded[None], model.prior.mean[None], table[nearest]])
    codes = _descend(model, distance, start, STEPS, FIRST_MAX_DISTANCE, halve=True)
    chosen = torch.linspace(0, len(table) - 1, min(DONORS, len(table))).long()
    donors = PartPoses(bodies.center[chosen], bodies.rotation[chosen])
    for _ in range(ROUNDS):
        codes = codes[_best_codes(model, distance, codes, KEPT)]
        changed = _exchange_limbs(model, distance, codes, donors)
        codes = torch.cat([codes, _descend(model, distance, changed, STEPS // 2, MAX_DISTANCE)])
    return codes[_best_codes(model, distance, codes, FOUND)]


class Matches(NamedTuple):
    """Closest points: for each point of the scan that of each template, and for each of a template that of the scan."""

    of_scan: Int[Tensor, "b n"]
    of_template: Int[Tensor, "b m"]


class TemplateDistance:
    """Distance between a scan and posed templates, both ways: from points of the scan and from points of the template.

    Both have only some points, so the distance to the closest one counts across the surface, and along it above a
    spacing. Points match by place and normal. A scan without normals is compared by places alone.
    """

    def __init__(self, model: ArticulatedSDF, scan: Scan, seed: int) -> None:
        """`scan` is in the model frame."""
        device, template = model.prior.mean.device, model.template.part_template()
        rng, labels = np.random.default_rng(0), template.labels.numpy()
        members = [np.flatnonzero(labels == part) for part in range(template.num_parts)]
        drawn = [rng.choice(own, POINTS_OF_PART, replace=len(own) < POINTS_OF_PART) for own in members]
        chosen = torch.from_numpy(np.concatenate(drawn))
        self.part = template.labels[chosen].long().to(device)
        self.skin = Skin(*(tensor[chosen.to(device)] for tensor in model.template.skin))
        normals = vertex_normals(template.vertices.numpy(), template.faces.numpy())[chosen.numpy()]
        self.rest_normals = torch.from_numpy(normals).float().to(device)
        # small parts count more than by their area, or a hand would be lost in the chest
        area = template.area.new_zeros(template.num_parts).index_add_(0, template.labels.long(), template.area).sqrt()
        self.weight = (area / area.sum()).repeat_interleave(POINTS_OF_PART).to(device) / POINTS_OF_PART
        self.points, self.normals = _points_and_normals(resample(scan, SCAN_POINTS, seed), device)
        self.dense, self.dense_normals = _points_and_normals(resample(scan, DENSE_SCAN_POINTS, seed + 1), device)
        self.tree = cKDTree(torch.cat([self.dense, NORMAL_LENGTH * self.dense_normals], dim=1).cpu().numpy())

    def posed(self, states: PartStates) -> tuple[Float[Tensor, "b m 3"], Float[Tensor, "b m 3"]]:
        """The points on the templates of bodies, and their normals (those of local codes of zero)."""
        normals = (states.rotation[:, self.part] @ self.rest_normals[..., None])[..., 0]
        return self.skin.pose(states), normals

    @torch.no_grad()
    def match(self, states: PartStates, stride: int = 1, excess: float = 0.0) -> Matches:
        """Closest points by place and normal, for every `stride`th point of the scan and all of the templates.

        Those of the templates are at most by the share `excess` farther than the closest.
        """
        scan = torch.cat([self.points, NORMAL_LENGTH * self.normals], dim=1)[::stride]
        points, normals = self.posed(states)
        template = torch.cat([points, NORMAL_LENGTH * normals], dim=2)
        of_scan = []
        for some in template.split(CHUNK):  # |y|^2 - 2 x.y is least where |x - y| is, and faster than `torch.cdist`
            squares = some.square().sum(dim=2)[:, None]
            of_scan.append(torch.baddbmm(squares, scan.expand(len(some), -1, -1), some.mT, alpha=-2).argmin(dim=2))
        _, nearest = self.tree.query(template.flatten(0, 1).cpu().numpy(), eps=excess)
        return Matches(torch.cat(of_scan), torch.from_numpy(nearest).view(template.shape[:2]).to(template.device))

    def __call__(
        self, states: PartStates, max_distance: float = MAX_DISTANCE, matches: Matches | None = None, stride: int = 1
    ) -> Float[Tensor, "b"]:
        """Mean distance over the points of the scan, and of the template, of each body (model units).

        A distance d counts d m / (d + m), m being `max_distance`: what is far away counts little more than m.
        """
        matches = self.match(states, stride) if matches is None else matches
        points, normals = self.posed(states)
        scan_points, scan_normals = (
            tensor[::stride].expand(len(points), -1, -1) for tensor in (self.points, self.normals)
        )
        closest, closest_normals = (
            tensor.gather(1, matches.of_scan[..., None].expand(-1, -1, 3)) for tensor in (points, normals)
        )
        to_template = _apart(scan_points, scan_normals, closest, closest_normals, TEMPLATE_SPACING)
        measured, measured_normals = self.dense[matches.of_template], self.dense_normals[matches.of_template]
        to_scan = _apart(points, normals, measured, measured_normals, SCAN_SPACING)
        robust = [d * max_distance / (d + max_distance) for d in (to_template, to_scan)]
        return robust[0].mean(dim=1) + robust[1] @ self.weight


def _apart(
    x: Float[Tensor, "b n 3"],
    normal: Float[Tensor, "b n 3"],
    y: Float[Tensor, "b n 3"],
    normal_y: Float[Tensor, "b n 3"],
    spacing: float,
) -> Float[Tensor, "b n"]:
    """Distance of points x from a surface with the points y: across it, along it above a spacing, and by normals."""
    offset = x - y
    height = (offset * normal_y).sum(dim=-1)
    along = (offset.square().sum(dim=-1) - height.square()).clamp(min=1e-12).sqrt()
    return height.abs() + (along - spacing).clamp(min=0) + NORMAL_WEIGHT * (1 - (normal * normal_y).sum(dim=-1))


def _points_and_normals(scan: Scan, device: torch.device) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """Points and normals of a scan; zeros without normals, which make heights zero and distances those of points."""
    points = torch.from_numpy(scan.points).float()
    normals = torch.zeros_like(points) if scan.normals is None else torch.from_numpy(scan.normals).float()
    return points.to(device), normals.to(device)


def _white(model: ArticulatedSDF, codes: Float[Tensor, "b z"]) -> tuple[Float[Tensor, "b z"], Float[Tensor, "z z"]]:
    """Codes in standard deviations of the prior, and the factor of its covariance."""
    factor = torch.linalg.cholesky(model.prior.covariance.double())
    white = torch.linalg.solve_triangular(factor, (codes - model.prior.mean).T.double(), upper=False)
    return white.T.to(codes), factor.to(codes)


def _best_codes(
    model: ArticulatedSDF, distance: TemplateDistance, codes: Float[Tensor, "b z"], count: int
) -> list[int]:
    """Rows of the best codes, by distance and prior, whose bodies are not nearly the same."""
    states = model.hypernetwork(codes)
    cost = distance(states) + PRIOR * _white(model, codes)[0].square().sum(dim=1)
    return _best_apart(cost, states.center, count)


def _best_apart(distance: Float[Tensor, "b"], center: Float[Tensor, "b k 3"], count: int) -> list[int]:
    """Rows of up to `count` bodies with the least distance, none of which is nearly another one."""
    chosen, left = list[int](), distance.argsort()
    while len(left) and len(chosen) < count:
        best = left[0]
        chosen.append(int(best))
        left = left[(center[left] - center[best]).norm(dim=-1).mean(dim=-1) > APART]
    return chosen


def _descend(
    model: ArticulatedSDF,
    distance: TemplateDistance,
    codes: Float[Tensor, "b z"],
    steps: int,
    first_max_distance: float,
    *,
    halve: bool = False,
) -> Float[Tensor, "c z"]:
    """Codes after steps of Adam on the distance of their templates; its maximum goes to `MAX_DISTANCE` meanwhile.

    `halve`: only the better half of them goes on after half of the steps.
    """
    white, factor = _white(model, codes)
    going, cost, matches = torch.arange(len(white), device=white.device), white.new_zeros(len(white)), None
    with torch.enable_grad():
        white.requires_grad_()
        optimizer = torch.optim.Adam([white], lr=LEARNING_RATE)
        for step in range(steps):
            share = step / steps
            optimizer.param_groups[0]["lr"] = 0.5 * LEARNING_RATE * (1 + math.cos(math.pi * share))
            if is_half := halve and step == steps // 2:
                going = going[cost.argsort()[: -(-len(going) // 2)]]
            own = white[going]
            states = model.hypernetwork(model.prior.mean + own @ factor.T)
            if step % MATCH_STEPS == 0 or is_half:
                matches = distance.match(states, excess=MATCH_EXCESS)
            limit = first_max_distance * (MAX_DISTANCE / first_max_distance) ** share
            cost = distance(states, limit, matches) + PRIOR * own.square().sum(dim=1)
            (white.grad,) = torch.autograd.grad(cost.sum(), white)
            optimizer.step()
    return model.prior.mean + white.detach()[going] @ factor.T


def _exchange_limbs(
    model: ArticulatedSDF, distance: TemplateDistance, codes: Float[Tensor, "b z"], donors: PartPoses
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
        near = sphere_distance(model, distance.points[::2], poses.center.to(codes)).argsort()[:EXCHANGES].cpu()
        center, rotation = poses.center[near].to(codes), poses.rotation[near].to(codes)
        local = states.local_code[row].expand(len(center), -1, -1)
        apart = distance(PartStates(center, rotation, local), stride=2)
        best = _best_apart(apart, center, CHANGED)
        found.append((apart[best], center[best], rotation[best], codes[row].expand(len(best), -1)))
    apart, center, rotation, start = (torch.cat(tensors) for tensors in zip(*found, strict=True))
    best = _best_apart(apart, center, CHANGED)
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
