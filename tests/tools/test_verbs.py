"""Commands as users call them: the lines of README and guide, public datasets, and invalid input."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from shapespace.data.store import ScanStore
from shapespace.evaluation import surface_benchmarks
from shapespace.fitting import refine
from shapespace.geometry.scan import Scan
from shapespace.io.scan_files import read_mesh, write_scan
from shapespace.rendering import renderer
from shapespace.tools import ablate, benchmark
from shapespace.tools.__main__ import VERBS, cli, main
from shapespace.tools._subprocess import run_command
from shapespace.training import tensorboard

ROOT = Path(__file__).parents[2]
# In this order: later pages use the files that earlier ones write.
GUIDES = ("train", "many_scans", "evaluate", "interpolate", "fit", "data", "reconstruct", "pictures", "sequences")
PAGES = ("README.md", *(f"docs/guide/{page}.md" for page in GUIDES))
GUIDE = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs/guide").glob("*.md"))
BIN = Path(sys.executable).parent


def processes(line: str, folder: Path) -> str:
    """Run a command in a separate process, which must succeed; its output."""
    words = shlex.split(line)
    words[0] = str(BIN / words[0])
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[int, str, str]]:
    """Run a command in this process, which saves the imports: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def called(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return called


@pytest.fixture
def ok(inside: Callable[[str], tuple[int, str, str]]) -> Callable[[str], str]:
    """Run a command in this process, in the folder of the test; it must succeed. Its output."""

    def called(line: str) -> str:
        code, out, err = inside(line)
        assert code == 0, f"{line}\n{out}\n{err}"
        return out

    return called


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


def result_paths(line: str, folder: Path) -> list[Path]:
    """Paths that a printed line names and that exist."""
    words = [word.strip(",().;:") for word in line.split()]
    return [folder / word for word in words if word and (folder / word).exists()]


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch, first_fit_only: None) -> None:
    """Less work inside of the commands; its results are tested elsewhere."""
    monkeypatch.setattr(refine, "NUM_TARGETS", 2_000)
    monkeypatch.setattr("shapespace.reconstruct.MAX_POINTS", 5_000)
    monkeypatch.setattr(surface_benchmarks, "_CELLS", 64)
    monkeypatch.setattr(tensorboard, "THUMBNAIL_RESOLUTION", 16)
    monkeypatch.setattr(tensorboard, "MESH_RESOLUTION", 16)
    monkeypatch.setattr(renderer, "MAX_POINT_MARKERS", 1_000)
    # Trainings and scorings of `ablate` are commands; run_command is tested below.
    monkeypatch.setattr(ablate, "run_command", run_here)


def run_here(words: Sequence[object], threads: int = 1) -> None:
    """Run a command as `run_command` does, but in this process, which saves the imports."""
    assert threads >= 1
    verb, *rest = map(str, words)
    cli(import_module(f"shapespace.tools.{verb}").main, rest, verb)


def test_a_command_runs_in_a_process_of_its_own() -> None:
    """What it prints comes back, and of a failure the last line."""
    assert run_command(["--help"]).startswith("usage: shapespace")
    assert re.fullmatch(
        r"shapespace [\d.]+, torch [\d.]+\S*, numpy [\d.]+, Python [\d.]+\n", run_command(["--version"])
    )
    with pytest.raises(
        ValueError, match=r"^shapespace fti 'a b' failed: shapespace: no command 'fti'\. Did you mean fit"
    ):
        run_command(["fti", "a b"], threads=1)


@pytest.mark.usefixtures("coarse")
def test_the_commands_of_readme_and_guide_run_as_they_are(tmp_path: Path, ok: Callable[[str], str]) -> None:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    lines = [line for line in lines if line.startswith(("shapespace", "torchrun"))]
    lines = [line for line in lines if not line.startswith("shapespace view")]  # it serves until Ctrl+C
    assert len(lines) >= 20
    assert {line.split()[1] for line in lines if line.startswith("shapespace")} >= VERBS.keys() - {"benchmark", "view"}
    for line in lines:
        printed = (ok(line) if line.startswith("shapespace") else processes(line, tmp_path)).strip().splitlines()
        assert printed, f"{line}: prints nothing"
        assert result_paths(printed[-1], tmp_path), f"{line}: no path of a result in {printed[-1]!r}"

    scores = json.loads((tmp_path / "runs/people/scores.json").read_text())
    for split in ("unseen_poses", "unseen_people"):
        for direction in ("completeness", "accuracy"):
            assert scores["summary"][split]["surface_distance"][direction]["median"] > 0
    frames = sorted((tmp_path / "interpolated").glob("*.obj"))
    assert len(frames) == 5
    animation = trimesh.load(tmp_path / "interpolated" / "interpolation.glb")
    assert len(animation.geometry) == 5
    record = json.loads((tmp_path / "interpolated" / "path.json").read_text())
    assert record["area_m2"] == pytest.approx([read_mesh(frame).area for frame in frames], rel=1e-3)
    assert len(record["volume_m3"]) == 5


def code_of(block: str) -> str:
    """The block without comments and empty lines: pages that share an example run it once."""
    return ast.unparse(ast.parse(block))


PYTHON = {
    code_of(block): f"{page}, {index}"
    for page in reversed(["README.md", *GUIDE, "docs/reference/python.md"])
    for index, block in enumerate(blocks(page, "python"))
}


@pytest.mark.parametrize("block", PYTHON, ids=PYTHON.get)
def test_the_python_blocks_run_as_they_are(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block, names)
    meshes = [*names.get("meshes", []), *(names[name] for name in ("mesh", "body") if name in names)]
    assert all(len(mesh.faces) > 100 for mesh in meshes)
    if "fitted.ply" in block:
        assert read_mesh(tmp_path / "fitted.ply").volume > 0.01


def test_readme_and_guide_have_python_blocks() -> None:
    """So that the test above cannot pass because nothing matched."""
    assert len(blocks("README.md", "python")) == 1
    assert sum(len(blocks(page, "python")) for page in GUIDE) >= 2


def test_the_makefile_uses_existing_commands() -> None:
    verbs = re.findall(r"\$\(BIN\)/shapespace ([\w-]+)", (ROOT / "Makefile").read_text())
    assert len(verbs) >= 7
    assert set(verbs) <= VERBS.keys()
    subprocess.run(
        ["make", "-n", "demo", "test", "check", "slow", "gallery", "bench"], cwd=ROOT, capture_output=True, check=True
    )


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize(
    ("dataset", "fixture", "split"),
    [("dfaust", "dfaust_root", "train_all"), ("faust", "faust_root", "train"), ("cape", "cape_root", "train")],
)
def test_public_datasets_from_store_to_scores(
    dataset: str, fixture: str, split: str, request: pytest.FixtureRequest, tmp_path: Path, ok: Callable[[str], str]
) -> None:
    root: Path = request.getfixturevalue(fixture)
    ok(f"shapespace preprocess {dataset} {root} store.h5 --points 3000")
    ok(f"shapespace train store.h5 --config tiny --split {split} --optim.max-steps 20 --out run")
    name = ScanStore(tmp_path / "store.h5").scan_names(split)[0]
    ok(f"shapespace fit run {name} --store store.h5 --resolution 32 --out fitted")
    ok("shapespace mesh run fitted/codes.safetensors --resolution 32 --out meshes")
    (mesh,) = (tmp_path / "meshes").glob("*.ply")
    assert read_mesh(mesh).volume > 0
    ok(f"shapespace evaluate run store.h5 --splits {split} --resolution 32 --out scored")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model, for commands that fail."""
    from shapespace import ShapeSpace
    from shapespace.models import igr

    torch.manual_seed(0)
    config = igr.IGRConfig(code_dim=4, width=24, depth=3, skip=1, init_radius=0.5, encoder_points=128)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    ShapeSpace(igr.build_igr(config).eval(), config, scale=1.25, metadata={"weights": {}}).save(path)
    return path


def person(scale: float = 1.0) -> Scan:
    normals = np.random.default_rng(0).normal(size=(500, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return Scan("p", (normals * (0.3, 0.85, 0.2) * scale).astype(np.float32))


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for each invalid scan, named after its defect."""
    root = tmp_path_factory.mktemp("bad")
    (root / "empty").mkdir()
    (root / "empty" / "scan.ply").touch()
    write_scan(root / "truncated" / "scan.ply", person())
    os.truncate(root / "truncated" / "scan.ply", (root / "truncated" / "scan.ply").stat().st_size - 1000)
    write_scan(root / "unit" / "scan.ply", person(1000))
    points = person().points
    for name, columns in {
        "infinite": points * (1, 1, np.inf),
        "alone": points[:1],
        "normals": np.hstack([points, np.zeros_like(points)]),
        "bare": points,
    }.items():
        (root / name).mkdir()
        np.save(root / name / "scan.npy", columns)
    return root


MISTAKES = {
    "shapespace fti x y": "Did you mean fit",
    "shapespace fit {run} nothing.ply": r"nothing\.ply",
    "shapespace fit nowhere nothing.ply": "no model at nowhere",
    "shapespace fit {run} --split test": "--split test: no store given",
    "shapespace fit {run} {bad}/empty/scan.ply": r"scan\.ply: empty \(0 bytes\)",
    "shapespace fit {run} {bad}/truncated/scan.ply": r"scan\.ply: truncated\. .* the file has \d,\d+",
    "shapespace fit {run} {bad}/unit/scan.ply --unit m": "size 1,660 m, .* --unit mm",
    "shapespace fit {run} {bad}/infinite/scan.npy": "500 of 500 points have NaN or infinite",
    "shapespace fit {run} {bad}/alone/scan.npy": ": 1 points, at least 100 are required",
    "shapespace encode {run}": "no scans given",
    "shapespace evaluate-paths {run} nowhere": "nowhere: not a synthetic dataset",
    "shapespace evaluate-paths {run} nowhere --steps 2": "--steps 2: no shape between the ends",
    "shapespace view {run} nothing.ply": r"nothing\.ply",
    "shapespace view {run} --split test": "--split test: no store given",
    "shapespace view {run} --host 192.0.2.1 --port 0": r"192\.0\.2\.1 --port 0: .* an address of this machine",
    "shapespace report": "no runs given: name folders",
    "shapespace report {bad}/empty": r"empty: no scores\.json .*\. Score the run first: shapespace evaluate",
    "shapespace ablate nothing.h5 --variants tiny": r"nothing\.h5",
    "shapespace simulate {bad}/bare/scan.npy --out seen": "points without faces",
    "shapespace mesh {run} {run}": "not a shapespace codes",
    "shapespace train": "no store or no --out",
    "shapespace train nothing.h5 --out r": r"nothing\.h5",
    "shapespace train --resume nothing": r"no config\.yaml",
    "shapespace train --resume nothing --optim.lr 1e-4": r"settings are those of the run.*--init-from nothing",
    "shapespace train a.h5 --resume nothing": r"settings are those of the run.*--init-from nothing",
    "shapespace train x.h5 --config igr_papr": "Did you mean igr_paper",
    "shapespace train x.h5 --family ocupancy": "no family 'ocupancy'. Did you mean occupancy",
    "shapespace evaluate {run} nothing.h5": r"nothing\.h5",
    "shapespace interpolate {run} {run}:a b": "not a shapespace codes",
    "shapespace preprocess fuast . out.h5": "faust",
    "shapespace preprocess folder {bad}/empty out.h5": r"scan\.ply: empty \(0 bytes\)",
    "shapespace preprocess folder {bad}/truncated out.h5": r"scan\.ply: truncated\. .* the file has \d,\d+",
    "shapespace preprocess folder {bad}/unit out.h5": "size 1,660 m, .* --unit mm",
    "shapespace preprocess folder {bad}/infinite out.h5": "500 of 500 points have NaN or infinite",
    "shapespace preprocess folder {bad}/alone out.h5": ": 1 points, at least 100 are required",
    "shapespace preprocess folder {bad}/normals out.h5 --normals require": "500 points without faces or normals",
    "shapespace preprocess folder {bad}/bare out.h5 --normals require": r"faces or normals \(--normals require\)",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_get_one_sentence_and_leave_no_files(
    line: str, run: Path, bad: Path, tmp_path: Path, inside: Callable[[str], tuple[int, str, str]]
) -> None:
    code, out, err = inside(line.format(run=run, bad=bad))
    assert code == 2, (out, err)
    assert re.search(MISTAKES[line], err), err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_help_and_is_a_module(verb: str, inside: Callable[[str], tuple[int, str, str]]) -> None:
    code, out, _ = inside(f"shapespace {verb} --help")
    assert code == 0
    assert f"shapespace {verb}" in out
    assert (ROOT / "tools" / f"{verb.replace('-', '_')}.py").is_file()


def test_the_program_lists_its_commands_and_modules_run_alone(tmp_path: Path) -> None:
    listed = processes("shapespace --help", tmp_path)
    assert all(verb in listed for verb in VERBS)
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "fit.py", "nowhere", "nothing.ply"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.split(":")[0]) == (2, "shapespace fit"), done.stderr


@pytest.mark.parametrize("sections", ["encode load", pytest.param("all", marks=pytest.mark.slow)])
def test_the_benchmark_compares_equals(
    sections: str, tmp_path: Path, ok: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them in a separate process: pytest's shape checks cannot be compiled."""
    line = f"benchmark {sections} --quick --json figures.json"
    if sections == "all":
        words = [sys.executable, "-m", "shapespace.tools", *line.split()]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        out = done.stdout
    else:
        tiny = replace(benchmark.QUICK, code_dim=8, width=32, people=1, poses=2, training=2, times=1, scans=2)
        monkeypatch.setattr(benchmark, "QUICK", tiny)
        monkeypatch.setattr(benchmark, "run_command", run_here)
        out = ok(f"shapespace {line}")
    figures = json.loads((tmp_path / "figures.json").read_text())
    expected = ["step", "fit", "mesh", "encode", "load", "parts"] if sections == "all" else sections.split()
    assert list(dict.fromkeys(figure["section"] for figure in figures)) == expected
    assert all(figure["equal"] in (True, None) for figure in figures), out
    assert all(figure["ratio"] == pytest.approx(figure["reference_s"] / figure["ours_s"]) for figure in figures)
