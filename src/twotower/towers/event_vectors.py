"""The vectors of histories' events, and weighted sums over them."""

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from twotower.row_sums import by_row, row_sums

_FEW_ROWS = 32
"""Tables of at most so many rows are multiplied by the sums of the weights of each row."""


class EventVectors(Protocol):
    """One vector for each event of ``B`` histories of ``L`` events."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors."""
        ...

    def vectors(self) -> Tensor:
        """Return them: ``(B, L, dim)``."""
        ...

    def summed(self, weights: Tensor) -> Tensor:
        """Return weighted sums over the events of each history: ``(B, P, dim)``.

        Args:
            weights: ``(B, P, L)`` of each event in each of ``P`` sums.
        """
        ...

    def columns(self, kept: slice) -> "EventVectors":
        """Return some of the numbers of each vector."""
        ...


@dataclass(frozen=True, eq=False)
class GivenVectors:
    """Vectors that are there.

    Args:
        given: ``(B, L, dim)``.
    """

    given: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors."""
        return self.given.dtype

    def vectors(self) -> Tensor:
        """Return them: ``(B, L, dim)``."""
        return self.given

    def summed(self, weights: Tensor) -> Tensor:
        """Return weighted sums over the events of each history: ``(B, P, dim)``."""
        return weights @ self.given

    def columns(self, kept: slice) -> "GivenVectors":
        """Return some of the numbers of each vector."""
        return GivenVectors(self.given[..., kept])


@dataclass(frozen=True, eq=False)
class RowVectors:
    """Vectors that are rows of a table.

    Args:
        rows: ``(B, L)`` int64 the row of each event.
        table: ``(R, dim)``.
    """

    rows: Tensor
    table: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors."""
        return self.table.dtype

    def vectors(self) -> Tensor:
        """Return a copy of the row of each event: ``(B, L, dim)``."""
        return self.table.index_select(0, self.rows.flatten()).view(
            *self.rows.shape, self.table.shape[1]
        )

    def summed(self, weights: Tensor) -> Tensor:
        """Return weighted sums over the events of each history: ``(B, P, dim)``.

        On a CPU no row is copied: a processor's cache does not hold a copy for each event of a batch, with
        its gradient (docs/decisions/0068).
        """
        table = self.table
        if len(table) <= _FEW_ROWS:
            num, sums, _ = weights.shape
            of_rows = weights.new_zeros(num, sums, len(table))
            places = self.rows[:, None, :].expand(-1, sums, -1)
            return of_rows.scatter_add(2, places, weights) @ table
        is_quick = table.device.type == "cpu" and table.dtype == weights.dtype == torch.float32
        if not is_quick or weights.requires_grad:
            return weights @ self.vectors()
        return cast("Tensor", _Summed.apply(table, self.rows, weights))  # type: ignore[no-untyped-call]

    def columns(self, kept: slice) -> "RowVectors":
        """Return some of the numbers of each vector."""
        return RowVectors(self.rows, self.table[:, kept])


def vectors_of(events: Tensor | EventVectors) -> EventVectors:
    """Return vectors as ``EventVectors``, if they are not already."""
    return GivenVectors(events) if isinstance(events, Tensor) else events


def total(parts: tuple[EventVectors, ...]) -> Tensor:
    """Return the sums of the vectors of each event: ``(B, L, dim)``."""
    return reduce(add, (part.vectors() for part in parts))


def total_summed(parts: tuple[EventVectors, ...], weights: Tensor) -> Tensor:
    """Return weighted sums of the sums of the vectors of each event: ``(B, P, dim)``."""
    return reduce(add, (part.summed(weights) for part in parts))


class _Summed(torch.autograd.Function):
    """``weights @ table[rows]``; the gradient of a row of the table is a sum over its events."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        num, sums, length = weights.shape
        ctx.save_for_backward(rows, weights)
        ctx.num_rows = len(table)
        read = rows[:, None, :].expand(-1, sums, -1).reshape(-1)
        starts = torch.arange(0, len(read) + 1, length)
        return row_sums(table, read, starts, weights.reshape(-1)).view(num, sums, table.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows, weights = ctx.saved_tensors
        _, sums, length = weights.shape
        events = weights.any(dim=1).flatten().nonzero().view(-1)
        read = rows.flatten().index_select(0, events)
        order, starts = by_row(read, ctx.num_rows)
        events = events.index_select(0, order)
        # The gradients of a history's sums follow each other.
        owners = torch.div(events, length, rounding_mode="floor").mul_(sums)
        reading = (owners[:, None] + torch.arange(sums)).view(-1)
        by_event = weights.transpose(1, 2).reshape(-1, sums).index_select(0, events).view(-1)
        of_sums = gradient.reshape(-1, gradient.shape[2])
        return row_sums(of_sums, reading, starts.mul_(sums), by_event), None, None
