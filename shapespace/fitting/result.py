"""Result of a fit, and files of codes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shapespace.fitting.articulated import POSE_SIZE
from shapespace.fitting.displacement import Displacement
from shapespace.fitting.quality import FitQuality
from shapespace.geometry.findings import Finding
from shapespace.geometry.frame import Frame
from shapespace.geometry.scan import Scan
from shapespace.io.checkpoints import load_tensors, save_tensors
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.base import ShapeModel
from shapespace.models.code import Code


@dataclass(frozen=True)
class Fit:
    """Code of one scan and its place in the world."""

    code: Code
    """A batch of one, on the device of the model."""
    frame: Frame
    """World to model frame, on the CPU: position and scale, and the estimated rotation if there is one."""
    residuals: Float[np.ndarray, "n"]
    """|f| in meters at points of the scan that were not used by the fit; empty for codes of the encoder alone."""
    covariance: Float[np.ndarray, "k k"] | None = None
    """Covariance of the code vector (Laplace's approximation); None for fits by Adam and codes of the encoder alone."""
    name: str = ""
    """Name of the scan."""
    seconds: float = 0.0
    """Wall-clock time of the fit; the mean over the scans that were fitted together."""
    part_covariance: Float[np.ndarray, "j p p"] | None = None
    """Covariance of the unknowns of each body part given the code; None without a second level."""
    displacement: Float[np.ndarray, "v"] | None = None
    """Displacement of the vertices of the registered template along their normals, in model units; None without a third
    level."""
    unseen: Float[np.ndarray, "v"] | None = None
    """Share of the variance of each displacement that the scan leaves, 0 to 1; None without a third level."""
    interpolated: bool = False
    """Whether it is a frame of a sequence without a usable scan, interpolated from the other frames."""
    origin: Float[np.ndarray, "3"] | None = None
    """`Scan.origin` of the scan: what must be added to world points for their place in the file (meters, float64)."""
    findings: tuple[Finding, ...] = ()
    """Findings about the scan and the fit."""
    quality: FitQuality | None = None
    """Residuals, ood score, coverage and stature; None if the fit was not assessed (`ShapeSpace.assess`)."""

    @classmethod
    def of_scan(
        cls,
        scan: Scan,
        code: Code,
        frame: Frame,
        *,
        seconds: float,
        residual: Float[Tensor, "n"] | None = None,
        covariance: Float[Tensor, "k k"] | None = None,
        part_covariance: Float[Tensor, "j p p"] | None = None,
        displacement: Displacement | None = None,
        interpolated: bool = False,
    ) -> "Fit":
        """The fit of a scan, with its name, origin and findings; `residual` is |f| in model units."""
        return cls(
            code,
            frame,
            np.empty(0) if residual is None else residual.cpu().numpy() * float(frame.scale),
            covariance=None if covariance is None else covariance.cpu().numpy(),
            name=scan.name,
            seconds=seconds,
            part_covariance=None if part_covariance is None else part_covariance.cpu().numpy(),
            displacement=None if displacement is None else displacement.value.cpu().numpy(),
            unseen=None if displacement is None else displacement.unseen.cpu().numpy(),
            interpolated=interpolated,
            origin=scan.origin,
            findings=scan.findings,
        )

    @property
    def in_distribution(self) -> bool | None:
        """Whether the code is like those of training scans; None if the fit was not assessed."""
        return None if self.quality is None else self.quality.in_distribution

    @property
    def low_confidence(self) -> bool | None:
        """Whether the code is unusual for what the scan covers of the surface; None if the fit was not assessed."""
        return None if self.quality is None else self.quality.low_confidence

    @property
    def verdict(self) -> Literal["good", "low confidence", "out of distribution", "not assessed"]:
        """The quality in a word."""
        if self.quality is None:
            return "not assessed"
        if not self.quality.in_distribution:
            return "out of distribution"
        return "low confidence" if self.quality.low_confidence else "good"

    def relative_to(self, origin: Float[np.ndarray, "3"] | None) -> "Fit":
        """The same fit with its world relative to another origin."""
        moved = (np.zeros(3) if self.origin is None else self.origin) - (np.zeros(3) if origin is None else origin)
        if not moved.any():
            return self
        center = self.frame.center + torch.from_numpy(moved).to(self.frame.center)
        return replace(self, frame=replace(self.frame, center=center), origin=origin)


def save_fits(path: Path, fits: Sequence[Fit], model: ShapeModel) -> None:
    """Write codes, frames, covariances and names of fits (at least one) to one safetensors file.

    The fingerprint of the model is stored too: codes belong to one model. Residuals and times are not stored.
    """
    code = Code.concatenate([fit.code for fit in fits])
    tensors: dict[str, Tensor] = {f"code.{index}": part for index, part in enumerate(code.parts)}
    tensors["centre"] = torch.stack([fit.frame.center for fit in fits])
    tensors["scale"] = torch.stack([fit.frame.scale for fit in fits])
    if any(fit.frame.rotation is not None for fit in fits):
        identity = torch.eye(3)
        tensors["rotation"] = torch.stack([identity if (r := fit.frame.rotation) is None else r for fit in fits])
    for name in ("covariance", "part_covariance", "displacement", "unseen"):
        arrays = [array for fit in fits if (array := getattr(fit, name)) is not None]
        if len(arrays) == len(fits):
            tensors[name] = torch.from_numpy(np.stack(arrays))
    if any(fit.origin is not None for fit in fits):
        origins = np.stack([np.zeros(3) if fit.origin is None else fit.origin for fit in fits])
        tensors["origin"] = torch.from_numpy(origins)
    names = [fit.name for fit in fits]
    save_tensors(path, tensors, {"kind": "codes", "names": names, "model": model.fingerprint()})


def load_fits(path: Path, model: ShapeModel) -> list[Fit]:
    """Read the file of `save_fits`; the codes are on the device of the model, residuals are empty.

    Raises `ValueError` for codes of another model and for damaged files.
    """
    tensors, metadata = load_tensors(path, "codes")
    if metadata.get("model") != model.fingerprint():
        raise ValueError(
            f"{path}: the codes belong to model {metadata.get('model')}, this one is {model.fingerprint()}. "
            "Use the run that wrote them, or fit the scans again."
        )
    names = metadata.get("names", [])
    _check_codes(path, tensors, names, model)
    parts = tuple(tensors[f"code.{index}"] for index in range(sum(name.startswith("code.") for name in tensors)))
    code = Code(parts).to(next(model.parameters()).device)
    optional = ("covariance", "rotation", "part_covariance", "displacement", "unseen", "origin")
    covariance, rotation, by_part, displacement, unseen, origin = (tensors.get(name) for name in optional)
    return [
        Fit(
            code[index],
            Frame(tensors["centre"][index], tensors["scale"][index], None if rotation is None else rotation[index]),
            np.empty(0),
            None if covariance is None else covariance[index].numpy(),
            name,
            part_covariance=None if by_part is None else by_part[index].numpy(),
            displacement=None if displacement is None else displacement[index].numpy(),
            unseen=None if unseen is None else unseen[index].numpy(),
            origin=None if origin is None or not origin[index].any() else origin[index].double().numpy(),
        )
        for index, name in enumerate(names)
    ]


def _check_codes(path: Path, tensors: dict[str, Tensor], names: list[Any], model: ShapeModel) -> None:
    """Raise `ValueError` unless the tensors are those of `save_fits` for this model."""
    count, prior = len(names), model.prior
    shapes: dict[str, tuple[int, ...]] = {"centre": (3,), "scale": (), "rotation": (3, 3), "origin": (3,)}
    if prior is not None:
        shapes |= {"covariance": (len(prior.mean), len(prior.mean))}
    shapes |= {f"code.{index}": shape for index, shape in enumerate(model.code_shapes)}
    if isinstance(model, ArticulatedSDF):
        shapes["displacement"] = shapes["unseen"] = (len(model.template.vertices),)
        num_parts, local_dim = model.code_shapes[-1]
        shapes["part_covariance"] = (num_parts, POSE_SIZE + local_dim, POSE_SIZE + local_dim)
    wrong = [
        f"tensor {name} has shape {tuple(tensor.shape)}"
        for name, tensor in tensors.items()
        if tensor.shape[:1] != (count,) or (name in shapes and tensor.shape[1:] != shapes[name])
    ]
    wrong += [f"tensor {name} is missing" for name in ("code.0", "centre", "scale") if name not in tensors]
    present = sum(name.startswith("code.") for name in tensors)
    wrong += [f"tensor code.{index} is missing" for index in range(1, present) if f"code.{index}" not in tensors]
    if model.code_shapes and present not in (1, len(model.code_shapes)):
        wrong.append(f"it has {present} tensors of codes")
    wrong += [f"name {name!r} is not a string" for name in names if not isinstance(name, str)]
    if wrong:
        raise ValueError(f"{path}: not a file of {count:,} codes of this model ({wrong[0]}). Fit the scans again.")
