"""AtlasNet (Groueix et al., CVPR 2018): surfaces from parametric patches."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from trimesh import Trimesh

from shapespace.data.loader import Batch
from shapespace.models.base import ModelConfig, ShapeModel
from shapespace.models.code import Code
from shapespace.models.encoders import Encoder, PointNetEncoder
from shapespace.nn import losses
from shapespace.nn.latent import GaussianPrior
from shapespace.nn.pointnet import PointNet


class Patches(nn.Module):
    """One small MLP for each patch, from (u, v) in the unit square and the code to a point (section 4)."""

    def __init__(self, *, code_dim: int, patches: int, width: int) -> None:
        super().__init__()
        sizes = [2 + code_dim, width, width // 2, width // 4, 3]
        pairs = list(pairwise(sizes))
        self.weights = nn.ParameterList(torch.randn(patches, a, b) * math.sqrt(2 / a) for a, b in pairs)
        self.biases = nn.ParameterList(torch.randn(patches, 1, b) * 0.1 for _, b in pairs)

    def forward(self, uv: Float[Tensor, "b p n 2"], code: Float[Tensor, "b k"]) -> Float[Tensor, "b p n 3"]:
        """Points in [-1, 1]^3; `uv` has points for each patch. The code is multiplied once for each shape and patch."""
        first = self.weights[0]
        x = uv @ first[:, :2] + torch.einsum("bk,pkw->bpw", code, first[:, 2:])[:, :, None] + self.biases[0]
        for weight, bias in zip(list(self.weights)[1:], list(self.biases)[1:], strict=True):
            x = x.relu() @ weight + bias
        return x.tanh()


class Atlas(ShapeModel):
    """Surface of patches: each has an MLP from a point of a square and the code to a point. It has no inside."""

    def __init__(self, encoder: Encoder, decoder: Patches, prior: GaussianPrior) -> None:
        super().__init__()
        self.encoder, self.decoder, self.prior = encoder, decoder, prior

    @property
    def patches(self) -> int:
        """Number of patches."""
        return len(self.decoder.biases[0])

    def encode(self, batch: Batch) -> Code:
        """Encode a batch in one forward pass."""
        return self.encoder(batch)

    def loss_terms(self, batch: Batch, code: Code) -> dict[str, losses.Scalar]:
        """Term `chamfer`: distance between random points of the patches and as many of the scan (eq. 1)."""
        per_patch = -(-batch.surface.shape[1] // self.patches)
        uv = torch.rand(len(code), self.patches, per_patch, 2, device=batch.surface.device)
        predicted = self.decoder(uv, code.parts[0]).flatten(1, 2)
        return {"chamfer": losses.chamfer(predicted, batch.surface)}

    @torch.no_grad()
    def extract_surface(self, code: Code, *, resolution: int = 128) -> list[Trimesh]:
        """One open mesh for each code: each patch is a square grid of about `resolution^2 / patches` cells."""
        side = max(2, round(resolution / math.sqrt(self.patches)) + 1)
        axis = torch.linspace(0, 1, side)
        square = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).flatten(0, 1)
        uv = square.to(code.parts[0].device).expand(1, self.patches, -1, -1)
        corner = np.arange(side * side).reshape(side, side)
        a, b, c, d = (part.ravel() for part in (corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:]))
        faces = np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])
        all_faces = np.concatenate([faces + index * side * side for index in range(self.patches)])

        def mesh(one: Code) -> Trimesh:
            vertices = self.decoder(uv, one.parts[0])[0].flatten(0, 1).cpu().numpy()
            return Trimesh(vertices, all_faces, process=False)

        return [mesh(code[index]) for index in range(len(code))]


@dataclass(frozen=True)
class AtlasConfig(ModelConfig):
    """Settings of an `Atlas` model. The defaults are those of the paper (section 5)."""

    code_dim: int = 1024
    """Dimension of the code."""
    patches: int = 25
    """Number of patches."""
    width: int = 1024
    """Units of the first hidden layer of a patch; the second and third have a half and a quarter."""
    encoder_points: int = 2500
    """Points of a scan that the encoder reads."""
    encoder_width: int = 128
    """Units of the shared layers of the encoder."""
    encoder_features: int = 1024
    """Features that the encoder pools by a maximum over the points."""


def build_atlas(config: AtlasConfig, *, num_scans: int = 0) -> Atlas:
    """Build an AtlasNet; the number of training scans does not matter."""
    pointnet = PointNet(
        code_dim=config.code_dim,
        num_points=config.encoder_points,
        width=config.encoder_width,
        features=config.encoder_features,
    )
    decoder = Patches(code_dim=config.code_dim, patches=config.patches, width=config.width)
    return Atlas(PointNetEncoder(pointnet), decoder, GaussianPrior(code_dim=config.code_dim))
