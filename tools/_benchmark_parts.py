"""Section `parts` of the benchmark: training step, fit and mesh of the articulated family."""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor
from trimesh import Trimesh

from shapespace.data.loader import Batch, StepDataset
from shapespace.data.store import ScanStore
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.registration import register
from shapespace.fitting.result import Fit
from shapespace.geometry.isosurface import Balls, bounded, dense_isosurface
from shapespace.geometry.scan import Scan
from shapespace.models.articulated import ArticulatedSDF
from shapespace.nn.mlp_reference import reference_of_parts
from shapespace.nn.part_mlp import NEAREST, PartMLP, PartStates
from shapespace.space import ShapeSpace
from shapespace.tools import _timing as timing
from shapespace.tools._config import load_config
from shapespace.tools._timing import Comparison, compare, interleaved
from shapespace.training.objective import Objective

CELLS = 128
MANY_SCANS = 16
Levels = Literal[1, 2, 3]
PASSES = 3  # forward, and two products for each layer in the backward pass


def measure(space: ShapeSpace, store: ScanStore, names: Sequence[str], *, times: int) -> Iterator[Comparison]:
    """Comparisons of a space: the first of the named scans is fitted alone, up to `MANY_SCANS` of them in one call.

    The reference of a training step has every part at every point, with autograd.
    """
    model = space.model
    assert isinstance(model, ArticulatedSDF)
    scans = [store.scan(name) for name in names[:MANY_SCANS]]
    yield from _step(model, store, times)
    yield from _fit(space, scans)
    yield from _mesh(space, scans[0], times)


def _step(model: ArticulatedSDF, store: ScanStore, times: int) -> Iterator[Comparison]:
    """Loss and gradients of a batch of the config, without optimizer and targets; the products beside the peak."""
    config = load_config("articulated")
    settings = {key: value for key, value in vars(config.batch).items() if key != "num_workers"}
    batch = StepDataset(store, store.scan_names("train"), seed=0, **settings)[0].to(model.decoder.radius.device)
    reference = copy(model)
    reference._modules = {**model._modules, "decoder": reference_of_parts(model.decoder)}
    weights = vars(config.weights)
    ours, plain = (_gradients(each, batch, weights) for each in (model, reference))
    yield compare("parts", f"step, {config.batch.scans} scans", plain, ours, timing.close(1e-3), times=times)
    width = model.decoder.width
    product = timing.matmul(width, model.decoder.radius.device, "highest")
    seconds = interleaved([product, ours], times)
    yield timing.share_of_peak("parts", "step", _operations(model, ours), width, *seconds)


def _gradients(model: ArticulatedSDF, batch: Batch, weights: dict[str, float]) -> Callable[[], Tensor]:
    """Gradients of the decoder's weights in one vector."""
    objective = Objective(model, weights, "eager")

    def step() -> Tensor:
        model.train()
        loss, _ = objective(batch)
        gradients = torch.autograd.grad(loss, list(model.decoder.parameters()))
        model.eval()
        return torch.cat([gradient.flatten() for gradient in gradients])

    return step


def _operations(model: ArticulatedSDF, step: Callable[[], Tensor]) -> float:
    """Floating-point operations of the products of the parts in a step: a value takes 3 passes, a gradient 3 more."""
    decoder, passes = model.decoder, list[int]()

    def counted(x: Tensor, states: PartStates, *, with_gradient: bool) -> tuple[Tensor, Tensor]:
        passes.append(PASSES * (1 + with_gradient) * x.shape[0] * x.shape[1])
        return PartMLP._evaluate(decoder, x, states, with_gradient=with_gradient)

    decoder._evaluate = counted  # type: ignore[method-assign]
    try:
        step()
    finally:
        del decoder._evaluate
    each = decoder.width * (3 + 1 + (decoder.depth - 1) * decoder.width)
    return 2.0 * min(NEAREST, decoder.num_parts) * each * sum(passes)


def _fit(space: ShapeSpace, scans: Sequence[Scan]) -> Iterator[Comparison]:
    """Both levels against the first alone, all three against both, and many scans in one call against one."""

    def fitted(levels: Levels) -> Tensor:
        return space.fit_scans(scans[:1], lm=LMOptions(levels=levels))[0].code.flat

    one, two, three = (partial(fitted, levels) for levels in get_args(Levels))
    yield compare("parts", "fit, both levels; reference: code alone", one, two, None, times=3)
    yield compare("parts", "fit, three levels; reference: both", two, three, None, times=3)

    def one_by_one() -> list[Fit]:  # the same scans: one with a lost limb takes several times as long as another
        return [fit for scan in scans for fit in space.fit_scans([scan])]

    name = f"fit, {len(scans)} scans in one call; reference: a call for each"
    yield compare("parts", name, one_by_one, partial(space.fit_scans, scans), None, times=0)


def _mesh(space: ShapeSpace, scan: Scan, times: int) -> Iterator[Comparison]:
    """The surface in the domain against the dense grid; the registered template."""
    model = space.model
    assert isinstance(model, ArticulatedSDF)
    (fit,) = space.fit_scans([scan])
    code = fit.code
    domain = Balls(*(part.cpu() for part in model.domain(code)))  # the points of the grid are on the CPU
    field = bounded(lambda x: model.field(x.to(code.flat.device)[None], code)[0], domain)

    def dense() -> Trimesh:
        return dense_isosurface(field, resolution=CELLS)

    def ours() -> Trimesh:
        return model.extract_surface(code, resolution=CELLS)[0]

    yield compare("parts", f"mesh, {CELLS} cells; reference: dense grid", dense, ours, timing.same_vertices, times=1)
    template = partial(register, model, code)
    name = f"registered template; reference: {CELLS} cells"
    yield compare("parts", name, lambda: ours().vertices, lambda: template()[0].cpu().numpy(), None, times=times)
