"""Depth images with their cameras: PNG, NPY, EXR and the JSON beside them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from shapespace.geometry.camera import UPRIGHT_CAMERA, Camera, DepthImage, merge_depth_images
from shapespace.geometry.scan import MIN_POINTS, Scan
from shapespace.io.errors import BadFileError, damage_as_error
from shapespace.io.units import axis_rotation, transform

_OTHER_NAMES = {"fx": "fl_x", "fy": "fl_y", "width": "w", "height": "h"}  # what nerfstudio says


_LENS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "coeffs", "distortion", "dist_coeffs")


def camera_from_json(about: Mapping[str, Any]) -> Camera:
    """The camera that a JSON describes: by `fx` and so on, as Open3D, or as nerfstudio's transforms.json.

    Raises:
        ValueError: It does not, or it describes none that has a pinhole and a rigid place.

    """
    width, height = (_number(about, key) for key in ("width", "height"))
    fx, fy, cx, cy = _intrinsics(about)
    if not all(0 < size < 20 * focal for size, focal in ((width, fx), (height, fy))):
        raise ValueError(
            f"focal lengths of {fx:g} and {fy:g} pixels do not go with an image of {width:g} x {height:g}. Give "
            "them in pixels of this image."
        )
    bent = [key for key in _LENS if about.get(key) and (_array(about[key]).any() or not _array(about[key]).size)]
    if bent:
        raise ValueError(
            f"the lens distorts ({', '.join(bent)}), and depth images are read as those of a pinhole. Undistort "
            "them first (OpenCV: cv2.undistort), and set these to 0."
        )
    return Camera(int(width), int(height), fx, fy, cx, cy, _pose(about), *_limits(about))


def metres_per_value(about: Mapping[str, Any], *, whole: bool) -> float:
    """What a value of a depth image means: a millimetre if it is a `whole` number, else a metre, or what is said.

    Raises:
        ValueError: It is said in a word that different programs understand differently.

    """
    if "depth_unit_scale_factor" in about:
        return _number(about, "depth_unit_scale_factor")
    if "depth_scale" in about:
        raise ValueError(
            "depth_scale is what some programs multiply by and others divide by. Call it depth_unit_scale_factor, "
            "metres per value of the image: 0.001 for millimetres."
        )
    return 0.001 if whole else 1.0


def _intrinsics(about: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Focal lengths and principal point in pixels: by name, or as Open3D's or OpenCV's matrix."""
    if "intrinsic_matrix" not in about:
        fx, fy, cx, cy = (_number(about, key) for key in ("fx", "fy", "cx", "cy"))
        corner = 0.5 if "fl_x" in about else 0.0  # nerfstudio counts from the corner of the first pixel
        return fx, fy, cx - corner, cy - corner
    matrix = _array(about["intrinsic_matrix"])
    if matrix.size == 9:
        matrix = matrix.reshape(3, 3)
        if list(matrix[2]) != [0, 0, 1]:  # Open3D writes it column by column
            matrix = matrix.T
    if matrix.shape != (3, 3) or list(matrix[2]) != [0, 0, 1] or matrix[0, 1] or matrix[1, 0]:
        raise ValueError("intrinsic_matrix is not fx 0 cx, 0 fy cy, 0 0 1. Write it so, or column by column.")
    return float(matrix[0, 0]), float(matrix[1, 1]), float(matrix[0, 2]), float(matrix[1, 2])


def _pose(about: Mapping[str, Any]) -> Float[np.ndarray, "4 4"] | None:
    """Camera to world, or None if nothing is said."""
    key = next((key for key in ("camera_to_world", "transform_matrix") if key in about), None)
    if key is None:
        return None
    pose = _array(about[key])
    turn = pose[:3, :3] if pose.shape == (4, 4) and np.allclose(pose[3], [0, 0, 0, 1]) else np.zeros((3, 3))
    if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-3) or np.linalg.det(turn) < 0:
        raise ValueError(
            f"{key} is no rigid motion. Give four rows of four numbers: a rotation without scale or mirror, beside it "
            "the camera's place, and 0 0 0 1 below."
        )
    return pose @ UPRIGHT_CAMERA if key == "transform_matrix" else pose  # nerfstudio: y up, z behind the camera


def _limits(about: Mapping[str, Any]) -> tuple[float, float]:
    """Near and far, in metres; 0 and infinity where nothing is said."""
    near, far = about.get("near", 0.0), about.get("far", np.inf)
    numbers = all(isinstance(limit, int | float) and not isinstance(limit, bool) for limit in (near, far))
    if not numbers or not 0 <= near < far:
        raise ValueError(
            f"near and far are {json.dumps(near)[:40]} and {json.dumps(far)[:40]}. Give them in metres along the "
            "optical axis, near below far, or leave them out."
        )
    return float(near), float(far)


def _array(value: Any) -> Float[np.ndarray, "..."]:
    """Finite numbers, or an empty array where there is anything else."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return np.empty(0)
    return array if np.isfinite(array).all() and np.abs(array).max(initial=0) < 1e9 else np.empty(0)


def _number(about: Mapping[str, Any], key: str) -> float:
    """A number that must be there, under its name or nerfstudio's."""
    name = key if key in about else _OTHER_NAMES.get(key, key)
    value = about.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        said = f"{name} is {json.dumps(value)[:40]}" if name in about else f"it says nothing of {key}"
        raise ValueError(f"{said}. Give fx, fy, cx, cy, width and height of the camera as numbers of pixels.")
    return float(value)


MAX_PIXELS = 10_000_000  # of the depth images of one scan


_NOTHING = 1e9  # metres: no depth of an EXR image is as large


CAMERAS = ("camera.json", "intrinsic.json", "camera_intrinsic.json")  # the last two are what Open3D's recorders write


def read_depth_image(path: Path) -> list[DepthImage]:
    about, described = _camera_of(path)
    camera = _camera(about, described)
    return [DepthImage(_depths(path, about, described, camera), camera)]


def read_capture(path: Path) -> list[DepthImage]:
    """All depth images that a JSON names, or that of its own name."""
    about = _json(path)
    frames = about.get("frames", [{}])
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise BadFileError(f"{path}: frames must be a list that names the depth_file_path of each image, one or more.")
    described = [{**about, **frame} for frame in frames]
    images = [_image_of(path, camera) for camera in described]
    cameras = [_camera(path, camera) for camera in described]
    if sum(camera.width * camera.height for camera in cameras) > MAX_PIXELS:
        raise BadFileError(f"{path} names images of more than {MAX_PIXELS:,} pixels together. Give fewer at once.")
    shots = zip(images, cameras, described, strict=True)
    return [DepthImage(_depths(image, path, told, camera), camera) for image, camera, told in shots]


def _image_of(path: Path, camera: dict[str, Any]) -> Path:
    """The depth image that a JSON names, or that of its own name."""
    near = [image.name for image in map(path.with_suffix, (".png", ".npy", ".exr")) if image.exists()]
    name = camera.get("depth_file_path") or (near[0] if near and "frames" not in camera else None)
    if not isinstance(name, str):
        raise BadFileError(
            f"{path} names no depth image{' for some frame' if 'frames' in camera else ', and none has its name'}. Add "
            '"depth_file_path": the PNG, NPY or EXR, seen from the JSON.'
        )
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BadFileError(
            f"{path} names {name}, and only images beside or below it are read. Move it to the folder that holds them."
        )
    return path.parent / name


def _camera_of(image: Path) -> tuple[Path, dict[str, Any]]:
    """The JSON that describes the camera of an image: of its name, or one for the folder or that above (Open3D)."""
    near = [folder / name for folder in (image.parent, image.parent.parent) for name in CAMERAS]
    for path in (image.with_suffix(".json"), *near):
        if path.is_file():
            about = _json(path)
            if "frames" in about:
                raise BadFileError(f"{image} is one of the images of {path}. Give that file: it is the whole capture.")
            return path, about
    raise BadFileError(
        f"{image} is a depth image without a camera: there is neither {image.with_suffix('.json').name} beside it nor "
        f"{' or '.join(CAMERAS)} there or in the folder above. Write one with fx, fy, cx, cy, width and height."
    )


def _camera(path: Path, described: dict[str, Any]) -> Camera:
    try:
        return camera_from_json(described)
    except ValueError as error:
        raise BadFileError(f"{path}: {error}") from error


def _depths(image: Path, about: Path, described: dict[str, Any], camera: Camera) -> Float[np.ndarray, "r c"]:
    """The values of an image, in metres."""
    if not image.is_file():
        raise BadFileError(f"there is no depth image {image}, which {about} describes. Check depth_file_path.")
    with damage_as_error(image):
        if image.suffix.lower() == ".png":
            if not is_depth_image(image):
                raise BadFileError(
                    f"{image} is no PNG of 16-bit grey, as depth images are: colours, or 8 bits, hold no distances. "
                    "Export the depth itself, in millimetres."
                )
            with Image.open(image) as opened:
                _check_size(image, about, opened.size, camera)
                values = np.asarray(opened)
        elif image.suffix.lower() == ".exr":
            values = _exr_values(image, about, camera)
        else:
            mapped = np.load(image, mmap_mode="r", allow_pickle=False)
            if mapped.ndim != 2 or mapped.dtype.kind not in "fiu":
                raise BadFileError(
                    f"{image} is an array of {mapped.dtype} {mapped.shape}, not numbers (rows, columns). Save it so."
                )
            _check_size(image, about, mapped.shape[::-1], camera)
            values = np.array(mapped)
    try:
        factor = metres_per_value(described, whole=values.dtype.kind != "f")
    except ValueError as error:
        raise BadFileError(f"{about}: {error}") from error
    with np.errstate(over="ignore"):
        return values.astype(np.float64) * factor


def _exr_values(image: Path, about: Path, camera: Camera) -> Float[np.ndarray, "r c"]:
    """The one channel of an EXR image; 0 where a renderer says that nothing is there (infinity, or Blender's 1e10)."""
    try:
        import OpenEXR
    except ModuleNotFoundError as missing:
        raise BadFileError(
            f"{image} is an EXR image, and its reader is not installed: pip install 'shapespace[exr]', or save NPY."
        ) from missing
    with OpenEXR.File(str(image), header_only=True) as file:
        low, high = ([int(place) for place in corner] for corner in file.header()["dataWindow"])
        names = [channel.name for channel in file.header()["channels"]]
    _check_size(image, about, (high[0] - low[0] + 1, high[1] - low[1] + 1), camera)
    if len(names) != 1:
        raise BadFileError(f"{image} has the channels {', '.join(names)[:60]}, and depth is one alone. Save that one.")
    with OpenEXR.File(str(image), separate_channels=True) as file:
        values = np.array(file.channels()[names[0]].pixels)
    return np.where(values < _NOTHING, values, 0)


def _check_size(image: Path, about: Path, size: tuple[int, ...], camera: Camera) -> None:
    """Refuse an image of another size than its camera's, before it is decoded."""
    wide, high = size
    if wide * high > MAX_PIXELS:
        raise BadFileError(f"{image} has {wide} x {high} pixels, more than {MAX_PIXELS:,}. Give a smaller one.")
    if (wide, high) != (camera.width, camera.height):
        raise BadFileError(
            f"{image} has {wide} x {high} pixels, and {about} describes {camera.width} x {camera.height}. Give the "
            "camera of this image, in pixels of its size."
        )


def is_depth_image(path: Path) -> bool:
    """Whether a PNG is 16-bit grey: depth images are, and pictures and textures are not."""
    with path.open("rb") as file:
        start = file.read(26)
    return start[:8] == b"\x89PNG\r\n\x1a\n" and start[24:26] == bytes([16, 0])


def _json(path: Path) -> dict[str, Any]:
    """A JSON that holds an object."""
    if path.stat().st_size > 10_000_000:
        raise BadFileError(f"{path} has {path.stat().st_size:,} bytes: that is no description of cameras.")
    with damage_as_error(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise BadFileError(f"{path} holds no JSON object. Write one with fx, fy, cx, cy, width and height.")
    return content


def scan_of_depth_images(path: Path, views: list[DepthImage], name: str, unit: float, up: str, jump: float) -> Scan:
    """The scan that depth images make, in metres, y up."""
    placed = [replace(view, camera=view.camera.in_world(axis_rotation(up), unit)) for view in views]
    scan = merge_depth_images(placed, name, max_depth_jump=jump)
    if len(scan) < MIN_POINTS:
        measured = np.concatenate([view.depth[view.measured] for view in views])
        ignored = len(measured) - sum(int(view.seen.sum()) for view in views)
        beyond = f" ({ignored:,} of them nearer or farther than the limits allow)" if ignored else ""
        low, high = (measured.min(), measured.max()) if len(measured) else (0, 0)
        raise ValueError(
            f"{path} shows {len(scan)} points of a surface, and at least {MIN_POINTS} are needed: {len(measured):,} "
            f"pixels measured something, at {low:.3g} to {high:.3g} m{beyond}, and neighbours {jump:g} m apart are not "
            "joined. Is it in millimetres, or does its JSON say depth_unit_scale_factor?"
        )
    moved: dict[str, Any] = {
        of: transform(path, getattr(scan, of), np.eye(3)) for of in ("points", "normals", "sensors")
    }
    return replace(scan, **moved)
