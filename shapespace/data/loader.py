"""From a store to batches; a batch is a pure function of (seed, step), so a resumed run sees the same ones."""

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

_OF_THE_LOSS = (
    "surface",
    "normals",
    "unoriented_normals",
    "near_points",
    "uniform_points",
    "target_sdf",
    "occupancy_points",
    "occupancy",
)

Transform = Callable[[Any], Any]  # from torch-geometric `Data` to `Data`


def sample_near_surface(
    points: Float[Tensor, "*b n 3"], std: float, generator: Generator | None = None
) -> Float[Tensor, "*b n 3"]:
    """One Gaussian neighbour for each point, with standard deviation `sigma` in the points' unit (IGR, section 4)."""
    return points + std * torch.randn(points.shape, generator=generator, dtype=points.dtype, device=points.device)


def sample_uniform(
    shape: tuple[int, ...], half_extent: float, generator: Generator | None = None
) -> Float[Tensor, "..."]:
    """Points (*shape, 3), uniform in [-half, half]^3."""
    return (torch.rand((*shape, 3), generator=generator) * 2 - 1) * half_extent


_POOL = 10_000  # points of each kind that are labelled for a scan


_WIDTHS = (0.1, 0.01)


class OccupancyLabels:
    """Points about each scan's true surface that are known to be inside or outside; `count` are drawn at a time.

    A third of a scan's pool lies anywhere in the cube (Occupancy Networks), and a third each around the surface with a
    standard deviation of 0.1 and 0.01 model units (IF-Nets, section 3.2). It is made when it is first asked for, which
    takes a tenth of a second.
    """

    def __init__(self, store: ScanSource, names: Sequence[str], count: int) -> None:
        if bare := [name for name in names if not store.has_ground_truth(name)]:
            raise ValueError(
                f"{len(bare):,} of {len(names):,} scans of {store.path} have no true surface, {bare[0]} for one, and "
                "labels come from that. Choose a split of scans that have one, or a recipe that learns from raw scans."
            )
        self.store, self.names, self.count = store, names, count
        self._pools: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def draw(self, row: int, rng: np.random.Generator) -> tuple[Float[np.ndarray, "l 3"], Bool[np.ndarray, "l"]]:
        """Some points (model frame) of the scan in this row, and whether they are inside."""
        if row not in self._pools:
            self._pools[row] = self._made(row)
        points, known = self._pools[row]
        chosen = rng.integers(len(points), size=self.count)
        return points[chosen], known[chosen]

    def _made(self, row: int) -> tuple[Float[np.ndarray, "m 3"], Bool[np.ndarray, "m"]]:
        name, rng = self.names[row], np.random.default_rng(row)
        truth = self.store.ground_truth(name)
        assert truth is not None  # asked at the beginning
        world = torch.from_numpy(np.asarray(truth.vertices)).float()
        corners, faces = self.store.frame(name).to_model(world).numpy(), np.asarray(truth.faces)
        on = Scan(name, corners, faces=faces).sample(len(_WIDTHS) * _POOL, rng).points
        around = on + np.repeat(_WIDTHS, _POOL)[:, None] * rng.standard_normal(on.shape)
        points = np.concatenate([rng.uniform(-1, 1, (_POOL, 3)), around]).astype(np.float32)
        return points, contains(points, Trimesh(corners, faces, process=False))


@dataclass(frozen=True)
class Batch:
    """Dense points of b scans in the model frame.

    `points` are what is known of each scan (the encoder reads them); `surface` those on which the field must vanish,
    with their `normals`, or with the `lines` of scans that have none; `shell` has a neighbour of each of these, `box`
    lies anywhere, with the `target` of the field there if it is known; `query` are points that are known to be `inside`
    the true surface or not; `shape` is each scan's row in the table of training scans, -1 for a scan that is not in it.
    The gradient is computed at every `sloped`-th point of the loss only: it takes twice the time of the value.
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
        """How many points of each scan are known to be inside or not."""
        return 0 if self.occupancy_points is None else self.occupancy_points.shape[1]

    @property
    def loss_points(self) -> int:
        """How many points of each scan enter the loss."""
        return 2 * self.surface.shape[1] + self.uniform_points.shape[1] + self.num_occupancy_points

    def to(self, device: torch.device | str) -> "Batch":
        """On another device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def __getitem__(self, rows: slice) -> "Batch":
        """Some of the scans."""
        return self.map(lambda tensor: tensor[rows])

    def chunk(self, index: int, count: int) -> "Batch":
        """The same scans with one of `count` equal parts of the points of the loss."""
        cut = {name: getattr(self, name) for name in _OF_THE_LOSS}
        pieces: dict[str, Any] = {
            name: tensor.chunk(count, dim=1)[index] for name, tensor in cut.items() if tensor is not None
        }
        return replace(self, **pieces)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Every tensor changed."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(it) for name, it in tensors.items() if isinstance(it, Tensor)}
        return replace(self, **changed)


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
    """Scans of equally many points as one batch; off-surface points are drawn by `seed`.

    The first `surface` points of each scan (all of them if not said) are those of the loss. About scans in the plane
    z = 0 the other points lie in it too.
    """
    points = torch.from_numpy(np.stack([scan.points for scan in scans])).float()
    normals = _stacked([scan.normals for scan in scans], surface_points)
    lines = None if normals is not None else _stacked([_line(scan) for scan in scans], surface_points)
    generator = torch.Generator().manual_seed(seed)
    on = points[:, :surface_points]
    space = torch.tensor([1.0, 1.0, 1.0 if points[..., 2].any() else 0.0])
    return Batch(
        points=points,
        surface=on,
        normals=normals,
        near_points=sample_near_surface(on, near_std, generator) * space,
        uniform_points=sample_uniform((len(scans), max(1, on.shape[1] // 8)), half_extent, generator) * space,
        scan_index=torch.tensor([-1] * len(scans) if scan_index is None else list(scan_index)),
        unoriented_normals=lines,
        gradient_stride=gradient_stride,
    )


def _line(scan: Scan) -> Float[np.ndarray, "p 3"] | None:
    return scan.unoriented_normals if scan.normals is None else scan.normals


def _stacked(vectors: Sequence[Float[np.ndarray, "p 3"] | None], count: int | None) -> Float[Tensor, "b n 3"] | None:
    """The first `count` vectors of each scan, if all scans have some."""
    there = [array for array in vectors if array is not None]
    return torch.from_numpy(np.stack(there)).float()[:, :count] if len(there) == len(vectors) else None


class StepDataset(Dataset[Batch]):
    """The batch of each step: scans in an order reshuffled every epoch, points drawn afresh at every visit.

    With several processes, process `rank` of `world` gets its share of each step's scans. With `labels`, so many points
    of each scan's true surface come along, known to be inside or not.
    """

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
            raise ValueError(f"no scans to train on in {store.path}: pack some, or choose another split")
        if scans % world_size:
            raise ValueError(
                f"a batch of {scans} scans does not divide among {world_size} processes: change --batch.scans"
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
        self._asked = (-1, np.arange(0))  # the epoch that was asked for last, and its order

    def scans_of(self, step: int) -> list[str]:
        """Names of the scans of a step, those of all processes."""
        return [self.names[self._row(step * self.scans + slot)] for slot in range(self.scans)]

    def __getitem__(self, step: int) -> Batch:
        slots = range(self.rank, self.scans, self.world_size)
        shape = [self._row(step * self.scans + slot) for slot in slots]
        drawn = [
            self.store.sample(self.names[row], self.points, np.random.default_rng((self.seed, step, slot)))
            for row, slot in zip(shape, slots, strict=True)
        ]
        if self.transform is not None:
            drawn = [Scan.from_data(self.transform(scan.to_data())) for scan in drawn]
        seed = int(np.random.default_rng((self.seed, step, self.scans + self.rank)).integers(2**62))
        batch = self.collate(drawn, scan_index=shape, seed=seed)
        return batch if self.labels is None else self._labelled(batch, self.labels, seed)

    def single_scan(self, row: int) -> Batch:
        """One training scan by itself, always with the same points: for looking at, and for the prior of the codes."""
        scan = self.store.sample(self.names[row], self.points, np.random.default_rng((self.seed, row)))
        return self.collate([scan], scan_index=[row], seed=row)

    def _labelled(self, batch: Batch, labels: OccupancyLabels, seed: int) -> Batch:
        rng = np.random.default_rng(seed)
        drawn = [labels.draw(row, rng) for row in batch.scan_index.tolist()]
        query, known = (torch.from_numpy(np.stack(each)) for each in zip(*drawn, strict=True))
        return replace(batch, occupancy_points=query, occupancy=known)

    def _row(self, visit: int) -> int:
        epoch, place = divmod(visit, len(self.names))
        known, order = self._asked  # both in one, since another thread may ask for another epoch meanwhile
        if epoch != known:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.names))
            self._asked = (epoch, order)
        return int(order[place])


def batches(dataset: StepDataset, start: int, stop: int, *, num_workers: int = 0) -> Iterator[Batch]:
    """The batches of steps start to stop, read ahead by `workers` processes, or (0) by a thread, one batch ahead."""
    if num_workers:
        yield from DataLoader(dataset, batch_size=None, sampler=range(start, stop), num_workers=num_workers)
    elif start < stop:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reading") as reader:
            ahead = reader.submit(dataset.__getitem__, start)
            for step in range(start + 1, stop):
                batch, ahead = ahead.result(), reader.submit(dataset.__getitem__, step)
                yield batch
            yield ahead.result()
