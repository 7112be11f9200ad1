"""Look at a shape space in the browser: fits beside their scans, shapes along sliders, slices, and scans of your own.

    shapespace view humans
    shapespace view runs/people scan.ply another.obj
    shapespace view runs/people --store data/people.h5 --split unseen_people

Serves a page at http://127.0.0.1:8080 until Ctrl+C; needs the extra `view`. A scan is fitted when it is first looked
at. The page is for this machine alone unless --host says otherwise, and there is no password: who reaches the address
sees the scans and can fit others. See docs/viewer.md.
"""

from pathlib import Path
from typing import Annotated

import torch
import tyro
from trimesh import Trimesh

from shapespace.data.store import ScanStore
from shapespace.space import ShapeSpace
from shapespace.tools._inputs import ScanInput, read_scans
from shapespace.viewer.app import HOST, PORT, Viewer
from shapespace.viewer.scene import ScanCollection


def main(
    run: Annotated[Path, tyro.conf.Positional],
    scans: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    *,
    source: Annotated[ScanInput, tyro.conf.arg(name="")],
    host: str = HOST,
    port: int = PORT,
) -> None:
    """View.

    Args:
        run: Folder of a run, a model's .safetensors file, or a space of the package by its name.
        scans: Scan files, or names in a store.
        source: How to read them.
        host: Address to listen on; 0.0.0.0 lets the network in.
        port: Port to listen on; 0 takes one that is free.

    """
    space = ShapeSpace.load(run)
    gathered, source = read_scans(scans, source, empty=True)
    store = None if source.store is None else ScanStore(source.store)

    def truth(name: str) -> Trimesh | None:
        return store.ground_truth(name) if store is not None and name in store.names else None

    with Viewer(ScanCollection(space, gathered, truth), title=str(run), host=host, port=port) as viewer:
        # Pages are meshed in threads of their own. With one thread of torch to each they share the cores; with more
        # they wait for each other: on two busy cores a coarse mesh of `humans` took 0.16 s with one, 2.5 s with two.
        torch.set_num_threads(1)
        print(f"open {viewer.address} in a browser; Ctrl+C ends it", flush=True)
        viewer.wait()


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
