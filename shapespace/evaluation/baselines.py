"""Surface reconstruction of a single scan without a shape space: screened Poisson, a baseline for fits."""

import numpy as np
from trimesh import Trimesh

from shapespace.geometry.scan import Scan

DEPTH = 8  # of the octree: cells of 8 mm for a person of 2 m


def screened_poisson(scan: Scan, *, count: int = 50_000, depth: int = DEPTH) -> Trimesh:
    """Screened Poisson surface (Kazhdan & Hoppe, TOG 2013) of `count` points of a scan with normals; meters.

    By pymeshlab (extra `baselines`), with its default settings except for the depth. It closes holes with the smoothest
    surface.

    Raises:
        ModuleNotFoundError: The extra is not installed.
        ValueError: The scan has no normals.

    """
    try:
        import pymeshlab
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "screened Poisson: pymeshlab is not installed. Run pip install 'shapespace[baselines]'."
        ) from None
    sample = scan.sample(count, np.random.default_rng(0))
    if sample.normals is None:
        raise ValueError(f"scan {scan.name}: screened Poisson needs normals. Use another --method.")
    meshes = pymeshlab.MeshSet()
    points, normals = sample.points.astype(np.float64), sample.normals.astype(np.float64)
    meshes.add_mesh(pymeshlab.Mesh(vertex_matrix=points, v_normals_matrix=normals))
    meshes.generate_surface_reconstruction_screened_poisson(depth=depth, threads=1)
    mesh = meshes.current_mesh()
    return Trimesh(mesh.vertex_matrix(), mesh.face_matrix(), process=False)
