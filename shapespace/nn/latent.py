"""Table of free codes for auto-decoders, and the Gaussian prior over codes."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class CodeTable(nn.Module):
    """One free code for each training scan (IGR, section 6, initialized with zeros; DeepSDF, CVPR 2019, section 4.2).

    `init_std` is the standard deviation of the initial codes: codes that differ are separated sooner. The table is a
    parameter, so a checkpoint contains it.
    """

    def __init__(self, *, num_scans: int, code_dim: int, init_std: float = 0.0) -> None:
        super().__init__()
        self.codes = nn.Parameter(init_std * torch.randn(num_scans, code_dim))

    def forward(self, scan_index: Int[Tensor, "b"]) -> Float[Tensor, "b k"]:
        """Codes of the training scans with these indices; the mean code for an unseen scan (index -1)."""
        known = self.codes[scan_index.clamp(min=0)]
        return torch.where((scan_index >= 0)[:, None], known, self.codes.mean(dim=0, keepdim=True))


OOD_THRESHOLD = 8.0
"""Limit of the out-of-distribution score, where one vector and one network hold the whole body: by `humans_v1` unseen
people have 1.2 to 3.0, a table, cylinder, chair, ball, torus, box and a person upside down 8.04 to 18.6."""


class GaussianPrior(nn.Module):
    """Mean and covariance of the training codes, as buffers: they are saved with the weights.

    A code whose squared Mahalanobis distance over its dimension is above `ood_limit` is out of distribution.
    """

    mean: Tensor
    covariance: Tensor

    def __init__(self, *, code_dim: int, ood_limit: float = OOD_THRESHOLD) -> None:
        super().__init__()
        self.ood_limit = ood_limit
        self.register_buffer("mean", torch.zeros(code_dim))
        self.register_buffer("covariance", torch.eye(code_dim))

    @torch.no_grad()
    def fit(self, codes: Float[Tensor, "n k"], *, shrink_to: Literal["isotropic", "diagonal"] = "isotropic") -> None:
        """Set the mean and the covariance of `codes`, with shrinkage so that the covariance has full rank.

        With n codes in k dimensions, a share k / (n + k) of the covariance is replaced by its mean variance, or by its
        diagonal where the numbers of a code have variances of their own.
        """
        n, k = codes.shape
        self.mean.copy_(codes.mean(dim=0))
        covariance = torch.cov(codes.T, correction=0) if n > 1 else codes.new_zeros(k, k)
        shrinkage = k / (n + k)
        variance = covariance.view(k, k).diagonal()
        least = 1e-8 if shrink_to == "isotropic" else max(1e-8, 1e-6 * float(variance.max()))
        target = variance.mean() if shrink_to == "isotropic" else variance
        diagonal = torch.eye(k, device=codes.device) * target.clamp(min=least)
        self.covariance.copy_((1 - shrinkage) * covariance.view(k, k) + shrinkage * diagonal)

    def precision(self) -> Float[Tensor, "k k"]:
        """Inverse covariance."""
        return torch.cholesky_inverse(torch.linalg.cholesky(self.covariance))

    def principal_axes(self, count: int) -> Float[Tensor, "c k"]:
        """The `count` principal axes of the codes, largest variance first; each is one standard deviation long."""
        variances, axes = torch.linalg.eigh(self.covariance)
        steps = (axes * variances.clamp(min=0).sqrt()).T.flip(0)[:count]
        largest = steps.gather(1, steps.abs().argmax(dim=1, keepdim=True))
        return steps * largest.sign()  # the sign of an eigenvector is arbitrary: its largest number is made positive

    def sample(self, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "c k"]:
        """`count` codes drawn from the prior.

        The noise is drawn on the CPU, so that a seed gives the same codes on every device. Without a generator it
        comes from torch's global one.
        """
        noise = torch.randn(count, len(self.mean), generator=generator).to(self.mean)
        return self.mean + noise @ torch.linalg.cholesky(self.covariance).T
