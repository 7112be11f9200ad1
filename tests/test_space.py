"""The high-level API: NumPy in, `trimesh` out, meters."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from shapespace import ShapeSpace
from shapespace.fitting.fit import AdamOptions, CodeMethod
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.refine import RefineOptions
from shapespace.fitting.result import load_fits, save_fits
from shapespace.geometry.scan import Scan
from shapespace.interpolation import InterpolationPath
from shapespace.models import igr, registry, voxel
from shapespace.models.code import Code
from shapespace.models.igr import IGR
from shapespace.training.config import LossWeights
from shapespace.training.run import find_model

pytestmark = pytest.mark.usefixtures("first_fit_only")


def sphere(radius: float, center: tuple[float, float, float], count: int = 2000) -> Scan:
    normals = np.random.default_rng(0).normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return Scan("ball/one/0", (normals * radius + center).astype(np.float32), normals.astype(np.float32))


@pytest.fixture
def space() -> ShapeSpace:
    """Untrained: its shape is about a sphere of 0.5 model units, which is a meter."""
    torch.manual_seed(0)
    sizes = igr.IGRConfig(code_dim=4, width=128, depth=4, skip=2, init_radius=0.5, encoder_points=256)
    return ShapeSpace(igr.build_igr(sizes).eval(), sizes, scale=2.0, metadata={"weights": {}})


def test_a_fit_is_at_the_position_of_its_scan(space: ShapeSpace) -> None:
    scan = sphere(1.0, (5.0, 1.0, -3.0))
    fitted = space.fit(scan.points, scan.normals)
    mesh = space.mesh(fitted, resolution=48)
    np.testing.assert_allclose(mesh.bounds.mean(axis=0), (5, 1, -3), atol=0.3)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi, rel=0.5)
    assert fitted.residuals.shape == (2048,)
    assert 0 < fitted.residuals.mean() < 0.3
    assert fitted.covariance is not None
    assert fitted.covariance.shape == (4, 4)


def test_moving_a_scan_moves_its_mesh_and_leaves_its_code(space: ShapeSpace) -> None:
    here, there = (space.fit(s.points, s.normals) for s in (sphere(1.0, (0, 0, 0)), sphere(1.0, (2, 1, 0))))
    torch.testing.assert_close(here.code.flat, there.code.flat, atol=1e-2, rtol=1e-2)
    moved = space.mesh(there, resolution=32).bounds - space.mesh(here, resolution=32).bounds
    np.testing.assert_allclose(moved, [[2, 1, 0], [2, 1, 0]], atol=0.05)


def test_save_and_load(space: ShapeSpace, tmp_path: Path) -> None:
    space.save(tmp_path / "ball.safetensors")
    again = ShapeSpace.load(tmp_path / "ball.safetensors")
    assert again.model.fingerprint() == space.model.fingerprint()
    assert (again.scale, again.config, again.metadata) == (space.scale, space.config, space.metadata)


def test_codes_come_back_and_belong_to_one_model(space: ShapeSpace, tmp_path: Path) -> None:
    fits = space.fit_scans([sphere(1.0, (0, 1, 0)), sphere(0.8, (3, 1, 0))])
    save_fits(tmp_path / "codes.safetensors", fits, space.model)
    again = load_fits(tmp_path / "codes.safetensors", space.model)
    for one, other in zip(fits, again, strict=True):
        assert torch.equal(one.code.flat, other.code.flat)
        assert torch.equal(one.frame.center, other.frame.center)
        assert one.name == other.name
        np.testing.assert_array_equal(one.covariance, other.covariance)
    space.model.prior.mean += 1
    with pytest.raises(ValueError, match=r"belong to model .* fit the scans again"):
        load_fits(tmp_path / "codes.safetensors", space.model)


def test_interpolate_goes_from_one_place_to_the_other(space: ShapeSpace) -> None:
    a, b = space.encode_scans([sphere(1.0, (0, 0, 0)), sphere(1.0, (4, 0, 0))])
    meshes = space.interpolate(a, b, 3, resolution=32)
    centers = [mesh.bounds.mean(axis=0)[0] for mesh in meshes]
    np.testing.assert_allclose(np.diff(centers), 2.0, atol=0.1)


def test_samples_are_codes_of_the_prior(space: ShapeSpace) -> None:
    space.model.prior.fit(0.05 * torch.randn(50, 4))
    drawn = space.sample(2000).flat
    assert torch.equal(space.sample(3, seed=5).flat, space.sample(3, seed=5).flat)
    assert not torch.equal(space.sample(3, seed=5).flat, space.sample(3, seed=6).flat)
    torch.testing.assert_close(torch.cov(drawn.T), space.model.prior.covariance, atol=5e-4, rtol=0)
    assert space.mesh(space.sample(1), resolution=24).volume > 0


def test_points_that_cannot_be_fitted_are_refused(space: ShapeSpace) -> None:
    points = sphere(1.0, (0, 0, 0)).points
    with pytest.raises(ValueError, match=r"scan scan: 5 of 5 points are finite\. At least 100 points are required"):
        space.fit(points[:5])
    with pytest.raises(ValueError, match=r"scan scan: 1999 of 2000 points are finite\. .* remove the invalid rows"):
        space.fit_scans([Scan("scan", np.where(np.arange(2000)[:, None] == 7, np.nan, points).astype(np.float32))])
    with pytest.raises(ValueError, match=r"scan scan: size 1,9\d\d m, .*--unit mm"):
        space.fit(points * 1000)


def test_a_space_comes_with_the_package() -> None:
    humans = ShapeSpace.load("humans")
    assert humans.metadata["scans"] == 1440
    assert find_model("humans").stat().st_size < 16e6
    mesh = humans.mesh(Code((humans.model.prior.mean[None],)), resolution=64)
    assert mesh.is_watertight
    assert 1.4 < np.ptp(mesh.vertices[:, 1]) < 2.1
    with pytest.raises(FileNotFoundError, match=r"no model at humens: .* nor a packaged model \(humans, humans_v1\)\."):
        ShapeSpace.load("humens")


def test_refined_spaces_are_one_for_each_scan(
    space: ShapeSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shapespace.fitting.refine.NUM_TARGETS", 8_000)
    scans = [sphere(1.1, (0, 1, 0)), sphere(0.9, (3, 1, 0))]
    fits = space.fit_scans(scans)
    space.metadata["weights"] = asdict(LossWeights(tangent_plane=3.0))
    before = space.model.fingerprint()
    refined = list(space.refine(scans, fits, RefineOptions(points=256, steps=40, lr=2e-3, lr_muon=2e-3)))
    assert [its.metadata["refined"] for its in refined] == [scan.name for scan in scans]
    assert space.model.fingerprint() == before
    for its, scan, fit in zip(refined, scans, fits, strict=True):
        x = fit.frame.to_model(torch.from_numpy(scan.points))[None]
        with torch.no_grad():
            after, first = (model.field(x, fit.code).abs().mean() for model in (its.model, space.model))
        assert after < 0.5 * first
    with pytest.raises(ValueError, match=r"refined to ball/one/0 cannot be saved\. Save its mesh, or refine again"):
        refined[0].save(tmp_path / "refined.safetensors")


def test_what_needs_an_sdf_with_a_vector_is_refused_for_other_families() -> None:
    torch.manual_seed(0)
    sizes = voxel.VoxelConfig(grid=8)
    grid = ShapeSpace(registry.build_model(sizes, num_scans=2).eval(), sizes, scale=2.0, metadata={"weights": {}})
    scan = sphere(0.9, (0, 1, 0))
    with pytest.raises(
        ValueError,
        match=r"--method lm: family voxel has no signed distance .*\. Use --method adam",
    ):
        grid.fit_scans([scan], method="lm")
    fits = grid.encode_scans([scan])
    with pytest.raises(ValueError, match="--method refine: family voxel has no signed distance"):
        next(grid.refine([scan], fits))
    with pytest.raises(ValueError, match=r"--path geodesic: .* Use --path linear"):
        grid.interpolate(fits[0], fits[0], 3, path="geodesic")
    with pytest.raises(ValueError, match="the codes of family voxel are grids and cannot be sampled"):
        grid.sample(2)
    with pytest.raises(ValueError, match=r"Use --adam.init encoder"):
        grid.fit_scans([scan], method="adam", adam=AdamOptions(steps=1, init="mean"))


def test_uncertainty_is_the_deviation_of_surfaces_of_likely_codes(space: ShapeSpace) -> None:
    """Three standard deviations, along the normal, of surfaces whose codes are drawn from the covariance."""
    scan = sphere(1.0, (5.0, 1.0, -3.0))
    fitted = space.fit(scan.points, scan.normals)
    mesh = space.mesh(fitted, resolution=32)
    stds = space.uncertainty(fitted, mesh)
    assert stds.shape == (len(mesh.vertices),)
    assert isinstance(space.model, IGR)
    assert fitted.covariance is not None
    rng = np.random.default_rng(0)
    moves = 1e-2 * rng.multivariate_normal(np.zeros(4), fitted.covariance, size=400).astype(np.float32)  # stay linear
    x = fitted.frame.to_model(torch.from_numpy(mesh.vertices[:50].copy()).float())[None]
    with torch.no_grad():
        codes = Code((fitted.code.flat + torch.from_numpy(moves),))
        values = space.model.field(x.expand(400, -1, -1), codes).std(dim=0)
    slope = space.model.linearize(x, fitted.code).gradient[0].norm(dim=1)
    np.testing.assert_allclose(1e-2 * stds[:50], 3 * float(fitted.frame.scale) * (values / slope).numpy(), rtol=0.2)


def test_an_encoded_scan_has_no_uncertainty(space: ShapeSpace) -> None:
    (fitted,) = space.encode_scans([sphere(1.0, (0, 0, 0))])
    with pytest.raises(ValueError, match=r"the fit has no covariance\. Fit by Levenberg-Marquardt"):
        space.uncertainty(fitted, space.mesh(fitted, resolution=16))


def test_posterior_samples_deviate_by_the_uncertainty_and_more_where_nothing_was_seen() -> None:
    """Along the normal, surfaces of drawn codes differ by `uncertainty`; a scan of the legs leaves the rest open."""
    humans = ShapeSpace.load("humans_v1")
    assert isinstance(humans.model, IGR)
    mesh = humans.mesh(Code((humans.model.prior.mean[None],)), resolution=48)
    whole = Scan("p/s/0", np.array(mesh.vertices, dtype=np.float32), faces=np.asarray(mesh.faces)).sample(
        3000, np.random.default_rng(0)
    )
    assert whole.normals is not None
    legs = whole.select(np.flatnonzero(whole.points[:, 1] < 0))
    above = mesh.vertices[:, 1] > 0.2
    stds = {}
    for name, scan in (("whole", whole), ("legs", legs)):
        fitted = humans.fit_scans([scan], lm=LMOptions(num_points=512, max_steps=6, trial_steps=3))[0]
        stds[name] = humans.uncertainty(fitted, mesh)
        assert fitted.covariance is not None
        close = replace(fitted, covariance=1e-4 * fitted.covariance)  # stay where the field is linear in the code
        drawn = humans.sample_posterior(close, 200, seed=1)
        assert [one.name for one in drawn[:2]] == ["p/s/0.sample0", "p/s/0.sample1"]
        assert all(one.frame is fitted.frame and one.covariance is None for one in drawn)
        some = slice(None, None, len(mesh.vertices) // 60)
        x = fitted.frame.to_model(torch.from_numpy(np.array(mesh.vertices[some])).float())[None]
        with torch.no_grad():
            values = torch.cat([humans.model.field(x, one.code) for one in drawn]).std(dim=0)
        slope = humans.model.linearize(x, fitted.code).gradient[0].norm(dim=1)
        spread = (100 * values / slope * fitted.frame.scale).numpy()
        np.testing.assert_allclose(spread, stds[name][some], rtol=0.25)  # 200 draws: 5 % each, the worst of 60
    assert np.median(stds["whole"]) < 0.012
    assert np.median(stds["legs"][above]) > 1.5 * np.median(stds["legs"][~above])
    assert np.median(stds["legs"][above]) > 2.5 * np.median(stds["whole"][above])


def test_posterior_samples_are_repeatable_and_need_a_covariance(space: ShapeSpace) -> None:
    scan = sphere(1.0, (0, 1, 0))
    (fitted,) = space.fit_scans([scan])
    (first,), (again,), (other,) = (space.sample_posterior(fitted, 1, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.code.flat, again.code.flat)
    assert not torch.equal(first.code.flat, other.code.flat)
    with pytest.raises(ValueError, match=r"the fit has no covariance\. Fit by Levenberg-Marquardt"):
        space.sample_posterior(space.encode_scans([scan])[0], 1)


def test_parts_that_are_too_small_or_a_room_are_not_the_person(space: ShapeSpace) -> None:
    """A part that no fit accepts is not a person; its quick fit is no error."""
    ball, stool = sphere(1.0, (0, 0, 0), 4000), sphere(0.1, (1.5, 0, 0), 1000)
    assert space.model.prior is not None
    space.model.prior.covariance *= 1e4  # everything is in distribution
    scan = Scan("s", np.concatenate([ball.points, stool.points]), np.concatenate([ball.normals, stool.normals]))
    (alone,) = space.remove_clutter([scan])
    assert alone.points[:, 0].max() <= 1.0
    assert len(alone) > 0.99 * 4000  # of so few points, some are parts of their own
    (same,) = space.remove_clutter([ball])
    assert same is ball
    far = Scan("s", np.concatenate([ball.points, stool.points + np.float32([9, 0, 0])]))
    (alone,) = space.remove_clutter([far])
    assert alone.points[:, 0].max() <= 1.0
    assert len(alone) > 0.99 * 4000  # of so few points, some are parts of their own


@pytest.mark.parametrize("method", ["auto", "lm", "adam"])
def test_no_scans_give_no_fits(space: ShapeSpace, method: CodeMethod) -> None:
    assert space.encode_scans([]) == []
    assert space.fit_scans([], method=method) == []
    assert space.remove_clutter([]) == []
    assert list(space.refine([], [])) == []
    with pytest.raises(ValueError, match="0 of 0 frames"):
        space.fit_sequence([])


def run_everything(space: ShapeSpace, folder: Path) -> list[np.ndarray]:
    """Every call of the API on the device of the space; its results as arrays."""
    scans = [sphere(1.0, (0.0, 1.0, 0.0)), replace(sphere(0.8, (3.0, 1.0, 0.0)), normals=None)]
    lm = LMOptions(num_points=256, max_steps=4, trial_steps=2, alignment="yaw", max_candidates=2)
    encoded = space.encode_scans(scans)
    fits = [*encoded, *space.fit_scans(scans, lm=lm)]
    fits += space.fit_scans(scans[:1], method="adam", adam=AdamOptions(points=128, steps=2, half_extent=1.0))
    a, b = fits[2:4]
    assert all(fit.code.flat.device == space.device and fit.frame.center.device.type == "cpu" for fit in fits)
    save_fits(folder / "codes.safetensors", [a, b], space.model)
    loaded = load_fits(folder / "codes.safetensors", space.model)
    assert all(fit.code.flat.device == space.device for fit in loaded)
    mesh = space.mesh(loaded[0], resolution=24)
    sample = space.sample(2, seed=1)
    samples = space.sample_posterior(a, 2)
    results = [fit.code.flat.detach().cpu().numpy() for fit in (*fits, *samples)]
    results += [
        sample.flat.cpu().numpy(),
        space.uncertainty(loaded[0], mesh),
        space.mesh(sample[0], resolution=16).vertices,
    ]
    for path in set(get_args(InterpolationPath)) - {"parts"}:
        results += [fit.code.flat.cpu().numpy() for fit in space.interpolate_codes(a, b, 3, path=path)]
    results += [one.vertices for one in space.interpolate(a, b, 2, resolution=16)]
    results.append(space.mesh(space.from_principal_components([1.0]), resolution=16).vertices)
    assert space.model.prior is not None
    space.model.prior.covariance *= 1e4  # from here on everything is in distribution
    far = Scan("far", np.concatenate([scans[0].points, scans[0].points + np.float32([9, 0, 0])]))
    results += [scan.points for scan in space.remove_clutter([far])]
    for trust_distance in (0.03, float("inf")):
        options = RefineOptions(points=64, field_points=64, steps=2, trust_distance=trust_distance, eval_every=1)
        (refined,) = space.refine(scans[:1], [a], options)
        results.append(refined.mesh(a, resolution=16).vertices)
    motion = [replace(sphere(1.0, (0.1 * t, 1.0, 0.0)), name=f"ball/{t}") for t in range(3)]
    frames = space.fit_sequence(motion, lm=replace(lm, alignment="local"))
    return [*results, *(fit.code.flat.cpu().numpy() for fit in frames), *(fit.residuals for fit in frames)]


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_the_whole_api_on_a_device(space: ShapeSpace, tmp_path: Path, device: str) -> None:
    space.metadata["weights"] = asdict(LossWeights(tangent_plane=3.0))
    space.model.prior.covariance *= 1e-2  # codes for which the untrained decoder has a surface
    space.save(tmp_path / "ball.safetensors")
    loaded = ShapeSpace.load(tmp_path / "ball.safetensors", device=device)
    assert loaded.device.type == device
    np.testing.assert_allclose(loaded.sample(3).flat.cpu(), space.sample(3).flat, rtol=1e-4, atol=1e-5)
    scan = sphere(1.0, (0.0, 1.0, 0.0))
    for ours, expected in zip(loaded.encode_scans([scan]), space.encode_scans([scan]), strict=True):
        np.testing.assert_allclose(ours.code.flat.cpu(), expected.code.flat, rtol=1e-2, atol=1e-3)
    results = run_everything(loaded, tmp_path)
    assert all(isinstance(result, np.ndarray) and np.isfinite(result).all() for result in results)
