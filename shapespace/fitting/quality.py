"""Quality of a fit: residuals, coverage of the surface by the scan, and out-of-distribution score of the code.

Small residuals do not show that a scan is a person: a decoder of people fits a ball or a chair to a few millimeters,
with a code unlike that of any person. Formulas: docs/concepts/uncertainty.md.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from trimesh import Trimesh

from shapespace.geometry import proximity
from shapespace.geometry.scan import Scan
from shapespace.models.code import Code
from shapespace.nn.latent import OOD_THRESHOLD, GaussianPrior

COVERAGE_POINTS = 20_000  # over the area of a mesh: the vertices of a template are dense on hands and face
SEEN_DISTANCE = 0.020  # meters: surface within this distance of a scan point counts as seen; arbitrary

OOD_PER_COVERAGE = 13.0
# The prior completes what the scan did not see, so a correct code has a lower score when less was seen. Chosen on
# single views of tuning people (docs/concepts/uncertainty.md); counts of good and bad fits with low confidence:
# docs/results/robustness.md.

STATURE_PER_SIZE = 4.1  # stature over the cube root of the volume; synthetic people: 3.9 to 4.5
STATURE_RATIO = 1.15  # of height and stature by volume: beyond it the body does not stand upright with its arms down


@dataclass(frozen=True)
class FitQuality:
    """Quality of one fit. Lengths are meters; NaN where a value is not defined."""

    median: float
    """Median of the residuals."""
    p95: float
    """95th percentile of the residuals."""
    ood_score: float
    """Squared Mahalanobis distance of the code from the prior over its dimension; near 1 for training scans."""
    coverage: float
    """Share of the surface of the fitted mesh within 20 mm of a scan point, 0 to 1."""
    stature: float = float("nan")
    """Estimated stature of the fitted body (m), see `estimate_stature`."""
    ood_limit: float = OOD_THRESHOLD
    """Largest ood score that is in distribution."""

    @property
    def in_distribution(self) -> bool:
        """Whether the ood score is at most its limit, or not defined."""
        return not self.ood_score > self.ood_limit

    @property
    def low_confidence(self) -> bool:
        """Whether the fit is in distribution, but its ood score is high for its coverage.

        Such a fit may be close to the scan and have another body shape or pose where nothing was seen.
        """
        allowed = self.ood_limit / OOD_THRESHOLD * OOD_PER_COVERAGE * self.coverage
        return self.in_distribution and bool(self.ood_score > np.maximum(1, allowed))

    @property
    def summary(self) -> str:
        """The same in sentences; values that are not defined are left out."""
        sentences = []
        if np.isfinite(self.median):
            sentences.append(
                f"Half of the scan is within {1e3 * self.median:.1f} mm, 95 % within {1e3 * self.p95:.1f} mm."
            )
        if np.isfinite(self.ood_score):
            score = f"score {self.ood_score:.1f} (training scans are near 1, limit {self.ood_limit:g})"
            sentences.append(
                f"In distribution: {score}."
                if self.in_distribution
                else f"Out of distribution: {score}. This is probably not a person, or not upright."
            )
        if np.isfinite(self.coverage):
            sentences.append(f"The scan covers {self.coverage:.0%} of the surface.")
            if self.low_confidence:
                sentences.append(
                    "Low confidence: the code is unusual for this coverage. The unseen side may be wrong; add another "
                    "view."
                )
        return " ".join(sentences)


def assess(
    code: Code, prior: GaussianPrior | None, residuals: Float[np.ndarray, "n"], scan: Scan, mesh: Trimesh | None
) -> FitQuality:
    """Quality of a fit from its code (a batch of one) and its residuals, scan and mesh in meters, in the world.

    The ood score is NaN without a prior, the percentiles without residuals, coverage and stature without a mesh, the
    coverage also without points of the scan.
    """
    median, p95 = np.percentile(residuals, [50, 95]) if len(residuals) else (np.nan, np.nan)
    coverage, stature = np.nan, np.nan
    if mesh is not None and len(mesh.faces):
        stature = estimate_stature(mesh)
        if len(scan):
            points = Scan.from_mesh(mesh).sample(COVERAGE_POINTS, np.random.default_rng(0)).points
            coverage = float((proximity.nearest_point(points, scan.points)[0] < SEEN_DISTANCE).mean())
    score = np.nan if prior is None else ood_score(code, prior)
    limit = OOD_THRESHOLD if prior is None else prior.ood_limit
    return FitQuality(float(median), float(p95), score, coverage, stature, limit)


def estimate_stature(mesh: Trimesh) -> float:
    """Stature (m) of a fitted body (m, y up) in any pose; NaN for a mesh without volume.

    The height, if it agrees with the volume; otherwise (arms up, a crouch) 4.1 times the cube root of the volume, which
    is the stature of people of usual build within an eighth.
    """
    volume = float(mesh.volume) if len(mesh.faces) else 0.0
    if not volume > 0:
        return float("nan")
    height, by_volume = float(np.ptp(mesh.vertices[:, 1])), STATURE_PER_SIZE * volume ** (1 / 3)
    return height if 1 / STATURE_RATIO < height / by_volume < STATURE_RATIO else by_volume


@torch.no_grad()
def ood_score(code: Code, prior: GaussianPrior) -> float:
    """Squared Mahalanobis distance of a code (a batch of one) from the prior over its dimension."""
    offset = code.vector[0] - prior.mean
    return float(offset @ prior.precision() @ offset) / len(offset)
