"""The articulated family: targets, draws of the loss, codes of two kinds, and templates of untrusted files."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from trimesh import Trimesh
from trimesh.creation import icosphere

from shapespace.data.loader import Batch, collate
from shapespace.data.registration import make_template, part_poses
from shapespace.data.store import ScanSource
from shapespace.fitting import fit
from shapespace.fitting.refine import RefineOptions, refine
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.io.checkpoints import save_tensors
from shapespace.models import articulated, registry
from shapespace.models.articulated import ArticulatedConfig, ArticulatedSDF, PartDensity, build_articulated, rest_of
from shapespace.models.code import Code
from shapespace.nn.losses import weighted_sum
from shapespace.nn.part_mlp import PartLinearization, PartStates
from shapespace.space import ShapeSpace
from shapespace.synthetic.body import Body

CONFIG = ArticulatedConfig(
    code_dim=8,
    num_parts=12,
    local_dim=3,
    width=8,
    depth=2,
    hyper_width=16,
    loss_points=64,
    encoder_points=64,
    encoder_width=16,
    encoder_features=16,
)
WEIGHTS = {
    "surface": 1.0,
    "normal": 0.3,
    "eikonal": 0.1,
    "tangent_plane": 1.0,
    "unsigned_distance": 1.0,
    "code_reg": 0.0,
    "part_center": 10.0,
    "part_rotation": 0.1,
}
SCALE = 1.25  # meters per model unit


@dataclass
class People:
    """Registered scans in memory, meters; the origin of a frame is a meter above the floor."""

    meshes: dict[str, Trimesh]
    path: Path = Path("people")
    scale: float = SCALE
    metadata: dict[str, Any] = field(default_factory=dict)

    def sample(self, name: str, count: int, rng: np.random.Generator) -> Scan:
        mesh = self.meshes[name]
        scan = Scan(name, np.asarray(mesh.vertices, np.float32), faces=np.asarray(mesh.faces, np.int32))
        return scan.sample(count, rng).to_model(self.frame(name))

    def frame(self, name: str) -> Frame:
        return Frame(torch.tensor([0.0, 1.0, 0.0]), torch.tensor(self.scale))

    def has_ground_truth(self, name: str) -> bool:
        return True

    def ground_truth(self, name: str) -> Trimesh:
        return self.meshes[name]


@pytest.fixture
def people(make_body: Callable[..., Trimesh]) -> People:
    return People({f"p{i}": make_body(0.9 + i / 30, raised) for i, raised in enumerate((-0.5, -0.2, 0.0, 0.3, 0.5))})


@pytest.fixture
def model(people: People) -> ArticulatedSDF:
    """The family before its first step."""
    torch.manual_seed(0)
    made = build_articulated(CONFIG, num_scans=len(people.meshes))
    made.initialize(people, list(people.meshes))
    return made.eval()


def code_of(model: ArticulatedSDF) -> Code:
    table = model.codes_parameter
    assert table is not None
    return Code((table.detach().clone(),))


def batch_of(people: ScanSource, names: list[str], points: int = 256, near_std: float = 0.05) -> Batch:
    scans = [people.sample(name, points, np.random.default_rng(index)) for index, name in enumerate(names)]
    return collate(scans, scan_index=list(range(len(names))), near_std=near_std)


# ------------------------------------------------------------------------------------------------------ initial values


@torch.no_grad()
def test_the_first_codes_give_the_poses_of_the_registrations(model: ArticulatedSDF, people: People) -> None:
    """Five bodies have four components, fewer than the code has numbers: nothing is lost."""
    states, template = model.states(code_of(model)), model.template.part_template()
    for row, mesh in enumerate(people.meshes.values()):
        vertices = people.frame("").to_model(torch.from_numpy(mesh.vertices).float())
        center, rotation = part_poses(template, vertices)
        torch.testing.assert_close(model.target_center[row], center)
        torch.testing.assert_close(model.target_rotation[row], rotation)
        torch.testing.assert_close(states.center[row], center, atol=1e-4, rtol=0)
        torch.testing.assert_close(states.rotation[row], rotation, atol=1e-3, rtol=0)
        domain = model.domain(code_of(model)[row])
        assert domain.distance(vertices).max() < -0.1 * model.decoder.radius.min()
    torch.testing.assert_close(model.decoder.radius, template.radius)


def test_the_synthetic_body_is_divided_at_rest_with_densities_and_other_bodies_as_they_are(people: People) -> None:
    body = Body.load()
    density = PartDensity(hands=7.0, feet=3.0, head=2.0)
    vertices = torch.from_numpy(body.mean[: -len(body.joints)]).float()
    posed, faces = vertices + torch.rand(3), torch.from_numpy(body.faces).long()
    rest, weight = rest_of(posed, faces, density, SCALE)
    torch.testing.assert_close(rest, (vertices - vertices.mean(dim=0)) / SCALE, atol=1e-6, rtol=0)
    assert isinstance(weight, np.ndarray)
    regions = body.parts()
    assert (weight[regions["hands"]] == 7).all()
    assert (weight[regions["feet"]] == 3).all()
    assert set(weight[regions["rest"]]) == {1.0, 2.0}
    top = (rest[:, 1] > rest[:, 1].max() - 0.1).numpy()
    assert (weight[top] == 2).all()

    mesh = people.meshes["p0"]
    vertices, faces = torch.from_numpy(mesh.vertices).float(), torch.from_numpy(mesh.faces).long()
    same, even = rest_of(vertices, faces, density, SCALE)
    assert torch.equal(same, vertices)
    assert even == 1.0


def test_a_hand_has_more_parts_with_a_higher_density() -> None:
    body, count = Body.load(), []
    vertices, faces = torch.from_numpy(body.mean[: -len(body.joints)]).float(), torch.from_numpy(body.faces).long()
    for hands in (1.0, 10.0):
        rest, weight = rest_of(vertices, faces, PartDensity(hands, 1.0, 1.0), SCALE)
        labels = make_template(rest, faces, 40, weight).labels
        count.append(len(labels[torch.from_numpy(body.parts()["hands"])].unique()))
    assert count[1] > 2 * count[0]


# --------------------------------------------------------------------------------------------------------------- loss


def test_the_loss_draws_more_points_of_small_parts(model: ArticulatedSDF, people: People) -> None:
    """Points of a part that has n points have chances in proportion to n^-3/4, so the part has n^1/4 of the draw."""
    batch = batch_of(people, ["p0"], points=20_000)
    states = model.states(code_of(model))[:1]
    model.loss_points = 1600
    drawn = model._balance(batch, states)
    assert drawn.surface.shape == (1, 1600, 3)
    assert drawn.uniform_points.shape == (1, 200, 3)
    index = (drawn.surface[0, :, None] == batch.surface[0]).all(dim=-1).float().argmax(dim=1)
    assert (index.diff() > 0).all()  # in order, and none twice
    for name in ("surface", "near_points", "normals"):
        assert torch.equal(getattr(drawn, name)[0], getattr(batch, name)[0, index])
    assert torch.equal(drawn.points, batch.points)
    before, after = (
        model.nearest_parts(points, states.center)[0, :, 0].bincount(minlength=12).double()
        for points in (batch.surface, drawn.surface)
    )
    expected = before**0.25 / (before**0.25).sum()
    torch.testing.assert_close(after / after.sum(), expected, atol=0.025, rtol=0)
    assert (after / after.sum() - expected).norm() < 0.5 * (before / before.sum() - expected).norm()
    again = model._balance(batch, states)
    assert torch.equal(again.surface, drawn.surface)
    few = batch_of(people, ["p0"], points=1600)
    assert model._balance(few, states) is few


def test_uniform_points_are_spread_over_the_cubes_of_the_parts(model: ArticulatedSDF) -> None:
    states = model.states(code_of(model))[1:2]
    uniform = torch.rand(1, 12_000, 3, generator=torch.Generator().manual_seed(0)) * 3.6 - 1.8
    moved = model._into_domain(uniform, states)[0]
    reach = model.template.reach * model.decoder.radius
    part = ((uniform[0, :, 0] / uniform.abs().amax() * 0.5 + 0.5) * 12).long().clamp(max=11)
    local = (moved - states.center[0, part]) / reach[part, None]
    assert local.abs().max() <= 1 + 1e-4
    torch.testing.assert_close(part.bincount() / 12_000, torch.full((12,), 1 / 12), atol=0.01, rtol=0)
    for axis in range(3):
        share = torch.histc(local[:, axis], bins=4, min=-1, max=1) / 12_000
        torch.testing.assert_close(share, torch.full((4,), 0.25), atol=0.02, rtol=0)
    assert torch.corrcoef(local.T).fill_diagonal_(0).abs().max() < 0.03


def test_points_of_known_distance_remain_where_they_are(model: ArticulatedSDF, people: People) -> None:
    batch, code = batch_of(people, ["p0"]), code_of(model)[0]
    known = torch.rand(1, 40, 3) - 0.5
    batch = replace(batch, uniform_points=known, target_sdf=model.field(known, code).detach())
    assert model.loss_terms(batch, code)["signed_distance"] < 1e-6


def test_in_training_the_field_has_no_gradient_in_the_poses(model: ArticulatedSDF, people: People) -> None:
    """In a fit it has, and the terms of the targets are zero."""
    names = list(people.meshes)
    batch, field_weights = batch_of(people, names), {**WEIGHTS, "part_center": 0.0, "part_rotation": 0.0}
    for training in (True, False):
        model.train(training)
        model.zero_grad()
        terms = model.loss_terms(batch, model.encode(batch))
        assert terms.keys() == WEIGHTS.keys()
        weighted_sum(terms, field_weights).backward()
        gradient = model.hypernetwork.correction.grad
        assert (gradient is None or not gradient.any()) == training
        assert model.hypernetwork.local.out.weight.grad.abs().sum() > 0
        if not training:
            assert float(terms["part_center"]) == float(terms["part_rotation"]) == 0
    with torch.no_grad():
        model.hypernetwork.correction.normal_()
        terms = model.train().loss_terms(batch, model.encode(batch))
        states = model.states(model.encode(batch))
        away = (states.center - model.target_center).norm(dim=-1).mean()
        torch.testing.assert_close(terms["part_center"], away)
        turned = (states.rotation - model.target_rotation).square().sum(dim=(-1, -2)).sqrt().mean()
        torch.testing.assert_close(terms["part_rotation"], turned)


def test_a_fit_by_adam_and_a_refinement_take_the_weights_of_the_training(model: ArticulatedSDF, people: People) -> None:
    scan = people.sample("p1", 3000, np.random.default_rng(0))
    adam = fit.fit_adam(model, [scan], WEIGHTS, fit.AdamOptions(points=256, steps=3, half_extent=1.0, init="encoder"))
    assert adam.residual.isfinite().all()
    with torch.no_grad():
        code = model.expand(code_of(model)[1])
        before = model.field(torch.from_numpy(scan.points)[None], code).abs().mean()
    refined = refine(model, scan, code, WEIGHTS, RefineOptions(steps=20, eval_every=10))
    with torch.no_grad():
        assert refined.field(torch.from_numpy(scan.points)[None], code).abs().mean() < 0.7 * before
    domain = refined.domain(code)
    assert domain is not None
    (mesh,) = refined.extract_surface(code, resolution=32)
    assert domain.distance(torch.from_numpy(np.asarray(mesh.vertices)).float()).max() < 2 / 32  # a cell


# --------------------------------------------------------------------------------------------------------------- codes


@torch.no_grad()
def test_a_code_with_its_parts_has_the_same_shape(model: ArticulatedSDF) -> None:
    code = code_of(model)
    expanded = model.expand(code)
    assert [tuple(part.shape[1:]) for part in expanded.parts] == list(model.code_shapes)
    assert model.expand(expanded) is expanded
    x = torch.rand(5, 30, 3) - 0.5
    assert torch.equal(model.field(x, code), model.field(x, expanded))
    for a, b in zip(model.linearize(x, code), model.linearize(x, expanded), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(model.domain(code[2]), model.domain(expanded[2]), strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_the_field_moves_with_its_parts(model: ArticulatedSDF) -> None:
    _, *parts = model.expand(code_of(model)[0]).parts
    states, x = PartStates(*parts), torch.rand(1, 200, 3) - 0.5
    turn = torch.from_numpy(Rotation.random(random_state=1).as_matrix()).float()
    shift = torch.tensor([0.2, -0.1, 0.3])
    moved = PartStates(states.center @ turn.T + shift, turn @ states.rotation, states.local_code)
    z = code_of(model).parts[0][:1]
    torch.testing.assert_close(
        model.field(x @ turn.T + shift, Code((z, *moved))), model.field(x, Code((z, *states))), atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_another_global_code_keeps_the_motions_of_the_parts(model: ArticulatedSDF) -> None:
    model.hypernetwork.local.out.weight.normal_()
    code, vector = code_of(model), code_of(model).parts[0].roll(1, dims=0)
    states = model.states(code)
    turn = torch.from_numpy(Rotation.random(12, random_state=0).as_matrix()).float()
    own = PartStates(states.center + 0.1, turn @ states.rotation, states.local_code + 0.3)
    moved = model.replace_vector(Code((code.parts[0], *own)), vector)
    after = model.states(Code((vector,)))
    assert torch.equal(moved.parts[0], vector)
    torch.testing.assert_close(moved.parts[1], after.center + 0.1)
    torch.testing.assert_close(moved.parts[2], turn @ after.rotation, atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.parts[3], after.local_code + 0.3)
    same = model.replace_vector(Code((code.parts[0], *own)), code.parts[0])
    for part, expected in zip(same.parts[1:], own, strict=True):
        torch.testing.assert_close(part, expected, atol=1e-5, rtol=0)
    assert [part.shape for part in model.replace_vector(code, vector).parts] == [vector.shape]


def test_chained_jacobians_equal_the_sum_over_the_blended_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    part = torch.stack([torch.randperm(12, generator=generator)[:4] for _ in range(14)]).view(2, 7, 4)
    jacobian = torch.randn(2, 7, 4, 9, generator=generator)
    by_code = torch.randn(2, 12, 9, 8, generator=generator)
    local = PartLinearization(torch.zeros(2, 7), torch.zeros(2, 7, 3), part, jacobian)
    chosen = torch.stack([by_code[body][part[body]] for body in range(2)])  # (b, q, n, p, z)
    expected = (jacobian[..., None, :] @ chosen)[..., 0, :].sum(dim=2)
    torch.testing.assert_close(articulated.chain(local, by_code), expected)


def test_the_summary_has_the_spread_of_the_local_codes(model: ArticulatedSDF) -> None:
    codes = code_of(model).parts[0]
    model.summarize(codes)
    with torch.no_grad():
        local = model.hypernetwork(codes).local_code
    torch.testing.assert_close(model.local_std, (local - local.mean(dim=0)).square().mean(dim=0).sqrt())
    torch.testing.assert_close(model.prior.mean, codes.mean(dim=0))
    assert torch.linalg.eigvalsh(model.prior.covariance).min() > 0


# ------------------------------------------------------------------------------------------------------ untrusted files


def write(path: Path, model: ArticulatedSDF, tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    """A model file with some tensors and settings replaced."""
    header = {"kind": "model", "family": "articulated", "config": {**asdict(CONFIG), **(config or {})}, "scale": SCALE}
    save_tensors(path, {**model.state_dict(), **tensors}, {**header, "metadata": {"weights": WEIGHTS}})
    return path


def test_a_template_comes_back_from_a_file(model: ArticulatedSDF, tmp_path: Path) -> None:
    loaded = ShapeSpace.load(write(tmp_path / "m.safetensors", model, {})).model
    assert isinstance(loaded, ArticulatedSDF)
    assert loaded.fingerprint() == model.fingerprint()
    assert len(loaded.template.vertices) == 972
    for one, other in zip(loaded.border_points(), model.border_points(), strict=True):
        assert torch.equal(one, other)
    empty = build_articulated(CONFIG)
    assert len(ShapeSpace.load(write(tmp_path / "e.safetensors", empty, {})).model.template.vertices) == 0


HOSTILE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "vertices": (lambda t: t[:900], r"template\.labels has shape \(972,\), expected \(900,\)"),
    "vertices ": (lambda t: t[:, :2], r"template\.vertices has shape \(972, 2\), expected \(972, 3\)"),
    "vertices  ": (lambda t: t.flatten(), r"template\.labels has shape \(972,\), expected \(0,\)"),
    "vertices   ": (lambda t: torch.full_like(t, torch.nan), r"template\.vertices has values that are not finite"),
    "faces": (lambda t: t + 1, r"template\.faces has values 1 to 972, not 0 to 971"),
    "faces ": (lambda t: -t, r"template\.faces has values -971 to 0, not 0 to 971"),
    "faces  ": (lambda t: t.float(), r"template\.faces has the type torch\.float32, expected torch\.int32"),
    "faces   ": (lambda t: t.long() + 2**31, r"template\.faces has values -2147483648 to -2147482677"),
    "labels": (lambda t: t + 1, r"template\.labels has values 1 to 12, not 0 to 11"),
    "labels ": (lambda t: t.to(torch.complex64), r"template\.labels has the type torch\.complex64"),
    "labels  ": (lambda t: t[:, None], r"template\.labels has shape \(0,\), expected \(972,\)"),
    "center": (lambda t: t[:11], r"template\.center has shape \(11, 3\), expected \(12, 3\)"),
    "center ": (lambda t: t[:0], r"template\.center has shape \(0, 3\), expected \(12, 3\)"),
    "reach": (lambda t: t - t, r"template\.reach is 0, not above 0"),
    "reach ": (lambda t: t * torch.inf, r"template\.reach has values that are not finite"),
    "vertex_parts": (lambda t: t - 1, r"template\.vertex_parts has values -1 to 10, not 0 to 11"),
    "vertex_parts ": (lambda t: t[:, :2], r"template\.vertex_weights has shape \(972, 4\), expected \(972, 2\)"),
    "vertex_places": (lambda t: t[:, :, :2], r"template\.vertex_places has shape \(972, 4, 2\)"),
    "vertex_local": (lambda t: t.new_zeros(972, 3, 5), r"template\.vertex_local has shape \(972, 3, 5\), .* 3, 3\)"),
    "joint_parts": (lambda t: t.new_zeros(7, 4), r"template\.joint_weights has shape"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_templates_that_do_not_fit_the_model_are_refused(name: str, model: ArticulatedSDF, tmp_path: Path) -> None:
    change, sentence = HOSTILE[name]
    key = f"template.{name.strip()}"
    path = write(tmp_path / "m.safetensors", model, {key: change(model.state_dict()[key])})
    with pytest.raises(
        ValueError, match=rf"m\.safetensors: cannot restore the model \(.*({sentence}).*\)\. Copy the file again"
    ):
        ShapeSpace.load(path)


def test_joints_of_another_template_and_parts_without_size_are_refused(model: ArticulatedSDF, tmp_path: Path) -> None:
    joints = {
        "template.joint_parts": torch.zeros(7, 1, dtype=torch.int32),
        "template.joint_weights": torch.ones(7, 1),
        "template.joint_places": torch.zeros(7, 1, 3),
    }
    cases: list[tuple[dict[str, Tensor], str]] = [
        (joints, r"template\.joint_parts has 7 rows, which are not the joints of the synthetic body"),
        ({"decoder.radius": torch.zeros(12)}, r"decoder\.radius has the minimum 0, not above 0"),
        ({"decoder.radius": torch.full((12,), torch.nan)}, r"decoder\.radius has the minimum nan, not above 0"),
    ]
    for tensors, sentence in cases:
        with pytest.raises(ValueError, match=rf"cannot restore the model \({sentence}\)\. Copy the file again"):
            ShapeSpace.load(write(tmp_path / "m.safetensors", model, tensors))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 0}, r"--model\.width 0: must be at least 1"),
        ({"num_parts": 0}, r"--model\.num-parts 0: must be at least 1"),
        ({"depth": 0}, r"--model\.depth 0: must be at least 1"),
        ({"hyper_width": 0}, r"--model\.hyper-width 0: must be at least 1"),
        ({"loss_points": 0}, r"--model\.loss-points 0: must be at least 1"),
        ({"beta": -1.0}, r"--model\.beta -1: must be above 0"),
        ({"beta": float("nan")}, r"--model\.beta nan: must be above 0"),
        ({"hand_density": float("inf")}, r"--model\.hand-density inf: must be above 0"),
        ({"num_parts": 2**20}, "weights of the file"),
        ({"local_dim": 2**20}, "weights of the file"),
        ({"depth": 2**20}, "weights of the file"),
        ({"hyper_width": 2**20}, "weights of the file"),
        ({"num_parts": 11}, r"template\.center has shape \(12, 3\), expected \(11, 3\)"),
    ],
)
def test_settings_out_of_range_are_refused(
    changes: dict[str, Any], sentence: str, model: ArticulatedSDF, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"cannot restore the model \(.*{sentence}.*\)"):
        ShapeSpace.load(write(tmp_path / "m.safetensors", model, {}, changes))
    if "--model" in sentence:
        with pytest.raises(ValueError, match=sentence):
            registry.build_model(replace(CONFIG, **changes))


@torch.no_grad()
def test_parts_without_borders_have_no_points_on_them() -> None:
    for count in (0, 1):
        made = build_articulated(replace(CONFIG, num_parts=1))
        if count:
            made = build_articulated(replace(CONFIG, num_parts=1), num_scans=1)
            made.initialize(People({"ball": icosphere(subdivisions=2, radius=0.5)}), ["ball"])
            assert not code_of(made).parts[0].any()  # a single scan has no components
            assert made.states(code_of(made)).center.allclose(made.target_center)
        points, parts = made.border_points()
        assert (points.shape, parts.shape) == ((0, 2, 3), (0, 2))
