"""The best items where a second stage has put some in order, beside a ranking of the whole catalogue."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import torch
from hypothesis import given, settings

from twotower.histories import Histories
from twotower.index.exact import ExactIndex
from twotower.rules.search import Boosts, Order, Search
from twotower.second_stage.ranker import in_order_of
from twotower.vocab import FIRST_ROW, PADDING_ROW

NUM_ROWS, NUM = 30, 4
Numbers = npt.NDArray[np.float32]


def searched(seed: int, depth: int, *, equal: bool, boosted: bool, restricted: bool) -> Search:
    """Return a search whose scores are whole numbers, many of them equal or none, and its order.

    The order comes from random values of the best ``depth`` items, as a second stage gives it.
    """
    rng = np.random.default_rng(seed)
    size = (NUM, NUM_ROWS)
    scores = (
        rng.integers(0, 4, size)
        if equal
        else rng.permuted(np.tile(np.arange(30), (NUM, 1)), axis=1)
    )
    # Each query has a column of its own, so the scores are exactly these.
    index = ExactIndex(torch.from_numpy(scores.T.astype(np.float32)), reserved_rows=FIRST_ROW)
    boosts = None
    if boosted:
        matching = [rng.random(NUM_ROWS) < 0.4, rng.random(NUM_ROWS) < 0.3]
        boosts = Boosts.of(matching, [1.5, -2.25])
    exclude = allowed = None
    if restricted:
        allowed = rng.random(NUM_ROWS) < 0.7
        exclude = Histories.of([rng.integers(2, 30, 5).astype(np.int32) for _ in range(NUM)])
    deviations = rng.integers(1, 4, NUM).astype(np.float32)
    search = Search(lambda _: index, torch.eye(NUM), None, deviations, exclude, allowed)
    best = search.best(depth)
    values = np.where(best.item_rows == PADDING_ROW, -np.inf, rng.random(best.item_rows.shape))
    order = Order(best.item_rows, in_order_of(best.scores, values.astype(np.float32)))
    return replace(search, boosts=boosts, order=order)


def naive(search: Search, depth: int, line: int, among: npt.NDArray[np.bool_] | None) -> list[int]:
    """Return the first items of a query: by what the order says they score, or else the index; boosted."""
    assert search.order is not None
    index = search.index_of(slice(None))
    assert isinstance(index, ExactIndex)
    scores = index.item_vectors[:, line].tolist()
    ordered = dict(
        zip(search.order.item_rows[line].tolist(), search.order.scores[line].tolist(), strict=True)
    )
    moved = {}
    for row in range(FIRST_ROW, NUM_ROWS):
        is_out = search.exclude is not None and row in search.exclude.of_one(line)
        for mask in (search.allowed, among):
            is_out |= mask is not None and not mask[row]
        if is_out:
            continue
        moved[row] = np.float32(ordered.get(row, scores[row]))
        if search.boosts is not None:
            added = np.float32(search.boosts.sums[search.boosts.of_rows[row]])
            moved[row] += added * search.deviations[line]
    return sorted(moved, key=lambda row: (-moved[row], row))[:depth]


@given(
    st.integers(0, 10**6),
    st.sampled_from([2, 5, 12, 28, 40]),
    st.sampled_from([1, 4, 11, 12, 13, 28, 50]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=100)
def test_it_is_the_ranking_of_everything(
    seed: int,
    num_ordered: int,
    depth: int,
    equal: bool,
    boosted: bool,
    restricted: bool,
    narrowed: bool,
) -> None:
    search = searched(seed, num_ordered, equal=equal, boosted=boosted, restricted=restricted)
    among = np.random.default_rng(seed + 1).random(NUM_ROWS) < 0.5 if narrowed else None
    found = search.best(depth, among=among)
    assert found.item_rows.shape == found.scores.shape == found.moved.shape == (NUM, depth)
    assert found.scores.dtype == found.moved.dtype == np.float32
    for line in range(NUM):
        rows = found.item_rows[line]
        expected = naive(search, depth, line, among)
        assert rows[: len(expected)].tolist() == expected
        assert (rows[len(expected) :] == PADDING_ROW).all()
        assert (found.scores[line, len(expected) :] == -np.inf).all()
        assert (found.moved[line, len(expected) :] == -np.inf).all()
        one = search.best(depth, slice(line, line + 1), among)
        for mine, every in zip(one, found, strict=True):
            np.testing.assert_array_equal(mine[0], every[line])


@given(st.integers(0, 10**6), st.sampled_from([2, 5, 12, 28]), st.sampled_from([1, 5, 20]))
def test_items_of_the_order_stay_above_the_others(seed: int, num_ordered: int, depth: int) -> None:
    """Also where others scored as much as the last of them."""
    search = searched(seed, num_ordered, equal=True, boosted=False, restricted=True)
    assert search.order is not None
    found = search.best(depth)
    without = replace(search, order=None).best(depth)
    for line in range(NUM):
        ordered = search.order.item_rows[line]
        first = ordered[np.argsort(-search.order.scores[line], kind="stable")]
        num = min(depth, int((first != PADDING_ROW).sum()))
        assert found.item_rows[line, :num].tolist() == first[:num].tolist()
        rest = [row for row in without.item_rows[line].tolist() if row not in ordered]
        assert found.item_rows[line, num:].tolist()[: len(rest)] == rest
