"""The index that grows. All else is in ``contracts/test_indexes``."""

import time

import numpy as np
import pytest
import torch

from twotower.index import live
from twotower.index.exact import ExactIndex
from twotower.index.live import GrowingRows, LiveIndex


def test_rows_are_added_and_what_was_seen_before_stays() -> None:
    start = torch.arange(6.0).view(3, 2)
    rows = GrowingRows(start)
    before = rows.rows
    expected = start.clone()
    for step in range(1, 30):
        new = torch.full((step % 4, 2), float(step))
        rows.append(new)
        expected = torch.cat([expected, new])
        assert torch.equal(rows.rows, expected)
    assert torch.equal(before, start)


def test_the_index_is_built_again_and_answers_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_TAIL", 20)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn((400, 5), generator=generator)
    queries = torch.randn((7, 5), generator=generator)
    index = LiveIndex(vectors[:200].clone())
    allowed = np.arange(400) % 3 > 0
    for end in range(205, 401, 5):
        index.append(vectors[end - 5 : end])
        found = index.search(queries, 9, allowed=allowed[:end])
        expected = ExactIndex(vectors[:end]).search(queries, 9, allowed=allowed[:end])
        assert np.array_equal(found.item_rows, expected.item_rows)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    until = time.monotonic() + 300
    while len(index._index.item_vectors) < 380 and time.monotonic() < until:
        index.search(queries, 1)
    assert len(index._index.item_vectors) >= 380
