"""Third level of a fit: the registered template is moved along its normals onto the points of the scan.

The parts have too few numbers for folds of clothes, hair and whatever no training person has. The displacement is a
Gaussian field on the template (see `registration`) that is measured by the distances of points to tangent planes (Chen
& Medioni, Image and Vision Computing 10, 1992). It falls to zero where the scan ends.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_array, diags_array
from torch import Tensor
from trimesh import Trimesh

from shapespace.fitting.articulated import fit_parts_of
from shapespace.fitting.levenberg_marquardt import DisplacementOptions, LMOptions
from shapespace.fitting.registration import Registration, factorize, register
from shapespace.fitting.residuals import estimate_normals, orient_normals
from shapespace.geometry import proximity
from shapespace.geometry.scan import Scan
from shapespace.geometry.statistics import weighted_percentiles
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.code import Code
from shapespace.nn.parallel import parallel_map

MAD_TO_STD = 1.4826  # of a Gaussian: standard deviation over the median of the absolute values
DRAWS = 32  # of the posterior, for its variance: within an eighth


class Displacement(NamedTuple):
    """Displacements of the vertices of registered templates along their normals, in model units."""

    value: Float[Tensor, "*b v"]
    unseen: Float[Tensor, "*b v"]
    """Share of the prior variance of each displacement that the scan leaves, 0 to 1."""

    def select(self, row: int) -> "Displacement":
        """Those of one body, without the dimension of the batch."""
        return Displacement(self.value[row], self.unseen[row])

    @classmethod
    def concatenate(cls, parts: "Sequence[Displacement]") -> "Displacement":
        """Those of several batches."""
        return cls(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class LocalFit(NamedTuple):
    """Result of the levels after the first: codes with the states of the parts, and the displacements of the third."""

    code: Code
    part_covariance: Float[Tensor, "b k p p"]
    displacement: Displacement | None


def fit_local_levels(
    model: ArticulatedSDF,
    scans: Sequence[Scan],
    code: Code,
    registration: Registration | None,
    options: LMOptions,
    seed: int,
) -> LocalFit:
    """The second level of fits, and the third if `options` and a template (`registration`) allow.

    The scans are in the frames of the codes.
    """
    if options.levels < 3 or registration is None:
        return LocalFit(*fit_parts_of(model, scans, code, options, seed), None)
    code, part_covariance = fit_parts_of(model, scans, code, options.before_displacement(), seed)
    displacement = fit_displacements(model, scans, code, registration, options.displacement, seed)
    return LocalFit(code, part_covariance, displacement)


def fit_displacements(
    model: ArticulatedSDF,
    scans: Sequence[Scan],
    code: Code,
    registration: Registration,
    options: DisplacementOptions,
    seed: int,
) -> Displacement:
    """Displacements of registered templates onto their scans, which are in the frames of the codes."""

    def fit(row: int) -> tuple[Tensor, Tensor]:
        own = code[row]
        scan = estimate_normals(scans[row], seed).sample(options.num_points, np.random.default_rng(seed))
        scan = orient_normals(model, scan, own)
        (vertices,) = register(model, own, registration)
        value, unseen = fit_displacement(registration, vertices.double().cpu().numpy(), scan, options)
        return torch.from_numpy(value).float(), torch.from_numpy(unseen).float()

    with torch.no_grad():
        found = parallel_map(fit, range(len(scans)))
    return Displacement(*(torch.stack(tensors) for tensors in zip(*found, strict=True)))


def fit_displacement(
    registration: Registration, vertices: Float[np.ndarray, "v 3"], scan: Scan, options: DisplacementOptions
) -> tuple[Float[np.ndarray, "v"], Float[np.ndarray, "v"]]:
    """Displacement d along the normals of least sum trust (J d - distance)^2 / noise^2 + d . precision d.

    Returns d, and the share of its prior variance that the scan leaves. The scan has oriented normals; each of its
    points is on the tangent plane of its closest point of the surface. The noise is that of the residuals of the round
    before, and not below that of the settings.
    """
    assert scan.normals is not None
    faces, points = registration.faces.numpy(), scan.points.astype(np.float64)
    root = registration.precision_root_of(options.std, options.correlation_length)
    normals = proximity.vertex_normals(vertices, faces)
    displacement, noise = np.zeros(len(vertices)), options.noise_std
    for _ in range(options.rounds):
        mesh = Trimesh(vertices + displacement[:, None] * normals, faces, process=False)
        length, face, closest = proximity.closest_point(points, mesh)
        corners = faces[face]
        weights = proximity.barycentric(closest, mesh.vertices[corners])
        direction = np.einsum("nk,nkd->nd", weights, normals[corners])
        direction /= np.linalg.norm(direction, axis=1, keepdims=True).clip(1e-12)
        agreement = (direction * scan.normals).sum(axis=1)
        trust = (1 + (length / options.max_distance) ** 2) ** -2 * agreement.clip(0) ** 2
        jacobian = _rows(weights * np.einsum("nkd,nd->nk", normals[corners], direction), corners, len(vertices))
        distance = ((points - closest) * direction).sum(axis=1) + jacobian @ displacement
        root_weight = np.sqrt(trust) / noise
        data_root = jacobian.T @ diags_array(root_weight)
        factors = factorize(root @ root.T + data_root @ data_root.T)
        displacement = factors.solve(data_root @ (root_weight * distance))
        residual = np.abs(distance - jacobian @ displacement)
        (median,) = weighted_percentiles(residual, trust, [50.0])
        noise = max(options.noise_std, MAD_TO_STD * float(median))
    # R e has the covariance of R R^T: the solutions for such right-hand sides are draws from the posterior.
    rng = np.random.default_rng(0)
    prior, data = (part @ rng.standard_normal((part.shape[1], DRAWS)) for part in (root, data_root))
    draws = factors.solve(prior + data)
    return displacement, (np.square(draws).mean(axis=1) / options.std**2).clip(max=1)


def displaced(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], displacement: Float[np.ndarray, "v"] | None
) -> Float[np.ndarray, "v 3"]:
    """Vertices moved along their normals; as they are for no displacement."""
    if displacement is None:
        return vertices
    return (vertices + displacement[:, None] * proximity.vertex_normals(vertices, faces)).astype(vertices.dtype)


def mix_displacements(
    a: Float[np.ndarray, "v"] | None, b: Float[np.ndarray, "v"] | None, share: float
) -> Float[np.ndarray, "v"] | None:
    """Displacements between those of two fits, of which a fit without any has zeros; None if both have none."""
    if a is None:
        return None if b is None else share * b
    return (1 - share) * a if b is None else (1 - share) * a + share * b


def _rows(weights: Float[np.ndarray, "n 3"], corners: Int[np.ndarray, "n 3"], size: int) -> csr_array:
    """Sparse matrix (n, size) with these weights of three columns in each row."""
    row = np.repeat(np.arange(len(weights)), 3)
    return coo_array((weights.ravel(), (row, corners.ravel())), (len(weights), size)).tocsr()
