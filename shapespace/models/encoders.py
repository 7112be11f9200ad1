"""Ways from a batch to codes: one noun, so that auto-decoder training is a part, not a mode."""

import torch
from torch import nn

from shapespace.data.loader import Batch
from shapespace.models.code import Code
from shapespace.nn.latent import CodeTable
from shapespace.nn.pointnet import PointNet, kl_divergence, sample_normal
from shapespace.nn.resnet import ResidualPointNet


class PointNetEncoder(nn.Module):
    """Codes from points; a variational one gives a draw from its posterior while it trains."""

    def __init__(self, pointnet: PointNet | ResidualPointNet) -> None:
        super().__init__()
        self.pointnet = pointnet

    def forward(self, batch: Batch) -> Code:
        """Codes of a batch in one pass."""
        mean, log_variance = self.pointnet(batch.points)
        if log_variance is None or not self.training:
            return Code((mean,))
        return Code((sample_normal(mean, log_variance),), kl=kl_divergence(mean, log_variance))


class AutoDecoder(nn.Module):
    """Free codes of the training scans (IGR, section 6); a stranger has their mean."""

    def __init__(self, table: CodeTable) -> None:
        super().__init__()
        self.table = table

    def forward(self, batch: Batch) -> Code:
        """Codes of a batch, by the scans' rows."""
        return Code((self.table(batch.scan_index),))


class DistilledEncoder(nn.Module):
    """Free codes for the training scans, and a PointNet that is taught to find them; a stranger has the PointNet's.

    The decoder then learns from exact codes, and not from what the encoder cannot tell apart yet.
    """

    def __init__(self, pointnet: PointNet, table: CodeTable) -> None:
        super().__init__()
        self.pointnet, self.table = pointnet, table

    def forward(self, batch: Batch) -> Code:
        """Codes of a batch; `lesson` is the squared distance between a free code and the PointNet's."""
        guess, _ = self.pointnet(batch.points)
        known = (batch.scan_index >= 0)[:, None]
        code = torch.where(known, self.table(batch.scan_index), guess)
        return Code((code,), distillation=(guess - code.detach()).square().sum(dim=-1))


Encoder = PointNetEncoder | AutoDecoder | DistilledEncoder
