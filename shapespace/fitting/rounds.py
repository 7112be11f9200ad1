"""Train the articulated family on raw scans alone: fit them by a model that has parts, train on the fits, repeat."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from shapespace.data.registration import are_registered
from shapespace.data.store import ScanSource
from shapespace.fitting.part_targets import fit_targets, learn_template
from shapespace.models import registry
from shapespace.models.articulated import ArticulatedConfig, ArticulatedSDF
from shapespace.training.config import TrainConfig
from shapespace.training.run import Run
from shapespace.training.train import num_steps, train_model, training_device
from shapespace.training.trained import TrainedModel, load_trained

FITS = "part_poses"  # folder of the fits in that of a run


def train(
    config: TrainConfig[Any],
    store: ScanSource,
    names: Sequence[str],
    run: Run,
    *,
    rank: int = 0,
    world_size: int = 1,
    resume: bool = False,
) -> TrainedModel:
    """Train on the scans `names` of a store as `train_model` does, or on fits of them.

    The articulated family takes the poses of its parts from registrations. Scans without registrations of the template
    of `config.init_from` are fitted by that space first (`train_on_fits`). Raises as both do, and `ValueError` for a
    space that cannot fit the scans.
    """
    process: dict[str, Any] = {"rank": rank, "world_size": world_size, "resume": resume}
    if isinstance(config.model, ArticulatedConfig) and config.trainable == "all" and config.init_from is not None:
        space = load_trained(config.init_from, device=str(training_device(config.device)))
        start = model_with_parts(space, config.init_from, store)
        if not are_registered(store, names, start.template.faces.long().cpu()):
            assert isinstance(space.config, ArticulatedConfig)  # that of its model
            config = replace(config, model=replace(space.config, loss_points=config.model.loss_points))
            return train_on_fits(start, config, store, names, run, **process)
    return train_model(config, store, names, run, **process)


def model_with_parts(space: TrainedModel, path: str | Path, store: ScanSource) -> ArticulatedSDF:
    """The model of a space, to start a training on a store; `ValueError` if it has no parts, or another scale."""
    model = space.model
    if not isinstance(model, ArticulatedSDF) or not len(model.template.vertices):
        raise ValueError(
            f"--init-from {path}: a space without parts (family {registry.family_name(space.config)}). Start from a "
            "trained space of family articulated."
        )
    if abs(space.scale - store.scale) > 1e-6 * space.scale:
        raise ValueError(
            f"--init-from {path}: its model unit is {space.scale:g} m, and that of {store.path} {store.scale:g} m. "
            f"Preprocess the scans with --scale {space.scale:g}."
        )
    return model


def train_on_fits(
    start: ArticulatedSDF,
    config: TrainConfig[Any],
    store: ScanSource,
    names: Sequence[str],
    run: Run,
    *,
    rank: int = 0,
    world_size: int = 1,
    resume: bool = False,
) -> TrainedModel:
    """Train on scans without registrations, in `config.rounds` rounds; each fits the scans and trains on the fits.

    `start` is the model `config.init_from`, from which the first round starts; its settings must be `config.model`. A
    later round starts from the model of the round before, `roundN.safetensors` in the folder of the run. Finished fits
    and rounds are kept, and an interrupted training continues with `resume`.

    Raises:
        ValueError: There are no rounds, or too few fits can be used (`fit_targets`).
        FileExistsError: The folder has a round of another training.
        FloatingPointError: A training diverges.
        KeyboardInterrupt: It was ended by a signal.

    """
    if config.rounds < 1:
        raise ValueError(f"--rounds {config.rounds}: must be at least 1. Raise it.")
    if not resume:
        check_unused(run)
    config, model, data = share(config, len(names)), start, _Data(store, names, run, rank, world_size)
    for number in range(1, config.rounds):
        done = run.folder / f"round{number}.safetensors"
        if not done.exists():
            trained = data.train(model, config, number, Run(run.folder / f"round{number}"))
            if rank == 0:
                trained.save(done)
            if dist.is_initialized():
                dist.barrier()  # the first process writes the model
        former = load_trained(done, device=str(training_device(config.device)))
        config, model = replace(config, init_from=str(done)), model_with_parts(former, done, store)
    trained = data.train(model, config, config.rounds, run)
    if rank == 0:
        assert isinstance(trained.model, ArticulatedSDF)
        learn_template(trained.model)
        trained.save(run.weights)
    return trained


@dataclass(frozen=True)
class _Data:
    """What all rounds train on, by this process of some, and the folder of the run."""

    store: ScanSource
    names: Sequence[str]
    run: Run
    rank: int
    world_size: int

    def train(self, model: ArticulatedSDF, config: TrainConfig[Any], number: int, run: Run) -> TrainedModel:
        """Fit the scans by a model, and train from its weights in the folder of a round."""
        process = {"rank": self.rank, "world_size": self.world_size}
        if self.rank == 0:
            print(f"round {number} of {config.rounds}: {len(self.names):,} scans are fitted first", file=sys.stderr)
        try:
            targets, usable = fit_targets(model, self.store, self.names, self.run.folder / FITS, **process)
            resume = run.checkpoint.exists()
            return train_model(config, self.store, usable, run, **process, resume=resume, targets=targets)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped in round {number} of {config.rounds}; resume with: shapespace train --resume "
                f"{self.run.folder}"
            ) from None


def has_rounds(run: Run) -> bool:
    """Whether a round of a training on fits was begun in the folder."""
    return any(run.folder.glob("round*/checkpoint.pt"))


def check_unused(run: Run) -> None:
    """Raise `FileExistsError` for a folder with a round of a training on fits."""
    if has_rounds(run):
        raise FileExistsError(
            f"{run.folder} already holds a run. Choose another --out, remove the folder, or resume: "
            f"shapespace train --resume {run.folder}"
        )


def share(config: TrainConfig[Any], num_scans: int) -> TrainConfig[Any]:
    """The settings of one round, with its share of the steps and minutes."""
    optim, rounds = config.optim, config.rounds
    steps = -(-num_steps(optim, num_scans, config.batch.scans) // rounds)
    minutes = None if optim.max_minutes is None else optim.max_minutes / rounds
    return replace(config, optim=replace(optim, max_steps=steps, max_epochs=None, max_minutes=minutes))
