"""Virtual scanner: a ring of depth cameras with noise, holes and occlusion."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from shapespace.geometry.camera import triangulate
from shapespace.geometry.proximity import face_normals_and_areas
from shapespace.geometry.raycast import Raycaster
from shapespace.geometry.scan import Scan


@dataclass(frozen=True)
class VirtualScanner:
    """Ring of depth cameras that look at the center of the body; lengths in meters, angles in degrees.

    `azimuths` cameras stand evenly around the body, the first in front (+z), at each of the `elevations`.
    `field_of_view`: width and height of an image at the distance of the center. Depth noise has the standard deviation
    `noise_std / cos(incidence)`. Surface beyond `max_incidence` is not measured. Triangles connect neighboring rays
    whose depths differ by at most `max_depth_jump`. Each image loses `num_holes` discs with a radius (pixels) from the
    range `hole_radius`.
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
