"""What every family can do."""

import hashlib
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from trimesh import Trimesh

from shapespace.data.loader import Batch
from shapespace.geometry.isosurface import isosurface, isosurface_by_sign
from shapespace.models.code import Code
from shapespace.nn.latent import GaussianPrior
from shapespace.nn.losses import Scalar
from shapespace.nn.mlp import Linearization


class ShapeModel(nn.Module, ABC):
    """A shape space: encodes scans to codes, and turns codes into surfaces. Works in the model frame."""

    prior: GaussianPrior | None  # of the training codes, where these are vectors

    @abstractmethod
    def encode(self, batch: Batch) -> Code:
        """Codes of a batch of scans, in one forward pass."""

    @abstractmethod
    def loss_terms(self, batch: Batch, code: Code) -> dict[str, Scalar]:
        """The unweighted terms of the loss; training and fitting use the same."""

    @abstractmethod
    def extract_surface(self, code: Code, *, resolution: int = 128) -> list[Trimesh]:
        """One mesh for each code, outward, in the model frame."""

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with any weight: codes belong to one model."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


class FieldModel(ShapeModel):
    """A family whose shape is a level set: the surface is `field == level`, inside is below."""

    level: float = 0.0
    is_sdf: bool = True  # the field changes by about 1 per unit, so that it tells where no surface is

    @abstractmethod
    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        """The field at model points; negative inside."""

    @torch.no_grad()
    def extract_surface(self, code: Code, *, resolution: int = 128) -> list[Trimesh]:
        """One mesh for each code, by sparse marching cubes in [-1, 1]^3 of `resolution` cells along an edge."""
        device, mesher = code.parts[0].device, isosurface if self.is_sdf else isosurface_by_sign

        def mesh(one: Code) -> Trimesh:
            return mesher(
                lambda x: self.field(x.to(device)[None], one)[0],
                resolution=resolution,
                level=self.level,
            )

        return [mesh(code[index]) for index in range(len(code))]


class SDFModel(FieldModel):
    """A field that is a signed distance in model units, of one vector: its code can be fitted by second order."""

    prior: GaussianPrior

    @abstractmethod
    def linearize(self, x: Float[Tensor, "b q 3"], code: Code) -> Linearization:
        """The field, its gradient in x and its Jacobian in the flat code; no graph."""
