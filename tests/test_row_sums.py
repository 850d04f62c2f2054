"""Sums of rows of a table, and what their transpose reads."""

import pytest
import torch

from twotower.row_sums import by_row, row_sums


def test_sums_by_hand() -> None:
    table = torch.tensor([[1.0], [10.0], [100.0]])
    starts = torch.tensor([0, 2, 2, 3])
    sums = row_sums(table, torch.tensor([2, 0, 1]), starts, torch.tensor([1.0, 2.0, 0.5]))
    assert sums.tolist() == [[102.0], [0.0], [5.0]]


def test_by_row_by_hand() -> None:
    order, starts = by_row(torch.tensor([2, 0, 2, 4]), 5)
    assert order.tolist() == [1, 0, 2, 3]
    assert starts.tolist() == [0, 1, 1, 3, 3, 4]


@pytest.mark.parametrize("num_rows", [1, 65_536, 65_537, 2**20])
def test_any_number_of_rows_is_sorted_and_equal_ones_keep_their_order(num_rows: int) -> None:
    rows = torch.randint(num_rows, (500,))
    rows = torch.cat([rows, rows, torch.tensor([num_rows - 1, 0])])
    expected = torch.sort(rows, stable=True).indices
    order, starts = by_row(rows, num_rows)
    assert torch.equal(order, expected)
    assert torch.equal(starts.diff(), torch.bincount(rows, minlength=num_rows))
