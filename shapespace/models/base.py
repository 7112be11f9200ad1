"""Base classes of all models."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from trimesh import Trimesh

from shapespace.data.loader import Batch
from shapespace.data.store import ScanSource
from shapespace.geometry.isosurface import Balls, isosurface, isosurface_by_sign
from shapespace.models.code import Code
from shapespace.nn.latent import CodeTable, GaussianPrior
from shapespace.nn.losses import Scalar
from shapespace.nn.mlp import Linearization
from shapespace.nn.parallel import CHUNK_POINTS


@dataclass(frozen=True)
class ModelConfig:
    """Base class of the settings of a model; each family has its own in its file."""


class ShapeModel(nn.Module, ABC):
    """Encoder from scans to codes, and decoder from codes to surfaces, in the model frame."""

    prior: GaussianPrior | None  # over the training codes; None for codes that are grids
    chunk_points: int = CHUNK_POINTS  # points of a task in training on a CPU
    fit_chunk_points: int = CHUNK_POINTS  # points of a task in a fit on a CPU

    def initialize(self, store: ScanSource, names: Sequence[str]) -> None:
        """Set what is computed from the training scans before the first step; nothing for most families."""

    def finish(self, store: ScanSource, names: Sequence[str]) -> None:
        """Set what is computed from the training scans after the last step; nothing for most families."""

    def summarize(self, codes: Float[Tensor, "n k"]) -> None:
        """Set what is computed from the codes of the training scans: the prior."""
        if self.prior is not None:
            self.prior.fit(codes)

    @abstractmethod
    def encode(self, batch: Batch) -> Code:
        """Encode a batch of scans in one forward pass."""

    @abstractmethod
    def loss_terms(self, batch: Batch, code: Code) -> dict[str, Scalar]:
        """Unweighted loss terms by name; training and fitting use the same."""

    @abstractmethod
    def extract_surface(self, code: Code, *, resolution: int = 128) -> list[Trimesh]:
        """One mesh for each code, in the model frame, with outward faces."""

    @property
    def codes_parameter(self) -> nn.Parameter | None:
        """Free codes of the training scans (n, k); None for a model without a table of codes."""
        return next((module.codes for module in self.modules() if isinstance(module, CodeTable)), None)

    @property
    def code_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors of a code, without the batch axis; only the first one is always there.

        Empty for codes that are grids, whose sizes the settings determine.
        """
        return () if self.prior is None else (tuple(self.prior.mean.shape),)

    def replace_vector(self, code: Code, vector: Float[Tensor, "b k"]) -> Code:
        """The code with another code vector; for families with a prior."""
        return Code((vector.view(-1, *code.parts[0].shape[1:]),))

    def encoder_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the network that computes codes from points, by their names in the state dict.

        Free codes are not among them. Empty for a model that has free codes only.
        """
        encoder, codes = dict(self.named_children()).get("encoder", nn.Module()), self.codes_parameter
        return {name: p for name, p in encoder.named_parameters(prefix="encoder") if p is not codes}

    def fingerprint(self) -> str:
        """Hash of all weights and their names, as 16 hexadecimal digits; it ties stored codes to their model."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


class FieldModel(ShapeModel):
    """Model whose surface is a level set `field == level`; inside, the field is lower."""

    level: float = 0.0
    is_sdf: bool = True  # |gradient| is about 1, so a value bounds the distance to the surface

    @abstractmethod
    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        """Field at points of the model frame; lower than `level` inside."""

    def domain(self, code: Code) -> Balls | None:
        """Where the field of a code (a batch of one) is defined and its surface lies; None: the cube [-1, 1]^3."""
        return None

    @torch.no_grad()
    def extract_surface(self, code: Code, *, resolution: int = 128) -> list[Trimesh]:
        """One mesh for each code, by sparse marching cubes with `resolution` cells along each edge of [-1, 1]^3."""
        device = code.parts[0].device

        def mesh(one: Code) -> Trimesh:
            def field(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
                return self.field(x.to(device)[None], one)[0]

            if not self.is_sdf:
                return isosurface_by_sign(field, resolution=resolution, level=self.level)
            return isosurface(field, resolution=resolution, level=self.level, domain=self.domain(one))

        return [mesh(code[index]) for index in range(len(code))]


class SDFModel(FieldModel):
    """Signed distance field (model units) of a code vector; its codes are fitted by Levenberg-Marquardt."""

    prior: GaussianPrior

    @abstractmethod
    def linearize(self, x: Float[Tensor, "b q 3"], code: Code) -> Linearization:
        """Field, its gradient in x and its Jacobian in the flat code (no graph)."""
