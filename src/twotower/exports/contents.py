"""The content of every export: the items that can be recommended now, and the known queries."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
import polars as pl

from twotower.arrays import Float32s, Rows
from twotower.errors import ExportError
from twotower.histories import Histories
from twotower.serving import arguments
from twotower.serving.retriever import Bundle, Retriever

_NO_SECOND_STAGE = (
    "The second stage of the bundle is not in the export: items come in the order of the towers' "
    "scores."
)


@dataclass(frozen=True, eq=False)
class _Side:
    ids: pl.Series
    id_column: str
    vectors: Float32s

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Items(_Side):
    """The items that may be an answer, as the retriever has them now.

    Args:
        ids: ``(n,)`` Int64 or String.
        id_column: Name of the id column.
        vectors: ``(n, dim)`` float32.
        columns: The other columns of the table, ``n`` lines.
        notes: Sentences about what the bundle has and an export lacks.
    """

    columns: pl.DataFrame
    notes: tuple[str, ...] = ()

    def frame(self) -> pl.DataFrame:
        """Return the ids, the columns and the vectors, in a column ``vector``, as one table."""
        described = pl.DataFrame([self.ids.rename(self.id_column), *self.columns])
        return described.with_columns(_vectors_as_column(self.vectors, described.columns))


@dataclass(frozen=True, eq=False)
class Queries(_Side):
    """The queries of which the model knows something.

    Args:
        ids: ``(n,)`` Int64 or String.
        id_column: Name of the id column.
        vectors: ``(n, dim)`` float32.
        seen: ``n`` ascending sets of positions in ``Items``: what ``recommend`` leaves out by default.
        features: One array of ``n`` lines for each feature of the query side.
        histories: The ``n`` histories of the queries.
    """

    seen: Histories
    features: dict[str, Rows | Float32s]
    histories: Histories

    def frame(self, items: Items) -> pl.DataFrame:
        """Return the ids, the vectors and the ids of seen items, in columns ``vector`` and ``seen``."""
        vectors = _vectors_as_column(self.vectors, [self.id_column])
        name = free_name("seen", [self.id_column, vectors.name])
        pairs = pl.DataFrame(
            {"owner": self.seen.owners, "seen": items.ids.gather(self.seen.item_rows)}
        )
        lists = (
            pl.DataFrame({"owner": np.arange(len(self))})
            .join(pairs, on="owner", how="left", maintain_order="left_right")
            .group_by("owner", maintain_order=True)
            .agg(pl.col("seen").drop_nulls())
        )
        return pl.DataFrame([self.ids.rename(self.id_column), vectors, lists["seen"].rename(name)])


def contents_of(bundle: Bundle) -> tuple[Items, Queries]:
    """Return the items and the queries of a bundle; see ``items_of`` and ``queries_of``."""
    retriever = Retriever.of(bundle)
    items = items_of(retriever)
    return items, queries_of(retriever, items)


def items_of(retriever: Retriever) -> Items:
    """Return the items that can be recommended now: with added items, without deleted ones.

    Raises:
        ExportError: There are none, or a vector holds a number that is not finite.
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
        notes=() if retriever.contents.ranker is None else (_NO_SECOND_STAGE,),
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

    Queries of which it knows nothing get popular items, and are left out.
    """
    contents = retriever.contents
    table, vocabulary = contents.queries, contents.items.ids
    every = retriever.queries.described(arguments.queries_of(table.ids.ids.to_list()))
    known = np.flatnonzero(retriever.encoding.is_known(every.features, every.histories))
    features = {name: values[known] for name, values in every.features.items()}
    histories = every.histories.take(known)
    seen = Histories.empty(len(histories))
    if not contents.repeats:
        position_of = np.full(vocabulary.num_rows, -1, np.int32)
        position_of[vocabulary.rows_of(items.ids)] = np.arange(len(items))
        positions = position_of[histories.item_rows]
        is_here = positions >= 0
        seen = Histories.of_pairs(histories.owners[is_here], positions[is_here], len(histories))
    return Queries(
        ids=table.ids.ids.gather(known),
        id_column=table.id_column,
        vectors=retriever.encoding.query_vectors(features, histories).cpu().numpy(),  # asked now
        seen=seen,
        features=features,
        histories=histories,
    )


def _vectors_as_column(vectors: Float32s, taken: Collection[str]) -> pl.Series:
    """Return vectors as a column ``vector`` of arrays, or ``vector_2`` where that name is taken."""
    name = free_name("vector", taken)
    return pl.Series(name, vectors, dtype=pl.Array(pl.Float32, vectors.shape[1]))


def vector_column(frame: pl.DataFrame) -> str:
    """Return the name of the column of vectors in the frame of ``Items`` or ``Queries``."""
    return next(name for name, kind in reversed(frame.schema.items()) if isinstance(kind, pl.Array))


def free_name(name: str, taken: Collection[str]) -> str:
    """Return a name, with a number behind it where it is taken."""
    names = chain([name], (f"{name}_{number}" for number in count(2)))
    return next(free for free in names if free not in taken)
