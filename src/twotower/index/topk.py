"""The k best of a matrix of scores, equal scores ordered by row."""

import numpy as np
import torch
from torch import Tensor

from twotower.histories import Histories
from twotower.index.base import Found, Mask, filler_of, nothing_found

_BLOCK = 256
"""Columns of which only the largest score is looked at first."""
_BLOCKED = 8
"""From so many times the columns that are then looked at, blocks are quicker."""


def best_of_scores(
    scores: Tensor, k: int, exclude: Histories | None, allowed: Mask | None, *, reserved_rows: int
) -> Found:
    """Return the best of ``(Q, num_item_rows)`` scores, which are overwritten; see ``Index.search``."""
    scores[:, :reserved_rows] = -torch.inf
    if allowed is not None:
        scores.masked_fill_(torch.from_numpy(~allowed).to(scores.device), -torch.inf)
    if exclude is not None:
        owner = torch.from_numpy(exclude.owners)
        scores[owner, torch.from_numpy(exclude.item_rows.astype(np.int64))] = -torch.inf
    return best_of(scores, k, reserved_rows)


def best_of(scores: Tensor, k: int, reserved_rows: int, rows: Tensor | None = None) -> Found:
    """Return the best of ``(Q, n)`` scores, none of which is ``-inf`` unless it is no item's.

    Args:
        scores: Of the items.
        k: At least 1.
        reserved_rows: As of ``ExactIndex``.
        rows: ``(Q, n)`` int64 rows of the items, those of equal scores in ascending order; None where they
            are the columns.
    """
    found = nothing_found(len(scores), k, reserved_rows)
    if scores.shape[1]:
        values, columns = top_columns(scores, min(k, scores.shape[1]))
        best = columns if rows is None else rows.gather(1, columns)
        width, filler = values.shape[1], filler_of(reserved_rows)
        found.item_rows[:, :width] = torch.where(values == -torch.inf, filler, best).cpu().numpy()
        found.scores[:, :width] = values.cpu().numpy()
    return found


def top_columns(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest scores of each line and their columns, equal ones by column.

    ``torch.topk`` leaves open which of several equal scores it takes, and in which order; so that
    one model has one ranking, the lower column comes first here.

    Args:
        scores: ``(Q, N)`` float without NaN.
        k: At least 1, at most ``N``.

    Returns:
        ``(Q, k)`` values, largest first, and ``(Q, k)`` int64 columns.
    """
    if scores.device.type == "cpu" and scores.shape[1] >= _BLOCKED * k * _BLOCK:
        promising = _promising(scores, k)
        values, places = top_columns(scores.gather(1, promising), k)
        return values, promising.gather(1, places)
    values, columns = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    last = values[:, k - 1]
    columns = columns[:, :k]
    if values.shape[1] > k:
        # Equal scores inside and outside of the top: which of them are in is decided by column.
        tied = (values[:, k] == last) & (last > -torch.inf)
        if tied.any():
            columns = columns.clone()
            columns[tied] = _first_of_the_tied(scores[tied], last[tied, None], k)
    columns = columns.sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _promising(scores: Tensor, k: int) -> Tensor:
    """Return the columns of the ``k`` blocks with the largest scores, and of the rest after the last block.

    The ``k`` best are among them, with equal scores by column: a block with a larger score than the last of
    these has one of the best, and of blocks with equal ones the first are taken.

    Args:
        scores: ``(Q, N)`` with at least ``k`` blocks.
        k: At least 1.

    Returns:
        ``(Q, m)`` int64, ascending.
    """
    num_blocks = scores.shape[1] // _BLOCK
    whole = num_blocks * _BLOCK
    largest = scores[:, :whole].view(len(scores), num_blocks, _BLOCK).amax(dim=2)
    blocks = top_columns(largest, k)[1].sort(dim=1).values
    inside = (blocks[:, :, None] * _BLOCK + torch.arange(_BLOCK)).flatten(1)
    rest = torch.arange(whole, scores.shape[1]).expand(len(scores), -1)
    return torch.cat([inside, rest], dim=1)


def _first_of_the_tied(scores: Tensor, last: Tensor, k: int) -> Tensor:
    """Return the columns above ``last`` and the first of those equal to it, ``k`` in all."""
    above, equal = scores > last, scores == last
    wanted = k - above.sum(dim=1, keepdim=True)
    taken = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= wanted))
    return taken.nonzero()[:, 1].view(len(scores), k)
