"""What every loss refuses before it computes."""

import math

import torch
from torch import Tensor

from twotower.errors import ArgumentError
from twotower.losses.candidates import Candidates, in_batch
from twotower.losses.corrections import masked_places


def check_temperature(temperature: float | Tensor) -> None:
    """Refuse a number that cannot divide; a tensor is the model's own and is not looked into.

    Raises:
        ValueError: A number is not finite and above 0, or a tensor has more than one value.
    """
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1:
            raise ArgumentError(f"temperature must be one value, got {temperature.numel()}.")
    elif not 0 < temperature < math.inf:
        raise ArgumentError(f"temperature must be finite and above 0, got {temperature}.")


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
        raise ArgumentError("query_vectors must hold at least 1 query, got 0; skip empty batches.")
    if query_vectors.shape[1] != item_vectors.shape[1]:
        raise ArgumentError(
            f"query_vectors and item_vectors must be equally wide, "
            f"got {query_vectors.shape[1]} and {item_vectors.shape[1]}."
        )
    batch = len(query_vectors)
    for name, tensor in {"positions": positions, **others}.items():
        if name == "hidden" and tensor is not None:
            if tensor.ndim != 2 or len(tensor) != batch or tensor.dtype != torch.int64:
                raise ArgumentError(
                    f"hidden must be ({batch}, H) int64 places among the candidates, got "
                    f"{tuple(tensor.shape)} {tensor.dtype}."
                )
            continue
        shape = (batch,)
        if tensor is not None and tensor.shape != shape:
            raise ArgumentError(f"{name} must be {shape}, got {tuple(tensor.shape)}.")


def completed(
    query_vectors: Tensor,
    item_vectors: Tensor,
    candidates: Candidates | None,
    log_q: Tensor | None,
    hidden: Tensor | None,
) -> tuple[Candidates, Tensor | None]:
    """Return the candidates and hidden places of a loss that was called with plain tensors, or with both.

    Args:
        query_vectors: ``(B, d)``.
        item_vectors: ``(N, d)``.
        candidates: Of the batch; None for those of ``in_batch``.
        log_q: As of ``Candidates``; None beside ``candidates``, which hold their own.
        hidden: ``(B, H)`` int64 places, or a ``(B, N)`` bool mask, which becomes such places.

    Raises:
        ValueError: ``log_q`` stands beside ``candidates``, a mask has another shape, or as ``in_batch``.
    """
    if candidates is None:
        candidates = in_batch(query_vectors, item_vectors, log_q)
    elif log_q is not None:
        raise ArgumentError("log_q must be None beside candidates; set Candidates.log_q.")
    if hidden is None or hidden.dtype != torch.bool:
        return candidates, hidden
    shape = (len(candidates.positions), len(candidates))
    if hidden.shape != shape:
        raise ArgumentError(f"a mask as hidden must be {shape}, got {tuple(hidden.shape)}.")
    return candidates, masked_places(hidden, candidates.positions) if shape[0] else None


def check_all_liked(labels: Tensor | None, loss: str) -> None:
    """Refuse labels other than 1, for a loss that has no place for a pair that is no match.

    Args:
        labels: ``(B,)``, or None, which says that all are 1.
        loss: Its name, for the message.

    Raises:
        ValueError: A label is not 1.
    """
    if labels is not None and bool((labels != 1).any()):
        other = labels[labels != 1][0]
        raise ArgumentError(
            f"labels must all be 1 for the {loss} loss, got {int((labels == other).sum())} of "
            f"{other.item():g}; leave those rows out, or train with BCELoss."
        )
