"""Depth images (PNG, NPY, EXR) and the JSON files that describe their cameras."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image
from scipy import sparse
from scipy.sparse import csgraph

from shapespace.geometry.camera import (
    MAX_DEPTH_JUMP,
    UPRIGHT_CAMERA,
    Camera,
    DepthImage,
    find_background,
    merge_depth_images,
    triangulate,
)
from shapespace.geometry.scan import MIN_POINTS, Scan
from shapespace.io.errors import BadFileError, damage_as_error
from shapespace.io.units import axis_rotation, find_origin, transform

MAX_PIXELS = 10_000_000  # of the depth images of one scan
CAMERAS = ("camera.json", "intrinsic.json", "camera_intrinsic.json")  # the last two are written by Open3D's recorders

_NERFSTUDIO_KEYS = {"fx": "fl_x", "fy": "fl_y", "width": "w", "height": "h"}
_DISTORTION_KEYS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "coeffs", "distortion", "dist_coeffs")
_MAX_JSON = 10_000_000  # bytes

# Meters per value of depth cameras and datasets: millimeters, a quarter (Intel L515), 5000 per meter (TUM), an eighth
# (Intel SR300) and a tenth of a millimeter (Intel D405); centimeters, and 256 per meter (KITTI).
_DEPTH_UNITS = (0.001, 0.00025, 0.0002, 0.000125, 0.0001, 0.01, 1 / 256)
_FAR_PERSON = 4.0  # meters: persons are nearer to a depth camera; arbitrary
_NEAR_PERSON = 0.3  # meters: a camera that is nearer sees parts of a person; arbitrary
_SMALLEST_PERSON, _LARGEST_PERSON = 1.0, 2.4  # meters
_SMALLEST_SCAN = 0.3  # meters: smaller ones are not fitted
_USUAL_DISTANCE = 2.5  # meters, for which the maximum depth jump was chosen
_MAX_GUESSED = 1e6  # meters: larger values are no depths in any unit
_MAX_DEPTH = 1e9  # meters: renderers write infinity or 1e10 (Blender) where nothing is visible


def camera_from_json(settings: Mapping[str, Any]) -> Camera:
    """Parse a camera with keys `fx`, `fy`, ..., or with those of Open3D or nerfstudio.

    Raises:
        ValueError: A key is missing or wrong, the lens distorts, or the pose is not rigid.

    """
    width, height = (_number(settings, key) for key in ("width", "height"))
    fx, fy, cx, cy = _intrinsics(settings)
    if not all(0 < size < 20 * focal for size, focal in ((width, fx), (height, fy))):
        raise ValueError(
            f"focal lengths of {fx:g} and {fy:g} pixels do not fit an image of {width:g} x {height:g}. Give them in "
            "pixels of this image."
        )
    distorted = [
        key
        for key in _DISTORTION_KEYS
        if settings.get(key) and (_array(settings[key]).any() or not _array(settings[key]).size)
    ]
    if distorted:
        raise ValueError(
            f"lens distortion ({', '.join(distorted)}) is not supported. Undistort the images (OpenCV: cv2.undistort) "
            "and set these keys to 0."
        )
    return Camera(int(width), int(height), fx, fy, cx, cy, _pose(settings), *_limits(settings))


def meters_per_value(settings: Mapping[str, Any], *, integers: bool) -> float:
    """Meters per value of a depth image.

    `depth_unit_scale_factor` if given, else 0.001 for integers and 1 for floats.

    Raises:
        ValueError: The JSON has the ambiguous key `depth_scale`.

    """
    if "depth_unit_scale_factor" in settings:
        return _number(settings, "depth_unit_scale_factor")
    if "depth_scale" in settings:
        raise ValueError(
            "depth_scale is ambiguous: some programs multiply by it, others divide. Use depth_unit_scale_factor, the "
            "meters per value: 0.001 for millimeters."
        )
    return 0.001 if integers else 1.0


def _intrinsics(settings: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Focal lengths and principal point (pixels), by key or from a matrix (Open3D, OpenCV)."""
    if "intrinsic_matrix" not in settings:
        fx, fy, cx, cy = (_number(settings, key) for key in ("fx", "fy", "cx", "cy"))
        corner = 0.5 if "fl_x" in settings else 0.0  # nerfstudio: the origin is the corner of the first pixel
        return fx, fy, cx - corner, cy - corner
    matrix = _array(settings["intrinsic_matrix"])
    if matrix.size == 9:
        matrix = matrix.reshape(3, 3)
        if list(matrix[2]) != [0, 0, 1]:  # Open3D: column by column
            matrix = matrix.T
    if matrix.shape != (3, 3) or list(matrix[2]) != [0, 0, 1] or matrix[0, 1] or matrix[1, 0]:
        raise ValueError(
            "intrinsic_matrix is not fx 0 cx, 0 fy cy, 0 0 1. Write these rows, or the same column by column."
        )
    return float(matrix[0, 0]), float(matrix[1, 1]), float(matrix[0, 2]), float(matrix[1, 2])


def _pose(settings: Mapping[str, Any]) -> Float[np.ndarray, "4 4"] | None:
    """Camera to world, or None if the JSON has no pose."""
    key = next((key for key in ("camera_to_world", "transform_matrix") if key in settings), None)
    if key is None:
        return None
    pose = _array(settings[key])
    rotation = pose[:3, :3] if pose.shape == (4, 4) and np.allclose(pose[3], [0, 0, 0, 1]) else np.zeros((3, 3))
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) or np.linalg.det(rotation) < 0:
        raise ValueError(
            f"{key} is not a rigid transform. Give four rows of four numbers: rotation and position, and a last row "
            "0 0 0 1."
        )
    return pose @ UPRIGHT_CAMERA if key == "transform_matrix" else pose  # nerfstudio: y up, z backward


def _limits(settings: Mapping[str, Any]) -> tuple[float, float]:
    """Near and far limits (meters); by default 0 and infinity."""
    near, far = settings.get("near", 0.0), settings.get("far", np.inf)
    numbers = all(isinstance(limit, int | float) and not isinstance(limit, bool) for limit in (near, far))
    if not numbers or not 0 <= near < far:
        raise ValueError(
            f"near and far are {json.dumps(near)[:40]} and {json.dumps(far)[:40]}. Give meters along the optical axis "
            "with near < far, or omit them."
        )
    return float(near), float(far)


def _array(value: Any) -> Float[np.ndarray, "..."]:
    """Convert to finite numbers; an empty array for anything else."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return np.empty(0)
    return array if np.isfinite(array).all() and np.abs(array).max(initial=0) < 1e9 else np.empty(0)


def _number(settings: Mapping[str, Any], key: str) -> float:
    """Required number, under its key or that of nerfstudio."""
    name = key if key in settings else _NERFSTUDIO_KEYS.get(key, key)
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        problem = f"{name} is {json.dumps(value)[:40]}" if name in settings else f"{key} is missing"
        raise ValueError(f"{problem}. Give fx, fy, cx, cy, width and height of the camera as numbers of pixels.")
    return float(value)


def read_depth_image(path: Path) -> list[DepthImage]:
    """Read a depth image and its camera.

    The camera is the JSON with the name of the image, or one of `CAMERAS` in its folder or the folder above.
    """
    json_file, settings = _camera_of(path)
    camera = _camera(json_file, settings)
    return [DepthImage(_read_depths(path, json_file, settings, camera), camera)]


def read_capture(path: Path) -> list[DepthImage]:
    """Read the depth images that a JSON lists under `frames`, or the one with its name."""
    content = _read_json(path)
    frames = content.get("frames", [{}])
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise BadFileError(f"{path}: frames is not a list of objects. List the depth_file_path of at least one image.")
    settings = [{**content, **frame} for frame in frames]
    images = [_image_of(path, frame) for frame in settings]
    cameras = [_camera(path, frame) for frame in settings]
    pixels = sum(camera.width * camera.height for camera in cameras)
    if pixels > MAX_PIXELS:
        raise BadFileError(f"{path}: {pixels:,} pixels together, more than {MAX_PIXELS:,}. List fewer images.")
    shots = zip(images, cameras, settings, strict=True)
    return [DepthImage(_read_depths(image, path, frame, camera), camera) for image, camera, frame in shots]


def _image_of(path: Path, settings: dict[str, Any]) -> Path:
    """Path of the depth image that a JSON names, or of the image with the name of the JSON."""
    beside = [image.name for image in map(path.with_suffix, (".png", ".npy", ".exr")) if image.exists()]
    name = settings.get("depth_file_path") or (beside[0] if beside and "frames" not in settings else None)
    if not isinstance(name, str):
        which = "a frame has" if "frames" in settings else f"no image {path.stem}.png, .npy or .exr, and"
        raise BadFileError(
            f"{path}: {which} no depth_file_path. Add depth_file_path: the PNG, NPY or EXR, relative to the JSON."
        )
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BadFileError(
            f"{path}: depth_file_path {name} is outside the folder of the JSON. Move the JSON beside the image."
        )
    return path.parent / name


def _camera_files(image: Path) -> list[Path]:
    """JSON files that can describe the camera of an image."""
    shared = [folder / name for folder in (image.parent, image.parent.parent) for name in CAMERAS]
    return [path for path in (image.with_suffix(".json"), *shared) if path.is_file()]


def has_camera(image: Path) -> bool:
    """Whether there is a JSON that describes the camera of an image."""
    return bool(_camera_files(image))


def _camera_of(image: Path) -> tuple[Path, dict[str, Any]]:
    """JSON of the camera of an image: the file and its content."""
    for path in _camera_files(image)[:1]:
        content = _read_json(path)
        if "frames" in content:
            raise BadFileError(f"{image}: one of the images of {path}. Pass that file: it is the whole capture.")
        return path, content
    raise BadFileError(
        f"{image}: depth image without a camera; no {image.with_suffix('.json').name} beside it and no "
        f"{' or '.join(CAMERAS)} there or in the folder above. Write one with fx, fy, cx, cy, width and height."
    )


def _camera(path: Path, settings: dict[str, Any]) -> Camera:
    try:
        return camera_from_json(settings)
    except ValueError as error:
        raise BadFileError(f"{path}: {error}") from error


def _read_depths(image: Path, json_file: Path, settings: dict[str, Any], camera: Camera) -> Float[np.ndarray, "r c"]:
    """Values of an image in meters."""
    if not image.is_file():
        raise BadFileError(f"{image}: no such depth image, named by {json_file}. Correct depth_file_path.")
    with damage_as_error(image, "Copy it again, or export the depth again."):
        values = _DEPTH_READERS.get(image.suffix.lower(), _npy_values)(image, json_file, camera)
    # The largest integer is what cameras write where they measured nothing, if it is not 0.
    beyond = _MAX_DEPTH if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    values = np.where(values < beyond, values, 0)
    try:
        factor = meters_per_value(settings, integers=values.dtype.kind != "f")
    except ValueError as error:
        raise BadFileError(f"{json_file}: {error}") from error
    with np.errstate(over="ignore"):
        depth = values.astype(np.float64) * factor
    if "depth_unit_scale_factor" not in settings:
        _check_unit(image, json_file, depth, camera, factor)
    return depth


def _check_unit(image: Path, json_file: Path, depth: Float[np.ndarray, "r c"], camera: Camera, factor: float) -> None:
    """Refuse an image whose unit is not given, if the most that it shows is not where and as large as a person can be.

    The size is that of the largest connected surface; its neighboring pixels differ by little in any unit.
    """
    seen = np.isfinite(depth) & (depth > 0)
    near = float(np.percentile(depth[seen], 5)) if seen.any() else 0.0
    is_near = 0 < near < _NEAR_PERSON
    if not (is_near or _FAR_PERSON < near < _MAX_GUESSED):
        return
    jump = MAX_DEPTH_JUMP * float(np.median(depth[seen])) / _USUAL_DISTANCE
    pixels, faces = triangulate(seen, depth, jump)
    if not len(faces):
        return
    edges = sparse.coo_array(
        (np.ones(2 * len(faces)), (faces[:, :2].ravel(), faces[:, 1:].ravel())), (len(pixels),) * 2
    )
    _, part = csgraph.connected_components(edges, directed=False)
    points = DepthImage(depth, camera.in_world(np.eye(3), 1.0)).unproject(pixels[part == np.bincount(part).argmax()])
    size = float(np.ptp(np.percentile(points, [1, 99], axis=0), axis=0).max())
    if _SMALLEST_SCAN <= size <= _LARGEST_PERSON or (is_near and size > _LARGEST_PERSON):
        return
    sizes = {other: size * other / factor for other in _DEPTH_UNITS}
    likely = [f"{other:g} (a body of {meters:.2f} m)" for other, meters in sizes.items() if _in_range(meters)]
    remedy = " or ".join(likely) if likely else "the meters per value"
    raise BadFileError(
        f"{image}: with {factor:g} m per value the nearest surface is at {near:,.2f} m and the largest is "
        f"{size:,.2f} m high or wide, which is no person. Set depth_unit_scale_factor in {json_file} to {remedy}."
    )


def _in_range(meters: float) -> bool:
    return _SMALLEST_PERSON <= meters <= _LARGEST_PERSON


def _png_values(image: Path, json_file: Path, camera: Camera) -> Shaped[np.ndarray, "r c"]:
    if not is_depth_image(image):
        raise BadFileError(
            f"{image}: not a 16-bit grayscale PNG; colors or 8 bits contain no distances. Export the depth in "
            "millimeters."
        )
    with Image.open(image) as opened:
        _check_image_size(image, json_file, opened.size, camera)
        return np.asarray(opened)


def _npy_values(image: Path, json_file: Path, camera: Camera) -> Shaped[np.ndarray, "r c"]:
    mapped = np.load(image, mmap_mode="r", allow_pickle=False)
    mapped = mapped.squeeze() if mapped.ndim > 2 else mapped
    if mapped.ndim != 2 or mapped.dtype.kind not in "fiu":
        raise BadFileError(
            f"{image}: array of {mapped.dtype} {mapped.shape}. Save an array of numbers of shape (rows, columns)."
        )
    _check_image_size(image, json_file, mapped.shape[::-1], camera)
    return np.array(mapped)


def _exr_values(image: Path, json_file: Path, camera: Camera) -> Float[np.ndarray, "r c"]:
    """The only channel of an EXR image."""
    try:
        import OpenEXR
    except ModuleNotFoundError as missing:
        raise BadFileError(
            f"{image}: reading EXR needs the package OpenEXR. Run pip install 'shapespace[exr]', or save NPY."
        ) from missing
    with OpenEXR.File(str(image), header_only=True) as file:
        low, high = ([int(place) for place in corner] for corner in file.header()["dataWindow"])
        names = [channel.name for channel in file.header()["channels"]]
    _check_image_size(image, json_file, (high[0] - low[0] + 1, high[1] - low[1] + 1), camera)
    if len(names) != 1:
        raise BadFileError(f"{image}: channels {', '.join(names)[:60]}; depth is one channel. Save that one alone.")
    with OpenEXR.File(str(image), separate_channels=True) as file:
        return np.array(file.channels()[names[0]].pixels)


_DEPTH_READERS = {".png": _png_values, ".exr": _exr_values}


def _check_image_size(image: Path, json_file: Path, size: tuple[int, ...], camera: Camera) -> None:
    """Refuse an image whose size is not that of its camera, before it is decoded."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise BadFileError(f"{image}: {width} x {height} pixels, more than {MAX_PIXELS:,}. Pass a smaller image.")
    if (width, height) != (camera.width, camera.height):
        raise BadFileError(
            f"{image}: {width} x {height} pixels, but the camera in {json_file} has {camera.width} x {camera.height}. "
            "Give the camera of this image."
        )


def is_depth_image(path: Path) -> bool:
    """Whether a PNG is 16-bit grayscale: depth images are, pictures and textures are not."""
    with path.open("rb") as file:
        start = file.read(26)
    return start[:8] == b"\x89PNG\r\n\x1a\n" and start[24:26] == bytes([16, 0])


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    if path.stat().st_size > _MAX_JSON:
        raise BadFileError(
            f"{path}: {path.stat().st_size:,} bytes, more than {_MAX_JSON:,} for a camera file. Pass another file."
        )
    with damage_as_error(path, "Copy it again, or write it again."):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise BadFileError(f"{path}: not a JSON object. Write one with fx, fy, cx, cy, width and height.")
    return content


def scan_of_depth_images(path: Path, views: list[DepthImage], name: str, unit: float, up: str, jump: float) -> Scan:
    """Merge depth images to a scan in meters, y up.

    `jump` is the maximum depth difference of neighboring pixels on one surface (meters).
    """
    placed = [replace(view, camera=view.camera.in_world(axis_rotation(up), unit)) for view in views]
    scan = merge_depth_images(placed, name, max_depth_jump=jump)
    if len(scan) < MIN_POINTS:
        measured = np.concatenate([view.depth[view.measured] for view in views])
        ignored = len(measured) - sum(int(view.seen.sum()) for view in views)
        beyond = f" ({ignored:,} of them outside the depth limits)" if ignored else ""
        low, high = (measured.min(), measured.max()) if len(measured) else (0, 0)
        raise ValueError(
            f"{path}: {len(scan)} surface points, at least {MIN_POINTS} are required; {len(measured):,} pixels are "
            f"measured, at {low:.3g} to {high:.3g} m{beyond}, and the maximum depth jump is {jump:g} m. Set "
            "depth_unit_scale_factor in the JSON if the values are not millimeters."
        )
    origin = find_origin(scan.points) if np.isfinite(scan.points).all() else None
    start = np.zeros(3) if origin is None else origin.point
    shifts = {"points": start, "sensors": start, "normals": np.zeros(3)}
    moved: dict[str, Any] = {
        key: transform(path, getattr(scan, key) - shift, np.eye(3)) for key, shift in shifts.items()
    }
    background = find_background(views)
    return replace(
        scan,
        origin=None if origin is None else start,
        findings=(*(origin.findings if origin else ()), *([background] if background else [])),
        is_metric=True,
        **moved,
    )
