"""Sizes become models: every size of every family stands here."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from shapespace.models.atlas import AtlasConfig, build_atlas
from shapespace.models.base import ShapeModel
from shapespace.models.convolutional import (
    ConvolutionalConfig,
    build_convolutional,
)
from shapespace.models.igr import IGRConfig, build_igr
from shapespace.models.multiscale import MultiscaleConfig, build_multiscale
from shapespace.models.occupancy import OccupancyConfig, build_occupancy
from shapespace.models.voxel import VoxelConfig, build_voxel

ModelConfig = IGRConfig | OccupancyConfig | ConvolutionalConfig | MultiscaleConfig | VoxelConfig | AtlasConfig


def build_model(config: ModelConfig, *, num_scans: int = 0) -> ShapeModel:
    """A model of the family whose sizes these are; a table has room for the codes of `shapes` training scans."""
    return FAMILIES[family_name(config)].build(config, num_scans)


def restore_model(
    name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[ModelConfig, ShapeModel]:
    """The sizes and the model that a file tells of, with the file's weights.

    A stranger may have written it: nothing far larger than the weights that are there is built.

    Raises:
        ValueError: Family, sizes and weights do not go together.

    """
    if name not in FAMILIES:
        raise ValueError(f"family {name!r} is none of {', '.join(FAMILIES)}")
    usual = {field.name: field.default for field in fields(FAMILIES[name].config)}
    for key, value in config.items():
        if key not in usual or not isinstance(value, float if (kind := type(usual[key])) is float else kind):
            raise ValueError(f"there is no size {key} of {value!r}")
        if isinstance(value, int) and not 0 <= value <= MAX_SIZES.get(key, 2**20):
            raise ValueError(f"its size {key} is {value:,}, and 0 to {MAX_SIZES.get(key, 2**20):,} can be")
    count = sum(tensor.numel() for tensor in tensors.values())
    if (code := config.get("code_dim", usual.get("code_dim", 0))) ** 2 > count:
        raise ValueError(f"codes of {code:,} numbers do not go with {count:,} weights")
    found: ModelConfig = FAMILIES[name].config(**config)
    table = next((tensor for key, tensor in tensors.items() if key.endswith("table.codes")), ())
    with limit_parameters(count):
        built = build_model(found, num_scans=len(table))
    built.load_state_dict(dict(tensors))
    return found, built


MAX_SIZES = {
    "grid": 512,
    "plane": 4096,
}  # of sizes that take memory at their second or third power when a scan is encoded


@contextmanager
def limit_parameters(count: int) -> Iterator[None]:
    """Refuse to build a model of more than `count` numbers, before they are written.

    Some are in no file (buffers that are not persistent), and some are registered twice while a module is built.
    """
    left = 2 * count + 2**16

    def registered(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        nonlocal left
        left -= 0 if tensor is None else tensor.numel()
        if left < 0:
            raise ValueError(f"its sizes are those of a model of far more than the {count:,} weights that are there")

    hooks = (
        register_module_parameter_registration_hook(registered),
        register_module_buffer_registration_hook(registered),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def family_name(config: ModelConfig) -> str:
    """The name of the family whose sizes these are."""
    return next(name for name, its in FAMILIES.items() if type(config) is its.config)


class Family(NamedTuple):
    """What makes a family: its sizes, and the way from them to a model."""

    config: type[Any]
    build: Callable[[Any, int], ShapeModel]


FAMILIES: dict[str, Family] = {
    "igr": Family(IGRConfig, lambda sizes, shapes: build_igr(sizes, num_scans=shapes)),
    "occupancy": Family(OccupancyConfig, lambda sizes, _: build_occupancy(sizes)),
    "convolutional": Family(ConvolutionalConfig, lambda sizes, _: build_convolutional(sizes)),
    "multiscale": Family(MultiscaleConfig, lambda sizes, _: build_multiscale(sizes)),
    "voxel": Family(VoxelConfig, lambda sizes, shapes: build_voxel(sizes, num_scans=shapes)),
    "atlas": Family(AtlasConfig, lambda sizes, _: build_atlas(sizes)),
}
