"""Intervals worked by hand, against loops over resamples, and at their ends; and what they say."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from twotower.evaluation import intervals as module
from twotower.evaluation.intervals import Interval, difference_intervals, mean_intervals, verdict
from twotower.evaluation.metrics import metric_name


def column(*values: float) -> npt.NDArray[np.float64]:
    return np.array(values, np.float64)


def test_worked_by_hand() -> None:
    # Two queries: the mean of a resample is 0, 1/2 or 1, each end a quarter of the time. Six queries,
    # one of them 1: no 1 is drawn in (5/6)**6 = 33 % of the resamples, and four or more in 0.9 %, three
    # or more in 6.2 %.
    found = mean_intervals({"two": column(0, 1)})
    assert found["two"].as_json() == [0.5, 0.0, 1.0]
    found = mean_intervals({"six": column(0, 0, 0, 1, 0, 0)}, resamples=20_000)
    assert found["six"].as_json() == pytest.approx([1 / 6, 0, 3 / 6])


def naive_interval(values: list[float], resamples: int, seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    means: list[float] = []
    for _ in range(resamples):
        drawn = rng.integers(len(values), size=len(values)).tolist()
        means.append(sum(values[query] for query in drawn) / len(values))
    means.sort()

    def quantile(share: float) -> float:
        place = share * (resamples - 1)
        below = int(place)
        above = min(below + 1, resamples - 1)
        return means[below] + (place - below) * (means[above] - means[below])

    return [sum(values) / len(values), quantile(0.025), quantile(0.975)]


@given(
    values=st.lists(st.floats(0, 1), min_size=2, max_size=9).filter(lambda v: len(set(v)) > 1),
    resamples=st.integers(2, 60),
    seed=st.integers(0, 99),
)
def test_equals_loops_over_resamples(values: list[float], resamples: int, seed: int) -> None:
    found = mean_intervals({"ndcg": column(*values)}, resamples=resamples, seed=seed)
    assert found["ndcg"].as_json() == pytest.approx(naive_interval(values, resamples, seed))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"a": np.random.default_rng(0).random(50), "b": np.random.default_rng(1).random(50)}
    whole = mean_intervals(values)
    monkeypatch.setattr(module, "_BLOCK", 170)  # three resamples at once, and one left over
    for name, found in mean_intervals(values).items():
        assert found.as_json() == pytest.approx(whole[name].as_json())


def test_agrees_with_the_normal_interval_of_many_queries() -> None:
    values = np.random.default_rng(0).beta(0.5, 2, size=5_000)
    found = mean_intervals({"ndcg": values}, resamples=4_000)["ndcg"]
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert found.low == pytest.approx(found.value - half, abs=0.05 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.05 * half)


def test_metrics_share_their_resamples_and_their_seed_decides_them() -> None:
    values = np.random.default_rng(0).random(80)
    found = mean_intervals({"a": values, "b": values / 2})
    assert found["b"].low == pytest.approx(found["a"].low / 2)
    assert found == mean_intervals({"a": values, "b": values / 2})
    alone = mean_intervals({"b": values / 2})["b"]
    assert found["b"].as_json() == pytest.approx(alone.as_json())
    assert found["b"].value == (values / 2).mean()  # to the bit, as it stands elsewhere
    assert found != mean_intervals({"a": values, "b": values / 2}, seed=1)


@pytest.mark.parametrize("num_queries", [1, 20, 1000])
def test_equal_values_are_not_certainty(num_queries: int) -> None:
    nothing, everything, half = (np.full(num_queries, value) for value in (0.0, 1.0, 0.5))
    found = mean_intervals({"0": nothing, "1": everything, "half": half})
    exact = binomtest(0, num_queries).proportion_ci(0.95, "exact").high
    assert found["0"].as_json() == pytest.approx([0, 0, exact])
    assert found["1"].as_json() == pytest.approx([1, 1 - exact, 1])
    assert found["half"].as_json() == pytest.approx([0.5, 0.5 - exact / 2, 0.5 + exact / 2])


def test_twenty_queries_worked_by_hand() -> None:
    # 1 - 0.025 ** (1 / 20) = 0.16843: with so many other queries, 20 equal ones come 2.5 % of the time
    found = mean_intervals({"hits": np.zeros(20)})["hits"]
    assert found.high == pytest.approx(0.16843, abs=1e-5)
    assert (1 - found.high) ** 20 == pytest.approx(0.025)


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.random(500) * 0.9
    ours = theirs + 0.02 + 0.01 * rng.random(500)
    paired = difference_intervals({"ndcg": ours}, {"ndcg": theirs})["ndcg"]
    assert paired.value == pytest.approx(ours.mean() - theirs.mean())
    assert 0.024 < paired.low < paired.high < 0.026
    apart = difference_intervals({"ndcg": ours}, {"ndcg": rng.permutation(theirs)})["ndcg"]
    assert apart.low < 0 < apart.high


def test_a_difference_is_the_mean_of_differences() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(60), rng.random(60) / 2
    gap = difference_intervals({"a": ours}, {"a": theirs}, resamples=99, seed=4)["a"]
    assert gap.as_json() == pytest.approx(naive_interval((ours - theirs).tolist(), 99, 4))
    back = difference_intervals({"a": theirs}, {"a": ours}, resamples=99, seed=4)["a"]
    assert back.as_json() == pytest.approx([-gap.value, -gap.high, -gap.low])


def test_weights_count_a_query_more_in_the_mean_and_in_each_resample() -> None:
    rng = np.random.default_rng(0)
    ours, theirs, weights = rng.random(9), rng.random(9), rng.choice([0.25, 1.0, 4.0], 9)
    found = difference_intervals({"a": ours}, {"a": theirs}, weights=weights, resamples=99, seed=4)
    draws = np.random.default_rng(4)
    means = []
    for _ in range(99):
        drawn = draws.integers(9, size=9)
        total = sum(weights[query] * (ours[query] - theirs[query]) for query in drawn)
        means.append(total / sum(weights[query] for query in drawn))
    value = float(weights @ (ours - theirs) / weights.sum())
    low, high = np.quantile(means, [0.025, 0.975])
    assert found["a"].as_json() == pytest.approx([value, low, high])


def test_queries_of_no_weight_are_as_if_they_were_not_there() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(300), rng.random(300)
    few = np.where(np.arange(300) < 4, 2.0, 0.0)
    found = difference_intervals({"a": ours}, {"a": theirs}, weights=few)
    assert found == difference_intervals({"a": ours[:4]}, {"a": theirs[:4]})
    plain = difference_intervals({"a": ours}, {"a": theirs})
    for alike in (np.zeros(300), np.full(300, 0.5)):
        gap = difference_intervals({"a": ours}, {"a": theirs}, weights=alike)
        assert gap["a"].as_json() == pytest.approx(plain["a"].as_json())
    # One of twenty counts as much as all others: the bound of those that were not seen is wider.
    same, heavy = np.zeros(20), np.append(np.ones(19), 19.0)
    bound = difference_intervals({"a": same}, {"a": same}, weights=heavy)["a"]
    assert (bound.low, bound.high) == (-1, 1)


def test_equal_rankers_may_differ_elsewhere() -> None:
    # Any query might be won or lost by 1, so the bound of 20 queries holds on both sides.
    same = np.random.default_rng(0).random(20)
    found = difference_intervals({"ndcg": same}, {"ndcg": same})["ndcg"]
    assert found.as_json() == pytest.approx([0, -0.16843, 0.16843], abs=1e-5)


def test_no_metric_gives_no_interval() -> None:
    assert mean_intervals({}) == {}
    assert difference_intervals({}, {}) == {}


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        (
            Interval(0.0211, 0.0149, 0.0274),
            "beats ItemKNN by 0.021 NDCG@10 (95 % interval 0.015 to 0.027)",
        ),
        (
            Interval(-0.0211, -0.0274, -0.0149),
            "loses to ItemKNN by 0.021 NDCG@10 (95 % interval 0.015 to 0.027)",
        ),
        (
            Interval(0.002, -0.001, 0.005),
            (
                "cannot be told apart from ItemKNN: a difference of +0.002 NDCG@10 "
                "(95 % interval -0.001 to +0.005)"
            ),
        ),
        (
            Interval(0.01, 0.0, 0.02),
            (
                "cannot be told apart from ItemKNN: a difference of +0.010 NDCG@10 "
                "(95 % interval +0.000 to +0.020)"
            ),
        ),
        (
            Interval(0.0002, 0.00004, 0.0003),
            "beats ItemKNN by 0.00020 NDCG@10 (95 % interval 0.00004 to 0.00030)",
        ),
        (
            Interval(-0.6, -0.9, -0.3),
            "loses to ItemKNN by 0.600 NDCG@10 (95 % interval 0.300 to 0.900)",
        ),
    ],
)
def test_verdict(difference: Interval, sentence: str) -> None:
    assert verdict("ItemKNN", "NDCG@10", difference) == sentence


def test_metric_names() -> None:
    names = [metric_name(m) for m in ("ndcg@10", "hit_rate@5", "recall@100", "auc", "log_loss")]
    assert names == ["NDCG@10", "hit rate@5", "recall@100", "AUC", "log loss"]


def test_errors() -> None:
    one, two = {"a": column(1)}, {"a": column(1, 0)}
    with pytest.raises(ValueError, match=r"resamples must be at least 2, got 1"):
        mean_intervals(two, resamples=1)
    with pytest.raises(ValueError, match=r"at least one query, got 0"):
        mean_intervals({"a": column()})
    with pytest.raises(ValueError, match=r"all be of the same queries, got lengths \[1, 2\]"):
        mean_intervals({"a": column(1), "b": column(1, 0)})
    with pytest.raises(ValueError, match=r"the same names, got \['a'\] and \['b'\]"):
        difference_intervals(one, {"b": column(1)})
    with pytest.raises(ValueError, match=r"of the same queries, got 1 and 2 for 'a'"):
        difference_intervals(one, two)
    with pytest.raises(ValueError, match=r"weights must be of the same queries, got 1 for \[2\]"):
        difference_intervals(two, two, weights=column(1))
    with pytest.raises(ValueError, match=r"weights must be None with owners"):
        difference_intervals(two, two, weights=column(1, 1), owners=np.array([0, 1]))


def test_values_of_one_query_are_drawn_together() -> None:
    """Ten queries of a hundred equal values each say as little as ten values, not a thousand."""
    owners = np.repeat(np.arange(10), 100)
    values = (owners % 2).astype(np.float64)
    together = mean_intervals({"x": values}, owners=owners)["x"]
    ten = mean_intervals({"x": values[::100]})["x"]
    assert together == ten
    alone = mean_intervals({"x": values})["x"]
    assert together.high - together.low > 5 * (alone.high - alone.low)
    column = np.random.default_rng(0).random(50)  # where no query has two, nothing changes
    assert mean_intervals({"x": column}, owners=np.arange(50)) == mean_intervals({"x": column})
    gap = difference_intervals({"x": values}, {"x": values / 2}, owners=owners)["x"]
    assert gap.value == pytest.approx(0.25)
    assert gap.low < 0.16


def test_a_mean_over_rows_weighs_a_query_by_how_many_it_has() -> None:
    owners = np.array([7, 7, 7, 2])
    found = mean_intervals({"x": np.array([1.0, 1.0, 1.0, 0.0])}, owners=owners)["x"]
    assert found.value == 0.75
    assert (found.low, found.high) == (0.0, 1.0)
