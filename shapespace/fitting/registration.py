"""Registration: the posed template of an articulated body is brought onto the surface of its field.

The displacement of the vertices is a Gaussian field on the template (Matérn covariance by a sparse precision: Lindgren,
Rue & Lindström, JRSS B 73, 2011), of which the signed distance measures the part along the normals. A step along the
gradient alone would leave the vertices where they are along the surface, and crumple it where the field is wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix, csc_matrix, diags_array
from scipy.sparse.linalg import SuperLU, splu
from torch import Tensor
from torch.nn import functional

from shapespace.geometry.proximity import area_vectors
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.code import Code
from shapespace.nn.part_mlp import PartStates

FieldWithGradient = Callable[[Float[Tensor, "q 3"]], tuple[Float[Tensor, "q"], Float[Tensor, "q 3"]]]
"""Signed distance and its gradient at points, in model units."""

MIN_COTANGENT, MAX_COTANGENT = 0.02, 20.0  # of the triangles: obtuse ones would have negative weights
MIN_AREA = 0.05  # of a vertex, over the mean: degenerate triangles have none
MIN_SLOPE = 0.3  # of a field that is a distance


@dataclass(frozen=True)
class RegistrationOptions:
    """Settings of the registration. Lengths are in model units."""

    displacement_std: float = 0.004
    """Standard deviation of the displacements from the posed template (per axis)."""
    correlation_length: float = 0.3
    """Distance along the template at which two displacements have a correlation of 0.1."""
    noise_std: float = 0.0025
    """Standard deviation of the error of the field on a patch."""
    patch_size: float = 0.03
    """Edge of a square patch of the surface on which the field has one error."""
    max_distance: float = 0.012
    """Distance of a vertex from the surface at which its weight is a quarter."""
    max_last_step: float = 0.004
    """The same for the last step, along the normals."""
    rounds: int = 2
    """Number of linearizations of the field."""
    iterations: int = 8
    """Number of steps of conjugate gradients in each round."""
    share: float = 0.125
    """Share of the vertices at which the field is evaluated in each round."""


class Registration:
    """Displacements of one template, with the factorized matrix of their prior; for any number of bodies."""

    def __init__(
        self,
        vertices: Float[Tensor, "v 3"],
        faces: Int[Tensor, "f 3"],
        options: RegistrationOptions | None = None,
    ) -> None:
        """Prepare a template (at rest, model units).

        Raises:
            ValueError: The template has no faces.

        """
        if not len(faces):
            raise ValueError(
                "registration: the model has no template mesh. Train it on a dataset with registrations, or start "
                "from a space that has parts: --init-from SPACE."
            )
        self.options = options or RegistrationOptions()
        self.faces = faces.long().cpu()
        self.stiffness, self.area = laplacian(vertices.double().cpu().numpy(), self.faces.numpy())
        root = self.precision_root_of(self.options.displacement_std, self.options.correlation_length)
        self.precision = csc_matrix(root @ root.T)
        count = max(1, round(self.options.share * len(vertices)))
        self.sample = np.sort(np.random.default_rng(0).permutation(len(vertices))[:count])
        weight = self.area / (self.options.patch_size * self.options.noise_std) ** 2
        self.weight = weight[self.sample] * (weight.sum() / weight[self.sample].sum())
        # A third of the data's weight is the mean of (normal . direction)^2 over all directions.
        self.preconditioner = factorize(self.precision + diags_array(weight / 3))

    def precision_root_of(self, std: float, correlation_length: float) -> csc_matrix:
        """`matern_root` on this template."""
        return matern_root(self.stiffness, self.area, std, correlation_length)

    def __call__(self, field: FieldWithGradient, start: Float[Tensor, "v 3"]) -> Float[Tensor, "v 3"]:
        """Vertices on the zero level set of a field, from the posed template."""
        displacement = np.zeros(start.shape)
        moved, sample = start, torch.from_numpy(self.sample).to(start.device)
        for _ in range(self.options.rounds):
            normal, distance, trust = self._measure(field, moved, sample, self.options.max_distance)
            displacement = self._solve(displacement, normal, distance, trust * self.weight)
            moved = start + torch.from_numpy(displacement).to(start)
        every = torch.arange(len(start), device=start.device)
        normal, distance, trust = self._measure(field, moved, every, self.options.max_last_step)
        return moved - torch.from_numpy((trust * distance)[:, None] * normal).to(start)

    def _measure(
        self, field: FieldWithGradient, vertices: Float[Tensor, "v 3"], sample: Int[Tensor, "m"], max_distance: float
    ) -> tuple[Float[np.ndarray, "m 3"], Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
        """Unit gradient of the field at sampled vertices, distance to its surface, and trust (0 to 1) in both.

        Far surfaces are ignored as by the function of Geman & McClure (Bull. ISI 52, 1987).
        Within closed lips or an armpit the nearest surface can be another one, which faces another way: the gradient
        must agree with the normal of the mesh.
        """
        value, gradient = field(vertices[sample])
        slope = gradient.norm(dim=1)
        unit = gradient / slope.clamp(min=MIN_SLOPE)[:, None]
        distance = value / slope.clamp(min=MIN_SLOPE)
        agreement = (unit * vertex_normals(vertices, self.faces.to(vertices.device))[sample]).sum(dim=1)
        trust = (1 + (distance / max_distance).square()).pow(-2) * agreement.clamp(min=0).square()
        return unit.double().cpu().numpy(), distance.double().cpu().numpy(), trust.double().cpu().numpy()

    def _solve(
        self,
        start: Float[np.ndarray, "v 3"],
        normal: Float[np.ndarray, "m 3"],
        distance: Float[np.ndarray, "m"],
        weight: Float[np.ndarray, "m"],
    ) -> Float[np.ndarray, "v 3"]:
        """Displacement d of least sum w (n . (d - start) + distance)^2 + d . precision d, by conjugate gradients."""
        sample, x = self.sample, start.copy()

        def product(d: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "v 3"]:
            result = np.asarray(self.precision @ d)
            result[sample] += (weight * (normal * d[sample]).sum(axis=1))[:, None] * normal
            return result

        residual = -np.asarray(self.precision @ start)
        residual[sample] -= (weight * distance)[:, None] * normal
        direction, previous = np.zeros_like(start), 1.0
        for _ in range(self.options.iterations):
            preconditioned = self.preconditioner.solve(residual)
            energy = float((residual * preconditioned).sum())
            if energy <= 0:  # solved
                break
            direction = preconditioned + (energy / previous) * direction
            previous, image = energy, product(direction)
            step = energy / float((direction * image).sum())
            x += step * direction
            residual -= step * image
        return x


def registration_of(model: ArticulatedSDF) -> Registration:
    """The registration of a model's template; `ValueError` if it has none."""
    return Registration(model.template.vertices, model.template.faces)


@torch.no_grad()
def register(model: ArticulatedSDF, code: Code, registration: Registration | None = None) -> Float[Tensor, "b v 3"]:
    """Registered vertices (model units) of the bodies of a code, in the order of the template.

    `registration` is that of the model's template, if several calls share one.

    Raises:
        ValueError: The model has no template mesh.

    """
    registration = registration or registration_of(model)
    states = model.states(code)
    posed = model.template(states)

    def one(row: int) -> Float[Tensor, "v 3"]:
        body = PartStates(*(tensor[row : row + 1] for tensor in states))

        def field(points: Float[Tensor, "q 3"]) -> tuple[Float[Tensor, "q"], Float[Tensor, "q 3"]]:
            value, gradient = model.decoder.value_and_gradient(points[None], body)
            return value[0], gradient[0]

        return registration(field, posed[row])

    return torch.stack([one(row) for row in range(len(posed))])


def laplacian(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> tuple[csc_matrix, Float[np.ndarray, "v"]]:
    """Cotangent stiffness matrix (v, v), positive semidefinite, and area of each vertex.

    Pinkall & Polthier, Experimental Mathematics 2, 1993, with cotangents from `MIN_COTANGENT` to `MAX_COTANGENT`.
    """
    double_area = np.linalg.norm(area_vectors(vertices, faces), axis=1)
    rows, columns, weights = [], [], []
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        i, j, apex = faces[:, a], faces[:, b], vertices[faces[:, c]]
        cosine = ((vertices[i] - apex) * (vertices[j] - apex)).sum(axis=1)
        cotangent = np.clip(cosine / np.maximum(double_area, 1e-12), MIN_COTANGENT, MAX_COTANGENT)
        rows.append(i)
        columns.append(j)
        weights.append(cotangent / 2)
    shape = (len(vertices), len(vertices))
    adjacency = coo_matrix((np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), shape)
    adjacency = (adjacency + adjacency.T).tocsc()
    area = np.bincount(faces.ravel(), np.repeat(double_area / 6, 3), minlength=len(vertices))
    stiffness = diags_array(np.asarray(adjacency.sum(axis=1)).ravel()) - adjacency
    return csc_matrix(stiffness), np.maximum(area, MIN_AREA * area.mean())


def matern_root(
    stiffness: csc_matrix, area: Float[np.ndarray, "v"], std: float, correlation_length: float
) -> csc_matrix:
    """Sparse root R of the precision R R^T of a Gaussian field on a mesh with this standard deviation.

    Its covariance is Matérn's with smoothness 1 (far from borders): Lindgren et al. 2011, sections 2.1 and 2.3.
    """
    kappa = np.sqrt(8) / correlation_length
    operator = diags_array(kappa**2 * area) + stiffness
    scale = 1 / (4 * np.pi * kappa**2 * std**2)
    return csc_matrix(operator.T @ diags_array(np.sqrt(scale / area)))


def factorize(matrix: csc_matrix) -> SuperLU:
    """Factors of a sparse, symmetric, positive definite matrix."""
    return splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})


def vertex_normals(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "v 3"]:
    """Unit normal of each vertex: the mean of those of its faces, by area."""
    corners = vertices[faces]
    cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = torch.zeros_like(vertices).index_add_(0, faces.flatten(), cross.repeat_interleave(3, dim=0))
    return functional.normalize(total, dim=1)
