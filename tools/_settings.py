"""What a file of scores tells about how its numbers were made, and what they cost."""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from shapespace.models import registry as build
from shapespace.space import Fit, ShapeSpace
from shapespace.training.run import Run

Item = TypeVar("Item")


def of_model(run: Path, space: ShapeSpace) -> dict[str, Any]:
    """Which model, how long it was trained (none for one that is in no run), and what of it new scans need.

    The codes of the training scans are not counted among the weights: no new scan needs them.
    """
    home = Run(run if run.is_dir() else run.parent)
    in_run = run.is_dir() or (run.exists() and run.samefile(home.weights))
    progress = home.progress() if in_run else None
    kept = [tensor for name, tensor in space.model.state_dict().items() if not name.endswith("table.codes")]
    return {
        "run": home.folder.resolve().name if in_run else run.stem,
        "model": space.fingerprint(),
        "family": build.family(space.sizes),
        "trained_seconds": None if progress is None else round(progress.seconds, 1),
        "trained_steps": None if progress is None else progress.steps,
        "weight_numbers": sum(tensor.numel() for tensor in kept),
        "weight_bytes": sum(tensor.numel() * tensor.element_size() for tensor in kept),
    }


def of_fits(method: str, encoded: Sequence[Fit], fits: Sequence[Fit]) -> dict[str, Any]:
    """How the codes were found (what `auto` came to), the seconds that one took, and how many numbers it has."""
    auto = "adam" if fits[0].covariance is None else "lm"
    return {
        "method": auto if method == "auto" else method,
        "encode_seconds": round(encoded[0].seconds, 4),
        "fit_seconds": None if method == "encode" else round(fits[0].seconds, 3),
        "code_numbers": fits[0].code.flat.shape[1],
    }


def timed(items: Iterable[Item], seconds: list[float]) -> Iterator[Item]:
    """The same items; each leaves the seconds that it took to come."""
    coming = iter(items)
    while True:
        began = time.perf_counter()
        try:
            item = next(coming)
        except StopIteration:
            return
        seconds.append(time.perf_counter() - began)
        yield item
