"""Which candidates must not count as negatives: the own item again, and known positives.

Both are given as ``(B, H)`` places among the candidates, as every loss takes them under ``hidden``:
a mask of all ``B x N`` pairs would be larger than all else that a step holds. A query with fewer than
``H`` repeats the place of its own item, which is never hidden.
"""

import torch
from torch import Tensor

from twotower.losses.negatives import Candidates


def accidental_hits(candidates: Candidates, item_rows: Tensor, num_item_rows: int) -> Tensor:
    """Return where each query's own item stands a second time: ``(B, H)`` int64.

    Hide them where a copy of the own item would count against it: in losses of pairs, and in a
    softmax that has no ``log_q``. A softmax with the ``log_q`` of ``InBatch`` or ``Mixed`` expects them
    (there, ``distinct=True`` is the way to be without).

    Args:
        candidates: ``N`` candidates of ``B`` queries.
        item_rows: ``(B,)`` int64 row of each query's own item.
        num_item_rows: Number of item rows, the reserved ones included.
    """
    return _places_of(item_rows[:, None], candidates, num_item_rows)


def known_positives(
    candidates: Candidates, known_rows: Tensor, item_rows: Tensor, num_item_rows: int
) -> Tensor:
    """Return where the items stand that each query is known to like: ``(B, H)`` int64.

    An own item that is also known (it was liked before) is hidden in none of its places. ``H`` is
    ``L`` where each item stands once among the candidates.

    Args:
        candidates: ``N`` candidates of ``B`` queries.
        known_rows: ``(B, L)`` int64 item rows, ``PADDING_ROW`` where padded; repeats are allowed.
        item_rows: ``(B,)`` int64 row of each query's own item.
        num_item_rows: Number of item rows, the reserved ones included.
    """
    places = _places_of(known_rows, candidates, num_item_rows)
    is_own = candidates.item_rows[places] == item_rows[:, None]
    return torch.where(is_own, candidates.positions[:, None], places)


def _places_of(rows: Tensor, candidates: Candidates, num_item_rows: int) -> Tensor:
    """Return the places of all copies of ``(B, L)`` rows, ``(B, L * copies)``; absent ones are the own."""
    own, given = candidates.positions[:, None], candidates.item_rows
    if bool((given.diff() > 0).all()):  # distinct and in order, as most samplers give them
        place_of = torch.full((num_item_rows,), -1, dtype=torch.int64, device=given.device)
        place_of[given] = torch.arange(len(given), device=given.device)
        places = place_of[rows]
        return torch.where(places < 0, own, places)
    counts = torch.bincount(given, minlength=num_item_rows)
    order = given.argsort(stable=True)
    starts, copies = (counts.cumsum(0) - counts)[rows], counts[rows]  # (B, L)
    parts = [
        torch.where(copy < copies, order[(starts + copy).clamp(max=len(order) - 1)], own)
        for copy in range(int(counts.max()))
    ]
    return torch.cat(parts, dim=1)
