"""Score registered templates against true registrations: vertex to vertex, from person to person, joint to joint.

A registered template has its vertices in the order of the template, so each has one true place. All inputs are in world
meters, all errors in millimeters. Points that are carried from person to person count by their area; in the other
scores every vertex counts the same, so that dense regions (hands, face) weigh more than their area.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from trimesh import Trimesh

from shapespace.data.registration import vertex_areas
from shapespace.evaluation.metrics import MILLIMETERS, Row, summarize
from shapespace.evaluation.scores import ScoreReport
from shapespace.geometry.proximity import barycentric, closest_point
from shapespace.geometry.statistics import weighted_percentiles

METRICS = {
    "vertex_error": "Distance from each vertex of the registered template to its true place.",
    "carried_error": "Distance between a point of one person, carried by the template, and its true place on another.",
    "joint_error": "Distance from each joint center to its true place.",
}
"""Names of the scores in a report, with what is measured."""


@dataclass(frozen=True)
class RegisteredScan:
    """A registered template beside the true registration; the joint centers of both, where there are any.

    A prediction with a coordinate that is not finite is a failed registration: its scores are NaN.
    """

    name: str
    """`subject/sequence/frame`."""
    split: str
    predicted: Float[np.ndarray, "v 3"]
    truth: Float[np.ndarray, "v 3"]
    predicted_joints: Float[np.ndarray, "j 3"] | None = None
    joints: Float[np.ndarray, "j 3"] | None = None

    @property
    def subject(self) -> str:
        """The person."""
        return self.name.split("/")[0]


@dataclass(frozen=True)
class CorrespondenceScores:
    """Mean, median and 95th percentile of errors (mm), and the mean in each region of the body."""

    mean: float
    median: float
    p95: float
    regions: Mapping[str, float] = field(default_factory=dict)

    def row(self) -> Row:
        """The scores as columns of a report; a region is named by itself."""
        return {"mean": self.mean, "median": self.median, "p95": self.p95, **self.regions}


def vertex_errors(
    predicted: Float[np.ndarray, "*s v 3"], truth: Float[np.ndarray, "*s t 3"]
) -> Float[np.ndarray, "*s v"]:
    """Distance from each vertex, or joint center, to its true place (mm).

    Raises:
        ValueError: The numbers of vertices differ.

    """
    if predicted.shape[-2] != truth.shape[-2]:
        raise ValueError(
            f"correspondence: {predicted.shape[-2]:,} predicted vertices, but {truth.shape[-2]:,} true ones. Give a "
            "registration by the same template."
        )
    return MILLIMETERS * np.linalg.norm(predicted.astype(np.float64) - truth.astype(np.float64), axis=-1)


def pose_transfer_error(predicted: Float[np.ndarray, "v 3"], truth: Float[np.ndarray, "t 3"]) -> Float[np.ndarray, "v"]:
    """Distance from each vertex to its true place after both meshes are moved to their mean vertex (mm).

    The pose of one person says where another one's limbs are, not where this person stands.

    Raises:
        ValueError: The numbers of vertices differ.

    """
    return vertex_errors(_centered(predicted), _centered(truth))


def carried_errors(
    source: RegisteredScan, target: RegisteredScan, faces: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, "v"]:
    """Error of points carried from one scan to another by the template, for each vertex of the template (mm).

    The true place of a vertex on the source is brought to the closest point of the source's registered template. The
    same point of the template (face and barycentric weights) on the target is compared with the vertex's true place
    there. Distance from the surface counts on the target only; slides that are equal on both sides cancel. NaN if one
    of the registrations failed.
    """
    if not (np.isfinite(source.predicted).all() and np.isfinite(target.predicted).all()):
        return np.full(len(source.truth), np.nan)
    mesh = Trimesh(source.predicted.astype(np.float64), faces, process=False)
    _, face, closest = closest_point(source.truth.astype(np.float64), mesh)
    weights = barycentric(closest, source.predicted.astype(np.float64)[faces[face]])
    carried = np.einsum("vc,vcd->vd", weights, target.predicted.astype(np.float64)[faces[face]])
    return vertex_errors(carried, target.truth)


def score_errors(
    errors: Float[np.ndarray, "v"],
    regions: Mapping[str, Bool[np.ndarray, "v"]] | None = None,
    areas: Float[np.ndarray, "v"] | None = None,
) -> CorrespondenceScores:
    """Scores of errors (mm) by vertex; regions are masks of the vertices.

    A vertex counts by its share of `areas`. By default all count the same.

    Raises:
        ValueError: A region has no vertex.

    """
    for name, mask in (regions or {}).items():
        if not mask.any():
            raise ValueError(f"correspondence: region {name!r} has 0 of {len(mask):,} vertices. Leave it out.")
    by_region = {
        name: float(np.average(errors[mask], weights=None if areas is None else areas[mask]))
        for name, mask in (regions or {}).items()
    }
    mean = float(np.average(errors, weights=areas))
    if areas is None:
        median, p95 = np.percentile(errors, [50, 95])
    else:
        median, p95 = weighted_percentiles(errors, areas, [50.0, 95.0])
    return CorrespondenceScores(mean, float(median), float(p95), by_region)


def choose_carried_pairs(
    scans: Sequence[RegisteredScan], count: int, seed: int = 0
) -> list[tuple[RegisteredScan, RegisteredScan]]:
    """Random pairs of scans of two people of one split; the scans take turns as the source.

    Empty if no split has two people.
    """
    rng = np.random.default_rng(seed)
    others = {
        source.name: [scan for scan in scans if scan.split == source.split and scan.subject != source.subject]
        for source in scans
    }
    sources = [scan for scan in scans if others[scan.name]]
    if not sources:
        return []
    chosen = (sources[index % len(sources)] for index in range(count))
    return [(source, others[source.name][rng.integers(len(others[source.name]))]) for source in chosen]


def make_correspondence_report(
    scans: Sequence[RegisteredScan],
    faces: Int[np.ndarray, "f 3"],
    *,
    regions: Mapping[str, Bool[np.ndarray, "v"]] | None = None,
    pairs: int = 0,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> ScoreReport:
    """Report with a row per scan (`vertex_error`, and `joint_error` where there are joints) and one per carried pair.

    `pairs` is the number of pairs; their rows are named `a to b`. See `METRICS` for what is measured.

    Raises:
        ValueError: A region has no vertex, or a prediction has another number of vertices than the ground truth.

    """
    rows: list[dict[str, Any]] = []
    for scan in scans:
        vertex_error = score_errors(vertex_errors(scan.predicted, scan.truth), regions)
        rows.append({"name": scan.name, "split": scan.split, "vertex_error": vertex_error.row()})
        if scan.predicted_joints is not None and scan.joints is not None:
            rows[-1]["joint_error"] = score_errors(vertex_errors(scan.predicted_joints, scan.joints)).row()
    for source, target in choose_carried_pairs(scans, pairs, seed):
        areas = vertex_areas(source.truth.astype(np.float64), faces)
        carried = score_errors(carried_errors(source, target, faces), regions, areas)
        rows.append({"name": f"{source.name} to {target.name}", "split": source.split, "carried_error": carried.row()})
    present = {name: sentence for name, sentence in METRICS.items() if any(name in row for row in rows)}
    columns = {name: dict.fromkeys(next(row[name] for row in rows if name in row), "mm") for name in present}
    return ScoreReport(present, columns, rows, summarize(rows), {"pairs": pairs, "seed": seed, **(settings or {})})


def _centered(vertices: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "v 3"]:
    return vertices.astype(np.float64) - vertices.astype(np.float64).mean(axis=0)
