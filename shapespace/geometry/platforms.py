"""Platforms under a person in a scan (meters, y up), such as turntables, scales and boards."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import binary_dilation, binary_erosion, convolve, label
from scipy.spatial import ConvexHull, cKDTree

from shapespace.geometry import proximity
from shapespace.geometry.segmentation import BEYOND_DEPTH, MIN_THICKNESS, Plane, plane_hypotheses, refit_plane

# Square meters of a level surface on which nothing stands. 180 synthetic people alone, many of them in wide poses, have
# at most 0.057, of 1,500 points 0.082; boards of 0.3 m with a fifth of the density of a person 0.075 and more.
MIN_PLATFORM = 0.06
MIN_PLATFORM_FEW = 0.085  # the same for few points
_MANY = 2500
# Scales carry the feet on most of their area. A smaller free area is enough where the hull of the level points is large
# and covered: between the feet of people alone are gaps. People alone cover at most 0.56 of hulls of 0.03 square meters
# and more; with scales of 0.3 and 0.35 m, 0.88 to 1, and 0.009 square meters and more are free.
MIN_PLATFORM_FILLED = 0.008  # square meters of free area
_MIN_FILLED_HULL = 0.075  # square meters: more than two feet side by side
_MIN_FILLED = 0.8  # share of the hull that has points in it, or up to
_FILLED_HEIGHT = 0.1  # meters above it
_FILLED_CELL = 0.04  # meters
_PLATFORM_HEIGHT = 0.35  # meters above the lowest point: the top of a platform is below
_MIN_REFITTED = 0.9  # of the free area that a plane has before it is fitted to its points
_STANDING_HEIGHT = 0.3  # meters above it in which the feet on it have points
_MAX_WALLS = 0.7  # share of the edge of a platform with something on it: boards 0 to 0.4, bottoms of boxes 0.9 to 1
_MIN_STANDING = 0.015  # square meters on which something ends: on boards 0.024 and more, on boxes beside a person 0.009
_PLATFORM_CELL = 0.03  # meters
_MIN_SHARE = 0.08  # of the lowest points: a plane with fewer is no platform
_PLATFORM_SAMPLE = 600  # points from which its planes are drawn
_MIN_LEVEL = 0.99  # cosine of the tilt of a platform: 8 degrees


class Platform(NamedTuple):
    """Top of a platform, such as a turntable, and its area (square meters) on which nothing stands."""

    plane: Plane
    free_area: float


def find_platform(points: Float[np.ndarray, "n 3"], rng: np.random.Generator) -> Platform | None:
    """Find a platform under a person (meters, y up): level, at the bottom, with an area on which nothing stands.

    Soles of feet have the rest of the feet above them. Points of even density.
    """
    wide = points.astype(np.float64)
    if not len(wide):
        return None
    low = float(np.quantile(wide[:, 1], 0.001))
    bottom = wide[wide[:, 1] < low + _PLATFORM_HEIGHT]
    bottom = bottom[rng.permutation(len(bottom))[:_PLATFORM_SAMPLE]]
    if len(bottom) < 20:
        return None
    some = wide[rng.permutation(len(wide))[:_PLATFORM_SAMPLE]]
    radius = proximity.k_nearest_distance(some, wide, 8)
    cell = max(_PLATFORM_CELL, 1.5 * float(np.quantile(radius, 0.9)))  # has six points on average
    columns = _Columns(wide, cell)
    planes = [plane for plane in plane_hypotheses(bottom, rng) if abs(plane.normal[1]) > _MIN_LEVEL]
    heights = np.arange(low, low + _PLATFORM_HEIGHT, MIN_THICKNESS)
    # One in a thousand triples has all points on the top of a thinly measured board: level planes are tried, too.
    planes += [Plane(np.array([0.0, 1.0, 0.0]), float(height), MIN_THICKNESS) for height in heights]
    planes = [Plane(-p.normal, -p.offset, p.thickness) if p.normal[1] < 0 else p for p in planes]
    planes.sort(key=lambda plane: int((np.abs(plane.height(bottom)) < MIN_THICKNESS).sum()))
    middle = bottom.mean(axis=0)
    planes = [plane for plane in planes if (np.abs(plane.height(bottom)) < MIN_THICKNESS).mean() > _MIN_SHARE]
    by_height = {round(float(plane.height(middle[None])[0]) / MIN_THICKNESS): plane for plane in planes}
    found = [Platform(plane, _free_area(columns, plane)) for plane in by_height.values()]
    found = [one for one in found if one.free_area >= MIN_PLATFORM_FILLED and _carries(columns, one.plane)]
    best = max(found, key=lambda platform: platform.free_area, default=None)
    if best is None:
        return None
    plane = refit_plane(bottom, best.plane)
    area = _free_area(columns, plane)
    refitted = Platform(plane, area) if area > _MIN_REFITTED * best.free_area else best
    if best.free_area >= (MIN_PLATFORM if len(wide) > _MANY else MIN_PLATFORM_FEW):
        return refitted
    return refitted if len(wide) > _MANY and _is_covered(wide, refitted.plane) else None


def _is_covered(points: Float[np.ndarray, "n 3"], plane: Plane) -> bool:
    """Whether the points of a level plane have a large convex hull, nearly all of which has points in it or above."""
    height = plane.height(points)
    level = points[np.abs(height) < plane.thickness][:, [0, 2]]
    hull = ConvexHull(level)
    if hull.volume < _MIN_FILLED_HULL:  # an area, in two dimensions
        return False
    low, high = level.min(axis=0), level.max(axis=0)
    axes = [np.arange(a, b, _FILLED_CELL) + _FILLED_CELL / 2 for a, b in zip(low, high, strict=True)]
    places = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    inside = places[(places @ hull.equations[:, :2].T + hull.equations[:, 2] < 0).all(axis=1)]
    near = points[(height > -plane.thickness) & (height < _FILLED_HEIGHT)][:, [0, 2]]
    gap = cKDTree(near).query(inside)[0]
    return float(np.mean(gap < 0.75 * _FILLED_CELL)) > _MIN_FILLED


class _Columns:
    """Points (y up) by the cells of a horizontal grid, with one empty cell around all of them."""

    def __init__(self, points: Float[np.ndarray, "n 3"], cell: float) -> None:
        index = np.floor(points[:, [0, 2]] / cell).astype(int)
        self.points, self.area, self.index = points, cell**2, index - index.min(axis=0) + 1
        self.shape = self.index.max(axis=0) + 2

    def occupied(self, chosen: Bool[np.ndarray, "n"]) -> Bool[np.ndarray, "a b"]:
        """Cells that have chosen points."""
        occupied = np.zeros(self.shape, dtype=np.bool_)
        occupied[tuple(self.index[chosen].T)] = True
        return occupied

    def on(self, plane: Plane) -> tuple[Bool[np.ndarray, "a b"], Bool[np.ndarray, "a b"]]:
        """Cells that have points in a level plane, and those that have points just above it."""
        height = plane.height(self.points)
        standing = (height > plane.thickness) & (height < _STANDING_HEIGHT)
        return self.occupied(np.abs(height) < plane.thickness), self.occupied(standing)


def _free_area(columns: _Columns, plane: Plane) -> float:
    """Area of the cells of a level plane that have points in it and none just above, and two such neighbors at least.

    Not in the whole column above: the trunk and the arms are above most of a small board.
    """
    level, standing = columns.on(plane)
    free = (level & ~standing).astype(np.int8)
    neighbors = convolve(free, np.ones((3, 3), dtype=np.int8), mode="constant") - free
    return int((free * (neighbors >= 2)).sum()) * columns.area


def _carries(columns: _Columns, plane: Plane) -> bool:
    """Whether something stands on the free part of a level plane, which is not the bottom of a box.

    What stands on it ends there: the legs beside a box go on below its top. A box has walls on the edge of its bottom,
    or a level top over it.
    """
    level, standing = columns.on(plane)
    parts, _ = label(level, structure=np.ones((3, 3)))
    own = level & (parts == np.bincount(parts[level & ~standing]).argmax())
    if standing[own & ~binary_erosion(own)].mean() > _MAX_WALLS or _has_top(columns, plane, own & ~standing):
        return False
    height = plane.height(columns.points)
    between = (height < -2 * plane.thickness) & (height > height.min() + 2 * plane.thickness)
    around = np.ones((3, 3), dtype=np.bool_)  # a leg is thinner further down
    below = binary_dilation(columns.occupied(between), structure=around)
    on_it = columns.occupied((height > 2 * plane.thickness) & (height < _STANDING_HEIGHT))  # not its own upper points
    ends = own & on_it & ~below
    return bool(ends.sum() * columns.area >= _MIN_STANDING)


def _has_top(columns: _Columns, plane: Plane, free: Bool[np.ndarray, "a b"]) -> bool:
    """Whether a level surface is above nearly all free cells of a plane; trunk and arms above a board are not level."""
    height = plane.height(columns.points)
    above = height > _STANDING_HEIGHT
    lowest = np.full(free.shape, np.inf)
    np.minimum.at(lowest, tuple(columns.index[above].T), height[above])
    low, high = np.quantile(lowest[free], [0.05, 0.95], method="nearest")
    return bool(high < low + BEYOND_DEPTH)
