"""Models and codes as safetensors files, and checkpoints of trainings; every format up to the present one is read."""

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shapespace.io.atomic import replacing
from shapespace.io.migration import FORMATS, check_format, upgrade_checkpoint, upgrade_model

_REMEDIES = {
    "model": "train again: shapespace train STORE --out FOLDER",
    "codes": "fit the scans again: shapespace fit RUN SCANS --out FOLDER",
}
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}  # names in the header


def read_checkpoint(path: Path, *keys: str, mmap: bool = False) -> dict[str, Any]:
    """Read the state of a training, with at least these `keys`, under its present names.

    Untrusted files cannot run code, nor unpack to more than their size.

    Raises:
        ValueError: The file is damaged, is no checkpoint, or has an unknown format.

    """
    damaged = f"{path}: not a valid checkpoint"
    remedy = "Remove it and train again, or copy the folder of the run again."
    try:
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("it is compressed")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        state = state if isinstance(state, dict) else {}
        number = state.get("format", 1)  # the first checkpoints had no number
    except OSError:
        raise
    except Exception as error:  # of the many kinds that torch, pickle and zipfile raise
        what = str(error).split("\n")[0][:200] or type(error).__name__
        raise ValueError(f"{damaged} ({what}). {remedy}") from error
    init = f"shapespace train STORE --init-from {path.parent} --out OTHER"
    check_format("checkpoint", number, path, f"train again from its model: {init}")
    try:
        state = upgrade_checkpoint(state) if number < FORMATS["checkpoint"] else dict(state)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{damaged} ({error}). {remedy}") from error
    if missing := [key for key in keys if key not in state]:
        raise ValueError(f"{damaged} (it has no {missing[0]}). {remedy}")
    return state


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and their metadata (JSON in the header, with its `kind`) to one file, complete or not at all."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = json.dumps({"format": FORMATS[metadata["kind"]], **metadata})
    with replacing(path) as part:
        _write_safetensors(part, contiguous, {"shapespace": header})


def _write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write the format of safetensors tensor by tensor.

    `safetensors.torch.save` makes two copies of all tensors: of the codes of 10,000 scans, 15 GB. `save_file` makes
    none, but writes to a file of another name, which a killed process leaves. Wide numbers come first, so that all are
    aligned.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in ordered:
            file.write(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # a buffer


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and their metadata; the file must be of this `kind` ("model", "codes").

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, of another kind, or has an unknown format.

    """
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} at {path}: give the folder of a run, or a .safetensors file that it wrote.")
    metadata = read_metadata(path, kind)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise _damaged(path, error) from None
    return tensors, metadata


def read_metadata(path: Path, kind: str) -> dict[str, Any]:
    """Read the metadata of a safetensors file of this `kind`, under the present names.

    Raises `ValueError` as `load_tensors` does.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = dict(json.loads((file.metadata() or {}).get("shapespace", "{}")))
    except (SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from None
    if metadata.get("kind") != kind:
        raise ValueError(
            f"{path} holds {metadata.get('kind', 'something else')}, not a shapespace {kind}. Give another file."
        )
    check_format(kind, metadata.get("format"), path, _REMEDIES[kind])
    return upgrade_model(metadata) if kind == "model" and metadata["format"] < FORMATS[kind] else metadata


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: not a valid safetensors file ({error}). Copy it again, or write it again.")
