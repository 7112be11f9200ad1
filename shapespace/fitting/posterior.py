"""Uncertainty of a fit, and other shapes that its scan may show, from the covariance of its code."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shapespace.fitting.result import Fit
from shapespace.fitting.surface import to_model
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.base import SDFModel, ShapeModel
from shapespace.models.code import Code

STD_CALIBRATION = 3.0
# Factor of the standard deviations that follow from the covariance of a code, which does not include the error that no
# code can represent. Chosen on tuning scans: of the ground truth, 95.6 % is within 1.645 standard deviations for
# complete scans and 88 % for views of one camera (90 % of a Gaussian); 93.7 and 84.7 % on test scans
# (docs/results/robustness.md).

PARTS_STD_CALIBRATION = 1.0
# The same for fits of code and parts: of the ground truth of eight tuning scans, 99.5 % for complete scans and 90.6 %
# for views of one camera is within 1.645 standard deviations.

SCAN_STD = 0.0007  # meters
# Of the template where the scan has points: errors that they share, and folds that no displacement follows. Where it
# has fewer, the deviation of the first two levels counts by the share of the variance that the scan leaves. Of the
# ground truth of six tuning scans, 97.8 % for complete scans and 93.7 % for views of one camera is within 1.645
# deviations; if the variance counted by that share, 99.9 and 95.4 %.

VERTEX_CHUNK = 4096  # vertices whose code Jacobians are in memory at a time


def surface_std(
    model: ShapeModel, fit: Fit, points: Float[np.ndarray, "v 3"], *, of_template: bool = False
) -> Float[np.ndarray, "v"]:
    """Standard deviation (m) of the surface along its normal, at points of the surface of a fit (m).

    `of_template`: the points are the vertices of the registered template, of which the third level knows more where the
    scan has points. Raises `ValueError` for a fit without a covariance.
    """
    root = _covariance_root(fit).to(fit.code.flat.device)
    assert isinstance(model, SDFModel)  # other models have no covariance
    vertices = to_model(points, fit.frame, fit.code.flat.device)
    stds = [_vertex_std(model, fit, chunk, root) for chunk in vertices.split(VERTEX_CHUNK, dim=1)]
    std = float(fit.frame.scale) * torch.cat(stds).cpu().double().numpy()
    return np.hypot(fit.unseen * std, SCAN_STD) if of_template and fit.unseen is not None else std


def _vertex_std(
    model: SDFModel, fit: Fit, vertices: Float[Tensor, "1 v 3"], root: Float[Tensor, "k k"]
) -> Float[Tensor, "v"]:
    """Standard deviation of the surface at vertices (model units): that of the code, and that of the parts."""
    field = model.linearize(vertices, fit.code)
    variance = (field.jacobian[0] @ root).square().sum(dim=1)
    if fit.part_covariance is not None and isinstance(model, ArticulatedSDF):
        covariance = torch.from_numpy(fit.part_covariance).to(vertices)
        local = model.linearize_parts(vertices, model.states(fit.code))
        by_part = torch.einsum("vnp,vnpq,vnq->vn", local.jacobian[0], covariance[local.part[0]], local.jacobian[0])
        # The correlation of the parts is not stored: the sum of deviations bounds that of the sum.
        variance = variance + (_calibration(fit) * by_part.clamp(min=0).sqrt().sum(dim=1)).square()
    return variance.sqrt() / field.gradient[0].norm(dim=1).clamp(min=1e-3)


def sample_posterior(model: ShapeModel, fit: Fit, count: int, *, seed: int = 0) -> list[Fit]:
    """Draw `count` codes from the Gaussian of a fit, with the factor of `surface_std`, at the place of the fit.

    Raises `ValueError` for a fit without a covariance.
    """
    vector = fit.code.vector
    noise = torch.randn(count, vector.shape[1], generator=torch.Generator().manual_seed(seed))
    moved = vector + (noise @ _covariance_root(fit).T).to(vector)
    same = Code(tuple(part.expand(count, *part.shape[1:]) for part in fit.code.parts))
    codes = model.replace_vector(same, moved)
    return [
        Fit(
            codes[index],
            fit.frame,
            np.empty(0),
            name=f"{fit.name}.sample{index}",
            displacement=fit.displacement,
            origin=fit.origin,
        )
        for index in range(count)
    ]


def _covariance_root(fit: Fit) -> Float[Tensor, "k k"]:
    """A root R of the calibrated covariance R R^T of the fit's code vector, on the CPU."""
    if fit.covariance is None:
        raise ValueError(f"{fit.name}: the fit has no covariance. Fit by Levenberg-Marquardt (--method lm).")
    covariance = torch.from_numpy(fit.covariance).double()
    root, info = torch.linalg.cholesky_ex(covariance)
    if int(info):  # it is stored in float32: beside large variances, rounding makes small ones negative
        variances, axes = torch.linalg.eigh(covariance)
        root = axes * variances.clamp(min=0).sqrt()
    return _calibration(fit) * root.float()


def _calibration(fit: Fit) -> float:
    """Factor of the standard deviations that follow from the covariances of a fit."""
    return STD_CALIBRATION if fit.part_covariance is None else PARTS_STD_CALIBRATION
