"""Animations of meshes: GIF, WebP, APNG, MP4, and GLB with morph targets or with a node for each frame."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from tqdm import tqdm
from trimesh import Scene, Trimesh
from trimesh.exchange.gltf import export_glb

from shapespace.io.atomic import replacing
from shapespace.rendering.colors import vertex_colors
from shapespace.rendering.renderer import (
    CLAY,
    Figure,
    Shot,
    Window,
    camera_axes,
    draw_row,
    paper_color,
    stand_on_floor,
    vertex_normals,
)


def write_animation(
    scenes: Sequence[Sequence[Trimesh]],
    path: str | PathLike[str],
    *,
    seconds: float = 4.0,
    turn: float = 360.0,
    size: int = 320,
    azimuth: float = 25.0,
    elevation: float = 10.0,
) -> None:
    """Write a looped animation of scenes, one for each frame, with a camera that rotates around them.

    Args:
        scenes: Meshes side by side, for each frame; all at one scale. One scene, repeated, gives a turntable.
        path: .gif, .webp, .apng or .mp4 (the last needs the extra `video`).
        seconds: Duration (seconds).
        turn: Rotation of the camera to its left over the animation (degrees).
        size: Height (pixels).
        azimuth: Camera angle of the first frame; see `render`.
        elevation: See `render`.

    Raises:
        ValueError: No scenes, scenes of different numbers of meshes, or an unsupported suffix.
        ModuleNotFoundError: The writer of MP4 is not installed.

    """
    path = Path(path)
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"{path}: not an animation format. Give a name that ends in one of {', '.join(WRITERS)}.")
    if not scenes or not scenes[0] or len({len(scene) for scene in scenes}) > 1:
        raise ValueError(f"{path}: the scenes of an animation have {sorted({len(scene) for scene in scenes})} meshes. "
                         "Give the same number for each frame, at least one.")  # fmt: skip
    write = WRITERS[path.suffix.lower()]
    if write is _mp4:
        _ffmpeg()  # fails before rendering
    angles = azimuth + turn * np.arange(len(scenes)) / len(scenes)
    shots: list[Shot] = [
        (stand_on_floor(scene), camera_axes(float(angle), elevation))
        for scene, angle in zip(scenes, angles, strict=True)
    ]
    window = Window.around(shots, size)
    frames = [draw_row(*shot, window) for shot in tqdm(shots, desc="animation", unit="frame")]
    with replacing(path) as part:
        write([Image.fromarray(frame) for frame in frames], part, seconds / len(frames))


def _gif(frames: Sequence[Image.Image], path: Path, seconds: float) -> None:
    """Write a GIF with one palette for all frames, so that still parts are not stored again."""
    sample = frames[:: -(-len(frames) // 8)]
    joined = Image.fromarray(np.concatenate([np.asarray(frame) for frame in sample]))
    palette = joined.quantize(128, method=Image.Quantize.MEDIANCUT)
    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    _pillow("GIF", flat, path, seconds)


def _pillow(kind: str, frames: Sequence[Image.Image], path: Path, seconds: float, **options: Any) -> None:
    frames[0].save(
        path, format=kind, save_all=True, append_images=frames[1:], duration=round(1000 * seconds), loop=0, **options
    )


def _mp4(frames: Sequence[Image.Image], path: Path, seconds: float) -> None:
    width, height = (side + side % 2 for side in frames[0].size)  # H.264 subsamples colors: even sides
    options = {"macro_block_size": 2, "quality": 7, "output_params": ["-f", "mp4", "-movflags", "+faststart"]}
    size = (width, height)
    writer = _ffmpeg().write_frames(str(path), size, fps=1 / seconds, **options)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(ImageOps.pad(frame, size, color=paper_color())).tobytes())
    writer.close()


def _ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "MP4: the package imageio-ffmpeg is not installed. "
            "Run pip install 'shapespace[video]', or write .gif or .webp."
        ) from None
    return imageio_ffmpeg


WRITERS: Mapping[str, Callable[[Sequence[Image.Image], Path, float], None]] = {
    ".gif": _gif,
    ".webp": partial(_pillow, "WEBP", quality=80, method=4),
    ".apng": partial(_pillow, "PNG"),
    ".mp4": _mp4,
}


def write_animated_glb(
    meshes: Sequence[Trimesh], path: str | PathLike[str], *, seconds: float = 3.0, back: bool = True
) -> None:
    """Write meshes as the frames of one looped GLB; `seconds`: from the first to the last frame.

    `back`: play forward, then backward. At rest the file shows the first frame, also in viewers without animation.

    Meshes that differ in nothing but the places of their vertices become one mesh with a morph target for each later
    frame. A LINEAR animation of the weights moves positions and normals smoothly from frame to frame.

    Other meshes, such as interpolated surfaces, have different faces or colors, which these morph targets do not hold.
    Each frame is then a node, whose scale a STEP animation switches between 1 and 0 (the glTF 2.0 specification
    recommends scale 0 to hide a node): the surface jumps from frame to frame.

    Raises:
        ValueError: No meshes, or a mesh without faces.

    """
    if not meshes:
        raise ValueError(f"{path}: no meshes for an animation. Give at least one.")
    for k, mesh in enumerate(meshes):
        if not len(mesh.faces):
            raise ValueError(
                f"{path}: frame {k} of {len(meshes)} has no faces. Remove it, or extract its surface again."
            )
    is_motion = _is_motion(meshes)
    scene = Scene()
    for k, mesh in enumerate(meshes[:1] if is_motion else meshes):
        scene.add_geometry(_smooth(mesh), node_name=_frame(k), geom_name=_frame(k))

    def finish(buffers: Any, tree: dict[str, Any]) -> None:
        _add_materials(tree)
        if is_motion:
            _add_morph_targets(buffers, tree, meshes)
            _add_weights(buffers, tree, len(meshes), seconds, back=back)
        else:
            _add_scales(buffers, tree, len(meshes), seconds, back=back)

    with replacing(path) as part:
        part.write_bytes(_glb(scene, finish))


def _is_motion(meshes: Sequence[Trimesh]) -> bool:
    """Whether there are several meshes, of the same faces and the same vertex colors."""
    first, colors = meshes[0], vertex_colors(meshes[0])
    return len(meshes) > 1 and all(
        np.array_equal(mesh.faces, first.faces) and _equal(vertex_colors(mesh), colors) for mesh in meshes[1:]
    )


def _equal(a: UInt8[np.ndarray, "n 4"] | None, b: UInt8[np.ndarray, "m 4"] | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


def colored_glb(mesh: Trimesh) -> bytes:
    """GLB of a mesh, smooth and matte, in its vertex colors or in clay; like the frames of `write_animated_glb`."""
    return _glb(Scene([_smooth(mesh)]), lambda _, tree: _add_materials(tree))


def _glb(scene: Scene, finish: Callable[[Any, dict[str, Any]], None]) -> bytes:
    data: bytes = export_glb(  # type: ignore[no-untyped-call]
        scene, include_normals=True, unitize_normals=False, buffer_postprocessor=finish
    )
    return data


def _frame(k: int) -> str:
    return f"frame_{k:04d}"


def _smooth(mesh: Trimesh) -> Trimesh:
    """Copy of a mesh with its referenced vertices, unit vertex normals, and vertex colors in linear RGB (as glTF)."""
    used, faces = np.unique(np.asarray(mesh.faces), return_inverse=True)
    own = vertex_colors(mesh)
    figure = Figure(np.asarray(mesh.vertices, dtype=np.float64)[used], faces.reshape(-1, 3), np.zeros((len(used), 3)))
    return Trimesh(
        figure.vertices,
        figure.faces,
        vertex_normals=vertex_normals(figure),
        vertex_colors=None if own is None else _linear(own[used]),
        process=False,
    )


def _linear(colors: UInt8[np.ndarray, "n 4"]) -> UInt8[np.ndarray, "n 4"]:
    """Linear RGB of sRGB colors; viewers of GLB expect linear colors and show sRGB too pale."""
    linear = np.rint(255 * (colors[:, :3] / 255) ** 2.2).astype(np.uint8)
    return np.concatenate([linear, colors[:, 3:]], axis=1)


def _add_materials(tree: dict[str, Any]) -> None:
    """Add a matte two-sided material to each mesh: clay, or white under vertex colors (factors are linear RGB)."""
    materials: list[dict[str, Any]] = []
    for mesh in tree["meshes"]:
        for primitive in mesh["primitives"]:
            is_colored = "COLOR_0" in primitive["attributes"]
            color = [1.0, 1.0, 1.0] if is_colored else [round(channel**2.2, 4) for channel in CLAY]
            surface = {"baseColorFactor": [*color, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.8}
            material = {
                "name": "painted" if is_colored else "clay",
                "pbrMetallicRoughness": surface,
                "doubleSided": True,
            }
            if material not in materials:
                materials.append(material)
            primitive["material"] = materials.index(material)
    tree["materials"] = materials


def _order(count: int, *, back: bool) -> list[int]:
    """Frames in the order of one loop; the first one, with which the loop starts again, is not repeated."""
    return [*range(count), *(range(count - 2, 0, -1) if back else ())]


def _nodes(tree: dict[str, Any]) -> dict[str, int]:
    return {node.get("name"): index for index, node in enumerate(tree["nodes"])}


def _add_scales(buffers: Any, tree: dict[str, Any], count: int, seconds: float, *, back: bool) -> None:
    """Hide all nodes but the first, and animate their scales: frame k is shown until the next frame."""
    nodes = _nodes(tree)
    for k in range(count):
        tree["nodes"][nodes[_frame(k)]]["scale"] = [1.0 if k == 0 else 0.0] * 3
    if count == 1:
        return
    order = _order(count, back=back)
    times = np.arange(len(order) + 1, dtype=np.float32) * (seconds / (count - 1))
    samplers, channels = [], []
    for k in range(count):
        shown = np.array([frame == k for frame in order] + [order[-1] == k])
        keys = np.flatnonzero([True, *(shown[1:] != shown[:-1])[:-1], True])
        scales = np.repeat(shown[keys, None].astype(np.float32), 3, axis=1)
        inputs = _accessor(buffers, tree, f"times {k}", times[keys], "SCALAR")
        outputs = _accessor(buffers, tree, f"scales {k}", scales, "VEC3")
        samplers.append({"input": inputs, "output": outputs, "interpolation": "STEP"})
        channels.append({"sampler": k, "target": {"node": nodes[_frame(k)], "path": "scale"}})
    tree["animations"] = [{"name": "interpolation", "samplers": samplers, "channels": channels}]


def _add_morph_targets(buffers: Any, tree: dict[str, Any], meshes: Sequence[Trimesh]) -> None:
    """Add frames 1, 2, ... to the mesh of frame 0, as differences of positions and of unit normals.

    Normals double the size. Without them, a limb that turns would keep the light of frame 0.
    """
    (mesh,) = tree["meshes"]
    (primitive,) = mesh["primitives"]
    start = _attributes(meshes[0])
    primitive["targets"] = [
        {
            name: _accessor(buffers, tree, f"{name} {k}", values - start[name], "VEC3")
            for name, values in _attributes(other).items()
        }
        for k, other in enumerate(meshes[1:], start=1)
    ]
    mesh["weights"] = [0.0] * (len(meshes) - 1)
    mesh["extras"] = {"targetNames": [_frame(k) for k in range(1, len(meshes))]}  # Blender and three.js read these


def _attributes(mesh: Trimesh) -> dict[str, Float[np.ndarray, "n 3"]]:
    """Positions and normals, rounded to the float32 of the file: a base and its difference then add up to a frame."""
    smooth = _smooth(mesh)
    values = {"POSITION": smooth.vertices, "NORMAL": smooth.vertex_normals}
    return {name: np.asarray(value, dtype=np.float32).astype(np.float64) for name, value in values.items()}


def _add_weights(buffers: Any, tree: dict[str, Any], count: int, seconds: float, *, back: bool) -> None:
    """Animate the weights of the morph targets: at the time of frame k, target k alone has weight 1.

    In between no more than two weights differ from 0, so that the four targets of positions and normals that every
    viewer must support (glTF 2.0 specification, section 3.7.2.2) are enough for any number of frames. The last key
    leads back to the first frame, or, without `back`, holds the last frame, as in `_add_scales`.
    """
    order = _order(count, back=back)
    order.append(0 if back else order[-1])
    times = np.arange(len(order), dtype=np.float32) * (seconds / (count - 1))
    weights = np.eye(count, dtype=np.float32)[order, 1:]
    inputs = _accessor(buffers, tree, "times", times, "SCALAR")
    outputs = _accessor(buffers, tree, "weights", weights.reshape(-1), "SCALAR")
    sampler = {"input": inputs, "output": outputs, "interpolation": "LINEAR"}
    channel = {"sampler": 0, "target": {"node": _nodes(tree)[_frame(0)], "path": "weights"}}
    tree["animations"] = [{"name": "motion", "samplers": [sampler], "channels": [channel]}]


def _accessor(buffers: Any, tree: dict[str, Any], key: str, values: np.ndarray, kind: str) -> int:
    """Add float32 values (little-endian) to the file; returns the index of their accessor."""
    table = values.reshape(len(values), -1).astype("<f4")
    buffers[key] = table.tobytes()
    tree["accessors"][key] = {
        "bufferView": len(buffers) - 1,
        "componentType": 5126,
        "count": len(table),
        "type": kind,
        "min": table.min(axis=0).tolist(),
        "max": table.max(axis=0).tolist(),
    }
    return len(tree["accessors"]) - 1
