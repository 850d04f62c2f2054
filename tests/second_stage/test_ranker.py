"""The order of the trees: scores are handed out again, and a query is ranked as if it were alone."""

from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from second_stages import DEPTH, candidates_of, catalogue_of, ranker_of
from twotower.second_stage import ranker as module
from twotower.second_stage.inputs import Candidates
from twotower.second_stage.ranker import in_order_of
from twotower.vocab import FIRST_ROW

INF = np.inf


def float32s(*lines: list[float]) -> npt.NDArray[np.float32]:
    return np.array(lines, np.float32)


def test_scores_are_handed_out_in_the_order_of_the_values() -> None:
    found = in_order_of(float32s([3, 2, 1], [0.5, -1, -7]), float32s([1, 9, 5], [3, 2, 1]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, float32s([1, 3, 2], [0.5, -1, -7]), rtol=1e-6)
    assert found[0, 0] > 1  # what scored as much as the last one stays below
    assert found[0, 1:].tolist() == [3, 2]


def test_of_equal_values_the_first_is_better() -> None:
    found = in_order_of(float32s([3, 2, 1]), float32s([4, 7, 4]))
    np.testing.assert_allclose(found, [[2, 3, 1]], rtol=1e-6)


def test_equal_scores_are_set_apart_by_the_smallest_step() -> None:
    found = in_order_of(float32s([1, 1, 1, 0, 0]), float32s([1, 2, 3, 4, 5]))
    one, zero = np.float32(1), np.float32(0)
    up = np.nextafter(one, one + one)
    first = np.nextafter(zero, one)
    second = np.nextafter(first, one)
    assert found.tolist() == [[first, second, 1, up, np.nextafter(up, 2 * one)]]


def test_padding_stays_padding() -> None:
    scores = float32s([2, 2, -INF, -INF], [-INF] * 4, [-1, -2, -3, -INF])
    values = float32s([1, 5, -INF, -INF], [-INF] * 4, [-INF, 2, 3, -INF])
    found = in_order_of(scores, values)
    assert (found == -INF).tolist() == (scores == -INF).tolist()
    assert found[0, 1] > found[0, 0] > 2
    np.testing.assert_allclose(found[2, :3], [-3, -2, -1], rtol=1e-6)
    assert in_order_of(scores[:0], values[:0]).shape == (0, 4)


@given(
    arrays(np.float32, (3, 9), elements=st.sampled_from([-3.5, -0.0, 0, 1e-40, 0.25, 1, 1e30])),
    arrays(np.float32, (3, 9), elements=st.sampled_from([-1, 0, 0.5, 2])),
    st.lists(st.integers(0, 9), min_size=3, max_size=3),
)
def test_the_order_is_that_of_the_values_whatever_the_scores(
    scores: npt.NDArray[np.float32], values: npt.NDArray[np.float32], nums: list[int]
) -> None:
    scores = -np.sort(-scores, axis=1)
    for line, num in enumerate(nums):
        scores[line, num:] = values[line, num:] = -INF
    found = in_order_of(scores, values)
    for line, num in enumerate(nums):
        expected = sorted(range(num), key=lambda place: (-values[line, place], place))
        handed = found[line, expected]
        assert all(one > other for one, other in pairwise(handed))
        assert (found[line, num:] == -INF).all()
        if num:
            assert handed[-1] > scores[line, num - 1]
            np.testing.assert_allclose(handed, scores[line, :num], rtol=1e-5, atol=1e-42)


def one_of(candidates: Candidates, line: int) -> Candidates:
    here = slice(line, line + 1)
    return Candidates(
        candidates.item_rows[here],
        candidates.scores[here],
        candidates.histories.take(here),
        {name: values[here] for name, values in candidates.query_features.items()},
    )


@pytest.mark.parametrize("at_once", [512, 7])
def test_a_query_is_ranked_as_if_it_were_alone(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(module, "_CANDIDATES_AT_ONCE", at_once * DEPTH)
    ranker, catalogue, candidates = ranker_of(), catalogue_of(), candidates_of(40)
    values = ranker.values(candidates, catalogue)
    assert values.shape == (40, DEPTH)
    assert values.dtype == np.float32
    for line in range(len(candidates)):
        alone = ranker.values(one_of(candidates, line), catalogue)
        np.testing.assert_array_equal(alone[0], values[line])
    is_there = candidates.item_rows >= FIRST_ROW
    np.testing.assert_array_equal(np.isfinite(values), is_there)
    assert len(np.unique(values)) > 50
    rescored = ranker.rescored(candidates, catalogue)
    order = np.argsort(-values, axis=1, kind="stable")
    np.testing.assert_array_equal(np.argsort(-rescored, axis=1, kind="stable"), order)
    assert (order[:, 0] != 0).any()


def test_of_no_query() -> None:
    none = candidates_of(0)
    assert ranker_of().rescored(none, catalogue_of()).shape == (0, DEPTH)


def test_equal_candidates_keep_the_order_of_the_retriever() -> None:
    """Twins in all that the second stage reads but their place and their score."""
    catalogue = catalogue_of()
    catalogue.vectors[30:] = catalogue.vectors[30].clone()
    for column in catalogue.features.values():
        column[30:] = column[30].clone()
    candidates = candidates_of(4)
    rows = np.arange(30, 30 + DEPTH, dtype=np.int32)[None].repeat(4, axis=0)
    flat = Candidates(
        rows, np.ones_like(candidates.scores), candidates.histories, candidates.query_features
    )
    values = ranker_of().values(flat, catalogue)
    rescored = ranker_of().rescored(flat, catalogue)
    assert (rescored > 1).all()
    assert len(np.unique(rescored)) == DEPTH
    for line in range(4):
        order = np.lexsort((rows[line], -rescored[line]))
        expected = np.lexsort((rows[line], -values[line]))
        np.testing.assert_array_equal(order, expected)
