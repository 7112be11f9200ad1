"""D-FAUST: people in motion, raw 4-D scans at 60 frames per second, and their registrations.

Paper: Bogo, Romero, Pons-Moll, Black: Dynamic FAUST: Registering Human Bodies in Motion, CVPR 2017.
Size: 10 people, 129 sequences, about 40,000 scans; the registrations have 6,890 vertices.
Licence: research only, after registration. Not shipped.
Get: from dfaust.is.tue.mpg.de the archives of the scans, one for each person (50002.tar.xz and so on), and the files
registrations_f.hdf5 and registrations_m.hdf5. Unpack and place them so:

    ROOT/scans/<subject>/<sequence>/<sequence>.<frame>.ply
    ROOT/registrations_f.hdf5, ROOT/registrations_m.hdf5
    ROOT/splits/*.json                                        the split files of IGR or SAL, if wanted

Confirmed: the places and names of the scans by the preparation scripts and split files of IGR and SAL, the HDF5 layout
by the data set's own export script; both take the coordinates as they are, metres. Not confirmed: whether the archives
unpack into `scans/<subject>` or `<subject>` (both are found), the y axis up, and which registration belongs to which
scan. We take the order of the frames; a registration that lies away from its scan is left out. Frame numbers have gaps.
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
    """Raw scans, with the registrations as their true surface."""

    name: str = "dfaust"
    source: str = "Bogo, Romero, Pons-Moll, Black: Dynamic FAUST, CVPR 2017; dfaust.is.tue.mpg.de"
    license: str = "research only, after registration with the authors"
    instructions: str = (
        "Get the scans of D-FAUST (50002.tar.xz and so on, registrations_f.hdf5, registrations_m.hdf5) from "
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
        """Read the registration of the same place in the order of frames.

        Where a sequence has more registrations than scans, some scans are not there: frames count from the first.
        """
        subject, sequence, frame = name.split("/")
        scanned = layout.scanned_frames(root, subject, sequence)
        complete = len(scanned) == layout.registered_frames(root, subject, sequence)
        index = scanned.index(frame) if complete else int(frame) - int(scanned[0])
        return layout.read_registration(self, root, subject, sequence, index)


@dataclass(frozen=True)
class DFaustRegistrations(ScanDataset):
    """The registrations as the scans: closed bodies of one topology, frames 0, 1, 2, ... of each sequence."""

    name: str = "dfaust-registrations"
    source: str = DFaust.source
    license: str = DFaust.license
    instructions: str = (
        "Get registrations_f.hdf5 and registrations_m.hdf5 of D-FAUST from dfaust.is.tue.mpg.de, and place them as "
        "ROOT/registrations_f.hdf5 and ROOT/registrations_m.hdf5."
    )

    def list_scans(self, root: Path) -> list[ScanEntry]:
        """List the frames of ROOT/registrations*.hdf5."""
        return layout.find_registrations(self, root)

    def read_scan(self, entry: ScanEntry, normals: Normals = "auto") -> Scan:
        """Read one frame as vertices and faces."""
        mesh = self.ground_truth(entry.path.parent, entry.name)
        if mesh is None:
            raise ValueError(f"{entry.path} has no frame {entry.name} any more. Give the same line with --overwrite.")
        return Scan(entry.name, mesh.vertices.astype(np.float32), faces=mesh.faces.astype(np.int32))

    def ground_truth(self, root: Path, name: str) -> Trimesh | None:
        """Give the registration itself."""
        subject, sequence, frame = name.split("/")
        return layout.read_registration(self, root, subject, sequence, int(frame))
