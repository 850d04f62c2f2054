"""The greedy pass beside one that looks at every item at every place."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from twotower.rules.search import Pool
from twotower.rules.selection import CapCounts, choose


def vectors_of(num: int, dim: int, seed: int) -> npt.NDArray[np.float32]:
    """Return vectors of length 1 in clusters, with likenesses below and above 0."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, dim))
    vectors = centres[rng.integers(0, 20, num)] + rng.normal(size=(num, dim)) * 0.6
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def chosen(
    scores: npt.NDArray[np.float32],
    vectors: npt.NDArray[np.float32],
    k: int,
    weight: float,
    taken: Sequence[int] = (),
) -> list[int]:
    rows = np.arange(len(scores), dtype=np.int32)
    found, _ = choose(
        Pool(rows, scores, scores),
        lambda _: Pool(rows[:0], scores[:0], scores[:0]),
        k,
        CapCounts([], []),
        depth=len(scores) + 1,
        weight=weight,
        vectors_of=lambda asked: vectors[asked],
        num_rows=len(scores),
        taken=taken,
    )
    return found


@pytest.mark.parametrize("weight", [0.05, 0.3, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("num", [40, 512, 513, 3000])
def test_each_place_goes_to_the_item_of_largest_marginal_relevance(weight: float, num: int) -> None:
    vectors = vectors_of(num, 8, seed=num)
    scores = -np.sort(-np.random.default_rng(num).normal(size=num)).astype(np.float32)
    found = chosen(scores, vectors, min(num, 300), weight)
    assert len(set(found)) == len(found) == min(num, 300)
    exact = vectors.astype(np.float64)
    relevance = (scores.astype(np.float64) - scores.min()) / (scores.max() - scores.min())
    likeness, is_open = np.zeros(num), np.ones(num, np.bool_)
    for place, row in enumerate(found):
        value = np.where(is_open, (1 - weight) * relevance - weight * likeness, -np.inf)
        assert value[row] == pytest.approx(value.max(), abs=1e-5)
        to_it = exact @ exact[row]
        likeness = np.maximum(likeness, to_it) if place else to_it
        is_open[row] = False


def test_equal_items_are_chosen_in_their_order() -> None:
    ones = np.full((2000, 4), 0.5, np.float32)
    assert chosen(np.ones(2000, np.float32), ones, 700, 0.5) == list(range(700))
    found = chosen(np.repeat([2, 1], 1000).astype(np.float32), ones, 1100, 0.5)
    assert found == list(range(1100))


def test_what_is_passed_over_changes_no_likeness() -> None:
    num = 2001
    vectors = vectors_of(num, 8, seed=1)
    scores = np.linspace(1, 0, num, dtype=np.float32)
    even = np.arange(0, num, 2)
    alone = chosen(scores[even], vectors[even], 400, 0.6)
    passed_over = range(1, num, 2)
    assert chosen(scores, vectors, 400, 0.6, passed_over) == even[alone].tolist()
