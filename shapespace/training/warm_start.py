"""Start a training from the weights of another model."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from shapespace.data.loader import StepDataset
from shapespace.io.checkpoints import load_tensors
from shapespace.models import registry as build
from shapespace.models.base import ShapeModel
from shapespace.training.config import TrainConfig
from shapespace.training.run import find_model


def load_pretrained(
    path: str, model: ShapeModel, *, learn: Literal["all", "encoder"]
) -> tuple[set[str], dict[str, float]]:
    """Take the weights of another model; an encoder of other sizes, and other scans' codes, begin anew.

    Returns the names of what was taken, and the weights of that model's loss.

    A wider decoder, or one that is modulated now, goes on from the same field (Chen et al., Net2Net, ICLR 2016): what
    is new says nothing yet. If only the encoder learns, the decoder is left as it is.
    """
    tensors, told = load_tensors(find_model(path), "model")
    own = model.state_dict()
    taken = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    free = ("encoder.", "decoder.code_hidden.") if learn == "all" else ("encoder.pointnet.",)
    if learn == "all":
        for name in own.keys() & tensors.keys() - taken.keys():
            if name.startswith("decoder.") and _fits(tensors[name], own[name]):
                taken[name] = grow_tensor(tensors[name], own[name])
    if missing := [name for name in own if name not in taken and not name.startswith(free)]:
        raise ValueError(
            f"{path} does not fit this training: its {missing[0]} has another size. Give the --model settings"
            f"{' and the scans' if learn == 'encoder' else ', or a larger width,'} that it was trained with."
        )
    model.load_state_dict({**own, **taken})
    return set(taken), told["metadata"]["weights"]


@torch.no_grad()
def init_codes_from_encoder(model: ShapeModel, table: Tensor, dataset: StepDataset, device: torch.device) -> None:
    """Free codes of scans that the model has not seen begin where its encoder sees them."""
    model.eval()
    for row in tqdm(range(len(dataset.names)), desc="encode", unit="scan", disable=dataset.rank > 0):
        stranger = replace(dataset.single_scan(row).to(device), scan_index=torch.tensor([-1], device=device))
        table[row] = model.encode(stranger).flat[0]


def _fits(small: Tensor, large: Tensor) -> bool:
    return small.ndim == large.ndim and all(a <= b for a, b in zip(small.shape, large.shape, strict=True))


def grow_tensor(small: Tensor, large: Tensor) -> Tensor:
    """The larger tensor with the smaller one in its corner, and nothing that leads from the new units to the old."""
    grown = large.clone()
    grown[: len(small)] = 0
    grown[tuple(slice(size) for size in small.shape)] = small
    return grown


def pretrained_config(config: TrainConfig[Any]) -> TrainConfig[Any]:
    """The settings with the sizes of the run to start from, whose encoder is to be taught."""
    if config.init_from is None:
        raise ValueError(
            "--trainable encoder teaches the codes of a run that is there: say which one, --init-from RUN."
        )
    _, told = load_tensors(find_model(config.init_from), "model")
    if told["config"].get("encoder") != "distilled":
        raise ValueError(
            f"--trainable encoder teaches an encoder that stands beside a table of codes, and {config.init_from} has none: "
            "train one with --model.encoder distilled."
        )
    return replace(config, model=build.FAMILIES[told["family"]].config(**told["config"]))
