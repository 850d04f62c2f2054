"""One frozen tree of settings: TOML in, TOML out, every mistake reported at once by its path.

A field exists only if it changes something, and its default is written here and nowhere else.
``None`` means "not set: found in the data or chosen by rule"; TOML, which has no null, leaves such
a field out.
"""

import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from twotower import dataclass_trees
from twotower.dataclass_trees import OneOf, Range, Rule, Section
from twotower.errors import ConfigError
from twotower.toml import read_toml, toml_key, toml_value

Language = Literal[
    "danish",
    "dutch",
    "english",
    "french",
    "german",
    "italian",
    "norwegian",
    "portuguese",
    "russian",
    "spanish",
    "swedish",
    "turkish",
]
LANGUAGES: tuple[str, ...] = get_args(Language)
"""Those with a stemmer and a list of stop words."""
SplitKind = Literal["auto", "leave-last-out", "random", "temporal", "cold-items", "cold-queries"]

Seed = Annotated[int, Range(0, 2**63 - 1)]
"""What every generator takes."""
Widths = Annotated[tuple[int, ...], Range(1, 16_384)]
"""Numbers in the vectors of each layer."""
Share = Annotated[float, Rule("be in [0, 1]", lambda share: 0 <= share <= 1)]
"""A share, its ends included."""
Chance = Annotated[float, Rule("be in [0, 1)", lambda chance: 0 <= chance < 1)]
"""Of something that must not always happen."""
_POSITIVE = Rule("be finite and above 0", lambda value: 0 < value < inf)
Positive = Annotated[float | None, _POSITIVE]
"""A number that something is multiplied or divided by."""

_KINDS = OneOf("twotower.features.feature_kinds:FEATURE_KINDS")
_EVENT_KINDS = OneOf("twotower.features.feature_kinds:FEATURE_KINDS", trait="of_events")
_TEXT_KINDS = OneOf("twotower.features.feature_kinds:FEATURE_KINDS", trait="is_text")
_HISTORY_ENCODERS = OneOf("twotower.towers.history_encoders:HISTORY_ENCODERS", ("auto", "none"))
_OPTIMIZERS = OneOf("twotower.training.optimizers:OPTIMIZERS", trait="dense")
_TABLE_OPTIMIZERS = OneOf("twotower.training.optimizers:OPTIMIZERS", ("auto",), trait="table")
_METRICS = OneOf("twotower.evaluation.metrics:METRICS")
_PART = Rule("be between 0 and 1", lambda part: 0 < part < 1)
_RECALL = Rule(f"{_PART.text}; to find all, set index.kind = 'exact'", _PART.holds)
_CANDIDATES = Range(2, 10_000)
_NOT_NEGATIVE = Rule("be finite and at least 0", lambda value: 0 <= value < inf)
_NAME = Rule("be of letters, digits, '-' and '_'", re.compile(r"[A-Za-z0-9][\w-]*").fullmatch)
WIDTH = 64
"""Default of ``towers.dim``."""
QUERY_WIDTHS = (256,)
"""Widths of the query tower's hidden layers where nothing else is set."""
EVENTS_READ = 50
"""Most recent events of a history that are read where nothing else is set."""
_METRIC = "ndcg@10"
"""The default, for which no table is loaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(Section):
    """``[data]``: which column is what, and what counts as a positive."""

    query_column: str | None = None
    """Column of the query ids, in the interactions and in the query table."""
    item_column: str | None = None
    """Column of the item ids, in the interactions and in the item table."""
    time_column: str | None = None
    """Column of the events' times."""
    label_column: str | None = None
    """Column of 0/1 labels, or of ratings."""
    weight_column: str | None = None
    """Column of counts or weights, above 0."""
    weight_scale: Literal["auto", "linear", "log"] = "auto"
    """What a weight w counts for: w, or ln(1 + w); ``auto`` is log where one event would outweigh 100."""
    position_column: str | None = None
    """Column of the position at which each event's item was shown, from 1; training weighs clicks by it."""
    impressions_column: str | None = None
    """Column of the items that were shown beside the taken one: a list, or a string with a separator."""
    event_column: str | None = None
    """Column of the kinds of event, such as view, cart and purchase."""
    target_events: tuple[str, ...] = ()
    """Kinds of event that are asked for and learnt to predict; other kinds are only read."""
    positive_threshold: Annotated[float | None, Rule("be finite", isfinite)] = None
    """Ratings from this one up are positives and the others negatives; without it all are positives."""
    order: Literal["auto", "time", "file", "none"] = "auto"
    """What orders a query's events; ``auto`` is time where there is a time column and the split asks for
    what comes last, the file's order for sessions without times, else none."""
    repeats: Literal["auto", "yes", "no"] = "auto"
    """Whether a query may get an item again that it had before; ``auto`` reads it off the events, and
    searches, whose ids are text, may."""
    drop_null_ids: bool = False
    """Leave out events without a query or item id instead of refusing the table."""

    def _contradictions(self) -> Iterator[str]:
        if self.target_events and self.event_column is None:
            yield dataclass_trees.problem("event_column", "be stated beside target_events", None)
        if self.event_column is not None and not self.target_events:
            yield dataclass_trees.problem("target_events", "be stated beside event_column", ())


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesConfig(Section):
    """``[features.item]``, ``[features.query]`` and ``[features.event]``: column name -> kind.

    A column of an item or a query that is not named here gets the kind that its content suggests.
    ``shown`` keeps a column for people to read without feeding it.
    """

    query: Mapping[str, str] = field(default_factory=dict)
    """Kinds of the query table's columns."""
    item: Mapping[str, str] = field(default_factory=dict)
    """Kinds of the item table's columns."""
    event: Mapping[str, str] = field(default_factory=dict)
    """Columns of the interactions that are read of each event of a history, beside its item: a rating, the
    time spent, the kind of event; those that are not named are not read."""
    text: Annotated[str, _TEXT_KINDS] = "text"
    """Kind of the columns that are found to be text: words, pairs of words and letter trigrams (``text``),
    a part of these, all of them and windows of three words by pretrained vectors (``windows``), or vectors
    of a pretrained sentence encoder (``sentence``)."""
    id_text: Literal["auto", "yes", "no"] = "auto"
    """Whether ids that are strings are read as text, too; ``auto``: those of items that have several words,
    and those of queries that are searches: of several words, without an order and with few events."""
    language: Literal["auto", "none", Language] = "auto"
    """Language of the items' texts, by which BM25 takes the endings off words, their own and a query's;
    ``auto``: that of each column's stop words, if it has enough of any; ``none``: they stay as they are."""
    min_count: Annotated[int, Range(1, 10**9)] = 2
    """A category, tag, token of text or id seen in fewer training rows than this is treated as unknown; and
    a token in less than one of 5,000 texts."""
    text_buckets: Annotated[int | None, Range(1, 10**9)] = None
    """Rows of a table that tokens of text are hashed into, each to two of them; without it each token of
    ``min_count`` training texts has a row of its own."""
    word_vectors: str | None = None
    """File of pretrained word vectors, as GloVe, word2vec and fastText write them as text, with which
    columns of kind ``windows`` are read; its words are kept in the bundle."""
    sentence_encoder: str | None = None
    """Name or folder of a pretrained sentence encoder (``sentence-transformers``), with which columns of
    kind ``sentence`` are read."""
    tune_sentences: bool = False
    """Whether that encoder is trained with the towers, one for both sides, and kept in the bundle; else it
    stays as it is, and each text is encoded once."""

    def _contradictions(self) -> Iterator[str]:
        tables = {"query": (self.query, _KINDS), "item": (self.item, _KINDS)}
        tables["event"] = (self.event, _EVENT_KINDS)
        for side, (kinds, known) in tables.items():
            for column, kind in kinds.items():
                if not known.allows(kind):
                    yield f"{side}.{column} must be one of {', '.join(known.names())}, got {kind!r}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig(Section):
    """``[split]``: which events are for training, validation and test."""

    kind: SplitKind = "auto"
    """``auto`` is leave-last-out where events have an order, else random per query. Where files give train
    and test alone it says how validation is drawn from train: ``auto`` as the test was drawn."""
    test_fraction: Annotated[float | None, _PART] = None
    """Share in test, of a query's events (random; 0.2 where not set), of all events (temporal; 0.1),
    of the items (cold-items; 0.1) or of the queries (cold-queries; 0.2)."""
    valid_fraction: Annotated[float, _PART] = 0.1
    """The same share in validation; also of what is taken from train where files give no validation."""
    seed: Seed = 0
    """Seed of the random choices of a split; apart from the training seed."""

    def _contradictions(self) -> Iterator[str]:
        total = (self.test_fraction or 0.0) + self.valid_fraction
        if total >= 1:
            yield f"test_fraction + valid_fraction must stay below 1, got {total!r}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TowersConfig(Section):
    """``[towers]``: the two networks."""

    dim: Annotated[int | None, Range(1, 16_384)] = None
    """Width of both towers' output and of an id's embedding. Without it 64, and in closed form
    (``training.solver = "spectral"``) what validation chooses."""
    query_hidden: Annotated[tuple[int, ...] | None, Range(1, 16_384)] = None
    """Widths of the query tower's hidden layers; ``[]`` is a linear mix. Without it 256, and a linear mix
    where half of a query's items is predicted from the other (``training.examples = "sets"``)."""
    item_hidden: Widths = ()
    """Widths of the item tower's hidden layers; none is a linear mix."""
    history: Annotated[str, _HISTORY_ENCODERS] = "auto"
    """How the query's history is read: as a mean (``mean``; ``bag``: with a learnt vector for an empty
    history; ``recency``: the later the heavier; ``attention``: with learnt weights), as means over longer
    and shorter pasts (``pooled``), or in its order (``gru``, ``sasrec``, ``transformer``); ``auto`` is
    ``pooled`` where events have an order, else ``bag``, as in closed form."""
    history_items: Literal["auto", "tower", "ids", "separate"] = "auto"
    """What a history reads of an item: all that the item tower is told of it, so that new items count
    (``tower``), its id's embedding alone (``ids``), or encoders of its own (``separate``). ``auto`` is
    ``separate`` where half of a query's items is predicted from the other, else ``tower``."""
    history_length: Annotated[int | None, Range(1, 100_000)] = None
    """Most recent events of the history that are read; without it 50, and 1,000 where half of a query's
    items is predicted from the other (``training.examples = "sets"``)."""
    question_time: Literal["auto", "on", "off"] = "auto"
    """Whether the query tower reads when it is asked: the time since the last event, the hour and the
    weekday; events need times and an order. ``auto`` is off."""
    query_id: Literal["auto", "on", "off"] = "auto"
    """Whether each query has an embedding of its own; ``auto``: where it has no history, and beside one in
    order where queries have 20 events or more, there are up to 300,000, and validation prefers it (``tune``
    does not try it)."""
    item_id: Literal["on", "off"] = "on"
    """Whether each item has an embedding of its own beside its features."""
    popularity: Literal["auto", "on", "off"] = "auto"
    """Whether the last number of an item's vector is its recent popularity, to which history and features
    add. Training uses the popularity before each event, and a bundle that of its last event. ``auto`` is on
    where the test is a later period, scores are dot products and items have ids."""
    popularity_days: Positive = None
    """Half-life of that popularity, in days; chosen on validation if not set."""
    spectral_dim: Annotated[int | None, Range(0, 16_384)] = None
    """Numbers that a closed form adds to the compared vectors, beside ``dim``: singular vectors as the
    baseline ``spectral`` has them, which training leaves as they are. 0 is none; without it validation
    decides."""
    block: Literal["skip", "tanh"] = "skip"
    """How hidden layers stand on the features: ``skip`` adds what they find to the features' sum, with
    GELU; ``tanh`` is layers of tanh alone, as in DSSM, the first hidden width that of the features."""
    dropout: Chance = 0.2
    """Probability with which each input of the query tower's layers is left out in training."""
    id_dropout: Chance = 0.05
    """Probability with which an id is taken as unknown in training, so that features learn to stand in; and
    what is known of an event of a history beside its item; and the times of a whole history."""
    view_dropout: Chance = 0.3
    """Of several views: probability with which a query's events in the view that is asked for are hidden
    from its history in training, so that what it did in the others learns to stand in."""
    similarity: Literal["auto", "dot", "cosine"] = "auto"
    """``cosine`` normalises both outputs; ``auto`` is cosine for a softmax whose temperature is learnt,
    where 5,000 queries or more ask or both sides are read by features alone; else dot, and for towers of
    your own, several views without an order, and examples that are sets."""
    temperature: Positive = None
    """Divisor of the score in the loss; without it 1 for dot, and learnt from 0.1 on for cosine."""
    temperature_end: Positive = None
    """Where a stated temperature goes to over the epochs, evenly in its logarithm; without it it stays."""

    @property
    def query_widths(self) -> tuple[int, ...]:
        """``query_hidden``, or its default."""
        return QUERY_WIDTHS if self.query_hidden is None else self.query_hidden

    @property
    def width(self) -> int:
        """``dim``, or its default."""
        return WIDTH if self.dim is None else self.dim

    @property
    def compared_width(self) -> int:
        """Numbers of the compared vectors: ``width``, and those of a closed form."""
        return self.width + (self.spectral_dim or 0)

    @property
    def events_read(self) -> int:
        """``history_length``, or its default."""
        return EVENTS_READ if self.history_length is None else self.history_length

    def _contradictions(self) -> Iterator[str]:
        if self.block == "tanh" and self.history not in ("auto", "none"):
            yield f"history must be 'none' where block is 'tanh', got {self.history!r}"
        for name in ("query_hidden", "item_hidden"):
            widths = getattr(self, name)
            if widths is None:
                continue
            if len(widths) > 100:
                yield f"{name} must hold at most 100 widths, got {len(widths)}"
            if self.block == "tanh" and not widths:
                yield f"{name} must hold a width where block is 'tanh', got ()"


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig(Section):
    """``[loss]``: what is minimised, and against which negatives."""

    kind: Annotated[str, OneOf("twotower.losses.loss_kinds:LOSSES", ("auto",))] = "auto"
    """``auto`` is softmax."""
    negatives: Annotated[str, OneOf("twotower.losses.samplers:SAMPLERS", ("auto",))] = "auto"
    """``auto``: for softmax every item in catalogues of up to 20,000 items, else mixed, and by popularity
    where a batch is of whole histories; for the others uniform. ``labels`` takes the table's own 0 labels:
    bce samples nothing, the others rank an item before what its query has a 0 for, and before a few drawn
    items; ``impressions`` takes what was shown beside the item."""
    num_negatives: Annotated[int | None, Range(1, 10**7)] = None
    """Items drawn a batch, 1,024 where not set; by ``per-query`` drawn a query, 128. Where each is a text
    for an encoder that is trained (``features.tune_sentences``), 128 and 4."""
    popularity_power: Share = 0.75
    """Power of an item's share of the events by which ``popularity`` draws; 0 is uniform."""
    hard_share: Share = 0.5
    """Share of ``num_negatives`` that ``hard`` mines from the index; the others are uniform."""
    hard_margin: Chance = 0.1
    """A mined item that scores above (1 - this) of the own item may be a false negative: not taken."""
    memory_batches: Annotated[int, Range(1, 10**6)] = 4
    """Earlier batches whose items ``memory`` remembers."""
    correct_log_q: bool = True
    """Subtract the log of the probability with which an item is proposed as a negative."""
    frequencies: Literal["counts", "stream"] = "counts"
    """Where that probability comes from: counts of the table, or an estimate over the stream of batches."""
    mask_known: bool = True
    """Leave items of the query's own history out of its negatives."""
    label_smoothing: Chance = 0.0
    """Share of softmax's target that is spread evenly over the negatives."""
    calibration: Share = 0.75
    """How far ``gbce`` takes the overconfidence of sampling back: 0 not at all, 1 all of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig(Section):
    """``[training]``: the loop."""

    epochs: Annotated[int, Range(1, 10**6)] = 50
    """Most epochs; early stopping usually ends sooner."""
    patience: Annotated[int, Range(1, 10**9)] = 3
    """Epochs without a better validation metric after which training stops."""
    metric: str = _METRIC
    """Validation metric that decides, as ``name@k``."""
    validate_among: Literal["catalogue", "labels"] = "catalogue"
    """What validation ranks for each query: all items, or those that validation has a label of it for."""
    batch_size: Annotated[int | None, Range(1, 10**7)] = None
    """Examples a step; without it by the number of training events, from 128 to 1,024, for ``prefixes``
    those of about 128 histories, up to 4,096 and to a 100th of the events, and for ``sets`` from 16 to 256
    queries."""
    examples: Literal["auto", "pairs", "prefixes", "sets"] = "auto"
    """What a batch holds: events, each with its history (``pairs``); whole histories, each of whose
    positions is an example (``prefixes``); or queries whose events have no order, one half of their items
    predicted from the other (``sets``)."""
    next_events: Annotated[int | None, Range(1, 10**9)] = None
    """Number of next events of a history from which the target is drawn; 1 is the next event. The default
    is 1, and all following events where the test is a later period."""
    gap_days: Annotated[float | None, _NOT_NEGATIVE] = None
    """Most days between a question and its target; half of the histories end at the question. The default
    is 0, and the days that validation spans where the test is a later period."""
    solver: Literal["auto", "gradient", "spectral"] = "auto"
    """How the weights are found: in steps along gradients, or in closed form from singular vectors of the
    matrix of queries and items (``spectral``), which reads ids alone. ``auto`` takes steps, adds the closed
    form where validation is better with it (``towers.spectral_dim``), and tries it alone where the examples
    are sets. ``gradient`` adds none, unless ``towers.spectral_dim`` is stated."""
    start: Literal["auto", "random", "spectral"] = "auto"
    """What the embeddings of the items' ids start from: random numbers, or the leading singular vectors of
    the matrix of queries and items. ``auto`` is the latter where ids of items are read, a history is a sum
    of its events (no transformer, SASRec or GRU), the vectors are found in a minute, and the test is not of
    a later period."""
    optimizer: Annotated[str, _OPTIMIZERS] = "adamw"
    """The optimizer; embedding tables that a step only touches in part get its sparse form."""
    learning_rate: Positive = None
    """Step size; where not set 0.006, and of towers that read features alone, texts among them on both
    sides, by the number of pairs: 0.002, or 0.0005 of fewer than 10,000."""
    table_optimizer: Annotated[str, _TABLE_OPTIMIZERS] = "auto"
    """Of tables that a step touches in part; ``auto`` is adam, and row-wise adagrad, whose state is one
    number a row, where a table holds more than 64 million numbers."""
    table_learning_rate: Positive = None
    """Step size of those tables; without it the same for adam, ten times as great for adagrad."""
    sentence_learning_rate: Positive = None
    """Step size of a sentence encoder that is trained (``features.tune_sentences``), 2e-5 where not set."""
    warmup_steps: Annotated[int, Range(0, 10**9)] = 0
    """Steps over which the step size rises from 0."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """How the step size falls to 0 until the last of ``epochs``."""
    clip_norm: Positive = None
    """Greatest norm of all gradients together; without it they are left as they are."""
    encode_size: Annotated[int | None, Range(1, 10**7)] = None
    """Queries and items that are encoded at once, gradients exact all the same: memory for a second pass;
    without it a batch is encoded whole."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the products in the softmax losses, and in a sentence encoder while it is trained and validated; a
    bundle's is float32. ``auto`` is bfloat16 where the processor has units for it."""
    weight_decay: Annotated[float | None, _NOT_NEGATIVE] = None
    """Decoupled weight decay (adamw), or L2 penalty (adam), of weights; not of biases or a learnt
    temperature, nor, by adam, of a sentence encoder or a table that a step only touches in part. Rows of
    such a table decay five times as much, in the steps that touch them. Without it 0.1, and 1 of several
    views without an order."""
    seed: Seed = 0
    """Seed of the weights, the shuffles, the negatives and the dropout."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``mps``."""
    threads: Annotated[int | None, Range(1, 1024)] = None
    """CPU threads. The default is OMP_NUM_THREADS, or else the number of cores. With towers of your own, or
    where a sentence encoder is trained, it is one fewer than the cores, and the last bits of the weights
    depend on it."""

    def _contradictions(self) -> Iterator[str]:
        if self.metric != _METRIC:
            form = re.fullmatch(r"([^@]+)@[1-9][0-9]{0,5}", self.metric)
            if form is None or not _METRICS.allows(form[1]):
                names = ", ".join(_METRICS.names())
                yield f"metric must be one of {names} with @k, got {self.metric!r}"


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig(Section):
    """``[index]``: how the bundle's items are searched."""

    kind: Literal["auto", "exact", "approximate"] = "auto"
    """Whether all items are scored, or those of lists that are likely to hold the best (the extra ``ann``);
    ``auto`` is approximate from 500,000 items on, where the share to be searched says that it is faster."""
    recall: Annotated[float, _RECALL] = 0.99
    """Share of the 100 best items of a query, and of the best to any other depth, that an approximate index
    must find, on average over the queries of validation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RerankConfig(Section):
    """``[rerank]``: a second stage, trees that put the best items in order (the extra ``rank``)."""

    use: Literal["off", "auto", "on"] = "off"
    """Whether there is one; ``auto`` keeps it where it is better on validation."""
    candidates: Annotated[int, _CANDIDATES] = 100
    """How many of the best items it puts in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig(Section):
    """``[teacher]``: how much a student learns from a bundle with a second stage (``teacher=``)."""

    weight: Annotated[float, _POSITIVE] = 1.0
    """Of the loss of what the teacher says, beside that of the events."""
    temperature: Annotated[float, _POSITIVE] = 0.5
    """What the teacher's values are divided by; a larger one makes its distributions flatter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewConfig(Section):
    """``[[views]]``: one kind of item of several that share the queries."""

    name: Annotated[str, _NAME]
    """What it is called, and its bundle's folder."""
    interactions: str | None = None
    """Table of its events; or ``train``, ``valid`` and ``test`` in its place."""
    train: str | None = None
    """Given split: training events."""
    valid: str | None = None
    """Given split: validation events."""
    test: str | None = None
    """Given split: test events."""
    items: str | None = None
    """Table of its items' columns."""
    share: Positive = None
    """Share of the training's steps, as one of all views' shares; without any, each event once an epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(Section):
    """All settings of a training, a section each.

    Args:
        data: How the table is read.
        features: Which columns the towers read, and as what.
        split: Training, validation and test.
        towers: The two networks.
        loss: The loss, and its negatives.
        training: The optimizer, and when to stop.
        index: How items are searched.
        rerank: The second stage.
        teacher: What is learnt from a teacher.
        views: One entry for each of several catalogues.
    """

    data: DataConfig = field(default_factory=DataConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    towers: TowersConfig = field(default_factory=TowersConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    rerank: RerankConfig = field(default_factory=RerankConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    views: tuple[ViewConfig, ...] = ()

    def _contradictions(self) -> Iterator[str]:
        names = [view.name for view in self.views]
        shares = {view.share is not None for view in self.views}
        if len(set(names)) < len(names):
            yield f"views must have distinct names, got {names}"
        if len(shares) > 1:
            yield f"views must all have a share, or none, got {names}"
        if len(names) == 1:
            yield f"views must be two or more, got {names}"

    @staticmethod
    def from_dict(table: Mapping[str, object]) -> "Config":
        """Return the settings of a nested table; what it leaves out keeps its default.

        Raises:
            ConfigError: All unknown keys, wrong types and values out of range, each by its path.
        """
        return dataclass_trees.build(Config, table)

    @staticmethod
    def from_toml(path: str | Path) -> "Config":
        """Return the settings of a TOML file.

        Raises:
            ConfigError: The file is missing or is not TOML, or a setting is wrong.
        """
        return Config.from_dict(read_toml(path))

    @staticmethod
    def of(given: "Config | Mapping[str, object] | str | Path | None") -> "Config":
        """Return the settings in whichever form they are given; None stands for the defaults.

        Args:
            given: A tree, a nested table as ``from_dict`` takes it, or the path of a TOML file.

        Raises:
            ConfigError: As ``from_dict`` and ``from_toml``.
        """
        tree = read_toml(given) if isinstance(given, (str, Path)) else given
        return dataclass_trees.build(Config, {} if tree is None else tree)

    def with_settings(self, settings: Iterable[str]) -> "Config":
        """Return the tree with ``section.field=value`` settings applied, as ``--set`` takes them.

        A value is read as TOML, and as a bare string where that is no TOML or not what the field
        takes. One value may stand for a list of it: ``data.target_events=purchase``. A column name
        that holds a dot or ``=`` stands in quotes, as in TOML:
        ``features.item."release.date"=time``; one with spaces needs none.

        Raises:
            ConfigError: All settings that are malformed, unknown or out of range.
        """
        table = self.to_dict()
        problems = []
        for setting in settings:
            try:
                dataclass_trees.put_setting(Config, table, setting)
            except ConfigError as error:
                problems.append(str(error))
        return dataclass_trees.build(Config, table, problems)

    def to_dict(self) -> dict[str, Any]:
        """Return the tree as nested dictionaries, without the fields that are not set."""
        result = dataclass_trees.plain(self)
        assert isinstance(result, dict)
        return result

    def to_flat(self) -> dict[str, Any]:
        """Return each setting by its path, such as ``towers.dim``, without those that are not set."""
        return dataclass_trees.flat(self.to_dict())

    def to_toml(self, *, comments: bool = False) -> str:
        """Return the tree as TOML, with each field's meaning as a comment if wanted."""
        lines: list[str] = []
        for section in fields(self):
            value = getattr(self, section.name)
            if section.name == "views":
                for view in dataclass_trees.plain(self)["views"]:  # type: ignore[index]
                    lines += ["[[views]]", *(f"{k} = {toml_value(v)}" for k, v in view.items()), ""]
                continue
            docs = dataclass_trees.field_docs(typing.cast("Any", type(value))) if comments else {}
            tables: list[str] = []
            lines.append(f"[{section.name}]")
            for entry in fields(value):
                inner = getattr(value, entry.name)
                comment = [f"# {line.strip()}" for line in docs.get(entry.name, "").splitlines()]
                if isinstance(inner, Mapping):
                    tables += ["", f"[{section.name}.{entry.name}]", *comment]
                    tables += [f"{toml_key(k)} = {toml_value(v)}" for k, v in inner.items()]
                elif inner is not None:
                    lines += [*comment, f"{entry.name} = {toml_value(inner)}"]
                elif comments:
                    lines += [*comment, f"# {entry.name} ="]
            lines += [*tables, ""]
        return "\n".join(lines)
