"""A trained model and its file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shapespace.io.checkpoints import load_tensors
from shapespace.models import registry
from shapespace.models.base import ModelConfig, ShapeModel
from shapespace.training.run import find_model


@dataclass(frozen=True)
class TrainedModel:
    """A trained model with what its file contains (see `registry.save_model`)."""

    model: ShapeModel
    config: ModelConfig
    scale: float
    metadata: dict[str, Any]

    def save(self, path: Path, *, compact: bool = False) -> None:
        """Write it to one safetensors file; `compact` halves its size and its precision."""
        registry.save_model(path, self.model, self.config, scale=self.scale, metadata=self.metadata, compact=compact)


def load_trained(path: str | Path, *, device: str = "cpu") -> TrainedModel:
    """Load the model of a run's folder, of a .safetensors file, or of the package by its name.

    Raises:
        FileNotFoundError: There is no such file or name.
        ValueError: The file is damaged or of an unknown format.

    """
    file = find_model(path)
    tensors, header = load_tensors(file, "model")
    try:
        config, model = registry.restore_model(header["family"], header["config"], tensors)
        scale, metadata = float(header["scale"]), dict(header["metadata"])
        metadata["weights"] = {str(term): float(weight) for term, weight in metadata["weights"].items()}
        if not 0 < scale < float("inf"):
            raise ValueError(f"its scale is {scale}")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{file}: cannot restore the model ({reason}). Copy the file again, or retrain.") from None
    return TrainedModel(model.to(device).eval(), config, scale, metadata)
