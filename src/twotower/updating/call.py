"""``update``: a bundle and the events of a day -> the bundle of the next day, checked."""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

from twotower.data.dataset import Dataset, Part
from twotower.data.tables import Table
from twotower.evaluation.evaluate_bundle import with_words
from twotower.evaluation.ranking import Scorer
from twotower.evaluation.scorers import ModelScorer, Ranked
from twotower.runtime import choose_threads
from twotower.serving.bundle import Contents, check_successor, write_bundle
from twotower.serving.journaled import opened
from twotower.serving.manifest import MANIFEST
from twotower.serving.retriever import Bundle, Retriever
from twotower.training.callbacks import Callback
from twotower.training.indexing import indexed
from twotower.training.notebook import callback_of
from twotower.training.objective import Objective
from twotower.training.second_stage import remembering
from twotower.updating.check import Check, checked, measured, usual_of
from twotower.updating.contents import counts_of, update_popularity, updated_contents
from twotower.updating.expiry import check_days
from twotower.updating.model import grown_encoding, predict_closed_form
from twotower.updating.night import Night, night_of
from twotower.updating.refusals import check_bundle
from twotower.updating.steps import learn
from twotower.updating.updated import Updated
from twotower.vocab import FIRST_ROW
from twotower.workers import workers


def update(
    bundle: Bundle,
    interactions: Table,
    *,
    items: Table | None = None,
    queries: Table | None = None,
    out: str | Path | None = None,
    journal: str | Path | None = None,
    expire_days: float | None = None,
    force: bool = False,
    progress: Callback | Literal["auto", "bar"] | None = "auto",
) -> Updated:
    """Return the bundle of the next day: it knows the events and ids of a day, and is checked on them.

    Ids get new rows after the old ones, and the vectors of items that had enough events before stay as they
    are, so that indexes, exports and caches of yesterday still answer. The model is checked on the last
    event of each of the day's queries, which it does not learn; see ``Check``. If it is refused, nothing is
    written.

    The same call on the same machine with the same number of threads gives the same bundle. Nothing is left
    behind by a call that was killed once the next one has begun.

    Args:
        bundle: The bundle of yesterday, with histories; see ``Retriever.of``.
        interactions: The events of the day, with the columns of the training's table: a file or a frame.
            Events that the bundle holds already are passed over.
        items: Columns of new items, or of items whose columns changed: such a line replaces the item's.
        queries: The same for queries. Of columns that the bundle does not hold, nothing is kept.
        out: Where to write the new bundle; None keeps it in memory.
        journal: File of the changes that a server has written; None is ``BUNDLE.journal``, if it is there.
            Items that were added live then have a row, and deleted ones are not offered.
        expire_days: Items that no event named for so many days before the last event are no longer offered,
            and such queries are dropped with their histories. None keeps all.
        force: Whether to publish a bundle that is refused, too.
        progress: As ``train`` takes it.

    Raises:
        DataError: The table cannot be read, lacks a column that the training's table had, or holds no new
            event, no id that the bundle knows, or no event that the model predicts.
        BundleError: The bundle cannot be updated, or ``out`` cannot be written.
        ArgumentError: ``items`` or ``queries`` does not fit, or ``expire_days`` is not above 0.
        JournalError: The journal cannot be read.
    """
    target = check_successor(bundle, out)
    bar = callback_of(progress)
    stack = ExitStack()
    try:
        bar.on_phase("reading")
        retriever, before = opened(bundle, journal)
        check_bundle(before, str(retriever.path) if retriever.path.name else None)
        check_days(expire_days, before)
        stack.enter_context(workers(choose_threads(before.config.training.threads)))
        night = night_of(
            before, interactions, items=items, queries=queries, expire_days=expire_days
        )
        contents, check = _learnt(night, retriever, bar)
        refused = () if force else check.reasons
        if target is not None and not refused:
            bar.on_phase("writing")
            write_bundle(target, contents)
        return Updated(contents, None if refused else target, check, refused)
    finally:
        stack.close()
        bar.on_end()


def _learnt(night: Night, retriever: Retriever, bar: Callback) -> tuple[Contents, Check]:
    """Return the contents of a bundle after a night, and their check."""
    before, grown, dataset = night.before, night.grown, night.dataset
    encoding = grown_encoding(before, grown, dataset)
    query_arrays = grown.queries.transforms.apply_to_rows(dataset.queries.frame)
    cases = dataset.cases(Part.VALID)
    of_yesterday = ModelScorer(encoding, query_arrays, grown.popularity)
    yesterday = measured(_answering(grown, dataset, of_yesterday), dataset, cases)
    usual = usual_of(retriever)
    bar.on_phase("learning")
    known = counts_of(dataset, Part.TRAIN)
    moved = steps = 0
    if night.is_fresh.any():  # none is where each query of a first night has one event, held out
        objective = Objective(
            dataset, encoding, grown.config, query_arrays, known, learnt=night.is_fresh
        )
        moved, steps = learn(objective, night.learnt_before, night=night.number)
    predict_closed_form(encoding, before)
    bar.on_phase("checking")
    grown = _remembering(grown, dataset, Part.TRAIN)
    model = ModelScorer(encoding, query_arrays, known)
    after = measured(_answering(grown, dataset, model), dataset, cases)
    check = checked(after, yesterday, dataset, usual)
    update_popularity(encoding, dataset, grown.config)
    scorer = ModelScorer(encoding, query_arrays, counts_of(dataset, Part.TRAIN, Part.VALID))
    asked = grown.queries.ids.ids_of(cases.query_rows)
    figures = {
        "night": night.number,
        "trained": _trained(before, retriever.path),
        **night.counts,
        "learnt": int(night.is_fresh.sum()),
        "moved_rows": moved,
        "steps": steps,
        "known_queries": int((before.queries.ids.rows_of(asked) >= FIRST_ROW).sum()),
        **check.as_json(),
    }
    grown = _remembering(grown, dataset, Part.TRAIN, Part.VALID)
    contents = updated_contents(grown, dataset, scorer, figures)
    contents, choices = indexed(contents, scorer, dataset)
    if choices:
        bar.on_choices(choices, contents.config)
    return contents, check


def _answering(contents: Contents, dataset: Dataset, scorer: ModelScorer) -> Scorer:
    """Return a model with the second stage of its bundle behind it, if there is one.

    The second stage then ranks what it learnt to: the best items by the model and its share of the words.
    """
    ranker = contents.ranker
    if ranker is None:
        return scorer
    base = with_words(contents, scorer, dataset) or scorer
    return Ranked(base, ranker, not dataset.repeats, dataset.offered)


def _remembering(contents: Contents, dataset: Dataset, *parts: Part) -> Contents:
    """Return contents whose second stage, if there is one, remembers the events of some parts."""
    if contents.ranker is None:
        return contents
    return replace(contents, ranker=remembering(contents.ranker, dataset, *parts))


def _trained(before: Contents, path: Path) -> str | None:
    """Return when the model was trained, as the manifest of its bundle says; None if it is in memory."""
    kept = (before.metrics.get("update") or {}).get("trained")
    if kept is not None or not (path / MANIFEST).is_file():
        return str(kept) if kept is not None else None
    created = json.loads((path / MANIFEST).read_text(encoding="utf-8")).get("created")
    return None if created is None else str(created)
