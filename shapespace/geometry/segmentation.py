"""Segmentation of points (meters, any orientation): bounding planes (floor, walls) and connected parts."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from shapespace.geometry import proximity

MIN_AREA = 0.6  # square meters of a plane; people of the tuning set have at most 0.41 in a plane that bounds them
MIN_GAP = 0.05  # meters between two parts
_MAX_PLANES = 4  # a floor and three walls
_NUM_HYPOTHESES = 500
_TRIPLE_RADIUS = 0.5  # meters: the three points of a hypothesis are this close
_NEIGHBORS = 400  # points from which the second and the third are drawn
MIN_THICKNESS, _MAX_THICKNESS = 0.01, 0.02  # meters to either side; hypotheses have the least
_MAX_BEYOND = 0.02  # share of the points that may be beyond a bounding plane
BEYOND_DEPTH = 0.03  # meters that count as beyond: the other side of a board belongs to the plane
_CELL = 0.05  # meters: cell of the grid on which area is counted
_SAMPLE = 3000  # points on which hypotheses are compared


@dataclass(frozen=True)
class Plane:
    """Slab around `normal . x == offset`, `thickness` to either side; the normal points to the side of the scan."""

    normal: Float[np.ndarray, "3"]
    offset: float
    thickness: float

    def height(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        """Signed heights of points above the plane."""
        return np.asarray(points @ self.normal - self.offset)

    def below(self, points: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, "n"]:
        """Mask of the points in the slab or beyond it."""
        return np.asarray(self.height(points) < self.thickness)


def bounding_planes(points: Float[np.ndarray, "n 3"], rng: np.random.Generator) -> list[Plane]:
    """Find the planes that have nearly all points on one side, the largest first; points of even density.

    RANSAC (Fischler & Bolles 1981) on triples of close points, then least squares on the inliers.
    """
    planes: list[Plane] = []
    rest = points.astype(np.float64)
    cell = max(_CELL, 3 * proximity.median_spacing(rest, neighbor=1)) if len(rest) > 1 else _CELL
    while len(planes) < _MAX_PLANES and len(rest) > 3 and (plane := _largest(rest, cell, rng)) is not None:
        planes.append(plane)
        rest = rest[~plane.below(rest)]
    return planes


def connected_parts(points: Float[np.ndarray, "n 3"]) -> Int[np.ndarray, "n"]:
    """Part number of each point: points closer than the gap are connected; points of even density."""
    gap = max(MIN_GAP, 4 * proximity.median_spacing(points, neighbor=1))
    a, b = cKDTree(points).query_pairs(gap, output_type="ndarray").T
    graph = coo_array((np.ones(len(a), dtype=np.bool_), (a, b)), shape=(len(points), len(points)))
    return np.asarray(connected_components(graph, directed=False)[1])


def _largest(points: Float[np.ndarray, "n 3"], cell: float, rng: np.random.Generator) -> Plane | None:
    """The bounding plane of the largest area, if it has at least `MIN_AREA`."""
    sample = points[rng.permutation(len(points))[:_SAMPLE]]
    best, largest = None, 0.0
    if not (planes := plane_hypotheses(sample, rng)):
        return None
    heights = sample @ np.stack([plane.normal for plane in planes]).T - [plane.offset for plane in planes]
    for index in np.flatnonzero((heights < -BEYOND_DEPTH).mean(axis=0) <= _MAX_BEYOND):
        plane = planes[index]
        area = _area(sample[np.abs(heights[:, index]) < MIN_THICKNESS], plane, cell)
        if area > largest:
            best, largest = plane, area
    if best is None:
        return None
    for _ in range(5):
        best = refit_plane(points, best)
    height = best.height(points)
    is_bounding = (height < -BEYOND_DEPTH).mean() <= _MAX_BEYOND
    return best if is_bounding and _area(points[np.abs(height) < best.thickness], best, cell) > MIN_AREA else None


def plane_hypotheses(points: Float[np.ndarray, "n 3"], rng: np.random.Generator) -> list[Plane]:
    """Planes through triples of points, oriented to the side of most points."""
    first = rng.integers(len(points), size=_NUM_HYPOTHESES)
    some = rng.permutation(len(points))[:_NEIGHBORS]
    around = cKDTree(points[some]).query_ball_point(points[first], _TRIPLE_RADIUS)
    counts = np.array([len(near) for near in around])
    starts = np.cumsum(counts) - counts
    near = np.append(some[np.concatenate(around).astype(int)], 0)
    drawn = (rng.random((2, len(first))) * counts).astype(int)  # two of the points around each, or one twice
    second, third = np.where(counts > 0, near[starts + drawn], first)
    a, b, c = points[first], points[second], points[third]
    cross = np.cross(b - a, c - a)
    size = np.linalg.norm(cross, axis=1)
    good = size > 1e-4  # a square centimeter
    normals, offsets = cross[good] / size[good, None], ((cross * a).sum(axis=1) / size.clip(1e-12))[good]
    sides = np.where((points @ normals.T > offsets).mean(axis=0) >= 0.5, 1.0, -1.0)
    return [
        Plane(side * normal, float(side * offset), MIN_THICKNESS)
        for side, normal, offset in zip(sides, normals, offsets, strict=True)
    ]


def refit_plane(points: Float[np.ndarray, "n 3"], plane: Plane) -> Plane:
    """Plane of least squares through the inliers of a plane; thickness: three robust standard deviations."""
    inliers = points[np.abs(plane.height(points)) < plane.thickness]
    center = inliers.mean(axis=0)
    normal = np.linalg.svd(inliers - center, full_matrices=False)[2][2]
    normal = normal * (1.0 if normal @ plane.normal > 0 else -1.0)
    offset = float(normal @ center)
    std = 1.4826 * float(np.median(np.abs(inliers @ normal - offset)))  # MAD of a normal distribution
    return Plane(normal, offset, float(np.clip(3 * std, MIN_THICKNESS, _MAX_THICKNESS)))


def _area(inliers: Float[np.ndarray, "n 3"], plane: Plane, cell: float) -> float:
    """Area (square meters) that points of a plane cover, by occupied cells of a grid."""
    across = np.linalg.svd(plane.normal[None])[2][1:]
    return len(np.unique(np.floor(inliers @ across.T / cell).astype(int), axis=0)) * cell**2
