"""What is checked about a scan before its fit and about the fit after it: findings, and Python warnings of them."""

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from trimesh import Trimesh

from shapespace.fitting.quality import FitQuality, assess
from shapespace.fitting.result import Fit
from shapespace.fitting.surface import coarse_mesh
from shapespace.geometry.findings import Finding, ScanWarning
from shapespace.geometry.orientation import check_orientation
from shapespace.geometry.scan import Scan
from shapespace.io.scan_arrays import check_arrays
from shapespace.models.base import ShapeModel

MIN_STATURE, MAX_STATURE = 1.25, 2.2  # meters: adults; a body outside is a child, or has another scale
USUAL_STATURE = 1.7  # meters: for the factor that a finding offers
MAX_RETRIED_SHARE = 0.75  # of the ood limit: a fit with another heading replaces one out of distribution below it

MIN_PART_HEIGHT = 0.3  # meters: lower scans are no half of a body
CENTER_BELOW_TOP = 0.75  # meters from the top of the head to the center of the surface of an adult, in a usual pose
CENTER_ABOVE_SOLES = 0.9  # meters, the same from the soles


class BodyPart(NamedTuple):
    """The center of a person (meters) of whom a scan is the upper or the lower part, and the finding about it."""

    center: Float[np.ndarray, "3"]
    finding: Finding


def body_parts(scan: Scan) -> list[BodyPart]:
    """The parts of an upright adult that a scan (meters, y up) can be, if it is lower than one; else none.

    The center of its points is then not that of the person, and often too far from it for a fit.
    """
    low, high = np.quantile(scan.points[:, 1], [0.001, 0.999]).tolist()
    if not MIN_PART_HEIGHT < high - low < MIN_STATURE:
        return []
    center = scan.even_out().points.mean(axis=0, dtype=np.float64)
    found = []
    for part, height in (("upper", high - CENTER_BELOW_TOP), ("lower", low + CENTER_ABOVE_SOLES)):
        finding = Finding("part-of-body", {"part": part, "height": round(high - low, 2)})
        found.append(BodyPart(np.array([center[0], height, center[2]]), finding))
    return found


def check_scan(scan: Scan) -> Scan:
    """The scan with arrays, faces, normals and sensors that can be used, and findings about what was changed.

    Raises `ValueError` as `check_arrays` does.
    """
    scan = check_arrays(scan)
    return check_orientation(scan) if np.isfinite(scan.points).all() else scan


def assess_fit(model: ShapeModel, fit: Fit, scan: Scan, mesh: Trimesh | None = None) -> FitQuality:
    """Quality of a fit by its scan (meters, y up).

    Coverage and stature are those of a coarse mesh of the fit (`coarse_mesh`), unless a mesh (meters) is given.
    """
    if mesh is None:
        mesh = coarse_mesh(model, fit)
    return assess(fit.code, model.prior, fit.residuals, scan, mesh)


def quality_findings(quality: FitQuality) -> tuple[Finding, ...]:
    """Findings about a fit by its quality."""
    found = []
    if not quality.in_distribution:
        values = {"ood_score": round(quality.ood_score, 1), "limit": quality.ood_limit}
        found.append(Finding("out-of-distribution", values))
    if quality.low_confidence:
        values = {"ood_score": round(quality.ood_score, 1), "coverage": round(quality.coverage, 3)}
        found.append(Finding("low-confidence", values))
    if quality.stature < MIN_STATURE or quality.stature > MAX_STATURE:
        values = {"stature": round(quality.stature, 3), "factor": round(USUAL_STATURE / quality.stature, 3)}
        found.append(Finding("unlikely-stature", values))
    return tuple(found)


def with_quality(fit: Fit, quality: FitQuality) -> Fit:
    """The fit with its quality, and the findings that follow from it."""
    return replace(fit, quality=quality, findings=(*fit.findings, *quality_findings(quality)))


def warn(fits: Iterable[Fit], stacklevel: int = 3) -> None:
    """Raise the findings of fits as `ScanWarning`s; `stacklevel` 3 is the caller of the function that calls this."""
    for fit in fits:
        for finding in fit.findings:
            message = f"{finding.message(fit.name)} [{finding.code}]"
            warnings.warn(ScanWarning(message, finding), stacklevel=stacklevel)
