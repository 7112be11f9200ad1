"""Train a shape space on the scans of a store.

    shapespace train data/people.h5 --config igr --out runs/people --split train
    shapespace train --resume runs/people
    shapespace train data/raw.h5 --config articulated --init-from runs/others --out runs/raw
    torchrun --nproc-per-node 2 -m shapespace.tools.train data/people.h5 --config igr --out runs/people

The articulated family takes the poses of body parts from registrations. Without them it starts from a space that has
parts (`--init-from`): that space fits the scans, the new one is trained on the fits, and both are repeated once. If
some scans have registrations and others have none, all are fitted.

`--config` is a YAML file or a packaged config: igr, igr_autodecoder, igr_paper, encoder_only, tiny; of other families
occupancy, convolutional, convolutional_scans, multiscale, multiscale_scans, voxel, atlas; single_scan and
single_scan_paper are for `reconstruct`. Options after it override its settings: `--optim.max-steps 5000`. The folder of
the run has the model, the settings, a checkpoint to resume from, and events for TensorBoard (`tensorboard --logdir
runs`).
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
from shapespace.fitting.rounds import check_unused, has_rounds
from shapespace.io.atomic import claimed
from shapespace.space import ShapeSpace
from shapespace.tools._config import config_of_settings
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
        store: Store that `shapespace preprocess` wrote.
        config: Settings of the training.
        out: Folder of the run.
        split: Split of the store, or path of a split file; by default all scans.
        resume: Folder of an interrupted run, which is continued with its own store, split and settings.

    """
    if resume is None and out is not None and _restarts() and (Run(out).checkpoint.is_file() or has_rounds(Run(out))):
        resume = out
    elif resume is not None and ((store, out, split) != (None,) * 3 or config != TrainConfig(type(config.model)())):
        raise ValueError(
            f"--resume {resume}: store, split and settings are those of the run, and others are given. Remove them, or "
            f"start another run from its weights: shapespace train STORE --init-from {resume} --out OTHER"
        )
    if resume is not None:
        store, split, config = _read_settings(Run(resume))
    elif store is None or out is None:
        raise ValueError("no store or no --out. Run shapespace train STORE --out FOLDER, or train --resume FOLDER.")
    folder = Run(resume or out or Path())
    rank, world = _join_processes()
    scans = ScanStore(store)
    names = scans.scan_names(split)
    if rank == 0:
        if resume is None:
            check_unused(folder)
            folder.create({"store": str(store), "split": split, **asdict(config)})
        print(f"training on {len(names)} scans; curves: tensorboard --logdir {folder.folder}", file=sys.stderr)
    with _lost_process_as_error(folder), claimed(folder.folder) if rank == 0 else nullcontext():
        ShapeSpace.train(scans, names, folder, config, rank=rank, world_size=world, resume=resume is not None)
        if world > 1:
            dist.barrier()
            dist.destroy_process_group()
    if rank == 0:
        print(f"model in {folder.weights}")


def _read_settings(run: Run) -> tuple[Path, str | None, TrainConfig[Any]]:
    """Store, split and settings of a run."""
    settings = run.settings()
    store, split = Path(settings.pop("store")), settings.pop("split")
    return store, split, config_of_settings(settings)


def _restarts() -> int:
    """How often torchrun has restarted this command after a process died (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


@contextmanager
def _lost_process_as_error(run: Run) -> Iterator[None]:
    """Raise `ConnectionError` in place of the errors of torch's back ends when another process has ended."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
        if not dist.is_initialized() or not lost:
            raise
        raise ConnectionError(
            f"another process of this training has ended ({str(error).splitlines()[0][:120]}). The last checkpoint is "
            f"stored: continue with shapespace train --resume {run.folder}"
        ) from error


def _join_processes() -> tuple[int, int]:
    """Rank and number of the processes of torchrun; (0, 1) without it."""
    if "RANK" not in os.environ:
        return 0, 1
    store, rank, world = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    # torchrun may keep one store over all restarts: without a prefix it contains addresses of dead processes
    store = dist.PrefixStore(f"start {_restarts()}", store)  # type: ignore[attr-defined]
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return rank, world


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
