"""Sequences: the linear problem against a dense solve, interpolated frames, noise, starts from neighbors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from shapespace import ShapeSpace
from shapespace.data.loader import collate
from shapespace.fitting import fit, levenberg_marquardt, sequence, tridiagonal
from shapespace.fitting.result import Fit
from shapespace.fitting.sequence import SequenceOptions, order_frames
from shapespace.geometry import similarity
from shapespace.geometry.scan import Scan
from shapespace.models import igr, registry, voxel
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
LM = levenberg_marquardt.LMOptions(num_points=256, free_space_points=0, effective_samples=100.0)


def ellipsoid(height: float, seed: int = 0, x: float = 0.0, count: int = 400) -> Scan:
    rng = np.random.default_rng(seed)
    axes = (0.35, height, 0.3)
    sphere = rng.normal(size=(count, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    normals = sphere / axes
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    points = sphere * axes + (x, 0, 0)
    return Scan(f"walk/{seed:03d}", points.astype(np.float32), normals.astype(np.float32))


@pytest.fixture(scope="module")
def space() -> ShapeSpace:
    """A space of ellipsoids of four heights, trained for seconds; a model unit is a meter."""
    torch.manual_seed(0)
    sizes = igr.IGRConfig(
        code_dim=3,
        width=48,
        depth=3,
        skip=1,
        init_radius=0.4,
        encoder_points=128,
        encoder_width=32,
        encoder_features=32,
    )
    made = igr.build_igr(sizes)
    heights = (0.3, 0.4, 0.5, 0.6)
    optimizer = torch.optim.Adam(made.parameters(), lr=5e-3)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 210)
        batch = collate([ellipsoid(h, seed=step, count=256) for h in heights], seed=step)
        loss = weighted_sum(made.loss_terms(batch, made.encode(batch)), WEIGHTS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made.eval()
    made.prior.fit(fit.encode(made, [ellipsoid(h) for h in heights]).flat.detach())
    return ShapeSpace(made, sizes, scale=1.0, metadata={"weights": WEIGHTS})


def heights(fits: list[Fit], space: ShapeSpace) -> np.ndarray:
    """Half of each shape's extent along y: the height of the ellipsoid that it is."""
    return np.array([np.ptp(space.mesh(one, resolution=32).bounds[:, 1]) / 2 for one in fits])


def test_growing_ellipsoids_are_steadier_jointly_and_a_missing_one_lies_between(space: ShapeSpace) -> None:
    true = np.linspace(0.35, 0.55, 7)
    flickers = 0.02 * np.array([1, -1, 1, -1, 1, -1, 1])
    scans = [ellipsoid(h, seed=t, x=0.2 * t) for t, h in enumerate(true + flickers)]
    alone = space.fit_scans(scans, lm=LM)
    joint = space.fit_jointly(scans, list(alone), SequenceOptions(acceleration_std=0.03), lm=LM)
    flicker = [np.abs(np.diff(heights(fits, space), 2)).mean() for fits in (alone, joint)]
    assert flicker[1] < 0.6 * flicker[0]
    assert np.abs(heights(joint, space) - true).mean() < 0.02
    steps = np.diff([float(one.frame.center[0]) for one in joint])
    np.testing.assert_allclose(steps, 0.2, atol=0.03)
    assert not any(one.interpolated for one in joint)

    scans[3] = Scan("walk/003", np.empty((0, 3), np.float32))
    joint = space.fit_sequence(scans, SequenceOptions(acceleration_std=0.03), lm=LM)
    assert [one.interpolated for one in joint] == [t == 3 for t in range(7)]
    assert [one.name for one in joint] == [scan.name for scan in scans]
    found = heights(joint, space)
    assert found[2] < found[3] < found[4]
    assert float(joint[3].frame.center[0]) == pytest.approx(0.6, abs=0.03)
    assert len(joint[3].residuals) == 0
    assert joint[3].covariance is not None
    assert joint[3].covariance.shape == (3, 3)


def test_one_round_is_one_dense_gauss_newton_step(space: ShapeSpace) -> None:
    """The quadratic costs of all frames and of the second differences, in one matrix."""
    model, options = space.model, SequenceOptions(acceleration_std=0.2, max_steps=1)
    assert isinstance(model, IGR)
    scans = [ellipsoid(0.45, seed=t, x=0.1 * t * t) for t in range(5)]
    fits = space.fit_scans(scans, lm=LM)
    moments = [sequence.FrameFit(scan, one.code, one.frame) for scan, one in zip(scans, fits, strict=True)]
    rows = [0, 1, 3, 4]
    problem = sequence.fit_problem(model, [moments[row] for row in rows], LM, 0)
    found, spread = sequence.solve_sequence(problem, rows, moments, LM, options)

    start = problem.with_identity(torch.cat([one.code.flat for one in fits]))
    size = start.shape[1]
    state = problem(torch.arange(4), start[rows])
    differences = tridiagonal.second_differences(5)
    offset = torch.zeros(3, size, dtype=torch.float64)
    offset[:, -7:] = similarity.second_differences([one.frame for one in fits])
    assert offset.abs().max() > 0.1  # the frames run faster and faster
    stiff = problem.precision.double() / 0.2**2
    matrix = torch.kron(differences.T @ differences, stiff)
    down = -(differences.T @ (differences @ start.double() + offset) @ stiff)
    for k, row in enumerate(rows):
        matrix[row * size : (row + 1) * size, row * size : (row + 1) * size] += state.hessian[k].double()
        down[row] -= state.gradient[k].double()
    step = torch.linalg.solve(matrix, down.flatten()).view(5, size)
    taken = (found - start).double()
    shares = (taken * step).sum() / step.square().sum()
    assert min(abs(float(shares) - share) for share in (1.0, 0.5, 0.25)) < 1e-3
    torch.testing.assert_close(taken, shares * step, atol=1e-4, rtol=1e-2)
    assert spread.shape == (5, 3, 3)


def test_a_frame_that_was_fitted_badly_is_fitted_again_from_its_neighbors(space: ShapeSpace) -> None:
    model = space.model
    assert isinstance(model, IGR)
    scans = [ellipsoid(0.45, seed=t) for t in range(3)]
    fits = space.fit_scans(scans, lm=LM)
    moments = {
        t: sequence.FrameFit(scan, one.code, one.frame) for t, (scan, one) in enumerate(zip(scans, fits, strict=True))
    }
    assert sequence.retry_from_neighbors(model, moments, LM, 0)[0] is moments[0]
    lost = replace(fits[1].frame, center=fits[1].frame.center + torch.tensor([0.0, 3.0, 0.0]))
    moments[1] = moments[1]._replace(frame=lost)
    retried = sequence.retry_from_neighbors(model, moments, LM, 0)
    assert retried[0] is moments[0]
    torch.testing.assert_close(retried[1].frame.center, fits[1].frame.center, atol=0.02, rtol=0)
    torch.testing.assert_close(retried[1].code.flat, fits[1].code.flat, atol=0.05, rtol=0.1)


def test_bad_frames_are_interpolated_and_too_few_are_refused(
    space: ShapeSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = [ellipsoid(0.45, seed=t) for t in range(4)]
    odd = iter([1.0, 3.6, 3.4, 1.0])
    monkeypatch.setattr(space.model.prior, "ood_limit", 3.5)
    monkeypatch.setattr(sequence, "ood_score", lambda code, prior: next(odd))
    assert [one.interpolated for one in space.fit_sequence(scans, lm=LM)] == [False, True, False, False]
    monkeypatch.setattr(sequence, "ood_score", lambda code, prior: 99.0)
    with pytest.raises(ValueError, match=r"0 of 4 frames have a fit in distribution\. .* without --as-sequence\."):
        space.fit_sequence(scans, lm=LM)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"2 of 2 frames have a fit in .* at least three frames"):
        space.fit_sequence(scans[:2], lm=LM)
    for few in (scans[:1], []):
        with pytest.raises(ValueError, match=f"{len(few)} of {len(few)} frames have a fit in distribution"):
            space.fit_sequence(few, lm=LM)
    with pytest.raises(
        ValueError, match=r"1 of 2 frames can be fitted, and a sequence needs two\. scan x: 0 of 0 points are"
    ):
        space.fit_sequence([scans[0], Scan("x", np.empty((0, 3), np.float32))], lm=LM)


def test_families_without_a_vector_have_no_sequences() -> None:
    sizes = voxel.VoxelConfig(grid=8)
    grids = ShapeSpace(registry.build_model(sizes, num_scans=1), sizes, scale=1.0, metadata={"weights": {}})
    for call in (grids.fit_sequence, lambda scans: grids.fit_jointly(scans, [None] * 3)):
        with pytest.raises(
            ValueError, match=r"--as-sequence: family voxel has no signed distance .* Fit the scans without it"
        ):
            call([ellipsoid(0.4, seed=t) for t in range(3)])


@pytest.mark.parametrize("name", ["acceleration_std", "fps"])
def test_settings_that_are_not_positive_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"--sequence.{name.replace('_', '-')} 0: must be above 0"):
        SequenceOptions(**{name: 0.0})


def named(*names: str) -> list[Scan]:
    return [Scan(name, np.zeros((1, 3), np.float32)) for name in names]


def test_frames_come_in_natural_order_and_missing_numbers_are_filled() -> None:
    found = order_frames(named("a/f10", "a/f8", "a/f2", "a/f4"))
    assert [(scan.name, len(scan)) for scan in found] == [
        ("a/f2", 1),
        ("a/f4", 1),
        ("a/f6", 0),
        ("a/f8", 1),
        ("a/f10", 1),
    ]
    assert [scan.name for scan in order_frames(named("f.003", "f.001"))] == ["f.001", "f.003"]  # every other one
    assert [scan.name for scan in order_frames(named("f.004", "f.001", "f.002"))] == [
        "f.001",
        "f.002",
        "f.003",
        "f.004",
    ]
    assert [scan.name for scan in order_frames(named("b2", "a9", "a10"))] == ["a9", "a10", "b2"]
    with pytest.raises(ValueError, match="11 frames are missing between f001 and f013, at most 10 in a row"):
        order_frames(named("f000", "f001", "f013"))
