"""Second level of a fit: the poses and local codes of the parts of a body, from its global code."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shapespace.fitting.block_cholesky import BlockPattern
from shapespace.fitting.joints import Border
from shapespace.fitting.levenberg_marquardt import LMOptions, LMState, levenberg_marquardt
from shapespace.fitting.residuals import constraints, estimate_normals, orient_normals, resample, robust_loss
from shapespace.geometry.scan import Scan
from shapespace.geometry.similarity import cross_matrix, left_jacobian
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.code import Code
from shapespace.nn.parallel import parallel_map
from shapespace.nn.part_mlp import PartStates

DRAWN_FROM = 4  # points of a scan for each that is drawn by the parts
POSE_SIZE = 6  # unknowns of a part before its local code: translation (3), rotation vector (3)


class PartFit(NamedTuple):
    """Result of the second level: states of the parts (a batch of one), and the covariance of each part's unknowns."""

    states: PartStates
    covariance: Float[Tensor, "k p p"]


def fit_parts(model: ArticulatedSDF, scan: Scan, states: PartStates, options: LMOptions, seed: int) -> PartFit:
    """Fit the parts of one body (a batch of one) to its scan, both in the model frame, by Levenberg-Marquardt.

    `scan` has the points that are used, with oriented normals where it has any.
    """
    problem = PartProblem(model, scan, states, options, seed)
    start = states.center.new_zeros(1, problem.pattern.num_blocks * problem.pattern.block_size)
    state = levenberg_marquardt(
        lambda _, x: problem(x),
        start,
        max_steps=options.parts.max_steps,
        ftol=options.parts.ftol,
        solver=BlockSolver(problem.pattern),
    )
    covariance = problem.pattern.factorize(state.hessian[0]).inverse_diagonal().to(state.x)
    return PartFit(problem.states_at(state.x), covariance)


def fit_parts_of(
    model: ArticulatedSDF, scans: Sequence[Scan], code: Code, options: LMOptions, seed: int
) -> tuple[Code, Float[Tensor, "b k p p"]]:
    """The second level of several fits: their codes with the states of the parts, and the parts' covariances.

    The scans are in the frames of the codes.
    """
    states = model.states(code)
    options = replace(options, num_points=options.parts.num_points, normal_offset=options.parts.normal_offset)

    def fit(row: int) -> PartFit:
        own = states.select(slice(row, row + 1))
        drawn = draw_by_part(model, estimate_normals(scans[row], seed), own, options.num_points, seed)
        oriented = orient_normals(model, drawn, code[row])
        return fit_parts(model, oriented, own, options, seed)

    with torch.no_grad():
        fits = list(parallel_map(fit, range(len(scans))))
    parts = (torch.cat(tensors) for tensors in zip(*(fit.states for fit in fits), strict=True))
    return Code((code.parts[0], *parts)), torch.stack([fit.covariance for fit in fits])


def draw_by_part(model: ArticulatedSDF, scan: Scan, states: PartStates, count: int, seed: int) -> Scan:
    """`count` points of a scan (model frame), more of them where the parts of its body (a batch of one) are small.

    By area, a finger would have a handful.
    """
    many = resample(scan, DRAWN_FROM * count, seed)
    points = torch.from_numpy(many.points).float()[None].to(states.center.device)
    uniform = torch.rand(1, len(many), generator=torch.Generator().manual_seed(seed)).to(points)
    return many.select(model.draw_by_part(points, states, uniform, count)[0].cpu().numpy())


@dataclass(frozen=True)
class BlockSolver:
    """Solver of normal equations whose matrices are stacks of blocks (r, p, b, b), see `block_cholesky`."""

    pattern: BlockPattern

    def diagonal(self, hessian: Float[Tensor, "s p b b"]) -> Float[Tensor, "s k"]:
        """The diagonal of each matrix."""
        return hessian[:, self.pattern.diagonal].diagonal(dim1=-2, dim2=-1).flatten(1)

    def solve(
        self, hessian: Float[Tensor, "s p b b"], added: Float[Tensor, "s k"], right: Float[Tensor, "s k"]
    ) -> Float[Tensor, "s k"]:
        """The solution of each system with `added` on its diagonal."""
        damped = hessian.clone()
        own = damped[:, self.pattern.diagonal]
        own.diagonal(dim1=-2, dim2=-1).add_(added.view(own.shape[:3]))
        damped[:, self.pattern.diagonal] = own
        solutions = [self.pattern.factorize(one).solve(each) for one, each in zip(damped, right, strict=True)]
        return torch.stack(solutions)


class PartProblem:
    """Cost of the parts' motions from the first level: the scan, free space, and priors.

    The unknowns of a part are its translation, the rotation vector that turns it about its center, and the change of
    its local code, from those of the first level. Rows and robust weights of the scan are those of `FitProblem`.
    """

    def __init__(self, model: ArticulatedSDF, scan: Scan, states: PartStates, lm: LMOptions, seed: int) -> None:
        """`scan` is in the frame of the code, with oriented normals where it has any."""
        self.model, self.start, self.lm, options = model, states, lm, lm.parts
        x, target, is_free = constraints(scan, lm, seed)
        device = states.center.device
        self.x, self.target, self.is_free = x[None].to(device), target[None].to(device), is_free[None].to(device)
        border = Border.of(model)
        gap = border.gaps(states)[0]
        self.border_parts, self.border_weight = border.parts, 1 / options.border_std**2
        self.border_point = border.points(states)[0].mean(dim=1)  # in the middle of where both parts have it
        length = gap.norm(dim=1, keepdim=True).clamp(min=1e-9)
        self.excess = gap * (1 - options.max_gap * border.std[:, None] / length).clamp(min=0)
        _, count, size = states.local_code.shape
        pose = torch.tensor([options.translation_std] * 3 + [options.rotation_std] * 3, device=device)
        local = options.local_std * model.local_std.clamp(min=1e-4)
        self.precision = torch.cat([pose.expand(count, -1), local], dim=1).reciprocal().square()
        part = model.nearest_parts(self.x, states.center)[0]
        first, second = torch.triu_indices(part.shape[1], part.shape[1], 1, device=device)
        meeting = torch.stack([part[:, first], part[:, second]], dim=-1).flatten(0, 1)
        pairs = torch.cat([meeting.sort(dim=1).values, self.border_parts])
        keys = (pairs[:, 0] * count + pairs[:, 1]).unique()  # far faster than that of rows
        pairs = torch.stack([keys // count, keys % count], dim=1)
        self.pattern = BlockPattern.from_pairs(pairs, count, size + POSE_SIZE)

    def states_at(self, x: Float[Tensor, "1 k"]) -> PartStates:
        """States of the parts after these motions."""
        move = x.view(1, -1, self.precision.shape[1])
        turn = torch.linalg.matrix_exp(cross_matrix(move[..., 3:POSE_SIZE]))
        return PartStates(
            self.start.center + move[..., :3], turn @ self.start.rotation, self.start.local_code + move[..., POSE_SIZE:]
        )

    def __call__(self, x: Float[Tensor, "1 k"]) -> LMState:
        """Cost, gradient and blocks of the Gauss-Newton matrix."""
        parts, size = self.precision.shape
        move = x.view(parts, size)
        cost = 0.5 * (move.square() * self.precision).sum()
        gradient = move * self.precision
        blocks = x.new_zeros(len(self.pattern.pairs), size, size)
        blocks[self.pattern.diagonal] = torch.diag_embed(self.precision)
        left = left_jacobian(move[:, 3:POSE_SIZE])
        cost = cost + self._add_scan(x, left, gradient, blocks) + self._add_borders(move, left, gradient, blocks)
        return LMState(x, cost[None], gradient.view(1, -1), blocks[None])

    def _add_scan(self, x: Tensor, left: Tensor, gradient: Tensor, blocks: Tensor) -> Tensor:
        """Add the rows of the scan to gradient and blocks; return their cost."""
        field = self.model.linearize_parts(self.x, self.states_at(x))
        residual = field.value - self.target
        loss, weight = robust_loss(residual, self.is_free & (residual > 0), self.lm)
        keep = weight[0] > 0
        part, jacobian = field.part[0][keep], field.jacobian[0][keep]
        residual, weight = residual[0][keep], weight[0][keep]
        jacobian[..., 3:POSE_SIZE] = (jacobian[..., None, 3:POSE_SIZE] @ left[part])[..., 0, :]
        root = weight.sqrt()
        rows = jacobian * root[:, None, None]
        flat = part.flatten()
        gradient.index_add_(0, flat, (rows * (residual * root)[:, None, None]).flatten(0, 1))
        _add_products(blocks, self.pattern, part, rows)
        return loss.sum()

    def _add_borders(self, move: Tensor, left: Tensor, gradient: Tensor, blocks: Tensor) -> Tensor:
        """Add the rows of the borders: both parts move a point of their border alike, and close what is torn open."""
        parts = self.border_parts
        turn = torch.linalg.matrix_exp(cross_matrix(move[:, 3:POSE_SIZE]))
        arms = self.border_point[:, None] - self.start.center[0][parts]  # (m, 2, 3)
        turned = (turn[parts] @ arms[..., None])[..., 0]
        moved = move[parts, :3] + turned - arms
        residual = moved[:, 0] - moved[:, 1] + self.excess
        eye = torch.eye(3, device=move.device).expand(len(arms), 2, 3, 3)
        jacobian = torch.cat([eye, -cross_matrix(turned) @ left[parts]], dim=-1)  # (m, 2, 3, 6)
        jacobian = jacobian * jacobian.new_tensor([1.0, -1.0])[:, None, None]
        weight = self.border_weight
        pull = weight * (jacobian.mT @ residual[:, None, :, None])[..., 0]
        gradient[:, :POSE_SIZE].index_add_(0, parts.flatten(), pull.flatten(0, 1))
        product = weight * torch.einsum("madi,mbdj->mabij", jacobian, jacobian)
        for a, b in ((0, 0), (1, 1), (0, 1)):
            place = self.pattern.positions(parts[:, [a, b]]).to(blocks.device)
            blocks[:, :POSE_SIZE, :POSE_SIZE].index_add_(0, place, product[:, a, b])
        return 0.5 * weight * residual.square().sum()


def _add_products(
    blocks: Tensor, pattern: BlockPattern, part: Int[Tensor, "q n"], rows: Float[Tensor, "q n p"]
) -> None:
    """Add the products of the rows of each two parts of a point to their block."""
    nearest = part.shape[1]
    first, second = torch.triu_indices(nearest, nearest, device=part.device)
    swap = part[:, first] > part[:, second]
    a, b = torch.where(swap, second, first), torch.where(swap, first, second)  # columns of the lower and the upper part
    point = torch.arange(len(part), device=part.device)[:, None]
    pairs = torch.stack([part.gather(1, a), part.gather(1, b)], dim=-1).flatten(0, 1)
    left, right = ((point * nearest + column).flatten() for column in (a, b))
    known, diagonal = pattern.pairs.to(part.device), pattern.diagonal.to(part.device)
    keys = known[:, 0] * pattern.num_blocks + known[:, 1]
    wanted = pairs[:, 0] * pattern.num_blocks + pairs[:, 1]
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    missing = keys[place] != wanted
    if missing.any():
        # Parts that did not meet at the start: (a + b)^2 <= 2 a^2 + 2 b^2, so the matrix stays positive definite.
        place[missing] = diagonal[pairs[missing, 0]]
        place = torch.cat([place, diagonal[pairs[missing, 1]]])
        upper = right[missing]
        left, right = torch.cat([left, upper]), torch.cat([torch.where(missing, left, right), upper])
    order = place.argsort()
    sizes = place.bincount(minlength=len(keys)).tolist()
    flat = rows.flatten(0, 1)
    left, right = flat[left[order]], flat[right[order]]
    for index, (x, y) in enumerate(zip(left.split(sizes), right.split(sizes), strict=True)):
        if len(x):
            blocks[index].addmm_(x.T, y)
