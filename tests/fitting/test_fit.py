"""Fits: derivatives against autograd, recovery of a known code, prior, free space, alignment."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from shapespace.data.loader import collate
from shapespace.fitting import fit, levenberg_marquardt, residuals
from shapespace.geometry.frame import Frame
from shapespace.geometry.isosurface import largest_component
from shapespace.geometry.normals import estimate
from shapespace.geometry.scan import Scan
from shapespace.geometry.similarity import rotation_grid
from shapespace.models import igr
from shapespace.models.igr import IGR
from shapespace.nn.losses import weighted_sum

WEIGHTS = {
    "surface": 1.0,
    "normal": 1.0,
    "eikonal": 0.1,
    "code_reg": 1e-3,
    "tangent_plane": 0.0,
    "unsigned_distance": 0.0,
}


def ellipsoid(height: float, seed: int = 0, count: int = 600) -> Scan:
    axes = (0.35, height, 0.3)
    sphere = np.random.default_rng(seed).normal(size=(count, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    normals = sphere / axes
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    points = (sphere * axes).astype(np.float32)
    sensors = (points + 2 * normals).astype(np.float32)
    return Scan(f"ellipsoid/{height:.2f}/0", points, normals.astype(np.float32), sensors)


HEIGHTS = (0.3, 0.4, 0.5, 0.6)


@pytest.fixture(scope="module")
def model() -> IGR:
    """A space of ellipsoids of four heights, trained for seconds."""
    torch.manual_seed(0)
    sizes = igr.IGRConfig(
        code_dim=4,
        width=64,
        depth=4,
        skip=2,
        init_radius=0.4,
        encoder_points=256,
        encoder_width=32,
        encoder_features=64,
    )
    made = igr.build_igr(sizes)
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for step in range(250):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 260)
        batch = collate([ellipsoid(h, seed=step, count=256) for h in HEIGHTS], seed=step)
        loss = weighted_sum(made.loss_terms(batch, made.encode(batch)), WEIGHTS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made.eval()
    made.prior.fit(fit.encode(made, [ellipsoid(h) for h in HEIGHTS]).flat.detach())
    return made


def test_gradient_and_matrix_of_the_problem_equal_autograd(model: IGR) -> None:
    scan = ellipsoid(0.45)
    problem = residuals.FitProblem(
        model,
        [scan],
        fit.encode(model, [scan]),
        levenberg_marquardt.LMOptions(num_points=300, alignment="fixed"),
        seed=0,
    )
    flat = (model.prior.mean + 0.1)[None].clone().requires_grad_()
    options = problem.options
    value = model.field(problem.x[0][None], problem.codes.unflatten(flat))[0]
    residual = value - problem.target[0]
    active = ~(problem.is_free[0] & (residual > 0))
    size = residual[active].abs()
    huber = torch.where(
        size < options.huber_delta, 0.5 * size**2, options.huber_delta * (size - 0.5 * options.huber_delta)
    )
    away = flat[0] - model.prior.mean
    share = options.effective_samples / options.num_points / options.noise_std**2
    cost = share * huber.sum() + 0.5 * away @ torch.linalg.solve(model.prior.covariance, away)
    (gradient,) = torch.autograd.grad(cost, flat)
    state = problem(torch.tensor([0]), flat.detach())
    torch.testing.assert_close(state.cost[0], cost.detach(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(state.gradient, gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))
    assert torch.linalg.eigvalsh(state.hessian[0]).min() > 0


def test_lm_fits_an_unseen_height_better_than_the_encoder_and_than_the_mean(model: IGR) -> None:
    scan = ellipsoid(0.55, seed=9)
    found = fit.fit_lm(model, [scan], levenberg_marquardt.LMOptions(num_points=512))
    x = torch.from_numpy(scan.points)[None]
    with torch.no_grad():
        encoded = model.field(x, fit.encode(model, [scan])).abs().mean()
        mean = model.field(x, found.code.unflatten(model.prior.mean[None])).abs().mean()
    error = found.residual.mean()
    assert error < encoded
    assert error < 0.5 * mean
    top = largest_component(model.extract_surface(found.code, resolution=64)[0]).vertices[:, 1].max()
    assert top == pytest.approx(0.55, abs=0.02)


def test_lm_of_many_equals_lm_of_each(model: IGR) -> None:
    bare = ellipsoid(0.45)
    scans = [ellipsoid(0.35), Scan("bare", bare.points), ellipsoid(0.55)]  # the second one has fewer constraints
    together = fit.fit_lm(model, scans, chunk=2)
    for index, scan in enumerate(scans):
        alone = fit.fit_lm(model, [scan])
        torch.testing.assert_close(together.code.flat[index], alone.code.flat[0], atol=2e-3, rtol=1e-2)


def test_without_normals_and_sensors_it_fits_too(model: IGR) -> None:
    scan = ellipsoid(0.45)
    found = fit.fit_lm(model, [Scan(scan.name, scan.points)])
    assert found.residual.mean() < 0.015


def test_bare_points_of_one_view_are_fitted_as_if_the_camera_were_known() -> None:
    """Free space is between camera and points, normals point to it; a scan with normals is unchanged."""
    scan = ellipsoid(0.5, count=4000)
    assert scan.normals is not None
    seen = scan.select(np.flatnonzero(scan.normals[:, 2] < -0.31))
    known = residuals.estimate_normals(Scan("view", seen.points), 0)
    assert known.normals is not None
    assert known.sensors is not None
    assert (known.normals[:, 2] < 0).mean() > 0.99
    assert (residuals.constraints(known, levenberg_marquardt.LMOptions(num_points=300), seed=0)[2]).sum() == 1024
    assert residuals.estimate_normals(seen, 0) is seen
    assert residuals.estimate_normals(Scan("whole", scan.points), 0).sensors is None


def test_unoriented_normals_are_oriented_by_the_field_of_the_code(model: IGR) -> None:
    scan = ellipsoid(0.45, count=2000)
    bare = Scan(scan.name, scan.points, unoriented_normals=estimate(scan.points))
    assert bare.unoriented_normals is not None
    found = residuals.orient_normals(model, bare, fit.encode(model, [scan]))
    assert found.normals is not None
    assert scan.normals is not None
    cosine = (found.normals * scan.normals).sum(axis=1)
    assert (cosine > 0.9).mean() > 0.99
    assert ((bare.unoriented_normals * scan.normals).sum(axis=1) < 0).mean() > 0.2  # signs that changed
    assert bare.unoriented_normals is not None
    unknown = replace(bare, unoriented_normals=np.zeros_like(bare.points))
    of_field = residuals.orient_normals(model, unknown, fit.encode(model, [scan])).normals
    assert of_field is not None
    np.testing.assert_allclose(np.linalg.norm(of_field, axis=1), 1, atol=1e-5)
    assert ((of_field * scan.normals).sum(axis=1) > 0.9).mean() > 0.95


def test_the_prior_determines_what_was_not_seen(model: IGR) -> None:
    """The covariance of a cap of the ellipsoid is larger than that of the whole, and at most the prior."""
    scan = ellipsoid(0.5, count=3000)
    cap = scan.select(np.flatnonzero(scan.points[:, 2] > 0.27))
    whole, part = fit.fit_lm(model, [scan]), fit.fit_lm(model, [cap])
    assert whole.covariance is not None
    assert part.covariance is not None
    assert part.covariance.diagonal(dim1=1, dim2=2).sum() > whole.covariance.diagonal(dim1=1, dim2=2).sum()
    assert torch.linalg.eigvalsh(model.prior.covariance - part.covariance[0]).min() > -1e-5


def test_free_space_is_on_the_rays_and_counts_only_where_the_field_is_inside(model: IGR) -> None:
    scan = ellipsoid(0.5, count=300)
    options = levenberg_marquardt.LMOptions(num_points=300, free_space_points=200)
    x, target, free = residuals.constraints(scan, options, seed=0)
    assert free.sum() == 200
    apart = torch.cdist(x[free], torch.from_numpy(scan.points)).amin(dim=1)
    torch.testing.assert_close(target[free], options.free_space_ratio * apart, atol=1e-5, rtol=1e-3)
    assert ((x[free] / torch.tensor([0.35, 0.5, 0.3])).square().sum(dim=1) > 1).all()  # rays leave the body
    problem = residuals.FitProblem(model, [scan], fit.encode(model, [scan]), options, seed=0)
    code, only = problem.with_identity(model.prior.mean[None]), torch.tensor([0])
    content = problem(only, code).cost
    problem.x[0][free] = 0.0  # as if the sensor had looked through the middle of the body
    assert problem(only, code).cost > content + 100


def test_adam_lowers_the_loss_and_shares_the_terms(model: IGR) -> None:
    scan = ellipsoid(0.45)
    weights = {**WEIGHTS, "distillation": 1.0}  # a weight of the training; a fit has no such term
    start = fit.fit_adam(model, [scan], weights, fit.AdamOptions(points=256, steps=1, half_extent=1.0))
    end = fit.fit_adam(model, [scan], weights, fit.AdamOptions(points=256, steps=100, lr=0.02, half_extent=1.0))
    assert end.covariance is None
    assert end.residual.mean() < 0.5 * start.residual.mean()


ROTATIONS = {"local": [0.1, 0.15, -0.1], "yaw": [0, 2.2, 0], "full": [1.3, 0.4, -1.6]}


@pytest.mark.parametrize("alignment", ROTATIONS)
def test_the_alignment_is_fitted_with_the_code(model: IGR, alignment: levenberg_marquardt.Alignment) -> None:
    """Ellipsoids with three different axes, moved: the surface is the same, at the position of the scan."""
    still = ellipsoid(0.5, count=1500)
    turn = torch.from_numpy(Rotation.from_rotvec(ROTATIONS[alignment]).as_matrix()).float()
    moved = still.to_world(Frame(torch.tensor([0.05, -0.04, 0.03]), torch.tensor(1.0), turn))
    options = levenberg_marquardt.LMOptions(alignment=alignment)
    given, found = fit.fit_lm(model, [still]), fit.fit_lm(model, [still, moved], options)
    assert found.covariance is not None
    assert found.covariance.shape == (2, 4, 4)
    assert found.residual[1].mean() < 1.5 * given.residual[0].mean()
    (frame,) = found.frames[1:]
    assert frame is not None
    surface = frame.to_world(
        torch.from_numpy(model.extract_surface(found.code[1], resolution=48)[0].vertices.copy()).float()
    )
    x = torch.from_numpy(moved.points)
    assert torch.cdist(x, surface).amin(dim=1).mean() < 0.03


def test_a_rotation_is_searched_by_the_encoder_alone_and_bad_candidates_are_dropped(model: IGR) -> None:
    still = ellipsoid(0.5, count=1500)
    turn = torch.from_numpy(Rotation.from_rotvec(ROTATIONS["full"]).as_matrix()).float()
    moved = still.to_world(Frame(torch.zeros(3), torch.tensor(1.0), turn))

    def misfit(frame: Frame) -> float:
        placed = [residuals.resample(moved, 4096, 0).to_model(frame)]
        return float(residuals.residuals(model, placed, fit.encode(model, placed), 0, 256).mean())

    coarse = min(misfit(frame) for frame in fit.as_frames(rotation_grid("full")))
    found = [misfit(frame) for frame in fit.search_alignment(model, moved, "full", levenberg_marquardt.LMOptions(), 0)]
    assert 1 <= len(found) <= 4
    assert found == sorted(found)
    assert found[-1] <= 2 * found[0]
    assert found[0] < coarse  # the grid is refined
    (best,) = fit.search_alignment(model, moved, "full", levenberg_marquardt.LMOptions(max_cost_ratio=1.0), 0)
    assert misfit(best) == pytest.approx(found[0])


def test_the_best_are_chosen_for_each_scan() -> None:
    cost, of = torch.tensor([3.0, 1.0, 2.0, 5.0, 9.0]), [0, 0, 0, 1, 1]
    assert fit.best_per_scan(cost, of, 2) == [1, 2, 3, 4]
    assert fit.best_per_scan(cost, of, 3, 1.8) == [1, 3, 4]
    assert fit.best_per_scan(cost, of, 1) == [1, 3]


def test_gradient_with_an_alignment_is_that_of_the_cost(model: IGR) -> None:
    scan = ellipsoid(0.45)
    options = levenberg_marquardt.LMOptions(num_points=300, alignment="local", huber_delta=1.0)
    problem = residuals.FitProblem(model, [scan], fit.encode(model, [scan]), options, seed=0)
    flat = problem.with_identity((model.prior.mean + 0.1)[None]) + 0.02
    state = problem(torch.tensor([0]), flat)
    for index in range(flat.shape[1]):
        step = torch.zeros_like(flat)
        step[0, index] = 1e-3
        up, down = (problem(torch.tensor([0]), flat + side * step).cost for side in (1, -1))
        slope = float((up - down) / 2e-3)
        assert slope == pytest.approx(
            float(state.gradient[0, index]), rel=0.03, abs=0.02 * float(state.gradient.abs().max())
        )
