"""Checks of `shapespace.tools._gpu`: fits, training steps, the API and whole trainings on a device against the CPU.

The bounds of direct computations are those of float32. A fit or a training repeats rounding errors many times: its
bound is wider. All were chosen, not measured (docs/development/gpu.md).
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from shapespace.data.loader import Batch, collate
from shapespace.fitting.fit import AdamOptions, encode
from shapespace.fitting.levenberg_marquardt import LMOptions, PartOptions
from shapespace.fitting.refine import RefineOptions
from shapespace.fitting.result import Fit
from shapespace.geometry.proximity import mutual_nearest
from shapespace.geometry.scan import Scan
from shapespace.models import igr
from shapespace.models.articulated import ArticulatedSDF
from shapespace.space import ShapeSpace
from shapespace.synthetic.example import example_scan
from shapespace.tools._config import load_config
from shapespace.tools._subprocess import run_command
from shapespace.training.objective import Execution, Objective, has_compiler
from shapespace.training.run import Run

Result = TypeVar("Result")

SPACES = ("humans", "humans_v1")  # families articulated and igr


@dataclass(frozen=True)
class Row:
    """Result of a check: seconds on the CPU and on the device, and the difference of the results."""

    section: str
    name: str
    cpu_s: float | None = None
    device_s: float | None = None
    deviation: float | None = None
    bound: float | None = None
    unit: str = ""
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether it ran and the difference is within the bound; a difference that is not a number is not."""
        return not self.error and (self.deviation is None or self.bound is None or self.deviation <= self.bound)


Check = tuple[str, str, Callable[[], Row]]
"""Section, name, and what makes the row; the row's own section and name are replaced by these."""


def compare(
    work: Callable[[str], Result],
    device: str,
    distance: Callable[[Result, Result], float],
    bound: float,
    unit: str,
    *,
    times: int = 0,
    scale: tuple[float, float] = (1.0, 1.0),
) -> Row:
    """Compare `work` on the CPU with `work` on the device.

    Seconds are medians of `times` calls after the first one; with 0, that of the first call on the CPU and of the
    second on the device. `scale` multiplies the seconds of the CPU and of the device, for results of different sizes.
    """
    expected, cpu_s = _timed(work, "cpu", times)
    result, device_s = _timed(work, device, times or int(device != "cpu"))
    cpu_s, device_s = cpu_s * scale[0], device_s * scale[1]
    return Row("", "", cpu_s, device_s, float(distance(expected, result)), bound, unit)


def _timed(work: Callable[[str], Result], device: str, times: int) -> tuple[Result, float]:
    """Result of the first call, and the median seconds of `times` more calls; of the first one if there are no more."""
    seconds = []
    for _ in range(1 + times):
        began = time.perf_counter()
        result = work(device)
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return result, float(np.median(seconds[1:] or seconds))


def _wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def list_checks(device: str, sections: Sequence[str], out: Path, *, quick: bool) -> list[Check]:
    """Checks of the sections, in their order. Raises `ValueError` for an unknown section."""
    sizes = QUICK if quick else FULL
    made: dict[str, Callable[[], Iterator[Check]]] = {
        "step": partial(_steps, device, sizes),
        "fit": partial(_fits, device, sizes),
        "api": partial(_api, device, sizes),
        "train": partial(_trainings, device, sizes, out),
    }
    if unknown := [section for section in sections if section not in made]:
        raise ValueError(f"no section {unknown[0]!r}. Give some of {', '.join(made)}.")
    return [check for section in sections for check in made[section]()]


@dataclass(frozen=True)
class CheckSizes:
    """CheckSizes of networks, data and measurements."""

    code_dim: int
    width: int
    points: int
    """Points of each scan in a step, and of the example scan in a fit."""
    times: int
    """Timed calls of a step or a mesh."""
    scans: int
    """Scans that are fitted in one call."""
    few: int
    """Those that the CPU fits too."""
    cells: int
    """Grid cells of a mesh along an edge."""
    steps: int
    """Steps of a training."""
    refine_steps: int
    training: tuple[str, ...]
    """Further settings of the articulated training."""
    lm: LMOptions


FULL = CheckSizes(256, 512, 1000, 7, 100, 4, 128, 40, 50, (), LMOptions())
QUICK = CheckSizes(
    code_dim=16,
    width=32,
    points=128,
    times=1,
    scans=3,
    few=2,
    cells=24,
    steps=10,
    refine_steps=3,
    training=("--model.num-parts", "12", "--model.width", "16", "--model.code-dim", "4", "--batch.points", "256"),
    lm=LMOptions(
        num_points=256, max_steps=2, trial_steps=1, search_starts=2, parts=PartOptions(num_points=256, max_steps=2)
    ),
)

# Largest distance of two points that are computed directly from the same code, and mean distance after fits (mm)
DIRECT_MM, FITTED_MM = 0.05, 0.5
GRADIENT, LOSS, FINAL_LOSS = 1e-4, 1e-3, 0.05  # relative differences


@cache
def _space(name: str, device: str) -> ShapeSpace:
    return ShapeSpace.load(name, device=device)


@cache
def _scan(seed: int = 0, points: int = 8000) -> Scan:
    """Some points of the example scan."""
    scan = example_scan()
    rows = np.random.default_rng(seed).permutation(len(scan))[:points]
    return replace(scan.select(np.sort(rows)), name=f"example/{seed}/0")


def _rows(expected: np.ndarray, result: np.ndarray, measure: Callable[[np.ndarray], Any] = np.max) -> float:
    """Distance of points that correspond (mm); of numbers, the difference."""
    if expected.shape != result.shape:
        raise ValueError(f"shapes differ: {expected.shape} on the CPU, {result.shape} on the device")
    difference = np.asarray(expected, dtype=np.float64) - result
    return 1e3 * float(measure(np.linalg.norm(difference.reshape(len(difference), -1), axis=1)))


def _surfaces(expected: np.ndarray, result: np.ndarray, measure: Callable[[np.ndarray], Any] = np.max) -> float:
    """Distance of the vertices of two surfaces from the nearest of the other one (mm)."""
    return 1e3 * float(max(measure(distance) for distance in mutual_nearest(expected, result)))


def _difference(expected: np.ndarray, result: np.ndarray, measure: Callable[[np.ndarray], Any]) -> float:
    """`_rows`, or `_surfaces` if that is less: vertices of the surface of a field are in any order."""
    if expected.shape[1] != 3:
        return _rows(expected, result, measure)
    surfaces = _surfaces(expected, result, measure)
    return surfaces if expected.shape != result.shape else min(surfaces, _rows(expected, result, measure))


def _relative(expected: Tensor, result: Tensor) -> float:
    expected, result = expected.double(), result.cpu().double()
    return float((expected - result).norm() / expected.norm())


# ----------------------------------------------------------------------------------------------------------------- fit


def _fits(device: str, sizes: CheckSizes) -> Iterator[Check]:
    """Fits of one scan and of many in a call, by both spaces; meshes of the same code on both devices."""
    for name in SPACES:
        yield "fit", f"one scan, {name}", partial(_one_fit, name, device, sizes)
    many = f"{sizes.scans} scans in one call, for each scan; the CPU has {sizes.few}, humans"
    yield "fit", many, partial(_many_fits, device, sizes)
    for name in SPACES:
        yield "fit", f"mesh of the field, {sizes.cells} cells, {name}", partial(_field_mesh, name, device, sizes)
    yield "fit", "registered template, humans", partial(_template_mesh, device, sizes)


def _one_fit(name: str, device: str, sizes: CheckSizes) -> Row:
    def fitted(where: str) -> np.ndarray:
        (fit,) = _space(name, where).fit_scans([_scan()], lm=sizes.lm)
        return _vertices(_space(name, "cpu"), fit, sizes)

    distance = partial(_rows if name == "humans" else _surfaces, measure=np.mean)
    return compare(fitted, device, distance, FITTED_MM, "mm")


def _vertices(space: ShapeSpace, fit: Fit, sizes: CheckSizes) -> np.ndarray:
    return np.asarray(space.mesh(fit, resolution=sizes.cells).vertices)


def _many_fits(device: str, sizes: CheckSizes) -> Row:
    scans = [_scan(seed) for seed in range(sizes.scans)]
    count = {"cpu": sizes.few, device: sizes.scans}

    def fitted(where: str) -> list[Fit]:
        return _space("humans", where).fit_scans(scans[: count[where]], lm=sizes.lm)

    def distance(expected: list[Fit], result: list[Fit]) -> float:
        space = _space("humans", "cpu")
        pairs = zip(expected, result[: sizes.few], strict=True)
        return max(_rows(_vertices(space, a, sizes), _vertices(space, b, sizes), np.mean) for a, b in pairs)

    return compare(fitted, device, distance, FITTED_MM, "mm", scale=(1 / count["cpu"], 1 / count[device]))


@cache
def _cpu_fits(name: str, sizes: CheckSizes) -> list[Fit]:
    """Two fits on the CPU, the input of what follows on both devices."""
    scans = [_scan(0), _scan(1)]
    return _space(name, "cpu").fit_scans(scans, lm=sizes.lm)


def _field_mesh(name: str, device: str, sizes: CheckSizes) -> Row:
    fit = _cpu_fits(name, sizes)[0]

    def mesh(where: str) -> np.ndarray:
        return np.asarray(_space(name, where).mesh(fit, resolution=sizes.cells, surface="field").vertices)

    return compare(mesh, device, _surfaces, DIRECT_MM, "mm", times=sizes.times)


def _template_mesh(device: str, sizes: CheckSizes) -> Row:
    fit = _cpu_fits("humans", sizes)[0]

    def mesh(where: str) -> np.ndarray:
        return np.asarray(_space("humans", where).register(fit).vertices)

    return compare(mesh, device, _rows, DIRECT_MM, "mm", times=sizes.times)


# ---------------------------------------------------------------------------------------------------------------- step


def _steps(device: str, sizes: CheckSizes) -> Iterator[Check]:
    """Gradients of three batches in turn: `igr` in every execution of the device, and the parts of `humans`."""
    executions: list[Execution] = ["eager"] if device == "cuda" else ["eager", "chunked"]
    if device == "cuda" or has_compiler():
        executions.append("compiled")
    for execution in executions:
        what = f"igr, 4 x {sizes.points} points, 8 x {sizes.width}, {execution}"
        yield "step", what, partial(_igr_step, device, sizes, execution)
    yield "step", "humans, 4 scans, eager", partial(_parts_step, device, sizes)


def _igr_step(device: str, sizes: CheckSizes, execution: Execution) -> Row:
    torch.manual_seed(0)
    config = igr.IGRConfig(code_dim=sizes.code_dim, width=sizes.width, encoder="autodecoder", code_init_std=0.1)
    model = igr.build_igr(config, num_scans=4)
    weights = {"surface": 1.0, "normal": 1.0, "eikonal": 0.1, "code_reg": 1e-3}
    weights |= {"tangent_plane": 0.0, "unsigned_distance": 0.0}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    @cache
    def objective(where: str) -> Objective:
        own = igr.build_igr(config, num_scans=4)
        own.load_state_dict(state)
        return Objective(own.to(where), weights, "eager" if where == "cpu" and device == "cuda" else execution)

    def step(where: str) -> Tensor:
        gradients = []
        for seed in range(3):  # CUDA graphs use one memory for all batches
            made = objective(where)
            made.model.zero_grad()
            made(_batch(sizes, seed).to(torch.device(where)))[0].backward()
            gradients += [p.grad.flatten().clone() for p in made.model.parameters() if p.grad is not None]
        return torch.cat(gradients).cpu()

    return compare(step, device, _relative, GRADIENT, "of the norm", times=sizes.times, scale=(1 / 3, 1 / 3))


def _batch(sizes: CheckSizes, seed: int) -> Batch:
    """Four sets of points of the example scan, in the model frame."""
    scans = [_scan(4 * seed + index, sizes.points) for index in range(4)]
    placed = [replace(scan, points=(scan.points - scan.points.mean(axis=0)) / 1.25) for scan in scans]
    return collate(placed, half_extent=1.0, scan_index=list(range(4)), seed=seed)


def _parts_step(device: str, sizes: CheckSizes) -> Row:
    weights = {**vars(load_config("articulated").weights), "part_center": 0.0, "part_rotation": 0.0}
    batches = [_batch(sizes, seed) for seed in range(3)]
    codes = [encode(_space("humans", "cpu").model, [_scan().to_model(_cpu_fits("humans", sizes)[0].frame)])]

    def step(where: str) -> Tensor:
        model = _space("humans", where).model
        assert isinstance(model, ArticulatedSDF)
        code = codes[0].to(torch.device(where))
        code = code.with_tensors([tensor.expand(4, *tensor.shape[1:]) for tensor in code.tensors])
        gradients = []
        for batch in batches:
            loss, _ = Objective(model, weights).loss(batch.to(torch.device(where)), code)
            found = torch.autograd.grad(loss, list(model.decoder.parameters()), allow_unused=True)
            gradients += [gradient.flatten() for gradient in found if gradient is not None]
        return torch.cat(gradients).cpu()

    return compare(step, device, _relative, GRADIENT, "of the norm", times=sizes.times, scale=(1 / 3, 1 / 3))


# ----------------------------------------------------------------------------------------------------------------- api

Call = Callable[[ShapeSpace, list[Fit], CheckSizes], np.ndarray]


def _encoded(space: ShapeSpace, _: list[Fit], sizes: CheckSizes) -> np.ndarray:
    return _vertices(space, space.encode_scans([_scan()])[0], sizes)


def _adam(space: ShapeSpace, _: list[Fit], sizes: CheckSizes) -> np.ndarray:
    adam = AdamOptions(points=256, steps=5, half_extent=1.0)
    return _vertices(space, space.fit_scans([_scan()], method="adam", adam=adam)[0], sizes)


def _fit_of_arrays(space: ShapeSpace, _: list[Fit], sizes: CheckSizes) -> np.ndarray:
    return _vertices(space, space.fit(_scan().points), sizes)


def _assessed(space: ShapeSpace, fits: list[Fit], _: CheckSizes) -> np.ndarray:
    quality = space.assess(fits[0], _scan()).quality
    assert quality is not None
    return np.array([[quality.ood_score, quality.coverage]]) / 1e3


def _uncertainty(space: ShapeSpace, fits: list[Fit], sizes: CheckSizes) -> np.ndarray:
    mesh = _space(_name(space), "cpu").mesh(fits[0], resolution=sizes.cells)
    return space.uncertainty(fits[0], mesh)[:, None]


def _posterior(space: ShapeSpace, fits: list[Fit], sizes: CheckSizes) -> np.ndarray:
    return _vertices(space, space.sample_posterior(fits[0], 1)[0], sizes)


def _sampled(space: ShapeSpace, _: list[Fit], sizes: CheckSizes) -> np.ndarray:
    return np.asarray(space.mesh(space.sample(1), resolution=sizes.cells).vertices)


def _component(space: ShapeSpace, _: list[Fit], sizes: CheckSizes) -> np.ndarray:
    return _vertices(space, space.from_principal_components([1.0]), sizes)


def _between(space: ShapeSpace, fits: list[Fit], sizes: CheckSizes) -> np.ndarray:
    return _vertices(space, space.interpolate_codes(fits[0], fits[1], 3)[1], sizes)


def _geodesic(space: ShapeSpace, fits: list[Fit], sizes: CheckSizes) -> np.ndarray:
    return _vertices(space, space.interpolate_codes(fits[0], fits[1], 3, path="geodesic")[1], sizes)


def _transferred(space: ShapeSpace, fits: list[Fit], sizes: CheckSizes) -> np.ndarray:
    return _vertices(space, space.transfer_pose(fits[0], fits[1]), sizes)


def _joints(space: ShapeSpace, fits: list[Fit], _: CheckSizes) -> np.ndarray:
    return np.stack(list(space.joints(fits[0]).values()))


def _cleared(space: ShapeSpace, _: list[Fit], sizes: CheckSizes) -> np.ndarray:
    scan = _scan()
    far = Scan("far", np.concatenate([scan.points, scan.points[::3] + np.array([3, 0, 0], dtype=np.float32)]))
    return space.remove_clutter([far], lm=sizes.lm)[0].points


def _sequence(space: ShapeSpace, _: list[Fit], sizes: CheckSizes) -> np.ndarray:
    scans = [replace(_scan(seed), name=f"example/walk/{seed}") for seed in range(3)]
    return _vertices(space, space.fit_sequence(scans, lm=sizes.lm)[1], sizes)


def _refined(space: ShapeSpace, fits: list[Fit], sizes: CheckSizes) -> np.ndarray:
    (refined,) = space.refine([_scan()], fits[:1], RefineOptions(steps=sizes.refine_steps))
    return np.asarray(refined.mesh(fits[0], resolution=sizes.cells, surface="field").vertices)


def _name(space: ShapeSpace) -> str:
    return "humans" if isinstance(space.model, ArticulatedSDF) else "humans_v1"


DIRECT: dict[str, Call] = {
    "encode_scans": _encoded,
    "assess (difference times 1,000)": _assessed,
    "uncertainty": _uncertainty,
    "sample_posterior": _posterior,
    "sample": _sampled,
    "from_principal_components": _component,
    "interpolate_codes": _between,
}
PARTS: dict[str, Call] = {"transfer_pose": _transferred, "joints": _joints}
ITERATED: dict[str, Call] = {
    "fit": _fit_of_arrays,
    "fit_scans, method adam": _adam,
    "remove_clutter": _cleared,
    "fit_sequence": _sequence,
    "refine": _refined,
}


def _api(device: str, sizes: CheckSizes) -> Iterator[Check]:
    """Calls of the public API by both spaces; every call gets the fits of the CPU."""
    for name in SPACES:
        calls = {**DIRECT, **(PARTS if name == "humans" else {"geodesic path": _geodesic})}
        for call, function in calls.items():
            yield "api", f"{name}: {call}", partial(_call, name, function, device, sizes, np.max, DIRECT_MM)
        for call, function in ITERATED.items():
            yield "api", f"{name}: {call}", partial(_call, name, function, device, sizes, np.mean, FITTED_MM)


def _call(
    name: str, function: Call, device: str, sizes: CheckSizes, measure: Callable[[np.ndarray], Any], bound: float
) -> Row:
    def called(where: str) -> np.ndarray:
        space = _space(name, where)
        if space.device.type != where:
            raise ValueError(f"{name} is on {space.device}, not on {where}")
        return function(space, _cpu_fits(name, sizes), sizes)

    return compare(called, device, partial(_difference, measure=measure), bound, "mm")


# --------------------------------------------------------------------------------------------------------------- train


def _trainings(device: str, sizes: CheckSizes, out: Path) -> Iterator[Check]:
    """Trainings of both families by the command, in one process and by torchrun (NCCL on GPUs)."""
    data = _Data(out)
    tiny = ("--config", "tiny", "--optim.max-steps", str(2 * sizes.steps))
    parts = ("--config", "articulated", "--batch.scans", "4", "--optim.encoder-share", "0", *sizes.training)
    parts = (*parts, "--optim.max-steps", str(sizes.steps))
    yield "train", "articulated", partial(_training, data, device, "articulated", parts)
    yield "train", "igr", partial(_training, data, device, "igr", tiny)
    if device == "cuda" or has_compiler():
        words = (*tiny, "--execution", "compiled")
        yield "train", "igr, compiled", partial(_training, data, device, "compiled", words)
    backend = "NCCL" if device == "cuda" else "gloo"
    yield "train", f"igr, torchrun with one process, {backend}", partial(_training, data, device, "torchrun", tiny)


class _Data:
    """Store of a few synthetic scans, made when it is first needed."""

    def __init__(self, out: Path) -> None:
        self.out = out

    @property
    def store(self) -> Path:
        store = self.out / "people.h5"
        if not store.exists():
            people = ["--people", 2, "--poses", 3, "--test-people", 1, "--poses-per-test-person", 1, "--seed", 1]
            run_command(["synthesize", self.out / "people", *people])
            run_command(["preprocess", "synthetic", self.out / "people", store, "--points", 20_000, "--jobs", 2])
        return store


def _training(data: _Data, device: str, name: str, settings: Sequence[str]) -> Row:
    """Compare the losses of a training on the CPU and on the device, at the first records and at the last one."""
    curves: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    for role, where in (("cpu", "cpu"), ("device", device)):
        run = Run(data.out / f"{name}_{role}")
        shutil.rmtree(run.folder, ignore_errors=True)
        options = (
            settings if role == "device" else [word for word in settings if word not in ("--execution", "compiled")]
        )
        words = ["train", data.store, "--split", "train", "--out", run.folder, *options]
        words += ["--device", where, "--projector-codes", "0", "--log-every", "5"]
        began = time.perf_counter()
        if (name, role) == ("torchrun", "device"):
            _torchrun(words[1:])
        else:
            run_command(words)
        seconds[role], curves[role] = time.perf_counter() - began, run.training_log().curves["loss"]
    expected, result = curves["cpu"], curves["device"]
    if expected.shape != result.shape or not np.isfinite(result).all():
        raise ValueError(f"losses at {len(expected)} and {len(result)} steps, or not finite")
    early, late = np.abs(result / expected - 1)[[0, -1], 1]
    worst = float(max(early / LOSS, late / FINAL_LOSS))
    return Row(
        "",
        "",
        seconds["cpu"],
        seconds["device"],
        worst,
        1.0,
        f"(loss to {LOSS:g} at step 5, {FINAL_LOSS:g} at the end)",
    )


def _torchrun(words: Sequence[Any]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command += ["-m", "shapespace.tools.train", *map(str, words)]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"torchrun failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
