"""What is to be thought of a fit: how near the scan it is, how much of it was seen, and whether it is like the others.

A decoder of people bends to many things: a ball or a chair is met to a few millimetres, by a code like no person's. So
it is the code that tells. Of what a scan did not see, the space takes what is usual: the less was seen, the less odd is
a code that is right.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from trimesh import Trimesh

from shapespace.geometry import proximity
from shapespace.geometry.scan import Scan
from shapespace.models.code import Code
from shapespace.nn.latent import GaussianPrior

SEEN_DISTANCE = 0.020  # metres: surface this close to a point of the scan was seen
OOD_THRESHOLD = 8.0  # people that `humans` had never seen have 1.4 to 4.3, balls, boxes, chairs and the like 12 to 32
OOD_PER_COVERAGE = (
    13.0  # the oddness, for each share of the surface that was seen, above which a fit is unsure, if above 1
)


@dataclass(frozen=True)
class FitQuality:
    """Of one fit. Lengths are metres; what cannot be told is NaN."""

    median: float
    """Distance of the surface from the scan, at half of its points it is less."""
    p95: float
    """The same at 95 % of them."""
    ood_score: float
    """Squared Mahalanobis distance of the code from the training codes, over the count of its numbers: 1 for those."""
    coverage: float
    """Share of the surface that the scan saw, to within 2 cm."""

    @property
    def in_distribution(self) -> bool:
        """Whether the scan looks like those that the space was learned from, as far as this can be told."""
        return not self.ood_score > OOD_THRESHOLD

    @property
    def low_confidence(self) -> bool:
        """Whether the code is odder than the share of the surface that was seen accounts for, though not odd as such.

        Such a fit may be near its scan and be another body, or another pose, elsewhere.
        """
        return self.in_distribution and bool(self.ood_score > np.maximum(1, OOD_PER_COVERAGE * self.coverage))

    @property
    def summary(self) -> str:
        """The same for people; what cannot be told is left out."""
        said = []
        if np.isfinite(self.median):
            said.append(f"Half of the scan is within {1e3 * self.median:.1f} mm, 95 % within {1e3 * self.p95:.1f} mm.")
        if np.isfinite(self.ood_score):
            like = "looks like" if self.in_distribution else "does not look like"
            said.append(
                f"The scan {like} those that the space was learned from: the oddness of its code is "
                f"{self.ood_score:.1f} (1 for those, odd above {OOD_THRESHOLD:g})."
            )
        if np.isfinite(self.coverage):
            rest = ", and the code is too odd for so little: the rest may be wrong" if self.low_confidence else ""
            said.append(f"The scan saw {self.coverage:.0%} of the surface{rest}.")
        return " ".join(said)


def assess(
    code: Code, prior: GaussianPrior | None, residuals: Float[np.ndarray, "n"], scan: Scan, mesh: Trimesh | None
) -> FitQuality:
    """The verdict on a code of one; scan, mesh and residuals in metres, where the scan lies."""
    median, p95 = np.percentile(residuals, [50, 95]) if len(residuals) else (np.nan, np.nan)
    coverage = np.nan
    if mesh is not None and len(mesh.vertices) and len(scan):
        coverage = float((proximity.nearest_point(np.asarray(mesh.vertices), scan.points)[0] < SEEN_DISTANCE).mean())
    return FitQuality(float(median), float(p95), np.nan if prior is None else ood_score(code, prior), coverage)


@torch.no_grad()
def ood_score(code: Code, prior: GaussianPrior) -> float:
    """Squared Mahalanobis distance of a code (of one) from the training codes, over the count of its numbers."""
    away = code.flat[0] - prior.mean
    return float(away @ prior.precision() @ away) / len(away)
