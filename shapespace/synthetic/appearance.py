"""Appearance of synthetic people: hair, tight clothes and asymmetry, as displacements of the body at rest (meters).

The scanned surface is the displaced one, and so is its registration: topology and skinning stay those of the body.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from shapespace.geometry.proximity import vertex_normals
from shapespace.synthetic.body import Body
from shapespace.synthetic.scanner import smooth_noise

HAIR = ("none", "cap", "bun")
HAIR_SHARE = 0.5
"""Share of the people with hair; half of these have a bun."""

CLOTHES = ("none", "shirt", "trousers", "both")
DRESSED_SHARE = 0.5
"""Share of the people in tight clothes."""

SIZE_STD, SIZE_LIMITS = 0.04, (0.86, 1.10)
"""Spread of the size of a whole body about that of its shape, and its limits."""

SHAPE_STD, SHAPE_LIMIT = 1.25, 3.0
"""Spread and limit of the shape coefficients, in the standard deviations of the adults that the body was made from."""

_ASYMMETRY = 0.0025
_WAVELENGTHS = (0.15, 0.6)
_HEM = 0.012


class Person(NamedTuple):
    """A synthetic person: shape coefficients, size, and what hair and clothes add to the body at rest."""

    coefficients: Float[np.ndarray, "k"]
    size: float = 1.0
    offsets: Float[np.ndarray, "v 3"] | None = None
    hair: str = "none"
    clothes: str = "none"

    def skin(self, rotations: Float[np.ndarray, "j 3 3"]) -> Float[np.ndarray, "v 3"]:
        """Vertices in a pose, as `Body.skin` gives them."""
        return Body.load().skin(self.coefficients, rotations, self.offsets) * np.float32(self.size)


def sample_bare(rng: np.random.Generator) -> Person:
    """Draw an adult without hair and clothes."""
    return Person(Body.load().sample_shape(rng))


def sample_dressed(rng: np.random.Generator) -> Person:
    """Draw a person of a wider spread of builds, slightly asymmetric; half have hair, half tight clothes."""
    body = Body.load()
    coefficients = np.clip(rng.standard_normal(len(body.components)) * SHAPE_STD, -SHAPE_LIMIT, SHAPE_LIMIT)
    size = float(np.clip(1 + SIZE_STD * rng.standard_normal(), *SIZE_LIMITS))
    hair = HAIR[1 + int(rng.integers(2))] if rng.random() < HAIR_SHARE else HAIR[0]
    clothes = CLOTHES[1 + int(rng.integers(3))] if rng.random() < DRESSED_SHARE else CLOTHES[0]
    rest, _ = body.rest_pose(coefficients)
    height = _asymmetry(body, rest, rng) + _hair(body, rest, hair, rng) + _clothes(body, rest, clothes, rng)
    return Person(coefficients, size, height[:, None] * vertex_normals(rest, body.faces), hair, clothes)


def _asymmetry(body: Body, rest: Float[np.ndarray, "v 3"], rng: np.random.Generator) -> Float[np.ndarray, "v"]:
    """Waves in random directions; a third of them at the hands, the feet and the head, whose detail is finer."""
    fine = body.moved_by("wrist", "metacarpal", "finger", "foot", "toe", "head", "eye")
    return smooth_noise(rest, _ASYMMETRY, _WAVELENGTHS, rng) * np.where(fine, 1 / 3, 1)


def _hair(body: Body, rest: Float[np.ndarray, "v 3"], hair: str, rng: np.random.Generator) -> Float[np.ndarray, "v"]:
    """Height of hair above the scalp: above a plane from the forehead to the nape, thin at its line."""
    if hair == "none":
        return np.zeros(len(rest))
    head = body.moved_by("head", "eye")
    low, high = rest[head].min(axis=0), rest[head].max(axis=0)
    tilt = np.deg2rad(rng.uniform(35, 55))
    up = np.array([0.0, np.cos(tilt), -np.sin(tilt)])
    center = (low + high) / 2 + np.array([0.0, rng.uniform(0.0, 0.02), rng.uniform(-0.005, 0.015)])
    above = (rest - center) @ up
    height = rng.uniform(0.006, 0.03) * _step(above, rng.uniform(0.02, 0.05)) * head
    height *= 1 + smooth_noise(rest, 0.15, (0.03, 0.1), rng)
    if hair == "bun":
        middle = center + np.array([0.0, rng.uniform(0.02, 0.10), 0.0]) - np.array([0, 0, 0.09])
        nearest = rest[head][np.linalg.norm(rest[head] - middle, axis=1).argmin()]
        bump = np.linalg.norm(rest - nearest, axis=1) / rng.uniform(0.03, 0.045)
        height += rng.uniform(0.02, 0.04) * np.sqrt(np.clip(1 - bump**2, 0, 1)) * head
    return np.asarray(height)


def _clothes(
    body: Body, rest: Float[np.ndarray, "v 3"], clothes: str, rng: np.random.Generator
) -> Float[np.ndarray, "v"]:
    """Thickness of tight clothes: even, with small folds, ending at hems."""
    place = dict(zip(body.joints, body.mean[-len(body.joints) :], strict=True))
    height = np.zeros(len(rest))
    arms = body.moved_by("upperarm", "lowerarm", "wrist", "metacarpal", "finger")
    if clothes in ("shirt", "both"):
        inside = _step(rest[:, 1] - place["root"][1] - rng.uniform(-0.12, 0.08), _HEM)
        inside *= _step(place["neck01"][1] + rng.uniform(-0.05, 0.03) - rest[:, 1], _HEM)
        ends = place["upperarm01.L"] + rng.uniform(0.3, 1.6) * (place["lowerarm01.L"] - place["upperarm01.L"])
        reach = abs(rest[:, 0]) * 0.7 - rest[:, 1] * 0.7 - (ends[0] * 0.7 - ends[1] * 0.7)
        inside = np.where(arms, _step(-reach, _HEM), inside)
        height = inside * _cloth(rest, rng)
    if clothes in ("trousers", "both"):
        waist = place["root"][1] + rng.uniform(0.0, 0.12)
        ankle = place["foot.L"][1] + rng.uniform(0.04, 0.75) * (place["upperleg01.L"][1] - place["foot.L"][1])
        inside = _step(waist - rest[:, 1], _HEM) * _step(rest[:, 1] - ankle, _HEM) * ~arms
        height = np.maximum(height, inside * _cloth(rest, rng))
    return height


def _cloth(rest: Float[np.ndarray, "v 3"], rng: np.random.Generator) -> Float[np.ndarray, "v"]:
    """Thickness of cloth with folds (meters), never negative."""
    return np.clip(rng.uniform(0.002, 0.007) + smooth_noise(rest, 0.0012, (0.04, 0.2), rng), 0.001, None)


def _step(distance: Float[np.ndarray, "n"], width: float) -> Float[np.ndarray, "n"]:
    """Smooth step: 0 below 0, 1 above a width."""
    share = np.clip(distance / width, 0, 1)
    return np.asarray(share**2 * (3 - 2 * share))
