"""The one-call door: numpy in, numpy and trimesh out, metres."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path as FilePath
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from trimesh import Trimesh

from shapespace.data.loader import StepDataset
from shapespace.data.store import ScanSource
from shapespace.fitting.clutter import QuickFit, remove_clutter
from shapespace.fitting.fit import ADAM_FROM_ENCODER, AdamOptions, encode, fit_adam, fit_lm
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.quality import ood_score
from shapespace.fitting.refine import DetailedModel, RefineOptions, refine
from shapespace.fitting.result import Fit
from shapespace.fitting.sequence import SequenceOptions, fit_jointly
from shapespace.geometry import similarity
from shapespace.geometry.frame import Frame
from shapespace.geometry.isosurface import largest_component
from shapespace.geometry.scan import MIN_POINTS, Scan
from shapespace.interpolation import InterpolationPath, interpolate
from shapespace.io.checkpoints import load_tensors, save_tensors
from shapespace.io.units import check_size
from shapespace.models import registry
from shapespace.models.base import FieldModel, SDFModel, ShapeModel
from shapespace.models.code import Code
from shapespace.nn.latent import GaussianPrior
from shapespace.training import optimizers, train
from shapespace.training.config import OptimConfig, TrainConfig
from shapespace.training.optimizers import make_optimizers
from shapespace.training.run import Run, find_model
from shapespace.training.warm_start import init_codes_from_encoder, load_pretrained, pretrained_config

STD_CALIBRATION = 3.0  # deviations of a surface, in units of those that follow from the covariance of its code
VERTEX_CHUNK = 4096  # vertices whose derivatives are held at a time
MIN_STEPS = 2000  # steps without which nothing is learned, however few the scans

Components = Literal["largest", "all"]
Method = Literal["auto", "lm", "adam"]


class ShapeSpace:
    """A learned space of shapes: encode, fit, mesh, interpolate, sample."""

    def __init__(
        self, model: ShapeModel, config: registry.ModelConfig, *, scale: float, metadata: dict[str, Any]
    ) -> None:
        """`scale` is metres of one model unit; `about` travels with the weights (data, licence, loss weights)."""
        self.model, self.config, self.scale, self.metadata = model, config, scale, metadata

    # ---------------------------------------------------------------- files

    @classmethod
    def load(cls, path: str | FilePath, *, device: str = "cpu") -> "ShapeSpace":
        """Open a run's folder, a .safetensors file that `save` wrote, or a space of the package by its name."""
        file = find_model(path)
        tensors, about = load_tensors(file, "model")
        try:
            sizes, model = registry.restore_model(about["family"], about["config"], tensors)
            scale, told = float(about["scale"]), dict(about["metadata"])
            told["weights"] = {str(term): float(weight) for term, weight in told["weights"].items()}
            if not 0 < scale < float("inf"):
                raise ValueError(f"its scale is {scale}")
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            what = " ".join(str(error).split())[:300]
            raise ValueError(f"{file} cannot be built ({what}): train again, or take the model anew.") from None
        return cls(model.to(device).eval(), sizes, scale=scale, metadata=told)

    def save(self, path: str | FilePath) -> None:
        """Write weights and description to one file, which cannot run code when it is read.

        Raises `ValueError` for a refined space: it is nothing without its scan.
        """
        if isinstance(self.model, DetailedModel):
            raise ValueError(
                f"the space refined to {self.metadata['refined']} is not kept: keep its mesh, or refine again."
            )
        about = {
            "kind": "model",
            "family": registry.family_name(self.config),
            "config": asdict(self.config),
            "scale": self.scale,
            "metadata": self.metadata,
        }
        save_tensors(FilePath(path), self.model.state_dict(), about)

    # ---------------------------------------------------------------- people

    def fit(
        self,
        points: Float[np.ndarray, "n 3"],
        normals: Float[np.ndarray, "n 3"] | None = None,
        sensors: Float[np.ndarray, "n 3"] | None = None,
    ) -> Fit:
        """Fit the code of one scan: points in metres, y up; unit normals that point out; origins of the sensors."""
        return self.fit_scans([Scan("scan", points, normals, sensors)])[0]

    def encode_scans(self, scans: Sequence[Scan], *, seed: int = 0) -> list[Fit]:
        """Codes by one forward pass of the encoder; scans in metres."""
        placed = [self._place(scan) for scan in scans]
        began = time.perf_counter()
        code = encode(self.model, [scan for scan, _ in placed], seed=seed)
        each = (time.perf_counter() - began) / len(scans)
        return [
            Fit(code[index], frame, np.empty(0), name=scan.name, seconds=each)
            for index, (scan, frame) in enumerate(placed)
        ]

    def fit_scans(
        self,
        scans: Sequence[Scan],
        *,
        method: Method = "auto",
        lm: LMOptions | None = None,
        adam: AdamOptions | None = None,
        seed: int = 0,
    ) -> list[Fit]:
        """Fit the codes of scans (metres): by Levenberg-Marquardt (`lm`), or by Adam as in IGR's protocol (`adam`).

        `auto` is the former where the field is a signed distance of a vector, and elsewhere a short Adam from the
        encoder's code. Raises `ValueError` where `lm` cannot be.
        """
        if method == "auto" and not isinstance(self.model, SDFModel):
            method, adam = "adam", ADAM_FROM_ENCODER
        placed = [self._place(scan) for scan in scans]
        models = [scan for scan, _ in placed]
        began = time.perf_counter()
        if method != "adam":
            model = self._distances("Levenberg-Marquardt", "fit by adam, or encode")
            fitted = fit_lm(model, models, lm, seed=seed)
        else:
            fitted = fit_adam(self.model, models, self.metadata["weights"], adam, seed=seed)
        each = (time.perf_counter() - began) / len(scans)
        moves = zip((frame for _, frame in placed), fitted.frames, strict=True)
        frames = [frame if found is None else frame.compose(found) for frame, found in moves]
        return [
            Fit(
                fitted.code[index],
                frames[index],
                fitted.residual[index].cpu().numpy() * float(frames[index].scale),
                None if fitted.covariance is None else fitted.covariance[index].cpu().numpy(),
                scan.name,
                each,
            )
            for index, (scan, _) in enumerate(placed)
        ]

    def fit_sequence(
        self,
        scans: Sequence[Scan],
        options: SequenceOptions | None = None,
        *,
        lm: LMOptions | None = None,
        seed: int = 0,
    ) -> list[Fit]:
        """Fit the frames of a motion (metres, in their order) by Levenberg-Marquardt, each alone and then jointly.

        A scan without points, or one that no fit takes, is bridged. Raises `ValueError` as `fit_jointly` does.
        """
        self._distances("a joint fit", "fit the scans alone, without --as-sequence")
        usable, refused = [], []
        for index, scan in enumerate(scans):
            try:
                self._place(scan)
                usable.append(index)
            except ValueError as refusal:
                refused.append(str(refusal))
        if refused and len(usable) < 2:
            raise ValueError(
                f"{len(usable)} of {len(scans)} frames can be fitted, and a sequence needs two. {refused[0]}"
            )
        alone: list[Fit | None] = [None] * len(scans)
        fitted = self.fit_scans([scans[index] for index in usable], method="lm", lm=lm, seed=seed) if usable else []
        for index, fit in zip(usable, fitted, strict=True):
            alone[index] = fit
        return self.fit_jointly(scans, alone, options, lm=lm, seed=seed)

    def fit_jointly(
        self,
        scans: Sequence[Scan],
        alone: Sequence[Fit | None],
        options: SequenceOptions | None = None,
        *,
        lm: LMOptions | None = None,
        seed: int = 0,
    ) -> list[Fit]:
        """Fit the frames of a motion jointly, once each was fitted alone; those that were not (None) are bridged."""
        model = self._distances("a joint fit", "fit the scans alone, without --as-sequence")
        began = time.perf_counter()
        joint = fit_jointly(
            model,
            [scan.remove_statistical_outliers() for scan in scans],
            [None if fit is None else fit.code for fit in alone],
            [None if fit is None else fit.frame for fit in alone],
            lm or LMOptions(),
            options or SequenceOptions(),
            seed=seed,
        )
        each = (time.perf_counter() - began) / len(scans)
        return [
            Fit(
                joint.code[index],
                frame,
                joint.residual[index].cpu().numpy() * float(frame.scale),
                joint.covariance[index].numpy(),
                scan.name,
                each + (0.0 if fit is None else fit.seconds),
                joint.interpolated[index],
            )
            for index, (scan, fit, frame) in enumerate(zip(scans, alone, joint.frames, strict=True))
        ]

    def remove_clutter(self, scans: Sequence[Scan], *, lm: LMOptions | None = None, seed: int = 0) -> list[Scan]:
        """The scans (metres) without floor, walls and what stands apart from the person; as they are if there is none.

        Where a scan is in several parts, quick fits with the pose of `lm` tell which are the person's; a family whose
        field is no signed distance of a vector has no such fits, and only planes are taken out.
        """
        model = self.model
        if not isinstance(model, SDFModel):
            return [remove_clutter(scan, None, seed=seed) for scan in scans]
        quick = replace(lm or LMOptions(), num_points=512, free_space_points=256, max_steps=6, trial_steps=3)
        if quick.alignment == "fixed":
            quick = replace(quick, alignment="local")  # the middle of a part is not the person's

        def attempt(scan: Scan) -> QuickFit:
            try:
                check_size(scan, scale=self.scale)
            except ValueError:  # a part as small as a stool, or a whole room: nobody
                return QuickFit(np.inf, lambda points: np.full(len(points), np.inf))
            (fit,) = self.fit_scans([scan], lm=quick, seed=seed)

            def distance(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
                placed = fit.frame.to_model(torch.from_numpy(points).float())[None]
                with torch.no_grad():
                    return (model.field(placed, fit.code)[0].abs() * fit.frame.scale).numpy()

            return QuickFit(ood_score(fit.code, model.prior), distance)

        return [remove_clutter(scan, attempt, seed=seed) for scan in scans]

    def refine(
        self, scans: Sequence[Scan], fits: Sequence[Fit], options: RefineOptions | None = None, *, seed: int = 0
    ) -> "Iterator[ShapeSpace]":
        """Adapt the weights to each scan (metres) whose fit is given: a space for that scan alone, one after the other.

        `refined.mesh(fit)` is the scan's surface then; its code is the one that was fitted. Raises `ValueError` where
        the field is no signed distance of a vector.
        """
        if not isinstance(self.model, SDFModel):
            raise ValueError(
                f"family {registry.family_name(self.config)} cannot be refined: it has no signed distance of a vector."
            )
        for scan, fit in zip(scans, tqdm(fits, desc="refine", unit="scan", disable=len(fits) < 2), strict=True):
            known = scan.remove_statistical_outliers()
            check_size(known, scale=self.scale)
            model = refine(
                self.model, known.to_model(fit.frame), fit.code, self.metadata["weights"], options, seed=seed
            )
            yield ShapeSpace(model, self.config, scale=self.scale, metadata={**self.metadata, "refined": scan.name})

    def mesh(self, shape: Fit | Code, *, resolution: int = 128, components: Components = "largest") -> Trimesh:
        """Surface in metres: of a fit where its scan lies, of a code (a batch of one) about the origin."""
        code = shape.code if isinstance(shape, Fit) else shape
        frame = shape.frame if isinstance(shape, Fit) else self._frame()
        (mesh,) = self.model.extract_surface(code, resolution=resolution)
        if components == "largest" and isinstance(self.model, FieldModel):  # patches are parts, each of them
            mesh = largest_component(mesh)
        vertices = frame.to_world(torch.from_numpy(np.asarray(mesh.vertices)).float()).numpy()
        return Trimesh(vertices, mesh.faces, process=False)

    def uncertainty(self, fit: Fit, mesh: Trimesh) -> Float[np.ndarray, "v"]:
        """Standard deviation of the surface along its normal at each vertex of the fit's mesh, in metres.

        To first order, by the covariance of the code: what the scan did not settle is wide where the codes of training
        scans differ. The covariance knows nothing of what no code can show; so the deviations are thrice those that
        follow from it, by which 80 to 97 % of the true surface lay within 1.645 of them on scans kept for tuning, whole
        ones and views of one camera alike (docs/robustness.md). Raises `ValueError` for a fit without a covariance.
        """
        root = self._spread(fit)
        assert isinstance(self.model, SDFModel)  # others have no covariance
        places = fit.frame.to_model(torch.from_numpy(np.array(mesh.vertices)).float())[None]
        found = [self.model.linearize(part, fit.code) for part in places.split(VERTEX_CHUNK, dim=1)]
        spread = [(it.jacobian[0] @ root).norm(dim=1) / it.gradient[0].norm(dim=1).clamp(min=1e-3) for it in found]
        return float(fit.frame.scale) * torch.cat(spread).double().numpy()

    def sample_posterior(self, fit: Fit, count: int, *, seed: int = 0) -> list[Fit]:
        """Draw what else the scan may be of: codes from the Gaussian of the fit, as wide as `uncertainty` tells.

        Where the scan spoke they agree; where it was silent they differ as people do. Mesh them as any fit. Raises
        `ValueError` for a fit without a covariance.
        """
        noise = torch.randn(count, fit.code.flat.shape[1], generator=torch.Generator().manual_seed(seed))
        codes = fit.code.unflatten(fit.code.flat + (noise @ self._spread(fit).T).to(fit.code.flat))
        return [Fit(codes[index], fit.frame, np.empty(0), name=f"{fit.name}.sample{index}") for index in range(count)]

    def _spread(self, fit: Fit) -> Float[Tensor, "k k"]:
        """A root of the covariance of the fit's code, with the factor by which it is calibrated."""
        if fit.covariance is None:
            raise ValueError(f"the fit of {fit.name} has no covariance: fit by Levenberg-Marquardt (--method lm).")
        return STD_CALIBRATION * torch.linalg.cholesky(torch.from_numpy(fit.covariance).double()).float()

    def interpolate(
        self, a: Fit | Code, b: Fit | Code, steps: int, *, path: InterpolationPath = "linear", resolution: int = 128
    ) -> list[Trimesh]:
        """Meshes along a path between two codes, both ends included; places are interpolated too."""
        places = self.interpolate_codes(a, b, steps, path=path)
        return [self.mesh(place, resolution=resolution) for place in tqdm(places, desc="mesh", unit="frame")]

    def interpolate_codes(
        self, a: Fit | Code, b: Fit | Code, steps: int, *, path: InterpolationPath = "linear"
    ) -> list[Fit]:
        """The shapes of `interpolate` before they are meshed: codes and places."""
        codes = interpolate(self.model, _code(a), _code(b), steps, path)
        start, end = (x.frame if isinstance(x, Fit) else self._frame() for x in (a, b))
        shares = np.linspace(0, 1, steps)
        return [
            Fit(codes[index], similarity.interpolate_frames(start, end, float(t)), np.empty(0), name=f"between_{t:.2f}")
            for index, t in enumerate(shares)
        ]

    def sample(self, count: int) -> Code:
        """`count` codes drawn from the Gaussian of the training codes.

        Raises `ValueError` for a family whose codes are no vectors.
        """
        return Code((self._prior("there is no distribution to draw from").sample(count),))

    def from_principal_components(self, coefficients: Sequence[float]) -> Fit:
        """The shape so many standard deviations from the mean along the first principal directions of training codes.

        It stands about the origin. Raises `ValueError` for a family whose codes are no vectors.
        """
        prior = self._prior("there are no principal directions")
        if len(coefficients) > len(prior.mean):
            raise ValueError(
                f"{len(coefficients)} deviations, and the codes have {len(prior.mean)} numbers: give fewer."
            )
        steps = prior.principal_axes(len(coefficients))
        code = prior.mean + torch.tensor(coefficients, dtype=steps.dtype, device=steps.device) @ steps
        return Fit(Code((code[None],)), self._frame(), np.empty(0), name="along" if any(coefficients) else "mean")

    def _prior(self, lacking: str) -> GaussianPrior:
        """The Gaussian of the training codes; where there is none, an error that says what is lacking."""
        if self.model.prior is None:
            raise ValueError(f"the codes of family {registry.family_name(self.config)} are grids: {lacking}.")
        return self.model.prior

    # ---------------------------------------------------------------- learning

    @classmethod
    def train(
        cls,
        store: ScanSource,
        names: Sequence[str],
        run: Run,
        config: TrainConfig[Any],
        *,
        rank: int = 0,
        world: int = 1,
        resume: bool = False,
    ) -> "ShapeSpace":
        """Train on the scans `names` of a store (or of memory), leaving everything in `run`."""
        device = torch.device("cuda" if config.device == "auto" and torch.cuda.is_available() else "cpu")
        if config.device != "auto":
            device = torch.device(config.device)
        if config.trainable == "encoder":
            config = pretrained_config(config)
        torch.manual_seed(config.seed)
        model = registry.build_model(config.model, num_scans=len(names)).to(device)
        space = cls(
            model,
            config.model,
            scale=store.scale,
            metadata={"weights": asdict(config.weights), "data": store.metadata, "scans": len(names)},
        )
        taken: set[str] = set()
        if config.init_from is not None:
            taken, weights = load_pretrained(config.init_from, model, learn=config.trainable)
            if config.trainable == "encoder":  # the decoder is left as it is, and so is the loss that it was trained by
                space.metadata["weights"] = weights
        if config.trainable == "encoder":
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.startswith("encoder.pointnet."))
        dataset = StepDataset(
            store,
            names,
            scans=config.batch.scans,
            points=config.batch.points,
            surface_points=config.batch.surface_points,
            near_std=config.batch.near_std,
            half_extent=config.batch.half_extent,
            gradient_stride=config.batch.gradient_stride,
            occupancy_points=config.batch.occupancy_points,
            seed=config.seed,
            rank=rank,
            world_size=world,
        )
        if "encoder.pointnet.mean.weight" in taken and "encoder.table.codes" not in taken and not resume:
            init_codes_from_encoder(model, dict(model.named_parameters())["encoder.table.codes"], dataset, device)
        optim = config.optim
        plan = train.LoopSettings(
            max_steps=_steps(optim, len(names), config.batch.scans),
            max_minutes=optim.max_minutes,
            schedule=optimizers.cosine(warmup_steps=optim.warmup_steps)
            if optim.schedule == "cosine"
            else optimizers.halving(every=optim.halve_every, warmup_steps=optim.warmup_steps),
            max_grad_norm=optim.max_grad_norm,
            seed=config.seed,
            log_every=config.log_every,
            save_every=config.save_every,
            mesh_every=config.mesh_every,
            projector_codes=config.projector_codes,
            num_workers=config.batch.num_workers,
            execution=None if config.execution == "auto" else config.execution,
            matmul_precision=config.matmul_precision,
        )
        products = torch.get_float32_matmul_precision()
        try:
            train.train(
                model,
                dataset,
                make_optimizers(model, lr=optim.lr, lr_codes=optim.lr_codes, lr_muon=optim.lr_muon),
                asdict(config.weights),
                plan,
                run,
                device=device,
                on_checkpoint=lambda: space.save(run.weights),
                resume=resume,
            )
        finally:
            torch.set_float32_matmul_precision(products)
        model.eval()
        return space

    def _distances(self, what: str, instead: str) -> SDFModel:
        """The model, if its field is a signed distance of a vector; else an error that says what needs it."""
        if not isinstance(self.model, SDFModel):
            raise ValueError(
                f"{what} needs signed distances and codes that are vectors, and family "
                f"{registry.family_name(self.config)} has not both: {instead}."
            )
        return self.model

    def _place(self, scan: Scan) -> tuple[Scan, Frame]:
        """Into the model frame; refuse what cannot be a scan of this space."""
        if len(scan) < MIN_POINTS or not np.isfinite(scan.points).all():
            raise ValueError(
                f"scan {scan.name} has {len(scan)} points, {int(np.isfinite(scan.points).all(axis=1).sum())} of them "
                f"finite: a fit needs at least {MIN_POINTS}, all finite. Remove the others, or scan again."
            )
        scan = scan.remove_statistical_outliers()
        check_size(scan, scale=self.scale)
        frame = scan.frame(self.scale)
        return scan.to_model(frame), frame

    def _frame(self) -> Frame:
        return Frame(torch.zeros(3), torch.tensor(self.scale))


def _steps(optim: OptimConfig, scans: int, batch: int) -> int:
    """How long to train on so many scans, if a step sees `batch` of them."""
    if optim.max_epochs is None:
        return optim.max_steps
    return min(optim.max_steps, max(MIN_STEPS, round(optim.max_epochs * scans / batch)))


def _code(of: Fit | Code) -> Code:
    return of.code if isinstance(of, Fit) else of
