"""A table of learned codes: the auto-decoder's stand-in for an encoder."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class CodeTable(nn.Module):
    """One free code for each training scan (IGR, section 6, zero at the start; DeepSDF, CVPR 2019, section 4.2).

    `spread` is the standard deviation of the codes at the start: codes that differ are told apart sooner.
    The table is a parameter, so it is in the state dict: after a resume the codes go on moving.
    """

    def __init__(self, *, num_scans: int, code_dim: int, init_std: float = 0.0) -> None:
        super().__init__()
        self.codes = nn.Parameter(init_std * torch.randn(num_scans, code_dim))

    def forward(self, scan_index: Int[Tensor, "b"]) -> Float[Tensor, "b k"]:
        """The codes of these training scans; a scan that is not among them (-1) has the mean code."""
        known = self.codes[scan_index.clamp(min=0)]
        return torch.where((scan_index >= 0)[:, None], known, self.codes.mean(dim=0, keepdim=True))


class GaussianPrior(nn.Module):
    """Mean and covariance of the training codes; buffers, so that they travel with the weights."""

    mean: Tensor
    covariance: Tensor

    def __init__(self, *, code_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(code_dim))
        self.register_buffer("covariance", torch.eye(code_dim))

    @torch.no_grad()
    def fit(self, codes: Float[Tensor, "n k"]) -> None:
        """Take the mean and covariance of `codes`, shrunk so that few codes still give a covariance of full rank.

        With n codes in k dimensions, a share k / (n + k) of the covariance is replaced by its mean variance.
        """
        n, k = codes.shape
        self.mean.copy_(codes.mean(dim=0))
        spread = torch.cov(codes.T, correction=0) if n > 1 else codes.new_zeros(k, k)
        share = k / (n + k)
        even = torch.eye(k, device=codes.device) * spread.diagonal().mean().clamp(min=1e-8)
        self.covariance.copy_((1 - share) * spread.view(k, k) + share * even)

    def precision(self) -> Float[Tensor, "k k"]:
        """Inverse covariance."""
        return torch.cholesky_inverse(torch.linalg.cholesky(self.covariance))

    def principal_axes(self, count: int) -> Float[Tensor, "c k"]:
        """The `count` directions in which the codes differ most, widest first; each is one standard deviation long."""
        variances, axes = torch.linalg.eigh(self.covariance)
        steps = (axes * variances.clamp(min=0).sqrt()).T.flip(0)[:count]
        largest = steps.gather(1, steps.abs().argmax(dim=1, keepdim=True))
        return steps * largest.sign()  # an eigenvector may point either way: its largest number is positive

    def sample(self, count: int) -> Float[Tensor, "c k"]:
        """`count` codes from the prior."""
        return self.mean + torch.randn(count, len(self.mean)) @ torch.linalg.cholesky(self.covariance).T
