"""Refining: the detail of the scan near its points, the fitted surface elsewhere."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from shapespace.data.loader import collate
from shapespace.evaluation.surface_benchmarks import known_surfaces
from shapespace.fitting import fit
from shapespace.fitting.detail import DetailedModel
from shapespace.fitting.refine import (
    RefineOptions,
    distance_to_halfspaces,
    error_weights,
    field_targets,
    refine,
    signed_distance_to_points,
    solve_last_layer,
)
from shapespace.geometry.scan import Scan
from shapespace.models import igr
from shapespace.models.base import SDFModel
from shapespace.models.code import Code
from shapespace.models.igr import IGR
from shapespace.nn.losses import weighted_sum

WEIGHTS = {
    "surface": 3.0,
    "normal": 0.3,
    "eikonal": 0.1,
    "code_reg": 1e-4,
    "tangent_plane": 3.0,
    "unsigned_distance": 1.0,
}


def ball(bump: float = 0.0, count: int = 3000, seed: int = 0) -> Scan:
    """A ball of radius 0.5 with a bump around the +x axis: |p| = 0.5 + bump exp(-(angle / 0.4)^2)."""
    out = np.random.default_rng(seed).normal(size=(count, 3))
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    radius = 0.5 + bump * np.exp(-((np.arccos(out[:, :1].clip(-1, 1)) / 0.4) ** 2))
    return Scan("ball/one/0", (radius * out).astype(np.float32), out.astype(np.float32))


@pytest.fixture(scope="module")
def model() -> IGR:
    """A space that knows only balls without a bump."""
    torch.manual_seed(0)
    made = igr.build_igr(
        igr.IGRConfig(code_dim=2, width=64, depth=4, skip=2, init_radius=0.4, encoder="autodecoder"), num_scans=1
    )
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for step in range(150):
        batch = collate([ball(count=256, seed=step)], scan_index=[0], seed=step)
        loss = weighted_sum(made.loss_terms(batch, made.encode(batch)), WEIGHTS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made.eval()
    made.prior.fit(made.encoder.table.codes.detach())
    return made


OPTIONS = RefineOptions(steps=50)


@pytest.fixture
def few_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the target points: the shapes here are balls."""
    monkeypatch.setattr("shapespace.fitting.refine.NUM_TARGETS", 8_000)


@pytest.mark.usefixtures("few_targets")
@pytest.mark.parametrize("with_normals", [True, False])
def test_the_scan_is_fitted_and_the_model_is_unchanged(model: IGR, with_normals: bool) -> None:
    whole = ball(0.06)
    scan = whole if with_normals else Scan(whole.name, whole.points)
    code = fit.fit_lm(model, [scan]).code
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    refined = refine(model, scan, code, WEIGHTS, OPTIONS)
    x = torch.from_numpy(ball(0.06, seed=7).points)[None]
    with torch.no_grad():
        before, after = model.field(x, code).abs().mean(), refined.field(x, code).abs().mean()
    assert after < 0.5 * before
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())


@pytest.mark.usefixtures("few_targets")
def test_the_normals_of_a_mesh_are_those_of_its_faces(model: IGR) -> None:
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=0.55)
    scan = Scan("ball/mesh/0", np.asarray(mesh.vertices, dtype=np.float32), faces=np.asarray(mesh.faces))
    code = fit.fit_lm(model, [scan]).code
    refined = refine(model, scan, code, WEIGHTS, OPTIONS)
    x = torch.from_numpy(scan.points)[None]
    rising = refined.linearize(1.02 * x, code)
    assert rising.value.mean() > 0.005  # outside is where the normals of the faces point
    assert ((rising.gradient * x).sum(dim=-1) > 0).all()


@pytest.mark.usefixtures("few_targets")
def test_unseen_surface_stays_as_fitted(model: IGR) -> None:
    """Only the half with the bump was seen; the other half neither moves nor opens."""
    whole = ball(0.06)
    seen = whole.select(np.flatnonzero(whole.points[:, 0] > 0))
    code = fit.fit_lm(model, [seen]).code
    refined = refine(model, seen, code, WEIGHTS, OPTIONS)
    unseen = ball(count=2000, seed=3).points
    x = torch.from_numpy(unseen[unseen[:, 0] < -0.1])[None]
    with torch.no_grad():
        change = (refined.field(x, code) - model.field(x, code)).abs()
        met = refined.field(torch.from_numpy(seen.points)[None], code).abs().mean()
        fitted = model.field(torch.from_numpy(seen.points)[None], code).abs().mean()
    assert met < 0.6 * fitted
    assert change.mean() < 0.01
    (mesh,) = refined.extract_surface(code, resolution=48)
    assert mesh.is_watertight


def test_the_last_layer_is_solved_for(model: IGR) -> None:
    """A corrupted layer is recovered with a tenth of the targets wrong: absolute errors count, not squares."""
    corrupted, rng = copy.deepcopy(model), np.random.default_rng(0)
    code = Code((torch.zeros(1, 2),))
    places = torch.from_numpy(rng.uniform(-1, 1, (4000, 3))).float()
    with torch.no_grad():
        true = model.field(places[None], code)[0]
        corrupted.decoder.out.weight += 0.02 * torch.from_numpy(rng.normal(size=64)).float()
        assert (corrupted.field(places[None], code)[0] - true).abs().mean() > 1e-2
        told = true.clone()
        told[::10] += 1.0
        solve_last_layer(corrupted, code, places, told)
        assert (corrupted.field(places[None], code)[0] - true).abs().mean() < 2e-3


def test_targets_are_drawn_where_the_field_is_wrong(model: IGR) -> None:
    rng = np.random.default_rng(0)
    places = torch.from_numpy(rng.uniform(-1, 1, (3000, 3))).float()
    code = Code((torch.zeros(1, 2),))
    with torch.no_grad():
        told = model.field(places[None], code)[0]
    told[:300] += 0.1
    errors = error_weights(model, code, places, told, rng)
    assert errors.probability.sum() == pytest.approx(1)
    assert errors.probability[errors.rows < 300].sum() > 0.999


@pytest.mark.usefixtures("few_targets")
def test_the_field_of_a_complete_scan_becomes_its_distance(model: IGR) -> None:
    scan = ball(0.06)
    code = fit.fit_lm(model, [scan]).code
    options = RefineOptions(steps=50, trust_distance=float("inf"))
    refined = refine(model, scan, code, WEIGHTS, options)
    solved = refine(model, scan, code, WEIGHTS, replace(options, steps=1))  # its last layer is solved for, and no more
    x = np.random.default_rng(1).uniform(-1, 1, (2000, 3)).astype(np.float32)
    away = np.linalg.norm(x[:, None] - ball(0.06, count=20_000, seed=3).points, axis=2).min(axis=1)

    def off(made: SDFModel) -> float:
        with torch.no_grad():
            found = made.field(torch.from_numpy(x)[None], code)[0].numpy()
        return float((np.abs(np.abs(found) - away) / (away + 0.03)).mean())

    assert off(refined) < 0.9 * off(solved) < 0.5 * off(model)  # 0.010, 0.012 and 0.035


def test_detail_is_the_mean_height_above_the_tangent_planes(model: IGR) -> None:
    """Against the formula over all points of the scan; where there are none, the model's own field to the bit."""
    scan, width = ball(0.06, count=400), 0.02
    detailed = DetailedModel(model, scan, width)
    code = fit.fit_lm(model, [scan]).code
    x = np.concatenate([ball(0.07, count=60, seed=5).points, np.random.default_rng(6).uniform(-1, 1, (60, 3))])
    x = x.astype(np.float32)
    with torch.no_grad():
        smooth, found = (made.field(torch.from_numpy(x)[None], code)[0].numpy() for made in (model, detailed))
    away = x[:, None] - scan.points
    assert scan.normals is not None
    weight = np.exp(-(away**2).sum(axis=2) / width**2)
    height = (away * scan.normals).sum(axis=2)
    plain = ((weight * height).sum(axis=1) + 0.05 * smooth) / (weight.sum(axis=1) + 0.05)
    np.testing.assert_allclose(found, plain, atol=2e-4)  # neighbors beyond three widths are left out
    far = np.sqrt((away**2).sum(axis=2)).min(axis=1) > 3 * width
    assert far.any()
    assert not far.all()
    assert np.array_equal(found[far], smooth[far])


@pytest.mark.usefixtures("few_targets")
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_ripples_are_detail_and_noise_is_not(model: IGR, noise: float) -> None:
    """Ripples that the network cannot represent; points so noisy that the network alone is best."""

    def rippled(count: int, seed: int, noise: float = 0.0) -> Scan:
        scan = ball(count=count, seed=seed)
        radius = 1 + 0.02 * np.sin(40 * scan.points[:, 1:2])
        moved = radius + noise * np.random.default_rng(seed).normal(size=radius.shape)
        return Scan(scan.name, (scan.points * moved).astype(np.float32), scan.normals)

    scan = rippled(6000, 0, noise)
    code = fit.fit_lm(model, [scan]).code
    refined = refine(model, scan, code, WEIGHTS, RefineOptions(steps=20))
    x = torch.from_numpy(rippled(2000, 9).points)[None]
    with torch.no_grad():
        before, after = model.field(x, code).abs().mean(), refined.field(x, code).abs().mean()
    assert after < (0.5 * before if noise == 0 else 1.2 * before)


def told(name: str, points: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """True distances, distances from points, and distance and height of the nearest point, around a surface."""
    known, rng = known_surfaces()[name], np.random.default_rng(0)
    scan = known.points(points, rng)
    places = rng.uniform(-1, 1, (count, 3))
    found, index, height = signed_distance_to_points(
        places, scan.points.astype(np.float64), scan.normals.astype(np.float64), is_complete=True
    )
    return known.distance(places), found, np.linalg.norm(places - scan.points[index], axis=1), height


def test_beside_an_edge_the_distance_is_that_to_where_its_faces_meet() -> None:
    true, found, away, _ = told("box", 50_000, 5_000)
    nearest_point = np.sign(true) * away
    assert np.mean(np.abs(found - true) / np.abs(true)) < 0.001
    assert np.mean(np.abs(nearest_point - true) / np.abs(true)) > 0.002


def test_beyond_a_sharp_edge_the_side_is_that_of_the_points_around() -> None:
    true, found, _, height = told("body", 20_000, 10_000)
    far = np.abs(true) > 0.05
    assert (height * true < 0)[far].sum() > 20
    assert (found * true < 0)[far].sum() < 3


def test_every_point_around_a_complete_surface_is_a_target(model: IGR) -> None:
    """Also beyond edges; beside the rims of a scan with holes they are left out."""
    box, rng = known_surfaces()["box"], np.random.default_rng(0)
    scan = box.points(5_000, rng)
    code = fit.fit_lm(model, [scan]).code
    whole, with_rims = (field_targets(model, scan, code, reach, rng).points for reach in (float("inf"), 10.0))
    assert len(with_rims) < len(whole) == 200_000


def test_above_planes_that_meet_at_any_angle_the_corner_is_found() -> None:
    normals = np.array([[0.0, 1.0, 0.0], [np.sin(1.0), np.cos(1.0), 0.0], [0.0, 0.0, 1.0]])
    corner = np.array([0.3, 0.2, 0.1])
    place = corner + normals.T @ np.array([0.4, 0.3, 0.2])  # in the corner's cone of normals
    assert distance_to_halfspaces(place[None], np.tile(corner, (1, 3, 1)), normals[None]) == pytest.approx(
        np.linalg.norm(place - corner), rel=0.03
    )
