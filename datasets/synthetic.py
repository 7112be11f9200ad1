"""Our own synthetic scans: people of the frozen body in many poses, seen by virtual depth cameras.

Made by `shapespace synthesize`, in D-FAUST's layout, with true surfaces and splits:

    ROOT/scans/<subject>/<sequence>/<sequence>.<frame>.ply    raw scans; vertex property `sensor`, element `sensor`
    ROOT/registrations.hdf5                                   true surfaces; frame number = place in the sequence
    ROOT/splits/{train,unseen_poses,unseen_people}.json       as IGR and SAL write them
    ROOT/synthesis.json                                       arguments, seed, version

Metres, y up. Licence: yours; the body and the poses they are made from are free (`datasets/assets/LICENSES.md`).
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
    """Raw synthetic scans, with the bodies that they were taken of."""

    name: str = "synthetic"
    source: str = "shapespace synthesize; body: the MakeHuman project"
    license: str = "free; the body and the poses: see datasets/assets/LICENSES.md"
    instructions: str = "Make the data: shapespace synthesize ROOT."

    def list_scans(self, root: Path) -> list[ScanEntry]:
        """List ROOT/scans/<subject>/<sequence>/*.ply."""
        return layout.find_scans(self, root)

    def read_scan(self, entry: ScanEntry, normals: Normals = "auto") -> Scan:
        """Read the PLY, sensors included."""
        return read_scan(entry.path, name=entry.name, unit=self.unit, up=self.up, normals=normals)

    def ground_truth(self, root: Path, name: str) -> Trimesh | None:
        """Read the body of that frame."""
        subject, sequence, frame = name.split("/")
        return layout.read_registration(self, root, subject, sequence, int(frame))
