"""Scan: the points of one capture, with sampling, outlier removal, normals and frames."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from trimesh import Trimesh

from shapespace.geometry import density, normals, proximity
from shapespace.geometry.findings import Finding
from shapespace.geometry.frame import Frame

MIN_POINTS = 100  # fewer cannot describe a body; it also rejects files that hold a skeleton or a single marker

_VIEW_POINTS = 2000  # points from which the direction of a single view is estimated
_SENSOR_DISTANCE = 3.0  # distance of an inferred sensor, in units of the points (arbitrary: far beyond a body)


@dataclass(frozen=True)
class Scan:
    """Points of one capture; meters (or model units after `to_model`), y up.

    `normals`: unit vectors that point out of the body. `unoriented_normals`: unit vectors of unknown sign, for scans
    whose outside is unknown (see `estimate_normals`); zeros where the line is unknown, too.
    `sensors`: for each point, the origin of the sensor that measured it. `faces`: triangles where the file has them, so
    that the surface can be sampled evenly.

    `origin`: what must be added to points and sensors for their place in the file (meters, y up, float64); None for no
    shift. Only scans far from the origin of their file have one. `findings`: what was unusual (`geometry.findings`).
    `is_metric`: the file itself is in meters, whatever the unit of others: depth images.
    """

    name: str
    points: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"] | None = None
    sensors: Float[np.ndarray, "n 3"] | None = None
    faces: Int[np.ndarray, "m 3"] | None = None
    unoriented_normals: Float[np.ndarray, "n 3"] | None = None
    origin: Float[np.ndarray, "3"] | None = None
    findings: tuple[Finding, ...] = ()
    is_metric: bool = False

    def __len__(self) -> int:
        return len(self.points)

    @classmethod
    def from_mesh(cls, mesh: Trimesh, name: str = "", *, dtype: type[np.floating] = np.float64) -> "Scan":
        """Scan with the vertices (in this precision) and the faces of a mesh."""
        return cls(name, np.asarray(mesh.vertices, dtype=dtype), faces=np.asarray(mesh.faces))

    def sample(self, count: int, rng: np.random.Generator) -> "Scan":
        """Draw `count` points: evenly over the area of the faces, or from the points if there are no faces.

        Points on faces get the normals of the faces, or interpolated vertex normals if the scan has normals too. Points
        without faces are drawn without repetition: at most all of them, in random order.
        """
        if self.faces is None:
            chosen = rng.permutation(len(self))[:count]
            return self.select(chosen)
        face_normals, areas = proximity.face_normals_and_areas(self.points, self.faces)
        total = np.cumsum(areas, dtype=np.float64)
        if not total[-1] > 0:
            raise self._no_area()
        face = np.searchsorted(total, rng.random(count) * total[-1], side="right").clip(max=len(areas) - 1)
        u, v = np.sqrt(rng.random(count)), rng.random(count)
        weights = np.stack([1 - u, u * (1 - v), u * v], axis=1)
        points = np.einsum("nk,nkd->nd", weights, self.points[self.faces[face]])
        sampled = face_normals[face]
        if self.normals is not None:
            sampled = np.einsum("nk,nkd->nd", weights, self.normals[self.faces[face]])
            sampled = sampled / np.linalg.norm(sampled, axis=1, keepdims=True).clip(1e-30)
        sensors = None if self.sensors is None else self.sensors[self.faces[face, 0]]
        return replace(
            self,
            points=points.astype(self.points.dtype),
            normals=sampled.astype(self.points.dtype),
            sensors=sensors,
            faces=None,
            unoriented_normals=None,
        )

    def frame(self, scale: float) -> Frame:
        """Frame of the scan: centered at the mean of its surface (IGR centers at the mean of surface samples).

        The mean is taken over the area of the faces, exactly, so that it does not depend on a draw; over the points
        if there are no faces. `scale`: meters of one model unit.
        """
        if self.faces is None:
            center = self.points.mean(axis=0, dtype=np.float64)
        else:
            wide = self.points.astype(np.float64)
            _, areas = proximity.face_normals_and_areas(wide, self.faces)
            if not areas.any():
                raise self._no_area()
            center = np.average(wide[self.faces].mean(axis=1), axis=0, weights=areas)
        return Frame(torch.from_numpy(center).float(), torch.tensor(scale))

    def _no_area(self) -> ValueError:
        count = 0 if self.faces is None else len(self.faces)
        return ValueError(
            f"scan {self.name}: its {count} faces have no area. Remove the faces to use the vertices as points."
        )

    def select(self, chosen: Int[np.ndarray, "k"]) -> "Scan":
        """Keep only the chosen points, by index; faces are dropped."""
        return replace(
            self,
            points=self.points[chosen],
            normals=None if self.normals is None else self.normals[chosen],
            sensors=None if self.sensors is None else self.sensors[chosen],
            faces=None,
            unoriented_normals=None if self.unoriented_normals is None else self.unoriented_normals[chosen],
        )

    def mask(self, selected: Bool[np.ndarray, "n"]) -> "Scan":
        """Keep only the selected points, and the faces whose corners are all selected."""
        scan = self.select(np.flatnonzero(selected))
        if self.faces is None:
            return scan
        return replace(scan, faces=(np.cumsum(selected) - 1)[self.faces[selected[self.faces].all(axis=1)]])

    def remove_statistical_outliers(self) -> "Scan":
        """Remove isolated points, if there are many; meshes are returned unchanged.

        A point is far from the others if its eighth neighbor is three times as far as that of the median point (after
        Rusu et al., Towards 3D Point Cloud Based Object Maps, 2008, section 4.1), and isolated if the far points around
        it are no thinly measured surface (`geometry.density.strays`). A few far points are rims and corners.
        """
        if self.faces is not None or len(self) <= density.NEIGHBOR:
            return self
        isolated = density.strays(self.points, density.neighbor_distance(self.points))
        return self.select(np.flatnonzero(~isolated)) if isolated.any() else self

    def even_out(self, *, seed: int = 0, keep_outliers: bool = False, repeat: bool = False) -> "Scan":
        """Remove isolated points, unless they are kept, and thin dense parts if other parts are measured thinly.

        With `repeat` points are drawn by their area, those of thin parts repeatedly; missing normals are estimated
        as lines before. Meshes are returned unchanged, and points of even density. Thinned scans have the finding
        `uneven-density`.
        """
        if self.faces is not None or len(self) <= density.NEIGHBOR:
            return self
        distance = density.neighbor_distance(self.points)
        isolated = density.strays(self.points, distance)
        if isolated.any() and keep_outliers:
            return self  # the area of a stray is unknown
        scan = self
        if isolated.any():
            scan, distance = self.select(np.flatnonzero(~isolated)), distance[~isolated]
        distance = density.limited(distance, had_strays=bool(isolated.any()))
        share = density.thin_share(distance)
        if share > density.MIN_THIN_SHARE:
            return scan
        rng = np.random.default_rng(seed)
        found = Finding("uneven-density", {"share": round(share, 3)})
        if not repeat:
            return scan.select(density.thin_evenly(distance, rng)).with_findings(found)
        if scan.normals is None and scan.unoriented_normals is None:
            # Lines: thin parts are no surface that hides the inside from a viewer. None where neighbors are too far.
            scan = replace(scan, unoriented_normals=normals.estimate_where_flat(scan.points))
        return scan.select(density.draw_evenly(distance, rng)).with_findings(found)

    def estimate_normals(self) -> "Scan":
        """Estimate normals from the points, if the scan has neither normals nor faces.

        They point to the sensors where these are known, else outward (`geometry.normals.orient_outward`). A scan
        without sensors that does not cover the surface from all sides gets `unoriented_normals`: its points do not
        determine the outside.
        """
        if self.normals is not None or self.unoriented_normals is not None or self.faces is not None:
            return self
        unoriented = normals.estimate(self.points)
        if self.sensors is not None:
            return replace(self, normals=normals.orient_towards(unoriented, self.sensors - self.points))
        oriented = normals.orient_outward(self.points, unoriented)
        if not oriented.is_complete:
            return replace(self, unoriented_normals=unoriented)
        return replace(self, normals=oriented.normals)

    def with_findings(self, *findings: Finding) -> "Scan":
        """The scan with further findings."""
        return replace(self, findings=(*self.findings, *findings))

    def infer_sensor(self) -> "Scan":
        """Add a distant sensor to bare points that one camera measured (`geometry.normals.single_view_direction`)."""
        if (
            self.sensors is not None
            or self.normals is not None
            or self.faces is not None
            or len(self) < density.NEIGHBOR
        ):
            return self
        sample = self.sample(_VIEW_POINTS, np.random.default_rng(0)).points
        direction = normals.single_view_direction(sample, normals.estimate(sample))
        if direction is None:
            return self
        return replace(self, sensors=(self.points + _SENSOR_DISTANCE * direction).astype(self.points.dtype))

    def to_model(self, frame: Frame) -> "Scan":
        """The scan in the model frame (float32)."""
        return self._transform(frame.to_model, frame.rotate)

    def to_world(self, frame: Frame) -> "Scan":
        """The scan in the world (float32); inverse of `to_model`."""
        return self._transform(frame.to_world, frame.rotate_back)

    def _transform(
        self, move: Callable[[torch.Tensor], torch.Tensor], rotate: Callable[[torch.Tensor], torch.Tensor]
    ) -> "Scan":
        def apply(change: Callable[[torch.Tensor], torch.Tensor], values: Any) -> Any:
            if values is None:
                return None
            return change(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))).numpy()

        return replace(
            self,
            points=apply(move, self.points),
            normals=apply(rotate, self.normals),
            sensors=apply(move, self.sensors),
            unoriented_normals=apply(rotate, self.unoriented_normals),
        )

    def to_data(self) -> Any:
        """Convert to a torch-geometric `Data` (`pos`, `normal`, `sensor`, `unoriented_normal`, `name`); no faces."""
        from torch_geometric.data import Data  # takes three seconds to import

        optional = {"normal": self.normals, "sensor": self.sensors, "unoriented_normal": self.unoriented_normals}
        tensors = {key: torch.from_numpy(value).float() for key, value in optional.items() if value is not None}
        return Data(pos=torch.from_numpy(self.points).float(), name=self.name, **tensors)

    @classmethod
    def from_data(cls, data: Any) -> "Scan":
        """Convert from a torch-geometric `Data`; inverse of `to_data`."""
        normal, sensor, unoriented = (data.get(key) for key in ("normal", "sensor", "unoriented_normal"))
        return cls(
            data.get("name", ""),
            data.pos.numpy(),
            None if normal is None else normal.numpy(),
            None if sensor is None else sensor.numpy(),
            unoriented_normals=None if unoriented is None else unoriented.numpy(),
        )
