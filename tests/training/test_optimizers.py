"""Optimizers: which parameters each updates, and restored states."""

import pytest
import torch

from shapespace.models import igr
from shapespace.models.igr import IGR
from shapespace.nn.part_mlp import PartMLP
from shapespace.training import optimizers
from shapespace.training.optimizers import (
    POLAR_STEPS,
    Float32Muon,
    LazyAdam,
    StackedMuon,
    make_optimizers,
    orthogonalize_stack,
)


def model(encoder: str = "autodecoder") -> IGR:
    torch.manual_seed(0)
    config = igr.IGRConfig(code_dim=4, width=24, depth=4, skip=2, encoder=encoder, code_init_std=0.1, encoder_width=16)
    return igr.build_igr(config, num_scans=3)


def test_free_codes_have_their_own_learning_rate() -> None:
    made = model()
    groups = make_optimizers(made, lr=1e-3, lr_codes=5e-3, lr_muon=None).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(made.parameters()))
    assert [name for name, p in made.named_parameters() if rates[id(p)] == 5e-3] == ["encoder.table.codes"]


def test_muon_updates_the_hidden_matrices_and_nothing_else() -> None:
    made = model("distilled")
    groups = make_optimizers(made, lr=1e-3, lr_codes=5e-3, lr_muon=0.02).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(made.parameters()))
    moved = [name for name, p in made.named_parameters() if rates[id(p)] == 0.02]
    encoder = ["points.lins.1", "points.lins.2", "pooled.lins.0", "pooled.lins.1"]
    assert moved == [
        *(f"encoder.pointnet.{name}.weight" for name in encoder),
        *(f"decoder.hidden.{layer}.weight" for layer in range(3)),
    ]
    made.decoder.requires_grad_(False)
    frozen = {id(p) for p in made.decoder.parameters()}
    groups = make_optimizers(made, lr=1e-3, lr_codes=5e-3, lr_muon=0.02).param_groups
    assert not frozen & {id(p) for group in groups for p in group["params"]}


def test_a_step_of_muon_has_even_singular_values() -> None:
    """The singular values of a step are nearly equal, whatever those of the gradient are."""
    made = model()
    made.requires_grad_(False)
    weight = made.decoder.layers()[1].weight
    weight.requires_grad_()
    both = make_optimizers(made, lr=1e-3, lr_codes=1e-3, lr_muon=1.0)
    before = weight.detach().clone()
    left, _, right = torch.linalg.svd(torch.randn_like(weight))
    spread = torch.logspace(0, -1, min(weight.shape))
    weight.grad = (left[:, : len(spread)] * spread) @ right[: len(spread)]
    both.step()
    singular = torch.linalg.svdvals(before - weight.detach())
    assert singular.min() > 0.5 * singular.max()


def test_the_states_of_all_optimizers_are_restored() -> None:
    def moved(steps: int, made: IGR, state: dict[str, object] | None = None) -> dict[str, object]:
        both = make_optimizers(made, lr=1e-3, lr_codes=5e-3, lr_muon=0.02)
        if state is not None:
            both.load_state_dict(state)
        for _ in range(steps):
            both.zero_grad()
            made.decoder(torch.ones(3, 5, 3), made.encoder.table.codes).square().mean().backward()
            both.step()
        return both.state_dict()

    whole, halves = model(), model()
    moved(4, whole)
    state = moved(2, halves)
    moved(2, halves, state)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True))


def test_visited_rows_move_as_under_adam_and_others_do_not_move() -> None:
    """Each row moves as a tensor of its own that Adam updates at the visits of the row only."""
    torch.manual_seed(0)
    start = torch.randn(3, 4)
    table, alone = start.clone().requires_grad_(), [row.clone().requires_grad_() for row in start]
    rows = LazyAdam([table], lr=0.1, betas=(0.5, 0.99))
    plain = [torch.optim.Adam([row], lr=0.1, betas=(0.5, 0.99)) for row in alone]
    for visited in ([0], [0, 1], [0], [1], [0, 1]):
        table.grad = torch.zeros_like(table)
        for row in visited:
            table.grad[row] = alone[row].grad = torch.randn(4)
            plain[row].step()
        rows.step()
    torch.testing.assert_close(table.detach(), torch.stack([row.detach() for row in alone]))
    assert torch.equal(table[2].detach(), start[2])


def test_muon_in_float32_is_muon_but_for_rounding() -> None:
    """Against torch's, of which bfloat16 has eight bits; and a state goes from one to the other."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((24, 24), (40, 16), (16, 40))]
    kinds = (torch.optim.Muon, Float32Muon)
    settings = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    matrices = [[part.clone().requires_grad_() for part in start] for _ in kinds]
    states = None
    for _ in range(2):
        both = [kind(parts, **settings) for kind, parts in zip(kinds, matrices, strict=True)]
        for optimizer, state in zip(both, reversed(states or []), strict=False):
            optimizer.load_state_dict(state)
        gradients = [torch.randn(part.shape, generator=generator) for part in start]
        for parts, optimizer in zip(matrices, both, strict=True):
            for part, gradient in zip(parts, gradients, strict=True):
                part.grad = gradient.clone()
            optimizer.step()
        states = [optimizer.state_dict() for optimizer in both]
    for torchs, ours, before in zip(*matrices, start, strict=True):
        assert (ours - torchs).norm() < 0.02 * (torchs - before).norm()


TORCHS = [(3.4445, -4.775, 2.0315)] * 5


@pytest.fixture
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in the type of the matrices, on any device."""
    monkeypatch.setattr(optimizers, "has_bfloat16", lambda device: False)


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("shape", [(2, 3, 24, 24), (5, 40, 16), (2, 2, 16, 40), (70, 8, 8), (3, 1, 6)])
def test_stacked_muon_moves_each_matrix_as_muon(shape: tuple[int, ...]) -> None:
    """With the coefficients of torch; over several steps, two of them from a restored state."""
    generator = torch.Generator().manual_seed(0)
    stack = torch.randn(shape, generator=generator).requires_grad_()
    single = [part.clone().requires_grad_() for part in stack.detach().flatten(0, -3)]
    muon = Float32Muon(single, lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    stacked = StackedMuon([stack], lr=0.02, steps=TORCHS)
    for index in range(4):
        if index == 2:
            state, stacked = stacked.state_dict(), StackedMuon([stack], lr=1.0, steps=TORCHS)
            stacked.load_state_dict(state)
        stack.grad = torch.randn(shape, generator=generator)
        for part, gradient in zip(single, stack.grad.flatten(0, -3), strict=True):
            part.grad = gradient.clone()
        muon.step()
        stacked.step()
    torch.testing.assert_close(stack.detach().flatten(0, -3), torch.stack(single).detach(), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("full_precision")
def test_the_four_polynomials_are_nearer_to_one_than_the_five_of_torch() -> None:
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(64, 64).double()).Q for _ in range(2))
    size = torch.logspace(0, -3.5, 64).double()
    matrix = ((left * size) @ right)[None]
    size /= size.norm()
    deviation, smallest = [], []
    for steps in (POLAR_STEPS, TORCHS):
        exact = size
        for a, b, c in steps:
            exact = a * exact + b * exact**3 + c * exact**5
        found = ((left.mT @ orthogonalize_stack(matrix, steps)[0]) @ right.mT).diagonal()
        torch.testing.assert_close(found, exact, atol=1e-9, rtol=0)
        deviation.append(float((found[size > 0.003] - 1).abs().max()))
        smallest.append(float(found[-1] / size[-1]))
    assert deviation[0] < 0.2 < 0.3 < deviation[1]
    assert smallest[0] > 0.6 * smallest[1]  # below 0.003, both grow linearly


@pytest.mark.usefixtures("full_precision")
def test_matrices_of_a_stack_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = torch.randn(7, 6, 9)
    stack[3] = 0
    whole = orthogonalize_stack(stack, POLAR_STEPS)
    assert not whole[3].any()
    monkeypatch.setattr(optimizers, "STACK", 2)
    torch.testing.assert_close(orthogonalize_stack(stack, POLAR_STEPS), whole)
    for one, matrix in zip(whole, stack, strict=True):
        torch.testing.assert_close(orthogonalize_stack(matrix[None], POLAR_STEPS)[0], one)


def test_stacks_of_parts_are_updated_by_muon_and_their_other_weights_by_adam() -> None:
    made = model()
    made.parts = PartMLP(num_parts=3, local_dim=2, width=8, depth=3)
    groups = make_optimizers(made, lr=1e-3, lr_codes=5e-3, lr_muon=0.02).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in made.parts.named_parameters():
        assert rates[id(parameter)] == (0.02 if name == "hidden" else 1e-3)
    groups = make_optimizers(made, lr=1e-3, lr_codes=5e-3, lr_muon=None).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {rates[id(p)] for p in made.parts.parameters()} == {1e-3}


def test_the_fused_kernel_is_adam() -> None:
    """Over some steps of a decoder, whose gradients have many layouts."""
    fused, plain = model(), model()
    optimizer = torch.optim.Adam(plain.decoder.parameters(), lr=1e-2)
    both = make_optimizers(fused, lr=1e-2, lr_codes=1e-2, lr_muon=None)
    x = torch.rand(3, 20, 3)
    for _ in range(3):
        both.zero_grad()
        value, gradient = fused.decoder.value_and_gradient(x, fused.encoder.table.codes.detach())
        (value.abs().mean() + (gradient.norm(dim=-1) - 1).square().mean()).backward()
        for one, other in zip(fused.decoder.parameters(), plain.decoder.parameters(), strict=True):
            other.grad = one.grad.clone()
        both.step()
        optimizer.step()
    for one, other in zip(fused.decoder.parameters(), plain.decoder.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
