"""Gaussian splats: centers of the splats that are opaque, in PLY (`shapespace.io.ply`) and `.splat`."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from shapespace.geometry.findings import Finding
from shapespace.io.errors import BadFileError
from shapespace.io.raw_scan import RawScan

MIN_OPACITY = 0.3  # arbitrary: fainter splats are haze in front of a surface, or behind it

_SPLAT = np.dtype([("center", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("rotation", "u1", 4)])


def splats_of_columns(scan: RawScan, opacity: Float[np.ndarray, "n"]) -> RawScan:
    """The splats of at least `MIN_OPACITY` as points; `opacity` is 0 to 1. Normals of splats are placeholders."""
    is_opaque = ~(opacity < MIN_OPACITY)
    values = {"count": int((~is_opaque).sum()), "total": len(opacity), "opacity": MIN_OPACITY}
    findings = (Finding("transparent-splats-dropped", values),) if values["count"] else ()
    return replace(scan, points=np.asarray(scan.points)[is_opaque], normals=None, findings=(*scan.findings, *findings))


def read_splat(path: Path) -> RawScan:
    """Rows of 32 bytes: center, scale, color with opacity, rotation."""
    size = path.stat().st_size
    if size % _SPLAT.itemsize:
        raise BadFileError(
            f"{path}: {size:,} bytes are no whole number of splats ({_SPLAT.itemsize} bytes each). Copy it again."
        )
    rows = np.fromfile(path, _SPLAT)
    return splats_of_columns(RawScan(rows["center"]), rows["color"][:, 3] / 255)
