"""The experiments of IGR's paper (Gropp et al., ICML 2020, section 6), each by one line.

    shapespace reproduce known-surfaces --out runs/known                  (signed distances that can be told exactly)
    shapespace reproduce detail data/people.h5 --split unseen_people      (one raw scan at a time, three ways)
    shapespace reproduce benchmark data/deep_geometric_prior_data         (points and truths in a folder)
    shapespace reproduce shape-space data/people.h5 --tests unseen_poses unseen_people --minutes 30

Each prints a table, with the published figures beside the measured ones, and writes it to `--out` as Markdown and JSON.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from tqdm import tqdm
from trimesh import Trimesh

from shapespace.data.store import ScanStore
from shapespace.evaluation import metrics
from shapespace.evaluation.baselines import screened_poisson
from shapespace.evaluation.scores import markdown_table
from shapespace.evaluation.surface_benchmarks import FieldError, field_error, known_surfaces, load_benchmark
from shapespace.fitting.refine import RefineOptions
from shapespace.io.atomic import replacing
from shapespace.io.scan_files import file_name
from shapespace.reconstruct import DETAIL, Reconstruction, reconstruct
from shapespace.rendering import renderer, sheet
from shapespace.tools._config import config_class, expand_config_option
from shapespace.tools._inputs import from_store
from shapespace.tools.ablate import call
from shapespace.training.config import LossWeights, TrainConfig
from shapespace.training.run import Run

# A closed surface's points tell the distance everywhere.
EVERYWHERE = RefineOptions(
    max_points=100_000, field_points=2048, steps=5000, trust_distance=float("inf"), signed_distance_weight=3.0
)

# Mean relative error (table 1), and d_C and d_H to the truth (table 3, with normals), in the unit of the data.
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
    """How one surface is reconstructed."""

    config: str = "single_scan"
    """Config of the training: `single`, `single_paper`, or a YAML file."""
    minutes: float | None = None
    """Time of each training, if not what the config says."""
    detail: bool = True
    """Adapt each field to its points once more, as `shapespace reconstruct` does."""
    resolution: int = 256
    """Cells of the mesh's grid."""
    seed: int = 0
    """Of the weights and of the points."""


@dataclass(frozen=True)
class KnownSurfaces:
    """The signed distance of known surfaces, from points of them with normals (section 6.1)."""

    single: Annotated[Single, tyro.conf.arg(name="")]
    surfaces: tuple[str, ...] = ("sphere", "box", "torus", "capsules", "body")
    """Which ones."""
    points: int = 100_000
    """Points of each."""
    out: Path = Path("runs/known_surfaces")
    """Folder for everything."""


@dataclass(frozen=True)
class Detail:
    """One raw scan at a time: IGR, regression of distances by the same network, screened Poisson (section 6.2)."""

    store: Annotated[Path, tyro.conf.Positional]
    single: Annotated[Single, tyro.conf.arg(name="")]
    split: str | None = None
    """Scans of this split; all without it."""
    limit: int = 3
    """So many of them."""
    out: Path = Path("runs/detail")
    """Folder for everything."""


@dataclass(frozen=True)
class Benchmark:
    """Surface reconstruction from points, against the truth, by protocol `srb` (section 6.3)."""

    folder: Annotated[Path, tyro.conf.Positional]
    single: Annotated[Single, tyro.conf.arg(name="")]
    out: Path = Path("runs/benchmark")
    """Folder for everything."""


@dataclass(frozen=True)
class ShapeSpaceExperiment:
    """A shape space of raw human scans, scored on scans it never saw, with cumulative error curves (section 6.4)."""

    store: Annotated[Path, tyro.conf.Positional]
    train: str = "train"
    """Split to train on: the authors' `by scan` and `by human` are two trainings."""
    tests: tuple[str, ...] = ("unseen_poses", "unseen_people")
    """Splits to score."""
    config: str = "igr"
    """Config of the training; `igr_paper` is the paper's."""
    minutes: float | None = None
    """Time of the training, if not what the config says."""
    methods: tuple[Literal["auto", "lm", "adam", "encode", "refine"], ...] = ("auto", "encode")
    """How unseen scans are fitted."""
    limit: int | None = None
    """Score only the first so many scans of each split."""
    resolution: int = 128
    """Cells of the meshes' grid."""
    out: Path = Path("runs/shape_space")
    """Folder of the run."""


Experiment = (
    Annotated[KnownSurfaces, tyro.conf.subcommand("known-surfaces")]
    | Annotated[Detail, tyro.conf.subcommand("detail")]
    | Annotated[Benchmark, tyro.conf.subcommand("benchmark")]
    | Annotated[ShapeSpaceExperiment, tyro.conf.subcommand("shape-space")]
)


def main(experiment: Annotated[Experiment, tyro.conf.arg(name="")]) -> None:
    """Repeat one experiment."""
    if isinstance(experiment, KnownSurfaces):
        _known(experiment)
    elif isinstance(experiment, Detail):
        _detail(experiment)
    elif isinstance(experiment, Benchmark):
        _benchmark(experiment)
    else:
        _shape_space(experiment)


def _known(experiment: KnownSurfaces) -> None:
    there = known_surfaces()
    if unknown := [name for name in experiment.surfaces if name not in there]:
        raise ValueError(f"no known surface {unknown[0]!r}: there are {', '.join(there)}.")
    rows: list[dict[str, Any]] = []
    for name in tqdm(experiment.surfaces, desc="known surfaces", unit="surface"):
        known = there[name]
        scan = known.points(experiment.points, np.random.default_rng(experiment.single.seed))
        found = _surface(scan, experiment.single, experiment.out / name, EVERYWHERE)
        centre = found.place.frame.center.numpy()
        error = field_error(found.field, known, centre - found.space.scale, centre + found.space.scale)
        rows.append({"surface": name, **error._asdict()})
        tqdm.write(f"{name}: mean relative error {error.relative:.2%}, median {error.median:.2%}")
    lines = [["surface", "mean relative error", "median", "mean / mean", "mean, mm", "right sign", "published"]]
    lines += [[row["surface"], *_shown(FieldError(*list(row.values())[1:])), PUBLISHED_KNOWN] for row in rows]
    said = f"At 100,000 points of the model cube; {experiment.points:,} points with normals of each surface."
    _write(experiment.out, lines, rows, experiment, said)


def _shown(error: FieldError) -> list[str]:
    shares = [f"{100 * share:.2f} %" for share in (error.relative, error.median, error.ratio)]
    return [*shares, f"{1000 * error.absolute:.2f}", f"{100 * error.sign:.2f} %"]


def _detail(experiment: Detail) -> None:
    store = ScanStore(experiment.store)
    rows: list[dict[str, Any]] = []
    pictures = []
    for name in tqdm(store.scan_names(experiment.split)[: experiment.limit], desc="detail", unit="scan"):
        scan, truth = from_store(store, name), store.ground_truth(name)
        if truth is None:
            raise ValueError(f"scan {name} has no true surface in {store.path}: choose another --split.")
        ways = _three_ways(scan, experiment.single, experiment.out / file_name(name))
        for way, mesh in ways.items():
            scores = metrics.score(["surface", "normals"], mesh, truth, scan)
            rows.append({"scan": name, "way": way, **scores["surface"], "angle": scores["normals"]["angle"]})
        pictures.append((name, [renderer.scan_to_mesh(scan), *ways.values(), truth]))
    columns = [column for column in rows[0] if column not in ("scan", "way")]
    lines = [["way", *columns]]
    for way in dict.fromkeys(row["way"] for row in rows):
        medians = (np.median([row[column] for row in rows if row["way"] == way]) for column in columns)
        lines.append([way, *(f"{median:.2f}" for median in medians)])
    titles = ("scan", *dict.fromkeys(row["way"] for row in rows), "truth")
    sheet.contact_sheet(pictures, experiment.out / "detail.png", titles=titles)
    said = f"Medians over {len(pictures)} scans by protocol `surface` (mm), and the mean angle of normals (degrees)."
    _write(experiment.out, lines, rows, experiment, said)


def _three_ways(scan: Any, single: Single, out: Path) -> dict[str, Trimesh]:
    """The same points by IGR, by the same network told distances alone, and by screened Poisson."""
    poisson = screened_poisson(scan, count=100_000, depth=9)  # first: it says at once if its package is missing
    igr = _surface(scan, single, out / "igr", DETAIL)
    told = replace(single, detail=False)
    only = LossWeights(surface=0.0, normal=0.0, eikonal=0.0, code_reg=0.0, tangent_plane=1.0, unsigned_distance=1.0)
    regressed = _surface(scan, told, out / "regression", DETAIL, only)
    return {
        "IGR": igr.mesh(resolution=single.resolution),
        "regression of distances": regressed.mesh(resolution=single.resolution),
        "screened Poisson": poisson,
    }


def _benchmark(experiment: Benchmark) -> None:
    rows: list[dict[str, Any]] = []
    pictures = []
    for case in tqdm(
        list(load_benchmark(experiment.folder, seed=experiment.single.seed)), desc="benchmark", unit="object"
    ):
        found = _surface(case.scan, experiment.single, experiment.out / case.name, DETAIL)
        mesh = found.mesh(resolution=experiment.single.resolution)
        scan = case.scan.sample(100_000, np.random.default_rng(0))
        scores = metrics.score(["srb"], mesh, case.ground_truth, scan, seed=experiment.single.seed)["srb"]
        rows.append({"object": case.name, **scores})
        pictures.append((case.name, [renderer.scan_to_mesh(case.scan), mesh]))
    columns = [column for column in rows[0] if column != "object"]
    lines = [["object", *columns, "published d_C", "published d_H"]]
    for row in rows:
        published = PUBLISHED_BENCHMARK.get(row["object"])
        beside = ["-", "-"] if published is None else [f"{value:.2f}" for value in published]
        lines.append([row["object"], *(f"{row[column]:.3f}" for column in columns), *beside])
    sheet.contact_sheet(pictures, experiment.out / "benchmark.png", titles=("scan", "surface"))
    said = (
        "Protocol `srb`, in the unit of the files: chamfer is d_C, hausdorff d_H, both to the truth; the others go "
        "from the scan only. Published: IGR with normals, table 3 of its paper, after hours on a GPU."
    )
    _write(experiment.out, lines, rows, experiment, said)


def _shape_space(experiment: ShapeSpaceExperiment) -> None:
    run = experiment.out
    lines: list[list[Any]] = []
    if not (run / "trained").exists():
        resumed = (run / "checkpoint.pt").exists()
        words = ["train", experiment.store, "--config", experiment.config, "--split", experiment.train, "--out", run]
        time = [] if experiment.minutes is None else ["--optim.max-minutes", experiment.minutes]
        lines.append(["train", "--resume", run] if resumed else [*words, *time])
    for method in experiment.methods:
        words = ["evaluate", run, experiment.store, "--method", method, "--splits", *experiment.tests]
        few = [] if experiment.limit is None else ["--limit", experiment.limit]
        more = ["--resolution", experiment.resolution, "--metrics", "surface", "one_sided"]
        lines.append([*words, *few, *more, "--out", run / method])
    lines.append(["report", run])
    for words in tqdm(lines, desc="shape space", unit="step"):
        tqdm.write(f"shapespace {shlex.join(map(str, words))}")
        said = call(words)
        if words[0] == "train":
            (run / "trained").touch()
    print(said)
    print(
        "published, D-FAUST, unseen scans, registration to reconstruction and back: IGR 1.05 and 4.92 with normals, "
        "3.75 and 12.1 without; DiGS 0.57 and 1.83 (DiGS, CVPR 2022, table 4): compare with protocol `one_sided`"
    )


def _surface(
    scan: Any, single: Single, out: Path, refine: RefineOptions, weights: LossWeights | None = None
) -> Reconstruction:
    words = expand_config_option(["--config", single.config, "--seed", str(single.seed)])
    config: TrainConfig[Any] = tyro.cli(config_class(words), args=words)
    if single.minutes is not None:
        config = replace(config, optim=replace(config.optim, max_minutes=single.minutes))
    config = config if weights is None else replace(config, weights=weights)
    run = Run(out)
    run.create({"scan": scan.name, **asdict(config)})
    return reconstruct(scan, run, config, refine if single.detail else None, seed=single.seed)


def _write(out: Path, lines: Sequence[Sequence[str]], rows: Sequence[Any], experiment: Any, said: str) -> None:
    """The table to the terminal and, with the rows, to the folder."""
    page = f"{markdown_table(lines, 1)}\n\n{said}\n"
    with replacing(out / "table.md") as part:
        part.write_text(page)
    with replacing(out / "rows.json") as part:
        part.write_text(json.dumps({"settings": asdict(experiment), "rows": rows}, indent=1, default=str))
    print(page)
    print(f"table in {out / 'table.md'}, rows in {out / 'rows.json'}")


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
