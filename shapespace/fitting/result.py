"""The result of a fit, and files of codes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shapespace.geometry.frame import Frame
from shapespace.io.checkpoints import load_tensors, save_tensors
from shapespace.models.base import ShapeModel
from shapespace.models.code import Code, concatenate


@dataclass(frozen=True)
class Fit:
    """One scan in the shape space."""

    code: Code
    """A batch of one."""
    frame: Frame
    """Where the scan lies in the world."""
    residuals: Float[np.ndarray, "n"]
    """Distances |f|, in metres, at points of the scan; by encoding alone, none."""
    covariance: Float[np.ndarray, "k k"] | None = None
    """Of the flat code, by Laplace's approximation; none for first-order fits and for encoding alone."""
    name: str = ""
    seconds: float = 0.0
    interpolated: bool = False
    """Whether it is a frame of a sequence that the others tell about, without a scan of its own that counted."""


def save_fits(path: FilePath, fits: Sequence[Fit], model: ShapeModel) -> None:
    """Codes of many scans in one safetensors file: numbers, places, names, and which model they belong to."""
    code = concatenate([fit.code for fit in fits])
    tensors: dict[str, Tensor] = {f"code.{index}": part for index, part in enumerate(code.parts)}
    tensors["centre"] = torch.stack([fit.frame.center for fit in fits])
    tensors["scale"] = torch.stack([fit.frame.scale for fit in fits])
    if any(fit.frame.rotation is not None for fit in fits):
        still = torch.eye(3)
        tensors["rotation"] = torch.stack([still if (r := fit.frame.rotation) is None else r for fit in fits])
    if all(fit.covariance is not None for fit in fits):
        tensors["covariance"] = torch.from_numpy(
            np.stack([fit.covariance for fit in fits if fit.covariance is not None])
        )
    names = [fit.name for fit in fits]
    save_tensors(path, tensors, {"kind": "codes", "names": names, "model": model.fingerprint()})


def load_fits(path: FilePath, model: ShapeModel) -> list[Fit]:
    """The way back. Raises `ValueError` for the codes of another model."""
    tensors, about = load_tensors(path, "codes")
    if about.get("model") != model.fingerprint():
        raise ValueError(
            f"the codes in {path} belong to model {about.get('model')}, this one is {model.fingerprint()}: "
            "give the run that wrote them, or fit the scans again with this one."
        )
    names = about.get("names", [])
    _check_codes(path, tensors, names, model)
    parts = tuple(tensors[f"code.{index}"] for index in range(sum(name.startswith("code.") for name in tensors)))
    code, covariance, rotation = Code(parts), tensors.get("covariance"), tensors.get("rotation")
    return [
        Fit(
            code[index],
            Frame(tensors["centre"][index], tensors["scale"][index], None if rotation is None else rotation[index]),
            np.empty(0),
            None if covariance is None else covariance[index].numpy(),
            name,
        )
        for index, name in enumerate(names)
    ]


def _check_codes(path: FilePath, tensors: dict[str, Tensor], names: list[Any], model: ShapeModel) -> None:
    """Refuse tensors that are not those of `save_fits`."""
    count, prior = len(names), model.prior
    shapes: dict[str, tuple[int, ...]] = {"centre": (3,), "scale": (), "rotation": (3, 3)}
    if prior is not None:
        shapes |= {"code.0": (size := len(prior.mean),), "covariance": (size, size)}
    wrong = [
        name
        for name, tensor in tensors.items()
        if tensor.shape[:1] != (count,) or (name in shapes and tensor.shape[1:] != shapes[name])
    ]
    wrong += [name for name in ("code.0", "centre", "scale") if name not in tensors]
    wrong += [f"name {name!r}" for name in names if not isinstance(name, str)]
    if wrong:
        raise ValueError(f"{path} holds no codes of {count:,} scans: its {wrong[0]} is not as it should be. Fit again.")
