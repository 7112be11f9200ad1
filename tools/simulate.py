"""See meshes as a ring of depth cameras would: raw virtual scans beside the true surfaces.

    shapespace simulate man.obj woman.obj --out data/strangers
    shapespace preprocess synthetic data/strangers data/strangers.h5
    shapespace evaluate humans data/strangers.h5 --splits all

For trying a shape space on bodies that come from elsewhere. The cameras are those of `shapespace synthesize`. Writes
D-FAUST's layout: OUT/scans/NAME/scan/scan.000000.ply, the mesh as OUT/registrations_NAME.hdf5, and a split `all`.
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
        meshes: Closed meshes, in any format that can be read; their names become the subjects.
        out: Folder of the data set.
        unit: Unit of the meshes.
        up: Axis of the meshes that points up.
        seed: Of noise and lost patches.

    """
    subjects = [path.stem for path in meshes]
    if len(set(subjects)) < len(subjects):
        raise ValueError(f"two meshes have one name ({', '.join(sorted(subjects))}): rename one, it names the subject.")
    recipe: ScanDataset = get_dataset("synthetic")
    for index, (path, subject) in enumerate(zip(tqdm(meshes, desc="scan", unit="mesh"), subjects, strict=True)):
        whole = scan_files.read_scan(path, unit=units.UNITS[unit], up=up)
        if whole.faces is None:
            raise ValueError(f"{path} holds points without faces: a surface is needed for cameras to see.")
        recipe.check_size(whole)
        scan = VirtualScanner().scan(whole.points, whole.faces, np.random.default_rng([seed, index]))
        scan_files.write_scan(out / "scans" / subject / SEQUENCE / f"{SEQUENCE}.000000.ply", scan)
        with replacing(out / f"registrations_{subject}.hdf5") as part, h5py.File(part, "w", locking=False) as file:
            file["faces"] = whole.faces
            file[f"{subject}_{SEQUENCE}"] = whole.points[..., None]
    write_json(
        out / "splits" / "all.json", {"scans": {subject: {SEQUENCE: [f"{SEQUENCE}.000000"]} for subject in subjects}}
    )
    print(f"{len(meshes)} scans with their true surfaces in {out}")


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
