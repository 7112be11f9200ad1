"""Encoders as parts: what strangers get, and who learns from the lesson."""

from dataclasses import replace

import torch

from shapespace.data.loader import Batch
from shapespace.models.encoders import AutoDecoder, DistilledEncoder
from shapespace.nn.latent import CodeTable
from shapespace.nn.pointnet import PointNet


def batch(shape: list[int]) -> Batch:
    points = torch.randn(len(shape), 40, 3, generator=torch.Generator().manual_seed(0))
    return Batch(points, points, None, points, points[:, :5], torch.tensor(shape))


def taught() -> DistilledEncoder:
    torch.manual_seed(0)
    pointnet = PointNet(code_dim=3, num_points=40, width=16, features=32)
    return DistilledEncoder(pointnet, CodeTable(num_scans=2, code_dim=3, init_std=1.0))


def test_a_known_scan_has_its_free_code_and_a_stranger_the_encoder_s() -> None:
    encoder, given = taught(), batch([1, -1])
    code = encoder(given).flat
    torch.testing.assert_close(code[0], encoder.table.codes[1])
    torch.testing.assert_close(code[1], encoder.pointnet(given.points)[0][1])
    assert torch.equal(AutoDecoder(encoder.table)(given).flat[1], encoder.table.codes.mean(dim=0))


def test_the_lesson_moves_the_encoder_and_not_the_codes() -> None:
    encoder = taught()
    lesson = encoder(batch([1, 0])).lesson
    assert lesson is not None
    assert (lesson > 0).all()
    lesson.sum().backward()
    assert encoder.table.codes.grad is None or not encoder.table.codes.grad.any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.pointnet.parameters())
    strangers = encoder(replace(batch([0, 1]), shape=torch.tensor([-1, -1])))
    assert strangers.lesson is not None
    assert not strangers.lesson.any()
