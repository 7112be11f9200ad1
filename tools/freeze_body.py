"""Make the human body model and the pose library in `datasets/assets` (needs the extra `body`; run in a checkout).

    pip install -e .[body]
    python tools/freeze_body.py

The body is that of the MakeHuman project through the package `anny`; the poses are the motion clips of the package
`pybullet`. Their licenses are in `datasets/assets/LICENSES.md`. The first construction of the body takes minutes.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

TOPOLOGY = "anny-noeyes-notongue"
"""Watertight and in one piece: no eyeballs, no tongue."""

AGES = (20.0, 80.0)
"""Adults, in years."""

INFLUENCES = 4
"""Skinning weights of each vertex."""

TO_Y_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""From the axes of anny (z up, facing -y) to y up, facing +z; +x is the body's left in both."""

FROM_CLIP = np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
"""From the axes of the clips (x forward, y up, z right) to y up, facing +z."""

CLIPS = ("walk", "run", "jump", "kick", "punch", "spinkick", "dance_a", "dance_b")
"""Motions of an upright person. Excluded: motions on the ground or upside down (crawl, roll, getup, cartwheel, ...)."""

NUM_FRAMES = 40
"""Frames of each clip, evenly in time."""

SPHERES = {"root": 4, "chest": 8, "neck": 12, "hip.R": 16, "foot.R": 21, "arm.R": 25, "hip.L": 30, "foot.L": 35}
SPHERES |= {"arm.L": 39}
HINGES = {"knee.R": 20, "elbow.R": 29, "knee.L": 34, "elbow.L": 43}
"""Index in a frame of a clip of a joint's quaternion (w, x, y, z), or of its angle (radians about z)."""

PARENTS = {"chest": "root", "neck": "chest"}
PARENTS |= {f"{child}.{side}": parent for side in "LR" for child, parent in (("hip", "root"), ("arm", "chest"))}
for _side in "LR":
    PARENTS |= {f"knee.{_side}": f"hip.{_side}", f"foot.{_side}": f"knee.{_side}", f"elbow.{_side}": f"arm.{_side}"}
"""Joints of the clips and their parents."""

LIMBS = {
    "upperleg01": ("hip", "lowerleg01"),
    "lowerleg01": ("knee", "foot"),
    "upperarm01": ("arm", "lowerarm01"),
    "lowerarm01": ("elbow", "wrist"),
}
"""For each joint of the body: the joint of the clip that moves it, and the joint at the end of the bone. In the rest
pose of a clip the bone points straight down."""

SHARED = {
    "chest": ("spine05", "spine04", "spine03", "spine02", "spine01"),
    "neck": ("neck01", "neck02", "neck03", "head"),
}
"""Joints of the body that share one rotation of a clip equally."""


def main(out: Path | None = None, people: int = 300, rank: int = 16, seed: int = 0) -> None:
    """Make the human body model and the pose library.

    Args:
        out: Folder for body.npz and poses.npz; the assets of this checkout if not given.
        people: Number of sampled adults for the principal components.
        rank: Number of principal components.
        seed: Seed of the adults.

    """
    out = Path(__file__).parents[1] / "datasets" / "assets" if out is None else out
    out.mkdir(parents=True, exist_ok=True)
    body = body_arrays(people, rank, seed)
    np.savez_compressed(out / "body.npz", **body)
    names = [str(name) for name in body["joints"]]
    heads = body["mean"][-len(names) :]
    np.savez_compressed(out / "poses.npz", **pose_library(names, heads))
    for name in ("body.npz", "poses.npz"):
        print(f"{out / name} ({(out / name).stat().st_size / 1e6:.2f} MB)")


def body_arrays(people: int, rank: int, seed: int) -> dict[str, Any]:
    """Principal components of adults at rest (vertices and joint heads, meters, y up), skinning weights and faces."""
    model = construct()
    vertices, heads = sample_adults(model, people, seed)
    combined = np.concatenate([vertices, heads], axis=1) @ TO_Y_UP.T
    mean, components = principal_components(combined, rank)
    index, weight = strongest_weights(model.vertex_bone_indices.numpy(), model.vertex_bone_weights.numpy())
    return {
        "mean": mean.astype(np.float32),
        "components": components.astype(np.float16),
        "faces": model.faces.numpy().astype(np.uint16),
        "joints": np.array(model.bone_labels),
        "parents": np.array(model.bone_parents, dtype=np.int16),
        "weight_joint": index.astype(np.uint8),
        "weight": weight.astype(np.float16),
    }


def construct() -> Any:
    """Construct the parametric body of `anny` (float64)."""
    try:
        import anny
        import torch
    except ImportError as missing:
        raise ValueError(
            f"freeze_body: the package {missing.name}, the source of the body, is not installed. "
            "Run `pip install shapespace[body]` first."
        ) from missing
    return anny.Anny(topology=TOPOLOGY).to(dtype=torch.float64)


def sample_adults(model: Any, people: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rest vertices (people, V, 3) and joint heads (people, J, 3) of random adults, in the axes of anny."""
    import torch
    from anny.shape_distribution import SimpleShapeDistribution

    torch.manual_seed(seed)
    youngest, oldest = (torch.tensor(age, dtype=torch.float64) for age in AGES)
    ages = torch.distributions.Uniform(youngest, oldest)
    _, phenotypes = SimpleShapeDistribution(model, morphological_age_distribution=ages).sample(people)
    vertices, heads = [], []
    with torch.no_grad():
        for start in range(0, people, 50):
            posed = model(phenotype_kwargs={key: value[start : start + 50] for key, value in phenotypes.items()})
            vertices.append(posed["rest_vertices"].numpy())
            heads.append(posed["rest_bone_heads"].numpy())
    return np.concatenate(vertices), np.concatenate(heads)


def principal_components(bodies: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (n, 3) and components (rank, n, 3) of bodies (people, n, 3).

    Components are scaled by their standard deviation (meters): a coefficient of 1 is one standard deviation.
    """
    mean = bodies.mean(axis=0)
    flat = (bodies - mean).reshape(len(bodies), -1)
    _, singular, right = np.linalg.svd(flat, full_matrices=False)
    scaled = right[:rank] * singular[:rank, None] / np.sqrt(len(bodies) - 1)
    components = scaled.reshape(rank, -1, 3)
    residual = np.linalg.norm((flat - flat @ right[:rank].T @ right[:rank]).reshape(bodies.shape), axis=2)
    print(f"rank {rank}: residual {residual.mean() * 1e3:.2f} mm (mean), {residual.max() * 1e3:.1f} mm (maximum)")
    return mean, components


def strongest_weights(index: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joints and weights of the `INFLUENCES` largest weights of each vertex, scaled to sum to 1."""
    order = np.argsort(-weight, axis=1, kind="stable")[:, :INFLUENCES]
    largest = np.take_along_axis(weight, order, axis=1)
    return np.take_along_axis(index, order, axis=1), largest / largest.sum(axis=1, keepdims=True)


def pose_library(names: list[str], heads: np.ndarray) -> dict[str, Any]:
    """Motion clips as joint rotations of the body: quaternions (clips, frames, joints, 4), x y z w, and names.

    The rotation of a joint is relative to its parent, about the world axes at rest (y up, +z forward).
    """
    rest = dict(zip(names, heads, strict=True))
    bones = {f"{bone}.{side}": f"{far}.{side}" for side in "LR" for bone, (_, far) in LIMBS.items()}
    down = {bone: straight_down(rest[far] - rest[bone]) for bone, far in bones.items()}
    clips = np.stack([[retarget(frame, down) for frame in resample(clip)] for clip in CLIPS])
    return {
        "clips": np.array(CLIPS),
        "joints": np.array(moved_joints()),
        "rotations": make_continuous(clips).astype(np.float16),
    }


def moved_joints() -> list[str]:
    """Joints of the body that a clip moves, in the order of the arrays."""
    limbs = [f"{bone}.{side}" for side in "LR" for bone in (*LIMBS, "foot")]
    return ["root", *SHARED["chest"], *SHARED["neck"], *limbs]


def resample(clip: str) -> np.ndarray:
    """`NUM_FRAMES` recorded frames (NUM_FRAMES, 44) of a clip, nearest to evenly spaced times."""
    try:
        import pybullet_data
    except ImportError as missing:
        raise ValueError(
            "freeze_body: the package pybullet, the source of the motion clips, is not installed. "
            "Run `pip install shapespace[body]` first."
        ) from missing
    path = Path(pybullet_data.getDataPath()) / "data" / "motions" / f"humanoid3d_{clip}.txt"
    frames = np.array(json.loads(path.read_text())["Frames"])
    start = np.concatenate([[0.0], np.cumsum(frames[:-1, 0])])
    wanted = np.linspace(0.0, start[-1], NUM_FRAMES)
    return np.asarray(frames[np.abs(start[:, None] - wanted).argmin(axis=0)])


def retarget(frame: np.ndarray, down: dict[str, Rotation]) -> np.ndarray:
    """Quaternions (joints, 4) of `moved_joints` for one frame of a clip, without the heading.

    With G the global rotations, the local rotation of a joint is G_parent^T G.
    """
    chain, world = chain_rotations(frame)
    own = {"root": world["root"]}
    for joint, shared in SHARED.items():
        own |= dict.fromkeys(shared, chain[joint] ** (1 / len(shared)))
    for side in "LR":
        turned = {bone: world[f"{joint}.{side}"] * down[f"{bone}.{side}"] for bone, (joint, _) in LIMBS.items()}
        turned["foot"] = world[f"foot.{side}"]
        above = {"upperleg01": world["root"], "lowerleg01": turned["upperleg01"], "foot": turned["lowerleg01"]}
        above |= {"upperarm01": world["chest"], "lowerarm01": turned["upperarm01"]}
        own |= {f"{bone}.{side}": above[bone].inv() * turned[bone] for bone in above}
    return np.stack([own[joint].as_quat() for joint in moved_joints()])


def chain_rotations(frame: np.ndarray) -> tuple[dict[str, Rotation], dict[str, Rotation]]:
    """Rotations of the clip's joints with y up and +z forward: relative to their parents, and global."""
    local = {joint: Rotation.from_quat(frame[start : start + 4][[1, 2, 3, 0]]) for joint, start in SPHERES.items()}
    local |= {joint: Rotation.from_rotvec([0.0, 0.0, frame[place]]) for joint, place in HINGES.items()}
    axes = Rotation.from_matrix(FROM_CLIP)
    local = {joint: axes * rotation * axes.inv() for joint, rotation in local.items()}
    _, y, _, w = local["root"].as_quat()
    heading = Rotation.from_quat([0.0, y, 0.0, w])
    local["root"] = heading.inv() * local["root"]
    world = {"root": local["root"]}
    for joint, parent in PARENTS.items():
        world[joint] = world[parent] * local[joint]
    return local, world


def straight_down(bone: np.ndarray) -> Rotation:
    """Smallest rotation that turns the direction of a bone to -y."""
    direction = bone / np.linalg.norm(bone)
    axis = np.cross(direction, [0.0, -1.0, 0.0])
    sine = np.linalg.norm(axis)
    return Rotation.from_rotvec(axis / sine * np.arctan2(sine, -direction[1]))


def make_continuous(quaternions: np.ndarray) -> np.ndarray:
    """Choose the signs of quaternions (clips, frames, joints, 4) so that neighboring frames can be interpolated."""
    signed = quaternions.copy()
    for frame in range(1, signed.shape[1]):
        dot = np.einsum("cjk,cjk->cj", signed[:, frame], signed[:, frame - 1])
        signed[:, frame] *= np.where(dot < 0, -1.0, 1.0)[..., None]
    return signed


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
