"""Losses of directions: matches are drawn together, others kept apart or spread out."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from twotower.losses.candidates import Candidates
from twotower.losses.checks import check_all_liked, check_shapes, check_temperature
from twotower.losses.dense import DenseLoss
from twotower.losses.scores import Scores, at_least_float32, score, weighted_mean

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
        temperature: float | Tensor = 1.0,
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
            ValueError: A shape does not fit, the batch is empty, or a number ``temperature`` is not
                finite and above 0.
        """
        positions = candidates.positions
        check_shapes(
            query_vectors, item_vectors, positions, hidden=hidden, weights=weights, labels=labels
        )
        check_temperature(temperature)
        queries, items = _unit(query_vectors), _unit(item_vectors)
        scores = score(queries, items, candidates, hidden)
        squared = (2 - 2 * scores.dots).clamp_min(LEAST_SQUARED_DISTANCE)
        apart = (self.margin - squared.sqrt()).clamp_min(0).square() / 2  # (B, n)
        # The own pair is taken from the vectors: 2 - 2 cos is inexact for near ones.
        own_distances = torch.linalg.vector_norm(queries - items[positions], dim=1)
        targets = torch.ones_like(own_distances) if labels is None else labels.to(apart.dtype)
        own = _pair_losses(own_distances, targets, self.margin)
        return weighted_mean(own + targets * (apart * scores.negative_shares()).sum(1), weights)


class CCLLoss(DenseLoss):
    """Cosine contrastive loss: a negative counts only where it comes nearer than a margin.

    The loss of a query is ``1 - cos(own) + negative_weight * mean over negatives of
    max(0, cos(negative) - margin)``, with the mean of ``BCELoss``. A pair labelled 0 costs
    ``max(0, cos(own) - margin)``, without negatives. The vectors are scaled to length 1, so train
    normalised towers with it.

    Args:
        margin: Cosine up to which a negative costs nothing, at least 0 and below 1.
        negative_weight: Weight of all negatives together against the own item, above 0: the paper's
            ``w``, which wants tuning for each catalogue.

    Raises:
        ValueError: An argument is out of range.

    Source: Mao et al., CIKM 2021 (SimpleX), the cosine contrastive loss. Differs: the mean is
        weighted by ``1 / q``; labels.
    """

    name = "ccl"
    takes_labels = True

    def __init__(self, margin: float, negative_weight: float = 10.0) -> None:
        if not 0 <= margin < 1:
            raise ValueError(f"margin must be at least 0 and below 1, got {margin}.")
        if not 0 < negative_weight < math.inf:
            raise ValueError(f"negative_weight must be finite and above 0, got {negative_weight}.")
        self.margin = margin
        self.negative_weight = negative_weight

    def _prepared(self, vectors: Tensor) -> Tensor:
        return _unit(vectors)

    def _losses(self, scores: Scores, temperature: float | Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        too_near = (scores.dots - self.margin).clamp_min(0)  # (B, n)
        negatives = self.negative_weight * (too_near * scores.negative_shares()).sum(1)
        disliked = (scores.own - self.margin).clamp_min(0)
        return labels * (1 - scores.own + negatives) + (1 - labels) * disliked


class DirectAULoss:
    """Alignment and uniformity: matches are drawn together, each side is spread over the sphere.

    The loss is the mean of ``|query - own item|^2`` plus ``uniformity`` times the mean of both
    sides' ``log mean exp(-2 |x - x'|^2)``, over the pairs of two places in the batch; a query or an
    item that the batch holds twice is a pair, too. The vectors are scaled to length 1, so train
    normalised towers with it. Weights weigh a place, and a pair by their product.

    There are no negatives: of the candidates only the own items count, and neither ``log_q`` nor
    ``hidden`` does. Memory is ``O(B^2)``.

    Args:
        uniformity: Weight of spreading out, the paper's gamma, above 0.

    Raises:
        ValueError: ``uniformity`` is not finite and above 0.

    Source: Wang et al., KDD 2022 (DirectAU), the losses of alignment and uniformity and their sum.
        Differs: weights.
    """

    def __init__(self, uniformity: float) -> None:
        if not 0 < uniformity < math.inf:
            raise ValueError(f"uniformity must be finite and above 0, got {uniformity}.")
        self.uniformity = uniformity

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
        """Return the loss of the batch: a scalar, in squared distance.

        Args:
            query_vectors: ``(B, d)`` float.
            item_vectors: ``(N, d)`` float vectors of ``candidates.item_rows``.
            candidates: Where the own items are.
            temperature: Not used.
            hidden: Not used: there are no negatives.
            weights: ``(B,)`` float, at least 0 and not all 0; None where all are 1.
            labels: ``(B,)``, all of which must be 1; None says the same.

        Raises:
            ValueError: A shape does not fit, the batch is empty, a label is not 1, or a number
                ``temperature`` is not finite and above 0.
        """
        positions = candidates.positions
        check_shapes(
            query_vectors, item_vectors, positions, hidden=hidden, weights=weights, labels=labels
        )
        check_temperature(temperature)
        check_all_liked(labels, "directau")
        queries = _unit(query_vectors)
        items = _unit(at_least_float32(item_vectors).index_select(0, positions))
        alignment = weighted_mean((queries - items).square().sum(1), weights)
        spread = (_log_closeness(queries, weights) + _log_closeness(items, weights)) / 2
        return alignment + self.uniformity * spread


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


def _unit(vectors: Tensor) -> Tensor:
    return normalize(at_least_float32(vectors), dim=1)


def _log_closeness(units: Tensor, weights: Tensor | None) -> Tensor:
    """Return the log of the mean of ``exp(-2 D^2)`` over the pairs of ``(B, d)``; 0 without."""
    closeness = (4 * (units @ units.T - 1)).exp()  # D^2 = 2 - 2 cos
    places = torch.ones_like(units[:, 0]) if weights is None else weights.to(units.dtype)
    shares = (places / places.sum()).outer(places / places.sum())
    shares = shares.fill_diagonal_(0)
    total = shares.sum()
    no_pairs = (total == 0).to(units.dtype)
    return (((closeness * shares).sum() + no_pairs) / (total + no_pairs)).log()


def _check_margin(margin: float, greatest: float) -> None:
    if not 0 < margin <= greatest or margin == math.inf:
        limit = (
            "finite and above 0" if greatest == math.inf else f"above 0 and at most {greatest:g}"
        )
        raise ValueError(f"margin must be {limit}, got {margin}.")
