"""What is around a person in a scan: bounding planes, a platform under the feet, and parts apart from the rest."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from shapespace.geometry import proximity, segmentation
from shapespace.geometry.findings import Finding
from shapespace.geometry.platforms import Platform, find_platform
from shapespace.geometry.scan import MIN_POINTS, Scan

OUTLIER_POINTS = 50_000  # points among which outliers are searched; fewer would be too far apart
SAMPLE_POINTS = 10_000  # points in which planes and parts are searched
MIN_ASKED_SHARE = 0.002  # of the points: smaller parts are specks
MIN_TOLD_POINTS = 8  # of a sample: fewer are no thing of which a size can be told
# Meters around a part that `check_surroundings` names. Limbs beyond gaps of raw scans: 4 of 160 synthetic people have
# such a part 0.05 to 0.13 m away, one of them farther than this.
MIN_FOUND_GAP = 0.08


class Surroundings(NamedTuple):
    """What was found in a sample of a scan (meters, y up)."""

    sample: Scan
    """Points of even density, without those of the planes and the platform."""
    planes: Sequence[segmentation.Plane]
    platform: Platform | None
    parts: Int[np.ndarray, "n"]
    """Part number of each point of the sample."""

    def above_planes(self, points: Float[np.ndarray, "k 3"]) -> Bool[np.ndarray, "k"]:
        """Mask of the points that belong to no plane and are not beyond one."""
        return _above(self.planes, points)

    def above(self, points: Float[np.ndarray, "k 3"]) -> Bool[np.ndarray, "k"]:
        """Mask of the points that belong neither to a plane nor to the platform."""
        above = self.above_planes(points)
        return above if self.platform is None else above & ~self.platform.plane.below(points)

    @property
    def least_part(self) -> float:
        """Points of the sample that a part has at least; others are specks."""
        return max(MIN_ASKED_SHARE * len(self.parts), float(MIN_TOLD_POINTS))


def find_surroundings(scan: Scan, *, seed: int = 0) -> Surroundings | None:
    """The surroundings of a person; None if too few points are left without planes and platform."""
    rng = np.random.default_rng(seed)
    sample = scan.sample(OUTLIER_POINTS, rng).even_out(seed=seed).sample(SAMPLE_POINTS, rng)
    planes = segmentation.bounding_planes(sample.points, rng)
    sample = sample.select(np.flatnonzero(_above(planes, sample.points)))
    platform = None if any(abs(plane.normal[1]) > 0.9 for plane in planes) else _platform(sample, rng)
    if platform is not None:
        sample = sample.select(np.flatnonzero(~platform.plane.below(sample.points)))
    if len(sample) < MIN_POINTS:
        return None
    return Surroundings(sample, planes, platform, segmentation.connected_parts(sample.points))


def check_surroundings(scan: Scan, *, seed: int = 0) -> Scan:
    """The scan (meters, y up) itself, with findings about planes, a platform, and parts that may be no person."""
    if len(scan) < MIN_POINTS:
        return scan
    around = find_surroundings(scan, seed=seed)
    if around is None:
        return scan
    found = []
    above = around.above_planes(scan.points)
    if around.planes:
        values = {"count": len(around.planes), "share": round(float(1 - above.mean()), 4)}
        found.append(Finding("planes-found", values))
    if around.platform is not None:
        share = float((above & around.platform.plane.below(scan.points)).mean())
        values = {"area": round(around.platform.free_area, 3), "share": round(share, 4)}
        found.append(Finding("platform-found", values))
    is_apart = _apart(around)
    if is_apart.any():
        sizes = np.bincount(around.parts)
        found.append(Finding("parts-found", part_values(around, is_apart, sizes > sizes[is_apart].max())))
    return scan.with_findings(*found)


def _apart(around: Surroundings) -> Bool[np.ndarray, "p"]:
    """Mask of the parts that are no specks and far from all larger ones."""
    sizes, points = np.bincount(around.parts), around.sample.points
    is_apart = sizes >= around.least_part
    is_apart[sizes.argmax()] = False
    for part in np.flatnonzero(is_apart):
        larger = (sizes > sizes[part])[around.parts]
        is_apart[part] = proximity.nearest_point(points[around.parts == part], points[larger])[0].min() > MIN_FOUND_GAP
    return is_apart


def part_values(
    around: Surroundings, is_apart: Bool[np.ndarray, "p"], is_person: Bool[np.ndarray, "p"]
) -> dict[str, Any]:
    """Number of the parts that are not the person's; share, size and distance (m) of the largest of them."""
    largest = int(np.where(is_apart, np.bincount(around.parts), 0).argmax())
    own, person = around.sample.points[around.parts == largest], around.sample.points[is_person[around.parts]]
    return {
        "count": int(is_apart.sum()),
        "share": round(float((around.parts == largest).mean()), 4),
        "size": round(float(np.ptp(own, axis=0).max()), 2),
        "distance": round(float(proximity.nearest_point(own, person)[0].min()), 2),
    }


def _platform(sample: Scan, rng: np.random.Generator) -> Platform | None:
    """A platform, unless it is most of what there is."""
    platform = find_platform(sample.points, rng)
    return None if platform is None or platform.plane.below(sample.points).mean() > 0.5 else platform


def _above(planes: Sequence[segmentation.Plane], points: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, "n"]:
    return ~np.any([plane.below(points) for plane in planes], axis=0) if planes else np.ones(len(points), np.bool_)
