"""Statistics of weighted values, such as errors over the area of a surface."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def weighted_percentiles(
    values: Float[np.ndarray, "v"], weights: Float[np.ndarray, "v"], percentages: Sequence[float]
) -> Float[np.ndarray, "p"]:
    """Least values at or below which this percentage of the weight is; NaN if a value is."""
    if np.isnan(values).any():
        return np.full(len(percentages), np.nan)
    order = values.argsort()
    share = weights[order].cumsum()
    places = np.searchsorted(share, np.asarray(percentages) / 100 * share[-1])
    return values[order[places.clip(max=len(values) - 1)]].astype(np.float64)
