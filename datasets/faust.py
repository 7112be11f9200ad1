"""FAUST (MPI-FAUST): raw scans of 10 people in 30 poses, with registrations.

Paper: Bogo, Romero, Loper, Black: FAUST: Dataset and evaluation for 3D mesh registration, CVPR 2014.
Size: 100 training scans with registrations of 6,890 vertices, 200 test scans without.
License: research only, after registration. Not shipped.
Download: MPI-FAUST.zip from faust.is.tue.mpg.de, unpacked to:

    ROOT/training/scans/tr_scan_000.ply ... 099
    ROOT/training/registrations/tr_reg_000.ply ... 099
    ROOT/test/scans/test_scan_000.ply ... 199

ROOT can also be the folder that contains MPI-FAUST.
Names: training scan i is person i // 10 in pose i % 10, `<person>/pose_<pose>/<i>`, for example `07/pose_3/073`. The
person of a test scan is not published: `unknown/test/<i>`.
Splits: `train` (people 0 to 7), `unseen_people` (people 8 and 9: the last 20 scans, the test set of PyTorch Geometric
too), `test` (the test scans, if present), and the files in ROOT/splits.
Confirmed: paths and names, by the README of the dataset.
Not confirmed by a document of the authors: the order of people and poses, the unit (meters), and the y axis up; other
programs assume them.
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
    """PLY files of FAUST; the ground truth of the training part is its registration."""

    name: str = "faust"
    source: str = "Bogo, Romero, Loper, Black: FAUST, CVPR 2014; faust.is.tue.mpg.de"
    license: str = "research only, after registration with the authors"
    instructions: str = (
        "Download MPI-FAUST.zip from faust.is.tue.mpg.de, and unpack it so that there are "
        "ROOT/training/scans/tr_scan_000.ply and ROOT/training/registrations/tr_reg_000.ply."
    )
    files: tuple[str, ...] = ("training/scans/tr_scan_*.ply", "test/scans/test_scan_*.ply")

    def list_scans(self, root: Path) -> list[ScanEntry]:
        """List the PLY files."""
        base = _base(root)
        entries = check_entries(ScanEntry(_name(path), path) for pattern in self.files for path in base.glob(pattern))
        if not entries:
            raise self.missing(base / self.files[0])
        return entries

    def read_scan(self, entry: ScanEntry, normals: Normals = "auto") -> Scan:
        """Read the PLY."""
        return read_scan(entry.path, name=entry.name, unit=self.unit, up=self.up, normals=normals)

    def ground_truth(self, root: Path, name: str) -> Trimesh | None:
        """Read the registration of the same number, training/registrations/tr_reg_*.ply."""
        subject, _, frame = name.split("/")
        path = _base(root) / f"training/registrations/tr_reg_{frame}.ply"
        return read_mesh(path, unit=self.unit, up=self.up) if subject != "unknown" and path.exists() else None

    def splits(self, root: Path) -> dict[str, list[str]]:
        """Splits by person, and the split files in ROOT/splits."""
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
