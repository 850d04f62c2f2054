"""Histories as rows, and pairs of events, against nested loops."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from sequences import interactions
from twotower.baselines import history_matrices
from twotower.baselines.history_matrices import (
    close_matrix,
    close_together,
    decayed_histories,
    product,
    query_item_matrix,
)
from twotower.histories import Histories


@pytest.mark.parametrize("block", [1, 3, 1_000])
def test_weights_of_a_pair_by_hand(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.baselines.history_matrices.BLOCK_VALUES", block)
    train = interactions([[2, 3, 2], [], [3]], weights=[1.0, 5.0, 4.0, 2.0])
    largest = query_item_matrix(train, 4).toarray().tolist()
    total = query_item_matrix(train, 4, add_up=True).toarray().tolist()
    assert largest == [[0, 0, 4, 5], [0, 0, 0, 0], [0, 0, 0, 2]]
    assert total == [[0, 0, 5, 5], [0, 0, 0, 0], [0, 0, 0, 2]]
    plain = interactions([[2, 3, 2]])
    assert query_item_matrix(plain, 4, add_up=True).toarray().tolist() == [[0, 0, 2, 1]]


def test_history_by_hand() -> None:
    histories = Histories.of([np.array(rows, np.int32) for rows in ([2, 3, 2], [], [3] * 2)])
    matrix = decayed_histories(histories, 4, 1.0)
    assert matrix.toarray().tolist() == [[0, 0, 1.25, 0.5], [0, 0, 0, 0], [0, 0, 0, 1.5]]
    assert decayed_histories(histories, 4, None).toarray().tolist()[0] == [0, 0, 2, 1]


@given(
    sequences=st.lists(st.lists(st.integers(2, 8), max_size=7), min_size=1, max_size=6),
    closeness=st.lists(st.floats(0.1, 1.0), min_size=1, max_size=8),
    weighted=st.booleans(),
)
def test_close_pairs_equal_nested_loops(
    sequences: list[list[int]], closeness: list[float], weighted: bool
) -> None:
    weights = [[1.0 + place % 3 * weighted for place in range(len(s))] for s in sequences]
    expected = np.zeros((9, 9))
    for items, of_events in zip(sequences, weights, strict=True):
        for s, first in enumerate(items):
            for t, second in enumerate(items):
                if 0 < abs(s - t) <= len(closeness):
                    close = closeness[abs(s - t) - 1]
                    expected[first, second] += of_events[s] * of_events[t] * close
    flat = [weight for of_events in weights for weight in of_events]
    train = interactions(sequences, weights=flat if weighted else None)
    for dtype in (np.float32, np.float64):
        got: Any = close_matrix(train, 9, np.array(closeness), dtype)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    pieces = [block for _, block in close_together(train, 9, np.array(closeness))]
    np.testing.assert_allclose(sparse.vstack(pieces).toarray(), expected, rtol=1e-6)


def test_mirroring_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    train = interactions([draw.integers(2, 30, 12).tolist() for _ in range(40)])
    whole = close_matrix(train, 30, np.array([1.0, 0.5]), np.float64)
    monkeypatch.setattr(history_matrices, "_MIRRORED_ROWS", 7)
    np.testing.assert_array_equal(close_matrix(train, 30, np.array([1.0, 0.5]), np.float64), whole)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_either_product(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    draw = np.random.default_rng(0)
    history = sparse.random_array((20, 30), density=0.2, rng=draw, dtype=np.float32, format="csr")
    factor = draw.standard_normal((30, 11)).astype(np.float32)
    monkeypatch.setattr(history_matrices, "_MANY", share)
    expected = history.toarray().astype(np.float64) @ factor
    np.testing.assert_allclose(product(history, factor), expected, atol=1e-5)
