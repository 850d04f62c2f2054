"""SASRec's reader of histories, as published: what newer ones are held against."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twotower.towers.history import HistoryEncoder, State
from twotower.towers.layers import dropout


class SASRec(HistoryEncoder):
    """Blocks of attention and a two-layer network over item vectors plus learnt positions.

    With ``P`` the positions, ``LN`` a layer norm and ``SA`` one head of scaled dot-product attention to
    the positions up to each one::

        x_0 = dropout(sqrt(d) v + P)
        y   = x + dropout(SA(LN(x)))
        x   = y + dropout(W2 dropout(relu(W1 LN(y) + b1)) + b2)

    and a layer norm after the last block. Where a history has no event yet, the output is 0.

    Args:
        dim: ``d``.
        dropout: In training.
        length: Positions, at least as many as a window has events.
        num_blocks: At least 1.

    Source: Kang and McAuley, ICDM 2018, equations 2 to 6 and section III-B. Differs: positions are
        counted from the window's first event and not from its last place, so that what an event
        is read as does not change when others follow.

    Prefer: ``Transformer``, which needs no positions and reads times.
    """

    def __init__(self, dim: int, dropout: float, length: int, *, num_blocks: int = 2) -> None:
        super().__init__()
        self.dropout = dropout
        self.scale = math.sqrt(dim)
        self.positions = nn.Parameter(torch.randn(length, dim) / math.sqrt(dim))
        self.blocks = nn.ModuleList(_Block(dim, dropout) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(dim)

    def forward(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Map ``(B, L, d)`` to ``(B, L, d)``."""
        places = (mask.cumsum(dim=1) - 1).clamp(0, len(self.positions) - 1)
        vectors = item_vectors.masked_fill(~mask[:, :, None], 0.0) * self.scale
        vectors = dropout(vectors + self.positions[places], self.dropout, self.training)
        length = mask.shape[1]
        earlier = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        # A padded position reads itself, so that no softmax is of nothing.
        itself = torch.eye(length, dtype=torch.bool, device=mask.device)
        visible = earlier & mask[:, None, :] | itself
        for block in self.blocks:
            vectors = block(vectors, visible)
        has_event = (mask.cumsum(dim=1) > 0)[:, :, None]
        return cast("Tensor", self.norm(vectors)).masked_fill(~has_event, 0.0)

    def step(
        self,
        item_vectors: Tensor,
        times: Tensor | None = None,  # noqa: ARG002
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """Read one event more; the state is each block's keys and values."""
        caches = state or ()
        place = min(caches[0].shape[1] if caches else 0, len(self.positions) - 1)
        vectors = (item_vectors * self.scale + self.positions[place])[:, None]
        kept: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            vectors, *after = cast("_Block", block).step(vectors, caches[2 * i : 2 * i + 2])
            kept += after
        return cast("Tensor", self.norm(vectors[:, 0])), tuple(kept)


class _Block(nn.Module):
    """One head of attention, then two layers; each adds to what it reads."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm_attention, self.norm_layers = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.first, self.second = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, vectors: Tensor, visible: Tensor) -> Tensor:
        """Map ``(B, L, d)`` to the same; ``visible`` is ``(B, L, L)``."""
        normed = self.norm_attention(vectors)
        return self._map(vectors, normed, self.key(normed), self.value(normed), visible)

    def step(self, vectors: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Map the last position, ``(B, 1, d)``; return it with all keys and values."""
        normed = self.norm_attention(vectors)
        keys, values = self.key(normed), self.value(normed)
        if before:
            keys, values = torch.cat([before[0], keys], 1), torch.cat([before[1], values], 1)
        return self._map(vectors, normed, keys, values, None), keys, values

    def _map(
        self, read: Tensor, normed: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None
    ) -> Tensor:
        # With a dimension for its one head: what torch has a faster way for, and ONNX a way at all.
        found = F.scaled_dot_product_attention(
            self.query(normed)[:, None],
            keys[:, None],
            values[:, None],
            attn_mask=None if visible is None else visible[:, None],
        )
        read = read + dropout(found[:, 0], self.dropout, self.training)
        hidden = dropout(F.relu(self.first(self.norm_layers(read))), self.dropout, self.training)
        return read + dropout(self.second(hidden), self.dropout, self.training)
