"""Voxel grid: the volumetric baseline of IGR (Gropp et al., ICML 2020, section 7.2)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shapespace.data.loader import Batch
from shapespace.models import sdf
from shapespace.models.base import FieldModel, ModelConfig
from shapespace.models.code import Code
from shapespace.nn import feature_grid, losses
from shapespace.nn.latent import CodeTable


class Voxel(FieldModel):
    """Free values at the nodes of a grid for each shape, with trilinear interpolation between them.

    The values are differences from the signed distance to a sphere, the initial shape. Shapes share no parameters: the
    fit of an unseen scan starts from the mean of the training shapes and depends on its points alone.
    """

    sphere: Tensor

    def __init__(self, table: CodeTable, *, grid: int, init_radius: float) -> None:
        super().__init__()
        self.table, self.grid, self.prior = table, grid, None
        axis = torch.linspace(-1, 1, grid)
        nodes = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
        self.register_buffer("sphere", nodes.norm(dim=-1) - init_radius, persistent=False)

    def encode(self, batch: Batch) -> Code:
        """Grids of the training scans; their mean for unseen scans."""
        return Code((self.table(batch.scan_index).view(-1, *(self.grid,) * 3),))

    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        """Signed distance (model units), negative inside."""
        return feature_grid.interpolate((self.sphere + code.parts[0])[:, None], x)[..., 0]

    def loss_terms(self, batch: Batch, code: Code) -> dict[str, losses.Scalar]:
        """Terms of IGR, with gradients by differences over one cell: those of a trilinear field are discontinuous."""
        value_and_gradient = sdf.finite_difference_gradient(self.field, 2 / (self.grid - 1))
        return sdf.loss_terms(value_and_gradient, self.field, batch, code) | {"code_reg": code.flat.norm(dim=-1).mean()}


@dataclass(frozen=True)
class VoxelConfig(ModelConfig):
    """Settings of a `Voxel` model."""

    grid: int = 32
    """Nodes along each axis."""
    init_radius: float = 0.5
    """Radius of the initial sphere (model units)."""


def build_voxel(config: VoxelConfig, *, num_scans: int = 0) -> Voxel:
    """Build a table of grids for `num_scans` training scans."""
    return Voxel(
        CodeTable(num_scans=num_scans, code_dim=config.grid**3), grid=config.grid, init_radius=config.init_radius
    )
