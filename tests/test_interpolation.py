"""Paths between codes: ends, symmetry, a geodesic that is known in closed form; parts that turn about their joints."""

import dataclasses
import json
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import trimesh
from jaxtyping import Float
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor

from shapespace import ShapeSpace, interpolation
from shapespace.data.registration import PartTemplate
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.result import Fit, save_fits
from shapespace.geometry import articulation, similarity
from shapespace.geometry.articulation import PartPoses, RelativePoses
from shapespace.geometry.frame import Frame
from shapespace.interpolation import InterpolationPath
from shapespace.models.articulated import ArticulatedConfig, ArticulatedSDF, build_articulated
from shapespace.models.base import SDFModel
from shapespace.models.code import Code
from shapespace.models.igr import IGRConfig
from shapespace.models.registry import build_model
from shapespace.nn.hypernetwork import rotation_to_6d
from shapespace.nn.mlp import Linearization
from shapespace.tools import interpolate
from shapespace.tools._inputs import ScanInput


class Ball(SDFModel):
    """Ball with radius exp(first number of the code); the second number has no effect."""

    def encode(self, batch: object) -> Code:
        raise NotImplementedError

    def loss_terms(self, batch: object, code: Code) -> dict[str, Tensor]:
        raise NotImplementedError

    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        return x.norm(dim=-1) - code.flat[:, :1].exp()

    def linearize(self, x: Float[Tensor, "b q 3"], code: Code) -> Linearization:
        value = self.field(x, code)
        jacobian = torch.zeros(*value.shape, 2)
        jacobian[..., 0] = -code.flat[:, :1].exp()
        jacobian[..., 1] = 1e-4  # so that the matrix has an inverse
        return Linearization(value, x / x.norm(dim=-1, keepdim=True), jacobian)


def codes(seed: int = 0, count: int = 3) -> Code:
    generator = torch.Generator().manual_seed(seed)
    return Code((torch.randn(count, 4, generator=generator), torch.randn(count, 2, 3, 3, generator=generator)))


def test_the_surface_moves_at_an_even_speed() -> None:
    """From radius 0.2 to 0.8: even in the radius is not straight in the code, which holds its logarithm."""
    a, b = Code((torch.tensor([[math.log(0.2), 0.0]]),)), Code((torch.tensor([[math.log(0.8), 0.0]]),))
    model = Ball()
    radii = interpolation.interpolate(model, a, b, 5, "geodesic").flat[:, 0].exp()
    torch.testing.assert_close(radii, torch.tensor([0.2, 0.35, 0.5, 0.65, 0.8]), atol=0.01, rtol=0)
    straight = interpolation.interpolate(model, a, b, 5, "linear").flat[:, 0].exp()
    assert straight[2] == pytest.approx(0.4, abs=1e-6)


@pytest.mark.parametrize("path", ["linear", "slerp", "geodesic"])
def test_the_ends_are_the_ends(path: InterpolationPath) -> None:
    a, b = Code((torch.tensor([[-1.5, 0.1]]),)), Code((torch.tensor([[-0.3, -0.1]]),))
    for steps in (2, 4):
        way = interpolation.interpolate(Ball(), a, b, steps, path).flat
        assert len(way) == steps
        torch.testing.assert_close(way[[0, -1]], torch.cat([a.flat, b.flat]))


@pytest.mark.parametrize("path", ["linear", "slerp"])
def test_a_path_has_its_ends_and_is_symmetric(path: InterpolationPath) -> None:
    a, b = codes(1, 1), codes(2, 1)
    way = interpolation.interpolate(Ball(), a, b, 5, path)
    torch.testing.assert_close(way.flat[0], a.flat[0])
    torch.testing.assert_close(way.flat[-1], b.flat[0])
    torch.testing.assert_close(interpolation.interpolate(Ball(), b, a, 5, path).flat.flip(0), way.flat)


def test_linear_is_the_weighted_mean() -> None:
    a, b = codes(1, 1), codes(2, 1)
    torch.testing.assert_close(interpolation.linear(a, b, 5).flat[1], 0.75 * a.flat[0] + 0.25 * b.flat[0])


def test_spherical_turns_evenly_and_keeps_length() -> None:
    a, b = Code((torch.tensor([[2.0, 0.0]]),)), Code((torch.tensor([[0.0, 2.0]]),))
    way = interpolation.slerp(a, b, 4).flat
    torch.testing.assert_close(way.norm(dim=1), torch.full((4,), 2.0))
    torch.testing.assert_close(torch.atan2(way[:, 1], way[:, 0]), torch.linspace(0, torch.pi / 2, 4))


def test_spherical_between_equal_and_opposite_codes_is_straight() -> None:
    a = codes(1, 1)
    torch.testing.assert_close(interpolation.slerp(a, a, 3).flat[1], a.flat[0])
    opposite = a.unflatten(-a.flat)
    assert interpolation.slerp(a, opposite, 3).flat.isfinite().all()


@pytest.mark.parametrize("path", ["linear", "slerp"])
def test_impossible_paths_are_refused(path: InterpolationPath) -> None:
    with pytest.raises(ValueError, match="--steps 1: a path has at least its two ends"):
        interpolation.interpolate(Ball(), codes(1, 1), codes(2, 1), 1, path)


# ---------------------------------------------------------------------------------------------------------------- parts

PARTS = 4
CONFIG = ArticulatedConfig(
    code_dim=6, num_parts=PARTS, local_dim=3, width=8, depth=2, hyper_width=8, encoder_points=32, encoder_width=8,
    encoder_features=8,
)  # fmt: skip
HEIGHTS = np.linspace(-0.8, 0.8, 17)
"""Of the rings of a tube; each part has four of them, the last one five."""


def tube() -> PartTemplate:
    """A tube along y as the template: a chain of parts."""
    angles = np.arange(8) * np.pi / 4
    rings = [[0.1 * np.cos(angle), y, 0.1 * np.sin(angle)] for y in HEIGHTS for angle in angles]
    first = np.arange(8 * (len(HEIGHTS) - 1)).reshape(-1, 8)
    corners = first, np.roll(first, -1, axis=1), first + 8, np.roll(first, -1, axis=1) + 8
    a, b, c, d = (corner.ravel() for corner in corners)
    labels = np.arange(len(HEIGHTS)).repeat(8).clip(max=4 * PARTS - 1) // 4
    faces = np.concatenate([np.stack([a, c, b], axis=1), np.stack([b, c, d], axis=1)])
    vertices = torch.tensor(rings, dtype=torch.float32)
    return PartTemplate(vertices, torch.from_numpy(faces), torch.from_numpy(labels), torch.ones(len(rings)))


def turned(count: int, seed: int, angle: float = 1.0) -> Tensor:
    """Random rotations by at most `angle` (radians)."""
    vectors = np.random.default_rng(seed).uniform(-1, 1, size=(count, 3)) * angle / 3**0.5
    return torch.from_numpy(Rotation.from_rotvec(vectors).as_matrix()).float()


def bodies(count: int, seed: int) -> PartPoses:
    """Bodies of the tube whose parts turn about their joints; people whose lengths differ."""
    template = tube()
    mesh = template.vertices, template.faces, template.labels, template.center
    tree = articulation.part_tree(*(tensor.numpy() for tensor in mesh))
    rotation = turned(count * PARTS, seed).view(count, PARTS, 3, 3)
    joint = tree.joint_in_parent * torch.linspace(0.8, 1.2, count)[:, None, None]
    return articulation.compose(tree, RelativePoses(rotation, joint))


def articulated(scans: int = 30, *, template: bool = True) -> ArticulatedSDF:
    """Articulated model whose codes are those of random bodies; its fields are untrained."""
    torch.manual_seed(0)
    model = build_articulated(CONFIG, num_scans=scans).eval()
    model.template.reach.fill_(1.5)
    model.decoder.radius.fill_(0.3)
    if template:
        model.template.set(tube())
    poses = bodies(30, seed=3)
    codes = model.hypernetwork.initialize(torch.cat([poses.center, rotation_to_6d(poses.rotation)], dim=-1))
    model.summarize(codes)
    if scans:
        with torch.no_grad():
            assert model.codes_parameter is not None
            model.codes_parameter.copy_(codes[:scans])
    return model


@pytest.fixture(scope="module")
def model() -> ArticulatedSDF:
    return articulated()


def fitted(seed: int, person: int = 2) -> Code:
    """Code of a fit of the parts; a person (0 to 4) has one length of each limb."""
    poses = bodies(5, seed)
    generator = torch.Generator().manual_seed(seed)
    local_code = torch.randn(1, PARTS, 3, generator=generator)
    return Code(
        (0.1 * torch.randn(1, 6, generator=generator), poses.center[[person]], poses.rotation[[person]], local_code)
    )


def poses_of(code: Code) -> PartPoses:
    return PartPoses(code.parts[1], code.parts[2])


def turns(rotation: Float[Tensor, "s 3 3"]) -> Float[np.ndarray, "m"]:
    """Angles between rotations that follow each other (radians)."""
    return Rotation.from_matrix((rotation[:-1].mT @ rotation[1:]).detach().double().numpy()).magnitude()


def test_the_tree_of_a_chain_is_a_chain_and_is_made_once(model: ArticulatedSDF) -> None:
    tree = model.part_tree()
    pairs = {frozenset(pair) for pair in enumerate(tree.parents.tolist()) if pair[1] >= 0}
    assert pairs == {frozenset((part, part + 1)) for part in range(PARTS - 1)}
    assert model.part_tree() is tree
    for part, parent in enumerate(tree.parents.tolist()):
        if parent >= 0:
            torch.testing.assert_close(
                tree.joint_in_parent[part] + model.template.center[parent],
                tree.joint_in_child[part] + model.template.center[part],
                atol=0.06, rtol=0,
            )  # fmt: skip
    assert not [name for name in model.state_dict() if "tree" in name]
    without_codes = articulated(scans=0).part_tree()
    torch.testing.assert_close(without_codes.parents, tree.parents)
    with pytest.raises(ValueError, match=r"part_tree: the model has no template with parts\. Train it"):
        articulated(template=False).part_tree()


@pytest.mark.parametrize("path", [path for path in get_args(InterpolationPath) if path != "geodesic"])
@pytest.mark.parametrize("ends", [(fitted(1), fitted(2)), (fitted(1).global_code, fitted(2))])
def test_every_path_of_parts_has_exactly_its_ends(
    model: ArticulatedSDF, path: InterpolationPath, ends: tuple[Code, Code]
) -> None:
    a, b = ends
    way = interpolation.interpolate(model, a, b, 4, path)
    assert [part.shape for part in way.parts] == [(4, *shape) for shape in model.code_shapes]
    for row, end in ((0, a), (3, b)):
        for part, expected in zip(way[row].parts, model.expand(end).parts, strict=True):
            assert torch.equal(part, expected)
    rotation = way.parts[2]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-5, rtol=0)
    assert not any(part.requires_grad for part in way.parts)


@pytest.mark.parametrize("path", ["linear", "slerp", "parts"])
def test_a_path_of_parts_is_symmetric(model: ArticulatedSDF, path: InterpolationPath) -> None:
    a, b = fitted(1), fitted(2)
    back = interpolation.interpolate(model, b, a, 5, path).flat.flip(0)
    torch.testing.assert_close(interpolation.interpolate(model, a, b, 5, path).flat, back, atol=1e-5, rtol=1e-5)


def test_joints_turn_evenly_and_limbs_keep_their_lengths(model: ArticulatedSDF) -> None:
    """Against a plain twin: SciPy's slerp of each part relative to its parent; the lengths of one person stay."""
    a, b, tree = fitted(1), fitted(2), model.part_tree()
    way = interpolation.interpolate(model, a, b, 5, "parts")
    relative = articulation.relative(tree, poses_of(way))
    for part, parent in enumerate(tree.parents.tolist()):
        ends = [
            end.parts[2][0, part] if parent < 0 else end.parts[2][0, parent].mT @ end.parts[2][0, part]
            for end in (a, b)
        ]
        twin = Slerp([0, 1], Rotation.from_matrix(torch.stack(ends).numpy()))(np.linspace(0, 1, 5)).as_matrix()
        np.testing.assert_allclose(relative.rotation[:, part].numpy(), twin, atol=1e-5)
    torch.testing.assert_close(way.parts[0], interpolation.linear(a.global_code, b.global_code, 5).flat)
    share = torch.linspace(0, 1, 5)[:, None, None]
    torch.testing.assert_close(way.parts[3], torch.lerp(a.parts[3], b.parts[3], share))
    joints = relative.joint
    torch.testing.assert_close(joints, torch.lerp(joints[:1], joints[-1:], share), atol=1e-5, rtol=0)
    straight = torch.lerp(a.parts[1], b.parts[1], share)

    def shrinkage(center: Tensor) -> float:
        lengths = (center[:, 1:] - center[:, :-1]).norm(dim=-1)
        return float((lengths[1:-1] / torch.minimum(lengths[0], lengths[-1])).min())

    assert shrinkage(way.parts[1]) > 0.97
    assert shrinkage(straight) < 0.9


def yaw(degrees: float) -> Tensor:
    return torch.from_numpy(Rotation.from_rotvec([0, np.deg2rad(degrees), 0]).as_matrix()).float()


@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_the_root_goes_straight_in_the_world_whatever_the_frames_do(model: ArticulatedSDF, scale: float) -> None:
    """The root turns by 25 degrees; the frame by -170, so that the shorter ways of both would add up to -335."""
    a, b, tree = fitted(1), fitted(2), model.part_tree()
    first = Frame(torch.tensor([0.3, 1.0, -0.2]), torch.tensor(scale))
    last = Frame(torch.tensor([-0.4, 1.1, 0.6]), torch.tensor(scale), yaw(170))
    frames = [similarity.interpolate_frames(first, last, float(share)) for share in torch.linspace(0, 1, 7)]
    moved = yaw(170) @ yaw(25) @ a.parts[2][0, tree.root] @ b.parts[2][0, tree.root].mT
    b = Code((b.parts[0], b.parts[1] @ moved.mT, moved @ b.parts[2], b.parts[3]))

    def in_world(code: Code) -> PartPoses:
        centers, rotations = [], []
        for frame, center, rotation in zip(frames, code.parts[1], code.parts[2], strict=True):
            centers.append(frame.to_world(center))
            rotations.append(rotation if frame.rotation is None else frame.rotation.mT @ rotation)
        return PartPoses(torch.stack(centers), torch.stack(rotations))

    found = in_world(interpolation.interpolate(model, a, b, 7, "parts", frames=(first, last)))
    world_tree = dataclasses.replace(
        tree, joint_in_parent=scale * tree.joint_in_parent, joint_in_child=scale * tree.joint_in_child
    )
    ends = [PartPoses(found.center[row], found.rotation[row]) for row in (0, -1)]
    expected = articulation.interpolate_poses(world_tree, *ends, torch.linspace(0, 1, 7))
    torch.testing.assert_close(found.center, expected.center, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.rotation, expected.rotation, atol=1e-5, rtol=0)
    apart = in_world(interpolation.interpolate(model, a, b, 7, "parts"))
    total = [np.rad2deg(turns(poses.rotation[:, tree.root]).sum()) for poses in (found, apart)]
    assert total == pytest.approx([25, 335], abs=0.1)


@pytest.mark.parametrize("path", ["linear", "slerp"])
def test_paths_of_the_code_carry_what_the_parts_moved(model: ArticulatedSDF, path: InterpolationPath) -> None:
    a, b = fitted(1), fitted(2)
    vectors = getattr(interpolation, path)(a.global_code, b.global_code, 5).vector
    plain = interpolation.interpolate(model, a.global_code, b.global_code, 5, path)
    assert len(plain.parts) == 1
    torch.testing.assert_close(plain.vector, vectors)
    expanded = interpolation.interpolate(model, model.expand(a.global_code), b.global_code, 5, path)
    for part, expected in zip(expanded.parts, model.expand(Code((vectors,))).parts, strict=True):
        torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-5)  # nothing was moved
    moved = model.replace_vector(a, b.parts[0])  # both ends have the motions of a
    way = interpolation.interpolate(model, a, moved, 5, path)
    carried = model.replace_vector(Code(tuple(part.expand(5, *part.shape[1:]) for part in a.parts)), way.parts[0])
    for part, expected in zip(way.parts, carried.parts, strict=True):
        torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-5)
    halfway = interpolation.interpolate(model, a, b, 3, path)
    both = [model.states(model.replace_vector(end, halfway.parts[0][1:2])) for end in (a, b)]
    torch.testing.assert_close(halfway.parts[1][1], (both[0].center + both[1].center)[0] / 2, atol=1e-5, rtol=0)
    angles = [
        turns(torch.cat([end.rotation[:, part], halfway.parts[2][1:2, part]]))[0]
        for end in both
        for part in range(PARTS)
    ]
    np.testing.assert_allclose(angles[:PARTS], angles[PARTS:], atol=1e-3)  # as far from one end as from the other


def test_auto_is_parts_where_there_are_parts(model: ArticulatedSDF) -> None:
    assert interpolation.choose_path(model, "auto") == "parts"
    assert interpolation.choose_path(Ball(), "auto") == "linear"
    assert interpolation.choose_path(articulated(template=False), "auto") == "linear"
    assert interpolation.choose_path(model, "slerp") == "slerp"
    a, b = fitted(1), fitted(2)
    torch.testing.assert_close(
        interpolation.interpolate(model, a, b, 4, "auto").flat, interpolation.interpolate(model, a, b, 4, "parts").flat
    )
    for other in (Ball(), articulated(template=False)):
        with pytest.raises(
            ValueError, match=r"--path parts: the model has no template with parts\. Use --path linear\."
        ):
            interpolation.interpolate(other, a, b, 4, "parts")
    with pytest.raises(ValueError, match=r"--path geodesic: the model has no single field, .* Use --path parts\."):
        interpolation.interpolate(model, a, b, 4, "geodesic")
    with pytest.raises(ValueError, match="path 'bones' is not one of auto, linear, slerp, geodesic, parts"):
        interpolation.choose_path(model, "bones")
    with pytest.raises(ValueError, match="--steps 1: a path has at least its two ends"):
        interpolation.interpolate(model, a, b, 1, "parts")


def test_a_pose_on_another_person(model: ArticulatedSDF) -> None:
    pose, person, tree = fitted(1, person=0), fitted(2, person=4), model.part_tree()
    result = interpolation.transfer_pose(model, pose, person)
    assert [part.shape for part in result.parts] == [(1, *shape) for shape in model.code_shapes]
    found, taken, sizes = (articulation.relative(tree, poses_of(code)) for code in (result, pose, person))
    torch.testing.assert_close(found.rotation, taken.rotation, atol=1e-5, rtol=0)
    is_root = tree.parents < 0
    torch.testing.assert_close(found.joint[:, is_root], taken.joint[:, is_root], atol=1e-5, rtol=0)
    assert tree.sizes is not None
    components = tree.sizes.flatten(1)
    joints = [relative.joint.masked_fill(is_root[:, None], 0).flatten() for relative in (found, taken, sizes)]
    torch.testing.assert_close(components @ joints[0], components @ joints[2], atol=1e-5, rtol=0)  # sizes of the second
    rest = torch.eye(len(joints[0])) - components.T @ components
    torch.testing.assert_close(rest @ joints[0], rest @ joints[1], atol=1e-5, rtol=0)  # what is left, of the first
    lengths = [(code.parts[1][0, 1:] - code.parts[1][0, :-1]).norm(dim=-1).mean() for code in (result, pose, person)]
    assert abs(lengths[0] - lengths[2]) < 0.2 * abs(lengths[1] - lengths[2])
    assert torch.equal(result.parts[0], pose.parts[0])
    assert torch.equal(result.parts[3], person.parts[3])
    same = interpolation.transfer_pose(model, pose, pose)
    torch.testing.assert_close(same.flat, pose.flat, atol=1e-5, rtol=0)
    by_vector = interpolation.transfer_pose(model, pose.global_code, person)
    expected = interpolation.transfer_pose(model, model.expand(pose.global_code), person)
    torch.testing.assert_close(by_vector.flat, expected.flat)
    with pytest.raises(
        ValueError, match=r"pose transfer: the model has no template with parts\. Use a space of the art"
    ):
        interpolation.transfer_pose(Ball(), pose, person)


def test_a_space_puts_the_person_where_the_pose_is(model: ArticulatedSDF) -> None:
    space = ShapeSpace(model, CONFIG, scale=1.25, metadata={})
    heading = turned(1, seed=5)[0]
    pose = Fit(fitted(1), Frame(torch.tensor([1.0, 2.0, 3.0]), torch.tensor(1.3), heading), np.empty(0), name="a")
    person = Fit(fitted(2), Frame(torch.zeros(3), torch.tensor(1.2)), np.empty(0), name="b")
    result = space.transfer_pose(pose, person)
    assert torch.equal(result.frame.center, pose.frame.center)
    assert result.frame.rotation is not None
    assert torch.equal(result.frame.rotation, heading)
    assert float(result.frame.scale) == pytest.approx(1.2)  # sizes are those of the person
    assert result.name == "b in the pose of a"
    code = space.transfer_pose(pose.code, person.code)
    assert torch.equal(code.code.flat, result.code.flat)
    assert float(code.frame.scale) == 1.25
    way = space.interpolate_codes(pose, person, 3)
    assert [len(fit.code.parts) for fit in way] == [4, 4, 4]
    expected = interpolation.interpolate(model, pose.code, person.code, 3, "parts", frames=(pose.frame, person.frame))
    torch.testing.assert_close(Code.concatenate([fit.code for fit in way]).flat, expected.flat)
    assert len(space.interpolate(pose, person, 2, resolution=24)) == 2


def test_the_command_records_the_path_and_puts_the_person_into_the_pose(tmp_path: Path) -> None:
    model = articulated()
    space = ShapeSpace(model, CONFIG, scale=1.25, metadata={"weights": {}})
    space.save(tmp_path / "run" / "model.safetensors")
    place = Frame(torch.zeros(3), torch.tensor(1.25))
    fits = [Fit(fitted(seed), place, np.empty(0), name=name) for seed, name in ((1, "a"), (2, "b"))]
    save_fits(tmp_path / "codes.safetensors", fits, model)
    names = [f"{tmp_path / 'codes.safetensors'}:{fit.name}" for fit in fits]
    options = {"source": ScanInput(), "lm": LMOptions(), "steps": 3, "resolution": 24, "format": "ply"}
    meshes = []
    for transfer_pose, end in ((False, "b"), (True, "a in the pose of b")):
        out = tmp_path / f"{transfer_pose}"
        run = tmp_path / "run"
        interpolate.main(run, names[0], names[1], out=out, transfer_pose=transfer_pose, **options)  # type: ignore[arg-type]
        record = json.loads((out / "path.json").read_text())
        assert (record["path"], record["a"], record["b"]) == ("parts", "a", end)
        meshes.append([trimesh.load_mesh(out / f"00{index}.ply") for index in (0, 2)])
    assert np.array_equal(meshes[0][0].vertices, meshes[1][0].vertices)
    expected = space.mesh(space.transfer_pose(fits[1], fits[0]), resolution=24)
    np.testing.assert_allclose(meshes[1][1].vertices, expected.vertices, atol=1e-5)
    without_parts = IGRConfig(code_dim=4, width=24, depth=3, skip=1, encoder_points=128)
    other = ShapeSpace(build_model(without_parts), without_parts, scale=1.25, metadata={"weights": {}})
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"--transfer-pose: family igr has no parts\. Use a space of the articulated"):
        interpolate.main(tmp_path / "other.safetensors", *names, transfer_pose=True, **options)  # type: ignore[arg-type]
