"""How the weights move: Adam for most, Muon for the hidden products."""

from typing import Any

import torch

from shapespace.models.base import ShapeModel
from shapespace.nn.codebook import Codebook
from shapespace.nn.mlp import SkipMLP


class Optimisers:
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


def optimisers(model: ShapeModel, *, lr: float, lr_codes: float, lr_hidden: float | None) -> Optimisers:
    """Adam with one rate for the networks and one for free codes (IGR, section 6).

    With `lr_hidden`, the products between the decoder's hidden layers are moved by Muon instead, at this rate in units
    of Adam's: the momentum's matrix is made orthogonal, so that every direction in it is learned equally fast (Jordan
    et al., 2024, kellerjordan.github.io/posts/muon; the rate as Liu et al., arXiv 2502.16982, section 2.2).
    """
    hidden = [layer.weight for module in model.modules() if isinstance(module, SkipMLP) for layer in module.layers()]
    hidden = hidden if lr_hidden is not None else []
    codes = [p for module in model.modules() if isinstance(module, Codebook) for p in module.parameters()]
    taken = {id(p) for p in (*codes, *hidden)}
    networks = [p for p in model.parameters() if id(p) not in taken]
    groups = [{"params": networks, "lr": lr}, {"params": codes, "lr": lr_codes}]
    parts: list[torch.optim.Optimizer] = [torch.optim.Adam([group for group in groups if group["params"]])]
    if lr_hidden is not None:
        parts.append(torch.optim.Muon(hidden, lr=lr_hidden, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    return Optimisers(*parts)
