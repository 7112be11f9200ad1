"""Registered template meshes: the parts of a template, and their poses in each registration (targets of training)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor
from tqdm import tqdm

from shapespace.data.store import ScanSource
from shapespace.geometry.proximity import area_vectors, nearest_point

RADIUS_FACTOR = 1.6  # radius of a part over the root mean square distance of its vertices from its center
MAX_ITERATIONS = 100  # of k-means
MIN_VERTICES = 3  # of a part: fewer have no rotation
MOTION_REGISTRATIONS = 24  # by which parts are divided
MOTION_ROUNDS = 8  # a hundredth of the vertices change in the last one
_CANDIDATES = 8  # nearest parts, of which a vertex joins one
_COMPACTNESS = 0.02  # weight of the squared distance from the center beside that of the squared motion error


@dataclass(frozen=True)
class PartTemplate:
    """Template mesh at rest, divided into parts.

    Vertices are in model units; `labels` is the part of each vertex, `area` its share of the surface. The frames of the
    parts at rest have the axes of the model frame and their origin at `center`; `radius` is the unit of a part's frame.
    """

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    labels: Int[Tensor, "v"]
    area: Float[Tensor, "v"]

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return int(self.labels.max()) + 1

    @property
    def share(self) -> Float[Tensor, "k v"]:
        """Share of each vertex in the area of its part (sparse)."""
        count = torch.zeros(self.num_parts).index_add_(0, self.labels, self.area)
        index = torch.stack([self.labels, torch.arange(len(self.labels))])
        values = self.area / count[self.labels]
        return torch.sparse_coo_tensor(index, values, (self.num_parts, len(self.labels)), check_invariants=False)

    @property
    def center(self) -> Float[Tensor, "k 3"]:
        """Mean of the vertices of each part, by area."""
        return self.share @ self.vertices

    @property
    def radius(self) -> Float[Tensor, "k"]:
        """Unit of length of each part's frame (model units)."""
        squared = (self.vertices - self.center[self.labels]).square().sum(dim=1, keepdim=True)
        return RADIUS_FACTOR * (self.share @ squared)[:, 0].sqrt()


@dataclass(frozen=True)
class PartTargets:
    """Poses of the parts of all training scans (model frame) to which a training pulls those of its codes.

    `weight` counts relative to its mean; it is 1 for registrations. `code` has the global codes of the fits that gave
    the poses, by the model from which the training starts; None for registrations.
    """

    center: Float[Tensor, "n k 3"]
    rotation: Float[Tensor, "n k 3 3"]
    weight: Float[Tensor, "n k"]
    code: Float[Tensor, "n z"] | None = None


def part_poses(
    template: PartTemplate, vertices: Float[Tensor, "v 3"]
) -> tuple[Float[Tensor, "k 3"], Float[Tensor, "k 3 3"]]:
    """Center and rotation of each part in a registration, by Procrustes of its vertices, weighted by area.

    Kabsch, Acta Cryst. A 32, 1976. `vertices` are those of the template in its order, in model units.
    """
    share, rest = template.share, template.vertices - template.center[template.labels]
    center = share @ vertices
    moved = vertices - center[template.labels]
    covariance = (share @ (moved[:, :, None] * rest[:, None, :]).flatten(1)).view(-1, 3, 3).double()
    left, _, right = torch.linalg.svd(covariance)
    flip = torch.ones(len(left), 3, dtype=left.dtype)
    flip[:, 2] = torch.linalg.det(left @ right).sign()  # never a reflection (Umeyama, PAMI 1991)
    return center, ((left * flip[:, None]) @ right).to(vertices)


def require_registrations(store: ScanSource, names: Sequence[str]) -> None:
    """Raise `ValueError` if a scan has no registration."""
    if missing := [name for name in names if not store.has_ground_truth(name)]:
        raise ValueError(
            f"{store.path}: {len(missing):,} of {len(names):,} scans have no registration, for example {missing[0]}. "
            "The articulated family takes the poses of the parts from registrations. For raw scans alone, start from a "
            "space that has parts: --init-from SPACE."
        )


def registrations(
    store: ScanSource, names: Sequence[str], faces: Int[Tensor, "f 3"] | None = None
) -> Iterator[tuple[Float[Tensor, "v 3"], Int[Tensor, "f 3"]]]:
    """Vertices (model frame) and faces of the registration of each scan.

    Raises:
        ValueError: A scan has none, or its faces are not those of the first one.

    """
    require_registrations(store, names)
    for name in tqdm(names, desc="registrations", unit="scan", disable=len(names) < 50):
        mesh = store.ground_truth(name)
        assert mesh is not None  # see above
        own = torch.from_numpy(np.asarray(mesh.faces, dtype=np.int64))
        faces = own if faces is None else faces
        if own.shape != faces.shape or not torch.equal(own, faces):
            raise ValueError(
                f"{store.path}: the registration of {name} has {len(mesh.vertices):,} vertices and {len(own):,} faces "
                f"that are not those of the others ({len(faces):,} faces). The articulated family needs one template: "
                "choose a --split with one, or start from a space that has parts: --init-from SPACE."
            )
        frame = store.frame(name)
        yield frame.to_model(torch.from_numpy(np.asarray(mesh.vertices)).float()), faces


def registration_targets(store: ScanSource, names: Sequence[str], template: PartTemplate) -> PartTargets:
    """Poses of the parts of a template in the registrations of scans. Raises `ValueError` as `registrations` does."""
    poses = [part_poses(template, vertices) for vertices, _ in registrations(store, names, template.faces)]
    center, rotation = (torch.stack(each) for each in zip(*poses, strict=True))
    return PartTargets(center, rotation, torch.ones(center.shape[:2]))


def are_registered(store: ScanSource, names: Sequence[str], faces: Int[Tensor, "f 3"]) -> bool:
    """Whether all scans have a registration with these faces."""
    for name in names:
        mesh = store.ground_truth(name) if store.has_ground_truth(name) else None
        if mesh is None or not np.array_equal(mesh.faces, faces.numpy()):
            return False
    return True


def make_template(
    vertices: Float[Tensor, "v 3"],
    faces: Int[Tensor, "f 3"],
    num_parts: int,
    weight: Float[np.ndarray, "v"] | float = 1.0,
    *,
    moved: Sequence[Float[Tensor, "v 3"]] = (),
    seed: int = 0,
) -> PartTemplate:
    """Divide a template at rest (model units) into parts; they are smaller where the `weight` of its area is larger.

    Where registrations (`moved`) are given, borders go to where one rigid motion ends and another begins: at joints.

    Raises:
        ValueError: A part has too few vertices for a pose.

    """
    area = vertex_areas(vertices.double().numpy(), faces.numpy())
    labels = segment(vertices.double().numpy(), faces.numpy(), num_parts, area * weight, seed=seed)
    template = PartTemplate(vertices, faces, torch.from_numpy(labels), torch.from_numpy(area).float())
    template = segment_by_motion(template, moved)
    if (least := int(np.bincount(template.labels.numpy()[area > 0], minlength=num_parts).min())) < MIN_VERTICES:
        raise ValueError(
            f"--model.num-parts {num_parts}: the smallest part has {least} of the {len(vertices):,} vertices of the "
            f"template, and at least {MIN_VERTICES} are required. Lower it, or the densities of the regions."
        )
    return template


def segment_by_motion(template: PartTemplate, moved: Sequence[Float[Tensor, "v 3"]]) -> PartTemplate:
    """Move each vertex to the part near it whose rigid motions predict it best in registrations; parts stay compact.

    Lloyd's rounds: the motions of the parts (`part_poses`), then the parts of the vertices. A part may not vanish.
    """
    vertices, faces = template.vertices.numpy().astype(np.float64), template.faces.numpy()
    for _ in range(MOTION_ROUNDS if len(moved) else 0):
        center = template.center.numpy()
        distance, near = map(np.asarray, cKDTree(center).query(vertices, min(_CANDIDATES, len(center))))
        near = near.reshape(len(vertices), -1)
        cost = _COMPACTNESS * distance.reshape(near.shape) ** 2
        local = vertices[:, None] - center[near]
        for registration in moved:
            place, rotation = (pose.numpy() for pose in part_poses(template, registration))
            predicted = np.einsum("vnab,vnb->vna", rotation[near], local) + place[near]
            cost += np.square(predicted - registration.numpy()[:, None]).sum(axis=-1) / len(moved)
        labels = _connected(np.take_along_axis(near, cost.argmin(axis=1)[:, None], axis=1)[:, 0], faces)
        if np.bincount(labels, minlength=template.num_parts).min() < MIN_VERTICES:
            break
        template = replace(template, labels=torch.from_numpy(labels))
    return template


def vertex_areas(vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]) -> Float[np.ndarray, "v"]:
    """Third of the area of the faces around each vertex."""
    area = np.linalg.norm(area_vectors(vertices, faces), axis=1) / 6
    return np.bincount(faces.ravel(), np.repeat(area, 3), minlength=len(vertices))


def segment(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    num_parts: int,
    weight: Float[np.ndarray, "v"],
    *,
    seed: int = 0,
) -> Int[np.ndarray, "v"]:
    """Part of each vertex, by weighted k-means (k-means++ starts); parts are connected along edges.

    Pieces of a part that are apart from its largest piece go to a part that they touch: two fingers that are close in
    space do not share one.

    Raises:
        ValueError: There are more parts than vertices.

    """
    distinct = len(np.unique(vertices[weight > 0], axis=0))
    if not 1 <= num_parts <= distinct:
        raise ValueError(f"--model.num-parts {num_parts}: must be from 1 to the {distinct:,} vertices of the template.")
    rng = np.random.default_rng(seed)
    centers = vertices[[rng.choice(len(vertices), p=weight / weight.sum())]]
    while len(centers) < num_parts:
        chance = weight * nearest_point(vertices, centers)[0] ** 2
        centers = np.concatenate([centers, vertices[[rng.choice(len(vertices), p=chance / chance.sum())]]])
    labels = np.full(len(vertices), -1)
    for _ in range(MAX_ITERATIONS):
        nearest = nearest_point(vertices, centers)[1]
        if (nearest == labels).all():
            break
        labels = nearest
        mass = np.bincount(labels, weight, minlength=num_parts)
        sums = np.stack([np.bincount(labels, weight * axis, minlength=num_parts) for axis in vertices.T], axis=1)
        centers = np.where(mass[:, None] > 0, sums / np.maximum(mass, 1e-300)[:, None], centers)
    return _connected(labels, faces)


def _connected(labels: Int[np.ndarray, "v"], faces: Int[np.ndarray, "f 3"]) -> Int[np.ndarray, "v"]:
    """Labels after each small piece of a part went to the neighbor with which it shares most edges."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    labels = labels.copy()
    while True:  # a piece between two pieces needs more than one round
        inner = labels[edges[:, 0]] == labels[edges[:, 1]]
        graph = coo_matrix((np.ones(inner.sum()), edges[inner].T), shape=(len(labels), len(labels)))
        count, piece = connected_components(graph, directed=False)
        size, owner = np.bincount(piece), np.zeros(count, dtype=np.int64)
        owner[piece] = labels
        largest = np.zeros(labels.max() + 1, dtype=np.int64)
        largest[owner[size.argsort()]] = size.argsort()  # the last assignment is that of the largest piece
        stray = largest[owner[piece]] != piece
        crossing = stray[edges[:, 0]] & ~stray[edges[:, 1]]  # two small pieces would swap their parts
        if not crossing.any():
            return labels
        touched = np.unique(
            np.stack([piece[edges[crossing, 0]], labels[edges[crossing, 1]]], axis=1), axis=0, return_counts=True
        )
        by_edges = touched[1].argsort()
        new = owner.copy()
        new[touched[0][by_edges, 0]] = touched[0][by_edges, 1]
        labels = new[piece]
