"""Bodies with parts in the viewer: the posed template, colors by part, and turned joints."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from shapespace import ShapeSpace
from shapespace.fitting.result import Fit
from shapespace.geometry import articulation
from shapespace.geometry.articulation import PartPoses
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.models import igr
from shapespace.models.articulated import ArticulatedSDF
from shapespace.viewer.body_parts import MAIN_JOINTS, BodyParts, turn_others
from shapespace.viewer.fitted_scans import FittedScan, ScanCollection
from shapespace.viewer.request import (
    COARSE,
    MEAN,
    POSED,
    REGISTERED,
    InterpolatedShape,
    JointTurn,
    PrincipalShape,
    ScanShape,
    ViewRequest,
)
from shapespace.viewer.scene import SceneBuilder
from shapespace.viewer.slices import SlicePlane

SUBJECT = PrincipalShape((0.5, -0.5))
TURNS = JointTurn("part 0", (30.0, -20.0, 50.0)), JointTurn("part 3", (-10.0, 40.0, 25.0))


def model_of(space: ShapeSpace) -> ArticulatedSDF:
    assert isinstance(space.model, ArticulatedSDF)
    return space.model


def somewhere(space: ShapeSpace) -> Fit:
    """A body at the place and with the heading of a scan."""
    heading = torch.from_numpy(Rotation.from_rotvec([0.0, 0.7, 0.0]).as_matrix()).float()
    shape = space.from_principal_components([1.0, -1.0])
    return replace(shape, frame=Frame(torch.tensor([1.0, 2.0, -3.0]), torch.tensor(1.3), heading))


def poses_of(model: ArticulatedSDF, shape: Fit) -> PartPoses:
    states = model.states(shape.code)
    return PartPoses(states.center[0].detach(), states.rotation[0].detach())


@pytest.fixture(scope="module")
def parts(chain_space: ShapeSpace) -> BodyParts:
    return BodyParts(model_of(chain_space))


@pytest.fixture(scope="module")
def scanned(chain_space: ShapeSpace) -> ScanCollection:
    """A scan with its ground truth, whose fit is known."""
    shape = replace(somewhere(chain_space), residuals=np.zeros(5), covariance=1e-4 * np.eye(6))
    mesh = chain_space.mesh(shape, resolution=32, surface="field")
    scan = Scan("a/b/0", mesh.sample(2000, seed=0).astype(np.float32))
    collection = ScanCollection(chain_space, [scan], lambda _: mesh)
    collection._fitted[scan.name] = FittedScan(scan, shape, mesh)
    return collection


# --------------------------------------------------------------------------------------------------------- mesh, colors


def test_the_template_is_where_its_parts_are(chain_space: ShapeSpace, parts: BodyParts) -> None:
    """Against a plain twin: each vertex by the matrices of its parts, then into the world."""
    shape, model = somewhere(chain_space), model_of(chain_space)
    mesh, skin, poses = parts.template_mesh(shape), model.template.skin, poses_of(model, shape)
    for vertex in (0, 37, 100):
        at = torch.zeros(3)
        for part, weight, place in zip(skin.parts[vertex], skin.weights[vertex], skin.places[vertex], strict=True):
            at += weight * poses.center[int(part)] + poses.rotation[int(part)] @ place
        np.testing.assert_allclose(mesh.vertices[vertex], shape.frame.to_world(at[None])[0].numpy(), atol=1e-5)
    np.testing.assert_array_equal(mesh.faces, model.template.faces.numpy())


def test_colors_are_those_of_the_parts(chain_space: ShapeSpace, parts: BodyParts) -> None:
    shape, model = somewhere(chain_space), model_of(chain_space)
    assert len(np.unique(parts.colors, axis=0)) == 4
    template = parts.color(parts.template_mesh(shape), shape, is_template=True)
    labels = model.template.labels.numpy()
    np.testing.assert_array_equal(template.visual.vertex_colors[:, :3], parts.colors[labels])
    mesh = chain_space.mesh(shape, resolution=32, surface="field")
    painted = parts.color(mesh, shape, is_template=False)
    x = shape.frame.to_model(torch.from_numpy(np.array(mesh.vertices)).float())
    center = poses_of(model, shape).center
    nearest = (torch.linalg.norm(x[:, None] - center, dim=2) / model.decoder.radius).argmin(dim=1).numpy()
    assert len(np.unique(nearest)) > 1
    np.testing.assert_array_equal(painted.visual.vertex_colors[:, :3], parts.colors[nearest])
    np.testing.assert_array_equal(painted.vertices, mesh.vertices)


# -------------------------------------------------------------------------------------------------------- turned joints


def test_a_joint_turns_with_all_that_hangs_on_it(chain_space: ShapeSpace, parts: BodyParts) -> None:
    """Against a plain twin: a rotation of the world about the joint, whose axes are those of the parent."""
    shape, model = somewhere(chain_space), model_of(chain_space)
    tree, before = model.part_tree(), poses_of(model, shape)
    part = next(part for part in range(4) if int(tree.parents[part]) == tree.root)
    turned = parts.turn(shape, [JointTurn(f"part {part}", (30.0, -20.0, 50.0))])
    x, y, z = (
        Rotation.from_rotvec(np.deg2rad(angle) * axis)
        for angle, axis in zip((30.0, -20.0, 50.0), np.eye(3), strict=True)
    )
    parent = Rotation.from_matrix(before.rotation[tree.root].numpy())
    world = torch.from_numpy((parent * z * y * x * parent.inv()).as_matrix()).float()
    joint = before.rotation[part] @ tree.joint_in_child[part] + before.center[part]
    after = poses_of(model, turned)
    moved = tree.descendants(part)
    assert 0 < int(moved.sum()) < 4
    for other in range(4):
        center, rotation = before.center[other], before.rotation[other]
        if moved[other]:
            center, rotation = joint + world @ (center - joint), world @ rotation
        torch.testing.assert_close(after.center[other], center, atol=1e-5, rtol=0)
        torch.testing.assert_close(after.rotation[other], rotation, atol=1e-5, rtol=0)
    assert turned.covariance is None
    assert turned.frame is shape.frame
    assert torch.equal(turned.code.parts[3], model.states(shape.code).local_code)


def test_the_order_of_the_turns_has_no_effect(chain_space: ShapeSpace, parts: BodyParts) -> None:
    shape = somewhere(chain_space)
    one, other = parts.turn(shape, TURNS), parts.turn(shape, TURNS[::-1])
    torch.testing.assert_close(one.code.flat, other.code.flat, atol=1e-5, rtol=0)
    assert float((one.code.parts[1] - poses_of(model_of(chain_space), shape).center).abs().max()) > 0.05


def test_an_unknown_joint_is_refused(chain_space: ShapeSpace, parts: BodyParts) -> None:
    with pytest.raises(ValueError, match=r"there is no joint 'part 12'\. Did you mean part \d"):
        parts.turn(somewhere(chain_space), [JointTurn("part 12", (1.0, 0.0, 0.0))])


def test_what_rests_is_the_same_turn_seen_from_the_other_side(chain_space: ShapeSpace) -> None:
    model = model_of(chain_space)
    tree, before = model.part_tree(), poses_of(model, somewhere(chain_space))
    part = next(part for part in range(4) if int(tree.parents[part]) == tree.root)
    turn = torch.from_numpy(Rotation.from_rotvec([0.4, -0.3, 0.6]).as_matrix()).float()
    after = turn_others(tree, before, part, turn)
    rests = tree.descendants(part)
    assert torch.equal(after.center[rests], before.center[rests])
    assert torch.equal(after.rotation[rests], before.rotation[rests])
    own = before.rotation[part]
    expected = own @ turn @ own.mT @ before.rotation[tree.root]
    torch.testing.assert_close(after.rotation[tree.root], expected, atol=1e-5, rtol=0)
    ours, theirs = (articulation.relative(tree, poses) for poses in (before, after))
    not_it = (torch.arange(4) != part) & (tree.parents >= 0)
    torch.testing.assert_close(theirs.rotation[not_it], ours.rotation[not_it], atol=1e-5, rtol=0)
    not_root = tree.parents >= 0
    torch.testing.assert_close(theirs.joint[not_root], ours.joint[not_root], atol=1e-5, rtol=0)


WITH_IT = {  # joints of the body that move with a joint of the page, and joints that do not
    "neck": (["eye.L", "eye.R"], ["upperarm01.L", "upperarm01.R", "foot.L"]),
    "spine": (["eye.L", "wrist.L", "wrist.R"], ["foot.L", "foot.R", "lowerleg01.L"]),
    "left shoulder": (["wrist.L", "finger3-2.L"], ["eye.L", "wrist.R", "foot.L"]),
    "left elbow": (["finger3-2.L"], ["eye.L", "upperarm01.R", "foot.L"]),
    "left wrist": (["finger3-2.L"], ["lowerarm01.L", "eye.L", "foot.L"]),
    "left hip": (["lowerleg01.L", "toe2-2.L"], ["eye.L", "wrist.L", "lowerleg01.R"]),
    "left knee": (["toe2-2.L"], ["upperleg01.L", "foot.R", "eye.L"]),
    "left ankle": (["toe2-2.L"], ["lowerleg01.L", "foot.R", "eye.L"]),
}
MIRROR = str.maketrans("LR", "RL")
WITH_IT |= {
    name.replace("left", "right"): ([x.translate(MIRROR) for x in moved], [x.translate(MIRROR) for x in still])
    for name, (moved, still) in WITH_IT.items()
    if name.startswith("left")
}


def test_the_joints_of_the_page_are_those_of_the_body(person_space: ShapeSpace) -> None:
    """A turn by 40 degrees moves the right ones, and the joint itself stays where it is."""
    model = model_of(person_space)
    body = BodyParts(model)
    assert list(body.joints) == list(MAIN_JOINTS)
    assert WITH_IT.keys() == MAIN_JOINTS.keys()
    names = model.template.joint_names
    shape = person_space.from_principal_components([0.0])
    with torch.no_grad():
        before = model.template.joints(model.states(shape.code))[0]
    for name, (moved, still) in WITH_IT.items():
        turned = body.turn(shape, [JointTurn(name, (40.0, 0.0, 0.0))])
        after = model.template.joints(model.states(turned.code))[0]
        away = dict(zip(names, (after - before).norm(dim=1).tolist(), strict=True))
        assert min(away[joint] for joint in moved) > 0.02, name
        assert max(away[joint] for joint in still) < 0.02, name
        assert away[MAIN_JOINTS[name][0]] < 0.05, name


# --------------------------------------------------------------------------------------------------------------- scenes


def test_the_template_comes_first_and_the_surface_after_it(chain_space: ShapeSpace, parts: BodyParts) -> None:
    builder = SceneBuilder(ScanCollection(chain_space))
    shape = chain_space.from_principal_components(SUBJECT.coefficients)
    template, fine = builder.build(ViewRequest(SUBJECT, detail=48))
    assert (template.detail, fine.detail) == (POSED, 48)
    np.testing.assert_array_equal(template.mesh.vertices, parts.template_mesh(shape).vertices)
    np.testing.assert_array_equal(fine.mesh.vertices, chain_space.mesh(shape, resolution=48, surface="field").vertices)
    (again,) = builder.build(ViewRequest(SUBJECT, "part", detail=48))
    assert again.detail == 48
    np.testing.assert_array_equal(
        again.mesh.visual.vertex_colors, parts.color(fine.mesh, shape, is_template=False).visual.vertex_colors
    )
    (playing,) = builder.build(ViewRequest(InterpolatedShape(MEAN, MEAN, 0.5), "part", detail=COARSE))
    assert playing.detail == POSED
    np.testing.assert_array_equal(
        playing.mesh.visual.vertex_colors[:, :3], parts.colors[model_of(chain_space).template.labels.numpy()]
    )
    assert not playing.summary


def test_the_registered_template_is_a_fine_mesh(chain_space: ShapeSpace, parts: BodyParts) -> None:
    shape = chain_space.from_principal_components(SUBJECT.coefficients)
    posed, registered = SceneBuilder(ScanCollection(chain_space)).build(ViewRequest(SUBJECT, "part", detail=REGISTERED))
    assert (posed.detail, registered.detail) == (POSED, REGISTERED)
    np.testing.assert_array_equal(registered.mesh.vertices, chain_space.register(shape).vertices)
    np.testing.assert_array_equal(
        registered.mesh.visual.vertex_colors[:, :3], parts.colors[model_of(chain_space).template.labels.numpy()]
    )


def test_a_turned_body_is_shown_without_errors_at_the_same_place(scanned: ScanCollection, parts: BodyParts) -> None:
    builder, fit = SceneBuilder(scanned), scanned.fitted_scan("a/b/0").fit
    *_, plain = builder.build(ViewRequest(ScanShape("a/b/0"), detail=40))
    assert any("Metric surface_distance" in line for line in plain.summary)
    template, fine = builder.build(ViewRequest(ScanShape("a/b/0"), "uncertainty", detail=40, turns=TURNS))
    turned = parts.turn(fit, TURNS)
    np.testing.assert_array_equal(template.mesh.vertices, parts.template_mesh(turned).vertices)
    np.testing.assert_array_equal(
        fine.mesh.vertices, scanned.space.mesh(turned, resolution=40, surface="field").vertices
    )
    for scene in (template, fine):
        assert scene.summary == (
            "No error to color: joints are turned. Reset the pose.",
            "Turned joints: part 0, part 3.",
        )
        assert scene.mesh.visual.kind is None
        assert scene.scan is plain.scan
        np.testing.assert_array_equal(scene.point_colors, plain.point_colors)
    *_, back = builder.build(ViewRequest(ScanShape("a/b/0"), detail=40))
    np.testing.assert_array_equal(back.mesh.vertices, plain.mesh.vertices)


def test_a_body_stays_on_its_place_while_it_turns(chain_space: ShapeSpace) -> None:
    builder = SceneBuilder(ScanCollection(chain_space))
    (still,) = builder.build(ViewRequest(SUBJECT, detail=COARSE))
    for angle in (10.0, 60.0):
        (turned,) = builder.build(ViewRequest(SUBJECT, detail=COARSE, turns=(JointTurn("part 0", (0.0, 0.0, angle)),)))
        np.testing.assert_array_equal(turned.floor, still.floor)
    (other,) = builder.build(ViewRequest(PrincipalShape((2.0,)), detail=COARSE, turns=TURNS))
    (alone,) = builder.build(ViewRequest(PrincipalShape((2.0,)), detail=COARSE))
    np.testing.assert_array_equal(other.floor, alone.floor)
    assert np.abs(alone.floor - still.floor).max() > 0


def test_a_slice_ends_where_the_field_ends(chain_space: ShapeSpace) -> None:
    model = model_of(chain_space)
    (scene,) = SceneBuilder(ScanCollection(chain_space)).build(
        ViewRequest(SUBJECT, slice_plane=SlicePlane("z", 0.0), detail=COARSE)
    )
    cut = scene.slice
    assert cut is not None
    shape = chain_space.from_principal_components(SUBJECT.coefficients)
    with torch.no_grad():
        domain = model.domain(shape.code)
    steps = cut.side * (np.linspace(0, 1, len(cut.image)) - 0.5)
    at = cut.center + steps[None, :, None] * cut.right + steps[::-1, None, None] * cut.up
    x = shape.frame.to_model(torch.from_numpy(at.reshape(-1, 3)).float())
    outside = (domain.distance(x) >= 0).numpy().reshape(len(steps), len(steps))
    assert 0.1 < outside.mean() < 0.9
    assert not cut.image[outside, 3].any()
    assert cut.image[~outside, 3].any()
    ends = shape.frame.to_model(torch.from_numpy(cut.lines.reshape(-1, 3)).float())
    assert len(ends) > 100
    assert float(domain.distance(ends).max()) < 0.01
    (aside,) = SceneBuilder(ScanCollection(chain_space)).build(
        ViewRequest(SUBJECT, slice_plane=SlicePlane("z", 1.0), detail=COARSE)
    )
    assert aside.slice is not None
    assert not aside.slice.image[..., 3].any()
    assert not len(aside.slice.lines)


def test_a_body_without_parts_has_neither_colors_nor_joints() -> None:
    sizes = igr.IGRConfig(code_dim=4, width=64, depth=3, skip=1, init_radius=0.5, encoder_points=128)
    torch.manual_seed(0)
    space = ShapeSpace(igr.build_igr(sizes).eval(), sizes, scale=2.0, metadata={"weights": {}})
    builder = SceneBuilder(ScanCollection(space))
    assert builder.parts is None
    (scene,) = builder.build(ViewRequest(SUBJECT, "part", detail=16))
    assert scene.summary == ("No parts to color: the bodies of this family have none.",)
    with pytest.raises(
        ValueError, match=r"joint 'part 0': the bodies have no parts\. Use a space of the articulated f"
    ):
        next(builder.build(ViewRequest(SUBJECT, detail=16, turns=TURNS)))


@pytest.mark.slow
def test_a_slider_of_a_body_with_parts_is_answered_in_time(person_space: ShapeSpace) -> None:
    """Posed templates of the synthetic body with one thread of torch as the command has it; prints what they took."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        builder = SceneBuilder(ScanCollection(person_space))
        for color in ("none", "part"):
            for turns in ((), (JointTurn("left elbow", (-60.0, 0.0, 0.0)),)):
                times = []
                for value in np.random.default_rng(0).uniform(-3, 3, 30):
                    start = time.process_time()
                    subject = PrincipalShape((float(value),))
                    next(builder.build(ViewRequest(subject, color, turns=turns)))  # type: ignore[arg-type]
                    times.append(1e3 * (time.process_time() - start))
                median, p95 = np.percentile(times[3:], [50, 95])
                print(f"color {color}, {len(turns)} turned: median {median:.1f} ms of one core, 95 % {p95:.1f} ms")
                assert median < 50
    finally:
        torch.set_num_threads(threads)
