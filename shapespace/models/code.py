"""Latent codes of a batch of shapes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Code:
    """Codes of a batch of shapes: one tensor, or several that share the batch axis (a grid, a pyramid).

    Some encoders add unweighted losses in training: `kl`, the KL divergence of each posterior from N(0, 1)
    (variational), and `distillation`, the squared distance of the encoder's code from the free one. They are
    fields because `training.objective.chunked_gradients` splits and differentiates them as it does the codes.
    """

    parts: tuple[Tensor, ...]
    kl: Float[Tensor, "b"] | None = None
    distillation: Float[Tensor, "b"] | None = None

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, index: int | slice | Tensor) -> "Code":
        """Selected codes, without their losses; an integer gives a batch of one."""
        if isinstance(index, int):
            index = slice(index, index + 1) if index != -1 else slice(-1, None)
        return Code(tuple(part[index] for part in self.parts))

    @property
    def vector(self) -> Float[Tensor, "b k"]:
        """The first tensor in rows: the code vector of a family with a prior, or the global code of a fit of parts."""
        return self.parts[0].flatten(1)

    @property
    def global_code(self) -> "Code":
        """The first tensor alone, without losses."""
        return Code(self.parts[:1])

    @property
    def flat(self) -> Float[Tensor, "b k"]:
        """All numbers of each code in one row."""
        return torch.cat([part.flatten(1) for part in self.parts], dim=1)

    def unflatten(self, flat: Float[Tensor, "c k"]) -> "Code":
        """Codes with the shapes of these from rows of numbers: the inverse of `flat`."""
        sizes = [part[0].numel() for part in self.parts]
        pieces = flat.split(sizes, dim=1)
        return Code(tuple(p.view(len(flat), *part.shape[1:]) for p, part in zip(pieces, self.parts, strict=True)))

    @property
    def tensors(self) -> list[Tensor]:
        """The parts, then the losses that are set."""
        return [*self.parts, *(extra for extra in (self.kl, self.distillation) if extra is not None)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Code":
        """Codes with other tensors of the same kind: the inverse of `tensors`."""
        rest = iter(tensors)
        parts = tuple(next(rest) for _ in self.parts)
        kl, distillation = (None if extra is None else next(rest) for extra in (self.kl, self.distillation))
        return Code(parts, kl, distillation)

    def to(self, device: torch.device | str) -> "Code":
        """The codes on another device."""
        return replace(self, parts=tuple(part.to(device) for part in self.parts))

    @classmethod
    def concatenate(cls, codes: Sequence["Code"]) -> "Code":
        """Concatenate batches of codes."""
        return cls(tuple(torch.cat(parts) for parts in zip(*(code.parts for code in codes), strict=True)))
