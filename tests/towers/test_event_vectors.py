"""Weighted sums over the events of histories, with and without a vector for each event."""

from typing import Any

import pytest
import torch

from twotower.towers.event_vectors import GivenVectors, RowVectors, total, total_summed, vectors_of
from twotower.towers.history import Bag, DecayedMean, HistoryEncoder, PooledHistory
from twotower.towers.transformer import Transformer


@pytest.mark.parametrize("num_rows", [3, 32, 33, 200, 70_000])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_sums_and_gradients_are_those_of_copied_rows(num_rows: int, share: float) -> None:
    torch.manual_seed(0)
    table = torch.randn(num_rows, 5, requires_grad=True)
    rows = torch.randint(num_rows, (7, 6))
    rows[0] = num_rows - 1
    weights = torch.rand(7, 4, 6) * (torch.rand(7, 1, 6) < share)
    found = RowVectors(rows, table).summed(weights)
    expected = weights @ table[rows]
    assert torch.allclose(found, expected, atol=1e-6)
    gradient = torch.randn_like(expected)
    of_found = torch.autograd.grad(found, table, gradient)[0]
    of_expected = torch.autograd.grad(expected, table, gradient)[0]
    assert torch.allclose(of_found, of_expected, atol=1e-5)


def test_sums_by_hand() -> None:
    table = torch.zeros(40, 1)
    table[33], table[35] = 2.0, 7.0
    weights = torch.tensor([[[1.0, 0.5, 0.0], [0.0, 0.0, 3.0]]])
    sums = RowVectors(torch.tensor([[33, 35, 35]]), table).summed(weights)
    assert sums.tolist() == [[[5.5], [21.0]]]


def test_a_gradient_that_is_a_view_is_read_in_its_order() -> None:
    table = torch.randn(50, 3, requires_grad=True)
    rows, weights = torch.randint(50, (2, 4)), torch.rand(2, 5, 4)
    slopes = torch.randn(3, 5, 2).permute(2, 1, 0)
    found = torch.autograd.grad(RowVectors(rows, table).summed(weights), table, slopes)[0]
    expected = torch.autograd.grad(weights @ table[rows], table, slopes)[0]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_summed_in_their_own(dtype: torch.dtype) -> None:
    table = torch.randn(50, 3, dtype=dtype)
    events, weights = RowVectors(torch.randint(50, (2, 4)), table), torch.rand(2, 5, 4).to(dtype)
    assert events.dtype == dtype
    assert torch.equal(events.summed(weights), weights @ events.vectors())


def test_weights_get_their_gradient() -> None:
    events = RowVectors(torch.randint(50, (2, 4)), torch.randn(50, 3))
    weights = torch.rand(2, 5, 4, requires_grad=True)
    found = torch.autograd.grad(events.summed(weights).sum(), weights)[0]
    assert torch.allclose(found, events.vectors().sum(2)[:, None].expand(-1, 5, -1))


def test_vectors_that_are_there_stay_as_they_are() -> None:
    given = torch.randn(2, 4, 3)
    events = vectors_of(given)
    assert events.vectors() is given
    assert vectors_of(events) is events
    weights = torch.rand(2, 5, 4)
    assert torch.equal(events.summed(weights), weights @ given)


@pytest.mark.parametrize(
    "encoder",
    [PooledHistory(3, 0.0), DecayedMean(5.0), DecayedMean(), Bag(3), Transformer(3, 0.0)],
    ids=["pooled", "recency", "mean", "bag", "transformer"],
)
def test_a_history_is_read_alike_by_rows_and_by_vectors(encoder: HistoryEncoder) -> None:
    torch.manual_seed(0)
    rows, table = torch.randint(50, (3, 4)), torch.randn(50, 3)
    mask = torch.tensor([[False] * 4, [False, True, True, True], [True] * 4])
    parts = (RowVectors(rows, table), GivenVectors(torch.randn(3, 4, 3)))
    read = encoder.last_of_parts(parts, mask)
    assert torch.allclose(read, encoder.last(total(parts), mask), atol=1e-6)
    assert torch.allclose(read, encoder(total(parts), mask)[:, -1], atol=1e-5)


def test_sums_of_parts_are_added() -> None:
    parts = (GivenVectors(torch.ones(1, 2, 1)), GivenVectors(torch.full((1, 2, 1), 10.0)))
    assert total_summed(parts, torch.tensor([[[1.0, 2.0]]])).tolist() == [[[33.0]]]


class Doubled(PooledHistory):
    def last(self, *given: Any, **named: Any) -> torch.Tensor:
        return 2 * super().last(*given, **named)


def test_who_overrides_last_alone_is_asked_through_it() -> None:
    encoder, mask = Doubled(3, 0.0), torch.ones(2, 4, dtype=torch.bool)
    parts = (RowVectors(torch.randint(50, (2, 4)), torch.randn(50, 3)),)
    expected = 2 * PooledHistory.last_of_parts(encoder, parts, mask)
    assert torch.allclose(encoder.last_of_parts(parts, mask), expected, atol=1e-6)


def test_no_history_at_all_has_no_vectors() -> None:
    table = torch.randn(50, 3)
    assert RowVectors(torch.zeros(0, 4, dtype=torch.int64), table).vectors().shape == (0, 4, 3)
    empty = RowVectors(torch.zeros(0, 1, dtype=torch.int64), table)
    assert empty.summed(torch.zeros(0, 5, 1)).shape == (0, 5, 3)


def test_a_table_that_is_a_part_of_a_wider_one_is_read_as_its_copy() -> None:
    wide, rows, weights = torch.randn(50, 96), torch.randint(50, (2, 4)), torch.rand(2, 5, 4)
    for table in (wide[:, :64], wide[:, 64:]):
        found = RowVectors(rows, table).summed(weights)
        assert torch.allclose(found, weights @ table[rows], atol=1e-5)
