"""Implicit moving least squares: weighted mean of the heights above tangent planes of oriented points."""

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

_NEIGHBORS = 48  # nearest points that contribute to one value


class MovingLeastSquares:
    """Field of Kolluri, SODA 2005, section 2; near the points it approximates the signed distance, negative inside."""

    def __init__(self, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"], width: float) -> None:
        """`width`: scale of the Gaussian weights exp(-(d / width)^2); points beyond three widths have weight 0."""
        self.points, self.normals, self.width = points.astype(np.float64), normals.astype(np.float64), width
        self._tree = cKDTree(self.points)

    def __call__(self, locations: Float[np.ndarray, "q 3"]) -> tuple[Float[np.ndarray, "q"], Float[np.ndarray, "q"]]:
        """Sum of weight times height at each location, and sum of the weights; both 0 if no point is near."""
        nearest = self._tree.query(locations, k=_NEIGHBORS, distance_upper_bound=3 * self.width)
        distance, index = np.asarray(nearest[0]), np.asarray(nearest[1])
        near = np.isfinite(distance[:, 0])
        height, weight = np.zeros(len(locations)), np.zeros(len(locations))
        index = np.minimum(index[near], len(self.points) - 1)  # missing neighbors have infinite distance
        weights = np.exp(-((distance[near] / self.width) ** 2))
        heights = ((locations[near, None] - self.points[index]) * self.normals[index]).sum(axis=2)
        height[near], weight[near] = (weights * heights).sum(axis=1), weights.sum(axis=1)
        return height, weight
