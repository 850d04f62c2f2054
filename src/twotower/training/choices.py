"""What ``auto`` stands for, decided from the data once and written into the config."""

from dataclasses import replace
from typing import Literal

import numpy as np

from twotower.config import Config, LossConfig, TowersConfig
from twotower.data.dataset import Dataset, Part
from twotower.errors import ConfigError

ALL_ITEMS_UP_TO = 20_000
"""Catalogue size up to which every item is a negative."""


def resolve(
    config: Config, dataset: Dataset, *, custom: tuple[str, ...] = ()
) -> tuple[Config, tuple[str, ...]]:
    """Return the config with every ``auto`` replaced, and a sentence for each choice.

    Args:
        config: What the user set.
        dataset: The split data set.
        custom: Sides (``"query"``, ``"item"``) whose tower is the user's own.

    Raises:
        ConfigError: Settings that cannot go together, with the reason.
    """
    train = dataset.part(Part.TRAIN)
    positive = train.is_positive
    num_items = len(np.unique(train.item_rows[positive]))
    said: list[str] = []
    towers = _towers(config, dataset, custom, said)
    loss = _loss(config, dataset, num_items, said)
    training = config.training
    if training.batch_size is None:
        by_size = 2 ** round(np.log2(max(1, int(positive.sum())) / 200))
        size = int(np.clip(by_size, 128, 1024))
        training = replace(training, batch_size=size)
        said.append(f"training.batch_size = {size}: {int(positive.sum()):,} training events")
    return replace(config, towers=towers, loss=loss, training=training), tuple(said)


def _towers(
    config: Config, dataset: Dataset, custom: tuple[str, ...], said: list[str]
) -> TowersConfig:
    towers = config.towers
    if "query" in custom:
        if towers.history not in ("auto", "none"):
            raise ConfigError(
                f"towers.history must be 'auto' or 'none' beside a query tower of your own, got "
                f"{towers.history!r}: such a tower reads the query's features."
            )
        return replace(towers, history="none", query_id="off")
    if towers.history == "auto":
        history: Literal["pooled", "mean"] = "pooled" if dataset.ordered else "mean"
        reason = "events have an order" if dataset.ordered else "events have no order"
        towers = replace(towers, history=history)
        said.append(f"towers.history = {history!r}: {reason}")
    if towers.query_id == "auto":
        use_id: Literal["on", "off"] = "off" if towers.history != "none" else "on"
        reason = "the history says who asks" if use_id == "off" else "there is no history to go by"
        towers = replace(towers, query_id=use_id)
        said.append(f"towers.query_id = {use_id!r}: {reason}")
    return towers


def _loss(config: Config, dataset: Dataset, num_items: int, said: list[str]) -> LossConfig:
    loss = config.loss
    if loss.kind == "auto":
        loss = replace(loss, kind="softmax")
        said.append("loss.kind = 'softmax': it trains the ranking that is asked for")
    if loss.negatives == "auto":
        negatives: Literal["all", "mixed", "uniform"]
        if loss.kind != "softmax":
            negatives, reason = "uniform", "sampled negatives for a loss of pairs"
        elif num_items <= ALL_ITEMS_UP_TO:
            negatives, reason = "all", f"{num_items:,} items are few enough"
        else:
            negatives, reason = "mixed", f"{num_items:,} items are too many for all"
        loss = replace(loss, negatives=negatives)
        said.append(f"loss.negatives = {negatives!r}: {reason}")
    if loss.kind == "contrastive" and config.towers.similarity != "cosine":
        raise ConfigError(
            f"towers.similarity must be 'cosine' for the contrastive loss, which compares directions "
            f"only, got {config.towers.similarity!r}; items are ranked by the dot product."
        )
    if loss.negatives == "labels" and loss.kind == "softmax":
        raise ConfigError(
            "loss.negatives must not be 'labels' for softmax, which ranks an item against others; "
            "use loss.kind = 'bce' or other negatives."
        )
    if loss.negatives == "labels" and dataset.interactions.labels is None:
        raise ConfigError(
            "loss.negatives = 'labels' must go with a column of 0/1 labels, got none; "
            "state one with --label-column, or a data.positive_threshold."
        )
    if loss.mask_known and dataset.repeats:
        loss = replace(loss, mask_known=False)
        said.append("loss.mask_known = false: items may come again")
    return loss
