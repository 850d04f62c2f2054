"""Our metrics and those of ``ir_measures``, whose engine is trec_eval, on a thousand random queries."""

import ir_measures
import numpy as np
import pytest
from ir_measures import AP, RR, P, Qrel, R, ScoredDoc, Success, nDCG

from twotower.evaluation.metrics import (
    graded_ndcg_at_k,
    hit_rate_at_k,
    map_at_k,
    mrr_at_k,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
)

KS = (1, 3, 10, 20)
NUM_ITEMS = 40
MAX_GAIN = 4


class Problem:
    """Queries with 1 to 30 relevant items of grades 1 to 4 each, and rankings of 0 to 25 items.

    ``gains`` is ``(Q, 25)`` in ranked order and ``ideal`` is ``(Q, NUM_ITEMS)`` in any order.
    """

    def __init__(self, num_queries: int) -> None:
        rng = np.random.default_rng(0)
        self.gains = np.zeros((num_queries, 25))
        self.ideal = np.zeros((num_queries, NUM_ITEMS))
        self.qrels, self.run = [], []
        for query in range(num_queries):
            relevant = rng.permutation(NUM_ITEMS)[: rng.integers(1, 31)]
            self.ideal[query, relevant] = rng.integers(1, MAX_GAIN + 1, size=len(relevant))
            ranking = rng.permutation(NUM_ITEMS)[: rng.integers(0, 26)]
            self.gains[query, : len(ranking)] = self.ideal[query, ranking]
            self.qrels += [
                Qrel(str(query), str(item), int(self.ideal[query, item])) for item in relevant
            ]
            self.run += [
                ScoredDoc(str(query), str(item), -float(rank)) for rank, item in enumerate(ranking)
            ]
        self.is_hit = self.gains > 0
        self.num_relevant = (self.ideal > 0).sum(axis=1)

    def theirs(self, measure: ir_measures.Measure, *, is_binary: bool = False) -> list[float]:
        qrels = self.qrels
        if is_binary:
            qrels = [Qrel(q.query_id, q.doc_id, 1) for q in qrels]
        values = np.zeros(len(self.gains))
        for found in ir_measures.iter_calc([measure], qrels, self.run):
            values[int(found.query_id)] = found.value
        return values.tolist()


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem(1000)


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize(
    ("metric", "measure"),
    [
        (hit_rate_at_k, Success),
        (recall_at_k, R),
        (precision_at_k, P),
        (ndcg_at_k, nDCG),
        (mrr_at_k, RR),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_binary_metric(problem: Problem, metric, measure, k: int) -> None:  # type: ignore[no-untyped-def]
    ours = metric(problem.is_hit, problem.num_relevant, k)
    np.testing.assert_allclose(ours, problem.theirs(measure @ k, is_binary=True), rtol=1e-6)


@pytest.mark.parametrize("k", KS)
def test_average_precision_but_for_its_divisor(problem: Problem, k: int) -> None:
    # Theirs divides by the number of relevant items even where no more than k can be found.
    ours = map_at_k(problem.is_hit, problem.num_relevant, k)
    scale = np.minimum(problem.num_relevant, k) / problem.num_relevant
    np.testing.assert_allclose(ours * scale, problem.theirs(AP @ k), rtol=1e-6)
    assert (scale < 1).any()


@pytest.mark.parametrize("k", KS)
def test_graded_ndcg(problem: Problem, k: int) -> None:
    ours = graded_ndcg_at_k(problem.gains, problem.ideal, k)
    np.testing.assert_allclose(ours, problem.theirs(nDCG @ k), rtol=1e-6)
