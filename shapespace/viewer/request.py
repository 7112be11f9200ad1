"""Requests of the viewer: what to show, in which colors and detail."""

import time
from dataclasses import dataclass, field
from typing import Final, Literal

from shapespace.viewer.slices import SlicePlane

COARSE = 32  # cells along an edge: 0.16 s on one core for `humans`, and arms and legs are present
FINE = 128
POSED: Final = "posed template"  # by its skin alone
REGISTERED: Final = "registered template"  # brought onto the surface of the field
MEAN = "mean shape"
ERROR_LIMIT, DEVIATION_LIMIT = 20.0, 30.0  # mm: end of the color scale of errors and of uncertainty

Detail = int | Literal["posed template", "registered template"]
"""A mesh: the zero level set of the field by so many cells along the model cube's edge, or the model's template."""

ColorBy = Literal["none", "scan to mesh", "mesh to ground truth", "uncertainty", "part"]


@dataclass(frozen=True)
class ScanShape:
    """The fit of a scan, by the scan's name."""

    name: str


@dataclass(frozen=True)
class PrincipalShape:
    """The shape at these coefficients (standard deviations) of the first principal components."""

    coefficients: tuple[float, ...]


@dataclass(frozen=True)
class InterpolatedShape:
    """Interpolation between two shapes, each a scan's name or `MEAN`; `fraction` is 0 at `a` and 1 at `b`."""

    a: str
    b: str
    fraction: float


Subject = ScanShape | PrincipalShape | InterpolatedShape


@dataclass(frozen=True)
class JointTurn:
    """A joint turned about the axes of the part that holds it: about x, then y, then z, in degrees."""

    joint: str
    degrees: tuple[float, float, float]


@dataclass(frozen=True)
class ViewRequest:
    """What to show, in which colors and detail."""

    subject: Subject
    color_by: ColorBy = "none"
    limit: float = ERROR_LIMIT
    """End of the color scale (mm)."""
    slice_plane: SlicePlane | None = None
    detail: Detail = FINE
    """The fine mesh. Up to `COARSE` there is only the coarse mesh: the posed template, or of these cells."""
    turns: tuple[JointTurn, ...] = ()
    """Turned joints of the shape, each once; for models with parts."""
    created: float = field(default_factory=time.perf_counter, compare=False)
