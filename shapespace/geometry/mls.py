"""Implicit moving least squares: the heights above the tangent planes of oriented points, averaged by distance."""

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

_NEIGHBORS = 48  # points that are asked about each place


class MovingLeastSquares:
    """Kolluri, SODA 2005, section 2: near its points, the mean height is a signed distance, negative inside."""

    def __init__(self, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"], width: float) -> None:
        """`width` is that of the Gaussian weights exp(-(d / width)^2); points beyond three widths weigh nothing."""
        self.points, self.normals, self.width = points.astype(np.float64), normals.astype(np.float64), width
        self._tree = cKDTree(self.points)

    def __call__(self, places: Float[np.ndarray, "q 3"]) -> tuple[Float[np.ndarray, "q"], Float[np.ndarray, "q"]]:
        """Sum of weight times height at each place, and sum of the weights; both 0 where no point is near."""
        found = self._tree.query(places, k=_NEIGHBORS, distance_upper_bound=3 * self.width)
        distance, index = np.asarray(found[0]), np.asarray(found[1])
        near = np.isfinite(distance[:, 0])
        height, weight = np.zeros(len(places)), np.zeros(len(places))
        index = np.minimum(index[near], len(self.points) - 1)  # a neighbour that there is not: infinitely far
        each = np.exp(-((distance[near] / self.width) ** 2))
        above = ((places[near, None] - self.points[index]) * self.normals[index]).sum(axis=2)
        height[near], weight[near] = (each * above).sum(axis=1), each.sum(axis=1)
        return height, weight
