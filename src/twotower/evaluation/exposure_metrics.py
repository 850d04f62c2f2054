"""Metrics beyond accuracy: coverage, popularity bias, novelty, Gini coefficient, diversity.

Unlike a metric of accuracy, each of these describes all answers together, not one query.
"""

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch.nn import functional as F

from twotower.arrays import Floats, Ints, Rows
from twotower.errors import ArgumentError, check_least
from twotower.vocab import FIRST_ROW, PADDING_ROW

_CHUNK_CELLS = 2**23  # item rows looked up at once: 64 MiB of int64


def exposure(
    item_rows: Rows,
    k: int,
    *,
    popularity: npt.NDArray[np.floating] | npt.NDArray[np.integer],
    targets: Rows,
    item_vectors: npt.NDArray[np.floating] | None = None,
) -> dict[str, float]:
    """Return metrics beyond accuracy, of the first ``k`` items of all answers.

    The catalogue is every item row except the reserved ones, ``I`` items. An answer is the first ``k``
    positions of a line. Every shown item counts once for each answer that shows it.

    - ``coverage@k``: share of the catalogue that is in at least one answer.
      Source: Ge, Delgado-Battenfeld and Jannach, RecSys 2010, section 3 ("catalog coverage").
    - ``popularity_bias@k``: mean popularity percentile of the shown items minus that of the test items.
      The percentile of an item is ``r / I``, where ``r`` is its rank by training events, the
      fewest first; equal ones share their mean rank. Between -1 and 1: 0 if the shown items are as
      popular as the test items, above 0 if they are more popular.
      Source: Abdollahpouri et al., RMSE workshop 2019, section 3. Differs: percentiles, not counts,
      which a few items would rule, and one mean over all test items, not one a user.
    - ``novelty@k``: mean self-information of the shown items, in bits: ``-log2((n + 1) / (N + I))``,
      where ``n`` are the item's training events and ``N`` those of all items.
      Source: Vargas and Castells, RecSys 2011, section 4 ("popularity-based item novelty"), without
      rank discount. Differs: share of events, plus one an item, so that an item without any counts.
    - ``gini@k``: Gini coefficient of how often each item of the catalogue is shown: ``sum_i (2 i - I -
      1) x_i / (I sum_i x_i)``, the least shown first; 0 where all are shown equally often, ``1 - 1/I``
      where only one is. Source: Fleder and Hosanagar, Management Science 2009, section 4.
    - ``diversity@k``: 1 minus the cosine of the vectors of two items of one answer, the mean over its
      pairs, then over the answers with at least two items. A vector of zeros has cosine 0 with any.
      Source: Ziegler et al., WWW 2005, section 3.3 (intra-list similarity). Differs: a mean of
      distances, not a sum of similarities.

    Undefined metrics are left out: all but ``coverage@k`` if nothing is shown, ``popularity_bias@k`` if no
    test item is in the catalogue, ``diversity@k`` without vectors or if no answer has two items.

    Args:
        item_rows: ``(Q, R)`` int32, best first, each item once a line; reserved rows show nothing.
        k: At least 1; ``k > R`` is allowed.
        popularity: ``(num_item_rows,)`` training events of each item row, at least 0.
        targets: ``(T,)`` int32 item rows of the test, repeats included; reserved rows are left out.
        item_vectors: ``(num_item_rows, dim)`` float.

    Raises:
        ValueError: ``k`` is below 1, there is no catalogue, ``item_rows`` is not two-dimensional, or an
            item row or the vectors do not fit ``popularity``.
    """
    num_rows = len(popularity)
    check_least(1, k=k)
    if num_rows <= FIRST_ROW:
        raise ArgumentError(
            f"popularity must hold at least one item after the {FIRST_ROW} reserved rows, got "
            f"{num_rows} rows."
        )
    if item_rows.ndim != 2:
        raise ArgumentError(f"item_rows must have shape (Q, R), got {item_rows.shape}.")
    for name, rows in (("item_rows", item_rows), ("targets", targets)):
        low, high = int(rows.min(initial=0)), int(rows.max(initial=0))
        if low < 0 or high >= num_rows:
            raise ArgumentError(
                f"{name} must be in 0..{num_rows - 1}, the rows of popularity, got {low}..{high}."
            )
    if item_vectors is not None and (item_vectors.ndim != 2 or len(item_vectors) != num_rows):
        raise ArgumentError(
            f"item_vectors must have shape ({num_rows}, dim), got {item_vectors.shape}."
        )
    first = item_rows[:, :k]
    times_shown = _counts(first, num_rows)
    figures = {f"coverage@{k}": float((times_shown > 0).mean())}
    num_shown = times_shown.sum()
    if not num_shown:
        return figures
    events = popularity[FIRST_ROW:].astype(np.float64)
    times_wanted = _counts(targets, num_rows)
    if times_wanted.any():
        percentile = pl.Series(events).rank().to_numpy() / len(events)
        wanted = times_wanted @ percentile / times_wanted.sum()
        figures[f"popularity_bias@{k}"] = float(times_shown @ percentile / num_shown - wanted)
    information = -np.log2((events + 1) / (events.sum() + len(events)))
    figures[f"novelty@{k}"] = float(times_shown @ information / num_shown)
    n = len(times_shown)
    ranks = 2.0 * np.arange(1, n + 1) - n - 1
    figures[f"gini@{k}"] = float(ranks @ np.sort(times_shown) / (n * num_shown))
    if item_vectors is not None and len(distances := _distances(first, item_vectors)):
        figures[f"diversity@{k}"] = float(distances.mean())
    return figures


def _counts(rows: Rows, num_rows: int) -> Ints:
    """Return how often each item of the catalogue stands in ``rows``: ``(I,)``."""
    flat = rows.reshape(-1)
    pieces = (flat[start : start + _CHUNK_CELLS] for start in range(0, len(flat), _CHUNK_CELLS))
    counts = (np.bincount(piece, minlength=num_rows) for piece in pieces)
    return sum(counts, np.zeros(num_rows, np.int64))[FIRST_ROW:]


def _distances(rows: Rows, item_vectors: npt.NDArray[np.floating]) -> Floats:
    """Return the mean distance of the pairs of each line with at least two items."""
    # |sum of unit vectors| squared holds each pair's cosine twice, beside each vector's own square.
    unit = F.normalize(torch.from_numpy(item_vectors.astype(np.float64)), dim=1)
    squares = (unit * unit).sum(dim=1)
    rows = np.where(rows < FIRST_ROW, PADDING_ROW, rows)
    rows = rows[(rows != PADDING_ROW).sum(axis=1) > 1]
    parts = [np.zeros(0)]
    step = max(1, _CHUNK_CELLS // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        here = torch.from_numpy(rows[start : start + step].astype(np.int64))
        lengths = (here != PADDING_ROW).sum(dim=1)
        sums = F.embedding_bag(here, unit, mode="sum", padding_idx=PADDING_ROW)
        own = F.embedding_bag(here, squares[:, None], mode="sum", padding_idx=PADDING_ROW)
        cosines = ((sums * sums).sum(dim=1) - own[:, 0]) / (lengths * (lengths - 1))
        parts.append((1 - cosines).numpy())
    return np.concatenate(parts)
