"""Models and codes as safetensors files, checkpoints of trainings, and their format numbers."""

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shapespace.io.atomic import replacing

FORMAT = 1


def read_checkpoint(path: Path, *keys: str, mmap: bool = False) -> dict[str, Any]:
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
            f"shapespace train STORE --init-from {path.parent} --out OTHER, or go on with the version that wrote it."
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
    about = read_metadata(path, kind)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}): write it again.") from None
    return tensors, about


def read_metadata(path: Path, kind: str) -> dict[str, Any]:
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
