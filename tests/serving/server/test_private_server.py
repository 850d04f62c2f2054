"""A server of a private bundle, and what any server writes down of who asks."""

import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from servers import running
from twotower.serving.bundle import write_bundle
from twotower.serving.retriever import Retriever
from twotower.serving.server.telemetry import LOG
from twotower.training.private import without_queries

SECRET = "a-query-that-nobody-may-know"


class Lines(logging.Handler):
    """Keeps every record of the log with all that it bears."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(f"{record.getMessage()} {vars(record)}")


@pytest.fixture(scope="module")
def lines() -> Iterator[Lines]:
    kept = Lines()
    level = LOG.logger.level
    LOG.logger.addHandler(kept)
    LOG.logger.setLevel(logging.DEBUG)
    yield kept
    LOG.logger.removeHandler(kept)
    LOG.logger.setLevel(level)


@pytest.fixture(scope="module")
def http(
    tiny_retriever: Retriever, tmp_path_factory: pytest.TempPathFactory, lines: Lines
) -> Iterator[httpx.Client]:
    """A client of a server of the tiny world without its queries."""
    path: Path = tmp_path_factory.mktemp("private") / "model"
    write_bundle(path, without_queries(tiny_retriever.contents))
    journal = f"{path}.journal"
    with (
        running(path, token=SECRET, journal=journal) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def test_it_knows_no_query(http: httpx.Client) -> None:
    assert http.get("/queries").json() == {"query_ids": []}
    assert http.get("/history", params={"query_id": 5}).json()["items"] == []
    assert http.get("/model").json()["queries"] == 0
    drawn = http.get("/example").json()
    assert drawn["query_id"] is None
    assert "item_id" in drawn["item"]


def test_it_answers_histories_and_features(http: httpx.Client, tiny_retriever: Retriever) -> None:
    items = tiny_retriever.item_ids
    asked = {"history": items[:3], "features": {"segment": 1}, "k": 5}
    answer = http.post("/recommend", json=asked).json()
    expected = tiny_retriever.recommend(history=items[:3], features={"segment": 1}, k=5)
    assert answer["basis"] == "model"
    assert [item["item_id"] for item in answer["items"]] == expected.item_ids
    assert http.post("/recommend", json={"query_id": 5}).json()["basis"] == "popularity"
    assert http.get("/openapi.json").status_code == 200


def test_the_log_holds_nothing_that_was_asked(http: httpx.Client, lines: Lines) -> None:
    lines.told.clear()
    asked = {"query_id": SECRET, "features": {"segment": SECRET}, "history": [SECRET]}
    assert http.post("/recommend", json=asked).status_code == 200
    assert http.get("/history", params={"query_id": SECRET}).status_code == 200
    assert http.get("/queries", params={"text": SECRET}).status_code == 200
    assert http.get(f"/no/{SECRET}").status_code == 404
    assert http.post("/recommend", json={"query_id": SECRET, "filter": SECRET}).status_code == 422
    answered = http.delete(
        "/items", params={"item_id": SECRET}, headers={"authorization": f"Bearer {SECRET}"}
    )
    assert answered.status_code == 200
    assert len(lines.told) >= 6
    assert [line for line in lines.told if SECRET in line] == []
    assert SECRET not in http.get("/metrics").text
