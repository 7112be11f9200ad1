"""Train a shape space on the scans of a store.

    shapespace train data/people.h5 --config igr --out runs/people --split train
    shapespace train --resume runs/people
    torchrun --nproc-per-node 2 -m shapespace.tools.train data/people.h5 --config igr --out runs/people

`--config` names one of the package's configurations (igr, igr_autodecoder, igr_paper, tiny, teach; of other families
occupancy, convolutional, multiscale, voxel, atlas) or a YAML file; every setting can be overridden behind it:
`--optim.max-steps 5000`. The run's folder holds the model, the settings, a checkpoint
to resume from and TensorBoard's events (`tensorboard --logdir runs`).
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import tyro

from shapespace.data.store import ScanStore
from shapespace.io.atomic import claimed
from shapespace.space import ShapeSpace
from shapespace.tools._config import config_class, to_arguments
from shapespace.training.config import TrainConfig
from shapespace.training.run import Run


def main(
    store: Annotated[Path | None, tyro.conf.Positional] = None,
    *,
    config: Annotated[TrainConfig[Any], tyro.conf.arg(name="")],
    out: Path | None = None,
    split: str | None = None,
    resume: Path | None = None,
) -> None:
    """Train a shape space.

    Args:
        store: The store that `shapespace preprocess` wrote.
        config: Settings.
        out: Folder of the run, for everything that the training leaves.
        split: Name of a split in the store, or path of a split file; all scans without it.
        resume: Folder of a run that was interrupted: store, split and settings are its own.

    """
    if resume is None and out is not None and _restarts() and Run(out).checkpoint.is_file():
        resume = out
    elif resume is not None and ((store, out, split) != (None,) * 3 or config != TrainConfig(type(config.model)())):
        raise ValueError(
            f"--resume {resume} goes on with the store, the split and the settings that it was begun with, and more is "
            f"given here. With others, from its weights: shapespace train STORE --init-from {resume} --out OTHER ..."
        )
    if resume is not None:
        store, split, config = _settings(Run(resume))
    elif store is None or out is None:
        raise ValueError("train needs a store and a folder: shapespace train STORE --out FOLDER, or --resume FOLDER.")
    folder = Run(resume or out or Path())
    rank, world = _join_processes()
    scans = ScanStore(store)
    names = scans.scan_names(split)
    if rank == 0:
        if resume is None:
            folder.create({"store": str(store), "split": split, **asdict(config)})
        print(f"training on {len(names)} scans; watch: tensorboard --logdir {folder.folder}", file=sys.stderr)
    with _together(folder), claimed(folder.folder) if rank == 0 else nullcontext():
        ShapeSpace.train(scans, names, folder, config, rank=rank, world=world, resume=resume is not None)
        if world > 1:
            dist.barrier()
            dist.destroy_process_group()
    if rank == 0:
        print(f"model in {folder.weights}")


def _settings(run: Run) -> tuple[Path, str | None, TrainConfig[Any]]:
    """What a run was told when it began."""
    said = run.settings()
    store, split = Path(said.pop("store")), said.pop("split")
    words = list(to_arguments(said))
    return store, split, tyro.cli(config_class(words), args=words)


def _restarts() -> int:
    """How often torchrun has started this line again, because a process had died (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


@contextmanager
def _together(run: Run) -> Iterator[None]:
    """Say in a sentence that another process has gone.

    Raises `ConnectionError` in the place of what torch's back ends, each in its own way, say of a lost peer.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
        if not dist.is_initialized() or not lost:
            raise
        raise ConnectionError(
            f"another process of this training has gone ({str(error).splitlines()[0][:120]}). What was saved stays; go "
            f"on: shapespace train --resume {run.folder}"
        ) from error


def _join_processes() -> tuple[int, int]:
    """Rank and number of the processes that torchrun started; (0, 1) without it."""
    if "RANK" not in os.environ:
        return 0, 1
    store, rank, world = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    # torchrun may keep one store over all its starts: in it lie the addresses of processes that are dead by now
    store = dist.PrefixStore(f"start {_restarts()}", store)  # type: ignore[attr-defined]
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return rank, world


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
