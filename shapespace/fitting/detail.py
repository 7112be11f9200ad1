"""Detail of a scan that a network cannot represent: the moving least squares of its points."""

import torch
from jaxtyping import Float
from torch import Tensor

from shapespace.data.loader import Batch
from shapespace.geometry import proximity
from shapespace.geometry.isosurface import Balls
from shapespace.geometry.mls import MovingLeastSquares
from shapespace.geometry.scan import Scan
from shapespace.models.base import SDFModel
from shapespace.models.code import Code
from shapespace.nn.mlp import Linearization

# Arbitrary values:
MODEL_WEIGHT = 0.05  # weight of the model's field in the detail; a point has weight 1 at its own position
DETAIL_WIDTHS = 0.5, 0.7, 1.0, 1.4  # candidates, in units of the distance to the sixth neighbor of a point


class DetailedModel(SDFModel):
    """An adapted model with the detail of the scan's points.

    Near points, the field is their moving least squares; it blends into the model's field where the points end.
    """

    def __init__(self, model: SDFModel, scan: Scan, width: float) -> None:
        """`width` is that of the kernel, in model units; the scan needs normals."""
        super().__init__()
        assert scan.normals is not None
        self.model, self.prior, self.level = model, model.prior, model.level
        self.scan = MovingLeastSquares(scan.points, scan.normals, width)

    def encode(self, batch: Batch) -> Code:
        """Codes of the adapted model."""
        return self.model.encode(batch)

    def loss_terms(self, batch: Batch, code: Code) -> dict[str, Tensor]:
        """Loss terms of the adapted model."""
        return self.model.loss_terms(batch, code)

    def domain(self, code: Code) -> Balls | None:
        """The domain of the adapted model: its field is meaningful there, and so is the detail of the scan."""
        return self.model.domain(code)

    def linearize(self, x: Float[Tensor, "b q 3"], code: Code) -> Linearization:
        """Linearization of the adapted model without the detail, which moves the surface by a millimeter or two."""
        return self.model.linearize(x, code)

    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        """Field of the model, blended with the heights above the scan near its points; without a graph."""
        smooth = self.model.field(x, code).detach()
        result = self.scan(x.detach().cpu().double().flatten(0, 1).numpy())
        height, weight = (torch.from_numpy(array).to(smooth).view_as(smooth) for array in result)
        return torch.where(weight > 0, (height + MODEL_WEIGHT * smooth) / (weight + MODEL_WEIGHT), smooth)


def add_detail(model: SDFModel, scan: Scan, code: Code, check: Float[Tensor, "1 n 3"]) -> SDFModel:
    """The model with detail of the width that gives the least mean |f| at the points `check`.

    The model itself if no width is better than none, as with few or noisy points.
    """
    spacing = proximity.median_spacing(scan.points, neighbor=6)
    candidates = [model, *(DetailedModel(model, scan, factor * spacing) for factor in DETAIL_WIDTHS)]
    with torch.no_grad():
        return min(candidates, key=lambda made: float(made.field(check, code).abs().mean()))
