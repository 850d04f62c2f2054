"""Why a score is what it is: each part of what the towers read is left out, one at a time."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
import torch

from twotower.errors import ArgumentError
from twotower.features.base import FeatureArrays
from twotower.histories import Histories
from twotower.serving.arguments import Id, Told
from twotower.serving.queries import Described
from twotower.vocab import FIRST_ROW, UNKNOWN_ROW

if TYPE_CHECKING:
    from twotower.serving.retriever import Retriever


@dataclass(frozen=True)
class Contribution:
    """What one part of a query or an item does for a score.

    Args:
        side: ``"query"``, ``"item"``, or ``"history"`` for an event of it.
        name: The feature, ``"history"`` for the whole of it, or the id of the event's item.
        value: What it holds there, as the table has it; None where that is not kept.
        contribution: The score minus the score without it.
    """

    side: Literal["query", "item", "history"]
    name: str
    value: object
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """A score and what moved it.

    Args:
        query_id: The query, or None where it was described without an id.
        item_id: The item.
        score: The dot product of the two vectors.
        parts: What each part does, the features of both sides and the whole history first, then the
            events of the history, each from the largest to the least.
    """

    query_id: Id | None
    item_id: Id
    score: float
    parts: tuple[Contribution, ...]

    def to_polars(self) -> pl.DataFrame:
        """Return one line a part: side, name, value as text, contribution."""
        texts = [None if part.value is None else str(part.value) for part in self.parts]
        lines = [
            {**vars(part), "value": text} for part, text in zip(self.parts, texts, strict=True)
        ]
        columns = {"side": pl.String, "name": pl.String, "value": pl.String}
        return pl.DataFrame(lines, {**columns, "contribution": pl.Float64})


def explain(retriever: "Retriever", told: Told, item_id: Id) -> Explanation:
    """Return what each part of a query and of an item does for their score.

    A part is left out as a table leaves it out: an id becomes unknown, any other value missing, an event
    was never there. Contributions do not add up to the score where parts say the same or need each other.

    Args:
        retriever: The opened bundle.
        told: One query.
        item_id: An item of the catalogue.

    Raises:
        ValueError: The item is not in the catalogue, or several queries are described.

    Source: leaving one out, as in Zeiler and Fergus, ECCV 2014, section 4.2 (occlusion).
    """
    if not told.single:
        raise ArgumentError("explain is of one query, got several; ask for each.")
    query = retriever.queries.described(told)
    contents, encoding = retriever.contents, retriever.encoding
    row = int(retriever.known_item_rows([item_id])[0])
    if contents.offered is not None and not contents.offered[row]:
        raise ArgumentError(
            f"item_id must be of the view {contents.view!r}, which alone is answered, got {item_id!r}."
        )
    item = {n: values[row : row + 1].cpu().numpy() for n, values in encoding.item_features.items()}
    nothing = {n: values[:1].cpu().numpy() for n, values in encoding.item_features.items()}
    target = encoding.new_item_vectors(item)[0]

    def score_of(features: FeatureArrays, histories: Histories) -> float:
        return float(encoding.query_vectors(features, histories, query.events)[0] @ target)

    own = encoding.query_vectors(query.features, query.histories, query.events)[0]
    score = float(own @ target)
    line = contents.items.frame.row(row - FIRST_ROW, named=True)
    parts: list[Contribution] = []
    for transform in contents.items.transforms.transforms:
        name, column = transform.feature.name, transform.feature.source
        if retriever.reads(transform.feature):
            without = encoding.new_item_vectors({**item, name: nothing[name]})[0]
            effect = score - float(own @ without)
            parts.append(Contribution("item", name, line.get(column), effect))
    values = _values(retriever, told)
    for transform in contents.queries.transforms.transforms:
        name, column = transform.feature.name, transform.feature.source
        if retriever.reads(transform.feature):
            missing = retriever.query_features[name][UNKNOWN_ROW : UNKNOWN_ROW + 1]
            effect = score - score_of({**query.features, name: missing}, query.histories)
            parts.append(Contribution("query", name, values.get(column), effect))
    num = len(query.histories.item_rows)
    of_events: list[Contribution] = []
    if encoding.model.reads_history and num:
        effect = score - score_of(query.features, Histories.empty(1))
        parts.append(Contribution("query", "history", f"{num} events", effect))
        of_events = _of_events(retriever, query, target, score)
    parts.sort(key=lambda part: -part.contribution)
    of_events.sort(key=lambda part: -part.contribution)
    return Explanation(told.ids[0], item_id, score, (*parts, *of_events))


def _of_events(
    retriever: "Retriever", query: Described, target: torch.Tensor, score: float
) -> list[Contribution]:
    """Return what each event that the query tower reads does."""
    num = len(query.histories.item_rows)
    read = np.arange(max(0, num - retriever.encoding.history_length), num)
    kept = np.arange(num) != read[:, None]  # a line for each event that is left out
    repeated = query.histories.take(np.zeros(len(read), np.int64))
    without = repeated.where(kept.reshape(-1))
    lines = {name: values.repeat(len(read), axis=0) for name, values in query.features.items()}
    vectors = retriever.encoding.query_vectors(lines, without, query.events)
    scores = (vectors @ target).cpu().numpy()
    ids = retriever.contents.items.ids.ids_of(query.histories.item_rows[read]).to_list()
    return [
        Contribution("history", str(item), None, score - float(other))
        for item, other in zip(ids, scores, strict=True)
    ]


def _values(retriever: "Retriever", told: Told) -> dict[str, object]:
    """Return what is known of a query, as the table or the caller has it."""
    queries, (query_id,) = retriever.contents.queries, told.ids
    values: dict[str, object] = {queries.id_column: query_id}
    rows = queries.ids.rows_of([query_id])
    if rows[0] > UNKNOWN_ROW:
        values |= queries.frame.row(int(rows[0]) - FIRST_ROW, named=True)
    return values if told.features is None else {**values, **told.features.lines()[0]}
