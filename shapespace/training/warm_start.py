"""Start a training from the weights of another model."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from shapespace.data.loader import StepDataset
from shapespace.io.checkpoints import load_tensors
from shapespace.models import registry
from shapespace.models.base import ShapeModel
from shapespace.training.config import TrainConfig
from shapespace.training.run import find_model


def load_pretrained(
    path: str, model: ShapeModel, *, trainable: Literal["all", "encoder"]
) -> tuple[set[str], dict[str, float]]:
    """Load the weights of another model into `model`, as far as they fit.

    Returns the names of the loaded tensors, and the loss weights of that model. An encoder of another size and the
    codes of other scans keep their initial values. A wider decoder, or one that is modulated now, gets the same field:
    the weights from new units to old ones are zero (Chen et al., Net2Net, ICLR 2016). With `trainable` "encoder",
    everything but the encoder must fit exactly. Raises `ValueError` where something does not fit.
    """
    tensors, description = load_tensors(find_model(path), "model")
    own = model.state_dict()
    loaded = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    if trainable == "encoder":
        optional = set(model.encoder_parameters())
    else:  # names in the state dict are frozen (tests/models/test_registry.py)
        optional = {name for name in own if name.startswith(("encoder.", "decoder.code_hidden."))}
        for name in own.keys() & tensors.keys() - loaded.keys():
            if name.startswith("decoder.") and _fits_into(tensors[name], own[name]):
                loaded[name] = grow_tensor(tensors[name], own[name])
    if missing := [name for name in own if name not in loaded and name not in optional]:
        scans_or_width = "and the scans" if trainable == "encoder" else "or a larger --model.width"
        raise ValueError(
            f"--init-from {path}: {missing[0]} has another size in this training. "
            f"Use the --model settings {scans_or_width} of that training."
        )
    model.load_state_dict({**own, **loaded})
    return set(loaded), description["metadata"]["weights"]


@torch.no_grad()
def init_codes_from_encoder(model: ShapeModel, codes: Tensor, dataset: StepDataset, device: torch.device) -> None:
    """Set the free codes of all training scans to those of the encoder."""
    model.eval()
    for row in tqdm(range(len(dataset.names)), desc="encode", unit="scan", disable=dataset.rank > 0):
        unseen = replace(dataset.single_scan(row).to(device), scan_index=torch.tensor([-1], device=device))
        codes[row] = model.encode(unseen).flat[0]


def _fits_into(small: Tensor, large: Tensor) -> bool:
    return small.ndim == large.ndim and all(a <= b for a, b in zip(small.shape, large.shape, strict=True))


def grow_tensor(small: Tensor, large: Tensor) -> Tensor:
    """Copy of `large` with `small` in its corner; the rows of `small` are zero in the other columns."""
    grown = large.clone()
    grown[: len(small)] = 0
    grown[tuple(slice(size) for size in small.shape)] = small
    return grown


def pretrained_config(config: TrainConfig[Any]) -> TrainConfig[Any]:
    """The config with the model settings of `init_from`, whose encoder is to be trained."""
    if config.init_from is None:
        raise ValueError("--trainable encoder: no run to start from. Set --init-from RUN.")
    _, description = load_tensors(find_model(config.init_from), "model")
    if description["config"].get("encoder") != "distilled":
        raise ValueError(
            f"--trainable encoder: {config.init_from} has no encoder with free codes. Train a run with --model.encoder "
            "distilled, and start from it."
        )
    family = registry.FAMILIES[description["family"]]
    return replace(config, model=family.config(**description["config"]))
