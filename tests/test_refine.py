"""Refining: the scan's detail where it has points, the fit where it has none."""

import numpy as np
import pytest
import torch
import trimesh

from shapespace import build, fit
from shapespace.data.loader import collate
from shapespace.data.scan import Scan
from shapespace.losses import weigh
from shapespace.models.igr import IGR
from shapespace.refine import RefineOptions, refine

WEIGHTS = {"surface": 3.0, "normal": 0.3, "eikonal": 0.1, "code": 1e-4, "tangent": 3.0, "far": 1.0}


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
    made = build.igr(build.IGRSizes(code=2, width=64, depth=4, skip=2, radius=0.4, encoder="table"), shapes=1)
    optimiser = torch.optim.Adam(made.parameters(), lr=3e-3)
    for step in range(150):
        batch = collate([ball(count=256, seed=step)], shape=[0], seed=step)
        loss = weigh(made.terms(batch, made.encode(batch)), WEIGHTS)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    made.eval()
    made.prior.fit(made.encoder.table.codes.detach())
    return made


OPTIONS = RefineOptions(points=512, steps=120, lr=2e-3, lr_hidden=2e-3)


@pytest.mark.parametrize("with_normals", [True, False])
def test_the_scan_is_met_and_the_model_left_alone(model: IGR, with_normals: bool) -> None:
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


def test_the_faces_of_a_mesh_tell_its_normals(model: IGR) -> None:
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=0.55)
    scan = Scan("ball/mesh/0", np.asarray(mesh.vertices, dtype=np.float32), faces=np.asarray(mesh.faces))
    code = fit.fit_lm(model, [scan]).code
    refined = refine(model, scan, code, WEIGHTS, OPTIONS)
    x = torch.from_numpy(scan.points)[None]
    rising = refined.linearise(1.02 * x, code)
    assert rising.value.mean() > 0.005  # outside is where the faces look
    assert ((rising.gradient * x).sum(dim=-1) > 0).all()


def test_where_the_scan_is_silent_the_fit_stays(model: IGR) -> None:
    """Only the half with the bump was seen; the other half must neither move nor open."""
    whole = ball(0.06)
    seen = whole.take(np.flatnonzero(whole.points[:, 0] > 0))
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
    (mesh,) = refined.surface(code, resolution=48)
    assert mesh.is_watertight
