"""A real server on loopback, asked over HTTP."""

import asyncio
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice, product
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest

from servers import PATIENCE, running, said
from twotower.chinese import in_chinese
from twotower.errors import ArgumentError, FilterError
from twotower.serving.answers import Recommendations
from twotower.serving.bundle import open_bundle, write_bundle
from twotower.serving.client import Client
from twotower.serving.retriever import Retriever
from twotower.serving.server.batching import Batcher
from twotower.serving.server.catalogue import Change, Changed, Written
from twotower.serving.server.engine import Answered, Engine, Model, Question
from twotower.serving.server.journal import Journal, JournalReader
from twotower.serving.server.options import ServerSettings
from twotower.serving.server.pointer import Pointer, digest_of
from twotower.serving.server.service import Service
from twotower.training.pipeline import train
from twotower.training.trained import Trained


@pytest.fixture(scope="module")
def url(tiny_bundle: Path) -> Iterator[str]:
    with running(tiny_bundle, max_k=50, max_body=4096, batch=8, token="secret") as address:
        yield address


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url) as client:
        yield client


def test_answers_are_those_of_the_retriever(url: str, tiny_retriever: Retriever) -> None:
    items = tiny_retriever.item_ids
    segment = tiny_retriever.contents.queries.frame["segment"][0]
    asked: list[dict[str, Any]] = [
        {"query_id": 5},
        {"query_id": "5", "k": 3},
        {"query_id": 5, "history": items[:4]},
        {"history": [items[3], "no such item"], "exclude_seen": False},
        {"features": {"segment": segment}, "k": 7},
        {"query_id": 5, "among": items[:20]},
        {"query_id": 5, "without": items[:100]},
        {"query_id": 5, "filter": "item_id <= 20 or title = 'Synthetic item 150'"},
        {"query_id": "nobody", "k": 4},
    ]
    with Client(url) as client:
        for question in asked:
            mine, theirs = tiny_retriever.recommend(**question), client.recommend(**question)
            assert said(theirs) == said(mine), question
        several = client.recommend([5, 6, 7], k=4)
        expected = tiny_retriever.recommend([5, 6, 7], k=4)
        assert [said(a) for a in several] == [said(a) for a in expected]
        assert several.to_polars()["score"].to_list() == expected.to_polars()["score"].to_list()
        assert said(client.similar_items(items[7], k=5)) == said(
            tiny_retriever.similar_items(items[7], k=5)
        )
        assert said(client.similar_items(items[7], k=5, filter="item_id > 90")) == said(
            tiny_retriever.similar_items(items[7], k=5, filter="item_id > 90")
        )
        mine_explained = tiny_retriever.explain(5, items[0])
        assert client.explain(5, items[0]).score == mine_explained.score
        assert client.model["items"] == 200
        assert len(client.recommend([]).answers) == 0
        many = list(range(1, 31))  # more than the server takes at once
        assert [a.item_ids for a in client.recommend(many, k=2)] == [
            a.item_ids for a in tiny_retriever.recommend(many, k=2)
        ]
        odd: list[dict[str, Any]] = [
            {"query_id": np.int64(5), "k": np.int64(3)},
            {"history": np.array(items[:3])},
            {"history": [{"item_id": np.int64(items[0]), "time": np.float64(1e9)}]},
            {"features": {"signal": float("nan")}, "query_id": 5},
            {"features": pl.DataFrame({"segment": [segment] * 2})},
        ]
        for question in odd:
            mine, theirs = tiny_retriever.recommend(**question), client.recommend(**question)
            if isinstance(theirs, Recommendations):
                assert [a.item_ids for a in theirs] == [a.item_ids for a in mine], question
            else:
                assert theirs.item_ids == mine.item_ids, question


def test_features_that_the_model_does_not_know_are_told(
    url: str, http: httpx.Client, tiny_retriever: Retriever
) -> None:
    told = http.post("/recommend", json={"query_id": 5, "features": {"segmnt": 1}}).json()
    assert told["ignored"] == ["segmnt"]
    expected = tiny_retriever.recommend(5, features={}).item_ids
    assert [item["item_id"] for item in told["items"]] == expected
    with Client(url) as client, pytest.warns(UserWarning, match="got 'segmnt'. Nothing reads"):
        client.recommend(5, features={"segmnt": 1})


def test_what_exists_nowhere_is_told(url: str, http: httpx.Client) -> None:
    asked: dict[str, Any] = {"history": ["x"], "filter": 'category = "Category-1"'}
    notes = http.post("/recommend", json=asked).json()["notes"]
    assert [note.split(" in ")[0] for note in notes] == [
        'No item has "Category-1"', "The one id of the history is not",
    ]  # fmt: skip
    near = http.get(
        "/similar", params={"item_id": "5", "filter": "item_id = 1 or item_id = 0"}
    ).json()
    assert near["notes"] == ["No item has 0 in 'item_id'."]
    assert http.post("/recommend", json={"query_id": 5}).json()["notes"] == []
    with Client(url) as client:
        assert list(client.recommend(**asked).notes) == notes
        assert list(client.similar_items(5, filter="item_id = 0").notes) == near["notes"]


def test_questions_at_once_get_their_own_answers(url: str, tiny_retriever: Retriever) -> None:
    ids = tiny_retriever.contents.queries.ids.ids.to_list()[:60]
    expected = {i: tiny_retriever.recommend(i, k=1 + i % 9).item_ids for i in ids}
    wrong: list[object] = []

    def ask(some: list[int]) -> None:
        with Client(url) as client:
            for i in some:
                try:
                    if client.recommend(i, k=1 + i % 9).item_ids != expected[i]:
                        wrong.append(i)
                except Exception as error:
                    wrong.append(error)

    threads = [threading.Thread(target=ask, args=(ids[start::6],)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


BODIES: dict[str, tuple[bytes, int, str]] = {
    "no JSON": (b"{", 422, "the body must be JSON"),
    "NaN": (b'{"query_id": 5, "k": NaN}', 422, "the body must be JSON"),
    "deep": (b'{"history": ' + b"[" * 1500 + b"]" * 1500 + b"}", 422, "the body must be JSON"),
    "less deep": (b"[" * 255 + b"]" * 255, 422, "the body must be nested at most 32 levels deep"),
    "deep in what is taken": (
        b'{"history": [{"item_id": ' + b"[" * 900 + b"]" * 900 + b"}]}",
        422,
        "the body must be nested at most 32 levels deep, got more.",
    ),
    "a list": (b"[1]", 422, "the body: "),
    "nothing": (b"", 422, "the body: "),
    "unknown key": (
        b'{"query_id": 5, "kk": 1}',
        422,
        "kk: nothing of this name is taken here, got 1; /docs lists what is.",
    ),
    "unknown key that is a place, too": (b'{"query": 5}', 422, "query: nothing of this name"),
    "k of 0": (b'{"query_id": 5, "k": 0}', 422, "k: Input should be greater than or equal to 1"),
    "k too large": (b'{"query_id": 5, "k": 51}', 422, "k must be at most 50, got 51."),
    "k a string": (b'{"query_id": 5, "k": "7"}', 422, "k: Input should be a valid integer"),
    "an id of the wrong kind": (b'{"query_id": {"a": 1}}', 422, "query_id"),
    "nothing asked": (b"{}", 422, "a query needs a query_id, features or a history"),
    "unknown feature": (
        b'{"features": {"segmnt": 1}, "strict": true}',
        422,
        "did you mean 'segment'?",
    ),
    "a filter of an unknown column": (
        b'{"query_id": 5, "filter": "titel = 3"}',
        422,
        "did you mean 'title'?",
    ),
    "an event without its item": (b'{"history": [{"time": 5}]}', 422, "must name its item"),
    "an event of a list": (b'{"history": [{"item_id": [5]}]}', 422, "got [5]."),
    "a time of text": (
        b'{"history": [{"item_id": 5, "time": "1"}]}',
        422,
        "the time of an event must be a number of seconds since 1970",
    ),
    "a time far away": (b'{"history": [{"item_id": 5, "time": 2e12}]}', 422, "at most 1e+12"),
    "only nulls": (b'{"query_id": null, "history": null}', 422, "a query needs a query_id"),
    "an id of 65 bits": (b'{"query_id": 18446744073709551616}', 422, "query_id"),
    "an id of a half": (b'{"query_id": 7.5}', 422, "query_id"),
    "words of text": (b'{"query_id": 5, "words": "0.5"}', 422, "words"),
    "an empty filter": (b'{"query_id": 5, "filter": ""}', 422, "filter: String should have"),
    "words without text": (b'{"query_id": 5, "words": 0.5}', 422, "words must be 0"),
    "too long": (b'{"query_id": "' + b"x" * 5000 + b'"}', 413, "the body must be at most 4096"),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_bad_body_gets_a_status_and_a_sentence(http: httpx.Client, case: str) -> None:
    body, status, message = BODIES[case]
    answer = http.post("/recommend", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert set(told) - {"kind"} == {"error", "request_id"}
    assert (told.get("kind") == "filter") == (case == "a filter of an unknown column")
    assert message in told["error"]
    assert in_chinese(told["error"].partition("\n")[0]) is not None, told["error"]
    assert "Traceback" not in answer.text
    assert http.get("/health").json() == {"status": "ok"}


def test_a_body_in_pieces_without_a_length_is_measured(http: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    answer = http.post("/recommend", content=pieces())
    assert answer.status_code == 413


def test_bad_addresses_and_arguments(http: httpx.Client) -> None:
    assert "/docs" in http.get("/nowhere").json()["error"]
    wrong_method = http.get("/recommend")
    assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")
    unknown = http.get("/similar?item_id=none")
    assert (unknown.status_code, "in the catalogue" in unknown.json()["error"]) == (404, True)
    assert http.get("/similar?item_id=1&k=99").status_code == 422
    assert http.get("/similar").json()["error"].startswith("item_id: Field required")
    many = http.post("/recommend/many", json={"queries": [{"query_id": 1}] * 9})
    assert many.json()["error"] == "queries must be at most 8, got 9; ask in parts."
    assert http.post("/recommend/many", json={"queries": []}).status_code == 422
    assert http.get("/page/__init__.py").status_code == 404
    assert http.get("/page/../app.py").status_code == 404


ADDRESSES = (
    "/similar?item_id=none", "/similar?item_id=1&k=99", "/similar?item_id=1&k=0",
    "/similar?item_id=1&k=2.5", "/similar?item_id=1&k=1e%2B30", "/similar?item_id=1&columns=yes",
    "/similar?item_id=1&kk=3", "/similar", f"/similar?item_id=1&filter={'x' * 8_193}",
    f"/queries?text={'x' * 4_097}", f"/items?text={'x' * 4_097}", "/items?limit=101",
    "/history?query_id=1&limit=0", "/nowhere", "/recommend", "/openapi.json?lang=de",
)  # fmt: skip


def test_what_an_address_is_refused_for_has_its_chinese(http: httpx.Client) -> None:
    for address in ADDRESSES:
        answer = http.get(address)
        assert answer.status_code >= 400, address
        chinese = http.get("/page/chinese", params={"text": answer.json()["error"]}).json()["text"]
        assert chinese is not None, answer.json()["error"]
    assert chinese == "lang：须是 'en' 或 'zh'，却写了 \"de\"。"


def test_large_lists_are_refused(tiny_bundle: Path) -> None:
    """The limits that ``openapi_hooks.py`` takes out, one by one."""
    wide: list[tuple[str, dict[str, Any]]] = [
        ("/recommend", {"history": [1] * 10_001}),
        ("/recommend", {"query_id": 1, "among": [1] * 10_001}),
        ("/recommend", {"query_id": 1, "without": [1] * 10_001}),
        ("/recommend", {"query_id": "x" * 4_097}),
        ("/recommend", {"query_id": 1, "filter": "x" * 100_001}),
        ("/recommend", {"features": {"segment": "x" * 100_001}}),
        ("/recommend", {"features": {"segment": ["x"] * 10_001}}),
        ("/recommend", {"features": {f"a{n}": 1 for n in range(1_001)}}),
        ("/score", {"pairs": [[1, 1]] * 1_001}),
        ("/encode/items", {"item_ids": [1] * 1_001}),
        ("/encode/items", {"features": [{}] * 1_001}),
        ("/encode/queries", {"queries": [{"query_id": 1}] * 65}),
    ]
    with running(tiny_bundle) as address, httpx.Client(base_url=address) as asker:
        for path, body in wide:
            answer = asker.post(path, json=body)
            assert answer.status_code == 422, (path, body.keys())
            assert "at most" in answer.json()["error"]
            assert in_chinese(answer.json()["error"]) is not None, answer.json()["error"]


def test_nothing_is_encoded_where_nothing_describes_a_query(http: httpx.Client) -> None:
    """The retriever would encode every query that it knows."""
    answer = http.post("/encode/queries", json={"queries": [{"query_id": 1}, {}]})
    assert answer.status_code == 422
    assert "a query needs a query_id, features or a history" in answer.json()["error"]


def test_what_stands_in_an_address_is_what_the_page_says(http: httpx.Client) -> None:
    for parameters in ("kk=3", "k=5.0", "k=%203", "k=1_0", "columns=1", "columns=yes"):
        answer = http.get(f"/similar?item_id=1&{parameters}")
        assert answer.status_code == 422, parameters
    assert (
        "parameters must be of item_id, k, filter, columns, got 'kk'."
        in (http.get("/similar?item_id=1&kk=3").json()["error"])
    )
    assert http.get("/similar?item_id=1&k=3&columns=true").status_code == 200
    assert http.get("/health?probe=1").status_code == 200


def test_a_body_says_that_it_is_json(http: httpx.Client) -> None:
    body = b'{"query_id": 5}'
    for media_type in ("text/plain", "application/xml", "multipart/form-data"):
        answer = http.post("/recommend", content=body, headers={"content-type": media_type})
        assert answer.status_code == 415
        assert f"content-type must be application/json, got '{media_type}'." in answer.text
    assert http.post("/recommend", content=body).status_code == 415
    for media_type in ("application/json; charset=utf-8", "application/a+json", "Application/JSON"):
        answer = http.post("/recommend", content=body, headers={"content-type": media_type})
        assert answer.status_code == 200, media_type


def test_head_says_what_get_says_without_its_body(http: httpx.Client) -> None:
    for path in ("/health", "/ready", "/model", "/metrics", "/", "/docs", "/similar?item_id=1"):
        got, head = http.get(path), http.head(path)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-type"] == got.headers["content-type"]
        if path != "/metrics":
            assert head.headers["content-length"] == str(len(got.content))
    refused = http.head("/recommend")
    assert (refused.status_code, refused.headers["allow"], refused.content) == (405, "POST", b"")
    assert http.post("/health").headers["allow"] == "GET, HEAD"
    assert 'route="/health",status="405"' in http.get("/metrics").text


def test_whole_numbers_are_whole_however_they_are_written(http: httpx.Client) -> None:
    for body in (
        {"query_id": 5.0, "k": 3.0},
        {"query_id": 5, "history": [7.0, {"item_id": 8.0}]},
        {"query_id": 5, "among": [1.0, "2"]},
    ):
        assert http.post("/recommend", json=body).status_code == 200, body
    whole = http.post("/recommend", json={"query_id": 5.0, "k": 3.0}).json()
    assert whole["query_id"] == 5
    assert whole["items"] == http.post("/recommend", json={"query_id": 5, "k": 3}).json()["items"]


def test_the_page_tells_the_limits_of_this_server(http: httpx.Client) -> None:
    told = http.get("/openapi.json").json()
    parts = told["components"]["schemas"]
    assert parts["RecommendBody"]["properties"]["k"]["maximum"] == 50
    assert parts["ManyBody"]["properties"]["queries"]["maxItems"] == 8
    assert parts["RecommendBody"]["properties"]["words"]["anyOf"] == [
        {"const": "auto", "type": "string"},
        {"type": "number", "const": 0},
    ]
    assert parts["Line"]["required"] == parts["Event"]["required"] == ["item_id"]
    (known,) = parts["RecommendBody"]["then"]["properties"]["features"].values()
    assert {"segment", "signal"} <= set(known["enum"])
    whole = parts["ExplainBody"]["properties"]["item_id"]["anyOf"][0]
    assert whole == {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
    for methods in told["paths"].values():
        for method, route in methods.items():
            statuses = {"200", "400", "401", "408", "413", "415", "422", "429", "500", "503"}
            assert statuses <= set(route["responses"])
            assert ("security" in route) == (method in ("put", "delete"))


def sentences_of(part: Any) -> Iterator[str]:
    """Yield the summaries and descriptions of an OpenAPI document, and take them out of it."""
    if isinstance(part, dict):
        for name in ("summary", "description"):
            if isinstance(part.get(name), str):
                yield part.pop(name)
    for inner in part.values() if isinstance(part, dict) else part:
        if isinstance(inner, (dict, list)):
            yield from sentences_of(inner)


def test_the_list_of_routes_is_in_chinese_where_that_is_asked_for(http: httpx.Client) -> None:
    before = http.get("/openapi.json").content
    english, chinese = json.loads(before), http.get("/openapi.json?lang=zh").json()
    pairs = list(zip(sentences_of(english), sentences_of(chinese), strict=True))
    assert len(pairs) > 300
    assert [
        said for said, translated in pairs if not re.search(r"[\u4e00-\u9fff]", translated)
    ] == []
    assert english == chinese  # but for these
    assert http.get("/openapi.json?lang=en").content == before
    bundle = http.get("/openapi.json?lang=zh").json()["paths"]["/model"]["put"]["description"]
    assert bundle.split("\n\n")[1] == "其他工作进程打开它之后也会跟上。"


def test_the_page_asks_for_the_token_of_readers(tiny_bundle: Path) -> None:
    with running(tiny_bundle, read_token="read") as address:
        bearer = {"authorization": "Bearer read"}
        paths = httpx.get(f"{address}/openapi.json", headers=bearer).json()["paths"]
        is_open = {
            path
            for path, methods in paths.items()
            if "security" not in methods.get("get", {"security"})
        }
    assert "security" in paths["/recommend"]["post"]
    assert is_open == {"/health", "/ready"}


def test_scores_and_vectors_are_those_of_the_retriever(
    tiny_bundle: Path, tiny_retriever: Retriever
) -> None:
    items = tiny_retriever.item_ids
    pairs = [(q, i) for q in range(1, 40) for i in items[::5]]  # more than one request takes
    segment = tiny_retriever.contents.queries.frame["segment"][0]
    asked: list[dict[str, Any]] = [
        {"query_id": 5},
        {"query_id": list(range(1, 20))},  # the same
        {"query_id": 5, "history": items[:4]},
        {"history": [items[:4], [items[3], "no such item"]]},
        {"features": [{"segment": segment}, {}]},
        {"query_id": []},
    ]
    lines: list[dict[str, Any]] = [{"title": "New", "signal": 0.5}, {"category": "category-1"}]

    def same(mine: Any, theirs: Any) -> None:
        assert mine.dtype == theirs.dtype == np.float32
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(theirs, mine, rtol=1e-5, atol=1e-6)

    with running(tiny_bundle, batch=8) as address, Client(address) as client:
        same(tiny_retriever.score(pairs), client.score(pairs))
        same(np.zeros(0, np.float32), client.score([]))
        for question in asked:
            same(tiny_retriever.encode_queries(**question), client.encode_queries(**question))
        same(tiny_retriever.encode_items(items), client.encode_items(items))
        same(tiny_retriever.encode_items([]), client.encode_items([]))
        same(tiny_retriever.encode_items(features=lines), client.encode_items(features=lines))
        with pytest.warns(UserWarning, match="got 'colour'"):
            client.encode_items(features=[{"colour": "red"}])
        for wrong in ([(5, "none")], [("nobody", items[0])]):
            with pytest.raises(ValueError, match=r"got '(none|nobody)'\."):
                client.score(wrong)
        with pytest.raises(ValueError, match=r"in the catalogue, got 'none'\."):
            client.encode_items(["none"])
        with pytest.raises(ValueError, match="got neither; open the bundle"):
            client.encode_items()
        with pytest.raises(ValueError, match="got both"):
            client.encode_items(items, features=lines)


def test_a_wrong_filter_is_a_filter_error(url: str, tiny_retriever: Retriever) -> None:
    told = "titel = 3"
    with Client(url) as client:
        for ask, own in (
            (client.recommend, tiny_retriever.recommend),
            (client.similar_items, tiny_retriever.similar_items),
        ):
            with pytest.raises(FilterError) as mine:
                own(5, filter=told)
            with pytest.raises(FilterError) as theirs:
                ask(5, filter=told)
            assert str(theirs.value) == str(mine.value)
        with pytest.raises(ValueError, match="k must be at most") as other:
            client.recommend(5, k=51)
        assert not isinstance(other.value, FilterError)


def test_an_id_that_stands_twice_in_a_write_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    with running(tiny_bundle, token="t", journal=str(tmp_path / "journal")) as address:
        bearer = {"authorization": "Bearer t"}
        for pair in ([5, 5], [5, "5"], [5.0, 5]):
            lines = [{"item_id": item_id} for item_id in pair]
            answer = httpx.put(f"{address}/items", json={"items": lines}, headers=bearer)
            assert answer.status_code == 409
            assert "item_id must be distinct within a call, got" in answer.json()["error"]


def test_a_request_has_a_name_and_headers(http: httpx.Client) -> None:
    named = http.get("/health", headers={"x-request-id": "mine-1"})
    assert named.headers["x-request-id"] == "mine-1"
    forged = http.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"]
    assert len(forged) == 32
    assert named.headers["x-content-type-options"] == "nosniff"
    assert named.headers["cache-control"] == "no-store"
    assert named.headers["server-timing"].startswith("total;dur=")
    strange = http.get("/health", headers={"origin": "http://a"})
    assert "access-control-allow-origin" not in strange.headers


def test_what_is_shown_is_found(http: httpx.Client, tiny_retriever: Retriever) -> None:
    title = tiny_retriever.contents.items.frame["title"][0]
    found = http.get("/items", params={"text": title.upper(), "limit": 3}).json()["items"]
    assert found[0]["title"] == title
    popular = http.get("/items", params={"limit": 100}).json()["items"]
    counts = tiny_retriever.contents.popularity
    rows = tiny_retriever.known_item_rows([line["item_id"] for line in popular])
    assert counts[rows].tolist() == sorted(counts.tolist(), reverse=True)[:100]
    ids = http.get("/queries", params={"text": "1", "limit": 5}).json()["query_ids"]
    assert ids
    assert all(str(i).startswith("1") for i in ids)
    latest = http.get("/history", params={"query_id": 5, "limit": 3}).json()["items"]
    assert [line["item_id"] for line in latest] == tiny_retriever.history(5)[::-1][:3]


def test_an_example_can_be_asked(http: httpx.Client, tiny_retriever: Retriever) -> None:
    drawn = [http.get("/example").json() for _ in range(5)]
    queries = {each["query_id"] for each in drawn}
    assert len(queries) > 1
    for query in queries:
        assert len(tiny_retriever.history(query)) > 0
        told = http.post("/recommend", json={"query_id": query}).json()
        assert told["basis"] == "model"
    assert all(each["item"]["item_id"] in tiny_retriever.item_ids for each in drawn)


def test_the_map_is_drawn_once(
    http: httpx.Client, tiny_retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *given: Any, **named: Any) -> None:
            begun.append(named["env"])
            super().__init__(*given, **named)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    monkeypatch.setenv("TWOTOWER_TOKEN", "secret")
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # as on most machines
    for _ in range(5):
        assert http.get("/map").json() == {"status": "drawing"}
    while (told := http.get("/map").json())["status"] == "drawing":
        assert len(begun) <= 1
        time.sleep(0.1)
    assert told["status"] == "ready"
    assert told["item_ids"] == tiny_retriever.item_ids
    assert told["titles"][4] == tiny_retriever.items([told["item_ids"][4]])["title"][0]
    assert told["items"] == len(told["x"]) == len(told["y"]) == len(told["titles"]) == 200
    assert len(set(zip(told["x"], told["y"], strict=True))) > 150
    assert (min(told["x"] + told["y"]), max(told["x"] + told["y"])) == (0, 9999)
    names = [column["name"] for column in told["columns"]]
    assert (names[0], sorted(names)) == ("category", ["category", "signal", "tags"])
    assert all(len(column["codes"]) == 200 for column in told["columns"])
    categories = tiny_retriever.contents.items.frame["category"].to_list()
    column = told["columns"][0]
    assert all(
        code == "." or column["groups"][int(code)] == category
        for code, category in zip(column["codes"], categories, strict=True)
    )
    assert http.get("/map").json() == told
    assert len(begun) == 1
    assert "secret" not in begun[0].values()


def test_figures_are_counted(http: httpx.Client) -> None:
    http.post("/recommend", json={"query_id": 5})
    http.post("/recommend", json={"query_id": "nobody"})
    text = http.get("/metrics").text
    for line in (
        'twotower_requests_total{route="/recommend",status="200"}',
        'twotower_request_seconds_bucket{le="0.01",route="/recommend"}',
        'twotower_stage_seconds_count{stage="queue"}',
        'twotower_stage_seconds_count{stage="model"}',
        "twotower_items 200.0",
        "twotower_index_recall 1.0",
        'twotower_query_ids_total{known="no"}',
        "twotower_model_opened_timestamp_seconds",
    ):
        assert line in text


def test_writing_needs_the_token(http: httpx.Client, url: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
        answer = http.put("/model", json={"path": "x"}, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    with Client(url, token="secret") as client, pytest.raises(Exception, match="409"):
        client.exchange_model("no such bundle")


def test_without_a_token_nothing_is_written_and_with_one_to_read_nothing_is_read(
    tiny_bundle: Path,
) -> None:
    with running(tiny_bundle, read_token="read", origins=("http://page.example",)) as address:
        answer = httpx.put(f"{address}/model", json={"path": "x"})
        assert (answer.status_code, "switched off" in answer.text) == (403, True)
        assert httpx.get(f"{address}/model").status_code == 401
        assert httpx.get(f"{address}/metrics").status_code == 401
        for path in ("/health", "/ready", "/", "/docs", "/page/page.js"):
            assert httpx.get(f"{address}{path}").status_code == 200, path
        with Client(address, token="read") as client:
            assert client.model["items"] == 200
        asked = {"origin": "http://page.example", "access-control-request-method": "POST"}
        allowed = httpx.options(f"{address}/recommend", headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "http://page.example"
        told_why = httpx.get(f"{address}/model", headers={"origin": "http://page.example"})
        assert told_why.status_code == 401
        assert told_why.headers["access-control-allow-origin"] == "http://page.example"
        lower = {"authorization": "bearer read"}
        assert httpx.get(f"{address}/model", headers=lower).status_code == 200
        refused = httpx.options(
            f"{address}/recommend", headers={**asked, "origin": "http://evil.example"}
        )
        assert "access-control-allow-origin" not in refused.headers


def test_a_client_that_hangs_up_leaves_the_others_alone(http: httpx.Client, url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    body = json.dumps({"query_id": 5}).encode()
    head = (
        b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: " + str(len(body)).encode() + b"\r\n\r\n"
    )
    for sent in (head + body, head + body[:4], head[:20]):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(sent)
    assert http.post("/recommend", json={"query_id": 5}).status_code == 200


def test_a_slow_body_is_given_up(
    monkeypatch: pytest.MonkeyPatch, http: httpx.Client, url: str
) -> None:
    monkeypatch.setattr("twotower.serving.server.gate.SECONDS_FOR_A_BODY", 0.1)
    port = int(url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(
            b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{"
        )
        assert b" 408 " in connection.recv(4096)


@pytest.fixture(scope="module")
def other(small_world: Any, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Trained:
    return train(
        small_world.interactions,
        items=small_world.items,
        queries=small_world.queries,
        out=tmp_path_factory.mktemp("other") / "model",
        config={"training": {"epochs": 1, "solver": "gradient"}, "towers": {"dim": 16}},
        baselines=[],
    )


def test_a_model_takes_over_without_a_failed_request(
    tiny_bundle: Path, other: Trained, tmp_path: Path
) -> None:
    assert other.path is not None
    paths = [tiny_bundle, other.path]
    models = [Retriever.open(path) for path in paths]
    answers = {}
    failed: list[object] = []
    is_over = threading.Event()
    with running(tiny_bundle, token="secret") as address, Client(address, token="secret") as client:
        for path, model in zip(paths, models, strict=True):
            digest = client.exchange_model(str(path))["model"]
            answers[digest] = model.recommend(7, k=5).item_ids
        assert len(answers) == 2

        def ask() -> None:
            with httpx.Client(base_url=address) as http:
                while not is_over.is_set():
                    answer = http.post("/recommend", json={"query_id": 7, "k": 5})
                    told = answer.json()
                    found = [item["item_id"] for item in told.get("items", ())]
                    if answer.status_code != 200 or answers[told["model"]] != found:
                        failed.append(told)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(4):
            client.exchange_model(str(paths[number % 2]))
        is_over.set()
        for thread in threads:
            thread.join()
        assert not failed

        damaged = tmp_path / "damaged"
        shutil.copytree(tiny_bundle, damaged)
        (damaged / "items.safetensors").write_bytes(b"nonsense")
        before = client.model["model"]
        with pytest.raises(Exception, match=r"said 409: the bundle .* is damaged"):
            client.exchange_model(str(damaged))
        assert client.model["model"] == before
        metrics = httpx.get(f"{address}/metrics").text
        assert 'twotower_model_exchanges_total{ok="no"} 1.0' in metrics


def test_a_model_of_another_width_may_not_take_over(
    tiny_bundle: Path, small_world: Any, tmp_path: Path
) -> None:
    narrow = train(
        small_world.interactions,
        items=small_world.items,
        out=tmp_path / "narrow",
        config={"training": {"epochs": 1, "solver": "gradient"}, "towers": {"dim": 8}},
        baselines=[],
    )
    with running(tiny_bundle, token="t") as address, Client(address, token="t") as client:
        with pytest.raises(
            Exception,
            match=r"be 16, got 8; train it with towers\.dim = 16 and towers\.spectral_dim = 0, or",
        ):
            client.exchange_model(str(narrow.path))
        assert client.model["dim"] == 16


def test_a_bundle_that_is_replaced_on_disk_is_still_the_one_that_answers(
    tiny_bundle: Path, other: Trained, tmp_path: Path
) -> None:
    assert other.path is not None
    place = tmp_path / "model"
    shutil.copytree(tiny_bundle, place)
    with running(place, token="t") as address, Client(address, token="t") as client:
        before = client.recommend(7).item_ids
        write_bundle(place, open_bundle(other.path))
        assert client.recommend(7).item_ids == before
        client.exchange_model(str(place))
        assert client.recommend(7).item_ids == Retriever.open(other.path).recommend(7).item_ids


def test_items_are_put_in_and_taken_out(tiny_bundle: Path, tmp_path: Path) -> None:
    told = open_bundle(tiny_bundle).items.frame.row(0, named=True)
    journal = str(tmp_path / "journal")
    new = {**told, "item_id": 9001, "title": "Entirely new"}
    with (
        running(tiny_bundle, token="t", journal=journal) as address,
        Client(address, token="t") as client,
    ):
        assert client.upsert_items([new, {**told, "item_id": 9002}]) == 2
        found = client.recommend(7, k=300).item_ids
        assert {9001, 9002} < set(found)
        assert len(found) == len(set(found))
        assert client.recommend(7, filter="title = 'Entirely new'").item_ids == [9001]
        assert 9001 in client.similar_items(9002, k=200).item_ids
        assert client.explain(7, 9001).item_id == "9001" or client.explain(7, 9001).item_id == 9001
        assert client.delete_items([9002, "no such item"]) == 1
        assert client.delete_items([]) == client.upsert_items([]) == 0
        assert 9002 not in client.recommend(7, k=300).item_ids
        assert client.model["items"] == 201
        with pytest.warns(UserWarning, match="got 'colour'"):
            client.upsert_items({**new, "colour": "red"})
        with pytest.raises(ValueError, match="item_id must be an id like those"):
            client.upsert_items([{**new, "item_id": 9003}, {**told, "item_id": "x"}])
        assert client.model["items"] == 201
        with httpx.Client(base_url=address, headers={"authorization": "Bearer t"}) as http:
            bare = http.put("/items", json={"items": [{"item_id": 9004}]}).json()
            assert (bare["items"], bare["without_features"]) == (1, 1)
            wrong: list[Any] = [{"items": []}, {"items": [1]}, {}, {"items": [{"title": "no id"}]}]
            for body in wrong:
                assert http.put("/items", json=body).status_code == 422, body
            assert http.delete("/items").status_code == 422
            found_by_text = http.get("/items", params={"text": "entirely"}).json()["items"]
        assert [line["item_id"] for line in found_by_text] == [9001]
        assert httpx.put(f"{address}/items", json={"items": [new]}).status_code == 401
        after = client.recommend(7, k=300)
    with running(tiny_bundle, journal=journal) as address, Client(address) as client:
        again = client.recommend(7, k=300)
        assert again.item_ids == after.item_ids
        assert again.scores == pytest.approx(after.scores, rel=1e-5)


def test_what_was_written_stays_when_another_model_takes_over(
    tiny_bundle: Path, other: Trained, tmp_path: Path
) -> None:
    told = open_bundle(tiny_bundle).items.frame.row(0, named=True)
    settings = {"token": "t", "journal": str(tmp_path / "journal")}
    with running(tiny_bundle, **settings) as address, Client(address, token="t") as client:
        client.upsert_items({**told, "item_id": 9001})
        client.delete_items([3])
        client.exchange_model(str(other.path))
        found = client.recommend(7, k=300, exclude_seen=False).item_ids
        assert 9001 in found
        assert 3 not in found
        client.upsert_items({**told, "item_id": 9002})
        assert client.model["items"] == 60 - 1 + 2


def test_readers_see_all_or_nothing_while_items_change(tiny_bundle: Path, tmp_path: Path) -> None:
    """Each write exchanges a pair of items for another; an answer never holds half of one."""
    told = open_bundle(tiny_bundle).items.frame.row(0, named=True)
    wrong: list[object] = []
    is_over = threading.Event()
    settings = {"token": "t", "journal": str(tmp_path / "journal")}
    with running(tiny_bundle, **settings) as address:

        def read() -> None:
            with Client(address) as client:
                while not is_over.is_set():
                    found = client.recommend(7, k=400).item_ids
                    pairs = sorted(i for i in found if int(i) > 9000)
                    if len(set(found)) != len(found) or len(pairs) % 2:
                        wrong.append(pairs)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        with Client(address, token="t") as client:
            for number in range(9001, 9041, 2):
                client.upsert_items([{**told, "item_id": number + n} for n in (0, 1)])
                if number > 9010:
                    client.delete_items([number - 10, number - 9])
            assert client.model["items"] == 200 + 10
        is_over.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_changes_that_come_at_once_each_hear_what_they_did(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """Of many that take one item out, one has done it; of many that put one in, each has."""
    told = open_bundle(tiny_bundle).items.frame.row(0, named=True)
    settings = {"token": "t", "journal": str(tmp_path / "journal")}
    with running(tiny_bundle, **settings) as address, ThreadPoolExecutor(8) as pool:

        def put(number: int) -> int:
            with Client(address, token="t") as client:
                return client.upsert_items([{**told, "item_id": 9001}, {**told, "item_id": number}])

        def take_out(_: int) -> int:
            with Client(address, token="t") as client:
                return client.delete_items([9001, 9101])

        assert list(pool.map(put, range(9101, 9117))) == [2] * 16
        assert sorted(pool.map(take_out, range(16))) == [0] * 15 + [2]
        with Client(address) as client:
            assert client.model["items"] == 200 + 15


def test_rows_that_only_cost_are_dropped_while_answers_go_on(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twotower.serving.server.service.MOST_DEAD", 20)
    told = open_bundle(tiny_bundle).items.frame.row(0, named=True)
    journal = tmp_path / "journal"
    with (
        running(tiny_bundle, token="t", journal=str(journal)) as address,
        Client(address, token="t") as client,
    ):
        first = journal.stat().st_ino
        for number in range(30):
            client.upsert_items({**told, "item_id": 9001, "title": f"title {number}"})
        client.delete_items([3])
        until = time.monotonic() + PATIENCE
        while journal.stat().st_ino == first and time.monotonic() < until:
            assert client.recommend(7, k=300).item_ids.count(9001) == 1
        assert len(JournalReader(journal).more()) < 30
        exchanged = 'twotower_model_exchanges_total{ok="yes"} 1.0'
        while exchanged not in httpx.get(f"{address}/metrics").text:
            assert time.monotonic() < until
        client.upsert_items({**told, "item_id": 9002})
        assert client.model["items"] == 200 + 2 - 1
        assert client.recommend(7, filter="title = 'title 29'").item_ids == [9001]


def test_an_answer_does_not_depend_on_who_asks_beside(tiny_bundle: Path) -> None:
    """Values of other kinds, and histories with and without times, in one batch."""
    engine = Engine(tiny_bundle)
    items = engine.model.retriever.item_ids
    asked: list[dict[str, Any]] = [
        {"query_id": 5},
        {"query_id": "5", "k": 3},
        {"features": {"signal": 0.5}},
        {"features": {"signal": 1}},
        {"features": {"signal": "0.5"}},
        {"features": {"signal": [1, 2]}},
        {"features": {"signal": True}},
        {"features": {"segment": "segment-1"}},
        {"features": {"segment": 7, "signal": None}},
        {"history": items[:5]},
        {"history": [{"item_id": i, "time": 1e9 + 1e5 * n} for n, i in enumerate(items[:5])]},
        {"history": [{"item_id": items[0], "time": 1e9}, items[1]]},
        {"history": [{"item_id": items[0], "time": "soon"}]},
        {"history": [{"item_id": 1, "time": -1e308}, {"item_id": 2, "time": 1e308}]},
        {"query_id": 7, "filter": "item_id < 50"},
        {"query_id": 7, "filter": "item_id <"},
    ]
    empty: dict[str, Any] = {
        "query_id": None, "features": None, "history": None, "k": 10, "exclude_seen": None,
        "among": None, "without": None, "filter": None, "words": 0.0, "strict": False,
        "columns": False,
    }  # fmt: skip
    questions = [Question(**{**empty, **each}) for each in asked]
    for told, question, answered in zip(asked, questions, engine.answer(questions), strict=True):
        (alone,) = engine.answer([question])
        if isinstance(alone, Exception):
            assert isinstance(alone, ValueError), told
            assert str(answered) == str(alone)
        else:
            assert isinstance(answered, Answered), told
            assert answered.answer.item_ids == alone.answer.item_ids, told
            np.testing.assert_allclose(answered.answer.scores, alone.answer.scores, rtol=1e-5)


WIDE: dict[str, Any] = {
    "queries that are none": {"queries": [1] * 4000},
    "objects as values": {"features": {f"a{n}": {} for n in range(3000)}},
    "empty lists as ids": {"history": [[]] * 4000, "query_id": 1},
    "lists in lists": {"among": [[[]]] * 3000, "query_id": 1},
}


def test_a_wide_body_does_not_keep_the_others_waiting(tiny_bundle: Path) -> None:
    """It is refused for little of the processor's time: all that it holds is not gone through."""
    with running(tiny_bundle) as address:
        for case, body in WIDE.items():
            path = "/recommend/many" if "queries" in body else "/recommend"
            started = time.process_time()
            answer = httpx.post(f"{address}{path}", json=body)
            assert time.process_time() - started < 1.0, case
            assert answer.status_code == 422, case
            assert len(answer.text) < 1000, case


@pytest.fixture
def wait_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Waits until so many ask a server who neither heard an answer yet nor hung up."""
    ask_all, asking = Batcher.ask_all, [0]

    async def counted(self: Batcher[Any, Any], questions: Any) -> list[Any]:
        if questions == [None]:  # the server's own look at the journal, once in a while
            return await ask_all(self, questions)
        asking[0] += 1
        try:
            return await ask_all(self, questions)
        finally:
            asking[0] -= 1

    def wait_for(number: int) -> None:
        until = time.monotonic() + PATIENCE
        while asking[0] != number:
            assert time.monotonic() < until
            time.sleep(0.01)

    monkeypatch.setattr(Batcher, "ask_all", counted)
    return wait_for


def test_who_hangs_up_is_not_answered(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[[int], None]
) -> None:
    real, began, may_go = Engine.answer, threading.Event(), threading.Event()
    answered: list[int] = []

    def slow(self: Engine, questions: Any) -> Any:
        answered.append(len(questions))
        began.set()
        assert may_go.wait(PATIENCE)
        return real(self, questions)

    monkeypatch.setattr(Engine, "answer", slow)
    with running(tiny_bundle) as address:
        port = int(address.rsplit(":", 1)[1])
        body = json.dumps({"query_id": 5}).encode()
        head = (
            b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: " + str(len(body)).encode() + b"\r\n\r\n"
        )
        first = socket.create_connection(("127.0.0.1", port))
        first.sendall(head + body)
        assert began.wait(PATIENCE)
        gone = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
        for each in gone:
            each.sendall(head + body)
        wait_for(6)
        for each in gone:
            each.close()
        wait_for(1)
        may_go.set()
        assert b" 200 " in first.recv(4096)
        first.close()
        assert httpx.post(f"{address}/recommend", json={"query_id": 6}).status_code == 200
    assert answered == [1, 1]  # the five who went were not asked about


def test_what_nobody_foresaw_is_told_as_json(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tiny_bundle) as address:
        monkeypatch.setattr(Retriever, "similar_items", lambda *_, **__: 1 // 0)
        answer = httpx.get(f"{address}/similar", params={"item_id": 3})
        assert answer.status_code == 500
        assert set(answer.json()) == {"error", "request_id"}
        assert "ZeroDivision" not in answer.text

        def broken(*_: Any, **__: Any) -> None:  # as numpy raises where we call it wrongly
            raise ValueError("operands could not be broadcast together")

        monkeypatch.setattr(Retriever, "similar_items", broken)
        monkeypatch.setattr(Retriever, "explain", broken)
        of_framework = httpx.get(f"{address}/similar", params={"item_id": 3})
        direct = httpx.post(f"{address}/explain", json={"query_id": 5, "item_id": 3})
        for answer in (of_framework, direct):
            assert answer.status_code == 500
            assert "broadcast" not in answer.text
        assert httpx.get(f"{address}/health").status_code == 200


def test_work_for_one_does_not_starve_the_others(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[[int], None]
) -> None:
    began, may_go = threading.Event(), threading.Semaphore(0)

    def slow(*_: Any, **__: Any) -> None:
        began.set()
        assert may_go.acquire(timeout=PATIENCE)
        raise ArgumentError("slow")

    monkeypatch.setattr(Retriever, "explain", slow)
    with (
        running(tiny_bundle, batch=1, waiting=8) as address,
        httpx.Client(base_url=address) as http,
        ThreadPoolExecutor(13) as pool,
    ):
        told = {"query_id": 5, "item_id": 3}
        asked = [pool.submit(http.post, "/explain", json=told)]
        assert began.wait(PATIENCE)  # until then it is in the queue, and takes a place there
        asked += [pool.submit(http.post, "/explain", json=told) for _ in range(11)]
        refused = list(islice(as_completed(asked, PATIENCE), 3))
        assert [each.result().status_code for each in refused] == [429] * 3
        wait_for(9)
        other = pool.submit(http.post, "/recommend", json={"query_id": 5})
        wait_for(10)
        may_go.release(2)  # so seven explanations are still to come
        assert other.result(PATIENCE).status_code == 200
        may_go.release(7)
        assert sorted(each.result().status_code for each in asked) == [422] * 9 + [429] * 3


@pytest.mark.parametrize("token", [None, "secret"])
def test_no_spelling_of_an_address_writes_without_the_token(
    tiny_bundle: Path, tmp_path: Path, token: str | None
) -> None:
    settings = {"token": token, "journal": str(tmp_path / "journal"), "read_token": "may-read"}
    with running(tiny_bundle, **settings) as address:
        headers = {"authorization": "Bearer may-read"}
        paths = ("/model", "/items?item_id=3", "/items%0A?item_id=3", "/model%0A")
        for method, path in product(("PUT", "DELETE"), paths):
            told = httpx.request(method, f"{address}{path}", headers=headers, json={"path": "x"})
            refused = 403 if token is None else 401
            takes_none = (method, path) == ("DELETE", "/model")
            assert told.status_code == (405 if takes_none else refused), (method, path)


@pytest.mark.parametrize("path", ["/recommend", "/recommend%0A"])
def test_no_spelling_of_an_address_takes_a_body_that_is_not_plain_json(
    tiny_bundle: Path, path: str
) -> None:
    plain = {"content-type": "application/json"}
    with running(tiny_bundle) as address:
        for body, headers, status in (
            ("[" * 600 + "]" * 600, plain, 422),
            ('{"query_id": 1, "features": {"age": NaN}}', plain, 422),
            ('{"query_id": 1}', {"content-type": "text/plain"}, 415),
        ):
            told = httpx.post(f"{address}{path}", content=body, headers=headers)
            assert told.status_code == status, (path, body[:20], told.text)


def journal_of(path: Path, *records: dict[str, Any]) -> Path:
    journal = Journal(path)
    journal.append(records)
    journal.close()
    return path


def test_forms_of_one_id_are_one_item_after_compaction(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    told = open_bundle(tiny_bundle).items.frame.row(0, named=True)
    engine = Engine(tiny_bundle, path)
    put = [{**told, "item_id": form, "title": str(form)} for form in (9007, 9007.0, "9007", 9008)]
    written = engine.write([Change(items=[line]) for line in put])
    written += engine.write([Change(item_ids=["9008"]), Change(item_ids=["no id of this kind"])])
    done = engine.changed([each for each in written if isinstance(each, Written)])
    assert [each.items for each in done if isinstance(each, Changed)] == [1, 1, 1, 1, 1, 0]
    engine.compact()
    ids = Model(tiny_bundle, path).retriever.item_ids
    assert ids == engine.model.retriever.item_ids
    assert ids.count(9007) == 1
    assert 9008 not in ids


def test_compaction_changes_no_value(tiny_bundle: Path, tmp_path: Path) -> None:
    """What is read of a value must not depend on which others were written."""
    path = tmp_path / "journal"
    told = open_bundle(tiny_bundle).items.frame.row(0, named=True)
    engine = Engine(tiny_bundle, path)
    for number, title in enumerate((1, 1.5, True, "2")):
        change = Change(items=[{**told, "item_id": 9001 + number, "title": title, "no": title}])
        engine.changed([each for each in engine.write([change]) if isinstance(each, Written)])
    ids = [9001, 9002, 9003, 9004]
    before = engine.model.retriever.items(ids)
    assert before["title"].to_list() == ["1", "1.5", "true", "2"]
    engine.compact()
    again = Model(tiny_bundle, path).retriever
    assert again.items(ids).equals(before)
    vectors = engine.model.retriever.encode_items(ids)
    np.testing.assert_allclose(again.encode_items(ids), vectors, rtol=1e-5, atol=1e-6)


def test_a_change_that_does_not_fit_takes_no_other_with_it(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    told = open_bundle(tiny_bundle).items.frame.row(0, named=True)
    bad = {**told, "item_id": 9002, "signal": "no number"}
    path = journal_of(
        tmp_path / "journal",
        {"column": "item_id", "put": [{**told, "item_id": 9001}]},
        {"column": "item_id", "put": [bad, {**told, "item_id": 9003}], "token": "a"},
        {"delete": 7, "token": "b"},
        {"column": "item_id", "put": [{**told, "item_id": 9004}], "token": "c"},
        {"delete": [3]},
    )
    model = Model(tiny_bundle, path)
    ids = set(model.retriever.item_ids)
    assert {9001, 9003, 9004} < ids
    assert not {3, 9002} & ids
    unknown = Changed(0, [], 0, "")
    outcomes = [model.catalogue.changed(Written(token, unknown)) for token in "abc"]
    assert [type(each) for each in outcomes] == [ArgumentError, ArgumentError, Changed]


WRONG_VALUES: list[tuple[str, Any]] = [
    ("title", ["a", "list"]),
    ("signal", ["1"]),
    ("signal", "one"),
    ("signal", True),
]


@pytest.mark.parametrize(("column", "value"), WRONG_VALUES)
def test_a_value_of_another_form_is_refused_and_the_others_are_written(
    tiny_bundle: Path, tmp_path: Path, column: str, value: Any
) -> None:
    told = open_bundle(tiny_bundle).items.frame.row(0, named=True)
    engine = Engine(tiny_bundle, tmp_path / "journal")
    wrong, right = engine.write(
        [
            Change(items=[{**told, "item_id": 9001, column: value}]),
            Change(items=[{**told, "item_id": 9002}]),
        ]
    )
    assert isinstance(wrong, ValueError)
    assert f"{column} must hold" in str(wrong)
    assert isinstance(right, Written)


def test_who_hangs_up_during_an_exchange_does_not_split_the_workers(
    tiny_bundle: Path, other: Trained, tmp_path: Path
) -> None:
    pointer = str(tmp_path / "pointer")
    Pointer(str(tiny_bundle.resolve()), digest_of(tiny_bundle), 0).write(pointer)

    async def run() -> None:
        service = Service(ServerSettings(bundle=str(tiny_bundle), pointer=pointer))
        asked = asyncio.ensure_future(service.exchange(str(other.path)))
        await asyncio.sleep(0.05)
        asked.cancel()
        async with asyncio.timeout(PATIENCE):
            while Pointer.read(pointer).path == str(tiny_bundle.resolve()):  # type: ignore[union-attr]
                await asyncio.sleep(0.01)
        assert service.engine.model.path == other.path
        service.close()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, run()).result()
