"""Registry of the model families; models are built from configs and files, and saved."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from shapespace.io.checkpoints import save_tensors
from shapespace.models.articulated import ArticulatedConfig, build_articulated
from shapespace.models.atlas import AtlasConfig, build_atlas
from shapespace.models.base import ModelConfig, ShapeModel
from shapespace.models.convolutional import ConvolutionalConfig, build_convolutional
from shapespace.models.igr import IGRConfig, build_igr
from shapespace.models.multiscale import MultiscaleConfig, build_multiscale
from shapespace.models.occupancy import OccupancyConfig, build_occupancy
from shapespace.models.voxel import VoxelConfig, build_voxel


class Family(NamedTuple):
    """Config class of a family, and its builder `(config, *, num_scans) -> model`."""

    config: type[Any]
    build: Callable[..., ShapeModel]


FAMILIES: dict[str, Family] = {
    "igr": Family(IGRConfig, build_igr),
    "articulated": Family(ArticulatedConfig, build_articulated),
    "occupancy": Family(OccupancyConfig, build_occupancy),
    "convolutional": Family(ConvolutionalConfig, build_convolutional),
    "multiscale": Family(MultiscaleConfig, build_multiscale),
    "voxel": Family(VoxelConfig, build_voxel),
    "atlas": Family(AtlasConfig, build_atlas),
}

# Largest accepted settings of a stored model. Encoding a scan takes memory at the second or third power of these two;
# all others are limited by DEFAULT_MAX_SIZE.
MAX_SIZES = {"grid": 512, "plane": 4096}
DEFAULT_MAX_SIZE = 2**20


def family_name(config: ModelConfig) -> str:
    """Name of the family that this config belongs to."""
    return next(name for name, family in FAMILIES.items() if type(config) is family.config)


def build_model(config: ModelConfig, *, num_scans: int = 0) -> ShapeModel:
    """Build a model with initial weights, and with free codes for `num_scans` training scans where it has any."""
    return FAMILIES[family_name(config)].build(config, num_scans=num_scans)


def save_model(
    path: Path,
    model: ShapeModel,
    config: ModelConfig,
    *,
    scale: float,
    metadata: Mapping[str, Any],
    compact: bool = False,
) -> None:
    """Write the weights and what `restore_model` needs to one safetensors file.

    `scale` is the length of a model unit in meters; `metadata` has the data, their license and the loss weights.
    `compact` writes matrices in half precision; they are restored in single precision.
    """
    description = {
        "kind": "model",
        "family": family_name(config),
        "config": asdict(config),
        "scale": scale,
        "metadata": metadata,
    }
    tensors = model.state_dict()
    if compact:
        tensors = {name: _halve(name, tensor) for name, tensor in tensors.items()}
    save_tensors(path, tensors, description)


def _halve(name: str, tensor: Tensor) -> Tensor:
    """A matrix in half precision, but for the covariance of the prior, which would not stay positive definite."""
    is_matrix = tensor.dtype == torch.float32 and tensor.ndim > 1
    return tensor.half() if is_matrix and not name.startswith("prior.") else tensor


def restore_model(
    name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[ModelConfig, ShapeModel]:
    """Build the model of family `name` that a file describes, with the weights of the file.

    The file may be untrusted: nothing far larger than its weights is built.

    Raises:
        ValueError: Family, config and weights are not consistent.

    """
    if name not in FAMILIES:
        raise ValueError(f"family {name!r} is not one of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    defaults = {field.name: field.default for field in fields(family.config)}
    for key, value in config.items():
        if key not in defaults:
            raise ValueError(f"family {name} has no setting {key}")
        kind = type(defaults[key])
        if not isinstance(value, kind):
            raise ValueError(f"setting {key} is {value!r}, not of type {kind.__name__}")
        if isinstance(value, int) and not 0 <= value <= (limit := MAX_SIZES.get(key, DEFAULT_MAX_SIZE)):
            raise ValueError(f"setting {key} is {value:,}, outside of 0 to {limit:,}")
    count = sum(tensor.numel() for tensor in tensors.values())
    code_dim = config.get("code_dim", defaults.get("code_dim", 0))
    if code_dim**2 > count:  # the covariance of the prior is written to memory before `limit_parameters` sees it
        raise ValueError(f"code_dim {code_dim:,} needs more than the {count:,} weights of the file")
    model_config: ModelConfig = family.config(**config)
    table = next((tensor for key, tensor in tensors.items() if key.endswith("table.codes")), ())
    with limit_parameters(count):
        model = build_model(model_config, num_scans=len(table))
    model.load_state_dict(dict(tensors))
    return model_config, model


@contextmanager
def limit_parameters(count: int) -> Iterator[None]:
    """Raise `ValueError` as soon as a module with far more than `count` numbers is built, before they are initialized.

    Twice the number is allowed, and 65,536 more: buffers that are not persistent are in no file, and some tensors are
    registered twice while a module is built.
    """
    left = 2 * count + 2**16

    def registered(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        nonlocal left
        left -= 0 if tensor is None else tensor.numel()
        if left < 0:
            raise ValueError(f"its config describes a model of far more than the {count:,} weights of the file")

    hooks = (
        register_module_parameter_registration_hook(registered),
        register_module_buffer_registration_hook(registered),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
