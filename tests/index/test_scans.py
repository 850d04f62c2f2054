"""Lists scanned by 4-bit codes: recall, filters, near-duplicates, growth, threads."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from twotower.histories import Histories
from twotower.index.approximate import ApproximateIndex
from twotower.index.exact import ExactIndex
from twotower.index.lists import DEPTHS, Lists, divided
from twotower.index.live_index import LiveIndex
from twotower.index.scans import best_rows, levels_of
from twotower.index.tuning import tuned
from twotower.vocab import FIRST_ROW
from vector_worlds import DIM, NUM_ITEMS, K, asked, check_filter, near_duplicates, recall, world


@cache
def lists(wanted: float = 0.95) -> Lists:
    """Tuned with costs under which codes are chosen."""
    items, queries = world()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.index.tuning._HALF", 1e9)
        return tuned(divided(items), items, queries[:600], wanted)


@cache
def index(wanted: float = 0.95) -> ApproximateIndex:
    return ApproximateIndex(world()[0], lists(wanted))


def naive_codes(items: Tensor, of: Lists) -> Tensor:
    """Each number of an item as its list's mean and the nearest of 16 levels, in float32."""
    assert of.levels is not None
    centres = of.centres[torch.from_numpy(of.list_of.astype(np.int64))]
    rest = items - centres
    nearest = (rest[:, :, None] - of.levels).abs().argmin(dim=2)
    return centres + of.levels.gather(1, nearest.T).T


@pytest.mark.parametrize("wanted", [0.9, 0.99])
def test_the_recall_that_was_wanted_is_that_of_other_queries(wanted: float) -> None:
    best = ExactIndex(world()[0], reserved_rows=2).search(asked(), K).item_rows
    assert wanted - 0.01 < recall(index(wanted).search(asked(), K).item_rows, best) < 1


def test_scores_are_exact_and_best_first() -> None:
    found = index().search(asked(), K)
    rows = torch.from_numpy(found.item_rows.astype(np.int64))
    exact = (world()[0][rows].double() * asked()[:, None].double()).sum(dim=2).numpy()
    np.testing.assert_allclose(found.scores, exact, rtol=1e-4, atol=1e-5)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert found.item_rows.min() >= FIRST_ROW


def test_the_scan_ranks_as_the_levels_say() -> None:
    """A naive reference: scores of the coded vectors; faiss rounds their parts to 8 bits."""
    items, queries = world()[0][FIRST_ROW:], asked(50).numpy()
    coded = naive_codes(items, lists())
    lengths = np.linalg.norm(queries, axis=1).astype(np.float32)
    every = len(lists())
    rows, scores = index()._scan.search(queries, lengths, every, 300)
    best = (asked(50) @ coded.T).topk(300, dim=1)
    assert recall(rows, best.indices.numpy() + FIRST_ROW) > 0.97
    unit = float(items.abs().max())
    np.testing.assert_allclose(scores * unit, best.values.numpy(), rtol=0.02, atol=0.1)


def test_costs_decide_between_the_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    items, queries = world()
    monkeypatch.setattr("twotower.index.tuning._CODED", 1e9)
    in_half = tuned(lists(), items, queries[:600], 0.95)
    assert in_half.levels is None
    assert not in_half.rescored
    assert index().lists.rescored[100] > 116
    halved = ApproximateIndex(items, in_half)
    assert halved.bytes_per_item == 2 * DIM + 8
    assert DIM / 2 + 8 <= index().bytes_per_item < halved.bytes_per_item


def test_threads_change_neither_levels_nor_numbers_nor_answers() -> None:
    items, queries = world()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("twotower.index.tuning._HALF", 1e9)
                each = tuned(divided(items), items, queries[:200], 0.9)
            answer = ApproximateIndex(items, each).search(asked(), K)
            assert each.levels is not None
            found.append((each.probes, each.rescored, each.levels.tolist(), answer))
    finally:
        torch.set_num_threads(before)
    (*one, first), (*two, second) = found
    assert one == two
    assert np.array_equal(first.item_rows, second.item_rows)
    assert np.array_equal(first.scores, second.scores)


def test_an_answer_does_not_depend_on_what_is_asked_beside_it() -> None:
    rng = np.random.default_rng(0)
    drawn = [rng.integers(FIRST_ROW, NUM_ITEMS, 400 * (place % 3)) for place in range(60)]
    sets = Histories.of([each.astype(np.int32) for each in drawn])
    for excluded in (None, sets):
        together = index().search(asked(60), K, exclude=excluded)
        for place in range(60):
            one = None if excluded is None else excluded.take(slice(place, place + 1))
            alone = index().search(asked(60)[place : place + 1], K, exclude=one)
            assert np.array_equal(alone.item_rows[0], together.item_rows[place])
            assert np.array_equal(alone.scores[0], together.scores[place])
            if one is not None:
                assert not np.isin(alone.item_rows, one.item_rows).any()


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("kind", ["random", "alike", "far"])
def test_filters_get_what_they_ask_for(
    share: float, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists are searched wherever they can be, by costs that exact search is not quicker by."""
    monkeypatch.setattr("twotower.index.approximate._GATHERING", 1e9)
    check_filter(index(), kind, share)


def test_deep_rankings_reach_the_recall_and_smaller_ones_are_their_beginning() -> None:
    best = ExactIndex(world()[0], reserved_rows=2).search(asked(), 1_000).item_rows
    deep = index().search(asked(), 1_000).item_rows
    assert recall(deep, best) > 0.94
    hundred = index().search(asked(), 100).item_rows
    assert np.array_equal(index().search(asked(), 7).item_rows, hundred[:, :7])
    deepest = index().search(asked(20), NUM_ITEMS).item_rows
    exact = ExactIndex(world()[0], reserved_rows=2).search(asked(20), NUM_ITEMS).item_rows
    assert np.array_equal(deepest, exact)


def test_twins_are_ordered_by_row_however_many_share_a_code() -> None:
    items = world()[0].clone()
    items[FIRST_ROW + 5_000 :] = 9.0  # 15,000 equal items, in one list
    whole = divided(items, 40)
    twins = replace(whole, probes=dict.fromkeys(DEPTHS, len(whole)))
    levels = levels_of(items[FIRST_ROW:], twins)
    coded = replace(twins, levels=levels, rescored={each: 2 * each for each in DEPTHS})
    found = ApproximateIndex(items, coded).search(torch.ones(1, DIM), K)
    assert found.item_rows[0].tolist() == list(range(5_002, 5_002 + K))


def test_near_duplicates_are_found() -> None:
    items, queries = near_duplicates()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.index.tuning._HALF", 1e9)
        coded = tuned(divided(items), items, queries[:300], 0.99)
    best = ExactIndex(items, reserved_rows=2).search(queries[300:], K).item_rows
    found = ApproximateIndex(items, coded).search(queries[300:], K).item_rows
    assert recall(found, best) > 0.98


def test_items_without_a_spread_or_too_few_have_no_levels() -> None:
    equal = torch.ones(2_000, DIM)
    assert levels_of(equal[FIRST_ROW:], divided(equal, 1)) is None
    few = world()[0][:500]
    assert levels_of(few[FIRST_ROW:], divided(few)) is None


def test_a_query_of_zeros_is_answered() -> None:
    found = index().search(torch.zeros(1, DIM), 3)
    assert found.item_rows.tolist() == [[2, 3, 4]]


def test_a_live_index_finds_new_items_and_never_the_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.index.live_index._TAIL", 500)
    items, _ = world()
    start = items[:15_000].clone()
    known = replace(lists(), list_of=lists().list_of[: 15_000 - FIRST_ROW])
    live = LiveIndex(start, known)
    gone = np.zeros(15_000, np.bool_)
    rng = np.random.default_rng(0)
    for end in range(15_500, 18_001, 500):
        live.append(items[end - 500 : end])
        gone = np.append(gone, np.zeros(500, np.bool_))
        gone[rng.integers(FIRST_ROW, end, 100)] = True
        found = live.search(asked(50), K, allowed=~gone).item_rows
        exact = ExactIndex(items[:end], reserved_rows=2)
        assert not gone[found].any()
        assert recall(found, exact.search(asked(50), K, allowed=~gone).item_rows) > 0.9
    assert not live.is_exact
    grown = index().over(torch.cat([items, lists().centres[[3, 1]]]))
    assert grown.lists.levels is index().lists.levels
    assert grown.lists.list_of[NUM_ITEMS:].tolist() == [3, 1]


def test_the_best_rows_of_equal_scores_are_the_lowest() -> None:
    rows = np.array([[9, 4, 7, 2, 0, 0]])
    scores = np.array([[1.0, 2.0, 1.0, 1.0, -np.inf, -np.inf]], np.float32)
    assert best_rows(rows, scores, 3).item_rows.tolist() == [[4, 2, 7]]
    assert best_rows(rows, scores, 6).item_rows.tolist() == [[4, 2, 7, 9, 0, 0]]
