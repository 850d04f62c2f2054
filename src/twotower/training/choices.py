"""What each ``auto`` becomes: decided from the data once, and written into the config."""

import torch

from twotower.arrays import distinct
from twotower.config import EVENTS_READ, QUERY_WIDTHS, WIDTH, Config
from twotower.data.dataset import Dataset, Interactions, Part
from twotower.errors import ConfigError
from twotower.losses.loss_kinds import LOSSES
from twotower.losses.samplers import SAMPLERS
from twotower.runtime import choose_device, choose_precision
from twotower.towers.history_encoders import HISTORY_ENCODERS
from twotower.training.by_period import choose_for_period
from twotower.training.choices_of_examples import (
    batch_size_of,
    examples_of,
    is_sentence,
    reads_sentences,
    text_kinds,
    texts_among,
)
from twotower.training.choices_of_loss import choose_loss
from twotower.training.closed_form import chosen as chosen_closed_form
from twotower.training.closed_form import is_quick_start, no_closed_form, no_part, no_start
from twotower.training.optimizers import OPTIMIZERS
from twotower.training.settings import Choices

EVENTS_OF_SETS = 1_000
"""Most events that are read of a history without an order, of which one mean is taken."""
COSINE_FROM = 5_000
"""Queries from which a softmax compares directions. Of fewer, that lengths tell what is popular helps."""
WEIGHT_DECAY = 0.1
"""Decay of dense weights."""
DECAY_OF_VIEWS = 1.0
"""The same of several views without an order: what only one of them has in common fades."""
ADAM_UP_TO = 2**26
"""Numbers in an embedding table up to which adam may keep its two moments, 512 MB, beside them."""
RATE = 0.006
"""Step size."""
RATE_OF_TEXTS = 0.002
"""The same of towers that read features alone, texts of both sides among them, which match at once."""
RATE_OF_FEW_TEXTS = 0.0005
"""The same where pairs are few: at larger steps the first epoch learns rare words by heart."""
MANY_PAIRS = 10_000
"""Pairs of texts from which they are not few; see decision 0035."""
SENTENCE_RATE = 2e-5
"""Step size of a pretrained sentence encoder, which large steps would make forget what it knows."""


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
    rows = distinct(train.item_rows)
    of_views = [int(view.offered[rows].sum()) for view in dataset.views.values()]
    num_items = max(of_views, default=len(rows))  # candidates are of one view
    choices = Choices(config)
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
    encodes_items = config.features.tune_sentences and reads_sentences(config, "item")
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
    choices.decide("training.examples", examples_of(choices.config, dataset, num_items, custom))
    if config.training.solver == "auto":
        choices.decide("training.solver", "gradient")
    _choose_for_examples(choices)
    choose_loss(choices, dataset, num_items, encodes_items=encodes_items)
    choose_for_period(choices, dataset, train, custom)
    if config.towers.spectral_dim is None:
        choices.decide("towers.spectral_dim", 0)  # it may be added to what was trained
    elif config.towers.spectral_dim:
        spectral = choices.config.training.solver == "spectral"
        hindrance = no_part(choices.config, dataset, custom)
        hindrance = "training.solver is 'spectral'" if spectral else hindrance
        if hindrance:
            raise ConfigError(
                f"towers.spectral_dim must be 0 where {hindrance}, got {config.towers.spectral_dim}."
            )
    _choose_training(choices, dataset, train, custom)
    _choose_start(choices, dataset, custom)
    return choices.config, tuple(choices.said)


def _choose_towers(
    choices: Choices, dataset: Dataset, custom: tuple[str, ...], *, encodes_items: bool
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
        if config.training.solver == "spectral":
            history, reason = "bag", "the closed form sums the events"
        if config.features.query.get(dataset.queries.id_column) in text_kinds():
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


def _choose_for_examples(choices: Choices) -> None:
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


def _hindrance_of_question_time(config: Config, dataset: Dataset) -> str:
    """Return why the query tower cannot read when it is asked, or nothing; the history is decided."""
    if config.training.solver == "spectral":
        return "training.solver is 'spectral'"
    if dataset.interactions.times is None:
        return "the events have no times"
    if not dataset.ordered:
        return "the events have no order"
    return "the query tower reads no history" if config.towers.history == "none" else ""


def _choose_question_time(choices: Choices, dataset: Dataset) -> None:
    """Decide whether the query tower reads when it is asked.

    Raises:
        ConfigError: It cannot, though it shall.
    """
    towers = choices.config.towers
    hindrance = _hindrance_of_question_time(choices.config, dataset)
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
    choices: Choices, dataset: Dataset, train: Interactions, custom: tuple[str, ...]
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
        num_queries = len(distinct(train.query_rows))
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
        reads_texts = all(texts_among(kinds) for kinds in (features.query, features.item))
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
        choices.decide("training.batch_size", *batch_size_of(training.examples, towers, train))


def _choose_start(choices: Choices, dataset: Dataset, custom: tuple[str, ...]) -> None:
    """Decide what the embeddings of the items' ids start from; all else is decided.

    Raises:
        ConfigError: They cannot start from singular vectors, though they shall.
    """
    config = choices.config
    hindrance = no_start(config, dataset, custom)
    if config.training.start == "spectral" and hindrance:
        raise ConfigError(
            f"training.start must be 'auto' or 'random' where {hindrance}, got 'spectral'."
        )
    if config.training.start == "auto":
        # Encoders of sequences end worse, and a later period was not measured: decision 0060.
        is_open = not hindrance and not dataset.by_period
        is_open = is_open and not HISTORY_ENCODERS[config.towers.history].is_sequential
        is_open = is_open and is_quick_start(dataset, config.towers.width)
        choices.decide("training.start", "spectral" if is_open else "random")


def _check_tuned(config: Config, custom: tuple[str, ...], *, encodes_items: bool) -> None:
    """Check that what a step reads of a sentence encoder that is trained can be encoded in each.

    Args:
        config: With the kinds of all columns, and the towers decided.
        custom: Sides whose tower is the user's own.
        encodes_items: Whether a column of the items is a sentence.

    Raises:
        ConfigError: It cannot.
    """
    of_events = [name for name, kind in config.features.event.items() if is_sentence(kind)]
    if of_events:
        raise ConfigError(
            f"features.event.{of_events[0]} must not be 'sentence' where features.tune_sentences is true: "
            "all events of all histories would be encoded in each step; state 'text'."
        )
    for side in custom:
        if reads_sentences(config, "query" if side == "query" else "item"):
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
