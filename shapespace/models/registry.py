"""Sizes become models: every size of every family stands here."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from shapespace.models.atlas import Atlas, Patches
from shapespace.models.base import ShapeModel
from shapespace.models.convolutional import Convolutional, ConvolutionalEncoder, Learn, LocalMLP
from shapespace.models.encoders import Encoder, PointEncoder, TableEncoder, TaughtEncoder
from shapespace.models.igr import IGR
from shapespace.models.multiscale import Multiscale, PyramidEncoder
from shapespace.models.occupancy import Occupancy
from shapespace.models.voxel import Voxel
from shapespace.nn.latent import Codebook
from shapespace.nn.mlp import InPlane, SkipMLP
from shapespace.nn.pointnet import PointNet
from shapespace.nn.prior import GaussianPrior
from shapespace.nn.resnet import ConditionalMLP, ResidualPointNet


@dataclass(frozen=True)
class IGRSizes:
    """Sizes of an `IGR` model. The defaults are the paper's (section 6 and appendix)."""

    code: int = 256
    """Numbers in a code."""
    width: int = 512
    """Units in each hidden layer of the decoder."""
    depth: int = 8
    """Hidden layers of the decoder."""
    skip: int = 4
    """The layer at which the decoder's input enters once more."""
    beta: float = 100.0
    """Sharpness of the softplus."""
    radius: float | None = 1.0
    """Radius, in model units, of the sphere that the decoder is at the start; `null` for the scan's own, where a single
    scan is reconstructed."""
    space: Literal[2, 3] = 3
    """Dimensions of the space in which the shapes lie: 2 for curves in the plane z = 0."""
    encoder: Literal["points", "variational", "table", "taught"] = "points"
    """Where codes come from: a PointNet; a variational one; a table of free codes (auto-decoder); or a table whose
    codes a PointNet is taught to find."""
    spread: float = 0.0
    """Standard deviation of free codes at the start."""
    modulate: Literal["input", "all"] = "input"
    """Hidden layers of the decoder that the code shifts: the two at which the input enters, or all."""
    encoder_points: int = 1024
    """Points that the encoder reads of a scan."""
    encoder_width: int = 128
    """Units of the encoder's shared layers."""
    encoder_features: int = 512
    """Features over which the encoder takes the maximum."""


@dataclass(frozen=True)
class OccupancySizes:
    """Sizes of an `Occupancy` model. The defaults are those of Occupancy Networks for point clouds (supplementary)."""

    code: int = 512
    """Numbers in a code."""
    width: int = 256
    """Units in each hidden layer of the decoder."""
    blocks: int = 5
    """Residual blocks of the decoder."""
    encoder_points: int = 300
    """Points that the encoder reads of a scan."""
    encoder_width: int = 512
    """Units of the encoder's layers."""


@dataclass(frozen=True)
class ConvolutionalSizes:
    """Sizes of a `Convolutional` model. The defaults are the paper's three planes (section 4 and supplementary)."""

    features: int = 32
    """Channels of the planes and of the volume."""
    plane: int = 64
    """Resolution of the three planes; 0: none."""
    grid: int = 0
    """Resolution of the volume; 0: none. The paper has 32 without planes."""
    depth: int = 4
    """Levels of the U-Nets."""
    width: int = 32
    """Channels of the U-Nets' first level, and units of encoder and decoder."""
    blocks: int = 5
    """Residual blocks of the decoder."""
    encoder_points: int = 3000
    """Points that the encoder reads of a scan."""
    learn: Learn = "labels"
    """From labels of inside and outside, as in the paper, or by IGR's loss from raw scans alone."""


@dataclass(frozen=True)
class MultiscaleSizes:
    """Sizes of a `Multiscale` model. The defaults are those of IF-Nets for dense point clouds (supplementary)."""

    grid: int = 128
    """Resolution of the grid in which the points mark cells."""
    levels: int = 5
    """Levels of the pyramid."""
    features: int = 16
    """Channels of the first level; each further one has twice as many."""
    width: int = 256
    """Units of the decoder's layers (twice as many in the first)."""
    step: float = 0.0722
    """Distance of the six neighbours at which features are read too, in model units."""
    encoder_points: int = 3000
    """Points that the encoder reads of a scan."""
    learn: Learn = "labels"
    """From labels of inside and outside, as in the paper, or by IGR's loss from raw scans alone."""


@dataclass(frozen=True)
class VoxelSizes:
    """Sizes of a `Voxel` model."""

    grid: int = 32
    """Nodes along each axis."""
    radius: float = 0.5
    """Radius, in model units, of the sphere that every shape is at the start."""


@dataclass(frozen=True)
class AtlasSizes:
    """Sizes of an `Atlas` model. The defaults are the paper's (section 5)."""

    code: int = 1024
    """Numbers in a code."""
    patches: int = 25
    """Squares that make up the surface."""
    width: int = 1024
    """Units of the first hidden layer; the second and third have a half and a quarter."""
    encoder_points: int = 2500
    """Points that the encoder reads of a scan."""
    encoder_width: int = 128
    """Units of the encoder's shared layers."""
    encoder_features: int = 1024
    """Features over which the encoder takes the maximum."""


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


def igr(sizes: IGRSizes, *, shapes: int = 0) -> IGR:
    """An IGR model; a table has room for the codes of `shapes` training scans."""
    if sizes.radius is None:
        raise ValueError(
            "model.radius is null, which is for `shapespace reconstruct`, where one scan has a size. "
            "Give the radius of the sphere that the decoder is at the start, in model units, such as 0.3."
        )
    decoder = SkipMLP(
        code=sizes.code,
        width=sizes.width,
        depth=sizes.depth,
        skip=sizes.skip,
        beta=sizes.beta,
        radius=sizes.radius,
        modulated=sizes.modulate == "all",
        space=sizes.space,
    )
    placed = InPlane(decoder) if sizes.space == 2 else decoder
    return IGR(_encoder(sizes, shapes), placed, GaussianPrior(code=sizes.code))


def _encoder(sizes: IGRSizes, shapes: int) -> Encoder:
    if sizes.encoder == "table":
        return TableEncoder(Codebook(shapes=shapes, code=sizes.code, spread=sizes.spread))
    pointnet = PointNet(
        code=sizes.code,
        count=sizes.encoder_points,
        width=sizes.encoder_width,
        features=sizes.encoder_features,
        variational=sizes.encoder == "variational",
    )
    if sizes.encoder == "taught":
        return TaughtEncoder(pointnet, Codebook(shapes=shapes, code=sizes.code, spread=sizes.spread))
    return PointEncoder(pointnet)


def occupancy(sizes: OccupancySizes) -> Occupancy:
    """An occupancy network."""
    encoder = ResidualPointNet(code=sizes.code, count=sizes.encoder_points, width=sizes.encoder_width)
    decoder = ConditionalMLP(code=sizes.code, width=sizes.width, blocks=sizes.blocks)
    return Occupancy(PointEncoder(encoder), decoder, GaussianPrior(code=sizes.code))


def convolutional(sizes: ConvolutionalSizes) -> Convolutional:
    """A convolutional occupancy network, or its like that learns distances."""
    encoder = ConvolutionalEncoder(
        features=sizes.features,
        width=sizes.width,
        count=sizes.encoder_points,
        plane=sizes.plane,
        grid=sizes.grid,
        depth=sizes.depth,
    )
    return Convolutional(
        encoder, LocalMLP(features=sizes.features, width=sizes.width, blocks=sizes.blocks), sizes.learn
    )


def multiscale(sizes: MultiscaleSizes) -> Multiscale:
    """An IF-Net, or its like that learns distances."""
    encoder = PyramidEncoder(count=sizes.encoder_points, grid=sizes.grid, width=sizes.features, levels=sizes.levels)
    return Multiscale(encoder, width=sizes.width, step=sizes.step, learn=sizes.learn)


def voxel(sizes: VoxelSizes, *, shapes: int = 0) -> Voxel:
    """A table of grids, one for each of `shapes` training scans."""
    return Voxel(Codebook(shapes=shapes, code=sizes.grid**3), grid=sizes.grid, radius=sizes.radius)


def atlas(sizes: AtlasSizes) -> Atlas:
    """Parametric patches."""
    pointnet = PointNet(
        code=sizes.code, count=sizes.encoder_points, width=sizes.encoder_width, features=sizes.encoder_features
    )
    decoder = Patches(code=sizes.code, patches=sizes.patches, width=sizes.width)
    return Atlas(PointEncoder(pointnet), decoder, GaussianPrior(code=sizes.code))


class Family(NamedTuple):
    """What makes a family: its sizes, and the way from them to a model."""

    sizes: type[Any]
    build: Callable[[Any, int], ShapeModel]


FAMILIES: dict[str, Family] = {
    "igr": Family(IGRSizes, lambda sizes, shapes: igr(sizes, shapes=shapes)),
    "occupancy": Family(OccupancySizes, lambda sizes, _: occupancy(sizes)),
    "convolutional": Family(ConvolutionalSizes, lambda sizes, _: convolutional(sizes)),
    "multiscale": Family(MultiscaleSizes, lambda sizes, _: multiscale(sizes)),
    "voxel": Family(VoxelSizes, lambda sizes, shapes: voxel(sizes, shapes=shapes)),
    "atlas": Family(AtlasSizes, lambda sizes, _: atlas(sizes)),
}
