"""Rotations of parts, and poses along the tree of the parts."""

import dataclasses

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from scipy.cluster.vq import kmeans2
from scipy.spatial.transform import Rotation
from torch import Tensor

from shapespace.geometry import articulation
from shapespace.geometry.articulation import PartPoses, PartTree, RelativePoses, part_tree
from shapespace.synthetic.body import Body
from shapespace.synthetic.poses import PoseLibrary, interpolate_pose

Parts = tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "v"], Float[np.ndarray, "k 3"]]
"""Vertices at rest, part of each, center of each part."""


def rotations(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(Rotation.random(count, rng=seed).as_matrix()).to(dtype)


# ---------------------------------------------------------------------------------------------------------------- poses

PARENTS = (1, 2, -1, 2, 3, 3, 5)  # part 2 is the root, with the chains 2-1-0 and 2-3-4, 3-5-6
ORDER = (2, 1, 3, 0, 4, 5, 6)


def some_tree(seed: int = 0) -> PartTree:
    generator = torch.Generator().manual_seed(seed)
    joint_in_parent, joint_in_child = torch.randn(2, len(PARENTS), 3, generator=generator)
    joint_in_child[2] = 0
    return PartTree(torch.tensor(PARENTS), torch.tensor(ORDER), joint_in_parent, joint_in_child)


def some_poses(*shape: int, seed: int = 0) -> PartPoses:
    """Poses in which parents and children do not agree about their joints."""
    count = int(np.prod(shape)) * len(PARENTS)
    center = torch.randn(*shape, len(PARENTS), 3, generator=torch.Generator().manual_seed(seed))
    return PartPoses(center, rotations(count, seed).view(*shape, len(PARENTS), 3, 3))


def forward(
    tree: PartTree, local: Float[np.ndarray, "k 3 3"], joint: Float[np.ndarray, "k 3"]
) -> tuple[Float[np.ndarray, "k 3"], Float[np.ndarray, "k 3 3"]]:
    """Plain forward kinematics by homogeneous matrices, in float64."""
    world = [np.eye(4)] * len(PARENTS)
    for part in ORDER:
        to_joint, turn, from_joint = np.eye(4), np.eye(4), np.eye(4)
        to_joint[:3, 3] = joint[part]
        turn[:3, :3] = local[part]
        from_joint[:3, 3] = -tree.joint_in_child[part].double().numpy()
        parent = np.eye(4) if PARENTS[part] < 0 else world[PARENTS[part]]
        world[part] = parent @ to_joint @ turn @ from_joint
    return np.stack(world)[:, :3, 3], np.stack(world)[:, :3, :3]


def assert_poses(actual: PartPoses, center: object, rotation: object, tolerance: float = 1e-5) -> None:
    for value, truth in ((actual.center, center), (actual.rotation, rotation)):
        torch.testing.assert_close(value.double(), torch.as_tensor(truth).double(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_relative_poses_give_any_poses_back(shape: tuple[int, ...]) -> None:
    tree, poses = some_tree(), some_poses(*shape)
    back = articulation.compose(tree, articulation.relative(tree, poses))
    assert_poses(back, poses.center, poses.rotation)


def test_composed_poses_are_forward_kinematics() -> None:
    tree, local = some_tree(), rotations(7, 3)
    composed = articulation.compose(tree, RelativePoses(local, tree.joint_in_parent))
    assert_poses(composed, *forward(tree, local.double().numpy(), tree.joint_in_parent.double().numpy()))
    back = articulation.relative(tree, composed)
    torch.testing.assert_close(back.rotation, local, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.joint, tree.joint_in_parent, atol=1e-5, rtol=0)


def test_a_batch_equals_its_members() -> None:
    tree, poses = some_tree(), some_poses(3)
    batch = articulation.relative(tree, poses)
    for row in range(3):
        one = articulation.relative(tree, PartPoses(poses.center[row], poses.rotation[row]))
        torch.testing.assert_close((one.rotation, one.joint), (batch.rotation[row], batch.joint[row]))


def test_interpolated_poses_are_forward_kinematics_of_the_share_of_each_angle() -> None:
    tree, start = some_tree(), rotations(7, 3)
    joint = tree.joint_in_parent.double().numpy()
    turn = np.random.default_rng(0).normal(size=(7, 3)) * 0.8
    shares = torch.tensor([0.0, 0.25, 0.5, 1.0])
    truth = [
        forward(tree, start.double().numpy() @ Rotation.from_rotvec(share * turn).as_matrix(), joint)
        for share in shares.tolist()
    ]
    a, b = (PartPoses(*(torch.from_numpy(each).float() for each in truth[end])) for end in (0, -1))
    between = articulation.interpolate_poses(tree, a, b, shares)
    assert_poses(between, np.stack([center for center, _ in truth]), np.stack([rotation for _, rotation in truth]))


def test_interpolation_of_disagreeing_poses_has_both_ends_and_moves_joints_straight_in_the_parents() -> None:
    tree, a, b = some_tree(), some_poses(), some_poses(seed=1)
    between = articulation.interpolate_poses(tree, a, b, torch.tensor([0.0, 0.5, 1.0]))
    for row, end in ((0, a), (2, b)):
        assert_poses(PartPoses(between.center[row], between.rotation[row]), end.center, end.rotation)
    joint = articulation.relative(tree, between).joint
    torch.testing.assert_close(joint[1], 0.5 * (joint[0] + joint[2]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 179.99, 180.0])
def test_half_of_a_turn_is_finite_and_halves_the_angle(degrees: float) -> None:
    tree, a = some_tree(), some_poses()
    axis = np.array([0.6, 0.0, 0.8])
    turn = torch.from_numpy(Rotation.from_rotvec(axis * degrees, degrees=True).as_matrix()).float()
    middle = articulation.interpolate_poses(tree, a, articulation.turn_joint(tree, a, 5, turn), torch.tensor([0.5]))
    turned = articulation.relative(tree, middle).rotation[0] @ articulation.relative(tree, a).rotation.mT
    angles = np.degrees(Rotation.from_matrix(turned.double().numpy()).magnitude())
    expected = np.where(np.arange(7) == 5, degrees / 2, 0)
    np.testing.assert_allclose(angles, expected, atol=0.02)
    assert torch.isfinite(middle.center).all()


def test_a_transferred_pose_has_the_rotations_of_one_and_the_lengths_of_the_other() -> None:
    tree, poses = some_tree(), some_poses(seed=2)
    person = articulation.compose(tree, RelativePoses(rotations(7, 5), 1.7 * tree.joint_in_parent))
    moved = articulation.relative(tree, articulation.transfer_pose(tree, poses, person))
    torch.testing.assert_close(moved.rotation, articulation.relative(tree, poses).rotation, atol=1e-5, rtol=0)
    child = torch.arange(7) != 2
    torch.testing.assert_close(moved.joint[child], 1.7 * tree.joint_in_parent[child], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.joint[2], poses.center[2], atol=1e-5, rtol=0)


def test_the_own_pose_is_transferred_to_itself() -> None:
    tree, poses = some_tree(), some_poses(3)
    assert_poses(articulation.transfer_pose(tree, poses, poses), poses.center, poses.rotation)


@pytest.mark.parametrize(("part", "moved"), [(3, {3, 4, 5, 6}), (6, {6}), (1, {0, 1}), (2, set(range(7)))])
def test_a_turned_joint_moves_its_descendants_alone(part: int, moved: set[int]) -> None:
    tree, poses, rotation = some_tree(), some_poses(2), rotations(1, 8)[0]
    turned = articulation.turn_joint(tree, poses, part, rotation.expand(2, 3, 3))
    for other in range(7):
        kept = torch.equal(turned.center[:, other], poses.center[:, other])
        assert kept == (other not in moved or other == part == 2)  # the root turns about its own center
        assert torch.equal(turned.rotation[:, other], poses.rotation[:, other]) == (other not in moved)
    before, after = articulation.relative(tree, poses), articulation.relative(tree, turned)
    torch.testing.assert_close(after.joint, before.joint, atol=1e-5, rtol=0)
    expected = before.rotation.clone()
    expected[:, part] = rotation @ expected[:, part]
    torch.testing.assert_close(after.rotation, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("part", [-1, 7])
def test_a_joint_that_does_not_exist_is_not_turned(part: int) -> None:
    with pytest.raises(ValueError, match=rf"part {part}: the tree has 7 parts. Give one of 0..6"):
        articulation.turn_joint(some_tree(), some_poses(), part, torch.eye(3))


# ----------------------------------------------------------------------------------------------- the tree of a template


def tube(parts: int, x: float = 0.0) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], Int[np.ndarray, "v"]]:
    """A tube along y in rings of eight vertices, four rings to a part, a ring each quarter."""
    turn = np.arange(8) * np.pi / 4
    rings = np.arange(4 * parts)
    vertices = np.array([[x + 0.2 * np.cos(t), ring / 4, 0.2 * np.sin(t)] for ring in rings for t in turn])
    corner = (rings[:-1, None] * 8 + np.arange(8)).ravel()
    beside = (rings[:-1, None] * 8 + (np.arange(8) + 1) % 8).ravel()
    faces = np.concatenate([np.stack([corner, beside, corner + 8], 1), np.stack([beside, beside + 8, corner + 8], 1)])
    return vertices, faces.astype(np.int64), np.repeat(rings // 4, 8)


def centers_of(vertices: Float[np.ndarray, "v 3"], labels: Int[np.ndarray, "v"]) -> Float[np.ndarray, "k 3"]:
    return np.stack([vertices[labels == label].mean(axis=0) for label in range(labels.max() + 1)])


def test_a_tube_is_a_chain_from_its_middle_with_joints_on_its_axis_between_the_parts() -> None:
    vertices, faces, labels = tube(5)
    tree = part_tree(vertices, faces, labels, centers_of(vertices, labels))
    assert tree.parents.tolist() == [1, 2, -1, 2, 3]
    half = torch.tensor([0.0, 0.5, 0.0])
    sign = torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0])[:, None]
    is_root = (tree.parents < 0)[:, None]
    torch.testing.assert_close(tree.joint_in_child, -sign * half)
    torch.testing.assert_close(tree.joint_in_parent, torch.where(is_root, torch.tensor([0.0, 2.375, 0.0]), sign * half))
    rest = articulation.compose(tree, tree.rest())
    assert_poses(rest, centers_of(vertices, labels), np.tile(np.eye(3), (5, 1, 1)))


def test_another_root_is_taken_on_request() -> None:
    vertices, faces, labels = tube(4)
    tree = part_tree(vertices, faces, labels, centers_of(vertices, labels), root=3)
    assert tree.parents.tolist() == [1, 2, 3, -1]
    assert tree.order.tolist() == [3, 2, 1, 0]


def test_pieces_that_do_not_touch_hang_on_the_nearest_center() -> None:
    vertices, faces, labels = tube(3)
    other, other_faces, other_labels = tube(2, x=1.0)
    both = np.concatenate([vertices, other + np.array([0, 1, 0])])
    faces, labels = np.concatenate([faces, other_faces + len(vertices)]), np.concatenate([labels, other_labels + 3])
    centers = centers_of(both, labels)
    tree = part_tree(both, faces, labels, centers, root=0)
    assert tree.parents.tolist() == [-1, 0, 1, 1, 3]
    torch.testing.assert_close(tree.joint_in_child[3], torch.from_numpy(centers[1] - centers[3]).float() / 2)


@pytest.mark.parametrize("by_poses", [False, True])
def test_one_part_is_a_root(by_poses: bool) -> None:
    vertices, faces, labels = tube(1)
    poses = PartPoses(torch.zeros(2, 1, 3), rotations(2)[:, None]) if by_poses else None
    tree = part_tree(vertices, faces, labels, centers_of(vertices, labels), poses=poses)
    assert (tree.parents.tolist(), tree.order.tolist()) == ([-1], [0])


def test_poses_of_bodies_give_the_joints_about_which_they_turn() -> None:
    """The true joints are off the axis of the tube."""
    vertices, faces, labels = tube(5)
    centers = centers_of(vertices, labels)
    plain = part_tree(vertices, faces, labels, centers, root=0)
    joint = torch.where((plain.parents < 0)[:, None], plain.joint_in_parent, plain.joint_in_parent + 0.05)
    truth = dataclasses.replace(plain, joint_in_parent=joint, joint_in_child=plain.joint_in_child + 0.03)
    local = torch.from_numpy(Rotation.from_rotvec(np.random.default_rng(0).normal(size=(1000, 3))).as_matrix())
    poses = articulation.compose(truth, RelativePoses(local.view(200, 5, 3, 3).float(), joint.expand(200, 5, 3)))
    tree = part_tree(vertices, faces, labels, centers, root=0, poses=poses)
    assert tree.parents.tolist() == [-1, 0, 1, 2, 3]
    torch.testing.assert_close(tree.joint_in_parent, truth.joint_in_parent, atol=2e-3, rtol=0)
    torch.testing.assert_close(tree.joint_in_child[1:], truth.joint_in_child[1:], atol=2e-3, rtol=0)


def test_a_patch_that_floats_about_becomes_a_leaf() -> None:
    """A tube of two parts with a patch on most of their border: the template alone joins them by the patch."""
    vertices, faces, labels = tube(2)
    labels = labels.copy()
    labels[[*range(26, 32), *range(34, 40)]] = 2
    centers = np.array([[0, 0, 0.0], [0, 2, 0], [0, 1, 0.0]])
    assert part_tree(vertices, faces, labels, centers, root=0).parents.tolist() == [-1, 2, 0]
    rng = np.random.default_rng(0)
    turn = rotations(200, 4).view(100, 2, 3, 3)
    joint = (turn[:, 0] @ torch.tensor([0.0, 1.0, 0.0]), turn[:, 1] @ torch.tensor([0.0, 1.0, 0.0]))
    floating = torch.from_numpy(rng.normal(size=(100, 3))).float()
    center = torch.stack([torch.zeros(100, 3), joint[0] + joint[1], floating], dim=1)
    poses = PartPoses(center, torch.cat([turn, rotations(100, 6)[:, None]], dim=1))
    tree = part_tree(vertices, faces, labels, centers, root=0, poses=poses)
    assert tree.parents[1] == 0
    assert 2 not in tree.parents


def test_parts_that_never_turn_keep_the_border_as_their_joint() -> None:
    vertices, faces, labels = tube(3)
    centers = centers_of(vertices, labels)
    turn = rotations(20)
    poses = PartPoses(torch.from_numpy(centers).float() @ turn.mT, turn[:, None].expand(20, 3, 3, 3))
    tree, plain = (part_tree(vertices, faces, labels, centers, poses=each) for each in (poses, None))
    torch.testing.assert_close(tree.joint_in_parent, plain.joint_in_parent, atol=1e-5, rtol=0)
    torch.testing.assert_close(tree.joint_in_child, plain.joint_in_child, atol=1e-5, rtol=0)


def test_what_does_not_fit_the_centers_is_refused() -> None:
    vertices, faces, labels = tube(3)
    centers = centers_of(vertices, labels)
    with pytest.raises(ValueError, match=r"labels 0..2, but 2 centers. Give a center per label"):
        part_tree(vertices, faces, labels, centers[:2])
    with pytest.raises(ValueError, match=r"root 3, but there are 3 parts. Give one of 0..2"):
        part_tree(vertices, faces, labels, centers, root=3)
    with pytest.raises(ValueError, match=r"poses of shape \(2, 7, 3\), but 3 centers. Give \(bodies, 3, 3\)"):
        part_tree(vertices, faces, labels, centers, poses=some_poses(2))


# --------------------------------------------------------------------------------------------------------------- a body


@pytest.fixture(scope="module")
def body_parts() -> Parts:
    body = Body.load()
    rest, _ = body.rest_pose(np.zeros(len(body.components)))
    _, labels = kmeans2(rest, 50, minit="++", seed=0)
    return rest, labels.astype(np.int64), centers_of(rest, labels)


def poses_of(
    rest: Float[np.ndarray, "v 3"], labels: Int[np.ndarray, "v"], posed: Float[np.ndarray, "b v 3"]
) -> PartPoses:
    center, rotation = np.empty((len(posed), labels.max() + 1, 3)), np.empty((len(posed), labels.max() + 1, 3, 3))
    for label in range(labels.max() + 1):
        reference, moved = rest[labels == label], posed[:, labels == label]
        center[:, label] = moved.mean(axis=1)
        for row, own in enumerate(moved - center[:, label, None]):
            rotation[row, label] = Rotation.align_vectors(own, reference - reference.mean(axis=0))[0].as_matrix()
    return PartPoses(torch.from_numpy(center).float(), torch.from_numpy(rotation).float())


@pytest.fixture(scope="module")
def body_poses(body_parts: Parts) -> PartPoses:
    """Poses of 25 bodies."""
    rest, labels, _ = body_parts
    body, rng = Body.load(), np.random.default_rng(0)
    library = PoseLibrary.load(body)
    bodies = [body.skin(body.sample_shape(rng), library.sample_in_limits(rng)) for _ in range(25)]
    return poses_of(rest, labels, np.stack(bodies))


@pytest.mark.parametrize("by_poses", [False, True])
def test_the_hands_of_a_body_hang_on_its_arms(by_poses: bool, body_parts: Parts, body_poses: PartPoses) -> None:
    rest, labels, centers = body_parts
    body = Body.load()
    tree = part_tree(rest, body.faces.astype(np.int64), labels, centers, poses=body_poses if by_poses else None)
    seen: set[int] = set()
    for part in tree.order.tolist():
        assert int(tree.parents[part]) in seen | {-1}
        seen.add(part)
    assert seen == set(range(len(centers)))
    assert abs(centers[tree.root][0]) < 0.25
    assert tree.descendants(tree.root).all()
    main = body.weight_joint[np.arange(len(rest)), body.weight.argmax(axis=1)]
    names = [body.joints[np.bincount(main[labels == part]).argmax()] for part in range(len(centers))]
    hands = [part for part, name in enumerate(names) if name.startswith(("wrist", "metacarpal", "finger"))]
    assert {names[part][-1] for part in hands} == {"L", "R"}
    for hand in hands:
        above = [part for part in range(len(centers)) if tree.descendants(part)[hand] and part != hand]
        arms = [names[part] for part in above if names[part].startswith(("upperarm", "lowerarm"))]
        assert {name[-2:] for name in arms} == {names[hand][-2:]}
        assert any(name.startswith("lowerarm") for name in arms)


def test_interpolation_along_the_tree_is_near_the_true_motion(body_parts: Parts, body_poses: PartPoses) -> None:
    """At most a third of the error of a straight line of each part in the world, for people unknown to the tree."""
    rest, labels, centers = body_parts
    body, rng = Body.load(), np.random.default_rng(1)
    library = PoseLibrary.load(body)
    tree = part_tree(rest, body.faces.astype(np.int64), labels, centers, poses=body_poses)
    errors: list[float] = []
    straight: list[float] = []
    for _ in range(4):
        coefficients, start, end = body.sample_shape(rng), *(library.sample_in_limits(rng) for _ in range(2))
        motion = [body.skin(coefficients, interpolate_pose(start, end, share)) for share in (0.0, 0.5, 1.0)]
        truth = poses_of(rest, labels, np.stack(motion))
        a, b = (PartPoses(truth.center[row], truth.rotation[row]) for row in (0, 2))
        middle = articulation.interpolate_poses(tree, a, b, torch.tensor([0.5])).center[0]
        for found, kept in ((middle, errors), (0.5 * (a.center + b.center), straight)):
            apart = found - truth.center[1]
            kept.append((apart - apart.mean(dim=0)).norm(dim=1).mean().item())  # the floor moves the whole body
    assert np.mean(errors) < np.mean(straight) / 3


def test_components_of_sizes_bring_a_transferred_pose_nearer_to_the_truth(
    body_parts: Parts, body_poses: PartPoses
) -> None:
    """For people unknown to the tree; the joints of soft parts move with the pose, which is not a size."""
    rest, labels, centers = body_parts
    body, rng = Body.load(), np.random.default_rng(2)
    library = PoseLibrary.load(body)
    tree = part_tree(rest, body.faces.astype(np.int64), labels, centers, poses=body_poses)
    assert tree.sizes is not None
    assert tree.sizes.shape == (articulation.SIZE_COMPONENTS, 50, 3)
    rows = tree.sizes.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-5, rtol=0)
    assert not tree.sizes[:, tree.root].any()
    alone = dataclasses.replace(tree, sizes=None)
    errors: dict[str, list[float]] = {"components": [], "all": [], "unchanged": []}
    for _ in range(8):
        shapes = [body.sample_shape(rng) for _ in range(2)]
        start, other = (library.sample_in_limits(rng) for _ in range(2))
        bodies = [body.skin(shapes[0], start), body.skin(shapes[1], other), body.skin(shapes[1], start)]
        poses = poses_of(rest, labels, np.stack(bodies))
        pose, person, truth = (PartPoses(poses.center[row], poses.rotation[row]) for row in range(3))
        moved = articulation.transfer_pose(tree, pose, person), articulation.transfer_pose(alone, pose, person), pose
        for kept, found in zip(errors.values(), moved, strict=True):
            apart = found.center - truth.center
            kept.append((apart - apart.mean(dim=0)).norm(dim=1).mean().item())
    components, everything, unchanged = (float(np.mean(kept)) for kept in errors.values())
    assert components < 0.9 * everything, (components, everything)
    assert components < 0.85 * unchanged, (components, unchanged)
