"""Untrusted files run no code, access no other files, and allocate no more memory than their content needs."""

import builtins
import io
import json
import multiprocessing
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from safetensors.torch import save_file

from shapespace.data.preprocess import PreprocessOptions, preprocess
from shapespace.data.scan_dataset import read_split
from shapespace.data.store import ScanStore
from shapespace.datasets.layout import read_registration
from shapespace.datasets.synthetic import Synthetic
from shapespace.evaluation.scores import mesh_file
from shapespace.fitting.result import Fit, load_fits, save_fits
from shapespace.io import scan_files
from shapespace.io.checkpoints import load_tensors, save_tensors
from shapespace.io.scan_files import read_faces, read_mesh, read_scan
from shapespace.models import igr, registry
from shapespace.report.run_page import load_interpolations
from shapespace.space import ShapeSpace
from shapespace.tools.__main__ import cli
from shapespace.tools._config import load_yaml
from shapespace.training.run import Run

CONFIG = igr.IGRConfig(code_dim=4, width=24, depth=3, skip=1, encoder_points=50, encoder_width=16, encoder_features=16)
WEIGHTS = {"surface": 1.0, "normal": 1.0, "eikonal": 0.1, "code_reg": 1e-3}


def space() -> ShapeSpace:
    torch.manual_seed(0)
    return ShapeSpace(registry.build_model(CONFIG).eval(), CONFIG, scale=1.25, metadata={"weights": WEIGHTS})


@pytest.fixture
def store(synthetic_root: Path, tmp_path: Path) -> Path:
    return preprocess(Synthetic(), synthetic_root, tmp_path / "s.h5", PreprocessOptions(points=300)).path


# ---------------------------------------------------------------------------------------------------------------- code


class Bomb:
    """Object that creates the file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """File that exists if code has run; unpickling is verified to create it."""
    mark = tmp_path / "code-has-run"
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()
    mark.unlink()
    return mark


def test_no_file_runs_code(mark: Path, tmp_path: Path, tried: Callable[..., None]) -> None:
    bomb = np.array([[Bomb(mark)] * 3] * 200, dtype=object)
    yaml = f'!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.PosixPath ["{mark}"]]'
    np.save(tmp_path / "a.npy", bomb, allow_pickle=True)
    np.savez(tmp_path / "a.npz", points=bomb)
    np.savez(tmp_path / "faces.npz", points=np.ones((200, 3)), faces=bomb)
    (tmp_path / "config.yaml").write_text(f"optim:\n  max_steps: {yaml}\n")
    torch.save({"step": Bomb(mark), "seconds": 0.0, "model": {}, "optimizer": {}}, tmp_path / "checkpoint.pt")
    torch.save(Bomb(mark), tmp_path / "model.safetensors")
    (tmp_path / "raw.safetensors").write_bytes(pickle.dumps(Bomb(mark)))
    save_file({"x": torch.zeros(1)}, tmp_path / "header.safetensors", {"shapespace": pickle.dumps(Bomb(mark)).hex()})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["format"] = 1
        file.attrs["about"] = np.void(pickle.dumps(Bomb(mark)))
        file["_names"] = file["_bad"] = np.void(pickle.dumps(Bomb(mark)))
        file.create_group("_splits")
    (tmp_path / "split.json").write_bytes(pickle.dumps(Bomb(mark)))
    trials: list[Callable[[], object]] = [
        lambda: read_scan(tmp_path / "a.npy"),
        lambda: read_faces(tmp_path / "a.npy"),
        lambda: read_scan(tmp_path / "a.npz"),
        lambda: read_scan(tmp_path / "faces.npz"),
        lambda: load_yaml(str(tmp_path / "config.yaml")),
        lambda: Run(tmp_path).settings(),
        lambda: Run(tmp_path).load_checkpoint(),
        lambda: Run(tmp_path).progress(),
        lambda: Run(tmp_path).metadata(),
        lambda: ShapeSpace.load(tmp_path / "raw.safetensors"),
        lambda: ShapeSpace.load(tmp_path / "header.safetensors"),
        lambda: load_fits(tmp_path / "raw.safetensors", space().model),
        lambda: ScanStore(tmp_path / "a.h5"),
        lambda: read_split(tmp_path / "split.json"),
    ]
    for trial in trials:
        with pytest.raises(ValueError, match=r"\w.*[.:] .*\w"):
            trial()
        assert not mark.exists()
    tried("files that would run code", len(trials), len(trials), "every reader of models, codes, stores, scans, YAML")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"not a zip", r"checkpoint\.pt: not a valid checkpoint .*Remove it and train again"),
        ({"step": 3}, r"checkpoint\.pt: not a valid checkpoint \(it has no seconds\)"),
        ([1, 2], "it has no step"),
    ],
)
def test_an_invalid_checkpoint_is_refused(tmp_path: Path, content: Any, sentence: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / "checkpoint.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=sentence):
        Run(tmp_path).load_checkpoint()


def test_settings_without_aliases(tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n")
    with pytest.raises(ValueError, match="is not YAML: settings have no anchors and aliases"):
        load_yaml(str(tmp_path / "bomb.yaml"))


# -------------------------------------------------------------------------------------------------------- other files


def _replaced(path: Path, place: str, make: Callable[[h5py.File], None]) -> Path:
    with h5py.File(path, "r+") as file:
        file.move(place, "_was")
        make(file)
    return path


SCAN = "p000/poses/000000"


def _virtual(other: Path, place: str) -> Callable[[h5py.File], None]:
    def make(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((300, 3), "f4")
        layout[:] = h5py.VirtualSource(other, "secret", (300, 3))
        file.create_virtual_dataset(place, layout)

    return make


LEADS: dict[str, Callable[[Path, str], Callable[[h5py.File], None]]] = {
    "external link": lambda other, place: lambda file: file.__setitem__(place, h5py.ExternalLink(other, "/secret")),
    "soft link": lambda other, place: lambda file: file.__setitem__(place, h5py.SoftLink("/_was")),
    "virtual": _virtual,
    "raw data elsewhere": lambda other, place: (
        lambda file: file.create_dataset(place, (300, 3), "f4", external=[(str(other), 0, 3600)])
    ),
}


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("place", [f"{SCAN}/points", f"{SCAN}/truth", "_names", SCAN, "p000"])
def test_a_store_reads_no_other_file(store: Path, tmp_path: Path, lead: str, place: str) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.full((300, 3), 7, "f4")
    _replaced(store, place, LEADS[lead](other, place))

    def read() -> None:
        opened = ScanStore(store)
        opened.ground_truth(SCAN) if place.endswith("truth") else opened.sample(SCAN, 10, np.random.default_rng(0))

    with pytest.raises(ValueError, match=r"s\.h5: not a valid store .*\. Rebuild it: shapespace preprocess"):
        read()


@pytest.mark.parametrize("lead", LEADS)
def test_registrations_read_no_other_file(synthetic_root: Path, tmp_path: Path, lead: str) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.full((300, 3), 7, "f4")
    path = synthetic_root / "registrations.hdf5"
    _replaced(path, "faces", LEADS[lead](other, "faces"))
    with h5py.File(path, "r+") as file:
        del file["_was"]
    invalid = r"registrations\.hdf5: not a valid HDF5 file.*(is a link|in another file).*Copy"
    with pytest.raises(ValueError, match=invalid):
        read_registration(Synthetic(), synthetic_root, "p000", "poses", 0)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that Python opens from here on."""
    paths: list[Path] = []
    true_open = io.open

    def recorded(file: Any, *rest: Any, **named: Any) -> Any:
        paths.append(Path(os.fsdecode(file)).resolve()) if isinstance(file, str | bytes | os.PathLike) else None
        return true_open(file, *rest, **named)

    monkeypatch.setattr(builtins, "open", recorded)
    monkeypatch.setattr(io, "open", recorded)
    return paths


def test_scans_read_no_file_outside_their_folder(
    tmp_path: Path, opened: list[Path], tried: Callable[..., None]
) -> None:
    rng = np.random.default_rng(0)
    points, folder, secret = rng.normal(size=(300, 3)).astype("<f4"), tmp_path / "in", tmp_path / "secret"
    folder.mkdir()
    secret.mkdir()
    (secret / "points.bin").write_bytes(points.tobytes())
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(secret / "picture.png")
    (secret / "x.mtl").write_text("newmtl x\nmap_Kd picture.png\n")
    Image.fromarray(np.full((20, 20), 2000, np.uint16)).save(secret / "depth.png")
    camera = {"width": 20, "height": 20, "fx": 20, "fy": 20, "cx": 9.5, "cy": 9.5}

    def gltf(buffer: str, image: str) -> str:
        text: dict[str, Any] = {
            "asset": {"version": "2.0"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "material": 0}]}],
            "accessors": [{"componentType": 5126, "count": 300, "type": "VEC3", "bufferView": 0}],
            "bufferViews": [{"buffer": 0, "byteLength": points.nbytes}],
            "buffers": [{"byteLength": points.nbytes, "uri": buffer}],
            "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
            "textures": [{"source": 0}],
            "images": [{"uri": image}],
        }
        return json.dumps(text)

    (folder / "inner.bin").write_bytes(points.tobytes())
    rows = "\n".join(f"v {x} {y} {z}" for x, y, z in points.tolist())
    header = "element vertex 300\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    table = "\n".join(f"{x} {y} {z}" for x, y, z in points.tolist())
    cases = {}
    for number, up in enumerate(("../secret", str(secret), f"file://{secret}")):
        cases |= {
            f"buffer{number}.gltf": gltf(f"{up}/points.bin", "data:,"),
            f"image{number}.gltf": gltf("inner.bin", f"{up}/picture.png"),
            f"mtl{number}.obj": f"mtllib {up}/x.mtl\nusemtl x\n{rows}\nf 1 2 3\n",
            f"texture{number}.ply": f"ply\nformat ascii 1.0\ncomment TextureFile {up}/picture.png\n{header}{table}\n",
            f"depth{number}.json": json.dumps({**camera, "depth_file_path": f"{up}/depth.png"}),
            f"frames{number}.json": json.dumps({"frames": [{**camera, "depth_file_path": f"{up}/depth.png"}]}),
        }
    for name, content in cases.items():
        (folder / name).write_text(content)
    opened.clear()
    for name in cases:
        refused = name.startswith(("buffer", "depth", "frames"))
        for door in (read_scan, read_mesh):
            if refused:
                with pytest.raises(ValueError, match=name):
                    door(folder / name)
            elif door is read_scan or name.endswith("obj"):  # the others are points
                door(folder / name)
    assert not [path for path in opened if path.is_relative_to(secret)]
    assert (folder / "inner.bin").resolve() in opened  # files inside it are read
    tried("scans that name files outside their folder", len(cases), len(cases), "nothing outside opened")


def test_a_camera_file_names_images_in_its_folder_only(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"depth_file_path": "../x.png"}))
    outside = r"x\.json: depth_file_path \.\./x\.png is outside the folder of the JSON\. Move"
    with pytest.raises(ValueError, match=outside):
        read_scan(tmp_path / "x.json")


def test_an_interpolation_names_meshes_in_its_folder_only(tmp_path: Path) -> None:
    content = {"a": "a", "b": "b", "path": "linear", "area_m2": [1.0], "format": "x/../../../secret.ply"}
    (tmp_path / "path.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"path\.json: mesh format .* is neither ply nor obj\. Write it again"):
        load_interpolations([tmp_path])


EVIL = ["../../x", "/abs/x", "..", "../..", ".", "a/../../../x", "..\\x", "~/x", "x" * 30 + "/../.."]


@pytest.mark.parametrize("name", EVIL)
def test_a_name_is_one_file_of_the_folder(tmp_path: Path, name: str) -> None:
    for path in (tmp_path / f"{scan_files.file_name(name)}.ply", tmp_path / scan_files.file_name(name)):
        assert path.resolve().parent == tmp_path.resolve()
    assert mesh_file(tmp_path, name, name).resolve().parents[1] == (tmp_path / "meshes").resolve()


def _tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.usefixtures("first_fit_only")
def test_commands_write_no_file_outside_their_folder(
    store: Path, tmp_path: Path, tried: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of scans, codes and splits that lead outside the folder."""
    home = space()
    home.save(tmp_path / "model.safetensors")
    names = ["../../x", "../../y"]
    with h5py.File(store, "r+") as file:
        up = file.create_group("..").create_group("..")
        for name, scan in zip(names, ("p000/poses/000000", "p001/poses/000000"), strict=True):
            up[name[-1]] = file[scan]
        del file["_names"], file["_splits"]
        file["_names"] = file["_splits/..|..|out"] = np.array([n.encode() for n in names], dtype=h5py.string_dtype())
        file["_splits"].move("..|..|out", "..")
    with torch.no_grad():
        code = home.encode_scans([read_scan(tmp_path / "synthetic/scans/p000/poses/poses.000000.ply")])[0]
    save_fits(
        tmp_path / "codes.safetensors",
        [Fit(code.code, code.frame, np.empty(0), name=name) for name in EVIL],
        home.model,
    )
    before, model, out = _tree(tmp_path), tmp_path / "model.safetensors", tmp_path / "a" / "b" / "c"
    quick = ["--resolution", "16", "--lm.max-steps", "1", "--lm.num-points", "100"]
    lines = {
        "mesh": [model, tmp_path / "codes.safetensors", "--resolution", "16"],
        "fit": [model, "--store", store, "--split", "..", "--clutter", "keep", *quick],
        "evaluate": [model, store, "--splits", "..", "--metrics", "surface_distance", *quick],
        "interpolate": [model, *names, "--store", store, "--steps", "2", *quick],
    }
    for verb, words in lines.items():
        tool = __import__(f"shapespace.tools.{verb}", fromlist=["main"]).main
        cli(tool, [str(word) for word in [*words, "--out", out / verb]], verb)
        assert (out / verb).is_dir()
    outside = {path for path in _tree(tmp_path) - before if not path.is_relative_to(out)} - {*out.parents, out}
    assert not outside
    tried("commands given names that lead outside", len(lines), len(lines), "nothing written outside `--out`")


# -------------------------------------------------------------------------------------------------------------- memory

ROOM = 300_000_000  # bytes above those in use


def _within(room: int, act: Callable[[], object], answer: Any) -> None:
    torch.set_num_threads(1)  # the threads of the parent do not exist here
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room,) * 2)
    try:
        act()
        answer.send("no error")
    except (ValueError, OSError) as error:
        answer.send(f"message: {error}")
    except BaseException as error:
        answer.send(f"{type(error).__name__}: {error}")


def in_child(act: Callable[[], object], room: int = ROOM) -> str:
    """Outcome of `act` in a process that may use `room` more bytes and ten seconds."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_within, args=(room, act, there))
    process.start()
    outcome = here.recv() if here.poll(10) else "no answer"
    process.kill()
    process.join()
    return str(outcome)


def _chunked(store: Path, place: str, shape: tuple[int, ...], kind: Any) -> Callable[[h5py.File], None]:
    return lambda file: (
        file.create_dataset(place, shape, kind, chunks=(1 << 16, *shape[1:]), compression="gzip") and None
    )


def _huge(store: Path, place: str, shape: tuple[int, ...], kind: Any = "f4") -> Path:
    return _replaced(store, place, _chunked(store, place, shape, kind))


def _packed_checkpoint(folder: Path) -> None:
    plain, bomb = io.BytesIO(), folder / "checkpoint.pt"
    state = {"step": 1, "seconds": 0.0, "model": {"x": torch.zeros(1_000_000)}, "optimizer": {}}
    torch.save(state, plain)
    with zipfile.ZipFile(plain) as whole, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as small:
        for info in whole.infolist():
            small.writestr(info.filename, whole.read(info))


def _with_config(path: Path, **config: Any) -> Path:
    own = space()
    header = {"kind": "model", "family": "igr", "scale": 1.25, "metadata": {"weights": WEIGHTS}}
    save_tensors(path, own.model.state_dict(), {**header, "config": {**vars(CONFIG), **config}})
    return path


def test_declared_sizes_are_checked(
    synthetic_root: Path, store: Path, tmp_path: Path, tried: Callable[..., None]
) -> None:
    """Files of a few kilobytes that declare gigabytes or more."""
    xyz = "property float x\nproperty float y\nproperty float z\nend_header\n"
    (tmp_path / "a.ply").write_text(f"ply\nformat binary_little_endian 1.0\nelement vertex {10**12}\n{xyz}")
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 3)})
    np.savez_compressed(tmp_path / "a.npz", points=np.zeros((1, 3)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("points.npy", (tmp_path / "a.npy").read_bytes())
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    (tmp_path / "a.png").write_bytes(data)
    camera = {"width": 100_000, "height": 100_000, "fx": 1e5, "fy": 1e5, "cx": 5e4, "cy": 5e4}
    (tmp_path / "a.json").write_text(json.dumps(camera))
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    header = b'{"x":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (tmp_path / "nested.safetensors").write_bytes(b"")
    save_file({"x": torch.zeros(1)}, tmp_path / "nested.safetensors", {"shapespace": "[" * 200_000})
    (tmp_path / "nested.json").write_text("[" * 200_000)
    laughs = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    laughs += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "config.yaml").write_text("\n".join(laughs))
    _packed_checkpoint(tmp_path)
    copies = {key: tmp_path / f"{key}.h5" for key in ("points", "names", "truth", "about")}
    for path in copies.values():
        path.write_bytes(store.read_bytes())
    _huge(copies["points"], f"{SCAN}/points", (10**10, 3))
    _huge(copies["truth"], f"{SCAN}/truth", (10**10, 3))
    _huge(copies["names"], "_names", (10**10,), h5py.string_dtype())
    one = np.array([b"x" * 1_000_000], dtype=h5py.string_dtype())
    with h5py.File(copies["about"], "r+") as file:  # one string, ten thousand times
        del file["_names"]
        file.create_dataset("_names", (10_000,), h5py.string_dtype())[:1] = one
    _repeat_first_text(copies["about"], "_names", 10_000)
    _huge(synthetic_root / "registrations.hdf5", "faces", (10**10, 3), "i4")
    with h5py.File(synthetic_root / "registrations.hdf5", "r+") as file:
        del file["_was"]
    rng = np.random.default_rng(0)
    trials: dict[str, Callable[[], object]] = {
        "PLY": lambda: read_scan(tmp_path / "a.ply"),
        "NPY": lambda: read_scan(tmp_path / "a.npy"),
        "NPZ": lambda: read_scan(tmp_path / "a.npz"),
        "PNG": lambda: read_scan(tmp_path / "a.png"),
        "safetensors, length of the header": lambda: load_tensors(tmp_path / "a.safetensors", "model"),
        "safetensors, shape": lambda: load_tensors(tmp_path / "b.safetensors", "model"),
        "safetensors, nested": lambda: load_tensors(tmp_path / "nested.safetensors", "model"),
        "split, nested": lambda: read_split(tmp_path / "nested.json"),
        "YAML": lambda: Run(tmp_path).settings(),
        "checkpoint, packed": lambda: Run(tmp_path).load_checkpoint(),
        "store, points": lambda: ScanStore(copies["points"]).sample(SCAN, 10**10, rng),
        "store, count": lambda: ScanStore(copies["points"]).count(SCAN),
        "store, truth": lambda: ScanStore(copies["truth"]).ground_truth(SCAN),
        "store, names": lambda: ScanStore(copies["names"]),
        "store, one repeated string": lambda: ScanStore(copies["about"]),
        "registrations": lambda: read_registration(Synthetic(), synthetic_root, "p000", "poses", 0),
    }
    for key, value in {
        "width": 2**19,
        "depth": 2**19,
        "code_dim": 2**19,
        "skip": 10**9,
        "encoder_width": 2**20,
    }.items():
        path = _with_config(tmp_path / f"{key}.safetensors", **{key: value})
        trials[f"model of {key} {value:,}"] = lambda path=path: ShapeSpace.load(path)  # type: ignore[misc]
    for key, value in {"width": "wide", "colour": 1, "depth": 2.5, "beta": None}.items():
        path = _with_config(tmp_path / f"{key}.safetensors", **{key: value})
        trials[f"model of {key} {value}"] = lambda path=path: ShapeSpace.load(path)  # type: ignore[misc]
    ends = {name: in_child(trial) for name, trial in trials.items()}
    assert {name: end for name, end in ends.items() if not end.startswith("message: ")} == {}
    assert in_child(lambda: np.ones(10**9).sum()).startswith("MemoryError")  # the limit works
    tried("files that declare more than they hold", len(ends), len(ends), f"at most {ROOM // 10**6} MB more, 10 s")


def _repeat_first_text(path: Path, place: str, count: int) -> None:
    """Make all entries of a dataset of strings refer to the bytes of the first one."""
    with h5py.File(path, "r") as file:
        start = file[place].id.get_offset()
        size = file[place].id.get_storage_size() // count
    data = bytearray(path.read_bytes())
    data[start : start + size * count] = data[start : start + size] * count
    path.write_bytes(data)


def test_a_valid_model_is_loaded(tmp_path: Path) -> None:
    """Otherwise the refusals above would prove nothing."""
    loaded = ShapeSpace.load(_with_config(tmp_path / "m.safetensors"))
    assert loaded.model.fingerprint() == space().model.fingerprint()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"family": "igr2"}, "family 'igr2' is not one of igr"),
        ({"scale": "x"}, "could not convert"),
        ({"scale": -1}, "its scale is -1"),
        ({"metadata": {}}, "'weights'"),
        ({"config": {"code_dim": 8}}, "weights of the file|size mismatch"),
    ],
)
def test_an_inconsistent_model_is_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    header = {"kind": "model", "family": "igr", "config": vars(CONFIG), "scale": 1.25}
    header |= {"metadata": {"weights": WEIGHTS}}
    save_tensors(tmp_path / "m.safetensors", space().model.state_dict(), {**header, **changes})
    with pytest.raises(
        ValueError, match=rf"m\.safetensors: cannot restore the model \(.*({sentence}).*\)\. Copy the file again"
    ):
        ShapeSpace.load(tmp_path / "m.safetensors")


def test_inconsistent_codes_are_refused(tmp_path: Path) -> None:
    own = space()
    whole = {"code.0": torch.zeros(2, 4), "centre": torch.zeros(2, 3), "scale": torch.ones(2)}
    changes: list[tuple[dict[str, Any], list[Any], str]] = [
        ({"code.0": torch.zeros(2, 5)}, ["a", "b"], "tensor code.0 has shape"),
        ({"centre": torch.zeros(3, 3)}, ["a", "b"], "tensor centre has shape"),
        ({"scale": torch.ones(2, 2)}, ["a", "b"], "tensor scale has shape"),
        ({"rotation": torch.ones(2, 9)}, ["a", "b"], "tensor rotation has shape"),
        ({}, ["a"], "tensor .* has shape"),
        ({}, ["a", 7], "name 7 is not a string"),
    ]
    for change, names, sentence in changes:
        header = {"kind": "codes", "names": names, "model": own.model.fingerprint()}
        save_tensors(tmp_path / "c.safetensors", {**whole, **change}, header)
        with pytest.raises(
            ValueError, match=rf"not a file of \d codes of this model \({sentence}.*\)\. Fit the scans again"
        ):
            load_fits(tmp_path / "c.safetensors", own.model)
    assert trimesh.__version__.split(".")[0] >= "5"  # earlier versions let glTF name files outside its folder
