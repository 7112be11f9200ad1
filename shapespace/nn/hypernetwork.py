"""Part poses and local codes from one global code."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shapespace.nn.mlp import softplus_and_derivative
from shapespace.nn.part_mlp import PartStates

ROTATION_WEIGHT = 0.125  # of a number of a rotation beside one of a center (model units) in the principal components
LEARNING_RATE_OF_COMPONENTS = 0.1  # of that of the other weights: components carry over to unseen poses as they are
POSE_NUMBERS = 9  # center (3) and the first two columns of the rotation (6)


class PartHypernetwork(nn.Module):
    """Global code to the states of all parts.

    Center and rotation (6-D: Zhou et al., CVPR 2019) are `mean + z @ components` and a small MLP's share that is zero
    at first; the components begin as the principal components of the part poses of the training scans. Local codes are
    an MLP's alone.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, *, code_dim: int, num_parts: int, local_dim: int, width: int = 256) -> None:
        super().__init__()
        self.num_parts, self.local_dim = num_parts, local_dim
        self.register_buffer("mean", torch.tensor([0.0, 0, 0, 1, 0, 0, 0, 1, 0]).repeat(num_parts, 1))
        self.register_buffer("components", torch.zeros(code_dim, num_parts * POSE_NUMBERS))
        # A parameter times 0.1 learns ten times slower by Adam.
        self.correction = nn.Parameter(torch.zeros(code_dim, num_parts * POSE_NUMBERS))
        self.pose = _TwoLayers(code_dim, width, num_parts * POSE_NUMBERS)
        self.local = _TwoLayers(code_dim, width, num_parts * local_dim)
        nn.init.zeros_(self.pose.out.weight)
        nn.init.zeros_(self.pose.out.bias)
        nn.init.normal_(self.local.out.weight, 0.0, 0.5 / width**0.5)

    @torch.no_grad()
    def initialize(self, poses: Float[Tensor, "n k 9"]) -> Float[Tensor, "n z"]:
        """Set mean and components to those of these poses; return the codes of the poses.

        The variance of a code's number is the standard deviation of its component, relative to the first one.
        """
        count = len(self.components)
        scale = pose_weights(poses)
        mean = poses.mean(dim=0)
        scaled = ((poses - mean) * scale).flatten(1)
        u, s, vh = torch.linalg.svd(scaled.double(), full_matrices=False)
        kept = min(count, int((s > 1e-6 * s[0]).sum()))
        # z = u s^(1/2) a, components = s^(1/2) v / a
        a = (len(poses) / s[0]).sqrt()
        codes = poses.new_zeros(len(poses), count)
        codes[:, :kept] = (u[:, :kept] * s[:kept].sqrt() * a).to(codes)
        self.mean.copy_(mean)
        self.components.zero_()
        rows = (vh[:kept] * (s[:kept].sqrt() / a)[:, None]).to(codes).view(kept, self.num_parts, POSE_NUMBERS) / scale
        self.components[:kept] = rows.flatten(1)
        return codes

    def weights(self) -> Float[Tensor, "z p"]:
        """The linear components, as learned."""
        return self.components + LEARNING_RATE_OF_COMPONENTS * self.correction

    def forward(self, code: Float[Tensor, "b z"]) -> PartStates:
        """States of all parts."""
        pose = self.poses(code)
        local = self.local(code).view(len(code), self.num_parts, self.local_dim)
        return PartStates(pose[..., :3], rotation_from_6d(pose[..., 3:]), local)

    def poses(self, code: Float[Tensor, "b z"]) -> Float[Tensor, "b k 9"]:
        """Centers and 6-D rotations, not orthonormalized."""
        linear = (code @ self.weights()).view(len(code), self.num_parts, POSE_NUMBERS)
        return self.mean + linear + self.pose(code).view(len(code), self.num_parts, POSE_NUMBERS)

    @torch.no_grad()
    def jacobian(self, code: Float[Tensor, "b z"]) -> Float[Tensor, "b k p z"]:
        """Derivative of every part's center (3), rotation vector (3) and local code (l) in the code."""
        bodies = len(code)
        pose = self.poses(code)
        by_code = self.weights().T + self.pose.jacobian(code)
        by_code = by_code.view(bodies, self.num_parts, POSE_NUMBERS, code.shape[1])
        turn = rotation_vector_jacobian(pose[..., 3:]) @ by_code[:, :, 3:]
        by_local = self.local.jacobian(code).view(bodies, self.num_parts, self.local_dim, code.shape[1])
        return torch.cat([by_code[:, :, :3], turn, by_local], dim=2)


def pose_weights(like: Tensor) -> Float[Tensor, "9"]:
    """Weights of the numbers of a pose in the principal components."""
    weights = torch.full((POSE_NUMBERS,), ROTATION_WEIGHT).to(like)
    weights[:3] = 1
    return weights


class _TwoLayers(nn.Module):
    """MLP with two hidden layers and softplus."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second, self.out = (
            nn.Linear(inputs, width),
            nn.Linear(width, width),
            nn.Linear(width, outputs),
        )

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        """Evaluate."""
        hidden = torch.nn.functional.softplus(self.first(x))
        return self.out(torch.nn.functional.softplus(self.second(hidden)))

    def layers(self) -> list[nn.Linear]:
        """Matrices between hidden layers."""
        return [self.second]

    def jacobian(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o i"]:
        """Derivative of the outputs in the inputs."""
        hidden, first = softplus_and_derivative(self.first(x))
        _, second = softplus_and_derivative(self.second(hidden))
        inner = self.second.weight @ (first[:, :, None] * self.first.weight)
        return self.out.weight @ (second[:, :, None] * inner)


def rotation_from_6d(d6: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 3 3"]:
    """Rotation whose first two columns are those of d6 (3, 3), orthonormalized in order (Zhou et al., CVPR 2019)."""
    x = torch.nn.functional.normalize(d6[..., :3], dim=-1)
    b = d6[..., 3:]
    y = torch.nn.functional.normalize(b - (x * b).sum(dim=-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1)


def rotation_to_6d(rotation: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 6"]:
    """First two columns of a rotation: the inverse of `rotation_from_6d`."""
    return torch.cat([rotation[..., 0], rotation[..., 1]], dim=-1)


def rotation_vector_jacobian(d6: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 3 6"]:
    """Derivative of the rotation vector w of `exp(w) @ rotation_from_6d(d6)` in d6, at w = 0."""
    a, b = d6[..., :3], d6[..., 3:]
    length = a.norm(dim=-1, keepdim=True)
    x = a / length
    along = (x * b).sum(dim=-1, keepdim=True)
    rest = b - along * x
    height = rest.norm(dim=-1, keepdim=True)
    y = rest / height
    z = torch.linalg.cross(x, y)
    # x turns by the part of da across x; y turns about x by the parts of db and da along z
    by_a = (
        torch.einsum("...i,...j->...ij", y, -z / length)
        + torch.einsum("...i,...j->...ij", z, y / length)
        + torch.einsum("...i,...j->...ij", x, -along / (length * height) * z)
    )
    by_b = torch.einsum("...i,...j->...ij", x, z / height)
    return torch.cat([by_a, by_b], dim=-1)
