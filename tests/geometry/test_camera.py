"""Backgrounds of depth images: findings that name a limit of the depth."""

from dataclasses import replace

import numpy as np

from shapespace.geometry.camera import Camera, DepthImage, find_background

CAMERA = Camera(160, 120, 130.0, 130.0, 79.5, 59.5)


def image(wall: float, *, arm: float = 0.0) -> DepthImage:
    """A box of the size of a person at 2.5 m, an arm toward the camera, and a noisy wall (meters; 0 for none)."""
    rng = np.random.default_rng(0)
    depth = np.zeros((120, 160)) if wall == 0 else wall + rng.normal(0, 0.05, (120, 160))
    depth[15:105, 65:95] = 2.5
    if arm:
        depth[40:52, 76:84] = 2.5 - arm
    if wall:
        edge = rng.choice(depth.size, 15, replace=False)  # pixels between the person and the wall
        depth.flat[edge] = rng.uniform(2.5, wall, 15)
    return DepthImage(depth, CAMERA)


def test_a_wall_behind_a_gap_is_a_finding_with_a_limit() -> None:
    found = find_background([image(3.6)])
    assert found is not None
    assert found.code == "depth-background"
    depth = found.values["depth"]
    assert 2.6 < depth < 3.4
    assert found.values["share"] > 0.8
    assert f"--max-depth {depth:g}" in found.message("anna")
    limited = replace(image(3.6), camera=CAMERA.with_limits(0.0, depth))
    assert find_background([limited]) is None


def test_people_alone_have_no_background() -> None:
    assert find_background([image(0)]) is None
    assert find_background([image(0, arm=0.6)]) is None  # the trunk behind a gap is no wall
    assert find_background([image(2.56)]) is None  # no gap: the limit would not help
    assert find_background([image(3.6), image(0)]) is None  # a camera without a background has no such limit
