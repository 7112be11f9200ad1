"""Raw scans alone: from fits to targets, and rounds of fits and training that continue after an interruption."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from trimesh import Trimesh

from shapespace import ShapeSpace
from shapespace.data.loader import StepDataset
from shapespace.data.registration import PartTargets, registration_targets
from shapespace.fitting import part_targets, rounds
from shapespace.fitting.fit import BatchFit
from shapespace.fitting.levenberg_marquardt import LMOptions, PartOptions
from shapespace.fitting.part_targets import PartFits, complete, fit_scans, fit_targets
from shapespace.geometry import primitives
from shapespace.geometry.frame import Frame
from shapespace.geometry.isosurface import isosurface
from shapespace.geometry.scan import Scan
from shapespace.io.checkpoints import load_tensors
from shapespace.models.articulated import ArticulatedConfig, ArticulatedSDF, build_articulated
from shapespace.models.code import Code
from shapespace.models.igr import IGRConfig
from shapespace.training.config import BatchConfig, LossWeights, OptimConfig, TrainConfig
from shapespace.training.run import Run
from shapespace.training.warm_start import affine_map, replace_codes

CONFIG = TrainConfig(
    model=ArticulatedConfig(
        code_dim=6,
        num_parts=10,
        local_dim=3,
        width=16,
        depth=3,
        hyper_width=16,
        encoder_points=96,
        encoder_width=32,
        encoder_features=32,
    ),
    family="articulated",
    batch=BatchConfig(scans=4, points=96, near_std=0.03, half_extent=1.0),
    optim=OptimConfig(max_steps=100, lr=5e-3, lr_codes=3e-3, lr_muon=2e-2, schedule="cosine", warmup_steps=10),
    weights=LossWeights(
        surface=3.0,
        normal=0.3,
        tangent_plane=3.0,
        unsigned_distance=1.0,
        code_reg=0.0,
        part_center=10.0,
        part_rotation=0.1,
    ),
    device="cpu",
    projector_codes=0,
)
LM = LMOptions(num_points=128, max_steps=8, scale_std=1e-4, parts=PartOptions(num_points=256, max_steps=4))


def _capsules(x: Tensor) -> Tensor:
    ends = torch.tensor([[0, -0.45, 0], [0, 0.3, 0], [-0.6, 0.2, 0], [0.6, 0.2, 0]])
    trunk, arms = primitives.capsule(x, ends[0], ends[1], 0.17), primitives.capsule(x, ends[2], ends[3], 0.1)
    return primitives.union(trunk, arms)


REST = isosurface(_capsules, resolution=24)


def figure(left: float, right: float, size: float = 1.0) -> Trimesh:
    """A trunk with two arms that are raised (radians), always of the same topology."""
    vertices = np.asarray(REST.vertices) * (1, size, 1)
    for hinge, angle in ((0.2, left), (-0.2, -right)):
        side = np.sign(hinge)
        weight = 1 / (1 + np.exp((0.2 - side * np.asarray(REST.vertices)[:, 0]) / 0.03))
        center = np.array([hinge, 0.2 * size, 0])
        turned = Rotation.from_rotvec(angle * weight[:, None] * np.eye(3)[2]).apply(vertices - center) + center
        vertices = np.where(weight[:, None] > 1e-3, turned, vertices)
    return Trimesh(vertices, REST.faces, process=False)


def figures(count: int, seed: int, spread: float = 0.5) -> dict[str, Trimesh]:
    rng = np.random.default_rng(seed)
    draws = rng.uniform(-1, 1, (count, 3))
    return {f"f{i}": figure(spread * a, spread * b, 1 + spread * c / 10) for i, (a, b, c) in enumerate(draws)}


@dataclass
class Figures:
    """Scans in memory, with registrations of those that are named; a model unit is a meter."""

    meshes: dict[str, Trimesh]
    registered: Sequence[str] = ()
    path: Path = Path("figures")
    scale: float = 1.0
    metadata: dict[str, Any] = field(default_factory=dict)

    def sample(self, name: str, count: int, rng: np.random.Generator) -> Scan:
        mesh = self.meshes[name]
        scan = Scan(name, np.asarray(mesh.vertices, np.float32), faces=np.asarray(mesh.faces, np.int32))
        return scan.sample(count, rng)

    def frame(self, name: str) -> Frame:
        return Frame(torch.zeros(3), torch.tensor(1.0))

    def has_ground_truth(self, name: str) -> bool:
        return name in self.registered

    def ground_truth(self, name: str) -> Trimesh | None:
        return self.meshes[name] if name in self.registered else None


class HalfUnseen(Figures):
    """Scans of the body's right half (negative x)."""

    def sample(self, name: str, count: int, rng: np.random.Generator) -> Scan:
        scan = super().sample(name, 4 * count, rng)
        return scan.select(np.flatnonzero(scan.points[:, 0] < 0)[:count])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_targets, "OPTIONS", LM)
    monkeypatch.setattr(part_targets, "SCAN_POINTS", 1000)
    monkeypatch.setattr(part_targets, "CHUNK_SIZE", 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run of a space of figures that was trained on registrations for seconds."""
    meshes = figures(16, seed=0, spread=0.9)
    run = Run(tmp_path_factory.mktemp("space") / "run")
    ShapeSpace.train(Figures(meshes, list(meshes)), list(meshes), run, CONFIG)
    return run.folder


@pytest.fixture
def model(trained: Path) -> ArticulatedSDF:
    made = ShapeSpace.load(trained).model
    assert isinstance(made, ArticulatedSDF)
    return made


def truth_of(model: ArticulatedSDF, meshes: dict[str, Trimesh]) -> PartTargets:
    return registration_targets(Figures(meshes, list(meshes)), list(meshes), model.template.part_template())


# ------------------------------------------------------------------------------------------------------ fits to targets


def test_targets_are_near_the_true_poses(model: ArticulatedSDF, tmp_path: Path) -> None:
    """Of the parts that move, the mean pose of the training scans is three times as far."""
    meshes = figures(4, seed=1)
    truth = truth_of(model, meshes)
    targets, usable = fit_targets(model, Figures(meshes), list(meshes), tmp_path)
    assert usable == list(meshes)
    away = (model.hypernetwork.mean[:, :3] - truth.center).norm(dim=-1)
    moving = away > 0.03
    assert moving.any()
    assert 3 * (targets.center - truth.center).norm(dim=-1)[moving].mean() < away[moving].mean()
    cosine = ((targets.rotation.mT @ truth.rotation).diagonal(dim1=-2, dim2=-1).sum(dim=-1) - 1) / 2
    assert cosine.clamp(-1, 1).acos().median() < 0.1
    assert targets.code is not None
    assert targets.code.shape == (4, 6)


def test_targets_are_in_the_frame_of_the_store(model: ArticulatedSDF, tmp_path: Path) -> None:
    """Scans that are off and turned in the store have targets that are off and turned."""
    meshes = figures(3, seed=1)
    turn = Rotation.from_rotvec([0, 0.15, 0.05])
    moved = {
        name: Trimesh(turn.apply(np.asarray(mesh.vertices)) + np.array([0.1, 0, 0.05]), mesh.faces, process=False)
        for name, mesh in meshes.items()
    }
    truth = truth_of(model, moved)
    fits = fit_scans(model, Figures(moved), list(moved), tmp_path)
    assert (fits.center - truth.center).norm(dim=-1).median() < 0.03 < 0.1
    torch.testing.assert_close(
        fits.rotation @ fits.rotation.mT, torch.eye(3).expand_as(fits.rotation), atol=1e-4, rtol=0
    )
    turned = (fits.rotation.mT @ truth.rotation).diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    assert ((turned - 1) / 2).clamp(-1, 1).acos().median() < 0.12


def test_unseen_parts_have_small_weights(model: ArticulatedSDF, tmp_path: Path) -> None:
    meshes = figures(4, seed=2)
    store, names = Figures(meshes), list(meshes)
    whole = fit_scans(model, store, names, tmp_path / "whole")
    half = fit_scans(model, HalfUnseen(meshes), names[:1], tmp_path / "half")
    rows = {key: torch.cat([value, vars(half)[key]]) for key, value in vars(whole).items()}
    weight = PartFits(**rows).weights()
    unseen = model.template.center[:, 0] > 0.35  # the left arm
    assert unseen.any()
    assert weight[-1, unseen].max() < 0.5 * weight[:-1, unseen].mean()
    assert weight[-1, unseen].mean() < 0.5 * weight[-1, model.template.center[:, 0] < -0.35].mean()


def random_fits(rng: torch.Generator, scans: int = 12, parts: int = 4) -> PartFits:
    """Fits of equal trust."""
    return PartFits(
        torch.randn(scans, parts, 3, generator=rng),
        torch.eye(3).expand(scans, parts, 3, 3).clone(),
        torch.randn(scans, 5, generator=rng),
        torch.ones(scans),
        torch.full((scans, parts), 0.002),
        torch.full((scans, parts), 0.001),
        torch.full((scans, parts), 0.01),
    )


@pytest.mark.parametrize("measure", ["std", "residual", "gap"])
def test_each_measure_of_doubt_lowers_the_weight(measure: str) -> None:
    fits = random_fits(torch.Generator().manual_seed(0))
    assert (fits.weights() == fits.weights()[0, 0]).all()
    values = vars(fits)[measure].clone()
    values[5, 2] *= 12
    weight = replace(fits, **{measure: values}).weights()
    assert weight[5, 2] < 0.1 < 0.8 < weight[0, 0]
    assert (weight.flatten().sort().values[1:] == weight[0, 0]).all()


def test_values_that_are_not_trusted_are_completed_by_the_others() -> None:
    """Rows of rank two with a few wrong values: the right values come back, the others stay to the bit."""
    rng = torch.Generator().manual_seed(0)
    every = torch.randn(60, 2, generator=rng) @ torch.randn(2, 30, generator=rng)
    true, known = every[:20], every[20:]
    trusted = torch.rand(20, 30, generator=rng) > 0.1
    completed = complete(torch.where(trusted, true, true + 5), trusted, known)
    assert torch.equal(completed[trusted], true[trusted])
    torch.testing.assert_close(completed, true, atol=0.01, rtol=0)


def test_a_row_of_which_nothing_is_trusted_becomes_the_mean() -> None:
    rng = torch.Generator().manual_seed(0)
    x, known = torch.randn(2, 5, generator=rng), torch.randn(4000, 5, generator=rng)
    completed = complete(x, torch.tensor([[True] * 5, [False] * 5]), known)
    torch.testing.assert_close(completed[1], known.mean(dim=0), atol=0.01, rtol=0)


def test_a_lost_part_is_completed_and_has_little_weight(model: ArticulatedSDF) -> None:
    """Bodies of the space, of one of which a part is far away: it returns to the others."""
    known = part_targets.known_bodies(model)
    center = known.center[:12].clone()
    fits = replace(random_fits(torch.Generator().manual_seed(0), 12, 10), center=center, rotation=known.rotation[:12])
    true = center[5, 3].clone()
    center[5, 3] += 0.8
    fits.gap[5, 3] *= 20
    targets = fits.targets(known)
    assert targets.weight[5, 3] < 0.1
    assert (targets.center[5, 3] - true).norm() < 0.1
    others = torch.arange(12) != 5
    torch.testing.assert_close(targets.center[others], center[others])
    torch.testing.assert_close(targets.rotation[others], known.rotation[:12][others], atol=1e-5, rtol=0)


def test_scans_out_of_distribution_are_left_out(
    model: ArticulatedSDF, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fits = random_fits(torch.Generator().manual_seed(0), parts=10)
    fits.ood_score[1], fits.ood_score[3], fits.center[7, 0, 0] = 7.9, 8.1, float("nan")
    monkeypatch.setattr(part_targets, "fit_scans", lambda *args, **options: fits)
    names = [f"scan{index}" for index in range(12)]
    targets, usable = fit_targets(model, Figures({}), names, tmp_path)
    assert usable == [name for name in names if name not in ("scan3", "scan7")]
    assert targets.code is not None
    assert torch.equal(targets.code[[2, 3, 5, 6]], fits.code[[2, 4, 6, 8]])
    assert targets.center.isfinite().all()
    assert (
        "2 of 12 scans are left out, since their fits are out of distribution: scan3, scan7" in capsys.readouterr().err
    )
    fits.ood_score[:7] = 8.1
    with pytest.raises(ValueError, match=r"figures: 4 of 12 scans can be fitted.*limit 8\), and at.*--unit"):
        fit_targets(model, Figures({}), names, tmp_path)


def test_finished_chunks_are_not_fitted_again(
    model: ArticulatedSDF, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither after an interruption nor by another process; other scans are."""
    meshes, fitted = figures(7, seed=3), list[int]()
    table = model.codes_parameter
    assert table is not None
    known = model.expand(Code((table.detach(),)))

    def counting(model: ArticulatedSDF, scans: Sequence[Scan], options: LMOptions) -> BatchFit:
        """Stands for fits; the third call is interrupted."""
        fitted.append(len(scans))
        if len(fitted) == 3:
            raise KeyboardInterrupt
        covariance = torch.eye(9).expand(len(scans), 10, 9, 9)
        rows = torch.tensor([int(scan.name[1:]) for scan in scans])
        return BatchFit(known[rows], None, torch.zeros(len(scans), 0), [None] * len(scans), covariance)

    monkeypatch.setattr(part_targets, "fit_lm", counting)
    with pytest.raises(KeyboardInterrupt):
        fit_scans(model, Figures(meshes), list(meshes), tmp_path)
    fits = fit_scans(model, Figures(meshes), list(meshes), tmp_path)
    assert fitted == [3, 3, 1, 1]
    assert torch.equal(fits.center, known.parts[1][:7])
    again = fit_scans(model, Figures(meshes), list(meshes), tmp_path)
    assert len(fitted) == 4
    assert all(torch.equal(value, vars(again)[key]) for key, value in vars(fits).items())

    with pytest.raises(FileNotFoundError):  # the chunks of the first process are missing
        fit_scans(model, Figures(meshes), list(meshes), tmp_path / "two", rank=1, world_size=2)
    assert fitted[4:] == [3]
    both = fit_scans(model, Figures(meshes), list(meshes), tmp_path / "two", rank=0, world_size=2)
    assert fitted[5:] == [3, 1]
    assert torch.equal(both.center, fits.center)

    fit_scans(model, Figures(meshes), list(meshes)[:3], tmp_path)
    assert fitted[7:] == [3]


# ------------------------------------------------------------------------------------------------------------- training


def test_weights_of_targets_weigh_the_loss(model: ArticulatedSDF) -> None:
    """A part of weight zero has no loss; equal weights give the plain mean, whatever their size."""
    meshes = figures(16, seed=0)
    store, truth = Figures(meshes), truth_of(model, meshes)
    batch = StepDataset(store, list(meshes), scans=4, points=96, near_std=0.03, half_extent=1.0, seed=0)[0]
    model.train()

    def terms(targets: PartTargets) -> tuple[float, float]:
        model._set_targets(targets)
        loss = model.loss_terms(batch, model.encode(batch))
        return loss["part_center"].item(), loss["part_rotation"].item()

    plain = terms(truth)
    assert terms(replace(truth, weight=torch.full((16, 10), 0.25))) == plain
    wrong = replace(truth, center=truth.center.clone(), rotation=truth.rotation.clone(), weight=truth.weight.clone())
    wrong.center[:, 4] += 3
    wrong.rotation[:, 4] = -torch.eye(3)
    assert min(now / before for now, before in zip(terms(wrong), plain, strict=True)) > 2
    wrong.weight[:, 4] = 0
    states = model.states(model.encode(batch))
    distance = (states.center - truth.center[batch.scan_index]).norm(dim=-1)
    assert distance.mean().item() == plain[0]  # registrations: the same bits as without weights
    kept = [part for part in range(10) if part != 4]
    assert terms(wrong)[0] == pytest.approx(distance[:, kept].mean().item(), rel=1e-5)


def test_local_codes_and_encoder_follow_to_new_codes(trained: Path) -> None:
    """Codes in other coordinates give the same local codes, and the encoder gives the new codes of the same bodies."""
    space = ShapeSpace.load(trained)
    model = space.model
    assert isinstance(model, ArticulatedSDF)
    table = model.codes_parameter
    assert table is not None
    former, generator = table.detach().clone(), torch.Generator().manual_seed(0)
    matrix, offset = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0], torch.randn(6, generator=generator)
    points = torch.randn(3, 96, 3, generator=generator)
    with torch.no_grad():
        local, encoded = model.hypernetwork(former).local_code, model.encoder.pointnet(points)[0]
        table.copy_(former @ matrix + offset)
        replace_codes(model, former)
        torch.testing.assert_close(model.hypernetwork(table).local_code, local, atol=0.02 * float(local.std()), rtol=0)
        now, wanted = model.encoder.pointnet(points)[0], encoded @ matrix + offset
        torch.testing.assert_close(now, wanted, atol=0.02 * float(wanted.std()), rtol=0.02)


def test_the_affine_map_of_exact_data_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    x, matrix, offset = (torch.randn(*size, generator=generator) for size in ((50, 4), (4, 3), (3,)))
    found, shift = affine_map(x, x @ matrix + offset)
    torch.testing.assert_close(found, matrix, atol=5e-3, rtol=0)
    torch.testing.assert_close(x @ found + shift, x @ matrix + offset, atol=0.02, rtol=0)


class StoppedError(Exception):
    """Stands for a machine that fails."""


def test_two_rounds_learn_from_raw_scans_and_continue_after_an_interruption(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The surfaces and the template are near the scans afterwards, and an interrupted training has the same bits."""
    monkeypatch.setattr(part_targets, "CHUNK_SIZE", 4)
    meshes = figures(4, seed=4)
    store, names = Figures(meshes), list(meshes)
    config = replace(CONFIG, init_from=str(trained), optim=replace(CONFIG.optim, max_steps=20), save_every=5)
    whole = Run(tmp_path / "whole")
    space = ShapeSpace.train(store, names, whole, config)
    model, table = space.model, space.model.codes_parameter
    assert isinstance(model, ArticulatedSDF)
    assert table is not None
    assert len(table) == 4
    with torch.no_grad():
        states = model.states(Code((table,)))
        true = torch.stack([torch.from_numpy(np.asarray(mesh.vertices)).float() for mesh in meshes.values()])
        assert model.decoder(true, states).abs().mean() < 0.015
        assert (model.template(states) - true).norm(dim=-1).median() < 0.03
    assert Run(whole.folder / "round1").load_checkpoint()["step"] == whole.load_checkpoint()["step"] == 10

    original, reads = StepDataset.__getitem__, list[int]()

    def failing(self: StepDataset, step: int) -> object:
        """Fail at the first attempt of step 8 of each round."""
        if step == 8:
            reads.append(step)
            if len(reads) in (1, 3):
                raise StoppedError
        return original(self, step)

    monkeypatch.setattr(StepDataset, "__getitem__", failing)
    run = Run(tmp_path / "parts")
    shutil.copytree(whole.folder / rounds.FITS, run.folder / rounds.FITS)  # those of the second round fit the same bits
    monkeypatch.setattr(part_targets, "fit_lm", None)
    with pytest.raises(StoppedError):
        ShapeSpace.train(store, names, run, config)
    assert not (run.folder / "round1.safetensors").exists()
    with pytest.raises(FileExistsError, match=r"parts already holds a run.*--resume"):
        ShapeSpace.train(store, names, run, config)
    with pytest.raises(StoppedError):
        ShapeSpace.train(store, names, run, config, resume=True)
    assert (run.folder / "round1.safetensors").exists()
    ShapeSpace.train(store, names, run, config, resume=True)
    assert len(reads) == 4
    tensors, expected = (load_tensors(one.weights, "model")[0] for one in (run, whole))
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


def test_an_interruption_names_the_folder_of_the_run(
    model: ArticulatedSDF, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "fit_targets", stop)
    with pytest.raises(KeyboardInterrupt, match=r"stopped in round 1 of 2; resume with: .*--resume .*/raw$"):
        rounds.train_on_fits(model, CONFIG, Figures({}), [], Run(tmp_path / "raw"))
    with pytest.raises(ValueError, match=r"--rounds 0: must be at least 1"):
        rounds.train_on_fits(model, replace(CONFIG, rounds=0), Figures({}), [], Run(tmp_path))


def test_rounds_share_steps_and_minutes() -> None:
    optim = OptimConfig(max_steps=9000, max_epochs=1000.0, max_minutes=10.0)
    shared = rounds.share(replace(CONFIG, optim=optim, rounds=2), num_scans=10)
    assert (shared.optim.max_steps, shared.optim.max_minutes) == (1250, 5.0)  # 1,000 epochs of 2.5 steps
    assert rounds.share(replace(CONFIG, optim=optim, rounds=1), num_scans=10).optim.max_steps == 2500


def test_registrations_are_used_if_all_scans_have_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warm start keeps the parts of its space; with a registration less, or of other faces, scans are fitted."""
    meshes = figures(4, seed=5)
    names = list(meshes)
    config = replace(CONFIG, init_from=str(trained), optim=replace(CONFIG.optim, max_steps=2))

    def fitted(*arguments: object, **options: object) -> None:
        raise StoppedError

    monkeypatch.setattr("shapespace.fitting.rounds.train_on_fits", fitted)
    space = ShapeSpace.train(Figures(meshes, names), names, Run(tmp_path / "registered"), config)
    model, start = space.model, ShapeSpace.load(trained).model
    assert isinstance(model, ArticulatedSDF)
    assert isinstance(start, ArticulatedSDF)
    torch.testing.assert_close(model.target_center, truth_of(start, meshes).center)
    assert torch.equal(model.template.labels, start.template.labels)
    assert torch.equal(model.hypernetwork.components, start.hypernetwork.components)
    for others in (names[1:], []):
        with pytest.raises(StoppedError):
            ShapeSpace.train(Figures(meshes, others), names, Run(tmp_path / "fitted"), config)
    flipped = {name: Trimesh(mesh.vertices, mesh.faces[:, [1, 2, 0]], process=False) for name, mesh in meshes.items()}
    with pytest.raises(StoppedError):
        ShapeSpace.train(Figures(flipped, names), names, Run(tmp_path / "flipped"), config)


def test_a_start_without_parts_is_refused(trained: Path, tmp_path: Path) -> None:
    meshes = figures(2, seed=5)
    store, names = Figures(meshes), list(meshes)
    with pytest.raises(ValueError, match=r"figures: 2 of 2 scans have no registration.*--init-from SPACE\."):
        ShapeSpace.train(store, names, Run(tmp_path / "none"), CONFIG)
    sizes = IGRConfig(code_dim=4, width=16, depth=2, skip=1, encoder_points=32, encoder_width=16, encoder_features=16)
    igr = replace(CONFIG, model=sizes, family="igr", optim=OptimConfig(max_steps=1), weights=LossWeights())
    ShapeSpace.train(store, names, Run(tmp_path / "igr"), igr)
    with pytest.raises(ValueError, match=r"--init-from .*igr: a space without parts \(family igr\)\. Start from"):
        ShapeSpace.train(store, names, Run(tmp_path / "raw"), replace(CONFIG, init_from=str(tmp_path / "igr")))
    sizes = CONFIG.model
    bare = ShapeSpace(build_articulated(sizes, num_scans=2), sizes, scale=1.0, metadata={"weights": {}})
    bare.save(tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"bare\.safetensors: a space without parts \(family articulated\)"):
        ShapeSpace.train(
            store, names, Run(tmp_path / "raw"), replace(CONFIG, init_from=str(tmp_path / "bare.safetensors"))
        )
    with pytest.raises(ValueError, match=r"its model unit is 1 m, and that of figures 1\.25 m\. .*--scale 1\."):
        ShapeSpace.train(
            replace(store, scale=1.25), names, Run(tmp_path / "raw"), replace(CONFIG, init_from=str(trained))
        )
