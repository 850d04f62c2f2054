"""Ranking metrics, one value per query, and two metrics of labelled pairs.

Every metric of binary relevance reads the same two arrays. ``is_hit`` says for each ranked position, best
first, whether it holds a relevant item. ``num_relevant`` is the number of relevant items of each query.
The caller averages over queries (the mean of per-query values: "macro"). If fewer than ``k`` items are
ranked, the missing positions count as misses.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.arrays import Bools, Floats
from twotower.errors import ArgumentError, check_least
from twotower.registry import Registry

Counts = npt.NDArray[np.integer]
Gains = npt.NDArray[np.floating]


def hits_of(
    rankings: npt.ArrayLike, relevant: Sequence[Collection[int] | Collection[str]]
) -> tuple[Bools, Counts]:
    """Return ``is_hit`` and ``num_relevant`` of ranked ids, the input of all metrics of binary relevance.

    Args:
        rankings: ``(Q, R)`` item ids, integers or strings, best first. Positions without an item hold an
            id that no item has, such as -1.
        relevant: The relevant item ids of each of the ``Q`` queries; repeats count once.

    Returns:
        ``(Q, R)`` bool and ``(Q,)`` int64.

    Raises:
        ValueError: ``rankings`` is not a matrix, ``relevant`` has another length, or a ranking holds a
            relevant id twice.

    Example:
        >>> is_hit, num_relevant = hits_of([[7, 3, 9], [4, 7, 2]], [[9, 1], [4]])
        >>> ndcg_at_k(is_hit, num_relevant, k=3).round(4).tolist()
        [0.3066, 1.0]
    """
    ranked = np.asarray(rankings)
    if ranked.ndim != 2:
        raise ArgumentError(f"rankings must have shape (Q, R), got {ranked.shape}.")
    if len(relevant) != len(ranked):
        raise ArgumentError(
            f"relevant must hold the ids of each of the {len(ranked)} queries, got {len(relevant)}."
        )
    is_hit = np.zeros(ranked.shape, np.bool_)
    num_relevant = np.zeros(len(ranked), np.int64)
    for query, ids in enumerate(relevant):
        distinct = np.unique(np.asarray(list(ids)))
        num_relevant[query] = len(distinct)
        if len(distinct):
            is_hit[query] = np.isin(ranked[query], distinct)
        found = ranked[query][is_hit[query]]
        if len(np.unique(found)) < len(found):
            raise ArgumentError(
                f"rankings must hold each item once, got a relevant id twice for query {query}."
            )
    return is_hit, num_relevant


def hit_rate_at_k(is_hit: Bools, num_relevant: Counts, k: int) -> Floats:
    """Return 1 for each query with a relevant item among its first ``k``, else 0: ``(Q,)``.

    With one relevant item per query this equals recall; papers on sessions call it precision.

    Args:
        is_hit: ``(Q, R)`` bool, best first; a row holds each relevant item at most once.
        num_relevant: ``(Q,)`` integers of at least 1.
        k: Cut-off of at least 1; ``k > R`` is allowed.

    Raises:
        ValueError: ``k`` is below 1, the shapes differ, a query has no relevant item, or a row has
            more hits than its query has relevant items.

    Source: Deshpande and Karypis, TOIS 2004 ("hit rate"). Differs: any number of relevant items,
        of which one must be found; there each query has one.
    """
    return np.asarray(_first(is_hit, num_relevant, k).any(axis=1), np.float64)


def recall_at_k(is_hit: Bools, num_relevant: Counts, k: int) -> Floats:
    """Return the share of each query's relevant items found among its first ``k``: ``(Q,)``.

    The denominator is the number of relevant items, as in trec_eval, not ``min(k, that number)``, as
    in some libraries: a query with more than ``k`` of them cannot reach 1. Example: hits at ranks 1
    and 4 of three relevant items give recall@3 = 1/3 and recall@4 = 2/3.

    Args:
        is_hit: See ``hit_rate_at_k``.
        num_relevant: See ``hit_rate_at_k``.
        k: See ``hit_rate_at_k``.

    Raises:
        ValueError: As ``hit_rate_at_k``.

    Source: Manning, Raghavan and Schuetze, Introduction to Information Retrieval, 2008,
        section 8.3.
    """
    return np.asarray(_first(is_hit, num_relevant, k).sum(axis=1) / num_relevant)


def precision_at_k(is_hit: Bools, num_relevant: Counts, k: int) -> Floats:
    """Return the share of relevant items among each query's first ``k``: ``(Q,)``.

    The denominator is ``k`` even where fewer items were ranked. Example: hits at ranks 1 and 4 give
    precision@4 = 2/4.

    Args:
        is_hit: See ``hit_rate_at_k``.
        num_relevant: See ``hit_rate_at_k``; checked only.
        k: See ``hit_rate_at_k``.

    Raises:
        ValueError: As ``hit_rate_at_k``.

    Source: Manning, Raghavan and Schuetze, 2008, section 8.4 ("precision at k").
    """
    return np.asarray(_first(is_hit, num_relevant, k).sum(axis=1) / k)


def ndcg_at_k(is_hit: Bools, num_relevant: Counts, k: int) -> Floats:
    """Return the normalised discounted cumulative gain of binary relevance at ``k``: ``(Q,)``.

    A hit at rank ``r`` (from 1) gains ``1 / log2(r + 1)``; the sum is divided by that of an ideal
    ranking, which has ``min(num_relevant, k)`` hits at its top. Example: hits at ranks 1 and 3 of
    two relevant items give ``(1 + 1/2) / (1 + 1/log2 3) = 0.9197``.

    Args:
        is_hit: See ``hit_rate_at_k``.
        num_relevant: See ``hit_rate_at_k``.
        k: See ``hit_rate_at_k``.

    Raises:
        ValueError: As ``hit_rate_at_k``.

    Source: Jaervelin and Kekaelaeinen, TOIS 2002, section 2. Differs: their discount is ``log2(r)``
        from rank 2 on; ``log2(r + 1)`` is the one in use since Burges et al., ICML 2005.
    """
    first = _first(is_hit, num_relevant, k)
    longest = min(k, int(np.max(num_relevant, initial=1)))
    ideal = np.cumsum(1.0 / np.log2(np.arange(2, longest + 2)))
    return np.asarray(_dcg(first) / ideal[np.minimum(num_relevant, k) - 1])


def graded_ndcg_at_k(gains: Gains, ideal: Gains, k: int) -> Floats:
    """Return the normalised discounted cumulative gain of graded relevance at ``k``: ``(Q,)``.

    The gain is linear: a grade of 3 is worth three times a grade of 1. (For exponential gain, pass
    ``2 ** grade - 1`` as both gains.) An item of gain ``g`` at rank ``r`` (from 1) adds
    ``g / log2(r + 1)``; the sum is divided by that of the ``k`` largest of ``ideal``, largest first.
    Where every gain is 1 or 0 this is ``ndcg_at_k``. Example: gains 1, 0, 3 in ranked order, with the
    relevant items' gains 3, 2, 1, give ``(1 + 3/2) / (3 + 2/log2 3 + 1/2) = 0.5250`` at 3.

    Args:
        gains: ``(Q, R)`` float of at least 0, best-ranked first: the gain of the item at each position,
            0 where it is not relevant or there is none.
        ideal: ``(Q, M)`` float: the gains of all relevant items of each query, found or not, in any
            order, padded with 0; each row has one above 0.
        k: See ``hit_rate_at_k``; ``k > M`` is allowed too.

    Raises:
        ValueError: ``k`` is below 1, the shapes differ, a gain is negative or not finite, a query has
            no gain above 0, or a row has larger gains than its query has.

    Source: Jaervelin and Kekaelaeinen, TOIS 2002, section 2 (linear gain); discount as ``ndcg_at_k``.
    """
    check_least(1, k=k)
    if gains.ndim != 2 or ideal.ndim != 2 or len(gains) != len(ideal):
        raise ArgumentError(
            f"gains and ideal must have shapes (Q, R) and (Q, M), got {gains.shape} and {ideal.shape}."
        )
    for name, values in (("gains", gains), ("ideal", ideal)):
        wrong = ~((values >= 0) & (values < np.inf))  # true for NaN
        if wrong.any():
            raise ArgumentError(
                f"{name} must be finite and at least 0, got {values[wrong][0]} for query "
                f"{int(wrong.any(axis=1).argmax())}."
            )
    best = -np.sort(-np.asarray(ideal, np.float64), axis=1)
    is_empty = ~best.any(axis=1)
    if is_empty.any():
        raise ArgumentError(
            f"ideal must hold a gain above 0 for each query, got none for query "
            f"{int(is_empty.argmax())}; drop queries without relevant items first."
        )
    found = -np.sort(-np.asarray(gains, np.float64), axis=1)
    width = min(found.shape[1], best.shape[1])
    excess = (found[:, :width] > best[:, :width]).any(axis=1) | found[:, width:].any(axis=1)
    if excess.any():
        raise ArgumentError(
            "gains must be among the ideal gains of their query, got others for query "
            f"{int(excess.argmax())}; rank each item once."
        )
    return np.asarray(_dcg(gains[:, :k]) / _dcg(best[:, :k]))


def mrr_at_k(is_hit: Bools, num_relevant: Counts, k: int) -> Floats:
    """Return one over the rank of each query's first hit, 0 where none is in ``k``: ``(Q,)``.

    Example: hits at ranks 2 and 3 give mrr@3 = 1/2 and mrr@1 = 0.

    Args:
        is_hit: See ``hit_rate_at_k``.
        num_relevant: See ``hit_rate_at_k``; checked only.
        k: See ``hit_rate_at_k``.

    Raises:
        ValueError: As ``hit_rate_at_k``.

    Source: Voorhees, The TREC-8 Question Answering Track Report, 1999 (with a cut-off of 5).
    """
    first = _first(is_hit, num_relevant, k)
    if not first.shape[1]:
        return np.zeros(len(first))
    return np.where(first.any(axis=1), 1.0 / (first.argmax(axis=1) + 1), 0.0)


def map_at_k(is_hit: Bools, num_relevant: Counts, k: int) -> Floats:
    """Return the average precision at ``k`` of each query: ``(Q,)``; its mean is MAP.

    It is the sum of the precisions at the ranks of the hits within ``k``, divided by
    ``min(num_relevant, k)``, so that a perfect ranking gets 1 at any ``k``. Example: hits at ranks
    1 and 3 of three relevant items give map@3 = (1/1 + 2/3) / 3 and map@2 = (1/1) / 2.

    Args:
        is_hit: See ``hit_rate_at_k``.
        num_relevant: See ``hit_rate_at_k``.
        k: See ``hit_rate_at_k``.

    Raises:
        ValueError: As ``hit_rate_at_k``.

    Source: Manning, Raghavan and Schuetze, 2008, section 8.4. Differs: the cut-off, and with it the
        divisor, which there, and in trec_eval's ``map_cut``, is ``num_relevant`` at any ``k``.
    """
    first = _first(is_hit, num_relevant, k)
    precision = np.cumsum(first, axis=1, dtype=np.int32) / np.arange(1, first.shape[1] + 1)
    return np.asarray((precision * first).sum(axis=1) / np.minimum(num_relevant, k))


def auc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the probability that a random positive pair scores above a random negative one.

    A tie counts as half. Example: positives at 0.8 and 0.3 and negatives at 0.5 and 0.3 make four pairs,
    of which the positives win 1, 1, 0 and 0.5: the AUC is 2.5 / 4 = 0.625.

    Args:
        scores: ``(n,)`` without NaN; only their order matters.
        labels: ``(n,)`` of 0 and 1, with at least one of each.

    Raises:
        ValueError: The shapes differ, a score is NaN, a label is neither 0 nor 1, or all are equal.

    Source: Hanley and McNeil, Radiology 1982 (the area is Mann and Whitney's U, 1947, over n1 n0).
    """
    values, positive = _pairs("scores", scores, labels)
    num_positive = int(positive.sum())
    num_negative = len(values) - num_positive
    if not num_positive or not num_negative:
        raise ArgumentError(
            f"labels must hold both 0 and 1, got {num_positive} positives and {num_negative} "
            "negatives; AUC is undefined then."
        )
    ranks = pl.Series(values).rank().to_numpy()  # of equal ones the mean
    wins = float(ranks[positive].sum()) - num_positive * (num_positive + 1) / 2
    return wins / (num_positive * num_negative)


def log_loss(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the mean negative log likelihood of ``labels``, in nats.

    A logit ``z`` says that the label is 1 with probability ``sigmoid(z)``; the loss of a pair is
    ``log(1 + exp(-z))`` for label 1 and ``log(1 + exp(z))`` for label 0. Example: logits 0 and
    log 3 with labels 1 and 0 give (log 2 + log 4) / 2 = 1.0397.

    Args:
        logits: ``(n,)`` without NaN, not probabilities; an infinite one is certain.
        labels: ``(n,)`` of 0 and 1, ``n >= 1``.

    Raises:
        ValueError: The shapes differ, there is no pair, a logit is NaN, or a label is neither 0
            nor 1.

    Source: Good, Rational Decisions, 1952 (the logarithmic score).
    """
    values, positive = _pairs("logits", logits, labels)
    if not len(values):
        raise ArgumentError("logits must hold at least one pair, got 0.")
    return float(np.logaddexp(0.0, np.where(positive, -values, values)).mean())


def _dcg(gains: Gains | Bools) -> Floats:
    """Return the discounted sum of each row: ``(Q,)``."""
    discounts = 1.0 / np.log2(np.arange(2, gains.shape[1] + 2))
    # cumsum adds from left to right whatever the width, so that a perfect ranking has exactly 1
    return np.asarray(np.cumsum(gains * discounts, axis=1)[:, -1:].sum(axis=1))


def _first(is_hit: Bools, num_relevant: Counts, k: int) -> Bools:
    """Return the first ``k`` columns of ``is_hit`` after checking all three."""
    check_least(1, k=k)
    if is_hit.ndim != 2 or num_relevant.shape != is_hit.shape[:1]:
        raise ArgumentError(
            "is_hit and num_relevant must have shapes (Q, R) and (Q,), "
            f"got {is_hit.shape} and {num_relevant.shape}."
        )
    is_empty = num_relevant < 1
    if is_empty.any():
        query = is_empty.argmax()
        raise ArgumentError(
            f"num_relevant must be at least 1, got {num_relevant[query]} for query {query}; "
            "drop queries without relevant items first."
        )
    first = is_hit[:, :k]
    num_hits = first.sum(axis=1)
    is_over = num_hits > num_relevant
    if is_over.any():
        query = is_over.argmax()
        raise ArgumentError(
            f"is_hit must hold at most num_relevant hits a query, got {num_hits[query]} of "
            f"{num_relevant[query]} for query {query}; rank each item once."
        )
    return first


def _pairs(name: str, scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Bools]:
    """Return scores as float64 and labels as booleans after checking both."""
    values, truth = np.asarray(scores, np.float64), np.asarray(labels)
    if values.ndim != 1 or truth.shape != values.shape:
        raise ArgumentError(
            f"{name} and labels must have one shape (n,), got {values.shape} and {truth.shape}."
        )
    if np.isnan(values).any():
        raise ArgumentError(f"{name} must not be NaN, got NaN at {np.isnan(values).argmax()}.")
    wrong = truth[~np.isin(truth, (0, 1))]
    if len(wrong):
        raise ArgumentError(f"labels must be 0 or 1, got {wrong[0]}.")
    return values, truth.astype(np.bool_)


Metric = Callable[[Bools, Counts, int], Floats]
"""``is_hit``, ``num_relevant`` and ``k`` to a value per query; see ``hit_rate_at_k``."""


@dataclass(frozen=True)
class MetricSpec:
    """One ranking metric.

    Args:
        name: As ``training.metric`` and figures name it, before ``@k``.
        at_k: Its values.
        label: What people call it.
        label_zh: The same in Chinese.
    """

    name: str
    at_k: Metric
    label: str
    label_zh: str


METRICS = Registry(
    "metric",
    (
        MetricSpec("hit_rate", hit_rate_at_k, "hit rate", "命中率"),
        MetricSpec("ndcg", ndcg_at_k, "NDCG", "NDCG"),
        MetricSpec("recall", recall_at_k, "recall", "召回率"),
        MetricSpec("precision", precision_at_k, "precision", "精确率"),
        MetricSpec("mrr", mrr_at_k, "MRR", "MRR"),
        MetricSpec("map", map_at_k, "MAP", "MAP"),
    ),
)
"""In the order in which they are shown."""


def metric_name(metric: str) -> str:
    """Return the display name of a metric: ``NDCG@10``, ``hit rate@10``."""
    name, _, k = metric.partition("@")
    spec = METRICS.get(name)
    words = "AUC" if name == "auc" else name.replace("_", " ") if spec is None else spec.label
    return f"{words}@{k}" if k else words
