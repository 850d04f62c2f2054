"""Softmax cross-entropy of each query's own item against shared candidates, in chunks."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from twotower.losses.negatives import Candidates

# Logits held at once. On a CPU 2 MB stay in the cache, which is worth more than longer products
# (measured at N = 950 to 5,000, d = 64); elsewhere a chunk must be long enough to hide its launch.
CPU_CHUNK_LOGITS = 2**19
DEVICE_CHUNK_LOGITS = 2**26


class SoftmaxLoss:
    """Softmax over the candidates, corrected by their ``log_q``: the default for retrieval.

    Source: Yi et al., RecSys 2019, section 3.
    """

    def __call__(
        self,
        query_vectors: Tensor,
        item_vectors: Tensor,
        candidates: Candidates,
        *,
        temperature: float | Tensor = 1.0,
        hidden: Tensor | None = None,
        weights: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted mean loss of the batch: a scalar, in nats.

        Args:
            query_vectors: ``(B, d)`` float.
            item_vectors: ``(N, d)`` float vectors of ``candidates.item_rows``.
            candidates: What the queries are scored against.
            temperature: Divisor of the dot products, above 0; a tensor of one value is learnt.
            hidden: ``(B, H)`` int64 places of candidates that are no negative of a query; a query
                with fewer repeats the place of its own item. None hides nothing.
            weights: ``(B,)`` float, at least 0 and not all 0; None where all are 1.
            labels: ``(B,)`` 0 or 1, all of which must be 1; None says the same.

        Raises:
            ValueError: A label is 0, or what ``softmax_loss`` raises.
        """
        positions = candidates.positions
        check_shapes(query_vectors, item_vectors, positions, labels=labels)
        if labels is not None and bool((labels == 0).any()):
            raise ValueError(
                f"labels must all be 1 for the softmax loss, got {int((labels == 0).sum())} of 0; "
                "leave those rows out, or train with BCELoss."
            )
        return softmax_loss(
            query_vectors,
            item_vectors,
            positions,
            temperature=temperature,
            log_q=candidates.log_q,
            never=candidates.never,
            hidden=hidden,
            weights=weights,
        )


def softmax_loss(
    query_vectors: Tensor,
    item_vectors: Tensor,
    positions: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    log_q: Tensor | None = None,
    never: Tensor | None = None,
    hidden: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the weighted mean over queries of ``-log softmax(logits)[own]``: a scalar, in nats.

    The logit of query ``b`` and candidate ``j`` is ``<query_b, item_j> / temperature - log_q_j``,
    the own item's included. The ``(B, N)`` logits are never kept: gradients are computed chunk by
    chunk beside the loss, so memory is ``O(chunk)`` and the backward pass costs nothing; there is
    no second derivative. Half precision is computed in float32.

    Args:
        query_vectors: ``(B, d)`` float, ``B`` at least 1.
        item_vectors: ``(N, d)`` float.
        positions: ``(B,)`` int64 in ``0..N-1``, the own item of each query; it is never hidden.
        temperature: Divisor of the dot products, above 0; a tensor of one value gets a gradient.
        log_q: ``(N,)`` or ``(B, N)`` float, not differentiated; None is 0.
        never: ``(N,)`` bool, candidates that no query is scored against.
        hidden: ``(B, H)`` int64 places of candidates that a query is not scored against.
        weights: ``(B,)`` float, at least 0 and not all 0, not differentiated; None is 1.

    Raises:
        ValueError: A shape does not fit, the batch is empty, or a number ``temperature`` is not
            finite and above 0.

    Source: Yi et al., RecSys 2019, section 3. Differs: candidates can be hidden.
    """
    check_shapes(query_vectors, item_vectors, positions, hidden=hidden, weights=weights)
    check_temperature(temperature)
    batch, num = len(query_vectors), len(item_vectors)
    if log_q is not None and log_q.shape not in ((num,), (batch, num)):
        raise ValueError(f"log_q must be ({num},) or ({batch}, {num}), got {tuple(log_q.shape)}.")
    loss: Tensor = _ChunkedSoftmax.apply(  # type: ignore[no-untyped-call]
        _at_least_float32(query_vectors),
        _at_least_float32(item_vectors),
        temperature,
        positions,
        log_q,
        never,
        hidden,
        weights,
        torch.is_grad_enabled(),
    )
    return loss


class _ChunkedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        items: Tensor,
        temperature: float | Tensor,
        positions: Tensor,
        log_q: Tensor | None,
        never: Tensor | None,
        hidden: Tensor | None,
        weights: Tensor | None,
        grad_enabled: bool,
    ) -> Tensor:
        num = len(items)
        wants_grad = grad_enabled and any(ctx.needs_input_grad[:3])
        shares = torch.ones_like(positions, dtype=queries.dtype) if weights is None else weights
        shares = (shares / shares.sum()).to(queries.dtype)
        scaled = queries / temperature  # (B, d)
        is_cpu = queries.device.type == "cpu"
        step = max(1, (CPU_CHUNK_LOGITS if is_cpu else DEVICE_CHUNK_LOGITS) // num)
        step = min(step, len(queries))
        logits_buffer = queries.new_empty((step, num))
        probs_buffer = queries.new_empty((step, num))
        loss = queries.new_zeros(())
        query_grads = torch.empty_like(queries)
        item_grads = queries.new_zeros((items.shape[1], num))  # (d, N): the quicker product
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            own, share = positions[part, None], shares[part, None]
            logits = torch.mm(scaled[part], items.T, out=logits_buffer[: len(own)])
            if log_q is not None:
                logits.sub_(log_q if log_q.ndim == 1 else log_q[part])
            own_logits = logits.gather(1, own)
            if never is not None:
                logits.masked_fill_(never, -math.inf)
            if hidden is not None:
                logits.scatter_(1, hidden[part], -math.inf)
            if never is not None or hidden is not None:
                logits.scatter_(1, own, own_logits)  # the own item stays: no row is all -inf
            highest = logits.amax(1, keepdim=True)
            probs = torch.softmax(logits, 1, out=probs_buffer[: len(own)])
            # The greatest probability is exp(highest - logsumexp), at least 1 / N: no overflow.
            row_losses = highest - probs.amax(1, keepdim=True).log() - own_logits
            loss += (row_losses * share).sum()
            if wants_grad:
                probs.scatter_add_(1, own, torch.full_like(own_logits, -1))
                torch.mm(probs, items, out=query_grads[part]).mul_(share)
                item_grads.addmm_((scaled[part] * share).T, probs)
        if wants_grad:
            query_grads /= temperature
            # d loss / d temperature, since each logit's dot product is homogeneous in the query.
            temperature_grad = -(query_grads * queries).sum() / temperature
            ctx.save_for_backward(query_grads, item_grads.T, temperature_grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grads = [
            grad * grad_outputs[0] if needed else None
            for grad, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[:3], strict=True)
        ]
        return (*grads, None, None, None, None, None, None)


def check_temperature(temperature: float | Tensor) -> None:
    """Refuse a number that cannot divide; a tensor is the model's own and is not looked into.

    Raises:
        ValueError: A number is not finite and above 0, or a tensor has more than one value.
    """
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1:
            raise ValueError(f"temperature must be one value, got {temperature.numel()}.")
    elif not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be finite and above 0, got {temperature}.")


def check_shapes(
    query_vectors: Tensor,
    item_vectors: Tensor,
    positions: Tensor,
    **others: Tensor | None,
) -> None:
    """Refuse tensors that do not fit each other.

    Args:
        query_vectors: ``(B, d)``, ``B`` at least 1.
        item_vectors: ``(N, d)``.
        positions: ``(B,)``.
        **others: ``hidden``: ``(B, H)``; any other: ``(B,)``; each may be None.

    Raises:
        ValueError: A shape is another.
    """
    if not len(query_vectors):
        raise ValueError("query_vectors must hold at least 1 query, got 0; skip empty batches.")
    if query_vectors.shape[1] != item_vectors.shape[1]:
        raise ValueError(
            f"query_vectors and item_vectors must be equally wide, "
            f"got {query_vectors.shape[1]} and {item_vectors.shape[1]}."
        )
    batch = len(query_vectors)
    for name, tensor in {"positions": positions, **others}.items():
        if name == "hidden" and tensor is not None:
            if tensor.ndim != 2 or len(tensor) != batch or tensor.dtype != torch.int64:
                raise ValueError(
                    f"hidden must be ({batch}, H) int64 places among the candidates, got "
                    f"{tuple(tensor.shape)} {tensor.dtype}."
                )
            continue
        shape = (batch,)
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}.")


def _at_least_float32(vectors: Tensor) -> Tensor:
    return vectors.float() if vectors.dtype in (torch.float16, torch.bfloat16) else vectors
