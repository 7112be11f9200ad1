"""PointNet, code table and prior."""

import torch

from shapespace.nn.latent import CodeTable, GaussianPrior
from shapespace.nn.pointnet import PointNet, ReLULayers, kl_divergence, sample_normal


def test_pointnet_reads_its_first_points_in_any_order() -> None:
    torch.manual_seed(0)
    net = PointNet(code_dim=4, num_points=50, width=16, features=32)
    points = torch.randn(2, 80, 3)
    code, log_variance = net(points)
    assert log_variance is None
    shuffled = torch.cat([points[:, torch.randperm(50)], 100 * torch.ones(2, 30, 3)], dim=1)
    torch.testing.assert_close(net(shuffled)[0], code)


def test_layers_are_those_of_torch_geometric() -> None:
    from torch_geometric.nn import MLP

    x = torch.randn(40, 3)
    torch.manual_seed(0)
    twin, after = MLP([3, 8, 16, 5], norm=None, plain_last=False), torch.rand(1)
    torch.manual_seed(0)
    layers = ReLULayers([3, 8, 16, 5])
    assert torch.rand(1) == after
    assert list(layers.state_dict()) == list(twin.state_dict())
    torch.testing.assert_close(layers(x), twin(x))


def test_divergence_is_the_monte_carlo_mean_of_the_log_ratio() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.tensor([[0.5, -1.0]]), torch.tensor([[-0.7, 0.3]])
    z = sample_normal(mean.expand(400_000, 2), log_variance.expand(400_000, 2))
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(z).sum(dim=1)
    ratio = posterior - torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(dim=1)
    torch.testing.assert_close(kl_divergence(mean, log_variance)[0], ratio.mean(), atol=5e-3, rtol=0)


def test_code_table_gives_rows_and_the_mean_for_unseen_scans() -> None:
    table = CodeTable(num_scans=3, code_dim=2)
    table.codes.data = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    assert table(torch.tensor([2, -1])).tolist() == [[5, 6], [3, 4]]
    assert "codes" in table.state_dict()


def test_prior_has_the_moments_of_the_codes_and_full_rank_for_few() -> None:
    torch.manual_seed(0)
    factor = torch.tensor([[1.0, 0.0], [0.8, 0.3]])
    prior = GaussianPrior(code_dim=2)
    prior.fit(torch.randn(200_000, 2) @ factor.T + 3)
    torch.testing.assert_close(prior.mean, torch.tensor([3.0, 3.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(prior.covariance, factor @ factor.T, atol=0.02, rtol=0)
    torch.testing.assert_close(prior.precision() @ prior.covariance, torch.eye(2), atol=1e-4, rtol=0)
    drawn = prior.sample(100_000)
    torch.testing.assert_close(torch.cov(drawn.T), prior.covariance, atol=0.03, rtol=0)
    few = GaussianPrior(code_dim=16)
    few.fit(torch.randn(3, 16))
    assert torch.linalg.eigvalsh(few.covariance).min() > 1e-3
