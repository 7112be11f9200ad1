"""High-level API: `ShapeSpace` takes NumPy arrays in meters and returns `trimesh` meshes."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm
from trimesh import Trimesh

from shapespace.data.registration import are_registered
from shapespace.data.store import ScanSource
from shapespace.fitting.checks import MAX_RETRIED_SHARE, body_parts, check_scan, warn, with_quality
from shapespace.fitting.clutter import Clutter, QuickFit, remove_clutter
from shapespace.fitting.fit import ADAM_FROM_ENCODER, AdamOptions, CodeMethod, encode, fit_adam, fit_lm
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.quality import assess, ood_score
from shapespace.fitting.refine import DetailedModel, RefineOptions, refine
from shapespace.fitting.registration import Registration, register
from shapespace.fitting.result import Fit
from shapespace.fitting.rounds import train_on_fits
from shapespace.fitting.sequence import SequenceOptions, fit_jointly
from shapespace.geometry import similarity
from shapespace.geometry.findings import Finding
from shapespace.geometry.frame import Frame
from shapespace.geometry.isosurface import largest_component
from shapespace.geometry.orientation import check_orientation
from shapespace.geometry.scan import MIN_POINTS, Scan
from shapespace.interpolation import InterpolationPath, interpolate, transfer_pose
from shapespace.io.checkpoints import load_tensors
from shapespace.io.scan_arrays import scan_of_arrays
from shapespace.io.units import check_size
from shapespace.models import registry
from shapespace.models.articulated import ArticulatedConfig, ArticulatedSDF
from shapespace.models.base import FieldModel, ModelConfig, SDFModel, ShapeModel
from shapespace.models.code import Code
from shapespace.nn.latent import OOD_THRESHOLD, GaussianPrior
from shapespace.training.config import TrainConfig
from shapespace.training.run import Run, find_model
from shapespace.training.train import train_model, training_device

STD_CALIBRATION = 3.0
# Factor of the standard deviations that follow from the covariance of a code, which does not include the error that no
# code can represent. Chosen on tuning scans: of the ground truth, 95.6 % is within 1.645 standard deviations for
# complete scans and 88 % for views of one camera (90 % of a Gaussian); 93.7 and 84.7 % on test scans
# (docs/results/robustness.md).

PARTS_STD_CALIBRATION = 1.0
# The same for fits of both levels: of the ground truth of eight tuning scans, 99.5 % for complete scans and 90.6 % for
# views of one camera is within 1.645 standard deviations.

COARSE_RESOLUTION = 48  # cells along the model cube, of the mesh from which coverage and stature are estimated
QUICK_FAR_SHARE = 0.1  # share of far points above which a quick fit searches the pose: a limb, not a thing beside it
MIN_TURN = 30.0  # degrees of another heading; less is within reach of the first fit
VERTEX_CHUNK = 4096  # vertices whose code Jacobians are in memory at a time

Components = Literal["largest", "all"]
Surface = Literal["auto", "field", "template"]


class ShapeSpace:
    """A learned space of shapes: encode, fit, mesh, interpolate and sample.

    Points and meshes are in meters with y up, like the training data. The model computes in its own frame, the cube
    [-1, 1]^3; a `Frame` maps between the two. Arrays in and out are NumPy; codes are on the device of the model.

    Example::

        space = ShapeSpace.load("humans")
        fit = space.fit(points)                 # (n, 3) float array, meters, y up
        space.mesh(fit).export("fitted.ply")    # at the position of the scan
    """

    def __init__(self, model: ShapeModel, config: ModelConfig, *, scale: float, metadata: dict[str, Any]) -> None:
        """Wrap a model; `load` and `train` call this.

        `scale` is the length of a model unit in meters. `metadata` is stored with the weights: data, license and the
        weights of the loss terms.
        """
        self.model, self.config, self.scale, self.metadata = model, config, scale, metadata

    @property
    def device(self) -> torch.device:
        """The device of the model's weights."""
        return next(self.model.parameters()).device

    # --------------------------------------------------------------------------------------------------------- files

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu") -> "ShapeSpace":
        """Load a space from the folder of a run, a .safetensors file of `save`, or by the name of a packaged space.

        Raises `FileNotFoundError` if there is no such file or name, `ValueError` for a file that is damaged or of an
        unknown format. No code of the file is run.
        """
        file = find_model(path)
        tensors, header = load_tensors(file, "model")
        try:
            config, model = registry.restore_model(header["family"], header["config"], tensors)
            scale, metadata = float(header["scale"]), dict(header["metadata"])
            metadata["weights"] = {str(term): float(weight) for term, weight in metadata["weights"].items()}
            if not 0 < scale < float("inf"):
                raise ValueError(f"its scale is {scale}")
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{file}: cannot restore the model ({reason}). Copy the file again, or retrain.") from None
        return cls(model.to(device).eval(), config, scale=scale, metadata=metadata)

    def save(self, path: str | Path, *, compact: bool = False) -> None:
        """Write weights, settings and metadata to one safetensors file; `compact` halves its size and its precision.

        Raises `ValueError` for a refined space, whose detail is in the scan and not in the weights.
        """
        if isinstance(self.model, DetailedModel):
            raise ValueError(
                f"{path}: a space refined to {self.metadata['refined']} cannot be saved. Save its mesh, or refine "
                "again."
            )
        registry.save_model(
            Path(path), self.model, self.config, scale=self.scale, metadata=self.metadata, compact=compact
        )

    # --------------------------------------------------------------------------------------------------- scan to code

    def fit(self, points: ArrayLike, normals: ArrayLike | None = None, sensors: ArrayLike | None = None) -> Fit:
        """Fit the code of one scan.

        NumPy arrays, torch tensors or nested lists: `points` (n, 3) in meters, y up, or (n, 6) with normals; `normals`
        (n, 3) of any length, outward; `sensors` (n, 3), the origins of the sensors in meters, or (3,) for one of all
        points. Missing normals are estimated. The fit has its quality (`Fit.verdict`), at the cost of a coarse mesh,
        and all findings about the scan and the fit are raised as `ScanWarning`s. Raises `ValueError` for arrays of
        other shapes or types, and as `fit_scans` does.
        """
        scan = scan_of_arrays(points, normals, sensors)
        (fit,) = self._fit_scans([scan], check=True)
        fit = self.assess(fit, scan)
        warn([fit])
        return fit

    def assess(self, fit: Fit, scan: Scan, mesh: Trimesh | None = None) -> Fit:
        """The fit with its quality and the findings that follow from it; `scan` in meters, y up.

        Coverage and stature are those of a coarse mesh of the fit, unless a mesh (meters) is given.
        """
        if mesh is None:
            mesh = self.mesh(fit, resolution=COARSE_RESOLUTION)
        return with_quality(fit, assess(fit.code, self.model.prior, fit.residuals, scan, mesh))

    def encode_scans(self, scans: Sequence[Scan], *, seed: int = 0) -> list[Fit]:
        """Codes of scans (meters, y up) by one forward pass of the encoder; `[]` for no scans.

        The fits have no residuals and no covariance. `seed` draws the points that the encoder sees. Scans are checked,
        and findings raised as `ScanWarning`s. Raises `ValueError` for arrays of wrong shapes, too few points, points
        that are not finite, or the size of another unit.
        """
        if not scans:
            return []
        placed = [self._place(check_scan(scan)) for scan in scans]
        start = time.perf_counter()
        code = encode(self.model, [scan for scan, _ in placed], seed=seed)
        seconds = (time.perf_counter() - start) / len(scans)
        fits = [
            Fit(
                code[index],
                frame,
                np.empty(0),
                name=scan.name,
                seconds=seconds,
                origin=scan.origin,
                findings=scan.findings,
            )
            for index, (scan, frame) in enumerate(placed)
        ]
        warn(fits)
        return fits

    def fit_scans(
        self,
        scans: Sequence[Scan],
        *,
        method: CodeMethod = "auto",
        lm: LMOptions | None = None,
        adam: AdamOptions | None = None,
        seed: int = 0,
        outliers: Clutter = "remove",
    ) -> list[Fit]:
        """Fit the codes of scans (meters, y up); `[]` for no scans.

        `method` is `lm` (Levenberg-Marquardt, settings `lm`), `adam` (IGR's procedure, settings `adam`), or `auto`:
        `lm` if the model is an SDF with a vector as the code, otherwise 200 steps of Adam from the encoder's code.
        `seed` draws the points of each scan: the same seed gives the same fits. Isolated points are removed unless
        `outliers` is `keep`. Scans are checked, and a fit by `lm` that is out of distribution is tried with other
        headings; findings are in the fits, and raised as `ScanWarning`s. `assess` adds the quality of a fit. Raises
        `ValueError` for `lm` with another model, and for a scan with arrays of wrong shapes, too few points, points
        that are not finite, or the size of another unit.
        """
        fits = self._fit_scans(scans, method=method, lm=lm, adam=adam, seed=seed, outliers=outliers, check=True)
        warn(fits)
        return fits

    def _fit_scans(
        self,
        scans: Sequence[Scan],
        *,
        method: CodeMethod = "auto",
        lm: LMOptions | None = None,
        adam: AdamOptions | None = None,
        seed: int = 0,
        outliers: Clutter = "remove",
        check: bool = False,
        center: Float[np.ndarray, "3"] | None = None,
    ) -> list[Fit]:
        """The fits of `fit_scans` without warnings; with `check` scans are checked and other placements are tried.

        `center`: of the person (meters); that of each scan by default.
        """
        if not scans:
            return []
        if method == "auto" and not isinstance(self.model, SDFModel):
            method, adam = "adam", ADAM_FROM_ENCODER
        checked = [check_scan(scan) for scan in scans] if check else scans
        placed = [self._place(scan, outliers, center) for scan in checked]
        model_scans = [scan for scan, _ in placed]
        start = time.perf_counter()
        if method != "adam":
            model = self._sdf_model("--method lm", "Use --method adam, or the command encode.")
            fitted = fit_lm(model, model_scans, lm, seed=seed)
        else:
            fitted = fit_adam(self.model, model_scans, self.metadata["weights"], adam, seed=seed)
        seconds = (time.perf_counter() - start) / len(scans)
        pairs = zip((frame for _, frame in placed), fitted.frames, strict=True)
        frames = [frame if alignment is None else frame.compose(alignment) for frame, alignment in pairs]
        fits = [
            Fit(
                fitted.code[index],
                frames[index],
                fitted.residual[index].cpu().numpy() * float(frames[index].scale),
                None if fitted.covariance is None else fitted.covariance[index].cpu().numpy(),
                scan.name,
                seconds,
                None if fitted.part_covariance is None else fitted.part_covariance[index].cpu().numpy(),
                origin=scan.origin,
                findings=scan.findings,
            )
            for index, (scan, _) in enumerate(placed)
        ]
        if not check or method == "adam" or (lm or LMOptions()).alignment != "local":
            return fits
        return [self._placed_anew(fit, scan, lm, seed, outliers) for fit, scan in zip(fits, checked, strict=True)]

    def _placed_anew(self, fit: Fit, scan: Scan, lm: LMOptions | None, seed: int, outliers: Clutter) -> Fit:
        """The fit, or, if it is out of distribution, one as a part of a body or with another heading that is in it."""
        prior = self._prior("cannot be judged")
        if ood_score(fit.code, prior) <= prior.ood_limit:
            return fit

        def is_better(other: Fit) -> bool:
            is_usual = ood_score(other.code, prior) <= MAX_RETRIED_SHARE * prior.ood_limit
            return is_usual and bool(np.median(other.residuals) <= np.median(fit.residuals))

        for part in body_parts(scan):
            (moved,) = self._fit_scans([scan], lm=lm, seed=seed, outliers=outliers, center=part.center)
            if is_better(moved):
                return replace(moved, findings=(*moved.findings, part.finding))
        yaw = replace(lm or LMOptions(), alignment="yaw")
        (turned,) = self._fit_scans([scan], lm=yaw, seed=seed, outliers=outliers)
        if not is_better(turned):
            return fit
        degrees = similarity.heading(turned.frame)
        if abs(degrees) < MIN_TURN:
            return fit
        return replace(turned, findings=(*turned.findings, Finding("heading-found", {"degrees": round(degrees, 1)})))

    def fit_sequence(
        self,
        scans: Sequence[Scan],
        options: SequenceOptions | None = None,
        *,
        lm: LMOptions | None = None,
        seed: int = 0,
    ) -> list[Fit]:
        """Fit the frames of a motion (scans in meters, in order) by Levenberg-Marquardt: each alone, then jointly.

        Frames without points, and frames that `fit_scans` refuses, are interpolated. Raises `ValueError` as
        `fit_jointly` does.
        """
        self._sdf_model("--as-sequence", "Fit the scans without it.")
        usable, errors = [], []
        scans = [check_scan(scan) if len(scan) else scan for scan in scans]
        for index, scan in enumerate(scans):
            try:
                self._place(scan)
                usable.append(index)
            except ValueError as error:
                errors.append(str(error))
        if errors and len(usable) < 2:
            raise ValueError(
                f"{len(usable)} of {len(scans)} frames can be fitted, and a sequence needs two. {errors[0]}"
            )
        alone: list[Fit | None] = [None] * len(scans)
        alone_options = replace(lm or LMOptions(), levels=1)  # the parts follow from the joint fit
        fitted = self._fit_scans([scans[index] for index in usable], method="lm", lm=alone_options, seed=seed)
        for index, fit in zip(usable, fitted, strict=True):
            alone[index] = fit
        return self.fit_jointly(scans, alone, options, lm=lm, seed=seed)

    def fit_jointly(
        self,
        scans: Sequence[Scan],
        fits: Sequence[Fit | None],
        options: SequenceOptions | None = None,
        *,
        lm: LMOptions | None = None,
        seed: int = 0,
    ) -> list[Fit]:
        """Fit the frames of a motion (scans in meters, in order) jointly, from the fit of each alone.

        Frames whose fit is None or out of distribution are interpolated. Raises `ValueError` for fewer than three
        frames, fewer than two with a usable fit, and a model that is not an SDF with a vector as the code.
        """
        model = self._sdf_model("--as-sequence", "Fit the scans without it.")
        start = time.perf_counter()
        joint = fit_jointly(
            model,
            [scan.remove_statistical_outliers() for scan in scans],
            [None if fit is None else fit.code.global_code for fit in fits],
            [None if fit is None else fit.frame for fit in fits],
            lm or LMOptions(),
            options or SequenceOptions(),
            seed=seed,
        )
        seconds = (time.perf_counter() - start) / len(scans)
        return [
            Fit(
                joint.code[index],
                frame,
                joint.residual[index].cpu().numpy() * float(frame.scale),
                joint.covariance[index].numpy(),
                scan.name,
                seconds + (0.0 if fit is None else fit.seconds),
                joint.part_covariance[index],
                joint.interpolated[index],
                scan.origin,
                scan.findings,
            )
            for index, (scan, fit, frame) in enumerate(zip(scans, fits, joint.frames, strict=True))
        ]

    def remove_clutter(self, scans: Sequence[Scan], *, lm: LMOptions | None = None, seed: int = 0) -> list[Scan]:
        """The scans (meters, y up) without floor, walls and furniture; a scan without clutter is returned as it is.

        Parts that are separate from the person are recognized by quick fits with the alignment of `lm`. A model that is
        not an SDF with a vector as the code has no such fits: only planes are removed.
        """
        model = self.model
        if not isinstance(model, SDFModel):
            return [remove_clutter(scan, None, seed=seed) for scan in scans]
        quick = replace(lm or LMOptions(), num_points=512, free_space_points=256, max_steps=6, trial_steps=3)
        quick = replace(quick, levels=1, max_far_share=QUICK_FAR_SHARE)
        if quick.alignment == "fixed":
            quick = replace(quick, alignment="local")  # the center of a part is not that of the person

        def quick_fit(scan: Scan) -> QuickFit:
            try:
                check_size(scan, scale=self.scale)
            except ValueError:  # a part as small as a stool, or a room: not a person
                return QuickFit(np.inf, lambda points: np.full(len(points), np.inf))
            (fit,) = self._fit_scans([check_orientation(scan)], lm=quick, seed=seed)

            def distance(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
                with torch.no_grad():
                    values = model.field(self._to_model(points, fit.frame), fit.code)[0]
                return (values.abs().cpu() * fit.frame.scale).numpy()

            # on the scale of the limit of one vector, for which the constants of the clutter are
            return QuickFit(ood_score(fit.code, model.prior) * OOD_THRESHOLD / model.prior.ood_limit, distance)

        return [remove_clutter(scan, quick_fit, seed=seed) for scan in scans]

    def refine(
        self, scans: Sequence[Scan], fits: Sequence[Fit], options: RefineOptions | None = None, *, seed: int = 0
    ) -> "Iterator[ShapeSpace]":
        """Adapt the weights to each scan (meters, y up) from its fit; yield one space for each scan, in order.

        `refined.mesh(fit)` is the refined surface. This space is not changed. Raises `ValueError` for a model that is
        not an SDF with a vector as the code.
        """
        model = self._sdf_model("--method refine", "Use --method auto.")
        for scan, fit in zip(scans, tqdm(fits, desc="refine", unit="scan", disable=len(fits) < 2), strict=True):
            cleaned = scan.remove_statistical_outliers()
            check_size(cleaned, scale=self.scale)
            refined = refine(model, cleaned.to_model(fit.frame), fit.code, self.metadata["weights"], options, seed=seed)
            yield ShapeSpace(refined, self.config, scale=self.scale, metadata={**self.metadata, "refined": scan.name})

    # ------------------------------------------------------------------------------------------------- code to surface

    def mesh(
        self,
        shape: Fit | Code,
        *,
        resolution: int = 128,
        components: Components = "largest",
        surface: Surface = "auto",
    ) -> Trimesh:
        """Triangle mesh of a shape, in meters: of a fit at the position of its scan, of a code at the origin.

        Vertices are relative to `Fit.origin`, as the points of the scan: `write_mesh(..., origin=fit.origin)` adds it.

        A `Code` must be a batch of one. `surface` is the `template` of `register`, or the zero level set of the
        `field`; `auto` is the template if the model has one. `resolution` and `components` are those of the field:
        number of grid cells along the edge of the model cube, and whether small components are retained too (`all`).
        Raises `ValueError` if the field has no surface in the cube.
        """
        if self.choose_surface(surface) == "template":
            return self.register(shape)
        code = shape.code if isinstance(shape, Fit) else shape
        frame = shape.frame if isinstance(shape, Fit) else self._frame()
        (mesh,) = self.model.extract_surface(code.to(self.device), resolution=resolution)
        if components == "largest" and isinstance(self.model, FieldModel):  # each patch of an atlas is a component
            mesh = largest_component(mesh)
        return Trimesh(_to_world(mesh.vertices, frame), mesh.faces, process=False)

    def choose_surface(self, surface: Surface) -> Literal["field", "template"]:
        """The surface that `auto` stands for with this model; others are returned as they are."""
        if surface != "auto":
            return surface
        has_template = isinstance(self.model, ArticulatedSDF) and len(self.model.template.faces) > 0
        return "template" if has_template else "field"

    def register(self, shape: Fit | Code) -> Trimesh:
        """The model's template on the surface of a shape (meters): vertices and faces in the same order for all shapes.

        A fit is at the position of its scan, a code (a batch of one) at the origin. Raises `ValueError` for a family
        without parts, and for a model without a template.
        """
        code, frame = (shape.code, shape.frame) if isinstance(shape, Fit) else (shape, self._frame())
        registration = self.registration
        (vertices,) = register(self._articulated_model(), code.to(self.device), registration)
        return Trimesh(_to_world(vertices.cpu().numpy(), frame), registration.faces.numpy(), process=False)

    def joints(self, shape: Fit | Code) -> dict[str, Float[np.ndarray, "3"]]:
        """Centers of the joints of a shape by name, in meters; empty if the template is not that of the synthetic body.

        A fit is at the position of its scan, a code (a batch of one) at the origin. Raises `ValueError` for a family
        without parts.
        """
        model = self._articulated_model()
        code, frame = (shape.code, shape.frame) if isinstance(shape, Fit) else (shape, self._frame())
        with torch.no_grad():
            (centers,) = model.template.joints(model.states(code.to(self.device)))
        return dict(zip(model.template.joint_names, _to_world(centers.cpu().numpy(), frame), strict=True))

    @cached_property
    def registration(self) -> Registration:
        """What `register` prepares once for all shapes; errors are the same."""
        template = self._articulated_model().template
        return Registration(template.vertices, template.faces)

    def _articulated_model(self) -> ArticulatedSDF:
        """The model if it has a template with parts; otherwise `ValueError`."""
        if isinstance(self.model, ArticulatedSDF):
            return self.model
        if isinstance(self.model, DetailedModel):
            raise ValueError(
                f"registered template: the detail of a space that is refined to {self.metadata['refined']} is in no "
                "template. Remove --method refine, or register by the space that was refined."
            )
        raise ValueError(
            f"registered template: family {registry.family_name(self.config)} has no parts. Use a space of the "
            "articulated family, or mesh the field with `fit`."
        )

    def uncertainty(self, fit: Fit, mesh: Trimesh) -> Float[np.ndarray, "v"]:
        """Standard deviation of the surface along its normal, in meters, at each vertex of the mesh of a fit.

        It follows from the covariance of the code to first order, times a calibration factor. Measured coverage and
        limits: docs/results/robustness.md. Raises `ValueError` for a fit without a covariance.
        """
        root = self._covariance_root(fit).to(self.device)
        assert isinstance(self.model, SDFModel)  # other models have no covariance
        vertices = self._to_model(mesh.vertices, fit.frame)
        stds = [self._vertex_std(self.model, fit, chunk, root) for chunk in vertices.split(VERTEX_CHUNK, dim=1)]
        return float(fit.frame.scale) * torch.cat(stds).cpu().double().numpy()

    def _vertex_std(
        self, model: SDFModel, fit: Fit, vertices: Float[Tensor, "1 v 3"], root: Float[Tensor, "k k"]
    ) -> Float[Tensor, "v"]:
        """Standard deviation of the surface at vertices (model units): that of the code, and that of the parts."""
        field = model.linearize(vertices, fit.code)
        variance = (field.jacobian[0] @ root).square().sum(dim=1)
        if fit.part_covariance is not None and isinstance(model, ArticulatedSDF):
            covariance = torch.from_numpy(fit.part_covariance).to(vertices)
            local = model.linearize_parts(vertices, model.states(fit.code))
            by_part = torch.einsum("vnp,vnpq,vnq->vn", local.jacobian[0], covariance[local.part[0]], local.jacobian[0])
            # The correlation of the parts is not stored: the sum of deviations bounds that of the sum.
            variance = variance + (_calibration(fit) * by_part.clamp(min=0).sqrt().sum(dim=1)).square()
        return variance.sqrt() / field.gradient[0].norm(dim=1).clamp(min=1e-3)

    def sample_posterior(self, fit: Fit, count: int, *, seed: int = 0) -> list[Fit]:
        """Draw `count` other shapes that the scan of a fit may show; the same seed gives the same shapes.

        The codes are drawn from the Gaussian of the fit, with the factor of `uncertainty`: the shapes agree where the
        scan saw the surface. Raises `ValueError` for a fit without a covariance.
        """
        vector = fit.code.vector
        noise = torch.randn(count, vector.shape[1], generator=torch.Generator().manual_seed(seed))
        moved = vector + (noise @ self._covariance_root(fit).T).to(vector)
        codes = self.model.replace_vector(
            Code(tuple(part.expand(count, *part.shape[1:]) for part in fit.code.parts)), moved
        )
        return [
            Fit(codes[index], fit.frame, np.empty(0), name=f"{fit.name}.sample{index}", origin=fit.origin)
            for index in range(count)
        ]

    def _covariance_root(self, fit: Fit) -> Float[Tensor, "k k"]:
        """Cholesky factor of the calibrated covariance of the fit's code vector, on the CPU."""
        if fit.covariance is None:
            raise ValueError(f"{fit.name}: the fit has no covariance. Fit by Levenberg-Marquardt (--method lm).")
        return _calibration(fit) * torch.linalg.cholesky(torch.from_numpy(fit.covariance).double()).float()

    def interpolate(
        self, a: Fit | Code, b: Fit | Code, steps: int, *, path: InterpolationPath = "auto", resolution: int = 128
    ) -> list[Trimesh]:
        """Meshes (meters) of `steps` shapes from a to b, both included; positions are interpolated too.

        `path` is `parts` (along the joints of the articulated family), `linear`, `slerp`, `geodesic`, or `auto`:
        `parts` if the model has parts, otherwise `linear`. Raises `ValueError` for fewer than two steps, for `parts`
        with a model without parts, and for `geodesic` with a model that is not an SDF with a vector as the code.
        """
        fits = self.interpolate_codes(a, b, steps, path=path)
        return [self.mesh(fit, resolution=resolution) for fit in tqdm(fits, desc="mesh", unit="frame")]

    def interpolate_codes(
        self, a: Fit | Code, b: Fit | Code, steps: int, *, path: InterpolationPath = "auto"
    ) -> list[Fit]:
        """The shapes of `interpolate` as codes and frames, without meshes; errors are the same."""
        start, end = (Fit(x, self._frame(), np.empty(0)) if isinstance(x, Code) else x for x in (a, b))
        both = start.frame, end.relative_to(start.origin).frame
        codes = interpolate(self.model, start.code.to(self.device), end.code.to(self.device), steps, path, frames=both)
        frames = [similarity.interpolate_frames(*both, float(t)) for t in np.linspace(0, 1, steps)]
        return [
            Fit(codes[index], frame, np.empty(0), name=f"interpolated_{index / (steps - 1):.2f}", origin=start.origin)
            for index, frame in enumerate(frames)
        ]

    def transfer_pose(self, pose: Fit | Code, person: Fit | Code) -> Fit:
        """The person of the second shape in the pose, at the place and with the heading of the first.

        Rotations are taken along the joints; sizes and local shape are the person's own. Raises `ValueError` for a
        model without parts.
        """
        taken, sizes = (Fit(x, self._frame(), np.empty(0)) if isinstance(x, Code) else x for x in (pose, person))
        code = transfer_pose(self.model, taken.code.to(self.device), sizes.code.to(self.device))
        frame = replace(taken.frame, scale=sizes.frame.scale)
        name = f"{sizes.name or 'person'} in the pose of {taken.name or 'another'}"
        return Fit(code, frame, np.empty(0), name=name, origin=taken.origin)

    def sample(self, count: int, *, seed: int = 0) -> Code:
        """`count` codes drawn from the prior, a Gaussian over the training codes; the same seed gives the same codes.

        `space.mesh(codes[i])` is the surface of one of them. Raises `ValueError` for a family whose codes are grids.
        """
        generator = torch.Generator().manual_seed(seed)
        return Code((self._prior("cannot be sampled").sample(count, generator),))

    def from_principal_components(self, coefficients: Sequence[float]) -> Fit:
        """The shape at these standard deviations from the mean along the first principal components of the prior.

        It is at the origin. Raises `ValueError` for more coefficients than the code has numbers, and for a family whose
        codes are grids.
        """
        prior = self._prior("have no principal components")
        if len(coefficients) > len(prior.mean):
            raise ValueError(
                f"{len(coefficients)} coefficients: the codes have {len(prior.mean)} numbers. Give fewer coefficients."
            )
        axes = prior.principal_axes(len(coefficients))
        code = prior.mean + torch.tensor(coefficients, dtype=axes.dtype, device=axes.device) @ axes
        return Fit(Code((code[None],)), self._frame(), np.empty(0), name="components" if any(coefficients) else "mean")

    def _prior(self, problem: str) -> GaussianPrior:
        """The prior over the codes; `ValueError` with this problem for a family whose codes are grids."""
        if self.model.prior is None:
            raise ValueError(
                f"the codes of family {registry.family_name(self.config)} are grids and {problem}. "
                "Use a family whose codes are vectors."
            )
        return self.model.prior

    # ------------------------------------------------------------------------------------------------------- training

    @classmethod
    def train(
        cls,
        store: ScanSource,
        names: Sequence[str],
        run: Run,
        config: TrainConfig[Any],
        *,
        rank: int = 0,
        world_size: int = 1,
        resume: bool = False,
    ) -> "ShapeSpace":
        """Train on the scans `names` of a store; checkpoint, model and records are written to `run`.

        With several processes, this is process `rank` of `world_size`. The articulated family takes the poses of its
        parts from registrations; scans without registrations of the template of `config.init_from` are fitted by that
        space, in `config.rounds` rounds of fits and training. Raises as `training.train.train` does, and `ValueError`
        for a space that cannot fit the scans.
        """
        trained = None
        if isinstance(config.model, ArticulatedConfig) and config.trainable == "all" and config.init_from is not None:
            device = str(training_device(config.device))
            space = cls.load(config.init_from, device=device)
            start = _model_with_parts(space, config.init_from, store)
            if not are_registered(store, names, start.template.faces.long().cpu()):
                assert isinstance(space.config, ArticulatedConfig)  # that of its model
                config = replace(config, model=replace(space.config, loss_points=config.model.loss_points))

                def load(folder: Path) -> ArticulatedSDF:
                    return _model_with_parts(cls.load(folder, device=device), folder, store)

                trained = train_on_fits(
                    start, config, store, names, run, load, rank=rank, world_size=world_size, resume=resume
                )
        if trained is None:
            trained = train_model(config, store, names, run, rank=rank, world_size=world_size, resume=resume)
        return cls(trained.model, trained.config, scale=trained.scale, metadata=trained.metadata)

    def _sdf_model(self, option: str, remedy: str) -> SDFModel:
        """The model if it is an SDF with a vector as the code; otherwise `ValueError` for the option that needs it."""
        if not isinstance(self.model, SDFModel):
            raise ValueError(
                f"{option}: family {registry.family_name(self.config)} has no signed distance with a vector as the "
                f"code. {remedy}"
            )
        return self.model

    def _place(
        self, scan: Scan, outliers: Clutter = "remove", center: Float[np.ndarray, "3"] | None = None
    ) -> tuple[Scan, Frame]:
        """The scan without isolated points in the model frame, and the frame; `ValueError` if it cannot be fitted."""
        is_finite = np.isfinite(scan.points).all(axis=1)
        if len(scan) < MIN_POINTS or not is_finite.all():
            raise ValueError(
                f"scan {scan.name}: {int(is_finite.sum())} of {len(scan)} points are finite. At least {MIN_POINTS} "
                "points are required and all must be finite: remove the invalid rows."
            )
        scan = scan.even_out(keep_outliers=outliers == "keep", repeat=True)
        check_size(scan, scale=self.scale)
        frame = scan.frame(self.scale)
        if center is not None:
            frame = replace(frame, center=torch.from_numpy(center).to(frame.center))
        return scan.to_model(frame), frame

    def _frame(self) -> Frame:
        """The frame of a shape without a scan: its center is the origin of the world."""
        return Frame(torch.zeros(3), torch.tensor(self.scale))

    def _to_model(self, points: Float[np.ndarray, "n 3"], frame: Frame) -> Float[Tensor, "1 n 3"]:
        """World points in the model frame, as a batch of one on the device of the model."""
        return frame.to_model(torch.from_numpy(np.array(points)).float())[None].to(self.device)


def _model_with_parts(space: ShapeSpace, path: str | Path, store: ScanSource) -> ArticulatedSDF:
    """The model of a space, to start a training on a store; `ValueError` if it has no parts, or another scale."""
    model = space.model
    if not isinstance(model, ArticulatedSDF) or not len(model.template.vertices):
        raise ValueError(
            f"--init-from {path}: a space without parts (family {registry.family_name(space.config)}). Start from a "
            "trained space of family articulated."
        )
    if abs(space.scale - store.scale) > 1e-6 * space.scale:
        raise ValueError(
            f"--init-from {path}: its model unit is {space.scale:g} m, and that of {store.path} {store.scale:g} m. "
            f"Preprocess the scans with --scale {space.scale:g}."
        )
    return model


def _calibration(fit: Fit) -> float:
    """Factor of the standard deviations that follow from the covariances of a fit."""
    return STD_CALIBRATION if fit.part_covariance is None else PARTS_STD_CALIBRATION


def _to_world(points: Float[np.ndarray, "n 3"], frame: Frame) -> Float[np.ndarray, "n 3"]:
    """Points of the model frame in the world (float32)."""
    return frame.to_world(torch.from_numpy(np.asarray(points)).float()).numpy()
