"""Found surfaces against true ones: one row of scores for each scan."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from jaxtyping import Float
from trimesh import Trimesh

from shapespace.evaluation import metrics
from shapespace.geometry import proximity
from shapespace.synthetic.body import Body
from shapespace.synthetic.people import Capture, Plan, schedule, stage
from shapespace.synthetic.poses import blend


def motion(found: Sequence[Trimesh] | None, truth: Sequence[Trimesh], *, seed: int = 0) -> metrics.Row:
    """Score the shapes of a path against the true shapes of the motion, both ends included in both.

    `truth_to_found` and `found_to_truth` (mm) are those of protocol `surface`, mean over the shapes between the ends,
    each pair centred at the mean of its surface: where a person stands is not in a code. `sa_sigma` is the standard
    deviation of the area (square metres), `volume_error` the largest departure of the volume from the true one, as a
    share of it; NaN where a surface is open and has no volume. Where nothing was found (None) all are NaN.
    """
    if found is None:
        columns = (*metrics.protocol("surface").units, "sa_sigma", "volume_error")
        return dict.fromkeys(columns, float("nan"))
    between = [
        metrics.score(["surface"], _centred(a), _centred(b), seed=seed)["surface"]
        for a, b in zip(found[1:-1], truth[1:-1], strict=True)
    ]
    closed = all(mesh.is_watertight for mesh in found)
    departures = np.abs(metrics.volumes(found) / metrics.volumes(truth) - 1)
    return {
        **{column: float(np.mean([row[column] for row in between])) for column in between[0]},
        "sa_sigma": metrics.sa_sigma(found),
        "volume_error": float(departures.max()) if closed else float("nan"),
    }


def offsets(found: Trimesh, truth: Trimesh, *, every: int = 4) -> Float[np.ndarray, "n"]:
    """How far the found surface lies outside (positive) or inside of every so-manieth true vertex, in mm.

    From the vertex to the nearest point of the found surface, along the true normal; both meshes in metres.
    """
    vertices = np.asarray(truth.vertices, dtype=np.float64)[::every]
    _, _, closest = proximity.to_mesh(vertices, found)
    return metrics.MILLIMETRES * np.einsum("nd,nd->n", closest - vertices, truth.vertex_normals[::every])


def flicker(offsets: Sequence[Float[np.ndarray, "n"]]) -> float:
    """Mean absolute second difference along time of `offsets` of true meshes with the same vertices, in mm.

    What the person does is not in it, nor is an error that stays: only how the surface trembles about the true one.
    """
    return float(np.abs(np.diff(np.stack(offsets), 2, axis=0)).mean())


def _centred(mesh: Trimesh) -> Trimesh:
    return Trimesh(mesh.vertices - mesh.centroid, mesh.faces, process=False)


Pair = tuple[Capture, Capture]


def choose(plan: Plan, split: str, pairs: int, seed: int) -> list[Pair]:
    """Two captures of one person each, of the split, at random; person after person, and again from the first."""
    rng = np.random.default_rng(seed)
    there = [capture for capture in schedule(plan) if capture.split == split]
    people = [list(group) for _, group in groupby(there, key=lambda capture: capture.subject)]
    people = [captures for captures in people if len(captures) > 1]
    if not people:
        raise ValueError(
            f"nobody has two poses in split {split!r} of this data set: choose another --split, or synthesize with "
            "--test-people-poses 2."
        )
    found = []
    for index in range(pairs):
        captures = people[index % len(people)]
        a, b = rng.permutation(len(captures))[:2]
        found.append((captures[a], captures[b]))
    return found


def true_motion(plan: Plan, pair: Pair, steps: int) -> list[Trimesh]:
    """Bodies between the two captures of a person, both ends included."""
    body = Body.load()
    (coefficients, start, _), (_, end, _) = (stage(plan.seed, capture) for capture in pair)
    return [
        Trimesh(body.pose(coefficients, blend(start.rotations, end.rotations, share)), body.faces, process=False)
        for share in np.linspace(0, 1, steps)
    ]
