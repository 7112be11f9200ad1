"""Quality of fits: ood score, coverage, residuals, and the summary."""

import math

import numpy as np
import pytest
import torch
from trimesh import Trimesh, creation

from shapespace.fitting.quality import FitQuality, assess
from shapespace.geometry.scan import Scan
from shapespace.models.code import Code
from shapespace.nn.latent import OOD_THRESHOLD, GaussianPrior

BALL = creation.icosphere(subdivisions=3, radius=0.5)


def half() -> Scan:
    points = BALL.sample(20_000, seed=0).astype(np.float32)
    return Scan("half", points[points[:, 2] > 0])


def prior(count: int = 200) -> tuple[GaussianPrior, torch.Tensor]:
    codes = torch.randn(count, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 1.0, 2.0]) + 3
    made = GaussianPrior(code_dim=4)
    made.fit(codes)
    return made, codes


def test_training_codes_have_an_ood_score_of_one_and_distant_ones_are_out_of_distribution() -> None:
    made, codes = prior()
    scan = half().select(np.arange(100))  # its coverage is not asked for here
    found = [assess(Code((code[None],)), made, np.zeros(3), scan, BALL).ood_score for code in codes]
    assert np.mean(found) == pytest.approx(1, rel=0.1)
    direction = torch.tensor([0.0, 0, 0, 2])
    near, far = (made.mean + size * direction for size in (2, 9))
    assert assess(Code((near[None],)), made, np.zeros(3), scan, BALL).in_distribution
    distant = assess(Code((far[None],)), made, np.zeros(3), scan, BALL)
    assert distant.ood_score > OOD_THRESHOLD
    assert not distant.in_distribution


def test_coverage_and_residuals_are_in_meters() -> None:
    made, codes = prior()
    found = assess(Code((codes[:1],)), made, np.linspace(0, 0.1, 101), half(), BALL)
    assert found.coverage == pytest.approx(0.52, abs=0.01)  # half, and 20 mm beyond its rim of 0.5 m
    assert (found.median, found.p95) == (pytest.approx(0.05), pytest.approx(0.095))


def test_coverage_counts_area_not_vertices() -> None:
    seen, dense = creation.box((1, 1, 1)), creation.box((1, 1, 1)).subdivide().subdivide().subdivide()
    dense.apply_translation((5, 0, 0))
    both = Trimesh(
        np.concatenate([seen.vertices, dense.vertices]),
        np.concatenate([seen.faces, dense.faces + len(seen.vertices)]),
        process=False,
    )
    assert (both.vertices[:, 0] < 2).mean() < 0.05
    scan = Scan("seen", seen.sample(30_000, seed=0))
    found = [assess(Code((torch.zeros(1, 4),)), None, np.empty(0), scan, both).coverage for _ in range(2)]
    assert found[0] == pytest.approx(0.5, abs=0.02)
    assert found[0] == found[1]
    nothing = Scan("none", np.empty((0, 3), np.float32))
    assert math.isnan(assess(Code((torch.zeros(1, 4),)), None, np.empty(0), nothing, both).coverage)


def test_undefined_values_are_nan_and_give_no_warning() -> None:
    found = assess(Code((torch.zeros(1, 2, 2, 2),)), None, np.empty(0), half(), None)
    assert all(math.isnan(value) for value in (found.median, found.p95, found.ood_score, found.coverage))
    assert found.in_distribution
    assert found.summary == ""


def test_the_limit_of_low_confidence_falls_with_coverage() -> None:
    seen = [FitQuality(0.002, 0.007, 5.0, coverage) for coverage in (0.1, 0.38, 0.39, 0.9, math.nan)]
    assert [quality.low_confidence for quality in seen] == [True, True, False, False, False]
    assert not FitQuality(0.002, 0.007, 3.0, 0.9, ood_limit=2.0).in_distribution
    assert FitQuality(0.002, 0.007, 3.0, 0.9, ood_limit=8.0).in_distribution
    assert FitQuality(0.002, 0.007, 3.0, 0.35, ood_limit=3.5).low_confidence
    assert not FitQuality(0.002, 0.007, 3.0, 0.35, ood_limit=8.0).low_confidence
    assert not FitQuality(0.002, 0.007, 12.0, 0.4).low_confidence  # out of distribution, which is reported already
    assert not FitQuality(0.002, 0.007, math.nan, 0.1).low_confidence
    assert not FitQuality(0.002, 0.007, 0.9, 0.0).low_confidence  # no higher than training codes
    assert FitQuality(math.nan, math.nan, 5.0, 0.3).summary.endswith(
        "The scan covers 30% of the surface. Low confidence: the code is unusual for this coverage. The unseen side "
        "may be wrong; add another view."
    )


def test_summary() -> None:
    assert FitQuality(0.0021, 0.007, 1.7, 0.92).summary == (
        "Half of the scan is within 2.1 mm, 95 % within 7.0 mm. In distribution: score 1.7 (training scans are near 1, "
        "limit 8). The scan covers 92% of the surface."
    )
    assert (
        "Out of distribution: score 12.0 (training scans are near 1, limit 8). This is probably not a person"
        in FitQuality(0.0021, 0.007, 12.0, 0.92).summary
    )
    assert FitQuality(math.nan, math.nan, math.nan, 0.5).summary == "The scan covers 50% of the surface."
