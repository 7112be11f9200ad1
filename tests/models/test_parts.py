"""Parts of single families: patches against a loop, gradients in two ways, labels without ground truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from shapespace.data.loader import collate
from shapespace.geometry.scan import Scan
from shapespace.models import convolutional, igr, multiscale, occupancy, registry, sdf
from shapespace.models.atlas import Patches


def sphere(count: int = 200) -> Scan:
    normals = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return Scan("s", 0.5 * normals, normals)


def test_patches_equal_one_network_after_the_other() -> None:
    torch.manual_seed(0)
    net, uv, code = Patches(code_dim=3, patches=4, width=16), torch.rand(2, 4, 7, 2), torch.randn(2, 3)
    predicted = net(uv, code)
    for shape in range(2):
        for patch in range(4):
            h = torch.cat([uv[shape, patch], code[shape].expand(7, 3)], dim=1)
            layers = list(zip(net.weights, net.biases, strict=True))
            for index, (weight, bias) in enumerate(layers):
                h = h @ weight[patch] + bias[patch, 0]
                h = h.relu() if index < len(layers) - 1 else h.tanh()
            torch.testing.assert_close(predicted[shape, patch], h, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("both", [sdf.autograd_gradient, lambda field: sdf.finite_difference_gradient(field, 1e-4)])
def test_gradients_of_a_known_field(both: object) -> None:
    def field(x: Tensor, code: Tensor) -> Tensor:
        return (x * code[:, None]).norm(dim=-1)

    x, code = torch.randn(2, 9, 3, dtype=torch.float64), torch.tensor([[1.0, 2, 3], [2, 1, 1]], dtype=torch.float64)
    value, gradient = both(field)(x, code)  # type: ignore[operator]
    torch.testing.assert_close(value, field(x, code))
    torch.testing.assert_close(gradient, x * code[:, None].square() / value[..., None], atol=1e-6, rtol=0)


def test_a_scan_without_labels_is_labeled_by_its_normals() -> None:
    torch.manual_seed(0)
    model = occupancy.build_occupancy(
        occupancy.OccupancyConfig(code_dim=4, width=8, blocks=1, encoder_points=50, encoder_width=8)
    ).eval()
    batch = collate([sphere()], near_std=0.02)
    code = model.encode(batch)
    inside = batch.near_points.norm(dim=-1) < 0.5  # the scan is a sphere: below its planes is nearly inside
    assert batch.normals is not None
    below = ((batch.near_points - batch.surface) * batch.normals).sum(dim=-1) < 0
    assert (below == inside).float().mean() > 0.95
    labeled = replace(batch, occupancy_points=batch.near_points, occupancy=below)
    torch.testing.assert_close(model.loss_terms(batch, code)["occupancy"], model.loss_terms(labeled, code)["occupancy"])
    with pytest.raises(ValueError, match="the batch has neither labels nor normals"):
        model.loss_terms(replace(batch, normals=None), code)


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"--model\.plane 0 --model\.grid 0: the code would be empty"):
        registry.build_model(convolutional.ConvolutionalConfig(plane=0))
    with pytest.raises(ValueError, match=r"--model\.plane 20: cannot be halved 3 times\. Set a multiple of 8"):
        registry.build_model(convolutional.ConvolutionalConfig(plane=20))
    with pytest.raises(ValueError, match=r"--model\.grid 20: cannot be halved 4 times"):
        registry.build_model(multiscale.MultiscaleConfig(grid=20))
    with pytest.raises(ValueError, match=r"--model\.init-radius null: only `shapespace reconstruct`"):
        registry.build_model(igr.IGRConfig(init_radius=None))
