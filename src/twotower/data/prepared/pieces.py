"""Sorted events on disk: pieces of a table, each with its own ids, and their merge into one.

The sort is external: each piece is sorted in memory, and the merge goes through the queries in order, a few
million events at a time.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.arrays import Ints, Rows, distinct
from twotower.data.dataset import Interactions, query_blocks, sorted_events
from twotower.data.event_reader import EventBlock
from twotower.data.events_on_disk import save_events
from twotower.data.mapped import ColumnFile
from twotower.vocab import Vocabulary

MERGED_EVENTS = 1 << 22
"""Events that are merged at a time."""
GROUP_ROWS = 1 << 17
"""Rows of the other columns that are read at a time."""
_COLUMNS = ("times", "labels", "weights", "positions", "is_target")
"""Of ``Interactions``, those that a piece may have."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Events with their own ids.

    Args:
        query_ids: Vocabulary of the queries.
        item_ids: Vocabulary of the items.
        events: Sorted; their rows are those of the two vocabularies.
        given: ``parts`` and ``is_session``, ``(E,)`` each, where files give the parts; see ``SplitFiles``.
        frame: ``E`` rows of the other columns of the table; None where there are none.
    """

    query_ids: Vocabulary
    item_ids: Vocabulary
    events: Interactions
    given: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    frame: pl.DataFrame | None = None


def piece_of(
    block: EventBlock, given: dict[str, npt.NDArray[Any]], unread: Sequence[str], *, by_time: bool
) -> Piece:
    """Return the events of a block of rows, sorted.

    Args:
        block: The events.
        given: ``parts`` and ``is_session`` of the events.
        unread: Columns of the table that are not kept beside the events: those of the ids.
        by_time: Whether time gives the order of a query's events, and not the order of the rows.
    """
    query_ids, item_ids = (
        Vocabulary(ids.unique().sort()) for ids in (block.query_ids, block.item_ids)
    )
    events, order = sorted_events(
        query_ids.rows_of(block.query_ids),
        query_ids.num_rows,
        by_time=by_time,
        item_rows=item_ids.rows_of(block.item_ids),
        **{name: getattr(block, name) for name in _COLUMNS},
    )
    frame = block.frame.drop(unread)[order]
    return Piece(
        query_ids,
        item_ids,
        events,
        {name: column[order] for name, column in given.items()},
        frame if frame.width else None,
    )


def write_piece(piece: Piece, folder: Path) -> None:
    """Write a piece to a new folder.

    Raises:
        OSError: It cannot be written.
    """
    folder.mkdir()
    save_events(piece.events, folder / "events")
    for name, column in piece.given.items():
        np.save(folder / f"{name}.npy", column)
    for side, ids in (("query", piece.query_ids), ("item", piece.item_ids)):
        ids.ids.to_frame().write_parquet(folder / f"{side}_ids.parquet")
    if piece.frame is not None:
        _write_frame(piece.frame, folder, 0)


def in_order(folders: Iterable[Path]) -> list[Path]:
    """Return folders of pieces, named by the numbers of file and block, in the order of their rows."""
    return sorted(folders, key=lambda folder: tuple(map(int, folder.name.split("-"))))


def read_ids(folder: Path, side: str) -> Vocabulary:
    """Return the vocabulary of one side of a piece."""
    return Vocabulary(pl.read_parquet(folder / f"{side}_ids.parquet").to_series())


def all_ids(folders: Sequence[Path], side: str, more: Sequence[pl.Series] = ()) -> pl.Series:
    """Return the ids of all pieces and ``more`` of them, each once and sorted."""
    pieces = (pl.read_parquet(folder / f"{side}_ids.parquet") for folder in folders)
    merged: list[pl.DataFrame] = []
    for ids in chain(pieces, (series.rename("id").to_frame() for series in more)):
        merged.append(ids.sort("id").unique(maintain_order=True))
        # Only ids of similar number are merged, so that many small pieces do not each pass over all ids.
        while len(merged) > 1 and len(merged[-2]) <= len(merged[-1]):
            merged[-2:] = [_union(*merged[-2:])]
    return reduce(_union, reversed(merged)).to_series()


def _union(one: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
    """Return the ids of two sorted columns, each once and sorted."""
    found = one.merge_sorted(other, key="id")
    return found.filter(pl.col("id").ne_missing(pl.col("id").shift(1)))


def merge_pieces(
    folders: Sequence[Path],
    query_ids: Vocabulary,
    item_ids: Vocabulary,
    out: Path,
    *,
    by_time: bool,
) -> None:
    """Write the events of all pieces as one piece.

    Args:
        folders: Of the pieces, in the order of their rows: it decides between events of one moment.
        query_ids: The queries of all pieces, and perhaps more.
        item_ids: The items of all pieces, and perhaps more.
        out: A new folder.
        by_time: As ``piece_of`` takes it.

    Raises:
        OSError: It cannot be written.
    """
    out.mkdir()
    query_ids.ids.to_frame().write_parquet(out / "query_ids.parquet")
    item_ids.ids.to_frame().write_parquet(out / "item_ids.parquet")
    sources = [_Source.of(folder, query_ids, item_ids) for folder in folders]
    lengths = np.zeros(query_ids.num_rows, np.int64)
    for source in sources:
        lengths[source.query_map] += np.diff(source.column("offsets"))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    (out / "events").mkdir()
    np.save(out / "events" / "offsets.npy", offsets)
    num = int(offsets[-1])
    first = sources[0]
    names = [name for name in _COLUMNS if first.path_of(name).exists()]
    columns = [("item_rows", out / "events"), *((name, out / "events") for name in names)]
    columns += [(name, out) for name in open_given(first.folder)]
    with ExitStack() as stack:

        def opened(name: str, folder: Path, dtype: npt.DTypeLike) -> ColumnFile:
            return stack.enter_context(ColumnFile(folder / f"{name}.npy", dtype, num))

        of_queries = opened("query_rows", out / "events", np.int32)
        files = {name: opened(name, at, first.column(name).dtype) for name, at in columns}
        for place, (low, high) in enumerate(query_blocks(offsets, MERGED_EVENTS)):
            found = [(source, *source.slice(low, high)) for source in sources]
            query_rows = np.concatenate([rows for _, rows, _ in found])

            def gathered(name: str) -> npt.NDArray[Any]:
                return np.concatenate([each.values(name, places) for each, _, places in found])  # noqa: B023

            order = np.lexsort((gathered("times"), query_rows) if by_time else (query_rows,))
            of_queries.append(query_rows[order])
            for name, file in files.items():
                file.append(gathered(name)[order])
            if first.frame is not None:
                rows = [each.rows(places) for each, _, places in found]
                _write_frame(pl.concat(rows)[order], out, place)


@dataclass(frozen=True, eq=False)
class _Source:
    """A piece that is merged: what its rows become. Its columns are read from its folder.

    Each read opens a file and closes it. A mapped file counts as an open one, of which a process may often
    have 1,024, and a table of many files has many pieces.
    """

    folder: Path
    query_map: Rows
    item_map: Rows
    by_query: Ints | None
    frame: pl.LazyFrame | None

    @classmethod
    def of(cls, folder: Path, query_ids: Vocabulary, item_ids: Vocabulary) -> "_Source":
        query_map = query_ids.rows_of_all(read_ids(folder, "query").ids)
        item_map = item_ids.rows_of_all(read_ids(folder, "item").ids)
        by_query: Ints | None = None
        if not (np.diff(query_map) > 0).all():  # a later partition, whose new queries come last
            by_query = np.argsort(query_map)
        return cls(folder, query_map, item_map, by_query, scan_columns(folder))

    def path_of(self, name: str) -> Path:
        """Return the file of a column of the events, which need not exist."""
        return self.folder / "events" / f"{name}.npy"

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a column by its name, mapped."""
        path = self.path_of(name)
        found: npt.NDArray[Any] = np.load(
            path if path.exists() else self.folder / path.name, mmap_mode="r"
        )
        return found

    def values(self, name: str, places: Ints | slice) -> npt.NDArray[Any]:
        """Return a column of some events; items have their new rows."""
        values = np.array(self.column(name)[places])  # a copy, which holds no file open
        return self.item_map[values] if name == "item_rows" else values

    def rows(self, places: Ints | slice) -> pl.DataFrame:
        """Return the other columns of events; scattered ones are read by groups of rows."""
        assert self.frame is not None
        if isinstance(places, slice):
            return self.frame.slice(places.start, places.stop - places.start).collect()
        order = np.argsort(places)
        ascending = places[order]
        found = [self.frame.head(0).collect()]
        for group in distinct(ascending // GROUP_ROWS).tolist():
            start = group * GROUP_ROWS
            low, high = np.searchsorted(ascending, [start, start + GROUP_ROWS])
            rows = self.frame.slice(start, GROUP_ROWS).collect()
            found.append(rows[ascending[low:high] - start])
        return pl.concat(found)[np.argsort(order)]

    def slice(self, low: int, high: int) -> tuple[Rows, Ints | slice]:
        """Return the new query rows from ``low`` to ``high`` of events, and where these events stand."""
        offsets = self.column("offsets")
        if self.by_query is None:
            first, last = np.searchsorted(self.query_map, [low, high])
            lengths = np.diff(offsets[first : last + 1])
            places = slice(int(offsets[first]), int(offsets[last]))
            return np.repeat(self.query_map[first:last], lengths), places
        keys = self.query_map[self.by_query]
        first, last = np.searchsorted(keys, [low, high])
        own = self.by_query[first:last]
        starts = offsets[own]
        lengths = offsets[own + 1] - starts
        ends = np.cumsum(lengths)
        scattered = np.arange(int(lengths.sum())) + np.repeat(starts - (ends - lengths), lengths)
        return np.repeat(keys[first:last], lengths), np.asarray(scattered)


def open_given(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the columns that say which part a file gave each event, mapped; none where none did."""
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}


def scan_columns(folder: Path) -> pl.LazyFrame | None:
    """Return the other columns of a piece, in the order of its events; None where there are none."""
    paths = sorted(folder.glob("columns-*.parquet"))
    return pl.scan_parquet(paths) if paths else None


def _write_frame(frame: pl.DataFrame, folder: Path, place: int) -> None:
    path = folder / f"columns-{place:05}.parquet"
    frame.write_parquet(path, compression="lz4", row_group_size=GROUP_ROWS)
