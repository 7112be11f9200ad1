"""What a single scan gives without any shape space: the yardstick for refined fits."""

import numpy as np
from trimesh import Trimesh

from shapespace.geometry.scan import Scan

DEPTH = 8  # of the octree: cells of 8 mm for a person of two metres


def screened_poisson(scan: Scan, *, count: int = 50_000, depth: int = DEPTH) -> Trimesh:
    """Screened Poisson surface (Kazhdan & Hoppe, TOG 2013) through `count` points of a scan with normals; metres.

    By pymeshlab (extra `baselines`), with its default settings but for the depth. It closes holes with the smoothest
    surface, whatever a person looks like there.

    Raises:
        ModuleNotFoundError: The extra is not installed.
        ValueError: The scan has no normals.

    """
    try:
        import pymeshlab
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "screened Poisson comes with the extra `baselines`: pip install 'shapespace[baselines]'."
        ) from None
    drawn = scan.sample(count, np.random.default_rng(0))
    if drawn.normals is None:
        raise ValueError(f"scan {scan.name} has no normals, and screened Poisson needs them. Leave the method out.")
    meshes = pymeshlab.MeshSet()
    points, normals = drawn.points.astype(np.float64), drawn.normals.astype(np.float64)
    meshes.add_mesh(pymeshlab.Mesh(vertex_matrix=points, v_normals_matrix=normals))
    meshes.generate_surface_reconstruction_screened_poisson(depth=depth, threads=1)
    found = meshes.current_mesh()
    return Trimesh(found.vertex_matrix(), found.face_matrix(), process=False)
