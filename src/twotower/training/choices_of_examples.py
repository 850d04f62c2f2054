"""What the examples of a batch are where that is ``auto``, and how many a batch has."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import polars as pl

from twotower.arrays import distinct
from twotower.config import Config, LossConfig, TowersConfig
from twotower.data.dataset import Dataset, EntityTable, Interactions
from twotower.errors import ConfigError
from twotower.features.feature_kinds import FEATURE_KINDS
from twotower.features.text import MOST_TOKENS
from twotower.losses.loss_kinds import LOSSES
from twotower.losses.samplers import SAMPLERS
from twotower.towers.history_encoders import HISTORY_ENCODERS
from twotower.vocab import as_keys

ALL_ITEMS_UP_TO = 20_000
"""Catalogue size up to which every item is a negative."""
SETS_UP_TO = 200_000
"""The same where one row of scores does for all items that a query wants."""
WINDOWS = 128
"""Histories in a batch whose positions are the examples."""
STEPS = 100
"""About the least steps of an epoch of such batches, those of 128 examples apart."""
ALL_TOKENS_UP_TO = 2**21
"""Tokens that the texts of all items may have where each step encodes all items."""


def text_kinds() -> tuple[str, ...]:
    """Return the kinds that read text, the key's among them."""
    return ("id+text", *FEATURE_KINDS.where(lambda each: each.is_text))


def texts_among(kinds: Mapping[str, str]) -> list[str]:
    """Return the columns of a side that are read as text."""
    return [name for name, kind in kinds.items() if kind in text_kinds()]


def tokens_of_items(config: Config, table: EntityTable) -> int:
    """Return about how many tokens the texts of all items have: words, pairs of them and trigrams."""
    total, kinds = 0, config.features.item
    for name in texts_among(kinds):
        kind = config.features.text if kinds[name] == "id+text" else kinds[name]
        a_word, a_letter = FEATURE_KINDS[kind].tokens
        if not a_word and not a_letter:  # one vector, which is there already
            total += len(table)
            continue
        texts = as_keys(table.frame[name]).cast(pl.String)
        words, letters = texts.str.count_matches(r"\S+"), texts.str.len_chars()
        of_kind = a_word * words + a_letter * letters
        total += int(of_kind.clip(upper_bound=MOST_TOKENS).sum())
    return total


def batch_size_of(examples: str, towers: TowersConfig, train: Interactions) -> tuple[int, str]:
    """Return how many examples a step has, and why; ``train`` holds the positives."""
    if examples == "sets":
        num_queries = len(distinct(train.query_rows))
        size = 2 ** round(np.log2(max(1, num_queries) / 60))
        return int(np.clip(size, 16, 256)), f"{num_queries:,} queries, each with all its items"
    if examples != "prefixes":
        size = 2 ** round(np.log2(max(1, len(train)) / 200))
        return int(np.clip(size, 128, 1024)), f"{len(train):,} training events"
    # Examples of one history are alike: it is the number of histories that makes a batch mixed.
    lengths = np.diff(train.offsets)
    mean = float(np.minimum(lengths[lengths > 0], towers.events_read).mean())
    size = 2 ** round(np.log2(WINDOWS * mean))
    most = max(128, 2 ** round(np.log2(max(1, len(train)) / STEPS)))
    if most < min(size, 4096):
        return most, f"{len(train):,} training events are few"
    return int(np.clip(size, 128, 4096)), f"about {WINDOWS} histories of {mean:.0f} events"


def examples_of(config: Config, dataset: Dataset, num_items: int, custom: tuple[str, ...]) -> str:
    """Return what the examples of a batch are: single events, whole histories, or sets without an order."""
    given, towers = config.training.examples, config.towers
    hindrance = no_prefixes(config, dataset)
    if given == "prefixes" and hindrance:
        raise ConfigError(
            f"training.examples must not be 'prefixes' where {hindrance}; use 'pairs'."
        )
    no_sets = _no_sets(config, dataset, num_items, custom)
    if given == "sets" and no_sets:
        raise ConfigError(f"training.examples must not be 'sets' where {no_sets}; use 'pairs'.")
    if given != "auto":
        return given
    if not no_sets:
        return "sets"
    # A pooled history costs little an example, and batches of whole histories are less mixed.
    is_sequential = not hindrance and HISTORY_ENCODERS[towers.history].is_sequential
    return "prefixes" if is_sequential else "pairs"


def no_prefixes(config: Config, dataset: Dataset) -> str:
    """Return why whole histories cannot be the examples, or nothing; the history is decided."""
    towers = config.towers
    if towers.history == "none":
        return "towers.history is 'none': there is no history to train the prefixes of"
    if not dataset.ordered:
        return "the events have no order"
    if _reads_labels(config.loss):
        return "labels and impressions are read event by event"
    if dataset.views and towers.view_dropout:
        return "towers.view_dropout hides events example by example"
    return ""


def _no_sets(config: Config, dataset: Dataset, num_items: int, custom: tuple[str, ...]) -> str:
    """Return why the items of a query cannot be predicted at once, or nothing."""
    towers, loss = config.towers, config.loss
    if towers.history == "none":
        return "towers.history is 'none': a half of a query's items is read as its history"
    if dataset.ordered:
        return "the events have an order"
    if dataset.views:
        return "there are several views"
    if _reads_labels(loss):
        return "labels and impressions are read event by event"
    kind = "softmax" if loss.kind == "auto" else loss.kind
    if not LOSSES[kind].takes_sets:
        return f"loss.kind is {kind!r}, which scores one item a query"
    if loss.negatives not in ("auto", "all"):
        return f"loss.negatives is {loss.negatives!r}: all items must be candidates"
    if loss.negatives == "all":
        return ""
    if num_items > (ALL_ITEMS_UP_TO if "item" in custom else SETS_UP_TO):
        return f"{num_items:,} items are too many to be all candidates"
    is_tuned = config.features.tune_sentences and reads_sentences(config, "item")
    if is_tuned or tokens_of_items(config, dataset.items) > ALL_TOKENS_UP_TO:
        return "the texts of all items are too long to be encoded in each step"
    return ""


def _reads_labels(loss: LossConfig) -> bool:
    """Return whether labels or impressions of single events are read, as far as settings are stated."""
    kind, negatives = LOSSES.get(loss.kind), SAMPLERS.get(loss.negatives)
    takes_labels = kind is not None and kind.takes_labels
    return takes_labels or (negatives is not None and bool(negatives.needs))


def reads_sentences(config: Config, side: Literal["query", "item"]) -> bool:
    """Return whether a column of a side is a sentence."""
    kinds = getattr(config.features, side).values()
    text = config.features.text
    return any(is_sentence(text if kind == "id+text" else kind) for kind in kinds)


def is_sentence(kind: str) -> bool:
    """Return whether a kind is text that a sentence encoder reads."""
    return FEATURE_KINDS[kind].needs == "sentence_encoder"
