"""Findings about a scan: what was unusual in it and what was done about it, each with a stable code.

`FINDINGS` is the only list of them. A scan has its findings in `Scan.findings`; the commands print them, and
`fits.json` stores them. A code is never given another meaning. The list for users is docs/reference/findings.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FINDINGS: dict[str, str] = {
    # Reading. Lengths are in the unit of the file.
    "origin-moved": (
        "{name} is {distance:,.0f} units from the origin of its file and is processed relative to {origin}; results "
        "are written at its place in the file."
    ),
    "coarse-coordinates": (
        "coordinates of {name} are multiples of {step:.2g} units: float32 is too coarse at {distance:,.0f} units from "
        "the origin. Export it in double precision, or relative to a nearer origin."
    ),
    "unmeasured-points-dropped": (
        "dropped {count:,} of {total:,} points of {name} that are NaN or infinite (unmeasured)."
    ),
    "zero-points-dropped": "dropped {count:,} of {total:,} points of {name} at exactly (0, 0, 0) (unmeasured).",
    "repeated-points-dropped": (
        "dropped {count:,} of {total:,} points of {name} that all equal {point}: no surface has one point so often."
    ),
    "low-confidence-points-dropped": (
        "dropped {count:,} of {total:,} points of {name} with a confidence of at most {level:g} (median {median:g})."
    ),
    "invalid-vertices-dropped": (
        "dropped {count:,} of {total:,} vertices of {name} that are not finite (the first is row {first:,}), with "
        "their {faces:,} faces."
    ),
    "unused-vertices-dropped": "dropped {count:,} of {total:,} vertices of {name} that belong to no face.",
    "far-points-dropped": (
        "dropped {count:,} of {total:,} points of {name}, up to {distance:.3g} units away from all others, with their "
        "{faces:,} faces."
    ),
    "colors-dropped": "ignored column {columns} of {name}: colors, not normals (by their range).",
    "columns-dropped": "ignored column {columns} of {name}: its meaning is unknown.",
    "array-transposed": "array of {name} has shape {shape}: read as {count:,} points in columns.",
    "points-without-normals-dropped": (
        "dropped {count:,} of {total:,} points of {name} whose normal has length zero or is NaN."
    ),
    "normals-dropped": (
        "{count:,} of {total:,} normals of {name} have length zero or are NaN: all normals are ignored."
    ),
    "transparent-splats-dropped": (
        "dropped {count:,} of {total:,} Gaussian splats of {name} with an opacity below {opacity:g}: no surface."
    ),
    "pose-applied": "vertices of {name} are in the pose of its file ({what}), not in its bind pose.",
    "trailing-data-ignored": "{count:,} bytes after the last element of {name} are ignored.",
    "depth-background": (
        "{share:.0%} of the depths of {name} are behind a gap at {depth:g} m and cover more than a person. --max-depth "
        "{depth:g} leaves them out."
    ),
    # How a scan is understood
    "unit-guessed": "unit of {name} guessed as {unit} (confidence {confidence:.0%}). --unit overrides it.",
    "clutter-removed": (
        "removed {share:.0%} of {name} (floor, walls, or parts apart from the person). --clutter keep fits them too."
    ),
    "frame-interpolated": "{name} is interpolated: {reason}",
    "unlikely-size": (
        "{name} is {size:.2f} m large, which is unlikely for a person (0.8 to 2.5 m). Check --unit (of depth images: "
        "depth_unit_scale_factor), or multiply the coordinates by {factor:.3g} for 1.7 m."
    ),
    # Density and clutter
    "uneven-density": (
        "density of {name} is uneven: the thinnest 30 % of the surface has {share:.1%} of the points. Points are drawn "
        "by the area that they stand for."
    ),
    "platform-removed": (
        "removed a platform under {name} ({area:.2f} m² on which nothing stands, {share:.0%} of the points). --clutter "
        "keep fits it too."
    ),
    "parts-left-out": (
        "left out {count} parts of {name} apart from the person; the largest has {share:.1%} of the points, is "
        "{size:.2f} m large, {distance:.2f} m away, and like {like}. --clutter keep fits them too."
    ),
    # The same in `preprocess`, which keeps all points
    "planes-found": (
        "{share:.0%} of {name} are in {count} planes or beyond them (floor, walls). They are stored: cut them from the "
        "file, or reject such scans with --strict."
    ),
    "platform-found": (
        "{name} has a platform under the feet ({area:.2f} m² on which nothing stands, {share:.0%} of the points). It "
        "is stored: cut it from the file, or reject such scans with --strict."
    ),
    "parts-found": (
        "{count} parts of {name} are apart from the rest; the largest has {share:.1%} of the points, is {size:.2f} m "
        "large and {distance:.2f} m away. They are stored: if it is no part of the person, cut it from the file, or "
        "reject such scans with --strict."
    ),
    # Faces, normals and sensors
    "faces-turned": (
        "faces of {name} point inward ({share:.0%}): turned. If one axis was negated by the program that wrote them, "
        "left and right are exchanged: export the file again."
    ),
    "faces-oriented": "{share:.0%} of the surface of {name} has faces of the wrong side: its points are oriented anew.",
    "normals-turned": "normals of {name} point inward ({share:.0%}): turned.",
    "normals-oriented": "{share:.0%} of the normals of {name} have the wrong sign: oriented anew.",
    "normals-unoriented": "signs of the normals of {name} are unsure: used as lines of either side.",
    "normals-disagree": (
        "normals of {name} are not perpendicular to its points (median angle {angle} degrees): ignored, estimated anew."
    ),
    "normals-ignored": "{share:.0%} of the vertex normals of {name} disagree with its faces: the faces are used.",
    "sensors-dropped": (
        "{share:.0%} of the surface of {name} does not face the sensor that is given for it: the sensors are ignored."
    ),
    # How the fit turned out
    "heading-found": (
        "{name} faces another way: fitted after a rotation by {degrees:.0f} degrees about the vertical axis, since it "
        "was out of distribution as it is."
    ),
    "part-of-body": (
        "{name} is {height:.2f} m high: fitted as the {part} part of a person, since it was out of distribution as a "
        "whole one. The other part is a guess; add a scan of it."
    ),
    "out-of-distribution": (
        "{name} is out of distribution (ood score {ood_score:g}, limit {limit:g}): probably not a person alone, or not "
        "upright. --up names another vertical axis, and a fit with the alignment `full` searches the rotation."
    ),
    "low-confidence": (
        "fit of {name} has low confidence: the scan covers {coverage:.0%} of the surface for an unusual code "
        "(ood score {ood_score:g}). The unseen side may be wrong; add another view."
    ),
    "unlikely-stature": (
        "the body of {name} is {stature:.2f} m tall, which is unlikely (1.25 to 2.2 m). Check --unit (of depth "
        "images: depth_unit_scale_factor), or multiply the coordinates by {factor:.3g} for 1.7 m."
    ),
}
"""Sentence of each finding by its code; `{name}` is the scan, the other fields are the values of the finding."""


@dataclass(frozen=True)
class Finding:
    """One finding about a scan: a code of `FINDINGS` and the values of its sentence (numbers and strings).

    Raises:
        KeyError: The code is not in `FINDINGS`, or a value of its sentence is missing.

    """

    code: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.message("")

    def message(self, name: str) -> str:
        """The sentence, for a scan of this name."""
        return FINDINGS[self.code].format(name=name or "the scan", **self.values)

    def record(self, name: str) -> dict[str, Any]:
        """The finding as JSON: `code`, `message` and the values."""
        return {"code": self.code, "message": self.message(name), **self.values}


class ScanWarning(UserWarning):
    """A finding about a scan or its fit as a Python warning; `finding` has the code and the values."""

    def __init__(self, message: str, finding: Finding) -> None:
        super().__init__(message)
        self.finding = finding
