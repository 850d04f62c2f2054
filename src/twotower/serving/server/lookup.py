"""What the page shows of a model: its columns, examples, and items and queries found by text."""

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.errors import FilterError
from twotower.features.base import Transform
from twotower.features.raw_values import tags_of
from twotower.index.filters import parse
from twotower.serving.retriever import Retriever
from twotower.serving.titles import ADDRESSES, Titles
from twotower.vocab import FIRST_ROW

COMMON = 10
"""Fewest queries with a value that is shown as an example: a rare value may identify a person."""
MOST_EXAMPLES = 30

_FIELDS = ("categorical", "tags", "number", "time", "text")
_POPULAR = 1000


def title_columns(retriever: Retriever) -> list[str]:
    """Return the items' columns without the id: the title first, the others in the order of the table."""
    table = retriever.contents.items
    title = Titles(table).column
    names = [name for name in table.frame.columns if name not in (retriever.item_column, title)]
    return names if title is None else [title, *names]


def item_forms(retriever: Retriever) -> dict[str, str]:
    """Return the items' columns that hold addresses, each with its form: ``link`` or ``image``."""
    table = retriever.contents.items
    known = {feature.name: feature.form for feature in table.transforms.features}
    return {name: known[name] for name in table.frame.columns if known.get(name, "") in ADDRESSES}


def query_fields(retriever: Retriever) -> list[dict[str, Any]]:
    """Return the fields of a form that describes a query: each column that is read, its kind, and examples.

    The id is no field, and neither are vectors, which nobody types. Examples of categories and tags are
    values that at least ``COMMON`` queries have, the most frequent first.
    """
    table = retriever.contents.queries
    fields: dict[str, dict[str, Any]] = {}
    for transform in table.transforms.transforms:
        feature = transform.feature
        is_read = feature.meaning in _FIELDS and retriever.reads(feature)
        if is_read and feature.source != table.id_column and feature.source not in fields:
            kind = feature.meaning
            examples = _examples(transform, table.frame)
            fields[feature.source] = {"name": feature.source, "kind": kind, "examples": examples}
    return list(fields.values())


def _examples(transform: Transform, frame: pl.DataFrame) -> list[Any]:
    feature, numbers = transform.feature, transform.numbers
    if feature.meaning == "number":
        with np.errstate(over="ignore"):
            center = numbers["center"][0]
            middle = float(np.expm1(center) if numbers["log"][0] else center)
        return [float(f"{middle:.3g}")] if math.isfinite(middle) else []
    if feature.meaning == "time":
        try:
            return [datetime.fromtimestamp(float(numbers["center"][0]), UTC).date().isoformat()]
        except (ValueError, OverflowError, OSError):  # the year is outside the calendar
            return []
    if feature.meaning == "text":
        return []
    vocabulary = transform.own_vocabulary()
    if not len(frame):  # a private bundle, whose vocabulary has no rare values
        return list(vocabulary.ids.head(MOST_EXAMPLES).to_list())
    values = frame[feature.source]
    tags = tags_of(values, feature.separator if feature.meaning == "tags" else "")[1]
    counts = tags.value_counts(name="count").filter(pl.col("count") >= COMMON)
    common = counts.sort(["count", tags.name], descending=[True, False])[tags.name]
    return list(common.head(MOST_EXAMPLES).to_list())


def example_of(retriever: Retriever, generator: np.random.Generator) -> dict[str, Any]:
    """Draw a known query, with a history if the model reads histories, and a popular item.

    Args:
        retriever: The opened bundle.
        generator: The source of randomness.
    """
    contents = retriever.contents
    ids = contents.queries.ids.ids
    rows: npt.NDArray[np.integer] = np.arange(len(ids))
    if contents.histories is not None and retriever.encoding.model.reads_history:
        rows = np.flatnonzero(contents.histories.lengths[FIRST_ROW:])
    counts = contents.popularity[contents.offered_rows]
    count = min(_POPULAR, len(counts))
    most = np.argpartition(-counts, count - 1)[:count] if count else slice(0)
    popular = contents.offered_rows[most] - FIRST_ROW
    frame = contents.items.frame
    item = frame.row(int(generator.choice(popular)), named=True) if len(popular) else None
    query_id = ids[int(generator.choice(rows))] if len(rows) else None
    return {"query_id": query_id, "item": item}


def filter_example(retriever: Retriever) -> str:
    """Return a first filter to try: it names columns of the items, and at least one item matches it."""
    table = retriever.contents.items
    addresses = item_forms(retriever)
    fits_all = np.ones(len(table.frame), np.bool_)
    parts: list[str] = []
    for name in title_columns(retriever):
        column = table.frame[name].drop_nulls()
        for text in () if name in addresses else _conditions(name, column):
            try:
                fits = parse(text).matches(table.frame, table.transforms.features)
            except FilterError:
                continue
            if (fits_all & fits).any():
                fits_all &= fits
                parts.append(text)
                break
        if len(parts) == 2:
            break
    return " and ".join(parts) or f"`{retriever.item_column}` is not null"


def _conditions(name: str, column: pl.Series) -> list[str]:
    """Return conditions on a column that some of its values should match, the most telling first."""
    if not len(column):
        return []
    said = f"`{name}`"
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


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def items_like(retriever: Retriever, text: str, limit: int) -> list[dict[str, Any]]:
    """Return the lines of items whose id or text columns contain a text.

    Items that equal the text come first, then those that begin with it, then the others. Popular items come
    first among these.

    Args:
        retriever: The opened bundle.
        text: The text, in any case; an empty one is in every item.
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
    offered = contents.offered_rows - FIRST_ROW
    found: npt.NDArray[np.integer] = offered[ways["holds"].to_numpy()[offered]]
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
    """Return the lines of a query's latest items, the last one first, also of deleted items."""
    latest = retriever.history(query_id)[::-1][:limit]
    contents = retriever.contents
    places = contents.items.ids.rows_of(latest).astype(np.int64) - FIRST_ROW
    return contents.items.frame[places].to_dicts()
