"""What the settings of the loss ask for: who the negatives are, and who of them is none."""

import torch
from torch import Tensor

from twotower.config import LossConfig
from twotower.losses.corrections import accidental_hits, known_positives
from twotower.losses.negatives import (
    AllItems,
    Candidates,
    InBatch,
    Mixed,
    OwnItems,
    Sampler,
    Uniform,
)


def sampler_of(config: LossConfig, train_items: Tensor, log_p: Tensor) -> Sampler:
    """Return the sampler that ``negatives`` names.

    Args:
        config: With no ``auto`` left.
        train_items: ``(n,)`` int64, the rows that training events hold.
        log_p: ``(num_item_rows,)`` log of the share of training events of each row; an event is
            drawn once an epoch whatever its weight, so weights are not in it.
    """
    if config.negatives == "all":
        return AllItems(train_items)
    if config.negatives == "labels":
        return OwnItems()
    if config.negatives == "uniform":
        return Uniform(train_items, config.num_negatives)
    # With the correction each item stands once a batch; without it there is nothing to be exact.
    distinct = config.correct_log_q
    if config.negatives == "in-batch":
        return InBatch(log_p, distinct=distinct)
    return Mixed(log_p, train_items, config.num_negatives, distinct=distinct)


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
