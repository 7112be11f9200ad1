"""Training: bit-for-bit resuming, records, warm starts, parts of registrations, and errors."""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import tyro
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.parallel import DistributedDataParallel
from trimesh import Trimesh

from shapespace.data.loader import Batch, StepDataset, batches, collate
from shapespace.data.preprocess import PreprocessOptions, preprocess
from shapespace.data.store import ScanStore
from shapespace.datasets import get_dataset
from shapespace.geometry.proximity import contains
from shapespace.geometry.scan import Scan
from shapespace.io.checkpoints import load_tensors, save_tensors
from shapespace.models import articulated, igr, registry
from shapespace.models.articulated import ArticulatedConfig, ArticulatedSDF
from shapespace.space import ShapeSpace
from shapespace.tools._config import config_class, expand_config_option
from shapespace.training import optimizers, train
from shapespace.training.config import OptimConfig, TrainConfig
from shapespace.training.objective import Objective
from shapespace.training.run import Run, describe_hardware
from shapespace.training.warm_start import load_pretrained


@pytest.fixture(scope="module")
def store_file(tmp_path_factory: pytest.TempPathFactory, make_synthetic: Callable[[Path], Path]) -> Path:
    """The file of a store; read only."""
    folder = tmp_path_factory.mktemp("people")
    people = make_synthetic(folder / "synthetic")
    return preprocess(get_dataset("synthetic"), people, folder / "store.h5", PreprocessOptions(points=2000)).path


@pytest.fixture
def store(store_file: Path) -> ScanStore:
    return ScanStore(store_file)


def tiny(*arguments: str) -> TrainConfig[Any]:
    words = expand_config_option(["--config", "tiny", "--device", "cpu", "--projector-codes", "0", *arguments])
    return tyro.cli(config_class(words), args=words)


def parts(*arguments: str) -> TrainConfig[Any]:
    words = expand_config_option(["--config", "articulated", *TINY_PARTS.split(), *arguments])
    return tyro.cli(config_class(words), args=words)


def learn(
    store: ScanStore,
    folder: Path,
    *arguments: str,
    resume: bool = False,
    config: Callable[..., TrainConfig[Any]] = tiny,
) -> dict[str, torch.Tensor]:
    run = Run(folder)
    if not resume:
        run.create({})
    ShapeSpace.train(store, store.scan_names("train"), run, config(*arguments), resume=resume)
    return load_tensors(run.weights, "model")[0]


TINY_PARTS = (
    "--device cpu --projector-codes 0 --model.code-dim 6 --model.num-parts 8 --model.local-dim 3 --model.width 8 "
    "--model.depth 2 --model.hyper-width 16 --model.loss-points 32 --model.encoder-points 64 --model.encoder-width 16 "
    "--model.encoder-features 16 --batch.scans 2 --batch.points 128 --batch.surface-points 64 --optim.warmup-steps 2"
)
WEIGHTS = ("surface", "normal", "eikonal", "code_reg", "tangent_plane", "unsigned_distance")
DISTILLED = ("--model.encoder", "distilled", "--weights.distillation", "1")
RECOMMENDED = ("--optim.lr-muon", "0.01", "--batch.gradient-stride", "4", "--matmul-precision", "bf16", *DISTILLED)


class InterruptionError(Exception):
    """Stands for a machine that fails."""


@pytest.mark.parametrize(
    "kind", [(), ("--model.encoder", "autodecoder"), ("--model.encoder", "variational"), DISTILLED, RECOMMENDED]
)
def test_resumed_equals_uninterrupted_to_the_bit(
    kind: tuple[str, ...], store: ScanStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("--optim.max-steps", "12", "--save_every", "5", *kind)
    whole = learn(store, tmp_path / "whole", *settings)

    original = StepDataset.__getitem__

    def failing(self: StepDataset, step: int) -> object:
        if step == 8:
            raise InterruptionError
        return original(self, step)

    monkeypatch.setattr(StepDataset, "__getitem__", failing)
    with pytest.raises(InterruptionError):
        learn(store, tmp_path / "parts", *settings)
    monkeypatch.undo()
    assert Run(tmp_path / "parts").load_checkpoint()["step"] == 5
    resumed = learn(store, tmp_path / "parts", *settings, resume=True)
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


@pytest.mark.parametrize("execution", ["eager", "chunked"])
def test_resumed_parts_equal_uninterrupted_ones_to_the_bit(
    execution: str, store: ScanStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the training of the decoder, and then in that of the encoder."""
    monkeypatch.setattr(ArticulatedSDF, "chunk_points", 150)  # one scan in a chunk
    settings = ("--optim.max-steps", "12", "--save-every", "4", "--execution", execution)
    whole = learn(store, tmp_path / "whole", *settings, config=parts)
    original = StepDataset.__getitem__

    def failing(self: StepDataset, step: int) -> object:
        if step == 7:
            raise InterruptionError
        return original(self, step)

    def lost(*_: object, **__: object) -> None:
        raise InterruptionError

    with monkeypatch.context() as patch:
        patch.setattr(StepDataset, "__getitem__", failing)
        with pytest.raises(InterruptionError):
            learn(store, tmp_path / "run", *settings, config=parts)
    assert Run(tmp_path / "run").load_checkpoint()["step"] == 4
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_encoder", lost)
        with pytest.raises(InterruptionError):
            learn(store, tmp_path / "run", *settings, config=parts, resume=True)
    assert Run(tmp_path / "run").load_checkpoint()["step"] == 10
    resumed = learn(store, tmp_path / "run", *settings, config=parts, resume=True)
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_parts_learn_and_leave_a_space(store: ScanStore, tmp_path: Path) -> None:
    learn(store, tmp_path / "run", "--optim.max-steps", "60", "--log-every", "2", config=parts)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    loss = np.array([event.value for event in events.Scalars("loss")])
    assert len(loss) == 24  # and a fifth of the steps is that of the encoder
    assert loss[-5:].mean() < 0.6 * loss[:2].mean()
    terms = {f"loss/{name}" for name in ("surface", "normal", "eikonal", "part_center", "part_rotation", "code_reg")}
    assert terms <= set(events.Tags()["scalars"])
    space = ShapeSpace.load(tmp_path / "run")
    model = space.model
    assert isinstance(model, ArticulatedSDF)
    name = store.scan_names("train")[0]
    truth = store.ground_truth(name)
    assert truth is not None
    np.testing.assert_array_equal(model.template.faces, truth.faces)
    table = model.codes_parameter
    assert table is not None
    with torch.no_grad():  # the template follows the parts of a training scan
        posed = store.frame(name).to_world(model.template(model.states(space.sample(1).unflatten(table[:1])))[0])
    assert np.linalg.norm(posed.numpy() - truth.vertices, axis=1).mean() < 0.03
    assert (model.local_std > 0).all()
    assert model.prior.covariance.diagonal().min() > 0


def test_scans_without_registrations_or_of_another_template_are_refused(
    store: ScanStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, truth = store.scan_names("train"), store.ground_truth

    def other(name: str) -> Trimesh | None:
        mesh = truth(name)
        assert mesh is not None
        return mesh if name == names[0] else Trimesh(mesh.vertices[:162], mesh.faces[:320], process=False)

    monkeypatch.setattr(store, "ground_truth", other)
    with pytest.raises(
        ValueError, match=rf"store\.h5: the registration of {names[1]} has 162 vertices and 320 .* --init-from SPACE"
    ):
        learn(store, tmp_path / "other", config=parts)
    monkeypatch.setattr(store, "has_ground_truth", lambda name: name != names[2])
    with pytest.raises(
        ValueError,
        match=rf"store\.h5: 1 of 4 scans have no registration, for example {names[2]}\. .* --init-from SPACE",
    ):
        learn(store, tmp_path / "none", config=parts)
    assert not Run(tmp_path / "none").checkpoint.exists()


@pytest.mark.parametrize(("name", "scans"), [("dfaust", 12), ("faust", 6), ("cape", 6)])
def test_parts_are_those_of_any_template(name: str, scans: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    root = request.getfixturevalue(f"{name}_root")
    path = preprocess(get_dataset(name), root, tmp_path / "store.h5", PreprocessOptions(points=300)).path
    store = ScanStore(path)
    names = [scan for scan in store.names if store.has_ground_truth(scan)]
    run = Run(tmp_path / "run")
    run.create({})
    model = ShapeSpace.train(store, names, run, parts("--optim.max-steps", "2")).model
    assert isinstance(model, ArticulatedSDF)
    assert (model.target_center.shape, model.target_rotation.shape) == ((scans, 8, 3), (scans, 8, 3, 3))
    mesh = store.ground_truth(names[0])
    assert mesh is not None
    np.testing.assert_array_equal(model.template.faces, mesh.faces)
    vertices = store.frame(names[0]).to_model(torch.from_numpy(mesh.vertices).float())
    labels = model.template.labels.long()
    for part in range(8):  # as a mean of the vertices of the part
        assert (vertices[labels == part].mean(dim=0) - model.target_center[0, part]).norm() < 0.05
    loaded = ShapeSpace.load(tmp_path / "run").model
    assert loaded.fingerprint() == model.fingerprint()


def test_a_training_starts_from_the_parts_of_another_one(
    store: ScanStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if its own division of the template would be another one."""
    first = learn(store, tmp_path / "run", "--optim.max-steps", "20", config=parts)
    settings = ("--init-from", str(tmp_path / "run"), "--optim.max-steps", "1", "--optim.lr", "0", "--optim.lr-codes")
    monkeypatch.setattr(articulated, "make_template", None)
    second = learn(store, tmp_path / "second", *settings, "0", "--optim.lr-muon", "0", config=parts)
    assert first.keys() == second.keys()
    for name in ("template.labels", "template.center", "decoder.radius", "hypernetwork.components", "decoder.hidden"):
        assert torch.equal(first[name], second[name]), name
    assert torch.equal(first["encoder.table.codes"], second["encoder.table.codes"])


def test_the_encoder_of_parts_is_trained_alone(store: ScanStore, tmp_path: Path) -> None:
    first = learn(store, tmp_path / "run", "--optim.max-steps", "5", "--optim.encoder-share", "0", config=parts)
    settings = ("--trainable", "encoder", "--init-from", str(tmp_path / "run"), "--optim.max-steps", "6")
    second = learn(store, tmp_path / "second", *settings, config=parts)
    assert first.keys() == second.keys()
    moved = {name for name, tensor in second.items() if not torch.equal(tensor, first[name])}
    assert moved == {name for name in second if name.startswith(("encoder.pointnet.", "encoder.corrections."))}
    with pytest.raises(ValueError, match=r"--optim\.encoder-share 1: must be at least 0 and below 1"):
        learn(store, tmp_path / "none", "--optim.encoder-share", "1", config=parts)


def test_corrections_bring_the_parts_nearer(store: ScanStore, tmp_path: Path) -> None:
    settings = ("--optim.max-steps", "150", "--optim.max-epochs", "400", "--optim.encoder-share", "0.9")
    learn(store, tmp_path / "run", *settings, "--model.encoder-corrections", "2", config=parts)
    model = ShapeSpace.load(tmp_path / "run").model
    assert isinstance(model, ArticulatedSDF)
    names, encoder = store.scan_names("train"), model.encoder
    points = torch.stack([torch.from_numpy(store.sample(n, 1024, np.random.default_rng(1)).points) for n in names])
    truth = model.training_states().center
    with torch.no_grad():
        code, _ = encoder.pointnet(points)
        codes = [code, *encoder.corrections(points, code, model.hypernetwork, model.decoder.radius)]
        first, second, third = ((model.hypernetwork(c).center - truth).norm(dim=-1).mean() for c in codes)
    assert max(second, third) < 0.8 * first
    unseen = collate([Scan(name, own.numpy()) for name, own in zip(names, points, strict=True)])
    torch.testing.assert_close(model.encode(unseen).flat, codes[-1])


@pytest.mark.parametrize("count", [1, 2])
def test_few_parts_are_trained(count: int, store: ScanStore, tmp_path: Path) -> None:
    trained = learn(store, tmp_path / "run", "--optim.max-steps", "5", "--model.num-parts", str(count), config=parts)
    assert set(trained["template.labels"].tolist()) == set(range(count))
    with pytest.raises(ValueError, match=r"--model\.num-parts 800: the smallest part has . of the 972 vertices"):
        learn(store, tmp_path / "many", "--model.num-parts", "800", config=parts)


FORK = multiprocessing.get_context("fork")


def _double(batch: Batch) -> Batch:
    return batch.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def _gradients(store: ScanStore, ranks: list[int], world: int) -> dict[str, torch.Tensor]:
    """Gradients of a step on a batch of four scans: of the shares of these processes."""
    torch.manual_seed(0)
    names = store.scan_names("train")
    model = articulated.build_articulated(parts().model, num_scans=4)
    model.initialize(store, names)
    model = model.double().train()
    for weight in (model.hypernetwork.correction, model.hypernetwork.pose.out.weight):  # away from the targets
        torch.nn.init.normal_(weight, std=0.1)
    model.encoder.train_network(False)
    sizes = {"scans": 4, "points": 128, "surface_points": 64, "near_std": 0.01, "half_extent": 1.0, "seed": 0}
    shares = [_double(StepDataset(store, names, **sizes, rank=rank, world_size=2)[3]) for rank in ranks]
    values = {field.name: [getattr(share, field.name) for share in shares] for field in fields(Batch)}
    joined = Batch(
        **{name: torch.cat(each) if isinstance(each[0], torch.Tensor) else each[0] for name, each in values.items()}
    )
    weights = {name: getattr(parts().weights, name) for name in parts().weights.__dataclass_fields__}
    objective: torch.nn.Module = Objective(model, weights, "eager" if world == 1 else "chunked")
    if world > 1:
        objective = DistributedDataParallel(objective)
    objective(joined)[0].backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _member(rank: int, store: ScanStore, place: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    torch.save(_gradients(store, [rank], 2), place.with_name(f"{place.name}.{rank}"))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_compute_the_gradients_of_one_for_parts(store: ScanStore, tmp_path: Path) -> None:
    alone = _gradients(store, [0, 1], 1)
    members = [FORK.Process(target=_member, args=(rank, store, tmp_path / "meet")) for rank in range(2)]
    for member in members:
        member.start()
    for member in members:
        member.join(100)
        member.kill()
    assert [member.exitcode for member in members] == [0, 0]
    for rank in range(2):
        gradients = torch.load(tmp_path / f"meet.{rank}")
        assert gradients.keys() == alone.keys()
        for name, gradient in alone.items():
            assert gradient.abs().max() > 0, name
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-9, msg=name)


def test_it_learns_and_leaves_scalars_and_a_mesh(store: ScanStore, tmp_path: Path) -> None:
    learn(store, tmp_path / "run", "--optim.max-steps", "60")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    loss = [event.value for event in events.Scalars("loss")]
    assert loss[-1] < 0.7 * loss[0]
    assert {"loss/surface", "loss/normal", "loss/eikonal", "loss/code_reg", "lr", "time/data_wait"} <= set(
        events.Tags()["scalars"]
    )
    assert any("surface" in tag for tag in events.Tags()["tensors"])
    assert Run(tmp_path / "run").training_log().machines == [describe_hardware()]


def test_the_projector_has_codes_and_a_rendering_of_each(store: ScanStore, tmp_path: Path) -> None:
    """Codes whose dimension exceeds their number are projected onto fewer axes; their distances are preserved."""
    learn(store, tmp_path / "run", "--optim.max-steps", "20", "--save_every", "10", "--projector-codes", "3")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    codes = _codes(store, tmp_path / "run")
    norms = events.Histograms("codes/norms")[-1]
    assert [event.step for event in events.Histograms("codes/values")] == [10, 20, 20]
    assert (norms.histogram_value.num, events.Histograms("codes/values")[-1].histogram_value.num) == (
        4,
        codes.numel(),
    )
    assert norms.histogram_value.max == pytest.approx(codes.norm(dim=1).max().item(), rel=1e-4)

    (folder,) = (tmp_path / "run" / "tensorboard").glob("00020/codes")
    names = store.scan_names("train")
    rows = [0, 2, 3]  # evenly over four
    lines = (folder / "metadata.tsv").read_text().splitlines()
    assert lines == ["scan\tsubject", *(f"{names[row]}\t{names[row].split('/')[0]}" for row in rows)]
    written = torch.from_numpy(np.loadtxt(folder / "tensors.tsv", dtype=np.float32))
    assert written.shape == (3, 3) < codes[rows].shape
    assert torch.cdist(written, written) == pytest.approx(torch.cdist(codes[rows], codes[rows]), abs=1e-3)
    sprite = np.asarray(Image.open(folder / "sprite.png"))[..., :3]
    assert sprite.shape == (128, 128, 3)  # two by two, the last one empty


def _codes(store: ScanStore, folder: Path) -> torch.Tensor:
    learned = ShapeSpace.load(folder)
    batch = tiny().batch
    settings = {
        "surface_points": batch.surface_points,
        "scans": batch.scans,
        "points": batch.points,
        "near_std": batch.near_std,
    }
    dataset = StepDataset(store, store.scan_names("train"), **settings, half_extent=batch.half_extent, seed=0)
    return train.encode_training_scans(learned.model, dataset, torch.device("cpu"))


def test_minutes_end_a_training_and_its_schedule(store: ScanStore, tmp_path: Path) -> None:
    learn(store, tmp_path / "run", "--optim.max-steps", "100000", "--optim.max-minutes", "0.02", "--log_every", "1")
    assert 0 < Run(tmp_path / "run").load_checkpoint()["step"] < 1000
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    rates = [event.value for event in events.Scalars("lr")]
    assert rates[-1] < 0.2 * max(rates)


def test_the_encoder_is_trained_alone(store: ScanStore, tmp_path: Path) -> None:
    """Decoder, codes and the stored loss weights are those of the initial run."""
    learn(store, tmp_path / "run", "--optim.max-steps", "20", *DISTILLED)
    first, description = load_tensors(Run(tmp_path / "run").weights, "model")
    encoder_only = (
        "--trainable",
        "encoder",
        "--init-from",
        str(tmp_path / "run"),
        "--model.encoder",
        "distilled",
        "--optim.max-steps",
        "60",
    )
    only = tuple(
        f"--weights.{name}={weight}" for name, weight in {**dict.fromkeys(WEIGHTS, 0), "distillation": 1}.items()
    )
    learn(store, tmp_path / "second", *encoder_only, *only, "--log_every", "1")
    second, metadata = load_tensors(Run(tmp_path / "second").weights, "model")
    moved = {name for name, tensor in second.items() if not torch.equal(tensor, first[name])}
    assert moved == {name for name in second if name.startswith("encoder.pointnet.")}
    assert metadata["metadata"]["weights"] == description["metadata"]["weights"]
    events = EventAccumulator(str(tmp_path / "second" / "tensorboard"))
    events.Reload()
    losses = [event.value for event in events.Scalars("loss/distillation")]
    assert losses[-1] < 0.5 * losses[0]


def test_codes_of_other_scans_are_initialized_by_the_encoder(store: ScanStore, tmp_path: Path) -> None:
    learn(store, tmp_path / "run", "--optim.max-steps", "20", *DISTILLED)
    run, space = Run(tmp_path / "more"), ShapeSpace.load(tmp_path / "run")
    run.create({})
    frozen = ("--optim.lr", "0", "--optim.lr_codes", "0", "--optim.max-steps", "1")
    config, others = tiny("--init-from", str(tmp_path / "run"), *frozen, *DISTILLED), store.names
    assert len(others) != len(store.scan_names("train"))
    ShapeSpace.train(store, others, run, config)
    codes = load_tensors(run.weights, "model")[0]["encoder.table.codes"]
    assert len(codes) == len(others)
    scan = store.sample(others[2], config.batch.points, np.random.default_rng((0, 2)))
    torch.testing.assert_close(codes[2:3], space.model.encode(collate([scan])).flat, atol=1e-6, rtol=0)


def test_a_larger_decoder_goes_on_from_the_same_field(store: ScanStore, tmp_path: Path) -> None:
    learn(store, tmp_path / "run", "--optim.max-steps", "20", *DISTILLED)
    larger = ("--model.width", "56", "--model.modulate", "all", "--optim.lr", "0", "--optim.lr_codes", "0")
    learn(
        store, tmp_path / "grown", "--init-from", str(tmp_path / "run"), *larger, "--optim.max-steps", "1", *DISTILLED
    )
    small, grown = ShapeSpace.load(tmp_path / "run"), ShapeSpace.load(tmp_path / "grown")
    assert grown.config.width == 56
    code, x = small.sample(2), torch.rand(2, 200, 3) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(grown.model.field(x, code), small.model.field(x, code), atol=1e-5, rtol=0)


def test_the_sizes_of_a_start_are_named(tmp_path: Path) -> None:
    config = ArticulatedConfig(encoder_points=64, encoder_width=16)  # an encoder of another size is no obstacle
    model = registry.build_model(config, num_scans=3)
    with pytest.raises(
        ValueError, match=r"has another size in this training\. Pass --model.code-dim 256 --model.num-parts 104\.$"
    ):
        load_pretrained("humans", model, config, trainable="all")
    fitting = replace(config, code_dim=256, num_parts=104)
    loaded, _ = load_pretrained("humans", registry.build_model(fitting, num_scans=3), fitting, trainable="all")
    assert "prior.mean" in loaded
    other = igr.IGRConfig(code_dim=4, width=24, depth=3, skip=1)
    with pytest.raises(ValueError, match=r"Use the --model settings and the scans of that training\.$"):
        load_pretrained("humans", registry.build_model(other, num_scans=3), other, trainable="all")


def test_a_start_that_does_not_fit_is_refused(store: ScanStore, tmp_path: Path) -> None:
    learn(store, tmp_path / "run", "--optim.max-steps", "2", *DISTILLED)
    with pytest.raises(
        ValueError, match=r"run: decoder\..* has another size in this training\. Pass --model\.width 48, or a l"
    ):
        learn(store, tmp_path / "wider", "--init-from", str(tmp_path / "run"), "--model.width", "40", *DISTILLED)
    with pytest.raises(FileNotFoundError, match="no model at"):
        learn(store, tmp_path / "nothing", "--init-from", str(tmp_path / "none"), *DISTILLED)
    with pytest.raises(ValueError, match=r"--trainable encoder: no run to start from\. Set --init-from RUN"):
        learn(store, tmp_path / "alone", "--trainable", "encoder", *DISTILLED)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_that_are_read_ahead_are_those_of_the_data_set(store: ScanStore, workers: int) -> None:
    dataset = StepDataset(store, store.names, scans=2, points=64, near_std=0.01, half_extent=1.0, seed=0)
    last = 3 * len(store.names)  # epochs end on the way
    ahead = list(batches(dataset, 2, last, num_workers=workers))
    assert len(ahead) == last - 2
    for step, batch in enumerate(ahead, start=2):
        assert batch.scan_index.tolist() == dataset[step].scan_index.tolist()
        assert torch.equal(batch.points, dataset[step].points)
        assert torch.equal(batch.uniform_points, dataset[step].uniform_points)
    assert list(batches(dataset, 5, 5, num_workers=workers)) == []


def test_what_fails_while_reading_ahead_is_raised_at_its_step(store: ScanStore) -> None:
    dataset = StepDataset(store, store.names, scans=2, points=64, near_std=0.01, half_extent=1.0, seed=0)
    dataset.transform = Failing(after=4)
    ahead = batches(dataset, 0, 10)
    next(ahead), next(ahead)
    with pytest.raises(OSError, match="the disk has gone"):
        next(ahead)


class Failing:
    """A transform that fails once it has seen so many scans."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, data: object) -> object:
        self.left -= 1
        if self.left < 0:
            raise OSError("the disk has gone")
        return data


def test_batches_are_a_function_of_seed_and_step(store: ScanStore) -> None:
    def dataset(seed: int = 0, **share: int) -> StepDataset:
        names = store.scan_names("train")
        return StepDataset(store, names, scans=2, points=64, near_std=0.01, half_extent=1.0, seed=seed, **share)

    one, again = dataset()[7], dataset()[7]
    assert torch.equal(one.points, again.points)
    assert torch.equal(one.near_points, again.near_points)
    assert torch.equal(one.uniform_points, again.uniform_points)
    assert not torch.equal(one.points, dataset(seed=1)[7].points)
    parts = [dataset(rank=rank, world_size=2)[7] for rank in range(2)]
    assert torch.equal(torch.cat([part.points for part in parts]), one.points)
    assert torch.equal(torch.cat([part.scan_index for part in parts]), one.scan_index)
    seen = torch.cat([dataset()[step].scan_index for step in range(2)])
    assert sorted(seen.tolist()) == [0, 1, 2, 3]  # an epoch visits every scan once


def test_labels_are_those_of_the_ground_truth(store: ScanStore) -> None:
    names = store.scan_names("train")
    dataset = StepDataset(
        store, names, scans=2, points=64, near_std=0.01, half_extent=1.0, seed=0, occupancy_points=3000
    )
    batch = dataset[1]
    assert batch.occupancy_points is not None
    assert batch.occupancy is not None
    for row, query, known in zip(
        batch.scan_index.tolist(), batch.occupancy_points.numpy(), batch.occupancy.numpy(), strict=True
    ):
        mesh = store.ground_truth(names[row])
        assert mesh is not None
        places = store.frame(names[row]).to_world(torch.from_numpy(query)).numpy()
        assert (contains(places, mesh) == known).mean() > 0.999
        assert 0.1 < known.mean() < 0.6
    again = dataset[1].occupancy_points
    assert again is not None
    assert torch.equal(again, batch.occupancy_points)
    bare = ScanStore(store.path)
    bare.has_ground_truth = lambda name: name != names[0]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"have no ground truth for occupancy labels, for example"):
        StepDataset(bare, names, scans=2, points=64, near_std=0.01, half_extent=1.0, seed=0, occupancy_points=8)


def test_schedules() -> None:
    cosine, halving = optimizers.cosine(warmup_steps=10), optimizers.halving(every=100)
    assert cosine(0, 0.0) == pytest.approx(0.1)
    assert cosine(50, 0.5) == pytest.approx(0.505)
    assert cosine(99, 1.0) == pytest.approx(0.01)
    assert [halving(step, 0.0) for step in (0, 99, 100, 250)] == [1, 1, 0.5, 0.25]


def test_a_loss_that_is_not_finite_stops_the_training(store: ScanStore, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"step \d+: the loss is nan on scans .*lower --optim.lr"):
        learn(store, tmp_path / "run", "--optim.lr", "1e30", "--log_every", "1")


def test_a_field_that_is_zero_stops_the_training(store: ScanStore, tmp_path: Path) -> None:
    learn(store, tmp_path / "run", "--optim.max-steps", "2", *DISTILLED)
    tensors, description = load_tensors(Run(tmp_path / "run").weights, "model")
    silent = {name: torch.zeros_like(t) if name.startswith("decoder.out") else t for name, t in tensors.items()}
    save_tensors(tmp_path / "dead.safetensors", silent, description)
    frozen = ("--optim.lr", "0", "--optim.lr_codes", "0", "--log_every", "1")
    with pytest.raises(FloatingPointError, match=r"step 1: the field is zero everywhere on scans .*lower --optim.lr"):
        learn(store, tmp_path / "more", "--init-from", str(tmp_path / "dead.safetensors"), *frozen, *DISTILLED)


def test_epochs_limit_the_number_of_steps() -> None:
    optim = OptimConfig(max_steps=6000, max_epochs=400.0)
    steps = [train.num_steps(optim, scans, 16) for scans in (8, 100, 120, 228, 3000)]
    assert steps == [2000, 2500, 3000, 5700, 6000]
    assert train.num_steps(OptimConfig(max_steps=50, max_epochs=400.0), 120, 16) == 50
    assert train.num_steps(OptimConfig(max_steps=90_000), 120, 16) == 90_000


def test_scans_without_normals_need_a_weight_of_zero() -> None:
    model = igr.build_igr(igr.IGRConfig(code_dim=4, width=24, depth=3, skip=1, encoder_points=50))
    batch = collate([Scan("", np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))])
    with pytest.raises(ValueError, match=r"weights\.normal 0"):
        Objective(
            model,
            {
                "surface": 1.0,
                "normal": 1.0,
                "eikonal": 0.1,
                "code_reg": 0.0,
                "tangent_plane": 0.0,
                "unsigned_distance": 0.0,
            },
        )(batch)


def test_a_run_is_not_overwritten_and_a_missing_one_is_named(store: ScanStore, tmp_path: Path) -> None:
    learn(store, tmp_path / "run", "--optim.max-steps", "2")
    with pytest.raises(FileExistsError, match="already holds a run"):
        Run(tmp_path / "run").create({})
    with pytest.raises(FileNotFoundError, match=r"no checkpoint\.pt\. Give the folder of a run to resume"):
        Run(tmp_path / "nothing").load_checkpoint()
    with pytest.raises(FileNotFoundError, match=r"no config\.yaml"):
        Run(tmp_path / "nothing").settings()


def test_an_empty_split_and_an_uneven_batch(store: ScanStore) -> None:
    with pytest.raises(ValueError, match="no scans to train on"):
        StepDataset(store, [], scans=2, points=8, near_std=0.01, half_extent=1.0, seed=0)
    with pytest.raises(ValueError, match=r"--batch\.scans 3: not divisible by 2 processes"):
        StepDataset(store, store.names, scans=3, points=8, near_std=0.01, half_extent=1.0, seed=0, world_size=2)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model at"):
        ShapeSpace.load(tmp_path / "nothing.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ValueError, match=r"not a valid safetensors file|not a shapespace model"):
        ShapeSpace.load(tmp_path / "cut.safetensors")
    save_tensors(tmp_path / "codes.safetensors", {"x": torch.zeros(1)}, {"kind": "codes"})
    with pytest.raises(ValueError, match="holds codes, not a shapespace model"):
        ShapeSpace.load(tmp_path / "codes.safetensors")
    save_tensors(tmp_path / "old.safetensors", {"x": torch.zeros(1)}, {"kind": "model", "format": 0})
    with pytest.raises(ValueError, match="format 0 of model files is unknown"):
        ShapeSpace.load(tmp_path / "old.safetensors")
