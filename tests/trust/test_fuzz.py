"""Damaged files of every format are read or refused with a message that names them, with bounded time and memory.

The damage is a function of the number: `mutated(whole, number)` makes a case again.
"""

import bz2
import faulthandler
import gzip
import json
import lzma
import multiprocessing
import os
import re
import resource
import struct
import time
import warnings
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from shapespace.data.scan_dataset import read_split
from shapespace.data.store import FORMAT, ScanStore
from shapespace.datasets.layout import read_registration
from shapespace.datasets.synthetic import Synthetic
from shapespace.fitting.result import load_fits, save_fits
from shapespace.io.formats import readable_suffixes
from shapespace.io.scan_files import read_scan
from shapespace.models import igr, registry
from shapespace.space import ShapeSpace
from shapespace.training.run import Run

SECONDS, ROOM = 3, 400_000_000  # for one file, and bytes above those in use
LANES = len(os.sched_getaffinity(0))  # parallel processes, each with its own folder
CURRENT = "current"  # file with the number of the case that is being read

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(102, 3)).astype("<f4").round(2)
FACES = np.arange(102, dtype="<i4").reshape(-1, 3)
CAMERA = {"width": 16, "height": 16, "fx": 16, "fy": 16, "cx": 7.5, "cy": 7.5, "k1": 0, "camera_to_world": None}
CAMERA["camera_to_world"] = np.diag([1.0, -1, -1, 1]).tolist()
DEPTH = np.full((16, 16), 2000, np.uint16)
CONFIG = igr.IGRConfig(code_dim=2, width=8, depth=2, skip=1, encoder_points=8, encoder_width=4, encoder_features=4)
SCAN = "a/b/0"


def _space() -> ShapeSpace:
    torch.manual_seed(0)
    weights = {"surface": 1.0, "eikonal": 0.1}
    return ShapeSpace(registry.build_model(CONFIG).eval(), CONFIG, scale=1.25, metadata={"weights": weights})


SPACE = _space()


def _mesh(path: Path) -> None:
    trimesh.Trimesh(POINTS, FACES, process=False).export(path)


def _ascii(path: Path) -> None:
    path.write_bytes(trimesh.exchange.ply.export_ply(trimesh.Trimesh(POINTS, FACES, process=False), encoding="ascii"))


def _sensors(path: Path) -> None:
    head = "ply\nformat binary_big_endian 1.0\nelement vertex 102\n"
    head += (
        "".join(f"property float {axis}\n" for axis in ("x", "y", "z", "nx", "ny", "nz")) + "property uchar sensor\n"
    )
    head += "element sensor 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    rows = np.zeros(102, dtype=[("v", ">f4", 6), ("s", "u1")])
    rows["v"] = np.concatenate([POINTS, np.ones_like(POINTS)], axis=1)
    path.write_bytes(head.encode() + rows.tobytes() + bytes(12))


def _ptx(path: Path) -> None:
    pose = "0 0 0\n1 0 0\n0 1 0\n0 0 1\n1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"
    rows = "".join(f"{x:.3f} {y:.3f} {z:.3f} 0.5\n" for x, y, z in POINTS.tolist())
    path.write_text(f"2\n51\n{pose}{rows}")


def _pcd(path: Path) -> None:
    header = "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 102\nHEIGHT 1\n"
    path.write_bytes(f"{header}POINTS 102\nDATA binary\n".encode() + POINTS.astype("<f4").tobytes())


def _pcd_compressed(path: Path) -> None:
    """Runs of at most 32 bytes, uncompressed, are valid LZF."""
    header = "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 102\nHEIGHT 1\n"
    data = POINTS.astype("<f4").T.tobytes()
    runs = (data[start : start + 32] for start in range(0, len(data), 32))
    packed = b"".join(bytes([len(run) - 1]) + run for run in runs)
    sizes = struct.pack("<II", len(packed), len(data))
    path.write_bytes(f"{header}POINTS 102\nDATA binary_compressed\n".encode() + sizes + packed)


def _splats(path: Path) -> None:
    names = ("x", "y", "z", "f_dc_0", "opacity")
    head = "ply\nformat binary_little_endian 1.0\nelement vertex 102\n"
    head += "".join(f"property float {name}\n" for name in names) + "end_header\n"
    path.write_bytes(head.encode() + np.column_stack([POINTS, np.ones((102, 2))]).astype("<f4").tobytes())


def _records(path: Path) -> None:
    rows = np.zeros(102, dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3), ("normal", "<f4", 3)])
    rows["xyz"], rows["normal"] = POINTS, (0, 0, 1)
    np.save(path, rows)


def _colmap(path: Path) -> None:
    rows = (struct.pack("<Q3d3BdQ", 7, *row, 1, 2, 3, 0.5, 1) + bytes(8) for row in POINTS.tolist())
    path.write_bytes(struct.pack("<Q", 102) + b"".join(rows))


def _colmap_text(path: Path) -> None:
    path.write_text("".join(f"7 {x:.3f} {y:.3f} {z:.3f} 1 2 3 0.5 1 2 3 4\n" for x, y, z in POINTS.tolist()))


def _splat(path: Path) -> None:
    rows = np.zeros(102, dtype=[("p", "<f4", 3), ("s", "<f4", 3), ("c", "u1", 4), ("r", "u1", 4)])
    rows["p"], rows["c"] = POINTS, 255
    path.write_bytes(rows.tobytes())


def _las(path: Path) -> None:
    import laspy

    content = laspy.LasData(laspy.LasHeader(point_format=0, version="1.2"))
    content.header.scales = np.full(3, 1e-4)
    content.x, content.y, content.z = POINTS.T.astype(np.float64)
    content.write(path)


def _e57(path: Path) -> None:
    import pye57

    file = pye57.E57(str(path), mode="w")
    file.write_scan_raw({f"cartesian{axis}": POINTS[:, i].astype("<f8") for i, axis in enumerate("XYZ")})
    file.close()


def _bytes_of(write: Callable[[Path], Any], name: str) -> bytes:
    with TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/x.ply", _bytes_of(_mesh, "x.ply"))


def _png(path: Path) -> None:
    Image.fromarray(DEPTH).save(path)
    path.with_suffix(".json").write_text(json.dumps(CAMERA))


def _exr(path: Path) -> None:
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {"Z": DEPTH.astype(np.float32) / 1000}) as file:
        file.write(str(path))
    path.with_suffix(".json").write_text(json.dumps(CAMERA))


def _depth(path: Path) -> None:
    np.save(path, DEPTH)
    path.with_suffix(".json").write_text(json.dumps(CAMERA))


def _capture(path: Path) -> None:
    Image.fromarray(DEPTH).save(path.with_name("d.png"))
    path.write_text(json.dumps({"frames": [{**CAMERA, "depth_file_path": "d.png"}] * 2}))


def _npz(path: Path) -> None:
    np.savez(path, points=POINTS, faces=FACES)


def _store(path: Path) -> None:
    metadata = {"recipe": "x", "scale": 1.25}
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        file.attrs.update(format=FORMAT, about=json.dumps(metadata), scale=1.25)
        file["_names"] = file["_splits/train"] = np.array([SCAN.encode()], dtype=text)
        file["_bad"] = np.array([], dtype=text)
        file["_topologies/t"] = FACES
        group = file.create_group(SCAN)
        group["points"], group["normals"], group["truth"] = POINTS, POINTS, POINTS
        group["truth"].attrs["topology"] = "t"
        group.attrs.update(centre=np.zeros(3, "f4"), scale=np.float32(1.25), file="x", bytes=1, sha256="x", note="")


def _registrations(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["a_b"], file["faces"] = POINTS[..., None], FACES


def _checkpoint(path: Path) -> None:
    state = {"step": 3, "seconds": 1.0, "model": SPACE.model.state_dict(), "optimizer": {}}
    torch.save(state, path)


def _read_store(path: Path) -> None:
    with ScanStore(path) as store:
        store.frame(SCAN), store.count(SCAN), store.has_normals(SCAN), store.ground_truth(SCAN), store.provenance(SCAN)
        store.sample(SCAN, 50, np.random.default_rng(0))


def _read_registration(path: Path) -> None:
    read_registration(Synthetic(), path.parent, "a", "b", 0)


@dataclass(frozen=True)
class Format:
    """Writer of a small valid file, and its reader."""

    file: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any] = read_scan


FORMATS = {
    "ply": Format("x.ply", _mesh),
    "ply, text": Format("x.ply", _ascii),
    "ply, sensors": Format("x.ply", _sensors),
    "obj": Format("x.obj", _mesh),
    "off": Format("x.off", _mesh),
    "stl": Format("x.stl", _mesh),
    "stl, text": Format(
        "x.stl_ascii",
        lambda path: path.write_text(
            trimesh.exchange.stl.export_stl_ascii(trimesh.Trimesh(POINTS, FACES, process=False))
        ),
    ),
    "glb": Format("x.glb", _mesh),
    "gltf": Format(
        "x.gltf",
        lambda path: path.write_bytes(
            trimesh.exchange.gltf.export_gltf(
                trimesh.Scene(trimesh.Trimesh(POINTS, FACES, process=False)), embed_buffers=True
            )["model.gltf"]
        ),
    ),
    "npy": Format("x.npy", lambda path: np.save(path, POINTS)),
    "npz": Format("x.npz", _npz),
    "xyz": Format("x.xyz", lambda path: np.savetxt(path, POINTS, fmt="%.2f")),
    "txt": Format(
        "x.txt", lambda path: np.savetxt(path, np.hstack([POINTS, np.eye(3)[np.arange(102) % 3]]), fmt="%.2f")
    ),
    "csv": Format("x.csv", lambda path: np.savetxt(path, POINTS, fmt="%.2f", delimiter=",")),
    "tsv": Format("x.tsv", lambda path: np.savetxt(path, POINTS, fmt="%.2f", delimiter="\t", header="x\ty\tz")),
    "asc": Format("x.asc", lambda path: path.write_text("x y z\n" + "1,5 2,5 0,5\n-0,5 1,5 7,25\n" * 60)),
    "dat": Format("x.dat", lambda path: np.savetxt(path, POINTS, fmt="%.2f", header="x y z", comments="")),
    "xyzn": Format("x.xyzn", lambda path: np.savetxt(path, np.hstack([POINTS, POINTS]), fmt="%.2f")),
    "xyzrgb": Format("x.xyzrgb", lambda path: np.savetxt(path, np.hstack([POINTS, abs(POINTS)]), fmt="%.2f")),
    "pts": Format("x.pts", lambda path: np.savetxt(path, POINTS, fmt="%.2f", header="102", comments="")),
    "ptx": Format("x.ptx", _ptx),
    "pcd": Format("x.pcd", _pcd),
    "pcd, compressed": Format("x.pcd", _pcd_compressed),
    "ply, splats": Format("x.ply", _splats),
    "npy, records": Format("x.npy", _records),
    "colmap": Format("points3D.bin", _colmap),
    "colmap, text": Format("points3D.txt", _colmap_text),
    "splat": Format("x.splat", _splat),
    "las": Format("x.las", _las),
    "laz": Format("x.laz", _las),
    "e57": Format("x.e57", _e57),
    "gz": Format("x.ply.gz", lambda path: path.write_bytes(gzip.compress(_bytes_of(_mesh, "x.ply")))),
    "bz2": Format("x.ply.bz2", lambda path: path.write_bytes(bz2.compress(_bytes_of(_mesh, "x.ply")))),
    "xz": Format("x.ply.xz", lambda path: path.write_bytes(lzma.compress(_bytes_of(_mesh, "x.ply")))),
    "zip": Format("x.zip", _zip),
    "depth png": Format("x.png", _png),
    "depth exr": Format("x.exr", _exr),
    "depth npy": Format("x.npy", _depth),
    "depth json": Format("x.json", _capture),
    "split json": Format(
        "x.json", lambda path: path.write_text(json.dumps({"scans": {"a": {"b": ["b.0001"]}}})), read_split
    ),
    "store": Format("x.h5", _store, _read_store),
    "registrations": Format("registrations.hdf5", _registrations, _read_registration),
    "model": Format("x.safetensors", SPACE.save, ShapeSpace.load),
    "codes": Format(
        "x.safetensors",
        lambda path: save_fits(
            path,
            SPACE.interpolate_codes(SPACE.from_principal_components([0.0]), SPACE.from_principal_components([1.0]), 2),
            SPACE.model,
        ),
        lambda path: load_fits(path, SPACE.model),
    ),
    "checkpoint": Format("checkpoint.pt", _checkpoint, lambda path: Run(path.parent).load_checkpoint()),
    "settings": Format(
        "config.yaml",
        lambda path: path.write_text("store: a.h5\nsplit: null\noptim: {lr: 1e-3, max_steps: 60}\nlist: [1, 2]\n"),
        lambda path: Run(path.parent).settings(),
    ),
}


HANGS = {"store": {6196}}  # HDF5 itself (h5py 3.16.0) hangs on this damage of its string heap


def test_every_readable_suffix_is_fuzzed() -> None:
    assert readable_suffixes() <= {Path(form.file).suffix for form in FORMATS.values()}


@pytest.mark.parametrize("name", FORMATS)
def test_the_undamaged_files_are_valid(tmp_path: Path, name: str) -> None:
    path = tmp_path / FORMATS[name].file
    FORMATS[name].write(path)
    FORMATS[name].read(path)


EXTREMES = (0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)


def mutated(whole: bytes, number: int) -> bytes:
    """The file with damage: changed bytes, truncation, moved pieces, changed numbers (text and binary)."""
    rng = np.random.default_rng(number)
    data = bytearray(whole)
    for _ in range(int(rng.integers(1, 4))):
        size = max(len(data), 1)
        near = (
            min(300, size) if rng.random() < 0.5 else size
        )  # half of the damage is near the start, where the headers are
        place = int(rng.integers(near))
        match int(rng.integers(6)):
            case 0:
                for at in rng.integers(near, size=rng.integers(1, 9)):
                    data[int(at) : int(at) + 1] = bytes([int(rng.integers(256))])
            case 1:
                data[place : place + 1] = bytes([data[place] ^ (1 << int(rng.integers(8)))] if data else [])
            case 2:
                del data[place:]
            case 3:
                source, length = int(rng.integers(size)), int(rng.integers(1, 64))
                data[place : place + length * int(rng.integers(2))] = data[source : source + length]
            case 4:
                numbers = list(re.finditer(rb"-?\d+", bytes(data[:2000])))
                if numbers:
                    chosen = numbers[int(rng.integers(len(numbers)))]
                    value = EXTREMES[int(rng.integers(len(EXTREMES)))] * int(rng.choice([1, -1]))
                    data[chosen.start() : chosen.end()] = str(value).encode()
            case _:
                kind = ("<B", "<H", "<I", "<Q", ">I")[int(rng.integers(5))]
                value = EXTREMES[int(rng.integers(len(EXTREMES)))] % (1 << 8 * struct.calcsize(kind))
                data[place : place + struct.calcsize(kind)] = struct.pack(kind, value)
    return bytes(data)


def _start(form: Format, folder: Path, numbers: range, hangs: Collection[int]) -> BaseProcess:
    form.write(folder / form.file)
    process = multiprocessing.get_context("fork").Process(target=_damaged, args=(form, folder, numbers, hangs))
    process.start()
    return process


def _damaged(form: Format, folder: Path, numbers: range, hangs: Collection[int]) -> None:
    """Read the file in all these states; record each number before, and failures after."""
    warnings.simplefilter("ignore")
    faulthandler.disable()
    null = os.open(os.devnull, os.O_WRONLY)
    torch.set_num_threads(1)  # the threads of the parent do not exist here
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path = folder / form.file
    whole, current = path.read_bytes(), os.open(folder / CURRENT, os.O_RDWR | os.O_CREAT)
    for number in numbers:
        if number in hangs:
            continue
        os.pwrite(current, struct.pack("<q", number), 0)
        path.write_bytes(mutated(whole, number))
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=null)  # also stops C code
        try:
            form.read(path)
        except (ValueError, OSError) as error:
            if str(path) not in str(error) or "\n" in str(error):
                _note(folder, number, error)
        except BaseException as error:
            _note(folder, number, error)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _note(folder: Path, number: int, error: BaseException) -> None:
    with (folder / "failures.txt").open("a") as file:
        file.write(f"{number}: {type(error).__name__}: {' '.join(str(error).split())[:300]}\n")


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_read_or_refused_with_a_message(
    tmp_path: Path, name: str, rounds: Callable[[int, int], int], tried: Callable[..., None]
) -> None:
    form, count, failures, began = FORMATS[name], rounds(100, 10_000), list[str](), time.perf_counter()
    hangs = {number for number in HANGS.get(name, ()) if number < count}
    todo = {tmp_path / str(lane): range(lane, count, LANES) for lane in range(LANES)}
    for folder in todo:
        folder.mkdir()
    while todo:
        started = [(folder, numbers, _start(form, folder, numbers, hangs)) for folder, numbers in todo.items()]
        todo = {}
        for folder, numbers, process in started:
            process.join()
            if process.exitcode:  # it crashed: continue with the next number
                number = struct.unpack("<q", (folder / CURRENT).read_bytes())[0]
                failures.append(f"{number}: the process ended with {process.exitcode}")
                todo[folder] = numbers[numbers.index(number) + 1 :]
    failures += [line for notes in sorted(tmp_path.glob("*/failures.txt")) for line in notes.read_text().splitlines()]
    print("\n".join(failures[:20]))
    seconds = LANES * (time.perf_counter() - began)
    measured = f"{1000 * seconds / count:.1f} ms each" + f"; {len(hangs)} more excluded: HDF5 hangs" * bool(hangs)
    tried(f"damaged {name}", count - len(hangs), count - len(hangs) - len(failures), measured)
