"""Pairs of a batch, the candidates that they are scored against, and which of these are no negatives.

What must not count as a negative, the own item again and known positives, is given as ``(B, H)`` places
among the candidates: a mask of all ``B x N`` pairs would be larger than all else that a step holds. A
query with fewer than ``H`` repeats the place of its own item, which is never hidden.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from twotower.errors import ArgumentError
from twotower.vocab import PADDING_ROW

# A power of two. A table of so many rows stays in a cache; to clear one of a large catalogue in each
# step would take longer than all the rest (measured: 22 ms at 5 million rows, 1 with these buckets).
MAX_BUCKETS = 2**18


@dataclass(frozen=True, eq=False)
class Pairs:
    """The positive pairs of a batch, for which a sampler finds negatives.

    Args:
        item_rows: ``(B,)`` int64 row of each query's own item.
        query_rows: ``(B,)`` int64 row of each query, or None if unknown.
        impression_rows: ``(B, M)`` int64 items that were shown with the own item and not chosen,
            ``PADDING_ROW`` where padded; None without such a column.
    """

    item_rows: Tensor
    query_rows: Tensor | None = None
    impression_rows: Tensor | None = None

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.item_rows)


@dataclass(frozen=True, eq=False)
class Candidates:
    """The items that a batch of ``B`` queries is scored against.

    Args:
        item_rows: ``(N,)`` int64.
        positions: ``(B,)`` int64 in ``0..N-1``: where each query's own item stands.
        log_q: ``(N,)`` or ``(B, N)`` float32 natural log of the probability, or of the expected
            number of times, that the sampler proposes the item, up to one shared constant. None
            where that is equal for all. Beside ``columns``, ``(N,)`` or ``(B, n)``.
        never: ``(N,)`` bool, candidates that are no query's negative, since they are here only as the
            own item of some query. None if all can be negatives.
        columns: ``(B, n)`` int64 places in ``0..N-1``: the candidates of each query, its own item first.
            A query with fewer candidates repeats the place of its own item. None if all queries share
            all candidates.
        stored: ``(M, d)`` float vectors of the last ``M`` candidates, which were encoded in earlier
            batches; None if all candidates have to be encoded.
        fresh_share: ``(N - M,)`` float32 in (0, 1], given with ``stored``: how often each of the other
            candidates is encoded, as a share of the times that it is a candidate.
        query_rows: ``(B,)`` int64 row of each query, for a loss that also compares items with queries.
        query_log_q: ``(B,)`` float32 the same as ``log_q`` for the queries of the batch.
    """

    item_rows: Tensor
    positions: Tensor
    log_q: Tensor | None = None
    never: Tensor | None = None
    columns: Tensor | None = None
    stored: Tensor | None = None
    fresh_share: Tensor | None = None
    query_rows: Tensor | None = None
    query_log_q: Tensor | None = None

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.item_rows)


def in_batch(query_vectors: Tensor, item_vectors: Tensor, log_q: Tensor | None) -> Candidates:
    """Return the candidates of plain tensors: item ``b`` is the own item of query ``b``.

    Items beyond the first ``B`` are negatives of every query. Rows of the candidates are their places.

    Args:
        query_vectors: ``(B, d)``.
        item_vectors: ``(N, d)``, ``N`` at least ``B``.
        log_q: See ``Candidates``.

    Raises:
        ValueError: There are fewer items than queries.
    """
    batch, num = len(query_vectors), len(item_vectors)
    if num < batch:
        raise ArgumentError(
            f"item_vectors must hold the own item of each of the {batch} queries, got {num}; pass "
            "candidates to say where the own items are."
        )
    places = torch.arange(num, device=item_vectors.device)
    return Candidates(places, places[:batch], log_q)


class Sampler(Protocol):
    """Proposes the candidates of a batch.

    This is also the seam for negatives that come from elsewhere, such as another process: what it
    returns is all that a loss knows of them.
    """

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:
        """Return the candidates of a batch."""


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
    shape = (len(candidates.positions), len(candidates))
    if mask.shape != shape:
        raise ArgumentError(f"a mask as hidden must be {shape}, got {tuple(mask.shape)}.")
    queries, places = mask.nonzero(as_tuple=True)
    return _side_by_side(queries, places, candidates.positions)


def _places_of(rows: Tensor, candidates: Candidates, num_item_rows: int) -> Tensor:
    """Return the places of all copies of ``(B, L)`` rows, ``(B, H)`` int64; absent ones are the own.

    ``H`` is ``L`` where the candidates are distinct and in order, as most samplers give them; else what
    the query with the most has.
    """
    own, given = candidates.positions, candidates.item_rows
    if bool((given.diff() > 0).all()):
        places = _look_up(rows, given, num_item_rows)
        return torch.where(places < 0, own[:, None], places)
    ordered, order = given.sort(stable=True)
    distinct, copies = torch.unique_consecutive(ordered, return_counts=True)
    starts = copies.cumsum(0) - copies
    found = _look_up(rows, distinct, num_item_rows)
    queries, columns = (found >= 0).nonzero(as_tuple=True)
    found = found[queries, columns]
    starts, copies = starts[found], copies[found]
    places = order[starts.repeat_interleave(copies) + _ranks(copies)]
    return _side_by_side(queries.repeat_interleave(copies), places, own)


def _side_by_side(queries: Tensor, places: Tensor, own: Tensor) -> Tensor:
    """Return the places of each query in a line, filled up with its ``own``: ``(B, H)`` int64.

    Args:
        queries: ``(n,)`` int64, ascending.
        places: ``(n,)`` int64, one of that query's.
        own: ``(B,)`` int64.
    """
    counts = torch.bincount(queries, minlength=len(own))
    found = own[:, None].repeat(1, int(counts.max()) if len(counts) else 0)
    found[queries, _ranks(counts)] = places
    return found


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
