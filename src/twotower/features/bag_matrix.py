"""Bags of embeddings that stay the same in every step."""

from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from twotower.row_sums import by_row, row_sums
from twotower.vocab import PADDING_ROW

_Parts: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""What is read, where each sum begins in it, and the weights: as ``row_sums`` takes them."""


class BagMatrix:
    """Weighted sums of rows of a table, the same ones in every step.

    An embedding bag sorts its rows in each backward pass, which takes several times as long as the sums. Of
    bags that stay as they are, the transposed matrix is made once. It is for a CPU.

    Args:
        rows: ``(n, width)`` rows, padded with ``PADDING_ROW``.
        weights: ``(n, width)`` float of each; what has 0 is left out.
        num_rows: Rows of the table.
    """

    def __init__(self, rows: Tensor, weights: Tensor, num_rows: int) -> None:
        is_read = (rows != PADDING_ROW) & (weights != 0)
        nums = is_read.sum(dim=1)
        starts = torch.cat([nums.new_zeros(1), nums.cumsum(0)])
        read, weights = rows[is_read].long(), weights[is_read]
        order, starts_of_rows = by_row(read, num_rows)
        bags = torch.arange(len(rows)).repeat_interleave(nums)
        self._matrix = (read, starts, weights)
        self._transposed = (bags[order], starts_of_rows, weights[order])

    def __len__(self) -> int:
        """Number of bags."""
        return len(self._matrix[1]) - 1

    def times(self, table: Tensor) -> Tensor:
        """Map a table, ``(num_rows, dim)``, to the sums, ``(n, dim)``."""
        return cast("Tensor", _Product.apply(table, self._matrix, self._transposed))  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, matrix: _Parts, transposed: _Parts) -> Tensor:
        ctx.transposed = transposed
        return row_sums(table, *matrix)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return row_sums(gradient.contiguous(), *ctx.transposed), None, None
