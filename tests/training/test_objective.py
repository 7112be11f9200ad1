"""Three executions of the loss: equal values and gradients, equal chunks, and the choice of the execution."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from shapespace.data.loader import Batch, collate
from shapespace.geometry.scan import Scan
from shapespace.models import igr
from shapespace.models.igr import IGR
from shapespace.training import objective
from shapespace.training.objective import Execution, Objective

WEIGHTS = {
    "surface": 1.0,
    "normal": 1.0,
    "eikonal": 0.1,
    "code_reg": 1e-3,
    "tangent_plane": 1.0,
    "unsigned_distance": 1.0,
}


def model(kind: str = "pointnet") -> IGR:
    torch.manual_seed(0)
    config = igr.IGRConfig(
        code_dim=4, width=24, depth=4, skip=2, encoder=kind, code_init_std=1.0, encoder_points=50, encoder_width=16
    )
    return igr.build_igr(config, num_scans=6)


def batch(scans: int = 6, points: int = 80) -> Batch:
    clouds = np.random.default_rng(0).normal(size=(scans, points, 3)).astype(np.float32) * 0.3
    return collate([Scan("", p, p) for p in clouds], scan_index=list(range(scans)), seed=0)


def gradients(of: IGR, one: Batch, execution: Execution) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    weights = WEIGHTS | ({"distillation": 1.0} if of.encode(one).distillation is not None else {})
    of.zero_grad()
    torch.manual_seed(3)  # variational encoders draw
    loss, terms = Objective(of, weights, execution)(one)
    loss.backward()
    return loss.detach(), terms, {name: p.grad.clone() for name, p in of.named_parameters() if p.grad is not None}


def assert_same(computed: tuple[Tensor, dict, dict], expected: tuple[Tensor, dict, dict]) -> None:
    torch.testing.assert_close(computed[0], expected[0], rtol=1e-5, atol=1e-7)
    for one, other in zip(computed[1:], expected[1:], strict=True):
        assert one.keys() == other.keys()
        for name, tensor in other.items():
            assert (one[name] - tensor).norm() <= 1e-5 * tensor.norm() + 1e-9, name


@pytest.mark.parametrize("chunk", [100, 400])
def test_chunks_have_the_gradients_of_the_batch_where_only_some_points_have_a_gradient(
    chunk: int,
) -> None:
    """The same points have a gradient in all chunk sizes."""
    made, one = model("autodecoder"), replace(batch(points=160), gradient_stride=5)
    made.chunk_points = chunk
    assert len(objective.split_batch(one, chunk)) > 1
    assert_same(gradients(made, one, "chunked"), gradients(made, one, "eager"))


@pytest.mark.parametrize("kind", ["pointnet", "variational", "autodecoder", "distilled"])
@pytest.mark.parametrize("chunk", [100, 400, 10_000])  # parts of a scan, some scans together, all in one
def test_chunks_have_the_gradients_of_the_batch(kind: str, chunk: int) -> None:
    made, one = model(kind), batch()
    made.chunk_points = chunk
    assert_same(gradients(made, one, "chunked"), gradients(made, one, "eager"))


def test_chunks_are_equal_parts_of_the_batch() -> None:
    one = batch(scans=6, points=80)  # 170 points of the loss to a scan
    for limit, count in ((60, 30), (170, 6), (340, 3), (700, 2), (2000, 1)):
        chunks = objective.split_batch(one, limit)
        assert len(chunks) == count
        assert len({chunk.batch.surface.numel() for chunk in chunks}) == 1
        for name in ("surface", "normals", "near_points", "uniform_points"):
            seen = torch.cat([getattr(chunk.batch, name).flatten(0, 1) for chunk in chunks])
            assert torch.equal(seen, getattr(one, name).flatten(0, 1)), name


def test_the_same_bits_in_every_run() -> None:
    made, one = model(), batch()
    made.chunk_points = 100
    first = gradients(made, one, "chunked")[2]
    for _ in range(5):
        again = gradients(made, one, "chunked")[2]
        assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


def test_the_loss_is_computed_without_gradients() -> None:
    made, one = model(), batch()
    with torch.no_grad():
        loss, _ = Objective(made, WEIGHTS, "chunked")(one)
    torch.testing.assert_close(loss, gradients(made, one, "eager")[0])


def test_an_error_in_a_chunk_is_raised() -> None:
    with pytest.raises(ValueError, match="no loss term for these weights: bogus"):
        Objective(model(), WEIGHTS | {"bogus": 1.0}, "chunked")(batch())


@pytest.mark.slow
def test_compiled_has_the_gradients_of_eager() -> None:
    """In a separate process: the shape checks of pytest cannot be compiled."""
    script = f"""
import runpy
here = runpy.run_path({__file__!r})
made, one = here["model"]("distilled"), here["batch"](scans=6, points=320)
here["assert_same"](here["gradients"](made, one, "compiled"), here["gradients"](made, one, "eager"))
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_execution_is_chosen_by_the_length_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    made = igr.build_igr(igr.IGRConfig(code_dim=64, width=256))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert objective.choose_execution(made, batch(scans=2, points=80), 10**9, 1.0) == "eager"  # one chunk
    assert objective.choose_execution(made, batch(scans=16, points=128), 3000, None) == "chunked"
    assert objective.choose_execution(made, batch(scans=16, points=128), 10**7, None) == "chunked"
    elsewhere = batch(scans=16, points=128).to("meta")  # stands for a GPU
    assert objective.choose_execution(made, elsewhere, 3000, None) == "eager"
    assert objective.choose_execution(made, elsewhere, 10**6, None) == "compiled"
    assert objective.choose_execution(made, elsewhere, 10**6, 4.0) == "eager"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # one thread: chunks only to save memory
    assert objective.choose_execution(made, batch(scans=16, points=128), 3000, None) == "eager"
    assert objective.choose_execution(made, batch(scans=16, points=1024), 3000, None) == "chunked"


def test_faster_products_are_used_only_if_the_gradients_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    made, one = model(), batch()
    precisions: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", precisions.append)
    objective.set_matmul_precision(made, WEIGHTS, one, "float32")
    assert precisions.pop() == "highest"
    objective.set_matmul_precision(made, WEIGHTS, one, "auto")
    assert precisions[-1] == "medium"  # the precision is mocked, so the gradients are equal

    def rough(self: Objective, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = self.loss(batch, self.model.encode(batch))
        return loss * (1.001 if precisions[-1] == "medium" else 1.0), terms

    monkeypatch.setattr(Objective, "forward", rough)
    objective.set_matmul_precision(made, WEIGHTS, one, "auto")
    assert precisions[-1] == "highest"


def test_the_global_precision_is_restored() -> None:
    before = torch.get_float32_matmul_precision()
    with objective.restore_matmul_precision():
        torch.set_float32_matmul_precision("medium" if before == "highest" else "highest")
        assert torch.get_float32_matmul_precision() != before
    assert torch.get_float32_matmul_precision() == before
