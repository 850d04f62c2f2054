"""Tables -> ``Dataset``: roles found, ids checked, events sorted, entity tables completed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from twotower.arrays import Bools, Float32s
from twotower.caller import argument, passing
from twotower.config import DataConfig, FeaturesConfig
from twotower.data import columns
from twotower.data.columns import Role
from twotower.data.dataset import Dataset, EntityTable, Part, sorted_events
from twotower.data.event_reader import EventReader, check_rows
from twotower.data.impressions import impressions_of
from twotower.data.positions import unstated_position
from twotower.data.split_files import parts_of, read_events
from twotower.data.tables import Table, read_table
from twotower.data.unused import unstated_kinds, unused_columns
from twotower.errors import ConfigError, DataError
from twotower.features.schema import Side, read_table_forms
from twotower.vocab import Vocabulary

REPEATS_FROM = 0.05
"""From this share of events on that repeat an item of the same query, repeats are part of the data."""
HEAVY_WEIGHT = 100
"""Above so many medians, an event outweighs a hundred others, and weights are taken by their logarithm."""


@dataclass(frozen=True)
class Preparation:
    """A data set, and how its columns were understood.

    Args:
        dataset: Every event is in ``Part.TRAIN``, unless files gave the parts.
        decisions: One a role, and one for each column of the interactions that nothing reads, to be
            shown as a table.
        is_split: Whether files gave the parts.
        is_rated: Whether the label is a rating, of which label 0 is a low one.
    """

    dataset: Dataset
    decisions: tuple[columns.Decision, ...]
    is_split: bool
    is_rated: bool


def prepare(
    interactions: Table | Mapping[str, Table],
    *,
    items: Table | None = None,
    queries: Table | None = None,
    config: DataConfig | None = None,
    features: FeaturesConfig | None = None,
    name: str = "data",
) -> Preparation:
    """Return the data set of one table of interactions, or of tables that give the parts.

    Args:
        interactions: A path or a frame; or a mapping of ``train`` and ``test``, and on wish ``valid``.
            ``test_sessions`` and ``valid_sessions`` in their place hold new queries, each from its first
            event to the one that is asked for; see ``given.read_events``.
        items: The items' table; items that only it knows are in the catalogue, too.
        queries: The queries' table.
        config: Which column is what.
        features: Kinds of columns that are stated, which say how their cells are read.
        name: What the data is called in reports.

    Raises:
        DataError: A table cannot be used; the message says which, why and what to do.
    """
    config = config or DataConfig()
    frame, given = read_events(interactions, may_lack=config.position_column)
    reader = EventReader.of(frame, config)
    roles, kinds = reader.roles, features or FeaturesConfig()
    unused = unused_columns(frame, roles, read=kinds.event)
    notes = unstated_kinds(frame, unused)
    is_learnt = None if given is None else given.parts == Part.TRAIN
    block = reader.read(frame, is_learnt=is_learnt)
    check_rows(len(block.frame), len(frame))
    if roles.event is not None:
        reader.check_targets(block.frame[roles.event].cast(pl.String).unique().to_list())
    if len(block.frame) < len(frame):
        left_out = len(frame) - len(block.frame)
        notes.append(f"Left out {left_out} of {len(frame)} rows without an id.")
        given = None if given is None else given.take(block.is_kept)
    frame = block.frame
    labels, weights = settled(reader, block.labels, block.weights, block.is_target, notes)
    if roles.position is None:
        notes += unstated_position(frame, roles)

    query_table = entities(queries, block.query_ids, roles.query, Role.QUERY, config, kinds, notes)
    item_table = entities(items, block.item_ids, roles.item, Role.ITEM, config, kinds, notes)
    check_catalogue(item_table)
    item_rows = item_table.ids.rows_of(block.item_ids)
    impressions = None
    if roles.impressions is not None:
        shown = frame[roles.impressions]
        impressions = impressions_of(shown, item_rows, item_table.ids, notes)
    has_sessions = given is not None and bool(given.is_session.any())
    ordered, by_time = order_of(
        config, has_times=block.times is not None, has_sessions=has_sessions
    )
    events, order = sorted_events(
        query_table.ids.rows_of(block.query_ids),
        query_table.ids.num_rows,
        by_time=by_time and block.times is not None,
        item_rows=item_rows,
        times=block.times,
        labels=labels,
        weights=weights,
        positions=block.positions,
        impressions=impressions,
        is_target=block.is_target,
    )
    with_ids = (roles.query, roles.item, roles.impressions)
    event_columns = frame.drop([column for column in with_ids if column is not None])[order]
    parts = np.full(len(events), Part.TRAIN, np.uint8)
    if given is not None:
        parts = parts_of(given.take(order), events, query_table.ids, notes)
    dataset = Dataset(
        queries=query_table,
        items=item_table,
        interactions=events,
        parts=parts,
        ordered=ordered,
        repeats=False,
        event_columns=event_columns,
        name=name,
    )
    repeats = _repeats(dataset, config, notes)
    return Preparation(
        replace(dataset, repeats=repeats, notes=tuple(notes)),
        (*roles.decisions, *unused),
        is_split=given is not None,
        is_rated=roles.label_kind == "rating",
    )


def catalogue_of(
    items: Table, config: DataConfig, features: FeaturesConfig
) -> tuple[EntityTable, tuple[str, ...]]:
    """Return the items' table where there are no events, and notes on cells that cannot be read.

    Raises:
        DataError: The table cannot be used as it is.
    """
    frame = read_table(items, what="items")
    own = columns.find_id(frame, Role.ITEM, given=config.item_column, like="item_id")
    ids, kept = columns.checked_ids(frame[own], role=Role.ITEM, drop_null=config.drop_null_ids)
    notes: list[str] = []
    ids = ids.filter(pl.Series(kept))
    return entities(frame, ids, own, Role.ITEM, config, features, notes), tuple(notes)


def settled(
    reader: EventReader,
    labels: Float32s | None,
    weights: Float32s | None,
    is_target: Bools | None,
    notes: list[str],
) -> tuple[Float32s | None, Float32s | None]:
    """Return the labels and weights of all events, once all are known.

    Args:
        reader: That read them.
        labels: ``(E,)``, or None.
        weights: ``(E,)`` as the table has them, or None.
        is_target: ``(E,)``, or None where all are.
        notes: Gets what was decided.

    Returns:
        ``(E,)`` labels, or None where all are positives; ``(E,)`` weights on their scale, or None.

    Raises:
        DataError: No event is a positive.
    """
    config, roles = reader.config, reader.roles
    asked: Bools | slice = slice(None) if is_target is None else is_target
    if labels is not None:
        threshold, among = config.positive_threshold, labels[asked]
        if threshold is not None:
            notes.append(
                f"{roles.label} of {threshold:g} or more is a positive: {float(among.mean()):.1%} of the "
                "events."
            )
        elif roles.label_kind == "rating":
            notes.append(f"Every event is a positive, whatever its {roles.label}.")
        if not (among > 0).any():
            raise DataError(
                f"the label column {roles.label!r} must hold a positive, got none in {len(among)} rows; "
                f"lower data.positive_threshold or pass another {argument('label_column')}."
            )
        labels = None if (among > 0).all() else labels
    if weights is not None and roles.weight is not None:
        scaled = _scaled(weights[asked], roles.weight, config, notes)
        if is_target is None:
            weights = scaled
        else:
            weights = weights.copy()
            weights[asked] = scaled
    return labels, weights


def entities(
    table: Table | None,
    ids: pl.Series,
    column: str,
    role: Role,
    config: DataConfig,
    features: FeaturesConfig,
    notes: list[str],
) -> EntityTable:
    """Return a side's table with its cells read by their forms; ``notes`` gets what could not be read."""
    what = "items" if role == Role.ITEM else "queries"
    seen = ids.unique().rename(column)
    if table is None:
        vocabulary = Vocabulary(seen.sort())
        return EntityTable(vocabulary, vocabulary.ids.rename(column).to_frame(), column)
    frame = read_table(table, what=what)
    stated = getattr(config, f"{role}_column")
    stated = stated if stated in frame.columns else None
    key = columns.find_id(frame, role, given=stated, like=column, what=what)
    side: Side = "item" if role == Role.ITEM else "query"
    told = read_table_forms(frame, side, key, getattr(features, side))
    frame = told.frame
    own, kept = columns.checked_ids(frame[key], role=role, drop_null=config.drop_null_ids)
    frame = frame.with_columns(own.rename(key)).filter(pl.Series(kept))
    own = frame[key]
    if own.n_unique() != len(own):
        double = own.filter(own.is_duplicated())[0]
        raise DataError(
            f"{what} must have one row an id, got {len(own) - own.n_unique()} repeats, "
            f"the first of {double!r}."
        )
    if own.dtype != seen.dtype:
        own, seen = own.cast(pl.String), seen.cast(pl.String)
        frame = frame.with_columns(own.rename(key))
    if not seen.is_in(own.implode()).any():
        raise DataError(
            f"{what} must share ids with the interactions, got none in common: "
            f"{key!r} begins with {own[0]!r}, {column!r} with {seen[0]!r}; "
            f"name the column: {passing(**{f'{role}_column': 'NAME'})}."
        )
    _tell_of_missing_lines(ids.cast(own.dtype), own, what, notes)
    notes += told.notes
    vocabulary = Vocabulary(pl.concat([own.rename("id"), seen.rename("id")]).unique().sort())
    all_ids = vocabulary.ids.rename(key).to_frame()
    frame = all_ids.join(frame, on=key, how="left", maintain_order="left")
    return EntityTable(vocabulary, frame, key, told.forms)


def check_catalogue(items: EntityTable) -> None:
    """Refuse a catalogue in which nothing can be ranked.

    Raises:
        DataError: It has one item.
    """
    if len(items) < 2:
        raise DataError(
            f"the catalogue must hold at least 2 items, got {len(items)}; "
            "with one item there is nothing to rank."
        )


def _tell_of_missing_lines(ids: pl.Series, own: pl.Series, what: str, notes: list[str]) -> None:
    """Add a sentence on the ids of events that a side's table lacks, where there are any.

    Args:
        ids: Of the events.
        own: Of the table.
        what: Names the table.
        notes: Gets the sentence.
    """
    missing = ids.filter(~ids.is_in(own.implode()))
    if len(missing):
        # What a query says is nobody else's business: notes go into reports.
        first = f", the first {missing.min()!r}" if what == "items" else ""
        notes.append(
            f"No row in {what} for {missing.n_unique():,} of the {ids.n_unique():,} {what} in the "
            f"interactions ({len(missing) / len(ids):.1%} of the events){first}: nothing but their ids is "
            "known."
        )


def _scaled(weights: Float32s, column: str, config: DataConfig, notes: list[str]) -> Float32s:
    """Return the weights, or their logarithm where a few of them would decide everything."""
    scale = config.weight_scale
    if scale == "auto":
        median = float(np.median(weights))
        is_heavy = bool(weights.max() > HEAVY_WEIGHT * median)
        scale = "log" if is_heavy else "linear"
        if is_heavy:
            notes.append(
                f"Weights in {column!r} go up to {weights.max():,.6g}, with a median of {median:,.6g}: "
                "each counts as ln(1 + weight)."
            )
    return np.log1p(weights) if scale == "log" else weights


def order_of(config: DataConfig, *, has_times: bool, has_sessions: bool) -> tuple[bool, bool]:
    """Return whether a query's events have an order, and whether time gives it.

    Sessions have one always: without times, that of the file.
    """
    if config.order == "time" and not has_times:
        raise ConfigError(
            "data.order must be 'file' or 'none' where no column is a time, got 'time'; "
            f"pass {passing(time_column='NAME')}."
        )
    by_time = config.order == "time" or (config.order == "auto" and has_times)
    if has_sessions and config.order == "none":
        raise ConfigError(
            "data.order must be 'time' or 'file' where sessions are given, got 'none': "
            "the last event of each is asked for."
        )
    by_file = config.order == "file" or (config.order == "auto" and has_sessions)
    return by_time or by_file, by_time


def _repeats(dataset: Dataset, config: DataConfig, notes: list[str]) -> bool:
    if config.repeats != "auto":
        return config.repeats == "yes"
    if dataset.has_searches:
        notes.append("Queries are searches: who searches again may get what was there before.")
        return True
    events = dataset.interactions
    positive = events.is_positive
    pairs = events.query_rows.astype(np.int64) << 32 | events.item_rows
    is_new = np.zeros(len(pairs), np.bool_)
    read = np.flatnonzero(events.is_read)
    is_new[read[np.unique(pairs[read], return_index=True)[1]]] = True  # the first of each pair
    share = float((~is_new[positive]).mean()) if positive.any() else 0.0
    if share >= REPEATS_FROM:
        notes.append(f"{share:.1%} of the events repeat an item of their query: repeats are kept.")
    return share >= REPEATS_FROM
