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

from shapespace.models.atlas import AtlasSizes, build_atlas
from shapespace.models.base import ShapeModel
from shapespace.models.convolutional import (
    ConvolutionalSizes,
    build_convolutional,
)
from shapespace.models.igr import IGRSizes, build_igr
from shapespace.models.multiscale import MultiscaleSizes, build_multiscale
from shapespace.models.occupancy import OccupancySizes, build_occupancy
from shapespace.models.voxel import VoxelSizes, build_voxel

Sizes = IGRSizes | OccupancySizes | ConvolutionalSizes | MultiscaleSizes | VoxelSizes | AtlasSizes


def model(sizes: Sizes, *, shapes: int = 0) -> ShapeModel:
    """A model of the family whose sizes these are; a table has room for the codes of `shapes` training scans."""
    return FAMILIES[family(sizes)].build(sizes, shapes)


def restored(name: str, sizes: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Sizes, ShapeModel]:
    """The sizes and the model that a file tells of, with the file's weights.

    A stranger may have written it: nothing far larger than the weights that are there is built.

    Raises:
        ValueError: Family, sizes and weights do not go together.

    """
    if name not in FAMILIES:
        raise ValueError(f"family {name!r} is none of {', '.join(FAMILIES)}")
    usual = {field.name: field.default for field in fields(FAMILIES[name].sizes)}
    for key, value in sizes.items():
        if key not in usual or not isinstance(value, float if (kind := type(usual[key])) is float else kind):
            raise ValueError(f"there is no size {key} of {value!r}")
        if isinstance(value, int) and not 0 <= value <= _MOST.get(key, 2**20):
            raise ValueError(f"its size {key} is {value:,}, and 0 to {_MOST.get(key, 2**20):,} can be")
    count = sum(tensor.numel() for tensor in tensors.values())
    if (code := sizes.get("code", usual.get("code", 0))) ** 2 > count:
        raise ValueError(f"codes of {code:,} numbers do not go with {count:,} weights")
    found: Sizes = FAMILIES[name].sizes(**sizes)
    table = next((tensor for key, tensor in tensors.items() if key.endswith("table.codes")), ())
    with _of_at_most(count):
        built = model(found, shapes=len(table))
    built.load_state_dict(dict(tensors))
    return found, built


_MOST = {"grid": 512, "plane": 4096}  # of sizes that take memory at their second or third power when a scan is encoded


@contextmanager
def _of_at_most(count: int) -> Iterator[None]:
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


def family(sizes: Sizes) -> str:
    """The name of the family whose sizes these are."""
    return next(name for name, its in FAMILIES.items() if type(sizes) is its.sizes)


class Family(NamedTuple):
    """What makes a family: its sizes, and the way from them to a model."""

    sizes: type[Any]
    build: Callable[[Any, int], ShapeModel]


FAMILIES: dict[str, Family] = {
    "igr": Family(IGRSizes, lambda sizes, shapes: build_igr(sizes, shapes=shapes)),
    "occupancy": Family(OccupancySizes, lambda sizes, _: build_occupancy(sizes)),
    "convolutional": Family(ConvolutionalSizes, lambda sizes, _: build_convolutional(sizes)),
    "multiscale": Family(MultiscaleSizes, lambda sizes, _: build_multiscale(sizes)),
    "voxel": Family(VoxelSizes, lambda sizes, shapes: build_voxel(sizes, shapes=shapes)),
    "atlas": Family(AtlasSizes, lambda sizes, _: build_atlas(sizes)),
}
