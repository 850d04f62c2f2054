"""Lists of the catalogue, and the index that searches some. More is in ``contracts/test_indexes``."""

import sys
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from twotower.histories import Histories
from twotower.index.approximate import ApproximateIndex, approximate_index
from twotower.index.exact import ExactIndex
from twotower.index.lists import DEPTHS, Lists, divided
from twotower.index.live_index import LiveIndex
from twotower.index.tuning import tuned
from twotower.vocab import FIRST_ROW
from vector_worlds import (
    DIM,
    NUM_ITEMS,
    K,
    asked,
    check_filter,
    near_duplicates,
    normal,
    recall,
    world,
)


@cache
def index(recall: float = 0.95) -> ApproximateIndex:
    items, queries = world()
    return ApproximateIndex(items, tuned(divided(items), items, queries[:600], recall))


def in_half_precision(recall: float = 0.95) -> Lists:
    """Tuned as if codes were too much work."""
    items, queries = world()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.index.tuning._CODED", 1e9)
        return tuned(divided(items), items, queries[:600], recall)


class TestLists:
    def test_equal_seeds_give_equal_lists(self) -> None:
        items, _ = world()
        one, two, other = divided(items), divided(items), divided(items, seed=1)
        assert torch.equal(one.centres, two.centres)
        assert torch.equal(one.spreads, two.spreads)
        assert np.array_equal(one.list_of, two.list_of)
        assert not np.array_equal(one.list_of, other.list_of)

    def test_threads_change_neither_lists_nor_probes(self) -> None:
        items, queries = world()
        before, found = torch.get_num_threads(), []
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found.append(tuned(divided(items), items, queries[:200], 0.9))
        finally:
            torch.set_num_threads(before)
        one, two = found
        assert torch.equal(one.centres, two.centres)
        assert torch.equal(one.spreads, two.spreads)
        assert np.array_equal(one.list_of, two.list_of)
        assert one.probes == two.probes

    def test_centres_and_spreads_are_those_of_the_members(self) -> None:
        items, _ = world()
        lists = divided(items, 50)
        for place in range(len(lists)):
            members = items[FIRST_ROW:][torch.from_numpy(lists.list_of == place)]
            assert len(members)
            torch.testing.assert_close(lists.centres[place], members.mean(dim=0))
            spread = members.var(dim=0, correction=0).mean().sqrt()
            torch.testing.assert_close(lists.spreads[place], spread, rtol=1e-4, atol=1e-5)

    def test_what_a_list_is_likely_to_score(self) -> None:
        lists = Lists(
            torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
            torch.tensor([0.5, 0.0]),
            np.array([0, 1], np.int32),
            {},
        )
        # 3 * 1 + 0 * 0 + 2 * .5 * |(3, 4)|, and 3 * 0 + 4 * 2
        assert lists.scores(torch.tensor([[3.0, 4.0]])).tolist() == [[8.0, 8.0]]

    def test_more_recall_and_deeper_rankings_take_more_lists(self) -> None:
        items, queries = world()
        lists = divided(items)
        few = tuned(lists, items, queries[:600], 0.9).probes
        many = tuned(lists, items, queries[:600], 0.99).probes
        assert list(few) == list(many) == [depth for depth in DEPTHS if depth <= NUM_ITEMS // 20]
        assert all(few[depth] < many[depth] < len(lists) for depth in few)
        assert sorted(few.values()) == list(few.values())
        assert few[100] < few[1_000]

    def test_few_easy_queries_ask_for_no_fewer_lists_where_it_is_deeper(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        items, queries = world()
        lists = index().lists
        easy = min(queries[:20], key=lambda one: tuned(lists, items, one[None], 0.95).probes[500])
        monkeypatch.setattr("twotower.index.tuning._DEEP", 200)
        monkeypatch.setattr("twotower.index.tuning._FEW_QUERIES", 5)
        mixed = torch.cat([easy.repeat(5, 1), queries[20:600]])
        probes = tuned(lists, items, mixed, 0.95).probes
        alone = tuned(lists, items, easy.repeat(5, 1), 0.95).probes
        assert alone[500] < probes[200] <= probes[500]

    def test_the_fewest_that_reach_the_recall(self) -> None:
        """One list less does not, on the queries that it was tuned on."""
        items, queries = world()
        lists = in_half_precision()
        best = ExactIndex(items, reserved_rows=2).search(queries[:600], K).item_rows

        def reached(probes: int) -> float:
            fewer = Lists(lists.centres, lists.spreads, lists.list_of, {100: probes})
            return recall(ApproximateIndex(items, fewer).search(queries[:600], K).item_rows, best)

        assert reached(lists.probes[100]) >= 0.95 > reached(lists.probes[100] - 2)

    def test_lengths_are_part_of_what_is_near(self) -> None:
        """Lists of directions alone, which faiss makes for inner products, need many more items."""
        items, queries = world()
        lengths = items.norm(dim=1, keepdim=True)
        directions = divided(items / lengths)
        members = torch.from_numpy(directions.list_of.astype(np.int64))
        counts = torch.bincount(members)[:, None]
        means = torch.zeros(len(counts), DIM).index_add_(0, members, items[FIRST_ROW:]) / counts
        of_directions = Lists(means, torch.zeros(len(means)), directions.list_of, {})
        found = tuned(of_directions, items, queries[:600], 0.99).probes[100] / len(means)
        assert found > 1.5 * index(0.99).lists.probes[100] / len(index(0.99).lists)

    def test_no_item_is_refused(self) -> None:
        with pytest.raises(ValueError, match="item_vectors must hold an item, got none"):
            divided(torch.ones(FIRST_ROW, 3))

    def test_lists_of_another_catalogue_are_refused(self) -> None:
        items, _ = world()
        with pytest.raises(ValueError, match=r"lists must be of 99 items of 16 numbers, got 20000"):
            ApproximateIndex(items[:101], index().lists)


class TestSearch:
    @pytest.mark.parametrize("wanted", [0.9, 0.99])
    def test_the_recall_that_was_wanted_is_that_of_other_queries(self, wanted: float) -> None:
        best = ExactIndex(world()[0], reserved_rows=2).search(asked(), K).item_rows
        assert wanted - 0.01 < recall(index(wanted).search(asked(), K).item_rows, best) < 1

    def test_scores_are_exact_and_best_first(self) -> None:
        items, _ = world()
        found = index().search(asked(), K)
        rows = torch.from_numpy(found.item_rows.astype(np.int64))
        exact = (items[rows].double() * asked()[:, None].double()).sum(dim=2).numpy()
        np.testing.assert_allclose(found.scores, exact, rtol=1e-4, atol=1e-5)
        assert (np.diff(found.scores, axis=1) <= 0).all()
        assert found.item_rows.min() >= FIRST_ROW

    def test_an_answer_does_not_depend_on_what_is_asked_beside_it(self) -> None:
        """Not even where the others have so long histories that more lists are searched for them."""
        rng = np.random.default_rng(0)
        sets = Histories.of(
            [
                rng.integers(FIRST_ROW, NUM_ITEMS, 400 * (number % 3)).astype(np.int32)
                for number in range(60)
            ]
        )
        together = index().search(asked(60), K, exclude=sets)
        for number in range(60):
            here = slice(number, number + 1)
            alone = index().search(asked(60)[here], K, exclude=sets.take(here))
            assert np.array_equal(alone.item_rows[0], together.item_rows[number])
            assert np.array_equal(alone.scores[0], together.scores[number])

    def test_nor_do_near_twins_that_half_precision_cannot_tell_apart(self) -> None:
        generator = torch.Generator().manual_seed(0)
        items = torch.ones(3_000, 4) + 1e-6 * torch.rand((3_000, 4), generator=generator)
        twins = ApproximateIndex(
            items,
            Lists(
                torch.ones(1, 4),
                torch.zeros(1),
                np.zeros(2_998, np.int32),
                dict.fromkeys(DEPTHS, 1),
            ),
        )
        long = np.arange(FIRST_ROW, 900, dtype=np.int32)
        sets = Histories.of([long[:0], long])
        together = twins.search(torch.ones(2, 4), 10, exclude=sets).item_rows[0]
        alone = twins.search(torch.ones(1, 4), 10, exclude=sets.take(np.array([0]))).item_rows[0]
        assert np.array_equal(alone, together)
        longer = twins.search(torch.ones(1, 4), 100).item_rows[0, :10]
        assert np.array_equal(alone, longer)

    @pytest.mark.parametrize("k", [10, 100])
    def test_near_duplicates_are_told_apart(self, k: int) -> None:
        """Half precision takes them for equal: without more items to score again it finds .76 of 100."""
        items, queries = near_duplicates()
        found = ApproximateIndex(items, tuned(divided(items), items, queries[:300], 0.99))
        best = ExactIndex(items, reserved_rows=2).search(queries[300:], k).item_rows
        assert recall(found.search(queries[300:], k).item_rows, best) > 0.985

    @pytest.mark.parametrize("spread", [1e-3, 1e-5, 0.0])
    def test_of_the_lists_that_are_searched_no_item_is_lost_to_rounding(
        self, spread: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All lists are searched, and nothing is left to exact search: what is missing, rounding took."""
        generator = torch.Generator().manual_seed(0)
        items = normal(generator, 4, DIM)[torch.arange(6_000) % 4]
        items += spread * normal(generator, 6_000, DIM)
        queries = normal(generator, 20, DIM)
        best = ExactIndex(items.double(), reserved_rows=2).search(queries.double(), K).scores
        lists = divided(items, 20)
        all_lists = replace(lists, probes=dict.fromkeys(DEPTHS, len(lists)))
        monkeypatch.setattr(ExactIndex, "_search_all", None)
        found = ApproximateIndex(items, all_lists).search(queries, K)
        np.testing.assert_allclose(found.scores, best, rtol=0, atol=2e-6)

    def test_ordinary_vectors_are_fetched_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What near-duplicates need costs others nothing."""
        fetched = []
        search = ApproximateIndex._search_lists

        def watched(index: ApproximateIndex, *args: Any) -> Any:
            fetched.append((args[-2], len(args[0])))
            return search(index, *args)

        monkeypatch.setattr(ApproximateIndex, "_search_lists", watched)
        for depth in (100, 1_000):
            fetched.clear()
            index().search(asked(), depth)
            again = sum(many for most, many in fetched if most > 2 * depth)
            assert again <= 0.02 * len(asked())

    def test_a_smaller_k_is_a_prefix_up_to_the_depth(self) -> None:
        longest = index().search(asked(), 100).item_rows
        for k in (1, 10, 99):
            assert np.array_equal(index().search(asked(), k).item_rows, longest[:, :k])

    def test_what_is_excluded_costs_no_recall_and_no_exact_search(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        best = ExactIndex(world()[0], reserved_rows=2).search(asked(), 200).item_rows
        sets = Histories.of([line[:150] for line in best])
        monkeypatch.setattr(ExactIndex, "_search_all", None)
        found = index().search(asked(), 50, exclude=sets).item_rows
        assert (found > 0).all()
        assert not any(np.isin(a, b[:150]).any() for a, b in zip(found, best, strict=True))
        assert recall(found, best[:, 150:]) > 0.85  # of the worst quarter of the 200 best

    @pytest.mark.parametrize("share", [0.001, 0.02, 0.1, 0.3, 0.6, 0.95])
    @pytest.mark.parametrize("kind", ["random", "alike", "far"])
    def test_filters_get_what_they_ask_for(self, share: float, kind: str) -> None:
        check_filter(index(), kind, share)

    def test_few_allowed_items_are_searched_exactly_and_many_are_not(self) -> None:
        at_most = int(index()._probes(100, NUM_ITEMS // 100))
        assert at_most == 0
        assert index()._probes(100, NUM_ITEMS) == index().lists.probes[100]
        assert index()._probes(100, NUM_ITEMS // 2) in (0, index().lists.probes[200])
        assert index()._probes(10**6, NUM_ITEMS) == 0
        assert index()._probes(100, 0) == 0

    def test_counts_tell_whether_it_is_quicker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert not index().is_quicker(K, NUM_ITEMS)  # of so few items exact search is done at once
        monkeypatch.setattr("twotower.index.approximate._ASKING", 1_000.0)
        assert index().is_quicker(K, NUM_ITEMS)
        assert not index().is_quicker(10**6, NUM_ITEMS)  # which is searched exactly
        assert not index().is_quicker(K, 0)
        lists = index().lists
        everywhere = replace(lists, probes=dict.fromkeys(DEPTHS, len(lists)))
        assert not ApproximateIndex(world()[0], everywhere).is_quicker(K, NUM_ITEMS)

    def test_where_the_lists_hold_too_few_all_are_searched(self) -> None:
        items, _ = world()
        small = items[:402]
        lists = Lists(
            divided(small, 20).centres, torch.zeros(20), divided(small, 20).list_of, {100: 1}
        )
        found = ApproximateIndex(small, lists).search(asked(9), K)
        expected = ExactIndex(small, reserved_rows=2).search(asked(9), K)
        assert np.array_equal(found.item_rows, expected.item_rows)

    def test_equal_scores_that_are_cut_off_are_ordered_by_row(self) -> None:
        items = torch.ones(3_000, 4)
        lists = tuned(divided(items, 4), items, torch.ones(3, 4), 0.9)
        found = ApproximateIndex(items, lists).search(torch.ones(1, 4), 5)
        assert found.item_rows.tolist() == [[2, 3, 4, 5, 6]]

    @pytest.mark.parametrize("size", [1e-20, 1e6, 1e12])
    def test_vectors_that_half_precision_does_not_hold(self, size: float) -> None:
        items, queries = world()
        larger = items * size
        found = ApproximateIndex(larger, tuned(divided(larger), larger, queries[:600], 0.95))
        best = ExactIndex(items, reserved_rows=2).search(asked(), K).item_rows
        assert recall(found.search(asked(), K).item_rows, best) > 0.94

    def test_a_bundle_of_many_queries_takes_little_memory_at_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = index().search(asked(), K)
        monkeypatch.setattr("twotower.index.approximate._CHUNK_NUMBERS", 10_000)
        found = index().search(asked(), K)
        assert np.array_equal(found.item_rows, expected.item_rows)
        assert np.array_equal(found.scores, expected.scores)


class TestGrowth:
    def test_new_items_go_to_the_nearest_list(self) -> None:
        items, _ = world()
        new = torch.cat([items, index().lists.centres[[3, 1]] + 1e-4])
        grown = index().over(new)
        assert grown.lists.list_of[NUM_ITEMS:].tolist() == [3, 1]
        assert np.array_equal(grown.lists.list_of[:NUM_ITEMS], index().lists.list_of)
        for query in (items[FIRST_ROW] * 9, index().lists.centres[3] * 9):
            expected = ExactIndex(new, reserved_rows=2).search(query[None], 1).item_rows
            assert grown.search(query[None], 1).item_rows.tolist() == expected.tolist()

    def test_a_live_index_finds_the_new_at_once_and_never_the_gone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("twotower.index.live_index._TAIL", 500)
        items, _ = world()
        start = items[:15_000].clone()
        lists = tuned(divided(start), start, world()[1][:600], 0.95)
        live = LiveIndex(start, lists)
        assert not live.is_exact
        rng = np.random.default_rng(0)
        gone = np.zeros(15_000, np.bool_)
        for end in range(15_500, 20_001, 500):
            live.append(items[end - 500 : end])
            gone = np.append(gone, np.zeros(500, np.bool_))
            gone[rng.integers(FIRST_ROW, end, 100)] = True
            found = live.search(asked(50), K, allowed=~gone)
            best = (
                ExactIndex(items[:end], reserved_rows=2)
                .search(asked(50), K, allowed=~gone)
                .item_rows
            )
            assert not gone[found.item_rows].any()
            assert recall(found.item_rows, best) > 0.9
            newest = np.arange(end) >= end - 500
            alone = live.search(asked(50), K, allowed=newest & ~gone).item_rows
            exact = (
                ExactIndex(items[:end], reserved_rows=2)
                .search(asked(50), K, allowed=newest & ~gone)
                .item_rows
            )
            assert recall(alone, exact) > 0.93
        assert not live.is_exact


def test_without_faiss_search_is_exact_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = index().lists
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.warns(UserWarning, match=r"Search is exact.*pip install .*\[ann\]'"):
        found = approximate_index(world()[0], lists)
    assert not isinstance(found, ApproximateIndex)
    expected = ExactIndex(world()[0], reserved_rows=2).search(asked(9), 5)
    assert np.array_equal(found.search(asked(9), 5).item_rows, expected.item_rows)


def test_few_are_the_first_of_many_whatever_is_found() -> None:
    """One list and many equal vectors: more queries than usual are left to exact search."""
    items, queries = world()
    items = items.clone()
    items[FIRST_ROW::3] = items[FIRST_ROW]
    lists = tuned(divided(items, 40), items, queries[:100], 0.5)
    least = ApproximateIndex(items, replace(lists, probes=dict.fromkeys(DEPTHS, 1)))
    allowed = np.zeros(len(items), np.bool_)
    allowed[FIRST_ROW::2] = True
    for told in (None, allowed):
        many = least.search(asked(), 100, allowed=told)
        few = least.search(asked(), 10, allowed=told)
        np.testing.assert_array_equal(few.item_rows, many.item_rows[:, :10])


def test_a_list_may_be_empty() -> None:
    items, queries = world()
    lists = tuned(divided(items, 40), items, queries[:100], 0.9)
    away = torch.full((2, DIM), 1e4)  # where no item is nearest, in the middle and at the end
    centres = torch.cat([lists.centres[:20], away[:1], lists.centres[20:], away[1:]])
    spreads = torch.cat([lists.spreads[:20], torch.ones(1), lists.spreads[20:], torch.ones(1)])
    emptied = replace(lists, centres=centres, spreads=spreads).holding(items[FIRST_ROW:])
    assert set(np.unique(emptied.list_of)) == {*range(42)} - {20, 41}
    allowed = np.zeros(len(items), np.bool_)
    allowed[FIRST_ROW::2] = True
    found = ApproximateIndex(items, emptied).search(asked(), 10, allowed=allowed)
    best = ExactIndex(items, reserved_rows=2).search(asked(), 10, allowed=allowed)
    assert recall(found.item_rows, best.item_rows) > 0.7
