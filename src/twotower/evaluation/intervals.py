"""Bootstrap intervals of means over queries, and sentences about them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.arrays import Floats
from twotower.errors import ArgumentError, check_least

LEVEL = 0.95
"""Share of the intervals that would contain the true mean, if the queries were sampled again and again."""

_BLOCK = 2_000_000  # drawn positions held at once


@dataclass(frozen=True)
class Interval:
    """A mean over queries with its confidence interval.

    Args:
        value: The mean.
        low: The lower end.
        high: The upper end.
    """

    value: float
    low: float
    high: float

    def as_json(self) -> list[float]:
        """Return ``[value, low, high]``."""
        return [self.value, self.low, self.high]


def mean_intervals(
    values: Mapping[str, Floats],
    *,
    owners: npt.NDArray[np.integer] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the mean of each metric with the 95 % interval of its percentile bootstrap.

    Each of the ``resamples`` draws as many queries as there are, with replacement, the same ones for every
    metric. The ends are the 2.5th and the 97.5th percentile of the means. If all values are equal, all
    resamples are equal, too, but the mean is not certain: all that is known is that the share of queries
    with another value is below ``1 - 0.025 ** (1 / Q)``. The ends are then the means that such a share
    of worst values, or of best values, would give.

    Args:
        values: Name to ``(Q,)`` float64 between 0 and 1, one value per query; all of one length.
        owners: ``(Q,)`` int, the query of each value, if some queries have several values. These are drawn
            together, and the mean is over values. None means one value per query.
        resamples: Number of resamples, at least 2.
        seed: Seed of the draws.

    Raises:
        ValueError: There is no query, lengths differ, or ``resamples`` is below 2.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3 (percentile
        interval); Clopper and Pearson, Biometrika 1934 (exact bound where nothing was counted).
    """
    return _intervals(values, 0.0, owners, None, resamples, seed)


def difference_intervals(
    ours: Mapping[str, Floats],
    theirs: Mapping[str, Floats],
    *,
    owners: npt.NDArray[np.integer] | None = None,
    weights: Floats | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the mean of ``ours - theirs`` of each metric, paired by query, with its 95 % interval.

    Args:
        ours: As ``values`` of ``mean_intervals``.
        theirs: The same names, the same queries in the same order.
        owners: See ``mean_intervals``.
        weights: ``(Q,)`` float64, at least 0, with which means count each query, such as ``Cases.weights``.
            Without them, or if all are 0, all queries count alike. They must be None with ``owners``.
        resamples: See ``mean_intervals``.
        seed: See ``mean_intervals``.

    Raises:
        ValueError: The names differ, weights are of other queries or beside owners, or as
            ``mean_intervals``.

    Source: Sakai, SIGIR 2006, section 3 (the bootstrap, paired by query).
    """
    if ours.keys() != theirs.keys():
        raise ArgumentError(
            f"ours and theirs must have the same names, got {sorted(ours)} and {sorted(theirs)}."
        )
    for name, values in ours.items():
        if values.shape != theirs[name].shape:
            raise ArgumentError(
                "ours and theirs must be of the same queries, got "
                f"{len(values)} and {len(theirs[name])} for {name!r}."
            )
    pairs = {name: values - theirs[name] for name, values in ours.items()}
    if weights is not None:
        if owners is not None:
            raise ArgumentError("weights must be None with owners; pass one of them.")
        if any(len(values) != len(weights) for values in pairs.values()):
            lengths = sorted({len(values) for values in pairs.values()})
            raise ArgumentError(
                f"weights must be of the same queries, got {len(weights)} for {lengths}."
            )
        counts = weights > 0
        # The others change no mean, and a resample of them alone would have none.
        weights = weights[counts] if counts.any() else None
        if weights is not None:
            pairs = {name: values[counts] for name, values in pairs.items()}
    return _intervals(pairs, -1.0, owners, weights, resamples, seed)


def verdict(name: str, metric: str, difference: Interval) -> str:
    """Describe a paired difference, as a sentence without its subject and full stop.

    Example: beats ItemKNN by 0.021 NDCG@10 (95 % interval 0.015 to 0.027). Numbers have three decimals, and
    more if the interval excludes 0 but would seem to touch it.

    Args:
        name: Display name of the other method.
        metric: Display name of the metric.
        difference: The model's mean minus the other's.
    """
    value, low, high = difference.value, difference.low, difference.high
    if low <= 0 <= high:
        return (
            f"cannot be told apart from {name}: a difference of {value:+.3f} {metric} "
            f"(95 % interval {low:+.3f} to {high:+.3f})"
        )
    won, least, most = ("beats", low, high) if low > 0 else ("loses to", -high, -low)
    digits = digits_of(least)
    return (
        f"{won} {name} by {abs(value):.{digits}f} {metric} "
        f"(95 % interval {least:.{digits}f} to {most:.{digits}f})"
    )


def digits_of(least: float) -> int:
    """Return the number of decimals for a difference whose interval excludes 0.

    Three, or more if the end next to 0 would be rounded to 0. Example: 4 for 0.0004, 3 for 0.0005.

    Args:
        least: The absolute value of the end next to 0, above 0.
    """
    return max(3, math.ceil(-math.log10(2 * least)))  # half a unit of the last is at most ``least``


def _intervals(
    values: Mapping[str, Floats],
    least: float,
    owners: npt.NDArray[np.integer] | None,
    weights: Floats | None,
    resamples: int,
    seed: int,
) -> dict[str, Interval]:
    """Return the intervals of means of values within ``least`` and 1, by weights above 0."""
    check_least(2, resamples=resamples)
    lengths = {len(column) for column in values.values()}
    if len(lengths) > 1:
        raise ArgumentError(
            f"values must all be of the same queries, got lengths {sorted(lengths)}."
        )
    if not values:
        return {}
    if not lengths.pop():
        raise ArgumentError("values must hold at least one query, got 0.")
    table = np.stack(list(values.values()), axis=1)  # (Q, M)
    counts: npt.NDArray[Any] | None = weights
    if weights is not None:
        table = table * weights[:, None]
    elif owners is not None:
        _, place, counts = np.unique(owners, return_inverse=True, return_counts=True)
        sums = np.zeros((len(counts), table.shape[1]))
        np.add.at(sums, place, table)
        table = sums
    num_queries = len(table)
    tail = (1 - LEVEL) / 2
    ends = np.quantile(_resampled(table, counts, resamples, seed), (tail, 1 - tail), axis=0)
    unseen = 1 - tail ** (1 / num_queries)
    if weights is not None:  # the queries with another value may be those that count most
        unseen = min(1.0, unseen * float(weights.max() / weights.mean()))
    result = {}
    for (name, column), (low, high) in zip(values.items(), ends.T, strict=True):
        mean = np.average(column, weights=weights)
        if np.ptp(column) == 0:
            low, high = mean - unseen * (mean - least), mean + unseen * (1 - mean)
        result[name] = Interval(float(mean), float(low), float(high))
    return result


def _resampled(table: Floats, counts: npt.NDArray[Any] | None, resamples: int, seed: int) -> Floats:
    """Return the means of each resample: ``(resamples, M)``.

    Args:
        table: ``(Q, M)`` the sum of each query's values, by their weights.
        counts: ``(Q,)`` the sum of these weights, or how many values there are; None is 1 each.
        resamples: How many.
        seed: Of the draws.
    """
    num_queries = len(table)
    block = max(1, _BLOCK // num_queries)
    if resamples <= block:
        drawn = iter([_draws_in_one(num_queries, resamples, seed)])
    else:
        rng = np.random.default_rng(seed)
        sizes = (min(block, resamples - start) for start in range(0, resamples, block))
        drawn = (_draws(rng, num_queries, size) for size in sizes)
    if counts is None:
        return np.concatenate([draws @ table / num_queries for draws in drawn])
    return np.concatenate([draws @ table / (draws @ counts)[:, None] for draws in drawn])


@lru_cache(maxsize=1)
def _draws_in_one(num_queries: int, resamples: int, seed: int) -> Floats:
    """Return ``_draws`` of one block, kept for the next table of as many queries: often the same ones."""
    return _draws(np.random.default_rng(seed), num_queries, resamples)


def _draws(rng: np.random.Generator, num_queries: int, size: int) -> Floats:
    """Return how often each query is drawn in each resample: ``(size, num_queries)``."""
    drawn = rng.integers(num_queries, size=(size, num_queries))
    drawn += np.arange(size)[:, None] * num_queries
    counts = np.bincount(drawn.ravel(), minlength=size * num_queries)
    return counts.reshape(size, -1).astype(np.float64)
