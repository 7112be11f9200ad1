"""Training by several processes: equal to one process, resumed by another number of them, and a killed process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import tyro
from torch.nn.parallel import DistributedDataParallel

from shapespace.data.loader import Batch, StepDataset
from shapespace.data.preprocess import PreprocessOptions, preprocess
from shapespace.data.store import ScanStore
from shapespace.datasets.synthetic import Synthetic
from shapespace.io.checkpoints import load_tensors
from shapespace.models import igr
from shapespace.space import ShapeSpace
from shapespace.tools._config import config_class, expand_config_option
from shapespace.tools.train import _lost_process_as_error, _restarts
from shapespace.training.config import TrainConfig
from shapespace.training.objective import Objective
from shapespace.training.run import Run

FORK = multiprocessing.get_context("fork")
WEIGHTS = {
    "surface": 1.0,
    "normal": 1.0,
    "eikonal": 0.1,
    "code_reg": 1e-3,
    "tangent_plane": 1.0,
    "unsigned_distance": 1.0,
}


@pytest.fixture
def store(synthetic_root: Path, tmp_path: Path) -> Path:
    return preprocess(Synthetic(), synthetic_root, tmp_path / "s.h5", PreprocessOptions(points=500)).path


def _member(rank: int, world: int, place: Path, act: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=world)
    torch.save(act(rank, world, *arguments), place.with_name(f"{place.name}.{rank}"))
    dist.barrier()
    dist.destroy_process_group()


def together(world: int, place: Path, act: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `act(rank, world, *arguments)` gives in each of so many processes, which can talk to each other."""
    members = [FORK.Process(target=_member, args=(rank, world, place, act, arguments)) for rank in range(world)]
    for member in members:
        member.start()
    for member in members:
        member.join(100)
        member.kill()
    assert [member.exitcode for member in members] == [0] * world
    return [torch.load(place.with_name(f"{place.name}.{rank}")) for rank in range(world)]


def _batch(store: Path, rank: int, world: int) -> Batch:
    packed = ScanStore(store)
    names = packed.names[:4]
    dataset = StepDataset(
        packed, names, scans=4, points=60, near_std=0.01, half_extent=1.0, seed=0, rank=rank, world_size=world
    )
    return dataset[3].map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def _gradients(rank: int, world: int, store: Path, kind: Any) -> dict[str, torch.Tensor]:
    """Gradients of a step on a global batch of four scans, by one process or by several."""
    config = igr.IGRConfig(
        code_dim=4, width=24, depth=3, skip=1, encoder=kind, code_init_std=1.0, encoder_points=60, encoder_width=16
    )
    torch.manual_seed(0)
    model = (
        igr.build_igr(config, num_scans=4).double().eval()
    )  # variational samples differ with the number of processes
    weights = WEIGHTS | ({"distillation": 1.0} if kind == "distilled" else {})
    objective: torch.nn.Module = Objective(model, weights, "eager" if world == 1 else "chunked")
    parts = [_batch(store, part, 2) for part in (range(2) if world == 1 else [rank])]
    tensors = {field.name: getattr(parts[0], field.name) for field in fields(Batch)}
    joined = {
        name: torch.cat([getattr(part, name) for part in parts]) if isinstance(value, torch.Tensor) else value
        for name, value in tensors.items()
    }
    if world > 1:
        objective = DistributedDataParallel(objective)
    loss, _ = objective(Batch(**joined))
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", ["pointnet", "autodecoder", "distilled"])
def test_two_processes_compute_the_gradients_of_one(
    store: Path, tmp_path: Path, kind: str, tried: Callable[..., None]
) -> None:
    alone = _gradients(0, 1, store, kind)
    for gradients in together(2, tmp_path / "meet", _gradients, store, kind):
        assert gradients.keys() == alone.keys()
        for name, gradient in alone.items():
            assert gradient.abs().max() > 0
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-9, msg=name)
    assert any("table" in name for name in alone) == (kind != "pointnet")
    tried(f"gradients of 2 processes, codes from {kind}", len(alone), len(alone), "equal to 1e-5 to those of one")


def _tiny(steps: int) -> TrainConfig[Any]:
    words = ["--config", "tiny", "--device", "cpu", "--projector-codes", "0", "--model.encoder", "distilled"]
    words = expand_config_option(
        [*words, "--weights.distillation", "1", "--optim.max-steps", str(steps), "--save_every", "3"]
    )
    return tyro.cli(config_class(words), args=words)


def _learn(rank: int, world: int, store: Path, folder: Path, steps: int, resume: bool) -> dict[str, torch.Tensor]:
    packed = ScanStore(store)
    names = packed.scan_names("train")
    space = ShapeSpace.train(packed, names, Run(folder), _tiny(steps), rank=rank, world_size=world, resume=resume)
    return {name: parameter.detach() for name, parameter in space.model.named_parameters()}


def test_a_training_goes_on_with_another_number_of_processes(
    store: Path, tmp_path: Path, tried: Callable[..., None]
) -> None:
    run = Run(tmp_path / "run")
    run.create({})
    counts = (2, 1, 2)
    before: dict[str, torch.Tensor] = {}
    for turn, world in enumerate(counts):
        each = together(world, tmp_path / f"meet{turn}", _learn, store, run.folder, 4 * (turn + 1), turn > 0)
        state = run.load_checkpoint()
        assert state["step"] == 4 * (turn + 1)
        weights, _ = load_tensors(run.weights, "model")
        for member in each:
            for name, tensor in member.items():
                torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0, msg=name)
        assert not all(torch.equal(weights[name], tensor) for name, tensor in before.items()) or not before
        before = each[0]
    tried("training resumed with another number of processes", len(counts), len(counts), "the same weights in each")


def test_a_lost_process_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with (
        pytest.raises(
            ConnectionError, match=r"another process .* has ended \(.*gloo.*continue with shapespace train --resume "
        ),
        _lost_process_as_error(Run(tmp_path)),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    with pytest.raises(RuntimeError, match="sizes"), _lost_process_as_error(Run(tmp_path)):
        raise RuntimeError("sizes do not match")


def test_restarts_of_torchrun_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _restarts() == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert _restarts() == 1


def _children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_a_process_that_dies_ends_the_job_and_torchrun_goes_on(
    store: Path, tmp_path: Path, rounds: Callable[[int, int], int], tried: Callable[..., None]
) -> None:
    """The second of two is killed once a checkpoint is there: alone that is the end, with --max-restarts it is not."""
    if not rounds(0, 1):
        pytest.skip("takes a minute: make trust")
    line = ["--config", "tiny", "--device", "cpu", "--projector-codes", "0", "--save_every", "5", "--split", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ends = {}
    for restarts in (0, 1):
        run = Run(tmp_path / f"run{restarts}")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        torchrun += ["--max-restarts", str(restarts), "-m", "shapespace.tools.train", str(store)]
        words = [*torchrun, *line, "--out", str(run.folder), "--optim.max-steps", "300"]
        with (tmp_path / f"said{restarts}").open("wb") as said:
            job = subprocess.Popen(words, env=environment, stdout=said, stderr=said)
            until = time.monotonic() + 120
            while not run.checkpoint.exists() and job.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            workers = _children(job.pid)
            os.kill(workers[-1], signal.SIGKILL)
            try:
                job.wait(120)
            finally:
                for process in (*_children(job.pid), job.pid) if job.returncode is None else ():
                    os.kill(process, signal.SIGKILL)
        ends[restarts] = (job.returncode, (tmp_path / f"said{restarts}").read_text(errors="replace"))
    code, said = ends[0]
    assert code != 0
    assert 0 < Run(tmp_path / "run0").load_checkpoint()["step"] < 300
    assert f"continue with shapespace train --resume {tmp_path / 'run0'}" in said or "Signal 9 (SIGKILL)" in said
    code, said = ends[1]
    assert code == 0, said[-3000:]
    assert Run(tmp_path / "run1").load_checkpoint()["step"] == 300
    tried("a process of two killed in a training", 2, 2, "the checkpoint stays; --max-restarts 1 goes on from it")
