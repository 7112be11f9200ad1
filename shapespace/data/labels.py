"""Inside or outside: labels for families that do not learn from scans alone."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from trimesh import Trimesh

from shapespace.data.store import Source
from shapespace.geometry.inside import inside
from shapespace.geometry.scan import Scan

_POOL = 10_000  # points of each kind that are labelled for a scan
_WIDTHS = (0.1, 0.01)


class Labels:
    """Points about each scan's true surface that are known to be inside or outside; `count` are drawn at a time.

    A third of a scan's pool lies anywhere in the cube (Occupancy Networks), and a third each around the surface with a
    standard deviation of 0.1 and 0.01 model units (IF-Nets, section 3.2). It is made when it is first asked for, which
    takes a tenth of a second.
    """

    def __init__(self, store: Source, names: Sequence[str], count: int) -> None:
        if bare := [name for name in names if not store.has_truth(name)]:
            raise ValueError(
                f"{len(bare):,} of {len(names):,} scans of {store.path} have no true surface, {bare[0]} for one, and "
                "labels come from that. Choose a split of scans that have one, or a recipe that learns from raw scans."
            )
        self.store, self.names, self.count = store, names, count
        self._pools: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def draw(self, row: int, rng: np.random.Generator) -> tuple[Float[np.ndarray, "l 3"], Bool[np.ndarray, "l"]]:
        """Some points (model frame) of the scan in this row, and whether they are inside."""
        if row not in self._pools:
            self._pools[row] = self._made(row)
        points, known = self._pools[row]
        chosen = rng.integers(len(points), size=self.count)
        return points[chosen], known[chosen]

    def _made(self, row: int) -> tuple[Float[np.ndarray, "m 3"], Bool[np.ndarray, "m"]]:
        name, rng = self.names[row], np.random.default_rng(row)
        truth = self.store.truth(name)
        assert truth is not None  # asked at the beginning
        world = torch.from_numpy(np.asarray(truth.vertices)).float()
        corners, faces = self.store.frame(name).to_model(world).numpy(), np.asarray(truth.faces)
        on = Scan(name, corners, faces=faces).sample(len(_WIDTHS) * _POOL, rng).points
        around = on + np.repeat(_WIDTHS, _POOL)[:, None] * rng.standard_normal(on.shape)
        points = np.concatenate([rng.uniform(-1, 1, (_POOL, 3)), around]).astype(np.float32)
        return points, inside(points, Trimesh(corners, faces, process=False))
