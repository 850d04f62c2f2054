"""Which candidates must not count as negatives: the own item again, and known positives.

Both are given as ``(B, H)`` places among the candidates, as every loss takes them under ``hidden``:
a mask of all ``B x N`` pairs would be larger than all else that a step holds. A query with fewer than
``H`` repeats the place of its own item, which is never hidden.
"""

import torch
from torch import Tensor

from twotower.errors import ArgumentError
from twotower.losses.candidates import Candidates
from twotower.vocab import PADDING_ROW

# A power of two. A table of so many rows stays in a cache; to clear one of a large catalogue in each
# step would take longer than all the rest (measured: 22 ms at 5 million rows, 1 with these buckets).
MAX_BUCKETS = 2**18


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

    An own item that is also known (it was liked before) is hidden in none of its places.

    Args:
        candidates: ``N`` candidates of ``B`` queries.
        known_rows: ``(B, L)`` int64 item rows, ``PADDING_ROW`` where padded; repeats are allowed.
        item_rows: ``(B,)`` int64 row of each query's own item.
        num_item_rows: Number of item rows, the reserved ones included.
    """
    known_rows = torch.where(known_rows == item_rows[:, None], PADDING_ROW, known_rows)
    return _places_of(known_rows, candidates, num_item_rows)


def masked_places(mask: Tensor, candidates: Candidates) -> Tensor:
    """Return the places that a mask hides, as every loss reads them: ``(B, H)`` int64.

    Args:
        mask: ``(B, N)`` bool, true where a candidate is no negative of a query. The own item of a query
            stays its positive, whatever the mask says of it.
        candidates: ``N`` candidates of ``B`` queries.

    Raises:
        ValueError: The mask has another shape.
    """
    positions, shape = candidates.positions, (len(candidates.positions), len(candidates))
    if mask.shape != shape:
        raise ArgumentError(f"a mask as hidden must be {shape}, got {tuple(mask.shape)}.")
    counts = mask.sum(1)
    queries, places = mask.nonzero(as_tuple=True)
    hidden = positions[:, None].repeat(1, int(counts.max()) if len(counts) else 0)
    hidden[queries, _ranks(counts)] = places
    return hidden


def _places_of(rows: Tensor, candidates: Candidates, num_item_rows: int) -> Tensor:
    """Return the places of all copies of ``(B, L)`` rows, ``(B, H)`` int64; absent ones are the own.

    ``H`` is ``L`` where the candidates are distinct and in order, as most samplers give them; else what
    the query with the most has.
    """
    own, given = candidates.positions[:, None], candidates.item_rows
    if bool((given.diff() > 0).all()):
        places = _look_up(rows, given, num_item_rows)
        return torch.where(places < 0, own, places)
    ordered, order = given.sort(stable=True)
    distinct, copies = torch.unique_consecutive(ordered, return_counts=True)
    starts = copies.cumsum(0) - copies
    found = _look_up(rows, distinct, num_item_rows)
    queries, columns = (found >= 0).nonzero(as_tuple=True)
    found = found[queries, columns]
    starts, copies = starts[found], copies[found]
    queries = queries.repeat_interleave(copies)
    counts = torch.bincount(queries, minlength=len(rows))
    hidden = own.repeat(1, int(counts.max()))
    hidden[queries, _ranks(counts)] = order[starts.repeat_interleave(copies) + _ranks(copies)]
    return hidden


def _look_up(rows: Tensor, distinct: Tensor, num_item_rows: int) -> Tensor:
    """Return where each of ``rows`` is in ascending ``distinct``, -1 where absent: int64 of their shape.

    A search for each takes ten times as long as a table does.
    """
    if num_item_rows <= MAX_BUCKETS:
        place_of = torch.full((num_item_rows,), -1, dtype=torch.int64, device=rows.device)
        place_of[distinct] = torch.arange(len(distinct), device=rows.device)
        return place_of[rows]
    one_of = torch.full((MAX_BUCKETS,), -1, dtype=torch.int64, device=rows.device)
    one_of[distinct & (MAX_BUCKETS - 1)] = torch.arange(len(distinct), device=rows.device)
    found = one_of[rows & (MAX_BUCKETS - 1)]
    # A bucket names one of those in it: whoever is not that one may be another, or absent.
    unsure = ((found >= 0) & (distinct[found] != rows)).nonzero(as_tuple=True)
    nearest = torch.searchsorted(distinct, rows[unsure]).clamp_(max=len(distinct) - 1)
    found[unsure] = torch.where(distinct[nearest] == rows[unsure], nearest, -1)
    return found


def _ranks(counts: Tensor) -> Tensor:
    """Return 0, 1, ... ``counts[0]`` of them, then again 0, 1, ... for the next: ``(sum,)`` int64."""
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.arange(len(starts), device=counts.device) - starts
