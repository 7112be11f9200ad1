"""Remove floor, walls and furniture from a scan before fitting.

Planes are found in the points (`geometry.segmentation`). Parts that are separate from the rest can be furniture, or a
leg whose knee no camera saw: quick fits decide which parts are one person.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from shapespace.fitting.quality import OOD_THRESHOLD
from shapespace.geometry import proximity, segmentation
from shapespace.geometry.scan import MIN_POINTS, Scan

Clutter = Literal["remove", "keep"]
"""What happens to planes and parts of a scan that do not belong to the person."""

# Arbitrary values:
MAX_PART_DISTANCE = 0.03  # meters: at most the median distance of a person's part from the surface of the fit
MIN_PART_SHARE = 0.05  # of the points: smaller parts are not fitted, the robust loss tolerates them
MIN_PERSON_SHARE = 0.25  # of the points of the largest part: a leg alone has a low ood score too
OUTLIER_POINTS = 50_000  # points among which outliers are searched; fewer would be too far apart
SAMPLE_POINTS = 10_000  # points in which planes and parts are searched


class QuickFit(NamedTuple):
    """Result of a fit of few steps."""

    ood_score: float
    distance: Callable[[Float[np.ndarray, "n 3"]], Float[np.ndarray, "n"]]
    """Distance of world points from the surface, in meters."""


def remove_clutter(scan: Scan, quick_fit: Callable[[Scan], QuickFit] | None, *, seed: int = 0) -> Scan:
    """Remove planes that bound the scan (meters) and parts that are not the person's.

    `quick_fit` fits a part of the scan; without it only planes are removed. The scan itself is returned if there is
    nothing to remove, or if fewer points than a fit needs would remain.
    """
    if len(scan) < MIN_POINTS:
        return scan
    rng = np.random.default_rng(seed)
    sample = scan.sample(OUTLIER_POINTS, rng).remove_statistical_outliers().sample(SAMPLE_POINTS, rng)
    planes = segmentation.bounding_planes(sample.points, rng)
    sample = sample.select(np.flatnonzero(_above_planes(planes, sample.points)))
    if len(sample) < MIN_POINTS:
        return scan
    parts = segmentation.connected_parts(sample.points)
    is_person = np.ones(parts.max() + 1, dtype=np.bool_)
    if quick_fit is not None:
        is_person = parts_of_person(sample, parts, quick_fit)
    if not planes and is_person.all():
        return scan
    above = _above_planes(planes, scan.points)
    _, nearest = proximity.nearest_point(scan.points, sample.points)
    person = scan.mask(above & is_person[parts[nearest]])
    return person if len(person) >= MIN_POINTS else scan


def _above_planes(planes: Sequence[segmentation.Plane], points: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, "n"]:
    return ~np.any([plane.below(points) for plane in planes], axis=0) if planes else np.ones(len(points), np.bool_)


def parts_of_person(
    scan: Scan, parts: Int[np.ndarray, "n"], quick_fit: Callable[[Scan], QuickFit]
) -> Bool[np.ndarray, "p"]:
    """Mask of the parts that are the person; `parts` has the part number of each point of a sample of the scan.

    All parts, if one fit explains the large ones: in distribution, and close to each of them. Otherwise the largest
    part that is in distribution, and each further one with which the fit of all of them still explains all. Parts much
    smaller than the largest are not a person: the fewer the points, the lower the ood score of any object.
    """

    def fit_parts(which: list[int]) -> QuickFit:
        return quick_fit(scan.select(np.flatnonzero(np.isin(parts, which))))

    def explains(fit: QuickFit, which: list[int]) -> bool:
        distances = [float(np.median(fit.distance(scan.points[parts == part]))) for part in which]
        return fit.ood_score <= OOD_THRESHOLD and max(distances) < MAX_PART_DISTANCE

    sizes = np.bincount(parts)
    is_person = np.ones(len(sizes), dtype=np.bool_)
    order = np.argsort(-sizes).tolist()
    large = [part for part in order if sizes[part] >= max(MIN_PART_SHARE * len(parts), MIN_POINTS)]
    if len(large) < 2 or explains(fit_parts(large), large):
        return is_person
    single = {part: fit_parts([part]) for part in large}
    possible = [part for part in large if sizes[part] >= MIN_PERSON_SHARE * sizes[large[0]]]
    first = next(
        (part for part in possible if single[part].ood_score <= OOD_THRESHOLD),
        min(possible, key=lambda part: single[part].ood_score),
    )
    person, fit = [first], single[first]
    for part in large:
        if part != first and explains(extended := fit_parts([*person, part]), [*person, part]):
            person, fit = [*person, part], extended
    for part in order:
        is_person[part] = part in person if part in large else explains(fit, [part])
    return is_person
