"""Requests and scenes of the viewer, without a window: fits with scan and ground truth, and generated shapes.

A `ViewRequest` names what to show. `SceneBuilder.build` answers with several scenes: first the coarse mesh, or the
posed template where bodies have parts, then the fine mesh, then the numbers. `LatestRequest` runs it in the background
for the newest request only.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from trimesh import Trimesh

from shapespace.evaluation import metrics
from shapespace.fitting.checks import assess_fit, quality_findings
from shapespace.fitting.result import Fit
from shapespace.geometry.proximity import closest_point
from shapespace.geometry.scan import Scan
from shapespace.io import scan_files, units
from shapespace.io.units import UnitName
from shapespace.models.base import FieldModel
from shapespace.models.registry import family_name
from shapespace.rendering import colors, renderer
from shapespace.space import ShapeSpace
from shapespace.viewer.background import CancellableField, Cancelled, StillWanted
from shapespace.viewer.body_parts import BodyParts
from shapespace.viewer.fitted_scans import FittedScan, ScanCollection
from shapespace.viewer.request import (
    COARSE,
    MEAN,
    POSED,
    Detail,
    InterpolatedShape,
    JointTurn,
    PrincipalShape,
    ScanShape,
    Subject,
    ViewRequest,
)
from shapespace.viewer.slices import Slice, slice_field

MAX_COMPONENTS = 6  # sliders; in `humans` they hold most of the variation between bodies
STEPS = 41  # shapes of an interpolation between two codes
MAX_UPLOAD = 64_000_000  # bytes: ten raw scans of D-FAUST; a scan of a million points with normals has 24
POINT_GRAY = (170, 167, 163)  # of a fully lit point

MeshKey = tuple[Subject, tuple[JointTurn, ...], Detail]
"""Shape, turned joints, and what is meshed."""

# --------------------------------------------------------------------------------------------------------------- scenes


@dataclass(frozen=True)
class Scene:
    """One answer to a request; lengths are meters, positions those of the scan."""

    request: ViewRequest
    name: str
    mesh: Trimesh
    """The shape, with vertex colors if the request asks for them."""
    detail: Detail
    scan: Scan | None = None
    """At most `MAX_POINTS` of its points."""
    point_colors: UInt8[np.ndarray, "n 3"] | None = None
    """Colors of these points."""
    ground_truth: Trimesh | None = None
    slice: Slice | None = None
    summary: tuple[str, ...] = ()
    """Errors, quality and findings of the fit, one line each."""
    unturned: Trimesh | None = None
    """The shape before joints were turned; None: none are."""
    seconds: float = 0.0
    """Time from the request to this answer."""

    @property
    def floor(self) -> Float[np.ndarray, "3"]:
        """The point of the floor below the scan, or below the shape, before joints were turned, if there is no scan."""
        mesh = self.unturned or self.mesh
        if self.scan is None and not len(mesh.vertices):
            return np.zeros(3)
        points = np.asarray(mesh.vertices) if self.scan is None else self.scan.points
        low, high = np.percentile(points, [0.5, 99.5], axis=0)  # scans have outliers
        return np.array([0.5 * (low[0] + high[0]), low[1], 0.5 * (low[2] + high[2])])


class SceneBuilder:
    """Scenes for one visitor: the scans of the collection and the visitor's uploads."""

    def __init__(self, collection: ScanCollection) -> None:
        self.collection, self.space, self.parts = collection, collection.space, collection.parts
        self._uploads: dict[str, FittedScan] = {}
        self._mesh: tuple[MeshKey, Trimesh] | None = None  # the last mesh
        self._unturned: tuple[Subject, Trimesh] | None = None  # template of the last subject with turned joints
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

        Where bodies have parts, the posed template takes the place of the coarse mesh. A coarse mesh that has begun is
        finished, so that a slider that keeps moving shows something.

        Raises:
            Cancelled: The scenes are not wanted any more.
            ValueError: A scan cannot be fitted, there is no such joint, or the field has no surface.

        """
        shape, turns = self._shape(request.subject), request.turns
        if not still_wanted():
            raise Cancelled
        fitted = self._fitted_scan(request.subject.name) if isinstance(request.subject, ScanShape) else None
        unturned = self._template_of(request.subject, shape) if turns else None
        if turns:
            shape = self._body_parts(turns).turn(shape, turns)
        details = self._details(request)
        if self._mesh is not None and self._mesh[0] == (request.subject, turns, details[-1]):
            details = details[-1:]
        for detail in details:
            mesh = self._cached_mesh(shape, (request.subject, turns, detail), still_wanted)
            scene = replace(self._scene(request, shape, fitted, mesh, detail), unturned=unturned)
            yield scene
        if fitted is not None and not turns:
            yield self._with_scores(scene, fitted)

    def _details(self, request: ViewRequest) -> list[Detail]:
        """The meshes of a request, the coarse one first."""
        coarse: Detail = POSED
        if self.parts is None:
            coarse = min(COARSE, request.detail) if isinstance(request.detail, int) else COARSE
        is_coarse = request.detail == POSED or (isinstance(request.detail, int) and request.detail <= COARSE)
        return [coarse] if is_coarse else [coarse, request.detail]

    def _body_parts(self, turns: tuple[JointTurn, ...]) -> BodyParts:
        if self.parts is None:
            raise ValueError(
                f"joint {turns[0].joint!r}: the bodies have no parts. Use a space of the articulated family."
            )
        return self.parts

    def _template_of(self, subject: Subject, shape: Fit) -> Trimesh | None:
        if self.parts is not None and (self._unturned is None or self._unturned[0] != subject):
            self._unturned = subject, self.parts.template_mesh(shape)
        return None if self._unturned is None else self._unturned[1]

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

    def _cached_mesh(self, shape: Fit, key: MeshKey, still_wanted: StillWanted) -> Trimesh:
        if self._mesh is None or self._mesh[0] != key:
            self._mesh = key, self._new_mesh(shape, key[-1], still_wanted)
        return self._mesh[1]

    def _new_mesh(self, shape: Fit, detail: Detail, still_wanted: StillWanted) -> Trimesh:
        if detail == POSED:
            assert self.parts is not None  # see `_details`
            return self.parts.template_mesh(shape)
        space = self.space
        if not isinstance(detail, int):
            return space.register(shape)
        if detail > COARSE and isinstance(space.model, FieldModel):
            model = CancellableField(space.model, still_wanted)
            space = ShapeSpace(model, space.config, scale=space.scale, metadata=space.metadata)
        return space.mesh(shape, resolution=detail, surface="field")

    def _scene(
        self, request: ViewRequest, shape: Fit, fitted: FittedScan | None, mesh: Trimesh, detail: Detail
    ) -> Scene:
        scan = None if fitted is None else fitted.displayed
        if request.color_by == "part" and self.parts is not None:
            colored, point_colors = self.parts.color(mesh, shape, is_template=not isinstance(detail, int)), None
            summary = list[str]()
        else:
            colored, point_colors, summary = self._colored(request, fitted, mesh)
        if point_colors is None and scan is not None:
            point_colors = _shaded(scan)
        if request.turns:
            summary.append(f"Turned joints: {', '.join(turn.joint for turn in request.turns)}.")
        model, cut = self.space.model, None
        if request.slice_plane is not None and isinstance(model, FieldModel):
            cut = slice_field(model, shape, colored, request.slice_plane)
        return Scene(
            request,
            shape.name,
            colored,
            detail,
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
        """The mesh, and the points if they have colors, in the colors of a length, and a line about it."""
        color_by, limit = request.color_by, request.limit
        if color_by == "none" or fitted is None or request.turns:
            return mesh, None, [] if color_by == "none" else [_no_color_reason(request, fitted)]
        if color_by == "uncertainty" and fitted.fit.covariance is not None:
            deviation = self.space.uncertainty(fitted.fit, mesh)
            line = f"Uncertainty (standard deviation of the surface): median {1e3 * np.median(deviation):.1f} mm."
            return colors.color_by_value(mesh, deviation, limit=limit), None, [line]
        if color_by == "mesh to ground truth" and fitted.ground_truth is not None:
            return colors.color_by_distance(mesh, fitted.ground_truth, limit=limit), None, []
        if color_by == "scan to mesh":
            distance, _, _ = closest_point(fitted.displayed.points.astype(np.float64), mesh)
            median, p95 = 1e3 * np.percentile(distance, [50, 95])
            line = f"Distance from scan to mesh: median {median:.1f} mm, 95th percentile {p95:.1f} mm."
            return mesh, colors.colors_of(distance, limit=limit), [line]
        return mesh, None, [_no_color_reason(request, fitted)]

    def _with_scores(self, scene: Scene, fitted: FittedScan) -> Scene:
        """The scene with the quality of the fit, its metric if there is ground truth, and the findings."""
        quality = assess_fit(self.space.model, fitted.fit, fitted.scan)
        summary = [*scene.summary, quality.summary]
        if fitted.ground_truth is not None:
            row = metrics.score(["surface_distance"], scene.mesh, fitted.ground_truth)["surface_distance"]
            summary.append(
                f"Metric surface_distance: completeness {row['completeness']:.2f} mm, "
                f"accuracy {row['accuracy']:.2f} mm."
            )
        findings = (*fitted.fit.findings, *quality_findings(quality))
        summary += [f"Note: {finding.message(fitted.fit.name)}" for finding in findings]
        return replace(scene, summary=tuple(summary), seconds=time.perf_counter() - scene.request.created)


def too_large(name: str, size: int) -> ValueError:
    """The error for an upload of too many bytes."""
    return ValueError(
        f"{name}: {size:,} bytes, the limit is {MAX_UPLOAD:,}. Reduce the number of points, or use shapespace fit."
    )


def _no_color_reason(request: ViewRequest, fitted: FittedScan | None) -> str:
    if request.color_by == "part":
        return "No parts to color: the bodies of this family have none."
    if fitted is None:
        return "No error to color: this shape has no scan."
    if request.turns:
        return "No error to color: joints are turned. Reset the pose."
    if request.color_by == "mesh to ground truth":
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
