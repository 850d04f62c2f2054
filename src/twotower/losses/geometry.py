"""Contrastive loss with a margin: matches are drawn together, others kept a distance apart."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from twotower.losses.negatives import Candidates
from twotower.losses.pointwise import weighted_mean
from twotower.losses.scores import score
from twotower.losses.softmax import check_shapes

# Below this squared distance the distance is constant: its slope has no limit at 0.
LEAST_SQUARED_DISTANCE = 1e-12


class ContrastiveLoss:
    """Contrastive loss of each own item and, where it is a positive, of sampled negatives.

    The loss of a query is ``contrastive(own, label) + label * mean over negatives of
    contrastive(negative, 0)``, with the mean of ``BCELoss``. Distances are between the vectors
    scaled to length 1, so they run from 0 to 2 and order the items as the cosine does: train
    normalised towers with it.

    Args:
        margin: Distance beyond which a negative costs nothing, above 0 and at most 2.

    Raises:
        ValueError: ``margin`` is out of range.

    Source: Hadsell, Chopra and LeCun, CVPR 2006, section 2.1. Differs: sampled negatives.
    """

    def __init__(self, margin: float = 1.0) -> None:
        _check_margin(margin, greatest=2.0)
        self.margin = margin

    def __call__(
        self,
        query_vectors: Tensor,
        item_vectors: Tensor,
        candidates: Candidates,
        *,
        temperature: float | Tensor = 1.0,  # noqa: ARG002 (the losses' common signature)
        hidden: Tensor | None = None,
        weights: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted mean loss of the batch: a scalar, in squared distance.

        Args:
            query_vectors: ``(B, d)`` float.
            item_vectors: ``(N, d)`` float vectors of ``candidates.item_rows``.
            candidates: What the queries are compared with.
            temperature: Not used: a distance has a margin instead.
            hidden: ``(B, H)`` int64 places of candidates that are no negative of a query; a query
                with fewer repeats the place of its own item. None hides nothing.
            weights: ``(B,)`` float, at least 0 and not all 0; None where all are 1.
            labels: ``(B,)`` float in 0..1: whether the query likes its own item; None where all do.

        Raises:
            ValueError: A shape does not fit, or the batch is empty.
        """
        positions = candidates.positions
        check_shapes(
            query_vectors, item_vectors, positions, hidden=hidden, weights=weights, labels=labels
        )
        queries, items = normalize(query_vectors, dim=1), normalize(item_vectors, dim=1)
        scores = score(queries, items, candidates, hidden)
        squared = (2 - 2 * scores.dots).clamp_min(LEAST_SQUARED_DISTANCE)
        apart = (self.margin - squared.sqrt()).clamp_min(0).square() / 2  # (B, N)
        # The own pair is taken from the vectors: 2 - 2 cos is inexact for near ones.
        own_distances = torch.linalg.vector_norm(queries - items[positions], dim=1)
        targets = torch.ones_like(own_distances) if labels is None else labels.to(apart.dtype)
        own = _pair_losses(own_distances, targets, self.margin)
        return weighted_mean(own + targets * (apart * scores.negative_shares()).sum(1), weights)


def contrastive_loss(
    distances: Tensor, labels: Tensor, margin: float, weights: Tensor | None = None
) -> Tensor:
    """Return the weighted mean of ``(y D^2 + (1 - y) max(0, margin - D)^2) / 2``: a scalar.

    Args:
        distances: ``(n,)`` float ``D``, at least 0, of pairs of vectors.
        labels: ``(n,)`` float ``y`` in 0..1; 1 is a match (the paper's ``Y`` is 0 there).
        margin: Distance beyond which a pair that is no match costs nothing, above 0.
        weights: ``(n,)`` float, at least 0 and not all 0; None is 1.

    Raises:
        ValueError: The shapes differ, there is no pair, or ``margin`` is not finite and above 0.

    Source: Hadsell, Chopra and LeCun, CVPR 2006, equation 4.
    """
    _check_margin(margin, greatest=math.inf)
    if not len(distances):
        raise ValueError("distances must hold at least 1 pair, got 0; skip empty batches.")
    for name, tensor in (("labels", labels), ("weights", weights)):
        if tensor is not None and tensor.shape != distances.shape:
            raise ValueError(f"{name} must be {tuple(distances.shape)}, got {tuple(tensor.shape)}.")
    return weighted_mean(_pair_losses(distances, labels.to(distances.dtype), margin), weights)


def _pair_losses(distances: Tensor, labels: Tensor, margin: float) -> Tensor:
    apart = (margin - distances).clamp_min(0)
    return (labels * distances.square() + (1 - labels) * apart.square()) / 2


def _check_margin(margin: float, greatest: float) -> None:
    if not 0 < margin <= greatest or margin == math.inf:
        limit = (
            "finite and above 0" if greatest == math.inf else f"above 0 and at most {greatest:g}"
        )
        raise ValueError(f"margin must be {limit}, got {margin}.")
