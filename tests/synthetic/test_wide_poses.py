"""Wide poses: limits, symmetry, hands at places of the body, and the kinds of poses."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from shapespace.synthetic import wide_poses
from shapespace.synthetic.body import Body
from shapespace.synthetic.poses import PoseLibrary
from shapespace.synthetic.wide_poses import PLACES, WidePoses, describe_pose


@pytest.fixture(scope="module")
def body() -> Body:
    return Body.load()


@pytest.fixture(scope="module")
def poses(body: Body) -> WidePoses:
    return WidePoses(body, PoseLibrary.load(body))


def angle(rotation: np.ndarray) -> float:
    """Angle of a rotation matrix, in degrees."""
    return float(np.degrees(Rotation.from_matrix(rotation).magnitude()))


def places(body: Body, rotations: np.ndarray) -> dict[str, np.ndarray]:
    heads = body.mean[-len(body.joints) :]
    return dict(zip(body.joints, body.forward(heads, rotations)[1], strict=True))


def mirrored(body: Body, rotations: np.ndarray) -> np.ndarray:
    """The pose with left and right exchanged."""
    swapped = [name.replace(".L", ".#").replace(".R", ".L").replace(".#", ".R") for name in body.joints]
    mirror = np.diag([-1.0, 1.0, 1.0])
    return mirror @ rotations[[body.joints.index(name) for name in swapped]] @ mirror


def test_draws_cover_what_the_narrow_limits_leave_out(body: Body, poses: WidePoses) -> None:
    rng = np.random.default_rng(0)
    drawn = [poses.sample(rng) for _ in range(80)]
    at = [places(body, rotations) for rotations in drawn]
    raised = [max(place["wrist.L"][1], place["wrist.R"][1]) - place["head"][1] for place in at]
    assert np.mean(np.array(raised) > 0) > 0.15
    trunk = [
        angle(np.linalg.multi_dot([rotations[body.joints.index(name)] for name in wide_poses._SPINE]))
        for rotations in drawn
    ]
    assert max(trunk) > 40
    assert np.mean(np.array(trunk) < 12) > 0.3  # upright
    knee = [angle(rotations[body.joints.index("lowerleg01.L")]) for rotations in drawn]
    assert 90 < max(knee) <= 135.001
    assert np.mean(np.array(knee) < 0.2 * 135 + 1e-6) > 0.4  # standing
    curl = [angle(rotations[body.joints.index("finger3-2.R")]) for rotations in drawn]
    assert max(curl) > 70
    assert np.mean(np.array(curl) < 20) > 0.1
    kinds = {describe_pose(body, rotations) for rotations in drawn}
    assert kinds == set(wide_poses.KINDS)


def test_both_sides_alike_are_mirror_images(body: Body, poses: WidePoses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide_poses, "ALIKE", 1.0)
    monkeypatch.setattr(wide_poses, "REACHES", 0.0)  # places are sought on each person's own side
    limbs = [i for i, name in enumerate(body.joints) if name.endswith((".L", ".R"))]
    rng = np.random.default_rng(1)
    for _ in range(5):
        rotations = poses.sample(rng)
        # The source has its right side mirrored but for the tilt of the pelvis, which turns about x: itself mirrored.
        np.testing.assert_allclose(mirrored(body, rotations)[limbs], rotations[limbs], atol=2e-3)


@pytest.mark.parametrize("side", ["L", "R"])
@pytest.mark.parametrize("place", list(PLACES))
def test_a_hand_reaches_the_place(body: Body, poses: WidePoses, place: str, side: str) -> None:
    rng = np.random.default_rng(2)
    # A hand reaches the knees when the trunk bends; the crown takes all that the elbow has.
    trunk = dict.fromkeys(wide_poses._SPINE, Rotation.from_euler("x", 18 if place == "thigh" else 0, degrees=True))
    misses = []
    for _ in range(4):
        angles = poses._arm_angles(trunk, place, side, rng)
        wrist = poses._wrist(trunk | poses._arm(angles, side), side)
        misses.append(np.linalg.norm(wrist - poses._goal(trunk, place, side)))
    assert np.median(misses) < (0.17 if place == "crown" else 0.1)  # the goal varies by 3 cm about each axis


def test_fingers_bend_towards_the_palm(body: Body, poses: WidePoses) -> None:
    open_hand = wide_poses.HandAngles(np.zeros(3), np.zeros(5), 0.0)
    fist = wide_poses.HandAngles(np.zeros(3), np.ones(5), 0.0)
    spread = wide_poses.HandAngles(np.zeros(3), np.zeros(5), 9.0)
    for side in "LR":
        at = [
            places(body, wide_poses.rotate_joints(body.joints, poses._hand(hand, side)))
            for hand in (open_hand, fist, spread)
        ]
        for finger in (2, 3, 4, 5):
            reach = [np.linalg.norm(place[f"finger{finger}-3.{side}"] - place[f"wrist.{side}"]) for place in at]
            assert reach[1] < 0.9 * reach[0]
        apart = [np.linalg.norm(place[f"finger2-3.{side}"] - place[f"finger5-3.{side}"]) for place in at]
        assert apart[2] > apart[0] + 0.005


def test_clips_keep_their_motion_and_move_the_hands(body: Body, poses: WidePoses) -> None:
    rng = np.random.default_rng(3)
    wide = poses.sample_clip("walk", rng)
    plain = poses.library.sample_clip("walk", np.random.default_rng(3))
    hands = np.array([name.startswith(("finger", "wrist", "lowerarm02")) for name in body.joints])
    np.testing.assert_allclose(wide[~hands], plain[~hands], atol=1e-12)
    assert np.abs(wide[hands] - plain[hands]).max() > 0.05


def test_kinds_of_poses(body: Body) -> None:
    def kind(**degrees: tuple[float, float, float]) -> str:
        local = {
            name.replace("_", "."): Rotation.from_euler("xyz", each, degrees=True) for name, each in degrees.items()
        }
        return describe_pose(body, wide_poses.rotate_joints(body.joints, local))

    assert kind() == "upright"
    assert kind(spine05=(45, 0, 0)) == "bent"
    assert kind(upperarm01_R=(0, 0, -100)) == "arms up"
    legs = {f"upperleg01_{side}": (-95.0, 0.0, 0.0) for side in "LR"}
    assert kind(**legs, **{f"lowerleg01_{side}": (110.0, 0.0, 0.0) for side in "LR"}) == "crouched"
