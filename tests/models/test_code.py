"""Codes: flat and back, joined, and the way between two."""

import pytest
import torch

from shapespace.models.code import Code, between, concatenate


def codes(seed: int = 0, count: int = 3) -> Code:
    generator = torch.Generator().manual_seed(seed)
    return Code((torch.randn(count, 4, generator=generator), torch.randn(count, 2, 3, 3, generator=generator)))


def test_flat_and_back() -> None:
    code = codes()
    assert code.flat.shape == (3, 22)
    again = code.unflatten(code.flat)
    assert all(torch.equal(a, b) for a, b in zip(code.parts, again.parts, strict=True))
    assert torch.equal(concatenate([code[0], code[1:]]).flat, code.flat)
    assert torch.equal(code[-1].flat, code.flat[2:])


@pytest.mark.parametrize("path", ["linear", "slerp"])
def test_a_path_has_its_ends_and_is_symmetric(path: str) -> None:
    a, b = codes(1, 1), codes(2, 1)
    way = between(a, b, 5, path)  # type: ignore[arg-type]
    torch.testing.assert_close(way.flat[0], a.flat[0])
    torch.testing.assert_close(way.flat[-1], b.flat[0])
    torch.testing.assert_close(between(b, a, 5, path).flat.flip(0), way.flat)  # type: ignore[arg-type]


def test_linear_is_the_weighted_mean() -> None:
    a, b = codes(1, 1), codes(2, 1)
    torch.testing.assert_close(between(a, b, 5).flat[1], 0.75 * a.flat[0] + 0.25 * b.flat[0])


def test_spherical_turns_evenly_and_keeps_length() -> None:
    a, b = Code((torch.tensor([[2.0, 0.0]]),)), Code((torch.tensor([[0.0, 2.0]]),))
    way = between(a, b, 4, "slerp").flat
    torch.testing.assert_close(way.norm(dim=1), torch.full((4,), 2.0))
    torch.testing.assert_close(torch.atan2(way[:, 1], way[:, 0]), torch.linspace(0, torch.pi / 2, 4))


def test_spherical_between_equal_and_opposite_codes_is_straight() -> None:
    a = codes(1, 1)
    torch.testing.assert_close(between(a, a, 3, "slerp").flat[1], a.flat[0])
    opposite = a.unflatten(-a.flat)
    assert between(a, opposite, 3, "slerp").flat.isfinite().all()


def test_paths_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="a path of 1 steps has no two ends"):
        between(codes(1, 1), codes(2, 1), 1)
