"""Standard deviations and samples from the covariance of a code."""

import numpy as np
import torch

from shapespace import ShapeSpace
from shapespace.fitting.posterior import STD_CALIBRATION
from shapespace.fitting.result import Fit
from shapespace.geometry.frame import Frame
from shapespace.models import igr
from shapespace.models.code import Code


def test_a_covariance_that_rounding_made_indefinite_gives_deviations_and_samples() -> None:
    """Variances of 1e4 and 1e-6 along axes that are turned: stored in float32, the small ones are lost."""
    torch.manual_seed(0)
    config = igr.IGRConfig(code_dim=6, width=24, depth=3, skip=1, init_radius=0.5, encoder_points=128)
    space = ShapeSpace(igr.build_igr(config).eval(), config, scale=1.25, metadata={"weights": {}})
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    exact = axes @ np.diag([1e4, 1e4, 1e-6, 1e-6, 1e-6, 1e-6]) @ axes.T
    covariance = exact.astype(np.float32)
    assert np.linalg.eigvalsh(covariance.astype(np.float64)).min() < 0
    fit = Fit(Code((torch.zeros(1, 6),)), Frame(torch.zeros(3), torch.tensor(1.25)), np.empty(0), covariance)
    std = space.uncertainty(fit, space.mesh(fit, resolution=16))
    assert np.isfinite(std).all()
    assert std.min() > 0
    drawn = torch.cat([sample.code.flat for sample in space.sample_posterior(fit, 4000)]).double().numpy()
    spread = (drawn @ axes).std(axis=0)
    np.testing.assert_allclose(spread[:2], STD_CALIBRATION * 100, rtol=0.05)
    assert spread[2:].max() < 1
