"""A scan: what one capture of one person left."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from shapespace.geometry import normals, proximity
from shapespace.geometry.frame import Frame

_FEW, _AFAR = 2000, 3.0  # points that tell where a camera stood, and how many units of the points away it is put
_NEIGHBOUR, _ALONE, _MANY = 8, 3.0, 0.02  # which neighbour, how many times as far, and which share of the points


@dataclass(frozen=True)
class Scan:
    """Points of one capture; metres (or model units after `to_model`), y up.

    `normals` are unit vectors that point out of the body; `lines` are what a scan may have instead, unit vectors along
    them of which nobody knows which way is out (`with_normals`). `sensors` holds, for
    each point, the origin of the sensor that saw it. `faces` are kept where the file has them, so that the surface can
    be sampled evenly.
    """

    name: str
    points: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"] | None = None
    sensors: Float[np.ndarray, "n 3"] | None = None
    faces: Int[np.ndarray, "m 3"] | None = None
    unoriented_normals: Float[np.ndarray, "n 3"] | None = None

    def __len__(self) -> int:
        return len(self.points)

    def sample(self, count: int, rng: np.random.Generator) -> "Scan":
        """Draw `count` points: evenly over the area of the faces, or from the points if there are no faces.

        Points on faces have the normals of these, or between those of the corners if the scan has both. Points alone
        are drawn without repetition while they last, and all of them, in random order, if fewer.
        """
        if self.faces is None:
            chosen = rng.permutation(len(self))[:count]
            return self.select(chosen)
        corners = self.points[self.faces]
        cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        doubled = np.linalg.norm(cross, axis=1)
        total = np.cumsum(doubled, dtype=np.float64)
        if not total[-1] > 0:
            raise self._no_area()
        face = np.searchsorted(total, rng.random(count) * total[-1], side="right").clip(max=len(doubled) - 1)
        u, v = np.sqrt(rng.random(count)), rng.random(count)
        weights = np.stack([1 - u, u * (1 - v), u * v], axis=1)
        points = np.einsum("nk,nkd->nd", weights, corners[face])
        facing = cross[face]
        if self.normals is not None:
            facing = np.einsum("nk,nkd->nd", weights, self.normals[self.faces[face]])
        facing = facing / np.linalg.norm(facing, axis=1, keepdims=True).clip(1e-30)
        sensors = None if self.sensors is None else self.sensors[self.faces[face, 0]]
        return Scan(self.name, points.astype(self.points.dtype), facing.astype(self.points.dtype), sensors)

    def frame(self, scale: float) -> Frame:
        """Where the scan lies: centred at the mean of its surface (IGR centres at the mean of surface samples).

        The mean is taken over the area of the faces, exactly, so that it does not depend on a draw; over the points
        if there are no faces. `scale` is metres of one model unit.
        """
        if self.faces is None:
            centre = self.points.mean(axis=0, dtype=np.float64)
        else:
            corners = self.points[self.faces].astype(np.float64)
            doubled = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
            if not doubled.any():
                raise self._no_area()
            centre = np.average(corners.mean(axis=1), axis=0, weights=doubled)
        return Frame(torch.from_numpy(centre).float(), torch.tensor(scale))

    def _no_area(self) -> ValueError:
        count = 0 if self.faces is None else len(self.faces)
        return ValueError(
            f"scan {self.name} has {count} faces of no area: its surface cannot be sampled. "
            "Remove the faces to use its vertices as points."
        )

    def select(self, chosen: Int[np.ndarray, "k"]) -> "Scan":
        """Keep only the chosen points (and drop the faces)."""
        return Scan(
            self.name,
            self.points[chosen],
            None if self.normals is None else self.normals[chosen],
            None if self.sensors is None else self.sensors[chosen],
            unoriented_normals=None if self.unoriented_normals is None else self.unoriented_normals[chosen],
        )

    def mask(self, kept: Bool[np.ndarray, "n"]) -> "Scan":
        """Keep only these points, and the faces all of whose corners they are."""
        few = self.select(np.flatnonzero(kept))
        if self.faces is None:
            return few
        return replace(few, faces=(np.cumsum(kept) - 1)[self.faces[kept[self.faces].all(axis=1)]])

    def remove_statistical_outliers(self) -> "Scan":
        """The same scan without points that stand alone, if these are many; meshes are left as they are.

        A point stands alone if its eighth neighbour is thrice as far as that of most points (after Rusu et al., Towards
        3D Point Cloud Based Object Maps, 2008, section 4.1). Few such points are the rims and corners of any scan.
        """
        if self.faces is not None or len(self) <= _NEIGHBOUR:
            return self
        away = proximity.kth_neighbor_distance(self.points, neighbor=_NEIGHBOUR)
        alone = away > _ALONE * np.median(away)
        return self.select(np.flatnonzero(~alone)) if alone.mean() > _MANY else self

    def estimate_normals(self) -> "Scan":
        """The same scan; one that has neither normals nor faces gets some, estimated from its points.

        They look to the sensors where these are known, else to where one can leave (`geometry.normals.outward`). A scan
        without sensors that was not seen from all around gets lines: which way is out cannot be told by points alone.
        """
        if self.normals is not None or self.unoriented_normals is not None or self.faces is not None:
            return self
        lines = normals.estimate(self.points)
        if self.sensors is not None:
            return replace(self, normals=normals.orient_towards(lines, self.sensors - self.points))
        oriented = normals.orient_outward(self.points, lines)
        return replace(self, normals=oriented.normals) if oriented.whole else replace(self, unoriented_normals=lines)

    def infer_sensor(self) -> "Scan":
        """The same scan; bare points that one camera saw (`geometry.normals.seen_from`) get it back, from afar."""
        if self.sensors is not None or self.normals is not None or self.faces is not None or len(self) < _NEIGHBOUR:
            return self
        few = self.sample(_FEW, np.random.default_rng(0)).points
        towards = normals.single_view_direction(few, normals.estimate(few))
        if towards is None:
            return self
        return replace(self, sensors=(self.points + _AFAR * towards).astype(self.points.dtype))

    def to_model(self, frame: Frame) -> "Scan":
        """The same scan in the model frame."""
        return self._moved(frame.to_model, frame.rotate)

    def to_world(self, frame: Frame) -> "Scan":
        """The way back from `to_model`."""
        return self._moved(frame.to_world, frame.rotate_back)

    def _moved(
        self, move: Callable[[torch.Tensor], torch.Tensor], turn: Callable[[torch.Tensor], torch.Tensor]
    ) -> "Scan":
        def by(change: Callable[[torch.Tensor], torch.Tensor], of: Any) -> Any:
            if of is None:
                return None
            return change(torch.from_numpy(np.ascontiguousarray(of, dtype=np.float32))).numpy()

        return replace(
            self,
            points=by(move, self.points),
            normals=by(turn, self.normals),
            sensors=by(move, self.sensors),
            unoriented_normals=by(turn, self.unoriented_normals),
        )

    def to_data(self) -> Any:
        """As a torch-geometric `Data` (`pos`, `normal`, `sensor`, `line`, `name`), for its transforms and loaders."""
        from torch_geometric.data import Data  # three seconds: only where it is wanted

        optional = {"normal": self.normals, "sensor": self.sensors, "line": self.unoriented_normals}
        tensors = {key: torch.from_numpy(value).float() for key, value in optional.items() if value is not None}
        return Data(pos=torch.from_numpy(self.points).float(), name=self.name, **tensors)

    @classmethod
    def from_data(cls, data: Any) -> "Scan":
        """The way back from `to_data`."""
        normal, sensor, line = (data.get(key) for key in ("normal", "sensor", "line"))
        return cls(
            data.get("name", ""),
            data.pos.numpy(),
            None if normal is None else normal.numpy(),
            None if sensor is None else sensor.numpy(),
            unoriented_normals=None if line is None else line.numpy(),
        )


MIN_POINTS = 100  # fewer cannot describe a body; it also catches files that hold a skeleton or a single marker
