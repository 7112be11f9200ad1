"""Requests and scenes of the viewer, without a window: fits with scan and ground truth, and generated shapes.

A `ViewRequest` names what to show. `SceneBuilder.build` answers with several scenes: first the coarse mesh, then the
fine mesh, then the numbers. `LatestRequest` runs it in the background for the newest request only.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from trimesh import Trimesh

from shapespace.evaluation import metrics
from shapespace.fitting.quality import assess
from shapespace.fitting.result import Fit
from shapespace.geometry.proximity import closest_point
from shapespace.geometry.scan import Scan
from shapespace.io import scan_files, units
from shapespace.io.errors import did_you_mean
from shapespace.io.units import UnitName
from shapespace.models.base import FieldModel
from shapespace.models.registry import family_name
from shapespace.rendering import colors, renderer
from shapespace.space import ShapeSpace
from shapespace.viewer.background import CancellableField, Cancelled, StillWanted
from shapespace.viewer.slices import Slice, SlicePlane, slice_field

COARSE = 32  # cells along an edge: 0.16 s on one core for `humans`, and arms and legs are present
FINE = 128
MAX_COMPONENTS = 6  # sliders; in `humans` they hold most of the variation between bodies
STEPS = 41  # shapes of an interpolation between two codes
MEAN = "mean shape"
MAX_POINTS = 30_000  # points of a scan that are sent to the page: more make no visible difference
MAX_UPLOAD = 64_000_000  # bytes: ten raw scans of D-FAUST; a scan of a million points with normals has 24
ERROR_LIMIT, DEVIATION_LIMIT = 20.0, 30.0  # mm: end of the color scale of errors and of uncertainty
POINT_GRAY = (170, 167, 163)  # of a fully lit point

ColorBy = Literal["none", "scan to mesh", "mesh to ground truth", "uncertainty"]


# ------------------------------------------------------------------------------------------------------------- requests


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
class ViewRequest:
    """What to show, in which colors and at which resolution."""

    subject: Subject
    color_by: ColorBy = "none"
    limit: float = ERROR_LIMIT
    """End of the color scale (mm)."""
    slice_plane: SlicePlane | None = None
    resolution: int = FINE
    """Cells of the fine mesh along the model cube's edge; up to `COARSE` there is only the coarse mesh."""
    created: float = field(default_factory=time.perf_counter, compare=False)


# --------------------------------------------------------------------------------------------------------------- scenes


@dataclass(frozen=True)
class Scene:
    """One answer to a request; lengths are meters, positions those of the scan."""

    request: ViewRequest
    name: str
    mesh: Trimesh
    """The shape, with vertex colors if the request asks for them."""
    resolution: int
    scan: Scan | None = None
    """At most `MAX_POINTS` of its points."""
    point_colors: UInt8[np.ndarray, "n 3"] | None = None
    """Colors of these points."""
    ground_truth: Trimesh | None = None
    slice: Slice | None = None
    summary: tuple[str, ...] = ()
    """Errors and quality of the fit, one line each."""
    seconds: float = 0.0
    """Time from the request to this answer."""

    @property
    def floor(self) -> Float[np.ndarray, "3"]:
        """The point of the floor below the scan, or below the shape if there is no scan."""
        if self.scan is None and not len(self.mesh.vertices):
            return np.zeros(3)
        points = np.asarray(self.mesh.vertices) if self.scan is None else self.scan.points
        low, high = np.percentile(points, [0.5, 99.5], axis=0)  # scans have outliers
        return np.array([0.5 * (low[0] + high[0]), low[1], 0.5 * (low[2] + high[2])])


# ---------------------------------------------------------------------------------------------------------------- scans


@dataclass(frozen=True)
class FittedScan:
    """A scan (meters), its fit, and its ground truth if there is one."""

    scan: Scan
    fit: Fit
    ground_truth: Trimesh | None = None

    @cached_property
    def displayed(self) -> Scan:
        """At most `MAX_POINTS` points of the scan, with normals for shading (oriented or not)."""
        stride = -(-len(self.scan) // MAX_POINTS)
        return self.scan.select(np.arange(0, len(self.scan), stride)).estimate_normals()


class ScanCollection:
    """The scans that all visitors see; each is fitted on its first use, one at a time."""

    def __init__(
        self,
        space: ShapeSpace,
        scans: Sequence[Scan] = (),
        ground_truth: Callable[[str], Trimesh | None] = lambda name: None,
    ) -> None:
        self.space, self._scans, self._ground_truth = space, {scan.name: scan for scan in scans}, ground_truth
        self._fitted: dict[str, FittedScan] = {}
        self._lock = Lock()

    @property
    def names(self) -> list[str]:
        """Names of the scans, in their order."""
        return list(self._scans)

    def fitted_scan(self, name: str) -> FittedScan:
        """The scan of that name with its fit.

        Raises:
            ValueError: There is no such scan, or it cannot be fitted.

        """
        if name not in self._scans:
            raise ValueError(f"there is no scan {name!r}. {did_you_mean(name, self.names)}")
        with self._lock:
            if name not in self._fitted:
                scan = self._scans[name]
                self._fitted[name] = FittedScan(scan, self.space.fit_scans([scan])[0], self._ground_truth(name))
            return self._fitted[name]

    def is_fitted(self, name: str) -> bool:
        """Whether the scan of that name has been fitted."""
        return name in self._fitted

    def fit(self, scan: Scan) -> FittedScan:
        """Fit an uploaded scan, which only its visitor sees, after the fits that have begun."""
        with self._lock:
            return FittedScan(scan, self.space.fit_scans([scan])[0])


class SceneBuilder:
    """Scenes for one visitor: the scans of the collection and the visitor's uploads."""

    def __init__(self, collection: ScanCollection) -> None:
        self.collection, self.space = collection, collection.space
        self._uploads: dict[str, FittedScan] = {}
        self._mesh: tuple[tuple[Subject, int], Trimesh] | None = None  # the finest mesh of the last subject
        self._interpolation: tuple[tuple[str, str], list[Fit]] | None = None  # between the last two ends

    # ---------------------------------------------------------------- what can be chosen

    @property
    def names(self) -> list[str]:
        """Scans that can be chosen, uploads last."""
        return [*self.collection.names, *self._uploads]

    @property
    def ends(self) -> list[str]:
        """Shapes that can be the end of an interpolation."""
        return [*([MEAN] if self.space.model.prior is not None else []), *self.names]

    @property
    def num_components(self) -> int:
        """Number of principal components that have a slider."""
        prior = self.space.model.prior
        return 0 if prior is None else min(MAX_COMPONENTS, len(prior.mean))

    @property
    def no_components_reason(self) -> str | None:
        """Why there are no principal components; `None` if there are some."""
        if self.space.model.prior is not None:
            return None
        return f"The codes of family {family_name(self.space.config)} are grids: they have no principal components."

    @property
    def no_slice_reason(self) -> str | None:
        """Why there is no slice; `None` if there is one."""
        if isinstance(self.space.model, FieldModel):
            return None
        return f"Family {family_name(self.space.config)} has patches and no field: slices are not available."

    def unfitted(self, subject: Subject) -> list[str]:
        """Scans that must be fitted before the subject can be shown, which takes seconds."""
        names = [subject.name] if isinstance(subject, ScanShape) else []
        names += [subject.a, subject.b] if isinstance(subject, InterpolatedShape) else []
        return [name for name in names if name in self.collection.names and not self.collection.is_fitted(name)]

    def has_uncertainty(self, name: str) -> bool:
        """Whether the fit of that scan has a covariance; fits the scan if necessary."""
        return self._fitted_scan(name).fit.covariance is not None

    def initial_subject(self) -> Subject | None:
        """The first scan, or else the mean shape; `None` if there is neither."""
        if self.names:
            return ScanShape(self.names[0])
        return PrincipalShape((0.0,) * self.num_components) if self.num_components else None

    # ---------------------------------------------------------------- uploads

    def add_upload(
        self, name: str, data: bytes, *, unit: Literal["auto"] | UnitName = "auto", up: units.Up = "y"
    ) -> str:
        """Read and fit a scan from the bytes of a file, and return the name under which it can be chosen.

        Raises:
            ValueError: The file is too large or not a scan, with the message of the command line.

        """
        name = name.replace("\\", "/").rpartition("/")[2][:100] or "scan"
        if len(data) > MAX_UPLOAD:
            raise too_large(name, len(data))
        meters = unit if unit == "auto" else units.UNITS[unit]
        scan = scan_files.read_bytes(data, name=name, unit=meters, up=up, called=name)
        while name in self.names:
            name = f"{name} again"
        self._uploads[name] = self.collection.fit(replace(scan, name=name))
        return name

    # ---------------------------------------------------------------- scenes

    def build(self, request: ViewRequest, still_wanted: StillWanted = lambda: True) -> Iterator[Scene]:
        """Yield the scenes of a request: the coarse mesh, the fine mesh, and the fine mesh with numbers.

        A coarse mesh that has begun is finished, so that a slider that keeps moving shows something.

        Raises:
            Cancelled: The scenes are not wanted any more.
            ValueError: A scan cannot be fitted, or the field has no surface.

        """
        shape = self._shape(request.subject)
        if not still_wanted():
            raise Cancelled
        fitted = self._fitted_scan(request.subject.name) if isinstance(request.subject, ScanShape) else None
        key = (request.subject, request.resolution)
        if self._mesh is not None and self._mesh[0] == key:
            resolutions = [request.resolution]
        else:
            resolutions = [COARSE, request.resolution] if request.resolution > COARSE else [request.resolution]
        for resolution in resolutions:
            mesh = self._cached_mesh(shape, (request.subject, resolution), still_wanted)
            scene = self._scene(request, shape, fitted, mesh, resolution)
            yield scene
        if fitted is not None:
            yield self._with_scores(scene, fitted)

    def _fitted_scan(self, name: str) -> FittedScan:
        return self._uploads[name] if name in self._uploads else self.collection.fitted_scan(name)

    def _shape(self, subject: Subject) -> Fit:
        if isinstance(subject, ScanShape):
            return self._fitted_scan(subject.name).fit
        if isinstance(subject, PrincipalShape):
            return self.space.from_principal_components(subject.coefficients)
        if self._interpolation is None or self._interpolation[0] != (subject.a, subject.b):
            a, b = (
                self.space.from_principal_components([0.0]) if end == MEAN else self._fitted_scan(end).fit
                for end in (subject.a, subject.b)
            )
            self._interpolation = (subject.a, subject.b), self.space.interpolate_codes(a, b, STEPS)
        return self._interpolation[1][round(subject.fraction * (STEPS - 1))]

    def _cached_mesh(self, shape: Fit, key: tuple[Subject, int], still_wanted: StillWanted) -> Trimesh:
        if self._mesh is not None and self._mesh[0] == key:
            return self._mesh[1]
        space = self.space
        if key[1] > COARSE and isinstance(space.model, FieldModel):
            model = CancellableField(space.model, still_wanted)
            space = ShapeSpace(model, space.config, scale=space.scale, metadata=space.metadata)
        mesh = space.mesh(shape, resolution=key[1])
        self._mesh = key, mesh
        return mesh

    def _scene(
        self, request: ViewRequest, shape: Fit, fitted: FittedScan | None, mesh: Trimesh, resolution: int
    ) -> Scene:
        scan = None if fitted is None else fitted.displayed
        colored, point_colors, summary = self._colored(request, fitted, mesh)
        model, cut = self.space.model, None
        if request.slice_plane is not None and isinstance(model, FieldModel):
            cut = slice_field(model, shape, colored, request.slice_plane)
        return Scene(
            request,
            shape.name,
            colored,
            resolution,
            scan,
            point_colors,
            None if fitted is None else fitted.ground_truth,
            cut,
            tuple(summary),
            seconds=time.perf_counter() - request.created,
        )

    def _colored(
        self, request: ViewRequest, fitted: FittedScan | None, mesh: Trimesh
    ) -> tuple[Trimesh, UInt8[np.ndarray, "n 3"] | None, list[str]]:
        """The mesh and the colors of the scan's points for the request's `color_by`, and a line about them."""
        scan = None if fitted is None else fitted.displayed
        point_colors = None if scan is None else _shaded(scan)
        color_by, limit = request.color_by, request.limit
        if color_by == "uncertainty" and fitted is not None and fitted.fit.covariance is not None:
            deviation = self.space.uncertainty(fitted.fit, mesh)
            mesh = colors.color_by_value(mesh, deviation, limit=limit)
            mesh.vertex_attributes["quality"] = deviation
            line = f"Uncertainty (standard deviation of the surface): median {1e3 * np.median(deviation):.1f} mm."
            return mesh, point_colors, [line]
        if color_by == "mesh to ground truth" and fitted is not None and fitted.ground_truth is not None:
            return colors.color_by_distance(mesh, fitted.ground_truth, limit=limit), point_colors, []
        if color_by == "scan to mesh" and scan is not None:
            distance, _, _ = closest_point(scan.points.astype(np.float64), mesh)
            median, p95 = 1e3 * np.percentile(distance, [50, 95])
            line = f"Distance from scan to mesh: median {median:.1f} mm, 95th percentile {p95:.1f} mm."
            return mesh, colors.colors_of(distance, limit=limit), [line]
        return mesh, point_colors, [] if color_by == "none" else [_no_color_reason(color_by, fitted)]

    def _with_scores(self, scene: Scene, fitted: FittedScan) -> Scene:
        """The scene with the quality of the fit, and its metric if there is ground truth."""
        fit, mesh = fitted.fit, scene.mesh
        quality = assess(fit.code, self.space.model.prior, fit.residuals, fitted.scan, mesh)
        summary = [*scene.summary, quality.summary]
        if fitted.ground_truth is not None:
            row = metrics.score(["surface_distance"], mesh, fitted.ground_truth)["surface_distance"]
            summary.append(
                f"Metric surface_distance: completeness {row['completeness']:.2f} mm, "
                f"accuracy {row['accuracy']:.2f} mm."
            )
        return replace(scene, summary=tuple(summary), seconds=time.perf_counter() - scene.request.created)


def too_large(name: str, size: int) -> ValueError:
    """The error for an upload of too many bytes."""
    return ValueError(
        f"{name}: {size:,} bytes, the limit is {MAX_UPLOAD:,}. Reduce the number of points, or use shapespace fit."
    )


def _no_color_reason(color_by: ColorBy, fitted: FittedScan | None) -> str:
    if fitted is None:
        return "No error to color: this shape has no scan."
    if color_by == "mesh to ground truth":
        return f"There is no ground truth for {fitted.scan.name}."
    return f"The fit of {fitted.scan.name} has no covariance, so its uncertainty is unknown."


def _shaded(scan: Scan) -> UInt8[np.ndarray, "n 3"]:
    """Grays of points lit by their normals; unoriented normals are lit from both sides."""
    facing = (
        np.abs(scan.unoriented_normals @ renderer.LIGHT_DIRECTION)
        if scan.normals is None
        else (scan.normals @ renderer.LIGHT_DIRECTION).clip(0)
    )
    return np.asarray(np.array(POINT_GRAY) * (0.5 + 0.5 * facing.clip(0, 1))[:, None], dtype=np.uint8)
