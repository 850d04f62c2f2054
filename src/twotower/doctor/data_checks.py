"""The doctor on data, before anything is trained: every check, the worst finding first."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import polars as pl

from twotower.caller import argument
from twotower.config import Config
from twotower.data.columns import Decision, Role, checked_ids
from twotower.data.dataset import Dataset, EntityTable
from twotower.data.drawn_validation import hold_out_validation
from twotower.data.preparation import Preparation, prepare
from twotower.data.splits import split
from twotower.data.tables import Table, read_table
from twotower.data.times import times_in_seconds
from twotower.doctor.checks import ExaminedData, findings_of
from twotower.doctor.data_events import out_of_order, position_weights
from twotower.doctor.findings import Finding, worst_first
from twotower.errors import ConfigError
from twotower.keywords import Keywords, configured, takes_keywords
from twotower.vocab import FIRST_ROW, Vocabulary


@takes_keywords
def diagnose_data(
    interactions: Table | Mapping[str, Table],
    *,
    items: Table | None = None,
    queries: Table | None = None,
    config: Config | Mapping[str, object] | str | Path | None = None,
    **keywords: Unpack[Keywords],
) -> list[Finding]:
    """Return what is wrong with tables that ``twotower.train`` would take, the worst first.

    The data is split as for training, and nothing is trained.

    Args:
        interactions: As ``twotower.train`` takes it.
        items: A file or a frame of the items' columns.
        queries: A file or a frame of the queries' columns.
        config: Settings, as for ``twotower.train``.
        **keywords: Single settings; see ``keywords.Keywords``.

    Raises:
        DataError: A table cannot be used as it is, or the split leaves no test.
        ConfigError: A setting is unknown, out of range, or does not go with the data.
    """
    settings = configured(config, **keywords)
    if settings.views:
        raise ConfigError(
            f"{argument('config')} must hold no views for the doctor, got some; ask about each."
        )
    given = interactions if isinstance(interactions, Mapping) else {"interactions": interactions}
    tables = {name: read_table(table, what=name) for name, table in given.items()}
    preparation = prepare(
        tables if given is interactions else tables["interactions"],
        items=items,
        queries=queries,
        config=settings.data,
        features=settings.features,
    )
    divide = hold_out_validation if preparation.is_split else split
    dataset = divide(preparation.dataset, settings.split)
    findings = [
        found for table in tables.values() for found in _as_in_file(table, preparation, settings)
    ]
    findings += position_weights(dataset, is_rated=preparation.is_rated)
    findings += diagnose_dataset(dataset, config=settings, decisions=preparation.decisions)
    return worst_first(findings)


def of_held_columns(config: Config, dataset: Dataset) -> Config:
    """Return the settings of a training without the columns of queries that a bundle leaves out."""
    held = dataset.queries.frame.columns
    kinds = {name: kind for name, kind in config.features.query.items() if name in held}
    return replace(config, features=replace(config.features, query=kinds))


def diagnose_dataset(
    dataset: Dataset, *, config: Config | None = None, decisions: tuple[Decision, ...] = ()
) -> list[Finding]:
    """Return what is wrong with prepared and split data, the worst first.

    How events stood in their file is no longer known then.

    Args:
        dataset: Split; without a test part, just that is said of the split.
        config: The settings that it was made with: which kinds are stated, and which split was asked
            for. They say whether the split is random or given.
        decisions: Which columns of the interactions have a role; without them, columns of the
            interactions are not examined.
    """
    settings = config or Config()
    items, features = _offered(dataset), settings.features
    if dataset.offered is not None:  # kinds of another view's columns are stated there, too
        own = {name: kind for name, kind in features.item.items() if name in items.frame.columns}
        features = replace(features, item=own)
    seen = ExaminedData(dataset, settings, decisions, items, features)
    return worst_first(findings_of(seen, "data"))


def _offered(dataset: Dataset) -> EntityTable:
    """Return the items that may be an answer: columns of another view say nothing of this one."""
    if dataset.offered is None:
        return dataset.items
    kept = pl.Series(dataset.offered[FIRST_ROW:])
    frame = dataset.items.frame.filter(kept)
    frame = frame.select(c for c in frame.columns if frame[c].null_count() < len(frame))
    ids = Vocabulary(dataset.items.ids.ids.filter(kept))
    return replace(dataset.items, ids=ids, frame=frame)


def _as_in_file(frame: pl.DataFrame, preparation: Preparation, config: Config) -> list[Finding]:
    """Return whether a table of events, as it was read, is out of order."""
    column = {decision.role: decision.column for decision in preparation.decisions}
    query, item, time = (column[role] for role in (Role.QUERY, Role.ITEM, Role.TIME))
    if query is None or item is None or time is None:
        return []
    query_ids, has_query = checked_ids(frame[query], role=Role.QUERY, drop_null=True)
    _, has_item = checked_ids(frame[item], role=Role.ITEM, drop_null=True)
    kept = pl.Series(has_query & has_item)
    times = times_in_seconds(frame[time].filter(kept), what=f"time column {time!r}")
    owners = query_ids.filter(kept).rank("dense").to_numpy()
    return out_of_order(owners, times, sorted_by_time=config.data.order != "file")
