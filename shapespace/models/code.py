"""What a shape is in the shape space."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Curve = Literal["linear", "slerp"]


@dataclass(frozen=True)
class Code:
    """Codes of a batch of shapes: one tensor, or several that share the first axis (a grid, a pyramid).

    What some encoders add, unweighted: `cost`, what each code costs under the encoder's own prior (variational), and
    `lesson`, how far the encoder's code is from the one that it is taught.
    """

    parts: tuple[Tensor, ...]
    kl: Float[Tensor, "b"] | None = None
    distillation: Float[Tensor, "b"] | None = None

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, index: int | slice | Tensor) -> "Code":
        """Some of the codes; still a batch."""
        if isinstance(index, int):
            index = slice(index, index + 1) if index != -1 else slice(-1, None)
        return Code(tuple(part[index] for part in self.parts))

    @property
    def flat(self) -> Float[Tensor, "b k"]:
        """All numbers of each code in one row."""
        return torch.cat([part.flatten(1) for part in self.parts], dim=1)

    def unflatten(self, flat: Float[Tensor, "c k"]) -> "Code":
        """Rows of numbers as codes of this kind: the way back from `flat`."""
        sizes = [part[0].numel() for part in self.parts]
        pieces = flat.split(sizes, dim=1)
        return Code(tuple(p.view(len(flat), *part.shape[1:]) for p, part in zip(pieces, self.parts, strict=True)))

    @property
    def tensors(self) -> list[Tensor]:
        """The parts, and what the encoder added."""
        return [*self.parts, *(extra for extra in (self.kl, self.distillation) if extra is not None)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Code":
        """Codes of this kind from such a list: the way back from `tensors`."""
        rest = iter(tensors)
        parts = tuple(next(rest) for _ in self.parts)
        cost, lesson = (None if extra is None else next(rest) for extra in (self.kl, self.distillation))
        return Code(parts, cost, lesson)

    def to(self, device: torch.device | str) -> "Code":
        """On another device."""
        return replace(self, parts=tuple(part.to(device) for part in self.parts))


def concatenate(codes: Sequence[Code]) -> Code:
    """Several batches as one."""
    return Code(tuple(torch.cat(parts) for parts in zip(*(code.parts for code in codes), strict=True)))


def between(a: Code, b: Code, steps: int, path: Curve = "linear") -> Code:
    """`steps` codes from a to b, both ends included.

    Linear: (1 - t) a + t b. Spherical: Shoemake's slerp (SIGGRAPH 1985) of the directions, with the length
    interpolated linearly, so that the middle of the way is no shorter than the ends.
    """
    if steps < 2:
        raise ValueError(f"a path of {steps} steps has no two ends: ask for at least 2")
    if path not in get_args(Curve):
        raise ValueError(f"path {path!r} is none of {', '.join(get_args(Curve))}")
    t = torch.linspace(0, 1, steps, device=a.flat.device)[:, None]
    start, end = a.flat, b.flat
    if path == "linear":
        return a.unflatten(torch.lerp(start, end, t))
    lengths = start.norm(), end.norm()
    cosine = (start * end).sum() / (lengths[0] * lengths[1]).clamp(min=1e-12)
    angle = cosine.clamp(-1, 1).arccos()
    if angle.sin() < 1e-4:  # same or opposite direction: the great circle is not defined, the straight line is
        return a.unflatten(torch.lerp(start, end, t))
    direction = (((1 - t) * angle).sin() * start / lengths[0] + (t * angle).sin() * end / lengths[1]) / angle.sin()
    return a.unflatten(direction * torch.lerp(lengths[0], lengths[1], t))
