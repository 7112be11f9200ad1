"""Encoders: codes of unseen scans, and the distillation loss."""

from dataclasses import replace

import torch

from shapespace.data.loader import Batch
from shapespace.models.encoders import AutoDecoder, DistilledEncoder
from shapespace.nn.latent import CodeTable
from shapespace.nn.pointnet import PointNet


def batch(scan_index: list[int]) -> Batch:
    points = torch.randn(len(scan_index), 40, 3, generator=torch.Generator().manual_seed(0))
    return Batch(points, points, None, points, points[:, :5], torch.tensor(scan_index))


def distilled() -> DistilledEncoder:
    torch.manual_seed(0)
    pointnet = PointNet(code_dim=3, num_points=40, width=16, features=32)
    return DistilledEncoder(pointnet, CodeTable(num_scans=2, code_dim=3, init_std=1.0))


def test_a_training_scan_has_its_free_code_and_an_unseen_scan_that_of_the_encoder() -> None:
    encoder, given = distilled(), batch([1, -1])
    code = encoder(given).flat
    torch.testing.assert_close(code[0], encoder.table.codes[1])
    torch.testing.assert_close(code[1], encoder.pointnet(given.points)[0][1])
    assert torch.equal(AutoDecoder(encoder.table)(given).flat[1], encoder.table.codes.mean(dim=0))


def test_distillation_has_gradients_in_the_encoder_and_not_in_the_codes() -> None:
    encoder = distilled()
    distillation = encoder(batch([1, 0])).distillation
    assert distillation is not None
    assert (distillation > 0).all()
    distillation.sum().backward()
    assert encoder.table.codes.grad is None or not encoder.table.codes.grad.any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.pointnet.parameters())
    unseen = encoder(replace(batch([0, 1]), scan_index=torch.tensor([-1, -1])))
    assert unseen.distillation is not None
    assert not unseen.distillation.any()
