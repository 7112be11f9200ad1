"""Score a shape space on unseen scans: fit, mesh, and compare with the ground truth.

    shapespace evaluate runs/people data/people.h5 --splits unseen_poses unseen_people
    shapespace evaluate runs/people data/people.h5 --splits unseen_people --metrics surface_distance chamfer_l1 iou
    shapespace evaluate runs/people data/people.h5 --method encode
    shapespace evaluate runs/people data/people.h5 --surface field --resolution 192
    shapespace evaluate runs/people data/people.h5 --group-by data/people/captures.json
    shapespace evaluate runs/people data/people.h5 --shard 2/4

Writes `scores.json` (rows and summary), `scores.csv` and `scores.md` beside the model or to --out, the meshes (colors
and the vertex `quality` are the distance to the ground truth), and `fits.png` with the best, the median and the worst
scan. The metric to quote is `surface_distance`: exact point-to-triangle distances in millimeters. `vertex_distance`
compares registered templates (articulated family) with registrations of the same template, vertex by vertex. The same
command continues an interrupted one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import tyro
from tqdm import tqdm
from trimesh import Trimesh

from shapespace.data.store import ScanStore
from shapespace.evaluation.groups import read_labels
from shapespace.evaluation.metrics import get_metric
from shapespace.evaluation.scores import (
    EvaluationMethod,
    EvaluationOptions,
    ScoreReport,
    best_median_worst,
    evaluate,
    make_score_report,
    mesh_file,
    require_ground_truth,
)
from shapespace.fitting.fit import AdamOptions
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.refine import RefineOptions
from shapespace.fitting.result import save_fits
from shapespace.fitting.surface import Components, Surface
from shapespace.io import scan_files
from shapespace.rendering import colors, renderer, sheet
from shapespace.space import ShapeSpace
from shapespace.tools._outputs import choose_surface, fit_provenance, model_folder, model_provenance
from shapespace.tools._resume import Chunk, given_shard, resumable
from shapespace.training.run import describe_hardware

ERROR_LIMIT = 20.0  # mm: end of the color scale of errors
_ABOUT_MODEL = ("model", "family", "training_seconds", "training_steps", "num_parameters", "parameter_bytes")


def main(
    run: Annotated[Path, tyro.conf.Positional],
    store: Annotated[Path, tyro.conf.Positional],
    *,
    lm: LMOptions,
    adam: AdamOptions,
    refine: RefineOptions,
    splits: tuple[str, ...] = ("unseen_poses", "unseen_people"),
    limit: int | None = None,
    metrics: tuple[str, ...] = ("surface_distance", "normal_consistency", "fscore"),
    method: EvaluationMethod = "auto",
    resolution: int = 128,
    components: Components = "largest",
    surface: Surface = "auto",
    group_by: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
    shard: str | None = None,
) -> None:
    """Score a shape space.

    Args:
        run: Folder of a run, model file (.safetensors), or name of a packaged model.
        store: Store with the scans and their ground truth.
        lm: Settings of --method lm.
        adam: Settings of --method adam.
        refine: Settings of --method refine.
        splits: Splits of the store, each scored separately.
        limit: Number of scans of each split; all by default.
        metrics: Metrics: surface_distance, chamfer_l1, chamfer_l2, one_sided_chamfer, srb, hausdorff,
            normal_consistency, fscore, part_distance, vertex_distance, iou.
        method: Levenberg-Marquardt (lm; auto uses it where the family allows, else Adam from the encoder's code), Adam
            as in IGR (adam), encoder only (encode), fit and refinement (refine), or screened Poisson of each scan alone
            (poisson; extra `baselines`).
        resolution: Grid cells along an edge of the model cube, of meshes of the field.
        components: Connected components of each mesh of the field to keep.
        surface: What is scored: the model's template, registered to the scans, or its field; auto is the template if
            the model has one.
        group_by: JSON file with labels of the scans, `{name: {label: value}}`, such as captures.json of a synthetic
            dataset: medians by label, too.
        out: Folder for scores and meshes; the folder of the model by default.
        seed: Seed of sampled points.
        shard: Share of the scans for this process, such as 2/4; under torchrun it is given by the rank. The last
            process to finish writes the result.

    """
    space, scans = ShapeSpace.load(run), ScanStore(store)
    folder = out or model_folder(run, Path("evaluated"))
    for metric in metrics:
        get_metric(metric)  # an unknown name is an error before the work, not after
    surface = choose_surface(space, surface, method)
    if "vertex_distance" in metrics and surface != "template":
        raise ValueError(
            "vertex_distance: it scores registered templates, and the surface here is the field's. Use a space of the "
            "articulated family without --surface field."
        )
    labels = None if group_by is None else read_labels(group_by)
    names = [(split, name) for split in splits for name in scans.scan_names(split)[:limit]]
    options = EvaluationOptions(metrics, method, lm, adam, refine, resolution, components, seed, surface)
    work = _ScoreChunk(space, scans, folder, options)
    identity = {
        "verb": "evaluate",
        "model": space.model.fingerprint(),
        "scans": [(split, name, scans.provenance(name)["sha256"]) for split, name in names],
        "options": (scans.metadata, options),
    }
    with resumable(folder, identity, names, work, space, given_shard(shard)) as results:
        if results is None:
            return
        settings = {**model_provenance(run, space), "store": scans.path.name}
        settings |= {"method": method, "resolution": resolution, "components": components, "seed": seed}
        settings |= {"surface": surface}
        settings |= {"machine": describe_hardware()}
        settings |= dict.fromkeys(_ABOUT_MODEL) if method == "poisson" else _fit_settings(method, results)
        settings |= {f"{step}_seconds": _mean_seconds(step, results) for step in ("refine", "mesh")}
        if results.fits:
            save_fits(folder / "codes.safetensors", results.fits, space.model)
        report = make_score_report([row["scores"] for row in results.metadata], metrics, settings, labels)
        report.write(folder)
        _write_picture(report, scans, folder)
    report.show()
    print(f"scores in {folder / 'scores.json'}, meshes in {folder / 'meshes'}, pictures in {folder / 'fits.png'}")


@dataclass(frozen=True)
class _ScoreChunk:
    """Score some scans and write their meshes; the record of a scan has its scores and seconds."""

    space: ShapeSpace
    store: ScanStore
    folder: Path
    options: EvaluationOptions

    def __call__(self, names: Sequence[tuple[str, str]]) -> Chunk:
        scored = []
        for scan in tqdm(
            evaluate(self.space, self.store, names, self.options), total=len(names), desc="score", unit="scan"
        ):
            if scan.mesh is not None:
                self._write_mesh(scan.row["split"], scan.row["name"], scan.mesh)
            scored.append(scan)
        fits = [scan.fit for scan in scored if scan.fit is not None]
        return Chunk(fits, [{"scores": scan.row, **scan.seconds} for scan in scored])

    def _write_mesh(self, split: str, name: str, mesh: Trimesh) -> None:
        colored = colors.color_by_distance(mesh, require_ground_truth(self.store, name), limit=ERROR_LIMIT)
        scan_files.write_mesh(mesh_file(self.folder, split, name), colored)


def _fit_settings(method: str, results: Chunk) -> dict[str, Any]:
    """Provenance of the fits, with the mean seconds of all scans."""
    first = results.fits[0]
    encoded = replace(first, seconds=mean(row["encode"] for row in results.metadata))
    return fit_provenance(method, [encoded], [replace(first, seconds=mean(fit.seconds for fit in results.fits))])


def _mean_seconds(step: str, results: Chunk) -> float | None:
    seconds = [row[step] for row in results.metadata if step in row]
    return round(mean(seconds), 3) if seconds else None


def _write_picture(report: ScoreReport, store: ScanStore, folder: Path) -> None:
    """Picture of the best, the median and the worst scan of each split: scan, fit, error in color, ground truth."""
    rows = []
    for split in report.summary:
        for rank, row in best_median_worst(report.rows, split).items():
            name = row["name"]
            predicted = scan_files.read_mesh(mesh_file(folder, split, name))
            scan = renderer.scan_to_mesh(store.scan(name))
            colored = colors.color_by_quality(predicted, limit=ERROR_LIMIT)
            rows.append((f"{split}, {rank}: {name}", [scan, predicted, colored, require_ground_truth(store, name)]))
    if rows:
        titles = ("scan", "fit", "distance to the ground truth", "ground truth")
        sheet.contact_sheet(rows, folder / "fits.png", titles=titles, limit=ERROR_LIMIT)


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
