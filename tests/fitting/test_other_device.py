"""The API on a device that is not the CPU, where no GPU is needed: its tensors are wrappers that refuse to meet others.

Torch's own stand-ins do not do: tensors of `meta` have no numbers, and a fit depends on them.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from shapespace import ShapeSpace
from shapespace.data.registration import make_template
from shapespace.fitting.fit import AdamOptions
from shapespace.fitting.levenberg_marquardt import LMOptions, PartOptions
from shapespace.fitting.refine import RefineOptions
from shapespace.geometry.scan import Scan
from shapespace.models import igr
from shapespace.models.articulated import ArticulatedConfig, build_articulated
from shapespace.models.template import drawn_joints
from shapespace.nn.hypernetwork import rotation_to_6d
from shapespace.synthetic.body import Body
from shapespace.training.config import LossWeights

DEVICE = torch.device("lazy", 0)  # a name that torch knows and does nothing with
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}  # as on a GPU, their indices may be on the CPU
BETWEEN = {"copy_", "_to_copy"}
NUMBERS = {"_local_scalar_dense", "equal"}  # what they return is no tensor


class OtherDevice(Tensor):
    """A tensor of that device; its numbers are in `held`, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OtherDevice":
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, **_: object) -> np.ndarray:
        raise TypeError("can't convert a tensor of another device to numpy. Use Tensor.cpu() first.")

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})


def compute(function: Any, args: Any, kwargs: Any) -> Any:
    """Call the kernel on the CPU; raises where a GPU would, since tensors of two devices meet."""
    name = function._schema.name.removeprefix("aten::")
    indices = args[1] if name in INDEXED and isinstance(args[0], OtherDevice) else ()
    given = list(tensors((args, kwargs)))
    given = [one for one in given if not any(one is index for index in indices)]
    here = [one for one in given if not isinstance(one, OtherDevice) and one.dim()]
    there = any(isinstance(one, OtherDevice) for one in given)
    if here and there and name not in BETWEEN:
        raise RuntimeError(f"{name}: tensors on two devices; on the CPU: {[tuple(one.shape) for one in here]}")
    wanted = kwargs.get("device")
    if wanted is not None:
        there = torch.device(wanted).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = function(*held(args), **held(kwargs))
    if name in NUMBERS or not there or result is None:
        return result
    return args[0] if name.endswith("_") else wrapped(result)


# torch's own walks through trees take most of the time of the 300,000 kernels of a test.
def tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors(value)
    elif isinstance(values, dict):
        yield from tensors(list(values.values()))


def held(values: Any) -> Any:
    if isinstance(values, OtherDevice):
        return values.held
    if isinstance(values, (list, tuple)):
        return [held(value) for value in values]
    return {key: held(value) for key, value in values.items()} if isinstance(values, dict) else values


def wrapped(values: Any) -> Any:
    if isinstance(values, Tensor):
        return OtherDevice(values)
    return type(values)(wrapped(value) for value in values) if isinstance(values, (list, tuple)) else values


class Kernels(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})


class Functions(TorchFunctionMode):
    """What does not reach a kernel: tensors from Python numbers, lists as indices."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        if args and isinstance(args[0], OtherDevice):
            if function is Tensor.new_tensor:
                return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(args[0].device)
            if function in (torch.matmul, Tensor.matmul, Tensor.__matmul__) and args[0].dim() == 1 < args[1].dim():
                return (args[0][None] @ args[1])[0]  # torch's own changes a shape in place, and a wrapper's stays
            if function in (Tensor.__getitem__, Tensor.__setitem__):
                index = args[1] if isinstance(args[1], tuple) else (args[1],)
                index = tuple(torch.tensor(one) if isinstance(one, list) else one for one in index)
                args = (args[0], index, *args[2:])
        return function(*args, **kwargs)


@pytest.fixture
def other_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(torch_optimizer, "_get_fused_kernels_supported_devices", lambda: ["cpu", "lazy"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the modes are those of one thread
    with ExitStack() as stack:
        stack.enter_context(Kernels())
        stack.enter_context(Functions())
        yield "lazy"
    torch.set_num_threads(threads)


def test_tensors_of_two_devices_do_not_meet(other_device: str) -> None:
    there = torch.ones(3, device=other_device)
    assert (there + 1).device.type == other_device
    assert (there[torch.tensor([0, 2])] + torch.tensor(1.0)).cpu().tolist() == [2, 2]
    with pytest.raises(RuntimeError, match="add: tensors on two devices"):
        there + torch.ones(3)
    with pytest.raises(TypeError, match="to numpy"):
        np.asarray(there)


def ball() -> ShapeSpace:
    """Untrained: about a sphere of 0.5 model units."""
    torch.manual_seed(0)
    config = igr.IGRConfig(code_dim=4, width=32, depth=4, skip=2, init_radius=0.5, encoder_points=128)
    space = ShapeSpace(igr.build_igr(config).eval(), config, scale=2.0, metadata={})
    space.model.prior.covariance *= 1e-2
    return space


def body() -> ShapeSpace:
    """The synthetic body in eight parts; its field is untrained."""
    torch.manual_seed(0)
    mean, faces = Body.load().mean[: -len(Body.load().joints)], torch.from_numpy(Body.load().faces).long()
    template = make_template(torch.from_numpy((mean - mean.mean(axis=0)) / 1.25).float(), faces, 8)
    config = ArticulatedConfig(
        code_dim=6, num_parts=8, local_dim=3, width=8, depth=2, hyper_width=8, encoder_points=64,
        encoder_width=8, encoder_features=8,
    )  # fmt: skip
    model = build_articulated(config, num_scans=20).eval()
    model.template.set(template)
    model.template.reach.fill_(1.2)
    model.decoder.radius.copy_(template.radius)
    states, _ = drawn_joints(template, 20, seed=0)
    with torch.no_grad():
        pose = torch.cat([states.center, rotation_to_6d(states.rotation)], dim=-1)
        model.summarize(model.hypernetwork.initialize(pose))
    return ShapeSpace(model, config, scale=1.25, metadata={})


@pytest.mark.parametrize("make", [ball, body])
def test_no_call_leaves_tensors_on_the_cpu(make: Any, other_device: str, tmp_path: Path) -> None:
    with torch.utils._python_dispatch._disable_current_modes():
        space = make()
        space.metadata["weights"] = asdict(LossWeights(tangent_plane=3.0))
        space.save(tmp_path / "model.safetensors")
        points = space.mesh(space.sample(1), resolution=24).sample(800, seed=0).astype(np.float32)
    space = ShapeSpace.load(tmp_path / "model.safetensors", device=other_device)
    assert space.device.type == other_device
    assert space.model.prior is not None
    space.model.prior.covariance *= 1e4  # all is in distribution
    scans = [Scan(f"a/b/{x}", points + np.float32([0.1 * x, 0, 0])) for x in range(3)]
    lm = LMOptions(
        num_points=128, max_steps=2, trial_steps=1, num_starts=1, search_starts=4, alignment="yaw", max_candidates=2,
        parts=PartOptions(num_points=128, max_steps=2),
    )  # fmt: skip
    (encoded,) = space.encode_scans(scans[:1])
    a, b = space.fit_scans(scans[:2], lm=lm)
    space.fit_scans(scans[:1], method="adam", adam=AdamOptions(points=128, steps=2, half_extent=1.0))
    assert all(one.code.flat.device.type == other_device for one in (encoded, a, b))
    mesh = space.mesh(a, resolution=16)
    assert np.isfinite(space.uncertainty(a, mesh)).all()
    shapes = [*space.sample_posterior(a, 1), space.sample(1), space.from_principal_components([1.0]), encoded]
    shapes += space.interpolate_codes(a, b, 3)
    if make is body:
        space.joints(a)
        shapes.append(space.transfer_pose(a, b))
    for shape in shapes:
        assert np.isfinite(space.mesh(shape, resolution=16).vertices).all()
    space.assess(a, scans[0])
    far = Scan("far", np.concatenate([points, points + np.float32([9, 0, 0])]))
    local = replace(lm, alignment="local")  # the search of headings was above
    assert len(space.remove_clutter([far], lm=local)[0]) < len(far)
    assert len(space.fit_sequence(scans, lm=local)) == 3
    for trust_distance in (0.03, float("inf")) if make is ball else (0.03,):
        options = RefineOptions(points=64, field_points=64, steps=2, trust_distance=trust_distance, eval_every=1)
        (refined,) = space.refine(scans[:1], [a], options)
        assert np.isfinite(refined.mesh(a, resolution=16).vertices).all()
