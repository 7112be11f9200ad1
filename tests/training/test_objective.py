"""One loss, three executions: the same values, the same gradients; pieces are shares; the choice goes by arithmetic."""

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

WEIGHTS = {"surface": 1.0, "normal": 1.0, "eikonal": 0.1, "code": 1e-3, "tangent": 1.0, "far": 1.0}


def model(kind: str = "pointnet") -> IGR:
    torch.manual_seed(0)
    sizes = igr.IGRConfig(
        code_dim=4, width=24, depth=4, skip=2, encoder=kind, code_init_std=1.0, encoder_points=50, encoder_width=16
    )
    return igr.build_igr(sizes, num_scans=6)


def batch(scans: int = 6, points: int = 80) -> Batch:
    clouds = np.random.default_rng(0).normal(size=(scans, points, 3)).astype(np.float32) * 0.3
    return collate([Scan("", p, p) for p in clouds], scan_index=list(range(scans)), seed=0)


def gradients(of: IGR, one: Batch, execution: Execution) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    weights = WEIGHTS | ({"lesson": 1.0} if of.encode(one).distillation is not None else {})
    of.zero_grad()
    torch.manual_seed(3)  # variational encoders draw
    loss, terms = Objective(of, weights, execution)(one)
    loss.backward()
    return loss.detach(), terms, {name: p.grad.clone() for name, p in of.named_parameters() if p.grad is not None}


def assert_same(found: tuple[Tensor, dict, dict], expected: tuple[Tensor, dict, dict]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-7)
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert one.keys() == other.keys()
        for name, tensor in other.items():
            assert (one[name] - tensor).norm() <= 1e-5 * tensor.norm() + 1e-9, name


@pytest.mark.parametrize("piece", [100, 400])
def test_pieces_have_the_gradients_of_the_whole_where_only_some_points_have_a_gradient(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same points have one, however the batch is cut."""
    monkeypatch.setattr(objective, "PIECE", piece)
    made, one = model("autodecoder"), replace(batch(points=160), sloped=5)
    assert len(objective.split_batch(one)) > 1
    assert_same(gradients(made, one, "chunked"), gradients(made, one, "eager"))


@pytest.mark.parametrize("kind", ["pointnet", "variational", "autodecoder", "distilled"])
@pytest.mark.parametrize("piece", [100, 400, 10_000])  # parts of a scan, some scans together, all in one
def test_pieces_have_the_gradients_of_the_whole(kind: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "PIECE", piece)
    made, one = model(kind), batch()
    assert_same(gradients(made, one, "chunked"), gradients(made, one, "eager"))


def test_pieces_are_equal_shares_of_every_point(monkeypatch: pytest.MonkeyPatch) -> None:
    one = batch(scans=6, points=80)  # 170 points of the loss to a scan
    for limit, count in ((60, 30), (170, 6), (340, 3), (700, 2), (2000, 1)):
        monkeypatch.setattr(objective, "PIECE", limit)
        pieces = objective.split_batch(one)
        assert len(pieces) == count
        assert len({piece.batch.surface.numel() for piece in pieces}) == 1
        for name in ("surface", "normals", "shell", "box"):
            seen = torch.cat([getattr(piece.batch, name).flatten(0, 1) for piece in pieces])
            assert torch.equal(seen, getattr(one, name).flatten(0, 1)), name


def test_the_same_bits_in_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "PIECE", 100)
    made, one = model(), batch()
    first = gradients(made, one, "chunked")[2]
    for _ in range(5):
        again = gradients(made, one, "chunked")[2]
        assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


def test_without_gradients_there_is_a_loss_all_the_same() -> None:
    made, one = model(), batch()
    with torch.no_grad():
        loss, _ = Objective(made, WEIGHTS, "chunked")(one)
    torch.testing.assert_close(loss, gradients(made, one, "eager")[0])


def test_an_error_in_a_piece_surfaces() -> None:
    with pytest.raises(ValueError, match="weights without a term: bogus"):
        Objective(model(), WEIGHTS | {"bogus": 1.0}, "chunked")(batch())


@pytest.mark.slow
def test_compiled_has_the_gradients_of_eager() -> None:
    """In a process of its own: pytest's checks of shapes cannot be compiled."""
    script = f"""
import runpy
here = runpy.run_path({__file__!r})
made, one = here["model"]("distilled"), here["batch"](scans=6, points=320)
here["assert_same"](here["gradients"](made, one, "compiled"), here["gradients"](made, one, "eager"))
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_choice_goes_by_the_length_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    made = igr.build_igr(igr.IGRConfig(code_dim=64, width=256))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert objective.choose_execution(made, batch(scans=2, points=80), 10**9, 1.0) == "eager"  # one piece
    assert objective.choose_execution(made, batch(scans=16, points=128), 3000, None) == "chunked"
    assert objective.choose_execution(made, batch(scans=16, points=128), 10**7, None) == "chunked"
    elsewhere = batch(scans=16, points=128).to("meta")  # stands for a GPU
    assert objective.choose_execution(made, elsewhere, 3000, None) == "eager"
    assert objective.choose_execution(made, elsewhere, 10**6, None) == "compiled"
    assert objective.choose_execution(made, elsewhere, 10**6, 4.0) == "eager"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # nobody to work beside: pieces only where memory asks
    assert objective.choose_execution(made, batch(scans=16, points=128), 3000, None) == "eager"
    assert objective.choose_execution(made, batch(scans=16, points=1024), 3000, None) == "chunked"


def test_faster_products_are_taken_only_if_the_gradients_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    made, one = model(), batch()
    told: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", told.append)
    objective.set_matmul_precision(made, WEIGHTS, one, "float32")
    assert told.pop() == "highest"
    objective.set_matmul_precision(made, WEIGHTS, one, "auto")
    assert told[-1] == "medium"  # nothing was really changed, so the gradients hold

    def rough(self: Objective, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = self.loss(batch, self.model.encode(batch))
        return loss * (1.001 if told[-1] == "medium" else 1.0), terms

    monkeypatch.setattr(Objective, "forward", rough)
    objective.set_matmul_precision(made, WEIGHTS, one, "auto")
    assert told[-1] == "highest"
