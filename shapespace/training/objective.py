"""Loss and gradients of a batch, computed eagerly, in chunks, or through `torch.compile`.

*eager*: all points in one graph. *chunked*: chunks of about a thousand points, in parallel on the cores of a CPU; each
is differentiated on its own, so that the activations of the whole batch are not in memory. *compiled*: the same
chunks through torch.compile, or on a GPU the whole batch as CUDA graphs.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from shapespace.data.loader import Batch
from shapespace.models.base import ShapeModel
from shapespace.models.code import Code
from shapespace.nn.losses import weighted_sum
from shapespace.nn.mlp import SkipMLP
from shapespace.nn.parallel import CHUNK_POINTS, parallel_results

Execution = Literal["eager", "chunked", "compiled"]
MatmulPrecision = Literal["auto", "float32", "tf32", "bf16"]
Terms = dict[str, Tensor]
Loss = Callable[[Batch, Code], tuple[Tensor, Terms]]

# Compilation takes part of a minute: it is used for trainings on a GPU of at least this many minutes, estimated by this
# rough speed (floating-point operations per second). It is never chosen on a CPU, where it saves nothing
# (docs/results/speed.md).
MIN_COMPILE_MINUTES, ASSUMED_FLOPS = 5.0, 2e13

_PRECISION = {"float32": "highest", "tf32": "high"}


class Objective(nn.Module):
    """Encoder, loss terms and weighted sum in one `forward`, so that DistributedDataParallel reduces every gradient."""

    def __init__(self, model: ShapeModel, weights: Mapping[str, float], execution: Execution = "eager") -> None:
        super().__init__()
        self.model, self.weights, self.execution = model, dict(weights), execution
        self._loss = _compiled(self.loss) if execution == "compiled" else self.loss

    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        """Loss of a batch, and its detached terms."""
        code = self.model.encode(batch)
        if self.execution == "eager" or batch.points.is_cuda or not torch.is_grad_enabled():
            loss, terms = self._loss(batch, code)
            return loss, {name: term.detach().clone() for name, term in terms.items()}
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        result = chunked_gradients(self._loss, batch, code, parameters, self.model.chunk_points)
        loss = _WithGradients.apply(result.loss, result.gradients, *code.tensors, *parameters)  # type: ignore[no-untyped-call]
        return loss, result.terms

    def loss(self, batch: Batch, code: Code) -> tuple[Tensor, Terms]:
        """Loss and terms of a batch with given codes."""
        terms = self.model.loss_terms(batch, code)
        return weighted_sum(terms, self.weights), terms


class LossAndGradients(NamedTuple):
    """Loss, its terms, and its gradients in the tensors of the code, then in the parameters."""

    loss: Tensor
    terms: Terms
    gradients: list[Tensor | None]


def chunked_gradients(
    loss: Loss, batch: Batch, code: Code, parameters: Sequence[Tensor], chunk_points: int = CHUNK_POINTS
) -> LossAndGradients:
    """Loss and gradients by chunks of equal size; the loss is their mean, since all terms are means.

    The gradients are summed in the order of the chunks, whichever thread finishes first: every run has the same bits.
    """
    chunks = split_batch(batch, chunk_points)

    def differentiate(chunk: Chunk) -> LossAndGradients:
        leaves = [tensor[chunk.rows].detach().requires_grad_() for tensor in code.tensors]
        with torch.enable_grad():
            value, terms = loss(chunk.batch, code.with_tensors(leaves))
            gradients = torch.autograd.grad(value, [*leaves, *parameters], allow_unused=True)
        return LossAndGradients(value.detach(), {name: term.detach() for name, term in terms.items()}, list(gradients))

    count = len(code.tensors)
    by_code = [torch.zeros_like(tensor) for tensor in code.tensors]
    total: LossAndGradients | None = None
    with parallel_results(differentiate, chunks) as results:  # not a list: each result has gradients of all parameters
        for chunk, result in zip(chunks, results, strict=True):
            for whole, gradient in zip(by_code, result.gradients[:count], strict=True):
                if gradient is not None:
                    whole[chunk.rows] += gradient
            total = _add(total, result._replace(gradients=result.gradients[count:]))
    assert total is not None  # a batch has a scan
    scale = 1 / len(chunks)
    summed = [gradient for gradient in (*by_code, *total.gradients) if gradient is not None]
    torch._foreach_mul_(summed, scale)
    terms = {name: term * scale for name, term in total.terms.items()}
    return LossAndGradients(total.loss * scale, terms, [*by_code, *total.gradients])


class Chunk(NamedTuple):
    """Part of a batch, and the rows of the batch that it belongs to."""

    rows: slice
    batch: Batch


def split_batch(batch: Batch, limit: int = CHUNK_POINTS) -> list[Chunk]:
    """Split a batch into equal chunks of at most `limit` points as far as the numbers divide.

    A chunk has some scans, or part of the points of one. Every point with a gradient (`gradient_stride`) has one in its
    chunk.
    """
    scans, points = len(batch.points), batch.loss_points
    finest = math.gcd(batch.surface.shape[1], batch.uniform_points.shape[1], batch.num_occupancy_points)
    finest = finest // batch.gradient_stride if finest % batch.gradient_stride == 0 else 1
    groups = next((n for n in _divisors(scans) if scans // n * points <= limit), scans)
    parts = next((n for n in _divisors(finest) if points <= n * limit), finest)
    size = scans // groups
    rows = [slice(first, first + size) for first in range(0, scans, size)]
    return [Chunk(some, batch[some].chunk(index, parts)) for some in rows for index in range(parts)]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _add(total: LossAndGradients | None, more: LossAndGradients) -> LossAndGradients:
    """Sum of two results; the gradients of the first are overwritten."""
    if total is None:
        return more
    for gradient, other in zip(total.gradients, more.gradients, strict=True):
        if gradient is not None and other is not None:
            gradient += other
    terms = {name: term + more.terms[name] for name, term in total.terms.items()}
    return LossAndGradients(total.loss + more.loss, terms, total.gradients)


class _WithGradients(torch.autograd.Function):
    """A loss with gradients that are already computed."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if gradient is None else gradient * by_loss for gradient in ctx.gradients)


def _compiled(loss: Loss) -> Loss:
    """Compile the loss; one thread compiles for a new shape, and the others wait."""
    compiled = torch.compile(loss, dynamic=False, mode="reduce-overhead" if torch.cuda.is_available() else None)
    lock, shapes = Lock(), set[tuple[torch.Size, ...]]()

    def call(batch: Batch, code: Code) -> tuple[Tensor, Terms]:
        shape = batch.points.shape, batch.surface.shape, batch.uniform_points.shape
        if shape in shapes:
            return compiled(batch, code)
        with lock:
            result = compiled(batch, code)
            shapes.add(shape)
        return result

    return call


def set_matmul_precision(
    model: ShapeModel, weights: Mapping[str, float], batch: Batch, precision: MatmulPrecision
) -> None:
    """Set the precision of matrix products.

    `bf16` sets the type of the products between hidden layers of the decoder in training mode, if the processor has
    instructions for it. The others set the global precision of torch for float32 matrices (see
    `restore_matmul_precision`): `auto` is the faster one (TF32 on a GPU; on a CPU that of oneDNN, which is bf16 only on
    processors with tiles for it) if it changes the gradients of this batch by at most 1e-5 of their norm, else float32.
    """
    if precision == "bf16":
        for network in model.modules():
            if isinstance(network, SkipMLP) and has_bfloat16(batch.points.device):
                network.matmul_dtype = torch.bfloat16
        return
    if precision != "auto":
        torch.set_float32_matmul_precision(_PRECISION[precision])
        return
    objective = Objective(model, weights, "eager" if batch.points.is_cuda else "chunked")
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients(precision: str) -> Tensor:
        torch.set_float32_matmul_precision(precision)
        torch.manual_seed(0)
        by_parameter = torch.autograd.grad(objective(batch)[0], parameters, allow_unused=True)
        return torch.cat([gradient.flatten() for gradient in by_parameter if gradient is not None])

    exact, fast = gradients("highest"), gradients("high" if batch.points.is_cuda else "medium")
    if (fast - exact).norm() > 1e-5 * exact.norm():
        torch.set_float32_matmul_precision("highest")


@contextmanager
def restore_matmul_precision() -> Iterator[None]:
    """Restore the global matmul precision of torch at the end of the block."""
    precision = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def choose_execution(model: ShapeModel, batch: Batch, steps: int, minutes: float | None) -> Execution:
    """Fastest execution of a training of so many steps (or minutes).

    It is estimated, not measured, so that a training is executed in the same way each time: a step has six products
    with every weight for each point.
    """
    points = len(batch.points) * batch.loss_points
    if batch.points.device.type == "cpu":
        # with one thread, chunks save memory only
        limit = model.chunk_points if torch.get_num_threads() > 1 else 8 * model.chunk_points
        return "chunked" if points > limit else "eager"
    weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    estimate = min(12.0 * points * weights * steps / ASSUMED_FLOPS / 60, math.inf if minutes is None else minutes)
    return "compiled" if estimate > MIN_COMPILE_MINUTES else "eager"


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products of bfloat16 matrices."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile requires on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
