"""Template mesh of an articulated family, posed by the states of its parts: one topology for all bodies.

Skinning whose places are learned for each vertex and part (Merry, Marais & Gain, Animation Space, TOG 2006): a posed
vertex is linear in four numbers for each of its parts and in a matrix for the local code of its own part, so that least
squares gives them all.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice, zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shapespace.data.registration import PartTemplate, part_poses, vertex_areas
from shapespace.nn.part_mlp import BLEND_SHARPNESS, PartStates
from shapespace.synthetic.body import Body
from shapespace.synthetic.poses import PoseLibrary

PARTS = 4  # that a vertex follows
BORDER_POINTS = 6  # of two neighboring parts
CHUNK = 16  # bodies whose equations are added at once
JOINT_BODIES = 96  # synthetic bodies from which the joints are learned


class Ridge(NamedTuple):
    """Weights of the distance of a fit from the guess at rest, in squared model units, beside a sum over the bodies."""

    places: float = 0.03
    """Of the places (model units)."""
    weights: float = 0.003
    """Of the blend weights."""
    local: float = 0.03
    """Of the maps of the local codes."""


class Skin(NamedTuple):
    """How points follow their parts j, the own part first: sum_j (w_j center_j + R_j place_j) + R_0 local code_0.

    The weights w sum to 1; places and maps are in model units.
    """

    parts: Int[Tensor, "v n"]
    weights: Float[Tensor, "v n"]
    places: Float[Tensor, "v n 3"]
    local: Float[Tensor, "v 3 l"]

    @classmethod
    def at_rest(
        cls,
        points: Float[Tensor, "v 3"],
        own: Int[Tensor, "v"],
        center: Float[Tensor, "k 3"],
        radius: Float[Tensor, "k"],
    ) -> "Skin":
        """Points follow rigidly the nearest parts at rest, by the weights of the field; local codes have no effect."""
        squared = torch.cdist(points, center).square() / radius.square()
        first = nn.functional.one_hot(own, len(center)).bool()
        nearest = squared.masked_fill(first, -1.0).topk(min(PARTS, len(center)), largest=False).indices
        parts = torch.cat([own[:, None], nearest[:, 1:].sort(dim=1).values], dim=1)
        weights = (-BLEND_SHARPNESS * squared.gather(1, parts)).softmax(dim=1)
        places = weights[:, :, None] * (points[:, None] - center[parts])
        return cls(parts, weights, places, points.new_zeros(len(points), 3, 0))

    def cpu(self) -> "Skin":
        """The same on the CPU."""
        return Skin(*(tensor.cpu() for tensor in self))

    def pose(self, states: PartStates) -> Float[Tensor, "b v 3"]:
        """The points of bodies in the model frame."""
        matrices = torch.cat([states.rotation, states.center[..., None]], dim=-1)
        vectors = torch.cat([self.places, self.weights[..., None]], dim=-1)
        parts = self.parts.long()
        posed = torch.zeros_like(vectors[:, 0, :3])
        for part, vector in zip(parts.T, vectors.unbind(dim=1), strict=True):
            posed = posed + (matrices[:, part] @ vector[..., None])[..., 0]
        if self.local.shape[-1]:
            own = parts[:, 0]
            bulge = self.local.to(posed) @ states.local_code[:, own, :, None]
            posed = posed + (states.rotation[:, own] @ bulge)[..., 0]
        return posed


class SkinEquations:
    """Normal equations of a `Skin` over bodies. Points with the same parts have the same matrix."""

    def __init__(self, guess: Skin, local_dim: int) -> None:
        self.guess, self.local_dim = guess, local_dim
        self.groups, self.group = guess.parts.long().unique(dim=0, return_inverse=True)
        n, size = guess.parts.shape[1], 4 * guess.parts.shape[1] - 1 + 3 * local_dim
        self.num_parts = n
        self.matrix = torch.zeros(len(self.groups), size, size, dtype=torch.float64)
        self.right = torch.zeros(len(guess.parts), size, dtype=torch.float64)

    def add(self, states: PartStates, points: Float[Tensor, "b v 3"]) -> None:
        """Add bodies: the states of their parts, and their points."""
        columns = self._columns(states).transpose(0, 1)  # (g, b, 3, p)
        self.matrix += (columns.flatten(1, 2).mT @ columns.flatten(1, 2)).double()
        target = (points - states.center[:, self.guess.parts[:, 0].long()]).transpose(0, 1)  # (v, b, 3)
        order = self.group.argsort()
        sizes = self.group.bincount().tolist()
        right = [a.flatten(1) @ b.flatten(0, 1) for a, b in zip(target[order].split(sizes), columns, strict=True)]
        self.right[order] += torch.cat(right).double()

    def _columns(self, states: PartStates) -> Float[Tensor, "b g 3 p"]:
        """Derivative of points less their own part's center in places, weights after the first, and local maps."""
        rotation = states.rotation[:, self.groups]  # (b, g, n, 3, 3)
        by_place = rotation.transpose(2, 3).flatten(3)
        center = states.center[:, self.groups]
        by_weight = (center[:, :, 1:] - center[:, :, :1]).mT
        code = states.local_code[:, self.groups[:, 0], : self.local_dim]
        by_local = (rotation[:, :, 0, :, :, None] * code[:, :, None, None, :]).flatten(3)
        return torch.cat([by_place, by_weight, by_local], dim=-1)

    def solve(self, ridge: Ridge) -> Skin:
        """The skin of least squares, with ridges about the guess."""
        n, guess = self.num_parts, self.guess
        sizes = [3 * n, n - 1, 3 * self.local_dim]
        weight = torch.cat([torch.full((size,), value).double() for size, value in zip(sizes, ridge, strict=True)])
        start = torch.cat([guess.places.flatten(1), guess.weights[:, 1:]], dim=1).double()
        start = torch.cat([start, start.new_zeros(len(start), sizes[2])], dim=1)
        factor = torch.linalg.cholesky(self.matrix + weight.diag())
        order = self.group.argsort()
        right = (self.right + start * weight)[order].split(self.group.bincount().tolist())
        solution = torch.empty_like(start)
        solution[order] = torch.cat([torch.cholesky_solve(a.mT, b).mT for a, b in zip(right, factor, strict=True)])
        places, later, local = solution.to(guess.places).split(sizes, dim=1)
        weights = torch.cat([1 - later.sum(dim=1, keepdim=True), later], dim=1)
        return Skin(guess.parts, weights, places.unflatten(1, (n, 3)), local.unflatten(1, (3, self.local_dim)))


class PosedTemplate(nn.Module):
    """Template mesh of an articulated family, in buffers whose sizes are those of the training data.

    `vertices` is the mesh at rest (model units), `labels` the part of each vertex, `center` the parts' centers at rest,
    `reach` the radius of the domain's balls over that of the parts. The skin of the synthetic body's joints is beside
    that of the vertices.
    """

    vertices: Tensor
    faces: Tensor
    labels: Tensor
    center: Tensor
    reach: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("vertices", torch.zeros(0, 3))
        self.register_buffer("faces", torch.zeros(0, 3, dtype=torch.int32))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("center", torch.zeros(0, 3))
        self.register_buffer("reach", torch.tensor(1.7))
        for skin in ("vertex", "joint"):
            self.register_buffer(f"{skin}_parts", torch.zeros(0, 1, dtype=torch.int32))
            self.register_buffer(f"{skin}_weights", torch.zeros(0, 1))
            self.register_buffer(f"{skin}_places", torch.zeros(0, 1, 3))
        self.register_buffer("vertex_local", torch.zeros(0, 3, 0, dtype=torch.float16))

    @property
    def skin(self) -> Skin:
        """How the vertices follow the parts."""
        return Skin(self.vertex_parts, self.vertex_weights, self.vertex_places, self.vertex_local)

    @property
    def joint_skin(self) -> Skin:
        """How the joints follow the parts."""
        local = self.joint_places.new_zeros(len(self.joint_parts), 3, 0)
        return Skin(self.joint_parts, self.joint_weights, self.joint_places, local)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names of the joints; none if the template is not that of the synthetic body."""
        return Body.load().joints if len(self.joint_parts) else ()

    def forward(self, states: PartStates) -> Float[Tensor, "b v 3"]:
        """Vertices of bodies in the model frame."""
        return self.skin.pose(states)

    def joints(self, states: PartStates) -> Float[Tensor, "b j 3"]:
        """Heads of the joints of bodies in the model frame, in the order of `joint_names`."""
        return self.joint_skin.pose(states)

    def set(self, template: PartTemplate) -> None:
        """Take the mesh and the parts of a template; vertices follow them as at rest until `fit`."""
        device = self.vertices.device
        self.vertices = template.vertices.to(device)
        self.faces = template.faces.int().to(device)
        self.labels = template.labels.int().to(device)
        self.center = template.center.to(device)
        self._set_skin(Skin.at_rest(template.vertices, template.labels.long(), template.center, template.radius))
        self._set_joints(rest_joints(template))

    def _set_skin(self, skin: Skin) -> None:
        device = self.vertices.device
        self.vertex_parts, self.vertex_weights = skin.parts.to(device, torch.int32), skin.weights.to(device)
        self.vertex_places, self.vertex_local = skin.places.to(device), skin.local.to(device, torch.float16)

    def _set_joints(self, skin: Skin) -> None:
        device = self.vertices.device
        self.joint_parts, self.joint_weights = skin.parts.to(device, torch.int32), skin.weights.to(device)
        self.joint_places = skin.places.to(device)

    @torch.no_grad()
    def fit(
        self, states: Iterable[PartStates], registrations: Iterable[Float[Tensor, "v 3"]], ridge: Ridge | None = None
    ) -> None:
        """Learn the skin of the vertices from training scans, in one pass with `CHUNK` scans in memory.

        `states` are those of one body each (b = 1), in the order of the `registrations` (vertices in the model frame).
        The skin of the joints is learned from synthetic bodies, if the template is theirs. The skins before the call,
        those of `set`, are the guesses of the ridges.

        Raises:
            ValueError: There are no registrations, or their number is not that of the states.

        """
        ridge, equations = ridge or Ridge(), None
        for body, points in _chunks(states, registrations):
            equations = equations or SkinEquations(self.skin.cpu(), body.local_code.shape[2])
            equations.add(body, points)
        if equations is None:
            raise ValueError("template: no registrations. Fit the template to the registrations of training scans.")
        self._set_skin(equations.solve(ridge))
        if len(self.joint_parts):
            joints = SkinEquations(self.joint_skin.cpu(), 0)
            joints.add(*drawn_joints(self.part_template(), JOINT_BODIES, seed=0))
            self._set_joints(joints.solve(ridge))

    def part_template(self) -> PartTemplate:
        """The template and its parts, on the CPU."""
        vertices, faces = self.vertices.cpu(), self.faces.long().cpu()
        area = torch.from_numpy(vertex_areas(vertices.double().numpy(), faces.numpy())).float()
        return PartTemplate(vertices, faces, self.labels.long().cpu(), area)

    def border_points(self, radius: Float[Tensor, "k"]) -> tuple[Float[Tensor, "m 2 3"], Int[Tensor, "m 2"]]:
        """Middles of edges between two parts, at most `BORDER_POINTS` a pair, in the frames of both; and the pairs."""
        labels, faces = self.labels.long(), self.faces.long()
        edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
        edges = edges[labels[edges[:, 0]] < labels[edges[:, 1]]]  # each edge is in two faces, once in each direction
        middle = self.vertices[edges].mean(dim=1)
        pairs, pair = labels[edges].unique(dim=0, return_inverse=True)
        chosen = []
        for index in range(len(pairs)):
            own = (pair == index).nonzero()[:, 0]
            chosen.append(own[farthest_points(middle[own], BORDER_POINTS)])
        kept = torch.cat([pair[:0], *chosen])
        parts = pairs[pair[kept]]
        return (middle[kept][:, None] - self.center[parts]) / radius[parts][..., None], parts

    def check(self, num_parts: int, local_dim: int) -> None:
        """Raise `ValueError` unless all sizes and indices are those of a template with so many parts, or of none."""
        v, j = len(self.vertices), len(self.joint_parts)
        n, m, maps = self.vertex_parts.shape[1], self.joint_parts.shape[1], self.vertex_local.shape[2]
        shapes = {
            "vertices": (v, 3),
            "faces": (len(self.faces), 3),
            "labels": (v,),
            "center": (num_parts if v else 0, 3),
            "vertex_parts": (v, n),
            "vertex_weights": (v, n),
            "vertex_places": (v, n, 3),
            "vertex_local": (v, 3, local_dim if maps else 0),
            "joint_parts": (j, m),
            "joint_weights": (j, m),
            "joint_places": (j, m, 3),
        }
        for name, shape in shapes.items():
            if (own := tuple(getattr(self, name).shape)) != shape:
                raise ValueError(f"template.{name} has shape {own}, expected {shape}")
        if j and not (is_synthetic(self.faces) and j == len(Body.load().joints)):
            raise ValueError(f"template.joint_parts has {j} rows, which are not the joints of the synthetic body")
        for name, end in (("faces", v), ("labels", num_parts), ("vertex_parts", num_parts), ("joint_parts", num_parts)):
            index = getattr(self, name)
            low, high = (int(index.min()), int(index.max())) if index.numel() else (0, end - 1)
            if low < 0 or high >= end:
                raise ValueError(f"template.{name} has values {low} to {high}, not 0 to {end - 1}")
        for name, buffer in self.named_buffers(recurse=False):
            if not bool(buffer.isfinite().all()):
                raise ValueError(f"template.{name} has values that are not finite")
        if self.reach <= 0:
            raise ValueError(f"template.reach is {float(self.reach):g}, not above 0")

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Take the sizes of the buffers from the file."""
        for name, buffer in self.named_buffers(recurse=False):
            stored = state_dict.get(prefix + name)
            if stored is None or stored.ndim != buffer.ndim:
                continue
            if not torch.can_cast(stored.dtype, buffer.dtype):
                args[-1].append(f"{prefix}{name} has the type {stored.dtype}, expected {buffer.dtype}.")
            setattr(self, name, buffer.new_empty(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def farthest_points(points: Float[Tensor, "n 3"], count: int) -> Int[Tensor, "m"]:
    """Indices of at most `count` points, each the farthest from those before it."""
    chosen = [0]
    distance = (points - points[0]).norm(dim=1)
    while len(chosen) < min(count, len(points)):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).norm(dim=1))
    return torch.tensor(chosen)


def rest_joints(template: PartTemplate) -> Skin:
    """How the heads of the synthetic body's joints follow the parts at rest; empty for another template."""
    heads = template.vertices[:0]
    if is_synthetic(template.faces):
        heads = _to_template(template, Body.load().mean)[len(template.vertices) :]
    own = (torch.cdist(heads, template.center) / template.radius).argmin(dim=1)
    return Skin.at_rest(heads, own, template.center, template.radius)


def drawn_joints(template: PartTemplate, count: int, seed: int) -> tuple[PartStates, Float[Tensor, "b j 3"]]:
    """Parts and heads of the joints of synthetic bodies, in poses within the joint limits and of motion clips."""
    body, rng = Body.load(), np.random.default_rng(seed)
    num_joints, poses = len(body.joints), PoseLibrary.load(body)
    # Heads of joints move with their joint, as vertices with one weight do.
    joint = np.arange(num_joints)[:, None].repeat(4, axis=1)
    extended = replace(
        body,
        mean=np.concatenate([body.mean, body.mean[-num_joints:]]),
        components=np.concatenate([body.components, body.components[:, -num_joints:]], axis=1),
        weight_joint=np.concatenate([body.weight_joint, joint]),
        weight=np.concatenate([body.weight, np.eye(4)[np.zeros(num_joints, dtype=np.int64)]]),
    )
    center, rotation, heads = [], [], []
    for index in range(count):
        clip = poses.clips[int(rng.integers(len(poses.clips)))]
        pose = poses.sample_in_limits(rng) if index % 2 else poses.sample_clip(clip, rng)
        points = _to_template(template, extended.skin(body.sample_shape(rng), pose))
        each = part_poses(template, points[:-num_joints])
        center.append(each[0])
        rotation.append(each[1])
        heads.append(points[-num_joints:])
    states = PartStates(torch.stack(center), torch.stack(rotation), torch.zeros(count, template.num_parts, 0))
    return states, torch.stack(heads)


def is_synthetic(faces: Int[Tensor, "f 3"]) -> bool:
    """Whether these faces are those of the synthetic body."""
    own = torch.from_numpy(Body.load().faces).to(faces)
    return faces.shape == own.shape and torch.equal(faces, own)


def _to_template(template: PartTemplate, points: Float[np.ndarray, "n 3"]) -> Float[Tensor, "n 3"]:
    """Points of the synthetic body (meters) in the units of its template, about the middle of its mean at rest."""
    rest = Body.load().mean[: len(template.vertices)]
    own = template.vertices.double().numpy()
    ratio = np.linalg.norm(own - own.mean(axis=0)) / np.linalg.norm(rest - rest.mean(axis=0))
    return torch.from_numpy((points - rest.mean(axis=0)) * ratio).float()


def _chunks(
    states: Iterable[PartStates], registrations: Iterable[Float[Tensor, "v 3"]]
) -> Iterator[tuple[PartStates, Float[Tensor, "b v 3"]]]:
    """Up to `CHUNK` bodies at once, on the CPU."""
    pairs = zip_longest(states, registrations)
    while some := list(islice(pairs, CHUNK)):
        if any(body is None or points is None for body, points in some):
            raise ValueError(
                "template: the numbers of training scans and of their registrations differ. Give one registration for "
                "each scan, in the same order."
            )
        bodies = zip(*(body for body, _ in some), strict=True)
        yield (
            PartStates(*(torch.cat(tensors).cpu().float() for tensors in bodies)),
            torch.stack([points.cpu().float() for _, points in some]),
        )
