"""CAPE: clothed people in motion, registered to the topology of SMPL, and the raw scans of some of them.

Paper: Ma, Yang, Ranjan, Pujades, Pons-Moll, Tang, Black: Learning to Dress 3D People in Generative Clothing, CVPR 2020.
Size: 15 people, 610 sequences, 148,000 registered frames of 6,890 vertices; raw scans are a download of their own.
Licence: non-commercial research, after registration. Not shipped.
Get: the sequences (and the raw scans, if wanted) from cape.is.tue.mpg.de, and unpack them:

    ROOT/sequences/<subject>/<sequence>/<sequence>.<frame>.npz    v_posed, v_cano (6890, 3), pose (72), transl (3)
    ROOT/misc/smpl_tris.npy                                       the faces
    ROOT/raw_scans/<subject>/<sequence>/<sequence>.<frame>.ply    in millimetres

(ROOT may also be the folder that holds cape_release.) A sequence is named by clothing and motion, `longshort_hips`.
Where misc/smpl_tris.npy is absent, the faces of any mesh in misc (OBJ, PLY) serve.

Confirmed: the arrays, the faces and the places of the sequences by the authors' own tools, and that `v_posed` lies in
the world (`transl` is in it); the place of the raw scans, their names and their millimetres by two programs of others
that read them. Not confirmed: the y axis up, and whether the archive of raw scans unpacks into `raw_scans`. Raw scans
show some of the floor and the walls, and some frames of the release are damaged, which --max-rejected is for.
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
    """The registered, clothed bodies as the scans."""

    name: str = "cape"
    source: str = "Ma et al.: Learning to Dress 3D People in Generative Clothing, CVPR 2020; cape.is.tue.mpg.de"
    license: str = "non-commercial research, after registration with the authors"
    instructions: str = (
        "Get the sequences of CAPE from cape.is.tue.mpg.de, and unpack them so that there are "
        "ROOT/sequences/<subject>/<sequence>/<sequence>.<frame>.npz and ROOT/misc/smpl_tris.npy."
    )

    def list_scans(self, root: Path) -> list[ScanEntry]:
        """List sequences/<subject>/<sequence>/*.npz."""
        return _find(self, _base(root) / "sequences", ".npz")

    def read_scan(self, entry: ScanEntry, normals: Normals = "auto") -> Scan:
        """Read the posed vertices, and the faces of the release."""
        return _posed(self, entry.path, entry.name)

    def ground_truth(self, root: Path, name: str) -> Trimesh | None:
        """Give the registration itself."""
        return _registration(self, root, name)


@dataclass(frozen=True)
class CapeRaw(ScanDataset):
    """The raw scans, with the registrations as their true surface."""

    name: str = "cape-raw"
    source: str = Cape.source
    license: str = Cape.license
    instructions: str = (
        "Get the raw scans of CAPE from cape.is.tue.mpg.de, and unpack them so that there are "
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


def _find(recipe: ScanDataset, folder: Path, suffix: str) -> list[ScanEntry]:
    """List <subject>/<sequence>/<sequence>.<frame> in the folder."""
    found = check_entries(
        ScanEntry(f"{path.parent.parent.name}/{path.parent.name}/{frame_number(str(path.with_suffix('')))}", path)
        for path in folder.glob(f"*/*/[!.]*{suffix}")
    )
    if not found:
        raise recipe.missing(folder / f"<subject>/<sequence>/*{suffix}")
    return found


def _registration(recipe: Cape, root: Path, name: str) -> Trimesh | None:
    subject, sequence, frame = name.split("/")
    path = _base(root) / "sequences" / subject / sequence / f"{sequence}.{frame}.npz"
    if not path.exists():
        return None
    scan = _posed(recipe, path, name)
    return Trimesh(scan.points, scan.faces, process=False)


def _posed(recipe: Cape, path: Path, name: str) -> Scan:
    """Read one frame of the sequences as vertices and faces."""
    scan = read_scan(path, name=name, unit=recipe.unit, up=recipe.up, normals="drop")
    misc = path.parents[3] / "misc"
    faces = next((file for kind in ("smpl_tris.npy", "*.obj", "*.ply") for file in sorted(misc.glob(kind))), None)
    if faces is None:
        raise recipe.missing(misc / "smpl_tris.npy")
    triangles = read_faces(faces)
    if triangles.max() >= len(scan):
        raise ValueError(
            f"{faces} names vertex {triangles.max():,}, and {path} has {len(scan):,} vertices. Give the faces of SMPL."
        )
    return replace(scan, faces=triangles)
