"""High-level API: `ShapeSpace` takes NumPy arrays in meters and returns `trimesh` meshes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from tqdm import tqdm
from trimesh import Trimesh

from shapespace.data.store import ScanSource
from shapespace.fitting.checks import assess_fit, warn, with_quality
from shapespace.fitting.clutter import Clutter
from shapespace.fitting.detail import DetailedModel
from shapespace.fitting.displacement import mix_displacements
from shapespace.fitting.fit import AdamOptions, CodeMethod
from shapespace.fitting.fitter import ScanFitter
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.posterior import sample_posterior, surface_std
from shapespace.fitting.refine import RefineOptions, refine
from shapespace.fitting.registration import Registration, registration_of
from shapespace.fitting.result import Fit
from shapespace.fitting.rounds import train
from shapespace.fitting.sequence import SequenceOptions
from shapespace.fitting.surface import (
    Components,
    Surface,
    choose_surface,
    field_mesh,
    joint_positions,
    registered_mesh,
)
from shapespace.geometry import similarity
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.interpolation import InterpolationPath, interpolate, transfer_pose
from shapespace.io.scan_arrays import scan_of_arrays
from shapespace.io.units import check_size
from shapespace.models import registry
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.base import ModelConfig, ShapeModel
from shapespace.models.code import Code
from shapespace.nn.latent import GaussianPrior
from shapespace.training.config import TrainConfig
from shapespace.training.run import Run
from shapespace.training.trained import TrainedModel, load_trained


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
        trained = load_trained(path, device=device)
        return cls(trained.model, trained.config, scale=trained.scale, metadata=trained.metadata)

    def save(self, path: str | Path, *, compact: bool = False) -> None:
        """Write weights, settings and metadata to one safetensors file; `compact` halves its size and its precision.

        Raises `ValueError` for a refined space, whose detail is in the scan and not in the weights.
        """
        if isinstance(self.model, DetailedModel):
            raise ValueError(
                f"{path}: a space refined to {self.metadata['refined']} cannot be saved. Save its mesh, or refine "
                "again."
            )
        TrainedModel(self.model, self.config, self.scale, self.metadata).save(Path(path), compact=compact)

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
        (fit,) = self._fitter.fit_checked([scan])
        fit = self.assess(fit, scan)
        warn([fit])
        return fit

    def assess(self, fit: Fit, scan: Scan, mesh: Trimesh | None = None) -> Fit:
        """The fit with its quality and the findings that follow from it; `scan` in meters, y up.

        Coverage and stature are those of a coarse mesh of the fit, unless a mesh (meters) is given.
        """
        return with_quality(fit, assess_fit(self.model, fit, scan, mesh))

    def encode_scans(self, scans: Sequence[Scan], *, seed: int = 0) -> list[Fit]:
        """Codes of scans (meters, y up) by one forward pass of the encoder; `[]` for no scans.

        The fits have no residuals and no covariance. `seed` draws the points that the encoder sees. Scans are checked,
        and findings raised as `ScanWarning`s. Raises `ValueError` for arrays of wrong shapes, too few points, points
        that are not finite, or the size of another unit.
        """
        if not scans:
            return []
        fits = self._fitter.encode(scans, seed=seed)
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
        headings; findings are in the fits, and raised as `ScanWarning`s. `assess` adds the quality of a fit. On Linux,
        four scans or more are shared among copies of this process by a model with parts on the CPU, one for each
        thread of torch. Raises `ValueError` for `lm` with another model, and for a scan with arrays of wrong shapes,
        too few points, points that are not finite, or the size of another unit; `OSError` if a process dies.
        """
        fits = self._fitter.fit_checked(scans, method=method, lm=lm, adam=adam, seed=seed, outliers=outliers)
        warn(fits)
        return fits

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
        return self._fitter.fit_sequence(scans, options, lm=lm, seed=seed)

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
        return self._fitter.fit_jointly(scans, fits, options, lm=lm, seed=seed)

    def remove_clutter(self, scans: Sequence[Scan], *, lm: LMOptions | None = None, seed: int = 0) -> list[Scan]:
        """The scans (meters, y up) without floor, walls and furniture; a scan without clutter is returned as it is.

        Parts that are separate from the person are recognized by quick fits with the alignment of `lm`. A model that is
        not an SDF with a vector as the code has no such fits: only planes are removed.
        """
        return self._fitter.remove_clutter(scans, lm=lm, seed=seed)

    def refine(
        self, scans: Sequence[Scan], fits: Sequence[Fit], options: RefineOptions | None = None, *, seed: int = 0
    ) -> "Iterator[ShapeSpace]":
        """Adapt the weights to each scan (meters, y up) from its fit; yield one space for each scan, in order.

        `refined.mesh(fit)` is the refined surface. This space is not changed. Raises `ValueError` for a model that is
        not an SDF with a vector as the code.
        """
        model = self._fitter.sdf_model("--method refine", "Use --method auto.")
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
        return field_mesh(self.model, self._placed(shape), resolution=resolution, components=components)

    def choose_surface(self, surface: Surface) -> Literal["field", "template"]:
        """The surface that `auto` stands for with this model; others are returned as they are."""
        return choose_surface(self.model, surface)

    def register(self, shape: Fit | Code) -> Trimesh:
        """The model's template on the surface of a shape (meters): vertices and faces in the same order for all shapes.

        A fit is at the position of its scan, a code (a batch of one) at the origin. Raises `ValueError` for a family
        without parts, and for a model without a template.
        """
        return registered_mesh(self._articulated_model(), self._placed(shape), self.registration)

    def joints(self, shape: Fit | Code) -> dict[str, Float[np.ndarray, "3"]]:
        """Centers of the joints of a shape by name, in meters; empty if the template is not that of the synthetic body.

        A fit is at the position of its scan, a code (a batch of one) at the origin. Raises `ValueError` for a family
        without parts.
        """
        return joint_positions(self._articulated_model(), self._placed(shape))

    @property
    def registration(self) -> Registration:
        """What `register` prepares once for all shapes; errors are the same."""
        return self._fitter.registration or registration_of(self._articulated_model())  # raises

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
        is_template = isinstance(self.model, ArticulatedSDF) and np.array_equal(
            mesh.faces, self.model.template.faces.cpu().numpy()
        )
        return surface_std(self.model, fit, mesh.vertices, of_template=is_template)

    def sample_posterior(self, fit: Fit, count: int, *, seed: int = 0) -> list[Fit]:
        """Draw `count` other shapes that the scan of a fit may show; the same seed gives the same shapes.

        The codes are drawn from the Gaussian of the fit, with the factor of `uncertainty`: the shapes agree where the
        scan saw the surface. Raises `ValueError` for a fit without a covariance.
        """
        return sample_posterior(self.model, fit, count, seed=seed)

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
        start, end = self._placed(a), self._placed(b)
        both = start.frame, end.relative_to(start.origin).frame
        codes = interpolate(self.model, start.code, end.code, steps, path, frames=both)
        return [
            Fit(
                codes[index],
                similarity.interpolate_frames(*both, share),
                np.empty(0),
                name=f"interpolated_{share:.2f}",
                displacement=mix_displacements(start.displacement, end.displacement, share),
                origin=start.origin,
            )
            for index, share in enumerate(np.linspace(0, 1, steps).tolist())
        ]

    def transfer_pose(self, pose: Fit | Code, person: Fit | Code) -> Fit:
        """The person of the second shape in the pose, at the place and with the heading of the first.

        Rotations are taken along the joints; sizes and local shape are the person's own. Raises `ValueError` for a
        model without parts.
        """
        taken, sizes = self._placed(pose), self._placed(person)
        code = transfer_pose(self.model, taken.code, sizes.code)
        frame = replace(taken.frame, scale=sizes.frame.scale)
        name = f"{sizes.name or 'person'} in the pose of {taken.name or 'another'}"
        return Fit(code, frame, np.empty(0), name=name, displacement=sizes.displacement, origin=taken.origin)

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
        return replace(self._placed(Code((code[None],))), name="components" if any(coefficients) else "mean")

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
        space, in `config.rounds` rounds of fits and training. Raises as `fitting.rounds.train` does.
        """
        trained = train(config, store, names, run, rank=rank, world_size=world_size, resume=resume)
        return cls(trained.model, trained.config, scale=trained.scale, metadata=trained.metadata)

    @cached_property
    def _fitter(self) -> ScanFitter:
        return ScanFitter(self.model, self.config, self.scale, self.metadata.get("weights", {}))

    def _placed(self, shape: Fit | Code) -> Fit:
        """The shape on the device of the model: a fit at its place, a code at the origin of the world."""
        if isinstance(shape, Fit):
            return replace(shape, code=shape.code.to(self.device))
        return Fit(shape.to(self.device), Frame(torch.zeros(3), torch.tensor(self.scale)), np.empty(0))
