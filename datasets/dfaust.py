"""D-FAUST: raw scans of people in motion at 60 frames per second, and their registrations.

Paper: Bogo, Romero, Pons-Moll, Black: Dynamic FAUST: Registering Human Bodies in Motion, CVPR 2017.
Size: 10 people, 129 sequences, about 40,000 scans; the registrations have 6,890 vertices.
License: research only, after registration. Not shipped.
Download: from dfaust.is.tue.mpg.de the archives of the scans, one for each person (50002.tar.xz and so on), and the
files registrations_f.hdf5 and registrations_m.hdf5, placed as:

    ROOT/scans/<subject>/<sequence>/<sequence>.<frame>.ply
    ROOT/registrations_f.hdf5, ROOT/registrations_m.hdf5
    ROOT/splits/*.json                                        split files of IGR or SAL (optional)

Confirmed: paths and names of the scans, by the preparation scripts and split files of IGR and SAL; the HDF5 layout, by
the export script of the dataset. Both use the coordinates unchanged, as meters.
Not confirmed: whether the archives unpack into `scans/<subject>` or `<subject>` (both are read), the y axis up, and
which registration belongs to which scan. Registrations are assigned in the order of the frames, whose numbers have
gaps; `preprocess` omits a registration that is away from its scan.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from trimesh import Trimesh

from shapespace.data.scan_dataset import ScanDataset, ScanEntry
from shapespace.datasets import layout
from shapespace.geometry.scan import Scan
from shapespace.io.checks import Normals
from shapespace.io.scan_files import read_scan


@dataclass(frozen=True)
class DFaust(ScanDataset):
    """Raw scans; the ground truth is the registration."""

    name: str = "dfaust"
    source: str = "Bogo, Romero, Pons-Moll, Black: Dynamic FAUST, CVPR 2017; dfaust.is.tue.mpg.de"
    license: str = "research only, after registration with the authors"
    instructions: str = (
        "Download the scans of D-FAUST (50002.tar.xz and so on, registrations_f.hdf5, registrations_m.hdf5) from "
        "dfaust.is.tue.mpg.de, and place them as ROOT/scans/<subject>/<sequence>/<sequence>.<frame>.ply and "
        "ROOT/registrations_f.hdf5."
    )

    def list_scans(self, root: Path) -> list[ScanEntry]:
        """List ROOT/scans/<subject>/<sequence>/*.ply."""
        return layout.find_scans(self, root)

    def read_scan(self, entry: ScanEntry, normals: Normals = "auto") -> Scan:
        """Read the PLY."""
        return read_scan(entry.path, name=entry.name, unit=self.unit, up=self.up, normals=normals)

    def ground_truth(self, root: Path, name: str) -> Trimesh | None:
        """Read the registration of the same index in the order of the frames.

        If a sequence has more registrations than scans, some scans are missing: the index is then the difference of the
        frame number from the first one.
        """
        subject, sequence, frame = name.split("/")
        scanned = layout.scanned_frames(root, subject, sequence)
        complete = len(scanned) == layout.registered_frames(root, subject, sequence)
        index = scanned.index(frame) if complete else int(frame) - int(scanned[0])
        return layout.read_registration(self, root, subject, sequence, index)


@dataclass(frozen=True)
class DFaustRegistrations(ScanDataset):
    """Registrations as scans: closed meshes of one template, frames counted from 0."""

    name: str = "dfaust-registrations"
    source: str = DFaust.source
    license: str = DFaust.license
    instructions: str = (
        "Download registrations_f.hdf5 and registrations_m.hdf5 of D-FAUST from dfaust.is.tue.mpg.de, and place them "
        "as ROOT/registrations_f.hdf5 and ROOT/registrations_m.hdf5."
    )

    def list_scans(self, root: Path) -> list[ScanEntry]:
        """List the frames of ROOT/registrations*.hdf5."""
        return layout.find_registrations(self, root)

    def read_scan(self, entry: ScanEntry, normals: Normals = "auto") -> Scan:
        """Read the vertices and faces of one frame."""
        mesh = self.ground_truth(entry.path.parent, entry.name)
        if mesh is None:
            raise ValueError(f"{entry.path}: frame {entry.name} is missing. Run the same command with --overwrite.")
        return Scan(entry.name, mesh.vertices.astype(np.float32), faces=mesh.faces.astype(np.int32))

    def ground_truth(self, root: Path, name: str) -> Trimesh | None:
        """Read the registration itself."""
        subject, sequence, frame = name.split("/")
        return layout.read_registration(self, root, subject, sequence, int(frame))
