"""The exact index: queries in chunks. All else is in ``contracts/test_indexes``."""

import numpy as np
import pytest
import torch

from twotower.features.histories import Histories
from twotower.index import exact
from twotower.index.exact import ExactIndex, best_of_scores

NUM_ROWS, NUM_QUERIES = 10, 7


@pytest.mark.parametrize(
    "scores_at_once",
    [1, NUM_ROWS, 3 * NUM_ROWS - 1, 3 * NUM_ROWS, 7 * NUM_ROWS - 1, 7 * NUM_ROWS, 8 * NUM_ROWS],
)
def test_where_a_chunk_ends_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, scores_at_once: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(-2, 3, (NUM_ROWS, 3), generator=generator).float()
    queries = torch.randint(-2, 3, (NUM_QUERIES, 3), generator=generator).float()
    exclude = Histories.of([np.arange(2, 2 + n, dtype=np.int32) for n in range(NUM_QUERIES)])
    allowed = np.arange(NUM_ROWS) != 5
    index = ExactIndex(items)
    expected = index.search(queries, 6, exclude=exclude, allowed=allowed)
    monkeypatch.setattr(exact, "_CHUNK_SCORES", scores_at_once)
    found = index.search(queries, 6, exclude=exclude, allowed=allowed)
    assert np.array_equal(found.item_rows, expected.item_rows)
    assert np.array_equal(found.scores, expected.scores)
    for number in range(NUM_QUERIES):
        rows = set(expected.item_rows[number].tolist())
        assert not rows & {*range(2, 2 + number), 5, 1}


def test_a_catalogue_larger_than_a_chunk_is_searched_query_by_query(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exact, "_CHUNK_SCORES", 1)
    found = ExactIndex(torch.eye(5)).search(torch.eye(5)[2:], 1)
    assert found.item_rows.tolist() == [[2], [3], [4]]


def test_scores_of_any_model_are_ranked() -> None:
    scores = torch.tensor([[9.0, 9.0, 1.0, 3.0, 3.0]])
    found = best_of_scores(scores, 4, None, None)
    assert found.item_rows.tolist() == [[3, 4, 2, 0]]
    assert found.scores.tolist() == [[3, 3, 1, -np.inf]]
