"""Isosurfaces of fields by sparse marching cubes, contours of plane fields, and mesh components."""

import math
from collections.abc import Callable

import igl
import numpy as np
import torch
from jaxtyping import Float, Int
from skimage.measure import find_contours, marching_cubes
from torch import Tensor
from trimesh import Trimesh

Field = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n"]]

# Corners of a cell, in the order of libigl's marching cubes.
_CORNERS = np.array([[0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 1, 1], [1, 0, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
_NEIGHBORHOOD = np.stack(np.meshgrid(*3 * [[-1, 0, 1]], indexing="ij"), axis=-1).reshape(-1, 3)

_CHUNK = 1 << 16  # points of one evaluation: 64 MB for an activation of 256


def isosurface(
    field: Field, *, resolution: int, half_extent: float = 1.0, level: float = 0.0, max_slope: float = 2.0
) -> Trimesh:
    """Mesh of `field == level` in [-half_extent, half_extent]^3, outward for a field that is lower inside.

    The cube has `resolution` cells along an edge. Blocks of cells are halved repeatedly. A block is dropped if
    `|field - level|` at its center exceeds its half-diagonal times the largest slope of the field: then it has no
    surface, and the mesh equals that of dense marching cubes. The largest slope is assumed to be `max_slope` (a
    distance has 1) in blocks above 1/32 of the cube, and 1.2 times the slope measured between the centers of neighbors
    in smaller ones. It is checked between all visited neighbors and along all edges of the marched cells: if a slope
    exceeds the assumed one, the search is repeated with the larger value.

    Raises `ValueError` if the field never crosses the level.
    """
    cell = 2 * half_extent / resolution
    depth = math.ceil(math.log2(max(resolution, 2)))
    cached = _CachedField(field, half_extent, cell / 2)
    measured, assumed = max_slope, 0.0
    while measured > assumed:
        cells, assumed = _cells(cached, resolution, half_extent, level, max_slope)
        if len(cells) == 0:
            raise _no_surface(field, half_extent, level)
        _, corners_of_cell, corners = igl.unique_sparse_voxel_corners(
            np.full(3, -half_extent),
            cell * 2**depth,
            depth,
            cells[:, [1, 0, 2]],  # libigl counts cells along y, x, z
        )
        values = cached(corners)
        if not (values.min() < level < values.max()):
            raise _no_surface(field, half_extent, level)
        measured = _largest_slope(values[corners_of_cell], corners[corners_of_cell[0]])
        # Small blocks are assumed to have at least max_slope - 1.
        max_slope = max(max_slope, 1.1 * measured + (assumed < max_slope))
    vertices, faces, _ = igl.marching_cubes(values, corners, corners_of_cell, level)
    return Trimesh(vertices, faces, process=False)


class _CachedField:
    """Field at points of a grid; each point is evaluated once."""

    def __init__(self, field: Field, half_extent: float, step: float) -> None:
        """The grid starts in the corner at -half_extent."""
        self._field, self._half_extent, self._step = field, half_extent, step
        self._keys, self._values = np.zeros(0, dtype=np.int64), np.zeros(0)  # in order of the keys

    def __call__(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        x, y, z = np.rint((points + self._half_extent) / self._step).astype(np.int64).T
        keys = (x << 40) + (y << 20) + z
        new = np.flatnonzero(~np.isin(keys, self._keys))
        if len(new):
            known = np.concatenate([self._keys, keys[new]])
            values = np.concatenate([self._values, evaluate(self._field, points[new])])
            order = np.argsort(known)
            self._keys, self._values = known[order], values[order]
        return self._values[np.searchsorted(self._keys, keys)]


def _cells(
    field: _CachedField, resolution: int, half_extent: float, level: float, max_slope: float
) -> tuple[Int[np.ndarray, "n 3"], float]:
    """Cells that may contain the surface, by their index along each axis, and the slope assumed last.

    The last halving is not tested at the centers: the corners are evaluated anyway.
    """
    cell = 2 * half_extent / resolution
    size = 2 ** math.ceil(math.log2(max(resolution, 2)))  # cells along the edge of a block; the first holds the cube
    children = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(8, 3)
    blocks, assumed = np.zeros((1, 3), dtype=np.int64), max_slope
    while size > 1 and len(blocks):
        centers = (blocks + 0.5) * size * cell - half_extent
        values = field(centers) - level
        measured = _largest_slope(values.reshape(-1, 8), centers[:8]) if len(blocks) > 1 else 0.0
        if measured > max_slope:
            return _cells(field, resolution, half_extent, level, 1.1 * measured)
        if size * cell * 32 <= 2 * half_extent:
            assumed = max(max_slope - 1, 1.2 * measured)
        near = np.abs(values) <= assumed * math.sqrt(0.75) * size * cell
        blocks, size = (2 * blocks[near][:, None] + children).reshape(-1, 3), size // 2
    return blocks[(blocks < resolution).all(axis=1)], assumed


def _largest_slope(values: Float[np.ndarray, "c 8"], corners: Float[np.ndarray, "8 3"]) -> float:
    """Largest change per unit length along an edge of cells; `corners`: those of one cell, all have its size."""
    apart = np.abs(corners[:, None] - corners[None]).sum(axis=-1)
    edge = apart[apart > 0].min()
    pairs = np.argwhere(np.triu(np.isclose(apart, edge)))
    return float(max(np.abs(values[:, a] - values[:, b]).max() for a, b in pairs) / edge)


def isosurface_by_sign(
    field: Field, *, resolution: int, half_extent: float = 1.0, level: float = 0.0, coarse_resolution: int = 32
) -> Trimesh:
    """Mesh of `field == level` for a field that is not a distance: cells with a change of sign are halved.

    Multiresolution extraction of Occupancy Networks (Mescheder et al., CVPR 2019, section 3.3), from a grid of
    `coarse_resolution` cells (or up to twice as many) along an edge. The neighbors of these cells are halved too;
    without them, as in the paper, holes remain where the surface enters a cell through a face alone. Parts thinner than
    a coarse cell may be missed. `resolution` is rounded up to a multiple of a power of two.

    Raises `ValueError` if the field never crosses the level.
    """
    halvings = max(0, math.floor(math.log2(resolution / coarse_resolution)))
    size = math.ceil(resolution / 2**halvings)
    axis = np.arange(size)
    cells = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    for halving in range(halvings + 1):
        if halving:
            near = np.unique((cells[:, None] + _NEIGHBORHOOD).reshape(-1, 3).clip(0, size - 1), axis=0)
            cells, size = (2 * near[:, None] + _CORNERS).reshape(-1, 3), 2 * size
        nodes, corners_of_cell = np.unique((cells[:, None] + _CORNERS).reshape(-1, 3), axis=0, return_inverse=True)
        corners_of_cell = corners_of_cell.reshape(-1, 8)
        values = evaluate(field, nodes * (2 * half_extent / size) - half_extent)
        at_corners = values[corners_of_cell]
        crossed = (at_corners.min(axis=1) <= level) & (level <= at_corners.max(axis=1))
        cells, corners_of_cell = cells[crossed], corners_of_cell[crossed]
        if len(cells) == 0:
            raise _no_surface(field, half_extent, level)
    vertices, faces, _ = igl.marching_cubes(
        values, nodes * (2 * half_extent / size) - half_extent, corners_of_cell, level
    )
    return Trimesh(vertices, faces, process=False)


def dense_isosurface(field: Field, *, resolution: int, half_extent: float = 1.0, level: float = 0.0) -> Trimesh:
    """Mesh of `field == level` from all nodes of the grid: the reference for tests and benchmarks."""
    axis = np.linspace(-half_extent, half_extent, resolution + 1)
    nodes = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    values = evaluate(field, nodes).reshape(resolution + 1, resolution + 1, resolution + 1)
    if not (values.min() < level < values.max()):
        raise _no_surface(field, half_extent, level)
    vertices, faces, _, _ = marching_cubes(values, level, spacing=(2 * half_extent / resolution,) * 3)
    return Trimesh(vertices - half_extent, faces, process=False)


def contours(
    values: Float[np.ndarray, "y x"], axes: Float[np.ndarray, "2 n"], *, level: float = 0.0
) -> list[Float[np.ndarray, "k 2"]]:
    """Level lines of a field on a grid of the plane, by marching squares; `axes`: x of the columns, y of the rows.

    Raises `ValueError` if there is none.
    """
    lines = find_contours(values, level)
    if not lines:
        raise ValueError(
            f"no curve at level {level:g}: the field is within [{values.min():.3g}, {values.max():.3g}]. Train longer."
        )
    index = np.arange(axes.shape[1])
    xy = ([np.interp(line[:, 1 - k], index, axes[k]) for k in (0, 1)] for line in lines)
    return [np.stack(columns, axis=1) for columns in xy]


def evaluate(field: Field, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
    """Values of the field at NumPy points, in chunks, without gradients."""
    with torch.no_grad():
        parts = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32)).split(_CHUNK)
        return torch.cat([field(part).cpu() for part in parts]).double().numpy()


def largest_component(mesh: Trimesh) -> Trimesh:
    """Connected component with the largest area (as in IGR)."""
    parts = mesh.split(only_watertight=False)
    return max(parts, key=lambda part: float(part.area)) if len(parts) > 1 else mesh


def _no_surface(field: Field, half_extent: float, level: float) -> ValueError:
    axis = np.linspace(-half_extent, half_extent, 17)
    values = evaluate(field, np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3))
    return ValueError(
        f"no surface at level {level:g}: the field is within [{values.min():.3g}, {values.max():.3g}] on a coarse grid "
        f"of [-{half_extent:g}, {half_extent:g}]^3. Train the model longer, or bring the scan into the model frame "
        "(inside [-1, 1]^3)."
    )
