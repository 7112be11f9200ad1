"""What every family promises, run over all of them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from shapespace import build
from shapespace.data.loader import Batch, collate
from shapespace.data.scan import Scan
from shapespace.losses import weigh
from shapespace.models.base import FieldModel
from shapespace.models.code import Code

SMALL = {"code": 8, "width": 48, "depth": 4, "skip": 2, "radius": 0.3}
ENCODER = {"encoder_points": 200, "encoder_width": 32, "encoder_features": 64}
WEIGHTS = {"surface": 1.0, "normal": 1.0, "eikonal": 0.1, "code": 1e-3, "tangent": 1.0, "far": 1.0}

KINDS = ("points", "variational", "table", "taught")


def make(encoder: str) -> FieldModel:
    sizes = build.IGRSizes(**SMALL, **ENCODER, encoder=encoder, spread=0.1)  # type: ignore[arg-type]
    return build.igr(sizes, shapes=2)


FAMILIES: dict[str, Callable[[], FieldModel]] = {f"igr-{kind}": partial(make, kind) for kind in KINDS}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str) -> FieldModel:
    torch.manual_seed(0)
    return FAMILIES[family]().eval()


def ellipsoid(axes: tuple[float, float, float], count: int = 300, seed: int = 0) -> Scan:
    """Points of an ellipsoid with outward normals, model frame."""
    sphere = np.random.default_rng(seed).normal(size=(count, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    normals = sphere / axes
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return Scan("ellipsoid", (sphere * axes).astype(np.float32), normals.astype(np.float32))


def batch() -> Batch:
    return collate([ellipsoid((0.3, 0.7, 0.2)), ellipsoid((0.5, 0.4, 0.3))], shape=[0, 1], seed=5)


def test_order_of_points_does_not_matter(model: FieldModel) -> None:
    given = batch()
    order = torch.randperm(200)
    moved = given.points.clone()
    moved[:, :200] = moved[:, order]  # among those that the encoder reads
    shuffled = replace(given, points=moved)
    torch.testing.assert_close(model.encode(shuffled).flat, model.encode(given).flat, atol=1e-6, rtol=1e-5)


def test_a_batch_equals_its_members(model: FieldModel) -> None:
    given = batch()
    code = model.encode(given)
    x = torch.rand(2, 50, 3) - 0.5
    whole = model.field(x, code)
    for index in range(2):
        part = slice(index, index + 1)
        alone = given.map(lambda tensor, part=part: tensor[part])  # type: ignore[misc]
        torch.testing.assert_close(model.encode(alone).flat, code.flat[part], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(model.field(x[part], code[index]), whole[part], atol=1e-5, rtol=1e-4)


def test_every_weight_has_a_term_and_learns(model: FieldModel) -> None:
    model.train()
    given = batch()
    terms = model.terms(given, model.encode(given))
    weights = {**WEIGHTS, "lesson": 1.0} if "lesson" in terms else WEIGHTS
    assert terms.keys() == weights.keys()
    weigh(terms, weights).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


def test_the_code_gets_a_finite_gradient(model: FieldModel) -> None:
    given = batch()
    code = Code(tuple(part.detach().requires_grad_() for part in model.encode(given).parts))
    weigh(model.terms(given, code), WEIGHTS).backward()
    for part in code.parts:
        assert part.grad is not None
        assert part.grad.isfinite().all()
        assert part.grad.abs().sum() > 0


def test_without_normals_there_are_no_terms_of_normals(model: FieldModel) -> None:
    given = batch()
    bare = replace(given, normals=None)
    terms = model.terms(bare, model.encode(bare))
    assert model.terms(given, model.encode(given)).keys() - terms.keys() == {"normal", "tangent"}


def test_lines_stand_in_for_normals(model: FieldModel) -> None:
    """Turned to either side at random, they give the terms that normals give, where the field already knows outside."""
    given = batch()
    assert given.normals is not None
    side = torch.randint(2, given.normals.shape[:2], generator=torch.Generator().manual_seed(0))[..., None] * 2 - 1
    lined = replace(given, normals=None, lines=given.normals * side)
    code = model.encode(given)
    terms, expected = model.terms(lined, code), model.terms(given, code)
    assert terms.keys() == expected.keys()
    assert terms["normal"] <= expected["normal"] + 1e-6
    assert terms["tangent"].item() == pytest.approx(expected["tangent"].item(), rel=0.3)


def test_the_gradient_at_some_of_the_points_leaves_the_values(model: FieldModel) -> None:
    given = batch()
    code = model.encode(given)
    whole, part = model.terms(given, code), model.terms(replace(given, sloped=4), code)
    for name in ("surface", "tangent", "far", "code"):
        torch.testing.assert_close(part[name], whole[name], atol=1e-6, rtol=1e-5)
    for name in ("normal", "eikonal"):
        assert part[name] != whole[name]
        assert part[name].item() == pytest.approx(whole[name].item(), rel=0.5)


def test_save_and_load_give_the_same_bits(model: FieldModel, family: str) -> None:
    again = FAMILIES[family]().eval()
    assert not torch.equal(again.encode(batch()).flat, model.encode(batch()).flat)
    again.load_state_dict(load(save(model.state_dict())))
    given = batch()
    assert torch.equal(model.encode(given).flat, again.encode(given).flat)
    x = torch.rand(2, 20, 3) - 0.5
    assert torch.equal(model.field(x, model.encode(given)), again.field(x, again.encode(given)))


def test_linearise_is_the_derivative_of_the_field(model: FieldModel) -> None:
    code = model.encode(batch())
    x = (torch.rand(2, 20, 3) - 0.5).requires_grad_()
    flat = code.flat.detach().requires_grad_()
    value = model.field(x, code.like(flat))
    by_x, by_code = torch.autograd.grad(value.sum(), (x, flat))
    found = model.linearise(x.detach(), code)
    torch.testing.assert_close(found.value, value, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.gradient, by_x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.jacobian.sum(dim=1), by_code, atol=1e-3, rtol=1e-3)


def test_the_mesh_is_closed_and_outward(model: FieldModel) -> None:
    (mesh,) = model.surface(model.encode(batch())[0], resolution=48)
    assert mesh.is_watertight
    assert mesh.volume > 0


@pytest.mark.slow
def test_two_hundred_steps_on_two_bodies_halve_the_loss(model: FieldModel) -> None:
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for step in range(200):
        scans = [ellipsoid((0.3, 0.7, 0.2), seed=step), ellipsoid((0.5, 0.4, 0.3), seed=step)]
        given = collate(scans, shape=[0, 1], seed=step)
        terms = model.terms(given, model.encode(given))
        loss = weigh(terms, {**WEIGHTS, **dict.fromkeys(terms.keys() - WEIGHTS.keys(), 1.0)})
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.5 * losses[0]
