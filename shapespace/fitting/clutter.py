"""Remove floor, walls and furniture from a scan before fitting.

Planes are found in the points (`geometry.surroundings`). Parts that are separate from the rest can be furniture, or a
leg whose knee no camera saw: quick fits decide which parts are one person.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from shapespace.geometry import proximity
from shapespace.geometry.findings import Finding
from shapespace.geometry.scan import MIN_POINTS, Scan
from shapespace.geometry.surroundings import MIN_ASKED_SHARE, Surroundings, find_surroundings, part_values
from shapespace.nn.latent import OOD_THRESHOLD

Clutter = Literal["remove", "keep"]
"""What happens to planes and parts of a scan that do not belong to the person."""

# Arbitrary values:
MAX_PART_DISTANCE = 0.03  # meters: at most the median distance of a person's part from the surface of the fit
MIN_PART_SHARE = 0.05  # of the points: smaller parts are judged by the fit of the others
MIN_REMOVED_SHARE = 0.005  # of the points: the robust loss tolerates fewer
MIN_ASKED_SHARE_UNEVEN = MIN_PART_SHARE  # where thinly measured limbs fall to pieces, small parts are kept
MAX_LIMB_DISTANCE = 0.015  # meters: the same for a small part away from the fit of the others, once it is fitted too
LIMB_SCORE = 2.5  # ood score of a fit with a limb beyond a gap: people have 1 to 3
# A limb of few points is approached less closely, but makes the fit no odder: hands and forearms beyond gaps 0.9 to 1.3
# times, up to 19 mm away; bags, balls and boxes 1.6 times and more, or at least 80 mm away.
MAX_ODDER = 1.4
LIMB_QUANTILE = 0.97  # of the distances of the person's points: a limb has some per cent of them, and with a true part
MAX_LOSS = 1.25  # they may grow by this factor
MAX_LIMBS = 3  # small parts that are fitted together with the person
MIN_PERSON_SHARE = 0.25  # of the points of the largest part: a leg alone has a low ood score too


class QuickFit(NamedTuple):
    """Result of a fit of few steps."""

    ood_score: float
    distance: Callable[[Float[np.ndarray, "n 3"]], Float[np.ndarray, "n"]]
    """Distance of world points from the surface, in meters."""


def remove_clutter(scan: Scan, quick_fit: Callable[[Scan], QuickFit] | None, *, seed: int = 0) -> Scan:
    """Remove planes that bound the scan (meters) and parts that are not the person's.

    `quick_fit` fits a part of the scan; without it only planes are removed. The scan itself is returned if there is
    nothing to remove, or if fewer points than a fit needs would remain. What was removed is in the findings.
    """
    if len(scan) < MIN_POINTS:
        return scan
    around = find_surroundings(scan, seed=seed)
    if around is None:
        return scan
    is_person = np.ones(around.parts.max() + 1, dtype=np.bool_)
    if quick_fit is not None:
        is_uneven = any(found.code == "uneven-density" for found in around.sample.findings)
        asked = MIN_ASKED_SHARE_UNEVEN if is_uneven else MIN_ASKED_SHARE
        is_person = parts_of_person(around.sample, around.parts, quick_fit, asked)
    has_surface = bool(around.planes) or around.platform is not None
    if not has_surface and is_person.all():
        return scan
    on = around.above(scan.points)
    _, nearest = proximity.nearest_point(scan.points, around.sample.points)
    person = scan.mask(on & is_person[around.parts[nearest]])
    if len(person) < MIN_POINTS:
        return scan
    if not has_surface and len(person) > (1 - MIN_REMOVED_SHARE) * len(scan):
        return scan
    found = [Finding("clutter-removed", {"share": round(1 - len(person) / len(scan), 4)})]
    if around.platform is not None:
        share = float((around.above_planes(scan.points) & ~on).mean())
        values = {"area": round(around.platform.free_area, 3), "share": round(share, 4)}
        found.append(Finding("platform-removed", values))
    if np.bincount(around.parts)[~is_person].max(initial=0) >= around.least_part:
        found.append(_left_out(around, is_person))
    return person.with_findings(*found)


def _left_out(around: Surroundings, is_person: Bool[np.ndarray, "p"]) -> Finding:
    """The finding about parts that are not the person's."""
    values = part_values(around, ~is_person, is_person)
    is_large = 2 * values["share"] * len(around.parts) > is_person[around.parts].sum() and values["size"] > 1.2
    return Finding("parts-left-out", {**values, "like": "another person" if is_large else "an object"})


def parts_of_person(
    scan: Scan, parts: Int[np.ndarray, "n"], quick_fit: Callable[[Scan], QuickFit], least: float = MIN_ASKED_SHARE
) -> Bool[np.ndarray, "p"]:
    """Mask of the parts that are the person; `parts` has the part number of each point of a sample of the scan.

    All large parts, if one fit explains them: in distribution, and close to each of them. Otherwise the largest part
    that is in distribution, and each further one with which the fit of all of them still explains all. Parts much
    smaller than the largest are not a person: the fewer the points, the lower the ood score of any object. A small part
    is the person's if it is where the fit of the large ones is, or a limb beyond a gap: a fit of all is as close to it
    as to the others, and no odder.
    """

    def fit_parts(which: list[int]) -> QuickFit:
        return quick_fit(scan.select(np.flatnonzero(np.isin(parts, which))))

    def explains(fit: QuickFit, which: list[int]) -> bool:
        distances = [float(np.median(fit.distance(scan.points[parts == part]))) for part in which]
        return fit.ood_score <= OOD_THRESHOLD and max(distances) < MAX_PART_DISTANCE

    sizes = np.bincount(parts)
    order = np.argsort(-sizes).tolist()
    large = [part for part in order if sizes[part] >= max(MIN_PART_SHARE * len(parts), MIN_POINTS)] or order[:1]
    small = [part for part in order if part not in large]
    asked = [part for part in small if sizes[part] >= least * len(parts)]
    if len(large) < 2 and not asked:
        return np.ones(len(sizes), dtype=np.bool_)
    person, fit = _large_parts(large, sizes, fit_parts, explains)
    if not np.isfinite(fit.ood_score):  # nothing has the size of a person, which the check of the size says
        return np.ones(len(sizes), dtype=np.bool_)
    is_person = np.isin(np.arange(len(sizes)), person)
    judged = small if least <= MIN_ASKED_SHARE else asked
    far = [part for part in judged if not explains(fit, [part])]
    is_person[[part for part in small if part not in far]] = True
    own = scan.points[is_person[parts]]
    allowed = MAX_LOSS * float(np.quantile(fit.distance(own), LIMB_QUANTILE)) + MAX_PART_DISTANCE / 10
    for part in [part for part in far if part in asked][:MAX_LIMBS]:
        extended = fit_parts([*person, part])
        distance = float(np.median(extended.distance(scan.points[parts == part])))
        loses = float(np.quantile(extended.distance(own), LIMB_QUANTILE)) > allowed
        is_near = distance < MAX_LIMB_DISTANCE and extended.ood_score <= max(fit.ood_score, LIMB_SCORE)
        is_usual = distance < MAX_PART_DISTANCE and extended.ood_score <= MAX_ODDER * fit.ood_score
        if (is_near or is_usual) and not loses:
            is_person[part] = True
    return is_person


def _large_parts(
    large: list[int],
    sizes: Int[np.ndarray, "p"],
    fit_parts: Callable[[list[int]], QuickFit],
    explains: Callable[[QuickFit, list[int]], bool],
) -> tuple[list[int], QuickFit]:
    """The large parts that are the person, and their fit."""
    together = fit_parts(large)
    if len(large) < 2 or explains(together, large):
        return large, together
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
    return person, fit
