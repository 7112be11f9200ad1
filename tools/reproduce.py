"""Experiments of the IGR paper (Gropp et al., ICML 2020, section 6).

    shapespace reproduce known-surfaces --out runs/known                  (signed distances that are known exactly)
    shapespace reproduce detail data/people.h5 --split unseen_people      (one raw scan at a time, three methods)
    shapespace reproduce benchmark data/deep_geometric_prior_data         (points and ground truth in a folder)
    shapespace reproduce shape-space data/people.h5 --tests unseen_poses unseen_people --minutes 30

Each prints a table with published values beside the measured ones, and writes `table.md` and `rows.json` to `--out`.
After an interruption the same command continues: with the finished surfaces of known-surfaces, with the checkpoint of
every training, and with the finished steps of shape-space.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm
from trimesh import Trimesh

from shapespace.data.store import ScanStore
from shapespace.evaluation import metrics
from shapespace.evaluation.baselines import screened_poisson
from shapespace.evaluation.scores import markdown_table, write_results
from shapespace.evaluation.surface_benchmarks import (
    FieldError,
    KnownSurface,
    field_error,
    known_surfaces,
    load_benchmark,
)
from shapespace.fitting.fit import FitMethod
from shapespace.fitting.refine import RefineOptions
from shapespace.geometry.scan import Scan
from shapespace.io.atomic import claimed, make_folder, replacing
from shapespace.io.scan_files import file_name
from shapespace.reconstruct import DETAIL, Reconstruction, reconstruct
from shapespace.rendering import renderer, sheet
from shapespace.tools._config import load_config
from shapespace.tools._subprocess import run_command
from shapespace.training.config import LossWeights, TrainConfig
from shapespace.training.run import Run

# The points cover a closed surface, so they determine the signed distance at every distance from it.
EVERYWHERE = RefineOptions(
    max_points=100_000, field_points=2048, steps=5000, trust_distance=float("inf"), signed_distance_weight=3.0
)

# IGR: mean relative error (table 1); d_C and d_H to the ground truth (table 3, with normals), in the unit of the data.
PUBLISHED_KNOWN = "about 0.3 %"
PUBLISHED_BENCHMARK = {
    "anchor": (0.22, 4.71),
    "daratech": (0.25, 4.01),
    "dc": (0.17, 2.22),
    "gargoyle": (0.16, 3.52),
    "lord_quas": (0.12, 1.17),
}


@dataclass(frozen=True)
class Single:
    """Reconstruction of one surface."""

    config: str = "single_scan"
    """Config of the training: `single_scan`, `single_scan_paper`, or a YAML file."""
    minutes: float | None = None
    """Time of each training (min); by default that of the config."""
    detail: bool = True
    """Refine each field on its points, as `shapespace reconstruct` does."""
    resolution: int = 256
    """Grid cells of the meshes along an edge of the model cube."""
    seed: int = 0
    """Seed of the weights and of the points."""


@dataclass(frozen=True)
class KnownSurfaces:
    """Signed distance of known surfaces from points with normals (section 6.1)."""

    single: Annotated[Single, tyro.conf.arg(name="")]
    surfaces: tuple[str, ...] = ("sphere", "box", "torus", "capsules", "body")
    """Names of the surfaces."""
    points: int = 100_000
    """Number of points of each surface."""
    out: Path = Path("runs/known_surfaces")
    """Output folder."""


@dataclass(frozen=True)
class Detail:
    """One raw scan at a time by IGR, by regression of distances, and by screened Poisson (section 6.2)."""

    store: Annotated[Path, tyro.conf.Positional]
    single: Annotated[Single, tyro.conf.arg(name="")]
    split: str | None = None
    """Split of the scans; by default all scans."""
    limit: int = 3
    """Number of scans."""
    out: Path = Path("runs/detail")
    """Output folder."""


@dataclass(frozen=True)
class Benchmark:
    """Surface reconstruction from points by metric `srb` (section 6.3)."""

    folder: Annotated[Path, tyro.conf.Positional]
    single: Annotated[Single, tyro.conf.arg(name="")]
    out: Path = Path("runs/benchmark")
    """Output folder."""


@dataclass(frozen=True)
class ShapeSpaceExperiment:
    """Shape space of raw human scans, scored on unseen scans, with cumulative error curves (section 6.4)."""

    store: Annotated[Path, tyro.conf.Positional]
    train: str = "train"
    """Training split; `by scan` and `by human` of the paper are two trainings."""
    tests: tuple[str, ...] = ("unseen_poses", "unseen_people")
    """Splits to score."""
    config: str = "igr"
    """Config of the training; `igr_paper` is that of the paper."""
    minutes: float | None = None
    """Time of the training (min); by default that of the config."""
    methods: tuple[FitMethod, ...] = ("auto", "encode")
    """Fitting methods of unseen scans."""
    limit: int | None = None
    """Maximum number of scans of each split."""
    resolution: int = 128
    """Grid cells of the meshes along an edge of the model cube."""
    out: Path = Path("runs/shape_space")
    """Folder of the run."""


Experiment = (
    Annotated[KnownSurfaces, tyro.conf.subcommand("known-surfaces")]
    | Annotated[Detail, tyro.conf.subcommand("detail")]
    | Annotated[Benchmark, tyro.conf.subcommand("benchmark")]
    | Annotated[ShapeSpaceExperiment, tyro.conf.subcommand("shape-space")]
)


def main(experiment: Annotated[Experiment, tyro.conf.arg(name="")]) -> None:
    """Run one experiment."""
    if isinstance(experiment, ShapeSpaceExperiment):
        _shape_space(experiment)  # its commands lock the folder
        return
    make_folder(experiment.out)
    with claimed(experiment.out):
        if isinstance(experiment, KnownSurfaces):
            _known_surfaces(experiment)
        elif isinstance(experiment, Detail):
            _detail(experiment)
        else:
            _benchmark(experiment)


def _known_surfaces(experiment: KnownSurfaces) -> None:
    surfaces = known_surfaces()
    if unknown := [name for name in experiment.surfaces if name not in surfaces]:
        raise ValueError(f"no known surface {unknown[0]!r}. There are {', '.join(surfaces)}: --surfaces NAME ...")
    rows: list[dict[str, Any]] = []
    for name in tqdm(experiment.surfaces, desc="known surfaces", unit="surface"):
        row = _row_of_surface(experiment, surfaces[name])
        tqdm.write(f"{name}: mean relative error {row['relative']:.2%}, median {row['median']:.2%}")
        rows.append(row)
    lines = [["surface", "mean relative error", "median", "mean / mean", "mean, mm", "correct sign", "published"]]
    lines += [[row["surface"], *_error_cells(FieldError(*list(row.values())[1:])), PUBLISHED_KNOWN] for row in rows]
    note = f"At 100,000 points of the model cube; {experiment.points:,} points with normals of each surface."
    _write(experiment.out, lines, rows, experiment, note)


def _row_of_surface(experiment: KnownSurfaces, known: KnownSurface) -> dict[str, Any]:
    """Errors of the field of one surface; they are stored in its folder, and read if the settings are the same."""
    single, file = experiment.single, experiment.out / known.name / "row.json"
    settings = {"points": experiment.points, "training": asdict(_config(single))}
    settings |= {"refine": asdict(EVERYWHERE) if single.detail else None}
    with suppress(FileNotFoundError, ValueError, KeyError):
        stored = json.loads(file.read_text())
        if stored["settings"] == json.loads(json.dumps(settings)):
            return dict(stored["row"])
    scan = known.points(experiment.points, np.random.default_rng(single.seed))
    result = _reconstruct(scan, single, file.parent, EVERYWHERE)
    center = result.fit.frame.center.numpy()
    error = field_error(result.field, known, center - result.space.scale, center + result.space.scale)
    row = {"surface": known.name, **error._asdict()}
    with replacing(file) as part:
        part.write_text(json.dumps({"settings": settings, "row": row}))
    return row


def _error_cells(error: FieldError) -> list[str]:
    shares = [f"{100 * share:.2f} %" for share in (error.relative, error.median, error.ratio)]
    return [*shares, f"{1000 * error.absolute:.2f}", f"{100 * error.sign:.2f} %"]


def _detail(experiment: Detail) -> None:
    store = ScanStore(experiment.store)
    rows: list[dict[str, Any]] = []
    pictures = []
    for name in tqdm(store.scan_names(experiment.split)[: experiment.limit], desc="detail", unit="scan"):
        scan, ground_truth = store.scan(name), store.ground_truth(name)
        if ground_truth is None:
            raise ValueError(f"scan {name} has no ground truth in {store.path}. Choose another --split.")
        meshes = _three_methods(scan, experiment.single, experiment.out / file_name(name))
        for method, mesh in meshes.items():
            scores = metrics.score(["surface_distance", "normal_consistency"], mesh, ground_truth, scan)
            angle = scores["normal_consistency"]["angle"]
            rows.append({"scan": name, "method": method, **scores["surface_distance"], "angle": angle})
        pictures.append((name, [renderer.scan_to_mesh(scan), *meshes.values(), ground_truth]))
    columns = [column for column in rows[0] if column not in ("scan", "method")]
    lines = [["method", *columns]]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for method in methods:
        medians = (np.median([row[column] for row in rows if row["method"] == method]) for column in columns)
        lines.append([method, *(f"{median:.2f}" for median in medians)])
    sheet.contact_sheet(pictures, experiment.out / "detail.png", titles=("scan", *methods, "ground truth"))
    note = f"Medians over {len(pictures)} scans: metric `surface_distance` (mm), mean angle of normals (degrees)."
    _write(experiment.out, lines, rows, experiment, note)


def _three_methods(scan: Scan, single: Single, out: Path) -> dict[str, Trimesh]:
    """Meshes by IGR, by the same network with losses on distances alone, and by screened Poisson."""
    poisson = screened_poisson(scan, count=100_000, depth=9)  # first: a missing package fails at once
    igr = _reconstruct(scan, single, out / "igr", DETAIL)
    unrefined = replace(single, detail=False)
    only = LossWeights(surface=0.0, normal=0.0, eikonal=0.0, code_reg=0.0, tangent_plane=1.0, unsigned_distance=1.0)
    regression = _reconstruct(scan, unrefined, out / "regression", DETAIL, only)
    return {
        "IGR": igr.mesh(resolution=single.resolution),
        "regression of distances": regression.mesh(resolution=single.resolution),
        "screened Poisson": poisson,
    }


def _benchmark(experiment: Benchmark) -> None:
    rows: list[dict[str, Any]] = []
    pictures = []
    cases = list(load_benchmark(experiment.folder, seed=experiment.single.seed))
    for case in tqdm(cases, desc="benchmark", unit="object"):
        result = _reconstruct(case.scan, experiment.single, experiment.out / case.name, DETAIL)
        mesh = result.mesh(resolution=experiment.single.resolution)
        scan = case.scan.sample(100_000, np.random.default_rng(0))
        scores = metrics.score(["srb"], mesh, case.ground_truth, scan, seed=experiment.single.seed)["srb"]
        rows.append({"object": case.name, **scores})
        pictures.append((case.name, [renderer.scan_to_mesh(case.scan), mesh]))
    columns = [column for column in rows[0] if column != "object"]
    lines = [["object", *columns, "published d_C", "published d_H"]]
    for row in rows:
        published = PUBLISHED_BENCHMARK.get(row["object"])
        cells = ["-", "-"] if published is None else [f"{value:.2f}" for value in published]
        lines.append([row["object"], *(f"{row[column]:.3f}" for column in columns), *cells])
    sheet.contact_sheet(pictures, experiment.out / "benchmark.png", titles=("scan", "prediction"))
    note = (
        "Metric `srb`, in the unit of the files. chamfer (d_C) and hausdorff (d_H) compare with the ground truth, the "
        "other columns with the scan. Published: IGR with normals, table 3 of its paper, after hours on a GPU."
    )
    _write(experiment.out, lines, rows, experiment, note)


def _shape_space(experiment: ShapeSpaceExperiment) -> None:
    run = experiment.out
    commands: list[list[Any]] = []
    if not (run / "trained").exists():
        resumed = (run / "checkpoint.pt").exists()
        words = ["train", experiment.store, "--config", experiment.config, "--split", experiment.train, "--out", run]
        time = [] if experiment.minutes is None else ["--optim.max-minutes", experiment.minutes]
        commands.append(["train", "--resume", run] if resumed else [*words, *time])
    for method in experiment.methods:
        words = ["evaluate", run, experiment.store, "--method", method, "--splits", *experiment.tests]
        limit = [] if experiment.limit is None else ["--limit", experiment.limit]
        options = ["--resolution", experiment.resolution, "--metrics", "surface_distance", "one_sided_chamfer"]
        commands.append([*words, *limit, *options, "--out", run / method])
    commands.append(["report", run])
    for words in tqdm(commands, desc="shape space", unit="step"):
        tqdm.write(f"shapespace {shlex.join(map(str, words))}")
        printed = run_command(words)
        if words[0] == "train":
            (run / "trained").touch()
    print(printed)
    print(
        "Published for unseen scans of D-FAUST, registration to reconstruction and reverse: IGR 1.05 and 4.92 with "
        "normals, 3.75 and 12.1 without; DiGS 0.57 and 1.83 (DiGS, CVPR 2022, table 4). Compare with metric "
        "`one_sided_chamfer`."
    )


def _reconstruct(
    scan: Scan, single: Single, out: Path, refine: RefineOptions, weights: LossWeights | None = None
) -> Reconstruction:
    """Train on a scan and refine; a training of the same scan and settings continues from its checkpoint."""
    config = _config(single)
    config = config if weights is None else replace(config, weights=weights)
    run = Run(out)
    settings = {"scan": scan.name, "points": _digest(scan), **asdict(config)}
    resume = run.checkpoint.is_file()
    if resume and (changed := _difference(run.settings(), json.loads(json.dumps(settings)))):
        raise FileExistsError(
            f"{out}: holds a training with other settings ({changed}). Use the same settings, remove the folder, or "
            "choose another --out."
        )
    if not resume:
        run.create(settings)
    return reconstruct(scan, run, config, refine if single.detail else None, seed=single.seed, resume=resume)


def _config(single: Single) -> TrainConfig[Any]:
    config = load_config(single.config, "--seed", str(single.seed))
    if single.minutes is None:
        return config
    return replace(config, optim=replace(config.optim, max_minutes=single.minutes))


def _digest(scan: Scan) -> str:
    """Digest of points and normals."""
    arrays = [array for array in (scan.points, scan.normals) if array is not None]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], section: str = "") -> str:
    """The first setting that differs, with both values; empty if none does."""
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            if found := _difference(before, value, f"{section}{key}."):
                return found
        elif before != value:
            return f"{section}{key} was {before}, is now {value}"
    return ""


def _write(out: Path, lines: Sequence[Sequence[str]], rows: Sequence[Any], experiment: Any, note: str) -> None:
    """Print the table; write it as Markdown, and the rows as JSON."""
    page = f"{markdown_table(lines, 1)}\n\n{note}\n"
    with replacing(out / "table.md") as part:
        part.write_text(page, encoding="utf-8")
    write_results(out, "rows", {"settings": asdict(experiment), "rows": rows})
    print(page)
    print(f"table in {out / 'table.md'}, rows in {out / 'rows.json'}")


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
