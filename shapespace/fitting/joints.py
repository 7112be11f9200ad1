"""Joints of parts in a fit: two neighboring parts agree about the points of their border."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shapespace.geometry.similarity import cross_matrix
from shapespace.models.articulated import ArticulatedSDF, PartExpansion
from shapespace.nn.part_mlp import PartStates

MIN_STD = 0.003  # model units: least deviation of a gap, below which training bodies do not differ
BODIES = 256  # training bodies whose gaps are measured


class Border(NamedTuple):
    """Points on the borders of neighboring parts at rest.

    `arm` is a point in the frames of its two parts (model units, from their centers), `parts` the two (the lower
    first), `std` the deviation of the gap between both in training bodies, along each axis.
    """

    arm: Float[Tensor, "m 2 3"]
    parts: Int[Tensor, "m 2"]
    std: Float[Tensor, "m"]

    @classmethod
    @torch.no_grad()
    def of(cls, model: ArticulatedSDF) -> "Border":
        """Borders of the template of a model, with the gaps of its training bodies."""
        key = (model.training_key(), model.template.vertices._version)
        if model.border_cache is not None and model.border_cache[0] == key:
            return model.border_cache[1]
        rest, parts = model.border_points()
        arm = rest * model.decoder.radius[parts][..., None]
        border = cls(arm, parts, arm.new_ones(len(arm)))
        table = model.codes_parameter
        squares = arm.new_zeros(len(arm))
        if table is not None and len(table):
            chosen = torch.linspace(0, len(table) - 1, min(BODIES, len(table)), device=arm.device).long()
            squares = border.gaps(model.training_states().select(chosen)).square().mean(dim=(0, 2))
        border = border._replace(std=squares.sqrt().clamp(min=MIN_STD))
        model.border_cache = key, border
        return border

    def points(self, states: PartStates) -> Float[Tensor, "b m 2 3"]:
        """Where both parts have the points."""
        return states.center[:, self.parts] + self.turned(states)

    def turned(self, states: PartStates) -> Float[Tensor, "b m 2 3"]:
        """Vectors from the centers of both parts to the points."""
        return (states.rotation[:, self.parts] @ self.arm[..., None])[..., 0]

    def gaps(self, states: PartStates) -> Float[Tensor, "b m 3"]:
        """From the point of the second part to that of the first."""
        points = self.points(states)
        return points[:, :, 0] - points[:, :, 1]

    def jacobian(self, states: PartStates) -> Float[Tensor, "b m 2 3 6"]:
        """Derivatives of the gaps in center and rotation vector of both parts."""
        turned = self.turned(states)
        eye = torch.eye(3, device=turned.device).expand(*turned.shape, 3)
        both = torch.cat([eye, -cross_matrix(turned)], dim=-1)
        return both * both.new_tensor([1.0, -1.0])[:, None, None]


class JointPrior:
    """Cost of the gaps of bodies given by global codes: linear components stretch limbs far from the training poses."""

    def __init__(self, model: ArticulatedSDF) -> None:
        self.model, self.border = model, Border.of(model)
        self.pairs, self.pair, count = self.border.parts.unique(dim=0, return_inverse=True, return_counts=True)
        self.root = (self.border.std * count[self.pair].sqrt()).reciprocal()

    @torch.no_grad()
    def __call__(self, parts: PartExpansion) -> tuple[Float[Tensor, "r"], Float[Tensor, "r z"], Float[Tensor, "r z z"]]:
        """Cost, gradient and Gauss-Newton matrix for each global code; a pair of parts counts as one point."""
        border, states = self.border, parts.states
        rows, pairs = len(states.center), len(self.pairs)
        residual = border.gaps(states) * self.root[:, None]
        by_part = border.jacobian(states) * self.root[:, None, None, None]
        by_pair = by_part.transpose(2, 3).flatten(3)  # (r, m, 3, 12)
        # in the 12 unknowns of each pair first: they are far fewer than the points
        squares = residual.new_zeros(rows, pairs, 12, 12).index_add_(1, self.pair, by_pair.mT @ by_pair)
        slopes = residual.new_zeros(rows, pairs, 12).index_add_(
            1, self.pair, (by_pair.mT @ residual[..., None])[..., 0]
        )
        unknowns = parts.by_code[:, self.pairs, :6].flatten(2, 3)  # (r, pairs, 12, z)
        matrix = unknowns.flatten(1, 2).mT @ (squares @ unknowns).flatten(1, 2)
        gradient = (unknowns.flatten(1, 2).mT @ slopes.flatten(1)[..., None])[..., 0]
        return 0.5 * residual.flatten(1).square().sum(dim=1), gradient, matrix
