"""What the routes share: a change that the journal holds is a success, whatever happens after that."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from servers import running
from twotower.errors import BundleError
from twotower.serving.bundle import open_bundle, write_bundle
from twotower.serving.server.batching import ClosedError, TooManyWaitingError, WaitedTooLongError
from twotower.serving.server.catalogue import Change, Changed
from twotower.serving.server.journal import Journal, JournalReader
from twotower.serving.server.options import ServerSettings
from twotower.serving.server.pointer import Pointer
from twotower.serving.server.service import Service


def finish(work: Coroutine[Any, Any, None]) -> None:
    """Run it in a thread of its own: a browser that another test has left open runs a loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


@pytest.fixture
def line(tiny_bundle: Path) -> dict[str, Any]:
    return open_bundle(tiny_bundle).items.frame.row(0, named=True)


def service_of(bundle: Path, journal: Path, **settings: Any) -> Service:
    return Service(ServerSettings(bundle=str(bundle), token="t", journal=str(journal), **settings))


def written_ids(journal: Path) -> list[int]:
    records = JournalReader(journal).more()
    return sorted(each["item_id"] for record in records for each in record["put"])


async def until(condition: Any) -> None:
    async with asyncio.timeout(300):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    "is_held", [True, False], ids=["the whole time", "for longer than they wait"]
)
def test_what_the_journal_holds_is_a_success_while_the_model_is_busy(
    tiny_bundle: Path, tmp_path: Path, line: dict[str, Any], is_held: bool
) -> None:
    journal = tmp_path / "journal"

    async def run() -> None:
        service = service_of(tiny_bundle, journal, batch=4, waiting=16, timeout=0.5)
        may_go = threading.Event()
        service.batcher.thread.submit(may_go.wait, 300)
        changes = [
            asyncio.ensure_future(service.change(Change(items=[{**line, "item_id": 9000 + n}])))
            for n in range(40)
        ]
        if not is_held:
            await asyncio.sleep(0.6)
            may_go.set()
        async with asyncio.timeout(300):
            done = await asyncio.gather(*changes, return_exceptions=True)
        may_go.set()
        applied = [9000 + n for n, each in enumerate(done) if isinstance(each, Changed)]
        assert applied == written_ids(journal)
        assert len(applied) >= 4  # the first batch, which the writer begins at once
        refused = [each for each in done if not isinstance(each, Changed)]
        assert refused
        assert all(isinstance(each, TooManyWaitingError | WaitedTooLongError) for each in refused)
        assert {each.items for each in done if isinstance(each, Changed)} == {1}
        model = await service.caught_up()
        assert set(applied) <= set(model.retriever.item_ids)
        service.close()

    finish(run())


def test_what_the_journal_holds_is_a_success_while_the_server_shuts_down(
    tiny_bundle: Path, tmp_path: Path, line: dict[str, Any]
) -> None:
    journal = tmp_path / "journal"

    async def run() -> None:
        service = service_of(tiny_bundle, journal, batch=1, timeout=600.0)
        may_go = threading.Event()
        service.batcher.thread.submit(may_go.wait, 300)
        changes = [
            asyncio.ensure_future(service.change(Change(items=[{**line, "item_id": 9000 + n}])))
            for n in range(5)
        ]
        await until(lambda: len(written_ids(journal)) == 5)
        may_go.set()
        service.close()
        async with asyncio.timeout(300):
            assert [each.items for each in await asyncio.gather(*changes)] == [1] * 5
            with pytest.raises(ClosedError):
                await service.change(Change(item_ids=[3]))
        assert len(JournalReader(journal).more()) == 5

    finish(run())


def test_what_the_journal_holds_is_a_success_where_the_next_model_cannot_hold_it(
    tiny_bundle: Path, tmp_path: Path, line: dict[str, Any]
) -> None:
    contents = open_bundle(tiny_bundle)
    frame = contents.items.frame.with_columns(pl.col("signal").cast(pl.Int64))
    whole = replace(contents, items=replace(contents.items, frame=frame))
    write_bundle(tmp_path / "whole", whole)
    journal = tmp_path / "journal"

    async def run() -> None:
        service = service_of(tiny_bundle, journal, timeout=600.0)
        may_go = threading.Event()
        service.batcher.thread.submit(may_go.wait, 300)
        items = [{**line, "item_id": 9001, "signal": 0.5}]
        change = asyncio.ensure_future(service.change(Change(items=items)))
        await until(lambda: written_ids(journal) == [9001])
        digest = service.engine.model.digest
        await service.exchange(str(tmp_path / "whole"))
        may_go.set()
        async with asyncio.timeout(300):
            assert vars(await change) == vars(Changed(1, [], 0, digest))
        assert 9001 not in (await service.caught_up()).retriever.item_ids
        service.close()

    finish(run())


def test_a_deletion_tells_how_many_were_there_before_it_was_written(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    async def run() -> None:
        service = service_of(tiny_bundle, tmp_path / "journal", timeout=0.2)
        may_go = threading.Event()
        service.batcher.thread.submit(may_go.wait, 300)
        change = Change(item_ids=[3, "4", 9999, "no such item"])
        async with asyncio.timeout(300):
            assert (await service.change(change)).items == 2
        may_go.set()
        service.close()

    finish(run())


def test_items_are_shown_as_another_process_has_just_written_them(
    tiny_bundle: Path, tmp_path: Path, line: dict[str, Any]
) -> None:
    path = tmp_path / "journal"
    with (
        running(tiny_bundle, token="t", journal=str(path)) as address,
        httpx.Client(base_url=address, timeout=60) as http,
    ):
        other = Journal(path)
        seen = http.get("/history", params={"query_id": 5, "limit": 1}).json()["items"][0]
        for number in range(5):
            new = {**line, "item_id": 9001, "title": f"title {number}"}
            old = {**seen, "title": f"old title {number}"}
            other.append([{"column": "item_id", "put": [new, old]}])
            found = http.get("/items", params={"text": f"title {number}"}).json()["items"]
            assert 9001 in [each["item_id"] for each in found]
            latest = http.get("/history", params={"query_id": 5, "limit": 1}).json()["items"]
            assert latest[0]["title"] == f"old title {number}"
            other.append([{"delete": [9001]}])
            assert http.get("/model").json()["items"] == 200
            other.append([{"column": "item_id", "put": [new]}])
            assert http.get("/model").json()["items"] == 201
        other.close()


def test_a_worker_that_comes_late_answers_from_no_other_bundle_than_the_others(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    pointer = tmp_path / "model.json"
    Pointer(str(tiny_bundle), "another", 3).write(str(pointer))
    settings = ServerSettings(bundle=str(tiny_bundle), pointer=str(pointer))
    with pytest.raises(BundleError, match=r"that the other workers answer from \(another\), got"):
        Service(settings)
