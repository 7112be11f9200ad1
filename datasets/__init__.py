"""Raw datasets, one module for each; its docstring is the data card."""

if __name__ == "datasets":
    raise ImportError(
        "datasets: this folder is part of the package shapespace (another package has the name datasets). "
        "Install shapespace (pip install -e .) and import shapespace.datasets instead."
    )

from shapespace.data.scan_dataset import ScanDataset
from shapespace.datasets import faust
from shapespace.datasets.cape import Cape, CapeRaw
from shapespace.datasets.dfaust import DFaust, DFaustRegistrations
from shapespace.datasets.folder import Folder
from shapespace.datasets.synthetic import Synthetic
from shapespace.io.errors import did_you_mean

DATASETS: dict[str, ScanDataset] = {
    dataset.name: dataset
    for dataset in (
        DFaust(),
        DFaustRegistrations(),
        faust.SCANS,
        faust.REGISTRATIONS,
        Cape(),
        CapeRaw(),
        Synthetic(),
        Folder(),
    )
}


def get_dataset(name: str) -> ScanDataset:
    """Dataset of that name.

    Raises:
        ValueError: The name is unknown.

    """
    if name not in DATASETS:
        raise ValueError(f"no dataset {name!r}. {did_you_mean(name, list(DATASETS))}")
    return DATASETS[name]


__all__ = ["DATASETS", "get_dataset"]
