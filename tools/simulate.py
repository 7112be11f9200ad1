"""Scan meshes virtually: raw scans of a ring of depth cameras, and the meshes as registrations.

    shapespace simulate man.obj woman.obj --out data/people
    shapespace preprocess synthetic data/people data/people.h5
    shapespace evaluate humans data/people.h5 --splits all

Evaluates a shape space on meshes from other sources. The cameras are those of `shapespace synthesize`. The layout is
that of D-FAUST: OUT/scans/NAME/scan/scan.000000.ply, the mesh as OUT/registrations_NAME.hdf5, and a split `all`.
"""

from pathlib import Path
from typing import Annotated, Literal

import h5py
import numpy as np
import tyro
from tqdm import tqdm

from shapespace.data.scan_dataset import ScanDataset
from shapespace.datasets import get_dataset
from shapespace.io import scan_files, units
from shapespace.io.atomic import replacing
from shapespace.synthetic.people import write_json
from shapespace.synthetic.scanner import VirtualScanner

SEQUENCE = "scan"


def main(
    meshes: Annotated[list[Path], tyro.conf.Positional],
    *,
    out: Path = Path("scanned"),
    unit: Literal["m", "cm", "mm", "in"] = "m",
    up: units.Up = "y",
    seed: int = 0,
) -> None:
    """Scan meshes virtually.

    Args:
        meshes: Closed meshes in any supported format; the file names become the subjects.
        out: Folder of the dataset.
        unit: Unit of the meshes.
        up: Axis of the meshes that points up.
        seed: Seed of noise and holes.

    """
    subjects = [path.stem for path in meshes]
    if len(set(subjects)) < len(subjects):
        raise ValueError(f"meshes: two files have the same name ({', '.join(sorted(subjects))}). Rename one of them.")
    dataset: ScanDataset = get_dataset("synthetic")
    for index, (path, subject) in enumerate(zip(tqdm(meshes, desc="scan", unit="mesh"), subjects, strict=True)):
        mesh = scan_files.read_scan(path, unit=units.UNITS[unit], up=up)
        if mesh.faces is None:
            raise ValueError(f"{path}: points without faces. Give a mesh.")
        dataset.check_size(mesh)
        scan = VirtualScanner().scan(mesh.points, mesh.faces, np.random.default_rng([seed, index]))
        scan_files.write_scan(out / "scans" / subject / SEQUENCE / f"{SEQUENCE}.000000.ply", scan)
        with replacing(out / f"registrations_{subject}.hdf5") as part, h5py.File(part, "w", locking=False) as file:
            file["faces"] = mesh.faces
            file[f"{subject}_{SEQUENCE}"] = mesh.points[..., None]
    write_json(
        out / "splits" / "all.json", {"scans": {subject: {SEQUENCE: [f"{SEQUENCE}.000000"]} for subject in subjects}}
    )
    print(f"{len(meshes)} scans with registrations in {out}")


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
