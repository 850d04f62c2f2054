"""The index that grows. All else is in ``contracts/test_indexes``."""

import threading
import time
from concurrent.futures import wait

import numpy as np
import pytest
import torch

from twotower.index import live_index
from twotower.index.exact import ExactIndex
from twotower.index.live_index import GrowingRows, LiveIndex
from twotower.index.two_pass import exact_index


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


def test_first_rows_are_copied_when_all_are_wanted_as_one() -> None:
    start = torch.arange(6.0).view(3, 2)
    rows = GrowingRows(start)
    for number in range(1, 4):
        rows.append(torch.full((number, 2), float(number)))
        assert rows.since(3).tolist() == [[n] * 2 for n in range(1, number + 1) for _ in range(n)]
    assert len(rows) == 9
    assert rows.since(5).tolist() == [[2.0] * 2] + [[3.0] * 2] * 3
    assert rows._buffer.data_ptr() == start.data_ptr()
    together = rows.rows
    assert together[:3].tolist() == start.tolist()
    assert together[3:].tolist() == rows.since(3).tolist()
    assert rows.since(2).tolist() == together[2:].tolist()


def test_the_index_is_built_again_and_answers_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_index, "_TAIL", 20)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn((400, 5), generator=generator)
    queries = torch.randn((7, 5), generator=generator)
    index = LiveIndex(vectors[:200].clone())
    allowed = np.arange(400) % 3 > 0
    for end in range(205, 401, 5):
        index.append(vectors[end - 5 : end])
        found = index.search(queries, 9, allowed=allowed[:end])
        expected = ExactIndex(vectors[:end], reserved_rows=2).search(
            queries, 9, allowed=allowed[:end]
        )
        assert np.array_equal(found.item_rows, expected.item_rows)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    until = time.monotonic() + 300
    while len(index._index.item_vectors) < 380 and time.monotonic() < until:
        index.search(queries, 1)
    assert len(index._index.item_vectors) >= 380


def test_a_build_that_fails_is_logged_once_and_tried_again_after_more_rows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live_index, "_TAIL", 20)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn((300, 5), generator=generator)
    queries = torch.randn((7, 5), generator=generator)
    index = LiveIndex(vectors[:100].clone())
    tried: list[int] = []

    def build(rows: torch.Tensor, *, reserved_rows: int) -> ExactIndex:
        tried.append(len(rows))
        if len(tried) == 1:
            raise MemoryError("no room")
        return exact_index(rows, reserved_rows=reserved_rows)

    monkeypatch.setattr(live_index, "exact_index", build)

    def settle() -> None:
        if index._next is not None:
            wait([index._next], timeout=60)

    for end in range(110, 301, 10):
        index.append(vectors[end - 10 : end])
        settle()
        for _ in range(3):
            found = index.search(queries, 9)
            expected = ExactIndex(vectors[:end], reserved_rows=2).search(queries, 9)
            assert np.array_equal(found.item_rows, expected.item_rows)
        covered = len(index._index.item_vectors)
        assert covered == (100 if end < 140 else end - end % 20)
    assert tried == list(range(120, 301, 20))
    assert [record.message for record in caplog.records] == [
        "the index could not be built again; the old one still answers"
    ]
    assert caplog.records[0].exc_info is not None


def test_a_system_without_threads_keeps_the_old_index(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live_index, "_TAIL", 20)

    def none_left(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    vectors = torch.randn((140, 5), generator=torch.Generator().manual_seed(0))
    index = LiveIndex(vectors[:100].clone())
    monkeypatch.setattr(threading.Thread, "start", none_left)
    index.append(vectors[100:])
    found = index.search(vectors[:3], 9)
    assert np.array_equal(
        found.item_rows, ExactIndex(vectors, reserved_rows=2).search(vectors[:3], 9).item_rows
    )
    assert len(caplog.records) == 1
