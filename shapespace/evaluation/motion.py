"""Score interpolation paths against true motion, and measure how a surface trembles along time."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from tqdm import tqdm
from trimesh import Trimesh

from shapespace.evaluation import metrics
from shapespace.fitting.result import Fit
from shapespace.geometry import proximity
from shapespace.interpolation import InterpolationPath
from shapespace.models import registry
from shapespace.models.base import SDFModel
from shapespace.space import ShapeSpace
from shapespace.synthetic.body import Body
from shapespace.synthetic.people import Capture, SynthesisConfig, list_captures, posed_body
from shapespace.synthetic.poses import interpolate_pose

Pair = tuple[Capture, Capture]
TRUE_MOTION = "truth"  # the path of the true bodies in the rows


def choose_pairs(synthesis: SynthesisConfig, split: str, count: int, seed: int) -> list[Pair]:
    """Random pairs of captures of one person each; the people of the split take turns.

    Raises:
        ValueError: No person of the split has two poses.

    """
    rng = np.random.default_rng(seed)
    in_split = [capture for capture in list_captures(synthesis) if capture.split == split]
    people = [list(group) for _, group in groupby(in_split, key=lambda capture: capture.subject)]
    people = [captures for captures in people if len(captures) > 1]
    if not people:
        raise ValueError(
            f"--split {split}: no person has two poses. Choose another --split, or synthesize with "
            "--poses-per-test-person 2."
        )
    pairs = []
    for index in range(count):
        captures = people[index % len(people)]
        a, b = rng.permutation(len(captures))[:2]
        pairs.append((captures[a], captures[b]))
    return pairs


def true_motion(synthesis: SynthesisConfig, pair: Pair, steps: int) -> list[Trimesh]:
    """True bodies between two captures of a person, both ends included; every joint rotates at constant speed."""
    body = Body.load()
    (coefficients, start, _), (_, end, _) = (posed_body(synthesis.seed, capture) for capture in pair)
    return [
        Trimesh(
            body.skin(coefficients, interpolate_pose(start.rotations, end.rotations, share)), body.faces, process=False
        )
        for share in np.linspace(0, 1, steps)
    ]


class PathScores(NamedTuple):
    """A row for each pair and path (and one for the true motion), and the meshes of all paths of the first pair."""

    rows: list[dict[str, Any]]
    first_pair: list[tuple[str, list[Trimesh]]]


def score_paths(
    space: ShapeSpace,
    ends: Sequence[tuple[Fit, Fit]],
    motions: Sequence[Sequence[Trimesh]],
    paths: Sequence[InterpolationPath],
    *,
    resolution: int,
    seed: int = 0,
) -> PathScores:
    """Score the paths between the fits of each pair against its true motion, with as many shapes as that has."""
    scores = PathScores([], [])
    for (a, b), ground_truth in zip(ends, tqdm(motions, desc="paths", unit="pair"), strict=True):
        names = {"a": a.name, "b": b.name}
        meshes = {path: _interpolate(space, a, b, len(ground_truth), path, resolution) for path in paths}
        for path, predicted in meshes.items():
            scores.rows.append({**names, "path": path, **score_path(predicted, ground_truth, seed=seed)})
        scores.rows.append({**names, "path": TRUE_MOTION, "sa_sigma": metrics.sa_sigma(ground_truth)})
        if not scores.first_pair:
            scores.first_pair.append(("true motion", list(ground_truth)))
            for path, predicted in meshes.items():
                scores.first_pair.append((path if predicted else f"{path}: no surface", predicted or []))
    return scores


def _interpolate(
    space: ShapeSpace, a: Fit, b: Fit, steps: int, path: InterpolationPath, resolution: int
) -> list[Trimesh] | None:
    """Meshes of a path, or None if one of its shapes has no surface."""
    try:
        return space.interpolate(a, b, steps, path=path, resolution=resolution)
    except ValueError:
        return None


def supported_paths(paths: Sequence[InterpolationPath], space: ShapeSpace) -> list[InterpolationPath]:
    """The paths that the family of the space supports; a note is printed if `geodesic` is left out.

    Raises:
        ValueError: No path is supported.

    """
    if isinstance(space.model, SDFModel) or "geodesic" not in paths:
        return list(paths)
    supported: list[InterpolationPath] = [path for path in paths if path != "geodesic"]
    reason = f"family {registry.family_name(space.config)} has no geodesic path, which needs an SDF and vector codes"
    if not supported:
        raise ValueError(f"--paths geodesic: {reason}. Use --paths linear.")
    print(f"note: {reason}; it is left out.")
    return supported


def score_path(predicted: Sequence[Trimesh] | None, ground_truth: Sequence[Trimesh], *, seed: int = 0) -> metrics.Row:
    """Score the shapes of a path against those of the true motion; both include the ends.

    `completeness` and `accuracy` (mm) are those of `surface_distance`, mean over the shapes between the ends; each pair
    is centered at the mean of its surface, because codes do not contain the position. `sa_sigma` is the standard
    deviation of the area (square meters), `volume_error` the largest relative deviation of the volume from the true
    one, NaN for open surfaces. Everything is NaN without a prediction (None).
    """
    if predicted is None:
        columns = (*metrics.get_metric("surface_distance").units, "sa_sigma", "volume_error")
        return dict.fromkeys(columns, float("nan"))
    between = [
        metrics.score(["surface_distance"], _centered(a), _centered(b), seed=seed)["surface_distance"]
        for a, b in zip(predicted[1:-1], ground_truth[1:-1], strict=True)
    ]
    is_closed = all(mesh.is_watertight for mesh in predicted)
    deviations = np.abs(metrics.volumes(predicted) / metrics.volumes(ground_truth) - 1)
    return {
        **{column: float(np.mean([row[column] for row in between])) for column in between[0]},
        "sa_sigma": metrics.sa_sigma(predicted),
        "volume_error": float(deviations.max()) if is_closed else float("nan"),
    }


def path_medians(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """For each path the medians of its columns over the pairs with a value, and the number of `failed` pairs."""
    return {
        path: _medians([row for row in rows if row["path"] == path])
        for path in dict.fromkeys(row["path"] for row in rows)
    }


def _medians(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    columns = [name for name in rows[0] if name not in ("a", "b", "path")]
    present = {column: [row[column] for row in rows if not math.isnan(row[column])] for column in columns}
    medians = {column: float(np.median(values)) if values else math.nan for column, values in present.items()}
    return {**medians, "failed": sum(math.isnan(row["sa_sigma"]) for row in rows)}


def signed_offsets(predicted: Trimesh, ground_truth: Trimesh, *, stride: int = 4) -> Float[np.ndarray, "n"]:
    """Signed distance (mm) from every k-th true vertex to the predicted surface, positive outside.

    The vector to the nearest point of the prediction, projected on the true normal; both meshes in meters.
    """
    vertices = np.asarray(ground_truth.vertices, dtype=np.float64)[::stride]
    _, _, closest = proximity.closest_point(vertices, predicted)
    return metrics.MILLIMETERS * np.einsum("nd,nd->n", closest - vertices, ground_truth.vertex_normals[::stride])


def acceleration_error(offsets: Sequence[Float[np.ndarray, "n"]]) -> float:
    """Mean absolute second difference along time (mm) of the signed offsets of frames with the same vertices.

    After Kanazawa et al., Learning 3D Human Dynamics from Video (HMMR, CVPR 2019). The motion itself and a constant
    error do not count.
    """
    return float(np.abs(np.diff(np.stack(offsets), 2, axis=0)).mean())


def _centered(mesh: Trimesh) -> Trimesh:
    return Trimesh(mesh.vertices - mesh.centroid, mesh.faces, process=False)
