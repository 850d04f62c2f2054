"""Losses of pairs: a query's own item is to score higher than each of its negatives."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from twotower.losses.dense import DenseLoss
from twotower.losses.scores import Scores

EULER_GAMMA = 0.5772156649015329


class BPRLoss(DenseLoss):
    """Bayesian personalised ranking: each pair is a match of two, which the own item is to win.

    The loss of a query, in nats, is the mean over negatives of
    ``-log sigmoid((<query, own> - <query, negative>) / temperature)``. The mean is over the whole
    catalogue, estimated by weighing each candidate with ``1 / q``. Most of the catalogue is beaten
    early, and its share of the gradient goes with it: prefer ``BPRMaxLoss`` or softmax where the
    first ranks count.

    Source: Rendle et al., UAI 2009, section 4.1 (BPR-Opt). Differs: many negatives a positive; a
        temperature; no penalty on parameters, which is the optimizer's weight decay.
    """

    name = "bpr"

    def _losses(self, scores: Scores, temperature: float | Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        behind = (scores.dots - scores.own[:, None]) / temperature  # (B, n)
        return (softplus(behind) * scores.negative_shares()).sum(1)


class BPRMaxLoss(DenseLoss):
    """BPR against the best negative, which a softmax over the negatives stands for.

    The loss of a query, in nats, is ``-log sum_j s_j sigmoid(r_own - r_j)`` plus ``regularization``
    times ``sum_j s_j <query, item_j>^2`` over negatives ``j``, where ``r`` is
    ``<query, item> / temperature`` and ``s`` is the softmax of ``r - log_q`` over the negatives, so
    that ``s`` and the sums stand for the whole catalogue's, whatever the sampler.

    Args:
        regularization: Weight of the penalty on the negatives' scores, finite and at least 0.
            Without it only differences count, and the scores may drift; those of vectors of length
            1 cannot.

    Raises:
        ValueError: ``regularization`` is out of range.

    Source: Hidasi and Karatzoglou, CIKM 2018 (BPR-max with score regularisation).
        Differs: ``log_q``; a temperature, which the penalty is not divided by.
    """

    name = "bpr-max"

    def __init__(self, regularization: float = 0.0) -> None:
        if not 0 <= regularization < math.inf:
            raise ValueError(f"regularization must be finite and at least 0, got {regularization}.")
        self.regularization = regularization

    def _losses(self, scores: Scores, temperature: float | Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        logits = scores.dots / temperature  # (B, n)
        proposals = logits if scores.log_q is None else logits - scores.log_q.to(logits.dtype)
        # A row without negatives would be all -inf, whose softmax is NaN: it stays, and costs 0.
        alone = scores.left_out.all(1, keepdim=True)
        log_s = proposals.masked_fill(scores.left_out & ~alone, -math.inf).log_softmax(1)
        wins = logsigmoid((scores.own / temperature)[:, None] - logits)
        penalty = (log_s.exp() * scores.dots.square()).sum(1)
        losses = self.regularization * penalty - (log_s + wins).logsumexp(1)
        return losses.masked_fill(alone.squeeze(1), 0)


class HingeLoss(DenseLoss):
    """WARP: a hinge for the negatives within a margin of the own item, weighed by its rank.

    A negative ``j`` violates where ``h_j`` is above 0:
    ``h_j = margin - (<query, own> - <query, item_j>) / temperature``. The loss of a query is
    ``L(rank)`` times the mean of ``h_j`` over those that do; ``rank`` is ``num_items - 1`` times
    their share of the negatives, and ``L(rank)`` is ``1 + 1/2 + ... + 1/rank``, continued between
    whole ranks. ``L`` is not differentiated. Shares are of the whole catalogue, estimated by
    weighing each candidate with ``1 / q``.

    Args:
        num_items: Items of the catalogue, at least 2.
        margin: How far ahead of a negative the own item is to be, in logits (so for vectors of
            length 1 ``margin * temperature`` in cosine), finite and above 0.

    Raises:
        ValueError: An argument is out of range.

    Source: Weston, Bengio and Usunier, IJCAI 2011 (the WARP loss); Usunier, Buffoni and Gallinari,
        ICML 2009 (weights by rank). Differs: where they draw negatives until one violates, the rank
        and the mean over violating negatives are taken from all candidates at once.
    """

    name = "hinge"

    def __init__(self, num_items: int, margin: float = 1.0) -> None:
        if num_items < 2:
            raise ValueError(f"num_items must be at least 2, got {num_items}.")
        if not 0 < margin < math.inf:
            raise ValueError(f"margin must be finite and above 0, got {margin}.")
        self.num_items = num_items
        self.margin = margin

    def _losses(self, scores: Scores, temperature: float | Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        excess = self.margin + (scores.dots - scores.own[:, None]) / temperature  # (B, n)
        mean, share = _violations(excess, scores.negative_shares())
        return _harmonic(share * (self.num_items - 1)) * mean


def _violations(excess: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean excess of negatives that have one above 0, and their share: ``(B,)`` each."""
    violating = shares * (excess > 0)
    share = violating.sum(1)
    return (violating * excess).sum(1) / share.clamp_min(torch.finfo(share.dtype).tiny), share


def _harmonic(rank: Tensor) -> Tensor:
    """Return 1 + 1/2 + ... + 1/rank, and what the digamma function makes of it between."""
    return torch.digamma(rank + 1) + EULER_GAMMA
