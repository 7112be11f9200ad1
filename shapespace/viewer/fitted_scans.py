"""The scans of a viewer with their fits, which all visitors see."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import numpy as np
from trimesh import Trimesh

from shapespace.fitting.result import Fit
from shapespace.geometry.scan import Scan
from shapespace.interpolation import has_parts
from shapespace.io.errors import did_you_mean
from shapespace.space import ShapeSpace
from shapespace.viewer.body_parts import BodyParts

MAX_POINTS = 30_000  # points of a scan that are sent to the page: more make no visible difference


@dataclass(frozen=True)
class FittedScan:
    """A scan (meters) as it was fitted, its fit, and its ground truth if there is one."""

    scan: Scan
    fit: Fit
    ground_truth: Trimesh | None = None

    @cached_property
    def displayed(self) -> Scan:
        """At most `MAX_POINTS` points of the scan, with normals for shading (oriented or not)."""
        stride = -(-len(self.scan) // MAX_POINTS)
        return self.scan.select(np.arange(0, len(self.scan), stride)).estimate_normals()


class ScanCollection:
    """The scans that all visitors see; each is fitted on its first use, one at a time."""

    def __init__(
        self,
        space: ShapeSpace,
        scans: Sequence[Scan] = (),
        ground_truth: Callable[[str], Trimesh | None] = lambda name: None,
    ) -> None:
        self.space, self._scans, self._ground_truth = space, {scan.name: scan for scan in scans}, ground_truth
        self.parts = BodyParts(space.model) if has_parts(space.model) else None
        self._fitted: dict[str, FittedScan] = {}
        self._lock = Lock()

    @property
    def names(self) -> list[str]:
        """Names of the scans, in their order."""
        return list(self._scans)

    def fitted_scan(self, name: str) -> FittedScan:
        """The scan of that name with its fit.

        Raises:
            ValueError: There is no such scan, or it cannot be fitted.

        """
        if name not in self._scans:
            raise ValueError(f"there is no scan {name!r}. {did_you_mean(name, self.names)}")
        with self._lock:
            if name not in self._fitted:
                self._fitted[name] = self._fit(self._scans[name], self._ground_truth(name))
            return self._fitted[name]

    def is_fitted(self, name: str) -> bool:
        """Whether the scan of that name has been fitted."""
        return name in self._fitted

    def fit(self, scan: Scan) -> FittedScan:
        """Fit an uploaded scan, which only its visitor sees, after the fits that have begun."""
        with self._lock:
            return self._fit(scan)

    def _fit(self, scan: Scan, ground_truth: Trimesh | None = None) -> FittedScan:
        """As the command `fit` does: without floor, walls and separate parts."""
        (cleaned,) = self.space.remove_clutter([scan])
        (fit,) = self.space.fit_scans([cleaned])
        return FittedScan(cleaned, fit, ground_truth)
