"""From settings to a loss, a sampler, and the mask of known items (``loss.mask_known``: the history)."""

from dataclasses import asdict

import torch
from torch import Tensor

from twotower.config import LossConfig
from twotower.losses.candidates import Candidates, Sampler, accidental_hits, known_positives
from twotower.losses.frequencies import LogShares
from twotower.losses.loss_kinds import LOSSES, Loss
from twotower.losses.samplers import SAMPLERS


def loss_of(config: LossConfig, num_items: int, precision: torch.dtype | None = None) -> Loss:
    """Return the loss that ``kind`` names.

    Args:
        config: With no ``auto`` left.
        num_items: Items of the catalogue.
        precision: See ``SoftmaxLoss``.
    """
    given = asdict(config) | {"precision": precision, "num_items": num_items}
    return LOSSES[config.kind].build(given)


def ranks_before_labels(config: LossConfig) -> bool:
    """Return whether an item is ranked before those that its query has a label 0 for."""
    return SAMPLERS[config.negatives].needs == "labels" and not LOSSES[config.kind].takes_labels


def sampler_of(config: LossConfig, train_items: Tensor, log_p: LogShares) -> Sampler:
    """Return the sampler that ``negatives`` names.

    Args:
        config: With no ``auto`` left.
        train_items: ``(n,)`` int64, the rows that training events hold.
        log_p: Log of the share of training events of each row; an event is drawn once an epoch
            whatever its weight, so weights are not in it. A tensor where ``negatives`` is
            ``popularity``.
    """
    given = {
        "log_p": log_p,
        "item_rows": train_items,
        "num": config.num_negatives,
        "power": config.popularity_power,
        "share": config.hard_share,
        "batches": config.memory_batches,
        # With the correction each item stands once a batch; without it there is nothing to be exact.
        "distinct": config.correct_log_q,
    }
    name = "impressions" if ranks_before_labels(config) else config.negatives
    return SAMPLERS[name].build(given)


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
    if SAMPLERS[config.negatives].has_batch_items and not config.correct_log_q:
        hidden.append(accidental_hits(candidates, item_rows, num_item_rows))
    if config.mask_known and history_rows is not None:
        hidden.append(known_positives(candidates, history_rows, item_rows, num_item_rows))
    return torch.cat(hidden, dim=1) if hidden else None
