"""Ten real queries: their history, the answers of the model, and the test items."""

from typing import Any, NamedTuple

import numpy as np

from twotower.arrays import Rows
from twotower.histories import Histories
from twotower.serving.retriever import Retriever
from twotower.serving.titles import Titles, clean
from twotower.vocab import FIRST_ROW

SHOWN = 10
"""Queries, and answers of each."""

DEPTH = 100
"""Last rank at which the test items are looked for."""

_RECENT = 6
_MAX_FACT = 24


class Entry(NamedTuple):
    """An item on the page, and whether it is both an answer and a test item."""

    title: str
    is_hit: bool = False
    rank: int | None = None


def examples(
    retriever: Retriever, titles: Titles, *, private: bool = False
) -> list[dict[str, Any]]:
    """Return at most ``SHOWN`` queries with test items, drawn at random, those with a history first.

    Of each: its ``name`` (the id, or its number on the page), its short features (``facts``), the last
    items of its ``history`` (oldest first) and the ``history_length``, the first ``answers`` and whether
    they are ``from_model`` or popularity's, the first ``targets`` with the rank that the model gives them,
    and the number of ``more_targets``.

    Args:
        retriever: The opened bundle; without histories in it there is no query to show.
        titles: What its items are called.
        private: Whether queries are named by their place on the page, which says nothing of their ids, and
            shown without their features.
    """
    contents = retriever.contents
    histories, targets = contents.histories, contents.targets
    if histories is None or targets is None:
        return []
    is_relevant = targets.item_rows >= FIRST_ROW
    if contents.target_labels is not None:
        is_relevant &= contents.target_labels > 0
    relevant = targets.where(is_relevant)
    rows = np.flatnonzero(relevant.lengths)
    drawn = np.random.default_rng(0).permutation(rows[rows >= FIRST_ROW])
    drawn = drawn[np.argsort(histories.lengths[drawn] == 0, kind="stable")][:SHOWN]
    if not len(drawn):
        return []
    ids = contents.queries.ids.ids_of(drawn).to_list()
    found = []
    answers = retriever.recommend(ids, k=DEPTH, at=_moments(histories, relevant, drawn))
    for place, (row, id_, answer) in enumerate(zip(drawn, ids, answers, strict=True), start=1):
        past = histories.of_one(row)
        past = past[past >= FIRST_ROW]
        answered = contents.items.ids.rows_of(answer.item_ids)
        ranks = {item: rank for rank, item in enumerate(answered.tolist(), start=1)}
        wanted = np.unique(relevant.of_one(row)).tolist()
        wanted.sort(key=lambda item: ranks.get(item, DEPTH + 1))
        shown, next_ = answered[:SHOWN], np.array(wanted[:_RECENT], np.int32)
        found.append(
            {
                "name": str(place) if private else clean(id_),
                "facts": [] if private else _facts(retriever, int(row)),
                "history": [Entry(title) for title in titles.of(past[-_RECENT:])],
                "history_length": len(past),
                "answers": [
                    Entry(title, is_hit=item in wanted)
                    for title, item in zip(titles.of(shown), shown.tolist(), strict=True)
                ],
                "from_model": answer.basis == "model",
                "targets": [
                    Entry(title, is_hit=ranks.get(item, DEPTH) <= SHOWN, rank=ranks.get(item))
                    for title, item in zip(titles.of(next_), wanted, strict=False)
                ],
                "more_targets": max(0, len(wanted) - _RECENT),
            }
        )
    return found


def _moments(histories: Histories, targets: Histories, rows: Rows) -> list[float | None] | None:
    """Return when the test asks each query: at its first test item, not before its history ends."""
    if targets.times is None:
        return None
    moments: list[float | None] = []
    for row in rows:
        first = targets.times[targets.offsets[row] : targets.offsets[row + 1]].min()
        if histories.times is not None:
            known = histories.times[histories.offsets[row] : histories.offsets[row + 1]]
            first = max(first, known.max(initial=-np.inf))
        moments.append(float(first))
    return moments


def _facts(retriever: Retriever, row: int) -> list[str]:
    """Return the features of a query that say something short."""
    queries = retriever.contents.queries
    line = queries.frame.row(row - FIRST_ROW, named=True)
    facts = []
    for feature in queries.transforms.features:
        value = line.get(feature.name)
        if feature.meaning in ("categorical", "number") and value is not None:
            said = f"{value:g}" if isinstance(value, float) else value
            facts.append(f"{clean(feature.name, _MAX_FACT)} {clean(said, _MAX_FACT)}")
    return facts[:4]
