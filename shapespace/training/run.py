"""A run: the folder with everything that a training leaves."""

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shapespace.io.atomic import replacing

FORMAT = 1
MACHINE = "machine"  # tag of the words in TensorBoard


@dataclass(frozen=True)
class Progress:
    """How far a training has come."""

    steps: int
    seconds: float


@dataclass(frozen=True)
class Told:
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
    def events(self) -> Path:
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
        return _state(self.checkpoint, "step", "seconds", "model", "optimiser")

    def progress(self) -> Progress | None:
        """How far the training has come, by its checkpoint; none where there is no checkpoint."""
        if not self.checkpoint.is_file():
            return None
        state = _state(self.checkpoint, "step", "seconds", mmap=True)  # its tensors stay there
        return Progress(int(state["step"]), float(state["seconds"]))

    def about(self) -> dict[str, Any]:
        """What stands beside the weights: family, sizes, scale, data; nothing where there is no model."""
        return _described(self.weights, "model") if self.weights.is_file() else {}

    def told(self) -> "Told":
        """What the training told TensorBoard; nothing where there are no events."""
        if not self.events.is_dir():
            return Told({}, [])
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # takes a second

        held = EventAccumulator(str(self.events), size_guidance={"scalars": 0, "tensors": 0})
        held.Reload()
        tags = held.Tags()
        curves = {tag: np.array([(e.step, e.value) for e in held.Scalars(tag)]) for tag in tags["scalars"]}
        wanted = f"{MACHINE}/text_summary"
        machines = held.Tensors(wanted) if wanted in tags["tensors"] else []
        return Told(curves, [event.tensor_proto.string_val[0].decode(errors="replace") for event in machines])

    def family(self) -> str:
        """The family of the model, by the settings."""
        return str(self.settings().get("family", "igr"))


class SettingsLoader(yaml.SafeLoader):
    """YAML of settings: values, and nothing that runs code or, by naming itself again, unfolds to any size.

    YAML 1.1 reads 1e-3 as text; we read it as a number.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node, unless it is an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("settings have no anchors and aliases: write the value out")
        return super().compose_node(parent, index)


SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def parse_settings(text: bytes, source: object) -> dict[str, Any]:
    """Settings from YAML; `source` is how the file is called in the sentence of the `ValueError` for bad ones."""
    try:
        content = yaml.load(text, Loader=SettingsLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}. Mend the file.") from None
    if not isinstance(content or {}, dict):
        raise ValueError(f"{source} holds a {type(content).__name__}, not settings: write `group: {{name: value}}`.")
    if wrong := [name for name in content or {} if not isinstance(name, str)]:
        raise ValueError(f"{source} has a setting called {wrong[0]!r}, which is no name: write words.")
    return content or {}


def _state(path: Path, *keys: str, mmap: bool = False) -> dict[str, Any]:
    """The state of a training, with at least these `keys`.

    A file from a stranger cannot run code, nor unpack to more than it holds.
    """
    damaged = f"{path} is damaged, or no checkpoint of ours"
    remedy = "Remove it and train again, or take the run's whole folder from where it came."
    try:
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("it is packed")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        missing = [key for key in keys if key not in state]
    except OSError:
        raise
    except Exception as error:  # of the many kinds that torch, pickle and zipfile raise
        what = str(error).split("\n")[0][:200] or type(error).__name__
        raise ValueError(f"{damaged} ({what}). {remedy}") from error
    if missing:
        raise ValueError(f"{damaged} (it has no {missing[0]}). {remedy}")
    form = state.get("format", 1)  # the first ones had no number
    if form != FORMAT:
        raise ValueError(
            f"{path} has format {form}, this version reads {FORMAT}. Train again, or from its model: "
            f"shapespace train STORE --start {path.parent} --out OTHER, or go on with the version that wrote it."
        )
    return dict(state)


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Tensors with a description (JSON in the metadata), atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as part:
        part.write_bytes(save(contiguous, metadata={"shapespace": json.dumps({"format": FORMAT, **about})}))


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and their description; `kind` ("model", "codes") is what they must be.

    Raises `FileNotFoundError` or `ValueError` with a sentence.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} at {path}: give the folder of a run, or a .safetensors file that it wrote.")
    about = _described(path, kind)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}): write it again.") from None
    return tensors, about


def _described(path: Path, kind: str) -> dict[str, Any]:
    """What a safetensors file of ours tells of itself."""
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = dict(json.loads((file.metadata() or {}).get("shapespace", "{}")))
    except (SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}): write it again.") from None
    if about.get("kind") != kind:
        raise ValueError(
            f"{path} holds {about.get('kind', 'something else')}, not a shapespace {kind}: give another file."
        )
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {about.get('format')}, this version reads {FORMAT}: {_REBUILD[kind]}, or install the "
            "version that wrote it."
        )
    return about


_REBUILD = {
    "model": "train again, shapespace train STORE --out FOLDER",
    "codes": "fit the scans again, shapespace fit RUN SCANS --out FOLDER",
}
