"""The regular volumetric grid that IGR is compared with (Gropp et al., ICML 2020, section 7.2)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shapespace.data.loader import Batch
from shapespace.models import sdf
from shapespace.models.base import FieldModel
from shapespace.models.code import Code
from shapespace.nn import feature_grid, losses
from shapespace.nn.latent import CodeTable


class Voxel(FieldModel):
    """One free value at each node of a grid, for each shape; the field between is trilinear.

    The values are differences from the distance to a sphere, with which all shapes begin. Nothing is shared: a stranger
    begins with the mean of the training shapes, and all that is known of it is its scan.
    """

    sphere: Tensor

    def __init__(self, table: CodeTable, *, grid: int, init_radius: float) -> None:
        super().__init__()
        self.table, self.grid, self.prior = table, grid, None
        axis = torch.linspace(-1, 1, grid)
        nodes = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
        self.register_buffer("sphere", nodes.norm(dim=-1) - init_radius, persistent=False)

    def encode(self, batch: Batch) -> Code:
        """The grids of training scans; their mean for others."""
        return Code((self.table(batch.scan_index).view(-1, *(self.grid,) * 3),))

    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        """Signed distance in model units, negative inside."""
        return feature_grid.interpolate((self.sphere + code.parts[0])[:, None], x)[..., 0]

    def loss_terms(self, batch: Batch, code: Code) -> dict[str, losses.Scalar]:
        """IGR's terms; the gradient by differences over one cell, since that of a trilinear field jumps."""
        both = sdf.finite_difference_gradient(self.field, 2 / (self.grid - 1))
        return sdf.loss_terms(both, self.field, batch, code) | {"code_reg": code.flat.norm(dim=-1).mean()}


@dataclass(frozen=True)
class VoxelConfig:
    """Sizes of a `Voxel` model."""

    grid: int = 32
    """Nodes along each axis."""
    init_radius: float = 0.5
    """Radius, in model units, of the sphere that every shape is at the start."""


def build_voxel(config: VoxelConfig, *, num_scans: int = 0) -> Voxel:
    """A table of grids, one for each of `shapes` training scans."""
    return Voxel(
        CodeTable(num_scans=num_scans, code_dim=config.grid**3), grid=config.grid, init_radius=config.init_radius
    )
