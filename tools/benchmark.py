"""Measure time and memory against reference implementations, on this machine in one run.

    shapespace benchmark                      (all sections at full size; the first run also trains the model)
    shapespace benchmark step mesh            (any of step, fit, mesh, encode, load, parts)
    shapespace benchmark --quick --json bench.json

Reference and ours are timed in turn, and medians are compared; ratios carry over to other machines, seconds do not.
Memory is the peak above what was in use before. References that would take hours are timed in part and scaled, as their
rows state. No other program should be running. The final error of the reference fit needs a full run of an hour:
`--whole` makes it once and stores it in the folder. Without it, the error of the fit is not compared.
"""

import json as json_format
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Literal, get_args

import h5py
import numpy as np
import torch
import tyro
from torch import Tensor
from trimesh import Trimesh

from shapespace.data.loader import Batch, collate
from shapespace.data.store import ScanStore
from shapespace.fitting import fit
from shapespace.geometry.isosurface import dense_isosurface, evaluate
from shapespace.geometry.scan import Scan
from shapespace.io.atomic import replacing
from shapespace.models import igr
from shapespace.models.igr import IGR
from shapespace.nn.losses import weighted_sum
from shapespace.nn.mlp import Linearization, SkipMLP
from shapespace.nn.mlp_reference import reference_of
from shapespace.space import ShapeSpace
from shapespace.tools import _benchmark_parts
from shapespace.tools import _timing as timing
from shapespace.tools._subprocess import run_command
from shapespace.tools._timing import Comparison, compare, interleaved
from shapespace.training.objective import Execution, Objective, has_compiler, set_matmul_precision
from shapespace.training.run import describe_hardware

Section = Literal["step", "fit", "mesh", "encode", "load", "parts"]

# Loss weights of the paper (IGR eq. 2 and section 6).
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
    """Sizes of the network, of the data and of the measurements."""

    code_dim: int
    width: int
    people: int
    poses: int
    training: int
    """Training steps of the models."""
    times: int
    """Repetitions of measurements that take seconds."""
    points: int
    """Points of the reference fit."""
    stretch: int
    """Timed steps of the reference fit."""
    scans: int
    """Scans of one call."""
    cells: tuple[int, ...]
    """Grid cells of the meshes along an edge; the first is compared with a full dense grid."""


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
        sections: Sections to measure.
        quick: A small network, few points and few repetitions: two minutes.
        whole: Run the reference fit to its end (an hour) and store its final error.
        out: Folder of the scans and the model, which are made once.
        json: File for the results.

    """
    size = QUICK if quick else FULL
    chosen = get_args(Section) if "all" in sections else sections
    bench = _Bench(size, out / ("quick" if quick else "full"))
    print(describe_hardware())
    comparisons: list[Comparison] = []
    for section in chosen:
        for comparison in getattr(bench, section)(*([whole] if section == "fit" else [])):
            timing.show(comparison, first=not comparisons)
            comparisons.append(comparison)
    if json is not None:
        with replacing(json) as part:
            part.write_text(json_format.dumps([asdict(comparison) for comparison in comparisons], indent=1))
        print(f"results in {json}")


class _Bench:
    """The sections, and the model and scans that they are measured on."""

    def __init__(self, size: Size, folder: Path) -> None:
        self.size, self.folder = size, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def step(self) -> Iterator[Comparison]:
        """Time a training step of the paper: 4 scans with 1,000 points, as many near the surface, 125 uniform."""
        size = self.size
        torch.manual_seed(0)
        config = igr.IGRConfig(
            code_dim=size.code_dim, width=size.width, init_radius=0.5, encoder="autodecoder", code_init_std=0.1
        )
        model = igr.build_igr(config, num_scans=4).to(self.device)
        batch = _batch(scans=4, points=1000).to(self.device)
        points = batch.loss_points
        set_matmul_precision(model, PAPER, batch, "auto")  # as training does
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        reference = timing.with_precision("highest", _gradients(_reference(model), batch, "eager"))
        what = f"4 x {points:,} points, 8 x {size.width}"
        executions: list[Execution] = ["eager"] if self.device.type != "cpu" else ["eager", "chunked"]
        if self.device.type != "cpu" or has_compiler():
            executions.append("compiled")
        variants = {e: timing.with_precision(precision, _gradients(model, batch, e)) for e in executions}
        for execution, variant in variants.items():
            yield compare("step", f"{what}, {execution}", reference, variant, timing.close(1e-5), times=size.times)
        if "chunked" in variants:
            with timing.other_trainings(2):
                name = f"{what}, chunked, beside 2 other trainings"
                yield compare(
                    "step", name, reference, variants["chunked"], timing.close(1e-5), times=max(2, size.times // 3)
                )
        yield from self._roofline(model, variants, precision, 4 * points)

    def _roofline(
        self, model: IGR, variants: dict[Execution, Callable[[], Tensor]], precision: str, points: int
    ) -> Iterator[Comparison]:
        """Compare the floating-point operations of a step, at the speed of one large product, with the step."""
        operations = 6 * 2 * _macs(model) * points
        product, *steps = interleaved([self._matmul(precision), *variants.values()], self.size.times)
        for execution, seconds in zip(variants, steps, strict=True):
            yield self._share("step", execution, operations, product, seconds)

    def _matmul(self, precision: str = "highest") -> Callable[[], None]:
        return timing.matmul(self.size.width, self.device, precision)

    def _share(self, section: Section, name: str, operations: float, product: float, seconds: float) -> Comparison:
        return timing.share_of_peak(section, name, operations, self.size.width, product, seconds)

    def fit(self, whole: bool) -> Iterator[Comparison]:
        """Time the fit of one unseen scan against that of the paper, and the fit of many scans against one."""
        size, space, store = self.size, *self._space()
        scan = _scan(store, store.scan_names("unseen_people")[0])
        model = _igr(space)
        reference = _reference(model)
        options = fit.AdamOptions(points=size.points)
        stored = self.folder / "reference_fit.json"
        if whole:
            result = fit.fit_adam(model, [scan], PAPER, options)  # its gradients equal the reference: section step
            with replacing(stored) as part:
                error = _error(model, scan, result)
                record = {"model": space.model.fingerprint(), "error": error, "steps": options.steps}
                part.write_text(json_format.dumps(record))
        error = _error(model, scan, fit.fit_lm(model, [scan]))
        known = json_format.loads(stored.read_text()) if stored.exists() else {"model": None}
        best = known["error"] if known["model"] == space.model.fingerprint() else None
        versus = "reference not run: --whole" if best is None else f"reference {1e3 * space.scale * best:.1f} mm"
        yield compare(
            "fit",
            f"one scan, {1e3 * space.scale * error:.1f} mm ({versus}, {size.stretch} of {options.steps} steps timed)",
            lambda: _paper_fit(reference, scan, options, size.stretch),
            lambda: fit.fit_lm(model, [scan]).code.flat,
            None if best is None else lambda _a, _b: error <= best,
            times=3,
            scale=(options.steps / size.stretch, 1.0),
        )
        product, seconds = interleaved([self._matmul(), lambda: fit.fit_lm(model, [scan])], 3)
        yield self._share("fit", "one scan", _fit_operations(model, scan), product, seconds)
        scans = _scans(store, size.scans)
        name = f"{len(scans)} scans in one call, for each; reference: one alone"
        yield timing.compare_many_with_one("fit", name, partial(fit.fit_lm, model), scans)

    def mesh(self) -> Iterator[Comparison]:
        """Time the field, and meshes against the dense grid."""
        size, space, store = self.size, *self._space()
        model = _igr(space)
        reference = _reference(model)
        code = fit.encode(model, [_scan(store, store.scan_names("unseen_people")[0])])
        x = (torch.rand(1 << 16, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1).numpy()

        def field(model: IGR) -> Callable[[Tensor], Tensor]:
            return lambda points: model.field(points.to(self.device)[None], code)[0]

        def surface(cells: int) -> Trimesh:
            return model.extract_surface(code, resolution=cells)[0]

        def same(cells: int, _: Trimesh, ours: Trimesh) -> bool:
            return timing.same_vertices(dense_isosurface(field(model), resolution=cells), ours)

        yield compare(
            "mesh",
            f"field at {len(x):,} points",
            lambda: evaluate(field(reference), x),
            lambda: evaluate(field(model), x),
            lambda a, b: bool(np.abs(a - b).max() < 1e-5),
            times=size.times,
        )
        product, seconds = interleaved([self._matmul(), lambda: evaluate(field(model), x)], size.times)
        yield self._share("mesh", "field", 2 * _macs(model) * len(x), product, seconds)
        first, *finer = size.cells
        dense = partial(dense_isosurface, field(reference), resolution=first)
        yield compare("mesh", f"{first} cells", dense, partial(surface, first), partial(same, first), times=1)
        stretch = np.tile(x, (4, 1))
        for cells in finer:
            nodes = (cells + 1) ** 3
            yield compare(
                "mesh",
                f"{cells} cells; reference: {nodes:,} nodes at the speed of {len(stretch):,}",
                lambda: evaluate(field(reference), stretch),
                partial(surface, cells),
                None,
                times=2 if cells < 512 else 1,
                scale=(nodes / len(stretch), 1.0),
            )

    def encode(self) -> Iterator[Comparison]:
        """Time the encoding of many scans in one call against one by one."""
        size, space, store = self.size, *self._space()
        scans = _scans(store, size.scans)
        yield compare(
            "encode",
            f"{len(scans)} scans in one call; reference: one by one",
            lambda: torch.cat([fit.encode(space.model, [scan]).flat for scan in scans]),
            lambda: fit.encode(space.model, scans).flat,
            timing.close(1e-5),
            times=size.times,
        )

    def load(self) -> Iterator[Comparison]:
        """Time reading random points of a stored scan: one block of shuffled rows against a selection of rows."""
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

    def parts(self) -> Iterator[Comparison]:
        """Time training step, fit and mesh of the articulated family."""
        space, store = self._space("articulated")
        names = list(islice(cycle(store.scan_names("unseen_people")), self.size.scans))
        yield from _benchmark_parts.measure(space, store, names, times=self.size.times)

    def _space(self, config: Literal["igr", "articulated"] = "igr") -> tuple[ShapeSpace, ScanStore]:
        """Model and store of a small synthetic dataset; both are made once and stored in the folder."""
        size, store, run = self.size, self.folder / "people.h5", self.folder / config
        if not store.exists():
            print("making the scans (once)", file=sys.stderr)
            people = ["--people", size.people, "--poses", size.poses, "--test-people", 2]
            run_command(["synthesize", self.folder / "people", *people])
            run_command(["preprocess", "synthetic", self.folder / "people", store, "--points", 50_000, "--jobs", 2])
        if not (run / "finished").exists():
            print("training the model (once)", file=sys.stderr)
            if (run / "checkpoint.pt").exists():
                run_command(["train", "--resume", run])
            else:
                sizes = ["--model.code-dim", size.code_dim, "--model.width", size.width] if config == "igr" else []
                words = ["train", store, "--config", config, *sizes, "--optim.max-steps", size.training]
                run_command([*words, "--out", run, "--split", "train"])
            (run / "finished").touch()
        return ShapeSpace.load(run, device=self.device.type), ScanStore(store)


def _igr(space: ShapeSpace) -> IGR:
    assert isinstance(space.model, IGR)
    return space.model


def _decoder(model: IGR) -> SkipMLP:
    assert isinstance(model.decoder, SkipMLP)  # of three-dimensional shapes
    return model.decoder


def _reference(model: IGR) -> IGR:
    """The same model with the reference decoder, which computes gradients by autograd as the paper does."""
    return IGR(model.encoder, reference_of(_decoder(model)), model.prior)


def _batch(scans: int, points: int) -> Batch:
    """Points of a sphere with normals."""
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(scans, points, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return collate([Scan("", 0.5 * n, n) for n in normals], scan_index=list(range(scans)), half_extent=1.8)


def _gradients(model: IGR, batch: Batch, execution: Execution) -> Callable[[], Tensor]:
    """A step without the optimizer: loss, and the gradients of all weights and codes in one vector."""
    objective = Objective(model, PAPER, execution)

    def step() -> Tensor:
        model.zero_grad()
        objective(batch)[0].backward()
        return torch.cat([p.grad.flatten() for _, p in sorted(model.named_parameters()) if p.grad is not None])

    return step


def _paper_fit(reference: IGR, scan: Scan, options: fit.AdamOptions, steps: int) -> Tensor:
    """Some steps of the fit of the paper, all points in one graph."""
    code = fit.encode(reference, [scan])
    flat = code.flat.clone().requires_grad_()
    optimizer = torch.optim.Adam([flat], lr=options.lr)
    for step in range(steps):
        subset = scan.select(np.random.default_rng(step).integers(len(scan), size=options.points))
        batch = collate([subset], near_std=options.near_std, half_extent=options.half_extent, seed=step).to(flat.device)
        loss = weighted_sum(reference.loss_terms(batch, code.unflatten(flat)), PAPER)
        (flat.grad,) = torch.autograd.grad(loss, flat)
        optimizer.step()
    return flat.detach()


def _error(model: IGR, scan: Scan, result: fit.BatchFit) -> float:
    """Mean |f| at 10,000 points of the scan (model units)."""
    points = scan.select(np.random.default_rng(99).permutation(len(scan))[:10_000]).points
    with torch.no_grad():
        x = torch.from_numpy(points).to(result.code.flat.device)
        return float(model.field(x[None], result.code).abs().mean())


def _scan(store: ScanStore, name: str) -> Scan:
    """All points of a stored scan, in the model frame."""
    return store.sample(name, store.count(name), np.random.default_rng(0))


def _scans(store: ScanStore, count: int) -> list[Scan]:
    """`count` scans; they repeat if the store has fewer."""
    return [_scan(store, name) for name in islice(cycle(store.names), count)]


def _macs(model: IGR) -> int:
    """Multiply-accumulate operations of one pass at one point, without the small first and last layers."""
    return sum(layer.weight.numel() for layer in _decoder(model).layers())


def _fit_operations(model: IGR, scan: Scan) -> float:
    """Floating-point operations of one fit: two passes, the code Jacobian and the normal matrix."""
    decoder, points = _decoder(model), list[int]()
    code_dim = decoder.code_in.in_features
    jacobian = sum(weight.numel() for weight in decoder.code_weights() if weight is not None)

    def counted(x: Tensor, codes: Tensor) -> Linearization:
        points.append(x.shape[0] * x.shape[1])
        return type(decoder).linearize(decoder, x, codes)

    decoder.linearize = counted  # type: ignore[assignment]
    try:
        fit.fit_lm(model, [scan])
    finally:
        del decoder.linearize
    return 2.0 * sum(points) * (2 * _macs(model) + jacobian + code_dim**2)


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
