"""An index that grows while it is searched."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from twotower.histories import Histories
from twotower.index.approximate import ApproximateIndex, approximate_index
from twotower.index.base import Found, Index, Mask
from twotower.index.exact import ExactIndex
from twotower.index.lists import Lists
from twotower.index.topk import best_of
from twotower.index.two_pass import exact_index
from twotower.vocab import FIRST_ROW, PADDING_ROW

_LOG = logging.getLogger(__name__)
_TAIL = 4096
"""Rows beside the index, from which on it is built again; or a 16th of it, where that is more."""


class GrowingRows:
    """A tensor to which rows are added at its end, without copying all of it each time.

    The first rows may be those of a mapped file, which several processes share. They are copied when added
    rows are wanted behind them as one tensor, not before.

    Args:
        rows: ``(n, ...)``, the first ones.
    """

    def __init__(self, rows: Tensor) -> None:
        self._buffer = rows
        self._length = len(rows)
        self._added: list[Tensor] = []  # and not in the buffer yet

    def __len__(self) -> int:
        """Number of rows."""
        return self._length + sum(map(len, self._added))

    @property
    def rows(self) -> Tensor:
        """All rows: a view that later additions leave as it is."""
        if self._added:
            length = len(self)
            if length > len(self._buffer):
                size = length + length // 8
                grown = self._buffer.new_zeros((size, *self._buffer.shape[1:]))
                grown[: self._length] = self._buffer[: self._length]
                self._buffer = grown
            torch.cat(self._added, out=self._buffer[self._length : length])
            self._length, self._added = length, []
        return self._buffer[: self._length]

    def since(self, place: int) -> Tensor:
        """Return the rows from a place on; where these were all added, the first ones are not copied."""
        if place < self._length or not self._added:
            return self.rows[place:]
        self._added = [torch.cat(self._added)]
        return self._added[0][place - self._length :]

    def append(self, rows: Tensor) -> None:
        """Add rows at the end."""
        if len(rows):
            self._added.append(rows)


class LiveIndex(Index):
    """The index of a catalogue to which items are added, exact or not.

    Added rows are kept beside the index and scored in one product. When there are enough of them, a thread
    builds the index again, while the old one still answers. If that fails, it logs the error and tries
    again after as many more rows. An item that changes gets a new row; callers leave out the rows that are
    no longer items by ``allowed``. An approximate index keeps its lists and puts new items into them, until
    the model is trained again.

    Args:
        item_vectors: ``(num_item_rows, dim)`` float32; the reserved rows are never found.
        lists: Of these items, for an approximate index; None for an exact one.
    """

    def __init__(self, item_vectors: Tensor, lists: Lists | None = None) -> None:
        self._vectors = GrowingRows(item_vectors)
        self._index = approximate_index(item_vectors, lists)
        self._next: Future[ExactIndex] | None = None
        self._tried = len(self._index.item_vectors)  # rows of the last build, whatever became of it

    @property
    def item_vectors(self) -> Tensor:
        """Return all vectors: ``(num_item_rows, dim)``."""
        return self._vectors.rows

    @property
    def is_exact(self) -> bool:
        """Whether every answer is what scoring all items would give."""
        return not isinstance(self._index, ApproximateIndex)

    def append(self, vectors: Tensor) -> None:
        """Add rows: ``(n, dim)`` float32; the next search finds them."""
        self._vectors.append(vectors)
        self._take_the_next()
        num_rows = len(self._vectors)
        if self._next is None and num_rows - self._tried >= max(_TAIL, self._tried // 16):
            self._tried = num_rows
            thread = ThreadPoolExecutor(1, "twotower-index")
            old = self._index
            exact = partial(exact_index, reserved_rows=FIRST_ROW)
            again = old.over if isinstance(old, ApproximateIndex) else exact
            try:
                self._next = thread.submit(again, self.item_vectors)
            except RuntimeError as error:  # the system has no thread left
                _log_failed(error)
            thread.shutdown(wait=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, the reserved ones included, and width of the vectors."""
        return len(self._vectors), self._index.shape[1]

    def _answer(self, queries: Tensor, k: int, exclude: Histories, allowed: Mask | None) -> Found:
        self._take_the_next()
        index = self._index
        covered = len(index.item_vectors)
        if covered == len(self._vectors):
            return index.search(queries, k, exclude=exclude, allowed=allowed)
        skipped = covered - FIRST_ROW  # what rows in the tail are less by
        # Of the tail's reserved rows the mask says anything: they are never found.
        before, after = (None, None) if allowed is None else (allowed[:covered], allowed[skipped:])
        in_tail = exclude.item_rows >= covered
        others = np.where(in_tail, np.int32(PADDING_ROW), exclude.item_rows)
        first = index.search(queries, k, exclude=replace(exclude, item_rows=others), allowed=before)
        vectors = torch.cat([index.item_vectors[:FIRST_ROW], self._vectors.since(covered)])
        within = exclude.where(in_tail)
        within = replace(within, item_rows=within.item_rows - np.int32(skipped))
        of_tail = ExactIndex(vectors, reserved_rows=FIRST_ROW)
        tail = of_tail.search(queries, k, exclude=within, allowed=after)
        rows = np.concatenate([first.item_rows, tail.item_rows + skipped], axis=1)
        scores = np.concatenate([first.scores, tail.scores], axis=1)
        return best_of(torch.from_numpy(scores), k, FIRST_ROW, torch.from_numpy(rows))

    def _take_the_next(self) -> None:
        if self._next is not None and self._next.done():
            built, self._next = self._next, None
            if error := built.exception():
                _log_failed(error)
            else:
                self._index = built.result()


def _log_failed(error: BaseException) -> None:
    _LOG.error("the index could not be built again; the old one still answers", exc_info=error)
