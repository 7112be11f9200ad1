"""FAUST (MPI-FAUST): 10 people in 30 poses each, raw scans, and registrations of the training part.

Paper: Bogo, Romero, Loper, Black: FAUST: Dataset and evaluation for 3D mesh registration, CVPR 2014.
Size: 100 training scans with registrations of 6,890 vertices, 200 test scans without.
Licence: research only, after registration. Not shipped.
Get: MPI-FAUST.zip from faust.is.tue.mpg.de, and unpack it:

    ROOT/training/scans/tr_scan_000.ply ... 099
    ROOT/training/registrations/tr_reg_000.ply ... 099
    ROOT/test/scans/test_scan_000.ply ... 199

(ROOT may also be the folder that holds MPI-FAUST.) Training scan i is of person i // 10 in pose i % 10, and is named
`<person>/pose_<pose>/<i>` here, `07/pose_3/073`. Who is on a test scan is not said: those are `unknown/test/<i>`.
Splits: `train` (people 0 to 7), `unseen_people` (people 8 and 9: the last 20 scans, which PyTorch Geometric keeps for
tests too), `test` (the test scans, if they are there), and the files in ROOT/splits.

Confirmed: places and names by the data set's own README. Not confirmed by a document of the authors: the order of
people and poses, metres, and the y axis up, which the programs of others take for granted.
"""

from dataclasses import dataclass
from pathlib import Path

from trimesh import Trimesh

from shapespace.data.scan_dataset import ScanDataset, ScanEntry, check_entries, frame_number
from shapespace.geometry.scan import Scan
from shapespace.io.checks import Normals
from shapespace.io.scan_files import read_mesh, read_scan


@dataclass(frozen=True)
class Faust(ScanDataset):
    """FAUST's PLY files of one kind; the registrations are the true surface of the training part."""

    name: str = "faust"
    source: str = "Bogo, Romero, Loper, Black: FAUST, CVPR 2014; faust.is.tue.mpg.de"
    license: str = "research only, after registration with the authors"
    instructions: str = (
        "Get MPI-FAUST.zip from faust.is.tue.mpg.de, and unpack it so that there are "
        "ROOT/training/scans/tr_scan_000.ply and ROOT/training/registrations/tr_reg_000.ply."
    )
    files: tuple[str, ...] = ("training/scans/tr_scan_*.ply", "test/scans/test_scan_*.ply")

    def list_scans(self, root: Path) -> list[ScanEntry]:
        """List the PLY files."""
        base = _base(root)
        found = check_entries(ScanEntry(_name(path), path) for pattern in self.files for path in base.glob(pattern))
        if not found:
            raise self.missing(base / self.files[0])
        return found

    def read_scan(self, entry: ScanEntry, normals: Normals = "auto") -> Scan:
        """Read the PLY."""
        return read_scan(entry.path, name=entry.name, unit=self.unit, up=self.up, normals=normals)

    def ground_truth(self, root: Path, name: str) -> Trimesh | None:
        """Read training/registrations/tr_reg_*.ply of the same number."""
        subject, _, frame = name.split("/")
        path = _base(root) / f"training/registrations/tr_reg_{frame}.ply"
        return read_mesh(path, unit=self.unit, up=self.up) if subject != "unknown" and path.exists() else None

    def splits(self, root: Path) -> dict[str, list[str]]:
        """Divide by person, and add the split files in ROOT/splits."""
        splits: dict[str, list[str]] = {}
        for entry in self.list_scans(root):
            person = entry.name.split("/")[0]
            split = "test" if person == "unknown" else "train" if int(person) < 8 else "unseen_people"
            splits.setdefault(split, []).append(entry.name)
        return splits | super().splits(root)


SCANS = Faust()
REGISTRATIONS = Faust(name="faust-registrations", files=("training/registrations/tr_reg_*.ply",))


def _base(root: Path) -> Path:
    return root / "MPI-FAUST" if (root / "MPI-FAUST").is_dir() else root


def _name(path: Path) -> str:
    frame = frame_number(str(path.with_suffix("")))
    if path.stem.startswith("test"):
        return f"unknown/test/{frame}"
    return f"{int(frame) // 10:02d}/pose_{int(frame) % 10}/{frame}"
