"""Recipes: one data card per data set. Data are read where the user put them, never shipped or downloaded."""

if __name__ == "datasets":
    raise ImportError(
        "the recipes are part of the package shapespace, and another well-known package is called datasets: "
        "import shapespace.datasets instead, from an installed shapespace (pip install -e .)."
    )

from shapespace.data.scan_dataset import ScanDataset
from shapespace.datasets import faust
from shapespace.datasets.cape import Cape, CapeRaw
from shapespace.datasets.dfaust import DFaust, DFaustRegistrations
from shapespace.datasets.folder import Folder
from shapespace.datasets.synthetic import Synthetic
from shapespace.io.errors import did_you_mean

DATASETS: dict[str, ScanDataset] = {
    recipe.name: recipe
    for recipe in (
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
    """Find a recipe by its name.

    Raises:
        ValueError: There is none of that name.

    """
    if name not in DATASETS:
        raise ValueError(f"there is no recipe {name!r}. {did_you_mean(name, list(DATASETS))}")
    return DATASETS[name]


__all__ = ["DATASETS", "get_dataset"]
