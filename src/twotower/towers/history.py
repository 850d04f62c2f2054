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
from twotower.towers.event_vectors import EventVectors, GivenVectors, total, total_summed
from twotower.towers.layers import dropout

State: TypeAlias = tuple[Tensor, ...]
"""What an encoder keeps of ``B`` histories of equal length to go on from."""


NUM_PLACES = 32
"""Distances in events that an encoder tells apart; all that are farther count as the last."""


def ages(length: int, device: torch.device, *, last_only: bool = False) -> Tensor:
    """Return how many events each position is behind each one that reads it.

    Args:
        length: Positions, ``L``.
        device: Of the result.
        last_only: Whether the last position alone reads.

    Returns:
        ``(L, L)`` int64, or ``(1, L)``; below 0 where a position comes later.
    """
    place = torch.arange(length, device=device)
    return (place[-1:] if last_only else place)[:, None] - place[None, :]


class HistoryEncoder(nn.Module):
    """The contract; see the module's docstring."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "last" in vars(cls) and "last_of_parts" not in vars(cls):
            # The ``last_of_parts`` of a parent would pass over the new ``last``.
            cls.last_of_parts = HistoryEncoder.last_of_parts  # type: ignore[method-assign]

    @abstractmethod
    def forward(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:
        """Map ``(B, L, d)`` to ``(B, L, d)``, causally."""

    def last(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:
        """Return ``forward(...)[:, -1]``, ``(B, d)``; to be overridden where that can be had for less."""
        return cast("Tensor", self(item_vectors, mask, times))[:, -1]

    def last_of_parts(
        self, parts: tuple[EventVectors, ...], mask: Tensor, times: Tensor | None = None
    ) -> Tensor:
        """Return ``last`` of the sums of parts, ``(B, d)``; to be overridden where the sums are not needed.

        Args:
            parts: Vectors of the same events, to be added up.
            mask: ``(B, L)`` bool.
            times: ``(B, L)`` seconds, or None.
        """
        return self.last(total(parts), mask, times)

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


class SummedHistory(HistoryEncoder):
    """An encoder whose output at the last position reads weighted sums of the events alone.

    Such sums are linear: parts of the vectors are summed by themselves, without a vector for each event.
    """

    def last(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return ``forward(...)[:, -1]``, ``(B, d)``, reading the item vectors once."""
        return self._last((GivenVectors(item_vectors),), mask)

    def last_of_parts(
        self,
        parts: tuple[EventVectors, ...],
        mask: Tensor,
        times: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Return ``last`` of the sums of parts, ``(B, d)``."""
        return self._last(parts, mask)

    @abstractmethod
    def _last(self, parts: tuple[EventVectors, ...], mask: Tensor) -> Tensor:
        """Return the output at the last position of the sums of parts: ``(B, d)``."""


class DecayedMean(SummedHistory):
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
        self.half_life: float | Tensor = half_life

    def forward(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Map ``(B, L, d)`` to the running decayed means ``(B, L, d)``."""
        return self.weights(mask, item_vectors.dtype) @ item_vectors

    def _last(self, parts: tuple[EventVectors, ...], mask: Tensor) -> Tensor:
        weights = self.weights(mask, parts[0].dtype, last_only=True)
        return total_summed(parts, weights).squeeze(1)

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

    def weights(self, mask: Tensor, dtype: torch.dtype, *, last_only: bool = False) -> Tensor:
        """Return each event's weight seen from each position, ``(B, L, L)``, or from the last one."""
        age = ages(mask.shape[1], mask.device, last_only=last_only)
        return decayed(age, self.half_life, mask, dtype)


def decayed(age: Tensor, half_life: float | Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return weights of events that halve every ``half_life`` events and sum to 1, or to 0 of none.

    Args:
        age: ``(R, ..., L)`` int64 of each event seen from each of ``R`` positions; below 0 of a later one.
        half_life: In events, above 0; a tensor is broadcast with ``age``.
        mask: ``(B, L)`` bool, True at events.
        dtype: Of the weights.

    Returns:
        ``(B, R, ..., L)``.
    """
    decay = torch.where(age >= 0, 0.5 ** (age.clamp(min=0) / half_life), 0.0)
    over_positions = (slice(None), *[None] * (decay.dim() - 1))
    weights = decay * mask[over_positions].to(dtype)
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-9)


EVER = 1e30
"""A half-life in events in which none fades; a bundle holds no infinite number."""


class Bag(DecayedMean):
    """The mean of the events, and a learnt vector where there is none yet.

    Without that vector a query without events would be the zero vector, for which all items are alike.
    Trained, it says what is popular. Its half-life is not learnt by steps: nothing fades, unless the closed
    form sets another.

    Args:
        dim: ``d``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(dim))
        del self.half_life
        self.half_life = nn.Buffer(torch.tensor(EVER))

    def forward(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:
        """Map ``(B, L, d)`` to the running means ``(B, L, d)``."""
        is_empty = mask.cumsum(dim=1) == 0
        return super().forward(item_vectors, mask, times) + is_empty[:, :, None] * self.start

    def _last(self, parts: tuple[EventVectors, ...], mask: Tensor) -> Tensor:
        is_empty = ~mask.any(dim=1, keepdim=True)
        return super()._last(parts, mask) + is_empty * self.start


HALF_LIVES = (math.inf, 20.0, 5.0, 1.5, 0.01)
"""Half-lives in events of the pools; the first is the plain mean, the last is the last event."""


class PooledHistory(SummedHistory):
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
        self.half_lives = half_lives
        self.dropout = dropout
        self.mix = nn.Linear(len(half_lives) * dim, dim)

    def forward(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Map ``(B, L, d)`` to ``(B, L, d)``, reading the item vectors once."""
        weights = self._weights(mask, item_vectors.dtype)
        # One product of all pools, whose rows are already in the order in which they are mixed.
        pooled = weights.flatten(1, 2) @ item_vectors
        return self._mixed(pooled.view(*weights.shape[:3], item_vectors.shape[2]))

    def _last(self, parts: tuple[EventVectors, ...], mask: Tensor) -> Tensor:
        weights = self._weights(mask, parts[0].dtype, last_only=True)[:, 0]
        return self._mixed(total_summed(parts, weights))

    def _weights(self, mask: Tensor, dtype: torch.dtype, *, last_only: bool = False) -> Tensor:
        """Return each event's weight in each pool, seen from each position: ``(B, L, pools, L)``."""
        age = ages(mask.shape[1], mask.device, last_only=last_only)
        half_lives = torch.tensor(self.half_lives, device=mask.device)
        return decayed(age[:, None, :], half_lives[:, None], mask, dtype)

    def _mixed(self, pooled: Tensor) -> Tensor:
        """Return the mix of pooled vectors, ``(..., pools, d)``: ``(..., d)``."""
        return cast("Tensor", self.mix(dropout(pooled.flatten(-2), self.dropout, self.training)))

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
        return self._mixed(torch.stack(outputs, dim=1)), tuple(states)


class AttentionPooled(HistoryEncoder):
    """A mean of the history, whose weights are learnt from each event and from its age.

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
        return self._read(item_vectors, mask, ages(mask.shape[1], mask.device))

    def last(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return ``forward(...)[:, -1]``, of which only that position is computed."""
        return self._read(item_vectors, mask, ages(mask.shape[1], mask.device, last_only=True))[
            :, 0
        ]

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


class Recurrent(HistoryEncoder):
    """A GRU that reads the events one after the other; its state after each is the output there.

    The state before the first event is learnt, and is what a history without any event is read as.

    Args:
        dim: ``d``.
        dropout: Of the inputs, in training.

    Source: Hidasi et al., ICLR 2016 (GRU4Rec). Differs: reads whole histories instead of keeping states
        between parallel batches of sessions.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.start = nn.Parameter(torch.zeros(dim))
        self.cell = nn.GRU(dim, dim, batch_first=True)

    def forward(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Map ``(B, L, d)`` to ``(B, L, d)``."""
        if not mask.shape[0]:
            return torch.zeros_like(item_vectors)
        vectors = dropout(item_vectors, self.dropout, self.training)
        # Histories are shifted to begin at the left, so that nothing is read before them.
        length = mask.shape[1]
        place = torch.arange(length, device=mask.device)
        padded = length - mask.sum(dim=1, keepdim=True)
        begin = (place + padded).clamp(max=length - 1)  # (B, L) where each event stands
        shifted = vectors.gather(1, begin[:, :, None].expand_as(vectors))
        start = self.start.to(vectors.dtype).expand(1, vectors.shape[0], -1).contiguous()
        states, _ = self.cell(shifted, start)
        states = torch.cat([start.transpose(0, 1), states], dim=1)  # (B, 1 + L, d)
        after = (place + 1 - padded).clamp(min=0)
        return states.gather(1, after[:, :, None].expand_as(vectors))

    def step(
        self,
        item_vectors: Tensor,
        times: Tensor | None = None,  # noqa: ARG002
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """Move the unit's state by one event."""
        before = self.start.expand_as(item_vectors) if state is None else state[0]
        output, _ = self.cell(item_vectors[:, None], before[None].contiguous())
        return output[:, 0], (output[:, 0],)
