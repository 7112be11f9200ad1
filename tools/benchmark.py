"""Measure the fast ways against the plain ones, on this machine, in this run.

    shapespace benchmark                      (all sections at full size; the first time it also trains its model)
    shapespace benchmark step mesh            (some of step, fit, mesh, encode, load)
    shapespace benchmark --quick --json bench.json

Reference and ours are timed in turn, and medians are compared: the ratio is what carries over, not the seconds. Memory
is the peak above what was held before. What would take hours is timed over a stretch and scaled, and its name says so.
Nothing else should be running. The reference of a fit is only timed: its final error is that of one whole run, an hour
long, which `--whole` makes once and keeps in the folder; until then the fit is compared with nobody, and says so.
"""

import json as json_format
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

import h5py
import numpy as np
import torch
import tyro
from torch import Tensor
from trimesh import Trimesh

from shapespace.data.loader import Batch, collate
from shapespace.data.store import ScanStore
from shapespace.fitting import fit
from shapespace.geometry.isosurface import dense, evaluate
from shapespace.geometry.proximity import mutual_nearest
from shapespace.geometry.scan import Scan
from shapespace.io.atomic import replacing
from shapespace.models import igr
from shapespace.models.igr import IGR
from shapespace.nn.losses import weighted_sum
from shapespace.nn.mlp import Linearization, SkipMLP
from shapespace.nn.mlp_reference import reference_of
from shapespace.space import ShapeSpace
from shapespace.tools import preprocess, synthesize, train
from shapespace.tools._config import expand_config_option
from shapespace.tools._timing import Figure, compare, interleaved, show
from shapespace.training.config import TrainConfig
from shapespace.training.objective import Execution, Objective, has_compiler, set_matmul_precision
from shapespace.training.run import describe_hardware

Result = TypeVar("Result")
Section = Literal["step", "fit", "mesh", "encode", "load"]

# The paper's loss (IGR eq. 2 and section 6).
PAPER = {
    "surface": 1.0,
    "normal": 1.0,
    "eikonal": 0.1,
    "code_reg": 1e-3,
    "tangent_plane": 0.0,
    "unsigned_distance": 0.0,
}


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    code: int
    width: int
    people: int
    poses: int
    training: int
    """Steps of the training of the model that is fitted and meshed."""
    times: int
    """Repetitions of what takes seconds."""
    points: int
    """Points of the reference's fit."""
    stretch: int
    """Steps of the reference's fit that are timed."""
    scans: int
    """Scans fitted in one call."""
    cells: tuple[int, ...]
    """Cells of the meshes along an edge; the first is compared with a whole dense grid."""


FULL = Size(256, 512, 14, 8, 600, 7, 16_384, 3, 100, (96, 256, 512))
QUICK = Size(64, 256, 4, 3, 60, 3, 2_048, 2, 6, (48, 128))


def main(
    sections: Annotated[tuple[Section | Literal["all"], ...], tyro.conf.Positional] = ("all",),
    *,
    quick: bool = False,
    whole: bool = False,
    out: Path = Path("runs/benchmark"),
    json: Path | None = None,
) -> None:
    """Print a table of ratios.

    Args:
        sections: What to measure.
        quick: A small network, few points, few repetitions: two minutes in all.
        whole: Also run the reference's fit to its end, an hour long, and keep its final error.
        out: Folder of the scans and the model that are made for it once.
        json: A file for the figures.

    """
    size = QUICK if quick else FULL
    chosen = get_args(Section) if "all" in sections else sections
    bench = _Bench(size, out / ("quick" if quick else "full"))
    print(describe_hardware())
    figures: list[Figure] = []
    for section in chosen:
        for figure in getattr(bench, section)(*([whole] if section == "fit" else [])):
            show(figure, first=not figures)
            figures.append(figure)
    if json is not None:
        with replacing(json) as part:
            part.write_text(json_format.dumps([asdict(figure) for figure in figures], indent=1))
        print(f"figures in {json}")


class _Bench:
    """What is measured, and on what."""

    def __init__(self, size: Size, folder: Path) -> None:
        self.size, self.folder = size, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    # ---------------------------------------------------------------- sections

    def step(self) -> Iterator[Figure]:
        """Time a step of the paper's training: 4 scans, 1,000 points of each, as many around it, 125 in the box."""
        size = self.size
        torch.manual_seed(0)
        sizes = igr.IGRConfig(
            code_dim=size.code, width=size.width, init_radius=0.5, encoder="autodecoder", code_init_std=0.1
        )
        model = igr.build_igr(sizes, num_scans=4).to(self.device)
        batch = _batch(scans=4, points=1000).to(self.device)
        points = batch.loss_points
        set_matmul_precision(model, PAPER, batch, "auto")  # as training does
        products = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        reference = _with_products("highest", _gradients(_plain(model), batch, "eager"))
        what = f"4 x {points:,} points, 8 x {size.width}"
        executions: list[Execution] = ["eager"] if self.device.type != "cpu" else ["eager", "chunked"]
        if self.device.type != "cpu" or has_compiler():
            executions.append("compiled")
        ways = {e: _with_products(products, _gradients(model, batch, e)) for e in executions}
        for execution, way in ways.items():
            yield compare("step", f"{what}, {execution}", reference, way, _close(1e-5), times=size.times)
        if "chunked" in ways:
            with _other_trainings(2):
                name = f"{what}, blocked, beside 2 other trainings"
                yield compare("step", name, reference, ways["chunked"], _close(1e-5), times=max(2, size.times // 3))
        yield from self._roofline(model, ways, products, 4 * points)

    def _roofline(
        self, model: IGR, ways: dict[Execution, Callable[[], Tensor]], products: str, points: int
    ) -> Iterator[Figure]:
        """Compare the arithmetic of a step, at the speed of one large product, with the step."""
        operations = 6 * 2 * _weights(model) * points
        peak = self._product(products)
        product, *steps = interleaved([peak, *ways.values()], self.size.times)
        for execution, seconds in zip(ways, steps, strict=True):
            yield self._share("step", execution, operations, product, seconds)

    def _product(self, products: str) -> Callable[[], None]:
        """Twenty products of 4,096 x width x width."""
        width = self.size.width
        a, b = torch.randn(4096, width, device=self.device), torch.randn(width, width, device=self.device)

        def twenty() -> None:
            for _ in range(20):
                torch.mm(a, b)

        return _with_products(products, twenty)

    def _share(self, section: Section, name: str, operations: float, product: float, seconds: float) -> Figure:
        peak = 20 * 2 * 4096 * self.size.width**2 / product
        rate = f"{name}: {operations / seconds / 1e9:,.0f} GFLOP/s; reference: products alone, {peak / 1e9:,.0f}"
        return Figure(section, rate, operations / peak, seconds, operations / peak / seconds, None, None, None)

    def fit(self, whole: bool) -> Iterator[Figure]:
        """Time the fit of one unseen scan against the paper's, and of many against one."""
        size, space, store = self.size, *self._space()
        scan = _scan(store, store.scan_names("unseen_people")[0])
        model = _igr(space)
        plain = _plain(model)
        options = fit.AdamOptions(points=size.points)
        kept = self.folder / "reference_fit.json"
        if whole:
            found = fit.fit_adam(model, [scan], PAPER, options)  # gradients are the reference's: see section step
            with replacing(kept) as part:
                said = {"model": space.model.fingerprint(), "error": _error(model, scan, found), "steps": options.steps}
                part.write_text(json_format.dumps(said))
        error = _error(model, scan, fit.fit_lm(model, [scan]))
        known = json_format.loads(kept.read_text()) if kept.exists() else {"model": None}
        best = known["error"] if known["model"] == space.model.fingerprint() else None
        versus = "reference not run: --whole" if best is None else f"reference {1e3 * space.scale * best:.1f} mm"
        yield compare(
            "fit",
            f"one scan, {1e3 * space.scale * error:.1f} mm ({versus}, {size.stretch} of {options.steps} steps timed)",
            lambda: _paper_fit(plain, scan, options, size.stretch),
            lambda: fit.fit_lm(model, [scan]).code.flat,
            None if best is None else lambda _a, _b: error <= best,
            times=3,
            scale=(options.steps / size.stretch, 1.0),
        )
        product, seconds = interleaved([self._product("highest"), lambda: fit.fit_lm(model, [scan])], 3)
        yield self._share("fit", "one scan", _fit_operations(model, scan), product, seconds)
        scans = _scans(store, size.scans)
        some = scans[:: max(1, len(scans) // 3)][:3]
        yield compare(
            "fit",
            f"{len(scans)} scans in one call, for each; reference: one alone",
            lambda: [fit.fit_lm(model, [one]) for one in some],
            lambda: fit.fit_lm(model, scans),
            None,
            times=0,
            scale=(1 / len(some), 1 / len(scans)),
        )

    def mesh(self) -> Iterator[Figure]:
        """Time the field by itself, and meshes against the dense grid."""
        size, space, store = self.size, *self._space()
        model = _igr(space)
        plain = _plain(model)
        code = fit.encode(model, [_scan(store, store.scan_names("unseen_people")[0])])
        x = (torch.rand(1 << 16, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1).numpy()

        def field(of: IGR) -> Callable[[Tensor], Tensor]:
            return lambda points: of.field(points.to(self.device)[None], code)[0]

        def surface(cells: int) -> Trimesh:
            return model.extract_surface(code, resolution=cells)[0]

        def same(cells: int, _: Trimesh, ours: Trimesh) -> bool:
            return _same_mesh(dense(field(model), resolution=cells), ours)

        yield compare(
            "mesh",
            f"field at {len(x):,} points",
            lambda: evaluate(field(plain), x),
            lambda: evaluate(field(model), x),
            lambda a, b: bool(np.abs(a - b).max() < 1e-5),
            times=size.times,
        )
        product, seconds = interleaved([self._product("highest"), lambda: evaluate(field(model), x)], size.times)
        yield self._share("mesh", "field", 2 * _weights(model) * len(x), product, seconds)
        first, *finer = size.cells
        yield compare(
            "mesh",
            f"{first} cells",
            partial(dense, field(plain), resolution=first),
            partial(surface, first),
            partial(same, first),
            times=1,
        )
        stretch = np.tile(x, (4, 1))
        for cells in finer:
            nodes = (cells + 1) ** 3
            yield compare(
                "mesh",
                f"{cells} cells; reference: {nodes:,} nodes at the speed of {len(stretch):,}",
                lambda: evaluate(field(plain), stretch),
                partial(surface, cells),
                None,
                times=2 if cells < 512 else 1,
                scale=(nodes / len(stretch), 1.0),
            )

    def encode(self) -> Iterator[Figure]:
        """Time many scans in one call against one after the other."""
        size, space, store = self.size, *self._space()
        scans = _scans(store, size.scans)
        yield compare(
            "encode",
            f"{len(scans)} scans in one call; reference: one after the other",
            lambda: torch.cat([fit.encode(space.model, [scan]).flat for scan in scans]),
            lambda: fit.encode(space.model, scans).flat,
            _close(1e-5),
            times=size.times,
        )

    def load(self) -> Iterator[Figure]:
        """Time random points of a packed scan: one block of shuffled rows against a choice of rows."""
        _, store = self._space()
        name, count = store.names[0], 8_000
        rng = np.random.default_rng(0)

        def choice() -> np.ndarray:
            with h5py.File(store.path) as file:
                rows = np.sort(rng.permutation(store.count(name))[:count])
                return np.concatenate([file[name][key][rows] for key in ("points", "normals", "sensors")])

        yield compare(
            "load",
            f"{count:,} random points of a scan with normals and sensors",
            choice,
            lambda: store.sample(name, count, rng),
            None,
            times=9,
        )

    # ---------------------------------------------------------------- what it is measured on

    def _space(self) -> tuple[ShapeSpace, ScanStore]:
        """A model trained once for it on a small synthetic set, and the set; both are kept in the folder."""
        size, packed, run = self.size, self.folder / "people.h5", self.folder / "run"
        if not packed.exists():
            print("making scans to fit, once", file=sys.stderr)
            synthesize.main(self.folder / "people", people=size.people, poses=size.poses, test_people=2)
            preprocess.main("synthetic", self.folder / "people", packed, points=50_000, jobs=2)
        if not (run / "finished").exists():
            print("training the model that is fitted and meshed, once", file=sys.stderr)
            if (run / "checkpoint.pt").exists():
                train.main(config=TrainConfig(igr.IGRConfig()), resume=run)
            else:
                words = f"--config igr --model.code-dim {size.code} --model.width {size.width} --optim.max-steps {size.training}"
                config = tyro.cli(TrainConfig[igr.IGRConfig], args=expand_config_option(words.split()))
                train.main(packed, config=config, out=run, split="train")
            (run / "finished").touch()
        return ShapeSpace.load(run, device=self.device.type), ScanStore(packed)


def _igr(space: ShapeSpace) -> IGR:
    assert isinstance(space.model, IGR)  # it was trained so
    return space.model


def decoder_of(model: IGR) -> SkipMLP:
    """The network of a model of shapes in space."""
    assert isinstance(model.decoder, SkipMLP)
    return model.decoder


def _plain(model: IGR) -> IGR:
    """The same model with its decoder computed as the paper's code does."""
    return IGR(model.encoder, reference_of(decoder_of(model)), model.prior)


def _batch(scans: int, points: int) -> Batch:
    """Clouds about a sphere, with normals."""
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(scans, points, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return collate([Scan("", 0.5 * n, n) for n in normals], scan_index=list(range(scans)), half_extent=1.8)


def _gradients(model: IGR, batch: Batch, execution: Execution) -> Callable[[], Tensor]:
    """A step but for the optimiser: loss, and the gradients of all weights and codes in one row."""
    objective = Objective(model, PAPER, execution)

    def step() -> Tensor:
        model.zero_grad()
        objective(batch)[0].backward()
        return torch.cat([p.grad.flatten() for _, p in sorted(model.named_parameters()) if p.grad is not None])

    return step


def _paper_fit(plain: IGR, scan: Scan, options: fit.AdamOptions, steps: int) -> Tensor:
    """Some steps of the paper's fit, all points in one graph."""
    code = fit.encode(plain, [scan])
    flat = code.flat.clone().requires_grad_()
    optimiser = torch.optim.Adam([flat], lr=options.lr)
    for step in range(steps):
        drawn = scan.select(np.random.default_rng(step).integers(len(scan), size=options.points))
        batch = collate([drawn], near_std=options.near_std, half_extent=options.half_extent, seed=step).to(flat.device)
        loss = weighted_sum(plain.loss_terms(batch, code.unflatten(flat)), PAPER)
        (flat.grad,) = torch.autograd.grad(loss, flat)
        optimiser.step()
    return flat.detach()


def _error(model: IGR, scan: Scan, found: fit.BatchFit) -> float:
    """Mean |f| at 10,000 points of the scan, in model units."""
    points = scan.select(np.random.default_rng(99).permutation(len(scan))[:10_000]).points
    with torch.no_grad():
        x = torch.from_numpy(points).to(found.code.flat.device)
        return float(model.field(x[None], found.code).abs().mean())


def _scan(store: ScanStore, name: str) -> Scan:
    """All of a packed scan, in the model frame."""
    return store.sample(name, store.count(name), np.random.default_rng(0))


def _scans(store: ScanStore, count: int) -> list[Scan]:
    """So many scans, some of them again if the store has fewer."""
    return [_scan(store, name) for name in islice(cycle(store.names), count)]


def _close(tolerance: float) -> Callable[[Tensor, Tensor], bool]:
    return lambda a, b: bool((a - b).norm() <= tolerance * a.norm())


def _same_mesh(a: Trimesh, b: Trimesh) -> bool:
    """Every vertex of either is one of the other's."""
    return max(distances.max() for distances in mutual_nearest(a.vertices, b.vertices)) < 1e-6


def _weights(model: IGR) -> int:
    """Multiplications and additions of one sweep at one point, but for the thin first and last layer."""
    return sum(layer.weight.numel() for layer in decoder_of(model).layers())


def _fit_operations(model: IGR, scan: Scan) -> float:
    """Floating-point operations in the products of one fit: two sweeps, the code's Jacobian, the normal matrix."""
    decoder, visits = decoder_of(model), list[int]()
    code = decoder.code_in.in_features
    of_jacobian = sum(weight.numel() for weight in decoder.code_weights() if weight is not None)

    def counted(x: Tensor, codes: Tensor) -> Linearization:
        visits.append(x.shape[0] * x.shape[1])
        return type(decoder).linearize(decoder, x, codes)

    decoder.linearize = counted  # type: ignore[assignment]
    try:
        fit.fit_lm(model, [scan])
    finally:
        del decoder.linearize
    return 2.0 * sum(visits) * (2 * _weights(model) + of_jacobian + code**2)


def _with_products(precision: str, way: Callable[[], Result]) -> Callable[[], Result]:
    """The same with products of this precision."""

    def under() -> Result:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            return way()
        finally:
            torch.set_float32_matmul_precision(before)

    return under


_OTHER = """
import torch
net = torch.nn.Sequential(*(layer for _ in range(4) for layer in (torch.nn.Linear(512, 512), torch.nn.Softplus(100))))
while True:
    net(torch.randn(4096, 512)).sum().backward()
"""


@contextmanager
def _other_trainings(processes: int) -> Iterator[None]:
    """So many other processes that train a network, as on a machine that is shared."""
    busy = [subprocess.Popen([sys.executable, "-c", _OTHER]) for _ in range(processes)]
    try:
        time.sleep(5)  # until they are under way
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
