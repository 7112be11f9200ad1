"""Diverging trainings stop, report step and scans, and keep the last good checkpoint; signals end a training."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shapespace.data.loader import Batch, StepDataset
from shapespace.data.store import ScanStore
from shapespace.io.checkpoints import load_tensors
from shapespace.space import ShapeSpace
from shapespace.tools import train
from shapespace.tools.__main__ import cli
from shapespace.training import monitor
from shapespace.training.monitor import MIN_WINDOW, PATIENCE, DivergenceMonitor
from shapespace.training.run import Run

LINE = ("--config", "tiny", "--split", "train", "--device", "cpu", "--projector-codes", "0", "--save_every", "10")


@pytest.fixture
def dataset(store: Path) -> StepDataset:
    packed = ScanStore(store)
    return StepDataset(packed, packed.scan_names("train"), scans=2, points=8, near_std=0.01, half_extent=1.0, seed=0)


def shown(watched: DivergenceMonitor, losses: list[float], first: int = 1, **terms: float) -> None:
    for step, loss in enumerate(losses, first):
        watched.update(step, torch.tensor(loss), {name: torch.tensor(value) for name, value in terms.items()})
        watched.check_losses()


def test_a_loss_that_stays_high_stops_the_training_and_a_spike_does_not(dataset: StepDataset, tmp_path: Path) -> None:
    watched = DivergenceMonitor(Run(tmp_path), dataset)
    shown(watched, [1.0] * MIN_WINDOW + [50.0] * (PATIENCE - 1))
    assert not watched.is_stable
    shown(watched, [1.0], first=PATIENCE)
    assert watched.is_stable
    with pytest.raises(FloatingPointError) as stop:
        shown(watched, [50.0] * PATIENCE, first=1001, surface=3.0)
    step = 1000 + PATIENCE
    scans = ", ".join(dataset.scans_of(step - 1))
    above = f"{PATIENCE} steps above 10 times the median 1"
    assert str(stop.value).startswith(
        f"step {step}: the loss diverged to 50 ({above}) on scans {scans} (terms: surface 3). There is no "
        "checkpoint: train again and lower --optim.lr"
    )


def test_a_loss_that_falls_or_begins_high_is_no_alarm(dataset: StepDataset, tmp_path: Path) -> None:
    watched = DivergenceMonitor(Run(tmp_path), dataset)
    shown(watched, [1e3 / (step + 1) for step in range(300)] + [60.0, 600.0] * PATIENCE)
    assert not watched.is_stable
    shown(watched, [60.0])
    assert watched.is_stable


def test_a_climb_at_the_end_needs_to_be_short_only(dataset: StepDataset, tmp_path: Path) -> None:
    watched = DivergenceMonitor(Run(tmp_path), dataset)
    shown(watched, [1.0] * MIN_WINDOW + [50.0] * (PATIENCE // 10))
    watched.update(MIN_WINDOW + PATIENCE // 10 + 1, torch.tensor(50.0), {})
    with pytest.raises(FloatingPointError, match="the loss diverged"):
        watched.check_losses(last=True)


def test_exploding_codes_are_reported_once(
    dataset: StepDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watched, codes = DivergenceMonitor(Run(tmp_path), dataset), torch.ones(4, 8)
    watched.check_weights(1, torch.nn.Linear(1, 1), codes)
    assert capsys.readouterr().err == ""
    codes[2] = 100
    watched.check_weights(20, torch.nn.Linear(1, 1), codes)
    watched.check_weights(40, torch.nn.Linear(1, 1), codes)
    printed = capsys.readouterr().err
    assert printed.count(f"step 20: the codes of {dataset.names[2]} are more than 10 times as long") == 1
    assert printed.count("note") == 1
    codes[3] = torch.nan
    with pytest.raises(FloatingPointError, match=f"step 60: the codes of {dataset.names[3]} are not finite"):
        watched.check_weights(60, torch.nn.Linear(1, 1), codes)


def test_weights_that_are_not_finite_are_not_saved(dataset: StepDataset, tmp_path: Path) -> None:
    broken = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(broken.bias, torch.inf)
    with pytest.raises(FloatingPointError, match="step 7: the weights bias are not finite"):
        DivergenceMonitor(Run(tmp_path), dataset).check_weights(7, broken, None)


def corrupt(monkeypatch: pytest.MonkeyPatch, first: int, change: Callable[[Batch], Batch]) -> None:
    """Change all batches from this step on."""
    original = StepDataset.__getitem__
    monkeypatch.setattr(
        StepDataset,
        "__getitem__",
        lambda self, step: original(self, step) if step < first else change(original(self, step)),
    )


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_diverging_training_stops_and_is_resumed(
    store: Path,
    dataset: StepDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Scans become NaN or far too large; the training is resumed from the checkpoint before."""
    line = [str(store), *LINE, "--optim.max-steps", "40", "--out"]
    cli(train.main, [*line, str(tmp_path / "whole")])
    monkeypatch.setattr(monitor, "PATIENCE", 10)
    kinds: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "step 26: the loss is nan": lambda tensor: tensor * torch.nan,
        r"step 35: the loss diverged to .* \(10 steps above .*\)": lambda tensor: tensor * 100,
    }
    for sentence, change in kinds.items():
        folder = tmp_path / ("nan" if "nan" in sentence else "diverged")
        with monkeypatch.context() as patch:
            corrupt(patch, 25, lambda batch, to=change: batch.map(lambda t: to(t) if t.is_floating_point() else t))
            with pytest.raises(SystemExit) as stop:
                cli(train.main, [*line, str(folder)])
        printed = capsys.readouterr().err.splitlines()[-1]
        assert stop.value.code == 2
        assert re.search(f"{sentence} on scans p", printed), printed
        scans = dataset.scans_of(25 if "nan" in sentence else 34)
        assert ", ".join(dict.fromkeys(scans)) in printed
        continued = f"continue from its model with shapespace train STORE --init-from {folder}"
        assert f"The checkpoint of step 20 is unchanged: {continued}" in printed
        assert f"shapespace train --resume {folder}" in printed
        cli(train.main, ["--resume", str(folder)])
        assert weights(folder) == weights(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_training_with_a_checkpoint(
    number: signal.Signals,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = [str(store), *LINE, "--optim.max-steps", "20", "--out"]
    cli(train.main, [*line, str(tmp_path / "whole")])
    before = signal.getsignal(number)
    sent: list[int] = []

    def send(batch: Batch) -> Batch:
        if not sent:
            sent.append(1)
            os.kill(os.getpid(), number)
        return batch

    with monkeypatch.context() as patch:
        corrupt(patch, 13, send)  # read while step 12 is made, at the earliest
        with pytest.raises(SystemExit) as stop:
            cli(train.main, [*line, str(tmp_path / "parts")])
    step = Run(tmp_path / "parts").load_checkpoint()["step"]
    assert stop.value.code == 130
    assert step in (12, 13)
    assert (
        f"stopped at step {step}; resume with: shapespace train --resume {tmp_path / 'parts'}"
        in capsys.readouterr().err
    )
    assert signal.getsignal(number) == before
    assert ShapeSpace.load(tmp_path / "parts").model.fingerprint()
    cli(train.main, ["--resume", str(tmp_path / "parts")])
    one, two = (load_tensors(Run(tmp_path / name).weights, "model")[0] for name in ("whole", "parts"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
