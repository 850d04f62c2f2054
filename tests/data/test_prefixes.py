"""Batches of whole histories: each event once an epoch, with what came before it."""

from dataclasses import replace

import numpy as np
import pytest

from twotower.data.dataset import Interactions
from twotower.data.prefixes import PrefixBatch, PrefixBatches
from twotower.vocab import FIRST_ROW


def events_of(*lengths: int, weighted: bool = False) -> Interactions:
    """Events whose item row tells which one it is, of queries from row 2 on, the last without any."""
    offsets = np.concatenate([np.zeros(FIRST_ROW), [0], np.cumsum(lengths)]).astype(np.int64)
    num = int(offsets[-1])
    return Interactions(
        query_rows=np.repeat(np.arange(len(lengths)) + FIRST_ROW, lengths).astype(np.int32),
        item_rows=(np.arange(num) + 100).astype(np.int32),
        offsets=offsets,
        times=np.arange(num, dtype=np.float64) * 10,
        weights=(np.arange(num) + 1).astype(np.float32) if weighted else None,
    )


def examples(batch: PrefixBatch) -> list[tuple[int, int, tuple[int, ...]]]:
    """Query, target and history of each example."""
    found = []
    for rows, targets, query in zip(batch.rows, batch.target_rows, batch.query_rows, strict=True):
        for place, target in enumerate(targets):
            if target:
                history = [int(row) for row in rows[: place + 1] if row]
                found.append((int(query), int(target), tuple(history)))
    return found


@pytest.mark.parametrize("length", [1, 3, 8])
def test_each_event_is_an_example_once_and_reads_what_came_before(length: int) -> None:
    events = events_of(1, 5, 2, 30, 0, 8)
    batches = PrefixBatches(events, batch_size=7, length=length, seed=0)
    for epoch in range(3):
        given = [example for batch in batches.epoch(epoch) for example in examples(batch)]
        assert sorted(target for _, target, _ in given) == events.item_rows.tolist()
        for query, target, history in given:
            place = target - 100
            begin = int(events.offsets[query])
            assert events.query_rows[place] == query
            assert list(history) == list(range(target - len(history), target))
            assert len(history) <= min(length, place - begin)
            if place - begin <= length and events.offsets[query + 1] - begin <= length:
                assert len(history) == place - begin


def test_a_target_may_be_one_of_the_next_few() -> None:
    batches = PrefixBatches(events_of(6, 3), batch_size=100, length=9, seed=0, next_events=3)
    drawn: dict[int, list[int]] = {}
    for epoch in range(600):
        (batch,) = batches.epoch(epoch)
        for _, target, history in examples(batch):
            drawn.setdefault((history or (0,))[-1], []).append(target)
    # After the third event of six: one of the next three. After the fifth only the last is left.
    assert {target: drawn[102].count(target) for target in set(drawn[102])} == {
        103: pytest.approx(200, abs=45),
        104: pytest.approx(200, abs=45),
        105: pytest.approx(200, abs=45),
    }
    assert set(drawn[103]) == {104, 105}
    assert set(drawn[104]) == {105}
    assert set(drawn[106]) == {107, 108}  # never one of another query
    (first,), (again,) = batches.epoch(0), batches.epoch(0)
    assert (first.target_rows == again.target_rows).all()


def test_a_long_history_is_cut_at_other_places_each_epoch() -> None:
    batches = PrefixBatches(events_of(40), batch_size=100, length=10, seed=0)
    read = []
    for epoch in range(60):
        (batch,) = batches.epoch(epoch)
        assert len(batch) == 40
        read.append({target: len(history) for _, target, history in examples(batch)})
        assert batch.rows.shape[1] == 10
        assert all(1 <= read[-1][target] <= 10 for target in range(101, 140))
    assert {each[120] for each in read} == set(range(1, 11))


def test_windows_of_one_length_share_a_batch() -> None:
    batches = PrefixBatches(events_of(*[2] * 50, *[40] * 5), batch_size=20, length=50, seed=0)
    widths = {batch.rows.shape[1] for batch in batches.epoch(0)}
    assert widths == {2, 40}


def test_batches_are_about_as_large_as_asked_for() -> None:
    batches = PrefixBatches(events_of(*[3] * 400), batch_size=64, length=50, seed=0)
    sizes = [len(batch) for batch in batches.epoch(0)]
    assert len(sizes) == len(batches) == 19
    assert all(56 <= size <= 72 for size in sizes)


def test_times_and_weights_go_with_their_events() -> None:
    batches = PrefixBatches(events_of(4, 9, weighted=True), batch_size=5, length=4, seed=1)
    for batch in batches.epoch(0):
        assert batch.times is not None
        assert batch.weights is not None
        read, wanted = batch.rows > 0, batch.target_rows > 0
        assert (batch.times[read] == (batch.rows[read] - 100) * 10.0).all()
        assert (batch.weights[wanted] == batch.target_rows[wanted] - 99).all()
        assert not batch.times[~read].any()
        assert not batch.weights[~wanted].any()


@pytest.mark.parametrize("next_events", [1, 3])
def test_a_question_is_asked_when_its_target_happens(next_events: int) -> None:
    batches = PrefixBatches(
        events_of(4, 9), batch_size=5, length=4, seed=1, next_events=next_events
    )
    for batch in batches.epoch(0):
        assert batch.asked is not None
        wanted = batch.target_rows > 0
        assert (batch.asked[wanted] == (batch.target_rows[wanted] - 100) * 10.0).all()
        assert not batch.asked[~wanted].any()
    (untimed,) = PrefixBatches(
        replace(events_of(3), times=None), batch_size=5, length=4, seed=1
    ).epoch(0)
    assert untimed.asked is None


def test_equal_seeds_give_equal_batches() -> None:
    def rows(seed: int, epoch: int) -> list[list[int]]:
        batches = PrefixBatches(events_of(9, 9, 20), batch_size=6, length=5, seed=seed)
        return [batch.target_rows.ravel().tolist() for batch in batches.epoch(epoch)]

    assert rows(0, 1) == rows(0, 1)
    assert rows(0, 1) != rows(0, 2)
    assert rows(0, 1) != rows(1, 1)


@pytest.mark.parametrize("name", ["batch_size", "length", "next_events"])
def test_sizes_below_1_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        PrefixBatches(events_of(3), **{"batch_size": 4, "length": 4, "seed": 0, name: 0})
