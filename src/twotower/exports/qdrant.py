"""Qdrant: a collection of items and one of queries, on a server or in a folder of its client."""

import re
import warnings
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from twotower.caller import argument
from twotower.errors import ExportError
from twotower.exports.contents import contents_of, vector_column
from twotower.exports.folder import Exported, check_folder, first_line, json_value, new_folder
from twotower.extras import library
from twotower.serving.retriever import Bundle

_AT_ONCE = 256


def export_qdrant(bundle: Bundle, out: str | Path, *, collection: str = "items") -> Exported:
    """Write a folder that ``qdrant_client.QdrantClient(path=...)`` opens, without a server.

    Args:
        bundle: The bundle to export: a path, or an opened one in its current state; see ``Retriever.of``.
        out: A folder that does not exist yet.
        collection: See ``load_qdrant``.

    Raises:
        ExportError: The folder cannot be made or written, or there is no item.
        MissingExtraError: ``qdrant-client`` is not installed.
    """
    check_folder(out)
    qdrant = library("qdrant_client", wanted_by="twotower export qdrant", extra="qdrant")
    with new_folder(out) as folder, closing(qdrant.QdrantClient(path=str(folder))) as client:
        exported = load_qdrant(bundle, client, collection=collection)
    return replace(exported, place=str(out))


def connect_qdrant(url: str, api_key: str | None = None) -> Any:
    """Return a ``qdrant_client.QdrantClient`` of the server at ``url``.

    Args:
        url: Address of the server, such as ``http://localhost:6333``.
        api_key: Its key, if it needs one.

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
        without_secrets = re.sub(r"//[^/@]*@", "//...@", url)
        raise ExportError(
            f"{argument('url')} must be of a Qdrant server that answers, got {without_secrets!r}: "
            f"{first_line(error)}"
        ) from error
    return client


def load_qdrant(bundle: Bundle, client: Any, *, collection: str = "items") -> Exported:
    """Load the items into a new collection, and the queries into another, ``items_queries``: both or none.

    Point ``p`` is the item on line ``p``, with its id and its columns as payload. The payload of a query is
    its id and, as ``seen``, the ids of the items that it has seen. The distance is the dot product.

    Args:
        bundle: The bundle to export: a path, or an opened one in its current state; see ``Retriever.of``.
        client: A ``qdrant_client.QdrantClient``.
        collection: The collection of items.

    Raises:
        ExportError: A collection already exists, the server fails, or there is no item.
        MissingExtraError: ``qdrant-client`` is not installed.
    """
    models = library("qdrant_client.models", wanted_by="twotower export qdrant", extra="qdrant")
    items, queries = contents_of(bundle)
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
            vector = vector_column(frame)
            for number, piece in enumerate(frame.iter_slices(_AT_ONCE)):
                start = number * _AT_ONCE
                points = models.Batch(
                    ids=list(range(start, start + len(piece))),
                    vectors=piece[vector].to_list(),
                    payloads=[json_value(line) for line in piece.drop(vector).to_dicts()],
                )
                client.upsert(name, points=points, wait=True)
    except BaseException as error:
        for name in made:
            with suppress(Exception):  # the first failure is reported
                client.delete_collection(name)
        if isinstance(error, ExportError) or not isinstance(error, Exception):
            raise
        raise ExportError(f"Qdrant failed: {first_line(error)}; nothing was left.") from error
    return Exported(f"collection {collection}", len(items), len(queries), items.notes)


def load_qdrant_at(
    bundle: Bundle, url: str, *, api_key: str | None = None, collection: str = "items"
) -> Exported:
    """Put items and queries into collections of the server at ``url``; see ``load_qdrant``."""
    return load_qdrant(bundle, connect_qdrant(url, api_key), collection=collection)
