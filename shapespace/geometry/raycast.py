"""First hits of rays on a triangle mesh, by embree."""

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Float, Int


class Raycaster:
    """Ray caster for one mesh; single precision, any unit."""

    def __init__(self, vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]):
        self._scene = EmbreeScene()
        TriangleMesh(self._scene, vertices.astype(np.float32), faces.astype(np.int32))

    def first_hit(
        self, origins: Float[np.ndarray, "n 3"], directions: Float[np.ndarray, "n 3"]
    ) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "n"]]:
        """Distance along each ray to its first hit, in lengths of its direction, and the index of the face.

        Without a hit the distance is infinite and the face is -1. Faces are hit from both sides.
        """
        hit = self._scene.run(origins.astype(np.float32), directions.astype(np.float32), query="INTERSECT", output=True)
        face = hit["primID"]
        return np.where(face >= 0, hit["tfar"], np.float32(np.inf)), face
