"""What the settings of the loss ask for: who the negatives are, and who of them is none."""

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor

from twotower.config import LossConfig
from twotower.losses.candidates import Candidates, Sampler
from twotower.losses.corrections import accidental_hits, known_positives
from twotower.losses.frequencies import LogShares
from twotower.losses.hard import HardNegatives
from twotower.losses.memory import Memory
from twotower.losses.negatives import (
    AllItems,
    Impressions,
    InBatch,
    Mixed,
    OwnItems,
    PerQuery,
    Popularity,
    Uniform,
)
from twotower.losses.pairwise import BPRLoss
from twotower.losses.pointwise import BCELoss, GBCELoss
from twotower.losses.softmax import SoftmaxLoss
from twotower.losses.symmetric import SymmetricSoftmaxLoss

LABELLED = ("bce",)
"""Losses of pairs that take an event with label 0 as an example, too."""


class Loss(Protocol):
    """What every loss can be called with."""

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
        """Return a scalar."""
        ...


def loss_of(config: LossConfig, num_items: int, precision: torch.dtype | None = None) -> Loss:
    """Return the loss that ``kind`` names.

    Args:
        config: With no ``auto`` left.
        num_items: Items of the catalogue.
        precision: See ``SoftmaxLoss``.
    """
    smoothing = config.label_smoothing
    losses: dict[str, Callable[[], Loss]] = {
        "softmax": lambda: SoftmaxLoss(smoothing, precision=precision),
        "symmetric": lambda: SymmetricSoftmaxLoss(smoothing, precision=precision),
        "bpr": BPRLoss,
        "bce": BCELoss,
        "gbce": lambda: GBCELoss(config.calibration, num_items),
    }
    return losses[config.kind]()


def ranks_before_labels(config: LossConfig) -> bool:
    """Return whether an item is ranked before those that its query has a label 0 for."""
    return config.negatives == "labels" and config.kind not in LABELLED


def sampler_of(config: LossConfig, train_items: Tensor, log_p: LogShares) -> Sampler:
    """Return the sampler that ``negatives`` names.

    Args:
        config: With no ``auto`` left.
        train_items: ``(n,)`` int64, the rows that training events hold.
        log_p: Log of the share of training events of each row; an event is drawn once an epoch
            whatever its weight, so weights are not in it. A tensor where ``negatives`` is
            ``popularity``.
    """
    num = config.num_negatives
    assert num is not None
    # With the correction each item stands once a batch; without it there is nothing to be exact.
    distinct = config.correct_log_q
    samplers: dict[str, Callable[[], Sampler]] = {
        "all": lambda: AllItems(train_items),
        "labels": OwnItems,
        "uniform": lambda: Uniform(train_items, num),
        "popularity": lambda: Popularity(
            cast("Tensor", log_p), train_items, num, config.popularity_power
        ),
        "per-query": lambda: PerQuery(train_items, num),
        "impressions": lambda: Impressions(train_items, num),
        "in-batch": lambda: InBatch(log_p, distinct=distinct),
        "mixed": lambda: Mixed(log_p, train_items, num, distinct=distinct),
        "hard": lambda: HardNegatives(log_p, train_items, num, config.hard_share),
        "memory": lambda: Memory(log_p, config.memory_batches),
    }
    return samplers["impressions" if ranks_before_labels(config) else config.negatives]()


def hidden_by(
    config: LossConfig,
    candidates: Candidates,
    item_rows: Tensor,
    history_rows: Tensor | None,
    num_item_rows: int,
) -> Tensor | None:
    """Return where candidates stand that are no negatives by the settings: ``(B, H)`` int64, or None.

    Args:
        config: With no ``auto`` left.
        candidates: Of a batch.
        item_rows: ``(B,)`` int64, the positives.
        history_rows: ``(B, L)`` int64, what the queries are known to like besides, or None.
        num_item_rows: Rows of the item vocabulary.
    """
    hidden = []
    if config.negatives in ("in-batch", "mixed") and not config.correct_log_q:
        hidden.append(accidental_hits(candidates, item_rows, num_item_rows))
    if config.mask_known and history_rows is not None:
        hidden.append(known_positives(candidates, history_rows, item_rows, num_item_rows))
    return torch.cat(hidden, dim=1) if hidden else None
