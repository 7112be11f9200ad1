"""Score interpolation paths against true motion and exchanged poses, and measure how a surface trembles along time."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm
from trimesh import Trimesh

from shapespace.data.registration import part_poses
from shapespace.evaluation import metrics
from shapespace.evaluation.correspondence import pose_transfer_error
from shapespace.fitting.result import Fit
from shapespace.geometry import proximity
from shapespace.interpolation import InterpolationPath, choose_path, has_parts, missing_for
from shapespace.models import registry
from shapespace.space import ShapeSpace
from shapespace.synthetic.body import Body
from shapespace.synthetic.people import Capture, SynthesisConfig, list_captures, posed_body
from shapespace.synthetic.poses import interpolate_pose

Pair = tuple[Capture, Capture]
ALIGNED_POINTS, ALIGNMENT_STEPS = 4000, 6  # of a prediction that is translated to the true body
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
    (person, start, _), (_, end, _) = (posed_body(synthesis, capture) for capture in pair)
    return [
        Trimesh(person.skin(interpolate_pose(start.rotations, end.rotations, share)), Body.load().faces, process=False)
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
    """The paths that the model of the space supports, each once; `auto` is the path that it stands for.

    A note is printed for each path that is left out.

    Raises:
        ValueError: No path is supported.

    """
    named = dict.fromkeys(choose_path(space.model, path) for path in paths)
    missing = {path: part for path in named if (part := missing_for(space.model, path)) is not None}
    family = registry.family_name(space.config)
    reasons = [f"family {family} has no {path} path, which needs a {part}" for path, part in missing.items()]
    supported = [path for path in named if path not in missing]
    if not supported:
        raise ValueError(f"--paths {' '.join(missing)}: {'; '.join(reasons)}. Use --paths linear.")
    for reason in reasons:
        print(f"note: {reason}; it is left out.")
    return supported


def score_path(predicted: Sequence[Trimesh] | None, ground_truth: Sequence[Trimesh], *, seed: int = 0) -> metrics.Row:
    """Score the shapes of a path against those of the true motion; both include the ends.

    `completeness` and `accuracy` (mm) are those of `surface_distance`, mean over the shapes between the ends; each
    prediction is translated to the true body, because codes do not contain the position. `sa_sigma` is the standard
    deviation of the area (square meters), `volume_error` the largest relative deviation of the volume from the true
    one, NaN for open surfaces. Everything is NaN without a prediction (None).
    """
    if predicted is None:
        columns = (*metrics.get_metric("surface_distance").units, "sa_sigma", "volume_error")
        return dict.fromkeys(columns, float("nan"))
    pairs = zip(predicted[1:-1], ground_truth[1:-1], strict=True)
    between = [_surface_distance(*pair, seed=seed) for pair in pairs]
    is_closed = all(mesh.is_watertight for mesh in predicted)
    deviations = np.abs(metrics.volumes(predicted) / metrics.volumes(ground_truth) - 1)
    return {
        **{column: float(np.mean([row[column] for row in between])) for column in between[0]},
        "sa_sigma": metrics.sa_sigma(predicted),
        "volume_error": float(deviations.max()) if is_closed else float("nan"),
    }


# ------------------------------------------------------------------------------------------------------- pose transfer


def choose_transfers(pairs: Sequence[Pair]) -> list[Pair]:
    """For each pair its last capture as the pose, and the first capture of the next pair of another person."""
    chosen = []
    for index, (_, pose) in enumerate(pairs):
        others = [pair[0] for pair in (*pairs[index + 1 :], *pairs[:index]) if pair[0].subject != pose.subject]
        chosen += [(pose, person) for person in others[:1]]
    return chosen


def true_transfer(synthesis: SynthesisConfig, pose: Capture, person: Capture) -> Trimesh:
    """True body of the person of one capture in the pose of another."""
    _, posed, _ = posed_body(synthesis, pose)
    whole, _, _ = posed_body(synthesis, person)
    return Trimesh(whole.skin(posed.rotations), Body.load().faces, process=False)


def score_transfers(
    space: ShapeSpace,
    fits: Sequence[tuple[Fit, Fit]],
    ground_truth: Sequence[Trimesh],
    *,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """A row for each pair of fits (pose, person): the person in the pose against the true body, as `score_path`.

    The columns are those of `surface_distance`, and `center_error`, the mean distance of the centers of the parts (mm),
    NaN for bodies of another template.
    """
    rows: list[dict[str, Any]] = []
    for (pose, person), true_body in zip(fits, tqdm(ground_truth, desc="transfers", unit="body"), strict=True):
        fit = space.transfer_pose(pose, person)
        row = _surface_distance(space.register(fit), true_body, seed)
        own = center_error(space, fit, true_body)
        rows.append({"pose": pose.name, "person": person.name, **row, "center_error": own})
    return rows


def center_error(space: ShapeSpace, fit: Fit, ground_truth: Trimesh) -> float:
    """Mean distance of the centers of the parts of a fit (mm) from those of a body with the template's vertices.

    Both are moved to their mean center. NaN for a model without parts, and for a body of another template.
    """
    model = space.model
    if not has_parts(model) or len(ground_truth.vertices) != len(model.template.vertices):
        return math.nan
    vertices = torch.from_numpy(np.asarray(ground_truth.vertices)).float()
    truth, _ = part_poses(model.template.part_template(), vertices)
    with torch.no_grad():
        predicted = fit.frame.to_world(model.states(fit.code).center[0].cpu())
    return float(pose_transfer_error(predicted.numpy(), truth.numpy()).mean())


def path_medians(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """For each path the medians of its columns over the pairs with a value, and the number of `failed` pairs."""
    by_path = {
        path: [row for row in rows if row["path"] == path] for path in dict.fromkeys(row["path"] for row in rows)
    }
    return {
        path: {**column_medians(own), "failed": sum(math.isnan(row["sa_sigma"]) for row in own)}
        for path, own in by_path.items()
    }


def column_medians(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median of each column of numbers over the rows with a value, NaN if there is none."""
    columns = [name for name, value in rows[0].items() if not isinstance(value, str)]
    present = {column: [row[column] for row in rows if not math.isnan(row[column])] for column in columns}
    return {column: float(np.median(values)) if values else math.nan for column, values in present.items()}


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


def _surface_distance(predicted: Trimesh, ground_truth: Trimesh, seed: int) -> metrics.Row:
    moved = _moved_to(predicted, ground_truth, seed)
    return metrics.score(["surface_distance"], moved, ground_truth, seed=seed)["surface_distance"]


def _moved_to(predicted: Trimesh, ground_truth: Trimesh, seed: int) -> Trimesh:
    """The prediction, translated by least squares of the distances of its points to the planes of their closest faces.

    Point-to-plane: Chen & Medioni 1992. Means of the surfaces or centers of mass do not serve: the true surface goes on
    inside of the head, where a prediction has none.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(predicted.faces), ALIGNED_POINTS, p=predicted.area_faces / predicted.area)
    points = np.asarray(predicted.triangles_center)[chosen]
    shift = np.asarray(ground_truth.centroid - predicted.centroid)
    for _ in range(ALIGNMENT_STEPS):
        _, face, closest = proximity.closest_point(points + shift, ground_truth)
        normals = np.asarray(ground_truth.face_normals)[face]
        offsets = np.einsum("nd,nd->n", normals, closest - points - shift)
        shift = shift + np.linalg.lstsq(normals, offsets, rcond=None)[0]
    return Trimesh(predicted.vertices + shift, predicted.faces, process=False)
