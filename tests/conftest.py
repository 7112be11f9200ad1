"""Tiny data sets in the exact layouts of D-FAUST, FAUST, CAPE and our own synthetic scans."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import trimesh
from trimesh import Trimesh

from shapespace.geometry.scan import Scan
from shapespace.io.scan_files import write_scan

# Half axes and center of the ellipsoids of a body, meters, y up, feet on the floor; the arms turn about the shoulders.
_PARTS = (
    ((0.17, 0.34, 0.11), (0.0, 1.15, 0.0)),
    ((0.10, 0.14, 0.11), (0.0, 1.58, 0.0)),
    ((0.09, 0.45, 0.09), (0.11, 0.45, 0.0)),
    ((0.09, 0.45, 0.09), (-0.11, 0.45, 0.0)),
    ((0.32, 0.06, 0.06), (0.45, 1.38, 0.0)),
    ((0.32, 0.06, 0.06), (-0.45, 1.38, 0.0)),
)


# The files that take longest, which come first: what a worker begins last, it may end alone.
LONGEST = (
    "tools/test_verbs.py",
    "tools/test_families.py",
    "tools/test_register.py",
    "tools/test_robustness.py",
    "fitting/test_articulated.py",
    "tools/test_pipes.py",
    "trust/test_kill.py",
    "fitting/test_other_device.py",
    "fitting/test_part_targets.py",
    "fitting/test_refine.py",
    "fitting/test_fit.py",
    "trust/test_scan_checks.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files of tests; pytest-xdist keeps the order with `--no-loadscope-reorder`."""
    rank = {Path(__file__).parent / name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def make_body(stature: float = 1.0, raised: float = 0.0) -> Trimesh:
    """A closed, outward body of six ellipsoids, always of the same topology: `raised` turns the arms (radians)."""
    parts = []
    for axes, center in _PARTS:
        part = trimesh.creation.icosphere(subdivisions=2)
        part.apply_scale(axes)
        part.apply_translation(center)
        if abs(center[0]) > 0.4:
            side = np.sign(center[0])
            turn = trimesh.transformations.rotation_matrix(side * raised, (0, 0, 1), (side * 0.15, 1.38, 0))
            part.apply_transform(turn)
        parts.append(part)
    body = trimesh.util.concatenate(parts)
    return Trimesh(body.vertices * stature, body.faces, process=False)


def make_raw(body: Trimesh, seed: int) -> Trimesh:
    """The body as a raw scan: each vertex a millimetre off, some faces lost, edges unmerged."""
    rng = np.random.default_rng(seed)
    kept = np.flatnonzero(rng.random(len(body.faces)) > 0.05)
    corners = body.vertices[body.faces[kept]].reshape(-1, 3)
    return Trimesh(corners + rng.normal(0, 0.001, corners.shape), np.arange(len(corners)).reshape(-1, 3), process=False)


def _export(path: Path, mesh: Trimesh) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh.export(path)


def _register(path: Path, sequences: dict[str, list[Trimesh]]) -> None:
    with h5py.File(path, "w") as file:
        for key, bodies in sequences.items():
            file[key] = np.stack([body.vertices for body in bodies], axis=2).astype(np.float32)
        file["faces"] = make_body().faces.astype(np.uint32)


def _split(path: Path, names: list[str]) -> None:
    """Write names as IGR and SAL do."""
    content: dict[str, dict[str, list[str]]] = {}
    for name in names:
        subject, sequence, frame = name.split("/")
        content.setdefault(subject, {}).setdefault(sequence, []).append(f"{sequence}.{frame}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"scans": content}))


@pytest.fixture
def dfaust_root(tmp_path: Path) -> Path:
    """Two people, two sequences, three frames each; frame numbers begin late and have a gap."""
    root = tmp_path / "dfaust"
    names = []
    for gender, subject, stature in (("m", "50002", 1.05), ("f", "50004", 0.95)):
        sequences = {}
        for sequence, first in (("hips", 105), ("light_hopping_loose", 3980)):
            bodies = [make_body(stature, raised) for raised in (-0.6, 0.0, 0.6)]
            for body, frame in zip(bodies, (first, first + 1, first + 7), strict=True):
                names.append(f"{subject}/{sequence}/{frame:06d}")
                _export(root / "scans" / subject / sequence / f"{sequence}.{frame:06d}.ply", make_raw(body, frame))
            sequences[f"{subject}_{sequence}"] = bodies
        _register(root / f"registrations_{gender}.hdf5", sequences)
    _split(root / "splits" / "train_all.json", [name for name in names if "/hips/" in name])
    _split(root / "splits" / "test_all.json", [name for name in names if "/hips/" not in name])
    return root


@pytest.fixture
def faust_root(tmp_path: Path) -> Path:
    """People 0, 1 and 8 in poses 0 and 3, with registrations, and two test scans."""
    root = tmp_path / "MPI-FAUST"
    for person in (0, 1, 8):
        for pose in (0, 3):
            number, body = 10 * person + pose, make_body(1 + person / 100, pose / 5)
            _export(root / "training" / "scans" / f"tr_scan_{number:03d}.ply", make_raw(body, number))
            _export(root / "training" / "registrations" / f"tr_reg_{number:03d}.ply", body)
    for number in (0, 199):
        _export(root / "test" / "scans" / f"test_scan_{number:03d}.ply", make_raw(make_body(), number))
    return root


@pytest.fixture
def cape_root(tmp_path: Path) -> Path:
    """Two people, one sequence of three frames, the faces apart, and raw scans of it in millimeters."""
    root = tmp_path / "cape_release"
    names = []
    for subject, stature in (("00032", 1.0), ("00096", 0.9)):
        folder = root / "sequences" / subject / "longshort_hips"
        folder.mkdir(parents=True)
        for frame in (1, 2, 3):
            stem, body, moved = f"longshort_hips.{frame:06d}", make_body(stature, frame / 5), np.array([0.2, 0, -0.1])
            arrays = {"v_cano": make_body(stature).vertices, "v_posed": body.vertices + moved}
            np.savez(folder / f"{stem}.npz", pose=np.zeros(72), transl=moved, **arrays)
            raw = make_raw(body, frame)
            raw.vertices = (raw.vertices + moved) * 1000
            _export(root / "raw_scans" / subject / "longshort_hips" / f"{stem}.ply", raw)
            names.append(f"{subject}/longshort_hips/{frame:06d}")
    (root / "misc").mkdir()
    np.save(root / "misc" / "smpl_tris.npy", make_body().faces.astype(np.uint32))
    _split(root / "splits" / "train.json", names[:3])
    _split(root / "splits" / "test.json", names[3:])
    return root


def make_synthetic(root: Path) -> Path:
    """Three people, one sequence of three frames, seen by two sensors; the splits of `shapespace synthesize`."""
    names, sequences = [], {}
    for person in range(3):
        bodies = [make_body(0.9 + person / 10, raised) for raised in (-0.5, 0.0, 0.5)]
        for frame, body in enumerate(bodies):
            raw = make_raw(body, 3 * person + frame)
            points = raw.vertices.astype(np.float32)
            sensors = np.where(points[:, 2:] > 0, [[0.0, 1.0, 3.0]], [[0.0, 1.0, -3.0]]).astype(np.float32)
            name = f"p{person:03d}/poses/{frame:06d}"
            path = root / "scans" / f"p{person:03d}" / "poses" / f"poses.{frame:06d}.ply"
            write_scan(path, Scan(name, points, None, sensors, raw.faces.astype(np.int32)))
            names.append(name)
        sequences[f"p{person:03d}_poses"] = bodies
    _register(root / "registrations.hdf5", sequences)
    _split(root / "splits" / "train.json", [names[0], names[1], names[3], names[4]])
    _split(root / "splits" / "unseen_poses.json", [names[2], names[5]])
    _split(root / "splits" / "unseen_people.json", names[6:])
    (root / "synthesis.json").write_text(json.dumps({"seed": 0}))
    return root


@pytest.fixture(scope="session")
def synthetic_people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people in three poses, for `synthetic_root`."""
    return make_synthetic(tmp_path_factory.mktemp("people") / "synthetic")


@pytest.fixture
def synthetic_root(synthetic_people: Path, tmp_path: Path) -> Path:
    """A copy of them, for one test."""
    return Path(shutil.copytree(synthetic_people, tmp_path / "synthetic"))


@pytest.fixture(scope="session", name="make_synthetic")
def _make_synthetic() -> Callable[[Path], Path]:
    """The function that makes them, for what many tests share."""
    return make_synthetic


@pytest.fixture
def first_fit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep fits out of distribution, without three more at other places and turned, and those that lost a limb.

    To a toy space every scan is unlike its few people. Tests of `ScanFitter.fit_checked` and of the search of limbs do
    not use this.
    """
    from shapespace.fitting import fit
    from shapespace.fitting.fitter import ScanFitter

    monkeypatch.setattr(ScanFitter, "_placed_anew", lambda self, fit, *_: fit)
    monkeypatch.setattr(fit, "_retry", lambda model, first, *_: first)


@pytest.fixture(name="make_body")
def _make_body() -> Callable[..., Trimesh]:
    """The function that makes a body, for tests that need one alone."""
    return make_body


@pytest.fixture(name="make_raw")
def _make_raw() -> Callable[..., Trimesh]:
    """The function that makes a raw scan of a body."""
    return make_raw
