"""Second level of a fit: derivatives against autograd, known motions of parts, unseen parts, files, sequences."""

import copy
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from trimesh import Trimesh

from shapespace import ShapeSpace
from shapespace.data.loader import StepDataset
from shapespace.data.registration import part_poses
from shapespace.fitting import articulated, fit, fitter
from shapespace.fitting.articulated import (
    POSE_SIZE,
    BlockSolver,
    PartProblem,
    draw_by_part,
    fit_parts,
)
from shapespace.fitting.checks import check_scan
from shapespace.fitting.joints import JointPrior
from shapespace.fitting.levenberg_marquardt import LMOptions, PartOptions, levenberg_marquardt
from shapespace.fitting.limb_search import (
    APART,
    FOUND,
    NORMAL_LENGTH,
    NORMAL_WEIGHT,
    SCAN_SPACING,
    TEMPLATE_SPACING,
    TemplateDistance,
    _codes_of_poses,
    _exchange_limbs,
    search_codes,
)
from shapespace.fitting.posterior import SCAN_STD
from shapespace.fitting.result import Fit, load_fits, save_fits
from shapespace.fitting.sequence import SequenceOptions
from shapespace.fitting.starts import SPHERE, outside_share, sphere_distance, start_codes
from shapespace.geometry import primitives
from shapespace.geometry.articulation import PartPoses
from shapespace.geometry.findings import ScanWarning
from shapespace.geometry.frame import Frame
from shapespace.geometry.isosurface import isosurface
from shapespace.geometry.proximity import closest_point, vertex_normals
from shapespace.geometry.scan import Scan
from shapespace.geometry.similarity import cross_matrix, left_jacobian
from shapespace.io.checkpoints import load_tensors, save_tensors
from shapespace.models.articulated import ArticulatedConfig, ArticulatedSDF, build_articulated
from shapespace.models.code import Code
from shapespace.nn.part_mlp import PartStates
from shapespace.training import encoder
from shapespace.training.encoder import EncoderBudget, carry, train_encoder
from shapespace.training.objective import Objective
from shapespace.training.optimizers import cosine, make_optimizers

CONFIG = ArticulatedConfig(
    code_dim=6,
    num_parts=10,
    local_dim=3,
    width=16,
    depth=3,
    hyper_width=16,
    encoder_points=96,
    encoder_width=32,
    encoder_features=32,
)
WEIGHTS = {
    "surface": 3.0,
    "normal": 0.3,
    "eikonal": 0.1,
    "tangent_plane": 3.0,
    "unsigned_distance": 1.0,
    "code_reg": 0.0,
    "part_center": 10.0,
    "part_rotation": 0.1,
}
LM = LMOptions(num_points=512, free_space_points=128, parts=PartOptions(num_points=512))
SHOULDER, ELBOW = 0.2, 0.4  # distances from the axis of the trunk (model units)


def _capsules(x: Tensor) -> Tensor:
    ends = torch.tensor([[0, -0.45, 0], [0, 0.3, 0], [-0.6, 0.2, 0], [0.6, 0.2, 0]])
    trunk, arms = primitives.capsule(x, ends[0], ends[1], 0.17), primitives.capsule(x, ends[2], ends[3], 0.1)
    return primitives.union(trunk, arms)


REST = isosurface(_capsules, resolution=32)


def figure(left: float, right: float, size: float = 1.0, elbow: float = 0.0) -> Trimesh:
    """A trunk and two arms: one connected mesh, always of the same topology.

    The arms are raised at the shoulders, and the left one is bent forward at the elbow (radians).
    """
    rest = np.asarray(REST.vertices) * (1, size, 1)
    vertices = rest.copy()
    for axis, hinge, angle in ((1, ELBOW, -elbow), (2, SHOULDER, left), (2, -SHOULDER, -right)):
        side = np.sign(hinge)
        weight = 1 / (1 + np.exp((abs(hinge) - side * rest[:, 0]) / 0.03))
        center = np.array([hinge, 0.2 * size, 0])
        turns = Rotation.from_rotvec(angle * weight[:, None] * np.eye(3)[axis])
        vertices = np.where(weight[:, None] > 1e-3, turns.apply(vertices - center) + center, vertices)
    return Trimesh(vertices, REST.faces, process=False)


@dataclass
class Figures:
    """Registered scans in memory; a model unit is a meter."""

    meshes: dict[str, Trimesh]
    path: Path = Path("figures")
    scale: float = 1.0
    metadata: dict[str, Any] = field(default_factory=dict)

    def sample(self, name: str, count: int, rng: np.random.Generator) -> Scan:
        return scan_of(self.meshes[name]).sample(count, rng)

    def frame(self, name: str) -> Frame:
        return Frame(torch.zeros(3), torch.tensor(1.0))

    def has_ground_truth(self, name: str) -> bool:
        return True

    def ground_truth(self, name: str) -> Trimesh:
        return self.meshes[name]


def scan_of(mesh: Trimesh, name: str = "figure") -> Scan:
    return Scan(name, np.asarray(mesh.vertices, np.float32), faces=np.asarray(mesh.faces, np.int32))


def sampled(mesh: Trimesh, count: int = 2000, seed: int = 0, name: str = "figure") -> Scan:
    """Points with normals, and sensors outside."""
    scan = scan_of(mesh, name).sample(count, np.random.default_rng(seed))
    assert scan.normals is not None
    return replace(scan, sensors=scan.points + 0.5 * scan.normals)


@pytest.fixture(scope="module")
def model() -> ArticulatedSDF:
    """A space of figures, trained for seconds."""
    rng = np.random.default_rng(0)
    store = Figures({f"f{i}": figure(*rng.uniform(-0.8, 0.8, 2), rng.uniform(0.9, 1.1)) for i in range(16)})
    names = list(store.meshes)
    torch.manual_seed(0)
    made = build_articulated(CONFIG, num_scans=len(names))
    made.initialize(store, names)
    dataset = StepDataset(store, names, scans=4, points=96, near_std=0.03, half_extent=1.0, seed=0)
    optimizers, steps = make_optimizers(made, lr=5e-3, lr_codes=3e-3, lr_muon=2e-2), 100
    rates, schedule = [group["lr"] for group in optimizers.param_groups], cosine(warmup_steps=10)
    objective = Objective(made.train(), WEIGHTS)
    for step in range(steps):
        for group, rate in zip(optimizers.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step, step / steps)
        optimizers.zero_grad()
        objective(dataset[step])[0].backward()
        optimizers.step()
    table = made.codes_parameter
    assert table is not None
    made.eval().summarize(table.detach())
    return made


@pytest.fixture(scope="module")
def space(model: ArticulatedSDF) -> ShapeSpace:
    return ShapeSpace(model, CONFIG, scale=1.0, metadata={"weights": WEIGHTS})


def code_of(model: ArticulatedSDF, row: int = 0) -> Code:
    table = model.codes_parameter
    assert table is not None
    return Code((table.detach()[row : row + 1].clone(),))


# --------------------------------------------------------------------------------------------------------- derivatives


def turn_by(vector: Tensor) -> Tensor:
    """Rotation matrices of rotation vectors, by Rodrigues' formula."""
    angle = vector.norm(dim=-1).clamp(min=1e-12)[..., None, None]
    cross = torch.zeros(*vector.shape, 3, dtype=vector.dtype)
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        cross[..., b, c], cross[..., c, b] = -vector[..., a], vector[..., a]
    square = cross @ cross
    return torch.eye(3) + (angle.sin() / angle) * cross + ((1 - angle.cos()) / angle**2) * square


def test_the_left_jacobian_is_the_derivative_of_the_rotation() -> None:
    vector = torch.tensor([[0.3, -0.8, 0.5], [2.0, 1.0, -1.5], [0.0, 0.0, 0.0], [1e-3, 2e-3, 0.0]]).double()
    left = left_jacobian(vector)
    for axis in range(3):
        step = torch.zeros(3).double()
        step[axis] = 1e-6
        before, after = turn_by(vector - step), turn_by(vector + step)
        spin = (after - before) / 2e-6 @ turn_by(vector).mT
        torch.testing.assert_close(cross_matrix(left[..., axis]), spin, atol=1e-4, rtol=0)
    torch.testing.assert_close(turn_by(vector), torch.linalg.matrix_exp(cross_matrix(vector)))


class Twin:
    """The same cost in plain terms, for autograd."""

    def __init__(self, problem: PartProblem, lm: LMOptions) -> None:
        self.problem, self.model, self.start, self.lm = problem, problem.model, problem.start, lm

    def residuals(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the scan in model units, of the borders and of the prior over their deviations; a row for each of x."""
        count, size = self.start.local_code.shape[1:]
        move = x.view(len(x), count, POSE_SIZE + size)
        center, turn = self.start.center + move[..., :3], turn_by(move[..., 3:POSE_SIZE])
        states = PartStates(center, turn @ self.start.rotation, self.start.local_code + move[..., POSE_SIZE:])
        scan = self.model.decoder(self.problem.x.expand(len(x), -1, -1), states) - self.problem.target

        rest, parts = self.model.border_points()
        arm = (self.start.rotation[0][parts] @ rest.to(x)[..., None])[..., 0] * self.model.decoder.radius[parts, None]
        middle = (self.start.center[0][parts] + arm).mean(dim=1, keepdim=True)
        arm = middle - self.start.center[0][parts]
        moved = center[:, parts] + (turn[:, parts] @ arm[..., None])[..., 0]
        border = (moved[:, :, 0] - moved[:, :, 1] + self.excess()) / self.lm.parts.border_std

        options = self.lm.parts
        std = torch.cat(
            [
                torch.tensor([options.translation_std] * 3 + [options.rotation_std] * 3).expand(count, -1),
                options.local_std * self.model.local_std,
            ],
            dim=1,
        )
        return scan, border.flatten(1), (move / std).flatten(1)

    def excess(self) -> Tensor:
        """Gaps of the start that are larger than a multiple of their deviation in training bodies: what is too much."""
        rest, parts = self.model.border_points()
        arm = (self.start.rotation[0][parts] @ rest.to(self.start.center)[..., None])[..., 0]
        place = self.start.center[0][parts] + arm * self.model.decoder.radius[parts, None]
        gap, allowed = place[:, 0] - place[:, 1], self.lm.parts.max_gap * JointPrior(self.model).border.std
        length = gap.norm(dim=1)
        return gap * ((length - allowed) / length).clamp(min=0)[:, None]

    def cost(self, x: Tensor) -> Tensor:
        scan, border, prior = self.residuals(x)
        active = ~(self.problem.is_free & (scan > 0))
        size, delta = scan[active].abs(), self.lm.huber_delta
        huber = torch.where(size < delta, 0.5 * size**2, delta * (size - 0.5 * delta))
        share = self.lm.effective_samples / self.lm.num_points / self.lm.noise_std**2
        return share * huber.sum() + 0.5 * border.square().sum() + 0.5 * prior.square().sum()

    @torch.no_grad()
    def matrix(self, x: Tensor) -> Tensor:
        """Gauss-Newton matrix of the cost, by central differences of all residuals."""
        scan = self.residuals(x)[0][0]
        share = self.lm.effective_samples / self.lm.num_points / self.lm.noise_std**2
        weight = share * self.lm.huber_delta / scan.abs().clamp(min=self.lm.huber_delta)
        weight = weight.masked_fill(self.problem.is_free[0] & (scan > 0), 0)
        steps = 1e-6 * torch.eye(x.shape[1], dtype=x.dtype)
        up, down = (torch.cat(self.residuals(x + side * steps), dim=1) for side in (1, -1))
        rows = (up - down).T / 2e-6
        rows[: len(weight)] *= weight.sqrt()[:, None]
        return rows.T @ rows


@pytest.fixture
def exact(model: ArticulatedSDF, monkeypatch: pytest.MonkeyPatch) -> ArticulatedSDF:
    """The model in float64; problems have their points in float64, too."""
    original = articulated.constraints

    def constraints(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        x, target, is_free = original(*arguments)
        return x.double(), target.double(), is_free

    monkeypatch.setattr(articulated, "constraints", constraints)
    copy = build_articulated(CONFIG, num_scans=16)
    copy.load_state_dict(model.state_dict())
    return copy.double().eval()


def problem_of(exact: ArticulatedSDF, points: int = 80) -> tuple[PartProblem, LMOptions]:
    """Half of the sensors are outside, half are as if they had looked through the body; the left hand is torn off."""
    lm = LMOptions(num_points=points, free_space_points=60, huber_delta=0.02)
    scan = sampled(figure(0.5, -0.2), points)
    assert scan.sensors is not None
    assert scan.normals is not None
    scan.sensors[::2] = scan.points[::2] - 0.5 * scan.normals[::2]
    with torch.no_grad():
        states = exact.states(code_of(exact))
        center = states.center.clone()
        center[0, left_arm(exact, states)[0]] += 0.1
        return PartProblem(exact, scan, states._replace(center=center), lm, seed=0), lm


def motion(problem: PartProblem, size: float, turn: float) -> Tensor:
    """Translations up to `size` model units, rotations up to `turn` radians about each axis, and changed codes."""
    rng = torch.Generator().manual_seed(1)
    move = torch.rand(problem.precision.shape, generator=rng, dtype=torch.float64) * 2 - 1
    move[:, :3] *= size
    move[:, 3:POSE_SIZE] *= turn
    move[:, POSE_SIZE:] *= 0.05
    return move.view(1, -1)


def num_new_pairs(problem: PartProblem, x: Tensor) -> int:
    """Pairs of parts that meet at a point and have no block."""
    part = problem.model.nearest_parts(problem.x, problem.states_at(x).center)[0]
    a, b = torch.combinations(torch.arange(part.shape[1])).T
    meeting = torch.stack([part[:, a], part[:, b]], dim=-1).flatten(0, 1).sort(dim=1).values.unique(dim=0)
    known = {tuple(pair) for pair in problem.pattern.pairs.tolist()}
    return sum(tuple(pair) not in known for pair in meeting.tolist())


@pytest.mark.parametrize(("size", "turn"), [(0.0, 0.0), (0.004, 0.3), (0.3, 1.5)])
def test_cost_gradient_and_matrix_equal_autograd(exact: ArticulatedSDF, size: float, turn: float) -> None:
    """At motions that are zero, small and large, with free space that is satisfied and that is not.

    Large motions bring parts together that did not meet at the start. Their matrix is larger than that of Gauss and
    Newton, and its other entries are the same; cost and gradient are exact.
    """
    problem, lm = problem_of(exact)
    twin, x = Twin(problem, lm), motion(problem, size, turn).requires_grad_()
    cost = twin.cost(x)
    (gradient,) = torch.autograd.grad(cost, x)
    with torch.no_grad():
        state = problem(x)
        residual = twin.residuals(x)[0][0]
    assert 0 < twin.excess().any(dim=1).sum() < len(problem.border_parts)
    violated = problem.is_free[0] & (residual <= 0)
    assert 5 < violated.sum() < problem.is_free.sum() - 5
    torch.testing.assert_close(state.cost[0], cost.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(state.gradient, gradient, rtol=1e-6, atol=1e-7 * float(gradient.abs().max()))

    expected, dense = twin.matrix(x.detach()), problem.pattern.to_dense(state.hessian[0])
    scale = expected.diagonal().rsqrt()
    difference = scale[:, None] * (dense - expected) * scale
    torch.testing.assert_close(dense, dense.T)
    if size < 0.1:
        assert num_new_pairs(problem, x.detach()) == 0
        assert difference.abs().max() < 1e-6
    else:
        assert num_new_pairs(problem, x.detach()) > 3
        assert difference.abs().max() > 1e-3
        assert torch.linalg.eigvalsh(difference).min() > -1e-6  # it majorizes
    assert torch.linalg.eigvalsh(dense).min() > 0


def test_float32_is_near_float64(model: ArticulatedSDF, exact: ArticulatedSDF, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, lm = problem_of(exact)
    x = motion(problem, 0.004, 0.3)
    with torch.no_grad():
        state = problem(x)
        monkeypatch.undo()
        start = PartStates(*(tensor.float() for tensor in problem.start))
        single = PartProblem(model, sampled(figure(0.5, -0.2), 80), start, lm, seed=0)
        single.x, single.target, single.is_free = problem.x.float(), problem.target.float(), problem.is_free
        near = single(x.float())
    torch.testing.assert_close(near.cost.double(), state.cost, rtol=1e-4, atol=0)
    error = (near.gradient.double() - state.gradient).norm() / state.gradient.norm()
    assert error < 1e-3


def test_the_solver_equals_a_dense_one(exact: ArticulatedSDF) -> None:
    problem, _ = problem_of(exact)
    with torch.no_grad():
        state = problem(motion(problem, 0.004, 0.1))
    solver, added = BlockSolver(problem.pattern), torch.rand(1, state.x.shape[1], dtype=torch.float64)
    dense = problem.pattern.to_dense(state.hessian[0])
    torch.testing.assert_close(solver.diagonal(state.hessian)[0], dense.diagonal())
    before = state.hessian.clone()
    solution = solver.solve(state.hessian, added, state.gradient)
    expected = torch.linalg.solve(dense + torch.diag(added[0]), state.gradient[0])
    torch.testing.assert_close(solution[0], expected, rtol=1e-8, atol=1e-12)
    assert torch.equal(state.hessian, before)


# --------------------------------------------------------------------------------------------------------------- fits


def moved_states(model: ArticulatedSDF, states: PartStates, parts: Sequence[int], angle: float) -> PartStates:
    """The states with some parts turned about the left shoulder, or about their borders with the others."""
    rest, pairs = model.border_points()
    inside = torch.isin(pairs, torch.tensor(list(parts)))
    crossing = inside.any(dim=1) & ~inside.all(dim=1)
    pair = pairs[crossing]
    arm = (states.rotation[0][pair] @ rest[crossing][..., None])[..., 0] * model.decoder.radius[pair, None]
    about = (states.center[0][pair] + arm).mean(dim=(0, 1))
    turn, center, rotation = turn_by(torch.tensor([0.0, 0.0, angle])), states.center.clone(), states.rotation.clone()
    for part in parts:
        center[0, part] = about + turn @ (center[0, part] - about)
        rotation[0, part] = turn @ rotation[0, part]
    return PartStates(center, rotation, states.local_code)


def surface_of(model: ArticulatedSDF, code: Code, states: PartStates) -> Trimesh:
    (mesh,) = model.extract_surface(Code((*code.parts, *states)), resolution=48)
    return mesh


def border_gaps(model: ArticulatedSDF, start: PartStates, states: PartStates, part: int) -> Tensor:
    """How far the two sides of each point of the borders of a part have come apart since the start."""
    rest, parts = model.border_points()
    rest, parts = rest[(parts == part).any(dim=1)], parts[(parts == part).any(dim=1)]
    gaps = []
    for one in (start, states):
        arm = (one.rotation[0][parts] @ rest[..., None])[..., 0] * model.decoder.radius[parts, None]
        place = one.center[0][parts] + arm
        gaps.append(place[:, 0] - place[:, 1])
    return (gaps[1] - gaps[0]).norm(dim=1)


def left_arm(model: ArticulatedSDF, states: PartStates) -> list[int]:
    """The parts of the left arm, the hand first."""
    order = states.center[0, :, 0].argsort(descending=True).tolist()
    return [part for part in order if states.center[0, part, 0] > SHOULDER]


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Angles between rotations (radians)."""
    trace = (a.mT @ b).diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return torch.acos(((trace - 1) / 2).clamp(-1, 1))


@torch.no_grad()
def test_a_known_motion_of_one_part_is_recovered(model: ArticulatedSDF) -> None:
    code = code_of(model)
    states = model.states(code)
    hand = left_arm(model, states)[0]
    target = moved_states(model, states, [hand], 0.4)
    scan = sampled(surface_of(model, code, target))
    lm = replace(LM, num_points=800)
    result = fit_parts(model, scan, states, lm, seed=0)
    off = (target.center - states.center).norm(dim=-1)[0, hand]
    assert off > 0.04
    error = (result.states.center - target.center).norm(dim=-1)[0]
    assert error[hand] < 0.15 * off
    assert error.max() < 0.006
    assert angles(result.states.rotation, target.rotation).max() < 0.06
    problem = PartProblem(model, scan, states, lm, seed=0)
    start = problem(states.center.new_zeros(1, problem.precision.numel()))
    state = levenberg_marquardt(
        lambda _, x: problem(x), start.x.clone(), max_steps=12, ftol=lm.parts.ftol, solver=BlockSolver(problem.pattern)
    )
    assert state.cost < 0.2 * start.cost
    torch.testing.assert_close(problem.states_at(state.x).center, result.states.center)
    torch.testing.assert_close(
        result.covariance, problem.pattern.factorize(state.hessian[0]).inverse_diagonal().to(state.x)
    )


@torch.no_grad()
@pytest.mark.parametrize("angle", [0.0, 0.2])
def test_an_unseen_hand_does_not_drift_and_follows_its_arm(model: ArticulatedSDF, angle: float) -> None:
    """Of the left arm, the scan has no point whose first part is the hand."""
    code = code_of(model)
    states = model.states(code)
    arm = left_arm(model, states)
    hand = arm[0]
    target = moved_states(model, states, arm, angle)
    scan = sampled(surface_of(model, code, target))
    first = model.nearest_parts(torch.from_numpy(scan.points)[None], target.center)[0, :, 0]
    unseen = fit_parts(model, scan.select(np.flatnonzero(first != hand)), states, LM, seed=0)
    seen = fit_parts(model, scan, states, LM, seed=0)
    gaps = border_gaps(model, states, unseen.states, hand)
    assert gaps.max() < (1 + 5 * angle) * LM.parts.border_std
    assert (unseen.states.center - target.center).norm(dim=-1)[0, hand] < 0.005 + 0.1 * angle
    assert (unseen.states.center - target.center).norm(dim=-1)[0, arm[1]] < 0.006
    deviation = unseen.covariance.diagonal(dim1=1, dim2=2).sqrt()
    known = seen.covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert (deviation[hand] > 1.5 * known[hand])[:3].all()  # what was not seen is less certain
    assert (deviation[hand, :3] < LM.parts.translation_std).all()
    others = [part for part in range(CONFIG.num_parts) if part not in arm]
    torch.testing.assert_close(deviation[others], known[others], rtol=0.2, atol=1e-4)


@torch.no_grad()
def test_without_points_near_parts_nothing_moves(model: ArticulatedSDF) -> None:
    """The priors alone have their minimum at the start, and their deviations are those of the options."""
    states = model.states(code_of(model))
    far = Scan("far", np.full((512, 3), 0.99, np.float32))
    options = replace(LM, effective_samples=1e-9, parts=replace(LM.parts, border_std=1e3))
    result = fit_parts(model, far, states, options, seed=0)
    torch.testing.assert_close(result.states.center, states.center, atol=1e-4, rtol=0)
    torch.testing.assert_close(result.states.rotation, states.rotation, atol=1e-4, rtol=0)
    deviation = result.covariance.diagonal(dim1=1, dim2=2).sqrt()
    pose = torch.tensor([LM.parts.translation_std] * 3 + [LM.parts.rotation_std] * 3)
    torch.testing.assert_close(deviation[:, :POSE_SIZE], pose.expand(10, -1), rtol=1e-3, atol=0)
    torch.testing.assert_close(deviation[:, POSE_SIZE:], LM.parts.local_std * model.local_std, rtol=1e-3, atol=0)


def test_both_levels_are_nearer_an_unseen_figure_than_the_code_alone(model: ArticulatedSDF) -> None:
    """An arm is bent at the elbow, where no arm of the training is."""
    scan = sampled(figure(0.6, -0.5, 1.05, elbow=0.4))
    first = fit.fit_lm(model, [scan], replace(LM, levels=1))
    both = fit.fit_lm(model, [scan], LM)
    assert (len(first.code.parts), first.part_covariance) == (1, None)
    assert [tuple(part.shape[1:]) for part in both.code.parts] == list(model.code_shapes)
    alone = fit.fit_lm(model, [scan], replace(LM, max_far_share=1.0, max_outside_share=1.0))
    start = fit.Start(0, scan.infer_sensor(), None)
    assert torch.equal(alone.code.parts[0], fit._first_level(fit.Trials(model, [start], LM, 0, 1)).code.flat)
    assert both.part_covariance is not None
    assert both.part_covariance.shape == (1, 10, 9, 9)
    assert both.residual.mean() < 0.85 * first.residual.mean()
    mesh, before = (model.extract_surface(found.code, resolution=48)[0] for found in (both, first))
    assert mesh.is_watertight
    distance, baseline = (closest_point(scan.points.astype(np.float64), each)[0] for each in (mesh, before))
    assert distance.mean() < 0.95 * baseline.mean()


def test_many_scans_equal_each_alone(model: ArticulatedSDF) -> None:
    scans = [sampled(figure(0.4, -0.3)), Scan("bare", sampled(figure(-0.5, 0.2)).points)]
    lm = replace(LM, num_points=256, max_steps=8, parts=replace(LM.parts, num_points=256, max_steps=3))
    together = fit.fit_lm(model, scans, lm)
    for index, scan in enumerate(scans):
        alone = fit.fit_lm(model, [scan], lm)
        for part, own in zip(together.code.parts[1:], alone.code.parts[1:], strict=True):
            torch.testing.assert_close(part[index : index + 1], own, atol=3e-3, rtol=0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
def test_scans_are_shared_among_processes_with_the_result_of_one(
    space: ShapeSpace, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    scans = [replace(sampled(figure(angle, -0.3)), name=f"{angle}") for angle in (0.4, 0.2, -0.1, -0.4)]
    scans[1] = replace(scans[1], normals=-scans[1].normals)  # type: ignore[operator]
    lm = replace(LM, num_points=256, max_steps=4, parts=replace(LM.parts, num_points=256, max_steps=2))
    here = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScanWarning)
        torch.set_num_threads(1)
        alone = [space.fit_scans([scan], lm=lm)[0] for scan in scans]
        cleaned = space.remove_clutter(scans, lm=lm)
        torch.set_num_threads(2)
        elsewhere = list[bool]()
        monkeypatch.setattr(
            fitter, "check_scan", lambda scan: elsewhere.append(os.getpid() != here) or check_scan(scan)
        )
        together = space.fit_scans(scans, lm=lm)
        assert not elsewhere  # the list of this process
        also_cleaned = space.remove_clutter(scans, lm=lm)
    for one, other in zip(alone, together, strict=True):
        assert (one.name, one.findings) == (other.name, other.findings)
        for part, same in zip(one.code.parts, other.code.parts, strict=True):
            assert torch.equal(part, same)
        for name in ("residuals", "covariance", "part_covariance", "displacement", "unseen"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert {finding.code for finding in together[1].findings} >= {"normals-turned"}
    for scan, same in zip(cleaned, also_cleaned, strict=True):
        np.testing.assert_array_equal(scan.points, same.points)


# -------------------------------------------------------------------------------------------------------- third level


def test_the_third_level_is_nearer_the_scan_than_the_first_two(space: ShapeSpace, fits: list[Fit]) -> None:
    scan = sampled(figure(0.4, -0.3))
    distance, before = (
        closest_point(scan.points.astype(np.float64), space.mesh(fit))[0]
        for fit in (fits[0], replace(fits[0], displacement=None))
    )
    assert distance.mean() < 0.8 * before.mean()
    (two,) = space.fit_scans([scan], lm=replace(LM, levels=2))
    assert two.displacement is None
    for part, own in zip(two.code.parts, fits[0].code.parts, strict=True):
        torch.testing.assert_close(part, own)


def test_displacements_are_mixed_on_a_path_and_stay_with_the_person(space: ShapeSpace, fits: list[Fit]) -> None:
    a, b = fits
    assert a.displacement is not None
    assert b.displacement is not None
    first, middle, last = (fit.displacement for fit in space.interpolate_codes(a, b, 3))
    np.testing.assert_array_equal(first, a.displacement)
    np.testing.assert_allclose(middle, (a.displacement + b.displacement) / 2)
    np.testing.assert_array_equal(last, b.displacement)
    np.testing.assert_array_equal(space.transfer_pose(a, b).displacement, b.displacement)
    np.testing.assert_array_equal(space.sample_posterior(a, 1)[0].displacement, a.displacement)


# -------------------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def fits(space: ShapeSpace) -> list[Fit]:
    return space.fit_scans([sampled(figure(0.4, -0.3), name="a/b/1"), sampled(figure(0.1, 0.6), name="a/b/2")], lm=LM)


def test_codes_of_both_levels_come_back_from_a_file(
    space: ShapeSpace, model: ArticulatedSDF, fits: list[Fit], tmp_path: Path
) -> None:
    save_fits(tmp_path / "codes.safetensors", fits, model)
    again = load_fits(tmp_path / "codes.safetensors", model)
    for one, other in zip(fits, again, strict=True):
        assert one.name == other.name
        for part, own in zip(one.code.parts, other.code.parts, strict=True):
            assert torch.equal(part, own)
        for name in ("covariance", "part_covariance", "displacement", "unseen"):
            array, own = getattr(one, name), getattr(other, name)
            assert array is not None
            np.testing.assert_array_equal(array, own)
        np.testing.assert_array_equal(
            space.mesh(one, resolution=24).vertices, space.mesh(other, resolution=24).vertices
        )


def test_files_of_codes_alone_are_read(model: ArticulatedSDF, fits: list[Fit], tmp_path: Path) -> None:
    """Such as those of the encoder, or of the first level: the parts follow from the code."""
    path = tmp_path / "codes.safetensors"
    code = torch.cat([one.code.parts[0] for one in fits])
    centers = torch.stack([one.frame.center for one in fits])
    tensors = {"code.0": code, "centre": centers, "scale": torch.ones(2)}
    save_tensors(path, tensors, {"kind": "codes", "names": ["a", "b"], "model": model.fingerprint()})
    first, second = load_fits(path, model)
    assert len(first.code.parts) == 1
    assert first.part_covariance is None
    with torch.no_grad():
        expanded = model.expand(second.code)
        x = torch.rand(1, 50, 3) - 0.5
        assert torch.equal(model.field(x, second.code), model.field(x, expanded))
    assert torch.equal(expanded.parts[0], code[1:])
    save_fits(path, [first, second], model)
    assert "part_covariance" not in load_tensors(path, "codes")[0]


def test_codes_that_do_not_fit_the_model_are_refused(model: ArticulatedSDF, fits: list[Fit], tmp_path: Path) -> None:
    path = tmp_path / "codes.safetensors"
    save_fits(path, fits, model)
    tensors, metadata = load_tensors(path, "codes")
    wrong: list[tuple[dict[str, Tensor | None], str]] = [
        ({"code.1": torch.zeros(2, 11, 3)}, r"tensor code\.1 has shape \(2, 11, 3\)"),
        ({"code.2": torch.zeros(2, 10, 3)}, r"tensor code\.2 has shape \(2, 10, 3\)"),
        ({"code.3": torch.zeros(2, 10, 4)}, r"tensor code\.3 has shape \(2, 10, 4\)"),
        ({"code.1": torch.zeros(3, 10, 3)}, r"tensor code\.1 has shape \(3, 10, 3\)"),
        ({"code.3": None}, "it has 3 tensors of codes"),
        ({"code.2": None}, r"tensor code\.2 is missing"),
        ({"part_covariance": torch.zeros(2, 10, 8, 8)}, r"tensor part_covariance has shape \(2, 10, 8, 8\)"),
        ({"displacement": torch.zeros(2, 7)}, r"tensor displacement has shape \(2, 7\)"),
        ({"part_covariance": torch.zeros(2, 9, 9, 9)}, r"tensor part_covariance has shape \(2, 9, 9, 9\)"),
    ]
    for changes, sentence in wrong:
        changed = {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}
        save_tensors(path, changed, metadata)
        with pytest.raises(ValueError, match=rf"not a file of 2 codes of this model \({sentence}\)\. Fit the scans"):
            load_fits(path, model)


# ---------------------------------------------------------------------------------------------------------- sequences


def test_a_sequence_has_parts_in_all_frames(
    space: ShapeSpace, model: ArticulatedSDF, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.prior, "ood_limit", 8.0)  # so few bodies make any pose an unusual one
    raised = np.linspace(-0.3, 0.3, 4)
    scans = [sampled(figure(angle, 0.0), seed=t, name=f"walk/{t:03d}") for t, angle in enumerate(raised)]
    scans[2] = Scan("walk/002", np.empty((0, 3), np.float32))
    lm = replace(LM, num_points=256, max_steps=6, parts=replace(LM.parts, num_points=256, max_steps=3))
    joint = space.fit_sequence(scans, SequenceOptions(acceleration_std=0.3), lm=lm)
    assert [one.interpolated for one in joint] == [False, False, True, False]
    assert [one.part_covariance is None for one in joint] == [False, False, True, False]
    moved = np.stack([np.zeros(0) if one.displacement is None else one.displacement for one in joint])
    np.testing.assert_allclose(moved[2], (moved[1] + moved[3]) / 2, atol=1e-7)
    assert len(np.unique(moved, axis=0)) == 4
    for one in joint:
        assert [tuple(part.shape[1:]) for part in one.code.parts] == list(model.code_shapes)
    states = [model.states(one.code) for one in joint]
    hand = left_arm(model, states[0])[0]
    heights = [float(state.center[0, hand, 1] + one.frame.center[1]) for state, one in zip(states, joint, strict=True)]
    assert heights == sorted(heights)
    assert heights[2] == pytest.approx((heights[1] + heights[3]) / 2, abs=0.03)
    assert all(state.rotation.det().allclose(torch.ones(1, 10), atol=1e-4) for state in states)
    given = [None if one.interpolated else one for one in joint]  # with parts
    again = space.fit_jointly(scans, given, SequenceOptions(max_steps=1), lm=replace(lm, max_steps=4, levels=1))
    assert all(len(one.code.parts) == 1 for one in again)


def test_the_uncertainty_of_fits_with_parts(space: ShapeSpace, fits: list[Fit]) -> None:
    mesh = space.mesh(fits[0], resolution=24)
    std = space.uncertainty(fits[0], mesh)
    assert std.shape == (len(mesh.vertices),)
    assert (std > 0).all()
    assert (std < 0.1).all()
    before = space.uncertainty(replace(fits[0], unseen=None), mesh)
    assert fits[0].unseen is not None
    np.testing.assert_allclose(std**2, (fits[0].unseen * before) ** 2 + SCAN_STD**2, rtol=1e-5)
    field = space.mesh(fits[0], resolution=24, surface="field")  # it has no displacement
    np.testing.assert_array_equal(
        space.uncertainty(fits[0], field), space.uncertainty(replace(fits[0], unseen=None), field)
    )


# ------------------------------------------------------------------------------------------------- joints, first level


def test_cost_of_the_joints_and_its_derivatives_equal_autograd(model: ArticulatedSDF) -> None:
    prior = JointPrior(model)
    code = (code_of(model).vector + 0.3 * torch.randn(1, CONFIG.code_dim)).repeat(2, 1)
    code[1] += 0.1
    rest, parts = model.border_points()
    pairs = parts.tolist()
    weight = torch.tensor([1 / pairs.count(pair) for pair in pairs])

    def residuals(one: Tensor) -> Tensor:
        states = model.hypernetwork(one[None])
        arm = (states.rotation[0][parts] @ rest[..., None])[..., 0] * model.decoder.radius[parts, None]
        place = states.center[0][parts] + arm
        return ((place[:, 0] - place[:, 1]) * (weight.sqrt() / prior.border.std)[:, None]).flatten()

    cost, gradient, matrix = prior(model.expand_parts(Code((code,))))
    for row, one in enumerate(code):
        jacobian = torch.autograd.functional.jacobian(residuals, one)
        value = residuals(one).detach()
        torch.testing.assert_close(cost[row], 0.5 * value.square().sum(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient[row], jacobian.T @ value, rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(matrix[row], jacobian.T @ jacobian, rtol=1e-3, atol=1e-1)


@torch.no_grad()
def test_joints_of_training_bodies_cost_little_and_torn_limbs_much(model: ArticulatedSDF) -> None:
    """In units of their deviations, the gaps of training bodies are one along each axis in the mean."""
    prior, table = JointPrior(model), model.codes_parameter
    assert table is not None
    pairs = len(prior.border.parts.unique(dim=0))
    cost, _, _ = prior(model.expand_parts(Code((table,))))
    assert cost.mean() < 1.01 * 1.5 * pairs  # half of three squares for each pair
    far = prior.border.gaps(model.hypernetwork(8 * table)).norm(dim=-1).amax()
    near = prior.border.gaps(model.hypernetwork(table)).norm(dim=-1).amax()
    assert far > 3 * near
    assert prior(model.expand_parts(Code((8 * table,))))[0].mean() > 10 * cost.mean()


@torch.no_grad()
def test_the_second_level_closes_a_torn_joint(model: ArticulatedSDF) -> None:
    """A hand that the first level tore off, and that the scan does not show, comes back to its arm."""
    states = model.states(code_of(model))
    hand = left_arm(model, states)[0]
    scan = sampled(surface_of(model, code_of(model), states))
    first = model.nearest_parts(torch.from_numpy(scan.points)[None], states.center)[0, :, 0]
    center = states.center.clone()
    center[0, hand, 0] += 0.15
    torn = PartStates(center, states.rotation, states.local_code)
    options = replace(LM, parts=replace(LM.parts, max_gap=1.0, translation_std=0.5))
    result = fit_parts(model, scan.select(np.flatnonzero(first != hand)), torn, options, seed=0)
    assert (result.states.center - states.center)[0, hand].norm() < 0.05


@torch.no_grad()
def test_a_fit_starts_from_the_training_body_that_explains_the_scan(model: ArticulatedSDF) -> None:
    table = model.codes_parameter
    assert table is not None
    for row in (1, 6, 11):
        scan = sampled(surface_of(model, code_of(model, row), model.states(code_of(model, row))))
        codes = start_codes(model, scan, model.prior.mean + 9, 4, seed=0)
        assert len(codes) == 4
        torch.testing.assert_close(codes[0], model.prior.mean + 9)  # that of the encoder
        assert (codes[1:] == table[row]).all(dim=1).any()
        one = start_codes(model, scan, model.prior.mean + 9, 1, seed=0)
        torch.testing.assert_close(one, table[row][None])
        torch.testing.assert_close(start_codes(model, scan, table[row], 1, seed=0), one)


@torch.no_grad()
def test_a_scan_far_from_its_first_fit_is_fitted_again_from_searched_codes(
    model: ArticulatedSDF, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few steps from a wrong body, then from the right one among two; a second fit that costs more is dropped."""
    table = model.codes_parameter
    assert table is not None
    right, wrong = table[1], table[6]
    scan = sampled(surface_of(model, code_of(model, 1), model.states(code_of(model, 1))))
    counts, second = list[int](), torch.stack([wrong, right])

    def searched(_model: object, _scan: Scan, _encoded: Tensor, count: int, _seed: int) -> Tensor:
        counts.append(count)
        return second

    monkeypatch.setattr(fit, "start_codes", lambda *_: torch.stack([wrong, wrong]))
    monkeypatch.setattr(fit, "search_codes", searched)
    few = replace(LM, alignment="fixed", levels=1, trial_steps=1, max_steps=1, search_starts=7)
    once = fit.fit_lm(model, [scan], replace(few, max_far_share=1.0, max_outside_share=1.0))
    assert not counts
    assert (once.residual > few.far_distance).float().mean() > few.max_far_share
    twice = fit.fit_lm(model, [scan, scan], few)
    assert counts == [7, 7]
    assert (twice.residual > few.far_distance).float().mean() <= few.max_far_share
    torch.testing.assert_close(twice.code.flat[0], twice.code.flat[1])
    ftols, minimize = list[float](), fit.levenberg_marquardt

    def recorded(*args: Any, ftol: float, **named: Any) -> Any:
        ftols.append(ftol)
        return minimize(*args, ftol=ftol, **named)

    with monkeypatch.context() as patched:
        patched.setattr(fit, "levenberg_marquardt", recorded)
        for levels in (1, 2):
            fit.fit_lm(model, [scan], replace(few, levels=levels))
            assert ftols[-1] == pytest.approx(few.ftol)  # a search that a second level follows converges as well
    more = replace(few, max_steps=12, ftol=1e-5)
    half = replace(more.before_parts(), ftol=more.ftol)
    one, two = (fit.fit_lm(model, [scan], lm).code.parts[0] for lm in (half, replace(more, levels=2)))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)  # and on the points of the first fit
    counts.clear()
    fit.fit_lm(model, [scan], replace(few, max_far_share=1.0))
    assert counts == [7]  # an arm of the wrong body is outside of the scan
    second = torch.stack([10 * wrong, -10 * wrong])
    torch.testing.assert_close(fit.fit_lm(model, [scan], few).code.flat, once.code.flat)
    counts.clear()
    monkeypatch.setattr(
        fit, "start_codes", lambda *its: torch.stack([wrong, right] if its[3] == fit.MORE_STARTS else [wrong])
    )
    more = fit.fit_lm(model, [scan], few)
    assert (more.residual > few.far_distance).float().mean() <= few.max_far_share
    assert not counts  # one of a few more starts has found the limb
    monkeypatch.setattr(fit, "start_codes", lambda *_: torch.stack([wrong, wrong]))
    monkeypatch.setattr(fit, "MOSTLY_FAR", float((once.residual > few.far_distance).float().mean()))
    fit.fit_lm(model, [scan], few)
    assert not counts  # no limb is lost where most of the scan is


@torch.no_grad()
def test_parts_are_outside_of_a_scan_where_it_shows_that_nothing_is(model: ArticulatedSDF) -> None:
    """An arm that is elsewhere is; what the scan ends before, or what its normals do not tell, is not."""
    hand = left_arm(model, model.training_states())[0]
    height = model.training_states().center[:, hand, 1]
    up, down = (code_of(model, int(row)) for row in (height.argmax(), height.argmin()))
    scan = sampled(surface_of(model, up, model.states(up)), count=8000)
    assert scan.normals is not None
    assert outside_share(model, scan, up, seed=0) == 0
    share = outside_share(model, scan, down, seed=0)
    radius = model.decoder.radius.square()
    assert radius[hand] / radius.sum() * 0.99 < share < 0.5
    signs = np.where(np.arange(len(scan)) % 2, 1, -1)[:, None]
    unsure = Scan(scan.name, scan.points, unoriented_normals=signs * scan.normals)
    assert outside_share(model, unsure, up, seed=0) == 0
    for seen in (scan.points[:, 0] < 0.3, scan.points[:, 2] > 0, scan.points[:, 1] > 0):
        assert outside_share(model, scan.select(np.flatnonzero(seen)), up, seed=0) == 0
    inward = replace(scan, normals=-scan.normals)
    assert outside_share(model, inward, down, seed=0) < share


def test_spheres_are_compared_with_a_scan_both_ways(model: ArticulatedSDF) -> None:
    points, center = torch.randn(30, 3), torch.randn(2, 10, 3)
    for row, distance in enumerate(sphere_distance(model, points, center, 0.3)):
        spheres = list(zip(center[row], model.decoder.radius.tolist(), strict=True))
        gaps = [[abs(float((x - middle).norm()) - SPHERE * radius) for middle, radius in spheres] for x in points]
        nearest = [[min(gap) for gap in gaps], [min(gap) for gap in zip(*gaps, strict=True)]]
        expected = sum(np.mean([d * 0.3 / (d + 0.3) for d in each]) for each in nearest)
        assert float(distance) == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("has_normals", [True, False])
def test_templates_are_compared_with_a_scan_both_ways(model: ArticulatedSDF, has_normals: bool) -> None:
    """Against a plain twin: closest point by place and normal, then height, distance along, and angle."""
    states, template = model.training_states().select(slice(0, 2)), model.template.part_template()
    scan = sampled(figure(0.3, -0.5))
    scan = scan if has_normals else Scan(scan.name, scan.points)
    distance = TemplateDistance(model, scan, seed=0)
    points, normals = distance.posed(states)
    vertices = model.template(states)
    rest = torch.from_numpy(vertex_normals(template.vertices.numpy(), template.faces.numpy())).float()
    for body in range(2):
        gap, vertex = (points[body][:, None] - vertices[body]).norm(dim=2).min(dim=1)  # each is a vertex of its part
        assert gap.max() < 1e-5
        assert (template.labels[vertex] == distance.part).all()
        turned = (states.rotation[body, distance.part] @ rest[vertex][..., None])[..., 0]
        torch.testing.assert_close(normals[body], turned)
        total = 0.0
        sides = (
            ((distance.points, distance.normals), (points[body], normals[body]), TEMPLATE_SPACING),
            ((points[body], normals[body]), (distance.dense, distance.dense_normals), SCAN_SPACING),
        )
        for (x, n), (y, k), spacing in sides:
            each = []
            for place, normal in zip(x, n, strict=True):
                apart = (y - place).square().sum(dim=1) + (NORMAL_LENGTH * (k - normal)).square().sum(dim=1)
                closest = apart.argmin()
                offset = place - y[closest]
                height = offset @ k[closest]
                along = max(0.0, float((offset - height * k[closest]).norm()) - spacing)
                each.append(abs(float(height)) + along + NORMAL_WEIGHT * (1 - float(normal @ k[closest])))
            d = torch.tensor(each)
            d = d * 0.1 / (d + 0.1)
            total += float(d.mean() if x is distance.points else d @ distance.weight)
        assert float(distance(states)[body]) == pytest.approx(total, rel=0.01)
        scanned = torch.cat([distance.dense, NORMAL_LENGTH * distance.dense_normals], dim=1)
        posed = torch.cat([points[body], NORMAL_LENGTH * normals[body]], dim=1)
        closest, near = (
            (posed - scanned[distance.match(states, excess=excess).of_template[body]]).norm(dim=1)
            for excess in (0.0, 0.5)
        )
        torch.testing.assert_close(closest, torch.cdist(posed, scanned).amin(dim=1), rtol=1e-3, atol=1e-4)
        assert (near <= 1.5 * closest + 1e-4).all()


@torch.no_grad()
def test_poses_become_codes_again(model: ArticulatedSDF) -> None:
    states = model.training_states()
    start = model.prior.mean.expand(len(states.center), -1)
    codes = _codes_of_poses(model, PartPoses(states.center, states.rotation), start, steps=5)
    before = (model.hypernetwork(start).center - states.center).norm(dim=-1).mean()
    after = (model.hypernetwork(codes).center - states.center).norm(dim=-1).mean()
    assert after < 0.2 * before


@torch.no_grad()
def test_a_limb_is_exchanged_if_the_scan_has_that_of_another_body(model: ArticulatedSDF) -> None:
    table = model.codes_parameter
    assert table is not None
    states = model.training_states()
    hand = states.center[:, left_arm(model, states)[0], 1]
    up, down = int(hand.argmax()), int(hand.argmin())
    scan = sampled(surface_of(model, code_of(model, up), states.select(slice(up, up + 1))))
    donors = PartPoses(states.center[up : up + 1], states.rotation[up : up + 1])
    distance = TemplateDistance(model, scan, seed=0)
    codes = _exchange_limbs(model, distance, table[down : down + 1], donors)
    before, after = (distance(model.hypernetwork(code)) for code in (table[down : down + 1], codes))
    assert after.min() < 0.8 * before.min()


@torch.no_grad()
def test_the_search_finds_arms_that_no_training_body_has_together(model: ArticulatedSDF) -> None:
    template = model.template.part_template()
    for left, right in ((0.8, -0.8), (-0.8, 0.8), (0.8, 0.8)):
        mesh = figure(left, right)
        center, _ = part_poses(template, torch.from_numpy(np.asarray(mesh.vertices)).float())
        codes = search_codes(model, sampled(mesh), model.prior.mean + 3, 8, seed=0)
        assert 1 <= len(codes) <= FOUND
        found = model.hypernetwork(codes).center
        apart = (found[:, None] - found).norm(dim=-1).mean(dim=2)
        assert (apart[~torch.eye(len(codes), dtype=torch.bool)] > APART).all()  # no body twice
        nearest = (model.training_states().center - center).norm(dim=-1).mean(dim=1).min()
        assert (model.hypernetwork(codes[:1]).center - center).norm(dim=-1).mean() < 0.6 * nearest
        again = search_codes(model, sampled(mesh), model.prior.mean + 3, 8, seed=0)
        torch.testing.assert_close(codes, again, rtol=0, atol=0)


# -------------------------------------------------------------------------------------------------------------- encoder


def test_the_encoder_learns_where_the_parts_are_and_all_else_stays(
    model: ArticulatedSDF, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"POINTNET": (16, 5e-3, 2e-2), "WARMUP": 5}.items():
        monkeypatch.setattr(encoder, name, value)  # seconds instead of minutes
    learner = copy.deepcopy(model)
    rng = np.random.default_rng(0)  # as for the fixture
    store = Figures({f"f{i}": figure(*rng.uniform(-0.8, 0.8, 2), rng.uniform(0.9, 1.1)) for i in range(16)})
    unseen = [figure(*angles) for angles in ((0.8, -0.8), (-0.8, 0.8), (0.7, 0.7))]
    scans = [scan_of(mesh).sample(2000, np.random.default_rng(1)) for mesh in unseen]
    vertices = [torch.from_numpy(np.asarray(mesh.vertices)).float() for mesh in unseen]
    targets = torch.stack([part_poses(learner.template.part_template(), each)[0] for each in vertices])

    @torch.no_grad()
    def error() -> float:
        return float((learner.states(fit.encode(learner, scans)).center - targets).norm(dim=-1).mean())

    before, untouched = error(), {name: p.clone() for name, p in learner.state_dict().items()}
    train_encoder(learner, store, list(store.meshes), EncoderBudget(80, None), seed=0)
    assert error() < 0.75 * before  # the space knows no headings, which the training draws
    changed = {name for name, p in learner.state_dict().items() if not torch.equal(p, untouched[name])}
    assert changed == {name for name in learner.encoder_parameters() if "log_variance" not in name}
    again = copy.deepcopy(model)
    train_encoder(again, store, list(store.meshes), EncoderBudget(80, None), seed=0)
    torch.testing.assert_close(again.state_dict(), learner.state_dict(), rtol=0, atol=0)
    assert all(p.requires_grad for name, p in learner.named_parameters() if name.startswith("decoder"))


def test_points_are_carried_by_their_parts(model: ArticulatedSDF) -> None:
    """A rigid motion of all parts moves the points alike."""
    with torch.no_grad():
        states = model.states(code_of(model))
    turn = turn_by(torch.tensor([[0.2, -0.5, 0.1]]))
    points = torch.rand(1, 50, 3) - 0.5
    moved = PartPoses(states.center @ turn.mT + 0.1, turn[:, None] @ states.rotation)
    torch.testing.assert_close(
        carry(points, states, moved, model.decoder.radius), points @ turn.mT + 0.1, atol=1e-5, rtol=0
    )


def test_small_parts_have_more_points_than_their_share(model: ArticulatedSDF) -> None:
    """A fourth root of the share of the points is left: for a tenth of the points about a third of those drawn."""
    with torch.no_grad():
        states = model.hypernetwork(model.prior.mean[None])
    count = states.center.shape[1]
    rng = np.random.default_rng(0)
    sizes = np.where(np.arange(count) % 2 == 0, 900, 100)
    at = np.repeat(states.center[0].numpy(), sizes, axis=0)
    scan = Scan("cloud", (at + 1e-4 * rng.normal(size=at.shape)).astype(np.float32))
    drawn = draw_by_part(model, scan, states, len(scan) // 4, seed=0)
    assert len(drawn) == len(scan) // 4
    part = model.nearest_parts(torch.from_numpy(drawn.points)[None], states.center)[0, :, 0].numpy()
    share = (part % 2 == 1).mean()
    assert 0.25 < share < 0.4  # 0.1 by area
    again = draw_by_part(model, scan, states, len(scan) // 4, seed=0)
    np.testing.assert_array_equal(drawn.points, again.points)
