"""The posed template: known skins are recovered, posing moves with the parts, and a file gives all sizes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from trimesh.creation import icosphere

from shapespace.data.registration import PartTemplate, make_template
from shapespace.models import template
from shapespace.models.template import PosedTemplate, Ridge, Skin, SkinEquations
from shapespace.nn.part_mlp import PartStates
from shapespace.synthetic.body import Body

PARTS, LOCAL = 6, 3


def rotations(count: int, seed: int) -> Tensor:
    return torch.from_numpy(Rotation.random(count, rng=seed).as_matrix())


def states(bodies: int, seed: int = 0, parts: int = PARTS, local: int = LOCAL) -> PartStates:
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(bodies, parts, 3, generator=generator, dtype=torch.float64)
    code = torch.randn(bodies, parts, local, generator=generator, dtype=torch.float64)
    return PartStates(center, rotations(bodies * parts, seed).view(bodies, parts, 3, 3), code)


def single(body: PartStates) -> PartStates:
    return PartStates(*(tensor.float() for tensor in body))


def a_skin(points: int = 40, local: int = LOCAL, seed: int = 0) -> Skin:
    """A random skin whose points have four parts each."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.stack([torch.randperm(PARTS, generator=generator)[:4] for _ in range(points)])
    weights = torch.rand(points, 4, generator=generator, dtype=torch.float64)
    places = 0.1 * torch.randn(points, 4, 3, generator=generator, dtype=torch.float64)
    maps = 0.01 * torch.randn(points, 3, local, generator=generator, dtype=torch.float64)
    return Skin(parts, weights / weights.sum(dim=1, keepdim=True), places, maps)


def no_idea(of: Skin) -> Skin:
    """A guess that has the parts right, and nothing else."""
    weights = torch.zeros_like(of.weights)
    weights[:, 0] = 1
    return Skin(of.parts, weights, torch.zeros_like(of.places), of.local[..., :0])


def ball(parts: int = PARTS) -> PartTemplate:
    mesh = icosphere(subdivisions=2, radius=0.5)
    return make_template(torch.from_numpy(mesh.vertices.copy()).float(), torch.from_numpy(mesh.faces.copy()), parts)


def at_rest(mesh: PartTemplate, bodies: int = 1) -> PartStates:
    eye = torch.eye(3).expand(bodies, mesh.num_parts, 3, 3)
    return PartStates(mesh.center.expand(bodies, -1, -1), eye, torch.ones(bodies, mesh.num_parts, LOCAL))


def test_a_known_skin_is_recovered() -> None:
    truth, bodies = a_skin(), states(60)
    equations = SkinEquations(no_idea(truth), LOCAL)
    for first in range(0, 60, 7):
        equations.add(bodies[first : first + 7], truth.pose(bodies[first : first + 7]))
    learned = equations.solve(Ridge(1e-9, 1e-9, 1e-9))
    for one, other in zip(learned, truth, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=0)


def test_one_pass_equals_least_squares_of_each_point() -> None:
    truth, bodies, ridge = a_skin(8), states(30), Ridge(0.3, 0.2, 0.1)
    noise = torch.randn(30, 8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points, guess = truth.pose(bodies) + noise, a_skin(8, seed=2)._replace(parts=truth.parts)
    guess = guess._replace(local=torch.zeros_like(guess.local))
    equations = SkinEquations(guess, LOCAL)
    for row in range(30):
        equations.add(bodies[row : row + 1], points[row : row + 1])
    learned = equations.solve(ridge)

    def skin_of(numbers: Tensor) -> Skin:
        places, later, local = numbers.split([12, 3, 3 * LOCAL], dim=1)
        weights = torch.cat([1 - later.sum(dim=1, keepdim=True), later], dim=1)
        return Skin(truth.parts, weights, places.view(-1, 4, 3), local.view(-1, 3, LOCAL))

    size = 15 + 3 * LOCAL
    start = torch.cat([guess.places.flatten(1), guess.weights[:, 1:], guess.local.flatten(1)], dim=1)
    base = skin_of(start).pose(bodies)
    moved = [skin_of(start + torch.eye(size, dtype=start.dtype)[k]).pose(bodies) - base for k in range(size)]
    matrix = torch.stack(moved, dim=-1).transpose(0, 1).flatten(1, 2)  # (v, rows, size)
    weight = torch.tensor([ridge.places] * 12 + [ridge.weights] * 3 + [ridge.local] * 3 * LOCAL, dtype=start.dtype)
    for point in range(8):
        rows = np.concatenate([matrix[point].numpy(), weight.sqrt().diag().numpy()])
        right = np.concatenate([(points - base)[:, point].flatten().numpy(), np.zeros(size)])
        step = torch.from_numpy(np.linalg.lstsq(rows, right)[0])
        one = skin_of((start[point] + step)[None].expand(8, -1))
        for a, b in zip(learned[1:], one[1:], strict=True):
            torch.testing.assert_close(a[point], b[point], atol=1e-9, rtol=1e-9)


def test_moving_all_parts_moves_the_points() -> None:
    skin, bodies = a_skin(), states(4)
    turn, shift = rotations(1, 9)[0], torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    moved = PartStates(bodies.center @ turn.mT + shift, turn @ bodies.rotation, bodies.local_code)
    torch.testing.assert_close(skin.pose(moved), skin.pose(bodies) @ turn.mT + shift)


def test_the_batch_equals_its_bodies_and_has_a_gradient() -> None:
    skin, bodies = a_skin(5), states(3)
    one = [skin.pose(bodies[row : row + 1]) for row in range(3)]
    torch.testing.assert_close(skin.pose(bodies), torch.cat(one))
    tensors = tuple(tensor.requires_grad_() for tensor in bodies)
    assert torch.autograd.gradcheck(lambda *parts: skin.pose(PartStates(*parts)), tensors)


def test_parts_at_rest_give_the_template_at_rest() -> None:
    mesh, posed = ball(), PosedTemplate()
    posed.set(mesh)
    torch.testing.assert_close(posed(at_rest(mesh, 2)), mesh.vertices.expand(2, -1, -1), atol=1e-6, rtol=0)
    assert torch.equal(posed.vertex_parts[:, 0].long(), mesh.labels)
    torch.testing.assert_close(posed.vertex_weights.sum(dim=1), torch.ones(len(mesh.vertices)))
    part = posed.part_template()
    for name in ("vertices", "faces", "labels", "area"):
        torch.testing.assert_close(getattr(part, name), getattr(mesh, name))


def test_two_parts_at_a_border_share_its_vertices() -> None:
    mesh, posed = ball(2), PosedTemplate()
    posed.set(mesh)
    rest = at_rest(mesh)
    shifted = rest._replace(center=rest.center + torch.tensor([[0.1, 0, 0], [0, 0, 0]]))
    moved = posed(shifted)[0] - mesh.vertices
    share = moved[:, 0] / 0.1
    torch.testing.assert_close(share, posed.vertex_weights[torch.arange(len(moved)), posed.vertex_parts.argmin(dim=1)])
    own = share[mesh.labels == 0], share[mesh.labels == 1]
    assert own[0].max() > 0.9 > 0.6 > own[0].min() > 0.4
    assert own[1].min() < 0.1 < 0.4 < own[1].max() < 0.6


def test_the_template_is_fitted_in_one_pass_over_more_bodies_than_a_chunk() -> None:
    mesh, posed, bodies = ball(), PosedTemplate(), states(3 * template.CHUNK + 1)
    posed.set(mesh)
    truth = posed.skin._replace(local=0.01 * torch.randn(len(mesh.vertices), 3, LOCAL))
    points, guess = truth.pose(single(bodies)), posed(single(bodies))
    passes = (iter([single(bodies[row : row + 1]) for row in range(len(points))]), iter(points))
    posed.fit(*passes, Ridge(1e-3, 1e-3, 1e-3))
    new = single(states(20, seed=5))
    assert (posed(new) - truth.pose(new)).abs().max() < 1e-3 < 0.02 < (guess - points).abs().max()
    assert posed.vertex_local.dtype == torch.float16


def test_what_the_bodies_do_not_determine_stays_as_guessed() -> None:
    mesh, posed = ball(), PosedTemplate()
    posed.set(mesh)
    before = posed.skin
    posed.fit([at_rest(mesh)], [mesh.vertices])
    torch.testing.assert_close(posed.skin.places, before.places, atol=1e-6, rtol=0)
    torch.testing.assert_close(posed.skin.weights, before.weights, atol=1e-5, rtol=0)
    assert posed.vertex_local.abs().max() < 1e-6


def test_a_file_gives_the_sizes(tmp_path: Path) -> None:
    mesh, posed = ball(), PosedTemplate()
    posed.set(mesh)
    bodies = single(states(9))
    posed.fit([bodies[row : row + 1] for row in range(9)], list(torch.randn(9, len(mesh.vertices), 3)))
    torch.save(posed.state_dict(), tmp_path / "template.pt")
    loaded = PosedTemplate()
    loaded.load_state_dict(torch.load(tmp_path / "template.pt"))
    assert torch.equal(loaded(bodies), posed(bodies))
    assert torch.equal(loaded.faces, posed.faces)


def test_impossible_fits_are_refused() -> None:
    mesh, posed = ball(), PosedTemplate()
    posed.set(mesh)
    with pytest.raises(ValueError, match=r"template: no registrations\. Fit the template to the registrations of"):
        posed.fit([], [])
    with pytest.raises(
        ValueError, match=r"numbers of training scans and of their registrations differ\. Give one registration"
    ):
        posed.fit([at_rest(mesh)], [mesh.vertices, mesh.vertices])


def test_another_template_has_no_joints() -> None:
    mesh, posed = ball(), PosedTemplate()
    posed.set(mesh)
    assert posed.joints(at_rest(mesh, 2)).shape == (2, 0, 3)
    assert posed.joint_names == ()


@pytest.fixture(scope="module")
def human() -> PartTemplate:
    body, scale = Body.load(), 1.25
    rest = body.mean[: -len(body.joints)]
    vertices = torch.from_numpy((rest - rest.mean(axis=0)) / scale).float()
    return make_template(vertices, torch.from_numpy(body.faces).long(), 24)


def test_joints_are_at_their_heads(human: PartTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "JOINT_BODIES", 24)
    body, posed = Body.load(), PosedTemplate()
    posed.set(human)
    assert posed.joint_names == body.joints
    heads = torch.from_numpy(body.mean[-len(body.joints) :] - body.mean[: -len(body.joints)].mean(axis=0)).float()
    torch.testing.assert_close(1.25 * posed.joints(at_rest(human))[0], heads, atol=1e-5, rtol=0)

    unseen, truth = template.drawn_joints(human, 6, seed=1)
    guess = (posed.joints(unseen) - truth).norm(dim=-1)
    posed.fit([at_rest(human)], [human.vertices])
    error = (posed.joints(unseen) - truth).norm(dim=-1)
    assert error.mean() < 0.8 * guess.mean()
    assert 1.25 * error.median() < 0.005
    assert posed.joint_names == body.joints


def test_drawn_heads_are_those_of_the_forward_kinematics(human: PartTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    body, turns = Body.load(), []
    forward = Body.forward

    def record(self: Body, heads: np.ndarray, rotations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        turns.append(forward(self, heads, rotations))
        return turns[-1]

    monkeypatch.setattr(Body, "forward", record)
    _, heads = template.drawn_joints(human, 2, seed=3)
    root = body.joints.index("root")
    for own, (_, positions) in zip(heads.double().numpy(), turns, strict=True):
        np.testing.assert_allclose(1.25 * (own - own[root]), positions - positions[root], atol=2e-6)
