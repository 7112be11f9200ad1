"""CAPE: clothed people in motion, registered to the template of SMPL, with raw scans.

Paper: Ma, Yang, Ranjan, Pujades, Pons-Moll, Tang, Black: Learning to Dress 3D People in Generative Clothing, CVPR 2020.
Size: 15 people, 610 sequences, 148,000 registered frames of 6,890 vertices; raw scans are a separate download.
License: non-commercial research, after registration. Not shipped.
Download: the sequences (and optionally the raw scans) from cape.is.tue.mpg.de, unpacked to:

    ROOT/sequences/<subject>/<sequence>/<sequence>.<frame>.npz    v_posed, v_cano (6890, 3), pose (72), transl (3)
    ROOT/misc/smpl_tris.npy                                       the faces
    ROOT/raw_scans/<subject>/<sequence>/<sequence>.<frame>.ply    in millimeters

ROOT can also be the folder that contains cape_release. A sequence is named by clothing and motion, for example
`longshort_hips`. Without misc/smpl_tris.npy the faces of any mesh in misc (OBJ, PLY) are used.
Confirmed: the arrays, the faces and the paths of the sequences, and that `v_posed` is in world coordinates (it includes
`transl`), by the tools of the authors; the paths, names and unit (millimeters) of the raw scans, by two other programs.
Not confirmed: the y axis up, and whether the archive of raw scans unpacks into `raw_scans`.
Raw scans contain parts of the floor and the walls. Some frames of the release are damaged: pass --max-rejected.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from trimesh import Trimesh

from shapespace.data.scan_dataset import ScanDataset, ScanEntry, check_entries, frame_number
from shapespace.geometry.scan import Scan
from shapespace.io.checks import Normals
from shapespace.io.scan_files import read_faces, read_scan


@dataclass(frozen=True)
class Cape(ScanDataset):
    """Registrations of clothed bodies as scans."""

    name: str = "cape"
    source: str = "Ma et al.: Learning to Dress 3D People in Generative Clothing, CVPR 2020; cape.is.tue.mpg.de"
    license: str = "non-commercial research, after registration with the authors"
    instructions: str = (
        "Download the sequences of CAPE from cape.is.tue.mpg.de, and unpack them so that there are "
        "ROOT/sequences/<subject>/<sequence>/<sequence>.<frame>.npz and ROOT/misc/smpl_tris.npy."
    )

    def list_scans(self, root: Path) -> list[ScanEntry]:
        """List sequences/<subject>/<sequence>/*.npz."""
        return _find(self, _base(root) / "sequences", ".npz")

    def read_scan(self, entry: ScanEntry, normals: Normals = "auto") -> Scan:
        """Read the posed vertices and the faces of the release."""
        return _posed(self, entry.path, entry.name)

    def ground_truth(self, root: Path, name: str) -> Trimesh | None:
        """Read the registration itself."""
        return _registration(self, root, name)


@dataclass(frozen=True)
class CapeRaw(ScanDataset):
    """Raw scans; the ground truth is the registration."""

    name: str = "cape-raw"
    source: str = Cape.source
    license: str = Cape.license
    instructions: str = (
        "Download the raw scans of CAPE from cape.is.tue.mpg.de, and unpack them so that there are "
        "ROOT/raw_scans/<subject>/<sequence>/<sequence>.<frame>.ply."
    )
    unit: float = 0.001

    def list_scans(self, root: Path) -> list[ScanEntry]:
        """List raw_scans/<subject>/<sequence>/*.ply."""
        return _find(self, _base(root) / "raw_scans", ".ply")

    def read_scan(self, entry: ScanEntry, normals: Normals = "auto") -> Scan:
        """Read the PLY."""
        return read_scan(entry.path, name=entry.name, unit=self.unit, up=self.up, normals=normals)

    def ground_truth(self, root: Path, name: str) -> Trimesh | None:
        """Read the registration of the same name."""
        return _registration(Cape(up=self.up), root, name)


def _base(root: Path) -> Path:
    return root / "cape_release" if (root / "cape_release").is_dir() else root


def _find(dataset: ScanDataset, folder: Path, suffix: str) -> list[ScanEntry]:
    """List <subject>/<sequence>/<sequence>.<frame> in the folder."""
    entries = check_entries(
        ScanEntry(f"{path.parent.parent.name}/{path.parent.name}/{frame_number(str(path.with_suffix('')))}", path)
        for path in folder.glob(f"*/*/[!.]*{suffix}")
    )
    if not entries:
        raise dataset.missing(folder / f"<subject>/<sequence>/*{suffix}")
    return entries


def _registration(dataset: Cape, root: Path, name: str) -> Trimesh | None:
    subject, sequence, frame = name.split("/")
    path = _base(root) / "sequences" / subject / sequence / f"{sequence}.{frame}.npz"
    if not path.exists():
        return None
    scan = _posed(dataset, path, name)
    return Trimesh(scan.points, scan.faces, process=False)


def _posed(dataset: Cape, path: Path, name: str) -> Scan:
    """Vertices and faces of one frame."""
    scan = read_scan(path, name=name, unit=dataset.unit, up=dataset.up, normals="drop")
    misc = path.parents[3] / "misc"
    faces = next((file for kind in ("smpl_tris.npy", "*.obj", "*.ply") for file in sorted(misc.glob(kind))), None)
    if faces is None:
        raise dataset.missing(misc / "smpl_tris.npy")
    triangles = read_faces(faces)
    if triangles.max() >= len(scan):
        raise ValueError(
            f"{faces}: refers to vertex {triangles.max():,}; {path} has {len(scan):,} vertices. Use the faces of SMPL."
        )
    return replace(scan, faces=triangles)
