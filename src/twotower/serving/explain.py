"""Explanations of a score: what changes when one part of the towers' input is left out."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl
import torch

from twotower.errors import ArgumentError
from twotower.features.base import FeatureArrays
from twotower.features.schema import Feature
from twotower.histories import Histories
from twotower.serving.arguments import Id, Told
from twotower.serving.bundle import SideContents
from twotower.serving.queries import Described, Queries
from twotower.towers.encoding import Encoding
from twotower.towers.model import TwoTower
from twotower.vocab import FIRST_ROW, UNKNOWN_ROW


@dataclass(frozen=True)
class Contribution:
    """How much one part of a query or an item contributes to a score.

    Args:
        side: ``"query"``, ``"item"``, ``"history"`` for an event of the history, or ``"ranking"`` for an
            input of the second stage.
        name: The feature, ``"history"`` for the whole history, the id of the event's item, or the input.
        value: The value in the table, or of the input; None if there is none.
        contribution: The score minus the score without this part; of an input, its share in what the trees
            say.
    """

    side: Literal["query", "item", "history", "ranking"]
    name: str
    value: object
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """A score and the contributions to it.

    Args:
        query_id: The query, or None if it was described without an id.
        item_id: The item.
        score: The dot product of the two vectors.
        parts: The contributions: first the features of both sides and the whole history, then the events
            of the history, each group in descending order.
        ranking: What moves the item in the second stage, in descending order, in the unit of its trees;
            empty without one, or where the item is none of its candidates.
    """

    query_id: Id | None
    item_id: Id
    score: float
    parts: tuple[Contribution, ...]
    ranking: tuple[Contribution, ...] = ()

    def to_polars(self) -> pl.DataFrame:
        """Return one row per part: side, name, value as text, contribution."""
        parts = (*self.parts, *self.ranking)
        texts = [None if part.value is None else str(part.value) for part in parts]
        lines = [{**vars(part), "value": text} for part, text in zip(parts, texts, strict=True)]
        columns = {"side": pl.String, "name": pl.String, "value": pl.String}
        return pl.DataFrame(lines, {**columns, "contribution": pl.Float64})


def explain(
    queries: Queries, encoding: Encoding, told: Told, item_id: Id, item_row: int
) -> Explanation:
    """Return how much each part of a query and of an item contributes to their score.

    To leave a part out, an id becomes unknown, any other value becomes missing, and an event is removed.
    Contributions do not add up to the score if parts are redundant or interact.

    Args:
        queries: The queries of the bundle.
        encoding: The model of the bundle.
        told: One query.
        item_id: An item of the catalogue.
        item_row: The row of that item.

    Raises:
        ValueError: The item is not one of the view, or several queries are described.

    Source: leaving one out, as in Zeiler and Fergus, ECCV 2014, section 4.2 (occlusion).
    """
    if not told.single:
        raise ArgumentError("explain is of one query, got several; ask for each.")
    query, contents = queries.described(told), queries.contents
    if contents.offered is not None and not contents.offered[item_row]:
        raise ArgumentError(
            f"item_id must be of the view {contents.view!r}, which alone is answered, got {item_id!r}."
        )
    item = {
        n: values[item_row : item_row + 1].cpu().numpy()
        for n, values in encoding.item_features.items()
    }
    nothing = {n: values[:1].cpu().numpy() for n, values in encoding.item_features.items()}
    target = encoding.new_item_vectors(item)[0]

    def score_of(features: FeatureArrays, histories: Histories) -> float:
        return float(encoding.query_vectors(features, histories, query.events)[0] @ target)

    own = encoding.query_vectors(query.features, query.histories, query.events)[0]
    score = float(own @ target)
    line = contents.items.frame.row(item_row - FIRST_ROW, named=True)
    parts: list[Contribution] = []
    for transform in contents.items.transforms.transforms:
        name, column = transform.feature.name, transform.feature.source
        if reads(encoding.model, transform.feature):
            without = encoding.new_item_vectors({**item, name: nothing[name]})[0]
            effect = score - float(own @ without)
            parts.append(Contribution("item", name, line.get(column), effect))
    values = _values(contents.queries, told)
    for transform in contents.queries.transforms.transforms:
        name, column = transform.feature.name, transform.feature.source
        if reads(encoding.model, transform.feature):
            missing = queries.features[name][UNKNOWN_ROW : UNKNOWN_ROW + 1]
            effect = score - score_of({**query.features, name: missing}, query.histories)
            parts.append(Contribution("query", name, values.get(column), effect))
    if encoding.model.reads_question_time and query.histories.asked is not None:
        without_time = replace(query.histories, asked=None)
        effect = score - score_of(query.features, without_time)
        asked = float(query.histories.asked[0])
        parts.append(Contribution("query", "time of the question", asked, effect))
    num, of_events = len(query.histories.item_rows), list[Contribution]()
    if encoding.model.reads_history and num:
        nothing_known = replace(Histories.empty(1), asked=query.histories.asked)
        effect = score - score_of(query.features, nothing_known)
        parts.append(Contribution("query", "history", f"{num} events", effect))
        of_events = _of_events(queries, encoding, query, target, score)
    parts.sort(key=lambda part: -part.contribution)
    of_events.sort(key=lambda part: -part.contribution)
    return Explanation(told.ids[0], item_id, score, (*parts, *of_events))


def reads(model: TwoTower, feature: Feature) -> bool:
    """Return whether a tower reads a feature."""
    read = model.query_features if feature.side == "query" else model.item_features
    return read is None or feature.name in read


def _of_events(
    queries: Queries, encoding: Encoding, query: Described, target: torch.Tensor, score: float
) -> list[Contribution]:
    """Return the contribution of each event that the query tower reads."""
    num = len(query.histories.item_rows)
    read = np.arange(max(0, num - encoding.history_length), num)
    kept = np.arange(num) != read[:, None]  # a line for each event that is left out
    repeated = query.histories.take(np.zeros(len(read), np.int64))
    without = repeated.where(kept.reshape(-1))
    lines = {name: values.repeat(len(read), axis=0) for name, values in query.features.items()}
    vectors = encoding.query_vectors(lines, without, query.events)
    scores = (vectors @ target).cpu().numpy()
    ids = queries.contents.items.ids.ids_of(query.histories.item_rows[read]).to_list()
    return [
        Contribution("history", str(item), None, score - float(other))
        for item, other in zip(ids, scores, strict=True)
    ]


def _values(table: SideContents, told: Told) -> dict[str, object]:
    """Return the values of a query's columns, from the table or from the caller."""
    values: dict[str, object] = {table.id_column: told.ids[0]}
    rows = table.ids.rows_of(told.ids)
    if rows[0] > UNKNOWN_ROW:
        values |= table.frame.row(int(rows[0]) - FIRST_ROW, named=True)
    return values if told.features is None else {**values, **told.features.lines()[0]}
