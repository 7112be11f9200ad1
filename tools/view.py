"""Interactive viewer in the browser: scans with their fits, shapes along sliders, slices, and uploads.

    shapespace view humans
    shapespace view runs/people scan.ply another.obj
    shapespace view runs/people --store data/people.h5 --split unseen_people

Serves a page at http://127.0.0.1:8080 until Ctrl+C; needs the extra `view`. A scan is fitted when it is first shown.
Only this machine can open the page, unless --host is given. There is no password: everyone who reaches the address sees
the scans and can start fits. See docs/guide/viewer.md.
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
from shapespace.viewer.fitted_scans import ScanCollection


def main(
    run: Annotated[Path, tyro.conf.Positional],
    scans: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    *,
    source: Annotated[ScanInput, tyro.conf.arg(name="")],
    host: str = HOST,
    port: int = PORT,
) -> None:
    """View a shape space in the browser.

    Args:
        run: Folder of a run, a model's .safetensors file, or the name of a packaged model.
        scans: Scan files, `example`, or names in a store.
        source: How to read the scans.
        host: Address to listen on; 0.0.0.0 opens the page to the network.
        port: Port to listen on; 0 takes a free one.

    """
    space = ShapeSpace.load(run)
    read, source = read_scans(scans, source, empty=True)
    store = None if source.store is None else ScanStore(source.store)

    def ground_truth(name: str) -> Trimesh | None:
        return store.ground_truth(name) if store is not None and name in store.names else None

    with Viewer(ScanCollection(space, read, ground_truth), title=str(run), host=host, port=port) as viewer:
        # Each session meshes in its own thread. With one torch thread each they share the cores; with more they block
        # each other: on two busy cores a coarse mesh of `humans` took 0.16 s with one torch thread, 2.5 s with two.
        torch.set_num_threads(1)
        print(f"open {viewer.address} in a browser; Ctrl+C stops the viewer", flush=True)
        viewer.wait()


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
