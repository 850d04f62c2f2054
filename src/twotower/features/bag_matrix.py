"""Bags of embeddings that stay the same in every step, as a sparse matrix."""

from typing import Any, cast

import torch
from torch import Tensor

from twotower.vocab import PADDING_ROW


class BagMatrix:
    """Weighted sums of rows of a table, the same ones in every step: a product with a sparse matrix.

    An embedding bag sorts its rows in each backward pass, which takes several times as long as the sums. Of
    bags that stay as they are, the transposed matrix is made once. It is for a CPU.

    Args:
        rows: ``(n, width)`` rows, padded with ``PADDING_ROW``.
        weights: ``(n, width)`` float of each; what has 0 is left out.
        num_rows: Rows of the table.
    """

    def __init__(self, rows: Tensor, weights: Tensor, num_rows: int) -> None:
        from scipy import sparse  # here, since its import takes a while and few models need it

        is_read = (rows != PADDING_ROW) & (weights != 0)
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), is_read.sum(dim=1).cumsum(0)])
        parts = (weights[is_read].numpy(), rows[is_read].int().numpy(), ends.int().numpy())
        self._matrix = sparse.csr_array(parts, shape=(len(rows), num_rows))
        self._transposed = self._matrix.T.tocsr()

    def __len__(self) -> int:
        """Number of bags."""
        return int(self._matrix.shape[0])

    def times(self, table: Tensor) -> Tensor:
        """Map a table, ``(num_rows, dim)``, to the sums, ``(n, dim)``."""
        return cast("Tensor", _Product.apply(table, self._matrix, self._transposed))  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, matrix: Any, transposed: Any) -> Tensor:
        ctx.transposed = transposed
        return torch.from_numpy(matrix @ table.detach().numpy())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return torch.from_numpy(ctx.transposed @ gradient.numpy()), None, None
