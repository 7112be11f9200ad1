"""Start a training from the weights of another model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from shapespace.data.loader import StepDataset
from shapespace.io.checkpoints import load_tensors
from shapespace.models import registry
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.base import ModelConfig, ShapeModel
from shapespace.training.config import TrainConfig
from shapespace.training.run import find_model

RIDGE = 1e-3  # of the linear map between two codes, in units of the mean variance of their numbers


def load_pretrained(
    path: str, model: ShapeModel, config: ModelConfig, *, trainable: Literal["all", "encoder"]
) -> tuple[set[str], dict[str, float]]:
    """Load the weights of another model into `model`, which has the settings `config`, as far as they fit.

    Returns the names of the loaded tensors, and the loss weights of that model. An encoder of another size and the
    codes of other scans keep their initial values. A wider decoder, or one that is modulated now, gets the same field:
    the weights from new units to old ones are zero (Chen et al., Net2Net, ICLR 2016). With `trainable` "encoder",
    everything but the encoder must fit exactly. Raises `ValueError` where something does not fit.
    """
    tensors, description = load_tensors(find_model(path), "model")
    own = model.state_dict()
    loaded = {
        name: tensor
        for name, tensor in tensors.items()
        if name in own and (own[name].shape == tensor.shape or name.startswith("template."))  # sizes are the data's
    }
    if trainable == "encoder":
        optional = set(model.encoder_parameters())
    else:  # names in the state dict are frozen (tests/models/test_registry.py)
        optional = {name for name in own if name.startswith(("encoder.", "decoder.code_hidden."))}
        for name in own.keys() & tensors.keys() - loaded.keys():
            if name.startswith("decoder.") and _fits_into(tensors[name], own[name]):
                loaded[name] = grow_tensor(tensors[name], own[name])
    if missing := [name for name in own if name not in loaded and name not in optional]:
        sizes = size_settings(description, model, config, missing)
        given = " ".join(f"--model.{name.replace('_', '-')} {value}" for name, value in sizes.items())
        remedy = f"Pass {given}" if given else "Use the --model settings and the scans of that training"
        larger = ", or a larger --model.width" if trainable == "all" and "width" in sizes else ""
        raise ValueError(f"--init-from {path}: {missing[0]} has another size in this training. {remedy}{larger}.")
    model.load_state_dict({**own, **loaded})
    return set(loaded), description["metadata"]["weights"]


def size_settings(
    description: Mapping[str, Any], model: ShapeModel, config: ModelConfig, names: Sequence[str]
) -> dict[str, Any]:
    """Settings of a file's model that give some of these tensors of `model` another size; none for another family."""
    if description["family"] != registry.family_name(config):
        return {}
    tensors, codes, found = model.state_dict(), model.codes_parameter, dict[str, Any]()
    for key, value in description["config"].items():
        if getattr(config, key) == value:
            continue
        try:
            other = replace(config, **{key: value})
        except ValueError:  # not without another one of the settings
            found[key] = value
            continue
        built = registry.build_model(other, num_scans=0 if codes is None else len(codes)).state_dict()
        if any(name not in built or built[name].shape != tensors[name].shape for name in names):
            found[key] = value
    return found


@torch.no_grad()
def init_codes_from_encoder(model: ShapeModel, codes: Tensor, dataset: StepDataset, device: torch.device) -> None:
    """Set the free codes of all training scans to those of the encoder."""
    model.eval()
    for row in tqdm(range(len(dataset.names)), desc="encode", unit="scan", disable=dataset.rank > 0):
        unseen = replace(dataset.single_scan(row).to(device), scan_index=torch.tensor([-1], device=device))
        codes[row] = model.encode(unseen).flat[0]


@torch.no_grad()
def replace_codes(model: ArticulatedSDF, former: Float[Tensor, "n z"]) -> None:
    """Adapt a model to the codes in its table, where the codes of the same scans were `former` ones.

    Local codes and encoder follow by the linear maps between both that fit best. Poses of parts are the components'
    alone, and local codes do not bend the template until its skin is learned again.
    """
    codes = model.codes_parameter
    assert codes is not None  # the family has free codes
    former = former.to(codes)
    net, last = model.hypernetwork, model.encoder.pointnet.mean
    for tensor in (net.correction, net.pose.out.weight, net.pose.out.bias):
        tensor.zero_()
    first = net.local.first
    backward = matrix, offset = affine_map(codes, former)
    first.bias.add_(first.weight @ offset)
    first.weight.copy_(first.weight @ matrix.T)
    matrix, offset = affine_map(former, codes)
    last.bias.copy_(last.bias @ matrix + offset)
    last.weight.copy_(matrix.T @ last.weight)
    model.encoder.corrections.replace_codes(matrix, *backward)
    model.template.vertex_local.zero_()


def affine_map(x: Float[Tensor, "n a"], y: Float[Tensor, "n b"]) -> tuple[Float[Tensor, "a b"], Float[Tensor, "b"]]:
    """Matrix and offset of the map `x @ matrix + offset` to y, by least squares with a small ridge."""
    x, y = x.double(), y.double()
    centered = x - x.mean(dim=0)
    normal = centered.T @ centered
    ridge = (RIDGE * normal.trace() / len(normal)).clamp(min=1e-12) * torch.eye(len(normal), device=x.device)
    matrix = torch.linalg.solve(normal + ridge, centered.T @ (y - y.mean(dim=0)))
    return matrix.float(), (y.mean(dim=0) - x.mean(dim=0) @ matrix).float()


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
    if description["family"] != "articulated" and description["config"].get("encoder") != "distilled":
        raise ValueError(
            f"--trainable encoder: {config.init_from} has no encoder with free codes. Train a run with --model.encoder "
            "distilled, and start from it."
        )
    family = registry.FAMILIES[description["family"]]
    return replace(config, model=family.config(**description["config"]))
