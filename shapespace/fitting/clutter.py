"""A person alone: floor, walls and what stands apart are taken out of a scan before it is fitted.

Planes are told by the points (`geometry.clutter`). Parts that touch no other one may be furniture, or a leg whose knee
no camera saw: so the space is asked, by quick fits, which parts are one person.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from shapespace.fitting.quality import OOD_THRESHOLD
from shapespace.geometry import proximity, segmentation
from shapespace.geometry.scan import MIN_POINTS, Scan

MAX_PART_DISTANCE = 0.03  # metres: a part of the person lies this close to what was fitted, at half of its points
MIN_PART_SHARE = 0.05  # share of the points from which on a part is asked about; what is less is left to the robust fit
MIN_PERSON_SHARE = (
    0.25  # share of the largest part's points from which on a part may be the person: a leg alone looks like one
)
_DENSE = 50_000  # points among which strays are told: fewer would stand too far apart
_SAMPLED = 10_000  # points by which planes and parts are found


class QuickFit(NamedTuple):
    """A quick fit: the oddness of its code, and the distance of points (metres) from its surface."""

    ood_score: float
    distance: Callable[[Float[np.ndarray, "n 3"]], Float[np.ndarray, "n"]]


def remove_clutter(scan: Scan, quick_fit: Callable[[Scan], QuickFit] | None, *, seed: int = 0) -> Scan:
    """The scan (metres) without planes that bound it and parts that are not the person's; itself if there are none.

    `attempt` fits a part; without it only planes are taken out. What is left has at least as many points as a fit
    needs, or the scan is left as it is.
    """
    if len(scan) < MIN_POINTS:
        return scan
    rng = np.random.default_rng(seed)
    sample = scan.sample(_DENSE, rng).remove_statistical_outliers().sample(_SAMPLED, rng)
    found = segmentation.bounding_planes(sample.points, rng)
    sample = sample.select(np.flatnonzero(_off(found, sample.points)))
    if len(sample) < MIN_POINTS:
        return scan
    parts = segmentation.connected_parts(sample.points)
    kept = np.ones(parts.max() + 1, dtype=np.bool_)
    if quick_fit is not None:
        kept = parts_of_person(sample, parts, quick_fit)
    if not found and kept.all():
        return scan
    off = _off(found, scan.points)
    _, near = proximity.nearest_point(scan.points, sample.points)
    alone = scan.mask(off & kept[parts[near]])
    return alone if len(alone) >= MIN_POINTS else scan


def _off(planes: list[segmentation.Plane], points: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, "n"]:
    return ~np.any([plane.below(points) for plane in planes], axis=0) if planes else np.ones(len(points), np.bool_)


def parts_of_person(
    scan: Scan, parts: Int[np.ndarray, "n"], quick_fit: Callable[[Scan], QuickFit]
) -> Bool[np.ndarray, "p"]:
    """Which parts of a sample are one person: all that the fit of all explains, or else those that go together.

    The largest part that looks like a person is taken for one, and others are added while the fit of all of them does.
    A part much smaller than the largest is no person: the less there is, the easier it is to look like one.
    """

    def fit(which: list[int]) -> QuickFit:
        return quick_fit(scan.select(np.flatnonzero(np.isin(parts, which))))

    def explains(tried: QuickFit, which: list[int]) -> bool:
        away = [float(np.median(tried.distance(scan.points[parts == part]))) for part in which]
        return tried.ood_score <= OOD_THRESHOLD and max(away) < MAX_PART_DISTANCE

    sizes = np.bincount(parts)
    kept = np.ones(len(sizes), dtype=np.bool_)
    order = np.argsort(-sizes).tolist()
    large = [part for part in order if sizes[part] >= max(MIN_PART_SHARE * len(parts), MIN_POINTS)]
    if len(large) < 2 or explains(fit(large), large):
        return kept
    alone = {part: fit([part]) for part in large}
    whole = [part for part in large if sizes[part] >= MIN_PERSON_SHARE * sizes[large[0]]]
    first = next(
        (part for part in whole if alone[part].ood_score <= OOD_THRESHOLD),
        min(whole, key=lambda part: alone[part].ood_score),
    )
    person, tried = [first], alone[first]
    for part in large:
        if part != first and explains(more := fit([*person, part]), [*person, part]):
            person, tried = [*person, part], more
    for part in order:
        kept[part] = part in person if part in large else explains(tried, [part])
    return kept


Clutter = Literal["remove", "keep"]
