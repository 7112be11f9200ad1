"""Isosurfaces of fields by sparse marching cubes, contours of plane fields, and mesh components."""

import math
from collections.abc import Callable
from typing import NamedTuple

import igl
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from skimage.measure import find_contours, marching_cubes
from torch import Tensor
from trimesh import Trimesh

Field = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n"]]

# Corners of a cell, in the order of libigl's marching cubes.
_CORNERS = np.array([[0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 1, 1], [1, 0, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
_NEIGHBORHOOD = np.stack(np.meshgrid(*3 * [[-1, 0, 1]], indexing="ij"), axis=-1).reshape(-1, 3)

_CHILDREN = np.stack(np.meshgrid(*3 * [[0, 1]], indexing="ij"), axis=-1).reshape(8, 3)
# The corners of the 8 cells of a block, as places among its 27 nodes.
_CELL_NODES = (_CHILDREN[:, None] + _CORNERS) @ np.array([9, 3, 1])
# The corners on the six faces of a cell, and the step to the cell behind each face.
_FACES = np.stack([np.flatnonzero(_CORNERS[:, axis] == side) for axis in range(3) for side in (0, 1)])
_BEHIND = np.stack([(2 * side - 1) * np.eye(3, dtype=np.int64)[axis] for axis in range(3) for side in (0, 1)])

_CHUNK = 1 << 16  # points of one evaluation: 64 MB for an activation of 256
_MARGIN = 1e-6  # of a bounded field on the border of its domain, model units: it is positive there


class Balls(NamedTuple):
    """Union of balls: the domain of a field that is meaningful only around some centers."""

    centers: Float[Tensor, "k 3"]
    radii: Float[Tensor, "k"]

    def distance(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        """Distance to the union; at most 0 within, where the border is at least as far away as its absolute value."""
        (cx, cy, cz), radii = self.centers.T[..., None], self.radii[:, None]
        distances = []
        for part in x.split(2048):  # remains in the cache: faster than torch.cdist
            px, py, pz = part.T.contiguous()
            squares = (px - cx).square_().add_((py - cy).square_()).add_((pz - cz).square_())
            distances.append((squares.sqrt_() - radii).amin(dim=0))
        return torch.cat(distances)

    def nearest(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Points of the union closest to points outside; they are within, by 1e-4 of the radius of their ball."""
        apart = torch.cdist(x, self.centers, compute_mode="donot_use_mm_for_euclid_dist")
        ball = (apart - self.radii).argmin(dim=1)
        ratio = (1 - 1e-4) * self.radii[ball] / apart.gather(1, ball[:, None])[:, 0]
        return torch.lerp(self.centers[ball], x, ratio[:, None])


def bounded(field: Field, domain: Balls) -> Field:
    """The field within the domain; outside, the distance to it, which is positive. `field` is not called outside.

    Points have the device of the domain.
    """

    def bounded_field(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        distance = domain.distance(x)
        inside, values = distance < 0, distance + _MARGIN
        return values.masked_scatter(inside, field(x[inside]).to(values)) if inside.any() else values

    return bounded_field


def isosurface(
    field: Field,
    *,
    resolution: int,
    half_extent: float = 1.0,
    level: float = 0.0,
    max_slope: float = 2.0,
    domain: Balls | None = None,
) -> Trimesh:
    """Mesh of `field == level` in [-half_extent, half_extent]^3, outward for a field that is lower inside.

    The cube has `resolution` cells along an edge. Blocks of cells are halved repeatedly. A block is dropped if
    `|field - level|` at its center exceeds its half-diagonal times the largest slope of the field: then it has no
    surface, and the mesh equals that of dense marching cubes. The largest slope is assumed to be `max_slope` (a
    distance has 1) in blocks above 1/32 of the cube, and 1.2 times the slope measured between the centers of neighbors
    in smaller ones. It is checked between all visited neighbors and along all edges of the marched cells: if a slope
    exceeds the assumed one, the search is repeated with the larger value.

    With a `domain`, the surface is that of `bounded(field, domain)` at level 0: `field` is called within the domain
    alone, blocks that do not touch it are dropped, and the field is evaluated in blocks of about 1/32 of the cube and
    smaller ones. There, the largest slope is assumed for each eight neighbors alone: 1.2 times the slope measured
    between them, or 1.2 (max_slope - 1) if that is larger. So a place where the field is steep, or jumps, costs
    evaluations there only; jumps of up to 0.2 half-diagonals in a distance are allowed for. Last, the surface is
    followed into dropped blocks: what remains unseen are parts that lie in dropped blocks completely.

    Raises `ValueError` if the field never crosses the level, and for a `domain` with another level than 0.
    """
    if domain is not None:
        if level:
            raise ValueError(
                f"isosurface: level {level:g} with a domain, outside of which the field is positive. Subtract "
                "the level from the field, and leave out level."
            )
        domain = Balls(*(part.detach().float().cpu() for part in domain))
        return _isosurface_within(field, domain, resolution, half_extent, max_slope)
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
        new = np.flatnonzero(~_is_in(self._keys, keys))
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


def _isosurface_within(field: Field, domain: Balls, resolution: int, half_extent: float, max_slope: float) -> Trimesh:
    """Mesh of `bounded(field, domain) == 0`, from blocks of 2 x 2 x 2 cells and from those that the surface enters."""
    grid = _Grid(resolution, half_extent)
    blocks, is_deep, known = _blocks_within(field, domain, grid, max_slope)
    visited, marched = np.zeros(0, dtype=np.int64), []
    while len(blocks):
        visited = np.sort(np.concatenate([visited, grid.keys(blocks)]))
        nodes = grid.keys(2 * blocks[:, None] + _NEIGHBORHOOD + 1)
        known.add(nodes[is_deep], field)
        known.add(nodes[~is_deep], bounded(field, domain))
        outside = known(nodes) > 0
        mixed = outside.any(axis=1) & ~outside.all(axis=1)
        blocks, nodes, outside = blocks[mixed], nodes[mixed], outside[mixed][:, _CELL_NODES]
        cells = 2 * blocks[:, None] + _CHILDREN
        crossed = outside.any(axis=2) & ~outside.all(axis=2) & (cells < resolution).all(axis=2)
        marched.append(nodes[:, _CELL_NODES][crossed])
        on_face = outside[crossed][:, _FACES]
        cell, face = np.nonzero(on_face.any(axis=2) & ~on_face.all(axis=2))
        behind = cells[crossed][cell] + _BEHIND[face]
        behind = behind[((behind >= 0) & (behind < resolution)).all(axis=1)] // 2
        keys = _sorted_unique(grid.keys(behind))
        blocks = grid.indices(keys[~_is_in(visited, keys)])
        is_deep = np.zeros(len(blocks), dtype=bool)
    if not sum(map(len, marched)):
        raise _no_surface(bounded(field, domain), half_extent, 0.0)
    corners_of_cell = np.concatenate(marched)
    corners = _sorted_unique(corners_of_cell.ravel())
    vertices, faces, _ = igl.marching_cubes(
        known(corners), grid.points(corners), np.searchsorted(corners, corners_of_cell), 0.0
    )
    return Trimesh(vertices, faces, process=False)


def _blocks_within(
    field: Field, domain: Balls, grid: "_Grid", max_slope: float
) -> tuple[Int[np.ndarray, "b 3"], Bool[np.ndarray, "b"], "_NodeValues"]:
    """Blocks of 2 x 2 x 2 cells that may contain the surface, whether they lie within the domain, and known values.

    A block that leaves the domain, and has its center outside, is judged by the point of the domain next to the center.
    """
    size = max(2, 2 ** math.ceil(math.log2(grid.resolution)))
    largest = 2 ** round(math.log2(max(grid.resolution / 32, 2)))  # larger blocks are dropped by the domain alone
    blocks, is_deep, known = np.zeros((1, 3), dtype=np.int64), np.zeros(1, dtype=bool), _NodeValues(grid)
    while True:
        radius = math.sqrt(0.75) * size * grid.cell
        centers = (blocks + 0.5) * size * grid.cell - grid.half_extent
        distance = np.full(len(blocks), -np.inf)
        distance[~is_deep] = evaluate(domain.distance, centers[~is_deep])
        is_deep = distance < -1.001 * radius  # the nodes on its border are within, whatever the rounding
        near = (distance < radius) & (blocks * size < grid.resolution).all(axis=1)
        if size <= largest and near.any():
            is_outside = near & (distance >= 0)
            if is_outside.any():
                centers[is_outside] = domain.nearest(torch.from_numpy(centers[is_outside]).float()).numpy()
            values = np.full(len(blocks), np.nan)
            values[near] = evaluate(field, centers[near])
            at_center = near & (distance < 0)
            known.insert(grid.keys(blocks[at_center] * size + size // 2), values[at_center])
            slope = _slopes(values, centers, size * grid.cell)
            bound = 1.2 * np.maximum(slope, max_slope - 1) * (radius + distance.clip(min=0))
            near &= (values <= bound) & ((values >= -bound) | ~is_deep)
        blocks, is_deep = blocks[near], is_deep[near]
        if size == 2 or not len(blocks):
            return blocks, is_deep, known
        blocks, is_deep, size = (2 * blocks[:, None] + _CHILDREN).reshape(-1, 3), is_deep.repeat(8), size // 2


def _slopes(values: Float[np.ndarray, "n"], points: Float[np.ndarray, "n 3"], spacing: float) -> Float[np.ndarray, "n"]:
    """Largest gradient from differences between the 8 children of a block, for each of them; NaN is left out.

    `points` are about `spacing` apart; closer ones count as half of it apart.
    """
    if len(values) < 8:
        return np.zeros(len(values))
    v, p, squares = values.reshape(-1, 2, 2, 2), points.reshape(-1, 2, 2, 2, 3), np.zeros(1)
    for axis in (1, 2, 3):
        distance = np.linalg.norm(np.diff(p, axis=axis), axis=-1)
        squares = squares + np.nan_to_num(np.diff(v, axis=axis) / distance.clip(min=spacing / 2)) ** 2
    return np.sqrt(squares.max(axis=(1, 2, 3))).repeat(8)


class _Grid(NamedTuple):
    """Grid of `resolution` cells along each edge of [-half_extent, half_extent]^3; a key stands for an index (3)."""

    resolution: int
    half_extent: float

    @property
    def cell(self) -> float:
        return 2 * self.half_extent / self.resolution

    def keys(self, index: Int[np.ndarray, "*b 3"]) -> Int[np.ndarray, "*b"]:
        return (index[..., 0] << 40) + (index[..., 1] << 20) + index[..., 2]

    def indices(self, keys: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n 3"]:
        return np.stack([keys >> 40, (keys >> 20) & 0xFFFFF, keys & 0xFFFFF], axis=-1)

    def points(self, keys: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n 3"]:
        return self.indices(keys) * self.cell - self.half_extent


class _NodeValues:
    """Values at nodes of a grid, by their keys; each node is evaluated once."""

    def __init__(self, grid: _Grid) -> None:
        self._grid, self._keys, self._values = grid, np.zeros(0, dtype=np.int64), np.zeros(0)  # in order of the keys

    def __call__(self, keys: Int[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
        return self._values[np.searchsorted(self._keys, keys)]

    def add(self, keys: Int[np.ndarray, "*b"], field: Field) -> None:
        """Evaluate the field at the nodes that are new."""
        keys = _sorted_unique(keys.ravel())
        new = keys[~_is_in(self._keys, keys)]
        if len(new):
            self.insert(new, evaluate(field, self._grid.points(new)))

    def insert(self, keys: Int[np.ndarray, "n"], values: Float[np.ndarray, "n"]) -> None:
        """Add values of nodes that are new."""
        keys, values = np.concatenate([self._keys, keys]), np.concatenate([self._values, values])
        order = np.argsort(keys)
        self._keys, self._values = keys[order], values[order]


def _sorted_unique(keys: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
    """Different keys in order, as by `np.unique`, which takes four times as long."""
    keys = np.sort(keys)
    return keys[np.diff(keys, prepend=-1) > 0]


def _is_in(known: Int[np.ndarray, "m"], keys: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Whether each key is among the known ones, which are in order."""
    place = np.searchsorted(known, keys)
    return np.append(known, -1)[place] == keys


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
    axis, grid = np.arange(size), _Grid(size, half_extent)
    cells = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    for halving in range(halvings + 1):
        if halving:
            near = grid.indices(_sorted_unique(grid.keys((cells[:, None] + _NEIGHBORHOOD).clip(0, size - 1)).ravel()))
            cells, size = (2 * near[:, None] + _CORNERS).reshape(-1, 3), 2 * size
        grid = _Grid(size, half_extent)
        keys = grid.keys(cells[:, None] + _CORNERS)
        nodes = _sorted_unique(keys.ravel())  # of keys: `np.unique` of rows takes ten times as long
        corners_of_cell = np.searchsorted(nodes, keys)
        values = evaluate(field, grid.points(nodes))
        at_corners = values[corners_of_cell]
        crossed = (at_corners.min(axis=1) <= level) & (level <= at_corners.max(axis=1))
        cells, corners_of_cell = cells[crossed], corners_of_cell[crossed]
        if len(cells) == 0:
            raise _no_surface(field, half_extent, level)
    vertices, faces, _ = igl.marching_cubes(values, grid.points(nodes), corners_of_cell, level)
    return Trimesh(vertices, faces, process=False)


def dense_isosurface(field: Field, *, resolution: int, half_extent: float = 1.0, level: float = 0.0) -> Trimesh:
    """Mesh of `field == level` from all nodes of the grid: the reference for tests and benchmarks.

    By the cases of Lorensen & Cline 1987, as in `isosurface`: those of Lewiner et al. 2003, scikit-image's default, add
    a vertex in the middle of some ambiguous cells.
    """
    axis = np.linspace(-half_extent, half_extent, resolution + 1)
    nodes = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    values = evaluate(field, nodes).reshape(resolution + 1, resolution + 1, resolution + 1)
    if not (values.min() < level < values.max()):
        raise _no_surface(field, half_extent, level)
    vertices, faces, _, _ = marching_cubes(
        values, level, spacing=(2 * half_extent / resolution,) * 3, method="lorensen"
    )
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
