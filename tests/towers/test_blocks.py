"""Blocks: the skip connection, the start at the plain sum, dropout in training only."""

import pytest
import torch
from torch import Tensor

from twotower.towers.layers import SkipMLP, TanhMLP

DIM = 3


def vectors() -> Tensor:
    return torch.randn(5, DIM, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("hidden", [(4,), (8, 2), [5, 5, 5]])
def test_it_starts_as_the_identity(hidden: tuple[int, ...]) -> None:
    assert torch.equal(SkipMLP(DIM, hidden, 0.5)(vectors()), vectors())


def test_every_weight_can_be_learnt_after_two_steps() -> None:
    block = SkipMLP(DIM, (8, 8), 0.0)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in block.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        (block(vectors()) - 1).square().sum().backward()
        optimizer.step()
    for old, new in zip(before, block.parameters(), strict=True):
        assert not torch.equal(old, new)


def test_worked_by_hand() -> None:
    # One hidden unit that doubles x, and an output that halves GELU(2) = 2 * 0.97725.
    block = SkipMLP(1, (1,), 0.0)
    with torch.no_grad():
        for parameter, value in zip(block.parameters(), (2.0, 0.0, 0.5, 3.0), strict=True):
            parameter.fill_(value)
    assert block(torch.tensor([[1.0]])).item() == pytest.approx(1 + 0.97725 + 3, abs=1e-4)


def test_dropout_is_for_training() -> None:
    block = SkipMLP(DIM, (64,), 0.5)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(block(vectors()), block(vectors()))
    block.eval()
    assert torch.equal(block(vectors()), block(vectors()))


def test_a_block_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden must have at least one width, got none"):
        SkipMLP(DIM, (), 0.0)


def test_layers_of_tanh_by_hand() -> None:
    # tanh(1 + 0.5) = 0.90515; times 2 and less 1 that is 0.81030, whose tanh is 0.66975.
    block = TanhMLP((1, 1), 0.0)
    with torch.no_grad():
        block.bias.fill_(0.5)
        for parameter, value in zip(block.layers.parameters(), (2.0, -1.0), strict=True):
            parameter.fill_(value)
    assert block(torch.tensor([[1.0]])).item() == pytest.approx(0.66975, abs=1e-4)


def test_layers_of_tanh_have_the_widths_that_they_were_given() -> None:
    block = TanhMLP((6, 5, 4), 0.0)
    assert block(torch.zeros(2, 6)).shape == (2, 4)
    assert [tuple(p.shape) for p in block.parameters()] == [(6,), (5, 6), (5,), (4, 5), (4,)]
    with pytest.raises(ValueError, match=r"widths must be at least two, got 1"):
        TanhMLP((6,), 0.0)
