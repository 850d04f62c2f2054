"""What ``auto`` stands for, decided from the data once and written into the config."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from twotower.caller import passing
from twotower.config import EVENTS_READ, QUERY_WIDTHS, WIDTH, Config, LossConfig, TowersConfig
from twotower.data.dataset import Dataset, EntityTable, Interactions, Part
from twotower.errors import ConfigError
from twotower.features.feature_kinds import FEATURE_KINDS
from twotower.features.text import MOST_TOKENS
from twotower.losses.from_settings import ranks_before_labels
from twotower.losses.loss_kinds import LOSSES
from twotower.losses.samplers import SAMPLERS
from twotower.runtime import choose_device, choose_precision
from twotower.toml import toml_value
from twotower.towers.history_encoders import HISTORY_ENCODERS
from twotower.training.by_period import choose_for_period
from twotower.training.closed_form import chosen as chosen_closed_form
from twotower.training.closed_form import no_closed_form
from twotower.training.optimizers import OPTIMIZERS
from twotower.vocab import as_keys

ALL_ITEMS_UP_TO = 20_000
"""Catalogue size up to which every item is a negative."""
SETS_UP_TO = 200_000
"""The same where one row of scores does for all items that a query wants."""
EVENTS_OF_SETS = 1_000
"""Most events that are read of a history without an order, of which one mean is taken."""
COSINE_FROM = 5_000
"""Queries from which a softmax compares directions. Of fewer, that lengths tell what is popular helps."""
WEIGHT_DECAY = 0.1
"""Decay of dense weights."""
DECAY_OF_VIEWS = 1.0
"""The same of several views without an order: what only one of them has in common fades."""
ADAM_UP_TO = 2**26
"""Numbers in an embedding table up to which adam's two moments, 512 MB, may stand beside them."""
WINDOWS = 128
"""Histories in a batch whose positions are the examples."""
STEPS = 100
"""About the least steps of an epoch of such batches, those of 128 examples apart."""
RATE = 0.006
"""Step size."""
RATE_OF_TEXTS = 0.002
"""The same of towers that read features alone, texts of both sides among them, which match at once."""
RATE_OF_FEW_TEXTS = 0.0005
"""The same where pairs are few: at larger steps the first epoch learns rare words by heart."""
MANY_PAIRS = 10_000
"""Pairs of texts from which they are not few; see decision 0035."""
ALL_TOKENS_UP_TO = 2**21
"""Tokens that the texts of all items may have where each step encodes all items."""
SENTENCE_RATE = 2e-5
"""Step size of a pretrained sentence encoder, which large steps would make forget what it knows."""


def value_of(config: Config, name: str) -> Any:
    """Return the setting ``section.field``."""
    section, _, field = name.partition(".")
    return getattr(getattr(config, section), field)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return the settings with those of ``section.field`` to value replaced."""
    for name, value in values.items():
        section, _, field = name.partition(".")
        config = replace(config, **{section: replace(getattr(config, section), **{field: value})})
    return config


class _Choices:
    """The settings, as far as they are decided, and a sentence for each choice."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.said: list[str] = []

    def decide(self, name: str, value: Any, why: str = "") -> None:
        """Set ``section.field``, and note why unless there is nothing to say."""
        self.config = with_values(self.config, {name: value})
        if why:
            toml = toml_value(value).replace('"', "'")
            said = f"{value:g}" if isinstance(value, float) else toml
            self.said.append(f"{name} = {said}: {why}")


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
    train = train.where(train.is_positive)
    rows = np.unique(train.item_rows)
    of_views = [int(view.offered[rows].sum()) for view in dataset.views.values()]
    num_items = max(of_views, default=len(rows))  # candidates are of one view
    choices = _Choices(config)
    if config.training.solver == "spectral":
        hindrance = no_closed_form(config, dataset, custom)
        if hindrance:
            raise ConfigError(
                f"training.solver must not be 'spectral' where {hindrance}; use 'gradient'."
            )
        choices.decide("towers.similarity", "dot")
        if config.towers.dim is None:
            width = chosen_closed_form(dataset, None).width
            choices.decide("towers.dim", width, "the best on validation")
    encodes_items = config.features.tune_sentences and _reads_sentences(config, "item")
    _choose_towers(choices, dataset, custom, encodes_items=encodes_items)
    _choose_question_time(choices, dataset)
    stated = [name for name in config.features.event if name != config.data.event_column]
    if stated and choices.config.towers.history == "none":
        raise ConfigError(
            "features.event must be empty where towers.history is 'none', got "
            f"{', '.join(map(repr, stated))}; no event of a history is read there."
        )
    if config.features.tune_sentences:
        _check_tuned(choices.config, custom, encodes_items=encodes_items)
    choices.decide("training.examples", _examples(choices.config, dataset, num_items, custom))
    if config.training.solver == "auto":
        choices.decide("training.solver", "gradient")
    _choose_for_examples(choices)
    _choose_loss(choices, dataset, num_items, encodes_items=encodes_items)
    choose_for_period(choices, dataset, train, custom)
    _choose_training(choices, dataset, train, custom)
    return choices.config, tuple(choices.said)


def _choose_towers(
    choices: _Choices, dataset: Dataset, custom: tuple[str, ...], *, encodes_items: bool
) -> None:
    """Decide what the query tower reads: a history, an id of its own, or neither."""
    config = choices.config
    towers = config.towers
    if towers.temperature is None and towers.temperature_end is not None:
        raise ConfigError(
            "towers.temperature_end must stand beside the towers.temperature that it starts from, "
            f"got {towers.temperature_end:g} alone."
        )
    if "query" in custom:
        if towers.history not in ("auto", "none"):
            raise ConfigError(
                f"towers.history must be 'auto' or 'none' beside a query tower of your own, got "
                f"{towers.history!r}: such a tower reads the query's features."
            )
        choices.decide("towers.history", "none")
        choices.decide("towers.query_id", "off")
        return
    if towers.history == "auto":
        history = "pooled" if dataset.ordered else "bag"
        reason = "events have an order" if dataset.ordered else "events have no order"
        if config.features.query.get(dataset.queries.id_column) in _texts():
            history, reason = "none", "a search is all in its text"
        if towers.block == "tanh":
            history, reason = "none", "layers of tanh read features alone"
        elif history != "none" and encodes_items and towers.history_items != "ids":
            history, reason = "none", "the texts of its items would be encoded in each step"
        choices.decide("towers.history", history, reason)
    if towers.query_id == "auto":
        if choices.config.towers.history == "none":
            choices.decide("towers.query_id", "on", "there is no history to go by")
        else:
            choices.decide("towers.query_id", "off", "the history says who asks")


def _choose_for_examples(choices: _Choices) -> None:
    """Decide what the query tower makes of a history, by how it is trained."""
    config = choices.config
    towers = config.towers
    is_sum = config.training.examples == "sets" or config.training.solver == "spectral"
    if towers.dim is None:
        choices.decide("towers.dim", WIDTH)
    if towers.history_length is None:
        choices.decide("towers.history_length", EVENTS_OF_SETS if is_sum else EVENTS_READ)
    if towers.query_hidden is None:
        why = "a sum of events says it all" if is_sum else ""
        choices.decide("towers.query_hidden", () if is_sum else QUERY_WIDTHS, why)
    if towers.history_items == "auto":
        is_plain = is_sum and not config.features.tune_sentences
        choices.decide("towers.history_items", "separate" if is_plain else "tower")


def _hindrance_of_question_time(towers: TowersConfig, dataset: Dataset) -> str:
    """Return why the query tower cannot read when it is asked, or nothing; the history is decided."""
    if dataset.interactions.times is None:
        return "the events have no times"
    if not dataset.ordered:
        return "the events have no order"
    return "the query tower reads no history" if towers.history == "none" else ""


def _choose_question_time(choices: _Choices, dataset: Dataset) -> None:
    """Decide whether the query tower reads when it is asked.

    Raises:
        ConfigError: It cannot, though it shall.
    """
    towers = choices.config.towers
    hindrance = _hindrance_of_question_time(towers, dataset)
    if towers.question_time == "auto":
        # A test of a period asks all its questions at the period's start.
        is_on = not hindrance and not dataset.by_period
        why = "the events have times" if is_on else ""
        choices.decide("towers.question_time", "on" if is_on else "off", why)
    if towers.question_time == "on" and hindrance:
        raise ConfigError(
            f"towers.question_time must be 'off' or 'auto' where {hindrance}, got 'on'."
        )


def _choose_training(
    choices: _Choices, dataset: Dataset, train: Interactions, custom: tuple[str, ...]
) -> None:
    """Decide the similarity of the towers, and how a step is taken.

    Args:
        choices: With the towers, the examples and the loss decided.
        dataset: The split data set.
        train: Its positive training events.
        custom: Sides whose tower is the user's own.
    """
    config = choices.config
    features, towers, training = config.features, config.towers, config.training
    loss = LOSSES[config.loss.kind]
    are_sets = bool(dataset.views) and not dataset.ordered
    # Without ids and events no item is popular by itself, which the length of its vector would say.
    by_features = (towers.query_id, towers.item_id, towers.history) == ("off", "off", "none")
    if towers.similarity == "auto":
        num_queries = len(np.unique(train.query_rows))
        fits = loss.ranks_all and not custom and towers.temperature is None and not are_sets
        fits = fits and training.examples != "sets"
        why = ""
        if fits and by_features:
            why = "both sides are read by their features alone"
        elif fits and num_queries >= COSINE_FROM:
            why = f"{num_queries:,} queries to learn from"
        choices.decide("towers.similarity", "cosine" if why else "dot", why)
    rate = training.learning_rate
    if rate is None:
        rate, why = RATE, ""
        pairs = len(train)
        reads_texts = all(_texts_among(kinds) for kinds in (features.query, features.item))
        if by_features and reads_texts and not custom and pairs < MANY_PAIRS:
            rate, why = RATE_OF_FEW_TEXTS, f"{pairs:,} pairs of texts are few"
        elif by_features and reads_texts and not custom:
            rate = RATE_OF_TEXTS
            why = f"{pairs:,} pairs of texts, which match before any training"
        choices.decide("training.learning_rate", rate, why)
    if training.weight_decay is None and are_sets:
        why = "what several views share is what lasts"
        choices.decide("training.weight_decay", DECAY_OF_VIEWS, why)
    elif training.weight_decay is None:
        choices.decide("training.weight_decay", WEIGHT_DECAY)
    if training.table_optimizer == "auto":
        num_rows = max(len(dataset.items), len(dataset.queries) * (towers.query_id == "on"))
        if num_rows * towers.width <= ADAM_UP_TO:
            choices.decide("training.table_optimizer", "adam")
        else:
            why = f"{num_rows:,} rows of {towers.width} numbers, for each of which adam would keep two more"
            choices.decide("training.table_optimizer", "adagrad", why)
    if training.precision == "auto":
        may_round = "precision" in loss.arguments or features.tune_sentences
        device = choose_device(training.device)
        if may_round and choose_precision("auto", device) == torch.bfloat16:
            choices.decide("training.precision", "bfloat16", "this machine has units for it")
        else:
            choices.decide("training.precision", "float32")
    optimizer = OPTIMIZERS[choices.config.training.table_optimizer]
    if optimizer.table_rate != 1 and training.table_learning_rate is None:
        why = f"{optimizer.name} takes larger steps than adam"
        choices.decide("training.table_learning_rate", optimizer.table_rate * rate, why)
    if training.sentence_learning_rate is not None and not features.tune_sentences:
        raise ConfigError(
            "training.sentence_learning_rate must stand beside features.tune_sentences = true, got "
            f"{training.sentence_learning_rate:g} alone; no other encoder is trained."
        )
    if training.sentence_learning_rate is None and features.tune_sentences:
        why = "the encoder knows much already"
        choices.decide("training.sentence_learning_rate", SENTENCE_RATE, why)
    assert training.next_events is not None  # ``choose_for_period`` has set it
    if training.next_events > 1 and (towers.history == "none" or not dataset.ordered):
        why = "there is no history" if towers.history == "none" else "the events have no order"
        raise ConfigError(
            f"training.next_events must be 1 where {why}, got {training.next_events}."
        )
    if training.batch_size is None:
        choices.decide("training.batch_size", *_batch_size(training.examples, towers, train))


def _texts() -> tuple[str, ...]:
    """Return the kinds that read text, the key's among them."""
    return ("id+text", *FEATURE_KINDS.where(lambda each: each.is_text))


def _texts_among(kinds: Mapping[str, str]) -> list[str]:
    """Return the columns of a side that are read as text."""
    return [name for name, kind in kinds.items() if kind in _texts()]


def _tokens_of_items(config: Config, table: EntityTable) -> int:
    """Return about how many tokens the texts of all items have: words, pairs of them and trigrams."""
    total, kinds = 0, config.features.item
    for name in _texts_among(kinds):
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


def _batch_size(examples: str, towers: TowersConfig, train: Interactions) -> tuple[int, str]:
    """Return how many examples a step has, and why; ``train`` holds the positives."""
    if examples == "sets":
        num_queries = len(np.unique(train.query_rows))
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


def _examples(config: Config, dataset: Dataset, num_items: int, custom: tuple[str, ...]) -> str:
    """Return what the examples of a batch are: single events, whole histories, or sets without an order."""
    given, towers, loss = config.training.examples, config.towers, config.loss
    hindrance = ""
    if towers.history == "none":
        hindrance = "towers.history is 'none': there is no history to train the prefixes of"
    elif not dataset.ordered:
        hindrance = "the events have no order"
    elif _reads_labels(loss):
        hindrance = "labels and impressions are read event by event"
    elif dataset.views and towers.view_dropout:
        hindrance = "towers.view_dropout hides events example by example"
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
    is_tuned = config.features.tune_sentences and _reads_sentences(config, "item")
    if is_tuned or _tokens_of_items(config, dataset.items) > ALL_TOKENS_UP_TO:
        return "the texts of all items are too long to be encoded in each step"
    return ""


def _reads_labels(loss: LossConfig) -> bool:
    """Return whether labels or impressions of single events are read, as far as settings are stated."""
    kind, negatives = LOSSES.get(loss.kind), SAMPLERS.get(loss.negatives)
    takes_labels = kind is not None and kind.takes_labels
    return takes_labels or (negatives is not None and bool(negatives.needs))


def _reads_sentences(config: Config, side: Literal["query", "item"]) -> bool:
    """Return whether a column of a side is a sentence."""
    kinds = getattr(config.features, side).values()
    text = config.features.text
    return any(_is_sentence(text if kind == "id+text" else kind) for kind in kinds)


def _is_sentence(kind: str) -> bool:
    return FEATURE_KINDS[kind].needs == "sentence_encoder"


def _check_tuned(config: Config, custom: tuple[str, ...], *, encodes_items: bool) -> None:
    """Check that what a step reads of a sentence encoder that is trained can be encoded in each.

    Args:
        config: With the kinds of all columns, and the towers decided.
        custom: Sides whose tower is the user's own.
        encodes_items: Whether a column of the items is a sentence.

    Raises:
        ConfigError: It cannot.
    """
    of_events = [name for name, kind in config.features.event.items() if _is_sentence(kind)]
    if of_events:
        raise ConfigError(
            f"features.event.{of_events[0]} must not be 'sentence' where features.tune_sentences is true: "
            "all events of all histories would be encoded in each step; state 'text'."
        )
    for side in custom:
        if _reads_sentences(config, "query" if side == "query" else "item"):
            raise ConfigError(
                f"features.tune_sentences must be false beside {side}_tower, a tower of your own, which "
                "would be given token ids."
            )
    towers = config.towers
    if encodes_items and towers.history != "none" and towers.history_items != "ids":
        raise ConfigError(
            "towers.history must be 'none' where features.tune_sentences trains the encoder of items' "
            f"texts, got {towers.history!r}, which would encode every item of every history in each step; "
            "or set towers.history_items = 'ids', which reads the ids of a history alone."
        )
    sampler = SAMPLERS.get(config.loss.negatives)
    if encodes_items and sampler is not None and sampler.is_whole:
        raise ConfigError(
            f"loss.negatives must not be {sampler.name!r} where features.tune_sentences trains the encoder "
            "of items' texts: each step would encode the whole catalogue; use 'in-batch'."
        )


def _choose_loss(
    choices: _Choices, dataset: Dataset, num_items: int, *, encodes_items: bool
) -> None:
    """Decide the loss and its negatives.

    Args:
        choices: With the towers and the examples decided.
        dataset: The split data set.
        num_items: Most items that are candidates at once.
        encodes_items: Whether a column of the items is a sentence whose encoder is trained.

    Raises:
        ConfigError: The loss, the negatives and the data do not go together.
    """
    if choices.config.loss.kind == "auto":
        choices.decide("loss.kind", "softmax", "it trains the ranking that is asked for")
    config = choices.config
    loss, examples = config.loss, config.training.examples
    spec = LOSSES[loss.kind]
    if loss.negatives == "auto":
        num_tokens = _tokens_of_items(config, dataset.items)
        num_tokens = num_tokens * num_items // max(1, len(dataset.items))
        is_long = num_tokens > ALL_TOKENS_UP_TO
        many = f"{num_items:,} {'texts' if encodes_items else 'items'} are too many for all"
        if is_long and num_items <= ALL_ITEMS_UP_TO:
            many = (
                f"{num_items:,} items have {num_tokens:,} tokens, too many to encode in each step"
            )
        takes_batch = not spec.negatives or "in-batch" in spec.negatives
        if encodes_items and takes_batch and examples == "pairs":
            reason = "each other negative would be one text more to encode in each step"
            negatives = "in-batch"
        elif not spec.ranks_all:
            negatives, reason = "uniform", "sampled negatives for a loss of pairs"
        elif examples == "sets":
            negatives, reason = "all", "one row of scores does for all items that a query wants"
        elif num_items <= ALL_ITEMS_UP_TO and not is_long and not encodes_items:
            negatives, reason = "all", f"{num_items:,} items are few enough"
        elif examples == "prefixes" and loss.frequencies == "counts":
            # A batch brings a history's own items for sure, which its log_q does not know.
            negatives, reason = "popularity", f"{many}, and a batch is of few histories"
        else:
            negatives, reason = "mixed", many
        choices.decide("loss.negatives", negatives, reason)
        loss = choices.config.loss
    sampler = SAMPLERS[loss.negatives]
    if loss.num_negatives is None:
        num, why = sampler.num, ""
        if encodes_items and (sampler.draws or ranks_before_labels(loss)):
            num, why = sampler.num_of_texts, "each is one text more to encode in each step"
        choices.decide("loss.num_negatives", num, why)
    if sampler.needs == "impressions" and dataset.interactions.impressions is None:
        raise ConfigError(
            f"loss.negatives = {sampler.name!r} must go with a column of what was shown, got none; "
            f"pass {passing(impressions_column='NAME')}."
        )
    if sampler.counts_only and loss.frequencies == "stream":
        raise ConfigError(
            f"loss.frequencies must be 'counts' for {sampler.name}, which draws by counts, got 'stream'."
        )
    if sampler.has_stored and not spec.takes_stored:
        able = " and ".join(LOSSES.where(lambda each: each.takes_stored))
        raise ConfigError(
            f"loss.negatives must not be {sampler.name!r} for "
            f"{loss.kind}: only {able} makes up for the gradients that remembered items do not get; "
            f"use loss.kind = {able!r} or other negatives."
        )
    if spec.negatives and sampler.name not in spec.negatives:
        raise ConfigError(
            f"loss.negatives must be {' or '.join(map(repr, spec.negatives))} for {spec.name}, "
            f"{spec.negatives_reason}, got {loss.negatives!r}."
        )
    if loss.label_smoothing and "label_smoothing" not in spec.arguments:
        able = " and ".join(LOSSES.where(lambda each: "label_smoothing" in each.arguments))
        raise ConfigError(
            f"loss.label_smoothing must be 0 for {loss.kind}, got {loss.label_smoothing:g}; it is for "
            f"{able}."
        )
    if sampler.needs == "labels" and dataset.interactions.labels is None:
        raise ConfigError(
            f"loss.negatives = {sampler.name!r} must go with a column of 0/1 labels, got none; "
            f"pass {passing(label_column='NAME')}, or state a data.positive_threshold."
        )
    is_set = examples == "sets"  # in which what is asked for again is not in the history
    if loss.mask_known and dataset.repeats and config.towers.history != "none" and not is_set:
        choices.decide("loss.mask_known", value=False, why="items may come again")
    elif loss.mask_known and dataset.views:
        why = "who is new to a view has nothing there to leave out"
        choices.decide("loss.mask_known", value=False, why=why)
