"""``private=True``: what a training then leaves out of the bundle and of the report."""

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.arrays import distinct
from twotower.caller import passing
from twotower.config import Config, ViewConfig
from twotower.data.dataset import EntityTable
from twotower.errors import ConfigError
from twotower.features.base import Transform
from twotower.features.transforms import SideTransforms
from twotower.serving.bundle import Contents
from twotower.vocab import FIRST_ROW, Vocabulary

LEAST_QUERIES = 10
"""Fewest queries that a value of a column, or a group of the figures, is of."""
LIMITS = (
    (
        "It knows no query id. A request that gives an id alone is answered with popular items, unless the "
        "model reads ids as text; give features, a history or both."
    ),
    (
        "It holds no list of queries: recommendations for all of them are refused, exports hold "
        "items alone, and the server's `/queries` and `/history` are empty."
    ),
    (
        "It holds no histories and no test events, which `twotower evaluate`, `twotower compare` and the "
        "doctor's checks of the data need. The figures of its training are in metrics.json."
    ),
    (
        f"A value of a query's or an event's column that fewer than {LEAST_QUERIES} queries have is read "
        "as unknown."
    ),
    (
        "`twotower report` shows no example queries. The report that the training writes shows some, by "
        "number."
    ),
)
"""What a private bundle cannot answer, for the screen and for the model card."""

_VALUES = ("id", "categorical", "tags")


def private_settings(config: Config) -> Config:
    """Return the settings of a private training, in which no query has an embedding of its own.

    Raises:
        ConfigError: The settings ask for one.
    """
    if config.towers.query_id == "on":
        raise ConfigError(
            "towers.query_id must be 'auto' or 'off' for a private bundle, which holds no query ids, got "
            f"'on'; leave it out, or train without {passing(private=True)}."
        )
    return replace(config, towers=replace(config.towers, query_id="off"))


def read_columns(table: EntityTable, transforms: SideTransforms) -> EntityTable:
    """Return a table of queries with its key and the columns that the transforms read."""
    columns = [table.id_column, *(t.feature.source for t in transforms.transforms)]
    return replace(table, frame=table.frame.select(list(dict.fromkeys(columns))))


def of_many_queries(
    transforms: SideTransforms, frame: pl.DataFrame, owners: npt.NDArray[np.integer]
) -> SideTransforms:
    """Return transforms of the fed features that know no key, and no value of a few queries.

    Args:
        transforms: Of the query side, or of the events.
        frame: The training lines that they were fitted on.
        owners: The query of each line.
    """
    return SideTransforms(
        tuple(feature for feature in transforms.features if feature.is_fed),
        tuple(_of_many(each, frame, owners) for each in transforms.transforms),
    )


def _of_many(
    transform: Transform, frame: pl.DataFrame, owners: npt.NDArray[np.integer]
) -> Transform:
    feature, vocabulary, numbers = transform.feature, transform.vocabulary, transform.numbers
    if vocabulary is None and "weights" in numbers:
        # A word or a bucket of few queries then weighs as one that nobody has. Such rows are not of the
        # user's values, but how much one weighs tells how many texts have it.
        weights = numbers["weights"]
        is_rare = _queries_of_rows(transform, frame, owners, len(weights)) < LEAST_QUERIES
        is_rare[:FIRST_ROW] = False
        changed = copy(transform)  # it may hold vectors, which take long to read
        changed.numbers = {**numbers, "weights": np.where(is_rare, weights.max(initial=0), weights)}
        vars(changed).pop("weights", None)  # which is made of them
        return changed
    if vocabulary is None or (feature.meaning not in _VALUES and not feature.spec.has_tokens):
        return transform
    counts = np.zeros(vocabulary.num_rows, np.int64)
    if feature.meaning != "id":
        counts = _queries_of_rows(transform, frame, owners, vocabulary.num_rows)
    kept = np.flatnonzero(counts[FIRST_ROW:] >= LEAST_QUERIES)
    if feature.spec.has_tokens:
        rows = np.concatenate([np.arange(FIRST_ROW), kept + FIRST_ROW])
        numbers = {**numbers, "weights": numbers["weights"][rows]}
    return type(transform)(feature, Vocabulary(vocabulary.ids.gather(kept)), numbers)


def _queries_of_rows(
    transform: Transform, frame: pl.DataFrame, owners: npt.NDArray[np.integer], num_rows: int
) -> npt.NDArray[np.int64]:
    """Return how many queries have each row that a transform gives: ``(num_rows,)``."""
    rows = transform.apply(frame[transform.feature.source]).reshape(len(frame), -1)
    lines = np.repeat(owners.astype(np.int64), rows.shape[1])
    pairs = distinct(lines * num_rows + rows.reshape(-1).astype(np.int64))
    return np.bincount(pairs % num_rows, minlength=num_rows)


def groups_of_many(figures: dict[str, Any]) -> None:
    """Take groups out of the figures that are by a value of few queries, or by moments or numbers.

    The bounds of a group by moments, or by a number in a query's column, are those of single queries.
    """
    figures["slices"] = [group for group in figures["slices"] if _is_of_many(group)]


def _is_of_many(group: Mapping[str, Any]) -> bool:
    if not group["by"].startswith("query."):
        return bool(group["by"] != "time")
    return bool(group["queries"] >= LEAST_QUERIES and group["low"] is None)


def without_queries(contents: Contents) -> Contents:
    """Return what a private bundle holds: the model and the items, and nothing of any one query.

    Args:
        contents: Of a private training, whose transforms are ``of_many_queries``.
    """
    queries, events = contents.queries, contents.events
    if events is not None:
        events = replace(
            events, frame=events.frame.clear(), transforms=_without_texts(events.transforms)
        )
    return replace(
        contents,
        config=replace(contents.config, views=tuple(map(_by_name, contents.config.views))),
        queries=replace(
            queries,
            ids=Vocabulary(queries.ids.ids.clear()),
            frame=queries.frame.clear(),
            transforms=_without_texts(queries.transforms),
        ),
        events=events,
        histories=None,
        history_parts=None,
        history_weights=None,
        history_is_target=None,
        targets=None,
        target_labels=None,
    )


def _without_texts(transforms: SideTransforms) -> SideTransforms:
    """Return transforms without the texts that a sentence encoder has read: it reads them again."""
    return SideTransforms(
        transforms.features,
        tuple(
            type(each)(
                each.feature,
                Vocabulary(each.own_vocabulary().ids.clear()),
                {**each.numbers, "vectors": each.numbers["vectors"][:0]},
            )
            if each.feature.spec.needs == "sentence_encoder" and each.vocabulary is not None
            else each
            for each in transforms.transforms
        ),
    )


def _by_name(view: ViewConfig) -> ViewConfig:
    """Return a view whose tables have their names without the folders, which may name a person."""
    tables = ("interactions", "train", "valid", "test", "items")
    given = {name: path for name in tables if (path := getattr(view, name)) is not None}
    names: dict[str, Any] = {name: Path(path).name for name, path in given.items()}
    return replace(view, **names)
