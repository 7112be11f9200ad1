"""Results of commands: meshes, codes and records of fits, interpolations, and provenance for scores."""

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
from trimesh import Trimesh

from shapespace.evaluation import metrics, scores
from shapespace.fitting.checks import assess_fit, quality_findings
from shapespace.fitting.quality import FitQuality
from shapespace.fitting.result import Fit, save_fits
from shapespace.fitting.surface import Components, Surface
from shapespace.geometry.scan import Scan
from shapespace.interpolation import InterpolationPath, choose_path
from shapespace.io import scan_files, units
from shapespace.io.atomic import replacing
from shapespace.io.scan_files import MeshFormat, file_name
from shapespace.models import registry
from shapespace.rendering import sheet
from shapespace.rendering.animation import write_animated_glb
from shapespace.rendering.colors import color_by_value
from shapespace.space import ShapeSpace
from shapespace.tools._inputs import MAX_LISTED, PIPE, ScanInput, listed
from shapespace.training.run import Run

ANIMATION = "sequence.glb"
UNCERTAINTY_LIMIT = 30.0  # mm: end of the color scale
STATURE = "unlikely-stature"


@dataclass(frozen=True)
class MeshOptions:
    """How to mesh the fits."""

    resolution: int = 128
    """Cells of the grid along the model cube's edge, of meshes of the field; 0 writes no meshes at all."""
    components: Components = "largest"
    """Components of each mesh of the field that are written: the largest, or all."""
    surface: Surface = "auto"
    """What is meshed: the model's template, registered to the scan, whose vertices correspond across the scans, or its
    field by marching cubes; auto is the template if the model has one (articulated family)."""
    uncertainty: bool = False
    """Standard deviation of the surface in each mesh: as colors (pale to dark at 3 cm) and, in PLY, as the vertex
    property `quality` (unit of the file). It needs fits by lm."""
    posterior_samples: int = 0
    """Number of further bodies that the scan may show, sampled from the posterior (NAME.sample0.ply, ...). They need
    fits by lm."""


def output_path(out: Path | None, scans: Sequence[str], folder: str, meshing: MeshOptions) -> Path:
    """Path of the results: `out`, or else standard output (-) for a scan from standard input, or else `folder`.

    Raises `ValueError` if standard output cannot take them.
    """
    where = out if out is not None else Path(PIPE if list(scans) == [PIPE] else folder)
    if where != Path(PIPE):
        return where
    if len(scans) != 1 or not meshing.resolution or meshing.posterior_samples:
        raise ValueError(
            f"standard output takes one mesh, not {len(scans)} scans with --resolution {meshing.resolution} and "
            f"--posterior-samples {meshing.posterior_samples}. Pass --out FOLDER."
        )
    if sys.stdout.isatty():
        raise ValueError("standard output is a terminal, and the mesh is binary PLY. Add > mesh.ply, or --out FOLDER.")
    return where


def choose_surface(space: ShapeSpace, surface: Surface, method: str = "auto") -> Literal["field", "template"]:
    """The surface that is meshed; `ValueError` if it is the template and the model or the method has none."""
    has_detail = method in ("refine", "poisson")
    if surface == "auto":
        return "field" if has_detail else space.choose_surface(surface)
    if surface == "field":
        return surface
    if has_detail:
        raise ValueError(
            f"template: surfaces of --method {method} are in no template. Remove --method {method}, or mesh the field "
            "with `fit`."
        )
    _ = space.registration  # raises
    return surface


def model_folder(run: Path, default: Path) -> Path:
    """Folder of a run or of a model file; `default` for a packaged model."""
    return run if run.is_dir() else run.parent if run.is_file() else default


def check_unique_names(names: Sequence[str]) -> None:
    """Raise `ValueError` if two results have the same file name."""
    file, count = Counter(map(file_name, names)).most_common(1)[0]
    if count > 1:
        same = ", ".join(name for name in names if file_name(name) == file)
        raise ValueError(
            f"{count} scans ({same}) have the same output file {file}.ply. Use a separate command and --out for each."
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
    format: MeshFormat = "ply",
) -> list[dict[str, Any]]:
    """Write the meshes at the positions of the scans and return the records of the fits.

    If `out` is -, the only mesh goes to standard output. `refined` has one space for each scan, which then makes the
    mesh; posterior samples come from `space`, drawn with `seed`. With `fps` the meshes are the frames of an animation.
    """
    unit, up = source.meters, source.up
    spaces = repeat(space) if refined is None else refined
    meshes = (_mesh(own, fit, meshing) if meshing.resolution else None for fit, own in zip(fits, spaces, strict=False))
    records, frames = [], []
    for fit, scan, mesh in zip(
        tqdm(fits, desc="mesh", unit="scan", disable=len(fits) < 2), scans, meshes, strict=False
    ):
        if mesh is not None and meshing.uncertainty:
            mesh = color_by_value(mesh, space.uncertainty(fit, mesh), limit=UNCERTAINTY_LIMIT)
        if mesh is not None and fps is not None:
            frames.append(mesh)
        records.append(_record(fit, assess_fit(space.model, fit, scan), source))
        if mesh is not None and out == Path(PIPE):
            data = scan_files.mesh_bytes(mesh, Path(f"mesh.{format}"), unit=unit, up=up, origin=fit.origin)
            sys.stdout.buffer.write(data)
        elif mesh is not None:
            path = out / f"{file_name(fit.name)}.{format}"
            scan_files.write_mesh(path, mesh, unit=unit, up=up, origin=fit.origin)
            _write_samples(space, fit, out, source, meshing, seed)
    if frames and fps and out != Path(PIPE):
        write_animated_glb(frames, out / ANIMATION, seconds=(len(frames) - 1) / fps, back=False)
        interpolated = sum(fit.interpolated for fit in fits)
        print(f"{interpolated} of {len(fits)} frames interpolated, animation in {out / ANIMATION}")
    return records


def _mesh(space: ShapeSpace, fit: Fit, meshing: MeshOptions) -> Trimesh:
    return space.mesh(fit, resolution=meshing.resolution, components=meshing.components, surface=meshing.surface)


def _write_samples(space: ShapeSpace, fit: Fit, out: Path, source: ScanInput, meshing: MeshOptions, seed: int) -> None:
    if not meshing.posterior_samples:
        return
    for sample in space.sample_posterior(fit, meshing.posterior_samples, seed=seed):
        mesh = _mesh(space, sample, meshing)
        path = out / f"{file_name(sample.name)}.ply"
        scan_files.write_mesh(path, mesh, unit=source.meters, up=source.up, origin=sample.origin)


def write_results(
    fits: Sequence[Fit],
    records: Sequence[Mapping[str, Any]],
    space: ShapeSpace,
    out: Path,
    meshing: MeshOptions,
) -> None:
    """Write codes and records, and print where the results are; nothing if `out` is -."""
    if out == Path(PIPE):
        return
    save_fits(out / "codes.safetensors", fits, space.model)
    with replacing(out / "fits.json") as part:
        part.write_text(json.dumps(list(records), indent=1))
    if meshing.resolution:
        print(f"{len(fits) * (1 + meshing.posterior_samples)} meshes in {out}")
    print(f"{len(fits)} codes in {out / 'codes.safetensors'}")


def warn_about_fits(records: Sequence[Mapping[str, Any]], *, strict: bool = False, can_rotate: bool = True) -> None:
    """Print notes about fits that are out of distribution, have low confidence or an unlikely stature.

    The first two are an error if `strict`. `can_rotate`: the command has the option `--lm.alignment`.
    """
    outside = [
        f"{record['name']} ({record.get('ood_score', np.inf):.1f})"
        for record in records
        if not record["in_distribution"]
    ]
    unsure = [f"{record['name']} ({record['coverage']:.0%})" for record in records if record.get("low_confidence")]
    notes = []
    if outside:
        notes.append(
            f"{len(outside)} of {len(records)} scans are out of distribution: {listed(outside)} (ood score; training "
            f"scans are near 1). They are probably not people alone, or not upright: "
            f"--up names another vertical axis, {'' if can_rotate else 'the command fit with '}"
            f"{'--lm.alignment full' if can_rotate else 'an alignment'} fits rotated scans."
        )
    if unsure:
        notes.append(
            f"{len(unsure)} of {len(records)} fits have low confidence: the scan covers little of the surface for an "
            f"unusual code ({listed(unsure)}). The unseen side may be wrong; add another view."
        )
    if notes and strict:
        raise ValueError(" ".join([*notes, "All results are written."]))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    sizes = [found["message"] for record in records for found in record.get("findings", ()) if found["code"] == STATURE]
    for message in sizes[:MAX_LISTED]:
        print(f"note: {message} [{STATURE}]", file=sys.stderr)
    if len(sizes) > MAX_LISTED:
        print(f"note: {len(sizes) - MAX_LISTED} more scans with this finding [{STATURE}]", file=sys.stderr)


def _record(fit: Fit, quality: FitQuality, source: ScanInput) -> dict[str, Any]:
    """The entry of a fit in fits.json; values that are not finite are left out."""
    numbers = {
        "residual_median_mm": round(quality.median * 1000, 3),
        "residual_p95_mm": round(quality.p95 * 1000, 3),
        "ood_score": round(quality.ood_score, 2),
        "ood_limit": quality.ood_limit,
        "coverage": round(quality.coverage, 3),
        "stature": round(quality.stature, 3),
    }
    record = {
        "name": fit.name,
        "seconds": round(fit.seconds, 3),
        **{key: value for key, value in numbers.items() if np.isfinite(value)},
        "in_distribution": quality.in_distribution,
        "low_confidence": quality.low_confidence,
    }
    interpolated = {"interpolated": True} if fit.interpolated else {}
    findings = [finding.record(fit.name) for finding in (*fit.findings, *quality_findings(quality))]
    return {**record, **interpolated, "findings": findings, "model_to_file": _model_to_file(fit, source)}


def _model_to_file(fit: Fit, source: ScanInput) -> dict[str, object]:
    """Similarity transform from the model frame to the file: x_file = scale * rotation @ x_model + translation."""
    frame = fit.frame
    rotation = np.eye(3) if frame.rotation is None else frame.rotation.double().numpy()
    center = frame.center.double().numpy()[None]
    (translation,) = units.from_world(center, unit=source.meters, up=source.up, origin=fit.origin)
    return {
        "rotation": units.from_world(rotation, up=source.up).T.round(6).tolist(),
        "translation": translation.tolist(),
        "scale": float(frame.scale) / source.meters,
    }


def write_interpolation(
    space: ShapeSpace,
    a: Fit,
    b: Fit,
    out: Path,
    *,
    steps: int = 9,
    path: InterpolationPath = "auto",
    resolution: int = 128,
    surface: Surface = "auto",
    format: Literal["ply", "obj"] = "obj",
    unit: float = 1.0,
    up: units.Up = "y",
) -> None:
    """Mesh the interpolation between two fits; write the meshes, an animated GLB, a contact sheet and `path.json`.

    `unit` (m) and `up` are those of the files; `steps` includes both ends. Meshes of the template are one mesh with
    morph targets in the GLB.
    """
    path, surface = choose_path(space.model, path), choose_surface(space, surface)
    fits = space.interpolate_codes(a, b, steps, path=path)
    meshes = [space.mesh(fit, resolution=resolution, surface=surface) for fit in tqdm(fits, desc="mesh", unit="frame")]
    for index, mesh in enumerate(meshes):
        scan_files.write_mesh(out / f"{index:03d}.{format}", mesh, unit=unit, up=up, origin=fits[0].origin)
    write_animated_glb(meshes, out / "interpolation.glb")
    area, volume = metrics.areas(meshes).tolist(), metrics.volumes(meshes).tolist()
    sheet.contact_sheet(
        [(f"{a.name} to {b.name}, {path}", meshes)],
        out / "interpolation.png",
        curves={"area (m²)": area, "volume (m³)": volume},
    )
    record = {"a": a.name, "b": b.name, "path": path, "area_m2": area, "volume_m3": volume}
    record |= {"surface": surface, "mesh_format": format, "unit": unit, "up": up}
    record |= {"sa_sigma": metrics.sa_sigma(meshes)}
    scores.write_results(out, "path", record)
    print(f"{steps} meshes in {out}, animation in {out / 'interpolation.glb'}, picture in {out / 'interpolation.png'}")


Item = TypeVar("Item")


def model_provenance(run: Path, space: ShapeSpace) -> dict[str, Any]:
    """Name, fingerprint and size of a model, and its training time; None for a model that is in no run.

    Codes of the training scans are not counted as parameters: new scans do not need them.
    """
    home = Run(run if run.is_dir() else run.parent)
    in_run = run.is_dir() or (run.is_file() and home.weights.is_file() and run.samefile(home.weights))
    progress = home.progress() if in_run else None
    parameters = [tensor for name, tensor in space.model.state_dict().items() if not name.endswith("table.codes")]
    return {
        "run": home.folder.resolve().name if in_run else run.stem,
        "model": space.model.fingerprint(),
        "family": registry.family_name(space.config),
        "training_seconds": None if progress is None else round(progress.seconds, 1),
        "training_steps": None if progress is None else progress.steps,
        "num_parameters": sum(tensor.numel() for tensor in parameters),
        "parameter_bytes": sum(tensor.numel() * tensor.element_size() for tensor in parameters),
    }


def fit_provenance(method: str, encoded: Sequence[Fit], fits: Sequence[Fit]) -> dict[str, Any]:
    """Method (the one that `auto` selected), seconds for one scan, and numbers in a code."""
    auto = "adam" if fits[0].covariance is None else "lm"
    return {
        "method": auto if method == "auto" else method,
        "encode_seconds": round(encoded[0].seconds, 4),
        "fit_seconds": None if method == "encode" else round(fits[0].seconds, 3),
        "code_dim": fits[0].code.flat.shape[1],
    }


def timed(items: Iterable[Item], seconds: list[float]) -> Iterator[Item]:
    """Yield the items; append to `seconds` how long each took to arrive."""
    iterator = iter(items)
    while True:
        began = time.perf_counter()
        try:
            item = next(iterator)
        except StopIteration:
            return
        seconds.append(time.perf_counter() - began)
        yield item
