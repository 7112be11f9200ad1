"""Poses that cover what people do: arms to the vertical, folded and at the head, bent trunks, crouches, moving hands.

Angles are degrees about the world axes at rest: x (positive: trunk forward, thigh and shank backward), y (up; positive:
to the left) and z (positive: left arm up, left leg outward); the right side mirrors y and z. `PoseLibrary` has the
narrower joint limits and the motion clips.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from shapespace.synthetic.body import Body
from shapespace.synthetic.poses import PoseLibrary, draw_heading, rotate_joints

TRUNK = ((-15.0, 75.0), (-35.0, 35.0), (-25.0, 25.0))
"""Bend, twist and lean of the trunk, shared by the joints of the spine."""

PELVIS_SHARE = 0.3
"""Share of a bend that the pelvis takes: it tilts, and the legs stay where they are."""

HEAD = ((-15.0, 15.0), (-20.0, 20.0), (-8.0, 8.0))
"""Nod, turn and tilt of each of two neck joints and the head."""

RAISE, FRONT, ROLL, ELBOW = (-30.0, 135.0), (-95.0, 35.0), (-45.0, 45.0), (-25.0, 110.0)
"""Upper arm from the A pose: up, forward (negative), about its own axis; elbow from its slight bend at rest."""

CLAVICLE_FROM, CLAVICLE_SHARE = 20.0, 0.2
"""Of the rise of an arm beyond the first, the clavicle takes the second."""

HANGING = ((-40.0, 5.0), (-30.0, 15.0), (-30.0, 30.0), (-20.0, 30.0))
"""The same four angles of an arm that hangs."""

WRIST = ((-50.0, 50.0), (-35.0, 35.0), (-30.0, 30.0))
"""Twist of the forearm, and the wrist towards the palm and sideways."""

HIP, KNEE, FOOT = ((-110.0, 25.0), (-30.0, 35.0), (-10.0, 45.0)), (0.0, 135.0), (-25.0, 35.0)
"""Hip (forward negative, turn, spread), knee and ankle."""

FINGER_CURL, THUMB_CURL = (80.0, 90.0, 60.0), (25.0, 35.0, 45.0)
"""Angles of the three joints of a finger and of the thumb in a fist."""

SPREAD = 9.0
"""Largest angle by which the index and the little finger are spread from the middle of the hand."""

STILL = 0.2
"""Factor of the angles of a trunk that is held upright, and of legs that stand."""

UPRIGHT, STANDING, ALIKE, HANGS, REACHES, POINTS = 0.4, 0.45, 0.25, 0.2, 0.3, 0.15
"""Probabilities: upright trunk, standing legs, both sides alike, an arm that hangs, a hand that goes to a place of the
body, a hand that points."""

PLACES = {
    "hip": ("upperleg01", (0.09, 0.05, 0.02)),
    "belly": ("spine04", (0.05, 0.0, 0.17)),
    "thigh": ("lowerleg01", (0.0, 0.12, 0.12)),
    "elbow": ("spine02", (-0.12, 0.0, 0.17)),
    "shoulder": ("upperarm01", (-0.32, 0.02, 0.09)),
    "cheek": ("head", (0.10, 0.02, 0.09)),
    "crown": ("head", (0.07, 0.14, 0.0)),
    "nape": ("head", (0.06, -0.03, -0.12)),
}
"""Places that a left wrist goes to: a joint of the left side or the middle, and an offset in its frame (meters).
`elbow` and `shoulder` are on the other side: folded and crossed arms."""

KINDS = ("upright", "arms up", "folded", "crouched", "bent")
"""Kinds of poses that `describe_pose` tells apart."""

BENT, CROUCHED, FOLDED = 35.0, 0.75, 0.33
"""A trunk leans by more than the first (degrees); the root is lower than the second of its height at rest; a wrist is
nearer to the middle of the chest than the third (meters)."""

_SPINE = ("spine05", "spine04", "spine03", "spine02", "spine01")
_NECK = ("neck01", "neck02", "head")
_MIRROR = np.array([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class ArmAngles:
    """Rise, swing to the front, roll of an upper arm, and the elbow (degrees)."""

    up: float
    front: float
    roll: float
    elbow: float


@dataclass(frozen=True)
class HandAngles:
    """Forearm twist and wrist (degrees), curl of each finger (0 open, 1 fist; thumb first), spread (degrees)."""

    wrist: Float[np.ndarray, "3"]
    curls: Float[np.ndarray, "5"]
    spread: float


class WidePoses:
    """Random poses of a body, as rotations (j, 3, 3) for `Body.skin`."""

    def __init__(self, body: Body, library: PoseLibrary) -> None:
        self.body, self.library = body, library
        self.heads = body.mean[-len(body.joints) :]
        self._place = dict(zip(body.joints, self.heads, strict=True))
        self._axes = {side: _hand_axes(self._place, side) for side in "LR"}

    def sample(self, rng: np.random.Generator) -> Float[np.ndarray, "j 3 3"]:
        """Random pose: trunk, head, arms, legs and hands, independent of each other."""
        local = self._trunk(rng) | self._neck(rng)
        alike, standing = rng.random() < ALIKE, rng.random() < STANDING
        leg = self._leg_angles(standing, rng)
        local |= self._leg(leg, "L") | self._leg(leg if alike else self._leg_angles(standing, rng), "R")
        tilt = local.pop("pelvis")
        local["root"] = draw_heading(rng) * tilt
        for side in "LR":
            local[f"upperleg01.{side}"] = tilt.inv() * local[f"upperleg01.{side}"]
        left, right = self._arm_kinds(rng)
        arm, hand = self._arm_angles(local, left, "L", rng), self._hand_angles(rng)
        local |= self._arm(arm, "L") | self._hand(hand, "L")
        if not alike:
            arm, hand = self._arm_angles(local, right, "R", rng), self._hand_angles(rng)
        return rotate_joints(self.body.joints, local | self._arm(arm, "R") | self._hand(hand, "R"))

    def sample_clip(self, clip: str, rng: np.random.Generator) -> Float[np.ndarray, "j 3 3"]:
        """Random pose of a motion clip, with hands that move."""
        rotations = self.library.sample_clip(clip, rng)
        local: dict[str, Rotation] = {}
        for side in "LR":
            local |= self._hand(self._hand_angles(rng), side)
        hands = rotate_joints(self.body.joints, local)
        return np.asarray(rotations @ hands)

    def _trunk(self, rng: np.random.Generator) -> dict[str, Rotation]:
        """Rotations of the spine, and `pelvis`, the tilt of the root."""
        scale = STILL if rng.random() < UPRIGHT else 1.0
        bend, twist, lean = (scale * _dense_at_rest(limits, rng) for limits in TRUNK)
        pelvis = max(bend, 0.0) * PELVIS_SHARE
        share = np.array([bend - pelvis, twist, lean]) / len(_SPINE)
        return {"pelvis": _euler(pelvis, 0.0, 0.0)} | dict.fromkeys(_SPINE, _euler(*share))

    def _neck(self, rng: np.random.Generator) -> dict[str, Rotation]:
        return {joint: _euler(*(_dense_at_rest(limits, rng) for limits in HEAD)) for joint in _NECK}

    def _leg_angles(self, standing: bool, rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
        """Hip (3), knee and ankle of a left leg."""
        scale = STILL if standing else 1.0
        hip = scale * np.array([_dense_at_rest(limits, rng) for limits in HIP])
        return hip, scale * _dense_at_rest(KNEE, rng), scale * rng.uniform(*FOOT)

    def _leg(self, angles: tuple[np.ndarray, float, float], side: str) -> dict[str, Rotation]:
        hip, knee, foot = angles
        return {
            f"upperleg01.{side}": _euler(*(hip * (_MIRROR if side == "R" else 1))),
            f"lowerleg01.{side}": _euler(knee, 0.0, 0.0),
            f"foot.{side}": _euler(foot, 0.0, 0.0),
        }

    def _arm_kinds(self, rng: np.random.Generator) -> tuple[str, str]:
        """What both arms do: `free`, `hanging`, or the place that the hand goes to; the second often as the first."""
        kinds = [_arm_kind(rng), _arm_kind(rng)]
        return kinds[0], kinds[int(rng.random() < 0.4)]

    def _arm_angles(self, local: dict[str, Rotation], kind: str, side: str, rng: np.random.Generator) -> ArmAngles:
        """Random angles of an arm, or those that bring its wrist near a place of the body."""
        if kind == "free":
            return ArmAngles(rng.uniform(*RAISE), rng.uniform(*FRONT), rng.uniform(*ROLL), _dense_at_rest(ELBOW, rng))
        if kind == "hanging":
            return ArmAngles(*(rng.uniform(*limits) for limits in HANGING))
        low, high = np.array([RAISE, FRONT, ROLL, ELBOW]).T
        rest = np.array([10.0, -30.0, 0.0, 60.0])
        goal = self._goal(local, kind, side) + rng.normal(0, 0.03, 3)

        def error(angles: np.ndarray) -> np.ndarray:
            wrist = self._wrist(local | self._arm(ArmAngles(*angles), side), side)
            return np.concatenate([(wrist - goal) / 0.02, (angles - rest) / 120])

        found = least_squares(error, np.clip(rest + rng.normal(0, 10, 4), low, high), bounds=(low, high), max_nfev=30)
        return ArmAngles(*found.x)

    def _goal(self, local: dict[str, Rotation], place: str, side: str) -> np.ndarray:
        """Where a place of the body is in a pose."""
        joint, offset = PLACES[place]
        name = joint if joint in self.body.joints else f"{joint}.{side}"
        turned, positions = self.body.forward(self.heads, rotate_joints(self.body.joints, local))
        index = self.body.joints.index(name)
        mirrored = np.array(offset) * ([-1, 1, 1] if side == "R" else [1, 1, 1])
        frame = turned[self.body.parents[index]] if joint == "upperarm01" else turned[index]
        return np.asarray(positions[index] + frame @ mirrored)

    def _wrist(self, local: dict[str, Rotation], side: str) -> np.ndarray:
        _, positions = self.body.forward(self.heads, rotate_joints(self.body.joints, local))
        return np.asarray(positions[self.body.joints.index(f"wrist.{side}")])

    def _arm(self, angles: ArmAngles, side: str) -> dict[str, Rotation]:
        sign = -1.0 if side == "R" else 1.0
        clavicle = CLAVICLE_SHARE * max(angles.up - CLAVICLE_FROM, 0.0)
        shoulder, elbow = self._place[f"upperarm01.{side}"], self._place[f"lowerarm01.{side}"]
        half_roll = Rotation.from_rotvec(_unit(elbow - shoulder) * sign * angles.roll / 2, degrees=True)
        swing = _euler(0.0, 0.0, sign * (angles.up - clavicle))
        bend = Rotation.from_rotvec(self.library.elbow_axes["LR".index(side)] * angles.elbow, degrees=True)
        return {
            f"clavicle.{side}": _euler(0.0, 0.0, sign * clavicle),
            f"upperarm01.{side}": _euler(0.0, sign * angles.front, 0.0) * swing * half_roll,
            f"upperarm02.{side}": half_roll,
            f"lowerarm01.{side}": bend,
        }

    def _hand_angles(self, rng: np.random.Generator) -> HandAngles:
        """One curl for all fingers, a tenth of each finger's own; sometimes the index finger points."""
        wrist = np.array([_dense_at_rest(limits, rng) for limits in WRIST])
        curl, spread = rng.random() ** 1.3, rng.uniform(-0.3, 1.0) * SPREAD
        points, own = rng.random() < POINTS, rng.uniform(-0.1, 0.1, 5)
        curls = np.clip(own + (max(curl, 0.6) if points else curl), -0.1, 1.0)
        curls[1] = own[1] if points else curls[1]
        return HandAngles(wrist, curls, spread)

    def _hand(self, angles: HandAngles, side: str) -> dict[str, Rotation]:
        sign = -1.0 if side == "R" else 1.0
        along, flexion, palm, thumb = self._axes[side]
        twist, bend, aside = angles.wrist
        half_twist = Rotation.from_rotvec(along * sign * twist / 2, degrees=True)
        local = {
            f"lowerarm02.{side}": half_twist,
            f"wrist.{side}": Rotation.from_rotvec(flexion * bend + palm * aside, degrees=True) * half_twist,
        }
        for finger, curl in enumerate(angles.curls, start=1):
            axis, joints = (thumb, THUMB_CURL) if finger == 1 else (flexion, FINGER_CURL)
            for joint, angle in enumerate(joints, start=1):
                local[f"finger{finger}-{joint}.{side}"] = Rotation.from_rotvec(axis * curl * angle, degrees=True)
            if finger > 1:
                # A fist cannot be spread.
                fan = (finger - 3.5) / 1.5 * angles.spread * (1 - max(curl, 0.0))
                first = f"finger{finger}-1.{side}"
                local[first] = Rotation.from_rotvec(palm * fan, degrees=True) * local[first]
        return local


def describe_pose(body: Body, rotations: Float[np.ndarray, "j 3 3"]) -> str:
    """Kind of a pose of the mean body, the first that applies of `KINDS`."""
    rest = dict(zip(body.joints, body.mean[-len(body.joints) :], strict=True))
    _, positions = body.forward(body.mean[-len(body.joints) :], rotations)
    place = dict(zip(body.joints, positions, strict=True))
    trunk = place["spine01"] - place["root"]
    lowest, lowest_at_rest = (min(at["foot.L"][1], at["foot.R"][1]) for at in (place, rest))
    wrists = [place["wrist.L"], place["wrist.R"]]
    middle = (place["spine01"] + place["spine03"]) / 2
    if trunk[1] < np.cos(np.deg2rad(BENT)) * np.linalg.norm(trunk):
        return "bent"
    if place["root"][1] - lowest < CROUCHED * (rest["root"][1] - lowest_at_rest):
        return "crouched"
    if max(wrist[1] for wrist in wrists) > place["head"][1]:
        return "arms up"
    return "folded" if min(np.linalg.norm(wrist - middle) for wrist in wrists) < FOLDED else "upright"


def _arm_kind(rng: np.random.Generator) -> str:
    """What an arm does: `free`, `hanging`, or the place that the hand goes to."""
    kind = rng.random()
    if kind < REACHES:
        return tuple(PLACES)[rng.integers(len(PLACES))]
    return "hanging" if kind < REACHES + HANGS else "free"


def _hand_axes(place: dict[str, np.ndarray], side: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Unit axes at rest: along the forearm, of a bend to the palm, of a spread, of the thumb's bend."""
    at = {joint.removesuffix(f".{side}"): head for joint, head in place.items() if joint.endswith(f".{side}")}
    along = _unit(at["wrist"] - at["lowerarm01"])
    hand = at["finger3-1"] - at["wrist"]
    bends = [np.cross(hand, at[f"finger{finger}-3"] - at[f"finger{finger}-1"]) for finger in (2, 3, 4, 5)]
    flexion = _unit(np.sum([_unit(bend) for bend in bends], axis=0))
    palm = _unit(np.cross(at["finger2-1"] - at["wrist"], at["finger5-1"] - at["wrist"]))
    thumb = _unit(np.cross(at["finger1-2"] - at["finger1-1"], at["finger1-3"] - at["finger1-2"]))
    return along, flexion, palm, thumb


def _dense_at_rest(limits: tuple[float, float], rng: np.random.Generator) -> float:
    """Random angle within limits around 0: most likely at 0, and still likely at the ends."""
    low, high = limits
    end = high if rng.random() * (high - low) < high else low
    return float(end * rng.random() ** 1.6)


def _euler(x: float, y: float, z: float) -> Rotation:
    return Rotation.from_euler("xyz", (x, y, z), degrees=True)


def _unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / np.linalg.norm(vector))
