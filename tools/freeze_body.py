"""Freeze the human body and the pose library into `datasets/assets` (needs the extra `body`; run in a checkout).

    pip install -e .[body]
    python tools/freeze_body.py

The body comes from the MakeHuman project's body through the package `anny`, the poses from the motion clips of the
package `pybullet`; `datasets/assets/LICENSES.md` names their licences. The body is first constructed in minutes.
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
"""Skinning weights kept for each vertex."""

TO_Y_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""From anny's axes (z up, face towards -y) to ours (y up, face towards +z); +x is the body's left in both."""

FROM_CLIP = np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
"""From the clips' axes (x forward, y up, z right) to ours."""

CLIPS = ("walk", "run", "jump", "kick", "punch", "spinkick", "dance_a", "dance_b")
"""Motions of a standing person. Others lie on the ground or turn over (crawl, roll, getup, cartwheel, spin, ...)."""

KEPT = 40
"""Frames kept of each clip, evenly in time."""

SPHERES = {"root": 4, "chest": 8, "neck": 12, "hip.R": 16, "foot.R": 21, "arm.R": 25, "hip.L": 30, "foot.L": 35}
SPHERES |= {"arm.L": 39}
HINGES = {"knee.R": 20, "elbow.R": 29, "knee.L": 34, "elbow.L": 43}
"""Where in a clip's frame a joint's quaternion (w, x, y, z) starts, or its angle (radians about z) stands."""

PARENTS = {"chest": "root", "neck": "chest"}
PARENTS |= {f"{child}.{side}": parent for side in "LR" for child, parent in (("hip", "root"), ("arm", "chest"))}
for _side in "LR":
    PARENTS |= {f"knee.{_side}": f"hip.{_side}", f"foot.{_side}": f"knee.{_side}", f"elbow.{_side}": f"arm.{_side}"}
"""The clips' joints, each with its parent."""

LIMBS = {
    "upperleg01": ("hip", "lowerleg01"),
    "lowerleg01": ("knee", "foot"),
    "upperarm01": ("arm", "lowerarm01"),
    "lowerarm01": ("elbow", "wrist"),
}
"""The body's joints that a clip's joint turns, with the joint at the far end of the bone: in a clip at rest the bone
points straight down."""

SPREAD = {
    "chest": ("spine05", "spine04", "spine03", "spine02", "spine01"),
    "neck": ("neck01", "neck02", "neck03", "head"),
}
"""Joints of the body that share one rotation of a clip evenly."""


def main(out: Path | None = None, people: int = 300, rank: int = 16, seed: int = 0) -> None:
    """Freeze the human body and the pose library.

    Args:
        out: folder for body.npz and poses.npz; by default the assets of this checkout.
        people: adults drawn to find the principal components.
        rank: principal components kept.
        seed: seed of the adults.

    """
    out = Path(__file__).parents[1] / "datasets" / "assets" if out is None else out
    out.mkdir(parents=True, exist_ok=True)
    body = frozen_body(people, rank, seed)
    np.savez_compressed(out / "body.npz", **body)
    names = [str(name) for name in body["joints"]]
    heads = body["mean"][-len(names) :]
    np.savez_compressed(out / "poses.npz", **pose_library(names, heads))
    for name in ("body.npz", "poses.npz"):
        print(f"{out / name} ({(out / name).stat().st_size / 1e6:.2f} MB)")


def frozen_body(people: int, rank: int, seed: int) -> dict[str, Any]:
    """Principal components of adults at rest (vertices and joint heads together, metres, y up), weights and faces."""
    model = construct()
    vertices, heads = draw_adults(model, people, seed)
    everything = np.concatenate([vertices, heads], axis=1) @ TO_Y_UP.T
    mean, components = principal_components(everything, rank)
    index, weight = strongest(model.vertex_bone_indices.numpy(), model.vertex_bone_weights.numpy())
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
    """Make the parametric body of `anny`, in float64."""
    try:
        import anny
        import torch
    except ImportError as missing:
        raise ValueError(
            f"the package {missing.name} is not installed, and the body is made from it. "
            "Run `pip install shapespace[body]` first; it is needed for making the assets only."
        ) from missing
    return anny.Anny(topology=TOPOLOGY).to(dtype=torch.float64)


def draw_adults(model: Any, people: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rest vertices (people, V, 3) and joint heads (people, J, 3) of adults, in anny's axes."""
    import torch
    from anny.shape_distribution import SimpleShapeDistribution

    torch.manual_seed(seed)
    youngest, oldest = (torch.tensor(age, dtype=torch.float64) for age in AGES)
    ages = torch.distributions.Uniform(youngest, oldest)
    _, phenotypes = SimpleShapeDistribution(model, morphological_age_distribution=ages).sample(people)
    vertices, heads = [], []
    with torch.no_grad():
        for start in range(0, people, 50):
            found = model(phenotype_kwargs={key: value[start : start + 50] for key, value in phenotypes.items()})
            vertices.append(found["rest_vertices"].numpy())
            heads.append(found["rest_bone_heads"].numpy())
    return np.concatenate(vertices), np.concatenate(heads)


def principal_components(bodies: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (n, 3) and components (rank, n, 3) of bodies (people, n, 3).

    A component is scaled by its standard deviation (metres), so that a coefficient of 1 is one standard deviation.
    """
    mean = bodies.mean(axis=0)
    flat = (bodies - mean).reshape(len(bodies), -1)
    _, singular, right = np.linalg.svd(flat, full_matrices=False)
    scaled = right[:rank] * singular[:rank, None] / np.sqrt(len(bodies) - 1)
    components = scaled.reshape(rank, -1, 3)
    left = np.linalg.norm((flat - flat @ right[:rank].T @ right[:rank]).reshape(bodies.shape), axis=2)
    print(f"rank {rank} leaves {left.mean() * 1e3:.2f} mm mean, {left.max() * 1e3:.1f} mm at most")
    return mean, components


def strongest(index: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the strongest `INFLUENCES` weights of each vertex, scaled to sum to 1, with their joints."""
    order = np.argsort(-weight, axis=1, kind="stable")[:, :INFLUENCES]
    kept = np.take_along_axis(weight, order, axis=1)
    return np.take_along_axis(index, order, axis=1), kept / kept.sum(axis=1, keepdims=True)


def pose_library(names: list[str], heads: np.ndarray) -> dict[str, Any]:
    """Motion clips as rotations of the body's joints: quaternions (clips, frames, joints, 4), x y z w, and names.

    A joint's rotation is relative to its parent, about the world's axes at rest (y up, +z forward).
    """
    rest = dict(zip(names, heads, strict=True))
    bones = {f"{bone}.{side}": f"{far}.{side}" for side in "LR" for bone, (_, far) in LIMBS.items()}
    down = {bone: straight_down(rest[far] - rest[bone]) for bone, far in bones.items()}
    clips = np.stack([[retarget(frame, down) for frame in resampled(clip)] for clip in CLIPS])
    return {
        "clips": np.array(CLIPS),
        "joints": np.array(moved_joints()),
        "rotations": continuous(clips).astype(np.float16),
    }


def moved_joints() -> list[str]:
    """List the body's joints that a clip moves, in the order in which they are kept."""
    limbs = [f"{bone}.{side}" for side in "LR" for bone in (*LIMBS, "foot")]
    return ["root", *SPREAD["chest"], *SPREAD["neck"], *limbs]


def resampled(clip: str) -> np.ndarray:
    """`KEPT` frames (KEPT, 44) of a clip, evenly in time; each is the recorded frame nearest in time."""
    try:
        import pybullet_data
    except ImportError as missing:
        raise ValueError(
            "the package pybullet is not installed, and the poses are made from its motion clips. "
            "Run `pip install shapespace[body]` first; it is needed for making the assets only."
        ) from missing
    path = Path(pybullet_data.getDataPath()) / "data" / "motions" / f"humanoid3d_{clip}.txt"
    frames = np.array(json.loads(path.read_text())["Frames"])
    start = np.concatenate([[0.0], np.cumsum(frames[:-1, 0])])
    wanted = np.linspace(0.0, start[-1], KEPT)
    return np.asarray(frames[np.abs(start[:, None] - wanted).argmin(axis=0)])


def retarget(frame: np.ndarray, down: dict[str, Rotation]) -> np.ndarray:
    """Quaternions (joints, 4) of `moved_joints` for one frame of a clip; the heading is taken out.

    With G the rotations in the world, a joint's own is D = G_parent^T G.
    """
    chain, world = chain_rotations(frame)
    own = {"root": world["root"]}
    for joint, shared in SPREAD.items():
        own |= dict.fromkeys(shared, chain[joint] ** (1 / len(shared)))
    for side in "LR":
        turned = {bone: world[f"{joint}.{side}"] * down[f"{bone}.{side}"] for bone, (joint, _) in LIMBS.items()}
        turned["foot"] = world[f"foot.{side}"]
        above = {"upperleg01": world["root"], "lowerleg01": turned["upperleg01"], "foot": turned["lowerleg01"]}
        above |= {"upperarm01": world["chest"], "lowerarm01": turned["upperarm01"]}
        own |= {f"{bone}.{side}": above[bone].inv() * turned[bone] for bone in above}
    return np.stack([own[joint].as_quat() for joint in moved_joints()])


def chain_rotations(frame: np.ndarray) -> tuple[dict[str, Rotation], dict[str, Rotation]]:
    """Read the rotations of the clip's joints in our axes: relative to their parents, and in the world."""
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
    """Find the smallest rotation that turns the bone's direction to -y."""
    direction = bone / np.linalg.norm(bone)
    axis = np.cross(direction, [0.0, -1.0, 0.0])
    sine = np.linalg.norm(axis)
    return Rotation.from_rotvec(axis / sine * np.arctan2(sine, -direction[1]))


def continuous(quaternions: np.ndarray) -> np.ndarray:
    """Choose the signs of quaternions (clips, frames, joints, 4) that let neighbouring frames be blended."""
    signed = quaternions.copy()
    for frame in range(1, signed.shape[1]):
        dot = np.einsum("cjk,cjk->cj", signed[:, frame], signed[:, frame - 1])
        signed[:, frame] *= np.where(dot < 0, -1.0, 1.0)[..., None]
    return signed


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
