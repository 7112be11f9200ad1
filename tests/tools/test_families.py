"""Every command works for every family: a short training on a few bodies, from the store to an interpolation."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from shapespace.data.store import ScanStore
from shapespace.io.scan_files import read_mesh
from shapespace.rendering import renderer
from shapespace.tools.__main__ import cli
from shapespace.training import tensorboard

SMALL = {
    "articulated": "--model.code-dim 8 --model.num-parts 8 --model.local-dim 3 --model.width 12 --model.depth 3 "
    "--model.hyper-width 16 --model.loss-points 48 --model.encoder-width 32",
    "occupancy": "--model.code-dim 16 --model.width 32 --model.blocks 2 --model.encoder-width 32",
    "convolutional": "--model.plane 16 --model.depth 3 --model.width 8 --model.features 8 --model.blocks 2",
    "convolutional_scans": "--model.plane 16 --model.depth 3 --model.width 8 --model.features 8 --model.blocks 2",
    "multiscale": "--model.grid 16 --model.levels 3 --model.features 4 --model.width 32",
    "multiscale_scans": "--model.grid 16 --model.levels 3 --model.features 4 --model.width 16",
    "voxel": "--model.grid 16",
    "atlas": "--model.code-dim 16 --model.width 64 --model.patches 4",
}


@pytest.fixture
def store(synthetic_root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "store.h5"
    call(f"preprocess synthetic {synthetic_root} {path} --points 3000")
    return path


def call(line: str) -> None:
    verb, *words = line.split()
    cli(import_module(f"shapespace.tools.{verb}").main, words, verb)


@pytest.mark.parametrize("config", SMALL)
def test_every_verb_works(config: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "THUMBNAIL_RESOLUTION", 16)
    monkeypatch.setattr(tensorboard, "MESH_RESOLUTION", 16)
    monkeypatch.setattr(renderer, "MAX_POINT_MARKERS", 1_000)
    scans = "--batch.scans 4 --batch.points 512 --batch.surface-points 48 --projector-codes 1"
    if config in ("occupancy", "multiscale"):
        scans += " --batch.occupancy-points 256"
    count = 20 if config == "articulated" else 40 if config.endswith(("scans", "occupancy")) else 120
    steps = f"--optim.warmup-steps 5 --optim.lr 5e-3 --optim.max-steps {count}"
    call(f"train {store} --split train --config {config} {SMALL[config]} {scans} {steps} --out {tmp_path / 'run'}")
    a, b = ScanStore(store).scan_names("train")[:2]
    given = f"{tmp_path / 'run'} {a} {b} --store {store} --resolution 24"
    call(f"encode {given} --out {tmp_path / 'encoded'}")
    call(f"fit {given} --method adam --adam.init encoder --adam.steps 2 --adam.points 128 --out {tmp_path / 'fitted'}")
    codes = tmp_path / "fitted" / "codes.safetensors"
    out = tmp_path / "run" / "interpolation"  # where the report looks for it before it makes its own, which is finer
    call(f"interpolate {tmp_path / 'run'} {codes}:{a} {codes}:{b} --steps 3 --resolution 24 --out {out}")
    meshes = [
        read_mesh(file)
        for folder in ("encoded", "fitted", "run/interpolation")
        for file in (tmp_path / folder).glob("*.*")
        if file.suffix in (".ply", ".obj")
    ]
    assert len(meshes) == 7
    for mesh in meshes:
        assert 0.01 < mesh.extents.max() < 3  # meters, and no more than the cube
    call(
        f"evaluate {tmp_path / 'run'} {store} --splits train --limit 2 --method encode --metrics surface_distance "
        "--resolution 24"
    )
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    (row,) = scores["summary"].values()
    assert 0 < row["surface_distance"]["completeness"]["median"] < 1000
    settings = scores["settings"]
    assert (settings["family"], settings["method"]) == (config.removesuffix("_scans"), "encode")
    assert settings["training_steps"] == (16 if config == "articulated" else count)  # the others are the encoder's
    assert (
        min(settings["encode_seconds"], settings["mesh_seconds"], settings["code_dim"], settings["training_seconds"])
        > 0
    )
    assert (settings["fit_seconds"], settings["parameter_bytes"] == 0) == (None, config == "voxel")
    call(f"report {tmp_path / 'run'}")
    page = (tmp_path / "run" / "report.md").read_text()
    assert f" {settings['code_dim']:,} " in page
    assert "No interpolation" not in page
