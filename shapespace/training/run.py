"""A run: the folder with everything that a training leaves."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float

from shapespace.io.atomic import replacing
from shapespace.io.checkpoints import FORMAT, read_checkpoint, read_metadata
from shapespace.io.settings import parse_settings

MACHINE = "machine"  # tag of the words in TensorBoard


@dataclass(frozen=True)
class Progress:
    """How far a training has come."""

    steps: int
    seconds: float


@dataclass(frozen=True)
class TrainingLog:
    """What a training told while it ran."""

    curves: Mapping[str, Float[np.ndarray, "n 2"]]
    """Steps and values of every scalar; what an interruption undid is left out."""
    machines: Sequence[str]
    """Where it ran, in words: one for each start."""


@dataclass(frozen=True)
class Run:
    """Paths of a run, and what is written to them; every file appears whole or not at all."""

    folder: Path

    @property
    def config(self) -> Path:
        """All settings, as YAML."""
        return self.folder / "config.yaml"

    @property
    def weights(self) -> Path:
        """The model: weights, and what it needs to be built again, in one file that cannot run code."""
        return self.folder / "model.safetensors"

    @property
    def checkpoint(self) -> Path:
        """The full state of the training, to resume from."""
        return self.folder / "checkpoint.pt"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's folder."""
        return self.folder / "tensorboard"

    def create(self, settings: dict[str, Any]) -> None:
        """Make the folder and write the settings; refuse a folder that already holds a run."""
        if self.checkpoint.exists() or self.weights.exists():
            raise FileExistsError(
                f"{self.folder} already holds a run: choose another --out, remove it, "
                f"or go on with it: shapespace train --resume {self.folder}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.config) as part:
            part.write_text(yaml.safe_dump(settings, sort_keys=False))

    def settings(self) -> dict[str, Any]:
        """What `create` wrote. Raises `FileNotFoundError` or `ValueError` with a sentence."""
        if not self.config.is_file():
            raise FileNotFoundError(f"{self.folder} has no config.yaml: is it the folder of a run?")
        return parse_settings(self.config.read_bytes(), self.config)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the training's state (plain dicts, tensors and numbers)."""
        held = io.BytesIO()
        torch.save({"format": FORMAT, **state}, held)  # to a full disk, torch.save itself says nothing of the disk
        with replacing(self.checkpoint) as part:
            part.write_bytes(held.getbuffer())

    def load_checkpoint(self) -> dict[str, Any]:
        """Read it back; a file from a stranger cannot run code."""
        if not self.checkpoint.is_file():
            raise FileNotFoundError(f"{self.folder} has no checkpoint.pt to resume from: is it the folder of a run?")
        return read_checkpoint(self.checkpoint, "step", "seconds", "model", "optimizer")

    def progress(self) -> Progress | None:
        """How far the training has come, by its checkpoint; none where there is no checkpoint."""
        if not self.checkpoint.is_file():
            return None
        state = read_checkpoint(self.checkpoint, "step", "seconds", mmap=True)  # its tensors stay there
        return Progress(int(state["step"]), float(state["seconds"]))

    def metadata(self) -> dict[str, Any]:
        """What stands beside the weights: family, sizes, scale, data; nothing where there is no model."""
        return read_metadata(self.weights, "model") if self.weights.is_file() else {}

    def training_log(self) -> "TrainingLog":
        """What the training told TensorBoard; nothing where there are no events."""
        if not self.tensorboard.is_dir():
            return TrainingLog({}, [])
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # takes a second

        held = EventAccumulator(str(self.tensorboard), size_guidance={"scalars": 0, "tensors": 0})
        held.Reload()
        tags = held.Tags()
        curves = {tag: np.array([(e.step, e.value) for e in held.Scalars(tag)]) for tag in tags["scalars"]}
        wanted = f"{MACHINE}/text_summary"
        machines = held.Tensors(wanted) if wanted in tags["tensors"] else []
        return TrainingLog(curves, [event.tensor_proto.string_val[0].decode(errors="replace") for event in machines])

    def family(self) -> str:
        """The family of the model, by the settings."""
        return str(self.settings().get("family", "igr"))


def describe_hardware() -> str:
    """Processor, threads, GPU if there is one, and version of torch."""
    cpu = "unknown processor"
    if (info := Path("/proc/cpuinfo")).exists():
        cpu = next((s.split(":")[1].strip() for s in info.read_text().splitlines() if "model name" in s), cpu)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"


def find_model(path: str | FilePath) -> FilePath:
    """The file of a model: in a run's folder, by its own path, or among those that come with the package."""
    file = FilePath(path)
    if file.exists() or file.suffix or len(file.parts) != 1:
        return Run(file).weights if file.is_dir() else file
    packaged = {
        entry.name.removesuffix(".safetensors"): entry for entry in _packaged_files() if entry.suffix == ".safetensors"
    }
    if file.name not in packaged:
        raise FileNotFoundError(
            f"no model at {file}: there is no such folder, and no space of that name comes with the package (it has "
            f"{', '.join(sorted(packaged))}). Give the folder of a run, or one of these names."
        )
    return packaged[file.name]


def _packaged_files() -> list[FilePath]:
    return [FilePath(str(entry)) for entry in (resources.files("shapespace.datasets") / "assets").iterdir()]
