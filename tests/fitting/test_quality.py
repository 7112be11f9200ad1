"""Verdicts: the code tells what is odd, the scan tells what was seen."""

import math

import numpy as np
import pytest
import torch
from trimesh import creation

from shapespace.fitting.quality import OOD_THRESHOLD, FitQuality, assess
from shapespace.geometry.scan import Scan
from shapespace.models.code import Code
from shapespace.nn.latent import GaussianPrior

BALL = creation.icosphere(subdivisions=3, radius=0.5)


def half() -> Scan:
    points = np.asarray(BALL.vertices, dtype=np.float32)
    return Scan("half", points[points[:, 2] > 0])


def prior(count: int = 200) -> tuple[GaussianPrior, torch.Tensor]:
    codes = torch.randn(count, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 1.0, 2.0]) + 3
    made = GaussianPrior(code_dim=4)
    made.fit(codes)
    return made, codes


def test_training_codes_have_an_oddness_of_one_and_far_ones_are_odd() -> None:
    made, codes = prior()
    found = [assess(Code((code[None],)), made, np.zeros(3), half(), BALL).ood_score for code in codes]
    assert np.mean(found) == pytest.approx(1, rel=0.1)
    direction = torch.tensor([0.0, 0, 0, 2])
    near, far = (made.mean + size * direction for size in (2, 9))
    assert assess(Code((near[None],)), made, np.zeros(3), half(), BALL).in_distribution
    odd = assess(Code((far[None],)), made, np.zeros(3), half(), BALL)
    assert odd.ood_score > OOD_THRESHOLD
    assert not odd.in_distribution


def test_coverage_and_residuals_are_in_metres() -> None:
    made, codes = prior()
    found = assess(Code((codes[:1],)), made, np.linspace(0, 0.1, 101), half(), BALL)
    assert found.coverage == pytest.approx(0.5, abs=0.07)
    assert (found.median, found.p95) == (pytest.approx(0.05), pytest.approx(0.095))


def test_what_cannot_be_told_is_not_a_number_and_no_reproach() -> None:
    found = assess(Code((torch.zeros(1, 2, 2, 2),)), None, np.empty(0), half(), None)
    assert all(math.isnan(value) for value in (found.median, found.p95, found.ood_score, found.coverage))
    assert found.in_distribution
    assert found.summary == ""


def test_the_less_was_seen_the_less_odd_a_sure_code_is() -> None:
    seen = [FitQuality(0.002, 0.007, 5.0, coverage) for coverage in (0.1, 0.38, 0.39, 0.9, math.nan)]
    assert [verdict.low_confidence for verdict in seen] == [True, True, False, False, False]
    assert not FitQuality(0.002, 0.007, 12.0, 0.4).low_confidence  # odd, and so said already
    assert not FitQuality(0.002, 0.007, math.nan, 0.1).low_confidence
    assert not FitQuality(0.002, 0.007, 0.9, 0.0).low_confidence  # no odder than training codes
    assert FitQuality(math.nan, math.nan, 5.0, 0.3).summary.endswith(
        "The scan saw 30% of the surface, and the code is too odd for so little: the rest may be wrong."
    )


def test_a_verdict_in_words() -> None:
    assert FitQuality(0.0021, 0.007, 1.7, 0.92).summary == (
        "Half of the scan is within 2.1 mm, 95 % within 7.0 mm. The scan looks like those that the space was learned "
        "from: the oddness of its code is 1.7 (1 for those, odd above 8). The scan saw 92% of the surface."
    )
    assert "does not look like those" in FitQuality(0.0021, 0.007, 12.0, 0.92).summary
    assert FitQuality(math.nan, math.nan, math.nan, 0.5).summary == "The scan saw 50% of the surface."
