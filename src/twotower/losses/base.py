"""The base of every loss: one call, the batch that it makes of its arguments, and what it refuses."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from twotower.errors import ArgumentError, check_positive
from twotower.losses.candidates import Candidates, in_batch, masked_places


@dataclass(frozen=True, eq=False)
class Batch:
    """The arguments of a loss, checked: see ``BatchLoss.__call__`` for what they are.

    Args:
        queries: ``(B, d)`` float.
        items: ``(N, d)`` float.
        candidates: Of the ``N`` items.
        temperature: Divisor of the dot products.
        hidden: ``(B, H)`` int64 places of candidates that are no negative of a query, or None.
        weights: ``(B,)`` float, or None.
        labels: ``(B,)`` float, or None.
    """

    queries: Tensor
    items: Tensor
    candidates: Candidates
    temperature: float | Tensor = 1.0
    hidden: Tensor | None = None
    weights: Tensor | None = None
    labels: Tensor | None = None

    def take(self, part: slice) -> "Batch":
        """Return some of the queries, which have candidates of their own; without weights and labels."""
        candidates, log_q = self.candidates, self.candidates.log_q
        assert candidates.columns is not None
        own = replace(
            candidates,
            positions=candidates.positions[part],
            columns=candidates.columns[part],
            log_q=log_q if log_q is None or log_q.ndim == 1 else log_q[part],
        )
        hidden = None if self.hidden is None else self.hidden[part]
        return Batch(self.queries[part], self.items, own, self.temperature, hidden)


class BatchLoss(ABC):
    """A loss that can be called with a sampler's candidates, or with plain tensors."""

    name: ClassVar[str]
    """In messages, as in ``loss.kind``."""
    takes_labels: ClassVar[bool] = False
    """Whether a pair labelled 0 has a meaning; otherwise it is refused."""

    def __call__(
        self,
        query_vectors: Tensor,
        item_vectors: Tensor,
        candidates: Candidates | None = None,
        *,
        log_q: Tensor | None = None,
        temperature: float | Tensor = 1.0,
        hidden: Tensor | None = None,
        weights: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted mean loss of the batch: a scalar.

        Args:
            query_vectors: ``(B, d)`` float.
            item_vectors: ``(N, d)`` float vectors of ``candidates.item_rows``.
            candidates: From a sampler. None for plain tensors: item ``b`` is the own item of query
                ``b``, and the other items are its negatives, those beyond the first ``B`` included.
            log_q: ``(N,)`` or ``(B, N)`` float log probability of each item as a negative, for plain
                tensors; see ``Candidates``. None where all are equally likely.
            temperature: Divisor of the dot products, above 0; a tensor of one value is learnt.
            hidden: ``(B, N)`` bool mask of candidates that are no negative of a query; or their places
                as ``known_positives`` returns them, ``(B, H)`` int64, in which a query with fewer
                repeats the place of its own item. None hides nothing.
            weights: ``(B,)`` float, at least 0 and not all 0; None where all are 1.
            labels: ``(B,)`` float in 0..1: whether the query likes its own item; None where all do.

        Raises:
            ValueError: A shape does not fit, the batch is empty, a label is not 1 and the loss takes no
                other, or a number ``temperature`` is not finite and above 0.
        """
        if candidates is None:
            candidates = in_batch(query_vectors, item_vectors, log_q)
        elif log_q is not None:
            raise ArgumentError("log_q must be None beside candidates; set Candidates.log_q.")
        if hidden is not None and hidden.dtype == torch.bool:
            hidden = masked_places(hidden, candidates)
        given = {"hidden": hidden, "weights": weights, "labels": labels}
        check_shapes(query_vectors, item_vectors, candidates.positions, **given)
        check_temperature(temperature)
        if not self.takes_labels:
            check_all_liked(labels, self.name)
        return self._of(Batch(query_vectors, item_vectors, candidates, temperature, **given))

    @abstractmethod
    def _of(self, batch: Batch) -> Tensor:
        """Return the weighted mean loss of a batch: a scalar."""


def check_temperature(temperature: float | Tensor) -> None:
    """Refuse a number that cannot divide; a tensor is the model's own and is not looked into.

    Raises:
        ValueError: A number is not finite and above 0, or a tensor has more than one value.
    """
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1:
            raise ArgumentError(f"temperature must be one value, got {temperature.numel()}.")
    else:
        check_positive(temperature=temperature)


def check_shapes(
    query_vectors: Tensor,
    item_vectors: Tensor,
    positions: Tensor,
    *,
    hidden: Tensor | None = None,
    **others: Tensor | None,
) -> None:
    """Refuse tensors that do not fit each other.

    Args:
        query_vectors: ``(B, d)``, ``B`` at least 1.
        item_vectors: ``(N, d)``.
        positions: ``(B,)``.
        hidden: ``(B, H)`` int64, or None.
        **others: ``(B,)``, or None.

    Raises:
        ValueError: A shape differs.
    """
    batch = len(query_vectors)
    if not batch:
        raise ArgumentError("query_vectors must hold at least 1 query, got 0; skip empty batches.")
    if query_vectors.shape[1] != item_vectors.shape[1]:
        raise ArgumentError(
            f"query_vectors and item_vectors must be equally wide, "
            f"got {query_vectors.shape[1]} and {item_vectors.shape[1]}."
        )
    for name, tensor in {"positions": positions, **others}.items():
        if tensor is not None and tensor.shape != (batch,):
            raise ArgumentError(f"{name} must be {(batch,)}, got {tuple(tensor.shape)}.")
    if hidden is not None and (
        hidden.ndim != 2 or len(hidden) != batch or hidden.dtype != torch.int64
    ):
        raise ArgumentError(
            f"hidden must be ({batch}, H) int64 places among the candidates, got "
            f"{tuple(hidden.shape)} {hidden.dtype}."
        )


def check_log_q(log_q: Tensor | None, num_items: int, shape: tuple[int, int]) -> None:
    """Refuse a ``log_q`` that is neither of the items nor of each query's own candidates, ``shape``.

    Raises:
        ValueError: It is another.
    """
    if log_q is not None and log_q.shape not in ((num_items,), shape):
        raise ArgumentError(f"log_q must be {(num_items,)} or {shape}, got {tuple(log_q.shape)}.")


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
