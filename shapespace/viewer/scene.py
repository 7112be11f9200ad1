"""What a viewer shows: scans with their fits and truths, and shapes that nobody scanned. Knows of no window.

A `Wish` says what is to be seen, and `Stage.show` answers with one `Scene` after another: the coarse mesh at once, the
fine one when it is there, the numbers last. `Latest` does so in the background for the newest wish alone.
"""

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Condition, Lock, Thread
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from trimesh import Trimesh

from shapespace.data.loader import Batch
from shapespace.evaluation import metrics
from shapespace.fitting.quality import assess
from shapespace.fitting.result import Fit
from shapespace.geometry import isosurface
from shapespace.geometry.frame import Frame
from shapespace.geometry.proximity import closest_point
from shapespace.geometry.scan import Scan
from shapespace.io import scan_files, units
from shapespace.io.errors import did_you_mean
from shapespace.io.units import UnitName, guess_unit
from shapespace.models.base import FieldModel
from shapespace.models.code import Code
from shapespace.models.registry import family_name
from shapespace.nn.losses import Scalar
from shapespace.rendering import colors, renderer
from shapespace.space import ShapeSpace

COARSE = 32  # cells along an edge: on one core 0.16 s for `humans`, and arms and legs are there
FINE = 128
AT_ONCE = 4096  # points of a field between two looks at whether it is still wanted: 50 ms of one core for `humans`
DIRECTIONS = 6  # sliders; of `humans` they hold most of what differs between bodies
REACH = 3.0  # standard deviations to either side
STEPS = 41  # shapes on the way between two codes
MEAN = "mean shape"
MAX_DOTS = 30_000  # points of a scan that are sent to the page: more do not show
MAX_UPLOAD = 64_000_000  # bytes: ten raw scans of D-FAUST; a scan of a million points with normals has 24
ERROR_LIMIT, DEVIATION_LIMIT = 20.0, 30.0  # mm: where the colours of errors and of uncertainty end

SCAN_GREY = (170, 167, 163)  # of a point in full light
LEVELS = (-100, -50, -20, 0, 20, 50, 100, 200)  # mm of signed distance: the lines of a slice
SLICE_LIMIT = 300.0  # mm: where the colours of a slice end, and where it has faded
SLICE_FADES = 150.0  # mm: where it begins to
SLICE_CELLS = 96  # samples along an edge of a slice
SLICE_MARGIN = 0.15  # metres around the mesh

ColorBy = Literal["none", "scan to mesh", "mesh to truth", "uncertainty"]
Axis = Literal["x", "y", "z"]


# -------------------------------------------------------------------------------------------------------- what is asked


@dataclass(frozen=True)
class ScanShape:
    """The fit of a scan, by its name."""

    name: str


@dataclass(frozen=True)
class PrincipalShape:
    """So many standard deviations from the mean along each of the first principal directions."""

    coefficients: tuple[float, ...]


@dataclass(frozen=True)
class InterpolatedShape:
    """On the way between two shapes, each a scan's name or `MEAN`; `share` is 0 at the first and 1 at the second."""

    a: str
    b: str
    share: float


Subject = ScanShape | PrincipalShape | InterpolatedShape


@dataclass(frozen=True)
class SlicePlane:
    """A plane across an axis, `at` metres from the middle of the shape."""

    axis: Axis
    at: float


@dataclass(frozen=True)
class ViewRequest:
    """What is to be seen."""

    subject: Subject
    color_by: ColorBy = "none"
    limit: float = ERROR_LIMIT
    """Millimetres at which the colours end."""
    slice_plane: SlicePlane | None = None
    resolution: int = FINE
    """Cells of the fine mesh along the model cube's edge; up to `COARSE`, the coarse one is all."""
    asked: float = field(default_factory=time.perf_counter, compare=False)


# -------------------------------------------------------------------------------------------------------- what is shown


@dataclass(frozen=True)
class Slice:
    """A plane through the field as a picture, and lines on it; metres, where the shape lies."""

    image: UInt8[np.ndarray, "h w 4"]
    """Rows go down; red, green, blue, cover. Far outside it is clear, so that it hides no neighbours."""
    centre: Float[np.ndarray, "3"]
    right: Float[np.ndarray, "3"]
    up: Float[np.ndarray, "3"]
    side: float
    """Length of each edge."""
    lines: Float[np.ndarray, "s 2 3"]
    line_colors: UInt8[np.ndarray, "s 2 3"]
    behind: Trimesh
    """The part of the mesh on the low side of the plane: what stands before it would hide it."""


@dataclass(frozen=True)
class Scene:
    """One answer to a wish. Lengths are metres; all parts lie where the scan does."""

    request: ViewRequest
    name: str
    mesh: Trimesh
    """The shape, painted or not."""
    resolution: int
    scan: Scan | None = None
    """At most `MAX_DOTS` of its points."""
    dots: UInt8[np.ndarray, "n 3"] | None = None
    """Colours of these."""
    ground_truth: Trimesh | None = None
    slice: Slice | None = None
    summary: tuple[str, ...] = ()
    """Numbers and verdicts, each a line."""
    seconds: float = 0.0
    """From the wish to this answer."""

    @property
    def floor(self) -> Float[np.ndarray, "3"]:
        """The point of the floor under the scan, or under the shape where there is no scan."""
        if self.scan is None and not len(self.mesh.vertices):
            return np.zeros(3)
        points = np.asarray(self.mesh.vertices) if self.scan is None else self.scan.points
        low, high = np.percentile(points, [0.5, 99.5], axis=0)  # scans have strays
        return np.array([0.5 * (low[0] + high[0]), low[1], 0.5 * (low[2] + high[2])])


class Cancelled(Exception):  # noqa: N818 -- no error: the end of work that nobody waits for any more
    """Somebody asked for something else meanwhile."""


StillWanted = Callable[[], bool]


# ---------------------------------------------------------------------------------------------------------- the gallery


@dataclass(frozen=True)
class FittedScan:
    """A scan (metres), its fit, its coarse verdict, and the true surface where it is known."""

    scan: Scan
    fit: Fit
    ground_truth: Trimesh | None = None

    @cached_property
    def seen(self) -> Scan:
        """At most `MAX_DOTS` points of the scan, with normals, or lines, by which they are lit."""
        every = -(-len(self.scan) // MAX_DOTS)
        return self.scan.select(np.arange(0, len(self.scan), every)).estimate_normals()


class ScanCollection:
    """The scans that all visitors see; each is fitted when it is first asked for, one at a time."""

    def __init__(
        self,
        space: ShapeSpace,
        scans: Sequence[Scan] = (),
        truth: Callable[[str], Trimesh | None] = lambda name: None,
    ) -> None:
        self.space, self._scans, self._truth = space, {scan.name: scan for scan in scans}, truth
        self._found: dict[str, FittedScan] = {}
        self._lock = Lock()

    @property
    def names(self) -> list[str]:
        """In the order in which they were given."""
        return list(self._scans)

    def exhibit(self, name: str) -> FittedScan:
        """The scan of that name with its fit. Raises `ValueError` where there is none, or it cannot be fitted."""
        if name not in self._scans:
            raise ValueError(f"there is no scan {name!r}. {did_you_mean(name, self.names)}")
        with self._lock:
            if name not in self._found:
                scan = self._scans[name]
                self._found[name] = FittedScan(scan, self.space.fit_scans([scan])[0], self._truth(name))
            return self._found[name]

    def ready(self, name: str) -> bool:
        """Whether the scan of that name has been fitted."""
        return name in self._found

    def fit(self, scan: Scan) -> FittedScan:
        """A scan of one visitor alone, fitted when its turn has come."""
        with self._lock:
            return FittedScan(scan, self.space.fit_scans([scan])[0])


class SceneBuilder:
    """One visitor's view of a space: the scans of the gallery, and the visitor's own."""

    def __init__(self, gallery: ScanCollection) -> None:
        self.gallery, self.space = gallery, gallery.space
        self._own: dict[str, FittedScan] = {}
        self._mesh: tuple[tuple[Subject, int], Trimesh] | None = None  # the finest one made last
        self._way: tuple[tuple[str, str], list[Fit]] | None = None  # between the two ends chosen last

    # ---------------------------------------------------------------- what there is to choose

    @property
    def names(self) -> list[str]:
        """Scans that can be chosen, the visitor's own last."""
        return [*self.gallery.names, *self._own]

    @property
    def ends(self) -> list[str]:
        """Shapes that a way can lead between."""
        return [*([MEAN] if self.space.model.prior is not None else []), *self.names]

    @property
    def no_directions(self) -> str | None:
        """Why there are no principal directions; none where there are."""
        if self.space.model.prior is not None:
            return None
        return f"The codes of family {family_name(self.space.config)} are grids: there are no principal directions to go along."

    @property
    def directions(self) -> int:
        """How many principal directions can be gone along."""
        prior = self.space.model.prior
        return 0 if prior is None else min(DIRECTIONS, len(prior.mean))

    @property
    def no_slice(self) -> str | None:
        """Why there is no slice; none where there is."""
        if isinstance(self.space.model, FieldModel):
            return None
        return f"Family {family_name(self.space.config)} has patches and no field: there is nothing to slice."

    def waiting(self, subject: Subject) -> list[str]:
        """Scans that have to be fitted before the subject can be seen, which takes seconds."""
        named = [subject.name] if isinstance(subject, ScanShape) else []
        named += [subject.a, subject.b] if isinstance(subject, InterpolatedShape) else []
        return [name for name in named if name in self.gallery.names and not self.gallery.ready(name)]

    def knows_uncertainty(self, name: str) -> bool:
        """Whether the fit of that scan, which has been fitted, tells how sure it is."""
        return self._exhibit(name).fit.covariance is not None

    def first(self) -> Subject | None:
        """What to show before anybody chose: the first scan, else the mean; none where there is neither."""
        if self.names:
            return ScanShape(self.names[0])
        return PrincipalShape((0.0,) * self.directions) if self.directions else None

    # ---------------------------------------------------------------- a visitor's own scan

    def take(self, name: str, data: bytes, *, unit: Literal["auto"] | UnitName = "auto", up: units.Up = "y") -> str:
        """Read and fit the scan in a file's bytes, and give the name that it can be chosen by.

        Raises `ValueError` with the sentence that the command line has for a file that is no scan.
        """
        name = name.replace("\\", "/").rpartition("/")[2][:100] or "scan"
        if len(data) > MAX_UPLOAD:
            raise too_large(name, len(data))
        raw = scan_files.read_bytes(
            data, name=name, unit=1.0 if unit == "auto" else units.UNITS[unit], up=up, called=name
        )
        if unit == "auto":
            metres = units.UNITS[guess_unit([raw]).name]
            raw = raw.to_world(Frame(torch.zeros(3), torch.tensor(metres)))
        while name in self.names:
            name = f"{name} again"
        self._own[name] = self.gallery.fit(replace(raw, name=name))
        return name

    # ---------------------------------------------------------------- scenes

    def show(self, wish: ViewRequest, wanted: StillWanted = lambda: True) -> Iterator[Scene]:
        """Answer a wish: coarse, fine, and with numbers. Raises `Stale` once it is not `wanted` any more.

        A coarse mesh that was begun is finished: else a slider that moves without rest would show nothing.

        Raises `ValueError` where a scan cannot be fitted, and where the field has no surface.
        """
        shape = self._shape(wish.subject)
        if not wanted():
            raise Cancelled
        exhibit = self._exhibit(wish.subject.name) if isinstance(wish.subject, ScanShape) else None
        key = (wish.subject, wish.resolution)
        if self._mesh is not None and self._mesh[0] == key:
            resolutions = [wish.resolution]
        else:
            resolutions = [COARSE, wish.resolution] if wish.resolution > COARSE else [wish.resolution]
        for resolution in resolutions:
            mesh = self._meshed(shape, (wish.subject, resolution), wanted)
            scene = self._scene(wish, shape, exhibit, mesh, resolution)
            yield scene
        if exhibit is not None:
            yield self._scored(scene, exhibit)

    def _exhibit(self, name: str) -> FittedScan:
        return self._own[name] if name in self._own else self.gallery.exhibit(name)

    def _shape(self, subject: Subject) -> Fit:
        if isinstance(subject, ScanShape):
            return self._exhibit(subject.name).fit
        if isinstance(subject, PrincipalShape):
            return self.space.from_principal_components(subject.coefficients)
        if self._way is None or self._way[0] != (subject.a, subject.b):
            ends = [
                self.space.from_principal_components([0.0]) if end == MEAN else self._exhibit(end).fit
                for end in (subject.a, subject.b)
            ]
            self._way = (subject.a, subject.b), self.space.interpolate_codes(ends[0], ends[1], STEPS)
        return self._way[1][round(subject.share * (STEPS - 1))]

    def _meshed(self, shape: Fit, key: tuple[Subject, int], wanted: StillWanted) -> Trimesh:
        if self._mesh is not None and self._mesh[0] == key:
            return self._mesh[1]
        space = self.space
        if key[1] > COARSE and isinstance(space.model, FieldModel):
            watched = CancellableField(space.model, wanted)
            space = ShapeSpace(watched, space.config, scale=space.scale, metadata=space.metadata)
        mesh = space.mesh(shape, resolution=key[1])
        self._mesh = key, mesh
        return mesh

    def _scene(
        self, wish: ViewRequest, shape: Fit, exhibit: FittedScan | None, mesh: Trimesh, resolution: int
    ) -> Scene:
        scan = None if exhibit is None else exhibit.seen
        dots = None if scan is None else _lit(scan)
        painted, words = mesh, []
        if wish.color_by == "uncertainty" and exhibit is not None and exhibit.fit.covariance is not None:
            deviation = self.space.uncertainty(exhibit.fit, mesh)
            painted = colors.color_by_value(mesh, deviation, limit=wish.limit)
            painted.vertex_attributes["quality"] = deviation
            words.append(f"Uncertainty, one standard deviation: median {1e3 * np.median(deviation):.1f} mm.")
        elif wish.color_by == "mesh to truth" and exhibit is not None and exhibit.ground_truth is not None:
            painted = colors.color_by_distance(mesh, exhibit.ground_truth, limit=wish.limit)
        elif wish.color_by == "scan to mesh" and scan is not None:
            away, _, _ = closest_point(scan.points.astype(np.float64), mesh)
            dots = colors.colors_of(away, limit=wish.limit)
            median, p95 = 1e3 * np.percentile(away, [50, 95])
            words.append(f"Scan to mesh, exactly: median {median:.1f} mm, 95 % {p95:.1f} mm.")
        elif wish.color_by != "none":
            words.append(self._no_colours(wish.color_by, exhibit))
        return Scene(
            wish,
            shape.name,
            painted,
            resolution,
            scan,
            dots,
            None if exhibit is None else exhibit.ground_truth,
            None if wish.slice_plane is None else self._slice(shape, painted, wish.slice_plane),
            tuple(words),
            time.perf_counter() - wish.asked,
        )

    def _no_colours(self, colouring: ColorBy, exhibit: FittedScan | None) -> str:
        """Why a shape is not coloured."""
        if exhibit is None:
            return "There is no error to colour: this shape belongs to no scan."
        if colouring == "mesh to truth":
            return f"No true surface of {exhibit.scan.name} is known."
        return f"The fit of {exhibit.scan.name} has no covariance, so that its uncertainty is not known."

    def _scored(self, scene: Scene, exhibit: FittedScan) -> Scene:
        """The scene with the verdict on the fit, and its score where the truth is known."""
        fit, mesh = exhibit.fit, scene.mesh
        words = [*scene.summary, assess(fit.code, self.space.model.prior, fit.residuals, exhibit.scan, mesh).summary]
        if exhibit.ground_truth is not None:
            row = metrics.score(["surface"], mesh, exhibit.ground_truth)["surface"]
            words.append(
                f"Protocol surface: truth to found {row['completeness']:.2f} mm, "
                f"found to truth {row['accuracy']:.2f} mm."
            )
        return replace(scene, summary=tuple(words), seconds=time.perf_counter() - scene.request.asked)

    def _slice(self, shape: Fit, mesh: Trimesh, cut: SlicePlane) -> Slice | None:
        """The field on a square of the plane, wide enough for the mesh."""
        model = self.space.model
        if not isinstance(model, FieldModel):
            return None
        normal = "xyz".index(cut.axis)
        across, upwards = {0: (2, 1), 1: (0, 2), 2: (0, 1)}[normal]
        low, high = mesh.bounds
        centre = 0.5 * (low + high)
        centre[normal] += cut.at
        side = float((high - low)[[across, upwards]].max()) + 2 * SLICE_MARGIN
        right, up = np.eye(3)[across], np.eye(3)[upwards]
        steps = side * (np.linspace(0, 1, SLICE_CELLS) - 0.5)
        points = centre + steps[None, :, None] * right + steps[:, None, None] * up
        at = shape.frame.to_model(torch.from_numpy(points.reshape(-1, 3)).float()).numpy()
        values = isosurface.evaluate(lambda x: model.field(x[None], shape.code)[0] - model.level, at)
        values = values.reshape(SLICE_CELLS, SLICE_CELLS)
        # A logit is no length: only its level says something.
        limit, levels = (SLICE_LIMIT, LEVELS) if model.is_sdf else (float(np.abs(values).max()) or 1.0, (0,))
        if model.is_sdf:
            values = values * 1e3 * float(shape.frame.scale)
        pieces, shades = [np.zeros((0, 2, 3))], [np.zeros((0, 2, 3), dtype=np.uint8)]
        for level in levels:
            if not values.min() < level < values.max():
                continue
            for line in isosurface.contours(values, np.stack([steps, steps]), level=float(level)):
                corners = centre + line[:, :1] * right + line[:, 1:] * up
                segments = np.stack([corners[:-1], corners[1:]], axis=1)
                pieces.append(segments)
                shade = (0, 0, 0) if level == 0 else (130, 126, 122)
                shades.append(np.tile(np.array(shade, dtype=np.uint8), (len(segments), 2, 1)))
        cover = ((limit - values) / (limit - SLICE_FADES)).clip(0, 1) if model.is_sdf else np.ones_like(values)
        image = np.dstack([colors.signed_colors(values, limit=limit), (255 * cover + 0.5).astype(np.uint8)])
        behind = mesh.copy()
        behind.update_faces((mesh.vertices[mesh.faces, normal] <= centre[normal]).all(axis=1))
        return Slice(
            np.ascontiguousarray(image[::-1]),
            centre,
            right,
            up,
            side,
            np.concatenate(pieces),
            np.concatenate(shades),
            behind,
        )


def too_large(name: str, size: int) -> ValueError:
    """The error for a file that is refused for its size."""
    return ValueError(
        f"{name} has {size:,} bytes, and at most {MAX_UPLOAD:,} are taken. Give fewer points, or fit it by "
        "shapespace fit and look at the mesh."
    )


def _lit(scan: Scan) -> UInt8[np.ndarray, "n 3"]:
    """Greys of the points of a scan that has normals or lines; a line is lit from either side."""
    facing = (
        np.abs(scan.unoriented_normals @ renderer.LIGHT_DIRECTION)
        if scan.normals is None
        else (scan.normals @ renderer.LIGHT_DIRECTION).clip(0)
    )
    return np.asarray(np.array(SCAN_GREY) * (0.5 + 0.5 * facing.clip(0, 1))[:, None], dtype=np.uint8)


class CancellableField(FieldModel):
    """A field that is not computed any further once nobody waits for it."""

    def __init__(self, model: FieldModel, wanted: StillWanted) -> None:
        super().__init__()
        self._model, self._wanted = [model], wanted  # in a list: its weights are not this module's
        self.level, self.is_sdf, self.prior = model.level, model.is_sdf, None

    def encode(self, batch: Batch) -> Code:
        """As the other model does."""
        return self._model[0].encode(batch)

    def loss_terms(self, batch: Batch, code: Code) -> dict[str, Scalar]:
        """As the other model does."""
        return self._model[0].loss_terms(batch, code)

    def field(self, x: Float[torch.Tensor, "b q 3"], code: Code) -> Float[torch.Tensor, "b q"]:
        """The field of the other model. Raises `Stale` if it is not wanted any more."""
        parts = []
        for part in x.split(AT_ONCE, dim=1):
            if not self._wanted():
                raise Cancelled
            parts.append(self._model[0].field(part, code))
        return torch.cat(parts, dim=1)


# ------------------------------------------------------------------------------------------------------- the background

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class LatestRequest(Generic[Asked, Answer]):
    """A thread that answers the newest question; what was asked before is dropped, but for a first answer begun."""

    def __init__(
        self,
        work: Callable[[Asked, StillWanted], Iterator[Answer]],
        deliver: Callable[[Answer], None],
        fail: Callable[[str], None],
    ) -> None:
        """`deliver` gets each answer, `fail` a sentence where there can be none; both are called in the thread."""
        self._work, self._deliver, self._fail = work, deliver, fail
        self._changed = Condition()
        self._ticket, self._asked, self._stopped = 0, list[Asked](), False
        self._thread = Thread(target=self._run, daemon=True, name="latest")
        self._thread.start()

    def ask(self, question: Asked) -> None:
        """Forget what was asked before, and answer this."""
        with self._changed:
            self._ticket += 1
            self._asked = [question]
            self._changed.notify_all()

    def stop(self) -> None:
        """Drop everything and end the thread."""
        with self._changed:
            self._ticket += 1
            self._asked, self._stopped = [], True
            self._changed.notify_all()

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread, but no longer."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._asked) or self._stopped)
                if self._stopped:
                    return
                question, ticket = self._asked.pop(), self._ticket

            def wanted(ticket: int = ticket) -> bool:
                return ticket == self._ticket

            try:
                for answer in self._work(question, wanted):
                    self._deliver(answer)
                    if not wanted():
                        break
            except Cancelled:
                pass
            except Exception as error:  # a thread that dies would leave the page without a word
                if not isinstance(error, ValueError | OSError):
                    traceback.print_exc(file=sys.stderr)
                if wanted():
                    self._fail(str(error) or type(error).__name__)
