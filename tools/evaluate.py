"""Score a shape space on scans that it has never seen: fit, mesh, and compare with the true surfaces.

    shapespace evaluate runs/people data/people.h5 --splits unseen_poses unseen_people
    shapespace evaluate runs/people data/people.h5 --splits unseen_people --metrics surface l1 normals fscore iou
    shapespace evaluate runs/people data/people.h5 --method encode      (without optimisation)
    shapespace evaluate runs/people data/people.h5 --shard 2/4          (its part; see docs/trust.md)

Writes `scores.json` (rows and `summary`), `scores.csv` and `scores.md` beside the model, or under --out, with the
meshes that were scored (colours and the vertex `quality` are the distance to the truth) and a picture of the best, the
median and the worst. Protocol `surface` is the one to quote: exact point-to-triangle distances, in millimetres. The
same line goes on from where it was killed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm
from trimesh import Trimesh

from shapespace.data.store import ScanStore
from shapespace.evaluation.baselines import screened_poisson
from shapespace.evaluation.metrics import get_metric
from shapespace.evaluation.scores import ScoreReport, best_median_worst, make_score_report, mesh_file, score_meshes
from shapespace.fitting.fit import AdamOptions
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.refine import RefineOptions
from shapespace.fitting.result import Fit, save_fits
from shapespace.io import scan_files
from shapespace.rendering import colors, renderer, sheet
from shapespace.space import Components, Method, ShapeSpace
from shapespace.tools._inputs import from_store
from shapespace.tools._outputs import fit_provenance, model_provenance, timed
from shapespace.tools._resume import Chunk, resumable
from shapespace.training.run import describe_hardware

Way = Literal["auto", "lm", "adam", "encode", "refine", "poisson"]

LIMIT = 20.0  # mm: where the colours of errors end
_OF_SPACES = ("model", "family", "training_seconds", "training_steps", "num_parameters", "parameter_bytes")


def main(
    run: Annotated[Path, tyro.conf.Positional],
    store: Annotated[Path, tyro.conf.Positional],
    *,
    lm: LMOptions,
    adam: AdamOptions,
    refine: RefineOptions,
    splits: tuple[str, ...] = ("unseen_poses", "unseen_people"),
    limit: int | None = None,
    metrics: tuple[str, ...] = ("surface", "normals", "fscore"),
    method: Way = "auto",
    resolution: int = 128,
    components: Components = "largest",
    out: Path | None = None,
    seed: int = 0,
    shard: str | None = None,
) -> None:
    """Score a shape space.

    Args:
        run: Folder of a run, or a model's .safetensors file.
        store: The store with the scans and their true surfaces.
        lm: Settings of --method lm.
        adam: Settings of --method adam.
        refine: Settings of --method refine.
        splits: Splits of the store to score, each by itself.
        limit: Score only the first so many scans of each split.
        protocols: What to measure: surface, l1, sq_sum, one_sided, srb, hausdorff, normals, fscore, parts, iou.
        method: Fit by Levenberg-Marquardt (lm; auto is that where the family allows it, and otherwise Adam from the
            encoder's code), fit as IGR does (adam), encode only, or fit and then refine; or screened Poisson of each
            scan by itself (extra baselines), for which the space only lends its scale.
        resolution: Cells of the mesh's grid along the model cube's edge.
        components: Keep the largest component of each mesh, or all.
        out: Folder for scores and meshes; beside the model by default.
        seed: Of the points that are drawn.
        shard: Which share of the scans this process scores, as 2/4: the second of four. Whichever of them is the last
            to end writes the result.

    """
    space, packed = ShapeSpace.load(run), ScanStore(store)
    folder = out or (run if run.is_dir() else run.parent if run.is_file() else Path("evaluated"))
    for protocol in metrics:
        get_metric(protocol)  # a name that there is not is told at once
    names = [(split, name) for split in splits for name in packed.scan_names(split)[:limit]]

    work = _Work(space, packed, folder, method, lm, adam, refine, metrics, resolution, components, seed)
    about = {
        "verb": "evaluate",
        "model": space.model.fingerprint(),
        "scans": [(split, name, packed.provenance(name)["sha256"]) for split, name in names],
        "options": (packed.metadata, metrics, method, lm, adam, refine, resolution, components, seed),
    }
    with resumable(folder, about, names, work, space, shard) as whole:
        if whole is None:
            return
        settings = {**model_provenance(run, space), "store": packed.path.name}
        settings |= {"method": method, "resolution": resolution, "components": components, "seed": seed}
        settings |= {"machine": describe_hardware()}
        settings |= dict.fromkeys(_OF_SPACES) if method == "poisson" else _of_fits(method, whole)
        settings |= _seconds(method, whole)
        if whole.fits:
            save_fits(folder / "codes.safetensors", whole.fits, space.model)
        told = make_score_report([row["scores"] for row in whole.metadata], metrics, settings)
        told.write(folder)
        _draw(told, packed, folder)
    told.show()
    print(f"scores in {folder / 'scores.json'}, meshes in {folder / 'meshes'}, pictures in {folder / 'fits.png'}")


@dataclass(frozen=True)
class _Work:
    """Fit, mesh and score some scans; the meshes are written. Of each scan its scores are told, and its seconds."""

    space: ShapeSpace
    store: ScanStore
    folder: Path
    method: Way
    lm: LMOptions
    adam: AdamOptions
    refine: RefineOptions
    protocols: Sequence[str]
    resolution: int
    components: Components
    seed: int

    def __call__(self, names: Sequence[tuple[str, str]]) -> Chunk:
        scans = [from_store(self.store, name) for _, name in names]
        took: dict[str, list[float]] = {"encode": [], "refine": [], "mesh": []}
        fits = list[Fit]()
        meshes: Iterator[Trimesh | None]
        if self.method == "poisson":
            meshes = map(screened_poisson, scans)
        else:
            fits = self.space.encode_scans(scans, seed=self.seed)
            took["encode"] += [fit.seconds for fit in fits]
            if self.method != "encode":
                way: Method = "lm" if self.method == "refine" else self.method
                fits = self.space.fit_scans(scans, method=way, lm=self.lm, adam=self.adam, seed=self.seed)
            refined = self.method == "refine"
            each = repeat(self.space, len(fits))
            spaces = self.space.refine(scans, fits, self.refine, seed=self.seed) if refined else each
            own = zip(timed(spaces, took["refine"]), fits, strict=True)
            meshes = (_mesh(its, fit, self.resolution, self.components) for its, fit in own)
        found = self._written(zip(names, timed(meshes, took["mesh"]), strict=True))
        rows = score_meshes(found, self.store, self.protocols, seed=self.seed)
        told: list[dict[str, Any]] = [
            {"scores": row} for row in tqdm(rows, total=len(names), desc="score", unit="scan")
        ]
        for word, seconds in took.items():
            told = [{**row, word: its} for row, its in zip(told, seconds, strict=True)] if seconds else told
        return Chunk(fits, told)

    def _written(
        self, found: Iterable[tuple[tuple[str, str], Trimesh | None]]
    ) -> Iterator[tuple[str, str, Trimesh | None]]:
        for (split, name), mesh in found:
            if mesh is not None:
                truth = self.store.ground_truth(name)
                told = mesh if truth is None else colors.color_by_distance(mesh, truth, limit=LIMIT)
                scan_files.write_mesh(mesh_file(self.folder, split, name), told)
            yield split, name, mesh


def _of_fits(method: str, whole: Chunk) -> dict[str, Any]:
    """What `of_fits` tells, with the seconds of a scan as means over all."""
    first = whole.fits[0]
    encoded = replace(first, seconds=mean(row["encode"] for row in whole.metadata))
    return fit_provenance(method, [encoded], [replace(first, seconds=mean(fit.seconds for fit in whole.fits))])


def _seconds(method: str, whole: Chunk) -> dict[str, float | None]:
    """Means per scan; the time in which a mesh came includes that in which its space was refined."""
    refining = mean(row["refine"] for row in whole.metadata) if method == "refine" else 0.0
    return {
        "refine_seconds": round(refining, 3) if method == "refine" else None,
        "mesh_seconds": round(mean(row["mesh"] for row in whole.metadata) - refining, 3),
    }


def _draw(report: ScoreReport, store: ScanStore, folder: Path) -> None:
    """Picture the best, the median and the worst scan of each split: scan, fit, distance to the truth, truth."""
    pictures = []
    for split in report.summary:
        for word, row in best_median_worst(report.rows, split).items():
            name = row["name"]
            found = scan_files.read_mesh(mesh_file(folder, split, name))
            truth = store.ground_truth(name)
            assert truth is not None  # evaluate refuses scans without one
            scan = renderer.scan_to_mesh(from_store(store, name))
            painted = colors.color_by_quality(found, limit=LIMIT)
            pictures.append((f"{split}, {word}: {name}", [scan, found, painted, truth]))
    if pictures:
        titles = ("scan", "fit", "distance of the fit to the truth", "truth")
        sheet.contact_sheet(pictures, folder / "fits.png", titles=titles, limit=LIMIT)


def _mesh(space: ShapeSpace, fit: Fit, resolution: int, components: Components) -> Trimesh | None:
    """The surface, or nothing where the field has none: that is a result too, and it is counted."""
    try:
        return space.mesh(fit, resolution=resolution, components=components)
    except ValueError:
        return None


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
