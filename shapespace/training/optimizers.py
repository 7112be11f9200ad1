"""Optimizers: Adam for the networks, Muon for hidden matrices, lazy Adam for codes; learning rate schedules."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shapespace.models.base import ShapeModel
from shapespace.nn.latent import CodeTable
from shapespace.nn.mlp import SkipMLP
from shapespace.nn.parallel import parallel_map
from shapespace.nn.part_mlp import PartMLP
from shapespace.nn.pointnet import PointNet
from shapespace.training.config import OptimConfig
from shapespace.training.objective import has_bfloat16


class LazyAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba, ICLR 2015, algorithm 1) with a step count for each row of a table.

    A row with a zero gradient, and its moments, do not change. In Adam the moments of such a row decay, so that rarely
    visited codes make larger steps, and the codes of thousands of scans scatter. SparseAdam of torch leaves the rows
    unchanged too, but its bias correction uses the number of all steps. By default there is no momentum, because the
    decoder changes between two visits of a code.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.0, 0.99), eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the rows with a nonzero gradient."""
        assert closure is None  # nothing here evaluates the loss again
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    _step_rows(table, table.grad, self.state[table], group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state; torch leaves tensors called `step` on the CPU, but rows of a table on a GPU index them."""
        super().load_state_dict(state_dict)
        for table, state in self.state.items():
            if "step" in state:
                state["step"] = state["step"].to(table.device)


def _step_rows(table: Tensor, gradients: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """Adam step of the rows with a nonzero gradient; `state` has the moments and step counts of all rows."""
    if not state:
        state["step"] = torch.zeros_like(table[:, :1])
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
    rows = gradients.any(dim=1).nonzero()[:, 0]
    gradient, (first, second) = gradients[rows], group["betas"]
    steps = state["step"][rows] + 1
    exp_avg = state["exp_avg"][rows].lerp(gradient, 1 - first)
    exp_avg_sq = state["exp_avg_sq"][rows].lerp(gradient.square(), 1 - second)
    state["step"][rows], state["exp_avg"][rows], state["exp_avg_sq"][rows] = steps, exp_avg, exp_avg_sq
    denominator = (exp_avg_sq / (1 - second**steps)).sqrt() + group["eps"]
    table[rows] -= group["lr"] * (exp_avg / (1 - first**steps)) / denominator


class Float32Muon(torch.optim.Muon):
    """Muon with the orthogonalization in float32; otherwise that of torch, whose checkpoints it reads and writes.

    The bfloat16 products of torch take 30 times as long as those of float32 on a processor without instructions for
    them (256 x 256 matrices, an AMD EPYC with AVX2 alone).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the matrices that have a gradient."""
        assert closure is None  # nothing here evaluates twice
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                update = _orthogonalized(matrix.grad.lerp(mean, group["momentum"]), group)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-0.2 * group["lr"] * math.sqrt(max(matrix.shape)))  # "match_rms_adamw"


# Odd polynomials a x + b x^3 + c x^5 that bring singular values x from 0.003 to 1 into 0.80 to 1.20, by algorithm 1 of
# Amsel et al., The Polar Express (arXiv 2505.16932). The five steps of torch.optim.Muon end in 0.68 to 1.20 there.
POLAR_STEPS = (
    (8.3837, -24.7659, 18.3571),
    (4.0434, -3.0114, 0.5695),
    (3.5056, -2.6267, 0.5257),
    (2.4901, -1.8343, 0.4368),
)
STACK = 32  # matrices that are orthogonalized together on a CPU: 64 x 64 numbers of them fit into the caches of a core


class StackedMuon(torch.optim.Optimizer):
    """Muon for stacks of matrices (*n, i, o), all of them orthogonalized in few batches of products.

    Momentum and scale are those of `torch.optim.Muon` (Nesterov momentum 0.95, `match_rms_adamw`), which takes single
    matrices only; with `steps` of its coefficients, so are the updates.
    """

    def __init__(self, params: Any, lr: float, steps: Sequence[tuple[float, float, float]] = POLAR_STEPS) -> None:
        super().__init__(params, {"lr": lr, "momentum": 0.95})
        self.steps = steps

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the stacks that have a gradient."""
        assert closure is None  # nothing here evaluates twice
        for group in self.param_groups:
            for stack in group["params"]:
                if stack.grad is None:
                    continue
                state = self.state[stack]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(stack)
                mean = state["momentum_buffer"].lerp_(stack.grad, 1 - group["momentum"])
                matrices = stack.grad.lerp(mean, group["momentum"]).flatten(0, -3)
                update = orthogonalize_stack(matrices, self.steps).view_as(stack)
                stack.add_(update, alpha=-0.2 * group["lr"] * math.sqrt(max(stack.shape[-2:])))


def orthogonalize_stack(
    stack: Float[Tensor, "n i o"], steps: Sequence[tuple[float, float, float]]
) -> Float[Tensor, "n i o"]:
    """Matrices with nearly orthonormal rows (or columns, if tall), by the polynomials of `steps`.

    The products are in bfloat16 where the device has instructions for it.
    """
    dtype = torch.bfloat16 if has_bfloat16(stack.device) else stack.dtype
    size = STACK if stack.device.type == "cpu" else max(len(stack), 1)
    is_tall = stack.shape[1] > stack.shape[2]

    def orthogonalized(matrices: Tensor) -> Tensor:
        x = (matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).to(dtype)
        x = x.mT if is_tall else x
        for a, b, c in steps:
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return (x.mT if is_tall else x).to(stack.dtype)

    return torch.cat(parallel_map(orthogonalized, stack.split(size)))


def _orthogonalized(matrix: Tensor, group: dict[str, Any]) -> Tensor:
    """Quintic Newton-Schulz iteration towards the nearest matrix with orthonormal rows (or columns, if tall)."""
    a, b, c = group["ns_coefficients"]
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix) / matrix.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class OptimizerGroup:
    """Several optimizers of different parameters with the interface of one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of all optimizers."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        """Remove all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Step all optimizers."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """States of all optimizers, for a checkpoint."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for part, part_state in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(part_state)


def make_optimizers(model: ShapeModel, *, lr: float, lr_codes: float, lr_muon: float | None) -> OptimizerGroup:
    """Adam for the networks (`lr`), lazy Adam for free codes (`lr_codes`); IGR, section 6, has two rates, too.

    With `lr_muon`, the matrices between hidden layers of decoder and encoder are updated by Muon, which orthogonalizes
    the momentum, so that all of its directions are learned equally fast (Jordan et al., 2024,
    kellerjordan.github.io/posts/muon). Its rate is in units of Adam's (Liu et al., arXiv 2502.16982, section 2.2).
    Parameters without `requires_grad` are left out.
    """
    learned = {id(p): p for p in model.parameters() if p.requires_grad}
    modules = list(model.modules())
    networks = (one for one in modules if isinstance(one, SkipMLP | PointNet))
    matrices = [layer.weight for one in networks for layer in one.layers()]
    hidden = [learned.pop(id(p)) for p in matrices if id(p) in learned] if lr_muon is not None else []
    tables = [p for one in modules if isinstance(one, CodeTable) for p in one.parameters()]
    codes = [learned.pop(id(p)) for p in tables if id(p) in learned]
    stacks = [one.hidden for one in modules if isinstance(one, PartMLP)]
    stacked = [learned.pop(id(p)) for p in stacks if id(p) in learned] if lr_muon is not None else []
    parts: list[torch.optim.Optimizer] = []
    if learned:
        parts.append(torch.optim.Adam(list(learned.values()), lr=lr, fused=True))
    if codes:
        parts.append(LazyAdam(codes, lr=lr_codes))
    if hidden and lr_muon is not None:
        muon = torch.optim.Muon if has_bfloat16(hidden[0].device) else Float32Muon
        parts.append(muon(hidden, lr=lr_muon, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    if stacked and lr_muon is not None:
        parts.append(StackedMuon(stacked, lr=lr_muon))
    return OptimizerGroup(*parts)


# Factor on the learning rate, from the step and the completed fraction of the training.
Schedule = Callable[[int, float], float]


def make_schedule(config: OptimConfig) -> Schedule:
    """Schedule of the learning rate by the settings."""
    if config.schedule == "cosine":
        return cosine(warmup_steps=config.warmup_steps)
    return halving(every=config.halve_every, warmup_steps=config.warmup_steps)


def cosine(*, warmup_steps: int, floor: float = 0.01) -> Schedule:
    """Linear warmup over `warmup_steps`, times half a cosine from 1 down to `floor`."""

    def factor(step: int, fraction: float) -> float:
        rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        return rise * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0))))

    return factor


def halving(*, every: int, warmup_steps: int = 0) -> Schedule:
    """Linear warmup, times a factor that is halved every `every` steps (IGR: every 500 epochs)."""

    def factor(step: int, fraction: float) -> float:
        rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        return float(rise * 0.5 ** (step // every))

    return factor
