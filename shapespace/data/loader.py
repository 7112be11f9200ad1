"""Batches of training points; each is a function of (seed, step), so runs can resume."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from trimesh import Trimesh

from shapespace.data.store import ScanSource
from shapespace.geometry.proximity import contains
from shapespace.geometry.scan import Scan

_LOSS_FIELDS = (
    "surface",
    "normals",
    "unoriented_normals",
    "near_points",
    "uniform_points",
    "target_sdf",
    "occupancy_points",
    "occupancy",
)

_POOL_SIZE = 10_000  # labeled points of each kind per scan
_POOL_STDS = (0.1, 0.01)  # model units (IF-Nets, section 3.2)

Transform = Callable[[Any], Any]  # from torch-geometric `Data` to `Data`


def derive_seed(*key: int) -> int:
    """Seed from 0 to 2^62 - 1 for numbers >= 0, such as (seed, step, rank); trailing zeros do not count."""
    return int(np.random.default_rng(key).integers(2**62))


def sample_near_surface(
    points: Float[Tensor, "*b n 3"], std: float, generator: Generator | None = None
) -> Float[Tensor, "*b n 3"]:
    """One Gaussian neighbor of each point; `std` is in the unit of the points (IGR, section 4)."""
    return points + std * torch.randn(points.shape, generator=generator, dtype=points.dtype, device=points.device)


def sample_uniform(
    shape: tuple[int, ...], half_extent: float, generator: Generator | None = None
) -> Float[Tensor, "..."]:
    """Uniform points (*shape, 3) in [-half_extent, half_extent]^3."""
    return (torch.rand((*shape, 3), generator=generator) * 2 - 1) * half_extent


class OccupancyLabels:
    """Points around the ground truth of each scan, labeled inside or outside.

    `count` points are drawn at a time. A pool of points is labeled for each scan on first use, in 0.1 s. One third is
    uniform in the cube (Occupancy Networks), one third each is around the surface with a standard deviation of 0.1 and
    0.01 model units (IF-Nets, section 3.2).
    """

    def __init__(self, store: ScanSource, names: Sequence[str], count: int) -> None:
        if missing := [name for name in names if not store.has_ground_truth(name)]:
            raise ValueError(
                f"{store.path}: {len(missing):,} of {len(names):,} scans have no ground truth for occupancy labels, "
                f"for example {missing[0]}. Choose a --split with ground truth, or a --config for raw scans."
            )
        self.store, self.names, self.count = store, names, count
        self._pools: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def draw(self, row: int, rng: np.random.Generator) -> tuple[Float[np.ndarray, "l 3"], Bool[np.ndarray, "l"]]:
        """Draw points (model frame) of the scan in this row, with their occupancy (true inside)."""
        if row not in self._pools:
            self._pools[row] = self._make_pool(row)
        points, occupancy = self._pools[row]
        chosen = rng.integers(len(points), size=self.count)
        return points[chosen], occupancy[chosen]

    def _make_pool(self, row: int) -> tuple[Float[np.ndarray, "m 3"], Bool[np.ndarray, "m"]]:
        name, rng = self.names[row], np.random.default_rng(row)
        ground_truth = self.store.ground_truth(name)
        assert ground_truth is not None  # checked in the constructor
        world = torch.from_numpy(np.asarray(ground_truth.vertices)).float()
        vertices, faces = self.store.frame(name).to_model(world).numpy(), np.asarray(ground_truth.faces)
        surface = Scan(name, vertices, faces=faces).sample(len(_POOL_STDS) * _POOL_SIZE, rng).points
        near = surface + np.repeat(_POOL_STDS, _POOL_SIZE)[:, None] * rng.standard_normal(surface.shape)
        points = np.concatenate([rng.uniform(-1, 1, (_POOL_SIZE, 3)), near]).astype(np.float32)
        return points, contains(points, Trimesh(vertices, faces, process=False))


@dataclass(frozen=True)
class Batch:
    """Points of b scans in the model frame, as dense tensors.

    - `points`: input of the encoder.
    - `surface`: points where the field must be 0, with `normals`, or `unoriented_normals` if a scan has no normals.
    - `near_points`: a neighbor of each surface point.
    - `uniform_points`: points anywhere in the cube, with `target_sdf` if the field there is known.
    - `occupancy_points`: points with known `occupancy` (true inside the ground truth).
    - `scan_index`: row of each scan in the table of training scans, -1 for other scans.
    - `gradient_stride`: the spatial gradient is computed at every k-th loss point, since it takes twice the time of the
      value.
    """

    points: Float[Tensor, "b p 3"]
    surface: Float[Tensor, "b n 3"]
    normals: Float[Tensor, "b n 3"] | None
    near_points: Float[Tensor, "b n 3"]
    uniform_points: Float[Tensor, "b m 3"]
    scan_index: Int[Tensor, "b"]
    unoriented_normals: Float[Tensor, "b n 3"] | None = None
    gradient_stride: int = 1
    target_sdf: Float[Tensor, "b m"] | None = None
    occupancy_points: Float[Tensor, "b l 3"] | None = None
    occupancy: Bool[Tensor, "b l"] | None = None

    @property
    def num_occupancy_points(self) -> int:
        """Number of points of each scan with a known occupancy."""
        return 0 if self.occupancy_points is None else self.occupancy_points.shape[1]

    @property
    def loss_points(self) -> int:
        """Number of points of each scan in the loss."""
        return 2 * self.surface.shape[1] + self.uniform_points.shape[1] + self.num_occupancy_points

    def to(self, device: torch.device | str) -> "Batch":
        """Copy to another device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def __getitem__(self, rows: slice) -> "Batch":
        """Select scans."""
        return self.map(lambda tensor: tensor[rows])

    def chunk(self, index: int, count: int) -> "Batch":
        """The same scans with one of `count` equal chunks of the loss points."""
        tensors = {name: getattr(self, name) for name in _LOSS_FIELDS}
        chunks: dict[str, Any] = {
            name: tensor.chunk(count, dim=1)[index] for name, tensor in tensors.items() if tensor is not None
        }
        return replace(self, **chunks)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Apply a function to every tensor."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        mapped: dict[str, Any] = {name: function(it) for name, it in values.items() if isinstance(it, Tensor)}
        return replace(self, **mapped)


def collate(
    scans: Sequence[Scan],
    *,
    surface_points: int | None = None,
    near_std: float = 0.01,
    half_extent: float = 1.0,
    gradient_stride: int = 1,
    scan_index: Sequence[int] | None = None,
    seed: int = 0,
) -> Batch:
    """Combine scans with equal numbers of points into one batch.

    `seed` is that of the off-surface points. The first `surface_points` points of each scan (by default all) enter the
    loss. If all scans are in the plane z = 0, the off-surface points are too.
    """
    points = torch.from_numpy(np.stack([scan.points for scan in scans])).float()
    normals = _stack([scan.normals for scan in scans], surface_points)
    unoriented = None if normals is not None else _stack([_any_normals(scan) for scan in scans], surface_points)
    generator = torch.Generator().manual_seed(seed)
    surface = points[:, :surface_points]
    axes = torch.tensor([1.0, 1.0, 1.0 if points[..., 2].any() else 0.0])
    return Batch(
        points=points,
        surface=surface,
        normals=normals,
        near_points=sample_near_surface(surface, near_std, generator) * axes,
        uniform_points=sample_uniform((len(scans), max(1, surface.shape[1] // 8)), half_extent, generator) * axes,
        scan_index=torch.tensor([-1] * len(scans) if scan_index is None else list(scan_index)),
        unoriented_normals=unoriented,
        gradient_stride=gradient_stride,
    )


def _any_normals(scan: Scan) -> Float[np.ndarray, "p 3"] | None:
    return scan.unoriented_normals if scan.normals is None else scan.normals


def _stack(vectors: Sequence[Float[np.ndarray, "p 3"] | None], count: int | None) -> Float[Tensor, "b n 3"] | None:
    """First `count` vectors of each scan; None unless all scans have vectors."""
    arrays = [array for array in vectors if array is not None]
    return torch.from_numpy(np.stack(arrays)).float()[:, :count] if len(arrays) == len(vectors) else None


class StepDataset(Dataset[Batch]):
    """Batch of each training step.

    Scans are shuffled every epoch, and their points are drawn again at every visit. `scans` and `points` are the
    numbers of scans in a batch and of points per scan. With several processes, process `rank` of `world_size` gets its
    share of the scans of each step. With `occupancy_points`, as many labeled points around the ground truth of each
    scan are added.
    """

    # Most parameters are fields of BatchConfig, which is on a floor above (training/config.py).
    def __init__(
        self,
        store: ScanSource,
        names: Sequence[str],
        *,
        scans: int,
        points: int,
        surface_points: int | None = None,
        near_std: float,
        half_extent: float,
        gradient_stride: int = 1,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        occupancy_points: int = 0,
        transform: Transform | None = None,
    ) -> None:
        if not names:
            raise ValueError(f"{store.path}: no scans to train on. Choose another --split.")
        if scans % world_size:
            raise ValueError(
                f"--batch.scans {scans}: not divisible by {world_size} processes. Choose a multiple of {world_size}."
            )
        self.store, self.names, self.transform = store, list(names), transform
        self.scans, self.points, self.seed = scans, points, seed
        self.labels = OccupancyLabels(store, self.names, occupancy_points) if occupancy_points else None
        self.collate = partial(
            collate,
            surface_points=surface_points,
            near_std=near_std,
            half_extent=half_extent,
            gradient_stride=gradient_stride,
        )
        self.rank, self.world_size = rank, world_size
        self._epoch_order = (-1, np.arange(0))  # the last used epoch and its order

    def scans_of(self, step: int) -> list[str]:
        """Names of the scans of a step, over all processes."""
        return [self.names[self._row(step * self.scans + slot)] for slot in range(self.scans)]

    def __getitem__(self, step: int) -> Batch:
        slots = range(self.rank, self.scans, self.world_size)
        rows = [self._row(step * self.scans + slot) for slot in slots]
        drawn = [
            self.store.sample(self.names[row], self.points, np.random.default_rng((self.seed, step, slot)))
            for row, slot in zip(rows, slots, strict=True)
        ]
        if self.transform is not None:
            drawn = [Scan.from_data(self.transform(scan.to_data())) for scan in drawn]
        seed = derive_seed(self.seed, step, self.scans + self.rank)
        batch = self.collate(drawn, scan_index=rows, seed=seed)
        return batch if self.labels is None else self._add_labels(batch, self.labels, seed)

    def single_scan(self, row: int) -> Batch:
        """Batch of one training scan; every call returns the same points."""
        scan = self.store.sample(self.names[row], self.points, np.random.default_rng((self.seed, row)))
        return self.collate([scan], scan_index=[row], seed=row)

    def _add_labels(self, batch: Batch, labels: OccupancyLabels, seed: int) -> Batch:
        rng = np.random.default_rng(seed)
        drawn = [labels.draw(row, rng) for row in batch.scan_index.tolist()]
        points, occupancy = (torch.from_numpy(np.stack(each)) for each in zip(*drawn, strict=True))
        return replace(batch, occupancy_points=points, occupancy=occupancy)

    def _row(self, visit: int) -> int:
        epoch, place = divmod(visit, len(self.names))
        cached, order = self._epoch_order  # one tuple: another thread can replace it between two reads
        if epoch != cached:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.names))
            self._epoch_order = (epoch, order)
        return int(order[place])


def batches(dataset: StepDataset, start: int, stop: int, *, num_workers: int = 0) -> Iterator[Batch]:
    """Batches of the steps from start to stop.

    They are prefetched by `num_workers` processes, or with 0 by a thread, one batch ahead.
    """
    if num_workers:
        yield from DataLoader(dataset, batch_size=None, sampler=range(start, stop), num_workers=num_workers)
    elif start < stop:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reading") as reader:
            ahead = reader.submit(dataset.__getitem__, start)
            for step in range(start + 1, stop):
                batch, ahead = ahead.result(), reader.submit(dataset.__getitem__, step)
                yield batch
            yield ahead.result()
