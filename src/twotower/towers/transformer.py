"""Causal transformers over the history: our own, and SASRec as published, for comparison."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twotower.errors import ArgumentError
from twotower.towers.history import NUM_PLACES, HistoryEncoder, PooledHistory, State, ages
from twotower.towers.layers import dropout


class Transformer(HistoryEncoder):
    """Blocks of attention and a gated layer, each position reading those up to it, beside a pooled history.

    It differs from SASRec (Kang and McAuley, ICDM 2018) where later work found improvements: RMSNorm
    before each layer; a gated layer (SwiGLU); and, in place of positions, an attention bias by the number
    of events between two, so that the output does not depend on where a window is cut. A learnt start
    precedes each window: it stands for a history without events, and gives each event something else to
    attend to. The output of the blocks is added to that of a ``PooledHistory``. The query tower adds the
    time since the event before to each event; see ``SinceLast``.

    Args:
        dim: ``d``.
        dropout: Of the inputs and of what each layer adds, in training.
        num_blocks: At least 1.
        num_heads: A divisor of ``dim``.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.

    Source: Vaswani et al., NeurIPS 2017; Zhang and Sennrich, NeurIPS 2019 (RMSNorm); Shazeer,
        arXiv 2002.05202 (SwiGLU); Raffel et al., JMLR 2020, section 2.1 (the bias by place).
    """

    def __init__(
        self, dim: int, dropout: float, *, num_blocks: int = 2, num_heads: int = 1
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ArgumentError(f"num_heads must divide dim, got {num_heads} and {dim}.")
        self.start = nn.Parameter(torch.randn(dim) / math.sqrt(dim))
        self.dropout = dropout
        self.blocks = nn.ModuleList(_Block(dim, num_heads, dropout) for _ in range(num_blocks))
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.pooled = PooledHistory(dim, dropout)

    def forward(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:
        """Map ``(B, L, d)`` to ``(B, L, d)``."""
        read = self._read(item_vectors, mask, last_only=False)
        return read + cast("Tensor", self.pooled(item_vectors, mask, times))

    def last(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:
        """Return ``forward(...)[:, -1]``, of whose last block only that position is computed."""
        read = self._read(item_vectors, mask, last_only=True)[:, 0]
        return read + self.pooled.last(item_vectors, mask, times)

    def step(
        self, item_vectors: Tensor, times: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Read one event more; the state is each block's keys and values, and the pools'."""
        num = 2 * len(self.blocks)
        pooled, of_pools = self.pooled.step(item_vectors, times, state[num:] if state else None)
        if state is None:
            _, caches = self._next(self.start.to(item_vectors.dtype).expand_as(item_vectors), ())
        else:
            caches = state[:num]
        output, caches = self._next(item_vectors, caches)
        return cast("Tensor", self.norm(output)) + pooled, (*caches, *of_pools)

    def _next(self, vectors: Tensor, caches: State) -> tuple[Tensor, State]:
        """Return what a position after all others is mapped to, the start being one."""
        count = caches[0].shape[1] if caches else 0
        places = ages(count + 1, vectors.device, last_only=True)
        between = _Between(places, torch.ones_like(places, dtype=torch.bool)[None])
        read, caches = _stepped(self.blocks, vectors[:, None], caches, between)
        return read[:, 0], caches

    def _read(self, item_vectors: Tensor, mask: Tensor, *, last_only: bool) -> Tensor:
        vectors = item_vectors.masked_fill(~mask[:, :, None], 0.0)
        vectors = dropout(vectors, self.dropout, self.training)
        start = self.start.to(vectors.dtype).expand(vectors.shape[0], 1, -1)
        vectors = torch.cat([start, vectors], dim=1)  # (B, 1 + L, d)
        between = _Between.of_windows(mask)
        for block in self.blocks[:-1]:
            vectors = block(vectors, between, last_only=False)
        vectors = self.blocks[-1](vectors, between, last_only=last_only)
        # A position without any event up to it is read as the start alone.
        has_event = (mask.cumsum(dim=1) > 0)[:, :, None]
        if last_only:
            alone = self._alone(vectors)
            return cast("Tensor", self.norm(torch.where(has_event[:, -1:], vectors, alone)))
        alone, vectors = vectors[:, :1], vectors[:, 1:]
        return cast("Tensor", self.norm(torch.where(has_event, vectors, alone)))

    def _alone(self, like: Tensor) -> Tensor:
        """Return what the start is mapped to, which sees nothing but itself: ``(1, 1, d)``."""
        vectors = self.start.to(like.dtype).view(1, 1, -1)
        nothing = torch.zeros(1, 0, dtype=torch.bool, device=like.device)
        for block in self.blocks:
            vectors = block(vectors, _Between.of_windows(nothing), last_only=False)
        return vectors


class _Between:
    """What lies between positions that read and those that are read, a start before all others.

    Args:
        places: ``(R, 1 + L)`` how many events each of the first stands after each of the second.
        visible: ``(B or 1, R, 1 + L)`` which may be read.
    """

    def __init__(self, places: Tensor, visible: Tensor) -> None:
        self.visible = visible
        # Bucket 0 is the start, whose distance means nothing: padding may stand between.
        self.places = places.clamp(0, NUM_PLACES - 1) + 1
        self.places[:, 0] = 0

    @staticmethod
    def of_windows(mask: Tensor) -> "_Between":
        """Return what lies between all positions of ``(B, L)`` windows and the start before them."""
        places = ages(mask.shape[1] + 1, mask.device)
        return _Between(places, (places >= 0) & F.pad(mask, (1, 0), value=True)[:, None, :])


class _Block(nn.Module):
    """Attention, then a gated layer; each adds to what it reads."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.norm_attention, self.norm_gated = (nn.RMSNorm(dim, eps=1e-6) for _ in range(2))
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.by_place = nn.Parameter(torch.zeros(NUM_PLACES + 1, num_heads))
        width = 2 * dim
        self.gate_up = nn.Linear(dim, 2 * width, bias=False)
        self.down = nn.Linear(width, dim, bias=False)

    def forward(self, vectors: Tensor, between: _Between, *, last_only: bool) -> Tensor:
        """Map ``(B, 1 + L, d)`` to the same, or to ``(B, 1, d)``."""
        normed = self.norm_attention(vectors)
        keys, values = self.key_value(normed).chunk(2, dim=-1)
        rows = slice(-1, None) if last_only else slice(None)
        return self._map(vectors[:, rows], normed[:, rows], keys, values, self._bias(between, rows))

    def step(
        self, vectors: Tensor, before: Sequence[Tensor], between: _Between
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map ``(B, 1, d)`` to the same; return it with all keys and values, ``(B, 1 + n, d)``.

        Args:
            vectors: Of the last position.
            before: Keys and values of the ``n`` positions before; empty where there are none.
            between: It and all positions.
        """
        normed = self.norm_attention(vectors)
        keys, values = self.key_value(normed).chunk(2, dim=-1)
        if before:
            keys, values = (torch.cat(p, dim=1) for p in zip(before, (keys, values), strict=True))
        mapped = self._map(vectors, normed, keys, values, self._bias(between, slice(None)))
        return mapped, keys, values

    def _map(
        self, read: Tensor, normed: Tensor, keys: Tensor, values: Tensor, bias: Tensor
    ) -> Tensor:
        num, length, dim = normed.shape
        queries, keys, values = (
            part.reshape(num, part.shape[1], self.num_heads, dim // self.num_heads).transpose(1, 2)
            for part in (self.query(normed), keys, values)
        )
        bias = bias.to(normed.dtype)
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        attended = self.out(found.transpose(1, 2).reshape(num, length, dim))
        read = read + dropout(attended, self.dropout, self.training)
        gate, up = self.gate_up(self.norm_gated(read)).chunk(2, dim=-1)
        return read + dropout(self.down(F.silu(gate) * up), self.dropout, self.training)

    def _bias(self, between: _Between, rows: slice) -> Tensor:
        bias = F.embedding(between.places[rows], self.by_place)[None]  # (1, R, 1 + L, heads)
        hidden = ~between.visible[:, rows, :, None]
        return bias.masked_fill(hidden, -math.inf).permute(0, 3, 1, 2)


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
        self.blocks = nn.ModuleList(_SASRecBlock(dim, dropout) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(dim)

    def forward(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Map ``(B, L, d)`` to ``(B, L, d)``."""
        places = (mask.cumsum(dim=1) - 1).clamp(0, len(self.positions) - 1)
        vectors = item_vectors.masked_fill(~mask[:, :, None], 0.0) * self.scale
        vectors = dropout(vectors + self.positions[places], self.dropout, self.training)
        age = ages(mask.shape[1], mask.device)
        # A padded position reads itself, so that no softmax is of nothing.
        visible = (age >= 0) & mask[:, None, :] | (age == 0)
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
        vectors, caches = _stepped(self.blocks, vectors, caches)
        return cast("Tensor", self.norm(vectors[:, 0])), caches


class _SASRecBlock(nn.Module):
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


def _stepped(
    blocks: nn.ModuleList, vectors: Tensor, caches: State, *visible: object
) -> tuple[Tensor, State]:
    """Map a position after all others by each block, and return it with all keys and values.

    Args:
        blocks: Each with a method ``step``.
        vectors: ``(B, 1, d)`` of the position.
        caches: Keys and values of the positions before, by block; empty where there are none.
        visible: Passed on to each block.
    """
    kept: list[Tensor] = []
    for i, block in enumerate(blocks):
        vectors, *after = cast("Any", block).step(vectors, caches[2 * i : 2 * i + 2], *visible)
        kept += after
    return vectors, tuple(kept)
