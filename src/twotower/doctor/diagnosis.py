"""What the doctor finds: in tables before anything is trained, and in a bundle's data and model."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import polars as pl

from twotower.caller import argument
from twotower.config import Config
from twotower.data.assembly import Preparation
from twotower.data.columns import Decision, Role, checked_ids
from twotower.data.dataset import Dataset, EntityTable
from twotower.data.drawn_validation import hold_out_validation
from twotower.data.input_files import is_prepared, read_files
from twotower.data.preparation import prepare
from twotower.data.splits import split
from twotower.data.tables import Table
from twotower.data.times import times_in_seconds
from twotower.doctor.checks import ExaminedData, ExaminedModel, findings_of
from twotower.doctor.data_events import out_of_order, position_weights
from twotower.doctor.findings import Finding, worst_first
from twotower.doctor.model_answers import Trial
from twotower.doctor.model_features import Loss
from twotower.errors import ConfigError
from twotower.evaluation.evaluate_bundle import dataset_of
from twotower.evaluation.refit_notes import learnt_of
from twotower.keywords import Keywords, configured, takes_keywords
from twotower.serving.retriever import Bundle, Retriever
from twotower.vocab import FIRST_ROW, Vocabulary

Examined = tuple[list[Finding], list[Loss]]
"""The findings, the worst first, and what the answers lose without the history and without each feature
that is read; no losses where too few queries are known."""


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
        interactions: As ``twotower.train`` takes it. Of a prepared folder, what the rows' order says is not
            known, and of the columns of events only those that ``features.event`` names are examined.
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
    tables: dict[str, pl.DataFrame] = {}
    events: Table | Mapping[str, Table] = interactions
    if isinstance(interactions, Mapping):
        events = tables = {
            name: read_files(table, what=name) for name, table in interactions.items()
        }
    elif not is_prepared(interactions):  # of a prepared folder the order of the rows is not known
        events = tables["interactions"] = read_files(interactions)
    preparation = prepare(
        events,
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


def diagnose_bundle(bundle: Bundle) -> list[Finding]:
    """Return all findings about a bundle's data and model, the worst first.

    Args:
        bundle: The path of a bundle, or an opened one; see ``Retriever.of``.
    """
    return examine_bundle(bundle)[0]


def examine_bundle(bundle: Bundle) -> Examined:
    """Return all findings about a bundle's data and model, and what the answers lose.

    A bundle without histories has findings about the model only, and one that says what was not checked.

    Args:
        bundle: The path of a bundle, or an opened one; see ``Retriever.of``.
    """
    retriever = Retriever.of(bundle)
    contents = retriever.contents
    found, losses = examine_model(retriever)
    if contents.histories is None:
        found.append(Finding.of("not-looked-at: no histories", "info", 0))
    elif not contents.popularity.any():
        found.append(Finding.of("not-looked-at: items alone", "info", 0))
    else:
        dataset = dataset_of(retriever)
        found += diagnose_dataset(dataset, config=of_held_columns(contents.config, dataset))
    return worst_first(found), losses


def diagnose_model(retriever: Retriever) -> list[Finding]:
    """Return the findings about a trained model, the worst first; see ``examine_model``."""
    return examine_model(retriever)[0]


def examine_model(retriever: Retriever) -> Examined:
    """Return the findings about a trained model, and what its answers lose.

    Loss, item vectors and vocabularies are checked in every bundle. A bundle with histories is also asked
    up to 1,000 of its validation queries, and again with the history and each feature shuffled between
    them. The test is not touched.

    Args:
        retriever: An opened bundle, or ``trained.retriever``.

    Raises:
        ValueError: A score is NaN; the query is named.
    """
    contents, seen = retriever.contents, ExaminedModel(retriever)
    found = findings_of(seen, "bundle")
    if contents.histories is not None and contents.popularity.any():
        seen.dataset = dataset_of(retriever)
        found += findings_of(seen, "histories")
        trial = Trial(retriever, seen.dataset)
        if learnt_of(contents.metrics) is not None:
            found.append(Finding.of("not-looked-at: refit", "info", len(trial)))
        elif len(trial) > 1:
            seen.trial = trial
            _ = seen.answers  # first of all: an error about a score names the query
            found += findings_of(seen, "answers")
        else:
            found.append(Finding.of("not-looked-at: few queries", "info", len(trial)))
    return worst_first(found), seen.losses


def _offered(dataset: Dataset) -> EntityTable:
    """Return the items that may be an answer: columns of another view say nothing of this one."""
    if dataset.offered is None:
        return dataset.items
    kept = pl.Series(dataset.offered[FIRST_ROW:])
    frame = dataset.items.frame.filter(kept)
    frame = frame.select(c for c in frame.columns if frame[c].null_count() < len(frame))
    ids = Vocabulary(dataset.items.ids.ids.filter(kept))
    return replace(dataset.items, ids=ids, frame=frame)


def _as_in_file(frame: pl.DataFrame, preparation: Preparation, config: Config) -> Iterator[Finding]:
    """Yield whether a table of events, as it was read, is out of order."""
    column = {decision.role: decision.column for decision in preparation.decisions}
    query, item, time = (column[role] for role in (Role.QUERY, Role.ITEM, Role.TIME))
    if query is None or item is None or time is None:
        return
    query_ids, has_query = checked_ids(frame[query], role=Role.QUERY, drop_null=True)
    _, has_item = checked_ids(frame[item], role=Role.ITEM, drop_null=True)
    kept = pl.Series(has_query & has_item)
    times = times_in_seconds(frame[time].filter(kept), what=f"time column {time!r}")
    owners = query_ids.filter(kept).rank("dense").to_numpy()
    yield from out_of_order(owners, times, sorted_by_time=config.data.order != "file")
