"""Events and tables -> ``Dataset``: what is decided once all of them are known."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from twotower.arrays import Bools, Float32s, Ints
from twotower.caller import argument, passing
from twotower.config import DataConfig, FeaturesConfig
from twotower.data import columns
from twotower.data.columns import Role
from twotower.data.dataset import Dataset, EntityTable, query_blocks
from twotower.data.event_reader import EventReader
from twotower.data.input_files import read_files
from twotower.data.tables import Table
from twotower.errors import ConfigError, DataError
from twotower.features.forms import Form
from twotower.features.schema import Side, read_table_forms
from twotower.vocab import Vocabulary

REPEATS_FROM = 0.05
"""From this share of events on that repeat an item of the same query, repeats are part of the data."""
BLOCK_EVENTS = 1 << 22
"""Events of whole queries that are looked at at a time."""
HEAVY_WEIGHT = 100
"""Above so many medians, an event outweighs a hundred others, and weights are taken by their logarithm."""
_AS_LOGARITHM = "each counts as ln(1 + weight)."


@dataclass(frozen=True)
class Preparation:
    """A data set, and how its columns were understood.

    Args:
        dataset: Every event is in ``Part.TRAIN``, unless files gave the parts.
        decisions: One a role, and one for each column of the interactions that nothing reads, to be
            shown as a table.
        is_split: Whether files gave the parts.
        is_rated: Whether the label is a rating, of which label 0 is a low one.
        config: The settings that the tables were read with.
    """

    dataset: Dataset
    decisions: tuple[columns.Decision, ...]
    is_split: bool
    is_rated: bool
    config: DataConfig


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
    threshold = config.positive_threshold
    if roles.label_kind == "rating" and threshold is None:
        notes.append(f"Every event is a positive, whatever its {roles.label}.")
    if labels is not None:
        among = labels[asked]
        if threshold is not None:
            notes.append(
                f"{roles.label} of {threshold:g} or more is a positive: {float(among.mean()):.1%} of the "
                "events."
            )
        check_positives(int((among > 0).sum()), len(among), reader)
        labels = None if (among > 0).all() else labels
    if weights is not None and roles.weight is not None:
        scaled = _scaled(weights[asked], roles.weight, config, notes)
        if is_target is None:
            weights = scaled
        else:
            weights = weights.copy()
            weights[asked] = scaled
    return labels, weights


@dataclass(frozen=True, eq=False)
class Seen:
    """The ids of a side in the events.

    Args:
        ids: ``(n,)`` distinct, sorted.
        counts: ``(n,)`` events of each.
    """

    ids: pl.Series
    counts: Ints

    @classmethod
    def of(cls, ids: pl.Series) -> "Seen":
        """Return the distinct ids of a column, sorted, with their counts."""
        counted = ids.rename("id").value_counts(name="count").sort("id")
        return cls(counted["id"], counted["count"].to_numpy().astype(np.int64))


@dataclass(frozen=True, eq=False)
class SideTable:
    """A side's table as it was given, with its cells read by their forms.

    Args:
        frame: One line an id.
        key: Name of the column of ids.
        forms: How the cells of columns were written; see ``EntityTable``.
        notes: What could not be read.
    """

    frame: pl.DataFrame
    key: str
    forms: Mapping[str, Form]
    notes: tuple[str, ...]

    @property
    def ids(self) -> pl.Series:
        """The ids, each once."""
        return self.frame[self.key]


def side_table(
    table: Table, column: str, role: Role, config: DataConfig, features: FeaturesConfig
) -> SideTable:
    """Return the table of one side, checked.

    Args:
        table: The table.
        column: Name of the id column in the interactions.
        role: ``QUERY`` or ``ITEM``.
        config: Which column is what.
        features: Kinds of columns that are stated.

    Raises:
        DataError: It cannot be read, or two lines have the same id.
    """
    what = "items" if role == Role.ITEM else "queries"
    frame = read_files(table, what=what)
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
    return SideTable(frame, key, told.forms, tuple(told.notes))


def entities(
    own: SideTable | None,
    seen: Seen,
    column: str,
    role: Role,
    notes: list[str],
    vocabulary: Vocabulary | None = None,
) -> EntityTable:
    """Return a side's table with a line for each id.

    Args:
        own: Its table, or None where only the events know it.
        seen: The ids in the events.
        column: Name of their column there.
        role: ``QUERY`` or ``ITEM``.
        notes: Gets what could not be read, and how many ids have no line.
        vocabulary: Of all these ids; None orders them by value.

    Raises:
        DataError: The table has no id of the events.
    """
    what = "items" if role == Role.ITEM else "queries"
    if own is None:
        vocabulary = vocabulary or Vocabulary(seen.ids)
        return EntityTable(vocabulary, vocabulary.ids.rename(column).to_frame(), column)
    frame, key = own.frame, own.key
    ids, of_events = own.ids, seen.ids
    if ids.dtype != of_events.dtype:
        ids, of_events = ids.cast(pl.String), of_events.cast(pl.String)
        frame = frame.with_columns(ids.rename(key))
    is_there = check_shared(ids, of_events, what, column)
    if not is_there.all():
        missing = of_events.filter(~is_there)
        share = seen.counts[~is_there.to_numpy()].sum() / seen.counts.sum()
        # What a query says is nobody else's business: notes go into reports.
        first = f", the first {missing.min()!r}" if what == "items" else ""
        notes.append(
            f"No row in {what} for {len(missing):,} of the {len(of_events):,} {what} in the "
            f"interactions ({share:.1%} of the events){first}: nothing but their ids is known."
        )
    notes += own.notes
    if vocabulary is None:
        vocabulary = Vocabulary(
            pl.concat([ids.rename("id"), of_events.rename("id")]).unique().sort()
        )
    all_ids = vocabulary.ids.rename(key).to_frame()
    frame = all_ids.join(frame, on=key, how="left", maintain_order="left")
    return EntityTable(vocabulary, frame, key, own.forms)


def check_shared(ids: pl.Series, of_events: pl.Series, what: str, column: str) -> pl.Series:
    """Return which ids of events a side's table has, and refuse a table that has none of them.

    Args:
        ids: Of the table, with the name of its column.
        of_events: Distinct ids of the events.
        what: Names the table: ``items`` or ``queries``.
        column: Name of the ids' column in the events.

    Raises:
        DataError: It has none.
    """
    if ids.dtype != of_events.dtype:
        ids, of_events = ids.cast(pl.String), of_events.cast(pl.String)
    is_there = of_events.is_in(ids.implode())
    if not is_there.any():
        role = "item" if what == "items" else "query"
        raise DataError(
            f"{what} must share ids with the interactions, got none in common: "
            f"{ids.name!r} begins with {ids[0]!r}, {column!r} with {of_events[0]!r}; "
            f"name the column: {passing(**{f'{role}_column': 'NAME'})}."
        )
    return is_there


def check_positives(num: int, num_rows: int, reader: EventReader) -> None:
    """Refuse a table without a positive.

    Raises:
        DataError: It has none.
    """
    if not num:
        raise DataError(
            f"the label column {reader.roles.label!r} must hold a positive, got none in {num_rows} rows; "
            f"lower data.positive_threshold or pass another {argument('label_column')}."
        )


def check_catalogue(num_items: int) -> None:
    """Refuse a catalogue in which nothing can be ranked.

    Raises:
        DataError: It has one item.
    """
    if num_items < 2:
        raise DataError(
            f"the catalogue must hold at least 2 items, got {num_items}; "
            "with one item there is nothing to rank."
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
                f"{_AS_LOGARITHM}"
            )
    return np.log1p(weights) if scale == "log" else weights


def was_logarithm(notes: Iterable[str]) -> bool:
    """Return whether ``weight_scale = "auto"`` took logarithms, by the notes of the data set."""
    return any(note.endswith(_AS_LOGARITHM) for note in notes)


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


def repeats_of(dataset: Dataset, config: DataConfig, notes: list[str]) -> bool:
    """Return whether an item may be recommended to a query that had it before.

    Args:
        dataset: All else of it.
        config: What is stated.
        notes: Gets what was decided.
    """
    if config.repeats != "auto":
        return config.repeats == "yes"
    if dataset.has_searches:
        notes.append("Queries are searches: who searches again may get what was there before.")
        return True
    events, positive = dataset.interactions, dataset.interactions.is_positive
    is_read, num_again = events.is_read, 0
    for low, high in query_blocks(events.offsets, BLOCK_EVENTS):
        of_block = slice(events.offsets[low], events.offsets[high])
        pairs = events.query_rows[of_block].astype(np.int64) << 32 | events.item_rows[of_block]
        is_new = np.zeros(len(pairs), np.bool_)
        read = np.flatnonzero(is_read[of_block])
        is_new[read[np.unique(pairs[read], return_index=True)[1]]] = True  # the first of each pair
        num_again += int((~is_new & positive[of_block]).sum())
    share = num_again / max(1, int(positive.sum()))
    if share >= REPEATS_FROM:
        notes.append(f"{share:.1%} of the events repeat an item of their query: repeats are kept.")
    return share >= REPEATS_FROM
