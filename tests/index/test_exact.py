"""The exact index: queries in chunks. All else is in ``contracts/test_indexes``."""

import numpy as np
import pytest
import torch

from twotower.histories import Histories
from twotower.index import exact
from twotower.index.exact import ExactIndex
from twotower.index.topk import best_of_scores

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
    index = ExactIndex(items, reserved_rows=2)
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
    found = ExactIndex(torch.eye(5), reserved_rows=2).search(torch.eye(5)[2:], 1)
    assert found.item_rows.tolist() == [[2], [3], [4]]


def test_scores_of_any_model_are_ranked() -> None:
    scores = torch.tensor([[9.0, 9.0, 1.0, 3.0, 3.0]])
    found = best_of_scores(scores, 4, None, None, reserved_rows=2)
    assert found.item_rows.tolist() == [[3, 4, 2, 0]]
    assert found.scores.tolist() == [[3, 3, 1, -np.inf]]


def test_few_allowed_rows_are_found_as_among_all_with_the_same_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    index = ExactIndex(
        torch.nn.functional.normalize(torch.randn(4_096, 32, generator=generator)), reserved_rows=2
    )
    queries = torch.randn(5, 32, generator=generator)
    rng = np.random.default_rng(0)
    exclude = Histories.of([rng.integers(0, 4_096, 50).astype(np.int32) for _ in range(5)])
    for share in (0.2, 0.05, 0.005, 0.0):
        allowed = rng.random(4_096) < share
        gathered = index.search(queries, 10, exclude=exclude, allowed=allowed)
        with monkeypatch.context() as patch:
            patch.setattr(ExactIndex, "scores_items_alone", False)
            masked = index.search(queries, 10, exclude=exclude, allowed=allowed)
        assert np.array_equal(gathered.item_rows, masked.item_rows)
        known = masked.item_rows != 0
        assert np.abs(gathered.scores[known] - masked.scores[known]).max(initial=0) < 1e-6
        assert (gathered.scores[~known] == -np.inf).all()


def test_few_rows_alone_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger the batch, the larger the share that is worth a copy; never one beyond the memory."""
    multiplied = []
    scores = ExactIndex._scores

    def watched(index: ExactIndex, query_vectors: torch.Tensor, here: slice) -> torch.Tensor:
        multiplied.append(len(index.item_vectors))
        return scores(index, query_vectors, here)

    monkeypatch.setattr(ExactIndex, "_scores", watched)
    index = ExactIndex(torch.ones(1_280, 4), reserved_rows=2)
    allowed = np.arange(1_280) % 4 == 0  # 319 rows and 1 reserved
    for num_queries, num_rows in ((1, 1_280), (64, 320)):
        index.search(torch.ones(num_queries, 4), 3, allowed=allowed)
        assert multiplied.pop() == num_rows
    index.search(torch.ones(1, 4), 3, allowed=np.arange(1_280) == 700)
    assert multiplied.pop() == 64
    monkeypatch.setattr(exact, "_CHUNK_SCORES", 1_000)
    index.search(torch.ones(64, 4), 3, allowed=allowed)
    assert set(multiplied) == {1_280}


def test_a_plain_matrix_is_searched_from_its_first_row() -> None:
    items = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    found = ExactIndex(items).search(np.array([[2, 1], [-1, -2]], np.float32), 2)
    assert found.item_rows.tolist() == [[2, 0], [0, 1]]  # 3 and 2; -1 and -2
    assert found.scores.tolist() == [[3, 2], [-1, -2]]
    assert ExactIndex(items).search(items[:1], 5).item_rows.tolist() == [[0, 2, 1, -1, -1]]


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"item_vectors must have shape \(num_item_rows, dim\)"):
        ExactIndex(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="reserved_rows must be at least 0, got -1"):
        ExactIndex(np.ones((3, 2), np.float32), reserved_rows=-1)
