"""The answers of a model: whether they are popularity's, the same for all, or hold a hub item."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from twotower.arrays import Floats, Ints, Rows, distinct
from twotower.baselines.popularity import Popularity
from twotower.data.dataset import Cases, Dataset, Part
from twotower.doctor.findings import Finding, Severity
from twotower.evaluation.evaluate_bundle import scorer_of
from twotower.evaluation.ranking import Evaluation, Scorer, evaluate, keys_of
from twotower.serving.retriever import Retriever
from twotower.vocab import FIRST_ROW, PADDING_ROW, Vocabulary

K = 10
"""Number of answers of a query that are examined."""

MAX_QUERIES = 1_000
"""Most queries that are asked; a share among so many is known to 3 % or better."""

HUB_SHARE = 0.25
"""Share of the answers that a hub item is in, at least: one place in ten, for one query in four."""

HUB_ODDS = 20.0
"""Least ratio of a hub item's odds to those that its popularity gives it; healthy models stay below."""

POPULAR = 0.5
"""Share of the answers from which a model is popularity and little else."""

NOTHING_ELSE = 0.9
"""Share of the answers from which a model is popularity and nothing else."""

FEW_QUERIES = 20
"""Least number of queries with a choice of answers; the overlap of fewer says nothing."""


@dataclass(frozen=True, eq=False)
class VectorScorer:
    """Scores by dot products of given vectors; satisfies ``Scorer``.

    Args:
        query_rows: ``(Q,)`` int32, ascending.
        query_vectors: ``(Q, dim)`` float32, a line for each of ``query_rows``.
        item_vectors: ``(num_item_rows, dim)`` float32.
    """

    query_rows: Rows
    query_vectors: torch.Tensor
    item_vectors: torch.Tensor

    def score(self, cases: Cases) -> torch.Tensor:
        """Return ``(len(cases), num_item_rows)`` float32."""
        places = torch.from_numpy(np.searchsorted(self.query_rows, cases.query_rows))
        return self.query_vectors[places.to(self.query_vectors.device)] @ self.item_vectors.T


class Trial:
    """A sample of a bundle's validation queries, which the checks ask again and again.

    They are not of the test, so that what a user changes after a finding is not chosen on the test.

    Args:
        retriever: The opened bundle.
        dataset: The data set that it holds.
    """

    def __init__(self, retriever: Retriever, dataset: Dataset) -> None:
        scorer = scorer_of(retriever, dataset)
        self.encoding = scorer.encoding
        self.popularity = retriever.contents.popularity
        self.num_item_rows = dataset.items.ids.num_rows
        self.query_ids = dataset.queries.ids
        self.remove_seen = not dataset.repeats
        self.offered = dataset.offered
        cases = dataset.cases(Part.VALID)
        # A query about which nothing is known gets popularity, however good the model is.
        known = np.flatnonzero(scorer.is_known(cases))
        chosen = np.sort(np.random.default_rng(0).permutation(known)[:MAX_QUERIES])
        self.cases = cases.take(chosen)
        self.features = scorer.features_of(self.cases)
        self.query_vectors = self.encoding.query_vectors(self.features, self.cases.questions)
        self.item_vectors = retriever.index.item_vectors

    @property
    def num_items(self) -> int:
        """Number of items that may be an answer."""
        return self.num_item_rows - FIRST_ROW if self.offered is None else int(self.offered.sum())

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.cases)

    def answer(self, query_vectors: torch.Tensor, item_vectors: torch.Tensor) -> Evaluation:
        """Return the first ``K`` answers of each query, and their metrics."""
        return self.evaluated(VectorScorer(self.cases.query_rows, query_vectors, item_vectors))

    def evaluated(self, scorer: Scorer) -> Evaluation:
        """Return the first ``K`` answers that ``scorer`` gives, and their metrics."""
        return evaluate(
            scorer,
            self.cases,
            (K,),
            num_item_rows=self.num_item_rows,
            remove_seen=self.remove_seen,
            allowed=self.offered,
            query_ids=self.query_ids,
        )

    def removed(self) -> tuple[Ints, Ints]:
        """Return pairs of a query's place and the row of an item that is left out of its answers."""
        if not self.remove_seen:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        pairs = distinct(keys_of(self.cases.histories, self.num_item_rows))
        queries, items = np.divmod(pairs, self.num_item_rows)
        is_item = items >= FIRST_ROW
        if self.offered is not None:
            is_item &= self.offered[items]
        return queries[is_item], items[is_item]


def check_answers(trial: Trial, item_ids: Vocabulary) -> Iterator[Finding]:
    """Yield hub items, and whether the answers are popularity's or the same for all.

    Args:
        trial: At least two queries.
        item_ids: The item vocabulary.
    """
    if trial.num_items <= K:  # everyone gets everything
        return
    answers = trial.answer(trial.query_vectors, trial.item_vectors).ranking.item_rows
    popular = trial.evaluated(Popularity(trial.popularity)).ranking.item_rows
    yield from _same(trial, answers, popular)
    yield from _hubs(trial, answers, popular, item_ids)


def overlap(first: Rows, second: Rows) -> float:
    """Return the mean share of each line of ``first``, ``(Q, k)`` rows, that its ``second`` holds."""
    is_real = first != PADDING_ROW
    is_there = (first[:, :, None] == second[:, None, :]).any(axis=2) & is_real
    return float(is_there.sum() / max(1, is_real.sum()))


def pairwise_overlap(answers: Rows) -> float:
    """Return the mean share of its ``k`` answers that a query has in common with another one.

    Over all pairs of different queries: an item in ``c`` of ``Q`` answers is common to ``c (c - 1)``
    of the ``Q (Q - 1)`` ordered pairs. Example: (1, 2), (1, 3), (1, 2) have item 1 in three, 2 in two
    and 3 in one of them: (6 + 2 + 0) / (3 * 2 * 2) = 2/3.

    Args:
        answers: ``(Q, k)`` int32 item rows, distinct in a line; ``Q`` at least 2.
    """
    counts = np.bincount(answers[answers != PADDING_ROW]).astype(np.float64)
    num_queries, k = answers.shape
    return float((counts * (counts - 1)).sum() / (num_queries * (num_queries - 1) * k))


def _same(trial: Trial, answers: Rows, popular: Rows) -> Iterator[Finding]:
    queries, _ = trial.removed()
    may_be_shown = trial.num_items - np.bincount(queries, minlength=len(trial))
    # A query that has seen most of the catalogue gets the rest of it from any model.
    has_choice = may_be_shown >= 2 * K
    if has_choice.sum() < FEW_QUERIES:
        return
    answers, popular = answers[has_choice], popular[has_choice]
    pairwise, like_popular = pairwise_overlap(answers), overlap(answers, popular)
    # The overlap of two unrelated lists.
    chance = float((K / may_be_shown[has_choice]).mean())
    share, all_of_it = (chance + (1 - chance) * level for level in (POPULAR, NOTHING_ELSE))
    facts = {"pairwise": pairwise, "popular": like_popular, "k": K}
    for kind, value in (("popularity-only", like_popular), ("same-answer-for-all", pairwise)):
        if value >= share:
            severity: Severity = "error" if value >= all_of_it else "warning"
            yield Finding.of(kind, severity, value, **facts)
            return


def _hubs(trial: Trial, answers: Rows, popular: Rows, item_ids: Vocabulary) -> Iterator[Finding]:
    num_rows, num_queries = trial.num_item_rows, len(trial)
    counts, popular_counts = (
        np.bincount(rows[rows != PADDING_ROW], minlength=num_rows) for rows in (answers, popular)
    )
    may_be_shown = np.full(num_rows, num_queries)
    may_be_shown -= np.bincount(trial.removed()[1], minlength=num_rows)
    shown_to = np.maximum(may_be_shown, 1)
    # An item is no hub if popularity shows it to everyone, or if sampling by popularity draws it as often.
    counted = trial.popularity.astype(np.float64)
    chances = counted / max(1.0, float(counted.sum()))
    drawn = np.minimum(1.0, K * np.maximum(chances, 1 / trial.num_items))
    share, justified = counts / shown_to, np.maximum(drawn, popular_counts / shown_to)
    is_hub = (may_be_shown >= num_queries / 10) & (share >= HUB_SHARE)
    is_hub &= _odds(share, shown_to) >= HUB_ODDS * _odds(justified, shown_to)
    if not is_hub.any():
        return
    row = int(np.where(is_hub, share, -1.0).argmax())
    by_popularity = np.random.default_rng(0).multinomial(K * num_queries, chances / chances.sum())
    yield Finding.of(
        "hub-item",
        "warning",
        float(share[row]),
        item=item_ids.ids_of(np.array([row]))[0],
        justified=float(justified[row]),
        skewness=pl.Series(counts[FIRST_ROW:]).skew(),
        expected_skewness=pl.Series(by_popularity[FIRST_ROW:]).skew(),
        k=K,
    )


def _odds(share: Floats, num: npt.NDArray[np.integer]) -> Floats:
    """Return the odds of shares of ``num``; half a query on either side keeps them finite."""
    return (share * num + 0.5) / ((1 - share) * num + 0.5)
