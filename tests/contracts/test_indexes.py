"""What every index must obey: a subclass says how it is built and inherits all of it."""

from abc import ABC, abstractmethod
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from twotower.histories import Histories
from twotower.index.approximate import ApproximateIndex
from twotower.index.base import Found, Index
from twotower.index.exact import ExactIndex
from twotower.index.lists import DEPTHS, Lists
from twotower.index.live_index import LiveIndex
from twotower.index.two_pass import TwoPassIndex

DIM = 3
NO_SCORE = -float("inf")


def small_integers(seed: int, lines: int) -> Tensor:
    """Vectors of small whole numbers: their products are exact, and many are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, (lines, DIM), generator=generator).float()


def sets(*rows: list[int]) -> Histories:
    return Histories.of([np.array(each, np.int32) for each in rows])


def brute_force(
    queries: Tensor,
    items: Tensor,
    k: int,
    exclude: list[list[int]] | None = None,
    allowed: npt.NDArray[np.bool_] | None = None,
    *,
    reserved_rows: int = 2,
) -> tuple[list[list[int]], list[list[float]]]:
    """The answer by nested loops over Python numbers."""
    all_rows, all_scores = [], []
    for number, query in enumerate(queries.tolist()):
        found = []
        for row, item in enumerate(items.tolist()):
            if row < reserved_rows or (allowed is not None and not allowed[row]):
                continue
            if exclude is not None and row in exclude[number]:
                continue
            score = 0.0
            for left, right in zip(query, item, strict=True):
                score += left * right
            found.append((-score, row))
        found = sorted(found)[:k]
        missing = k - len(found)
        all_rows.append([row for _, row in found] + [0 if reserved_rows else -1] * missing)
        all_scores.append([-score for score, _ in found] + [NO_SCORE] * missing)
    return all_rows, all_scores


def same(found: Found, rows: list[list[int]], scores: list[list[float]]) -> None:
    assert found.item_rows.tolist() == rows
    assert found.scores.tolist() == scores


class IndexContract(ABC):
    @abstractmethod
    def build(self, item_vectors: Tensor) -> Index:
        """The index over ``(num_item_rows, dim)`` vectors, the reserved rows included."""

    @given(
        seed=st.integers(0, 2**31),
        num_items=st.integers(0, 12),
        num_queries=st.integers(0, 4),
        k=st.integers(1, 16),
        data=st.data(),
    )
    @settings(
        # The same law for every subclass.
        suppress_health_check=[HealthCheck.differing_executors],
    )
    def test_equals_brute_force(
        self, seed: int, num_items: int, num_queries: int, k: int, data: st.DataObject
    ) -> None:
        items = small_integers(seed, num_items + 2)
        queries = small_integers(seed + 1, num_queries)
        rows = st.lists(st.integers(0, num_items + 1), max_size=5)
        exclude = data.draw(st.none() | st.lists(rows, min_size=num_queries, max_size=num_queries))
        flags = st.lists(st.booleans(), min_size=num_items + 2, max_size=num_items + 2)
        drawn = data.draw(st.none() | flags)
        allowed = None if drawn is None else np.array(drawn, bool)
        found = self.build(items).search(
            queries, k, exclude=None if exclude is None else sets(*exclude), allowed=allowed
        )
        same(found, *brute_force(queries, items, k, exclude, allowed))
        assert found.item_rows.dtype == np.int32
        assert found.scores.dtype == np.float32

    def test_equal_scores_are_ordered_by_row(self) -> None:
        items = torch.ones(40, DIM)
        items[[7, 30]] = 2.0
        index = self.build(items)
        for k in range(1, 41):
            (rows,) = index.search(torch.ones(1, DIM), k).item_rows.tolist()
            others = [row for row in range(2, 40) if row not in (7, 30)]
            assert rows == ([7, 30, *others] + [0] * 2)[:k]

    def test_excluded_rows_are_never_found_and_only_by_their_own_query(self) -> None:
        items = torch.ones(5, DIM)
        found = self.build(items).search(
            torch.ones(3, DIM), 2, exclude=sets([2, 2, 4], [], [4, 3, 2])
        )
        assert found.item_rows.tolist() == [[3, 0], [2, 3], [0, 0]]
        assert found.scores.tolist() == [[3, NO_SCORE], [3, 3], [NO_SCORE] * 2]

    def test_only_allowed_rows_are_found(self) -> None:
        items = torch.ones(5, DIM)
        allowed = np.array([True, True, False, True, False])
        found = self.build(items).search(torch.ones(2, DIM), 3, allowed=allowed)
        assert found.item_rows.tolist() == [[3, 0, 0]] * 2
        nothing = self.build(items).search(torch.ones(2, DIM), 3, allowed=np.zeros(5, bool))
        assert not nothing.item_rows.any()
        assert (nothing.scores == NO_SCORE).all()

    @pytest.mark.parametrize(
        ("share", "num_queries"),
        [(0.0, 5), (0.001, 1), (0.001, 70), (0.01, 5), (0.1, 70), (0.5, 1), (0.9, 5)],
    )
    def test_any_share_of_the_rows_may_be_allowed(self, share: float, num_queries: int) -> None:
        num_rows = 3_000
        items, queries = small_integers(0, num_rows), small_integers(1, num_queries)
        rng = np.random.default_rng(2)
        allowed = rng.random(num_rows) < share
        allowed[:2] = True  # which allows nothing: they are reserved
        exclude = [
            [
                *rng.integers(0, num_rows, 3).tolist(),
                *rng.permutation(allowed.nonzero()[0])[:4],
                2,
                num_rows - 1,
            ]
            for _ in range(num_queries)
        ]
        index = self.build(items)
        for excluded in (None, exclude):
            found = index.search(
                queries, 9, exclude=None if excluded is None else sets(*excluded), allowed=allowed
            )
            same(found, *brute_force(queries, items, 9, excluded, allowed))

    def test_few_twins_are_ordered_by_row(self) -> None:
        # Real numbers this time: the last lines of a product must not be summed in another order.
        generator = torch.Generator().manual_seed(0)
        items = torch.randn(1, 16, generator=generator).repeat(4_096, 1)
        index = self.build(items)
        for few in (1, 2, 3, 5, 7, 11, 64, 99):
            allowed = np.zeros(4_096, np.bool_)
            allowed[100 : 100 + few] = True
            for num_queries in (1, 3, 8):
                queries = torch.randn(num_queries, 16, generator=generator)
                found = index.search(queries, few, allowed=allowed)
                assert found.item_rows.tolist() == [list(range(100, 100 + few))] * num_queries

    def test_reserved_rows_are_never_found_even_if_they_score_best(self) -> None:
        items = torch.full((4, DIM), -1.0)
        items[:2] = 100.0
        found = self.build(items).search(torch.ones(1, DIM), 4)
        assert found.item_rows.tolist() == [[2, 3, 0, 0]]

    def test_k_above_what_exists_is_padded(self) -> None:
        found = self.build(torch.ones(4, DIM)).search(torch.ones(1, DIM), 1000)
        assert found.item_rows.shape == found.scores.shape == (1, 1000)
        assert np.flatnonzero(found.item_rows[0]).tolist() == [0, 1]
        assert np.isfinite(found.scores[0]).sum() == 2

    def test_no_queries_have_no_answers(self) -> None:
        index = self.build(torch.ones(4, DIM))
        found = index.search(torch.ones(0, DIM), 3, exclude=sets(), allowed=np.ones(4, bool))
        assert found.item_rows.shape == found.scores.shape == (0, 3)

    def test_no_items_have_no_answers(self) -> None:
        found = self.build(torch.ones(2, DIM)).search(torch.ones(2, DIM), 3)
        assert not found.item_rows.any()

    def test_a_batch_is_answered_as_its_queries_one_by_one(self) -> None:
        index = self.build(small_integers(0, 50))
        queries = small_integers(1, 20)
        exclude = sets(*([[2 + number, 5] for number in range(20)]))
        batch = index.search(queries, 7, exclude=exclude)
        for number in range(20):
            here = slice(number, number + 1)
            alone = index.search(queries[here], 7, exclude=exclude.take(here))
            same(alone, batch.item_rows[here].tolist(), batch.scores[here].tolist())

    def test_a_smaller_k_is_a_prefix_of_a_larger_one(self) -> None:
        index, queries = self.build(small_integers(0, 50)), small_integers(1, 5)
        longest = index.search(queries, 60).item_rows
        for k in (1, 2, 10, 48, 49):
            assert index.search(queries, k).item_rows.tolist() == longest[:, :k].tolist()

    def test_searching_changes_nothing(self) -> None:
        items, queries = small_integers(0, 20), small_integers(1, 4)
        index = self.build(items)
        allowed = np.arange(20) % 3 > 0
        exclude = sets([2], [3], [], [4])
        kept = (items.clone(), queries.clone(), allowed.copy(), exclude.item_rows.copy())
        first = index.search(queries, 5, exclude=exclude, allowed=allowed)
        second = index.search(queries, 5, exclude=exclude, allowed=allowed)
        same(second, first.item_rows.tolist(), first.scores.tolist())
        assert torch.equal(items, kept[0])
        assert torch.equal(queries, kept[1])
        assert np.array_equal(allowed, kept[2])
        assert np.array_equal(exclude.item_rows, kept[3])

    @pytest.mark.parametrize("k", [0, -1])
    def test_k_below_1_is_refused(self, k: int) -> None:
        with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
            self.build(torch.ones(4, DIM)).search(torch.ones(1, DIM), k)

    def test_shapes_that_differ_are_refused(self) -> None:
        index, queries = self.build(torch.ones(4, DIM)), torch.ones(2, DIM)
        with pytest.raises(ValueError, match=r"allowed must have shape \(4,\), got \(5,\)"):
            index.search(queries, 1, allowed=np.ones(5, bool))
        with pytest.raises(ValueError, match=r"allowed must have shape \(4,\), got \(5,\)"):
            index.search(queries, 1, allowed=np.zeros(5, bool))
        for excluded in ([[2]], [[2], [3], []]):
            with pytest.raises(ValueError, match=f"hold 2 sets, got {len(excluded)}"):
                index.search(queries, 1, exclude=sets(*excluded))
        for wrong in (torch.ones(2, DIM + 1), torch.ones(DIM)):
            with pytest.raises(ValueError, match=r"must have shape \(Q, 3\), got \(.*\)"):
                index.search(wrong, 1)


class TestExactIndex(IndexContract):
    def build(self, item_vectors: Tensor) -> Index:
        return ExactIndex(item_vectors, reserved_rows=2)


class TestTwoPassIndex(IndexContract):
    def build(self, item_vectors: Tensor) -> Index:
        return TwoPassIndex(item_vectors, reserved_rows=2)


def two_lists(item_vectors: Tensor) -> Lists:
    """Every other item in the same list, and both searched: then an approximate index misses nothing."""
    num_items = len(item_vectors) - 2
    list_of = np.arange(num_items, dtype=np.int32) % min(2, max(1, num_items))
    num_lists = min(2, max(1, num_items))
    centres = torch.stack([item_vectors[2 + place :: 2].mean(dim=0) for place in range(num_lists)])
    probes = dict.fromkeys(DEPTHS, num_lists)
    return Lists(centres.nan_to_num(), torch.ones(num_lists), list_of, probes)


class ListsAlone(ApproximateIndex):
    """Without the rule that sends few items to exact search: lists are searched wherever they can be."""

    def _probes(self, deep: int, num_allowed: int) -> int:
        return len(self.lists) if num_allowed and deep <= DEPTHS[-1] else 0


class TestApproximateIndex(IndexContract):
    def build(self, item_vectors: Tensor) -> Index:
        return ApproximateIndex(item_vectors, two_lists(item_vectors))


class TestListsAlone(IndexContract):
    def build(self, item_vectors: Tensor) -> Index:
        return ListsAlone(item_vectors, two_lists(item_vectors))


class TestCodedLists(IndexContract):
    """Levels that hold small whole numbers, and as many items scored again as there can be."""

    def build(self, item_vectors: Tensor) -> Index:
        levels = torch.linspace(-4, 4, 16).repeat(DIM, 1)
        rescored = {depth: 2 * depth for depth in DEPTHS}
        return ListsAlone(
            item_vectors, replace(two_lists(item_vectors), levels=levels, rescored=rescored)
        )


class TestLiveApproximateIndex(IndexContract):
    """The lists know the first half alone."""

    def build(self, item_vectors: Tensor) -> Index:
        first = item_vectors[: max(2, len(item_vectors) // 2)].clone()
        index = LiveIndex(first, two_lists(first))
        for part in torch.split(item_vectors[len(first) :], max(1, len(item_vectors) // 4)):
            index.append(part)
        return index


class TestLiveIndex(IndexContract):
    """What is there at the start, and what is added in two steps, is searched as one."""

    def build(self, item_vectors: Tensor) -> Index:
        first = max(2, len(item_vectors) // 2)
        index = LiveIndex(item_vectors[:first].clone())
        for part in torch.split(item_vectors[first:], max(1, len(item_vectors) // 4)):
            index.append(part)
        return index


@pytest.mark.parametrize("kind", [ExactIndex, TwoPassIndex])
@given(
    seed=st.integers(0, 2**31),
    num_items=st.integers(0, 12),
    reserved_rows=st.integers(0, 3),
    k=st.integers(1, 16),
    data=st.data(),
)
def test_without_reserved_rows_every_row_is_found_under_its_own_number(
    kind: type[ExactIndex],
    seed: int,
    num_items: int,
    reserved_rows: int,
    k: int,
    data: st.DataObject,
) -> None:
    items, queries = small_integers(seed, num_items), small_integers(seed + 1, 3)
    rows = st.lists(st.integers(0, max(0, num_items - 1)), max_size=5 if num_items else 0)
    exclude = data.draw(st.none() | st.lists(rows, min_size=3, max_size=3))
    drawn = data.draw(st.none() | st.lists(st.booleans(), min_size=num_items, max_size=num_items))
    allowed = None if drawn is None else np.array(drawn, bool)
    found = kind(items.numpy(), reserved_rows=reserved_rows).search(
        queries.numpy(), k, exclude=None if exclude is None else sets(*exclude), allowed=allowed
    )
    expected = brute_force(queries, items, k, exclude, allowed, reserved_rows=reserved_rows)
    same(found, *expected)


@pytest.mark.parametrize("kind", [ExactIndex, TwoPassIndex])
def test_few_allowed_rows_of_a_plain_matrix_keep_their_numbers(kind: type[ExactIndex]) -> None:
    items, queries = small_integers(0, 3_000), small_integers(1, 4)
    allowed = np.zeros(3_000, np.bool_)
    allowed[[0, 1, 5, 2_999]] = True
    exclude = [[0], [5, 7], [], [0, 1, 5, 2_999]]
    found = kind(items).search(queries, 5, exclude=sets(*exclude), allowed=allowed)
    same(found, *brute_force(queries, items, 5, exclude, allowed, reserved_rows=0))
    assert (found.item_rows[3] == -1).all()
