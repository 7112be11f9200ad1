"""Registry: frozen names in state dicts, restoring from untrusted descriptions."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from shapespace.io.checkpoints import load_tensors
from shapespace.models import registry
from shapespace.models.articulated import ArticulatedConfig
from shapespace.models.base import ModelConfig
from shapespace.models.igr import IGRConfig
from shapespace.training.run import find_model

# The names are hashed into the fingerprint that ties stored codes to their model: a new name would orphan them.
NAMES = {
    "prior.mean",
    "prior.covariance",
    "encoder.table.codes",
    "encoder.pointnet.mean.weight",
    "encoder.pointnet.mean.bias",
    *(f"encoder.pointnet.points.lins.{layer}.{kind}" for layer in range(3) for kind in ("weight", "bias")),
    *(f"encoder.pointnet.pooled.lins.{layer}.{kind}" for layer in range(2) for kind in ("weight", "bias")),
    "decoder.point_in.weight",
    "decoder.point_in.bias",
    "decoder.code_in.weight",
    "decoder.hidden.0.weight",
    "decoder.hidden.0.bias",
    "decoder.hidden.1.weight",
    "decoder.hidden.1.bias",
    "decoder.point_skip.weight",
    "decoder.code_skip.weight",
    "decoder.out.weight",
    "decoder.out.bias",
    "decoder.code_hidden.2.weight",
}
PART_NAMES = {
    *(name for name in NAMES if name.startswith(("prior.", "encoder."))),
    *(f"hypernetwork.{name}" for name in ("mean", "components", "correction")),
    *(
        f"hypernetwork.{network}.{layer}.{kind}"
        for network in ("pose", "local")
        for layer in ("first", "second", "out")
        for kind in ("weight", "bias")
    ),
    *(f"decoder.{name}" for name in ("point_in", "hidden", "shift", "bias", "out", "out_bias", "radius")),
    *(f"template.{name}" for name in ("vertices", "faces", "labels", "center", "reach")),
    *(f"template.{skin}_{name}" for skin in ("vertex", "joint") for name in ("parts", "weights", "places")),
    "template.vertex_local",
    "local_std",
}
PARTS = ArticulatedConfig(
    code_dim=4, num_parts=3, local_dim=2, width=8, depth=2, hyper_width=8, encoder_width=8, encoder_features=8
)
SMALL = IGRConfig(
    code_dim=4, width=16, depth=3, skip=1, encoder="distilled", modulate="all", encoder_width=8, encoder_features=8
)


def test_names_in_the_state_dict_are_frozen() -> None:
    assert set(registry.build_model(SMALL, num_scans=2).state_dict()) == NAMES
    assert set(registry.build_model(PARTS, num_scans=2).state_dict()) == PART_NAMES


def test_the_packaged_model_has_its_fingerprint() -> None:
    tensors, description = load_tensors(find_model("humans_v1"), "model")
    _, model = registry.restore_model(description["family"], description["config"], tensors)
    assert model.fingerprint() == "a493e259e29fb08e"


@pytest.mark.parametrize("config", [SMALL, PARTS])
def test_a_saved_model_is_restored(config: ModelConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = registry.build_model(config, num_scans=2)
    registry.save_model(tmp_path / "m.safetensors", model, config, scale=1.25, metadata={"weights": {}})
    tensors, description = load_tensors(tmp_path / "m.safetensors", "model")
    assert (description["scale"], description["metadata"]) == (1.25, {"weights": {}})
    stored, restored = registry.restore_model(description["family"], description["config"], tensors)
    assert stored == config
    assert restored.fingerprint() == model.fingerprint()


@pytest.mark.parametrize("config", [SMALL, PARTS])
def test_a_compact_file_has_matrices_of_half_the_size_and_nearly_the_same_weights(
    config: ModelConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = registry.build_model(config, num_scans=2)
    registry.save_model(tmp_path / "m.safetensors", model, config, scale=1.25, metadata={"weights": {}}, compact=True)
    tensors, description = load_tensors(tmp_path / "m.safetensors", "model")
    halved = {name for name, tensor in tensors.items() if tensor.dtype == torch.float16}
    assert {name for name, tensor in model.state_dict().items() if tensor.is_floating_point() and tensor.ndim > 1} == {
        *halved,
        *(name for name in tensors if name == "prior.covariance"),
    }
    _, restored = registry.restore_model(description["family"], description["config"], tensors)
    for name, tensor in restored.state_dict().items():
        assert tensor.dtype == model.state_dict()[name].dtype
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden": 3}, "family igr has no setting hidden"),
        ({"beta": 100}, "setting beta is 100, not of type float"),
        ({"width": 2**21}, "setting width is 2,097,152, outside of 0 to 1,048,576"),
        ({"code_dim": 2**15}, r"code_dim 32,768 needs more than the [\d,]+ weights of the file"),
        ({"width": 2**15}, r"a model of far more than the [\d,]+ weights of the file"),
    ],
)
def test_descriptions_that_do_not_match_the_weights_are_refused(changes: dict[str, Any], sentence: str) -> None:
    tensors = registry.build_model(SMALL, num_scans=2).state_dict()
    with pytest.raises(ValueError, match=sentence):
        registry.restore_model("igr", asdict(SMALL) | changes, tensors)
    with pytest.raises(ValueError, match="family 'cube' is not one of igr"):
        registry.restore_model("cube", asdict(SMALL), tensors)


@pytest.mark.parametrize("name", registry.FAMILIES)
def test_a_family_is_named_by_its_config(name: str) -> None:
    assert registry.family_name(registry.FAMILIES[name].config()) == name
