"""Ranking against sorted Python lists, and what may and may not be ranked."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twotower.data.dataset import Cases
from twotower.evaluation.metrics import METRICS
from twotower.evaluation.ranking import evaluate, rank
from twotower.histories import Histories
from twotower.vocab import Vocabulary


@dataclass
class Table:
    """Scores looked up by query row."""

    scores: torch.Tensor

    def score(self, cases: Cases) -> torch.Tensor:
        return self.scores[torch.from_numpy(cases.query_rows).long()]


@dataclass
class Fixed:
    """One tensor whatever the cases; remembers how many came at once, and under gradients."""

    scores: torch.Tensor
    largest: int = 0
    saw_gradients: bool = False

    def score(self, cases: Cases) -> torch.Tensor:
        self.saw_gradients |= torch.is_grad_enabled()
        self.largest = max(self.largest, len(cases))
        return self.scores.expand(len(cases), -1) if self.scores.ndim == 1 else self.scores


def ragged(sets: list[list[int]]) -> Histories:
    return Histories.of([np.array(items, np.int32) for items in sets])


def cases_of(histories: list[list[int]], targets: list[list[int]] | None = None) -> Cases:
    n = len(histories)
    return Cases(
        query_rows=np.arange(n, dtype=np.int32),
        histories=ragged(histories),
        targets=ragged([[2]] * n if targets is None else targets),
    )


def naive_rank(
    scores: list[float], seen: list[int], allowed: list[bool], k: int
) -> tuple[list[int], list[float]]:
    pairs = []
    for row, score in enumerate(scores):
        if row >= 2 and row not in seen and allowed[row] and score != -math.inf:
            pairs.append((-score, row))
    pairs.sort()
    rows = [row for _, row in pairs[:k]]
    best = [-negated for negated, _ in pairs[:k]]
    return rows + [0] * (k - len(rows)), best + [-math.inf] * (k - len(rows))


@st.composite
def ranking_problem(
    draw: st.DrawFn,
) -> tuple[list[list[float]], list[list[int]], list[bool], int, bool]:
    num_item_rows = draw(st.integers(3, 12))
    num_queries = draw(st.integers(1, 4))
    score = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 2.0])
    row = st.lists(score, min_size=num_item_rows, max_size=num_item_rows)
    scores = draw(st.lists(row, min_size=num_queries, max_size=num_queries))
    seen = st.lists(st.integers(0, num_item_rows - 1), max_size=6)
    histories = draw(st.lists(seen, min_size=num_queries, max_size=num_queries))
    allowed = draw(st.lists(st.booleans(), min_size=num_item_rows, max_size=num_item_rows))
    return scores, histories, allowed, draw(st.integers(1, 14)), draw(st.booleans())


@given(problem=ranking_problem(), chunk_size=st.integers(1, 5))
def test_ranks_as_a_sorted_list(
    problem: tuple[list[list[float]], list[list[int]], list[bool], int, bool], chunk_size: int
) -> None:
    scores, histories, allowed, k, remove_seen = problem
    rows, best = rank(
        Table(torch.tensor(scores)),
        cases_of(histories),
        k,
        num_item_rows=len(allowed),
        remove_seen=remove_seen,
        allowed=np.array(allowed),
        chunk_size=chunk_size,
    )
    assert rows.dtype == np.int32
    assert best.dtype == np.float32
    for query, history in enumerate(histories):
        seen = history if remove_seen else []
        expected = naive_rank(scores[query], seen, allowed, k)
        assert (rows[query].tolist(), best[query].tolist()) == expected


def test_ties_go_to_the_lower_row() -> None:
    scores = torch.zeros(3000)
    scores[[2500, 40, 1200]] = 1.0
    rows, _ = rank(Fixed(scores), cases_of([[], [3]]), 6, num_item_rows=3000)
    assert rows.tolist() == [[40, 1200, 2500, 2, 3, 4], [40, 1200, 2500, 2, 4, 5]]


def test_reserved_rows_never_appear_and_may_be_nan() -> None:
    scores = torch.tensor([math.nan, 9.0, 1.0, 2.0])
    rows, best = rank(Fixed(scores), cases_of([[]]), 4, num_item_rows=4)
    assert rows.tolist() == [[3, 2, 0, 0]]
    assert best.tolist() == [[2.0, 1.0, -math.inf, -math.inf]]


def test_scorers_own_tensor_is_left_alone() -> None:
    scores = torch.arange(5.0).repeat(2, 1)
    rank(Fixed(scores), cases_of([[2], [3, 4]]), 2, num_item_rows=5)
    assert scores.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_scores_need_no_float32_and_no_gradient() -> None:
    scores = torch.arange(5, dtype=torch.float64, requires_grad=True)
    scorer = Fixed(scores)
    rows, _ = rank(scorer, cases_of([[4]]), 2, num_item_rows=5)
    assert rows.tolist() == [[3, 2]]
    assert not scorer.saw_gradients


def test_no_case_gives_no_rows() -> None:
    rows, best = rank(Fixed(torch.zeros(5)), cases_of([]), 3, num_item_rows=5)
    assert rows.shape == best.shape == (0, 3)


def test_chunks_are_bounded_by_memory() -> None:
    num_item_rows = 3_000_000  # 12 MB of scores a query: 2 at once
    scorer = Fixed(torch.arange(num_item_rows))
    rank(scorer, cases_of([[]] * 5), 1, num_item_rows=num_item_rows)
    assert scorer.largest == 2


def test_rank_errors() -> None:
    cases = cases_of([[], [], [7]])
    scorer = Fixed(torch.zeros(8))
    with pytest.raises(ValueError, match=r"k must be at least 1, got 0"):
        rank(scorer, cases, 0, num_item_rows=8)
    with pytest.raises(ValueError, match=r"chunk_size must be at least 1, got 0"):
        rank(scorer, cases, 1, num_item_rows=8, chunk_size=0)
    with pytest.raises(ValueError, match=r"scores must have shape \(3, 9\), got \(3, 8\)"):
        rank(scorer, cases, 1, num_item_rows=9)
    with pytest.raises(ValueError, match=r"num_item_rows must be above .* got 7 and row 7"):
        rank(Fixed(torch.zeros(7)), cases, 1, num_item_rows=7)
    with pytest.raises(ValueError, match=r"allowed must be 8 booleans.*shape \(3,\) of bool"):
        rank(scorer, cases, 1, num_item_rows=8, allowed=np.ones(3, np.bool_))


def test_nan_is_refused_with_its_query() -> None:
    scores = torch.zeros(3, 8)
    scores[2, 5] = math.nan
    with pytest.raises(ValueError, match=r"NaN for query row 2 and item row 5"):
        rank(Table(scores), cases_of([[], [], []]), 1, num_item_rows=8, chunk_size=1)
    for ids, name in ((["a"], "'a'"), ([731], "731")):
        with pytest.raises(ValueError, match=rf"NaN for query {name} and item row 5; look for"):
            rank(
                Table(scores),
                cases_of([[], [], []]),
                1,
                num_item_rows=8,
                query_ids=Vocabulary(pl.Series(ids)),
            )


# Rows 2..7 score 6, 5, 4, 3, 2, 1. Query 0 has seen 2: its answer is 3, 4, 5, 6, 7.
SCORES = torch.tensor([0.0, 0, 6, 5, 4, 3, 2, 1])


def test_evaluation_worked_by_hand() -> None:
    cases = cases_of([[2], [7], [3, 4]], [[4, 7], [2], [3]])
    result = evaluate(Fixed(SCORES), cases, (2, 1), num_item_rows=8)
    assert list(result.values) == [f"{name}@{k}" for k in (2, 1) for name in METRICS]
    assert list(result.mean()) == list(result.values)
    # query 0 finds one of two at rank 2, query 1 its only one at rank 1, query 2 nothing
    expected: dict[str, list[float]] = {
        "hit_rate@2": [1, 1, 0],
        "recall@2": [0.5, 1, 0],
        "precision@2": [0.5, 0.5, 0],
        "mrr@2": [0.5, 1, 0],
        "map@2": [0.25, 1, 0],
        "ndcg@2": [0.63093 / 1.63093, 1, 0],
        "hit_rate@1": [0, 1, 0],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(result.values[name], values, atol=1e-5)
        assert result.mean()[name] == pytest.approx(sum(values) / 3, abs=1e-5)
    assert result.num_queries == 3
    assert result.cases.query_rows.tolist() == [0, 1, 2]


def test_targets_that_cannot_be_found_are_counted_as_misses() -> None:
    cases = cases_of([[3], [], []], [[2, 3], [1, 2], [6, 7]])
    allowed = np.ones(8, np.bool_)
    allowed[7] = False
    result = evaluate(Fixed(SCORES), cases, (8,), num_item_rows=8, allowed=allowed)
    assert result.values["recall@8"].tolist() == [0.5, 0.5, 0.5]
    assert (result.num_targets, result.num_seen_targets, result.num_absent_targets) == (6, 1, 2)
    kept = evaluate(Fixed(SCORES), cases, (8,), num_item_rows=8, remove_seen=False)
    assert kept.values["recall@8"].tolist() == [1.0, 0.5, 1.0]
    assert (kept.num_seen_targets, kept.num_absent_targets) == (0, 1)


def test_some_metrics_are_those_of_all() -> None:
    scorer, cases = random_problem(3)
    rows = scorer.scores.shape[1]
    every = evaluate(scorer, cases, (1, 3), num_item_rows=rows).values
    some = evaluate(scorer, cases, (1, 3), num_item_rows=rows, metrics=("map", "ndcg")).values
    assert list(some) == ["map@1", "ndcg@1", "map@3", "ndcg@3"]
    assert all(np.array_equal(values, every[name]) for name, values in some.items())


def test_cutoff_above_the_catalogue() -> None:
    cases = cases_of([[]], [[2, 7]])
    result = evaluate(Fixed(SCORES), cases, (100,), num_item_rows=8)
    assert result.mean()["recall@100"] == 1.0
    assert result.mean()["precision@100"] == 2 / 100


def random_problem(seed: int) -> tuple[Table, Cases]:
    draw = np.random.default_rng(seed)
    sets = [draw.choice(np.arange(2, 40), 9, replace=False).tolist() for _ in range(30)]
    cases = cases_of([items[:5] for items in sets], [items[5:] for items in sets])
    return Table(torch.from_numpy(draw.normal(size=(30, 40)))), cases


@given(seed=st.integers(0, 10_000))
def test_permuted_queries_keep_their_values(seed: int) -> None:
    scorer, cases = random_problem(seed)
    order = np.random.default_rng(seed).permutation(len(cases))
    whole = evaluate(scorer, cases, (3, 10), num_item_rows=40)
    shuffled = evaluate(scorer, cases.take(order), (3, 10), num_item_rows=40, chunk_size=7)
    for name, values in whole.values.items():
        np.testing.assert_array_equal(shuffled.values[name], values[order])


def test_metrics_equal_a_search_through_sets() -> None:
    scorer, cases = random_problem(0)
    result = evaluate(scorer, cases, (10,), num_item_rows=40)
    rows, _ = rank(scorer, cases, 10, num_item_rows=40)
    for query in range(len(cases)):
        wanted: npt.NDArray[np.int32] = cases.targets.take(np.array([query])).item_rows
        found = [row for row in rows[query].tolist() if row in wanted.tolist()]
        assert result.values["recall@10"][query] == len(found) / len(wanted)


def test_evaluate_errors() -> None:
    scorer, cases = random_problem(0)
    with pytest.raises(ValueError, match=r"at least one query with a relevant item, got 0"):
        evaluate(scorer, cases.take(slice(0, 0)), num_item_rows=40)
    for ks, sentence in (
        ((), r"ks must hold at least one cut-off, got none"),
        ((5, 10, 5), r"ks must be distinct, got 5 more than once"),
        ((10, 0), r"ks must be at least 1, got 0"),
        ((10, 2.5), r"ks must be whole numbers, got 2.5"),
        (("10",), r"ks must be whole numbers, got '10'"),
        ((True,), r"ks must be whole numbers, got True"),
    ):
        with pytest.raises(ValueError, match=sentence):
            evaluate(scorer, cases, ks, num_item_rows=40)  # type: ignore[arg-type]


def test_infinite_scores_are_refused_and_the_query_named() -> None:
    scores = torch.zeros(1, 8)
    scores[0, 3] = math.inf
    with pytest.raises(ValueError, match="got infinity for query row 0 and item row 3"):
        evaluate(Fixed(scores), cases_of([[]]), (1,), num_item_rows=8)


def test_a_cutoff_far_beyond_the_catalogue_costs_nothing() -> None:
    result = evaluate(Fixed(SCORES), cases_of([[]]), (1, 10**12), num_item_rows=8)
    assert result.ranking.item_rows.shape == (1, 100)
    assert result.values[f"recall@{10**12}"].tolist() == [1]


def test_cutoffs_may_be_numpys() -> None:
    result = evaluate(Fixed(SCORES), cases_of([[]]), np.array([1, 2]), num_item_rows=8)  # type: ignore[arg-type]
    assert "ndcg@2" in result.values


def test_only_candidates_are_ranked() -> None:
    # Of 2..7 in that order, query 0 ranks 3, 6 and 7 and has seen 3; query 1 ranks its target alone.
    cases = cases_of([[3], []], [[7], [5, 1]])
    result = evaluate(
        Fixed(SCORES), cases, (1, 2), num_item_rows=8, candidates=ragged([[7, 3, 6, 6], [5]])
    )
    assert result.ranking.item_rows.tolist() == [[6, 7], [5, 0]]
    assert result.values["hit_rate@1"].tolist() == [0, 1]
    assert result.values["mrr@2"].tolist() == [0.5, 1]
    kept = rank(
        Fixed(SCORES),
        cases,
        3,
        num_item_rows=8,
        candidates=ragged([[7, 3, 6], [0, 1]]),
        remove_seen=False,
        chunk_size=1,
    )
    assert kept.item_rows.tolist() == [[3, 6, 7], [0, 0, 0]]


@given(seed=st.integers(0, 10_000))
def test_candidates_equal_scores_of_minus_infinity_elsewhere(seed: int) -> None:
    scorer, cases = random_problem(seed)
    is_candidate = np.random.default_rng(seed + 1).random((30, 40)) < 0.3
    owners = np.repeat(np.arange(30), cases.targets.lengths)
    is_candidate[owners, cases.targets.item_rows] = True
    candidates = ragged([np.flatnonzero(line).tolist() for line in is_candidate])
    found = evaluate(scorer, cases, (5,), num_item_rows=40, candidates=candidates, chunk_size=7)
    masked = Table(scorer.scores.masked_fill(torch.from_numpy(~is_candidate), -math.inf))
    expected = evaluate(masked, cases, (5,), num_item_rows=40)
    np.testing.assert_array_equal(found.ranking.item_rows, expected.ranking.item_rows)
    for name, values in expected.values.items():
        np.testing.assert_array_equal(found.values[name], values)


def test_errors_of_candidates() -> None:
    cases, scorer = cases_of([[], []], [[3], [4, 5]]), Fixed(SCORES)
    with pytest.raises(ValueError, match=r"one set a case, got 1 for 2 cases"):
        evaluate(scorer, cases, (1,), num_item_rows=8, candidates=ragged([[3]]))
    with pytest.raises(ValueError, match=r"num_item_rows must be above .* got 8 and row 8"):
        evaluate(scorer, cases, (1,), num_item_rows=8, candidates=ragged([[3], [8]]))
    with pytest.raises(ValueError, match=r"one set a case, got 1 for 2 cases"):
        rank(scorer, cases, 1, num_item_rows=8, candidates=ragged([[3]]))
    missing = ragged([[3, 6], [4]])
    with pytest.raises(ValueError, match=r"got none of item row 5 for query row 1; add it"):
        evaluate(scorer, cases, (1,), num_item_rows=8, candidates=missing)
    with pytest.raises(ValueError, match=r"got none of item row 5 for query 'two'; add it"):
        evaluate(
            scorer,
            Cases(np.array([2, 3], np.int32), cases.histories, cases.targets),
            (1,),
            num_item_rows=8,
            candidates=missing,
            query_ids=Vocabulary(pl.Series(["one", "two"])),
        )
