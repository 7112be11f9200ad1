"""The folder of a training: its files and where they are."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float

from shapespace.io.atomic import make_folder, replacing
from shapespace.io.checkpoints import read_checkpoint, read_metadata
from shapespace.io.migration import FORMATS, upgrade_tag, upgrade_training
from shapespace.io.settings import parse_settings

MACHINE = "machine"  # TensorBoard tag of the description of the hardware


@dataclass(frozen=True)
class Progress:
    """Steps and seconds of a training so far."""

    steps: int
    seconds: float


@dataclass(frozen=True)
class TrainingLog:
    """Records of a training in TensorBoard."""

    curves: Mapping[str, Float[np.ndarray, "n 2"]]
    """Steps and values of every scalar, by its tag; steps that an interruption discarded are left out."""
    machines: Sequence[str]
    """Descriptions of the hardware, one for each start."""


@dataclass(frozen=True)
class Run:
    """Paths of a run and what is written to them; every file is complete or absent."""

    folder: Path

    @property
    def config(self) -> Path:
        """All settings, as YAML."""
        return self.folder / "config.yaml"

    @property
    def weights(self) -> Path:
        """The model in one file that cannot run code: weights, and the config from which it is built."""
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
        """Make the folder and write the settings; raise `FileExistsError` for a folder that already holds a run."""
        if self.checkpoint.exists() or self.weights.exists():
            raise FileExistsError(
                f"{self.folder} already holds a run. Choose another --out, remove the folder, "
                f"or resume: shapespace train --resume {self.folder}"
            )
        make_folder(self.folder)
        with replacing(self.config) as part:
            part.write_text(yaml.safe_dump(settings, sort_keys=False))

    def settings(self) -> dict[str, Any]:
        """Read what `create` wrote, under its present names.

        Raises `FileNotFoundError` for a folder without settings, and `ValueError` for settings that are no valid YAML.
        """
        if not self.config.is_file():
            raise FileNotFoundError(f"{self.folder} has no config.yaml. Give the folder of a run.")
        return upgrade_training(parse_settings(self.config.read_bytes(), self.config), self.config)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the state of the training: dictionaries, lists, tensors and numbers."""
        # to a buffer first: torch.save does not report a full disk
        buffer = io.BytesIO()
        torch.save({"format": FORMATS["checkpoint"], **state}, buffer)
        with replacing(self.checkpoint) as part:
            part.write_bytes(buffer.getbuffer())

    def load_checkpoint(self) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote; an untrusted file cannot run code.

        Raises `FileNotFoundError` where there is no checkpoint, and `ValueError` as `read_checkpoint` does.
        """
        if not self.checkpoint.is_file():
            raise FileNotFoundError(f"{self.folder} has no checkpoint.pt. Give the folder of a run to resume.")
        return read_checkpoint(self.checkpoint, "step", "seconds", "model", "optimizer")

    def progress(self) -> Progress | None:
        """Steps and seconds of the checkpoint; None where there is no checkpoint."""
        if not self.checkpoint.is_file():
            return None
        state = read_checkpoint(self.checkpoint, "step", "seconds", mmap=True)  # the tensors are not read
        return Progress(int(state["step"]), float(state["seconds"]))

    def metadata(self) -> dict[str, Any]:
        """The header of the model: family, config, scale, data; empty where there is no model."""
        return read_metadata(self.weights, "model") if self.weights.is_file() else {}

    def training_log(self) -> TrainingLog:
        """Read TensorBoard's records, under their present tags; empty where there are none."""
        if not self.tensorboard.is_dir():
            return TrainingLog({}, [])
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # takes a second

        events = EventAccumulator(str(self.tensorboard), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        tags = events.Tags()
        curves: dict[str, list[tuple[int, float]]] = {}
        for tag in tags["scalars"]:
            curves.setdefault(upgrade_tag(tag), []).extend((event.step, event.value) for event in events.Scalars(tag))
        hardware = f"{MACHINE}/text_summary"
        starts = events.Tensors(hardware) if hardware in tags["tensors"] else []
        return TrainingLog(
            {tag: np.array(sorted(records, key=lambda record: record[0])) for tag, records in curves.items()},
            [event.tensor_proto.string_val[0].decode(errors="replace") for event in starts],
        )

    def family(self) -> str:
        """The family of the model, by the settings (`igr` where they name none)."""
        return str(self.settings().get("family", "igr"))


def describe_hardware() -> str:
    """Processor, threads, GPU if there is one, and version of torch."""
    cpu = "unknown processor"
    if (info := Path("/proc/cpuinfo")).exists():
        cpu = next((s.split(":")[1].strip() for s in info.read_text().splitlines() if "model name" in s), cpu)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"


def find_model(path: str | Path) -> Path:
    """The file of a model, given a run's folder, its own path, or the name of one that comes with the package.

    Raises `FileNotFoundError` for a name that is none of these.
    """
    file = Path(path)
    if file.exists() or file.suffix or len(file.parts) != 1:
        return Run(file).weights if file.is_dir() else file
    assets = (Path(str(entry)) for entry in (resources.files("shapespace.datasets") / "assets").iterdir())
    packaged = {asset.stem: asset for asset in assets if asset.suffix == ".safetensors"}
    if file.name not in packaged:
        raise FileNotFoundError(
            f"no model at {file}: neither a folder nor a packaged model ({', '.join(sorted(packaged))}). "
            "Give the folder of a run, a .safetensors file, or the name of a packaged model."
        )
    return packaged[file.name]
