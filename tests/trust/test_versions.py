"""Files of an unknown format are refused with the command that makes them again.

Earlier formats: `tests/io/test_migration.py`.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from shapespace.data.store import ScanStore
from shapespace.fitting.result import load_fits, save_fits
from shapespace.space import ShapeSpace
from shapespace.training.run import Run


def reformat(path: Path, number: int | None) -> None:
    """Change the number of a safetensors file's format, or take it away."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["shapespace"])
    about["format"] = number
    save_file(tensors, path, metadata={"shapespace": json.dumps(about)})


@pytest.fixture
def run(learned: Path, tmp_path: Path) -> Run:
    shutil.copytree(learned, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.mark.parametrize("number", [0, 3, None])
def test_a_model_of_an_unknown_format(number: int | None, run: Run) -> None:
    reformat(run.weights, number)
    sentence = (
        rf"model.safetensors: format {number} of model files is unknown, this version reads formats 1 to 2\. "
        "Install the version that wrote it, or train again: shapespace train STORE --out"
    )
    with pytest.raises(ValueError, match=sentence):
        ShapeSpace.load(run.folder)


@pytest.mark.parametrize("number", [0, 2])
def test_codes_of_an_unknown_format(number: int, run: Run, tmp_path: Path) -> None:
    space, path = ShapeSpace.load(run.folder), tmp_path / "codes.safetensors"
    save_fits(path, [space.from_principal_components([1.0])], space.model)
    assert [fit.name for fit in load_fits(path, space.model)] == ["components"]
    reformat(path, number)
    sentence = (
        rf"codes.safetensors: format {number} of codes files is unknown, this version reads format 1\. "
        "Install the version that wrote it, or fit the scans again: shapespace fit RUN"
    )
    with pytest.raises(ValueError, match=sentence):
        load_fits(path, space.model)


def _with_format(number: int | None) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        state.pop("format")
        torch.save(state if number is None else {**state, "format": number}, path)

    return change


@pytest.mark.parametrize("number", [0, 3])
def test_a_checkpoint_of_an_unknown_format(number: int, run: Run) -> None:
    _with_format(number)(run.checkpoint)
    sentence = (
        f"checkpoint.pt: format {number} of checkpoint files is unknown, this version reads formats 1 to 2. "
        "Install the version that wrote it, or train again from its model: "
        f"shapespace train STORE --init-from {run.folder} --out OTHER"
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run.load_checkpoint()
    with pytest.raises(ValueError, match=f"format {number} of checkpoint files is unknown"):
        run.progress()


def test_a_checkpoint_without_a_number_is_read(run: Run) -> None:
    _with_format(None)(run.checkpoint)
    assert run.load_checkpoint()["step"] == 40


@pytest.mark.parametrize("size", [0, 100, -100])
def test_a_truncated_checkpoint_is_named(size: int, run: Run) -> None:
    """A killed process leaves none; an interrupted copy may."""
    whole = run.checkpoint.read_bytes()
    run.checkpoint.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"checkpoint.pt: not a valid checkpoint \(.+\)\. Remove it and train again"):
        run.load_checkpoint()


@pytest.mark.parametrize("number", [0, 2])
def test_a_store_of_an_unknown_format(number: int, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "store.h5"
    shutil.copy(store, path)
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = number
    with pytest.raises(ValueError, match=rf"store of format {number}; format 1 is required\. Rebuild it: shape"):
        ScanStore(path)
