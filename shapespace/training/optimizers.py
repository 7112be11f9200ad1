"""How the weights move: Adam for most, Muon for the hidden products, Adam row by row for free codes."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shapespace.models.base import ShapeModel
from shapespace.nn.latent import CodeTable
from shapespace.nn.mlp import SkipMLP
from shapespace.nn.pointnet import PointNet


class LazyAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba, ICLR 2015, algorithm 1) in which every row of a table keeps its own time.

    A row whose gradient is zero was not visited: it stays, and so do its moments. In plain Adam they fade while it
    waits, so that a code steps the farther the rarer it is visited, and the codes of thousands of scans scatter.
    torch's SparseAdam leaves the rows alone too, but corrects the moments by the number of all steps. There is no
    momentum unless asked for: between two visits of a code the decoder has moved on.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.0, 0.99), eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move the rows that have a gradient."""
        assert closure is None  # nothing here evaluates twice
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    _step_rows(table, table.grad, self.state[table], group)


def _step_rows(table: Tensor, gradients: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    if not state:
        state["step"] = torch.zeros_like(table[:, :1])
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
    rows = gradients.any(dim=1).nonzero()[:, 0]
    gradient, (first, second) = gradients[rows], group["betas"]
    visits = state["step"][rows] + 1
    mean = state["exp_avg"][rows].lerp(gradient, 1 - first)
    square = state["exp_avg_sq"][rows].lerp(gradient.square(), 1 - second)
    state["step"][rows], state["exp_avg"][rows], state["exp_avg_sq"][rows] = visits, mean, square
    size = (square / (1 - second**visits)).sqrt() + group["eps"]
    table[rows] -= group["lr"] * (mean / (1 - first**visits)) / size


class OptimizerGroup:
    """Several optimisers of different parameters, moved as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Move the parameters of all."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The way back from `state_dict`."""
        for part, its in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(its)


def make_optimizers(model: ShapeModel, *, lr: float, lr_codes: float, lr_muon: float | None) -> OptimizerGroup:
    """Adam with one rate for the networks and, row by row, one for free codes (IGR, section 6).

    With `lr_hidden`, the products between hidden layers, the decoder's and the encoder's, are moved by Muon instead, at
    this rate in units of Adam's: the momentum's matrix is made orthogonal, so that every direction in it is learned
    equally fast (Jordan et al., 2024, kellerjordan.github.io/posts/muon; the rate as Liu et al., arXiv 2502.16982,
    section 2.2). Parameters that need no gradient are left out.
    """
    learned = {id(p): p for p in model.parameters() if p.requires_grad}
    modules = list(model.modules())
    products = [layer.weight for one in modules if isinstance(one, SkipMLP | PointNet) for layer in one.layers()]
    hidden = [learned.pop(id(p)) for p in products if id(p) in learned] if lr_muon is not None else []
    tables = [p for one in modules if isinstance(one, CodeTable) for p in one.parameters()]
    codes = [learned.pop(id(p)) for p in tables if id(p) in learned]
    parts: list[torch.optim.Optimizer] = []
    if learned:
        parts.append(torch.optim.Adam(list(learned.values()), lr=lr))
    if codes:
        parts.append(LazyAdam(codes, lr=lr_codes))
    if hidden and lr_muon is not None:
        parts.append(torch.optim.Muon(hidden, lr=lr_muon, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    return OptimizerGroup(*parts)


# Factor on the learning rate at a step, and at a share of the training that has passed.
Schedule = Callable[[int, float], float]


def cosine(*, warmup_steps: int, floor: float = 0.01) -> Schedule:
    """Up over `warmup` steps, then down to `floor` along half a cosine."""

    def factor(step: int, passed: float) -> float:
        rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        return rise * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(passed, 1.0))))

    return factor


def halving(*, every: int, warmup_steps: int = 0) -> Schedule:
    """Halved every `every` steps (IGR halves every 500 epochs)."""

    def factor(step: int, passed: float) -> float:
        rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        return float(rise * 0.5 ** (step // every))

    return factor
