"""Density of points: which ones are strays, and a subset of even density where parts are measured thinly.

A stray is alone or fills space; a thinly measured part is a surface, too. Around a point of a surface the 8th neighbor
is 3.7 times as far as the nearest, in a cloud that fills space 2.4 times: the dimension that follows tells them apart.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from shapespace.geometry import proximity

NEIGHBOR = 8  # a point is far from the others if its 8th neighbor
FAR_RATIO = 3.0  # is this many times as far as that of the median point,
MIN_FAR = 0.02  # and far points are judged only above this share, or if they can be a part: else rims and corners
STRAY_RATIO = 2.0  # the distance that counts for the area of a point where strays were removed
MAX_RATIO = 8.0  # the distance that counts for the area of a point: parts thinned 64 times
# Mean of ln(8th / nearest distance) times the dimension, for uniform points: digamma(8) - digamma(1). With the second
# neighbor instead of the nearest, strays in a flat box around a sparse person look like a surface.
_GROWTH = 2.593
_SMOOTH = 64  # far points around one, over which the dimension is averaged; fewer are no part
# Dimension of all far points above which they are mostly strays: parts of people thinned 10 to 50 times have up to
# 2.17, uniform points in boxes of 1 to 2 times the size of a person, 6 to 20 % of 1,500 to 10,000 points, 2.22 to 3.
MAX_DIMENSION = 2.2
_MIN_STRAY = 2.15  # the same around a point, above which it is a stray among strays
_MIN_STRAY_ON_PART = 2.5  # and where most far points are a part
_LOCAL_RATIO = 3.0  # a far point is alone if its 8th far neighbor is this many times as far as around it
THIN_AREA = 0.3  # share of the area: its most thinly measured part
# Of the points in that part: fewer starve. Raw and even scans of people: 0.13 to 0.19; limbs thinned 5 times: 0.04 to
# 0.08.
MIN_THIN_SHARE = 0.1
DRAWN = 8192  # points that are drawn evenly, with repetitions
MIN_EVEN = 700  # points that a subset of even density has at least


def strays(points: Float[np.ndarray, "n 3"], distance: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Mask of points that belong to no surface; `distance` is that to the 8th neighbor of each.

    None, if at most 2 % and 64 are far from the others. Of the far points those are strays that fill space, and those
    that are alone among their neighbors; what most of them are decides the doubtful ones.
    """
    far = distance > FAR_RATIO * np.median(distance)
    if far.mean() <= MIN_FAR and far.sum() <= _SMOOTH:
        return np.zeros(len(points), dtype=np.bool_)
    if far.sum() <= _SMOOTH:
        return far  # too few to be a part
    some, copies = np.unique(points[far].astype(np.float64), axis=0, return_inverse=True)
    if len(some) <= _SMOOTH:
        return far
    length, near = (np.asarray(values) for values in cKDTree(some).query(some, k=_SMOOTH + 1))
    outer, near = length[:, NEIGHBOR], near[:, 1:]
    growth = np.log(outer / length[:, 1])
    dimension = _GROWTH / growth[near].mean(axis=1)
    least = _MIN_STRAY if _GROWTH / growth.mean() > MAX_DIMENSION else _MIN_STRAY_ON_PART
    alone = outer > _LOCAL_RATIO * np.median(outer[near], axis=1)
    mask = np.zeros(len(points), dtype=np.bool_)
    mask[far] = ((dimension > least) | alone)[copies.reshape(-1)]
    return mask


def limited(distance: Float[np.ndarray, "n"], *, had_strays: bool = False) -> Float[np.ndarray, "n"]:
    """The distances up to a limit, which is lower for a few far points, and where strays were removed.

    Those are not judged, and can be strays in the space around a person: five of them in 3,000 would stand for more
    area than all the rest. Where strays were removed, others are left nearer to the person, of unknown area.
    """
    median = float(np.median(distance))
    few = int((distance > FAR_RATIO * median).sum()) <= _SMOOTH
    ratio = STRAY_RATIO if had_strays else FAR_RATIO if few else MAX_RATIO
    return np.minimum(distance, ratio * median)


def thin_share(distance: Float[np.ndarray, "n"]) -> float:
    """Share of the points in the 30 % of the area that are measured most thinly; 0.3 for even points.

    `distance` is that to the 8th neighbor: its square is proportional to the area of a point.
    """
    area = np.sort(np.square(distance, dtype=np.float64))[::-1]
    total = np.cumsum(area)
    return float(np.searchsorted(total, THIN_AREA * total[-1]) / len(area)) if total[-1] > 0 else 1.0


def thin_evenly(distance: Float[np.ndarray, "n"], rng: np.random.Generator) -> Int[np.ndarray, "k"]:
    """Indices of a subset of even density: as dense as the most thinly measured 30 % of the area."""
    area = np.square(distance, dtype=np.float64)
    order = np.sort(area)[::-1]
    total = np.cumsum(order)
    least = order[np.searchsorted(total, 0.5 * THIN_AREA * total[-1]).clip(max=len(order) - 1)]  # its median
    while np.minimum(area / least, 1).sum() < min(MIN_EVEN, 0.9 * len(area)):
        least *= 0.8
    return np.flatnonzero(rng.random(len(area)) * least < area)


def draw_evenly(distance: Float[np.ndarray, "n"], rng: np.random.Generator) -> Int[np.ndarray, "k"]:
    """Indices of 8,192 points drawn by their area: those of thin parts are repeated."""
    area = np.square(distance, dtype=np.float64)
    return rng.choice(len(area), DRAWN, p=area / area.sum())


def neighbor_distance(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
    """Distance from each point to its 8th neighbor."""
    return proximity.kth_neighbor_distance(points, neighbor=NEIGHBOR)
