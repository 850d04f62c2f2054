"""Numbers of the compared vectors that a closed form gives, beside those that the towers compute."""

import torch
from torch import Tensor, nn

from twotower.towers.event_vectors import EventVectors
from twotower.towers.history import Bag, State
from twotower.vocab import UNKNOWN_ROW


class SpectralPart(nn.Module):
    """The last ``width`` numbers of the compared vectors: the score is that of the towers plus theirs.

    For an item they are its vector in closed form, for a query the faded mean of its events' vectors. That
    mean is zero where a query has no events, so the towers alone answer such a query. For an item that the
    closed form does not know, a linear regression predicts the vector from that of the item tower.

    Args:
        num_rows: Rows of the item ids' vocabulary, the reserved ones included.
        width: Of the vectors in closed form.
        dim: Of the vectors of the towers.
        feature: Name of the feature with those rows.

    Source: the vectors are those of ``Spectral``, which names its sources.
    """

    def __init__(self, num_rows: int, width: int, dim: int, feature: str) -> None:
        super().__init__()
        self.width = width
        self.feature = feature
        self.items = nn.Buffer(torch.zeros(num_rows, width))
        self.events = nn.Buffer(torch.zeros(num_rows, width))
        self.expected = nn.Buffer(torch.zeros(dim, width))
        """Slopes of the regression; the row of unknown items in ``items`` is its constant."""
        self.bag = Bag(width).requires_grad_(requires_grad=False)

    def of_items(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """Return vectors of items with theirs in closed form: ``(n, dim + width)``."""
        rows = rows.long()
        is_unknown = (rows == UNKNOWN_ROW)[:, None]
        expected = torch.where(is_unknown, vectors @ self.expected, 0.0)
        return torch.cat([vectors, self.items[rows] + expected], dim=1)

    def of_events(self, inputs: Tensor, rows: Tensor) -> Tensor:
        """Return what a history reads of items with what this part reads: ``(n, dim + width)``."""
        return torch.cat([inputs, self.events[rows.long()]], dim=1)

    def split(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the query tower reads of events and what this part reads, ``(..., width)``."""
        return inputs[..., : -self.width], inputs[..., -self.width :]

    def split_events(self, events: EventVectors) -> tuple[EventVectors, EventVectors]:
        """Return the same of the events of histories."""
        return events.columns(slice(-self.width)), events.columns(slice(-self.width, None))

    def of_queries(
        self, vectors: Tensor, events: EventVectors, mask: Tensor, wanted: Tensor | None = None
    ) -> Tensor:
        """Return vectors of queries with theirs in closed form: ``(n, dim + width)``.

        Args:
            vectors: ``(n, dim)`` from the query tower.
            events: ``(B, L, width)`` of ``split_events``.
            mask: ``(B, L)`` bool.
            wanted: ``(B, L)`` bool positions; None wants the last of each.
        """
        if wanted is None:
            read = self.bag.last_of_parts((events,), mask)
        else:
            read = self.bag(events.vectors(), mask)[wanted]
        return torch.cat([vectors, read], dim=1)

    def step(self, vectors: Tensor, events: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Return vectors of queries after one event more, ``(B, dim + width)``, and the state."""
        read, state = self.bag.step(events, None, state)
        return torch.cat([vectors, read], dim=1), state
