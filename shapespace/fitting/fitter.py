"""Fit scans in meters by one model: checks, place in the model frame, other headings, motions and clutter."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from shapespace.fitting.checks import MAX_RETRIED_SHARE, body_parts, check_scan
from shapespace.fitting.clutter import Clutter, QuickFit, remove_clutter
from shapespace.fitting.fit import ADAM_FROM_ENCODER, AdamOptions, CodeMethod, encode, fit_adam, fit_lm
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.quality import ood_score
from shapespace.fitting.registration import Registration, registration_of
from shapespace.fitting.result import Fit
from shapespace.fitting.sequence import SequenceOptions, fit_jointly
from shapespace.fitting.surface import choose_surface, to_model
from shapespace.geometry import similarity
from shapespace.geometry.findings import Finding
from shapespace.geometry.frame import Frame
from shapespace.geometry.orientation import check_orientation
from shapespace.geometry.scan import MIN_POINTS, Scan
from shapespace.io.units import check_size
from shapespace.models import registry
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.base import ModelConfig, SDFModel, ShapeModel
from shapespace.nn.latent import OOD_THRESHOLD
from shapespace.nn.parallel import can_fork, forked_results

QUICK_FAR_SHARE = 0.1  # share of far points above which a quick fit searches the pose: a limb, not a thing beside it
MIN_FORKED = 4  # scans that are shared among processes
MIN_TURN = 30.0  # degrees of another heading; less is within reach of the first fit


@dataclass(frozen=True)
class ScanFitter:
    """Fits of scans (meters, y up) by a model."""

    model: ShapeModel
    config: ModelConfig
    scale: float
    """Length of a model unit in meters."""
    weights: Mapping[str, float]
    """Weights of the loss terms, for fits by Adam."""

    @cached_property
    def registration(self) -> Registration | None:
        """What the registration of the model's template prepares once for all shapes; None without a template."""
        if choose_surface(self.model, "auto") == "field":
            return None
        assert isinstance(self.model, ArticulatedSDF)  # it has a template
        return registration_of(self.model)

    def sdf_model(self, option: str, remedy: str) -> SDFModel:
        """The model if it is an SDF with a vector as the code; otherwise `ValueError` for the option that needs it."""
        if not isinstance(self.model, SDFModel):
            raise ValueError(
                f"{option}: family {registry.family_name(self.config)} has no signed distance with a vector as the "
                f"code. {remedy}"
            )
        return self.model

    def place(
        self, scan: Scan, outliers: Clutter = "remove", center: Float[np.ndarray, "3"] | None = None
    ) -> tuple[Scan, Frame]:
        """The scan without isolated points in the model frame, and the frame; `ValueError` if it cannot be fitted.

        `center`: of the person (meters); that of the scan by default.
        """
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

    def encode(self, scans: Sequence[Scan], *, seed: int = 0) -> list[Fit]:
        """Codes of scans (at least one), which are checked, by one forward pass of the encoder."""
        placed = [self.place(check_scan(scan)) for scan in scans]
        start = time.perf_counter()
        code = encode(self.model, [scan for scan, _ in placed], seed=seed)
        seconds = (time.perf_counter() - start) / len(scans)
        return [Fit.of_scan(scan, code[index], frame, seconds=seconds) for index, (scan, frame) in enumerate(placed)]

    def fit_checked(
        self,
        scans: Sequence[Scan],
        *,
        method: CodeMethod = "auto",
        lm: LMOptions | None = None,
        adam: AdamOptions | None = None,
        seed: int = 0,
        outliers: Clutter = "remove",
    ) -> list[Fit]:
        """Fits of scans, which are checked; one by `lm` out of distribution is tried at other places."""
        is_lm = method == "lm" or (method == "auto" and isinstance(self.model, SDFModel))

        def fit_some(some: Sequence[Scan]) -> list[Fit]:
            checked = [check_scan(scan) for scan in some]
            fits = self.fit(checked, method=method, lm=lm, adam=adam, seed=seed, outliers=outliers)
            if not is_lm or (lm or LMOptions()).alignment != "local":
                return fits
            return [self._placed_anew(fit, scan, lm, seed, outliers) for fit, scan in zip(fits, checked, strict=True)]

        if not is_lm or not self._is_for_processes(scans):
            return fit_some(scans)
        _ = self.registration  # once, for all processes
        start = time.perf_counter()
        each = forked_results(fit_some, [[scan] for scan in scans])
        fits = [fit for (fit,) in tqdm(each, total=len(scans), desc="fit", unit="scan")]
        seconds = (time.perf_counter() - start) / len(scans)
        return [replace(fit, seconds=seconds) for fit in fits]

    def _is_for_processes(self, scans: Sequence[Scan]) -> bool:
        """Whether scans are worked on in processes: a fit of parts has thousands of small products."""
        is_here = next(self.model.parameters()).device.type == "cpu"
        return isinstance(self.model, ArticulatedSDF) and is_here and len(scans) >= MIN_FORKED and can_fork()

    def fit(
        self,
        scans: Sequence[Scan],
        *,
        method: CodeMethod = "auto",
        lm: LMOptions | None = None,
        adam: AdamOptions | None = None,
        seed: int = 0,
        outliers: Clutter = "remove",
        center: Float[np.ndarray, "3"] | None = None,
    ) -> list[Fit]:
        """Fits of scans as they are; `[]` for no scans. The settings are those of `ShapeSpace.fit_scans`.

        `center`: of the person (meters); that of each scan by default.
        """
        if not scans:
            return []
        if method == "auto" and not isinstance(self.model, SDFModel):
            method, adam = "adam", ADAM_FROM_ENCODER
        placed = [self.place(scan, outliers, center) for scan in scans]
        model_scans = [scan for scan, _ in placed]
        start = time.perf_counter()
        if method != "adam":
            model = self.sdf_model("--method lm", "Use --method adam, or the command encode.")
            fitted = fit_lm(model, model_scans, lm, registration=self.registration, seed=seed)
        else:
            fitted = fit_adam(self.model, model_scans, self.weights, adam, seed=seed)
        seconds = (time.perf_counter() - start) / len(scans)
        pairs = zip((frame for _, frame in placed), fitted.frames, strict=True)
        frames = [frame if alignment is None else frame.compose(alignment) for frame, alignment in pairs]
        return [
            Fit.of_scan(
                scan,
                fitted.code[index],
                frames[index],
                seconds=seconds,
                residual=fitted.residual[index],
                covariance=None if fitted.covariance is None else fitted.covariance[index],
                part_covariance=None if fitted.part_covariance is None else fitted.part_covariance[index],
                displacement=None if fitted.displacement is None else fitted.displacement.select(index),
            )
            for index, scan in enumerate(model_scans)
        ]

    def _placed_anew(self, fit: Fit, scan: Scan, lm: LMOptions | None, seed: int, outliers: Clutter) -> Fit:
        """The fit, or, if it is out of distribution, one as a part of a body or with another heading that is in it."""
        prior = self.model.prior
        assert prior is not None  # that of an SDF
        if ood_score(fit.code, prior) <= prior.ood_limit:
            return fit

        def is_better(other: Fit) -> bool:
            is_usual = ood_score(other.code, prior) <= MAX_RETRIED_SHARE * prior.ood_limit
            return is_usual and bool(np.median(other.residuals) <= np.median(fit.residuals))

        for part in body_parts(scan):
            (moved,) = self.fit([scan], lm=lm, seed=seed, outliers=outliers, center=part.center)
            if is_better(moved):
                return replace(moved, findings=(*moved.findings, part.finding))
        yaw = replace(lm or LMOptions(), alignment="yaw")
        (turned,) = self.fit([scan], lm=yaw, seed=seed, outliers=outliers)
        if not is_better(turned):
            return fit
        degrees = similarity.heading(turned.frame)
        if abs(degrees) < MIN_TURN:
            return fit
        return replace(turned, findings=(*turned.findings, Finding("heading-found", {"degrees": round(degrees, 1)})))

    def fit_sequence(
        self, scans: Sequence[Scan], options: SequenceOptions | None, *, lm: LMOptions | None, seed: int = 0
    ) -> list[Fit]:
        """Fits of the frames of a motion, each alone and then jointly; see `ShapeSpace.fit_sequence`."""
        self.sdf_model("--as-sequence", "Fit the scans without it.")
        usable, errors = [], []
        scans = [check_scan(scan) if len(scan) else scan for scan in scans]
        for index, scan in enumerate(scans):
            try:
                self.place(scan)
                usable.append(index)
            except ValueError as error:
                errors.append(str(error))
        if errors and len(usable) < 2:
            raise ValueError(
                f"{len(usable)} of {len(scans)} frames can be fitted, and a sequence needs two. {errors[0]}"
            )
        alone: list[Fit | None] = [None] * len(scans)
        alone_options = replace(lm or LMOptions(), levels=1)  # the parts follow from the joint fit
        fitted = self.fit([scans[index] for index in usable], method="lm", lm=alone_options, seed=seed)
        for index, fit in zip(usable, fitted, strict=True):
            alone[index] = fit
        return self.fit_jointly(scans, alone, options, lm=lm, seed=seed)

    def fit_jointly(
        self,
        scans: Sequence[Scan],
        fits: Sequence[Fit | None],
        options: SequenceOptions | None,
        *,
        lm: LMOptions | None,
        seed: int = 0,
    ) -> list[Fit]:
        """Fits of the frames of a motion jointly, from the fit of each alone; see `ShapeSpace.fit_jointly`."""
        model = self.sdf_model("--as-sequence", "Fit the scans without it.")
        start = time.perf_counter()
        joint = fit_jointly(
            model,
            [scan.remove_statistical_outliers() for scan in scans],
            [None if fit is None else fit.code.global_code for fit in fits],
            [None if fit is None else fit.frame for fit in fits],
            lm or LMOptions(),
            options or SequenceOptions(),
            registration=self.registration,
            seed=seed,
        )
        seconds = (time.perf_counter() - start) / len(scans)
        return [
            Fit.of_scan(
                scan,
                joint.code[index],
                frame,
                seconds=seconds + (0.0 if fit is None else fit.seconds),
                residual=joint.residual[index],
                covariance=joint.covariance[index],
                part_covariance=joint.part_covariance[index],
                displacement=None if joint.displacement is None else joint.displacement.select(index),
                interpolated=joint.interpolated[index],
            )
            for index, (scan, fit, frame) in enumerate(zip(scans, fits, joint.frames, strict=True))
        ]

    def remove_clutter(self, scans: Sequence[Scan], *, lm: LMOptions | None, seed: int = 0) -> list[Scan]:
        """The scans without floor, walls and furniture; see `ShapeSpace.remove_clutter`."""
        model = self.model
        if not isinstance(model, SDFModel):
            return [remove_clutter(scan, None, seed=seed) for scan in scans]
        quick = replace(lm or LMOptions(), num_points=512, free_space_points=256, max_steps=6, trial_steps=3)
        quick = replace(quick, levels=1, max_far_share=QUICK_FAR_SHARE, max_outside_share=1.0)
        if quick.alignment == "fixed":
            quick = replace(quick, alignment="local")  # the center of a part is not that of the person

        def quick_fit(scan: Scan) -> QuickFit:
            try:
                check_size(scan, scale=self.scale)
            except ValueError:  # a part as small as a stool, or a room: not a person
                return QuickFit(np.inf, lambda points: np.full(len(points), np.inf))
            (fit,) = self.fit([check_orientation(scan)], lm=quick, seed=seed)

            def distance(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
                with torch.no_grad():
                    values = model.field(to_model(points, fit.frame, fit.code.flat.device), fit.code)[0]
                return (values.abs().cpu() * fit.frame.scale).numpy()

            # on the scale of the limit of one vector, for which the constants of the clutter are
            return QuickFit(ood_score(fit.code, model.prior) * OOD_THRESHOLD / model.prior.ood_limit, distance)

        def remove(scan: Scan) -> Scan:
            return remove_clutter(scan, quick_fit, seed=seed)

        return list(forked_results(remove, scans) if self._is_for_processes(scans) else map(remove, scans))
