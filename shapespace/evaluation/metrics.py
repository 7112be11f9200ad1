"""How far a found surface is from the true one, by named protocols: a number without its protocol's name is no number.

A protocol takes the found mesh, the true mesh, the raw scan (or None) and a random generator, all in world metres, and
returns a row of named columns. `score` runs several of them on one scan, and `summarise` condenses many rows.

Three ways of measuring distance, never to be mixed:

- *exact*: from samples of one surface to the triangles of the other (`surface`, `hausdorff`, `fscore`);
- *sample to sample*, as most published tables do (`l1`, `sq_sum`, `one_sided`, `srb`). It never reaches zero: two
  samplings of the same surface lie about half a sample spacing apart;
- *volume* (`iou`), by winding number.
"""

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float
from trimesh import Trimesh

from shapespace.geometry.proximity import closest_point, contains, mutual_nearest, nearest_point
from shapespace.geometry.scan import Scan
from shapespace.synthetic.body import Body

Row = dict[str, float]
Statistics = dict[str, float | int]
Summary = dict[str, dict[str, dict[str, Statistics]]]
Score = Callable[..., Row]  # (found, truth, scan or None, rng, *, counts and thresholds)
_Score = TypeVar("_Score", bound=Score)

VISIBLE_DISTANCE = 0.010  # metres: a true point this close to a point of the scan was seen
MILLIMETERS = 1e3  # in a metre


@dataclass(frozen=True)
class Metric:
    """A named way to measure: `units` of its columns, `scan_units` of those that exist only beside a raw scan."""

    score: Score
    units: dict[str, str]
    scan_units: dict[str, str]

    @property
    def description(self) -> str:
        """What is measured, in one sentence, with its settings (counts, thresholds in metres)."""
        sentence = (inspect.getdoc(self.score) or "").split("\n")[0]
        settings = inspect.signature(self.score).parameters.values()
        shown = [_shown(p.name, p.default) for p in settings if p.kind is inspect.Parameter.KEYWORD_ONLY]
        return f"{sentence} Settings: {', '.join(shown)}."

    @property
    def all_units(self) -> dict[str, str]:
        """The unit of every column that the protocol can have."""
        return {**self.units, **self.scan_units}

    def failed(self, scan: Scan | None) -> Row:
        """Row of a scan for which nothing was found: NaN in every column."""
        return dict.fromkeys(self.units if scan is None else self.all_units, float("nan"))


METRICS: dict[str, Metric] = {}


def get_metric(name: str) -> Metric:
    """Look up a protocol by its name.

    Raises:
        ValueError: There is no such protocol.

    """
    if name in METRICS:
        return METRICS[name]
    near = get_close_matches(name, METRICS, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise ValueError(f"there is no protocol named {name!r}. {hint}Choose among {', '.join(METRICS)}.")


def score(
    names: Sequence[str], predicted: Trimesh | None, ground_truth: Trimesh, scan: Scan | None = None, *, seed: int = 0
) -> dict[str, Row]:
    """Rows of one scan by the named protocols: `{protocol: {column: value}}`.

    Where nothing usable was found (None, no faces, no area, coordinates that are not finite) every column is NaN, and
    `summarise` counts it as failed. Each protocol draws from its own generator, so that adding one leaves the others
    as they are.
    """
    rows = {}
    for name in names:
        chosen = get_metric(name)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        usable = predicted is not None and _is_surface(predicted)
        rows[name] = chosen.score(predicted, ground_truth, scan, rng) if usable else chosen.failed(scan)
    return rows


def summarize(rows: Sequence[Mapping[str, Any]]) -> Summary:
    """Condense rows `{"name", "split", protocol: {column: value}}` to `{split: {protocol: {column: statistics}}}`.

    Statistics are mean, median, p5 and p95 (5th and 95th percentiles) over the scans that have a value, their `count`,
    and `failed`: the number of scans for which nothing was found. The failed are in none of the other statistics, so
    the two counts belong beside every quoted number. Where all failed the statistics are NaN.
    """
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        for name in (key for key in row if key not in ("name", "split")):
            for column, value in row[name].items():
                values.setdefault(row["split"], {}).setdefault(name, {}).setdefault(column, []).append(value)
    return {
        split: {
            name: {column: _statistics(np.array(listed, dtype=np.float64)) for column, listed in columns.items()}
            for name, columns in protocols.items()
        }
        for split, protocols in values.items()
    }


def _register(units: dict[str, str], scan_units: dict[str, str] | None = None) -> Callable[[_Score], _Score]:
    """Enter a function in `PROTOCOLS` under its own name."""

    def enter(function: _Score) -> _Score:
        METRICS[function.__name__] = Metric(function, units, scan_units or {})
        return function

    return enter


# ------------------------------------------------------------------------------------------------------ mesh protocols


@_register(
    {"completeness": "mm", "accuracy": "mm"},
    {"visible_completeness": "mm", "hidden_completeness": "mm"},
)
def surface_distance(
    found: Trimesh, truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 30_000
) -> Row:
    """Mean exact distance from samples of each surface to the triangles of the other (mm, unsquared, each way alone).

    The primary protocol, ours: exact distances have no sampling floor, so that zero means equal. `completeness` says
    what is missing, `accuracy` what was invented (ghost sheets, blobs). Beside a scan,
    `visible_completeness` is the former over the true points that the scan saw (within 10 mm of one of its points),
    `hidden_completeness` over the others, if there are any: no sensor sees the mouth, the eye sockets or the soles.

    Raises:
        ValueError: The scan lies nowhere near the truth.

    """
    a, b = _samples(truth, found, count, rng)
    missed, invented = _exact(a.points, found), _exact(b.points, truth)
    row = {"completeness": MILLIMETERS * missed.mean(), "accuracy": MILLIMETERS * invented.mean()}
    if scan is not None:
        seen = _seen(a.points, scan)
        row["visible_completeness"] = MILLIMETERS * missed[seen].mean()
        if not seen.all():
            row["hidden_completeness"] = MILLIMETERS * missed[~seen].mean()
    return _floats(row)


@_register({"chamfer": "mm"})
def chamfer_l1(
    found: Trimesh, truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 100_000
) -> Row:
    """Half the sum of both mean sample-to-sample distances (mm, unsquared, both ways).

    Chamfer-L1 of Occupancy Networks (Mescheder et al., CVPR 2019, section 4) and of Dual Octree Graph Networks (Wang
    et al., SIGGRAPH 2022, with 30,000 samples). Two samplings of one body (1.8 square metres) are about 2.1 mm apart
    with 100,000 samples and 3.9 mm with 30,000.
    """
    there, back = _both(*_samples(truth, found, count, rng))
    return _floats({"chamfer": MILLIMETERS * 0.5 * (there.mean() + back.mean())})


@_register({"chamfer": "mm²"})
def chamfer_l2(
    found: Trimesh, truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 30_000
) -> Row:
    """Sum of both mean squared sample-to-sample distances (square mm, squared, both ways).

    DeepSDF (Park et al., CVPR 2019, section 6) and SAL (Atzmon & Lipman, CVPR 2020).
    """
    there, back = _both(*_samples(truth, found, count, rng))
    return _floats({"chamfer": MILLIMETERS**2 * (np.square(there).mean() + np.square(back).mean())})


@_register(
    {"completeness": "mm", "accuracy": "mm"},
    {"scan_to_mesh": "mm", "mesh_to_scan": "mm"},
)
def one_sided_chamfer(
    found: Trimesh, truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 30_000
) -> Row:
    """Mean sample-to-sample distances, each way alone, to the truth and to the raw scan (mm, unsquared).

    SALD (Atzmon & Lipman, ICLR 2021) and DiGS (Ben-Shabat et al., CVPR 2022, table 4), where the truth is the
    registration. `scan_to_mesh` does not see ghost sheets, `accuracy` does.
    """
    a, b = _samples(truth, found, count, rng)
    there, back = _both(a, b)
    row = {"completeness": MILLIMETERS * there.mean(), "accuracy": MILLIMETERS * back.mean()}
    if scan is not None:
        there, back = _both(scan.sample(count, rng), b)
        row |= {"scan_to_mesh": MILLIMETERS * there.mean(), "mesh_to_scan": MILLIMETERS * back.mean()}
    return _floats(row)


@_register(
    {"chamfer": "mm", "hausdorff": "mm"},
    {"scan_to_mesh": "mm", "scan_to_mesh_max": "mm"},
)
def srb(found: Trimesh, truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 1_000_000) -> Row:
    """Sample-to-sample distance: half the sum of both means, larger maximum; one-sided from the scan (mm, unsquared).

    The surface reconstruction benchmark (Berger et al., TOG 2013) as scored by Deep Geometric Prior (Williams et al.,
    CVPR 2019) and IGR. A truth without faces, as the benchmark has it, is taken whole; a truth mesh is sampled.
    """
    a = _sample(truth, count, rng, "true") if len(truth.faces) else Scan("(truth)", np.asarray(truth.vertices))
    b = _sample(found, count, rng, "found")
    there, back = _both(a, b)
    row = {
        "chamfer": MILLIMETERS * 0.5 * (there.mean() + back.mean()),
        "hausdorff": MILLIMETERS * max(there.max(), back.max()),
    }
    if scan is not None:
        ahead, _ = nearest_point(scan.points, b.points)
        row |= {"scan_to_mesh": MILLIMETERS * ahead.mean(), "scan_to_mesh_max": MILLIMETERS * ahead.max()}
    return _floats(row)


@_register({"completeness": "mm", "accuracy": "mm", "both": "mm"})
def hausdorff(
    found: Trimesh, truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 30_000
) -> Row:
    """Largest exact distance from samples and vertices of each surface to the other, and of both (mm, unsquared).

    The vertices are among the points because spikes end in one; between the points it is a lower bound.
    """
    a, b = _samples(truth, found, count, rng)
    there = _exact(np.concatenate([np.asarray(truth.vertices), a.points]), found).max()
    back = _exact(np.concatenate([np.asarray(found.vertices), b.points]), truth).max()
    row = {"completeness": there, "accuracy": back, "both": max(there, back)}
    return _floats({column: MILLIMETERS * value for column, value in row.items()})


@_register({"completeness": "|cos|", "accuracy": "|cos|", "consistency": "|cos|", "angle": "degrees"})
def normal_consistency(
    found: Trimesh, truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 30_000
) -> Row:
    """Mean |cos| between the normals of samples and of the nearest faces, each way; their mean; mean angle (degrees).

    Normal consistency of Occupancy Networks (Mescheder et al., CVPR 2019, section 4): 1 is best. The angle is that of
    the lines, 0 to 90, over both ways: a surface turned inside out is not noticed.
    """
    a, b = _samples(truth, found, count, rng)
    there, back = _cosines(a, found), _cosines(b, truth)
    angle = np.degrees(np.arccos(np.concatenate([there, back]))).mean()
    ways = {"completeness": there.mean(), "accuracy": back.mean()}
    return _floats({**ways, "consistency": 0.5 * (there.mean() + back.mean()), "angle": angle})


@_register({"f_1mm": "0..1", "f_5mm": "0..1", "f_10mm": "0..1", "f_1pct": "0..1"})
def fscore(found: Trimesh, truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 30_000) -> Row:
    """Harmonic mean of the shares of each surface within 1, 5, 10 mm and 1 % of the box of the other (0..1, 1 is best).

    Tatarchenko et al., What Do Single-view 3D Reconstruction Networks Learn? (CVPR 2019); the box is the
    longest side of the truth's. Distances are exact here, theirs were between samples and could not resolve 1 mm.
    """
    a, b = _samples(truth, found, count, rng)
    there, back = _exact(a.points, found), _exact(b.points, truth)
    side = np.ptp(np.asarray(truth.vertices), axis=0).max()
    thresholds = {"f_1mm": 0.001, "f_5mm": 0.005, "f_10mm": 0.010, "f_1pct": 0.01 * side}
    return _floats({column: _harmonic((there <= t).mean(), (back <= t).mean()) for column, t in thresholds.items()})


@_register({"hands": "mm", "feet": "mm", "rest": "mm"})
def part_distance(
    found: Trimesh, truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 30_000
) -> Row:
    """Mean exact distance from samples of the true hands, feet and the rest to the found triangles (mm, unsquared).

    Ours: the column `completeness` of `surface`, part by part (`Body.parts`). What is found has no parts, so the way
    back is not told apart.

    Raises:
        ValueError: The truth is not the frozen body, and nobody knows where its hands are.

    """
    body = Body.load()
    if not np.array_equal(truth.faces, body.faces):
        raise ValueError(
            f"the true mesh ({len(truth.faces):,} faces) is not the frozen body ({len(body.faces):,}), so its hands "
            "and feet are not known. Leave out protocol parts, or evaluate synthetic people."
        )
    row = {}
    for part, its in body.parts().items():
        faces = body.faces[its[body.faces].sum(axis=1) >= 2]
        samples = _sample(Trimesh(truth.vertices, faces, process=False), count, rng, "true")
        row[part] = MILLIMETERS * _exact(samples.points, found).mean()
    return _floats(row)


@_register({"iou": "0..1"})
def iou(found: Trimesh, truth: Trimesh, scan: Scan | None, rng: np.random.Generator, *, count: int = 100_000) -> Row:
    """Volume of the intersection over that of the union, on random points of the joint box (0..1, 1 is best).

    Occupancy Networks (Mescheder et al., CVPR 2019, section 4). Inside is where the winding number rounds away from
    zero (`geometry.inside`).

    Raises:
        ValueError: The truth encloses nothing.

    """
    corners = np.concatenate([np.asarray(found.vertices), np.asarray(truth.vertices)])
    low, high = corners.min(axis=0), corners.max(axis=0)
    points = low + rng.random((count, 3)) * (high - low)
    in_found, in_truth = contains(points, found), contains(points, truth)
    if not in_truth.any():
        raise ValueError(
            f"the true mesh ({len(truth.faces):,} faces) encloses none of {count:,} points of the joint box: it is "
            "open, or tiny beside what was found. Leave out protocol iou, or score against a closed mesh."
        )
    return _floats({"iou": (in_found & in_truth).sum() / (in_found | in_truth).sum()})


# ----------------------------------------------------------------------------------------------------- field protocols


def eikonal_error(
    gradient: Callable[[Float[np.ndarray, "n 3"]], Float[np.ndarray, "n 3"]],
    truth: Trimesh,
    rng: np.random.Generator,
    *,
    count: int = 30_000,
    spread: float = 0.01,
) -> Row:
    """Departure of the gradient's length from 1, near the true surface (no unit): mean absolute, and root mean square.

    `gradient` takes points in metres; a signed distance in metres has gradients of length 1 (IGR, equation 2). The
    points are surface samples moved by a Gaussian of `spread` metres in each axis.
    """
    lengths = np.linalg.norm(gradient(_near(truth, rng, count, spread)), axis=1)
    return _floats({"mean": np.abs(lengths - 1).mean(), "rms": np.sqrt(np.square(lengths - 1).mean())})


def sdf_error(
    value: Callable[[Float[np.ndarray, "n 3"]], Float[np.ndarray, "n"]],
    truth: Trimesh,
    rng: np.random.Generator,
    *,
    count: int = 30_000,
    spread: float = 0.01,
) -> Row:
    """Error of a signed distance near the true surface: `absolute` (mean, mm), `relative`, and `sign` (share right).

    `value` takes points in metres and returns metres, negative inside. `relative` is the mean error over the mean
    distance: IGR's experiment on known signed distances. The truth must be closed. Points as in `eikonal_error`.
    """
    points = _near(truth, rng, count, spread)
    distance = np.where(contains(points, truth), -1.0, 1.0) * _exact(points, truth)
    held = value(points)
    error = np.abs(held - distance).mean()
    share = (np.sign(held) == np.sign(distance)).mean()
    return _floats({"absolute": MILLIMETERS * error, "relative": error / np.abs(distance).mean(), "sign": share})


# -------------------------------------------------------------------------------------------------------- along a path


def areas(meshes: Sequence[Trimesh]) -> Float[np.ndarray, "k"]:
    """Surface area of each mesh (square metres)."""
    return np.array([mesh.area for mesh in meshes], dtype=np.float64)


def volumes(meshes: Sequence[Trimesh]) -> Float[np.ndarray, "k"]:
    """Signed volume of each closed mesh (cubic metres): positive if the faces wind outward."""
    return np.array([_volume(mesh) for mesh in meshes], dtype=np.float64)


def sa_sigma(meshes: Sequence[Trimesh]) -> float:
    """SA-sigma: standard deviation of the surface area along an interpolation (square metres).

    4Deform (Sang et al., CVPR 2025, experiments): a body that moves keeps its skin, so less is better. The sum of
    squares is divided by the number of meshes.

    Raises:
        ValueError: There are no meshes.

    """
    if not meshes:
        raise ValueError("sa_sigma was given no meshes. Give the meshes of an interpolation, in order.")
    return float(areas(meshes).std())


# --------------------------------------------------------------------------------------------------------------- parts


def _sample(mesh: Trimesh, count: int, rng: np.random.Generator, which: str) -> Scan:
    """Points spread evenly over the area of a mesh, with face normals, float64."""
    if len(mesh.faces) == 0:
        raise ValueError(
            f"the {which} mesh has no faces: there is no surface to sample. Use `score`, which counts it as failed."
        )
    points = np.asarray(mesh.vertices, dtype=np.float64)
    return Scan(f"({which} mesh)", points, faces=np.asarray(mesh.faces)).sample(count, rng)


def _samples(truth: Trimesh, found: Trimesh, count: int, rng: np.random.Generator) -> tuple[Scan, Scan]:
    return _sample(truth, count, rng, "true"), _sample(found, count, rng, "found")


def _near(mesh: Trimesh, rng: np.random.Generator, count: int, spread: float) -> Float[np.ndarray, "n 3"]:
    points = _sample(mesh, count, rng, "true").points
    return points + rng.normal(scale=spread, size=points.shape)


def _exact(points: Float[np.ndarray, "n 3"], mesh: Trimesh) -> Float[np.ndarray, "n"]:
    distance, _, _ = closest_point(points.astype(np.float64), mesh)
    return distance


def _both(a: Scan, b: Scan) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "m"]]:
    """From each point of a to the nearest of b, and from each of b to the nearest of a."""
    return mutual_nearest(a.points, b.points)


def _seen(points: Float[np.ndarray, "n 3"], scan: Scan) -> Bool[np.ndarray, "n"]:
    """Which points the scan saw."""
    seen = nearest_point(points, scan.points)[0] <= VISIBLE_DISTANCE
    if not seen.any():
        middle, true_middle = scan.points.mean(axis=0), points.mean(axis=0)
        raise ValueError(
            f"scan {scan.name} lies nowhere within {VISIBLE_DISTANCE * MILLIMETERS:.0f} mm of its truth: its centre is "
            f"{np.round(middle, 3)}, that of the truth {np.round(true_middle, 3)} (metres). "
            "Are both in the same unit and frame, and of the same capture?"
        )
    return seen


def _cosines(samples: Scan, mesh: Trimesh) -> Float[np.ndarray, "n"]:
    """|cos| between the samples' normals and those of the nearest faces; 0 at a face without area."""
    _, face, _ = closest_point(samples.points, mesh)
    corners = np.asarray(mesh.vertices, dtype=np.float64)[np.asarray(mesh.faces)[face]]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    unit = cross / np.linalg.norm(cross, axis=1, keepdims=True).clip(1e-30)
    assert samples.normals is not None  # drawn from faces
    cosines = np.abs((samples.normals * unit).sum(axis=1))
    return np.asarray(cosines.clip(max=1.0))


def _volume(mesh: Trimesh) -> float:
    """Sum of the signed tetrahedra between the origin and the faces (cubic metres)."""
    a, b, c = np.asarray(mesh.vertices, dtype=np.float64)[np.asarray(mesh.faces)].transpose(1, 0, 2)
    return float(np.einsum("nk,nk->", a, np.cross(b, c)) / 6)


def _harmonic(recall: float, precision: float) -> float:
    return 2 * recall * precision / max(recall + precision, 1e-30)


def _is_surface(mesh: Trimesh) -> bool:
    return len(mesh.faces) > 0 and bool(np.isfinite(mesh.vertices).all() and mesh.area > 0)


def _statistics(values: Float[np.ndarray, "n"]) -> Statistics:
    kept = values[~np.isnan(values)]
    counts: Statistics = {"count": len(kept), "failed": len(values) - len(kept)}
    if not len(kept):
        return {**dict.fromkeys(("mean", "median", "p5", "p95"), float("nan")), **counts}
    p5, median, p95 = (float(p) for p in np.percentile(kept, [5, 50, 95]))
    return {"mean": float(kept.mean()), "median": median, "p5": p5, "p95": p95, **counts}


def _shown(name: str, value: int) -> str:
    return f"{name} {value:,}"


def _floats(row: Mapping[str, Any]) -> Row:
    return {column: float(value) for column, value in row.items()}
