"""Qdrant: a collection of items and one of queries, on a server or in a folder of its client's."""

import re
import warnings
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import polars as pl

from twotower.caller import argument
from twotower.errors import ExportError
from twotower.exports.contents import items_of, queries_of
from twotower.exports.folder import Exported, check_folder, json_value, new_folder
from twotower.extras import library
from twotower.serving.retriever import Bundle, Retriever

_AT_ONCE = 256


def export_qdrant(bundle: Bundle, out: str | Path, *, collection: str = "items") -> Exported:
    """Write a folder that ``qdrant_client.QdrantClient(path=...)`` opens, without a server.

    Args:
        bundle: What is exported, as it is now: a path, or an opened one; see ``Retriever.of``.
        out: A folder that is not there yet.
        collection: As of ``load_qdrant``.

    Raises:
        ExportError: The folder cannot be made or written, or there is no item.
        MissingExtraError: ``qdrant-client`` is not installed.
    """
    check_folder(out)
    qdrant = library("qdrant_client", wanted_by="twotower export qdrant", extra="qdrant")
    with new_folder(out) as folder, closing(qdrant.QdrantClient(path=str(folder))) as client:
        retriever = Retriever.of(bundle)
        exported = load_qdrant(retriever, client, collection=collection)
    return Exported(str(out), exported.num_items, exported.num_queries)


def connect_qdrant(url: str, api_key: str | None = None) -> Any:
    """Return a ``qdrant_client.QdrantClient`` of the server at ``url``.

    Args:
        url: Address of the server, such as ``http://localhost:6333``.
        api_key: Its key, where it asks for one.

    Raises:
        ExportError: The server cannot be reached, or refuses the key.
        MissingExtraError: ``qdrant-client`` is not installed.
    """
    qdrant = library("qdrant_client", wanted_by="twotower export qdrant", extra="qdrant")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a key without TLS, and of other versions
            client = qdrant.QdrantClient(url=url, api_key=api_key, check_compatibility=False)
        client.get_collections()
    except Exception as error:  # of the client, of HTTP below it, or of the address
        raise ExportError(
            f"{argument('url')} must be of a Qdrant server that answers, got {_without_secrets(url)!r}: "
            f"{_first_line(error)}"
        ) from error
    return client


def load_qdrant(bundle: Bundle, client: Any, *, collection: str = "items") -> Exported:
    """Put the items into a new collection, and the queries into another, ``items_queries``: both, or none.

    Point ``p`` is the item on line ``p``; its id and its columns are its payload. A query's payload is its
    id and, as ``seen``, the ids of what it has seen. The distance is the dot product.

    Args:
        bundle: What is exported, as it is now: a path, or an opened one; see ``Retriever.of``.
        client: A ``qdrant_client.QdrantClient``.
        collection: The collection of items.

    Raises:
        ExportError: A collection is there already, the server fails, or there is no item.
        MissingExtraError: ``qdrant-client`` is not installed.
    """
    models = library("qdrant_client.models", wanted_by="twotower export qdrant", extra="qdrant")
    retriever = Retriever.of(bundle)
    items = items_of(retriever)
    queries = queries_of(retriever, items)
    frames = {collection: items.frame(), f"{collection}_queries": queries.frame(items)}
    made: list[str] = []
    try:
        for name in frames:
            if client.collection_exists(name):
                raise ExportError(
                    f"the collection {name} must not be there yet; delete it, or name another with "
                    f"{argument('collection')} and let an alias point to that."
                )
        for name, frame in frames.items():
            params = models.VectorParams(size=items.vectors.shape[1], distance=models.Distance.DOT)
            client.create_collection(name, vectors_config=params)
            made.append(name)  # what another has made meanwhile is not ours to delete
            for ids, vectors, payloads in _batches(frame):
                points = models.Batch(ids=ids, vectors=vectors, payloads=payloads)
                client.upsert(name, points=points, wait=True)
    except BaseException as error:
        for name in made:
            _delete(client, name)
        if isinstance(error, ExportError) or not isinstance(error, Exception):
            raise
        raise ExportError(f"Qdrant failed: {_first_line(error)}; nothing was left.") from error
    return Exported(f"collection {collection}", len(items), len(queries))


def load_qdrant_at(
    bundle: Bundle, url: str, *, api_key: str | None = None, collection: str = "items"
) -> Exported:
    """Put items and queries into collections of the server at ``url``; see ``load_qdrant``."""
    return load_qdrant(bundle, connect_qdrant(url, api_key), collection=collection)


def _batches(frame: pl.DataFrame) -> Iterator[tuple[list[int], Any, list[dict[str, Any]]]]:
    vector = next(n for n, d in reversed(frame.schema.items()) if isinstance(d, pl.Array))
    start = 0
    for piece in frame.iter_slices(_AT_ONCE):
        payloads = [json_value(line) for line in piece.drop(vector).iter_rows(named=True)]
        yield list(range(start, start + len(piece))), piece[vector].to_list(), payloads
        start += len(piece)


def _delete(client: Any, name: str) -> None:
    with suppress(Exception):  # what made all fail is told
        client.delete_collection(name)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _without_secrets(url: str) -> str:
    """Return an address without the name and the password that it may hold."""
    return re.sub(r"//[^/@]*@", "//...@", url)
