"""`shapespace train` on a store without registrations, from a space that has parts."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from shapespace.data.store import ScanStore
from shapespace.fitting import part_targets, rounds
from shapespace.fitting.levenberg_marquardt import PartOptions
from shapespace.space import ShapeSpace
from shapespace.tools.__main__ import cli
from shapespace.training.run import Run

SIZES = (
    "--model.code-dim 6 --model.num-parts 12 --model.local-dim 3 --model.width 16 --model.depth 3 "
    "--model.hyper-width 16 --model.encoder-points 96 --model.encoder-width 32 --model.encoder-features 32 "
    "--model.encoder-corrections 0"
)
LENGTH = (
    "--batch.scans 4 --batch.points 128 --batch.surface-points 96 --optim.max-epochs 1 --optim.warmup-steps 5 "
    "--device cpu --projector-codes 0"
)


def call(line: str) -> None:
    verb, *words = line.split()
    cli(import_module(f"shapespace.tools.{verb}").main, words, verb)


@pytest.mark.usefixtures("first_fit_only")
def test_a_store_without_registrations_is_fitted_by_another_space(
    synthetic_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the fits, `--resume`, and a second training in the same folder."""
    quick = replace(
        part_targets.OPTIONS, num_points=128, max_steps=6, trial_steps=2, parts=PartOptions(num_points=128, max_steps=3)
    )
    monkeypatch.setattr(part_targets, "OPTIONS", quick)
    call(f"preprocess synthetic {synthetic_root} {tmp_path / 'registered.h5'} --points 600")
    call(f"preprocess folder {synthetic_root / 'scans'} {tmp_path / 'raw.h5'} --points 600 --scale 1.25")
    raw = ScanStore(tmp_path / "raw.h5")
    assert not any(raw.has_ground_truth(name) for name in raw.names)
    start = f"--config articulated {LENGTH} --optim.max-steps"
    call(f"train {tmp_path / 'registered.h5'} {SIZES} --out {tmp_path / 'space'} {start} 60")

    out, fit_targets = tmp_path / "raw", rounds.fit_targets
    line = f"train {tmp_path / 'raw.h5'} --out {out} --init-from {tmp_path / 'space'} {start} 8"

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "fit_targets", interrupted)
    with pytest.raises(SystemExit) as stopped:
        call(line)
    assert stopped.value.code == 130
    assert f"stopped in round 1 of 2; resume with: shapespace train --resume {out}" in capsys.readouterr().err
    monkeypatch.setattr(rounds, "fit_targets", fit_targets)
    call(f"train --resume {out}")
    assert Run(out).load_checkpoint()["step"] == 4 - round(0.2 * 4)  # a fifth is the encoder's
    space = ShapeSpace.load(out)
    assert space.config == ShapeSpace.load(tmp_path / "space").config
    codes = space.model.codes_parameter
    assert codes is not None
    assert len(codes) == len(raw.names) == 9

    settings, seen = Run(out).config.read_text(), capsys.readouterr()
    assert "round 2 of 2: 9 scans are fitted first" in seen.err
    for checkpoint in (Run(out).checkpoint, Run(out).weights):
        checkpoint.unlink()
    with pytest.raises(SystemExit):
        call(f"{line} --seed 1")
    assert f"{out} already holds a run." in capsys.readouterr().err
    assert Run(out).config.read_text() == settings
