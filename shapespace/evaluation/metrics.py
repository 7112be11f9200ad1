"""Metrics: distances between a predicted and a ground-truth surface, each with fixed settings and named columns.

A metric takes the prediction, the ground truth, the raw scan (or None) and a random generator, all in world meters, and
returns a row `{column: value}`. `score` runs several metrics on one scan; `summarize` condenses many rows. Two columns
have the same meaning in every metric:

- `completeness`: ground truth → prediction (what is missing);
- `accuracy`: prediction → ground truth (what is invented).

Distances are *exact* (from samples of one surface to the triangles of the other: `surface_distance`, `part_distance`,
`hausdorff`, `fscore`) or *sample to sample*, as in most published tables (`chamfer_l1`, `chamfer_l2`,
`one_sided_chamfer`, `srb`). The latter are never zero: two samplings of one surface are about half a sample spacing
apart.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float
from trimesh import Trimesh

from shapespace.geometry.proximity import (
    closest_point,
    contains,
    face_normals_and_areas,
    mutual_nearest,
    nearest_point,
)
from shapespace.geometry.scan import Scan
from shapespace.io.errors import did_you_mean
from shapespace.synthetic.body import Body

Row = dict[str, float]
Statistics = dict[str, float | int]
Summary = dict[str, dict[str, dict[str, Statistics]]]
Score = Callable[..., Row]  # (predicted, ground_truth, scan or None, rng, *, counts and thresholds)
_Score = TypeVar("_Score", bound=Score)

VISIBLE_DISTANCE = 0.010  # meters: ground truth this close to a scan point is visible
MILLIMETERS = 1e3  # in a meter


@dataclass(frozen=True)
class Metric:
    """A named way to measure; `units` of its columns, `scan_units` of those that need a raw scan."""

    score: Score
    stream: int  # of the random generator; the values of stored scores depend on it
    units: dict[str, str]
    scan_units: dict[str, str]
    higher_is_better: bool

    @property
    def description(self) -> str:
        """One sentence on what is measured, with the settings if there are any (counts, thresholds in meters)."""
        sentence = (inspect.getdoc(self.score) or "").split("\n")[0]
        settings = inspect.signature(self.score).parameters.values()
        shown = [f"{p.name} {p.default:,}" for p in settings if p.kind is inspect.Parameter.KEYWORD_ONLY]
        return f"{sentence} Settings: {', '.join(shown)}." if shown else sentence

    @property
    def all_units(self) -> dict[str, str]:
        """The unit of every column that the metric can have."""
        return {**self.units, **self.scan_units}

    def failed(self, scan: Scan | None) -> Row:
        """Row of a scan without a predicted surface: NaN in every column."""
        return dict.fromkeys(self.units if scan is None else self.all_units, float("nan"))


METRICS: dict[str, Metric] = {}


def get_metric(name: str) -> Metric:
    """Look up a metric by its name.

    Raises:
        ValueError: The metric is unknown.

    """
    if name not in METRICS:
        raise ValueError(f"no metric {name!r}. {did_you_mean(name, list(METRICS))} All metrics: {', '.join(METRICS)}.")
    return METRICS[name]


def score(
    names: Sequence[str], predicted: Trimesh | None, ground_truth: Trimesh, scan: Scan | None = None, *, seed: int = 0
) -> dict[str, Row]:
    """Rows of one scan by the named metrics: `{metric: {column: value}}`.

    Every column is NaN if the prediction is no surface (None, no faces, no area, or coordinates that are not finite);
    `summarize` counts it as failed. Each metric has its own random generator, so its values do not depend on the
    other metrics.
    """
    rows = {}
    for name in names:
        metric = get_metric(name)
        rng = np.random.default_rng([seed, metric.stream])
        usable = predicted is not None and _is_surface(predicted)
        rows[name] = metric.score(predicted, ground_truth, scan, rng) if usable else metric.failed(scan)
    return rows


def summarize(rows: Sequence[Mapping[str, Any]]) -> Summary:
    """Condense rows `{"name", "split", metric: {column: value}}` to `{split: {metric: {column: statistics}}}`.

    Statistics are mean, median, p5 and p95 (5th and 95th percentiles) over the scans with a value, their `count`, and
    `failed`, the number of scans without a predicted surface. Failed scans are excluded from all other statistics,
    which are NaN if all scans failed.
    """
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        for name in (key for key in row if key not in ("name", "split")):
            for column, value in row[name].items():
                values.setdefault(row["split"], {}).setdefault(name, {}).setdefault(column, []).append(value)
    return {
        split: {
            name: {column: _statistics(np.array(listed, dtype=np.float64)) for column, listed in columns.items()}
            for name, columns in metrics.items()
        }
        for split, metrics in values.items()
    }


def _register(
    name: str,
    stream: int,
    units: dict[str, str],
    scan_units: dict[str, str] | None = None,
    *,
    higher_is_better: bool = False,
) -> Callable[[_Score], _Score]:
    """Enter a function in `METRICS`. The name is a string, because it is stored in files."""

    def enter(function: _Score) -> _Score:
        METRICS[name] = Metric(function, stream, units, scan_units or {}, higher_is_better)
        return function

    return enter


# -------------------------------------------------------------------------------------------------------- mesh metrics


@_register(
    "surface_distance",
    0xBC419E6E,
    {"completeness": "mm", "accuracy": "mm"},
    {"visible_completeness": "mm", "hidden_completeness": "mm"},
)
def surface_distance(
    predicted: Trimesh, ground_truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 30_000
) -> Row:
    """Mean exact distance between the surfaces, each direction (mm, unsquared).

    The primary metric, ours. With a scan, `visible_completeness` is the mean over the ground truth within 10 mm of a
    scan point, `hidden_completeness` the mean over the rest, if there is any: no sensor sees the mouth or the soles.

    Raises:
        ValueError: The scan is nowhere near the ground truth.

    """
    a, b = _samples(ground_truth, predicted, count, rng)
    forward, backward = _exact(a.points, predicted), _exact(b.points, ground_truth)
    row = {"completeness": MILLIMETERS * forward.mean(), "accuracy": MILLIMETERS * backward.mean()}
    if scan is not None:
        visible = _visible(a.points, scan)
        row["visible_completeness"] = MILLIMETERS * forward[visible].mean()
        if not visible.all():
            row["hidden_completeness"] = MILLIMETERS * forward[~visible].mean()
    return _floats(row)


@_register("chamfer_l1", 0xD94F366E, {"chamfer": "mm"})
def chamfer_l1(
    predicted: Trimesh, ground_truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 100_000
) -> Row:
    """Half the sum of both mean sample-to-sample distances (mm, unsquared).

    Chamfer-L1 of Occupancy Networks (Mescheder et al., CVPR 2019, section 4) and of Dual Octree Graph Networks (Wang
    et al., SIGGRAPH 2022, with 30,000 samples). Two samplings of one body (1.83 square meters) are 2.1 mm apart with
    100,000 samples and 3.9 mm with 30,000.
    """
    forward, backward = _both(*_samples(ground_truth, predicted, count, rng))
    return _floats({"chamfer": MILLIMETERS * 0.5 * (forward.mean() + backward.mean())})


@_register("chamfer_l2", 0x5C544E18, {"chamfer": "mm²"})
def chamfer_l2(
    predicted: Trimesh, ground_truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 30_000
) -> Row:
    """Sum of both mean squared sample-to-sample distances (mm², squared).

    DeepSDF (Park et al., CVPR 2019, section 6) and SAL (Atzmon & Lipman, CVPR 2020).
    """
    forward, backward = _both(*_samples(ground_truth, predicted, count, rng))
    return _floats({"chamfer": MILLIMETERS**2 * (np.square(forward).mean() + np.square(backward).mean())})


@_register(
    "one_sided_chamfer",
    0x61334AFB,
    {"completeness": "mm", "accuracy": "mm"},
    {"scan_to_mesh": "mm", "mesh_to_scan": "mm"},
)
def one_sided_chamfer(
    predicted: Trimesh, ground_truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 30_000
) -> Row:
    """Mean sample-to-sample distances, each direction, also to the scan (mm, unsquared).

    SALD (Atzmon & Lipman, ICLR 2021) and DiGS (Ben-Shabat et al., CVPR 2022, table 4), where the ground truth is the
    registration. `scan_to_mesh` does not show invented surfaces, `accuracy` does.
    """
    a, b = _samples(ground_truth, predicted, count, rng)
    forward, backward = _both(a, b)
    row = {"completeness": MILLIMETERS * forward.mean(), "accuracy": MILLIMETERS * backward.mean()}
    if scan is not None:
        forward, backward = _both(scan.sample(count, rng), b)
        row |= {"scan_to_mesh": MILLIMETERS * forward.mean(), "mesh_to_scan": MILLIMETERS * backward.mean()}
    return _floats(row)


@_register("srb", 0x1743141B, {"chamfer": "mm", "hausdorff": "mm"}, {"scan_to_mesh": "mm", "scan_to_mesh_max": "mm"})
def srb(
    predicted: Trimesh, ground_truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 1_000_000
) -> Row:
    """Chamfer and Hausdorff distance of samples; one-sided from the scan (mm, unsquared).

    The surface reconstruction benchmark (Berger et al., TOG 2013) as scored by Deep Geometric Prior (Williams et al.,
    CVPR 2019) and IGR. Ground truth without faces, as in the benchmark, is used whole; a mesh is sampled.
    """
    if len(ground_truth.faces):
        a = _sample(ground_truth, count, rng, "ground-truth")
    else:
        a = Scan("(ground truth)", np.asarray(ground_truth.vertices))
    b = _sample(predicted, count, rng, "predicted")
    forward, backward = _both(a, b)
    row = {
        "chamfer": MILLIMETERS * 0.5 * (forward.mean() + backward.mean()),
        "hausdorff": MILLIMETERS * max(forward.max(), backward.max()),
    }
    if scan is not None:
        one_sided, _ = nearest_point(scan.points, b.points)
        row |= {"scan_to_mesh": MILLIMETERS * one_sided.mean(), "scan_to_mesh_max": MILLIMETERS * one_sided.max()}
    return _floats(row)


@_register("hausdorff", 0xE1E1957E, {"completeness": "mm", "accuracy": "mm", "both": "mm"})
def hausdorff(
    predicted: Trimesh, ground_truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 30_000
) -> Row:
    """Maximum exact distance from samples and vertices, each direction (mm, unsquared).

    Vertices are included because spikes end in one; between the points the value is a lower bound.
    """
    a, b = _samples(ground_truth, predicted, count, rng)
    forward = _exact(np.concatenate([np.asarray(ground_truth.vertices), a.points]), predicted).max()
    backward = _exact(np.concatenate([np.asarray(predicted.vertices), b.points]), ground_truth).max()
    row = {"completeness": forward, "accuracy": backward, "both": max(forward, backward)}
    return _floats({column: MILLIMETERS * value for column, value in row.items()})


@_register(
    "normal_consistency",
    0xBC486C02,
    {"completeness": "|cos|", "accuracy": "|cos|", "consistency": "|cos|", "angle": "degrees"},
    higher_is_better=True,
)
def normal_consistency(
    predicted: Trimesh, ground_truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 30_000
) -> Row:
    """Mean |cos| of the normals at nearest points, each direction; mean angle (degrees).

    Normal consistency of Occupancy Networks (Mescheder et al., CVPR 2019, section 4): 1 is best. The angle is between
    unoriented normals, 0 to 90, over both directions: an inverted surface has the same value.
    """
    a, b = _samples(ground_truth, predicted, count, rng)
    forward, backward = _cosines(a, predicted), _cosines(b, ground_truth)
    angle = np.degrees(np.arccos(np.concatenate([forward, backward]))).mean()
    directions = {"completeness": forward.mean(), "accuracy": backward.mean()}
    return _floats({**directions, "consistency": 0.5 * (forward.mean() + backward.mean()), "angle": angle})


@_register(
    "fscore", 0x9BD48DA8, {"f_1mm": "0..1", "f_5mm": "0..1", "f_10mm": "0..1", "f_1pct": "0..1"}, higher_is_better=True
)
def fscore(
    predicted: Trimesh, ground_truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 30_000
) -> Row:
    """F-score at 1, 5 and 10 mm and at 1 % of the bounding box (0..1, 1 is best).

    Tatarchenko et al., What Do Single-view 3D Reconstruction Networks Learn? (CVPR 2019). The box is the longest side
    of the ground truth. Distances are exact; theirs are between samples and cannot resolve 1 mm.
    """
    a, b = _samples(ground_truth, predicted, count, rng)
    forward, backward = _exact(a.points, predicted), _exact(b.points, ground_truth)
    side = np.ptp(np.asarray(ground_truth.vertices), axis=0).max()
    thresholds = {"f_1mm": 0.001, "f_5mm": 0.005, "f_10mm": 0.010, "f_1pct": 0.01 * side}
    return _floats(
        {column: _harmonic((forward <= t).mean(), (backward <= t).mean()) for column, t in thresholds.items()}
    )


@_register("part_distance", 0x6940A7FE, {"hands": "mm", "feet": "mm", "rest": "mm", "face": "mm"})
def part_distance(
    predicted: Trimesh, ground_truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 30_000
) -> Row:
    """Mean exact distance from ground-truth hands, feet, rest and face to the prediction (mm, unsquared).

    Ours: the completeness of `surface_distance` for each part (`Body.parts`); the face (`Body.face`) belongs to the
    rest, too. Predictions have no parts, so there is no accuracy.

    Raises:
        ValueError: The ground truth is not the synthetic body, so its parts are unknown.

    """
    body = Body.load()
    if not np.array_equal(ground_truth.faces, body.faces):
        raise ValueError(
            f"part_distance: the ground truth ({len(ground_truth.faces):,} faces) is not the synthetic body "
            f"({len(body.faces):,} faces), so its hands and feet are unknown. Remove part_distance from --metrics."
        )
    row = {}
    for part, vertices in {**body.parts(), "face": body.face()}.items():
        faces = body.faces[vertices[body.faces].sum(axis=1) >= 2]
        samples = _sample(Trimesh(ground_truth.vertices, faces, process=False), count, rng, "ground-truth")
        row[part] = MILLIMETERS * _exact(samples.points, predicted).mean()
    return _floats(row)


@_register("vertex_distance", 0x2C9E51B7, {"mean": "mm", "median": "mm", "p95": "mm"})
def vertex_distance(predicted: Trimesh, ground_truth: Trimesh, scan: Scan | None, rng: np.random.Generator) -> Row:
    """Mean, median and 95th percentile of the distance from each vertex to its true place (mm, unsquared).

    The ground truth is a registration by the template of the prediction. Every vertex counts the same: hands and face,
    which are dense, weigh more than their area.

    Raises:
        ValueError: The meshes differ in their number of vertices or in their faces.

    """
    vertices, truth = np.asarray(predicted.vertices), np.asarray(ground_truth.vertices)
    if vertices.shape != truth.shape or not np.array_equal(predicted.faces, ground_truth.faces):
        raise ValueError(
            f"vertex_distance: the prediction ({len(vertices):,} vertices, {len(predicted.faces):,} faces) is not a "
            f"mesh of the ground truth's template ({len(truth):,} vertices, {len(ground_truth.faces):,} faces). Use "
            "--surface template and a model whose template it is, or remove vertex_distance from --metrics."
        )
    distance = MILLIMETERS * np.linalg.norm(vertices.astype(np.float64) - truth.astype(np.float64), axis=1)
    median, p95 = np.percentile(distance, [50, 95])
    return _floats({"mean": distance.mean(), "median": median, "p95": p95})


@_register("iou", 0x7A4DDB66, {"iou": "0..1"}, higher_is_better=True)
def iou(
    predicted: Trimesh, ground_truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 100_000
) -> Row:
    """Volumetric intersection over union, on random points of the joint box (0..1, 1 is best).

    Occupancy Networks (Mescheder et al., CVPR 2019, section 4). Inside is decided by the winding number
    (`proximity.contains`).

    Raises:
        ValueError: The ground truth has no inside.

    """
    corners = np.concatenate([np.asarray(predicted.vertices), np.asarray(ground_truth.vertices)])
    low, high = corners.min(axis=0), corners.max(axis=0)
    points = low + rng.random((count, 3)) * (high - low)
    in_prediction, in_ground_truth = contains(points, predicted), contains(points, ground_truth)
    if not in_ground_truth.any():
        raise ValueError(
            f"iou: the ground truth ({len(ground_truth.faces):,} faces) contains none of {count:,} points of the joint "
            "box: it is open or tiny. Remove iou from --metrics, or use a closed mesh."
        )
    return _floats({"iou": (in_prediction & in_ground_truth).sum() / (in_prediction | in_ground_truth).sum()})


# ------------------------------------------------------------------------------------------------------ along a path


def areas(meshes: Sequence[Trimesh]) -> Float[np.ndarray, "k"]:
    """Surface area of each mesh (square meters)."""
    return np.array([mesh.area for mesh in meshes], dtype=np.float64)


def volumes(meshes: Sequence[Trimesh]) -> Float[np.ndarray, "k"]:
    """Signed volume of each closed mesh (cubic meters): positive if the faces wind outward."""
    return np.array([_volume(mesh) for mesh in meshes], dtype=np.float64)


def sa_sigma(meshes: Sequence[Trimesh]) -> float:
    """Standard deviation of the surface area along an interpolation (square meters).

    4Deform (Sang et al., CVPR 2025): the area of a moving body is almost constant, so lower is better. The sum of
    squares is divided by the number of meshes.

    Raises:
        ValueError: There are no meshes.

    """
    if not meshes:
        raise ValueError("sa_sigma: 0 meshes. Pass the meshes of an interpolation, in order.")
    return float(areas(meshes).std())


# ------------------------------------------------------------------------------------------------------------- helpers


def _sample(mesh: Trimesh, count: int, rng: np.random.Generator, kind: str) -> Scan:
    """Points distributed uniformly over the area of a mesh, with face normals, float64."""
    if len(mesh.faces) == 0:
        raise ValueError(
            f"the {kind} mesh has 0 faces, so it cannot be sampled. Use `score`, which counts it as failed."
        )
    return Scan.from_mesh(mesh, f"({kind} mesh)").sample(count, rng)


def _samples(ground_truth: Trimesh, predicted: Trimesh, count: int, rng: np.random.Generator) -> tuple[Scan, Scan]:
    return _sample(ground_truth, count, rng, "ground-truth"), _sample(predicted, count, rng, "predicted")


def _exact(points: Float[np.ndarray, "n 3"], mesh: Trimesh) -> Float[np.ndarray, "n"]:
    distance, _, _ = closest_point(points.astype(np.float64), mesh)
    return distance


def _both(a: Scan, b: Scan) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "m"]]:
    """Distances from each point of a to the nearest of b, and from each point of b to the nearest of a."""
    return mutual_nearest(a.points, b.points)


def _visible(points: Float[np.ndarray, "n 3"], scan: Scan) -> Bool[np.ndarray, "n"]:
    """Whether each point is within `VISIBLE_DISTANCE` of the scan."""
    visible = nearest_point(points, scan.points)[0] <= VISIBLE_DISTANCE
    if not visible.any():
        center, true_center = scan.points.mean(axis=0), points.mean(axis=0)
        raise ValueError(
            f"scan {scan.name}: no point within {VISIBLE_DISTANCE * MILLIMETERS:.0f} mm of its ground truth; centers "
            f"{np.round(center, 3)} and {np.round(true_center, 3)} (meters). Check that both have the same unit, frame "
            "and capture."
        )
    return visible


def _cosines(samples: Scan, mesh: Trimesh) -> Float[np.ndarray, "n"]:
    """|cos| between the normals of samples and of the nearest faces; 0 at a face without area."""
    _, face, _ = closest_point(samples.points, mesh)
    unit, _ = face_normals_and_areas(np.asarray(mesh.vertices, dtype=np.float64), np.asarray(mesh.faces)[face])
    assert samples.normals is not None  # samples of faces have normals
    cosines = np.abs((samples.normals * unit).sum(axis=1))
    return np.asarray(cosines.clip(max=1.0))


def _volume(mesh: Trimesh) -> float:
    """Sum of the signed tetrahedra between the origin and the faces (cubic meters)."""
    a, b, c = np.asarray(mesh.vertices, dtype=np.float64)[np.asarray(mesh.faces)].transpose(1, 0, 2)
    return float(np.einsum("nk,nk->", a, np.cross(b, c)) / 6)


def _harmonic(recall: float, precision: float) -> float:
    return 2 * recall * precision / max(recall + precision, 1e-30)


def _is_surface(mesh: Trimesh) -> bool:
    return len(mesh.faces) > 0 and bool(np.isfinite(mesh.vertices).all() and mesh.area > 0)


def _statistics(values: Float[np.ndarray, "n"]) -> Statistics:
    present = values[~np.isnan(values)]
    counts: Statistics = {"count": len(present), "failed": len(values) - len(present)}
    if not len(present):
        return {**dict.fromkeys(("mean", "median", "p5", "p95"), float("nan")), **counts}
    p5, median, p95 = (float(p) for p in np.percentile(present, [5, 50, 95]))
    return {"mean": float(present.mean()), "median": median, "p5": p5, "p95": p95, **counts}


def _floats(row: Mapping[str, Any]) -> Row:
    return {column: float(value) for column, value in row.items()}
