"""Ten real queries: their history, what the model answers, and what happened next."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twotower.serving.retriever import Retriever
from twotower.serving.titles import Titles, clean
from twotower.vocab import FIRST_ROW

SHOWN = 10
"""Queries, and answers of each."""

DEPTH = 100
"""Down to which rank what happened next is looked for."""

_RECENT = 6
_MAX_FACT = 24


@dataclass(frozen=True)
class Entry:
    """An item on the page, and whether it is both in the answer and in what happened next."""

    title: str
    is_hit: bool = False
    rank: int | None = None


@dataclass(frozen=True)
class Example:
    """A query.

    Args:
        name: Its id, or its number on the page.
        facts: Its features that are short, as ``column value``; none beside a number.
        history: The last items of its history, oldest first.
        history_length: Of the whole.
        answers: What the model answers, best first.
        from_model: Whether it is the model's answer, or what is popular.
        targets: What happened next, with the rank that the model gave it.
        more_targets: How many more there are.
    """

    name: str
    facts: Sequence[str]
    history: Sequence[Entry]
    history_length: int
    answers: Sequence[Entry]
    from_model: bool
    targets: Sequence[Entry]
    more_targets: int


def examples(
    retriever: Retriever, titles: Titles, *, private: bool = False, seed: int = 0
) -> list[Example]:
    """Return at most ``SHOWN`` queries with test items, drawn at random, those with a history first.

    Args:
        retriever: The opened bundle; without histories in it there is no query to show.
        titles: What its items are called.
        private: Whether queries are named by their place on the page, which says nothing of their ids, and
            shown without their features.
        seed: Seed of the draw.
    """
    contents = retriever.contents
    histories, targets = contents.histories, contents.targets
    if histories is None or targets is None:
        return []
    relevant = np.ones(len(targets.item_rows), np.bool_)
    if contents.target_labels is not None:
        relevant = contents.target_labels > 0
    relevant &= targets.item_rows >= FIRST_ROW
    owners = np.repeat(np.arange(len(targets)), targets.lengths)[relevant]
    wanted = targets.item_rows[relevant]
    rows = np.unique(owners)
    rows = rows[rows >= FIRST_ROW]
    drawn = np.random.default_rng(seed).permutation(rows)
    drawn = drawn[np.argsort(histories.lengths[drawn] == 0, kind="stable")][:SHOWN]
    if not len(drawn):
        return []
    ids = contents.queries.ids.ids_of(drawn).to_list()
    found = []
    answers = retriever.recommend(ids, k=DEPTH)
    for place, (row, id_, answer) in enumerate(zip(drawn, ids, answers, strict=True), start=1):
        answered = contents.items.ids.rows_of(answer.item_ids)
        past = histories.item_rows[histories.offsets[row] : histories.offsets[row + 1]]
        past = past[past >= FIRST_ROW]
        next_ = np.unique(wanted[owners == row])
        ranks = {int(item): rank for rank, item in enumerate(answered.tolist(), start=1)}
        far = len(ranks) + 1
        next_ = np.array(sorted(next_.tolist(), key=lambda item: ranks.get(item, far)), np.int32)
        hits = set(next_.tolist())
        found.append(
            Example(
                name=str(place) if private else clean(id_),
                facts=[] if private else _facts(retriever, int(row)),
                history=[Entry(title) for title in titles.of(past[-_RECENT:])],
                history_length=len(past),
                answers=_entries(titles, answered[:SHOWN], hits, ranks),
                from_model=answer.basis == "model",
                targets=_entries(titles, next_[:_RECENT], set(answered[:SHOWN].tolist()), ranks),
                more_targets=max(0, len(next_) - _RECENT),
            )
        )
    return found


def _entries(
    titles: Titles, rows: npt.NDArray[np.int32], hits: set[int], ranks: dict[int, int]
) -> list[Entry]:
    names = titles.of(rows)
    return [
        Entry(name, row in hits, ranks.get(row))
        for name, row in zip(names, rows.tolist(), strict=True)
    ]


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
