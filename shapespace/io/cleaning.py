"""Remove what is no measurement: missing values, placeholders, single points far away; each removal is a finding."""

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from shapespace.geometry.findings import Finding
from shapespace.geometry.scan import MIN_POINTS
from shapespace.io.raw_scan import RawScan

# Arbitrary values:
_SAMPLE = 100_000  # points from which the size of a scan is computed
_MIN_ZEROS = 3  # points at (0, 0, 0): two may be one point, measured twice
_MIN_REPEATED = 20  # equal points elsewhere,
_MIN_REPEATED_SHARE = 0.005  # of all points,
_REPEATED_RATIO = 4  # this many times as often as any other point
_MAX_LEVELS = 4  # of a confidence: phones have low, medium and high
_LOW_CONFIDENCE = 0.5  # of the median: less is low, where there are more values than levels
_MAX_LOW_SHARE = 0.5  # of the points of low confidence: more are all that there is
_FAR = 3.0  # sizes of the scan: a point is far from the others beyond this,
_LONG_EDGE = 0.3  # or if all its edges are longer than this (sizes of the scan)
_LONG_EDGE_RATIO = 30  # and than this many median edges;
_MAX_FAR_SHARE = 0.002  # at most this share of the points: more are a part of the scene
_MAX_WITHOUT_NORMAL = 0.05  # share of normals of length zero (or NaN) that are dropped with their points


def clean(raw: RawScan) -> RawScan:
    """The scan without rows that are no measurement, with findings; contents of a wrong shape are not changed."""
    points = np.asarray(raw.points)
    if points.dtype.kind not in "fiu" or points.ndim != 2 or points.shape[1:] != (3,) or not len(points):
        return raw
    faces = _valid_faces(raw.faces, len(points))
    if faces is None and np.size([] if raw.faces is None else raw.faces):
        return raw  # check_faces refuses them
    raw = replace(raw, points=points, faces=faces)
    if faces is None:
        for step in (
            _drop_unmeasured,
            _drop_zeros,
            _drop_repeated,
            _drop_low_confidence,
            _drop_far_points,
            _drop_without_normal,
        ):
            raw = step(raw) if len(raw.points) else raw
        return raw
    for step in (_drop_invalid_vertices, _drop_unused_vertices, _drop_far_vertices):
        raw = step(raw) if len(raw.faces) else raw
    return raw


def measured_size(points: Float[np.ndarray, "n 3"]) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Low and high corner of the box of all but the outermost 1 % of the points, from a sample of them."""
    sample = points[:: max(len(points) // _SAMPLE, 1)]
    low, high = np.percentile(sample, [1, 99], axis=0)
    return low, high


def _valid_faces(values: Any, count: int) -> Int[np.ndarray, "m k"] | None:
    """Triangles or quads whose vertices exist; None if there are none or they are refused later."""
    faces = np.asarray([] if values is None else values)
    if not faces.size or faces.dtype.kind not in "iu" or faces.ndim != 2 or faces.shape[1] not in (3, 4):
        return None
    return faces if faces.min() >= 0 and faces.max() < count else None


def _keep(raw: RawScan, kept: Bool[np.ndarray, "n"], code: str, **values: Any) -> RawScan:
    """Only the rows `kept`, and the faces that have only these, with a finding."""

    def select(rows: Any) -> Any:
        return np.asarray(rows)[kept] if np.shape(rows)[:1] == kept.shape else rows  # refused by check_rows

    faces = raw.faces
    if faces is not None:
        whole = kept[faces].all(axis=1)
        values |= {"faces": int((~whole).sum())} if code != "unused-vertices-dropped" else {}
        faces = (np.cumsum(kept) - 1)[faces[whole]]
    found = Finding(code, {"count": int((~kept).sum()), "total": len(kept), **values})
    rows = {name: select(getattr(raw, name)) for name in ("points", "normals", "sensors", "quality", "confidence")}
    return replace(raw, faces=faces, findings=(*raw.findings, found), **rows)


def _drop_unmeasured(raw: RawScan) -> RawScan:
    """Rows with a coordinate that is NaN or infinite: cameras and robots mark missing measurements so."""
    measured = np.isfinite(raw.points).all(axis=1)
    if measured.all() or (not measured.any() and np.isinf(raw.points).any()):  # check_rows refuses the latter
        return raw
    return _keep(raw, measured, "unmeasured-points-dropped")


def _drop_zeros(raw: RawScan) -> RawScan:
    zero = ~raw.points.any(axis=1)
    count = int(zero.sum())
    if count < _MIN_ZEROS or count == len(zero):
        return raw
    others = _most_frequent(raw.points[~zero])[1]
    if others > 1 and count < _REPEATED_RATIO * others:
        return raw
    return _keep(raw, ~zero, "zero-points-dropped")


def _drop_repeated(raw: RawScan) -> RawScan:
    """One point that is much more frequent than all others: zeros of a camera, moved with the other points."""
    least = max(_MIN_REPEATED, _MIN_REPEATED_SHARE * len(raw.points))
    if len(raw.points) < least:
        return raw
    point, count = _most_frequent(raw.points)
    if count < least:
        return raw
    same = (raw.points == point).all(axis=1)
    if same.all() or int(same.sum()) < _REPEATED_RATIO * _most_frequent(raw.points[~same])[1]:
        return raw
    shown = "(" + ", ".join(f"{value:.6g}" for value in point.tolist()) + ")"
    return _keep(raw, ~same, "repeated-points-dropped", point=shown)


def _drop_low_confidence(raw: RawScan) -> RawScan:
    """The points of the lowest of a few levels of confidence, or of far less than the median; not most of a scan."""
    values = np.asarray([] if raw.confidence is None else raw.confidence).reshape(-1)
    if len(values) != len(raw.points) or values.dtype.kind not in "fiub":
        return raw
    values = values.astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0:
        return raw
    level, median = float(values.min()), float(np.median(values))
    if len(np.unique(values)) > _MAX_LEVELS:
        level = _LOW_CONFIDENCE * median
    low = values <= level
    if not low.any() or low.mean() > _MAX_LOW_SHARE:
        return raw
    shown = {"level": round(level, 4), "median": round(median, 4)}
    return _keep(raw, ~low, "low-confidence-points-dropped", **shown)


def _most_frequent(points: Float[np.ndarray, "n 3"]) -> tuple[Float[np.ndarray, "3"], int]:
    """The most frequent row, and how often it occurs; rows are compared by a hash of their bits."""
    bits = np.ascontiguousarray(points, dtype=np.float64).view(np.uint64)
    mixed = bits[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ bits[:, 1] * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed = mixed * np.uint64(0xFF51AFD7ED558CCD) ^ bits[:, 2] * np.uint64(0x165667B19E3779F9)
    order = np.sort(mixed)
    starts = np.flatnonzero(np.concatenate([[True], order[1:] != order[:-1]]))
    counts = np.diff(starts, append=len(order))
    most = int(counts.argmax())
    return points[int((mixed == order[starts[most]]).argmax())], int(counts[most])


def _drop_far_points(raw: RawScan) -> RawScan:
    far, distance = _is_far(raw.points)
    return _keep(raw, ~far, "far-points-dropped", distance=distance, faces=0) if far.any() else raw


def _is_far(points: Float[np.ndarray, "n 3"]) -> tuple[Bool[np.ndarray, "n"], float]:
    """Mask of single points that are sizes away from all others, and the distance of the farthest."""
    none = np.zeros(len(points), dtype=np.bool_), 0.0
    if not np.isfinite(points).all():
        return none
    low, high = measured_size(points)
    with np.errstate(over="ignore"):
        size, beyond = float((high - low).max()), np.maximum(low - points, points - high).max(axis=1)
    far = beyond > _FAR * size
    if not 0 < size < np.inf or not far.any() or far.sum() > max(3, _MAX_FAR_SHARE * len(points)):
        return none
    return far, float(beyond[far].max())


def _drop_without_normal(raw: RawScan) -> RawScan:
    """Points whose normal has length zero or is NaN, if they are few; otherwise the normals are no normals."""
    normals = np.asarray(raw.normals) if raw.normals is not None else np.zeros(0)
    if normals.shape != raw.points.shape or normals.dtype.kind not in "fiu":
        return raw
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(normals.astype(np.float64), axis=1)
    short = ~((lengths >= 1e-6) & (lengths < np.inf))
    if not short.any():
        return raw
    if short.mean() <= _MAX_WITHOUT_NORMAL:
        return _keep(raw, ~short, "points-without-normals-dropped")
    found = Finding("normals-dropped", {"count": int(short.sum()), "total": len(short)})
    return replace(raw, normals=None, findings=(*raw.findings, found))


def _drop_invalid_vertices(raw: RawScan) -> RawScan:
    finite = np.isfinite(raw.points).all(axis=1)
    if finite.all() or not finite.any():
        return raw
    return _keep(raw, finite, "invalid-vertices-dropped", first=int(np.flatnonzero(~finite)[0]))


def _drop_unused_vertices(raw: RawScan) -> RawScan:
    """Vertices of no face, if they are outside of the box of the others: inside they change nothing."""
    used = np.zeros(len(raw.points), dtype=np.bool_)
    used[raw.faces] = True
    if used.sum() < MIN_POINTS:
        return raw
    low, high = raw.points[used].min(axis=0), raw.points[used].max(axis=0)
    outside = ~used & ((raw.points < low) | (raw.points > high)).any(axis=1)
    return _keep(raw, used, "unused-vertices-dropped") if outside.any() else raw


def _drop_far_vertices(raw: RawScan) -> RawScan:
    """Single vertices far from the others, or at the end of long edges only: spikes."""
    if not np.isfinite(raw.points).all():
        return raw
    far, distance = _is_far(raw.points)
    low, high = measured_size(raw.points)
    with np.errstate(over="ignore", invalid="ignore"):
        size = float((high - low).max())
        ends = np.stack([raw.faces, np.roll(raw.faces, -1, axis=1)], axis=-1).reshape(-1, 2)
        lengths = np.linalg.norm(raw.points[ends[:, 0]].astype(np.float64) - raw.points[ends[:, 1]], axis=1)
    shortest = np.full(len(raw.points), np.inf)
    np.minimum.at(shortest, ends.reshape(-1), np.repeat(lengths, 2))
    typical = float(np.median(lengths))
    spike = np.isfinite(shortest) & (shortest > max(_LONG_EDGE * size, _LONG_EDGE_RATIO * typical))
    if typical > 0 and 0 < spike.sum() <= max(3, _MAX_FAR_SHARE * len(spike)):
        far, distance = far | spike, max(distance, float(shortest[spike].max()))
    return _keep(raw, ~far, "far-points-dropped", distance=distance) if far.any() else raw
