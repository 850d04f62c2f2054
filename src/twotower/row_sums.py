"""Weighted sums of rows of a table: the product of a sparse matrix, and of its transpose."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def row_sums(table: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Return weighted sums of rows of a table, without a copy of each row: ``(S, dim)``.

    Args:
        table: ``(R, dim)`` float.
        rows: ``(n,)`` int64 what is read.
        starts: ``(S + 1,)`` int64 where each sum begins in ``rows``, and at last ``n``.
        weights: ``(n,)`` float.
    """
    return F.embedding_bag(
        rows, table, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def by_row(rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return what the transposed sums read: the order of what is read by its row, and where rows begin.

    NumPy sorts 16 bits by counting, in a tenth of the time of a sort of 64: so these go 16 bits at a time.

    Args:
        rows: ``(n,)`` int64 in ``[0, num_rows)``, on the CPU.
        num_rows: Rows of the table.

    Returns:
        ``(n,)`` int64 places in ``rows``, and ``(num_rows + 1,)`` int64 starts, of rows without any, too.
    """
    values = rows.numpy()
    order = np.argsort(values.astype(np.uint16), kind="stable")
    shift = 16
    while num_rows > 1 << shift:
        digits = (values[order] >> shift).astype(np.uint16)
        order = order[np.argsort(digits, kind="stable")]
        shift += 16
    starts = rows.new_zeros(num_rows + 1)
    torch.cumsum(torch.bincount(rows, minlength=num_rows), 0, out=starts[1:])
    return torch.from_numpy(order), starts
