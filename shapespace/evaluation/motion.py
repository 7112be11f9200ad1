"""Found surfaces against true ones: one row of scores for each scan."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from jaxtyping import Float
from trimesh import Trimesh

from shapespace.evaluation import metrics
from shapespace.geometry import proximity
from shapespace.synthetic.body import Body
from shapespace.synthetic.people import Capture, SynthesisConfig, list_captures, posed_body
from shapespace.synthetic.poses import interpolate_pose


def score_path(predicted: Sequence[Trimesh] | None, ground_truth: Sequence[Trimesh], *, seed: int = 0) -> metrics.Row:
    """Score the shapes of a path against the true shapes of the motion, both ends included in both.

    `completeness` and `accuracy` (mm) are those of protocol `surface`, mean over the shapes between the ends,
    each pair centred at the mean of its surface: where a person stands is not in a code. `sa_sigma` is the standard
    deviation of the area (square metres), `volume_error` the largest departure of the volume from the true one, as a
    share of it; NaN where a surface is open and has no volume. Where nothing was found (None) all are NaN.
    """
    if predicted is None:
        columns = (*metrics.get_metric("surface").units, "sa_sigma", "volume_error")
        return dict.fromkeys(columns, float("nan"))
    between = [
        metrics.score(["surface"], _centred(a), _centred(b), seed=seed)["surface"]
        for a, b in zip(predicted[1:-1], ground_truth[1:-1], strict=True)
    ]
    closed = all(mesh.is_watertight for mesh in predicted)
    departures = np.abs(metrics.volumes(predicted) / metrics.volumes(ground_truth) - 1)
    return {
        **{column: float(np.mean([row[column] for row in between])) for column in between[0]},
        "sa_sigma": metrics.sa_sigma(predicted),
        "volume_error": float(departures.max()) if closed else float("nan"),
    }


def signed_offsets(predicted: Trimesh, ground_truth: Trimesh, *, every: int = 4) -> Float[np.ndarray, "n"]:
    """How far the found surface lies outside (positive) or inside of every so-manieth true vertex, in mm.

    From the vertex to the nearest point of the found surface, along the true normal; both meshes in metres.
    """
    vertices = np.asarray(ground_truth.vertices, dtype=np.float64)[::every]
    _, _, closest = proximity.closest_point(vertices, predicted)
    return metrics.MILLIMETERS * np.einsum("nd,nd->n", closest - vertices, ground_truth.vertex_normals[::every])


def acceleration_error(offsets: Sequence[Float[np.ndarray, "n"]]) -> float:
    """Mean absolute second difference along time of `offsets` of true meshes with the same vertices, in mm.

    What the person does is not in it, nor is an error that stays: only how the surface trembles about the true one.
    """
    return float(np.abs(np.diff(np.stack(offsets), 2, axis=0)).mean())


def _centred(mesh: Trimesh) -> Trimesh:
    return Trimesh(mesh.vertices - mesh.centroid, mesh.faces, process=False)


Pair = tuple[Capture, Capture]


def choose_pairs(plan: SynthesisConfig, split: str, pairs: int, seed: int) -> list[Pair]:
    """Two captures of one person each, of the split, at random; person after person, and again from the first."""
    rng = np.random.default_rng(seed)
    there = [capture for capture in list_captures(plan) if capture.split == split]
    people = [list(group) for _, group in groupby(there, key=lambda capture: capture.subject)]
    people = [captures for captures in people if len(captures) > 1]
    if not people:
        raise ValueError(
            f"nobody has two poses in split {split!r} of this data set: choose another --split, or synthesize with "
            "--poses-per-test-person 2."
        )
    found = []
    for index in range(pairs):
        captures = people[index % len(people)]
        a, b = rng.permutation(len(captures))[:2]
        found.append((captures[a], captures[b]))
    return found


def true_motion(plan: SynthesisConfig, pair: Pair, steps: int) -> list[Trimesh]:
    """Bodies between the two captures of a person, both ends included."""
    body = Body.load()
    (coefficients, start, _), (_, end, _) = (posed_body(plan.seed, capture) for capture in pair)
    return [
        Trimesh(
            body.skin(coefficients, interpolate_pose(start.rotations, end.rotations, share)), body.faces, process=False
        )
        for share in np.linspace(0, 1, steps)
    ]
