"""Measure the fast ways against the plain ones, on this machine, in this run.

    shapespace benchmark                     (a few minutes)
    shapespace benchmark --quick --json bench.json

Reference and ours are timed in turn, and medians are compared: the ratio is what carries over, not the seconds. Nothing
else should be running.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from shapespace import build, losses
from shapespace.atomic import replacing
from shapespace.geometry.isosurface import dense
from shapespace.models.code import Code
from shapespace.models.igr import IGR
from shapespace.nn import plain


@dataclass(frozen=True)
class Figure:
    """One comparison."""

    section: str
    name: str
    reference_s: float
    ours_s: float
    ratio: float
    equal: bool
    """Both gave the same, to the tolerance that the tests state."""


def main(*, quick: bool = False, json: Path | None = None) -> None:
    """Print a table of ratios.

    Args:
        quick: A quarter of the points, a third of the repetitions.
        json: A file for the figures.

    """
    torch.manual_seed(0)
    model = build.igr(build.IGRSizes(code=64, width=256, radius=0.5)).eval()
    points, times, cells = (128, 3, 48) if quick else (512, 9, 96)
    figures = [_step(model, points, times), _field(model, points, times), _mesh(model, cells)]
    _print(figures)
    if json is not None:
        _write(figures, json)
        print(f"figures in {json}")


def _step(model: IGR, points: int, times: int) -> Figure:
    """One training step's loss and gradients: written out against autograd's double backward."""
    x, code = torch.rand(8, 2 * points, 3) * 2 - 1, torch.randn(8, 64)
    weights = list(model.decoder.parameters())

    def gradients(both: tuple[Tensor, Tensor]) -> Tensor:
        value, gradient = both
        loss = losses.surface(value) + losses.eikonal(gradient)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])

    return _compare(
        "step",
        f"8 x {2 * points:,} points, 8x256",
        lambda: gradients(plain.value_and_gradient(model.decoder, x, code)),
        lambda: gradients(model.decoder.value_and_gradient(x, code)),
        lambda a, b: bool((a - b).norm() < 1e-5 * a.norm()),
        times,
    )


def _field(model: IGR, points: int, times: int) -> Figure:
    x, code = torch.rand(8, 8 * points, 3) * 2 - 1, torch.randn(8, 64)

    def quiet(field: Callable[..., Tensor], *arguments: object) -> Tensor:
        with torch.no_grad():
            return field(*arguments)

    return _compare(
        "field",
        f"8 x {8 * points:,} points, 8x256",
        lambda: quiet(plain.value, model.decoder, x, code),
        lambda: quiet(model.decoder, x, code),
        lambda a, b: bool((a - b).abs().max() < 1e-5),
        times,
    )


def _mesh(model: IGR, cells: int) -> Figure:
    code = Code((torch.zeros(1, 64),))
    return _compare(
        "mesh",
        f"{cells}^3 cells, 8x256",
        lambda: dense(lambda x: model.field(x[None], code)[0], resolution=cells),
        lambda: model.surface(code, resolution=cells)[0],
        lambda a, b: abs(a.area - b.area) < 5e-3 * a.area,
        3,
    )


def _compare(
    section: str,
    name: str,
    reference: Callable[[], object],
    ours: Callable[[], object],
    equal: Callable[..., bool],
    times: int,
) -> Figure:
    same = bool(equal(reference(), ours()))
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(times):
        for way, taken in zip((reference, ours), seconds, strict=True):
            began = time.perf_counter()
            way()
            taken.append(time.perf_counter() - began)
    slow, fast = (statistics.median(taken) for taken in seconds)
    return Figure(section, name, slow, fast, slow / fast, same)


def _print(figures: list[Figure]) -> None:
    print(f"{'section':<8} {'what':<28} {'reference':>10} {'ours':>10} {'ratio':>7}  same")
    for f in figures:
        same = "yes" if f.equal else "NO"
        print(f"{f.section:<8} {f.name:<28} {f.reference_s:>8.3f} s {f.ours_s:>8.3f} s {f.ratio:>6.1f}x  {same}")


def _write(figures: list[Figure], path: Path) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps([asdict(figure) for figure in figures], indent=1))


if __name__ == "__main__":
    from shapespace.tools.__main__ import run

    run(main)
