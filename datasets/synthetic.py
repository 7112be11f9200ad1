"""Synthetic people: bodies in many poses, scanned by virtual depth cameras.

Written by `shapespace synthesize` in the layout of D-FAUST, with ground truth and splits:

    ROOT/scans/<subject>/<sequence>/<sequence>.<frame>.ply    raw scans; vertex property `sensor`, element `sensor`
    ROOT/registrations.hdf5                                   ground truth; frame number = index in the sequence
    ROOT/splits/{train,unseen_poses,unseen_people}.json       in the format of IGR and SAL
    ROOT/synthesis.json                                       settings, seed, version

Unit and axes: meters, y up.
License: the scans are yours; the license of the body model and the poses is in `datasets/assets/LICENSES.md`.
"""

from dataclasses import dataclass
from pathlib import Path

from trimesh import Trimesh

from shapespace.data.scan_dataset import ScanDataset, ScanEntry
from shapespace.datasets import layout
from shapespace.geometry.scan import Scan
from shapespace.io.checks import Normals
from shapespace.io.scan_files import read_scan


@dataclass(frozen=True)
class Synthetic(ScanDataset):
    """Synthetic raw scans; the ground truth is the scanned body."""

    name: str = "synthetic"
    source: str = "shapespace synthesize; body: the MakeHuman project"
    license: str = "free; the body and the poses: see datasets/assets/LICENSES.md"
    instructions: str = "Synthesize the data: shapespace synthesize ROOT."

    def list_scans(self, root: Path) -> list[ScanEntry]:
        """List ROOT/scans/<subject>/<sequence>/*.ply."""
        return layout.find_scans(self, root)

    def read_scan(self, entry: ScanEntry, normals: Normals = "auto") -> Scan:
        """Read the PLY, sensors included."""
        return read_scan(entry.path, name=entry.name, unit=self.unit, up=self.up, normals=normals)

    def ground_truth(self, root: Path, name: str) -> Trimesh | None:
        """Read the body of the frame."""
        subject, sequence, frame = name.split("/")
        return layout.read_registration(self, root, subject, sequence, int(frame))
