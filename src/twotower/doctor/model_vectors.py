"""The vectors of a model: whether they have collapsed, and whether their length follows popularity."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.arrays import Float32s, Floats
from twotower.doctor.findings import Finding, Severity
from twotower.errors import ArgumentError

ONE_LINE = 2.0
"""Effective rank below which all vectors lie on about one line, so that there is only one ranking."""

FEW_DIRECTIONS = 0.1
"""Share of the directions that there could be, as many as the width or as there are vectors, below
which most of what the width costs is wasted."""

SAME_POINT = -0.05
"""Uniformity above which vectors are one point with noise: a mean cosine of about 0.99 or more."""

ALIKE = -0.5
"""Uniformity above which vectors have most in common: a mean cosine of about 0.87 or more."""

GOES_WITH = 0.8
"""Rank correlation from which length says little but popularity: two thirds of its variance."""

EQUAL_NORMS = 1e-3
"""Spread of the norms relative to their mean, below which they differ by rounding only."""

_MOST_VECTORS = 20_000
_MOST_PAIRED = 1_000


def effective_rank(vectors: Float32s) -> float:
    """Return in how many directions the vectors spread: between 1 and ``min(n, dim)``.

    The exponential of the entropy of the singular values, each taken as a share of their sum. Not
    centred: vectors that all are the same have rank 1. Example: the lines (3, 0), (0, 3) have two
    equal singular values and rank 2; (4, 0), (0, 1) have shares .8, .2 and rank exp(.5004) = 1.649.

    Args:
        vectors: ``(n, dim)`` float, finite, not all zero.

    Raises:
        ValueError: There is no vector that is not zero.

    Source: Roy and Vetterli, EUSIPCO 2007, section 3.
    """
    table = vectors.astype(np.float64)
    # The (dim, dim) product holds the squares, however many vectors there are.
    squares = np.linalg.eigvalsh(table.T @ table)
    values = np.sqrt(np.maximum(squares, 0.0))
    total = values.sum()
    if not total > 0:
        raise ArgumentError("vectors must hold one that is not zero, got none.")
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def uniformity(vectors: Float32s) -> float:
    """Return how evenly directions cover the sphere: 0 where all are the same, down to about -4.

    The log of the mean of ``exp(-2 |x - y|^2)`` over all pairs of different vectors, each scaled to
    length 1. Example: of (1, 0), (5, 0), (0, 2) one pair is the same and two are at a squared
    distance of 2, so the value is log((1 + 2 exp(-4)) / 3) = -1.0627.

    Args:
        vectors: ``(n, dim)`` float, finite; zero vectors have no direction and are left out.

    Raises:
        ValueError: There are fewer than two vectors with a direction.

    Source: Wang and Isola, ICML 2020, section 4.1.2 (``t = 2``).
    """
    table = vectors.astype(np.float64)
    norms = np.linalg.norm(table, axis=1)
    table = table[norms > 0] / norms[norms > 0, None]
    if len(table) < 2:
        raise ArgumentError(f"vectors must hold two that are not zero, got {len(table)}.")
    distances = 2 - 2 * (table @ table.T)  # squared, (n, n)
    upper = distances[np.triu_indices(len(table), 1)]
    return float(np.log(np.exp(-2 * np.maximum(upper, 0.0)).mean()))


def check_item_vectors(vectors: Float32s, counts: Float32s) -> Iterator[Finding]:
    """Yield whether the vectors of the items that training saw have collapsed or follow popularity.

    Args:
        vectors: ``(I, dim)`` float32.
        counts: ``(I,)`` training events of each item.

    Raises:
        ValueError: A vector that training saw is not finite.
    """
    seen = counts > 0
    vectors, counts = vectors[seen], counts[seen]
    yield from _collapse(vectors, "item", "warning")
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if len(norms) > 2 and norms.std() > EQUAL_NORMS * norms.mean() and np.ptp(counts) > 0:
        correlation = float(np.corrcoef(_ranks(norms), _ranks(counts))[0, 1])
        if correlation >= GOES_WITH:
            yield Finding.of("norm-follows-popularity", "info", correlation, items=len(norms))


def check_query_vectors(vectors: Float32s) -> Iterator[Finding]:
    """Return whether the vectors of queries have collapsed.

    Few directions are only noted, above one line: queries may well differ in few ways.

    Args:
        vectors: ``(Q, dim)`` float32.

    Raises:
        ValueError: A vector is not finite.
    """
    return _collapse(vectors, "query", "info")


def _collapse(vectors: Float32s, side: str, above_line: Severity) -> Iterator[Finding]:
    """Yield whether the vectors of a side have few directions, or are all alike.

    Args:
        vectors: ``(n, dim)`` float32.
        side: ``item`` or ``query``.
        above_line: How severe few directions are, if they are more than one line; that is an error.
    """
    is_finite = np.isfinite(vectors).all(axis=1)
    if not is_finite.all():
        raise ArgumentError(
            f"vectors must be finite, got NaN or infinity in line {int(is_finite.argmin())}; look for "
            "a diverged training or an infinite feature."
        )
    rng = np.random.default_rng(0)
    vectors = vectors[np.linalg.norm(vectors, axis=1) > 0]
    if len(vectors) < 2:
        return
    most = min(vectors.shape)
    rank = effective_rank(rng.permutation(vectors)[:_MOST_VECTORS])
    severity: Severity = "error" if rank < ONE_LINE else above_line
    if most > ONE_LINE and rank < max(ONE_LINE, FEW_DIRECTIONS * most):
        facts = {"dim": vectors.shape[1], "vectors": len(vectors)}
        yield Finding.of(f"{side}-vectors-few-directions", severity, rank, **facts)
    value = uniformity(rng.permutation(vectors)[:_MOST_PAIRED])
    if value > ALIKE:
        severity = "error" if value > SAME_POINT else "warning"
        yield Finding.of(f"{side}-vectors-alike", severity, value, vectors=len(vectors))


def _ranks(values: npt.NDArray[Any]) -> Floats:
    return pl.Series(values).rank().to_numpy()
