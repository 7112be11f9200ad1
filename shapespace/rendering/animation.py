"""Animations of meshes: GIF, WebP, APNG, MP4, and GLB with a node for each frame."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
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

    `back`: play forward, then backward.

    Interpolated surfaces have different faces, which morph targets do not support. Each frame is a node, whose scale a
    STEP animation switches between 1 and 0 (the glTF 2.0 specification recommends scale 0 to hide a node). At rest only
    the first frame has scale 1: viewers without animation show that one.

    Raises:
        ValueError: No meshes, or a mesh without faces.

    """
    if not meshes:
        raise ValueError(f"{path}: no meshes for an animation. Give at least one.")
    scene = Scene()
    for k, mesh in enumerate(meshes):
        if not len(mesh.faces):
            raise ValueError(
                f"{path}: frame {k} of {len(meshes)} has no faces. Remove it, or extract its surface again."
            )
        scene.add_geometry(_smooth(mesh), node_name=_frame(k), geom_name=_frame(k))

    def finish(buffers: Any, tree: dict[str, Any]) -> None:
        _add_materials(tree)
        _add_animation(buffers, tree, len(meshes), seconds, back=back)

    with replacing(path) as part:
        part.write_bytes(_glb(scene, finish))


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


def _add_animation(buffers: Any, tree: dict[str, Any], count: int, seconds: float, *, back: bool) -> None:
    """Hide all nodes but the first, and animate their scales: frame k is shown until the next frame."""
    nodes = {node.get("name"): index for index, node in enumerate(tree["nodes"])}
    for k in range(count):
        tree["nodes"][nodes[_frame(k)]]["scale"] = [1.0 if k == 0 else 0.0] * 3
    if count == 1:
        return
    order = [*range(count), *(range(count - 2, 0, -1) if back else ())]
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
