"""Qdrant's own client, in its local form, holds what the retriever holds; a server that fails is told."""

import sys
import threading
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, VectorParams

from sandbox import tree_of
from twotower import Retriever, exports
from twotower.errors import ExportError, MissingExtraError


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    opened = QdrantClient(":memory:")
    yield opened
    opened.close()


def test_every_item_is_a_point(changed_retriever: Retriever, client: QdrantClient) -> None:
    exported = exports.load_qdrant(changed_retriever, client, collection="shop")
    ids = changed_retriever.item_ids
    assert (exported.num_items, exported.num_queries) == (len(ids), 1_000)
    assert client.get_collection("shop").config.params.vectors == VectorParams(
        size=16, distance=Distance.DOT
    )
    points, _ = client.scroll("shop", limit=1_000, with_vectors=True)
    assert [point.id for point in points] == list(range(len(ids)))
    payloads = [point.payload or {} for point in points]
    assert [payload["item_id"] for payload in payloads] == ids
    np.testing.assert_allclose(
        np.array([point.vector for point in points]), changed_retriever.encode_items(), rtol=1e-6
    )
    told = changed_retriever.items(ids)
    assert [payload["odd"] for payload in payloads] == told["odd"].to_list()
    assert [payload["names"] for payload in payloads] == told["names"].to_list()
    assert payloads[0]["shares"] == [0.1, None]  # JSON has no NaN
    days = {date(2020, 1, 1): "2020-01-01", None: None}
    assert [p["since"] for p in payloads] == [days[since] for since in told["since"]]
    assert "vector" not in payloads[0]
    queries, _ = client.scroll("shop_queries", limit=50, with_vectors=True)
    for query in queries:
        payload = query.payload or {}
        assert {*payload["seen"]} == {*changed_retriever.history(payload["query_id"])} & {*ids}
        vector = changed_retriever.encode_queries([payload["query_id"]])[0]
        np.testing.assert_allclose(np.array(query.vector), vector, atol=1e-5)


@pytest.mark.parametrize("there", ["items", "items_queries"])
def test_a_collection_that_is_there_stays(
    there: str, tiny_retriever: Retriever, client: QdrantClient
) -> None:
    client.create_collection(there, VectorParams(size=3, distance=Distance.COSINE))
    with pytest.raises(
        ExportError, match=f"the collection {there} must not be there yet; delete it"
    ):
        exports.load_qdrant(tiny_retriever, client)
    assert [c.name for c in client.get_collections().collections] == [there]
    assert client.count(there).count == 0


def test_what_fails_midway_leaves_nothing(
    tiny_retriever: Retriever, client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = client.create_collection

    def refuse_queries(name: str, **more: object) -> object:
        if name == "items_queries":
            raise RuntimeError("no more room\nand a long story")
        return create(name, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(client, "create_collection", refuse_queries)
    with pytest.raises(ExportError, match="Qdrant failed: no more room; nothing was left"):
        exports.load_qdrant(tiny_retriever, client)
    assert client.get_collections().collections == []


def test_a_folder_that_is_there_stays(tiny_retriever: Retriever, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="out must be new, got"):
        exports.export_qdrant(tiny_retriever, tmp_path / "out")
    assert tree_of(tmp_path) == {"out": None}


@pytest.fixture
def failing_server() -> Iterator[tuple[str, list[str | None]]]:
    """A server that refuses everything, and the keys that it was given."""
    keys: list[str | None] = []

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers.get("api-key"))
            self.send_response(503)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Refuses)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", keys
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_refuses_is_told_and_was_given_the_key(
    failing_server: tuple[str, list[str | None]],
) -> None:
    url, keys = failing_server
    with pytest.raises(ExportError, match=r"url must be of a Qdrant server that answers, .*503"):
        exports.connect_qdrant(url, api_key="hush")
    assert keys == ["hush"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense://"])
def test_a_server_that_cannot_be_reached(url: str) -> None:
    with pytest.raises(ExportError, match="url must be of a Qdrant server") as caught:
        exports.connect_qdrant(url)
    assert "\n" not in str(caught.value)


def test_a_missing_extra_is_named(
    tiny_retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[qdrant\]'"):
        exports.export_qdrant(tiny_retriever, tmp_path / "out")
