"""All scores of a batch at once, and the losses of them: BPR, binary cross-entropy and gBCE."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, embedding, softplus

from twotower.errors import ArgumentError, check_least
from twotower.losses.base import Batch, BatchLoss, check_log_q


@dataclass(frozen=True, eq=False)
class Scores:
    """The dot products of ``B`` queries with what each is scored against.

    Args:
        dots: ``(B, n)`` float; ``n`` is ``N``, or fewer where each query has candidates of its own.
        own: ``(B,)`` float, those with the own items.
        left_out: ``(B, n)`` bool: what is no negative of that query; the own item is among it.
        log_q: ``(n,)`` or ``(B, n)`` float, or None where it is equal for all.
    """

    dots: Tensor
    own: Tensor
    left_out: Tensor
    log_q: Tensor | None

    def negative_shares(self) -> Tensor:
        """Return the weight of each candidate in its query's mean over negatives: ``(B, n)`` float.

        Shares are proportional to ``1 / q`` among the negatives and sum to 1 a query, so that the
        mean is over the whole catalogue, estimated; all are 0 for a query without any.
        """
        if self.log_q is None:
            negatives = (~self.left_out).to(self.dots.dtype)
            return negatives.div_(negatives.sum(1, keepdim=True).clamp_(min=1))
        logits = self.log_q.to(self.dots.dtype).neg().expand_as(self.dots)
        # A row without negatives is all -inf, whose softmax is NaN: it has nothing to weigh.
        return logits.masked_fill(self.left_out, -torch.inf).softmax(1).nan_to_num_(0.0)


def score(batch: Batch) -> Scores:
    """Return the dot products of a batch and what of it counts as a negative.

    Returns:
        Dot products in float32 where the vectors are in half precision.

    Raises:
        ValueError: There is not one vector a candidate, or ``candidates.log_q`` does not fit.
    """
    candidates, columns = batch.candidates, batch.candidates.columns
    num = len(candidates)
    if len(batch.items) != num:
        raise ArgumentError(
            f"item_vectors must be the vectors of all {num} candidates, got {len(batch.items)}."
        )
    width = num if columns is None else columns.shape[1]
    check_log_q(candidates.log_q, num, (len(batch.queries), width))
    if columns is not None:
        return _per_query(batch, columns)
    own_places = candidates.positions[:, None]
    dots = at_least_float32(batch.queries) @ at_least_float32(batch.items).T  # (B, N)
    if candidates.never is None:
        left_out = torch.zeros(dots.shape, dtype=torch.bool, device=dots.device)
    else:
        left_out = candidates.never.repeat(len(dots), 1)
    if batch.hidden is not None:
        left_out.scatter_(1, batch.hidden, True)
    left_out.scatter_(1, own_places, True)
    return Scores(dots, dots.gather(1, own_places).squeeze(1), left_out, candidates.log_q)


def at_least_float32(vectors: Tensor) -> Tensor:
    """Return float16 and bfloat16 as float32, which a sum over thousands needs; else the same."""
    return vectors.float() if vectors.dtype in (torch.float16, torch.bfloat16) else vectors


def weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of ``losses``, ``(n,)``, weighted by ``weights``, ``(n,)``; None is 1."""
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum()


def _per_query(batch: Batch, columns: Tensor) -> Scores:
    candidates, hidden = batch.candidates, batch.hidden
    # (B, n, d); the gradient of embedding is quicker than that of indexing.
    gathered = embedding(columns, at_least_float32(batch.items))
    dots = torch.einsum("bd,bnd->bn", at_least_float32(batch.queries), gathered)
    left_out = columns == candidates.positions[:, None]
    if candidates.never is not None:
        left_out |= candidates.never[columns]
    if hidden is not None and hidden.shape[1]:
        ordered = hidden.sort(dim=1).values
        nearest = torch.searchsorted(ordered, columns).clamp_(max=hidden.shape[1] - 1)
        left_out |= ordered.gather(1, nearest) == columns
    log_q = candidates.log_q
    if log_q is not None and log_q.ndim == 1:
        log_q = log_q[columns]
    # The own item is the first candidate of each query.
    return Scores(dots, dots[:, 0], left_out, log_q)


class DenseLoss(BatchLoss):
    """A loss of each query by its own score and those of its negatives.

    Time and memory are ``O(B N)``; a subclass says what a query costs.
    """

    def _of(self, batch: Batch) -> Tensor:
        scores = score(batch)
        labels = torch.ones_like(scores.own) if batch.labels is None else batch.labels
        losses = self._losses(scores, batch.temperature, labels.to(scores.own.dtype))
        return weighted_mean(losses, batch.weights)

    @abstractmethod
    def _losses(self, scores: Scores, temperature: float | Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each query, ``(B,)`` float, given ``(B,)`` labels."""


class BPRLoss(DenseLoss):
    """Bayesian personalised ranking: the own item has to score higher than each negative.

    The loss of a query, in nats, is the mean over negatives of
    ``-log sigmoid((<query, own> - <query, negative>) / temperature)``. The mean is over the whole
    catalogue, estimated by weighting each candidate with ``1 / q``. Most items soon score lower than
    the own item and contribute little to the gradient: prefer softmax if the first ranks matter.

    Source: Rendle et al., UAI 2009, section 4.1 (BPR-Opt). Differs: many negatives a positive; a
        temperature; no penalty on parameters, which is the optimizer's weight decay.
    """

    name = "bpr"

    def _losses(self, scores: Scores, temperature: float | Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        behind = (scores.dots - scores.own[:, None]) / temperature  # (B, n)
        return (softplus(behind) * scores.negative_shares()).sum(1)


class BCELoss(DenseLoss):
    """Binary cross-entropy of each own item and, where it is a positive, of sampled negatives.

    The loss of a query is ``bce(own logit, label) + label * mean over negatives of bce(logit, 0)``:
    all negatives of a positive together weigh as much as the positive; a pair labelled 0 has no others.
    The mean over negatives is over the whole catalogue, estimated by weighting each candidate with
    ``1 / q``: the sampler changes the noise of the loss, not its expected value.

    A logit is ``<query, item> / temperature``. Vectors of length 1 need a temperature well below 1
    (0.05 to 0.2): a cosine put straight into the sigmoid never says more than 0.73, nor less than
    0.27.
    """

    name = "bce"
    takes_labels = True

    def _losses(self, scores: Scores, temperature: float | Tensor, labels: Tensor) -> Tensor:
        own_logits = scores.own / temperature
        own = binary_cross_entropy_with_logits(own_logits, labels, reduction="none")
        negatives = (softplus(scores.dots / temperature) * scores.negative_shares()).sum(1)
        return own + labels * negatives


class GBCELoss(DenseLoss):
    """Generalised binary cross-entropy: corrects the overconfidence that negative sampling causes.

    Among ``n`` sampled negatives, positives are far more frequent than in the catalogue, so that
    binary cross-entropy learns too high a probability. Here the own item's sigmoid is raised to
    ``beta = alpha (t (1 - 1 / alpha) + 1 / alpha)``, where ``alpha = n / (num_items - 1)`` is the
    share of the catalogue's negatives that were sampled and ``t`` is ``calibration``. The loss of a
    query is ``(beta softplus(-own logit) + sum over negatives of softplus(logit)) / (n + 1)``.

    The negatives are summed, not averaged as in ``BCELoss``: only then are the probabilities those
    of the catalogue at ``t = 1``. The sum is ``n`` times the mean of ``BCELoss``, so that a sampler
    with a ``log_q`` counts as ``n`` evenly drawn negatives; ``n`` counts what a query is scored
    against, with repeats and without what is hidden from it. At ``t = 0`` it is binary
    cross-entropy in which each negative weighs as much as the own item.

    Args:
        calibration: ``t`` in 0..1.
        num_items: Items of the catalogue, at least 2.

    Raises:
        ValueError: An argument is out of range.

    Source: Petrov and Macdonald, RecSys 2023 (gSASRec), the definitions of gBCE and of beta by t.
        Differs: the sum is weighted by ``1 / q``.
    """

    name = "gbce"  # at what rate a table's own 0 labels were sampled is not known: it takes none

    def __init__(self, calibration: float, num_items: int) -> None:
        if not 0 <= calibration <= 1:
            raise ArgumentError(f"calibration must be in 0..1, got {calibration}.")
        check_least(2, num_items=num_items)
        self.calibration = calibration
        self.num_items = num_items

    def _losses(self, scores: Scores, temperature: float | Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        num_negatives = (~scores.left_out).sum(1).to(scores.dots.dtype)
        # More than the catalogue's, as with repeats in a large batch, are no rate above 1.
        rates = (num_negatives / (self.num_items - 1)).clamp(max=1)
        powers = 1 - self.calibration * (1 - rates)  # the formula of beta, defined at alpha = 0 too
        own = powers * softplus(-scores.own / temperature)
        mean = (softplus(scores.dots / temperature) * scores.negative_shares()).sum(1)
        return (own + num_negatives * mean) / (num_negatives + 1)
