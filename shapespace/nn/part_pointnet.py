"""Small PointNets in the frames of the parts, which correct a code."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shapespace.nn.hypernetwork import POSE_NUMBERS, PartHypernetwork, pose_weights
from shapespace.nn.part_mlp import PartStates

NEIGHBORS = 16  # points that a part sees
BEND = 0.1  # of the local coordinates: a point at 10 radii comes to 5, one at infinity to 10
POSE_STD = 0.02  # of the numbers of the poses, from which a code is taken back (model units)
LAYER_1, LAYER_2, MIXED = 32, 16, 128  # units of the layers of a part, and of the layer over all parts


class PartPointNet(nn.Module):
    """Correction of a code by the points near its parts.

    Every part has a PointNet (Qi et al., CVPR 2017) of its own, on its nearest points in its own frame. Features of all
    parts and the code give the features of the body; both say how the part moves. The code follows by the linear
    components of the part poses, by least squares under the prior, and by a linear share of the body's features. As
    long as the module is not trained, the code stays as it is.

    Iterating a regression on what the present estimate shows is that of Carreira et al. (CVPR 2016); here each part is
    looked at in its own frame.
    """

    def __init__(self, *, code_dim: int, num_parts: int) -> None:
        super().__init__()
        self.first = nn.Parameter(0.5 * torch.randn(num_parts, 3, LAYER_1))
        self.first_bias = nn.Parameter(torch.rand(num_parts, 1, LAYER_1) - 0.5)
        self.second = nn.Parameter((2 / LAYER_1) ** 0.5 * torch.randn(num_parts, LAYER_1, LAYER_2))
        self.second_bias = nn.Parameter(torch.zeros(num_parts, 1, LAYER_2))
        self.body = nn.Linear(num_parts * LAYER_2 + code_dim, MIXED)
        self.motion = nn.Parameter(torch.zeros(num_parts, LAYER_2 + MIXED, 6))
        self.motion_bias = nn.Parameter(torch.zeros(num_parts, 1, 6))
        self.direct = nn.Linear(MIXED, code_dim)
        nn.init.zeros_(self.direct.weight)
        nn.init.zeros_(self.direct.bias)

    @torch.no_grad()
    def replace_codes(
        self, forward: Float[Tensor, "z z"], backward: Float[Tensor, "z z"], offset: Float[Tensor, "z"]
    ) -> None:
        """Adapt to other codes: changes of a code c become `c @ forward`; `c @ backward + offset` is a former code."""
        from_code = self.body.weight[:, -len(backward) :]
        self.body.bias.add_(from_code @ offset)
        from_code.copy_(from_code @ backward.T)
        self.direct.weight.copy_(forward.T @ self.direct.weight)
        self.direct.bias.copy_(self.direct.bias @ forward)

    def forward(
        self,
        points: Float[Tensor, "b n 3"],
        code: Float[Tensor, "b z"],
        states: PartStates,
        radius: Float[Tensor, "k"],
        projection: Float[Tensor, "p z"],
    ) -> Float[Tensor, "b z"]:
        """The corrected code; `states` are those of the parts by `code`. Their gradients end here.

        `projection` is how a code follows the weighted changes of the poses (`PartCorrections`).
        """
        local = _local_points(points, states, radius)
        parts, bodies, near = local.shape[:3]
        hidden = torch.baddbmm(self.first_bias, local.flatten(1, 2), self.first).relu()
        hidden = torch.baddbmm(self.second_bias, hidden, self.second)
        feature = hidden.view(parts, bodies, near, LAYER_2).amax(dim=2)
        body = self.body(torch.cat([feature.transpose(0, 1).flatten(1), code.detach()], dim=1)).relu()
        both = torch.cat([feature, body.expand(parts, -1, -1)], dim=2)
        motion = torch.baddbmm(self.motion_bias, both, self.motion).transpose(0, 1)
        return code.detach() + _pose_change(motion, states, radius).flatten(1) @ projection + self.direct(body)


class PartCorrections(nn.Module):
    """Corrections of a code by part PointNets, one after the other."""

    projection: Tensor

    def __init__(self, *, code_dim: int, num_parts: int, count: int, num_points: int) -> None:
        super().__init__()
        self.num_points = num_points if count else 0
        self.nets = nn.ModuleList(PartPointNet(code_dim=code_dim, num_parts=num_parts) for _ in range(count))
        projection = torch.zeros(num_parts * POSE_NUMBERS, code_dim)
        self.register_buffer("projection", projection, persistent=count > 0)

    def __len__(self) -> int:
        """Number of corrections."""
        return len(self.nets)

    @torch.no_grad()
    def set_projection(self, components: Float[Tensor, "z p"], precision: Float[Tensor, "z z"]) -> None:
        """Set how a code follows the motions of the parts: by least squares under the prior.

        `components` are the changes of the poses (numbers of a part: center, then two columns of the rotation) by the
        code, `precision` is the inverse covariance of the prior. A deviation counts as much as `POSE_STD`.
        """
        scaled = (components.view(len(components), -1, POSE_NUMBERS) * pose_weights(components)).flatten(1).double()
        evidence = scaled / POSE_STD**2
        matrix = evidence @ scaled.T + precision.double()
        self.projection.copy_(torch.linalg.solve(matrix, evidence).T)

    @torch.no_grad()
    def replace_codes(
        self, forward: Float[Tensor, "z z"], backward: Float[Tensor, "z z"], offset: Float[Tensor, "z"]
    ) -> None:
        """Adapt to other codes: changes of a code c become `c @ forward`; `c @ backward + offset` is a former code."""
        self.projection.copy_(self.projection @ forward)
        for net in self.nets:
            cast(PartPointNet, net).replace_codes(forward, backward, offset)

    def forward(
        self,
        points: Float[Tensor, "b n 3"],
        code: Float[Tensor, "b z"],
        hypernetwork: PartHypernetwork,
        radius: Float[Tensor, "k"],
    ) -> list[Float[Tensor, "b z"]]:
        """The code after each correction; the gradient of a code is that of its own correction."""
        codes, points = [], points[:, : self.num_points]
        for net in self.nets:
            with torch.no_grad():
                states = hypernetwork(code)
            code = net(points, code, states, radius, self.projection)
            codes.append(code)
        return codes


@torch.no_grad()
def _local_points(
    points: Float[Tensor, "b n 3"], states: PartStates, radius: Float[Tensor, "k"]
) -> Float[Tensor, "k b m 3"]:
    """The nearest points of each part in its frame, in units of its radius; far ones are drawn near."""
    count = min(NEIGHBORS, points.shape[1])
    index = torch.cdist(states.center, points).topk(count, dim=2, largest=False, sorted=False).indices
    body = torch.arange(len(points), device=points.device)[:, None, None]
    local = (points[body, index] - states.center[:, :, None]) @ states.rotation / radius[:, None, None]
    local = local / (1 + BEND * local.norm(dim=-1, keepdim=True))
    return local.transpose(0, 1)


def _pose_change(
    motion: Float[Tensor, "b k 6"], states: PartStates, radius: Float[Tensor, "k"]
) -> Float[Tensor, "b k 9"]:
    """Weighted changes of center and rotation by a shift (in radii) and a small turn, both in the frame of the part."""
    rotation = states.rotation.detach()
    shift, turn = (rotation @ motion.view(*motion.shape[:2], 2, 3).mT).mT.unbind(dim=2)
    columns = torch.linalg.cross(turn[:, :, None].expand(-1, -1, 2, -1), rotation.mT[:, :, :2])
    return torch.cat([shift * radius[:, None], columns.flatten(2)], dim=2) * pose_weights(motion)
