"""Surface normals from points: estimation, outward orientation, and the direction of a single view.

Points in the plane z = 0 are those of a curve; their normals are in the plane.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import maximum_filter
from scipy.spatial import cKDTree

# Ranges in brackets were measured on scans of people with one and with sixteen virtual cameras.
NEIGHBORS = 16  # of a point, itself included, for its normal
CURVE_NEIGHBORS = 6  # the same for points of a curve: as far to either side
# Where 12 neighbors of the points of thinned limbs are that flat, 1 of 20 normals is wrong by more than 45 degrees; of
# all points 1 of 3 is. Of densely measured parts 19 of 20 points are that flat.
FLAT_NEIGHBORS = 12
MAX_FLAT_RATIO = 0.1  # of the least variance to the second
CURVATURE_NEIGHBORS = 48  # separate convex from concave: about 8 cm of a person in 2,000 points
NUM_VIEWS = 48
MIN_VIEW_COSINE = 0.6  # a view votes on a side only within the angle of this cosine to the normal
MIN_SINGLE_VIEW_COSINE = 0.35  # 10 % quantile of one view (0.5 to 0.8; complete people: below 0.2)
MIN_SINGLE_VIEW_VISIBLE = 0.6  # share of the steeply seen points of one view that are visible (0.65 to 0.97; slab: 0.5)
MIN_UNANIMOUS = 0.7  # share of the points with votes for one side only; below it the scan is not complete


class OrientedNormals(NamedTuple):
    """Unit normals, and whether the points cover the surface from all sides: else the orientation is a guess."""

    normals: Float[np.ndarray, "n 3"]
    is_complete: bool


def is_flat(points: Float[np.ndarray, "n 3"]) -> bool:
    """Whether the points are in the plane z = 0."""
    return not points[:, 2].any()


def estimate(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Unoriented unit normals: the direction of least variance among the nearest neighbors.

    Hoppe et al., Surface Reconstruction from Unorganized Points, SIGGRAPH 1992, section 3.1.
    """
    return np.asarray(_principal_axes(points, NEIGHBORS)[1][:, :, 0], dtype=points.dtype)


def estimate_where_flat(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Unoriented unit normals as by `estimate`; zeros where the neighbors are no surface (few points of a limb)."""
    variance, axes = _principal_axes(points, FLAT_NEIGHBORS)
    is_flat_there = variance[:, 0] < MAX_FLAT_RATIO * variance[:, 1]
    return np.asarray(np.where(is_flat_there[:, None], axes[:, :, 0], 0), dtype=points.dtype)


def _principal_axes(
    points: Float[np.ndarray, "n 3"], count: int
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3 3"]]:
    """Variances (rising, up to a factor) and axes (columns) of the neighbors of each point, itself included."""
    wide = points.astype(np.float64)
    neighbors = wide[_neighbors(wide, count)[0]]
    neighbors -= neighbors.mean(axis=1, keepdims=True)
    covariance = np.einsum("nka,nkb->nab", neighbors, neighbors)
    if is_flat(points):
        covariance[:, 2, 2] = 2 * np.einsum("naa->n", covariance)  # never the least
    return np.linalg.eigh(covariance)


def orient_towards(normals: Float[np.ndarray, "n 3"], towards: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Flip each normal to the side of a vector."""
    return np.where((normals * towards).sum(axis=1, keepdims=True) < 0, -normals, normals)


def orient_outward(points: Float[np.ndarray, "n 3"], unoriented: Float[np.ndarray, "n 3"]) -> OrientedNormals:
    """Orient normals outward by visibility voting: the side that more virtual cameras see is outside.

    The points are drawn as depth maps in many directions. A location beside a point, on the side of the viewer, is
    visible if no other point is in front of it: a vote for that side. Points without votes follow their neighbors.
    (Takayama et al., A Simple Method for Correcting Facet Orientations, 2014, vote for facets in the same way.)
    """
    wide, axis = points.astype(np.float64), unoriented.astype(np.float64)
    index, radius = _neighbors(wide)
    cell = float(np.median(radius))
    votes = np.zeros((len(wide), 2))
    for view in _directions(NUM_VIEWS, flat=is_flat(points)):
        cosine = axis @ view
        steep = np.flatnonzero(np.abs(cosine) > MIN_VIEW_COSINE)
        side = np.sign(cosine[steep])
        beside = wide[steep] + 1.5 * cell * side[:, None] * axis[steep]
        visible = _visible(wide, beside, view, cell)
        votes[steep[visible], (side[visible] < 0).astype(int)] += 1
    unanimous = (votes > 0).sum(axis=1) == 1
    side = np.sign(votes[:, 0] - votes[:, 1])
    for _ in range(20):
        if side.all():
            break
        mean = (side[index, None] * axis[index]).sum(axis=1)
        side = np.where(side == 0, np.sign((mean * axis).sum(axis=1)), side)
    side = np.where(side == 0, 1.0, side)
    return OrientedNormals((side[:, None] * unoriented).astype(points.dtype), bool(unanimous.mean() > MIN_UNANIMOUS))


def single_view_direction(
    points: Float[np.ndarray, "n 3"], unoriented: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "3"] | None:
    """Direction towards the one camera that measured all points, or None if several sides were measured.

    One camera measures points that face it: the unoriented normals are spread about one axis, and no point hides
    another. The sign of the axis: bodies are mostly convex, so that most points are nearer to the camera than the mean
    of their neighbors.
    """
    wide, axis = points.astype(np.float64), unoriented.astype(np.float64)
    direction = np.linalg.eigh(axis.T @ axis)[1][:, -1]
    cosine = axis @ direction
    if np.quantile(np.abs(cosine), 0.1) < MIN_SINGLE_VIEW_COSINE:
        return None
    index = cKDTree(wide).query(wide, k=min(CURVATURE_NEIGHBORS, len(wide)), workers=-1)[1]
    convexity = ((wide - wide[index].mean(axis=1)) * axis).sum(axis=1) * np.sign(cosine)
    if np.mean(convexity > 0) < 0.5:
        direction, cosine = -direction, -cosine
    cell = float(np.median(_neighbors(wide)[1]))
    steep = np.abs(cosine) > MIN_VIEW_COSINE
    beside = wide + 1.5 * cell * np.sign(cosine)[:, None] * axis
    return direction if _visible(wide, beside[steep], direction, cell).mean() > MIN_SINGLE_VIEW_VISIBLE else None


def _visible(
    points: Float[np.ndarray, "n 3"], locations: Float[np.ndarray, "m 3"], view: Float[np.ndarray, "3"], cell: float
) -> np.ndarray:
    """Whether each location is visible to a distant viewer in a direction; a depth map with cells of this size."""
    across = np.linalg.svd(view[None])[2][1:]
    low = (points @ across.T).min(axis=0) - 3 * cell
    shape = np.ceil(((points @ across.T).max(axis=0) - low) / cell).astype(int) + 4

    def pixels(positions: Float[np.ndarray, "k 3"]) -> Int[np.ndarray, "2 k"]:
        return np.clip(((positions @ across.T - low) / cell).astype(int), 0, shape - 1).T

    depth = np.full(shape, -np.inf)
    np.maximum.at(depth, tuple(pixels(points)), points @ view)
    nearest: np.ndarray = maximum_filter(depth, size=3)  # closes the gaps between points
    return np.asarray(locations @ view >= nearest[tuple(pixels(locations))])


def _neighbors(
    points: Float[np.ndarray, "n 3"], count: int = NEIGHBORS
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n"]]:
    """Indices of the nearest neighbors of each point, itself included, and the distance to the farthest."""
    count = min(CURVE_NEIGHBORS if is_flat(points) else count, len(points))
    distance, index = cKDTree(points).query(points, k=count, workers=-1)
    shape = len(points), count
    return np.reshape(index, shape), np.reshape(distance, shape)[:, -1]


def _directions(count: int, *, flat: bool = False) -> Float[np.ndarray, "k 3"]:
    """Unit vectors spread evenly over the sphere (Fibonacci lattice), or over the circle in the plane z = 0."""
    position = np.arange(count) + 0.5
    if flat:
        angle = 2 * np.pi * position / count
        return np.stack([np.cos(angle), np.sin(angle), np.zeros(count)], axis=1)
    height, azimuth = 1 - 2 * position / count, np.pi * (1 + 5**0.5) * position
    ring = np.sqrt(1 - height**2)
    return np.stack([ring * np.cos(azimuth), height, ring * np.sin(azimuth)], axis=1)
