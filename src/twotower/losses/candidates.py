"""Input and output of a sampler: the pairs of a batch, and the candidates that they are scored against."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from twotower.errors import ArgumentError


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
        ...
