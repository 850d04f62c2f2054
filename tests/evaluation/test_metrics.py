"""Each metric against a number worked by hand, nested loops, its properties and its errors."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from twotower.evaluation.metrics import (
    auc,
    graded_ndcg_at_k,
    hit_rate_at_k,
    hits_of,
    log_loss,
    map_at_k,
    mrr_at_k,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
)

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Metric = Callable[[Bools, npt.NDArray[np.integer], int], npt.NDArray[np.float64]]


def naive_hit_rate(hits: list[bool], num_relevant: int, k: int) -> float:
    for rank in range(1, k + 1):
        if rank <= len(hits) and hits[rank - 1]:
            return 1.0
    return 0.0


def naive_recall(hits: list[bool], num_relevant: int, k: int) -> float:
    found = 0
    for rank in range(1, k + 1):
        if rank <= len(hits) and hits[rank - 1]:
            found += 1
    return found / num_relevant


def naive_precision(hits: list[bool], num_relevant: int, k: int) -> float:
    return naive_recall(hits, num_relevant, k) * num_relevant / k


def naive_ndcg(hits: list[bool], num_relevant: int, k: int) -> float:
    gain = ideal = 0.0
    for rank in range(1, k + 1):
        if rank <= len(hits) and hits[rank - 1]:
            gain += math.log(2) / math.log(rank + 1)
        if rank <= num_relevant:
            ideal += math.log(2) / math.log(rank + 1)
    return gain / ideal


def naive_mrr(hits: list[bool], num_relevant: int, k: int) -> float:
    for rank in range(1, k + 1):
        if rank <= len(hits) and hits[rank - 1]:
            return 1 / rank
    return 0.0


def naive_map(hits: list[bool], num_relevant: int, k: int) -> float:
    total, found = 0.0, 0
    for rank in range(1, k + 1):
        if rank <= len(hits) and hits[rank - 1]:
            found += 1
            total += found / rank
    return total / (k if k < num_relevant else num_relevant)


NAIVE: dict[Metric, Callable[[list[bool], int, int], float]] = {
    hit_rate_at_k: naive_hit_rate,
    recall_at_k: naive_recall,
    precision_at_k: naive_precision,
    ndcg_at_k: naive_ndcg,
    mrr_at_k: naive_mrr,
    map_at_k: naive_map,
}
every_metric = pytest.mark.parametrize("metric", NAIVE, ids=lambda metric: metric.__name__)


@st.composite
def ranked(draw: st.DrawFn) -> tuple[Bools, Ints]:
    """Hits of a few queries, and numbers of relevant items that are possible with them."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(0, 8)))
    is_hit = draw(arrays(np.bool_, shape))
    unfound = draw(arrays(np.int64, shape[0], elements=st.integers(0, 12)))
    return is_hit, np.maximum(is_hit.sum(axis=1) + unfound, 1)


# Two queries. The first has three relevant items and hits at ranks 1 and 4; the second has five,
# with one hit at rank 2.
IS_HIT = np.array([[1, 0, 0, 1], [0, 1, 0, 0]], np.bool_)
NUM_RELEVANT = np.array([3, 5])


@pytest.mark.parametrize(
    ("metric", "k", "expected"),
    [
        (hit_rate_at_k, 1, [1, 0]),
        (hit_rate_at_k, 2, [1, 1]),
        (recall_at_k, 3, [1 / 3, 1 / 5]),
        (recall_at_k, 4, [2 / 3, 1 / 5]),
        (precision_at_k, 4, [2 / 4, 1 / 4]),
        (precision_at_k, 8, [2 / 8, 1 / 8]),
        # 1 + 1/log2(5) = 1.43068 over 1 + 1/log2(3) + 1/2 = 2.13093; 0.63093 over 2.56161 (4 ideal)
        (ndcg_at_k, 4, [0.67139, 0.24630]),
        # k above R: the ideal of the second has its fifth hit, 2.56161 + 1/log2(6) = 2.94846
        (ndcg_at_k, 5, [0.67139, 0.21399]),
        (ndcg_at_k, 2, [1 / 1.63093, 0.63093 / 1.63093]),
        (mrr_at_k, 1, [1, 0]),
        (mrr_at_k, 4, [1, 1 / 2]),
        (map_at_k, 2, [(1 / 1) / 2, (1 / 2) / 2]),
        (map_at_k, 4, [(1 / 1 + 2 / 4) / 3, (1 / 2) / 4]),
        (map_at_k, 9, [(1 / 1 + 2 / 4) / 3, (1 / 2) / 5]),
    ],
)
def test_number_worked_by_hand(metric: Metric, k: int, expected: list[float]) -> None:
    np.testing.assert_allclose(metric(IS_HIT, NUM_RELEVANT, k), expected, atol=6e-6)


@every_metric
@given(case=ranked(), k=st.integers(1, 15))
def test_equals_nested_loops(metric: Metric, case: tuple[Bools, Ints], k: int) -> None:
    is_hit, num_relevant = case
    expected = [
        NAIVE[metric](list(hits), int(n), k) for hits, n in zip(is_hit, num_relevant, strict=True)
    ]
    values = metric(is_hit, num_relevant, k)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, expected, rtol=1e-12)


@pytest.mark.parametrize("metric", [hit_rate_at_k, recall_at_k, mrr_at_k])
@given(case=ranked(), k=st.integers(1, 10))
def test_never_falls_with_k(metric: Metric, case: tuple[Bools, Ints], k: int) -> None:
    assert (metric(*case, k + 1) >= metric(*case, k)).all()


@every_metric
@given(case=ranked(), k=st.integers(1, 10), seed=st.integers(0, 9))
def test_each_query_stands_alone(
    metric: Metric, case: tuple[Bools, Ints], k: int, seed: int
) -> None:
    is_hit, num_relevant = case
    order = np.random.default_rng(seed).permutation(len(is_hit))
    shuffled = metric(is_hit[order], num_relevant[order], k)
    np.testing.assert_array_equal(shuffled, metric(is_hit, num_relevant, k)[order])


@every_metric
@given(num_relevant=st.integers(1, 12), k=st.integers(1, 12))
def test_perfect_ranking(metric: Metric, num_relevant: int, k: int) -> None:
    is_hit = np.arange(12)[None] < num_relevant
    best: dict[object, float] = {
        recall_at_k: min(1.0, k / num_relevant),
        precision_at_k: min(1.0, num_relevant / k),
    }
    assert metric(is_hit, np.array([num_relevant]), k) == best.get(metric, 1.0)


@every_metric
def test_errors(metric: Metric) -> None:
    with pytest.raises(ValueError, match=r"k must be at least 1, got 0"):
        metric(IS_HIT, NUM_RELEVANT, 0)
    with pytest.raises(ValueError, match=r"\(Q, R\) and \(Q,\), got \(2, 4\) and \(1,\)"):
        metric(IS_HIT, NUM_RELEVANT[:1], 2)
    with pytest.raises(ValueError, match=r"\(Q, R\) and \(Q,\), got \(4,\) and \(4,\)"):
        metric(IS_HIT[0], np.ones(4, np.int64), 2)
    with pytest.raises(ValueError, match=r"num_relevant must be at least 1, got 0 for query 1"):
        metric(IS_HIT, np.array([3, 0]), 2)
    with pytest.raises(ValueError, match=r"at most num_relevant hits a query, got 2 of 1 for que"):
        metric(IS_HIT, np.array([1, 5]), 4)


def naive_graded_ndcg(gains: list[float], ideal: list[float], k: int) -> float:
    def dcg(values: list[float]) -> float:
        return sum(gain / math.log2(i + 2) for i, gain in enumerate(values[:k]))

    return dcg(gains) / dcg(sorted(ideal, reverse=True))


# Two queries. The first has gains 3, 2, 1 and finds 1 and 3 at ranks 1 and 3; the second finds its 2
# at rank 2 and not its 4.
GAINS = np.array([[1.0, 0, 3], [0, 2, 0]])
IDEAL = np.array([[2.0, 1, 3, 0], [2, 4, 0, 0]])


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, [1 / 3, 0]),
        # (1 + 3/2) over 3 + 2/log2(3) + 1/2 = 4.76186; 2/log2(3) = 1.26186 over 4 + 1.26186
        (3, [2.5 / 4.76186, 1.26186 / 5.26186]),
        (9, [2.5 / 4.76186, 1.26186 / 5.26186]),
    ],
)
def test_graded_ndcg_worked_by_hand(k: int, expected: list[float]) -> None:
    np.testing.assert_allclose(graded_ndcg_at_k(GAINS, IDEAL, k), expected, atol=1e-5)


@st.composite
def graded(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """Gains in ranked order, and those of all relevant items, of which some were not found."""
    grade = st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0])
    gains = draw(st.lists(grade, max_size=8))
    unfound = draw(st.lists(grade, max_size=4))
    return gains, draw(st.permutations([*gains, *unfound, 1.0]))


@given(case=graded(), k=st.integers(1, 12))
def test_graded_ndcg_equals_loops(case: tuple[list[float], list[float]], k: int) -> None:
    gains, ideal = case
    value = graded_ndcg_at_k(np.array([gains]), np.array([ideal]), k)
    np.testing.assert_allclose(value, [naive_graded_ndcg(gains, ideal, k)], rtol=1e-12)


@given(case=ranked(), k=st.integers(1, 15))
def test_graded_ndcg_of_equal_gains_is_binary(case: tuple[Bools, Ints], k: int) -> None:
    is_hit, num_relevant = case
    ideal = 3.0 * (np.arange(num_relevant.max()) < num_relevant[:, None])
    value = graded_ndcg_at_k(3.0 * is_hit, ideal, k)
    np.testing.assert_allclose(value, ndcg_at_k(is_hit, num_relevant, k), rtol=1e-12)


@given(case=graded(), k=st.integers(1, 12))
def test_graded_ndcg_of_the_ideal_is_exactly_1(
    case: tuple[list[float], list[float]], k: int
) -> None:
    ideal = np.array([case[1]])
    assert graded_ndcg_at_k(-np.sort(-ideal), ideal, k) == 1.0


def test_errors_of_graded_ndcg() -> None:
    with pytest.raises(ValueError, match=r"k must be at least 1, got 0"):
        graded_ndcg_at_k(GAINS, IDEAL, 0)
    with pytest.raises(ValueError, match=r"\(Q, R\) and \(Q, M\), got \(2, 3\) and \(1, 4\)"):
        graded_ndcg_at_k(GAINS, IDEAL[:1], 2)
    with pytest.raises(ValueError, match=r"gains must be finite .* got -1.0 for query 0"):
        graded_ndcg_at_k(-GAINS, IDEAL, 2)
    with pytest.raises(ValueError, match=r"ideal must be finite .* got nan for query 1"):
        graded_ndcg_at_k(GAINS, np.array([[3.0, 1], [math.nan, 2]]), 2)
    with pytest.raises(ValueError, match=r"a gain above 0 for each query, got none for query 1"):
        graded_ndcg_at_k(GAINS, np.array([[3.0, 1], [0, 0]]), 2)
    with pytest.raises(ValueError, match=r"gains must be among .* got others for query 0"):
        graded_ndcg_at_k(GAINS, np.array([[2.0, 1], [2, 4]]), 2)
    with pytest.raises(ValueError, match=r"gains must be among .* got others for query 1"):
        graded_ndcg_at_k(np.array([[1.0], [2]]), np.array([[1.0], [1]]), 2)
    with pytest.raises(ValueError, match=r"gains must be among .* got others for query 0"):
        graded_ndcg_at_k(np.array([[1.0, 1]]), np.array([[1.0]]), 2)


def naive_auc(scores: list[float], labels: list[int]) -> float:
    wins, meetings = 0.0, 0
    for mine, label in zip(scores, labels, strict=True):
        for other, other_label in zip(scores, labels, strict=True):
            if label == 1 and other_label == 0:
                meetings += 1
                wins += 1.0 if mine > other else 0.5 if mine == other else 0.0
    return wins / meetings


@st.composite
def labelled(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    """Scores with many ties and labels of both kinds."""
    labels = [1, 0, *draw(st.lists(st.integers(0, 1), max_size=10))]
    score = st.sampled_from([-3.0, -0.5, 0.0, 0.25, 2.0])
    return draw(st.lists(score, min_size=len(labels), max_size=len(labels))), labels


def test_auc_worked_by_hand() -> None:
    # .8 beats .5 and .3; .3 loses to .5 and ties with .3
    assert auc([0.8, 0.3, 0.5, 0.3], [1, 1, 0, 0]) == 2.5 / 4


@given(labelled())
def test_auc_equals_nested_loops(pairs: tuple[list[float], list[int]]) -> None:
    assert auc(*pairs) == pytest.approx(naive_auc(*pairs), rel=1e-12)


@given(labelled())
def test_auc_sees_only_the_order(pairs: tuple[list[float], list[int]]) -> None:
    scores, labels = pairs
    value = auc(scores, labels)
    assert auc(np.exp(scores), labels) == pytest.approx(value)
    assert auc(scores, 1 - np.array(labels)) == pytest.approx(1 - value)


def test_log_loss_worked_by_hand() -> None:
    # sigmoid(0) = 1/2 and sigmoid(log 3) = 3/4: minus log(1/2), minus log(1 - 3/4)
    assert log_loss([0.0, math.log(3)], [1, 0]) == pytest.approx((math.log(2) + math.log(4)) / 2)


@given(labelled())
def test_log_loss_equals_loops(pairs: tuple[list[float], list[int]]) -> None:
    total = 0.0
    for logit, label in zip(*pairs, strict=True):
        probability = 1 / (1 + math.exp(-logit))
        total -= math.log(probability if label == 1 else 1 - probability)
    assert log_loss(*pairs) == pytest.approx(total / len(pairs[1]))


def test_log_loss_of_extreme_logits() -> None:
    assert log_loss([1000.0, -1000.0], [1, 0]) == 0.0
    assert log_loss([1000.0, -1000.0], [0, 1]) == 1000.0
    assert log_loss([math.inf, -math.inf], [1, 0]) == 0.0


def test_errors_of_labelled_pairs() -> None:
    with pytest.raises(ValueError, match=r"scores and labels must .* got \(2,\) and \(1,\)"):
        auc([0.1, 0.2], [1])
    with pytest.raises(ValueError, match=r"scores must not be NaN, got NaN at 1"):
        auc([0.1, math.nan], [1, 0])
    with pytest.raises(ValueError, match=r"labels must be 0 or 1, got 2"):
        auc([0.1, 0.2], [1, 2])
    with pytest.raises(ValueError, match=r"both 0 and 1, got 2 positives and 0 negatives"):
        auc([0.1, 0.2], [1, 1])
    with pytest.raises(ValueError, match=r"logits must not be NaN, got NaN at 0"):
        log_loss([math.nan], [1])
    with pytest.raises(ValueError, match=r"labels must be 0 or 1, got 0.5"):
        log_loss([0.0], [0.5])
    with pytest.raises(ValueError, match=r"at least one pair, got 0"):
        log_loss([], [])


class TestHitsOf:
    def test_by_hand(self) -> None:
        is_hit, num_relevant = hits_of([[7, 3, 9], [4, 7, -1]], [[9, 1, 9], [4]])
        assert is_hit.tolist() == [[False, False, True], [True, False, False]]
        assert num_relevant.tolist() == [2, 1]
        # The first finds one of two at rank 3: 1/2 over 1 + 1/log2 3.
        ndcg = ndcg_at_k(is_hit, num_relevant, 3)
        assert ndcg.tolist() == pytest.approx([0.5 / (1 + 1 / math.log2(3)), 1])

    def test_ids_may_be_strings(self) -> None:
        is_hit, num_relevant = hits_of(np.array([["a", "b"], ["c", ""]]), [("b",), ("d", "c")])
        assert is_hit.tolist() == [[False, True], [True, False]]
        assert num_relevant.tolist() == [1, 2]

    @given(st.integers(0, 2**31))
    def test_equals_loops(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        rankings = np.stack([rng.permutation(9)[:5] for _ in range(3)])
        relevant = [rng.integers(0, 12, rng.integers(0, 6)).tolist() for _ in range(3)]
        is_hit, num_relevant = hits_of(rankings, relevant)
        for query in range(3):
            assert num_relevant[query] == len(set(relevant[query]))
            for rank in range(5):
                assert is_hit[query, rank] == (rankings[query, rank] in relevant[query])

    def test_what_does_not_fit_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"rankings must have shape \(Q, R\), got \(2,\)"):
            hits_of([1, 2], [[1], [2]])
        with pytest.raises(ValueError, match="relevant must hold the ids of each of the 2 queries"):
            hits_of([[1], [2]], [[1]])
        with pytest.raises(ValueError, match="each item once, got a relevant id twice for query 1"):
            hits_of([[1, 2], [3, 3]], [[1], [3, 4]])
