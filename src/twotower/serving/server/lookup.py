"""Finding items by a piece of their text, and queries by the beginning of their id: for people."""

from typing import Any

import numpy as np
import polars as pl

from twotower.errors import FilterError
from twotower.index.filters import parse
from twotower.serving.answers import titles_first
from twotower.serving.retriever import Retriever
from twotower.vocab import FIRST_ROW


def title_columns(retriever: Retriever) -> list[str]:
    """Return the items' columns but for the id, those that read like a title first."""
    return titles_first(retriever.contents.items.frame, retriever.item_column)


def filter_example(retriever: Retriever) -> str:
    """Return a filter over the items' columns that somebody could begin with, and that has an answer."""
    table = retriever.contents.items
    parts = []
    for name in title_columns(retriever):
        column = table.frame[name].drop_nulls()
        for text in _conditions(name, column):
            try:
                fits = parse(text).matches(table.frame, table.transforms.features).any()
            except FilterError:
                continue
            if fits:
                parts.append(text)
                break
        if len(parts) == 2:
            break
    return " and ".join(parts) or f"{_named(retriever.item_column)} is not null"


def _conditions(name: str, column: pl.Series) -> list[str]:
    """Return conditions on a column that may fit what it holds, those that say most first."""
    if not len(column):
        return []
    said = _named(name)
    if column.dtype.is_numeric():
        finite = column.filter(column.is_finite()) if column.dtype.is_float() else column
        return [f"{said} >= {finite.sort()[len(finite) // 2]}"] if len(finite) else []
    if column.dtype.is_nested():
        values = column.explode().drop_nulls() if column.dtype == pl.List(pl.String) else column[:0]
        return [f"{said} has {_quoted(values.mode().sort()[0])}"] if len(values) else []
    if column.dtype != pl.String or column.n_unique() > len(column) / 4:
        return []
    common = str(column.mode().sort()[0])
    first = common.split("|")[0].split(",")[0].strip()
    return [f"{said} has {_quoted(first)}", f"{said} = {_quoted(common)}"]


def _named(name: str) -> str:
    return f"`{name}`"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def items_like(retriever: Retriever, text: str, limit: int) -> list[dict[str, Any]]:
    """Return the lines of items that hold a text in their id or in a column of text.

    First those that are the text, then those that begin with it, then the others; popular ones first.

    Args:
        retriever: The opened bundle.
        text: In any case; an empty one is in every item.
        limit: Most lines.
    """
    contents = retriever.contents
    frame = contents.items.frame
    names = [name for name in frame.columns if frame[name].dtype == pl.String]
    names = list(dict.fromkeys([retriever.item_column, *names]))
    needle = text.lower()
    columns = [pl.col(name).cast(pl.String).fill_null("").str.to_lowercase() for name in names]
    ways = frame.select(
        holds=pl.any_horizontal(c.str.contains(needle, literal=True) for c in columns),
        begins=pl.any_horizontal(c.str.starts_with(needle) for c in columns),
        equals=pl.any_horizontal(c == needle for c in columns),
    )
    matches = ways["holds"].to_numpy()
    if contents.offered is not None:
        matches = matches & contents.offered[FIRST_ROW:]
    found = np.flatnonzero(matches)
    closeness = (ways["begins"].cast(pl.Int8) + ways["equals"].cast(pl.Int8)).to_numpy()[found]
    order = np.lexsort((-contents.popularity[FIRST_ROW:][found], -closeness))[:limit]
    return frame[found[order]].to_dicts()


def ids_like(retriever: Retriever, text: str, limit: int) -> list[int | str]:
    """Return the first ids of queries that begin with a text."""
    ids = retriever.contents.queries.ids.ids
    if text:
        ids = ids.filter(ids.cast(pl.String).str.starts_with(text))
    return list(ids.head(limit).to_list())


def latest_of(retriever: Retriever, query_id: int | str, limit: int) -> list[dict[str, Any]]:
    """Return the lines of a query's latest items, the last one first; of those that are gone, too."""
    latest = retriever.history(query_id)[::-1][:limit]
    contents = retriever.contents
    rows = contents.items.ids.rows_of(latest)
    lines = contents.items.frame[rows.astype(np.int64) - FIRST_ROW]
    assert isinstance(lines, pl.DataFrame)
    return lines.to_dicts()
