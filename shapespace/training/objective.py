"""The loss of a batch and its gradients: one quantity, three ways to compute it.

*eager*: all points in one graph. *blocked*: pieces of about a thousand points, side by side on a CPU's cores; a piece's
gradients are taken before the next one begins, so that memory does not grow with the batch. *compiled*: the same pieces
through torch.compile, or on a GPU the whole batch as CUDA graphs; worth its compilation in long trainings there.
"""

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from shapespace.data.loader import Batch
from shapespace.models.base import ShapeModel
from shapespace.models.code import Code
from shapespace.nn.losses import weighted_sum
from shapespace.nn.mlp import SkipMLP
from shapespace.nn.parallel import CHUNK_POINTS, parallel_map

Execution = Literal["eager", "chunked", "compiled"]
MatmulPrecision = Literal["auto", "float32", "tf32", "bf16"]
Terms = dict[str, Tensor]
Loss = Callable[[Batch, Code], tuple[Tensor, Terms]]

# Minutes of training on a GPU from which on compiling may pay (it takes part of one), and the rough speed, in
# floating-point operations a second, by which the minutes are foreseen. On a CPU it does not: on two cores it saved
# nothing (docs/benchmarks.md), and on one a step of `igr` became slower.
_PAYS, _SPEED = 5.0, 2e13

_PRECISION = {"float32": "highest", "tf32": "high"}


class Objective(nn.Module):
    """The whole loss in one `forward`, so that DistributedDataParallel sees every gradient."""

    def __init__(self, model: ShapeModel, weights: Mapping[str, float], execution: Execution = "eager") -> None:
        super().__init__()
        self.model, self.weights, self.execution = model, dict(weights), execution
        self._loss = _compiled(self.loss) if execution == "compiled" else self.loss

    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        """Loss, and its terms for the record."""
        code = self.model.encode(batch)
        if self.execution == "eager" or batch.points.is_cuda or not torch.is_grad_enabled():
            loss, terms = self._loss(batch, code)
            return loss, {name: term.detach().clone() for name, term in terms.items()}
        learned = [p for p in self.model.parameters() if p.requires_grad]
        found = chunked_gradients(self._loss, batch, code, learned)
        return _Known.apply(found.loss, found.gradients, *code.tensors, *learned), found.terms  # type: ignore[no-untyped-call]

    def loss(self, batch: Batch, code: Code) -> tuple[Tensor, Terms]:
        """Loss and terms of a batch whose codes are known."""
        terms = self.model.loss_terms(batch, code)
        return weighted_sum(terms, self.weights), terms


class LossAndGradients(NamedTuple):
    """A loss with its terms, and its gradients with respect to the code's tensors, then to what is learned."""

    loss: Tensor
    terms: Terms
    gradients: list[Tensor | None]


def chunked_gradients(loss: Loss, batch: Batch, code: Code, learned: Sequence[Tensor]) -> LossAndGradients:
    """Loss and gradients piece by piece; every piece is one share of the whole, since all terms are means.

    The pieces' gradients are added in their order, whichever thread is done first: the same bits in every run.
    """
    pieces = split_batch(batch)

    def one(piece: Chunk) -> LossAndGradients:
        leaves = [tensor[piece.rows].detach().requires_grad_() for tensor in code.tensors]
        with torch.enable_grad():
            part, terms = loss(piece.batch, code.with_tensors(leaves))
            gradients = torch.autograd.grad(part, [*leaves, *learned], allow_unused=True)
        return LossAndGradients(part.detach(), {name: term.detach() for name, term in terms.items()}, list(gradients))

    count = len(code.tensors)
    by_code = [torch.zeros_like(tensor) for tensor in code.tensors]
    total: LossAndGradients | None = None
    for piece, found in zip(pieces, parallel_map(one, pieces), strict=True):
        for whole, gradient in zip(by_code, found.gradients[:count], strict=True):
            if gradient is not None:
                whole[piece.rows] += gradient
        total = _added(total, found._replace(gradients=found.gradients[count:]))
    assert total is not None  # a batch has a scan
    share = 1 / len(pieces)
    known = [gradient for gradient in (*by_code, *total.gradients) if gradient is not None]
    torch._foreach_mul_(known, share)
    terms = {name: term * share for name, term in total.terms.items()}
    return LossAndGradients(total.loss * share, terms, [*by_code, *total.gradients])


class Chunk(NamedTuple):
    rows: slice
    batch: Batch


def split_batch(batch: Batch) -> list[Chunk]:
    """Equal pieces of at most `PIECE` points, as far as the numbers divide: some scans each, or parts of one scan."""
    scans, points = len(batch.points), batch.loss_points
    finest = math.gcd(batch.surface.shape[1], batch.uniform_points.shape[1], batch.num_occupancy_points)
    finest = (
        finest // batch.gradient_stride if finest % batch.gradient_stride == 0 else 1
    )  # the same points have gradients in any pieces
    pieces = next((n for n in _divisors(scans) if scans // n * points <= CHUNK_POINTS), scans)
    parts = next((n for n in _divisors(finest) if points <= n * CHUNK_POINTS), finest)
    each = scans // pieces
    rows = [slice(first, first + each) for first in range(0, scans, each)]
    return [Chunk(some, batch[some].chunk(index, parts)) for some in rows for index in range(parts)]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _added(total: LossAndGradients | None, found: LossAndGradients) -> LossAndGradients:
    """The sum of two; the first one's tensors are overwritten."""
    if total is None:
        return found
    for whole, more in zip(total.gradients, found.gradients, strict=True):
        if whole is not None and more is not None:
            whole += more
    return LossAndGradients(
        total.loss + found.loss, {k: v + found.terms[k] for k, v in total.terms.items()}, total.gradients
    )


class _Known(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if gradient is None else gradient * by_loss for gradient in ctx.gradients)


def _compiled(loss: Loss) -> Loss:
    """The loss through torch.compile; threads that call it first wait for one of them to compile."""
    fast = torch.compile(loss, dynamic=False, mode="reduce-overhead" if torch.cuda.is_available() else None)
    lock, shapes = Lock(), set[tuple[torch.Size, ...]]()

    def call(batch: Batch, code: Code) -> tuple[Tensor, Terms]:
        shape = batch.points.shape, batch.surface.shape, batch.uniform_points.shape
        if shape in shapes:
            return fast(batch, code)
        with lock:
            found = fast(batch, code)
            shapes.add(shape)
        return found

    return call


def set_matmul_precision(
    model: ShapeModel, weights: Mapping[str, float], batch: Batch, precision: MatmulPrecision
) -> None:
    """Set the precision of products.

    `bf16` goes for the decoder's hidden products while it trains, where the processor has instructions for it; on one
    that has not, they stay float32. The others say what torch does with float32 matrices: `auto` takes the faster
    products (TF32 on a GPU; on a CPU oneDNN's, which are bf16 only where there are tiles for it) if the gradients of
    this batch hold to 1e-5 of their norm, and the exact ones if not.
    """
    if precision == "bf16":
        for network in model.modules():
            if isinstance(network, SkipMLP) and _has_bf16(batch.points.device):
                network.matmul_dtype = torch.bfloat16
        return
    if precision != "auto":
        torch.set_float32_matmul_precision(_PRECISION[precision])
        return
    objective = Objective(model, weights, "eager" if batch.points.is_cuda else "chunked")
    learned = [p for p in model.parameters() if p.requires_grad]

    def gradients(precision: str) -> Tensor:
        torch.set_float32_matmul_precision(precision)
        torch.manual_seed(0)
        found = torch.autograd.grad(objective(batch)[0], learned, allow_unused=True)
        return torch.cat([gradient.flatten() for gradient in found if gradient is not None])

    exact, fast = gradients("highest"), gradients("high" if batch.points.is_cuda else "medium")
    if (fast - exact).norm() > 1e-5 * exact.norm():
        torch.set_float32_matmul_precision("highest")


def choose_execution(model: nn.Module, batch: Batch, steps: int, minutes: float | None) -> Execution:
    """The execution that ends a training of so many steps (or minutes) first.

    By arithmetic alone, so that the same training is executed in the same way each time: a step multiplies every
    weight six times for each point.
    """
    points = len(batch.points) * batch.loss_points
    if batch.points.device.type == "cpu":
        held = (
            CHUNK_POINTS if torch.get_num_threads() > 1 else 8 * CHUNK_POINTS
        )  # a core by itself gains only memory by pieces
        return "chunked" if points > held else "eager"
    weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    foreseen = min(12.0 * points * weights * steps / _SPEED / 60, math.inf if minutes is None else minutes)
    return "compiled" if foreseen > _PAYS else "eager"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    held = torch.cpu.get_capabilities()
    return bool(held.get("avx512_bf16") or held.get("amx_bf16") or held.get("bf16"))


def has_compiler() -> bool:
    """Whether torch.compile has what it needs on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
