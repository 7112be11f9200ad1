"""The Gaussian of the training codes."""

import torch

from shapespace.nn.latent import GaussianPrior


def test_principal_directions_are_orthogonal_widest_first_and_make_up_the_covariance() -> None:
    prior = GaussianPrior(code_dim=5)
    prior.fit(torch.randn(300, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 2, 4, 3]) - 7)
    steps = prior.principal_axes(5)
    torch.testing.assert_close(steps.T @ steps, prior.covariance, atol=1e-4, rtol=1e-4)
    products = steps @ steps.T
    torch.testing.assert_close(products, torch.diag(products.diagonal()), atol=1e-3, rtol=0)
    assert products.diagonal().tolist() == sorted(products.diagonal().tolist(), reverse=True)
    # Each is one standard deviation long: a Mahalanobis distance of 1 from the mean.
    away = torch.einsum("ck,kl,cl->c", steps, prior.precision(), steps)
    torch.testing.assert_close(away, torch.ones(5), atol=1e-3, rtol=0)
    torch.testing.assert_close(prior.principal_axes(2), steps[:2])
    assert (steps.gather(1, steps.abs().argmax(dim=1, keepdim=True)) > 0).all()


def test_samples_repeat_with_a_generator() -> None:
    prior = GaussianPrior(code_dim=4)
    first, again = (prior.sample(3, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, prior.sample(3, torch.Generator().manual_seed(2)))
