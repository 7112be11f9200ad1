"""Steps of `freeze_body`, without the packages that are its sources."""

import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from shapespace.synthetic.body import Body
from shapespace.synthetic.poses import PoseLibrary
from shapespace.tools import freeze_body


@pytest.mark.parametrize("package", ["anny", "pybullet_data"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    make = {"anny": freeze_body.construct, "pybullet_data": lambda: freeze_body.resample("walk")}[package]
    with pytest.raises(ValueError, match=r"not installed.*Run `pip install shapespace\[body\]` first"):
        make()


def test_principal_components_reproduce_the_bodies() -> None:
    rng = np.random.default_rng(0)
    basis, coefficients = rng.normal(size=(3, 20, 3)), rng.normal(size=(50, 3)) * [3.0, 2.0, 1.0]
    bodies = 5 + np.einsum("pk,knd->pnd", coefficients, basis)
    mean, components = freeze_body.principal_components(bodies, rank=3)
    flat = components.reshape(3, -1)
    scores = (bodies - mean).reshape(50, -1) @ np.linalg.pinv(flat)
    np.testing.assert_allclose(mean + np.einsum("pk,knd->pnd", scores, components), bodies, atol=1e-9)
    np.testing.assert_allclose(scores.std(axis=0, ddof=1), 1, atol=1e-9)


def test_strongest_weights_are_the_largest() -> None:
    weight = np.array([[0.0, 0.1, 0.3, 0.2, 0.05, 0.35]])
    index, largest = freeze_body.strongest_weights(np.array([[10, 11, 12, 13, 14, 15]]), weight)
    assert index.tolist() == [[15, 12, 13, 11]]
    np.testing.assert_allclose(largest, np.array([[0.35, 0.3, 0.2, 0.1]]) / 0.95)


def test_straight_down_is_the_smallest_rotation() -> None:
    bone = np.array([0.3, -0.2, 0.1])
    turn = freeze_body.straight_down(bone)
    np.testing.assert_allclose(turn.apply(bone), [0, -np.linalg.norm(bone), 0], atol=1e-12)
    assert turn.magnitude() == pytest.approx(np.arccos(0.2 / np.linalg.norm(bone)))


def test_a_clip_at_rest_has_hanging_limbs_and_no_heading() -> None:
    frame = np.zeros(44)
    frame[list(freeze_body.SPHERES.values())] = 1.0  # identities, w first
    half = np.deg2rad(70) / 2
    frame[4:8] = np.cos(half), 0, np.sin(half), 0  # the root, turned about y
    body = Body.load()
    heads = body.mean[-len(body.joints) :]
    rest = dict(zip(body.joints, heads, strict=True))
    limbs = {f"{bone}.{side}": f"{far}.{side}" for side in "LR" for bone, (_, far) in freeze_body.LIMBS.items()}
    down = {bone: freeze_body.straight_down(rest[far] - rest[bone]) for bone, far in limbs.items()}
    rotations = np.tile(np.eye(3), (len(body.joints), 1, 1))
    for joint, own in zip(freeze_body.moved_joints(), freeze_body.retarget(frame, down), strict=True):
        rotations[body.joints.index(joint)] = Rotation.from_quat(own).as_matrix()
    turned, moved = body.forward(heads, rotations)
    np.testing.assert_allclose(turned[body.joints.index("head")], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(turned[body.joints.index("foot.L")], np.eye(3), atol=1e-12)
    for bone, far in limbs.items():
        along = moved[body.joints.index(far)] - moved[body.joints.index(bone)]
        np.testing.assert_allclose(along / np.linalg.norm(along), [0, -1, 0], atol=1e-9)


def test_neighboring_frames_have_one_sign() -> None:
    drawn = Rotation.random(3, random_state=0).as_quat()
    frames = np.stack([drawn, -drawn, drawn])[None]
    smooth = freeze_body.make_continuous(frames)
    assert (np.einsum("cfjk,cfjk->cfj", smooth[:, 1:], smooth[:, :-1]) > 0).all()
    assert np.array_equal(np.abs(smooth), np.abs(frames))


def test_the_assets_are_those_of_this_tool() -> None:
    poses = PoseLibrary.load(Body.load())
    assert poses.clips == freeze_body.CLIPS
    assert poses.clip_joints == tuple(freeze_body.moved_joints())
    assert poses.clip_rotations.shape[1] == freeze_body.NUM_FRAMES
    cosines = np.einsum("cfjk,cfjk->cfj", poses.clip_rotations[:, 1:], poses.clip_rotations[:, :-1])
    assert cosines.min() > np.sqrt(0.5)  # less than a right angle apart: close enough to interpolate
