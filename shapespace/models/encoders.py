"""Encoders: modules from a batch to codes, by a network or a table of free codes."""

import torch
from torch import nn

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

    def __init__(self, pointnet: PointNet, table: CodeTable) -> None:
        super().__init__()
        self.pointnet, self.table = pointnet, table

    def forward(self, batch: Batch) -> Code:
        """Codes of a batch; `distillation` is the squared distance of the PointNet's codes from them."""
        predicted, _ = self.pointnet(batch.points)
        known = (batch.scan_index >= 0)[:, None]
        code = torch.where(known, self.table(batch.scan_index), predicted)
        return Code((code,), distillation=(predicted - code.detach()).square().sum(dim=-1))


class SeparateEncoder(nn.Module):
    """Free codes for the training scans, and a PointNet that is trained after all else; it encodes unseen scans."""

    def __init__(self, pointnet: PointNet, table: CodeTable) -> None:
        super().__init__()
        self.pointnet, self.table = pointnet, table

    def forward(self, batch: Batch) -> Code:
        """Codes of a batch: free ones of training scans, those of the PointNet of other scans."""
        known = (batch.scan_index >= 0)[:, None]
        if known.all():
            return Code((self.table(batch.scan_index),))
        predicted, _ = self.pointnet(batch.points)
        return Code((torch.where(known, self.table(batch.scan_index), predicted),))


Encoder = PointNetEncoder | AutoDecoder | DistilledEncoder
