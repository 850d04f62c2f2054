"""The vectors of a table of any size, by shards; ``job_folder`` writes them."""

from pathlib import Path

import numpy as np
import polars as pl

from twotower.arrays import Float32s
from twotower.caller import argument
from twotower.errors import ArgumentError, DataError, ExportError
from twotower.exports.contents import free_name
from twotower.exports.folder import Exported
from twotower.exports.job_folder import write_files
from twotower.exports.table_blocks import Blocks, Table, blocks_of
from twotower.features.schema import Side
from twotower.paths import check_folder_of, check_new_name
from twotower.serving.arguments import Moment, seconds_of
from twotower.serving.live_items import LiveIds
from twotower.serving.manifest import MANIFEST
from twotower.serving.retriever import Bundle, Retriever
from twotower.serving.storage import sha256
from twotower.shards import Shard
from twotower.vocab import as_keys

_DTYPES = {"float32": (np.float32, pl.Float32()), "float16": (np.float16, pl.Float16())}


def encode_table(
    bundle: Bundle,
    out: str | Path,
    *,
    items: Table | None = None,
    queries: Table | None = None,
    shard: str | None = None,
    dtype: str = "float32",
    at: Moment | None = None,
) -> Exported:
    """Write the vectors of a table's items or queries to Parquet files in a folder.

    The files have the table's id column and ``vector``, an array of ``dim`` numbers. Read in the order of
    their names, they have the rows of the table in its order. Vectors are those of
    ``Retriever.encode_items(features=...)`` and ``Retriever.encode_queries``: a query that the bundle knows
    has its history there, and its features where the table lacks their columns.

    A file appears whole or not at all. The same call again goes on where it was interrupted. Shards can run
    at the same time, on machines that share the folder.

    Args:
        bundle: The bundle's folder, or an opened one; see ``Retriever.of``.
        out: A new folder, or one with files of the same job.
        items: A Parquet file, a folder of such, a pattern such as ``items/*.parquet``, or a frame. Files
            are read by blocks, so they can be larger than memory. Columns that the bundle does not know
            are not read.
        queries: The same for queries. Give one of the two.
        shard: ``"3/16"`` for the third of sixteen equal runs of rows; None for all rows.
        dtype: ``"float32"`` or ``"float16"``.
        at: When the queries ask; see ``Recommender.recommend``. A model that reads it needs it, so that all
            shards ask at the same time.

    Raises:
        DataError: The table cannot be read, lacks its id column or all columns that the bundle knows, or an
            id is missing.
        ExportError: ``out`` cannot be used or holds files of another job, the bundle is not on disk as it
            is, or a vector holds a number that is not finite in ``dtype``.
        ValueError: Both tables are given or none, or another argument is out of range.
    """
    side, table = _side_of(items, queries)
    what = "items" if side == "item" else "queries"
    share = Shard.of(shard)
    if dtype not in _DTYPES:
        raise ArgumentError(f"{argument('dtype')} must be float32 or float16, got {dtype!r}.")
    if at is not None and side == "item":
        raise ArgumentError(
            f"{argument('at')} must go with queries, got it for items; leave it out."
        )
    moment = None if at is None else seconds_of(at, argument("at"))
    place = _checked_place(out, table)
    blocks = blocks_of(table, what)
    retriever = Retriever.of(bundle)
    if side == "query" and moment is None and retriever.encoding.model.reads_question_time:
        raise ArgumentError(
            f"{argument('at')} must be given, because the model reads the time of the question, got none; "
            "pass the same for all shards."
        )
    encoder = _Encoder(retriever, side, blocks, what, moment, dtype)
    job = {
        "bundle": _digest_of(bundle, retriever),
        "side": side,
        "table": blocks.digest(),
        "dtype": dtype,
        "at": moment,
    }
    num_kept = write_files(place, job, share, blocks.num_rows, encoder.frame)
    notes = encoder.notes()
    if num_kept:
        notes.append(f"Files that were there already: {num_kept:,}.")
    num = len(share.rows(blocks.num_rows))
    counts = (num, 0) if side == "item" else (0, num)
    return Exported(str(out), *counts, tuple(notes))


def _side_of(items: Table | None, queries: Table | None) -> tuple[Side, Table]:
    if items is not None and queries is None:
        return "item", items
    if queries is not None and items is None:
        return "query", queries
    given = "neither" if items is None else "both"
    raise ArgumentError(
        f"encode must be given {argument('items')} or {argument('queries')}, got {given}."
    )


def _checked_place(out: str | Path, table: Table) -> Path:
    """Return the folder to write into; it need not exist yet."""
    check_new_name(out)
    place = Path(out)
    if place.is_dir() or not (place.exists() or place.is_symlink()):
        check_folder_of(place / "new" if place.is_dir() else place, ExportError)
    else:
        raise ExportError(f"{argument('out')} must be a folder, got the file {str(out)!r}.")
    if isinstance(table, str | Path) and Path(table).is_dir():
        folder = Path(table).resolve()
        if place.resolve() == folder or folder in place.resolve().parents:
            raise ExportError(
                f"{argument('out')} must be outside the table's folder, got {str(out)!r}; choose another."
            )
    return place


def _digest_of(bundle: Bundle, retriever: Retriever) -> str:
    """Return the digest of a bundle's files.

    Raises:
        ExportError: It is not on disk, or its items have changed since it was opened.
    """
    path = Path(bundle) if isinstance(bundle, str | Path) else retriever.path
    in_memory = not (isinstance(bundle, str | Path) or path.name)
    if in_memory or isinstance(retriever.contents.items.ids, LiveIds):
        raise ExportError(
            "the bundle must be on disk as it is, so that every shard reads the same, got one in memory or "
            "with changed items; save it, and pass its folder."
        )
    return sha256(path / MANIFEST)


class _Encoder:
    """Encodes blocks of a table.

    Args:
        retriever: The bundle.
        side: Of the table.
        blocks: The table.
        what: Names it in messages.
        moment: When the queries ask, in seconds since 1970.
        dtype: Of the vectors.
    """

    def __init__(
        self,
        retriever: Retriever,
        side: Side,
        blocks: Blocks,
        what: str,
        moment: float | None,
        dtype: str,
    ) -> None:
        self._retriever, self._side, self._blocks = retriever, side, blocks
        self._what, self._moment, self._dtype = what, moment, dtype
        contents = retriever.contents
        own = contents.items if side == "item" else contents.queries
        self._transforms, self._id_column = own.transforms, own.id_column
        if self._id_column not in blocks.columns:
            raise DataError(
                f"{what} must have the id column {self._id_column!r}, got {', '.join(blocks.columns)}."
            )
        self._features = [name for name in self._transforms.columns if name in blocks.columns]
        if side == "query":
            self._features = [name for name in self._features if name != self._id_column]
        elif not self._features:
            raise DataError(
                f"{what} must have a column that the bundle knows, got none of "
                f"{', '.join(map(repr, self._transforms.columns))}."
            )
        self._num_empty = 0

    def frame(self, rows: range) -> pl.DataFrame:
        """Return the ids and the vectors of a run of rows.

        Raises:
            DataError: An id is missing.
            ExportError: A vector holds a number that is not finite.
        """
        columns = list(dict.fromkeys([self._id_column, *self._features]))
        block = self._blocks.read(rows, columns)
        missing = np.flatnonzero(as_keys(block[self._id_column]).is_null().to_numpy())
        if len(missing):
            raise DataError(
                f"{self._what} must have an id in every row, got none in row "
                f"{rows[int(missing[0])] + 1:,} of the table."
            )
        vectors = self._vectors(block)
        numbers, kind = _DTYPES[self._dtype]
        with np.errstate(over="ignore"):  # the next lines refuse it
            cast = vectors.astype(numbers)
        broken = np.flatnonzero(~np.isfinite(cast).all(axis=1))
        if len(broken):
            raise ExportError(
                f"vectors must be finite in {self._dtype}, got others for {len(broken):,} rows, such as "
                f"{block[self._id_column][int(broken[0])]!r}; choose float32, or train again."
            )
        name = free_name("vector", [self._id_column])
        column = pl.Series(name, cast, dtype=pl.Array(kind, cast.shape[1]))
        return block.select(self._id_column).with_columns(column)

    def notes(self) -> list[str]:
        """Return sentences about columns that the table lacks, and items of which nothing is known."""
        lacks = [
            name
            for name in dict.fromkeys(t.feature.source for t in self._transforms.transforms)
            if name != self._id_column and name not in self._features
        ]
        notes = []
        if lacks:
            meant = "missing" if self._side == "item" else "as in the bundle, else missing"
            notes.append(f"The table lacks {', '.join(map(repr, lacks))}: values are {meant}.")
        if self._num_empty:
            notes.append(
                f"{self._num_empty:,} of the encoded items have no feature that the bundle knows: each has "
                "the vector of an unknown item."
            )
        return notes

    def _vectors(self, block: pl.DataFrame) -> Float32s:
        features = block.select(self._features)
        if self._side == "query":
            ids = block[self._id_column].to_list()
            given = features if self._features else None
            return self._retriever.encode_queries(ids, features=given, at=self._moment)
        arrays = self._transforms.apply(features)
        self._num_empty += int((~self._transforms.say_something(arrays)).sum())
        return np.asarray(self._retriever.encoding.new_item_vectors(arrays).cpu(), np.float32)
