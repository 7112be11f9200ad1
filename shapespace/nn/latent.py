"""A table of learned codes: the auto-decoder's stand-in for an encoder."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Codebook(nn.Module):
    """One free code for each training scan (IGR, section 6, zero at the start; DeepSDF, CVPR 2019, section 4.2).

    `spread` is the standard deviation of the codes at the start: codes that differ are told apart sooner.
    The table is a parameter, so it is in the state dict: after a resume the codes go on moving.
    """

    def __init__(self, *, shapes: int, code: int, spread: float = 0.0) -> None:
        super().__init__()
        self.codes = nn.Parameter(spread * torch.randn(shapes, code))

    def forward(self, shape: Int[Tensor, "b"]) -> Float[Tensor, "b k"]:
        """The codes of these training scans; a scan that is not among them (-1) has the mean code."""
        known = self.codes[shape.clamp(min=0)]
        return torch.where((shape >= 0)[:, None], known, self.codes.mean(dim=0, keepdim=True))
