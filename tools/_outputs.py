"""What `encode` and `fit` leave: codes, a record, and meshes; or one mesh on standard output."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from tqdm import tqdm

from shapespace.evaluation import metrics, scores
from shapespace.fitting.quality import OOD_THRESHOLD, FitQuality, assess
from shapespace.fitting.result import Fit, save_fits
from shapespace.geometry.scan import Scan
from shapespace.interpolation import InterpolationPath
from shapespace.io import scan_files, units
from shapespace.io.atomic import replacing
from shapespace.io.scan_files import file_name
from shapespace.models import registry
from shapespace.rendering import sheet
from shapespace.rendering.animation import write_animated_glb
from shapespace.rendering.colors import color_by_value
from shapespace.space import Components, ShapeSpace
from shapespace.tools._inputs import PIPE, ScanInput
from shapespace.training.run import Run

ANIMATION = "sequence.glb"


@dataclass(frozen=True)
class MeshOptions:
    """How to mesh what was found."""

    resolution: int = 128
    """Cells of the mesh's grid along the model cube's edge; 0 makes no meshes."""
    components: Components = "largest"
    """Keep the largest component of each mesh, or all."""
    uncertainty: bool = False
    """Tell in each mesh how sure it is: colours, pale to dark at 3 cm, and in PLY the vertex `quality`, the standard
    deviation of the surface in the unit of the file. For fits by lm."""
    posterior_samples: int = 0
    """So many other bodies that the scan may be of, drawn from the posterior, as NAME.sample0.ply and so on. For fits
    by lm."""


def output_path(out: Path | None, scans: Sequence[str], folder: str, meshing: MeshOptions) -> Path:
    """Where results go: what was said, else standard output (-) for the scan of standard input, else the folder.

    Raises `ValueError` if standard output cannot take them; nobody should hear so after the work.
    """
    where = out if out is not None else Path(PIPE if list(scans) == [PIPE] else folder)
    if where != Path(PIPE):
        return where
    if len(scans) != 1 or not meshing.resolution or meshing.posterior_samples:
        raise ValueError(
            f"standard output takes one mesh, and {len(scans)} scans with --resolution {meshing.resolution} and "
            f"--posterior-samples {meshing.posterior_samples} are asked for. Say --out FOLDER."
        )
    if sys.stdout.isatty():
        raise ValueError("the mesh would go to the terminal, as a binary PLY. Add > mesh.ply, or --out FOLDER.")
    return where


def check_unique_names(names: Sequence[str]) -> None:
    """Raise `ValueError` if a result would be written over another's."""
    file, count = Counter(map(file_name, names)).most_common(1)[0]
    if count > 1:
        ours = ", ".join(name for name in names if file_name(name) == file)
        raise ValueError(
            f"{count} scans ({ours}) would be written as {file}.ply, one over the other. Fit them one by one, each to "
            "an --out of its own."
        )


def write_meshes(
    fits: Sequence[Fit],
    scans: Sequence[Scan],
    space: ShapeSpace,
    out: Path,
    source: ScanInput,
    meshing: MeshOptions,
    refined: Iterable[ShapeSpace] | None = None,
    fps: float | None = None,
    *,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Write the meshes, which lie where the scans do, and give the records of the fits; one mesh alone if `out` is -.

    The meshes are those of `space`, unless each scan has a `refined` space of its own. Samples are drawn from `space`
    by `seed`. Frames of a sequence, `fps` a second, are animated too.
    """
    unit, up = source.metres, source.up
    own = repeat(space) if refined is None else refined
    meshes = (
        its.mesh(fit, resolution=meshing.resolution, components=meshing.components) if meshing.resolution else None
        for fit, its in zip(fits, own, strict=False)
    )
    records, film = [], []
    for fit, scan, mesh in zip(
        tqdm(fits, desc="mesh", unit="scan", disable=len(fits) < 2), scans, meshes, strict=False
    ):
        if mesh is not None and meshing.uncertainty:
            mesh = color_by_value(mesh, space.uncertainty(fit, mesh), limit=30.0)
        if mesh is not None and fps is not None:
            film.append(mesh)
        records.append(_record(fit, assess(fit.code, space.model.prior, fit.residuals, scan, mesh), source))
        if mesh is not None and out == Path(PIPE):
            sys.stdout.buffer.write(scan_files.mesh_bytes(mesh, unit=unit, up=up))
        elif mesh is not None:
            scan_files.write_mesh(out / f"{file_name(fit.name)}.ply", mesh, unit=unit, up=up)
            for other in (
                space.sample_posterior(fit, meshing.posterior_samples, seed=seed) if meshing.posterior_samples else []
            ):
                drawn = space.mesh(other, resolution=meshing.resolution, components=meshing.components)
                scan_files.write_mesh(out / f"{file_name(other.name)}.ply", drawn, unit=unit, up=up)
    if film and fps and out != Path(PIPE):
        write_animated_glb(film, out / ANIMATION, seconds=(len(film) - 1) / fps, back=False)
        print(f"{sum(fit.interpolated for fit in fits)} of {len(fits)} frames bridged, animation in {out / ANIMATION}")
    return records


def write_results(
    fits: Sequence[Fit],
    records: Sequence[Mapping[str, Any]],
    space: ShapeSpace,
    out: Path,
    meshing: MeshOptions,
) -> None:
    """Write codes and records, and say where everything is; nothing of it if `out` is -."""
    if out == Path(PIPE):
        return
    save_fits(out / "codes.safetensors", fits, space.model)
    with replacing(out / "fits.json") as part:
        part.write_text(json.dumps(list(records), indent=1))
    if meshing.resolution:
        print(f"{len(fits) * (1 + meshing.posterior_samples)} meshes in {out}")
    print(f"{len(fits)} codes in {out / 'codes.safetensors'}")


def warn_about_fits(records: Sequence[Mapping[str, Any]], *, strict: bool = False) -> None:
    """Name scans that do not look like those of the space, and unsure fits; `strict` makes an error of either."""
    odd = [f"{record['name']} ({record.get('oddness', np.inf):.0f})" for record in records if not record["plausible"]]
    unsure = [f"{record['name']} ({record['coverage']:.0%})" for record in records if record.get("unsure")]
    said = []
    if odd:
        said.append(
            f"{len(odd)} of {len(records)} scans do not look like those that the space was learned from, by the "
            f"oddness of their codes (1 for training scans; above {OOD_THRESHOLD:g} is odd): {_some(odd)}. Is it a person, "
            "without floor and furniture? Upright? If not, --lm.alignment rotation finds how it lies."
        )
    if unsure:
        said.append(
            f"{len(unsure)} of {len(records)} fits are unsure, since their codes are too odd for the share of the "
            f"surface that was seen: {_some(unsure)}. What was not seen may be wrong: add a view from another side."
        )
    if said and strict:
        raise ValueError(" ".join([*said, "What was found is written."]))
    for sentence in said:
        print(f"note: {sentence}", file=sys.stderr)


def _some(named: Sequence[str]) -> str:
    return ", ".join(named[:5]) + (", ..." if len(named) > 5 else "")


def _record(fit: Fit, verdict: FitQuality, source: ScanInput) -> dict[str, Any]:
    """Numbers that are not finite are left out."""
    row = {
        "residual_median_mm": round(verdict.median * 1000, 3),
        "residual_p95_mm": round(verdict.p95 * 1000, 3),
        "oddness": round(verdict.ood_score, 2),
        "coverage": round(verdict.coverage, 3),
    }
    known = {name: value for name, value in row.items() if np.isfinite(value)}
    told = {
        "name": fit.name,
        "seconds": round(fit.seconds, 3),
        **known,
        "plausible": verdict.in_distribution,
        "unsure": verdict.low_confidence,
    }
    bridged = {"bridged": True} if fit.interpolated else {}
    return {**told, **bridged, "from_model": _from_model(fit, source)}


def _from_model(fit: Fit, source: ScanInput) -> dict[str, object]:
    """How the shape lies in the file of its scan: x there = scale * rotation @ (x of the model) + translation."""
    frame = fit.frame
    turn = np.eye(3) if frame.rotation is None else frame.rotation.double().numpy()
    (centre,) = units.from_world(frame.center.double().numpy()[None], unit=source.metres, up=source.up)
    return {
        "rotation": units.from_world(turn, up=source.up).T.round(6).tolist(),
        "translation": centre.tolist(),
        "scale": float(frame.scale) / source.metres,
    }


def write_interpolation(
    space: ShapeSpace,
    a: Fit,
    b: Fit,
    out: Path,
    *,
    steps: int = 9,
    path: InterpolationPath = "linear",
    resolution: int = 128,
    format: Literal["ply", "obj"] = "obj",
    unit: float = 1.0,
    up: units.Up = "y",
) -> None:
    """Mesh the interpolation between two fits; write the meshes, an animated GLB, a contact sheet and `path.json`.

    `unit` (m) and `up` are those of the files; `steps` includes both ends.
    """
    meshes = space.interpolate(a, b, steps, path=path, resolution=resolution)
    for index, mesh in enumerate(meshes):
        scan_files.write_mesh(out / f"{index:03d}.{format}", mesh, unit=unit, up=up)
    write_animated_glb(meshes, out / "interpolation.glb")
    area, volume = metrics.areas(meshes).tolist(), metrics.volumes(meshes).tolist()
    sheet.contact_sheet(
        [(f"{a.name} to {b.name}, {path}", meshes)],
        out / "interpolation.png",
        curves={"area (m²)": area, "volume (m³)": volume},
    )
    record = {"a": a.name, "b": b.name, "path": path, "area_m2": area, "volume_m3": volume}
    record |= {"mesh_format": format, "unit": unit, "up": up, "sa_sigma": metrics.sa_sigma(meshes)}
    scores.write_results(out, "path", record)
    print(f"{steps} meshes in {out}, animation in {out / 'interpolation.glb'}, picture in {out / 'interpolation.png'}")


Item = TypeVar("Item")


def model_provenance(run: Path, space: ShapeSpace) -> dict[str, Any]:
    """Which model, how long it was trained (none for one that is in no run), and what of it new scans need.

    The codes of the training scans are not counted among the weights: no new scan needs them.
    """
    home = Run(run if run.is_dir() else run.parent)
    in_run = run.is_dir() or (run.exists() and run.samefile(home.weights))
    progress = home.progress() if in_run else None
    kept = [tensor for name, tensor in space.model.state_dict().items() if not name.endswith("table.codes")]
    return {
        "run": home.folder.resolve().name if in_run else run.stem,
        "model": space.model.fingerprint(),
        "family": registry.family_name(space.config),
        "training_seconds": None if progress is None else round(progress.seconds, 1),
        "training_steps": None if progress is None else progress.steps,
        "num_parameters": sum(tensor.numel() for tensor in kept),
        "parameter_bytes": sum(tensor.numel() * tensor.element_size() for tensor in kept),
    }


def fit_provenance(method: str, encoded: Sequence[Fit], fits: Sequence[Fit]) -> dict[str, Any]:
    """How the codes were found (what `auto` came to), the seconds that one took, and how many numbers it has."""
    auto = "adam" if fits[0].covariance is None else "lm"
    return {
        "method": auto if method == "auto" else method,
        "encode_seconds": round(encoded[0].seconds, 4),
        "fit_seconds": None if method == "encode" else round(fits[0].seconds, 3),
        "code_dim": fits[0].code.flat.shape[1],
    }


def timed(items: Iterable[Item], seconds: list[float]) -> Iterator[Item]:
    """The same items; each leaves the seconds that it took to come."""
    coming = iter(items)
    while True:
        began = time.perf_counter()
        try:
            item = next(coming)
        except StopIteration:
            return
        seconds.append(time.perf_counter() - began)
        yield item
