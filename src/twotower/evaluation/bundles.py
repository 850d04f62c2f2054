"""A bundle evaluated again: the data set that it remembers, and its figures there."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from twotower.data.columns import (
    Role,
    checked_ids,
    checked_labels,
    checked_ratings,
    find_roles,
    label_kind,
)
from twotower.data.dataset import Dataset, EntityTable, Interactions, Part
from twotower.data.tables import Table, read_table
from twotower.data.times import times_in_seconds
from twotower.errors import BundleError, ConfigError, DataError
from twotower.evaluation.candidates import random_candidates, read_candidates
from twotower.evaluation.figures import KS, Figures, measure
from twotower.evaluation.scorers import ModelScorer
from twotower.serving.retriever import Retriever
from twotower.vocab import FIRST_ROW


def evaluate_bundle(
    retriever: Retriever,
    ks: Sequence[int] = KS,
    *,
    test: Table | None = None,
    query_column: str | None = None,
    item_column: str | None = None,
    baselines: Literal["auto"] | Sequence[str] = "auto",
    negatives: int | None = None,
    candidates: Table | None = None,
    slice_by: Sequence[str] | None = None,
) -> Figures:
    """Return ``measure`` for an opened bundle, on its own test events or on others.

    Args:
        retriever: The opened bundle.
        ks: Cut-offs.
        test: A table of test events in place of the bundle's own; their queries' histories are those
            of the bundle.
        query_column: The column of query ids in it and in ``candidates``; by default that of the
            training.
        item_column: Its column of item ids; the same.
        baselines: See ``measure``.
        negatives: Ranks each query's targets among so many random items only, in place of the whole
            catalogue; see ``random_candidates``.
        candidates: A table of the items that are ranked for each query; see ``read_candidates``.
        slice_by: See ``measure``.

    Raises:
        BundleError: The bundle holds no histories, without which nothing can be evaluated.
        ConfigError: ``negatives`` and ``candidates`` are both given, or as ``measure``.
        DataError: A table cannot be used, or holds no item of the catalogue.
    """
    if negatives is not None and candidates is not None:
        raise ConfigError(
            "negatives and candidates must not both be given, got both; leave one out."
        )
    dataset = dataset_of(retriever, test, query_column=query_column, item_column=item_column)
    ranked = None
    if negatives is not None or candidates is not None:
        cases, ids = dataset.cases(Part.TEST), dataset.items.ids
        if candidates is not None:
            ranked = read_candidates(
                candidates,
                cases,
                dataset.queries.ids,
                ids,
                query_column=query_column,
                item_column=item_column,
            )
        elif negatives is not None:
            ranked = random_candidates(
                cases, negatives, num_item_rows=ids.num_rows, query_ids=dataset.queries.ids
            )
    figures = measure(
        scorer_of(retriever),
        dataset,
        ks,
        calibrated=retriever.contents.config.loss.kind == "bce",
        baselines=baselines,
        candidates=ranked,
        slice_by=slice_by,
    )
    if dataset.notes:
        figures["protocol"]["notes"] = list(dataset.notes)
    return figures


def scorer_of(retriever: Retriever) -> ModelScorer:
    """Return the model of a bundle as a ``Scorer`` over the rows of ``dataset_of``."""
    return ModelScorer(
        retriever.encoding,
        retriever.query_features,
        retriever.contents.popularity,
        retriever.index.item_vectors,
    )


def dataset_of(
    retriever: Retriever,
    test: Table | None = None,
    *,
    query_column: str | None = None,
    item_column: str | None = None,
) -> Dataset:
    """Return the data set that a bundle remembers: its histories, and the targets as test events."""
    contents = retriever.contents
    known, parts, wanted = contents.histories, contents.history_parts, contents.targets
    if known is None or parts is None or wanted is None:
        raise BundleError(
            f"the bundle {str(retriever.path)!r} must hold histories to be evaluated, got one "
            "written with --no-histories; evaluate at the end of training instead."
        )
    num_rows = contents.queries.ids.num_rows
    notes: list[str] = []
    if test is None:
        query_rows = np.repeat(np.arange(num_rows, dtype=np.int32), wanted.lengths)
        item_rows, times, labels = wanted.item_rows, wanted.times, contents.target_labels
    else:
        query_rows, item_rows, times, labels, notes = _test_events(
            retriever, test, query_column, item_column
        )
    known_rows = np.repeat(np.arange(num_rows, dtype=np.int32), known.lengths)
    all_queries = np.concatenate([known_rows, query_rows])
    order = np.argsort(all_queries, kind="stable")  # test events after the known ones
    all_times = None
    if known.times is not None and times is not None:
        all_times = np.concatenate([known.times, times])[order]
    all_labels = None
    if labels is not None:
        all_labels = np.concatenate([np.ones(len(known_rows), np.float32), labels])[order]
    all_weights = None
    if contents.history_weights is not None:
        ones = np.ones(len(query_rows), np.float32)
        all_weights = np.concatenate([contents.history_weights, ones])[order]
    events = Interactions(
        query_rows=all_queries[order],
        item_rows=np.concatenate([known.item_rows, item_rows])[order],
        offsets=np.searchsorted(all_queries[order], np.arange(num_rows + 1)),
        times=all_times,
        labels=all_labels,
        weights=all_weights,
    )
    tests = np.full(len(query_rows), Part.TEST, np.uint8)
    queries, items = contents.queries, contents.items
    return Dataset(
        queries=EntityTable(queries.ids, queries.frame, queries.id_column),
        items=EntityTable(items.ids, items.frame, items.id_column),
        interactions=events,
        parts=np.concatenate([parts, tests])[order],
        ordered=contents.ordered,
        repeats=contents.repeats,
        event_columns=queries.frame.clear(),
        notes=tuple(notes),
    )


def _test_events(
    retriever: Retriever, test: Table, query_column: str | None, item_column: str | None
) -> tuple[Any, Any, Any, Any, list[str]]:
    """Return query rows, item rows, times and labels, in the order of time, and what to know of it."""
    contents = retriever.contents
    frame = read_table(test, what="test")
    data = contents.config.data
    given = {
        role: column
        for role, column in (
            (Role.QUERY, data.query_column or contents.queries.id_column),
            (Role.ITEM, data.item_column or contents.items.id_column),
            (Role.TIME, data.time_column),
            (Role.LABEL, data.label_column),
        )
        if column is not None and column in frame.columns
    }
    stated = ((Role.QUERY, query_column), (Role.ITEM, item_column))
    given |= {role: column for role, column in stated if column is not None}
    roles = find_roles(frame, given=given, what="test")
    assert roles.query is not None
    query_ids, _ = checked_ids(frame[roles.query], role=Role.QUERY, drop_null=False)
    item_ids, _ = checked_ids(frame[roles.item], role=Role.ITEM, drop_null=False)
    times = None  # without a time of its own, an event is later than all that the bundle knows
    if contents.histories is not None and contents.histories.times is not None:
        times = np.full(len(frame), np.inf)
        if roles.time is not None:
            times = times_in_seconds(frame[roles.time], what=f"time column {roles.time!r}")
    labels = None
    if roles.label is not None:
        column, threshold = frame[roles.label], data.positive_threshold
        if threshold is not None:
            labels = (checked_ratings(column) >= threshold).astype(np.float32)
        elif contents.target_labels is not None or label_kind(column) == "label":
            labels = checked_labels(column)
    query_rows = contents.queries.ids.rows_of(query_ids)
    item_rows = contents.items.ids.rows_of(item_ids)
    if not (item_rows >= FIRST_ROW).any():
        raise DataError(
            f"test must hold items of the catalogue, got none among {len(item_rows)} rows; "
            "state the column with --item-column NAME."
        )
    if not (query_rows >= FIRST_ROW).any():
        raise DataError(
            f"test must hold queries that the bundle knows, got none among {len(query_rows)} rows; "
            "state the column with --query-column NAME."
        )
    is_known = query_rows >= FIRST_ROW
    kept = np.flatnonzero(is_known)
    notes = []
    if not is_known.all():
        notes.append(
            f"{(~is_known).sum():,} of the test's {len(frame):,} rows are of queries that the bundle "
            "does not know, and were left out."
        )
    if data.positive_threshold is not None and labels is None:
        notes.append("The test has no column of ratings: each of its rows counts as a positive.")
    if times is not None:
        kept = kept[np.argsort(times[kept], kind="stable")]
    columns = (query_rows, item_rows, times, labels)
    of_test = [None if column is None else column[kept] for column in columns]
    return of_test[0], of_test[1], of_test[2], of_test[3], notes
