"""A table of learned codes: the auto-decoder's stand-in for an encoder."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Codebook(nn.Module):
    """One free code for each training scan (IGR, section 6, zero at the start; DeepSDF, CVPR 2019, section 4.2).

    `spread` is the standard deviation of the codes at the start: codes that differ are told apart sooner.
    `noise` is that of the codes that a training sees (`blurred`), in units of the standard deviation of all codes.
    The table is a parameter, so it is in the state dict: after a resume the codes go on moving.
    """

    def __init__(self, *, shapes: int, code: int, spread: float = 0.0, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise
        self.codes = nn.Parameter(spread * torch.randn(shapes, code))

    def blurred(self, code: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """While training, codes with noise: what lies around a code is then told to be much the same shape.

        The noise is that of a variational auto-decoder (Zadeh et al., arXiv 1903.00840) with a fixed variance; it keeps
        pace with the table, so that codes do not flee from it by growing.
        """
        if not self.training or not self.noise:
            return code
        size = self.noise * self.codes.detach().std(dim=0).mean()
        return code + size * torch.randn_like(code)

    def forward(self, shape: Int[Tensor, "b"]) -> Float[Tensor, "b k"]:
        """The codes of these training scans; a scan that is not among them (-1) has the mean code."""
        known = self.codes[shape.clamp(min=0)]
        return torch.where((shape >= 0)[:, None], known, self.codes.mean(dim=0, keepdim=True))
