"""Tables -> ``Dataset``: roles found, ids checked, events sorted, entity tables completed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from twotower.config import DataConfig, FeaturesConfig
from twotower.data import columns
from twotower.data.assembly import (
    Preparation,
    Seen,
    check_catalogue,
    entities,
    order_of,
    repeats_of,
    settled,
    side_table,
)
from twotower.data.columns import Role
from twotower.data.dataset import Dataset, EntityTable, Part, sorted_events
from twotower.data.event_reader import EventReader, check_rows
from twotower.data.impressions import impressions_of
from twotower.data.input_files import is_prepared
from twotower.data.positions import unstated_position
from twotower.data.prepared.opening import open_prepared, refuse_tables
from twotower.data.split_files import parts_of, read_events
from twotower.data.tables import Table, read_table
from twotower.data.unused import unstated_kinds, unused_columns


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
        interactions: A path or a frame; or a mapping of ``train`` and ``test``, and optionally ``valid``.
            ``test_sessions`` and ``valid_sessions`` in their place hold new queries, each from its first
            event to the one that the model predicts; see ``split_files.read_events``. A path may name a
            folder, a glob pattern, or a prepared folder, which holds all tables.
        items: The items' table; items that only it knows are in the catalogue, too.
        queries: The queries' table.
        config: Which column is what.
        features: Kinds of columns that are stated, which say how their cells are read.
        name: What the data is called in reports.

    Raises:
        DataError: A table cannot be used; the message says which, why and what to do.
    """
    config = config or DataConfig()
    if isinstance(interactions, str | Path) and is_prepared(interactions):
        refuse_tables(items=items, queries=queries)
        return open_prepared(interactions, config=config, features=features, name=name)
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

    sides = []
    for table, ids, column, role in (
        (queries, block.query_ids, roles.query, Role.QUERY),
        (items, block.item_ids, roles.item, Role.ITEM),
    ):
        own = None if table is None else side_table(table, column, role, config, kinds)
        sides.append(entities(own, Seen.of(ids), column, role, notes))
    query_table, item_table = sides
    check_catalogue(len(item_table))
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
    repeats = repeats_of(dataset, config, notes)
    return Preparation(
        replace(dataset, repeats=repeats, notes=tuple(notes)),
        (*roles.decisions, *unused),
        is_split=given is not None,
        is_rated=roles.label_kind == "rating",
        config=config,
    )


def catalogue_of(
    items: Table, config: DataConfig, features: FeaturesConfig
) -> tuple[EntityTable, tuple[str, ...]]:
    """Return the items' table where there are no events, and notes on cells that cannot be read.

    Raises:
        DataError: The table cannot be used as it is.
    """
    frame = read_table(items, what="items")
    key = columns.find_id(frame, Role.ITEM, given=config.item_column, like="item_id")
    own = side_table(frame, key, Role.ITEM, config, features)
    notes: list[str] = []
    return entities(own, Seen.of(own.ids), own.key, Role.ITEM, notes), tuple(notes)
