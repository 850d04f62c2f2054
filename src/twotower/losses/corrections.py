"""Masks of candidates that must not count as negatives: the own item again, and known positives."""

import torch
from torch import Tensor

from twotower.losses.negatives import Candidates


def accidental_hits(candidates: Candidates, item_rows: Tensor) -> Tensor:
    """Return where each query's own item stands a second time: ``(B, N)`` bool.

    Hide them where a copy of the own item would count against it: with ``BCELoss`` and
    ``ContrastiveLoss``, and with a softmax that has no ``log_q``. A softmax with the ``log_q`` of
    ``InBatch`` or ``Mixed`` expects them (there, ``distinct=True`` is the way to be without).

    Args:
        candidates: ``N`` candidates of ``B`` queries.
        item_rows: ``(B,)`` int64 row of each query's own item.
    """
    hits = item_rows[:, None] == candidates.item_rows[None, :]
    return hits.scatter_(1, candidates.positions[:, None], False)


def known_positives(
    candidates: Candidates, known_rows: Tensor, item_rows: Tensor, num_item_rows: int
) -> Tensor:
    """Return which candidates each query is known to like, its own item apart: ``(B, N)`` bool.

    An own item that is also known (it was liked before) is hidden in none of its positions. Time
    and memory are ``O(B L + B N)``.

    Args:
        candidates: ``N`` candidates of ``B`` queries.
        known_rows: ``(B, L)`` int64 item rows, ``PADDING_ROW`` where padded; repeats are allowed.
        item_rows: ``(B,)`` int64 row of each query's own item.
        num_item_rows: Number of item rows, the reserved ones included.
    """
    num, device = len(candidates), candidates.item_rows.device
    # Each row's one column; what is no candidate, padding included, shares column num.
    column_of = torch.full((num_item_rows,), num, dtype=torch.int64, device=device)
    column_of[candidates.item_rows] = torch.arange(num, device=device)
    known = torch.zeros((len(item_rows), num + 1), dtype=torch.bool, device=device)
    known.scatter_(1, column_of[known_rows], True)
    known.scatter_(1, column_of[item_rows][:, None], False)
    # A gather: indexing a mask's columns is four times slower on a CPU.
    return known.gather(1, column_of[candidates.item_rows].expand(len(item_rows), num))
