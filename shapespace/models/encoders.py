"""Encoders: modules from a batch to codes, by a network or a table of free codes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from shapespace.data.loader import Batch
from shapespace.models.code import Code
from shapespace.nn.latent import CodeTable
from shapespace.nn.pointnet import PointNet, kl_divergence, sample_normal
from shapespace.nn.resnet import ResidualPointNet


class PointNetEncoder(nn.Module):
    """Codes from points by a PointNet; a variational one samples its posterior in training mode."""

    def __init__(self, pointnet: PointNet | ResidualPointNet) -> None:
        super().__init__()
        self.pointnet = pointnet

    def forward(self, batch: Batch) -> Code:
        """Encode a batch; `kl` is set by a variational encoder in training mode."""
        mean, log_variance = self.pointnet(batch.points)
        if log_variance is None or not self.training:
            return Code((mean,))
        return Code((sample_normal(mean, log_variance),), kl=kl_divergence(mean, log_variance))


class AutoDecoder(nn.Module):
    """Free codes of the training scans (IGR, section 6); an unseen scan has their mean."""

    def __init__(self, table: CodeTable) -> None:
        super().__init__()
        self.table = table

    def forward(self, batch: Batch) -> Code:
        """Codes of a batch by the indices of its scans."""
        return Code((self.table(batch.scan_index),))


class DistilledEncoder(nn.Module):
    """Free codes for the training scans, and a PointNet that is distilled from them; it encodes unseen scans.

    The decoder is trained on free codes only, so it does not depend on how well the encoder separates scans.
    """

    def __init__(
        self,
        pointnet: PointNet,
        table: CodeTable,
        distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        """`distance(predicted, free)` is the loss of each code; None: the squared distance of the codes."""
        super().__init__()
        self.pointnet, self.table, self.distance = pointnet, table, distance or _squared_distance

    def forward(self, batch: Batch) -> Code:
        """Codes of a batch; `distillation` is the distance of the PointNet's codes from them."""
        predicted, _ = self.pointnet(batch.points)
        known = (batch.scan_index >= 0)[:, None]
        code = torch.where(known, self.table(batch.scan_index), predicted)
        return Code((code,), distillation=self.distance(predicted, code.detach()))


def _squared_distance(predicted: Tensor, code: Tensor) -> Tensor:
    return (predicted - code).square().sum(dim=-1)


Encoder = PointNetEncoder | AutoDecoder | DistilledEncoder
