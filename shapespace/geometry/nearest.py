"""Nearest points: exactly on triangles (libigl), or among samples (KD-tree)."""

import igl
import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from trimesh import Trimesh


def to_mesh(
    points: Float[np.ndarray, "n 3"], mesh: Trimesh
) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "n"], Float[np.ndarray, "n 3"]]:
    """Exact unsigned distance from each point to the mesh, the nearest face, and the nearest point on it.

    Raises `ValueError` for a mesh without faces.
    """
    if not len(mesh.faces):
        raise ValueError(f"no distance to a mesh without faces ({len(mesh.vertices)} vertices): give it a surface.")
    squared, face, closest = igl.point_mesh_squared_distance(
        np.asarray(points, dtype=np.float64),
        np.asarray(mesh.vertices, dtype=np.float64),
        np.asarray(mesh.faces, dtype=np.int64),
    )
    return np.sqrt(squared), face.astype(np.int64), closest


def to_points(
    points: Float[np.ndarray, "n 3"], others: Float[np.ndarray, "m 3"]
) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Distance from each point to the nearest of the others, and its index."""
    distance, index = cKDTree(others).query(points, workers=-1)
    return np.asarray(distance), np.asarray(index)
