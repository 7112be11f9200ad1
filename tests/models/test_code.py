"""Codes: flattened and restored, concatenated and selected."""

import torch

from shapespace.models.code import Code


def codes(seed: int = 0, count: int = 3) -> Code:
    generator = torch.Generator().manual_seed(seed)
    return Code((torch.randn(count, 4, generator=generator), torch.randn(count, 2, 3, 3, generator=generator)))


def test_flat_and_back() -> None:
    code = codes()
    assert code.flat.shape == (3, 22)
    again = code.unflatten(code.flat)
    assert all(torch.equal(a, b) for a, b in zip(code.parts, again.parts, strict=True))
    assert torch.equal(Code.concatenate([code[0], code[1:]]).flat, code.flat)
    assert torch.equal(code[-1].flat, code.flat[2:])
