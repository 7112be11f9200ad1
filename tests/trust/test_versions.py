"""Files of another format: read, or refused with the line that makes them anew."""

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


@pytest.mark.parametrize("number", [0, 2, None])
def test_a_model_of_another_format(number: int | None, run: Run) -> None:
    reformat(run.weights, number)
    said = rf"model.safetensors has format {number}, this version reads 1: train again, shapespace train STORE --out"
    with pytest.raises(ValueError, match=said):
        ShapeSpace.load(run.folder)


@pytest.mark.parametrize("number", [0, 2])
def test_codes_of_another_format(number: int, run: Run, tmp_path: Path) -> None:
    space, path = ShapeSpace.load(run.folder), tmp_path / "codes.safetensors"
    save_fits(path, [space.from_principal_components([1.0])], space.model)
    assert [fit.name for fit in load_fits(path, space.model)] == ["along"]
    reformat(path, number)
    said = rf"codes.safetensors has format {number}, this version reads 1: fit the scans again, shapespace fit RUN"
    with pytest.raises(ValueError, match=said):
        load_fits(path, space.model)


def _numbered(number: int | None) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        state.pop("format")
        torch.save(state if number is None else {**state, "format": number}, path)

    return change


@pytest.mark.parametrize("number", [0, 2])
def test_a_checkpoint_of_another_format(number: int, run: Run) -> None:
    _numbered(number)(run.checkpoint)
    anew = f"Train again, or from its model: shapespace train STORE --init-from {run.folder}"
    with pytest.raises(ValueError, match=re.escape(f"has format {number}, this version reads 1. {anew}")):
        run.load_checkpoint()
    with pytest.raises(ValueError, match=f"has format {number}"):
        run.progress()


def test_a_checkpoint_from_before_there_were_numbers_is_read(run: Run) -> None:
    _numbered(None)(run.checkpoint)
    assert run.load_checkpoint()["step"] == 40


@pytest.mark.parametrize("size", [0, 100, -100])
def test_a_checkpoint_that_was_cut_is_named(size: int, run: Run) -> None:
    """No killed process of ours leaves one; a copy may."""
    whole = run.checkpoint.read_bytes()
    run.checkpoint.write_bytes(whole[:size])
    with pytest.raises(
        ValueError, match=r"checkpoint.pt is damaged, or no checkpoint of ours \(.+\)\. Remove it and train"
    ):
        run.load_checkpoint()


@pytest.mark.parametrize("number", [0, 2])
def test_a_store_of_another_format(number: int, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "store.h5"
    shutil.copy(store, path)
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = number
    with pytest.raises(ValueError, match=rf"store of format {number}; format 1 is required\. Rebuild it: shape"):
        ScanStore(path)
