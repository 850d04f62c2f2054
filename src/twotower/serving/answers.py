"""The answers of a retriever: ``Recommendation`` and ``Recommendations``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower import html
from twotower.extras import library
from twotower.features.dataframes import to_pandas
from twotower.index.base import Found
from twotower.serving.arguments import Id
from twotower.serving.bundle import SideContents
from twotower.serving.titles import named_title
from twotower.vocab import PADDING_ROW

Basis = Literal["model", "popularity"]
_MOST_COLUMNS, _MOST_QUERIES, _LONGEST = 3, 10, 80


@dataclass(frozen=True, eq=False)
class Recommendation:
    """The answer to one query: the best item first, or the order that rules made.

    Args:
        query_id: The query's id, or None if it was described without one.
        item_ids: At most ``k`` ids.
        scores: The score of each item: a dot product, or its number of training events if ``basis`` is
            popularity.
        basis: ``"model"``, or ``"popularity"`` if the model knows nothing about the query.
        explored: The items that were drawn at random, with the probability of each; None without
            exploration. See ``rules.kinds.Explore``.
        notes: Sentences about values of a filter that no item has, and about ids of the history that are
            not in the catalogue.
        items: The items' table, whose lines a notebook shows; None if the answer came from a server.
        item_column: The column of ids in that table.
    """

    query_id: Id | None
    item_ids: list[Id]
    scores: list[float]
    basis: Basis
    explored: Mapping[Id, float] | None = None
    notes: tuple[str, ...] = ()
    items: pl.DataFrame | None = field(default=None, repr=False)
    item_column: str = field(default="", repr=False)

    def _repr_html_(self) -> str:
        return html.block(self._html())

    def _html(self, most: int = 50) -> str:
        """Return the answer as a table with the items' titles."""
        who = "a query without an id" if self.query_id is None else f"query {self.query_id}"
        popular = " (popular items: nothing is known of the query)"
        title = f"{len(self)} items for {who}{popular if self.basis == 'popularity' else ''}"
        ids, scores = self.item_ids[:most], self.scores[:most]
        names: list[str] = []
        lines: dict[Id, tuple[object, ...]] = {}
        if self.items is not None and self.item_column in self.items.columns:
            names = titles_first(self.items, self.item_column)[:_MOST_COLUMNS]
            found = self.items.filter(pl.col(self.item_column).is_in(ids))
            lines = {line[0]: line[1:] for line in found.select(self.item_column, *names).rows()}
        nothing = (None,) * len(names)
        rows = [
            (place, item_id, *map(cell, lines.get(item_id, nothing)), score)
            for place, (item_id, score) in enumerate(zip(ids, scores, strict=True), 1)
        ]
        header = ("", self.item_column or "item", *names, "score")
        more = html.text(f"and {len(self) - most} more", quiet=True) if len(self) > most else ""
        return html.text(title, bold=True) + html.table(rows, header=header) + more

    def __len__(self) -> int:
        """Number of items."""
        return len(self.item_ids)


@dataclass(frozen=True, eq=False, repr=False)
class Recommendations(Sequence[Recommendation]):
    """The answers to several queries, in their order: a sequence of ``Recommendation``.

    Args:
        answers: One per query.
        items: The items' table, whose lines a notebook shows.
        item_column: The column of ids in that table.
    """

    answers: tuple[Recommendation, ...]
    items: pl.DataFrame
    item_column: str

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.answers)

    def __repr__(self) -> str:
        return f"Recommendations({len(self):,} queries, {sum(map(len, self.answers)):,} answers)"

    def _repr_html_(self) -> str:
        shown = [answer._html(most=10) for answer in self.answers[:_MOST_QUERIES]]
        rest = len(self) - len(shown)
        return html.block(
            *shown, html.text(f"and {rest:,} more queries", quiet=True) if rest else ""
        )

    def __getitem__(self, position: Any) -> Any:
        return self.answers[position]

    def to_polars(self) -> pl.DataFrame:
        """Return one row per recommended item: query_id, rank, item id, score, basis, the item's columns.

        With exploration there is a column ``propensity``, which is null for items that were not drawn.
        """
        pairs = [(answer, item_id) for answer in self.answers for item_id in answer.item_ids]
        ranks = [rank for answer in self.answers for rank in range(1, len(answer) + 1)]
        scores = [score for answer in self.answers for score in answer.scores]
        lines = pl.DataFrame(
            {
                "query_id": pl.Series([answer.query_id for answer, _ in pairs], strict=False),
                "rank": pl.Series(ranks, dtype=pl.Int32),
                "score": pl.Series(scores, dtype=pl.Float32),
                "basis": pl.Series([answer.basis for answer, _ in pairs], dtype=pl.String),
            }
        )
        if any(answer.explored is not None for answer in self.answers):
            drawn = [(answer.explored or {}).get(item_id) for answer, item_id in pairs]
            lines = lines.with_columns(propensity=pl.Series(drawn, dtype=pl.Float64))
        ids: list[object] = [item_id for _, item_id in pairs]
        key = pl.Series(self.item_column, ids, dtype=self.items[self.item_column].dtype)
        table = key.to_frame().join(
            self.items, on=self.item_column, how="left", maintain_order="left"
        )
        name = "item_id" if self.item_column in lines.columns else self.item_column
        lines = lines.insert_column(2, key.rename(name))
        return lines.hstack([column for column in table if column.name not in lines.columns])

    def to_pandas(self) -> Any:
        """Return ``to_polars`` as a pandas frame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        library("pandas", wanted_by="to_pandas", extra="pandas")
        return to_pandas(self.to_polars())


def recommendations(
    table: SideContents,
    query_ids: Sequence[Id | None],
    known: Sequence[bool],
    found: Found,
    notes: Sequence[tuple[str, ...]],
    propensities: npt.NDArray[np.float64] | None = None,
) -> list[Recommendation]:
    """Return the items that an index found as answers, one per query.

    Args:
        table: The items.
        query_ids: The ids of ``Q`` queries, or None.
        known: For each query, whether the model knows anything about it. If not, its items are popular.
        found: ``(Q, k)`` items.
        notes: The notes of each answer.
        propensities: ``(Q, k)``, NaN for items that were not drawn; None without exploration.
    """
    is_item = found.item_rows != PADDING_ROW
    all_ids = iter(table.ids.ids_of(found.item_rows[is_item]).to_list())
    answers = []
    for place, query_id in enumerate(query_ids):
        real = is_item[place]
        ids = list(islice(all_ids, int(real.sum())))
        explored = None
        if propensities is not None:
            pairs = zip(ids, propensities[place][real].tolist(), strict=True)
            explored = {item_id: chance for item_id, chance in pairs if not math.isnan(chance)}
        scores = found.scores[place][real].tolist()
        basis: Basis = "model" if known[place] else "popularity"
        more = (explored, notes[place], table.frame, table.id_column)
        answers.append(Recommendation(query_id, ids, scores, basis, *more))
    return answers


def items_as_json(
    answer: Recommendation, columns: Sequence[Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    """Return each item of an answer as JSON has it.

    Args:
        answer: To one query, or the items like one item.
        columns: Those of each item; None leaves them out.
    """
    found: list[dict[str, Any]] = [
        {"item_id": item_id, "score": score}
        for item_id, score in zip(answer.item_ids, answer.scores, strict=True)
    ]
    explored = answer.explored or {}
    for item in found if explored else ():
        if item["item_id"] in explored:
            item["propensity"] = explored[item["item_id"]]
    for item, line in zip(found, columns or (), strict=False):
        item["columns"] = line
    return found


def titles_first(items: pl.DataFrame, item_column: str) -> list[str]:
    """Return the items' columns without the id, those that look like a title first."""
    names = [name for name in items.columns if name != item_column]
    texts = [n for n in names if items[n].dtype == pl.String and not _holds_links(items[n])]
    # If no column is named like a title, the one with the most distinct values comes first.
    texts.sort(key=lambda name: -items[name].n_unique())
    title = named_title(n for n in names if n in texts)
    first = texts if title is None else [title, *(name for name in texts if name != title)]
    return first + [name for name in names if name not in first]


def _holds_links(values: pl.Series) -> bool:
    return bool(values.drop_nulls().head(20).str.contains("^https?://").all())


def cell(value: object) -> str:
    """Return a value as text for a table cell; long text is truncated."""
    if value is None:
        return ""
    said = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return said if len(said) <= _LONGEST else f"{said[: _LONGEST - 1].rstrip()}…"
