"""Found surfaces against true ones: one row of scores for each scan."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from trimesh import Trimesh

from shapespace.data.store import Store
from shapespace.evaluation import metrics
from shapespace.evaluation.scores import Report
from shapespace.geometry import proximity as nearest

SCAN_POINTS = 50_000  # of the packed scan, to tell which of the true surface was seen


def scored(
    found: Iterable[tuple[str, str, Trimesh | None]], store: Store, protocols: Sequence[str], *, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield a row of scores for each of `found`: split, name in the store, mesh in metres (None: no surface was found).

    Raises `ValueError` for a protocol that there is not, and for a scan without a true surface.
    """
    for split, name, mesh in found:
        truth = store.truth(name)
        if truth is None:
            raise ValueError(
                f"scan {name} has no true surface in {store.path}: scores need registrations beside the scans. "
                "Pack them together (see the recipe), or evaluate another split."
            )
        packed = store.sample(name, min(SCAN_POINTS, store.count(name)), np.random.default_rng(seed))
        scores = metrics.score(protocols, mesh, truth, packed.to_world(store.frame(name)), seed=seed)
        yield {"name": name, "split": split, **scores}


def report(rows: Sequence[Mapping[str, Any]], protocols: Sequence[str], settings: Mapping[str, Any]) -> Report:
    """The rows with their summary, and what is needed to read them."""
    chosen = {name: metrics.protocol(name) for name in protocols}
    return Report(
        protocols={name: protocol.description for name, protocol in chosen.items()},
        units={name: protocol.all_units for name, protocol in chosen.items()},
        rows=rows,
        summary=metrics.summarise(rows),
        settings=settings,
    )


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
    _, _, closest = nearest.to_mesh(vertices, found)
    return metrics.MILLIMETRES * np.einsum("nd,nd->n", closest - vertices, truth.vertex_normals[::every])


def flicker(offsets: Sequence[Float[np.ndarray, "n"]]) -> float:
    """Mean absolute second difference along time of `offsets` of true meshes with the same vertices, in mm.

    What the person does is not in it, nor is an error that stays: only how the surface trembles about the true one.
    """
    return float(np.abs(np.diff(np.stack(offsets), 2, axis=0)).mean())


def _centred(mesh: Trimesh) -> Trimesh:
    return Trimesh(mesh.vertices - mesh.centroid, mesh.faces, process=False)
