"""FAISS: an index of all items, and which item each of its numbers is."""

from pathlib import Path

import numpy as np

from twotower.exports.columnar import write_parquet
from twotower.exports.contents import items_of, queries_of
from twotower.exports.folder import Exported, check_folder, new_folder
from twotower.extras import library
from twotower.serving.retriever import Bundle, Retriever


def export_faiss(bundle: Bundle, out: str | Path) -> Exported:
    """Write a FAISS index, ``index.faiss``, with ``items.parquet`` and ``queries.parquet`` beside it.

    The index is ``IndexFlatIP``, which is exact, over the items that may be an answer; number ``p`` in it
    is line ``p`` of ``items.parquet``.

    Args:
        bundle: What is exported, as it is now: a path, or an opened one; see ``Retriever.of``.
        out: A folder that is not there yet.

    Raises:
        ExportError: The folder cannot be made or written, or there is no item.
        MissingExtraError: ``faiss`` is not installed.
    """
    check_folder(out)
    faiss = library("faiss", wanted_by="twotower export faiss", extra="ann")
    retriever = Retriever.of(bundle)
    items = items_of(retriever)
    queries = queries_of(retriever, items)
    index = faiss.IndexFlatIP(items.vectors.shape[1])
    index.add(np.ascontiguousarray(items.vectors))
    with new_folder(out) as folder:
        # Its own writer says little of a full disk.
        (folder / "index.faiss").write_bytes(faiss.serialize_index(index).tobytes())
        write_parquet(items.frame(), folder / "items.parquet")
        write_parquet(queries.frame(items), folder / "queries.parquet")
    return Exported(str(out), len(items), len(queries))
