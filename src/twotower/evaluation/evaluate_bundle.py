"""Evaluate a bundle again: on its own test events, or on others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import polars as pl
import polars.selectors as cs

from twotower.baselines.bm25 import BM25, TextColumns
from twotower.caller import argument, passing
from twotower.data.columns import Role
from twotower.data.dataset import Dataset, EntityTable, Part
from twotower.data.tables import Table
from twotower.errors import BundleError, ConfigError, DataError
from twotower.evaluation import new_events
from twotower.evaluation.figures import KS, Measured, measure
from twotower.evaluation.refit_notes import learnt_of, refuse_learnt_test
from twotower.evaluation.sampled_candidates import random_candidates, read_candidates
from twotower.evaluation.scorers import ModelScorer, Ranked, Served
from twotower.features.schema import texts_of
from twotower.index.lexical import LexicalSettings
from twotower.losses.loss_kinds import LOSSES
from twotower.serving.bundle import Contents
from twotower.serving.journaled import with_own_rows
from twotower.serving.retriever import Bundle, Retriever
from twotower.towers.encoding import to_tensors
from twotower.vocab import rows_of_lines

_UNKNOWN = (
    "What is known of a query are its training events alone, without those of validation, as in the "
    "published protocols of several domains without times."
)


def evaluate_bundle(
    bundle: Bundle,
    ks: Sequence[int] = KS,
    *,
    test: Table | None = None,
    test_sessions: Table | None = None,
    query_column: str | None = None,
    item_column: str | None = None,
    baselines: Literal["auto"] | Sequence[str] = "auto",
    negatives: int | None = None,
    candidates: Table | None = None,
    slice_by: Sequence[str] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Return ``measure`` for an opened bundle, on its own test events or on others.

    Args:
        bundle: The path of a bundle, or an opened one; see ``Retriever.of``.
        ks: Cut-offs.
        test: A table of test events, or a prepared folder of them, instead of the bundle's own. The
            histories of their queries are those of the bundle.
        test_sessions: A table of new sessions, instead of the bundle's test events. The model predicts the
            last event of each session from the events before it.
        query_column: The column of query ids in these tables and in ``candidates``; by default that of the
            training table.
        item_column: The column of item ids; the same.
        baselines: See ``measure``.
        negatives: Ranks each target of a query among this number of random items, drawn anew for each
            target, instead of the whole catalogue. The means are over targets. See ``random_candidates``.
        candidates: A table of the items to rank for each query; see ``read_candidates``. In a view without
            times, histories then exclude validation events (also of other views), as in the published
            protocols.
        slice_by: See ``measure``.
        tell: See ``measure``.

    Raises:
        BundleError: The bundle holds no histories, without which nothing can be evaluated.
        DataError: The bundle was trained on its test events, and no others are given.
        ConfigError: ``negatives`` and ``candidates`` are both given, or ``test`` and
            ``test_sessions``; or see ``measure``.
        DataError: A table cannot be used, or holds no item of the catalogue.
    """
    for first, second, both in (
        ("negatives", "candidates", negatives is not None and candidates is not None),
        ("test", "test_sessions", test is not None and test_sessions is not None),
    ):
        if both:
            raise ConfigError(
                f"{argument(first)} and {argument(second)} must not both be given, got both; "
                "leave one out."
            )
    retriever = with_own_rows(Retriever.of(bundle))
    learnt = learnt_of(retriever.contents.metrics)
    if test is None and test_sessions is None:
        refuse_learnt_test(retriever.contents.metrics, str(retriever.path))
    stated = {Role.QUERY: query_column, Role.ITEM: item_column}
    columns = {role: column for role, column in stated.items() if column is not None}
    dataset = dataset_of(retriever, test, test_sessions, columns)
    cases, ranked, notes = dataset.cases(Part.TEST), None, dataset.notes
    said = dataset.sampled(Part.TEST)
    if said is not None and said not in notes:
        notes = (*notes, said)
    queries, items = dataset.queries.ids, dataset.items.ids
    is_sampled = negatives is not None or candidates is not None
    is_view_without_times = retriever.contents.view and dataset.interactions.times is None
    if is_sampled and is_view_without_times:
        notes = (*notes, _UNKNOWN)
        parts = np.where(dataset.parts == Part.VALID, Part.UNUSED, dataset.parts)
        cases = replace(dataset, parts=parts).cases(Part.TEST)
    if candidates is not None:
        ranked = read_candidates(candidates, cases, queries, items, columns)
    if negatives is not None:
        num_rows, offered = items.num_rows, dataset.offered
        ranked = random_candidates(
            cases, negatives, num_item_rows=num_rows, query_ids=queries, offered=offered
        )
        cases = cases.by_target()
    model, served = scorer_of(retriever, dataset), served_of(retriever, dataset)
    figures = measure(
        model,
        dataset,
        ks,
        calibrated=LOSSES[retriever.contents.config.loss.kind].takes_labels,
        baselines=baselines,
        served=served,
        ranked=ranked_of(retriever, dataset, served or model),
        cases=cases,
        candidates=ranked,
        slice_by=slice_by,
        tell=tell,
        refit=learnt == "valid",
    )
    if learnt == "valid":
        figures["refit"] = dict(retriever.contents.metrics["refit"])
    if learnt == "all":
        events, is_test = dataset.interactions, dataset.parts == Part.TEST
        pairs = events.query_rows.astype(np.int64) << 32 | events.item_rows
        again = np.isin(pairs[is_test & events.is_positive], pairs[~is_test]).sum()
        if again:
            said = f"{again:,} of the test's positive events are pairs that the bundle learnt"
            if "update" not in retriever.contents.metrics:
                said += f" ({passing(refit='all')})"
            notes = (*notes, f"{said}: they are not held out.")
    if notes:
        figures["protocol"]["notes"] = list(notes)
    return figures


def scorer_of(retriever: Retriever, dataset: Dataset | None = None) -> ModelScorer:
    """Return the model of a bundle as a ``Scorer`` over the rows of a ``dataset_of`` it.

    Args:
        retriever: The opened bundle.
        dataset: It may have queries that the bundle lacks. None if there are none.
    """
    contents = retriever.contents
    features, encoding = retriever.query_features, retriever.encoding
    if dataset is not None and contents.events is not None:
        of_events = contents.events.transforms.apply_to_rows(dataset.event_columns)
        encoding = replace(encoding, event_features=to_tensors(of_events, retriever.device))
    if dataset is not None and len(dataset.queries) != len(contents.queries.ids):
        features = contents.queries.transforms.apply_to_rows(dataset.queries.frame)
    return ModelScorer(encoding, features, contents.popularity, retriever.index.item_vectors)


def served_of(retriever: Retriever, dataset: Dataset) -> Served | None:
    """Return the model of a bundle with its share of BM25, over the rows of a ``dataset_of`` it.

    None if the bundle has no such share.
    """
    return with_words(retriever.contents, scorer_of(retriever, dataset), dataset)


def with_words(contents: Contents, model: ModelScorer, dataset: Dataset) -> Served | None:
    """Return a model with the share of BM25 of its bundle; None if the bundle has no such share.

    Args:
        contents: Of the bundle.
        model: Over the rows of the data set.
        dataset: With the texts of both sides.
    """
    told = contents.metrics.get("words")
    if not told:
        return None
    sides = (contents.queries.transforms.features, contents.items.transforms.features)
    # An older bundle has a share alone; the rest of what it keeps is of the choice.
    settings = LexicalSettings.of_json(told)
    bm25 = BM25.fit(dataset, TextColumns(*map(texts_of, sides)), settings)
    return Served(model, bm25, float(told["share"]), {})


def base_of(retriever: Retriever, dataset: Dataset) -> ModelScorer | Served:
    """Return the model of a bundle, with its share of BM25 where it has one."""
    return served_of(retriever, dataset) or scorer_of(retriever, dataset)


def ranked_of(retriever: Retriever, dataset: Dataset, base: ModelScorer | Served) -> Ranked | None:
    """Return a scorer of a bundle with its second stage behind it; None if the bundle has none."""
    ranker = retriever.contents.ranker
    if ranker is None:
        return None
    return Ranked(base, ranker, not dataset.repeats, dataset.offered)


def dataset_of(
    retriever: Retriever,
    test: Table | None = None,
    test_sessions: Table | None = None,
    columns: Mapping[Role, str] | None = None,
) -> Dataset:
    """Return the data set of a bundle: its histories, with its targets as test events.

    Args:
        retriever: The opened bundle.
        test: Test events to use instead of the bundle's own. New searches among them become queries.
        test_sessions: New sessions to use instead. They become queries.
        columns: The stated columns of these tables.
    """
    columns, contents = columns or {}, retriever.contents
    histories, parts, wanted = contents.histories, contents.history_parts, contents.targets
    if histories is None or parts is None or wanted is None:
        raise BundleError(
            f"the bundle {str(retriever.path)!r} must hold histories to be evaluated, got one "
            f"written with {passing(histories=False)} or {passing(private=True)}; the "
            "figures of its training are in metrics.json."
        )
    weights, is_target = contents.history_weights, contents.history_is_target
    known = new_events.events_frame(histories, parts, weights=weights, is_target=is_target)
    kept = np.ones(len(known), np.bool_)
    table = new_events.queries_of(retriever)
    notes: tuple[str, ...] = ()
    if test_sessions is not None:
        asked, table, notes = new_events.sessions_asked(retriever, known, test_sessions, columns)
        # The table has the events of these sessions that the bundle knows, too.
        kept = ~np.isin(known["query_rows"], asked["query_rows"])
    elif test is not None:
        asked, table, notes = new_events.events_asked(retriever, known, test, columns)
    else:
        tests = np.full(len(wanted.item_rows), Part.TEST, np.uint8)
        asked = new_events.events_frame(wanted, tests, labels=contents.target_labels)
    read = asked["read"].struct.unnest() if "read" in asked.columns else None
    events = pl.concat([known.filter(kept), asked.drop("read", strict=False)], how="diagonal")
    if "times" in events.columns and events["times"].has_nulls():
        events = events.drop("times")
    if is_target is None:
        events = events.drop("is_target", strict=False)
    # What is told of one of the two alone: the others are positives, of weight 1, and asked for.
    events = events.with_columns(cs.float().fill_null(1.0), cs.boolean().fill_null(True))
    order = np.argsort(events["query_rows"].to_numpy(), kind="stable")  # test events come last
    events = events[order]
    interactions = new_events.interactions_of(events, table.ids.num_rows)
    event_columns = table.frame.clear()
    if contents.events is not None:
        remembered = contents.events.frame.filter(pl.Series(kept))
        if read is None:  # no history has the test events
            read = remembered.clear(len(asked))
        for name in set(remembered.columns) & set(read.columns):
            types = remembered[name].dtype, read[name].dtype
            if types[0] != types[1] and not (types[0].is_numeric() and types[1].is_numeric()):
                raise DataError(
                    f"test_sessions must have {name!r} of the training table's type, {types[0]}, got "
                    f"{types[1]}; write the column alike in each."
                )
        event_columns = pl.concat([remembered, read], how="diagonal_relaxed")[order]
        interactions = replace(interactions, event_rows=rows_of_lines(len(events)))
    items = contents.items
    return Dataset(
        queries=table,
        items=EntityTable(items.ids, items.frame, items.id_column),
        interactions=interactions,
        parts=events["parts"].to_numpy(writable=True),
        ordered=contents.ordered,
        repeats=contents.repeats,
        event_columns=event_columns,
        notes=notes,
        offered=contents.offered,
        by_period=contents.config.split.kind == "temporal",
    )
