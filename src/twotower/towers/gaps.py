"""Distances in time between events, each bucket twice as long as the one before."""

from typing import cast

import torch
from torch import Tensor, nn

NUM_GAPS = 24
"""Buckets; the first holds 0 seconds, the last all from 97 days up."""


def gap_rows(seconds: Tensor) -> Tensor:
    """Return the bucket of each distance: int64 in ``[0, NUM_GAPS)``; below 0 is the first."""
    return torch.log2(1 + seconds.clamp(min=0)).long().clamp(max=NUM_GAPS - 1)


class SinceLast(nn.Module):
    """A vector for the time since the event before: whether an event goes on, or begins anew.

    It starts at zero. The first event of a window has none. Beside it, a bias of the attention by the time
    between any two events (Zhai et al., ICML 2024) gave nothing; see docs/histories.md.

    Args:
        dim: Width.
        dropout: Share of the windows that are read without times in training, as bare ids are in serving.
    """

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.table = nn.Embedding(NUM_GAPS, dim)
        nn.init.zeros_(self.table.weight)

    def forward(self, mask: Tensor, times: Tensor) -> Tensor:
        """Map ``(B, L)`` masks and seconds to ``(B, L, dim)``."""
        before = torch.zeros_like(mask)
        before[:, 1:] = mask[:, :-1]
        gaps = torch.zeros_like(times)
        gaps[:, 1:] = times[:, 1:] - times[:, :-1]
        vectors = cast("Tensor", self.table(gap_rows(gaps)))
        is_read = before & mask
        if self.training and self.dropout > 0:
            is_read &= torch.rand(len(mask), 1, device=mask.device) >= self.dropout
        return vectors.masked_fill(~is_read[:, :, None], 0.0)

    def step(self, times: Tensor, before: Tensor) -> Tensor:
        """Map the ``(B,)`` seconds of events and of those before them to ``(B, dim)``."""
        return cast("Tensor", self.table(gap_rows(times - before)))
