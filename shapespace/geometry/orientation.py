"""Check the normals, faces and sensors of a scan before they are used, and repair what contradicts the points.

A quick look at a sample of the points: do the normals agree with the lines of least variance, with their neighbors, and
with the convexity of a body (most points are beyond the mean of their neighbors, seen along an outward normal)? Only
scans that fail are judged by visibility (`normals.orient_outward`). Every repair is a finding (`geometry.findings`).
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from shapespace.geometry import normals as estimation
from shapespace.geometry.findings import Finding
from shapespace.geometry.scan import Scan

# Ranges in brackets: 48 synthetic people by six kinds of scanners, 2,000 points; whole, one side, two sides, the upper
# half, and with 10 and 20 mm of noise.
SAMPLE = 2000
VOTE_SAMPLE = 20_000  # points whose sides are judged by visibility, if the quick look fails
FEW_POINTS = 1000  # points: fewer are too far apart for the bounds of neighbors below
MIN_POINTS = 100
MIN_LINE = 0.7  # median |cosine| to the estimated line (0.76 to 0.99; 400 points 0.86; random vectors 0.52)
MIN_LINE_FEW = 0.56  # the same for few points (150 points: 0.61)
MIN_NEIGHBORS = 0.93  # share of neighbors on the same side (0.95 to 1; 20 mm noise 0.89; 5 % wrong signs 0.87 to 0.91)
MIN_NEIGHBORS_NOISY = 0.86  # the same where nothing else tells the side
MIN_NEIGHBORS_FEW = 0.68  # the same for few points (400 points: 0.85, 150: 0.69; random signs 0.5)
MIN_CONVEX = 0.72  # share of convex points (0.76 to 0.97; outward to one direction 0.39 to 0.61)
MAX_CONCAVE_REGION = (
    0.045  # share of points in mostly concave regions (whole 0.03, part 0.07, one side 0.16; it is judged)
)
MIN_CONVEX_FACES = 0.55  # share of convex points of faces that agree with their neighbors
MAX_INCONSISTENT = 0.01  # share of edges between faces of different sides
MAX_CONCAVE_REGION_INWARD = 0.2  # the same of inward normals, once they are turned
MIN_AGREEMENT = 0.945  # share of signs that agree with visibility (5,000 points and more: 0.98 to 1, of a part 0.95)
MIN_AGREEMENT_FEW = 0.93  # the same for fewer points (2,000: 0.95 to 1), and of vertex normals with faces
MANY_POINTS = 5000
MIN_FACING = 0.9  # share of normals that face their sensor (clean: 1)


class Look(NamedTuple):
    """Agreement of normals with the points, as shares from 0 to 1."""

    line: float
    neighbors: float
    convex: float
    concave_region: float
    few: bool

    @property
    def are_lines(self) -> bool:
        """Whether the normals are along the estimated ones, in either direction."""
        return self.line > (MIN_LINE_FEW if self.few else MIN_LINE)

    @property
    def is_consistent(self) -> bool:
        """Whether neighbors are on the same side."""
        return self.neighbors > (MIN_NEIGHBORS_FEW if self.few else MIN_NEIGHBORS)

    @property
    def is_outward(self) -> bool:
        """Whether nearly all point out of a body."""
        return self.is_consistent and self.convex > MIN_CONVEX and self.concave_region < MAX_CONCAVE_REGION

    @property
    def is_inward(self) -> bool:
        """Whether nearly all point into a body."""
        concave = 1 - self.concave_region
        return self.is_consistent and self.convex < 1 - MIN_CONVEX and concave < MAX_CONCAVE_REGION_INWARD


def look(points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]) -> Look:
    """Compare unit normals with the points around them; at least `MIN_POINTS` points."""
    wide, axes = points.astype(np.float64), normals.astype(np.float64)
    count = min(estimation.CURVATURE_NEIGHBORS, len(wide))
    index = np.asarray(cKDTree(wide).query(wide, k=count)[1])
    near = wide[index[:, : estimation.NEIGHBORS]]
    near -= near.mean(axis=1, keepdims=True)
    lines = np.linalg.eigh(np.einsum("nka,nkb->nab", near, near))[1][:, :, 0]
    same = np.einsum("nkd,nd->nk", axes[index[:, 1:7]], axes) > 0
    convex = ((wide - wide[index].mean(axis=1)) * axes).sum(axis=1) > 0
    return Look(
        float(np.median(np.abs((lines * axes).sum(axis=1)))),
        float(same.mean()),
        float(convex.mean()),
        float((convex[index].mean(axis=1) < 0.5).mean()),
        len(wide) < FEW_POINTS,
    )


def check_orientation(scan: Scan, *, seed: int = 0) -> Scan:
    """The scan (meters or model units) with faces, normals and sensors that agree with its points, and findings.

    Faces and normals that point inward are turned. Normals whose signs are mixed are used as lines and oriented anew;
    normals that are not perpendicular to the surface are dropped. Sensors that a share of the surface does not face are
    dropped. A scan of fewer than 100 points, or without any of these, is returned as it is.
    """
    if len(scan) < MIN_POINTS or estimation.is_flat(scan.points):
        return scan
    if scan.faces is not None:
        scan = _check_faces(scan, seed)
    elif scan.normals is not None:
        scan = _check_normals(scan, seed)
    return _check_sensors(scan, seed)


def _check_faces(scan: Scan, seed: int) -> Scan:
    if scan.normals is not None:
        scan = _check_vertex_normals(scan, seed)
    bare = replace(scan, normals=None)
    sample = bare.sample(SAMPLE, np.random.default_rng(seed))
    assert sample.normals is not None  # those of the faces
    seen = look(sample.points, sample.normals)
    if seen.is_outward:
        return scan
    assert scan.faces is not None
    if seen.is_inward:
        turned = replace(scan, faces=np.ascontiguousarray(scan.faces[:, ::-1]))
        share = {"share": round(1 - seen.convex, 3)}
        return turned.with_findings(Finding("faces-turned", share))
    if seen.convex > MIN_CONVEX_FACES and _inconsistent_edges(scan.faces) < MAX_INCONSISTENT:
        return scan  # surfaces inside a body (eyes, layers of clothes, parts that overlap) are not seen
    points = bare.sample(VOTE_SAMPLE, np.random.default_rng(seed))
    oriented = _orient(points, seen)
    if oriented is points:
        return scan
    return replace(oriented, findings=(*scan.findings, Finding("faces-oriented", _share(points, oriented))))


def _inconsistent_edges(faces: Int[np.ndarray, "m 3"]) -> float:
    """Share of the edges that two faces have in the same direction: neighbors of different sides."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64)
    keys = np.sort(edges[:, 0] * (int(edges.max()) + 1) + edges[:, 1])
    return float((keys[1:] == keys[:-1]).mean())


def _check_vertex_normals(scan: Scan, seed: int) -> Scan:
    """Drop vertex normals that disagree with the faces, which alone are used then."""
    rng = np.random.default_rng(seed)
    of_faces = replace(scan, normals=None).sample(SAMPLE, rng)
    of_vertices = scan.sample(SAMPLE, np.random.default_rng(seed))
    assert of_faces.normals is not None
    assert of_vertices.normals is not None
    agree = float(((of_faces.normals * of_vertices.normals).sum(axis=1) > 0).mean())
    if agree > MIN_AGREEMENT_FEW:
        return scan
    found = Finding("normals-ignored", {"share": round(1 - agree, 3)})
    return replace(scan, normals=None).with_findings(found)


def _check_normals(scan: Scan, seed: int) -> Scan:
    sample = scan.sample(SAMPLE, np.random.default_rng(seed))
    assert scan.normals is not None
    assert sample.normals is not None
    seen = look(sample.points, sample.normals)
    if not seen.are_lines:
        found = Finding("normals-disagree", {"angle": round(float(np.rad2deg(np.arccos(min(seen.line, 1.0)))))})
        return replace(scan, normals=None).with_findings(found)
    if seen.is_outward:
        return scan
    if seen.is_inward:
        found = Finding("normals-turned", {"share": round(1 - seen.convex, 3)})
        return replace(scan, normals=-scan.normals).with_findings(found)
    oriented = _orient(scan, seen)
    if oriented is scan:
        return scan
    if oriented.normals is None:
        return oriented.with_findings(Finding("normals-unoriented"))
    return oriented.with_findings(Finding("normals-oriented", _share(scan, oriented)))


def _orient(scan: Scan, seen: Look) -> Scan:
    """Orient the normals of points of doubtful sign by sensors, by visibility or by the one camera that saw them.

    The scan itself if they turn out right; with unoriented normals if nothing tells the outside.
    """
    assert scan.normals is not None
    if scan.sensors is not None:
        oriented = estimation.orient_towards(scan.normals, scan.sensors - scan.points)
        return _chosen(scan, oriented)
    rng = np.random.default_rng(0)
    sample = scan.sample(VOTE_SAMPLE, rng) if len(scan) > VOTE_SAMPLE else scan
    assert sample.normals is not None
    outward = estimation.orient_outward(sample.points, sample.normals)
    if outward.is_complete:
        nearest = cKDTree(sample.points).query(scan.points)[1]
        return _chosen(scan, estimation.orient_towards(scan.normals, outward.normals[nearest]))
    few = scan.sample(SAMPLE, rng)
    assert few.normals is not None
    direction = estimation.single_view_direction(few.points, few.normals)
    if direction is not None:
        return _chosen(scan, estimation.orient_towards(scan.normals, np.broadcast_to(direction, scan.normals.shape)))
    if seen.neighbors > MIN_NEIGHBORS_NOISY and seen.convex > MIN_CONVEX:
        return scan
    return replace(scan, normals=None, unoriented_normals=scan.normals)


def _chosen(scan: Scan, oriented: Float[np.ndarray, "n 3"]) -> Scan:
    """The scan with these normals, unless its own are nearly the same."""
    least = MIN_AGREEMENT if len(scan) >= MANY_POINTS else MIN_AGREEMENT_FEW
    return scan if _agrees(scan, oriented).mean() > least else replace(scan, normals=oriented)


def _agrees(scan: Scan, oriented: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, "n"]:
    assert scan.normals is not None
    return np.asarray((scan.normals * oriented).sum(axis=1) > 0)


def _share(scan: Scan, oriented: Scan) -> dict[str, float]:
    """Share of the normals that were turned."""
    if oriented.normals is None:
        return {"share": 1.0}
    return {"share": round(float(1 - _agrees(scan, oriented.normals).mean()), 3)}


def _check_sensors(scan: Scan, seed: int) -> Scan:
    """Drop sensors that cannot have measured the points: the surface faces away, or its sides contradict each other."""
    if scan.sensors is None:
        return scan
    sample = scan.sample(SAMPLE, np.random.default_rng(seed))
    towards = sample.sensors - sample.points if sample.sensors is not None else sample.points
    if sample.normals is not None:
        facing = float(((sample.normals * towards).sum(axis=1) > 0).mean())
        is_right = facing > MIN_FACING
    else:
        seen = look(sample.points, estimation.orient_towards(estimation.estimate(sample.points), towards))
        facing, is_right = seen.convex, seen.is_outward
    if is_right:
        return scan
    found = Finding("sensors-dropped", {"share": round(1 - facing, 3)})
    return replace(scan, sensors=None).with_findings(found)
