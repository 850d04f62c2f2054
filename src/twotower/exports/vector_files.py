"""Vectors and ids as plain files: Parquet, npy, or a FAISS index."""

from pathlib import Path

import numpy as np

from twotower.exports.contents import Items, Queries, contents_of
from twotower.exports.folder import Exported, check_folder, new_folder, write_json
from twotower.extras import library
from twotower.serving.retriever import Bundle


def export_parquet(bundle: Bundle, out: str | Path) -> Exported:
    """Write ``items.parquet``, every column and a ``vector``, and ``queries.parquet``, with what was seen.

    Args:
        bundle: The bundle to export: a path, or an opened one in its current state; see ``Retriever.of``.
        out: A folder that does not exist yet.

    Raises:
        ExportError: The folder cannot be made or written, or there is no item.
    """
    items, queries = contents_of(bundle)
    with new_folder(out) as folder:
        _write_tables(folder, items, queries)
    return Exported(str(out), len(items), len(queries), items.notes)


def export_npy(bundle: Bundle, out: str | Path) -> Exported:
    """Write ``items.npy`` and ``queries.npy``, float32 vectors, with the ids of their lines as JSON.

    ``seen_offsets.npy`` and ``seen_items.npy`` hold the lines of ``items.npy`` that each query has seen:
    those of query ``p`` are ``seen_items[seen_offsets[p]:seen_offsets[p + 1]]``.

    Args:
        bundle: The bundle to export: a path, or an opened one in its current state; see ``Retriever.of``.
        out: A folder that does not exist yet.

    Raises:
        ExportError: The folder cannot be made or written, or there is no item.
    """
    items, queries = contents_of(bundle)
    with new_folder(out) as folder:
        np.save(folder / "items.npy", items.vectors)
        np.save(folder / "queries.npy", queries.vectors)
        write_ids(folder, items, queries)
    return Exported(str(out), len(items), len(queries), items.notes)


def export_faiss(bundle: Bundle, out: str | Path) -> Exported:
    """Write a FAISS index, ``index.faiss``, with ``items.parquet`` and ``queries.parquet`` beside it.

    The index is ``IndexFlatIP``, which is exact, over the items that may be an answer. Number ``p`` in the
    index is line ``p`` of ``items.parquet``.

    Args:
        bundle: The bundle to export: a path, or an opened one in its current state; see ``Retriever.of``.
        out: A folder that does not exist yet.

    Raises:
        ExportError: The folder cannot be made or written, or there is no item.
        MissingExtraError: ``faiss`` is not installed.
    """
    check_folder(out)
    faiss = library("faiss", wanted_by="twotower export faiss", extra="ann")
    items, queries = contents_of(bundle)
    index = faiss.IndexFlatIP(items.vectors.shape[1])
    index.add(np.ascontiguousarray(items.vectors))
    with new_folder(out) as folder:
        # FAISS's own writer reports a full disk poorly.
        (folder / "index.faiss").write_bytes(faiss.serialize_index(index).tobytes())
        _write_tables(folder, items, queries)
    return Exported(str(out), len(items), len(queries), items.notes)


def write_ids(folder: Path, items: Items, queries: Queries) -> None:
    """Write the ids of items and queries, and the positions of the items that each query has seen."""
    write_json(folder / "item_ids.json", items.ids.to_list())
    write_json(folder / "query_ids.json", queries.ids.to_list())
    np.save(folder / "seen_offsets.npy", queries.seen.offsets)
    np.save(folder / "seen_items.npy", queries.seen.item_rows)


def _write_tables(folder: Path, items: Items, queries: Queries) -> None:
    for name, frame in (("items", items.frame()), ("queries", queries.frame(items))):
        with (folder / f"{name}.parquet").open("wb") as opened:
            frame.write_parquet(opened)
