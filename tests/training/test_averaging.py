"""The average of the weights: a worked number, a naive reference, and what it leaves alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from twotower.training.steps import WeightAverage


def one_weight() -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def averaged(values: list[float]) -> float:
    layer = one_weight()
    average = WeightAverage(layer)
    for value in values:
        nn.init.constant_(layer.weight, value)
        average.update()
    with average.in_place():
        return float(layer.weight.detach())


def naive(values: list[float]) -> float:
    """Each value's share is what it took, less what later ones took of it."""
    shares: list[float] = []
    for t in range(1, len(values) + 1):
        taken = 9 / (t + 8)
        shares = [share * (1 - taken) for share in shares] + [taken]
    return sum(share * value for share, value in zip(shares, values, strict=True))


class TestAverage:
    def test_worked_number(self) -> None:
        """Shares 9/9, 9/10, 9/11: 1; then 1 + 0.9 (2 - 1) = 1.9; then 1.9 + 9/11 (5 - 1.9)."""
        assert averaged([1.0]) == 1.0
        assert averaged([1.0, 2.0]) == pytest.approx(1.9)
        assert averaged([1.0, 2.0, 5.0]) == pytest.approx(4.4363636)

    @given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30))
    def test_naive_reference(self, values: list[float]) -> None:
        found = averaged(values)
        assert found == pytest.approx(naive(values), abs=1e-4)
        assert min(values) - 1e-4 <= found <= max(values) + 1e-4

    def test_it_is_mostly_of_the_last_ninth_of_the_steps(self) -> None:
        values = [0.0] * 800 + [1.0] * 100
        assert 0.6 < averaged(values) < 0.7  # 1 - (8/9) ** 9 = 0.654

    def test_where_it_begins_does_not_count(self) -> None:
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, 1e9)
        average = WeightAverage(layer)
        nn.init.constant_(layer.weight, 3.0)
        average.update()
        with average.in_place():
            assert float(layer.weight.detach()) == 3.0


class TestInPlace:
    def test_the_weights_come_back_bit_for_bit(self) -> None:
        layer = nn.Linear(4, 3)
        average = WeightAverage(layer)
        for _ in range(5):
            nn.init.normal_(layer.weight)
            average.update()
        before = layer.weight.detach().clone()
        held = [tensor.clone() for tensor in average.state()]
        with average.in_place():
            assert not torch.equal(layer.weight, before)
        assert torch.equal(layer.weight, before)
        assert all(map(torch.equal, average.state(), held))

    def test_after_an_error_too(self) -> None:
        layer = nn.Linear(4, 3)
        average = WeightAverage(layer)
        average.update()
        nn.init.normal_(layer.weight)
        before = layer.weight.detach().clone()
        with pytest.raises(KeyboardInterrupt), average.in_place():
            raise KeyboardInterrupt
        assert torch.equal(layer.weight, before)

    def test_gradients_stay(self) -> None:
        layer = nn.Linear(2, 1)
        layer(torch.ones(1, 2)).sum().backward()
        average = WeightAverage(layer)
        average.update()
        with average.in_place():
            pass
        assert layer.weight.grad is not None
        assert layer.weight.requires_grad


class TestState:
    def test_going_on_is_as_if_never_stopped(self) -> None:
        torch.manual_seed(0)
        steps = [torch.randn(3, 2) for _ in range(9)]

        def take(average: WeightAverage, layer: nn.Linear, weights: list[torch.Tensor]) -> None:
            for weight in weights:
                with torch.no_grad():
                    layer.weight.copy_(weight)
                average.update()

        layers = [nn.Linear(2, 3, bias=False) for _ in range(2)]
        whole, first = (WeightAverage(layer) for layer in layers)
        take(whole, layers[0], steps)
        take(first, layers[1], steps[:4])
        saved = first.state()
        second = WeightAverage(layers[1])
        second.load(saved)
        take(second, layers[1], steps[4:])
        assert all(map(torch.equal, second.state(), whole.state()))

    def test_a_saved_state_does_not_move(self) -> None:
        layer = one_weight()
        average = WeightAverage(layer)
        average.update()
        saved = [tensor.clone() for tensor in average.state()]
        held = average.state()
        nn.init.constant_(layer.weight, 7.0)
        average.update()
        assert all(map(torch.equal, held, saved))


def test_tables_with_sparse_gradients_are_left_as_they_are() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2, bias=False))
    average = WeightAverage(model)
    average.update()
    assert len(average.state()) == 2  # the number of steps, and the one dense weight
    table = model[0].weight
    assert isinstance(table, torch.Tensor)
    nn.init.constant_(table, 4.0)
    average.update()
    with average.in_place():
        assert (table == 4.0).all()
