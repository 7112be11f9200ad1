"""Virtual scanners: rings of depth cameras with noise, holes and occlusion."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.transform import Rotation

from shapespace.geometry.camera import triangulate
from shapespace.geometry.proximity import face_normals_and_areas
from shapespace.geometry.raycast import Raycaster
from shapespace.geometry.scan import Scan

WARP_WAVELENGTHS = (0.04, 0.15)
"""Sizes of the blobs of photogrammetry (meters)."""

_WIDE: Any = {"field_of_view": (2.4, 3.0)}  # holds arms that are stretched to the sides or up


@dataclass(frozen=True)
class VirtualScanner:
    """Ring of depth cameras that look at the center of the body; lengths in meters, angles in degrees.

    `azimuths` cameras stand evenly around the body, the first in front (+z), at each of the `elevations`.
    `field_of_view`: width and height of an image at the distance of the center. Depth noise has the standard deviation
    `noise_std / cos(incidence)`. Surface beyond `max_incidence` is not measured. Triangles connect neighboring rays
    whose depths differ by at most `max_depth_jump`. Each image loses `num_holes` discs with a radius (pixels) from the
    range `hole_radius`. `disparity_step` (1/m) rounds the inverse depth, as stereo and structured light do. `warp_std`
    moves the surface by smooth blobs, as photogrammetry does. Nothing lower than `lowest` above the floor is measured.
    """

    azimuths: int = 8
    elevations: tuple[float, ...] = (-8.0, 25.0)
    distance: float = 2.6
    field_of_view: tuple[float, float] = (1.76, 2.64)
    columns: int = 160
    rows: int = 240
    noise_std: float = 0.0008
    max_incidence: float = 72.0
    max_depth_jump: float = 0.03
    num_holes: int = 4
    hole_radius: tuple[float, float] = (2.0, 6.0)
    disparity_step: float = 0.0
    warp_std: float = 0.0
    lowest: float = 0.0

    def scan(
        self,
        vertices: Float[np.ndarray, "v 3"],
        faces: Int[np.ndarray, "f 3"],
        rng: np.random.Generator,
        name: str = "",
    ) -> Scan:
        """Scan a closed mesh (y up): one open patch per camera, unmerged, with normals that face the camera."""
        sensors, directions = self.cameras((vertices.min(axis=0) + vertices.max(axis=0)) / 2)
        depth, cosine = _cast_rays(vertices, faces, sensors, directions)
        seen = cosine >= np.cos(np.deg2rad(self.max_incidence))
        for image in seen:
            self._punch_holes(image, rng)
        depth[seen] += rng.standard_normal(int(seen.sum())) * self.noise_std / cosine[seen]
        if self.warp_std > 0:
            places = sensors[:, None, None] + directions * depth[..., None]
            depth[seen] += smooth_noise(places[seen], self.warp_std, WARP_WAVELENGTHS, rng)
        if self.disparity_step > 0:
            depth[seen] = 1 / (np.round(1 / depth[seen] / self.disparity_step) * self.disparity_step)
        if self.lowest > 0:
            height = sensors[:, None, None, 1] + directions[..., 1] * depth
            seen &= height >= vertices[:, 1].min() + self.lowest
        used, faces = triangulate(seen, depth, self.max_depth_jump)
        camera = used // (self.rows * self.columns)
        points = sensors[camera] + directions.reshape(-1, 3)[used] * depth.reshape(-1)[used, None]
        return Scan(
            name,
            points.astype(np.float32),
            sensors=sensors[camera].astype(np.float32),
            faces=faces,
        )

    def cameras(
        self, center: Float[np.ndarray, "3"]
    ) -> tuple[Float[np.ndarray, "c 3"], Float[np.ndarray, "c rows columns 3"]]:
        """Origins of the cameras, and unit directions of their rays: rows from the top, columns from the left."""
        azimuth = np.deg2rad(360 / self.azimuths * np.arange(self.azimuths))
        azimuth, elevation = (grid.reshape(-1) for grid in np.meshgrid(azimuth, np.deg2rad(self.elevations)))
        away = np.stack(
            [np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)], 1
        )
        right = np.stack([np.cos(azimuth), np.zeros(len(azimuth)), -np.sin(azimuth)], axis=1)
        up = np.cross(away, right)
        across = self.field_of_view[0] * ((np.arange(self.columns) + 0.5) / self.columns - 0.5)
        upward = self.field_of_view[1] * (0.5 - (np.arange(self.rows) + 0.5) / self.rows)
        directions = (
            -self.distance * away[:, None, None]
            + across[None, None, :, None] * right[:, None, None]
            + upward[None, :, None, None] * up[:, None, None]
        )
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        return center + self.distance * away, directions

    def _punch_holes(self, image: Bool[np.ndarray, "rows columns"], rng: np.random.Generator) -> None:
        """Remove random discs of one image, in place."""
        pixels = np.argwhere(image)
        for _ in range(self.num_holes if len(pixels) else 0):
            row, column = pixels[rng.integers(len(pixels))]
            radius = rng.uniform(*self.hole_radius)
            rows, columns = np.ogrid[: self.rows, : self.columns]
            image[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = False


SCANNERS = {
    "ring": VirtualScanner(),
    "studio": VirtualScanner(
        azimuths=12, elevations=(-12.0, 15.0, 45.0), columns=130, rows=163, noise_std=0.0003, num_holes=1, **_WIDE
    ),
    "few cameras": VirtualScanner(
        azimuths=4,
        elevations=(5.0,),
        columns=220,
        rows=275,
        noise_std=0.001,
        num_holes=8,
        hole_radius=(3.0, 10.0),
        **_WIDE,
    ),
    "turntable": VirtualScanner(azimuths=20, elevations=(12.0,), columns=130, rows=163, noise_std=0.0015, **_WIDE),
    "photogrammetry": VirtualScanner(
        azimuths=10,
        elevations=(0.0, 30.0),
        columns=150,
        rows=188,
        noise_std=0.0004,
        warp_std=0.002,
        lowest=0.012,
        **_WIDE,
    ),
    "depth camera": VirtualScanner(
        azimuths=6, elevations=(0.0,), columns=150, rows=188, noise_std=0.002, disparity_step=0.001, **_WIDE
    ),
}
"""Scanners by name: the default; a studio of many quiet cameras; few cameras with holes; one camera and a turning
person; photogrammetry with blobs and missing soles; six views of a depth camera with rounded depths."""


def smooth_noise(
    points: Float[np.ndarray, "n 3"], std: float, wavelengths: tuple[float, float], rng: np.random.Generator
) -> Float[np.ndarray, "n"]:
    """Smooth random field with a standard deviation: 16 plane waves of wavelengths within limits (meters)."""
    directions = Rotation.random(16, random_state=rng).apply([1.0, 0.0, 0.0])
    shortest, longest = np.log(wavelengths)
    lengths = np.exp(rng.uniform(shortest, longest, size=16))
    phases = rng.uniform(0, 2 * np.pi, 16)
    waves = np.cos(points @ (2 * np.pi * directions / lengths[:, None]).T + phases)
    return np.asarray(std * np.sqrt(2 / 16) * waves.sum(axis=1))


def _cast_rays(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    sensors: Float[np.ndarray, "c 3"],
    directions: Float[np.ndarray, "c rows columns 3"],
) -> tuple[Float[np.ndarray, "c rows columns"], Float[np.ndarray, "c rows columns"]]:
    """Depth along each ray, and cosine of its incidence; 0 without a hit."""
    flat = directions.reshape(-1, 3)
    origins = np.repeat(sensors, len(flat) // len(sensors), axis=0)
    depth, face = Raycaster(vertices, faces).first_hit(origins, flat)
    normal, _ = face_normals_and_areas(vertices.astype(np.float64), faces)
    hit = np.flatnonzero(face >= 0)
    cosine = np.zeros(len(flat))
    cosine[hit] = -np.einsum("nd,nd->n", normal[face[hit]], flat[hit])
    shape = directions.shape[:3]
    return depth.astype(np.float64).reshape(shape), cosine.reshape(shape)
