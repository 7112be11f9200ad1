"""Lines along which a surface's normals lie, from its points alone."""

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree


def estimate(points: Float[np.ndarray, "n 3"], *, neighbours: int = 16) -> Float[np.ndarray, "n 3"]:
    """Unit normals of the planes through each point's nearest neighbours; which side is outside is not known.

    The direction of least variance among the neighbours (Hoppe et al., SIGGRAPH 1992, section 3.1).
    """
    wide = points.astype(np.float64)
    _, index = cKDTree(wide).query(wide, k=min(neighbours, len(wide)), workers=-1)
    near = wide[index.reshape(len(wide), -1)]
    near -= near.mean(axis=1, keepdims=True)
    _, axes = np.linalg.eigh(np.einsum("nka,nkb->nab", near, near))
    return np.asarray(axes[:, :, 0], dtype=points.dtype)
