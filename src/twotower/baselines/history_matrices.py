"""Histories as weighted rows of a sparse matrix, and co-occurrences of items, in blocks."""

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from twotower.arrays import Float32s, Floats
from twotower.data.dataset import Interactions, query_blocks
from twotower.data.mapped import BLOCK_VALUES
from twotower.histories import Histories

_BLOCK_ENTRIES = 8_000_000  # of co-occurrences held at once, about 100 MB
_DENSE_CELLS = 20_000_000  # of a matrix of items by items that is counted as a dense one
_MANY = 1 / 25  # share of filled cells above which a dense product is quicker than a sparse one
_MIRRORED_ROWS = 512  # of a square matrix that are mirrored at once
_NOTHING = 1e-30  # weights below would make float32 products denormal, and slow

Number = TypeVar("Number", np.float32, np.float64)


def query_item_matrix(
    train: Interactions,
    num_item_rows: int,
    *,
    add_up: bool = False,
    dtype: type[Number] = np.float64,  # type: ignore[assignment]  # the default of the type, too
) -> sparse.csr_array:
    """Return one weight for each query and item that have an event: sparse, queries by items.

    It is made by blocks of queries, so that beside it only one block of events is held in memory.

    Args:
        train: Events, all of them positive.
        num_item_rows: Columns of the matrix.
        add_up: Whether to sum the weights of a pair's events, instead of taking the largest. Events
            without weights weigh 1.
        dtype: Of the weights.
    """
    offsets, combine = train.offsets, np.add if add_up else np.maximum
    lengths = np.zeros(len(offsets) - 1, np.int64)
    # Room for a pair of each event; what stays empty takes no memory.
    columns, values = np.empty(len(train), np.int32), np.empty(len(train), dtype)
    end = 0
    for low, high in query_blocks(offsets, BLOCK_VALUES):
        here = slice(int(offsets[low]), int(offsets[high]))
        if here.start == here.stop:
            continue
        pairs = train.query_rows[here].astype(np.int64) * num_item_rows + train.item_rows[here]
        order = np.argsort(pairs, kind="stable")
        pairs, starts = np.unique(pairs[order], return_index=True)
        weights = np.ones(len(order))
        if train.weights is not None:
            weights = train.weights[here][order].astype(np.float64)
        queries, items = np.divmod(pairs, num_item_rows)
        lengths[low:high] = np.bincount(queries - low, minlength=high - low)
        filled = slice(end, end + len(pairs))
        columns[filled], values[filled] = items, combine.reduceat(weights, starts)
        end = filled.stop
    ends = np.concatenate([[0], np.cumsum(lengths)])
    if ends[-1] <= np.iinfo(np.int32).max:
        ends = ends.astype(np.int32)  # scipy holds the columns in the same type
    return sparse.csr_array(
        (values[:end], columns[:end], ends), shape=(len(lengths), num_item_rows)
    )


def decayed_histories(
    histories: Histories, num_item_rows: int, half_life: float | None
) -> sparse.csr_array:
    """Return each history as a row: the sum over its events of ``0.5 ** (age / half_life)``.

    Args:
        histories: ``n`` of them. The age of an event is the number of later ones in its history.
        num_item_rows: Columns of the matrix.
        half_life: Number of events after which an event counts half, above 0; None weighs all alike.

    Returns:
        ``(n, num_item_rows)`` float32, sparse.
    """
    owners = histories.owners
    weights = np.ones(len(owners))
    if half_life is not None:
        ages = histories.offsets[1:][owners] - 1 - np.arange(len(owners))
        weights = 0.5 ** (ages / half_life)
    kept = weights > _NOTHING
    return sparse.csr_array(
        (weights[kept].astype(np.float32), (owners[kept], histories.item_rows[kept])),
        shape=(len(histories), num_item_rows),
    )


def product(history: sparse.csr_array, factor: Float32s) -> Float32s:
    """Return ``history @ factor``, computed dense or sparse, whichever is faster: ``(n, m)`` float32.

    Args:
        history: ``(n, items)`` float32, sparse.
        factor: ``(items, m)``.
    """
    if history.nnz > _MANY * history.shape[0] * history.shape[1]:
        return (torch.from_numpy(history.toarray()) @ torch.from_numpy(factor)).numpy()
    return np.asarray(history @ factor)


def together(matrix: sparse.csr_array) -> Iterator[tuple[int, sparse.csr_array]]:
    """Yield the first item of each block and the dot products of its columns with all columns."""
    by_item = matrix.T.tocsr()
    found = np.diff(matrix.indptr)[by_item.indices]  # items of the query, per entry
    work = np.diff(np.concatenate([[0], np.cumsum(found)])[by_item.indptr])
    for first, last in _blocks(np.minimum(work, matrix.shape[1])):
        yield first, by_item[first:last] @ matrix


def close_together(
    train: Interactions, num_item_rows: int, closeness: Floats
) -> Iterator[tuple[int, sparse.csr_array]]:
    """Yield the first item of each block and the closeness of its items to all items.

    The closeness of two items is the sum, over the ordered pairs of their events in one query that are
    ``d`` positions apart, of ``closeness[d - 1]`` times both weights.

    Args:
        train: Events, all of them positive.
        num_item_rows: Rows and columns of the whole.
        closeness: ``(reach,)``; pairs further apart than ``reach`` do not count.
    """
    if num_item_rows**2 <= _DENSE_CELLS:
        yield 0, sparse.csr_array(close_matrix(train, num_item_rows, closeness, np.float64))
        return
    reach = len(closeness)
    distances = np.concatenate([np.arange(-reach, 0), np.arange(1, reach + 1)])
    closeness = np.concatenate([closeness[::-1], closeness])
    weights = np.ones(len(train)) if train.weights is None else train.weights.astype(np.float64)
    events = np.argsort(train.item_rows, kind="stable")  # by item
    counts = np.bincount(train.item_rows, minlength=num_item_rows)
    ends = np.cumsum(counts)
    piece = max(1, _BLOCK_ENTRIES // len(distances))
    for first, last in _blocks(counts * len(distances)):
        shape = (last - first, num_item_rows)
        block = sparse.csr_array(shape)
        for start in range(ends[first] - counts[first], ends[last - 1], piece):
            here = events[start : min(start + piece, ends[last - 1])]
            there = here[:, None] + distances  # (events, 2 reach)
            query_rows = train.query_rows[here]
            inside = (there >= train.offsets[query_rows][:, None]) & (
                there < train.offsets[query_rows + 1][:, None]
            )
            event, distance = inside.nonzero()
            other = there[inside]
            values = weights[here[event]] * weights[other] * closeness[distance]
            cells = (train.item_rows[here[event]] - first, train.item_rows[other])
            block = block + sparse.csr_array((values, cells), shape=shape)
        yield first, block


def close_matrix(
    train: Interactions,
    num_item_rows: int,
    closeness: Floats,
    dtype: type[Number],
) -> npt.NDArray[Number]:
    """Return what ``close_together`` yields, as one dense matrix of ``dtype``."""
    matrix = np.zeros((num_item_rows, num_item_rows), dtype)
    cells = matrix.reshape(-1)
    rows = train.item_rows.astype(np.int64)
    for distance, close in enumerate(closeness, 1):
        pair = train.query_rows[distance:] == train.query_rows[:-distance]
        if not pair.any():
            break
        values = np.full(len(pair), close, dtype)
        if train.weights is not None:
            values = (values * train.weights[distance:] * train.weights[:-distance]).astype(dtype)
        np.add.at(cells, (rows[:-distance] * num_item_rows + rows[distance:])[pair], values[pair])
    for start in range(0, num_item_rows, _MIRRORED_ROWS):  # the pairs the other way round
        here = slice(start, start + _MIRRORED_ROWS)
        both = matrix[here, start:] + matrix[start:, here].T
        matrix[here, start:], matrix[start:, here] = both, both.T
    return matrix


def _blocks(costs: npt.NDArray[np.integer]) -> Iterator[tuple[int, int]]:
    """Yield ranges of items whose costs sum to at most a block's, or that are one item."""
    total = np.concatenate([[0], np.cumsum(costs, dtype=np.int64)])
    first = 0
    while first < len(costs):
        last = int(np.searchsorted(total, total[first] + _BLOCK_ENTRIES, side="right")) - 1
        yield first, max(last, first + 1)
        first = max(last, first + 1)
