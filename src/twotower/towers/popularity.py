"""A prior by popularity: the last number of an item's vector, to which history and features add."""

import numpy as np
import torch
from torch import Tensor, nn

from twotower.arrays import Float32s, Rows
from twotower.vocab import UNKNOWN_ROW

SCALE = 16.0
"""What an item's number is divided by and a query's multiplied: an item's direction hardly changes."""


class PopularityPrior(nn.Module):
    """The last number of the compared vectors: of an item its popularity, of a query how much it counts.

    With ``p_i`` the logarithm of an item's popularity and ``o`` the last number that the query tower
    computed, the score is ``p_i + g (<q', v'_i> + o p_i)``, where ``q'`` and ``v'`` are the other numbers.
    A model that knows nothing answers by popularity, and training learns what to add to it.

    The share ``g`` of what was learnt is 1 in training. Afterwards validation chooses it, separately for
    queries with and without events: what is learnt within the time of training holds less at a later time.

    Args:
        num_rows: Rows of the item ids' vocabulary, the reserved ones included.
        feature: Name of the feature with those rows.
    """

    column: Tensor
    shares: Tensor

    def __init__(self, num_rows: int, feature: str) -> None:
        super().__init__()
        self.feature = feature
        self.register_buffer("column", torch.zeros(num_rows))
        self.register_buffer("shares", torch.ones(2))

    @torch.no_grad()
    def fill(self, logs: Float32s, rows: Rows) -> None:
        """Set the popularity of all items.

        Args:
            logs: ``(n,)`` of items.
            rows: ``(n,)`` their rows in the vocabulary of ids; those that it does not know share a mean.
        """
        is_unknown = rows == UNKNOWN_ROW
        column = np.zeros(len(self.column), np.float32)
        column[rows] = logs
        column[UNKNOWN_ROW] = logs[is_unknown].mean() if is_unknown.any() else 0.0
        self.column.copy_(torch.from_numpy(column))

    def of_items(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """Return vectors of items that end with their popularity: ``(n, dim)``."""
        return torch.cat([vectors[:, :-1], self.column[rows.long()][:, None] / SCALE], dim=1)

    def of_queries(self, vectors: Tensor, has_events: Tensor) -> Tensor:
        """Return vectors of queries that end with the weight of popularity: ``(n, dim)``.

        Args:
            vectors: ``(n, dim)`` from the query tower.
            has_events: ``(n,)`` bool.
        """
        full = torch.cat([vectors[:, :-1], SCALE * (1 + vectors[:, -1:])], dim=1)
        share = torch.where(has_events, self.shares[1], self.shares[0])
        return self.with_share(full, share[:, None])

    @staticmethod
    def with_share(vectors: Tensor, share: Tensor | float) -> Tensor:
        """Return ``of_queries`` with another share, given that with a share of 1: ``(n, dim)``."""
        last = SCALE + share * (vectors[:, -1:] - SCALE)
        return torch.cat([share * vectors[:, :-1], last], dim=1)

    def share(self, without_events: float, with_events: float) -> None:
        """Set the shares of what was learnt, for queries without events and for those with events."""
        self.shares.copy_(torch.tensor([without_events, with_events]))

    @staticmethod
    def as_of(queries: Tensor, items: Tensor, logs: Tensor, lines: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors whose products count the popularity at a moment of each query.

        Args:
            queries: ``(B, dim)`` from ``of_queries``.
            items: ``(N, dim)``; their last number is not read.
            logs: ``(K, N)`` popularity of the items at ``K`` moments.
            lines: ``(B,)`` int64 moment of each query.

        Returns:
            ``(B, dim - 1 + K)`` and ``(N, dim - 1 + K)``.
        """
        moments = nn.functional.one_hot(lines, len(logs)).to(queries.dtype)
        weights = queries[:, -1:] * moments
        column = (logs / SCALE).T.to(items.dtype)
        queries = torch.cat([queries[:, :-1], weights], dim=1)
        return queries, torch.cat([items[:, :-1], column], dim=1)
