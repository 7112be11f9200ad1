"""Depth images of closed shapes, rendered here in closed form: what is read must lie on them."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shapespace.datasets.folder import Folder
from shapespace.geometry import primitives
from shapespace.geometry.camera import DepthImage
from shapespace.geometry.scan import Scan
from shapespace.io.depth_images import camera_from_json
from shapespace.io.scan_files import read_mesh, read_scan

WIDTH, HEIGHT = 160, 120
INTRINSICS = {"width": WIDTH, "height": HEIGHT, "fx": 150.0, "fy": 140.0, "cx": 83.0, "cy": 57.0}
# Off center, tilted, and unlike itself under every swap and mirror of axes.
A, B, RADIUS = torch.tensor([-0.3, 0.5, 0.1]), torch.tensor([0.25, 1.1, -0.2]), 0.2
UPRIGHT = np.diag([1.0, -1.0, -1.0, 1.0])


def to_capsule(x: np.ndarray) -> np.ndarray:
    return primitives.capsule(torch.from_numpy(x), A.double(), B.double(), RADIUS).numpy()


def looking_at(middle: np.ndarray, place: np.ndarray, roll: float = 0.0) -> np.ndarray:
    """Camera to world (x right, y down, z ahead), turned about its axis by `roll` radians."""
    ahead = (middle - place) / np.linalg.norm(middle - place)
    right = np.cross(ahead, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(ahead, right), ahead], axis=1)
    turn = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = axes @ turn, place
    return pose


def render(pose: np.ndarray, distance: Callable[[np.ndarray], np.ndarray] = to_capsule) -> np.ndarray:
    """Depth along the optical axis by sphere tracing, in meters; 0 where a ray misses."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack(
        [(u - INTRINSICS["cx"]) / INTRINSICS["fx"], (v - INTRINSICS["cy"]) / INTRINSICS["fy"], np.ones_like(u)], -1
    )
    length = np.linalg.norm(rays, axis=-1)
    world = rays @ pose[:3, :3].T
    z = np.zeros((HEIGHT, WIDTH))
    for _ in range(200):
        z += distance((pose[:3, 3] + z[..., None] * world).reshape(-1, 3)).reshape(z.shape) / length
    gap = distance((pose[:3, 3] + z[..., None] * world).reshape(-1, 3)).reshape(z.shape)
    return np.where((np.abs(gap) < 1e-6) & (z < 20), z, 0.0)


FRONT = looking_at(np.array([0.0, 0.8, 0.0]), np.array([0.3, 1.0, 1.6]), roll=0.2)
BACK = looking_at(np.array([0.0, 0.8, 0.0]), np.array([-0.9, 0.4, -1.3]), roll=-1.4)


def save_png(path: Path, depth: np.ndarray, per_metre: float = 1000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(depth * per_metre).astype(np.uint16)).save(path)


def save_json(path: Path, **about: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about))


def write(folder: Path, name: str = "view", pose: np.ndarray | None = FRONT, **about: Any) -> Path:
    """One PNG of the capsule with its JSON."""
    save_png(folder / f"{name}.png", render(UPRIGHT if pose is None else pose))
    placed = {} if pose is None else {"camera_to_world": pose.tolist()}
    save_json(folder / f"{name}.json", **{**INTRINSICS, **placed, **about})
    return folder / f"{name}.png"


def gradient(x: np.ndarray) -> np.ndarray:
    step = 1e-5 * np.eye(3)
    return np.stack([(to_capsule(x + d) - to_capsule(x - d)) / 2e-5 for d in step], axis=1)


def check(scan: Scan, places: list[np.ndarray], rounding: float) -> None:
    """On the capsule, with normals that are right and face the sensor, which is one of the cameras."""
    assert scan.faces is not None
    assert scan.normals is not None
    assert scan.sensors is not None
    points = scan.points.astype(np.float64)
    assert np.abs(to_capsule(points)).max() < rounding
    np.testing.assert_allclose(np.unique(scan.sensors, axis=0), np.unique(np.stack(places), axis=0), atol=1e-6)
    towards = scan.sensors - points
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    assert ((scan.normals * towards).sum(axis=1) > 0).all()
    # Away from the outline, where a pixel covers much of the surface.
    inner = (gradient(points) * towards).sum(axis=1) > 0.4
    assert inner.mean() > 0.7
    cosine = (scan.normals * gradient(points)).sum(axis=1)[inner]
    angles = np.rad2deg(np.arccos(cosine.clip(-1, 1)))
    assert np.percentile(angles, 90) < (1.0 if rounding < 1e-4 else 5.0)
    corners = points[scan.faces]
    facing = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((facing * towards[scan.faces[:, 0]]).sum(axis=1) > 0).all()


# ------------------------------------------------------------------------------------------------------------- formats


def test_a_png_of_millimeters_lies_on_the_shape(tmp_path: Path) -> None:
    scan = read_scan(write(tmp_path))
    assert scan.name == "view"
    assert len(scan) > 1500
    check(scan, [FRONT[:3, 3]], 0.0006)
    assert read_mesh(tmp_path / "view.png").area == pytest.approx(read_mesh(tmp_path / "view.json").area)
    assert read_scan(tmp_path / "view.png", normals="drop").normals is None


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_an_npy_of_meters_is_exact(tmp_path: Path, kind: type) -> None:
    write(tmp_path)
    (tmp_path / "view.png").unlink()
    depth = render(FRONT)
    np.save(tmp_path / "view.npy", np.where(depth > 0, depth, np.nan).astype(kind))
    check(read_scan(tmp_path / "view.npy"), [FRONT[:3, 3]], 2e-6)
    check(read_scan(tmp_path / "view.json"), [FRONT[:3, 3]], 2e-6)
    np.save(tmp_path / "view.npy", np.where(depth > 0, depth, 1e10).astype(kind)[None])  # as renderers and torch do
    check(read_scan(tmp_path / "view.npy"), [FRONT[:3, 3]], 2e-6)
    for nothing in (0, 65_535):
        np.save(tmp_path / "view.npy", np.where(depth > 0, np.round(depth * 1000), nothing).astype(np.uint16))
        check(read_scan(tmp_path / "view.npy", unit="auto"), [FRONT[:3, 3]], 0.0006)


def save_exr(path: Path, **channels: np.ndarray) -> None:
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, channels) as file:
        file.write(str(path))


def test_an_exr_of_meters_is_exact_and_what_is_not_there_was_not_measured(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "view.png").unlink()
    depth = render(FRONT).astype(np.float32)
    for nothing in (np.inf, 1e10, np.nan, 0):
        save_exr(tmp_path / "view.exr", V=np.where(depth > 0, depth, np.float32(nothing)))
        check(read_scan(tmp_path / "view.exr"), [FRONT[:3, 3]], 2e-6)
    check(read_scan(tmp_path / "view.json"), [FRONT[:3, 3]], 2e-6)
    save_exr(tmp_path / "view.exr", Z=np.minimum(depth, 60000).astype(np.float16))
    check(read_scan(tmp_path / "view.exr"), [FRONT[:3, 3]], 0.001)


def test_a_wrong_exr_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path).with_suffix(".exr")
    depth = render(FRONT).astype(np.float32)
    save_exr(path, R=depth, G=depth, B=depth)
    with pytest.raises(ValueError, match=r"view\.exr: channels B, G, R; depth is one channel\. Save that one"):
        read_scan(path)
    save_exr(path, Z=depth[:-1])
    with pytest.raises(ValueError, match=r"view\.exr: 160 x 119 pixels, but the camera in .*view\.json has 160 x 120"):
        read_scan(path)
    path.write_bytes(path.read_bytes()[:-100])
    save_json(tmp_path / "view.json", **{**INTRINSICS, "height": HEIGHT - 1})
    with pytest.raises(ValueError, match=r"view\.exr: not a valid EXR file .*\. Copy it again, or export"):
        read_scan(path)
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(
        ValueError, match=r"view\.exr: reading EXR needs the package OpenEXR\. Run pip install 'shapespace\[exr\]'"
    ):
        read_scan(path)


def test_the_factor_of_the_values_can_be_said(tmp_path: Path) -> None:
    write(tmp_path, depth_unit_scale_factor=1 / 5000)
    save_png(tmp_path / "view.png", render(FRONT), per_metre=5000)
    check(read_scan(tmp_path / "view.png"), [FRONT[:3, 3]], 0.00012)


def test_what_open3d_and_nerfstudio_write_is_read_as_it_is(tmp_path: Path) -> None:
    """An Open3D recording (matrix column by column, above a folder `depth`), and a transforms.json."""
    fx, fy, cx, cy = (INTRINSICS[key] for key in ("fx", "fy", "cx", "cy"))
    for columns in ([fx, 0, 0, 0, fy, 0, cx, cy, 1], [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]):
        save_json(tmp_path / "o/intrinsic.json", width=WIDTH, height=HEIGHT, intrinsic_matrix=columns)
        save_png(tmp_path / "o/depth/00007.png", render(FRONT))
        scan = read_scan(tmp_path / "o/depth/00007.png")
        back = (UPRIGHT[:3, :3] @ scan.points.T.astype(np.float64)).T @ FRONT[:3, :3].T + FRONT[:3, 3]
        assert np.abs(to_capsule(back)).max() < 0.0006
    frames = [
        {
            "file_path": f"images/{name}.jpg",
            "depth_file_path": f"d/{name}.png",
            "transform_matrix": (pose @ UPRIGHT).tolist(),
        }
        for name, pose in (("front", FRONT), ("back", BACK))
    ]
    for name, pose in (("front", FRONT), ("back", BACK)):
        save_png(tmp_path / f"n/d/{name}.png", render(pose))
    named = {"w": WIDTH, "h": HEIGHT, "fl_x": fx, "fl_y": fy, "cx": cx + 0.5, "cy": cy + 0.5, "k1": 0.0, "k2": 0}
    save_json(tmp_path / "n/transforms.json", camera_model="OPENCV", **named, frames=frames)
    check(read_scan(tmp_path / "n/transforms.json"), [FRONT[:3, 3], BACK[:3, 3]], 0.0006)


# -------------------------------------------------------------------------------------------------------------- places


def test_two_cameras_agree_and_each_point_knows_its_own(tmp_path: Path) -> None:
    save_png(tmp_path / "front.png", render(FRONT))
    np.save(tmp_path / "back.npy", render(BACK))
    frames = [
        {"depth_file_path": "front.png", "camera_to_world": FRONT.tolist()},
        {"depth_file_path": "back.npy", "camera_to_world": BACK.tolist()},
    ]
    save_json(tmp_path / "capture.json", **INTRINSICS, frames=frames)
    both = read_scan(tmp_path / "capture.json", name="anna/walk/1")
    assert both.name == "anna/walk/1"
    check(both, [FRONT[:3, 3], BACK[:3, 3]], 0.0006)
    singles = []
    for name, pose in (("front", FRONT), ("back", BACK)):
        save_json(tmp_path / f"{name}.json", **INTRINSICS, camera_to_world=pose.tolist())
        singles.append(read_scan(next(tmp_path.glob(f"{name}.[pn][np][gy]"))))
    np.testing.assert_array_equal(both.points, np.concatenate([single.points for single in singles]))
    np.testing.assert_array_equal(both.faces[: len(singles[0].faces)], singles[0].faces)
    np.testing.assert_array_equal(both.faces[len(singles[0].faces) :] - len(singles[0]), singles[1].faces)


def test_a_frame_may_have_a_camera_of_its_own(tmp_path: Path) -> None:
    save_png(tmp_path / "front.png", render(FRONT))
    frames = [{**INTRINSICS, "depth_file_path": "front.png", "camera_to_world": FRONT.tolist()}]
    save_json(tmp_path / "capture.json", **{**INTRINSICS, "fx": 99}, frames=frames)
    check(read_scan(tmp_path / "capture.json"), [FRONT[:3, 3]], 0.0006)


def test_places_of_cameras_have_the_file_s_unit_and_up_axis(tmp_path: Path) -> None:
    """The same world in centimeters, z up."""
    turn = np.eye(4)
    turn[:3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]  # our y to their z
    pose = turn @ FRONT
    pose[:3, 3] *= 100
    write(tmp_path, pose=FRONT, camera_to_world=pose.tolist())
    check(read_scan(tmp_path / "view.png", unit=0.01, up="z"), [FRONT[:3, 3]], 0.0006)


@pytest.mark.parametrize("up", ["y", "z", "-x"])
def test_without_a_place_the_camera_is_level_and_people_face_z(tmp_path: Path, up: Any) -> None:
    place = UPRIGHT.copy()
    place[:3, 3] = (0.1, 0.9, 1.7)
    save_png(tmp_path / "view.png", render(place))
    save_json(tmp_path / "camera.json", **INTRINSICS)
    scan = read_scan(tmp_path / "view.png", up=up)
    moved = replace(scan, points=scan.points + place[:3, 3], sensors=scan.sensors + place[:3, 3])
    check(moved, [place[:3, 3]], 0.0006)
    assert np.abs(scan.sensors).max() == 0
    assert scan.normals[:, 2].mean() > 0.4


# --------------------------------------------------------------------------------------------------------- the surface


def steps() -> np.ndarray:
    """A wall at 2 m with a plate 10 cm before it."""
    wall = np.full((HEIGHT, WIDTH), 2.0)
    wall[40:80, 60:100] = 1.9
    return wall


def test_no_face_crosses_a_jump_and_the_jump_can_be_said(tmp_path: Path) -> None:
    save_png(tmp_path / "view.png", steps())
    save_json(tmp_path / "view.json", **INTRINSICS)
    apart, whole = read_scan(tmp_path / "view.png"), read_scan(tmp_path / "view.png", max_depth_jump=0.11)
    depth = -apart.points[:, 2]
    assert np.ptp(depth[apart.faces], axis=1).max() == 0
    assert len(apart) == len(whole) == HEIGHT * WIDTH
    assert len(whole.faces) == 2 * (HEIGHT - 1) * (WIDTH - 1)
    # Squares on the edge of the plate lose both triangles, but for the two corners that the diagonal cuts off.
    assert len(whole.faces) - len(apart.faces) == 2 * (41**2 - 39**2) - 2
    np.testing.assert_allclose(apart.normals, np.tile([0, 0, 1], (len(apart), 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("camera", "options", "expected"),
    [
        ({}, {}, {1.9, 2.0}),
        ({"far": 1.95}, {}, {1.9}),
        ({"near": 1.95}, {}, {2.0}),
        ({}, {"max_depth": 1.95}, {1.9}),
        ({}, {"min_depth": 1.95}, {2.0}),
        ({"far": 1.95}, {"max_depth": 5.0}, {1.9}),  # the narrower
        ({"near": 1.9, "far": 2}, {"min_depth": 0.5}, {1.9, 2.0}),  # the limits themselves are within
    ],
)
def test_depths_beyond_the_limits_are_ignored(
    tmp_path: Path, camera: dict[str, float], options: dict[str, float], expected: set[float]
) -> None:
    np.save(tmp_path / "view.npy", steps())
    save_json(tmp_path / "view.json", **INTRINSICS, **camera)
    scan = read_scan(tmp_path / "view.npy", **options)  # type: ignore[arg-type]
    assert set(np.round(-scan.points[:, 2].astype(float), 5).tolist()) == expected
    assert len(scan) == sum({1.9: 1600, 2.0: HEIGHT * WIDTH - 1600}[depth] for depth in expected)


def test_limits_that_leave_nothing_are_told(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(ValueError, match=r": 0 surface points.* \([\d,]+ of them outside the depth limits\)"):
        read_scan(path, min_depth=5.0)
    with pytest.raises(ValueError, match=": 0 surface points"):
        read_scan(path, max_depth=float("nan"))


def test_alone_in_the_air_is_left_out(tmp_path: Path) -> None:
    depth = np.zeros((HEIGHT, WIDTH))
    depth[20:60, 20:60] = 2.0
    depth[80:, 100:] = np.where(np.indices((40, 60)).sum(axis=0) % 2, 1.0, 3.0)  # no neighbors
    np.save(tmp_path / "view.npy", depth)
    save_json(tmp_path / "view.json", **INTRINSICS)
    assert len(read_scan(tmp_path / "view.npy")) == 1600


def test_samples_have_the_normals_between_those_of_the_corners(tmp_path: Path) -> None:
    """Rounded to millimeters, faces of neighboring pixels are steps; the means around points are less so."""
    scan = read_scan(write(tmp_path))
    angles = {}
    for name, of in (("corners", scan), ("faces", replace(scan, normals=None))):
        drawn = of.sample(4000, np.random.default_rng(0))
        assert drawn.normals is not None
        np.testing.assert_allclose(np.linalg.norm(drawn.normals, axis=1), 1, atol=1e-5)
        cosine = (drawn.normals * gradient(drawn.points.astype(np.float64))).sum(axis=1)
        angles[name] = np.rad2deg(np.arccos(cosine.clip(-1, 1))).mean()
    assert angles["corners"] < 0.6 * angles["faces"]


def test_a_depth_image_needs_a_camera_in_the_world() -> None:
    camera = camera_from_json(INTRINSICS)
    view = DepthImage(steps(), camera)
    with pytest.raises(AssertionError, match=r"the camera has no to_world: call Camera\.in_world first"):
        view.to_scan()
    placed = replace(view, camera=camera.in_world(np.eye(3), 1.0))
    middle = placed.unproject(np.array([57 * WIDTH + 83]))
    np.testing.assert_allclose(middle, [[0, 0, -1.9]], atol=1e-12)


# ----------------------------------------------------------------------------------------------------------- sequences


def test_a_folder_of_frames_becomes_scans_named_by_frame(tmp_path: Path) -> None:
    """As Open3D's recorders leave it, with colors beside; and one capture of several cameras a frame."""
    save_json(tmp_path / "anna/intrinsic.json", **INTRINSICS)
    for frame in ("00000", "00001"):
        save_png(tmp_path / f"anna/depth/{frame}.png", render(FRONT))
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / f"anna/{frame}.png")
    dataset = Folder()
    entries = dataset.list_scans(tmp_path)
    assert [entry.name for entry in entries] == ["anna/depth/00000", "anna/depth/00001"]
    assert len(dataset.read_scan(entries[0])) > 1500
    dataset = Folder(pattern="{subject}/depth/{frame}.png")
    assert [entry.name for entry in dataset.list_scans(tmp_path)] == ["anna/scans/00000", "anna/scans/00001"]
    frames = [{"depth_file_path": "depth/00000.png", "camera_to_world": FRONT.tolist()}]
    save_json(tmp_path / "anna/take_1.json", **INTRINSICS, frames=frames)
    dataset = Folder(pattern="{subject}/take_{frame}.json")
    (entry,) = dataset.list_scans(tmp_path)
    assert entry.name == "anna/scans/1"
    check(dataset.read_scan(entry), [FRONT[:3, 3]], 0.0006)


# --------------------------------------------------------------------------------------------------------------- words


def test_what_the_page_shows_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "guide" / "depth_images.md").read_text()
    single, several = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL))
    wall = np.full((576, 640), 2.0)
    for name, about in (("view", single), ("capture", several)):
        save_json(tmp_path / f"{name}.json", **about)
    for name in ("view", "front", "rear"):
        save_png(tmp_path / f"{name}.png", wall)
    np.testing.assert_allclose(read_scan(tmp_path / "view.json").points[:, 2], -2, atol=1e-6)
    both = read_scan(tmp_path / "capture.json")
    front = both.points[: len(both) // 2]
    np.testing.assert_allclose(front[:, 2], 0.4, atol=1e-6)  # 2.4 m away from the middle, looking at it
    np.testing.assert_allclose(both.points[len(both) // 2 :], front * [-1, 1, -1], atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- errors


def _without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in INTRINSICS.items() if key not in keys}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing said": (_without("fx"), r"view\.json: fx is missing\. Give fx, fy, cx, cy, width and height"),
    "no size": (_without("width"), "width is missing"),
    "text": ({**INTRINSICS, "fx": "150"}, 'fx is "150"'),
    "truth": ({**INTRINSICS, "fx": True}, "fx is true"),
    "nan": ({**INTRINSICS, "cy": float("nan")}, "cy is NaN"),
    "huge": ({**INTRINSICS, "width": 10**30}, "width is 1000"),
    "negative": ({**INTRINSICS, "fy": -140}, "focal lengths of 150 and -140 pixels do not fit"),
    "normalised": ({**INTRINSICS, "fx": 0.94, "fy": 1.17}, "focal lengths of 0.94 and 1.17 pixels do not fit"),
    "another size": (
        {**INTRINSICS, "width": 640, "height": 480},
        "160 x 120 pixels, but the camera in .*view.json has 640 x 480",
    ),
    "turned": ({**INTRINSICS, "width": 120, "height": 160}, "160 x 120 pixels, but .* has 120 x 160"),
    "lens": ({**INTRINSICS, "k1": -0.2, "p1": 0}, r"lens distortion \(k1\).* Undistort"),
    "lens list": ({**INTRINSICS, "distortion": {"k": 1}}, r"lens distortion \(distortion\)"),
    "scaled": ({**INTRINSICS, "camera_to_world": (2 * FRONT).tolist()}, "camera_to_world is not a rigid transform"),
    "mirrored": ({**INTRINSICS, "camera_to_world": np.diag([1, 1, -1, 1]).tolist()}, "not a rigid transform"),
    "no matrix": ({**INTRINSICS, "transform_matrix": [[1, 0], [0]]}, "transform_matrix is not a rigid transform"),
    "skewed": ({**_without("fx"), "intrinsic_matrix": [9, 0, 0, 3, 9, 0, 1, 1, 1]}, "intrinsic_matrix is not fx 0 cx"),
    "short": ({**_without("fx"), "intrinsic_matrix": [9, 0, 0]}, "intrinsic_matrix is not fx 0 cx"),
    "ambiguous": (
        {**INTRINSICS, "depth_scale": 1000},
        "depth_scale is ambiguous: some programs multiply .* 0.001",
    ),
    "in kilometers": (
        {**INTRINSICS, "depth_unit_scale_factor": 1},
        r"view\.png: \d+ surface points, .* maximum depth jump is 0\.03 m.* depth_unit_scale_factor",
    ),
    "limits crossed": (
        {**INTRINSICS, "near": 3, "far": 1},
        r"view\.json: near and far are 3 and 1\. Give meters",
    ),
    "limit as text": ({**INTRINSICS, "far": "4 m"}, 'near and far are 0.0 and "4 m"'),
    "limit as truth": ({**INTRINSICS, "near": True}, "near and far are true and Infinity"),
    "no object": ([1, 2], "not a JSON object"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_camera_gets_a_sentence(tmp_path: Path, case: str) -> None:
    about, message = WRONG[case]
    path = write(tmp_path)
    path.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=message) as error:
        read_scan(path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_image_gets_a_sentence(tmp_path: Path) -> None:
    path = write(tmp_path)
    Image.fromarray(np.full((HEIGHT, WIDTH), 200, np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"view\.png: not a 16-bit grayscale PNG.* in millimeters"):
        read_scan(path)
    save_png(path, np.zeros((HEIGHT, WIDTH)))
    with pytest.raises(ValueError, match=r"view\.png: 0 surface points.*; 0 pixels are measured"):
        read_scan(path)
    np.save(tmp_path / "view.npy", np.full((HEIGHT, WIDTH), np.nan))
    with pytest.raises(ValueError, match=r"view\.npy: 0 surface points.*; 0 pixels are measured"):
        read_scan(tmp_path / "view.npy")
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"depth image without a camera; .* view\.json .* camera\.json or intrinsic"):
        read_scan(path)


def test_a_wrong_capture_gets_a_sentence(tmp_path: Path) -> None:
    save_json(tmp_path / "view.json", **INTRINSICS)
    with pytest.raises(ValueError, match=r"view\.json: no image view\.png, \.npy or \.exr, and no depth_file_path"):
        read_scan(tmp_path / "view.json")
    for frames, message in (
        ([], "frames is not a list of objects"),
        ({"a": 1}, "frames is not a list of objects"),
        ([{"file_path": "a.jpg"}], "a frame has no depth_file_path"),
        ([{"depth_file_path": 3}], "a frame has no depth_file_path"),
    ):
        save_json(tmp_path / "view.json", **INTRINSICS, frames=frames)
        with pytest.raises(ValueError, match=message):
            read_scan(tmp_path / "view.json")
    save_json(tmp_path / "view.json", **INTRINSICS, frames=[{"depth_file_path": "no.png"}])
    with pytest.raises(ValueError, match=r"no\.png: no such depth image, named by .*view\.json"):
        read_scan(tmp_path / "view.json")
    save_png(tmp_path / "view.png", steps())
    with pytest.raises(ValueError, match=r"view\.png: one of the images of .*view\.json\. Pass that file"):
        read_scan(tmp_path / "view.png")
    (tmp_path / "view.png").write_bytes((tmp_path / "view.png").read_bytes()[:200])
    save_json(tmp_path / "view.json", **INTRINSICS)
    with pytest.raises(ValueError, match=r"view\.png: not a valid PNG file"):
        read_scan(tmp_path / "view.json")
