"""Read, check, sample and place the scans of a dataset, in several processes."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from trimesh import Trimesh

from shapespace.data.scan_dataset import ScanDataset, ScanEntry
from shapespace.data.store_writer import PreparedScan
from shapespace.geometry import proximity
from shapespace.geometry.orientation import check_orientation
from shapespace.geometry.surroundings import check_surroundings
from shapespace.io.checks import Normals
from shapespace.io.units import check_person_size

MAX_OUTSIDE = 0.01  # share of the points of a scan outside the model cube: raw scans have outliers
MAX_GROUND_TRUTH_DISTANCE = 0.04  # model units (5 cm for people): a mesh farther away is in another frame

GroundTruth = Literal["auto", "drop"]


@dataclass(frozen=True)
class ScanPreparer:
    """Read and sample one scan; a class, because it is sent to other processes."""

    dataset: ScanDataset
    root: Path
    points: int
    normals: Normals
    ground_truth: GroundTruth
    seed: int
    strict: bool = False

    def __call__(self, entry: ScanEntry) -> PreparedScan | str:
        """Prepare a scan, or return the error for which it is rejected."""
        try:
            return self._prepare(entry)
        except (ValueError, OSError) as error:
            return str(error)

    def _prepare(self, entry: ScanEntry) -> PreparedScan:
        read = self.dataset.read_scan(entry, self.normals)
        self.dataset.check_size(read)
        whole = check_orientation(check_person_size(read))
        mesh = self.dataset.ground_truth(self.root, entry.name) if self.ground_truth == "auto" else None
        if mesh is None:  # whoever registered a scan has seen what is in it
            whole = check_surroundings(whole)
        if self.strict and whole.findings:
            raise ValueError(" ".join(f"{found.message(entry.name)} [{found.code}]" for found in whole.findings))
        drawn = whole.sample(self.points, _generator(self.seed, entry.name))
        if self.normals == "drop":
            drawn = replace(drawn, normals=None)
        frame = whole.frame(self.dataset.scale)
        estimated = drawn.normals is None
        scan = drawn.estimate_normals().to_model(frame)
        outside = float((np.abs(scan.points).max(axis=1) > 1).mean())
        if outside > MAX_OUTSIDE:
            larger = self.dataset.scale * float(np.percentile(np.abs(scan.points), 99.5)) * 1.1
            option = f"--scale {larger:.3g}, the same for the whole dataset."
            doubts = [found.message("It") for found in whole.findings if found.code == "unlikely-size"]
            remedy = f"{doubts[0]} If it is right, pass {option}" if doubts else f"Pass {option}"
            raise ValueError(
                f"scan {entry.name}: {outside:.0%} of the points are outside [-1, 1]^3 with {self.dataset.scale:g} m "
                f"per model unit. {remedy}"
            )
        note = ""
        if mesh is not None and whole.origin is not None:
            mesh = Trimesh(mesh.vertices - whole.origin, mesh.faces, process=False)
        if mesh is not None:
            distances, _, _ = proximity.closest_point(drawn.points[:500].astype(np.float64), mesh)
            if np.median(distances) > MAX_GROUND_TRUTH_DISTANCE * self.dataset.scale:
                note = f"{entry.name}: ground truth omitted, it is {np.median(distances):.2f} m away from the scan"
                mesh = None
        digest = hashlib.sha256(read.points.tobytes()).hexdigest()
        return PreparedScan(entry, scan, frame, digest, mesh, note, estimated, whole.findings)


def _generator(seed: int, name: str) -> np.random.Generator:
    """Random generator of a scan; it depends on the seed and the name alone."""
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, dtype=np.uint32).tolist()])


def prepare_scans(
    prepare: ScanPreparer, entries: list[ScanEntry], jobs: int
) -> Iterator[tuple[ScanEntry, PreparedScan | str]]:
    """Prepare scans in the order of `entries`; at most two per process wait for the writer."""
    if jobs == 1 or len(entries) < 2:
        yield from ((entry, prepare(entry)) for entry in entries)
        return
    waiting: deque[tuple[ScanEntry, Future[PreparedScan | str]]] = deque()
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for entry in entries:
                waiting.append((entry, pool.submit(prepare, entry)))
                if len(waiting) > 2 * jobs:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise OSError(
                f"--jobs {jobs}: a reading process died, probably because memory ran out. Run the same command with "
                "fewer --jobs; finished scans are kept."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
