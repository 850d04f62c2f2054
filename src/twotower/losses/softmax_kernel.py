"""The softmax over shared candidates, forward and backward at once, in chunks of queries.

What keeps its cost near that of three matrix products and ``B x N`` exponentials:

- A chunk's logits are computed once, in a buffer that is used again; their exponentials serve the
  loss and both gradients. Nothing of size ``B x N`` is ever allocated.
- A pass over the logits costs a twentieth of the whole, so there are few: ``log_q`` is one more
  column of the product, and probabilities are normalised in results of size ``(B, d)``.
- A library that makes code for each shape of a product takes milliseconds at the first sight of one,
  and each batch has another number of candidates. So widths are rounded up, and few shapes occur.
- Own items take part outside of the product. Their logits are exact in any precision, candidates
  that are nobody's negative need no column, and ``p - 1`` keeps its digits as ``p`` nears 1.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from twotower.errors import ArgumentError
from twotower.workers import of_each, slices

# Queries a chunk on a CPU: with fewer the products are slow, with more the logits leave the cache
# (measured at N = 500 to 65,000, d = 64, in both precisions).
CPU_CHUNK_ROWS, CPU_CHUNK_LOGITS, CPU_LEAST_ROWS = 512, 11 * 2**18, 64
# Parts of a batch that threads may compute side by side, each with sums of its own for the items'
# gradients: at most so many, so many numbers in all of their sums (64 MB), and so many queries at least.
MOST_PARTS, MOST_SUMS, LEAST_PART_ROWS = 4, 2**24, 512
# Widths of products are multiples of 32 up to 1,024, then of a 32nd to a 16th of themselves
# (docs/decisions/0067).
LEAST_WIDTH_STEP = 32
# Elsewhere a chunk must be long enough to hide its launch.
DEVICE_CHUNK_LOGITS = 2**26
# Logits that are no further than this from 0 need no shift before the exponential: sums are finite,
# probabilities have all their digits.
MOST_UNSHIFTED = 40.0
# After the shift, e^-60 is nothing beside the greatest, 1. What is below must not be computed as it
# is: an exponential that underflows takes 80 times as long, a product of subnormal numbers 100 times.
LEAST_SHIFTED = -60.0


class ChunkedSoftmax(torch.autograd.Function):
    """``softmax_loss`` of arguments that were checked; the arguments and the formula stand there.

    ``targets`` are the ``(B, 1)`` int64 places of the own items.
    ``hidden`` returns the ``(rows, H)`` int64 places that are hidden in a slice of the batch, so
    that they need not be in memory all at once. Gradients are computed beside the loss.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        items: Tensor,
        temperature: float | Tensor,
        targets: Tensor,
        log_q: Tensor | None,
        never: Tensor | None,
        hidden: Callable[[slice], Tensor] | None,
        weights: Tensor | None,
        item_factors: Tensor | None,
        label_smoothing: float,
        precision: torch.dtype,
        grad_enabled: bool,
    ) -> Tensor:
        """Return the loss, and keep its gradients for ``backward``."""
        wants_grad = grad_enabled and any(ctx.needs_input_grad[:3])
        chunks = _Chunks(queries, items, temperature, log_q, never, precision)
        own_logits = chunks.own_logits(targets)  # (B, 1)
        own_shares = torch.ones_like(own_logits)
        weights = torch.ones_like(own_logits[:, 0]) if weights is None else weights
        weights = (weights / weights.sum()).to(queries.dtype)[:, None]  # (B, 1)
        losses, shifts = torch.zeros_like(weights), torch.zeros_like(weights)
        sums = torch.empty_like(weights)
        in_parts = (targets, own_shares, own_logits, weights, losses, shifts, sums)
        in_chunks = list(zip(*(x.split_with_sizes(chunks.sizes) for x in in_parts), strict=True))

        parts = [_Part(chunks, numbers) for numbers in chunks.cuts]

        def compute(part: "_Part") -> None:
            # After a product the cache is cold for what Python needs: little is done in this loop.
            with part:
                for number in part.numbers:
                    places, own_share, own_logit, weight, loss, shift, total = in_chunks[number]
                    whole, logits = part.logits(number)
                    left_out = chunks.left_out(number, places, hidden)
                    if label_smoothing:
                        spread, spread_sum = part.spread(number, left_out, label_smoothing)
                        own_share *= 1 - spread_sum
                        loss -= part.dots(spread, logits)
                    chunks.exponentiate(whole, left_out, own_logit, shift)
                    # Numbers in half precision are added in float32. A sum with ``dtype`` would copy
                    # them first.
                    total.copy_(logits.sum(1, keepdim=True))
                    if wants_grad:
                        factors = weight / (own_logit - shift).exp_().add_(total)
                        if label_smoothing:
                            logits.mul_(factors).sub_(spread.mul_(weight))
                            factors.fill_(1)
                        part.add_gradients(number, whole, factors)

        of_each(compute, parts)
        ahead = sums.log() + shifts - own_logits  # of all negatives together, as a logit
        excesses = torch.logaddexp(ahead, torch.zeros_like(ahead))
        losses += excesses
        losses += own_logits - own_shares * own_logits
        if wants_grad:
            # Without smoothing, exactly minus the probability of all others, however small.
            slopes = (1 - own_shares - (ahead - excesses).exp()) * weights
            query_grads, item_grads = chunks.gradients(parts, targets, slopes, item_factors)
            query_grads /= temperature
            # d loss / d temperature, since each logit's dot product is homogeneous in the query.
            temperature_grad = -(query_grads * queries).sum() / temperature
            ctx.save_for_backward(query_grads, item_grads, temperature_grad)
        return (losses * weights).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the queries, the items and the temperature."""
        grads = [
            grad * grad_outputs[0] if needed else None
            for grad, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[:3], strict=True)
        ]
        return (*grads, *[None] * 9)


def padded_width(num: int) -> int:
    """Return the width of the products with ``num`` columns: at least ``num``, and one of few."""
    step = max(LEAST_WIDTH_STEP, 1 << max(0, num.bit_length() - 5))
    return -(-num // step) * step


class _Chunks:
    """A batch and its candidates, for products of a chunk of the queries at a time.

    Columns are the candidates that can be a negative, in order; where some cannot, there is one column
    more, without weight, which stands for all of those.
    """

    def __init__(
        self,
        queries: Tensor,
        items: Tensor,
        temperature: float | Tensor,
        log_q: Tensor | None,
        never: Tensor | None,
        precision: torch.dtype,
    ) -> None:
        batch, dim = queries.shape
        self._items = items
        self.log_q = None if log_q is None else log_q.to(queries.dtype)
        self.kept: Tensor | None = None
        num = len(items)
        if never is not None:
            kept = never.logical_not().nonzero().squeeze(1)
            self._column_of = torch.full_like(never, len(kept), dtype=torch.int64)
            self._column_of[kept] = torch.arange(len(kept), device=kept.device)
            self.kept = torch.cat([kept, kept.new_zeros(1)])  # the last column is overwritten
            num = len(self.kept)
        self.num = num
        width = padded_width(num)
        is_shared = self.log_q is not None and self.log_q.ndim == 1
        left = queries.new_empty((batch, dim + is_shared))
        scaled = torch.div(queries, temperature, out=left[:, :dim])
        # Beyond the columns there are zeros, which add nothing to a product.
        read = items.new_zeros((width, dim + is_shared), dtype=precision)
        self.negatives = read[:, :dim]
        self.negatives[:num] = items if self.kept is None else items[self.kept]
        self.right = read.T
        self._offset: float | Tensor = 0.0
        span: float | Tensor = 0.0
        if self.log_q is not None and is_shared:
            # Constants cancel: centred, more logits are near 0.
            least, greatest = self.log_q.aminmax()
            self._offset, span = (least + greatest) / 2, (greatest - least) / 2
            left[:, dim] = 1
            shared = self.log_q if self.kept is None else self.log_q[self.kept]
            read[:num, dim] = self._offset - shared
        is_cpu = queries.device.type == "cpu"
        rows = DEVICE_CHUNK_LOGITS // width
        self._is_bounded = False
        if is_cpu:
            rows = max(CPU_CHUNK_LOGITS // width, CPU_LEAST_ROWS)
            rows = min(CPU_CHUNK_ROWS, 2 ** (rows.bit_length() - 1))  # few shapes, as of the widths
        if is_cpu and (log_q is None or is_shared):  # elsewhere, to look would be to wait
            norms = [torch.linalg.vector_norm(x, dim=1).max() for x in (scaled, items)]
            self._is_bounded = bool(norms[0] * norms[1] + span <= MOST_UNSHIFTED)
        self.rows = min(max(rows, 1), batch)
        self.sizes = [min(self.rows, batch - start) for start in range(0, batch, self.rows)]
        self.scaled, self.scaled_parts = scaled, scaled.split_with_sizes(self.sizes)
        self.left_parts = left.to(precision).split_with_sizes(self.sizes)
        self.query_grads = torch.empty_like(queries)
        self.query_grad_parts = self.query_grads.split_with_sizes(self.sizes)
        most = max(1, min(MOST_PARTS, MOST_SUMS // (dim * width))) if is_cpu else 1
        self.cuts = slices(len(self.sizes), most, LEAST_PART_ROWS // self.rows)
        """Which chunks each part has."""
        self.idle: list[_Buffers] = []
        """Buffers that no part has now."""

    def own_logits(self, targets: Tensor) -> Tensor:
        """Return the logits of ``(B, 1)`` places: ``(B, 1)``."""
        own = self._items.index_select(0, targets[:, 0]).mul_(self.scaled).sum(1, keepdim=True)
        if self.log_q is not None:
            is_shared = self.log_q.ndim == 1
            own -= self.log_q[targets] if is_shared else self.log_q.gather(1, targets)
        return own.add_(self._offset)

    def left_out(
        self, number: int, targets: Tensor, hidden: Callable[[slice], Tensor] | None
    ) -> Tensor:
        """Return the cells of a chunk that are no negatives.

        Args:
            number: Of the chunk.
            targets: ``(rows, 1)`` int64 places of the own items.
            hidden: Returns the places that are hidden in a slice of the batch, ``(rows, H)``; or None.

        Returns:
            Int64 numbers of the cells of ``(rows, width)``, counted row by row, in one dimension.

        Raises:
            ValueError: A hidden place is not among the candidates; on a CPU alone, since elsewhere to look
                would be to wait.
        """
        if hidden is not None:
            places = hidden(self.lines(number))
            _check_places(places, len(self._items))
            targets = torch.cat([targets, places], dim=1)
        if self.kept is not None:
            nobodys = targets.new_full((len(targets), 1), len(self.kept) - 1)
            targets = torch.cat([self._column_of[targets], nobodys], dim=1)
        width = self.right.shape[1]
        starts = torch.arange(0, len(targets) * width, width, device=targets.device)
        # ``index_fill_`` writes these cells alone; ``scatter_`` would copy all logits in half precision.
        return (targets + starts[:, None]).flatten()

    def exponentiate(self, whole: Tensor, left_out: Tensor, own: Tensor, shift: Tensor) -> None:
        """Turn a chunk's logits into ``exp(logits - shift)``, 0 where left out.

        Args:
            whole: ``(rows, width)`` logits, changed in place.
            left_out: Numbers of the cells that become 0.
            own: ``(rows, 1)`` logits of the own items.
            shift: ``(rows, 1)`` of 0, which becomes the greatest logit where one could overflow.
        """
        logits = whole[:, : self.num]
        if not self._is_bounded:
            whole.view(-1).index_fill_(0, left_out, torch.finfo(whole.dtype).min)
            torch.maximum(logits.amax(1, keepdim=True), own, out=shift)
            logits.sub_(shift).clamp_min_(LEAST_SHIFTED)
        logits.exp_()
        whole.view(-1).index_fill_(0, left_out, 0)

    def gradients(
        self,
        parts: "Sequence[_Part]",
        targets: Tensor,
        slopes: Tensor,
        item_factors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of the scaled queries, ``(B, d)``, and of the items, ``(N, d)``.

        Args:
            parts: Of the batch.
            targets: ``(B, 1)`` places of the own items.
            slopes: ``(B, 1)`` derivatives of the loss by their logits.
            item_factors: ``(N,)`` of what the items got as negatives; None is 1.
        """
        sums, *others = (cast("Tensor", part.item_grads) for part in parts)
        for each in others:
            sums += each
        item_grads = sums[: self.num]
        if self.kept is not None:
            of_kept, item_grads = item_grads, torch.zeros_like(self._items)
            item_grads.index_add_(0, self.kept, of_kept)
        if item_factors is not None:
            item_grads *= item_factors[:, None]
        vectors = self._items.index_select(0, targets[:, 0])
        self.query_grads.addcmul_(vectors, slopes)
        item_grads.index_add_(0, targets[:, 0], torch.mul(self.scaled, slopes, out=vectors))
        return self.query_grads, item_grads

    def lines(self, number: int) -> slice:
        """Return which queries a chunk has."""
        return slice(number * self.rows, (number + 1) * self.rows)


def _check_places(places: Tensor, num: int) -> None:
    if places.device.type != "cpu" or not places.numel():
        return
    least, greatest = (int(place) for place in places.aminmax())
    if least < 0 or greatest >= num:
        wrong = least if least < 0 else greatest
        raise ArgumentError(
            f"hidden must hold places among the {num} candidates, 0 to {num - 1}, got {wrong}; let a query "
            "with fewer repeat the place of its own item."
        )


class _Buffers:
    """Memory for the products of a chunk, ``(rows, width)`` each."""

    def __init__(self, rows: int, like: Tensor) -> None:
        self.logits = like.new_empty((rows, like.shape[1]))

    @cached_property
    def spread(self) -> Tensor:
        """For the target of the negatives."""
        return torch.empty_like(self.logits)

    @cached_property
    def products(self) -> Tensor:
        """For products of numbers."""
        return torch.empty_like(self.logits)


class _Part:
    """The products of some chunks, which one thread computes: with buffers and sums of its own.

    Args:
        chunks: Of the batch.
        numbers: Of the chunks.
    """

    def __init__(self, chunks: _Chunks, numbers: slice) -> None:
        self.numbers = range(numbers.start, numbers.stop)
        self._chunks = chunks
        self._buffers: _Buffers
        self.item_grads: Tensor | None = None
        """``(width, d)``."""

    def __enter__(self) -> None:
        """Take buffers that another part has left, or new ones."""
        chunks = self._chunks
        try:
            self._buffers = chunks.idle.pop()
        except IndexError:
            self._buffers = _Buffers(chunks.rows, chunks.right)

    def __exit__(self, *_: object) -> None:
        """Leave the buffers to another part."""
        self._chunks.idle.append(self._buffers)

    def logits(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the logits of a chunk, in the one buffer that there is.

        Returns:
            ``(rows, width)``, with 0 beyond the columns, and of these the columns, ``(rows, n)``.
        """
        chunks = self._chunks
        left = chunks.left_parts[number]
        whole = torch.mm(left, chunks.right, out=self._buffers.logits[: left.shape[0]])
        logits = whole[:, : chunks.num]
        if chunks.log_q is not None and chunks.log_q.ndim == 2:
            log_q = chunks.log_q[chunks.lines(number)]
            logits.sub_(log_q if chunks.kept is None else log_q[:, chunks.kept])
        return whole, logits

    def spread(self, number: int, left_out: Tensor, total: float) -> tuple[Tensor, Tensor]:
        """Return the target of a chunk's negatives, which sums to ``total`` where there is one.

        Args:
            number: Of the chunk.
            left_out: Numbers of the cells that are no negatives.
            total: Share of the target that is spread.

        Returns:
            ``(rows, n)``, proportional to ``1 / q``, and its sums, ``(rows, 1)``.
        """
        chunks = self._chunks
        whole = self._buffers.spread[: chunks.sizes[number]]
        spread = whole[:, : chunks.num]
        if chunks.log_q is None:
            spread.fill_(1)
        else:
            log_q = chunks.log_q if chunks.log_q.ndim == 1 else chunks.log_q[chunks.lines(number)]
            kept = log_q if chunks.kept is None else log_q[..., chunks.kept]
            spread.copy_((-kept).softmax(-1))
        whole.view(-1).index_fill_(0, left_out, 0)
        sums = spread.sum(1, keepdim=True, dtype=chunks.scaled.dtype)
        spread.mul_(torch.where(sums > 0, total / sums, 0))
        return spread, torch.where(sums > 0, total, torch.zeros_like(sums))

    def dots(self, spread: Tensor, logits: Tensor) -> Tensor:
        """Return the dot product of each row of one with that of the other: ``(rows, 1)``."""
        # A product of matrices, one a row, would take four times as long.
        products = torch.mul(
            spread, logits, out=self._buffers.products[: spread.shape[0], : spread.shape[1]]
        )
        return products.sum(1, keepdim=True, dtype=self._chunks.scaled.dtype)

    def add_gradients(self, number: int, slopes: Tensor, factors: Tensor) -> None:
        """Add what a chunk's negatives contribute.

        Args:
            number: Of the chunk.
            slopes: ``(rows, width)`` derivatives of the loss by the logits, 0 beyond the columns.
            factors: ``(rows, 1)`` which they still lack.
        """
        chunks = self._chunks
        scaled = chunks.scaled_parts[number] * factors
        query_grads = chunks.query_grad_parts[number]
        if slopes.dtype == scaled.dtype:
            torch.mm(slopes, chunks.negatives, out=query_grads)
        else:
            query_grads.copy_(torch.mm(slopes, chunks.negatives))
            scaled = scaled.to(slopes.dtype)
        if self.item_grads is None:
            self.item_grads = torch.mm(slopes.T, scaled).to(query_grads.dtype)
        elif scaled.dtype == self.item_grads.dtype:
            self.item_grads.addmm_(slopes.T, scaled)
        else:
            self.item_grads += torch.mm(slopes.T, scaled)
        query_grads.mul_(factors)
