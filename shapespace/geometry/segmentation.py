"""What stands about in a scan: planes that bound it (floor, walls), and parts that touch no other one.

All of it is told by points alone, in metres, however the scan lies.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from shapespace.geometry import proximity

AREA = 0.6  # square metres of a plane; of people kept for tuning, at most 0.41 lie in one that bounds them
GAP = 0.05  # between two parts, at least
_PLANES = 4  # a floor and three walls
_GUESSES = 500
_NEAR = 0.5  # metres within which a guess takes its three points
_THIN, _THICK = 0.01, 0.02  # a guess is thin; a found plane is as thick as its points ask for, between these
_BEYOND = 0.02  # share of the points that may lie further than this beyond a plane that bounds
_DEPTH = 0.03  # metres: a board's other side belongs to it
_CELL = 0.05  # of the grid on which area is counted
_LOOKED_AT = 3000  # points by which guesses are compared


@dataclass(frozen=True)
class Plane:
    """The slab around `normal . x == offset`, `thickness` to either side; the normal points to where the scan lies."""

    normal: Float[np.ndarray, "3"]
    offset: float
    thickness: float

    def height(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        """How far the points lie above the plane."""
        return np.asarray(points @ self.normal - self.offset)

    def below(self, points: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, "n"]:
        """Which points belong to the plane, or lie beyond it."""
        return np.asarray(self.height(points) < self.thickness)


def bounding_planes(points: Float[np.ndarray, "n 3"], rng: np.random.Generator) -> list[Plane]:
    """Find the planes that bound points of even density, the largest first: nearly all others lie on one side.

    By RANSAC (Fischler & Bolles 1981) on triples of neighbours, then least squares on what a guess caught.
    """
    found: list[Plane] = []
    rest = points.astype(np.float64)
    cell = max(_CELL, 3 * proximity.median_spacing(rest, neighbor=1)) if len(rest) > 1 else _CELL
    while len(found) < _PLANES and len(rest) > 3 and (plane := _largest(rest, cell, rng)) is not None:
        found.append(plane)
        rest = rest[~plane.below(rest)]
    return found


def connected_parts(points: Float[np.ndarray, "n 3"]) -> Int[np.ndarray, "n"]:
    """Number the parts of points of even density: a chain of steps shorter than the gap joins what is one."""
    gap = max(GAP, 4 * proximity.median_spacing(points, neighbor=1))
    a, b = cKDTree(points).query_pairs(gap, output_type="ndarray").T
    graph = coo_array((np.ones(len(a), dtype=np.bool_), (a, b)), shape=(len(points), len(points)))
    return np.asarray(connected_components(graph, directed=False)[1])


def _largest(points: Float[np.ndarray, "n 3"], cell: float, rng: np.random.Generator) -> Plane | None:
    few = points[rng.permutation(len(points))[:_LOOKED_AT]]
    best, most = None, 0.0
    for plane in _guesses(few, rng):
        height = plane.height(few)
        if (height < -_DEPTH).mean() <= _BEYOND and (area := _area(few[np.abs(height) < _THIN], plane, cell)) > most:
            best, most = plane, area
    if best is None:
        return None
    for _ in range(5):
        best = _fitted(points, best)
    height = best.height(points)
    bounds = (height < -_DEPTH).mean() <= _BEYOND
    return best if bounds and _area(points[np.abs(height) < best.thickness], best, cell) > AREA else None


def _guesses(points: Float[np.ndarray, "n 3"], rng: np.random.Generator) -> list[Plane]:
    """Planes through triples, each turned to the side on which most points lie."""
    first = rng.integers(len(points), size=_GUESSES)
    around = cKDTree(points).query_ball_point(points[first], _NEAR)
    triples = np.array([[a, *rng.choice(near, 2)] for a, near in zip(first, around, strict=True)])
    a, b, c = points[triples].swapaxes(0, 1)
    cross = np.cross(b - a, c - a)
    size = np.linalg.norm(cross, axis=1)
    good = size > 1e-4  # a square centimetre
    normals, offsets = cross[good] / size[good, None], ((cross * a).sum(axis=1) / size.clip(1e-12))[good]
    made = []
    for normal, offset in zip(normals, offsets, strict=True):
        side = 1.0 if np.mean(points @ normal > offset) >= 0.5 else -1.0
        made.append(Plane(side * normal, float(side * offset), _THIN))
    return made


def _fitted(points: Float[np.ndarray, "n 3"], guess: Plane) -> Plane:
    """The plane of least squares through what a plane holds, as thick as three deviations of it."""
    on = points[np.abs(guess.height(points)) < guess.thickness]
    middle = on.mean(axis=0)
    normal = np.linalg.svd(on - middle, full_matrices=False)[2][2]
    normal = normal * (1.0 if normal @ guess.normal > 0 else -1.0)
    offset = float(normal @ middle)
    spread = 1.4826 * float(np.median(np.abs(on @ normal - offset)))
    return Plane(normal, offset, float(np.clip(3 * spread, _THIN, _THICK)))


def _area(on: Float[np.ndarray, "n 3"], plane: Plane, cell: float) -> float:
    """Square metres that points of a plane cover, by the cells of a grid."""
    across = np.linalg.svd(plane.normal[None])[2][1:]
    return len(np.unique(np.floor(on @ across.T / cell).astype(int), axis=0)) * cell**2
