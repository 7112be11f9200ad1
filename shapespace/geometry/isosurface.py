"""From a field to a mesh, without visiting empty space."""

import math
from collections.abc import Callable

import igl
import numpy as np
import torch
from jaxtyping import Float
from skimage.measure import marching_cubes
from torch import Tensor
from trimesh import Trimesh

Field = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n"]]

_CHUNK = 1 << 16  # points to one evaluation: 64 MB for an activation of 256


def isosurface(
    field: Field, *, resolution: int, half: float = 1.0, level: float = 0.0, lipschitz: float = 2.0
) -> Trimesh:
    """Mesh of `field == level` in [-half, half]^3, outward for a field that is lower inside; world of the field.

    The cube has `resolution` cells along an edge. A cell at any depth of an octree is dropped when
    `|field - level|` at its centre is above `lipschitz` times its half-diagonal, so the mesh equals dense marching
    cubes as long as the field nowhere changes faster than `lipschitz` per unit. Signed distances change by 1 per unit;
    the default leaves learned ones a slack of 2.

    Raises `ValueError` if the field never crosses the level.
    """
    cell = 2 * half / resolution
    depth = math.ceil(math.log2(resolution))
    origin = np.full(3, -half)

    def distance(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        return np.abs(evaluate(field, points) - level) / lipschitz

    cells = igl.lipschitz_octree(origin, cell * 2**depth, depth, distance)
    cells = cells[(cells < resolution).all(axis=1)]  # the octree's root is a power of two and may exceed the cube
    if len(cells) == 0:
        raise _no_surface(field, half, level)
    _, corners_of_cell, corners = igl.unique_sparse_voxel_corners(origin, cell * 2**depth, depth, cells)
    values = evaluate(field, corners)
    if not (values.min() < level < values.max()):
        raise _no_surface(field, half, level)
    vertices, faces, _ = igl.marching_cubes(values, corners, corners_of_cell, level)
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


def evaluate(field: Field, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
    """The field at numpy points, in chunks, without a graph."""
    with torch.no_grad():
        parts = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32)).split(_CHUNK)
        return torch.cat([field(part).cpu() for part in parts]).double().numpy()


def largest(mesh: Trimesh) -> Trimesh:
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
