"""Normals of a surface from its points alone: the line on which each one lies, and which way is out.

Points in the plane z = 0 are those of a curve, whose normals lie in the plane.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import maximum_filter
from scipy.spatial import cKDTree

NEIGHBORS = 16  # of a point, itself among them
AROUND = 48  # neighbours that tell round from hollow: some 8 cm of a person in 2,000 points
IN_PLANE = 6  # the same for points of a curve: as far to either side
VIEWS = 48
STEEP = 0.6  # a view tells sides only if it looks along the line to within the angle of this cosine
ASLANT = 0.35  # cosine: nine tenths of a view are seen less aslant (0.5 to 0.8 are; of whole people, below 0.2)
BARED = 0.6  # of the points of one view, those seen steeply, are hidden by no other (0.65 to 0.97; of a slab, half)
WHOLE = 0.7  # of the points must be told by the views, one way only, or the scan is not seen from all around


class OrientedNormals(NamedTuple):
    """Unit normals, and whether the points cover the surface from all around, without which outside is a guess."""

    normals: Float[np.ndarray, "n 3"]
    whole: bool


def is_flat(points: Float[np.ndarray, "n 3"]) -> bool:
    """Whether the points lie in the plane z = 0."""
    return not points[:, 2].any()


def estimate(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Unit vectors along the normals, of which nobody knows which way is out.

    The direction of least variance among the nearest neighbours (Hoppe et al., SIGGRAPH 1992, section 3.1).
    """
    wide = points.astype(np.float64)
    near = wide[_neighbors(wide)[0]]
    near -= near.mean(axis=1, keepdims=True)
    spread = np.einsum("nka,nkb->nab", near, near)
    if is_flat(points):
        spread[:, 2, 2] = 2 * np.einsum("naa->n", spread)  # never the least
    _, axes = np.linalg.eigh(spread)
    return np.asarray(axes[:, :, 0], dtype=points.dtype)


def orient_towards(lines: Float[np.ndarray, "n 3"], towards: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Turn each line to the side of a vector."""
    return np.where((lines * towards).sum(axis=1, keepdims=True) < 0, -lines, lines)


def orient_outward(points: Float[np.ndarray, "n 3"], lines: Float[np.ndarray, "n 3"]) -> OrientedNormals:
    """Turn each line to the side from which one can leave: what is outside can be seen from afar, what is inside not.

    The points are drawn as depth maps in many directions. A place just beside a point, on the side of the viewer, is
    visible if no other point lies before it: a vote for that side. Points without votes follow their neighbours. (Votes
    of views also turn the facets of Takayama et al., A Simple Method for Correcting Facet Orientations, 2014.)
    """
    wide, axis = points.astype(np.float64), lines.astype(np.float64)
    index, reach = _neighbors(wide)
    cell = float(np.median(reach))
    votes = np.zeros((len(wide), 2))
    for view in _directions(VIEWS, flat=is_flat(points)):
        along = axis @ view
        asked = np.flatnonzero(np.abs(along) > STEEP)
        side = np.sign(along[asked])
        beside = wide[asked] + 1.5 * cell * side[:, None] * axis[asked]
        seen = _visible(wide, beside, view, cell)
        votes[asked[seen], (side[seen] < 0).astype(int)] += 1
    told = (votes > 0).sum(axis=1) == 1
    side = np.sign(votes[:, 0] - votes[:, 1])
    for _ in range(20):
        if side.all():
            break
        around = (side[index, None] * axis[index]).sum(axis=1)
        side = np.where(side == 0, np.sign((around * axis).sum(axis=1)), side)
    side = np.where(side == 0, 1.0, side)
    return OrientedNormals((side[:, None] * lines).astype(points.dtype), bool(told.mean() > WHOLE))


def single_view_direction(
    points: Float[np.ndarray, "n 3"], lines: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "3"] | None:
    """The direction from which one camera saw all the points, or None if they were seen from more sides.

    What one camera sees looks its way: the lines lie about a direction, and no point hides another. Which of its ends:
    people are round rather than hollow, so that most points stand out, towards the camera, from the middle of their
    neighbours.
    """
    wide, axis = points.astype(np.float64), lines.astype(np.float64)
    towards = np.linalg.eigh(axis.T @ axis)[1][:, -1]
    along = axis @ towards
    if np.quantile(np.abs(along), 0.1) < ASLANT:
        return None
    index = cKDTree(wide).query(wide, k=min(AROUND, len(wide)), workers=-1)[1]
    out = ((wide - wide[index].mean(axis=1)) * axis).sum(axis=1) * np.sign(along)
    if np.mean(out > 0) < 0.5:
        towards, along = -towards, -along
    cell = float(np.median(_neighbors(wide)[1]))
    steep = np.abs(along) > STEEP
    beside = wide + 1.5 * cell * np.sign(along)[:, None] * axis
    return towards if _visible(wide, beside[steep], towards, cell).mean() > BARED else None


def _visible(
    points: Float[np.ndarray, "n 3"], places: Float[np.ndarray, "m 3"], view: Float[np.ndarray, "3"], cell: float
) -> np.ndarray:
    """Which places no point hides from a viewer far away in a direction, by a depth map with cells of this size."""
    across = np.linalg.svd(view[None])[2][1:]
    low = (points @ across.T).min(axis=0) - 3 * cell
    shape = np.ceil(((points @ across.T).max(axis=0) - low) / cell).astype(int) + 4

    def pixels(of: Float[np.ndarray, "k 3"]) -> Int[np.ndarray, "2 k"]:
        return np.clip(((of @ across.T - low) / cell).astype(int), 0, shape - 1).T

    depth = np.full(shape, -np.inf)
    np.maximum.at(depth, tuple(pixels(points)), points @ view)
    hiding: np.ndarray = maximum_filter(depth, size=3)  # no looking through between points
    return np.asarray(places @ view >= hiding[tuple(pixels(places))])


def _neighbors(points: Float[np.ndarray, "n 3"]) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n"]]:
    """Nearest neighbours of each point, itself among them, and the distance to the farthest."""
    count = min(IN_PLANE if is_flat(points) else NEIGHBORS, len(points))
    distance, index = cKDTree(points).query(points, k=count, workers=-1)
    shape = len(points), count
    return np.reshape(index, shape), np.reshape(distance, shape)[:, -1]


def _directions(count: int, *, flat: bool = False) -> Float[np.ndarray, "k 3"]:
    """Directions spread evenly over the sphere (Fibonacci lattice), or over the circle."""
    place = np.arange(count) + 0.5
    if flat:
        angle = 2 * np.pi * place / count
        return np.stack([np.cos(angle), np.sin(angle), np.zeros(count)], axis=1)
    height, turn = 1 - 2 * place / count, np.pi * (1 + 5**0.5) * place
    ring = np.sqrt(1 - height**2)
    return np.stack([ring * np.cos(turn), height, ring * np.sin(turn)], axis=1)
