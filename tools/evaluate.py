"""Score a shape space on scans that it has never seen: fit, mesh, and compare with the true surfaces.

    shapespace evaluate runs/people data/people.h5 --splits unseen_poses unseen_people
    shapespace evaluate runs/people data/people.h5 --splits unseen_people --protocols surface l1 normals fscore iou
    shapespace evaluate runs/people data/people.h5 --method encode      (without optimisation)

Writes `scores.json` (rows and `summary`), `scores.csv` and `scores.md` beside the model, or under --out, with the
meshes that were scored (colours and the vertex `quality` are the distance to the truth) and a picture of the best, the
median and the worst. Protocol `surface` is the one to quote: exact point-to-triangle distances, in millimetres.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from statistics import mean
from typing import Annotated, Literal

import tyro
from trimesh import Trimesh

from shapespace import picture
from shapespace.baselines import screened_poisson
from shapespace.data import files
from shapespace.data.store import Store
from shapespace.evaluate import evaluate
from shapespace.fit import AdamOptions, LMOptions
from shapespace.machine import machine
from shapespace.refine import RefineOptions
from shapespace.report import Report, mesh_file, notable
from shapespace.space import Components, Fit, Method, ShapeSpace, save_fits
from shapespace.tools._inputs import from_store
from shapespace.tools._settings import of_fits, of_model, timed

LIMIT = 20.0  # mm: where the colours of errors end
_OF_SPACES = ("model", "family", "trained_seconds", "trained_steps", "weight_numbers", "weight_bytes")


def main(
    run: Annotated[Path, tyro.conf.Positional],
    store: Annotated[Path, tyro.conf.Positional],
    *,
    lm: LMOptions,
    adam: AdamOptions,
    refine: RefineOptions,
    splits: tuple[str, ...] = ("unseen_poses", "unseen_people"),
    limit: int | None = None,
    protocols: tuple[str, ...] = ("surface", "normals", "fscore"),
    method: Literal["auto", "lm", "adam", "encode", "refine", "poisson"] = "auto",
    resolution: int = 128,
    components: Components = "largest",
    out: Path | None = None,
    seed: int = 0,
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

    """
    space, packed = ShapeSpace.load(run), Store(store)
    folder = out or (run if run.is_dir() else run.parent if run.is_file() else Path("evaluated"))
    names = [(split, name) for split in splits for name in packed.select(split)[:limit]]
    scans = [from_store(packed, name) for _, name in names]
    settings = {**of_model(run, space), "store": packed.path.name}
    settings |= {"method": method, "resolution": resolution, "components": components, "seed": seed}
    settings |= {"machine": machine()}
    refining, meshing = list[float](), list[float]()
    meshes: Iterator[Trimesh | None]
    if method == "poisson":
        settings |= dict.fromkeys(_OF_SPACES)
        meshes = map(screened_poisson, scans)
    else:
        encoded = fits = space.encode_scans(scans, seed=seed)
        if method != "encode":
            way: Method = "lm" if method == "refine" else method
            fits = space.fit_scans(scans, method=way, lm=lm, adam=adam, seed=seed)
        settings |= of_fits(method, encoded, fits)
        save_fits(folder / "codes.safetensors", fits, space)
        spaces = space.refine(scans, fits, refine, seed=seed) if method == "refine" else repeat(space, len(fits))
        own = zip(timed(spaces, refining), fits, strict=True)
        meshes = (_mesh(its, fit, resolution, components) for its, fit in own)

    def found() -> Iterator[tuple[str, str, Trimesh | None]]:
        for (split, name), mesh in zip(names, timed(meshes, meshing), strict=True):
            if mesh is not None:
                truth = packed.truth(name)
                told = mesh if truth is None else picture.paint_distance(mesh, truth, limit=LIMIT)
                files.write_mesh(mesh_file(folder, split, name), told)
            yield split, name, mesh

    report = evaluate(found(), packed, protocols, total=len(names), settings=settings, seed=seed)
    report = replace(report, settings=settings | _seconds(method, refining, meshing))
    report.write(folder)
    _draw(report, packed, folder)
    report.show()
    print(f"scores in {folder / 'scores.json'}, meshes in {folder / 'meshes'}, pictures in {folder / 'fits.png'}")


def _seconds(method: str, refining: Sequence[float], meshing: Sequence[float]) -> dict[str, float | None]:
    """Means per scan; the time in which a mesh came includes that in which its space was refined."""
    of_refining = mean(refining) if method == "refine" else 0.0
    return {
        "refine_seconds": round(of_refining, 3) if method == "refine" else None,
        "mesh_seconds": round(mean(meshing) - of_refining, 3),
    }


def _draw(report: Report, store: Store, folder: Path) -> None:
    """Picture the best, the median and the worst scan of each split: scan, fit, distance to the truth, truth."""
    pictures = []
    for split in report.summary:
        for word, row in notable(report.rows, split).items():
            name = row["name"]
            found = files.read_mesh(mesh_file(folder, split, name))
            truth = store.truth(name)
            assert truth is not None  # evaluate refuses scans without one
            scan = picture.mesh_of_scan(from_store(store, name))
            painted = picture.paint_quality(found, limit=LIMIT)
            pictures.append((f"{split}, {word}: {name}", [scan, found, painted, truth]))
    if pictures:
        titles = ("scan", "fit", "distance of the fit to the truth", "truth")
        picture.contact_sheet(pictures, folder / "fits.png", titles=titles, limit=LIMIT)


def _mesh(space: ShapeSpace, fit: Fit, resolution: int, components: Components) -> Trimesh | None:
    """The surface, or nothing where the field has none: that is a result too, and it is counted."""
    try:
        return space.mesh(fit, resolution=resolution, components=components)
    except ValueError:
        return None


if __name__ == "__main__":
    from shapespace.tools.__main__ import run as run_tool

    run_tool(main)
