"""Attention pooling: a mean of the history whose weights are learnt."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from twotower.towers.dropout import dropout
from twotower.towers.history import NUM_PLACES, HistoryEncoder, State


class AttentionPooled(HistoryEncoder):
    """One mean, in which an event weighs by what it is and by how long ago it was.

    With ``v_s`` the item vectors, at position ``t``::

        u_s = tanh(W v_s + b)
        a_s = softmax over s <= t of (c . u_s + r_(t - s))
        output = M sum_s a_s v_s

    where ``r`` is learnt for each age. Where a history has no event yet, the sum is 0.

    Args:
        dim: ``d``.
        dropout: Of the mean, in training.

    Source: Yang et al., NAACL 2016, equations 5 to 7; the term for age as in Raffel et al., JMLR
        2020, section 2.1.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.inner = nn.Linear(dim, dim)
        self.context = nn.Linear(dim, 1, bias=False)
        self.by_age = nn.Parameter(torch.zeros(NUM_PLACES))
        self.mix = nn.Linear(dim, dim)

    def forward(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Map ``(B, L, d)`` to ``(B, L, d)``."""
        place = torch.arange(mask.shape[1], device=mask.device)
        return self._read(item_vectors, mask, place[:, None] - place[None, :])

    def last(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return ``forward(...)[:, -1]``, of which only that position is computed."""
        age = torch.arange(mask.shape[1] - 1, -1, -1, device=mask.device)
        return self._read(item_vectors, mask, age[None])[:, 0]

    def step(
        self,
        item_vectors: Tensor,
        times: Tensor | None = None,  # noqa: ARG002
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """Weigh all events anew; the state is their vectors."""
        vectors = item_vectors[:, None]
        if state is not None:
            vectors = torch.cat([state[0], vectors], dim=1)
        mask = torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
        return self.last(vectors, mask), (vectors,)

    def _read(self, vectors: Tensor, mask: Tensor, age: Tensor) -> Tensor:
        """Return the output at positions whose ages of the events are ``(R, L)``: ``(B, R, d)``."""
        said = self.context(torch.tanh(self.inner(vectors)))  # (B, L, 1)
        weights = said.transpose(1, 2) + self.by_age[age.clamp(0, NUM_PLACES - 1)]
        visible = (age >= 0) & mask[:, None, :]
        weights = weights.masked_fill(~visible, -math.inf).softmax(dim=2)
        # Of no event at all a softmax is not a number; and what is padded may be anything.
        weights = torch.where(visible, weights, 0.0)
        pooled = weights @ vectors.masked_fill(~mask[:, :, None], 0.0)
        return cast("Tensor", self.mix(dropout(pooled, self.dropout, self.training)))
