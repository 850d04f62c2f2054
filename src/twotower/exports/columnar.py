"""Parquet and npy: vectors and ids as plain files, for whatever reads them."""

from pathlib import Path

import numpy as np
import polars as pl

from twotower.exports.contents import Queries, items_of, queries_of
from twotower.exports.folder import Exported, new_folder, write_json
from twotower.serving.retriever import Bundle, Retriever


def export_parquet(bundle: Bundle, out: str | Path) -> Exported:
    """Write ``items.parquet``, every column and a ``vector``, and ``queries.parquet``, with what was seen.

    Args:
        bundle: What is exported, as it is now: a path, or an opened one; see ``Retriever.of``.
        out: A folder that is not there yet.

    Raises:
        ExportError: The folder cannot be made or written, or there is no item.
    """
    retriever = Retriever.of(bundle)
    items = items_of(retriever)
    queries = queries_of(retriever, items)
    with new_folder(out) as folder:
        write_parquet(items.frame(), folder / "items.parquet")
        write_parquet(queries.frame(items), folder / "queries.parquet")
    return Exported(str(out), len(items), len(queries))


def export_npy(bundle: Bundle, out: str | Path) -> Exported:
    """Write ``items.npy`` and ``queries.npy``, float32 vectors, with the ids of their lines as JSON.

    ``seen_offsets.npy`` and ``seen_items.npy`` hold the lines of ``items.npy`` that each query has seen:
    those of query ``p`` are ``seen_items[seen_offsets[p]:seen_offsets[p + 1]]``.

    Args:
        bundle: What is exported, as it is now: a path, or an opened one; see ``Retriever.of``.
        out: A folder that is not there yet.

    Raises:
        ExportError: The folder cannot be made or written, or there is no item.
    """
    retriever = Retriever.of(bundle)
    items = items_of(retriever)
    queries = queries_of(retriever, items)
    with new_folder(out) as folder:
        np.save(folder / "items.npy", items.vectors)
        np.save(folder / "queries.npy", queries.vectors)
        write_json(folder / "item_ids.json", items.ids.to_list())
        write_queries(folder, queries)
    return Exported(str(out), len(items), len(queries))


def write_queries(folder: Path, queries: Queries) -> None:
    """Write the ids of queries, and the positions of the items that each has seen."""
    write_json(folder / "query_ids.json", queries.ids.to_list())
    np.save(folder / "seen_offsets.npy", queries.seen.offsets)
    np.save(folder / "seen_items.npy", queries.seen.item_rows)


def write_parquet(frame: pl.DataFrame, file: Path) -> None:
    """Write a table as Parquet."""
    with file.open("wb") as opened:
        frame.write_parquet(opened)
