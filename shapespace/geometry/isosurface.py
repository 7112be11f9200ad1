"""From a field to a mesh, without visiting empty space."""

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

# The corners of a cell, in the order of libigl's marching cubes.
_CORNERS = np.array([[0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 1, 1], [1, 0, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
_AROUND = np.stack(np.meshgrid(*3 * [[-1, 0, 1]], indexing="ij"), axis=-1).reshape(-1, 3)

_CHUNK = 1 << 16  # points to one evaluation: 64 MB for an activation of 256


def isosurface(field: Field, *, resolution: int, half: float = 1.0, level: float = 0.0, slope: float = 2.0) -> Trimesh:
    """Mesh of `field == level` in [-half, half]^3, outward for a field that is lower inside; world of the field.

    The cube has `resolution` cells along an edge. Blocks of cells are halved again and again, and one is dropped when
    `|field - level|` at its centre is above its half-diagonal times the fastest change of the field per unit length:
    then no surface is in it, and the mesh equals dense marching cubes. The fastest change is taken to be `slope` (a
    distance changes by 1 per unit) in blocks above 1/32 of the cube, and 1.2 times what is found between the centres of
    neighbours in smaller ones. It is checked between all neighbours that are visited and along every edge of the cells
    that are marched: where anything is faster than was assumed, the search is made again with that.

    Raises `ValueError` if the field never crosses the level.
    """
    cell = 2 * half / resolution
    depth = math.ceil(math.log2(max(resolution, 2)))
    asked = _Asked(field, half, cell / 2)
    found, assumed = slope, 0.0
    while found > assumed:
        cells, assumed = _cells(asked, resolution, half, level, slope)
        if len(cells) == 0:
            raise _no_surface(field, half, level)
        _, corners_of_cell, corners = igl.unique_sparse_voxel_corners(
            np.full(3, -half),
            cell * 2**depth,
            depth,
            cells[:, [1, 0, 2]],  # libigl counts cells along y, x, z
        )
        values = asked(corners)
        if not (values.min() < level < values.max()):
            raise _no_surface(field, half, level)
        found = _fastest(values[corners_of_cell], corners[corners_of_cell[0]])
        slope = max(slope, 1.1 * found + (assumed < slope))  # what is assumed of small blocks is at least slope - 1
    vertices, faces, _ = igl.marching_cubes(values, corners, corners_of_cell, level)
    return Trimesh(vertices, faces, process=False)


class _Asked:
    """A field at points of a grid, each of which is evaluated once, however often it is asked for."""

    def __init__(self, field: Field, half: float, step: float) -> None:
        """The grid starts in the corner at -half."""
        self._field, self._half, self._step = field, half, step
        self._places, self._values = np.zeros(0, dtype=np.int64), np.zeros(0)  # in order of the places

    def __call__(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        x, y, z = np.rint((points + self._half) / self._step).astype(np.int64).T
        places = (x << 40) + (y << 20) + z
        new = np.flatnonzero(~np.isin(places, self._places))
        if len(new):
            known = np.concatenate([self._places, places[new]])
            values = np.concatenate([self._values, evaluate(self._field, points[new])])
            order = np.argsort(known)
            self._places, self._values = known[order], values[order]
        return self._values[np.searchsorted(self._places, places)]


def _cells(
    field: _Asked, resolution: int, half: float, level: float, slope: float
) -> tuple[Int[np.ndarray, "n 3"], float]:
    """Cells that the surface may pass through, by their place along each axis, and the slope that was assumed last.

    The last halving needs no look at the centres: the corners will be evaluated anyway.
    """
    cell = 2 * half / resolution
    size = 2 ** math.ceil(math.log2(max(resolution, 2)))  # cells along a block's edge; the first block holds the cube
    children = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(8, 3)
    blocks, assumed = np.zeros((1, 3), dtype=np.int64), slope
    while size > 1 and len(blocks):
        centres = (blocks + 0.5) * size * cell - half
        values = field(centres) - level
        found = _fastest(values.reshape(-1, 8), centres[:8]) if len(blocks) > 1 else 0.0
        if found > slope:
            return _cells(field, resolution, half, level, 1.1 * found)
        if size * cell * 32 <= 2 * half:
            assumed = max(slope - 1, 1.2 * found)
        near = np.abs(values) <= assumed * math.sqrt(0.75) * size * cell
        blocks, size = (2 * blocks[near][:, None] + children).reshape(-1, 3), size // 2
    return blocks[(blocks < resolution).all(axis=1)], assumed


def _fastest(values: Float[np.ndarray, "c 8"], corners: Float[np.ndarray, "8 3"]) -> float:
    """Largest change per unit length along an edge of cells, all of the size and order of the one with `corners`."""
    apart = np.abs(corners[:, None] - corners[None]).sum(axis=-1)
    edge = apart[apart > 0].min()
    pairs = np.argwhere(np.triu(np.isclose(apart, edge)))
    return float(max(np.abs(values[:, a] - values[:, b]).max() for a, b in pairs) / edge)


def isosurface_by_sign(
    field: Field, *, resolution: int, half: float = 1.0, level: float = 0.0, coarse: int = 32
) -> Trimesh:
    """The same for a field that is no distance: cells with corners on both sides are halved, and their neighbours.

    Multiresolution extraction of Occupancy Networks (Mescheder et al., CVPR 2019, section 3.3), from a grid of
    `coarse` cells (or somewhat more) along an edge. The paper halves no neighbours, and leaves holes where the surface
    enters a cell through a face alone. What is thinner than such a cell may be missed. `resolution` is rounded up to a
    multiple of a power of two.
    """
    halvings = max(0, math.floor(math.log2(resolution / coarse)))
    size = math.ceil(resolution / 2**halvings)
    axis = np.arange(size)
    cells = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    for halving in range(halvings + 1):
        if halving:
            near = np.unique((cells[:, None] + _AROUND).reshape(-1, 3).clip(0, size - 1), axis=0)
            cells, size = (2 * near[:, None] + _CORNERS).reshape(-1, 3), 2 * size
        nodes, corners_of_cell = np.unique((cells[:, None] + _CORNERS).reshape(-1, 3), axis=0, return_inverse=True)
        corners_of_cell = corners_of_cell.reshape(-1, 8)
        values = evaluate(field, nodes * (2 * half / size) - half)
        around = values[corners_of_cell]
        crossed = (around.min(axis=1) <= level) & (level <= around.max(axis=1))
        cells, corners_of_cell = cells[crossed], corners_of_cell[crossed]
        if len(cells) == 0:
            raise _no_surface(field, half, level)
    vertices, faces, _ = igl.marching_cubes(values, nodes * (2 * half / size) - half, corners_of_cell, level)
    return Trimesh(vertices, faces, process=False)


def dense(field: Field, *, resolution: int, half: float = 1.0, level: float = 0.0) -> Trimesh:
    """The same by evaluating every node of the grid: for fields without a bound, and as the plain twin."""
    axis = np.linspace(-half, half, resolution + 1)
    nodes = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    values = evaluate(field, nodes).reshape(resolution + 1, resolution + 1, resolution + 1)
    if not (values.min() < level < values.max()):
        raise _no_surface(field, half, level)
    vertices, faces, _, _ = marching_cubes(values, level, spacing=(2 * half / resolution,) * 3)
    return Trimesh(vertices - half, faces, process=False)


def contours(
    values: Float[np.ndarray, "y x"], axes: Float[np.ndarray, "2 n"], *, level: float = 0.0
) -> list[Float[np.ndarray, "k 2"]]:
    """Level lines of a field on a grid of the plane, by marching squares; `axes` are its columns' x and its rows' y.

    Raises `ValueError` where there is none.
    """
    lines = find_contours(values, level)
    if not lines:
        raise ValueError(
            f"no curve to extract: the field stays within [{values.min():.3g}, {values.max():.3g}] and never crosses "
            f"level {level:g}. Train longer."
        )
    places = np.arange(axes.shape[1])
    xy = ([np.interp(line[:, 1 - k], places, axes[k]) for k in (0, 1)] for line in lines)
    return [np.stack(columns, axis=1) for columns in xy]


def evaluate(field: Field, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
    """The field at numpy points, in chunks, without a graph."""
    with torch.no_grad():
        parts = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32)).split(_CHUNK)
        return torch.cat([field(part).cpu() for part in parts]).double().numpy()


def largest_component(mesh: Trimesh) -> Trimesh:
    """The connected component with the largest area (IGR keeps the largest component)."""
    parts = mesh.split(only_watertight=False)
    return max(parts, key=lambda part: float(part.area)) if len(parts) > 1 else mesh


def _no_surface(field: Field, half: float, level: float) -> ValueError:
    axis = np.linspace(-half, half, 17)
    values = evaluate(field, np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3))
    return ValueError(
        f"no surface to extract: the field stays within [{values.min():.3g}, {values.max():.3g}] on a coarse grid of "
        f"[-{half:g}, {half:g}]^3 and never crosses level {level:g}. Is the model trained, and is the scan in the "
        "model frame (inside [-1, 1]^3)?"
    )
