"""Articulated parts: rotations of parts, and the tree along which poses are interpolated, exchanged and turned.

A part has a pose: a center t (3) and a rotation R (3 x 3) that bring points u of its frame to x = R u + t. Lengths are
in the unit of the caller (model units or meters), angles in radians.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree, shortest_path
from scipy.spatial.transform import Rotation
from torch import Tensor

SIZE_COMPONENTS = 4  # of the places of the joints: people differ in few ways, and soft parts give way in many
_RIDGE = 0.003  # weight of a joint's place at rest: it decides where parts turn by a few degrees at most

# ----------------------------------------------------------------------------------------------------------- rotations


def rotation_vectors(rotation: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3"]:
    """Rotation vectors (axis times angle), at most pi long; at pi, one of the two that give the rotation."""
    vectors = Rotation.from_matrix(rotation.detach().double().cpu().reshape(-1, 3, 3).numpy()).as_rotvec()
    return torch.from_numpy(vectors).to(rotation).view(rotation.shape[:-1])


def rotation_matrices(vectors: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """Rotations by rotation vectors; the inverse of `rotation_vectors`."""
    matrices = Rotation.from_rotvec(vectors.detach().double().cpu().reshape(-1, 3).numpy()).as_matrix()
    return torch.from_numpy(matrices).to(vectors).view(*vectors.shape, 3)


# ---------------------------------------------------------------------------------------------------------------- poses


@dataclass(frozen=True)
class PartPoses:
    """Poses of the parts: `x = rotation u + center` for points u of a part's frame."""

    center: Float[Tensor, "*b k 3"]
    rotation: Float[Tensor, "*b k 3 3"]


@dataclass(frozen=True)
class RelativePoses:
    """Poses of the parts relative to their parents, the root's to the world.

    `rotation` brings the frame of a part to that of its parent. `joint` is the place of the joint in the parent's
    frame. It is where the part puts the joint: its place in the part's frame is that of the tree.
    """

    rotation: Float[Tensor, "*b k 3 3"]
    joint: Float[Tensor, "*b k 3"]


@dataclass(frozen=True)
class PartTree:
    """Parent of each part (-1: the root), and the joint between both in the frames of both at rest.

    At rest all rotations are the identity and the centers are those of the rest template. The joint of the root with
    the world is its center. `order` names the parts so that parents come before their children.

    `sizes` are the first principal components (orthonormal) of the places of the joints over many bodies, without the
    root's: the ways in which people differ in size. None for a tree of a template alone.
    """

    parents: Int[Tensor, "k"]
    order: Int[Tensor, "k"]
    joint_in_parent: Float[Tensor, "k 3"]
    joint_in_child: Float[Tensor, "k 3"]
    sizes: Float[Tensor, "c k 3"] | None = None

    @property
    def root(self) -> int:
        """The part without a parent."""
        return int(self.order[0])

    def rest(self) -> RelativePoses:
        """Poses of the rest template."""
        return RelativePoses(
            torch.eye(3).to(self.joint_in_parent).expand(len(self.parents), 3, 3), self.joint_in_parent
        )

    def descendants(self, part: int) -> Bool[Tensor, "k"]:
        """Mask of a part and of all parts that hang on it.

        Raises:
            ValueError: There is no such part.

        """
        if not 0 <= part < len(self.parents):
            raise ValueError(
                f"part {part}: the tree has {len(self.parents)} parts. Give one of 0..{len(self.parents) - 1}."
            )
        mask = torch.arange(len(self.parents), device=self.parents.device) == part
        for child, parent in self._pairs():
            mask[child] |= mask[parent]
        return mask

    def _pairs(self) -> list[tuple[int, int]]:
        """All parts but the root with their parents, parents first."""
        return [(part, int(self.parents[part])) for part in self.order[1:].tolist()]


def relative(tree: PartTree, poses: PartPoses) -> RelativePoses:
    """Poses relative to the parents; the inverse of `compose`."""
    world = torch.eye(3).to(poses.rotation).expand_as(poses.rotation[..., :1, :, :])
    parents = torch.where(tree.parents < 0, len(tree.parents), tree.parents)
    of_parent = torch.cat([poses.rotation, world], dim=-3)[..., parents, :, :]
    at_parent = torch.cat([poses.center, torch.zeros_like(poses.center[..., :1, :])], dim=-2)[..., parents, :]
    offset = joint_positions(tree, poses) - at_parent
    return RelativePoses(of_parent.mT @ poses.rotation, (of_parent.mT @ offset[..., None])[..., 0])


def compose(tree: PartTree, relative_poses: RelativePoses) -> PartPoses:
    """Poses in the world, from the root outward; the inverse of `relative`."""
    rotation, center = list(relative_poses.rotation.unbind(-3)), list(relative_poses.joint.unbind(-2))
    center[tree.root] = center[tree.root] - rotation[tree.root] @ tree.joint_in_child[tree.root]
    for part, parent in tree._pairs():
        at_joint = center[parent] + (rotation[parent] @ center[part][..., None])[..., 0]
        rotation[part] = rotation[parent] @ rotation[part]
        center[part] = at_joint - rotation[part] @ tree.joint_in_child[part]
    return PartPoses(torch.stack(center, dim=-2), torch.stack(rotation, dim=-3))


def joint_positions(tree: PartTree, poses: PartPoses) -> Float[Tensor, "*b k 3"]:
    """Place of the joint of each part with its parent, as the part has it; the root's is its center."""
    return poses.center + (poses.rotation @ tree.joint_in_child[..., None])[..., 0]


# -------------------------------------------------------------------------------------------------------- changed poses


def interpolate_poses(tree: PartTree, a: PartPoses, b: PartPoses, share: Float[Tensor, "s"]) -> PartPoses:
    """Poses between a (share 0) and b (share 1), a row for each share.

    Each part turns about its joint at constant speed relative to its parent, by the shorter way; the joints move
    straight in the frames of the parents, and the root moves straight and turns in the world.
    """
    start, end = relative(tree, a), relative(tree, b)
    turn = rotation_vectors(start.rotation.mT @ end.rotation)
    rotation = start.rotation @ rotation_matrices(share[:, None, None] * turn)
    return compose(tree, RelativePoses(rotation, torch.lerp(start.joint, end.joint, share[:, None, None])))


def transfer_pose(tree: PartTree, poses: PartPoses, person: PartPoses) -> PartPoses:
    """Pose of one body on another person: rotations and place of the root of the first, sizes of the second.

    Sizes are the places of the joints in the frames of the parents. Some of a place depends on the pose, because parts
    are soft: if the tree has components of sizes, only they are the second body's, and what is left is the first's.
    """
    taken, sizes = relative(tree, poses), relative(tree, person)
    change = torch.where((tree.parents < 0)[:, None], 0, sizes.joint - taken.joint)
    if tree.sizes is not None:
        change = torch.einsum("...kd,ckd,cij->...ij", change, tree.sizes, tree.sizes)
    return compose(tree, RelativePoses(taken.rotation, taken.joint + change))


def turn_joint(tree: PartTree, poses: PartPoses, part: int, rotation: Float[Tensor, "*b 3 3"]) -> PartPoses:
    """Turn a part, and all that hang on it, about its joint with its parent; the root: all about its center.

    The axes of the rotation are those of the parent's frame: with the parent at rest, those of the model.

    Raises:
        ValueError: There is no such part.

    """
    moved = tree.descendants(part)
    parent = int(tree.parents[part])
    if parent >= 0:
        rotation = poses.rotation[..., parent, :, :] @ rotation @ poses.rotation[..., parent, :, :].mT
    rotation = rotation[..., None, :, :]
    joint = joint_positions(tree, poses)[..., part, None, :]
    center = joint + (rotation @ (poses.center - joint)[..., None])[..., 0]
    return PartPoses(
        torch.where(moved[:, None], center, poses.center),
        torch.where(moved[:, None, None], rotation @ poses.rotation, poses.rotation),
    )


# ----------------------------------------------------------------------------------------------- the tree of a template


def part_tree(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    labels: Int[np.ndarray, "v"],
    centers: Float[np.ndarray, "k 3"],
    root: int | None = None,
    *,
    poses: PartPoses | None = None,
) -> PartTree:
    """Tree of the parts of a template at rest, from the part of each vertex and the rest centers of the parts.

    Only neighbors are joined: parts with a common border, or nearest centers where pieces of the template do not touch.
    The root is by default the part from which the paths to all others cost least.

    With the poses of many bodies (batched, in the unit of the vertices), the tree is the minimum spanning tree by how
    far two parts turn against each other (RMS angle) times how badly a ball joint explains it (RMS gap), and each joint
    is the point on which both parts agree best. Patches that stretch, as the groin does, become leaves. The tree has
    `sizes` then.

    With the template alone, the tree has the shortest paths from the root, where a step costs the distance of the
    centers over the length of the border; each joint is the mean of the middles of the edges that connect both parts.

    Raises:
        ValueError: A label, the root or the number of poses does not fit the centers.

    """
    _check(labels, centers, root, poses)
    length, middle = _borders(vertices, faces, labels, len(centers))
    distance = np.linalg.norm(centers[:, None] - centers, axis=2)
    adjacent = _linked(length > 0, distance)
    first, second = pairs = np.stack(np.nonzero(np.triu(adjacent)))
    between = np.where((length[first, second] > 0)[:, None], middle[first, second], centers[pairs].mean(axis=0))
    joint = between - centers[pairs]
    if poses is None:
        cost = (distance / np.where(length > 0, length, distance.clip(1e-12)))[first, second]
    else:
        joint, gap, angle = _ball_joints(poses, pairs, joint)
        cost = gap * angle
    graph = csr_array((cost.clip(1e-12), (first, second)), shape=distance.shape)  # SciPy takes a cost of 0 for no edge
    if poses is not None:
        graph = csr_array(minimum_spanning_tree(graph))
    if root is None:
        root = int(shortest_path(graph, directed=False).sum(axis=1).argmin())
    if poses is None:
        graph = _shortest_paths(graph, root)
    order, parents = breadth_first_order(graph, root, directed=False)
    parents[root] = root
    place = np.zeros((len(centers), len(centers), 3))  # of the joint with the second part, in the frame of the first
    place[first, second], place[second, first] = joint
    parts = np.arange(len(centers))
    in_parent, in_child = place[parents, parts], place[parts, parents]
    in_parent[root], in_child[root] = centers[root], 0
    parents[root] = -1
    tree = PartTree(
        torch.from_numpy(parents.astype(np.int64)),
        torch.from_numpy(order.astype(np.int64)),
        torch.from_numpy(in_parent).float(),
        torch.from_numpy(in_child).float(),
    )
    return tree if poses is None else replace(tree, sizes=_size_components(tree, poses))


def _size_components(tree: PartTree, poses: PartPoses) -> Float[Tensor, "c k 3"]:
    joint = relative(tree, PartPoses(poses.center.cpu().float(), poses.rotation.cpu().float())).joint
    joint = torch.where((tree.parents < 0)[:, None], 0, joint - joint.mean(dim=0))
    _, deviation, components = torch.linalg.svd(joint.flatten(1), full_matrices=False)
    return components[deviation > 1e-6][:SIZE_COMPONENTS].view(-1, *joint.shape[1:])


def _check(
    labels: Int[np.ndarray, "v"], centers: Float[np.ndarray, "k 3"], root: int | None, poses: PartPoses | None
) -> None:
    count = len(centers)
    if labels.min() < 0 or labels.max() >= count:
        raise ValueError(
            f"part_tree: labels {labels.min()}..{labels.max()}, but {count} centers. Give a center per label."
        )
    if root is not None and not 0 <= root < count:
        raise ValueError(f"part_tree: root {root}, but there are {count} parts. Give one of 0..{count - 1}.")
    if poses is not None and (poses.center.ndim != 3 or poses.center.shape[1] != count):
        raise ValueError(
            f"part_tree: poses of shape {tuple(poses.center.shape)}, but {count} centers. Give (bodies, {count}, 3)."
        )


def _borders(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], labels: Int[np.ndarray, "v"], count: int
) -> tuple[Float[np.ndarray, "k k"], Float[np.ndarray, "k k 3"]]:
    """Length of the border of each two parts, and the mean of the middles of the edges that cross it (zero: none).

    Within a face, the border runs from the middles of its crossing edges to the middle of the face.
    """
    length, edges, middle = np.zeros((count, count)), np.zeros((count, count)), np.zeros((count, count, 3))
    face_middle = vertices[faces].mean(axis=1)
    for start, end in ((0, 1), (1, 2), (2, 0)):
        a, b = faces[:, start], faces[:, end]
        crossing = labels[a] != labels[b]
        edge_middle = (0.5 * (vertices[a] + vertices[b]))[crossing]
        for pair in ((labels[a][crossing], labels[b][crossing]), (labels[b][crossing], labels[a][crossing])):
            np.add.at(length, pair, np.linalg.norm(edge_middle - face_middle[crossing], axis=1))
            np.add.at(edges, pair, 1)
            np.add.at(middle, pair, edge_middle)
    return length, middle / edges.clip(1)[..., None]


def _linked(adjacent: Bool[np.ndarray, "k k"], distance: Float[np.ndarray, "k k"]) -> Bool[np.ndarray, "k k"]:
    """Adjacency in which the nearest parts of pieces that do not touch are neighbors too."""
    adjacent = adjacent.copy()
    while True:
        count, piece = connected_components(csr_array(adjacent), directed=False)
        if count == 1:
            return adjacent
        apart = np.where(piece[:, None] != piece, distance, np.inf)
        a, b = np.unravel_index(apart.argmin(), apart.shape)
        adjacent[a, b] = adjacent[b, a] = True


def _ball_joints(
    poses: PartPoses, pairs: Int[np.ndarray, "2 e"], at_rest: Float[np.ndarray, "2 e 3"]
) -> tuple[Float[np.ndarray, "2 e 3"], Float[np.ndarray, "e"], Float[np.ndarray, "e"]]:
    """Joint of each pair in both frames by least squares over bodies, its RMS gap, and the RMS angle (radians).

    The places p and q in both frames minimize the mean of |R_a p + t_a - R_b q - t_b|^2, plus `_RIDGE` times their
    squared distance from rest: a pair that hardly turns has no center of rotation.
    """
    center, rotation = poses.center.double().cpu().numpy(), poses.rotation.double().cpu().numpy()
    a, b = rotation[:, pairs[0]], rotation[:, pairs[1]]
    design = np.concatenate([a, -b], axis=3)
    start = np.concatenate([at_rest[0], at_rest[1]], axis=1)
    apart = center[:, pairs[1]] - center[:, pairs[0]]
    gap = apart - np.einsum("beij,ej->bei", design, start)
    normal = np.einsum("beij,beik->ejk", design, design) / len(center) + _RIDGE * np.eye(6)
    right = np.einsum("beij,bei->ej", design, gap) / len(center)
    change = np.linalg.solve(normal, right[..., None])[..., 0]
    gap -= np.einsum("beij,ej->bei", design, change)
    turn = Rotation.from_matrix((a.swapaxes(2, 3) @ b).reshape(-1, 3, 3)).magnitude().reshape(a.shape[:2])
    joint = np.stack(np.split(start + change, 2, axis=1))
    return joint, np.sqrt(np.square(gap).sum(axis=2).mean(axis=0)), np.sqrt(np.square(turn).mean(axis=0))


def _shortest_paths(graph: csr_array, root: int) -> csr_array:
    """Tree of the shortest paths from the root."""
    _, parents = shortest_path(graph, directed=False, return_predecessors=True, indices=root)
    children = np.flatnonzero(parents >= 0)
    return csr_array((np.ones(len(children)), (parents[children], children)), shape=graph.shape)
