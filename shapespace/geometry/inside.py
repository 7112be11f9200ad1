"""Inside or outside of a mesh."""

import igl
import numpy as np
from jaxtyping import Bool, Float
from trimesh import Trimesh


def inside(points: Float[np.ndarray, "n 3"], mesh: Trimesh) -> Bool[np.ndarray, "n"]:
    """Where the winding number is beyond a half, for either orientation of the faces.

    Barill et al., Fast Winding Numbers, SIGGRAPH 2018: small holes do no harm, sheets have no inside.
    """
    if len(mesh.faces) == 0:
        return np.zeros(len(points), dtype=np.bool_)
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    winding = igl.fast_winding_number(vertices, np.asarray(mesh.faces, dtype=np.int64), points.astype(np.float64))
    return np.asarray(np.abs(winding) > 0.5, dtype=np.bool_)
