"""History encoders: the vectors of earlier items -> one vector at each position.

One contract for all: ``forward(item_vectors (B, L, d), mask (B, L), times (B, L) | None) ->
(B, L, d)``, where position ``t`` depends on positions up to ``t`` only. Windows are right-aligned
(the most recent event is last); ``mask`` is True at real events; ``times`` are seconds since the
window's first event. At a position with no real event up to it the output is what the encoder makes
of nothing. ``last`` is the output at the last position, which is all that a batch of single examples
needs, without computing the others. ``step`` reads one event more than was read before, for a session
that goes on.
"""

import math
from abc import abstractmethod
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from twotower.errors import ArgumentError
from twotower.towers.dropout import dropout

State: TypeAlias = tuple[Tensor, ...]
"""What an encoder keeps of ``B`` histories of equal length to go on from."""


NUM_PLACES = 32
"""Distances in events that an encoder tells apart; all that are farther count as the last."""


class HistoryEncoder(nn.Module):
    """The contract; see the module's docstring."""

    @abstractmethod
    def forward(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:
        """Map ``(B, L, d)`` to ``(B, L, d)``, causally."""

    def last(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:
        """Return ``forward(...)[:, -1]``, ``(B, d)``; to be overridden where that can be had for less."""
        return cast("Tensor", self(item_vectors, mask, times))[:, -1]

    @abstractmethod
    def step(
        self, item_vectors: Tensor, times: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Read one event more of each history, in evaluation.

        Args:
            item_vectors: ``(B, d)`` of the new events.
            times: ``(B,)`` seconds since the history's first event; None where its events have none.
            state: Of the events before; None where there are none.

        Returns:
            ``forward``'s output at the new events, ``(B, d)``, and the state with them.
        """


class DecayedMean(HistoryEncoder):
    """The mean of the events so far, an event ``a`` places back weighing ``0.5 ** (a / half_life)``.

    Age is counted in events from the position itself, so it does not tell where the sequence ends.

    Args:
        half_life: In events, above 0; infinity is the plain mean.

    Raises:
        ValueError: ``half_life`` is not above 0.
    """

    def __init__(self, half_life: float = math.inf) -> None:
        super().__init__()
        if not half_life > 0:
            raise ArgumentError(f"half_life must be above 0, got {half_life}.")
        self.half_life = half_life

    def forward(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Map ``(B, L, d)`` to the running decayed means ``(B, L, d)``."""
        length = mask.shape[1]
        place = torch.arange(length, device=mask.device)
        age = place[:, None] - place[None, :]  # (L, L): from position t back to event s
        decay = torch.where(age >= 0, 0.5 ** (age.clamp(min=0) / self.half_life), 0.0)
        weights = decay * mask[:, None, :].to(item_vectors.dtype)  # (B, L, L)
        weights = weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-9)
        return weights @ item_vectors

    def last(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return the decayed mean of all events: ``(B, d)``."""
        weights = self.last_weights(mask, item_vectors.dtype)
        return (weights[:, None, :] @ item_vectors).squeeze(1)

    def step(
        self,
        item_vectors: Tensor,
        times: Tensor | None = None,  # noqa: ARG002
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """Fade what was there by one event, and add the new one; the state is a sum and its weight."""
        fade = 0.5 ** (1 / self.half_life)
        total, weight = state or (item_vectors.new_zeros(()), item_vectors.new_zeros(()))
        total, weight = fade * total + item_vectors, fade * weight + 1
        return total / weight, (total, weight)

    def last_weights(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """Return each event's weight seen from the last position: ``(B, L)``."""
        age = torch.arange(mask.shape[1] - 1, -1, -1, device=mask.device)
        weights = mask.to(dtype) * 0.5 ** (age / self.half_life)
        return weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)


HALF_LIVES = (math.inf, 20.0, 5.0, 1.5, 0.01)
"""Half-lives in events of the pools; the first is the plain mean, the last is the last event."""


class PooledHistory(HistoryEncoder):
    """Means over longer and shorter pasts, down to the last event alone, mixed by one linear layer.

    What a query likes in general, lately, and right now are different things; a mean alone forgets
    the order and the last event alone forgets the person.

    Args:
        dim: ``d``.
        dropout: Of the pooled vectors, in training.
        half_lives: Half-life in events of each pool.
    """

    def __init__(
        self, dim: int, dropout: float, half_lives: tuple[float, ...] = HALF_LIVES
    ) -> None:
        super().__init__()
        self.pools = nn.ModuleList(DecayedMean(half_life) for half_life in half_lives)
        self.dropout = dropout
        self.mix = nn.Linear(len(half_lives) * dim, dim)

    def forward(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:
        """Map ``(B, L, d)`` to ``(B, L, d)``."""
        pooled = torch.cat([pool(item_vectors, mask, times) for pool in self.pools], dim=2)
        return cast("Tensor", self.mix(dropout(pooled, self.dropout, self.training)))

    def last(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return the mix at the last position, ``(B, d)``, reading the item vectors once."""
        weights = torch.stack(
            [cast("DecayedMean", p).last_weights(mask, item_vectors.dtype) for p in self.pools],
            dim=1,
        )  # (B, pools, L)
        pooled = (weights @ item_vectors).flatten(1)
        return cast("Tensor", self.mix(dropout(pooled, self.dropout, self.training)))

    def step(
        self, item_vectors: Tensor, times: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Step each pool, and mix; the state is two tensors a pool."""
        outputs: list[Tensor] = []
        states: list[Tensor] = []
        for i, pool in enumerate(self.pools):
            before = None if state is None else state[2 * i : 2 * i + 2]
            output, after = cast("DecayedMean", pool).step(item_vectors, times, before)
            outputs.append(output)
            states += after
        pooled = dropout(torch.cat(outputs, dim=1), self.dropout, self.training)
        return cast("Tensor", self.mix(pooled)), tuple(states)
