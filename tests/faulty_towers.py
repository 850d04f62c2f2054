"""Towers with a bug of the kind that people write, each as bad as one is told to make it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twotower.towers.history import HistoryEncoder, State
from twotower.towers.model import QueryTower, TwoTower


class CollapsedTower(nn.Module):
    """A tower of the synthetic world whose output is a constant and a little of what it should be.

    The bug: a scale that was meant for something else, beside a bias.

    Args:
        category: The side's categorical feature: ``category`` of items, ``segment`` of queries.
        spread: Length of what tells entities apart, beside a constant of length 1.
        dim: Width.
    """

    constant: Tensor

    def __init__(self, category: str, spread: float, dim: int = 16) -> None:
        super().__init__()
        self.category = category
        self.spread = spread
        self.dim = dim
        self.embedding = nn.Embedding(256, dim)
        self.signal = nn.Linear(2, dim)
        self.register_buffer("constant", F.normalize(torch.ones(dim), dim=0))

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Map a side's features to ``(n, dim)``."""
        own = self.embedding(features[self.category].long()) + self.signal(features["signal"])
        return self.constant + self.spread * F.normalize(own, dim=1)


class DeafHistory(HistoryEncoder):
    """A history encoder that reads nothing for a part of every batch.

    The bug: a buffer that is filled from some line on only.

    Args:
        inner: What reads the others' histories.
        share: Of the lines, in 0..1, that are read as if they held nothing but zeros.
    """

    def __init__(self, inner: HistoryEncoder, share: float) -> None:
        super().__init__()
        self.inner = inner
        self.share = share

    def forward(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:
        """Map ``(B, L, d)`` to ``(B, L, d)``."""
        return self.inner.forward(self._heard(item_vectors), mask, times)

    def last(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:
        """Return the last position: ``(B, d)``."""
        return self.inner.last(self._heard(item_vectors), mask, times)

    def step(
        self, item_vectors: Tensor, times: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Read one event more, as the encoder inside does: what is deaf here is whole batches."""
        return self.inner.step(item_vectors, times, state)

    def _heard(self, item_vectors: Tensor) -> Tensor:
        lines = torch.arange(len(item_vectors), device=item_vectors.device)
        return item_vectors * (lines >= self.share * len(lines))[:, None, None]


def deafen(model: TwoTower, share: float) -> None:
    """Put a ``DeafHistory`` in the place of a model's history encoder."""
    tower = model.query_tower
    assert isinstance(tower, QueryTower)
    assert tower.history is not None
    tower.history = DeafHistory(tower.history, share)
