"""What every export is made of: the items that may be an answer now, and the queries that are known."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.errors import ExportError
from twotower.histories import Histories
from twotower.serving.retriever import Retriever
from twotower.vocab import FIRST_ROW


@dataclass(frozen=True, eq=False)
class Items:
    """The items that may be an answer, as the retriever has them now.

    Args:
        ids: ``(n,)`` Int64 or String.
        id_column: Its name.
        vectors: ``(n, dim)`` float32.
        columns: The other columns of the table, ``n`` lines.
    """

    ids: pl.Series
    id_column: str
    vectors: npt.NDArray[np.float32]
    columns: pl.DataFrame

    def __len__(self) -> int:
        """Number of items."""
        return len(self.ids)

    def frame(self) -> pl.DataFrame:
        """Return the ids, the columns and the vectors, in a column ``vector``, as one table."""
        described = pl.DataFrame([self.ids.rename(self.id_column), *self.columns])
        return described.with_columns(vector_column(self.vectors, described.columns))


@dataclass(frozen=True, eq=False)
class Queries:
    """The queries of which the model knows something.

    Args:
        ids: ``(n,)`` Int64 or String.
        id_column: Its name.
        vectors: ``(n, dim)`` float32.
        seen: ``n`` sets of positions in ``Items``, rising: what ``recommend`` leaves out by default.
        features: One array a feature of the query side, ``n`` lines.
        histories: Their ``n`` histories.
    """

    ids: pl.Series
    id_column: str
    vectors: npt.NDArray[np.float32]
    seen: Histories
    features: dict[str, npt.NDArray[np.int32] | npt.NDArray[np.float32]]
    histories: Histories

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.ids)

    def frame(self, items: Items) -> pl.DataFrame:
        """Return the ids, the vectors and the ids of what was seen, in columns ``vector`` and ``seen``."""
        ids = self.ids.rename(self.id_column)
        seen = items.ids.gather(self.seen.item_rows)
        owners = np.repeat(np.arange(len(self)), self.seen.lengths)
        lists = (
            pl.DataFrame({"owner": owners, "seen": seen})
            .group_by("owner", maintain_order=True)
            .agg("seen")
        )
        of_queries = pl.DataFrame({"owner": np.arange(len(self))}).join(
            lists, on="owner", how="left", maintain_order="left"
        )
        empty = pl.lit([], dtype=pl.List(items.ids.dtype))
        column = of_queries.select(pl.col("seen").fill_null(empty)).to_series()
        vectors = vector_column(self.vectors, [self.id_column])
        name = free_name("seen", [self.id_column, vectors.name])
        return pl.DataFrame([ids, vectors, column.rename(name)])


def items_of(retriever: Retriever) -> Items:
    """Return the items that may be an answer: what was put in is there, what was taken out is not.

    Raises:
        ExportError: There are none, or a vector holds what is no finite number.
    """
    ids = retriever.item_ids
    if not ids:
        raise ExportError("an export must hold an item, got a catalogue without any.")
    lines = retriever.items(ids)
    items = Items(
        ids=pl.Series("id", ids, dtype=retriever.contents.items.ids.ids.dtype),
        id_column=retriever.item_column,
        vectors=retriever.encode_items(),
        columns=lines.drop(retriever.item_column),
    )
    broken = np.flatnonzero(~np.isfinite(items.vectors).all(axis=1))
    if len(broken):
        raise ExportError(
            f"item vectors must be finite, got others for {len(broken)} items, such as "
            f"{ids[int(broken[0])]!r}; train again."
        )
    return items


def queries_of(retriever: Retriever, items: Items) -> Queries:
    """Return the queries of the bundle that the model answers.

    Those of which it knows nothing are answered by what is popular, and left out.
    """
    table = retriever.contents.queries
    ids = table.ids.ids.to_list()
    features, histories, _ = retriever.described(ids, None, None)
    known = np.flatnonzero(retriever.encoding.is_known(features, histories))
    features = {name: values[known] for name, values in features.items()}
    histories = histories.take(known)
    return Queries(
        ids=table.ids.ids.gather(known),
        id_column=table.id_column,
        vectors=retriever.encoding.query_vectors(features, histories).cpu().numpy(),
        seen=_seen(retriever, items, histories),
        features=features,
        histories=histories,
    )


def _seen(retriever: Retriever, items: Items, histories: Histories) -> Histories:
    if retriever.contents.repeats:
        return Histories.empty(len(histories))
    vocabulary = retriever.contents.items.ids
    position_of = np.full(vocabulary.num_rows, -1, np.int64)
    position_of[vocabulary.rows_of(items.ids)] = np.arange(len(items))
    positions = position_of[histories.item_rows]
    owners = np.repeat(np.arange(len(histories)), histories.lengths)
    is_here = (positions >= 0) & (histories.item_rows >= FIRST_ROW)
    pairs = np.unique(owners[is_here] * len(items) + positions[is_here])
    counts = np.bincount(pairs // len(items), minlength=len(histories))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Histories(offsets, (pairs % len(items)).astype(np.int32))


def vector_column(vectors: npt.NDArray[np.float32], taken: Iterable[str]) -> pl.Series:
    """Return vectors as a column ``vector`` of arrays, or ``vector_2`` where that name is taken."""
    name = free_name("vector", taken)
    return pl.Series(name, vectors, dtype=pl.Array(pl.Float32, vectors.shape[1]))


def free_name(name: str, taken: Iterable[str]) -> str:
    """Return a name, with a number behind it where it is taken."""
    held = set(taken)
    number, free = 1, name
    while free in held:
        number += 1
        free = f"{name}_{number}"
    return free
