"""Contract of the model families, tested on each of them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from safetensors.torch import load, save

from shapespace.data.loader import Batch, collate
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.models import articulated, atlas, convolutional, igr, multiscale, occupancy, registry, voxel
from shapespace.models.base import FieldModel, ModelConfig, SDFModel, ShapeModel
from shapespace.models.code import Code
from shapespace.nn.losses import weighted_sum

SMALL = {"code_dim": 8, "width": 48, "depth": 4, "skip": 2, "init_radius": 0.3}
ENCODER = {"encoder_points": 200, "encoder_width": 32, "encoder_features": 64}
DISTANCE = {"surface": 1.0, "normal": 1.0, "eikonal": 0.1, "tangent_plane": 1.0, "unsigned_distance": 1.0}
KINDS = ("pointnet", "variational", "autodecoder", "distilled")


@dataclass(frozen=True)
class Registered:
    """Two ellipsoids with registrations; a model unit is a meter."""

    path: Path = Path("ellipsoids")
    scale: float = 1.0
    metadata: dict[str, Any] = field(default_factory=dict)

    def sample(self, name: str, count: int, rng: np.random.Generator) -> Scan:
        return ellipsoid(AXES[name], count, int(rng.integers(99)))

    def frame(self, name: str) -> Frame:
        return Frame(torch.zeros(3), torch.tensor(1.0))

    def has_ground_truth(self, name: str) -> bool:
        return True

    def ground_truth(self, name: str) -> trimesh.Trimesh:
        return trimesh.creation.icosphere(subdivisions=2).apply_scale(AXES[name])


AXES = {"slim": (0.3, 0.7, 0.2), "round": (0.5, 0.4, 0.3)}


@dataclass(frozen=True)
class Case:
    """Config of a small model, its loss weights, and what a training sets before its first step."""

    config: ModelConfig
    weights: dict[str, float]
    prepare: Callable[[ShapeModel], None] = lambda model: None

    def make(self) -> ShapeModel:
        return registry.build_model(self.config, num_scans=2)


def _igr(kind: str) -> Case:
    config = igr.IGRConfig(**SMALL, **ENCODER, encoder=kind, code_init_std=0.1)  # type: ignore[arg-type]
    return Case(config, {**DISTANCE, "code_reg": 1e-3} | ({"distillation": 1.0} if kind == "distilled" else {}))


def _by_registrations(model: ShapeModel) -> None:
    model.initialize(Registered(), list(AXES))


PARTS = articulated.ArticulatedConfig(
    code_dim=8, num_parts=6, local_dim=3, width=8, depth=3, hyper_width=16, loss_points=200, **ENCODER
)
PLANES = convolutional.ConvolutionalConfig(features=8, plane=16, depth=3, width=8, blocks=2, encoder_points=200)
PYRAMID = multiscale.MultiscaleConfig(grid=16, levels=3, features=4, width=16, step=0.1, encoder_points=200)

FAMILIES: dict[str, Case] = {f"igr-{kind}": _igr(kind) for kind in KINDS} | {
    "articulated": Case(
        PARTS,
        {**DISTANCE, "code_reg": 1e-3, "part_center": 1.0, "part_rotation": 0.1},
        _by_registrations,
    ),
    "occupancy": Case(
        occupancy.OccupancyConfig(code_dim=8, width=24, blocks=2, encoder_points=200, encoder_width=16),
        {"occupancy": 1.0},
    ),
    "convolutional": Case(PLANES, {"occupancy": 1.0}),
    "convolutional-volume": Case(replace(PLANES, grid=16, supervision="scans"), DISTANCE),
    "multiscale": Case(PYRAMID, {"occupancy": 1.0}),
    "multiscale-scans": Case(replace(PYRAMID, supervision="scans"), DISTANCE),
    "voxel": Case(voxel.VoxelConfig(grid=16), {**DISTANCE, "code_reg": 1e-3}),
    "atlas": Case(atlas.AtlasConfig(code_dim=8, patches=4, width=32, **ENCODER), {"chamfer": 1.0}),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str) -> ShapeModel:
    torch.manual_seed(0)
    made = FAMILIES[family].make().eval()
    FAMILIES[family].prepare(made)
    for parameter in made.parameters():  # away from initial weights at which the code has no effect
        if not parameter.abs().sum() > 0 and not family.startswith("igr"):
            parameter.data += 0.05 * torch.randn_like(parameter)
    return made


@pytest.fixture
def weights(family: str) -> dict[str, float]:
    return FAMILIES[family].weights


@pytest.fixture
def field_model(model: ShapeModel) -> FieldModel:
    if not isinstance(model, FieldModel):
        pytest.skip("no field")
    return model


@pytest.fixture
def sdf_model(model: ShapeModel) -> SDFModel:
    if not isinstance(model, SDFModel):
        pytest.skip("no signed distance of a code vector")
    return model


def ellipsoid(axes: tuple[float, float, float], count: int = 300, seed: int = 0) -> Scan:
    """Points of an ellipsoid with outward normals, model frame."""
    sphere = np.random.default_rng(seed).normal(size=(count, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    normals = sphere / axes
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return Scan("ellipsoid", (sphere * axes).astype(np.float32), normals.astype(np.float32))


def batch() -> Batch:
    return collate([ellipsoid(axes) for axes in AXES.values()], scan_index=[0, 1], seed=5)


def shapes(model: ShapeModel, code: Code) -> torch.Tensor:
    """Numbers that a code decodes to: the field at some points, or the vertices of the surface."""
    if isinstance(model, FieldModel):
        x = torch.rand(len(code), 50, 3, generator=torch.Generator().manual_seed(3)) - 0.5
        return model.field(x, code)
    return torch.stack(
        [torch.from_numpy(np.asarray(m.vertices)).float() for m in model.extract_surface(code, resolution=8)]
    )


def test_order_of_points_does_not_matter(model: ShapeModel) -> None:
    given = batch()
    order = torch.randperm(200)
    moved = given.points.clone()
    moved[:, :200] = moved[:, order]  # among those that the encoder reads
    for index in (given.scan_index, given.scan_index - 5):  # training scans, and others
        one, other = (replace(each, scan_index=index.clamp(min=-1)) for each in (given, replace(given, points=moved)))
        torch.testing.assert_close(model.encode(other).flat, model.encode(one).flat, atol=1e-6, rtol=1e-5)


def test_a_batch_equals_its_members(model: ShapeModel) -> None:
    given = batch()
    code = model.encode(given)
    for index in range(2):
        part = slice(index, index + 1)
        alone = given.map(lambda tensor, part=part: tensor[part])  # type: ignore[misc]
        torch.testing.assert_close(model.encode(alone).flat, code.flat[part], atol=1e-5, rtol=1e-4)
    given_twice = code[torch.tensor([1, 1])]
    twice = shapes(model, given_twice)
    if isinstance(model, FieldModel):
        x = torch.rand(2, 50, 3, generator=torch.Generator().manual_seed(3)) - 0.5
        torch.testing.assert_close(twice[:1], model.field(x[:1], code[1]), atol=1e-5, rtol=1e-4)
    else:
        assert torch.equal(twice[0], twice[1])


def test_every_weight_has_a_term_and_learns(model: ShapeModel, weights: dict[str, float], family: str) -> None:
    model.train()
    given = batch()
    terms = model.loss_terms(given, model.encode(given))
    assert terms.keys() == weights.keys()
    weighted_sum(terms, weights).backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert idle == (set(model.encoder_parameters()) if family == "articulated" else set())  # that is trained later


def test_the_code_gets_a_finite_gradient(model: ShapeModel, weights: dict[str, float]) -> None:
    given = batch()
    code = Code(tuple(part.detach().requires_grad_() for part in model.encode(given).parts))
    weighted_sum(model.loss_terms(given, code), {**weights, "distillation": 0.0}).backward()
    for part in code.parts:
        assert part.grad is not None
        assert part.grad.isfinite().all()
        assert part.grad.abs().sum() > 0


def test_without_normals_there_are_no_terms_of_normals(model: ShapeModel, weights: dict[str, float]) -> None:
    given = batch()
    if "normal" not in weights:
        pytest.skip("no term of normals")
    bare = replace(given, normals=None)
    terms = model.loss_terms(bare, model.encode(bare))
    assert model.loss_terms(given, model.encode(given)).keys() - terms.keys() == {"normal", "tangent_plane"}


def test_unoriented_normals_give_the_terms_of_normals(sdf_model: SDFModel) -> None:
    """With random signs, they give the terms of the true normals where the field is positive outside."""
    given, model = batch(), sdf_model
    assert given.normals is not None
    side = torch.randint(2, given.normals.shape[:2], generator=torch.Generator().manual_seed(0))[..., None] * 2 - 1
    unoriented = replace(given, normals=None, unoriented_normals=given.normals * side)
    code = model.encode(given)
    terms, expected = model.loss_terms(unoriented, code), model.loss_terms(given, code)
    assert terms.keys() == expected.keys()
    assert terms["normal"] <= expected["normal"] + 1e-6
    assert terms["tangent_plane"].item() == pytest.approx(expected["tangent_plane"].item(), rel=0.3)


def test_the_gradient_at_some_of_the_points_leaves_the_values(model: ShapeModel, weights: dict[str, float]) -> None:
    given = batch()
    code = model.encode(given)
    if "eikonal" not in weights:
        pytest.skip("no term of gradients")
    whole, part = model.loss_terms(given, code), model.loss_terms(replace(given, gradient_stride=4), code)
    for name in part.keys() - {"normal", "eikonal", "distillation"}:
        torch.testing.assert_close(part[name], whole[name], atol=1e-6, rtol=1e-5)
    for name in ("normal", "eikonal"):
        assert part[name] != whole[name]
        assert part[name].item() == pytest.approx(whole[name].item(), rel=0.5)


def test_save_and_load_give_the_same_bits(model: ShapeModel, family: str) -> None:
    again, given = FAMILIES[family].make().eval(), batch()
    assert not torch.equal(again.encode(given).flat, model.encode(given).flat)
    again.load_state_dict(load(save(model.state_dict())))
    assert torch.equal(model.encode(given).flat, again.encode(given).flat)
    assert torch.equal(shapes(model, model.encode(given)), shapes(again, again.encode(given)))


def test_the_field_rises_outward(field_model: FieldModel, weights: dict[str, float]) -> None:
    """After 60 steps on one scan, the field is lower below the scan than above it."""
    model, optimizer = field_model.train(), torch.optim.Adam(field_model.parameters(), lr=1e-2)
    scan = ellipsoid((0.5, 0.4, 0.3))
    for step in range(60):
        given = collate([scan] * 2, scan_index=[0, 1], seed=step, near_std=0.1)
        optimizer.zero_grad()
        weighted_sum(model.loss_terms(given, model.encode(given)), weights).backward()
        optimizer.step()
    code = model.eval().encode(given)
    moved = 0.05 * given.normals
    below, above = (model.field(given.surface + side * moved, code) for side in (-1, 1))
    assert (below < above).float().mean() > 0.95


def test_linearize_is_the_derivative_of_the_field(sdf_model: SDFModel) -> None:
    model = sdf_model
    code = model.encode(batch())
    x = (torch.rand(2, 20, 3) - 0.5).requires_grad_()
    flat = code.flat.detach().requires_grad_()
    value = model.field(x, code.unflatten(flat))
    by_x, by_code = torch.autograd.grad(value.sum(), (x, flat))
    linearization = model.linearize(x.detach(), code)
    torch.testing.assert_close(linearization.value, value, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(linearization.gradient, by_x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(linearization.jacobian.sum(dim=1), by_code, atol=1e-3, rtol=1e-3)


def test_the_mesh_is_closed_and_outward(sdf_model: SDFModel) -> None:
    (mesh,) = sdf_model.extract_surface(sdf_model.encode(batch())[0], resolution=48)
    assert mesh.is_watertight
    assert mesh.volume > 0


def test_each_patch_is_a_mesh() -> None:
    model = FAMILIES["atlas"].make()
    (mesh,) = model.extract_surface(model.encode(batch())[0], resolution=16)
    parts = mesh.split(only_watertight=False)
    assert len(parts) == 4
    assert len(mesh.faces) == 4 * 2 * 8 * 8


@pytest.mark.slow
def test_two_hundred_steps_on_two_bodies_halve_the_loss(model: ShapeModel, weights: dict[str, float]) -> None:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses, bodies = [], ((0.3, 0.7, 0.2), (0.5, 0.4, 0.3))
    for step in range(200):
        given = collate([ellipsoid(axes, seed=step) for axes in bodies], scan_index=[0, 1], seed=step)
        if "occupancy" in weights:  # uniform labels: near points alone need more than 200 steps
            query = torch.rand(2, 500, 3) * 2 - 1
            given = replace(
                given, occupancy_points=query, occupancy=(query / torch.tensor(bodies)[:, None]).norm(dim=-1) < 1
            )
        loss = weighted_sum(model.loss_terms(given, model.encode(given)), weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.5 * losses[0]


def test_encoder_and_codes_are_disjoint_parts_of_the_model(model: ShapeModel, family: str) -> None:
    encoder, codes = model.encoder_parameters(), model.codes_parameter
    assert all(dict(model.named_parameters())[name] is parameter for name, parameter in encoder.items())
    assert all(name.startswith("encoder.") for name in encoder)
    assert (codes is not None) == (family in ("igr-autodecoder", "igr-distilled", "articulated", "voxel"))
    assert all(parameter is not codes for parameter in encoder.values())
    assert bool(encoder) == (family not in ("igr-autodecoder", "voxel"))
