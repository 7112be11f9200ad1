"""Animations of meshes: GIF, WebP, MP4, and GLB with a node for each frame."""

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
    """Write scenes one after the other as a film that begins again at its end, while the camera goes around them.

    Args:
        scenes: Meshes side by side, for each moment; all in one scale. One scene, repeated, gives a turntable.
        path: .gif, .webp, .apng or .mp4 (the last needs the extra `video`).
        seconds: How long it takes.
        turn: Degrees by which the camera goes around, to its left, over the whole film.
        size: Height in pixels.
        azimuth: Of the first moment; see `render`.
        elevation: See `render`.

    Raises:
        ValueError: There are no scenes, or one of another number of meshes; or the suffix is another one.
        ModuleNotFoundError: MP4 is asked for and its writer is not installed.

    """
    path = Path(path)
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"cannot write a film as {path}: give a name that ends in one of {', '.join(WRITERS)}.")
    if not scenes or not scenes[0] or len({len(scene) for scene in scenes}) > 1:
        raise ValueError(f"{path}: scenes of {sorted({len(scene) for scene in scenes})} meshes make no film: give as "
                         "many for each moment, one at least.")  # fmt: skip
    write = WRITERS[path.suffix.lower()]
    if write is _mp4:
        _ffmpeg()  # nobody should hear so after the work
    angles = azimuth + turn * np.arange(len(scenes)) / len(scenes)
    shots: list[Shot] = [
        (stand_on_floor(scene), camera_axes(float(angle), elevation))
        for scene, angle in zip(scenes, angles, strict=True)
    ]
    window = Window.around(shots, size)
    frames = [draw_row(*shot, window) for shot in tqdm(shots, desc="film", unit="frame")]
    with replacing(path) as part:
        write([Image.fromarray(frame) for frame in frames], part, seconds / len(frames))


def _gif(frames: Sequence[Image.Image], path: Path, seconds: float) -> None:
    """With one palette for all frames, so that what stands still is not stored again."""
    few = frames[:: -(-len(frames) // 8)]
    joined = Image.fromarray(np.concatenate([np.asarray(frame) for frame in few]))
    palette = joined.quantize(128, method=Image.Quantize.MEDIANCUT)
    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    _pillow("GIF", flat, path, seconds)


def _pillow(form: str, frames: Sequence[Image.Image], path: Path, seconds: float, **options: Any) -> None:
    frames[0].save(
        path, format=form, save_all=True, append_images=frames[1:], duration=round(1000 * seconds), loop=0, **options
    )


def _mp4(frames: Sequence[Image.Image], path: Path, seconds: float) -> None:
    width, height = (side + side % 2 for side in frames[0].size)  # H.264 halves its colours
    told = ["-f", "mp4", "-movflags", "+faststart"]
    size = (width, height)
    writer = _ffmpeg().write_frames(str(path), size, fps=1 / seconds, macro_block_size=2, quality=7, output_params=told)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(ImageOps.pad(frame, size, color=paper_color())).tobytes())
    writer.close()


def _ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "MP4 needs a writer that is not installed: pip install 'shapespace[video]', or write .gif or .webp."
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
    """Write meshes as one GLB that shows them in turn, again and again; `seconds` from the first to the last.

    With `back` the same way is gone back each time.

    Interpolated surfaces differ in their faces, so that morph targets cannot hold them. Each is a node of its own,
    whose scale a STEP animation switches between 1 and 0 (the glTF 2.0 specification recommends scale 0 to hide a
    node). At rest only the first has scale 1: viewers that do not animate show that one.

    Raises:
        ValueError: There are no meshes, or one has no faces.

    """
    if not meshes:
        raise ValueError(f"{path}: an animation was given no meshes. Give it at least one.")
    scene = Scene()
    for k, mesh in enumerate(meshes):
        if not len(mesh.faces):
            raise ValueError(f"{path}: frame {k} of {len(meshes)} has no faces. Leave it out, or mesh it again.")
        scene.add_geometry(_smooth(mesh), node_name=_frame(k), geom_name=_frame(k))

    def finish(buffers: Any, tree: dict[str, Any]) -> None:
        _add_materials(tree)
        _add_animation(buffers, tree, len(meshes), seconds, back=back)

    with replacing(path) as part:
        part.write_bytes(_glb(scene, finish))


def colored_glb(mesh: Trimesh) -> bytes:
    """A mesh as GLB, smooth and dull, in its own colours of vertices or in clay: as `animated_glb` has its frames."""
    return _glb(Scene([_smooth(mesh)]), lambda _, tree: _add_materials(tree))


def _glb(scene: Scene, finish: Callable[[Any, dict[str, Any]], None]) -> bytes:
    data: bytes = export_glb(  # type: ignore[no-untyped-call]
        scene, include_normals=True, unitize_normals=False, buffer_postprocessor=finish
    )
    return data


def _frame(k: int) -> str:
    return f"frame_{k:04d}"


def _smooth(mesh: Trimesh) -> Trimesh:
    """A copy with the used vertices only, unit vertex normals, and the vertex colours, linear as glTF has them."""
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


def _linear(colours: UInt8[np.ndarray, "n 4"]) -> UInt8[np.ndarray, "n 4"]:
    """Colours of the screen (sRGB) as amounts of light: a viewer of GLB turns them back, and would show paler ones."""
    bright = np.rint(255 * (colours[:, :3] / 255) ** 2.2).astype(np.uint8)
    return np.concatenate([bright, colours[:, 3:]], axis=1)


def _add_materials(tree: dict[str, Any]) -> None:
    """Give each mesh a dull two-sided material: clay, or white under vertex colours (factors are linear, not sRGB)."""
    materials: list[dict[str, Any]] = []
    for mesh in tree["meshes"]:
        for primitive in mesh["primitives"]:
            painted = "COLOR_0" in primitive["attributes"]
            colour = [1.0, 1.0, 1.0] if painted else [round(channel**2.2, 4) for channel in CLAY]
            surface = {"baseColorFactor": [*colour, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.8}
            material = {"name": "painted" if painted else "clay", "pbrMetallicRoughness": surface, "doubleSided": True}
            if material not in materials:
                materials.append(material)
            primitive["material"] = materials.index(material)
    tree["materials"] = materials


def _add_animation(buffers: Any, tree: dict[str, Any], count: int, seconds: float, *, back: bool) -> None:
    """Hide all nodes but the first, and animate their scales: frame k from its moments to the next ones."""
    nodes = {node.get("name"): index for index, node in enumerate(tree["nodes"])}
    for k in range(count):
        tree["nodes"][nodes[_frame(k)]]["scale"] = [1.0 if k == 0 else 0.0] * 3
    if count == 1:
        return
    order = [*range(count), *(range(count - 2, 0, -1) if back else ())]
    moments = np.arange(len(order) + 1, dtype=np.float32) * (seconds / (count - 1))
    samplers, channels = [], []
    for k in range(count):
        shown = np.array([frame == k for frame in order] + [order[-1] == k])
        keys = np.flatnonzero([True, *(shown[1:] != shown[:-1])[:-1], True])
        scales = np.repeat(shown[keys, None].astype(np.float32), 3, axis=1)
        times = _accessor(buffers, tree, f"times {k}", moments[keys], "SCALAR")
        values = _accessor(buffers, tree, f"scales {k}", scales, "VEC3")
        samplers.append({"input": times, "output": values, "interpolation": "STEP"})
        channels.append({"sampler": k, "target": {"node": nodes[_frame(k)], "path": "scale"}})
    tree["animations"] = [{"name": "interpolation", "samplers": samplers, "channels": channels}]


def _accessor(buffers: Any, tree: dict[str, Any], key: str, values: np.ndarray, kind: str) -> int:
    """Add little-endian float32 values to the file, and return the index of their accessor."""
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
